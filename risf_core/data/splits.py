"""VOC's published base/novel partitions and few-shot lists. (COCO's partition is a list in ``params/coco``.)

The partitions and the lists are those of TFA (Wang et al., ICML 2020,
https://github.com/ucbdrive/few-shot-object-detection, which took the lists without a number from FSRW, Kang et al.,
ICCV 2019); DeFRCN and RISF use them unchanged. Here they are data: which classes, in which order of labels.
"""

from __future__ import annotations

import logging
import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from risf_core.data.dataset import DetectionData, ImageRecord
from risf_core.data.few_shot import find_draw
from risf_core.data.problems import Problems
from risf_core.data.voc import VOC_CLASSES, devkit_files, load_devkit_files
from risf_core.errors import DataError, SplitError

logger = logging.getLogger(__name__)

VOC_NOVEL = {
    1: ("bird", "bus", "cow", "motorbike", "sofa"),
    2: ("aeroplane", "bottle", "cow", "horse", "sofa"),
    3: ("boat", "cat", "motorbike", "sheep", "sofa"),
}


def voc_partition(split: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Base and novel classes of a published VOC split, in the order of their labels (novel ones last).

    Raises:
        SplitError: If there is no such split.
    """
    if split not in VOC_NOVEL:
        raise SplitError(f"VOC has no split {split}. Expected one of: {', '.join(map(str, VOC_NOVEL))}.")
    novel = VOC_NOVEL[split]
    return tuple(name for name in VOC_CLASSES if name not in novel), novel


def voc_list_file(root: str | Path, class_name: str, *, shots: int, seed: int) -> Path:
    """A published few-shot list, in the folder of its seed; see `find_draw` for seed 0."""
    return find_draw(Path(root) / f"seed{seed}" / f"box_{shots}shot_{class_name}_train.txt")


def read_voc_list(path: str | Path) -> list[str]:
    """The image ids of a list, whose lines are ``datasets/VOC2012/JPEGImages/2008_000008.jpg``; a line may repeat.

    Raises:
        SplitError: If the file is missing, empty, or has another line.
    """
    path = Path(path)
    if not path.is_file():
        raise SplitError(f"there is no few-shot list {path}. {_what_is_there(path)}")
    lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not lines:
        raise SplitError(f"{path}: the list is empty. Expected one image path a line.")
    for number, line in enumerate(lines, start=1):
        if Path(line).suffix.lower() != ".jpg":
            raise SplitError(
                f"{path}: line {number} is {line!r}. Expected datasets/VOC2007/JPEGImages/<id>.jpg."
            )
    return [Path(line).stem for line in lines]


def _what_is_there(path: Path) -> str:
    if not path.parent.is_dir():
        return f"The folder {path.parent} does not exist; check the path of the lists and the seed."
    shots = {
        entry.name.split("_")[1].removesuffix("shot") for entry in path.parent.glob("box_*shot_*_train.txt")
    }
    found = ", ".join(sorted(shots, key=lambda text: (len(text), text)))
    return f"The folder has lists for shots {found or 'of no K'}."


def load_voc_shots(
    lists: str | Path,
    *,
    voc2007: str | Path,
    voc2012: str | Path | None,
    shots: int,
    seed: int,
    class_names: Sequence[str],
    cut_seed: int = 0,
) -> DetectionData:
    """Read one published draw of VOC as TFA, DeFRCN and RISF do: one record for each object.

    An image stands there once for each of its objects of the listed class, each time with that one box; everything
    else in it has no box and is background. Difficult objects are kept. An image listed twice counts twice. Where the
    listed images have more than K objects, K of them are drawn; the published code draws them anew at each start from
    NumPy's global generator, here the draw follows from `cut_seed`, `seed`, K and the class. Where they have fewer,
    all are kept, as published, and the log says so.

    Args:
        lists: Folder of the lists (``vocsplit``).
        voc2007: Devkit folder of 2007.
        voc2012: Devkit folder of 2012, whose ids contain ``_``; None if there is none.
        shots: K.
        seed: Number of the draw, 0 to 29.
        class_names: Classes to read, in the order of their labels.
        cut_seed: Seed of the cut to K.

    Raises:
        SplitError: If a list is missing, or has no object of its class.
        DataError: If an image or its annotation is missing or wrong; the error's `problems` are all findings.
    """
    listed = {name: read_voc_list(voc_list_file(lists, name, shots=shots, seed=seed)) for name in class_names}
    where = f"{Path(lists).name}, {shots} shots, seed {seed}"
    source = _load_listed(
        sorted({text for ids in listed.values() for text in ids}), voc2007, voc2012, class_names, where
    )
    by_stem = {record.path.stem: record for record in source.images}
    records: list[ImageRecord] = []
    for label, (name, ids) in enumerate(listed.items()):
        objects = [one for text in ids for one in _single_objects(by_stem[text], label)]
        if not objects:
            raise SplitError(
                f"{where}: the listed images have no object of class {name!r}. Check the annotations."
            )
        if len(objects) < shots:
            logger.warning("%s: %d boxes of %s, fewer than K; kept as published", where, len(objects), name)
        if len(objects) > shots:
            rng = np.random.default_rng([cut_seed, seed, shots, zlib.crc32(name.encode())])
            objects = [objects[i] for i in np.sort(rng.choice(len(objects), shots, replace=False))]
        records += objects
    return replace(source, images=tuple(records))


def _load_listed(
    ids: Sequence[str],
    voc2007: str | Path,
    voc2012: str | Path | None,
    class_names: Sequence[str],
    where: str,
) -> DetectionData:
    """The images of some ids with all their boxes of the classes."""
    of_2012 = [text for text in ids if "_" in text]
    if of_2012 and voc2012 is None:
        raise DataError(
            f"{where}: {len(of_2012)} images are of 2012, e.g. {of_2012[0]}. Expected a voc2012 folder."
        )
    problems = Problems(voc2007)
    files = devkit_files(voc2007, [text for text in ids if "_" not in text], problems)
    if of_2012:
        files += devkit_files(voc2012, of_2012, problems)
    return load_devkit_files(files, class_names=class_names, name=where, problems=problems)


def _single_objects(record: ImageRecord, label: int) -> list[ImageRecord]:
    """A copy of the image for each object of a class, with that box alone.

    Each copy has an id of its own, made of the image's and the object's number, the same in every draw.
    """
    positions = np.flatnonzero(record.labels == label)
    masks = [np.arange(len(record.labels)) == position for position in positions]
    return [
        replace(record.keep(mask), image_id=1000 * record.image_id + int(position))
        for mask, position in zip(masks, positions)
    ]
