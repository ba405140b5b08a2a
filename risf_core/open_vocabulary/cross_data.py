"""Another data set or vocabulary at test time: the columns of the text matrix are swapped, nothing is trained.

`swap_vocabulary` puts any annotated data under any list of names; the detector gets the text features of these names
(`TextClassifier.set_texts`) and is evaluated as always. For the pictogram world there are other vocabularies and a
second look of the test scenes (`other_palette`).
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from filelock import FileLock

from risf_core.data.coco import write_json
from risf_core.data.dataset import DetectionData, check_class_list, suggest
from risf_core.data.loader import read_image
from risf_core.data.scene_files import save_png
from risf_core.errors import DataError, SplitError
from risf_core.progress import progress

if TYPE_CHECKING:
    from risf_core.data_params import PictogramData

RELEASED_PROMPT = (
    "a photo of a {}"  # released code: one prompt, no article logic, names as the files spell them
)
PALETTE_VERSION = 1  # raise it whenever `repaint` gives other pixels
LIGHT = 0.25  # of `repaint`: brightness at the two ends of the image is 1 - LIGHT and 1 + LIGHT


def swap_vocabulary(
    data: DetectionData,
    names: Sequence[str],
    *,
    renamed: Mapping[str, str] | None = None,
    leave_out: Sequence[str] = (),
) -> DetectionData:
    """The data under the columns of another vocabulary.

    Names are matched by their words (`name_words`): "wine_glass" is "wine glass". Columns that no class of the data
    has are distractors: a detection of one may displace others among an image's best, and has no AP of its own.

    Args:
        data: Any annotated images.
        names: The columns, as they stand in the text matrix.
        renamed: Class of the data to the column that it is, where the words differ ("couch": "sofa"). Several classes
            may be one column.
        leave_out: Classes of the data without a column whose boxes are left out; they become background.

    Returns:
        The same images; classes are `names`, ids 1, 2, ... in their order.

    Raises:
        SplitError: If a class has no column, or could be several, and is not to be left out.
    """
    names = check_class_list(names, names, where="vocabulary")
    check_class_list(leave_out, data.class_names, where=f"{data.name}, classes to leave out")
    column = match_names([name for name in data.class_names if name not in leave_out], names, renamed or {})
    new_label = np.array([column.get(name, -1) for name in data.class_names], dtype=np.int64)
    images = []
    for record in data.images:
        labels = new_label[record.labels]
        images.append(replace(record, labels=labels).keep(labels >= 0))
    ids = tuple(range(1, len(names) + 1))
    return replace(data, class_names=names, category_ids=ids, images=tuple(images))


def match_names(
    class_names: Sequence[str], names: Sequence[str], renamed: Mapping[str, str]
) -> dict[str, int]:
    """The position among `names` of each class, by the same words or as `renamed` says.

    Raises:
        SplitError: If a class has none or could be several, or `renamed` names what is not there.
    """
    check_class_list(tuple(renamed), class_names, where="renamed classes")
    check_class_list(tuple(dict.fromkeys(renamed.values())), names, where="vocabulary")
    exact = {name: position for position, name in enumerate(names)}
    by_words: dict[str, list[int]] = defaultdict(list)
    for position, name in enumerate(names):
        by_words[name_words(name)].append(position)
    found = {}
    for name in class_names:
        wanted = renamed.get(name, name)
        places = [exact[wanted]] if wanted in exact else by_words.get(name_words(wanted), [])
        if not places:
            raise SplitError(
                f"class {name!r} of the data has no column in the vocabulary. {suggest(name, names)} Say which in "
                "renamed, or leave the class out."
            )
        if len(places) > 1:
            both = " or ".join(repr(names[place]) for place in places)
            raise SplitError(f"class {name!r} of the data could be {both}. Say which in renamed.")
        found[name] = places[0]
    return found


def name_words(name: str) -> str:
    """The words of a class name: lower case, underscores and hyphens as spaces, brackets dropped, their content kept.

    Example:
        >>> name_words("Bat_(animal)"), name_words("wine glass")
        ('bat animal', 'wine glass')
    """
    return " ".join(re.sub(r"[_\-()\[\],/]", " ", name.lower()).split())


def released_texts(names: Sequence[str]) -> tuple[str, ...]:
    """What the released code encodes: "a photo of a {name}", underscores and brackets of LVIS names included."""
    return tuple(RELEASED_PROMPT.format(name) for name in names)


def permuted_names(names: Sequence[str], *, seed: int) -> tuple[str, ...]:
    """The negative control: for each column the name whose text it gets instead of its own, a random cycle.

    Raises:
        SplitError: If there are fewer than two names.
    """
    if len(names) < 2:
        raise SplitError(f"{len(names)} names cannot be permuted. Expected two or more.")
    order = np.random.default_rng(seed).permutation(len(names))
    source = np.empty(len(names), dtype=np.int64)
    source[order] = np.roll(order, 1)
    return tuple(names[position] for position in source)


def read_text_features(path: str | Path, class_names: Sequence[str]) -> np.ndarray:
    """Text features of a ``.npy`` file of the released form: a row a class, in the order of the category ids.

    Returns:
        float32 [C, d], not normalised.

    Raises:
        DataError: If it is unreadable, has another number of rows, or a row that is zero or not finite.
    """
    try:
        features = np.load(path, allow_pickle=False)
    except FileNotFoundError as error:
        raise DataError(f"{path}: there is no such file. Expected text features, [C, d].") from error
    except (OSError, ValueError, EOFError) as error:
        raise DataError(
            f"{path}: not a readable .npy file ({error}). Expected text features, [C, d]."
        ) from error
    if features.ndim != 2 or len(features) != len(class_names) or features.dtype.kind != "f":
        raise DataError(
            f"{path}: {features.dtype} {features.shape} for {len(class_names)} classes. Expected numbers of shape "
            f"[{len(class_names)}, d], a row a class."
        )
    features = features.astype(np.float32)
    bad = ~np.isfinite(features).all(axis=1) | ~features.any(axis=1)
    if bad.any():
        name = class_names[int(np.flatnonzero(bad)[0])]
        raise DataError(f"{path}: the row of {name!r} is zero or not finite. Encode the names anew.")
    return features


def pictogram_vocabularies(class_names: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Vocabularies for the pictogram world's test: "own", its 20 classes, and "all", with the 50 other concepts."""
    from risf_core.data.glyphs import EXTRA_CONCEPTS

    return {"own": tuple(class_names), "all": (*class_names, *EXTRA_CONCEPTS)}


def other_palette(data: PictogramData, test: DetectionData) -> DetectionData:
    """The test scenes of the pictogram world with other colours and light (`repaint`), boxes and labels the same.

    The images are written once, beside the world, into the folder ``pictograms-<hash>-palette``.

    Args:
        data: The world.
        test: Its test scenes, of any base/novel partition.
    """
    from risf_core.data.world import build_world

    world = build_world(data)
    folder = world.root.with_name(f"{world.root.name}-palette")
    done = folder / "done.json"
    folder.mkdir(parents=True, exist_ok=True)
    content = {"version": PALETTE_VERSION, "images": sorted(record.path.name for record in test.images)}
    with FileLock(folder.with_suffix(".lock")):
        if not done.exists() or json.loads(done.read_text(encoding="utf-8")) != content:
            for record in progress(test.images, desc="painting the test scenes anew", unit="scenes"):
                pixels = read_image(record.path, size=(record.height, record.width)).permute(1, 2, 0).numpy()
                save_png(folder / record.path.name, repaint(pixels, number=record.image_id))
            write_json(done, content)
    images = tuple(replace(record, path=folder / record.path.name) for record in test.images)
    return replace(test, name=f"{test.name} (other palette)", images=images)


def repaint(image: np.ndarray, *, number: int) -> np.ndarray:
    """Another look of a picture: colours turned, light from one side.

    The channels are rotated, (R, G, B) becomes (G, B, R), so that red turns blue, green red and blue green while grey
    stays; then brightness rises linearly across the image from 1 - LIGHT to 1 + LIGHT, in a direction that follows
    from the number, which changes the ground most. Shapes, sizes and noise are the same.

    Args:
        image: uint8 RGB [H, W, 3].
        number: Any integer; the same one gives the same direction.

    Returns:
        uint8 RGB [H, W, 3].
    """
    angle = np.random.default_rng(number).uniform(0, 2 * np.pi)
    rows, columns = np.mgrid[0 : image.shape[0], 0 : image.shape[1]]
    ramp = columns * np.cos(angle) + rows * np.sin(angle)
    ramp = (ramp - ramp.min()) / max(float(np.ptp(ramp)), 1e-9)  # 0..1
    light = 1 - LIGHT + 2 * LIGHT * ramp
    return np.clip(image[..., [1, 2, 0]] * light[..., None] + 0.5, 0, 255).astype(np.uint8)
