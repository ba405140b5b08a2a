"""Few-shot splits: draw K boxes of each class, write and read them in the published file layout.

The layout is that of TFA (Wang et al., ICML 2020, https://github.com/ucbdrive/few-shot-object-detection):
``<root>/seed{n}/full_box_{K}shot_{class}_trainval.json``, one COCO-format file for each class, where seed 0 may
also be in ``<root>`` itself (`find_draw`). The drawing follows TFA's rule; the code is our own.
"""

from __future__ import annotations

import logging
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from risf_core.data.coco import coco_content, load_coco, write_json
from risf_core.data.dataset import DetectionData, check_class_list, merge_images
from risf_core.errors import DataError, SplitError

logger = logging.getLogger(__name__)

MAX_TRIES = (
    200  # random orders of a class's images, before we say that K boxes cannot be had from whole images
)

Draws = dict[int, dict[str, np.ndarray]]


def draw_few_shot(
    data: DetectionData, class_names: Sequence[str], *, shots: Sequence[int], seed: int
) -> Draws:
    """Draw exactly K boxes of each class, the smaller K contained in the larger.

    TFA's rule: images are taken in random order, and one is accepted only if all its boxes of the class
    (crowd regions left out) fit into what is still needed; all of them are then kept. The draw of a class
    depends on the seed and on its own images alone, so other classes can be added or left out.

    Args:
        data: The images to draw from.
        class_names: Classes to draw for.
        shots: Values of K, at least 1.
        seed: Number of the draw.

    Returns:
        ``{K: {class name: int64 [K]}}``, ascending positions in ``data.flat``.

    Raises:
        SplitError: Naming a class that has fewer than K boxes, or no whole images with exactly K; or an
            unknown class.
    """
    names = check_class_list(class_names, data.class_names, where=data.name)
    ordered = sorted(set(shots))
    if not ordered or ordered[0] < 1:
        raise SplitError(f"{data.name}: shots {list(shots)}. Expected at least one K, each 1 or more.")
    draws: Draws = {k: {} for k in ordered}
    for class_name in names:
        of_class = (data.flat.labels == data.class_names.index(class_name)) & ~data.flat.is_crowd
        for k, indices in _draw_class(data, class_name, np.flatnonzero(of_class), ordered, seed).items():
            draws[k][class_name] = indices
    return draws


def _draw_class(
    data: DetectionData, class_name: str, indices: np.ndarray, shots: list[int], seed: int
) -> dict[int, np.ndarray]:
    """Draw for one class whose boxes are at `indices` of ``data.flat``."""
    where = f"{data.name}: class {class_name!r}"
    if len(indices) < shots[-1]:
        raise SplitError(
            f"{where} has {len(indices)} boxes. Expected at least K = {shots[-1]}: lower shots, or drop it.",
            kind="K boxes",
        )
    images, start = np.unique(data.flat.images[indices], return_index=True)  # indices are grouped by image
    groups = np.split(indices, start[1:])
    sizes = np.array([len(group) for group in groups])
    rng = np.random.default_rng([seed, zlib.crc32(class_name.encode())])
    for _ in range(MAX_TRIES):
        chosen = _choose(sizes, shots, rng)
        if chosen is not None:
            return {k: np.sort(np.concatenate([groups[image] for image in chosen[k]])) for k in shots}
    raise SplitError(
        f"{where} has {len(indices)} boxes, {sizes.min()} to {sizes.max()} in each of {len(images)} images. "
        f"Expected nested sets of whole images with exactly {', '.join(map(str, shots))} boxes: change shots, or "
        "drop the class.",
        kind="K boxes",
    )


def _choose(sizes: np.ndarray, shots: list[int], rng: np.random.Generator) -> dict[int, list[int]] | None:
    """Choose images whose sizes add up to each K, nested; None if this random order leads to none."""
    taken: list[int] = []
    chosen: dict[int, list[int]] = {}
    total = 0
    for k in shots:
        for image in rng.permutation(len(sizes)):
            if total == k:
                break
            if image not in taken and total + sizes[image] <= k:
                taken.append(int(image))
                total += int(sizes[image])
        if total != k:
            return None
        chosen[k] = list(taken)
    return chosen


def few_shot_file(root: str | Path, class_name: str, *, shots: int, seed: int) -> Path:
    """Path of one file of the published layout, in the folder of its seed."""
    return Path(root) / f"seed{seed}" / f"full_box_{shots}shot_{file_label(class_name)}_trainval.json"


def find_draw(numbered: Path) -> Path:
    """Where a file of a published draw is: in the folder of its seed; for seed 0 also beside these folders.

    TFA ships its first draw without a number, DeFRCN and RISF read it from ``seed0``. Where both are there, ``seed0``
    wins, as in their code, and the log says if the other file differs.

    Args:
        numbered: Path in the folder of the seed, e.g. ``cocosplit/seed0/full_box_1shot_cat_trainval.json``; it need not
            exist.
    """
    plain = numbered.parent.parent / numbered.name
    if numbered.parent.name != "seed0":
        return numbered
    if not numbered.is_file():
        return plain
    if plain.is_file() and plain.read_bytes() != numbered.read_bytes():
        logger.warning("%s is read; %s is another file and is not", numbered, plain)
    return numbered


def file_label(class_name: str) -> str:
    """A class name as it stands in a file name: as it is, but for the slash."""
    return class_name.replace("/", "%2F")


def write_few_shot(
    root: str | Path,
    data: DetectionData,
    draws: Mapping[int, Mapping[str, np.ndarray]],
    *,
    seed: int,
    images_dir: str | Path,
) -> list[Path]:
    """Write a draw of `draw_few_shot`: one COCO-format file for each K and class.

    Args:
        root: Folder of all draws; the files go to ``seed{seed}`` in it.
        data: The data that the draw was made from.
        draws: ``{K: {class name: positions in data.flat}}``.
        seed: Number of the draw.
        images_dir: Folder that ``file_name`` starts from.

    Returns:
        The files written.
    """
    written = []
    for k, classes in draws.items():
        for class_name, indices in classes.items():
            path = few_shot_file(root, class_name, shots=k, seed=seed)
            write_json(path, coco_content(data, images_dir, keep=indices))
            written.append(path)
    return written


def load_few_shot(
    root: str | Path,
    images_dir: str | Path,
    *,
    shots: int,
    seed: int,
    class_names: Sequence[str],
    drop_invalid: bool = False,
) -> DetectionData:
    """Read one draw and merge the classes by image, as DeFRCN and RISF do.

    An image drawn for two classes carries the boxes of both. Whatever else is in an image has no box and is
    background in training.

    Args:
        root: Folder of the draws.
        images_dir: Folder that the ``file_name`` of the images starts from.
        shots: K.
        seed: Number of the draw; see `find_draw` for 0.
        class_names: Classes to read, in the order of their labels.
        drop_invalid: Passed to `load_coco`.

    Raises:
        SplitError: If a file is missing; it says which draws there are.
        DataError: If a file is wrong, has boxes of another class, or gives an image id to two files.
    """
    root = Path(root)
    parts = []
    for class_name in class_names:
        path = find_draw(few_shot_file(root, class_name, shots=shots, seed=seed))
        if not path.is_file():
            raise SplitError(f"there is no few-shot file {path}. {_what_is_there(root)}")
        part = load_coco(path, images_dir, drop_invalid=drop_invalid)
        others = [name for name, count in part.counts().items() if count and name != class_name]
        if others:
            raise DataError(
                f"{path}: has boxes of class {others[0]!r}. Expected boxes of {class_name!r} alone."
            )
        part = part.select_classes([class_name])
        if (count := part.counts()[class_name]) != shots:
            logger.warning("%s has %d boxes, not K = %d; all are kept, as published", path, count, shots)
        parts.append(part)
    _check_image_ids(parts, root)
    return merge_images(parts, name=f"{root.name}, {shots} shots, seed {seed}", class_names=class_names)


def _what_is_there(root: Path) -> str:
    if not root.is_dir():
        return f"The folder {root} does not exist; check the path."
    seeds = sorted(int(folder.name[4:]) for folder in root.glob("seed*") if folder.name[4:].isdigit())
    files = {
        path.name.split("_")[2].removesuffix("shot")
        for path in root.glob("**/full_box_*shot_*_trainval.json")
    }
    shots = sorted(files, key=lambda text: (len(text), text))
    return f"The folder has seeds {seeds or '(root alone)'} and shots {', '.join(shots) or 'of no K'}."


def _check_image_ids(parts: Sequence[DetectionData], root: Path) -> None:
    path_of_id: dict[int, Path] = {}
    for part in parts:
        for record in part.images:
            if path_of_id.setdefault(record.image_id, record.path) != record.path:
                other = path_of_id[record.image_id].name
                raise DataError(
                    f"{root}: image id {record.image_id} is {other} in one file and {record.path.name} in "
                    "another. Expected one image for each id."
                )
