"""PASCAL VOC's annotation files: the devkit of 2007 and 2012, and any folder of images with an XML file each.

VOC counts pixels from 1 and means the last one with xmax and ymax. Like detectron2 we subtract 1 from xmin and ymin and
leave xmax and ymax, so that a box reaches from the outer edge of its first pixel to that of its last one.

XML files come from strangers: they are read through defusedxml, which refuses entities. Whatever is wrong is collected
and reported in one error; ``python -m risf_core.data.voc IMAGES [ANNOTATIONS]`` lists every problem of a folder.
"""

from __future__ import annotations

import argparse
import logging
import os
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple
from xml.etree.ElementTree import Element

import numpy as np
from defusedxml import ElementTree
from PIL import Image

from risf_core.data.dataset import DetectionData, ImageRecord, summarize
from risf_core.errors import DataError, RisfError

logger = logging.getLogger(__name__)

IMAGE_ENDINGS = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"}  # in any case of letters
CORNERS = ("xmin", "ymin", "xmax", "ymax")
OUTSIDE_TOLERANCE = 1.0  # pixels; tools that count from 0 write boxes one pixel to the left
SHOWN_PROBLEMS = 5  # in the message of an error; all are in its `problems`
EXIF_ORIENTATION, TURNED = 0x0112, (5, 6, 7, 8)  # the values that exchange width and height
VOC_ID = re.compile(r"(\d{4}_)?\d{6}")


class XmlFile(NamedTuple):
    """One annotation file and the image that it belongs to."""

    image_id: int
    annotation: Path
    image: Path


class Annotation(NamedTuple):
    """What one file says: boxes float64 [N, 4] are its own numbers xmin, ymin, xmax, ymax."""

    width: int
    height: int
    names: list[str]
    boxes: np.ndarray
    is_difficult: np.ndarray


def load_voc(
    parts: Sequence[tuple[str | Path, str]], *, class_names: Sequence[str], name: str = "voc"
) -> DetectionData:
    """Load image sets of VOC devkits: ``ImageSets/Main/<set>.txt``, ``Annotations`` and ``JPEGImages``.

    Args:
        parts: A folder (of one year) and an image set for each part, e.g. ``("VOC2007", "trainval")``.
        class_names: Classes to keep, in this order; they need not have a box.
        name: Name of the data.

    Returns:
        Images by ascending id (`image_number`), boxes in the order of the file, difficult ones marked.

    Raises:
        DataError: If a list is missing or anything in the files is wrong; the error's `problems` are all findings.
    """
    problems: list[str] = []
    files = []
    for folder, image_set in parts:
        files += devkit_files(folder, read_image_set(folder, image_set), problems)
    return load_files(files, class_names=class_names, known=class_names, name=name, problems=problems)


def read_image_set(folder: str | Path, image_set: str) -> list[str]:
    """The ids of an image set of a devkit, in the order of its file."""
    path = Path(folder) / "ImageSets" / "Main" / f"{image_set}.txt"
    if not path.is_file():
        sets = sorted(entry.stem for entry in path.parent.glob("*.txt") if "_" not in entry.stem)
        found = f"The folder has {', '.join(sets)}." if sets else "Expected a devkit's folder, e.g. VOC2007."
        raise DataError(f"there is no image set {path}. {found}")
    return [line.split()[0] for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def devkit_files(folder: str | Path, ids: Iterable[str], problems: list[str]) -> list[XmlFile]:
    """The files of some images of a devkit; what is missing goes to `problems`."""
    folder = Path(folder)
    images = images_by_stem(folder / "JPEGImages", problems)
    files = []
    for text in ids:
        path = folder / "Annotations" / f"{text}.xml"
        if not VOC_ID.fullmatch(text):
            problems.append(f"{folder}: image id {text!r}; expected six digits, perhaps after a year and '_'")
        elif text not in images:
            problems.append(f"{folder / 'JPEGImages'}: there is no image {text}")
        else:
            files.append(XmlFile(image_number(text), path, images[text]))
    return files


def image_number(text: str) -> int:
    """A VOC id as a number: ``000005`` is 5, ``2008_000008`` is 2008000008."""
    return int(text.replace("_", ""))


def load_xml_folder(
    images_dir: str | Path,
    annotations_dir: str | Path | None = None,
    *,
    class_names: Sequence[str] | None = None,
    known: Sequence[str] = (),
    name: str | None = None,
    drop_invalid: bool = False,
) -> DetectionData:
    """Load a folder of images with one XML file of the same name (but for the ending) each.

    An image belongs to the data if it has an XML file, which may list no object; others are left out and counted
    in the log. Image ids are positions in the sorted file names, from 1. The size that a file states is compared
    with its image's, EXIF orientation applied.

    Args:
        images_dir: Folder of the images.
        annotations_dir: Folder of the XML files; None: beside the images.
        class_names: Classes to keep, in this order; None takes all, by name.
        known: Classes that exist even if no file here has a box of them.
        name: Name of the data; that of the image folder if None.
        drop_invalid: Drop boxes without size or outside their image and log how many, instead of an error.

    Raises:
        DataError: If anything is wrong; the error's `problems` are all findings.
        SplitError: If a class of `class_names` is in no file (with the nearest name), or is listed twice.
    """
    images_dir, folder = Path(images_dir), Path(annotations_dir or images_dir)
    problems: list[str] = []
    images = images_by_stem(images_dir, problems)
    paths = sorted(folder.glob("*.xml")) if folder.is_dir() else []
    if not paths and images:
        problems.append(f"{folder}: there is no XML file")
    files = []
    for number, path in enumerate(paths, start=1):
        if path.stem in images:
            files.append(XmlFile(number, path, images[path.stem]))
        else:
            problems.append(f"{path}: there is no image {path.stem}.* in {images_dir}")
    without = sorted(images.keys() - {path.stem for path in paths})
    if without:
        logger.warning(
            "%s: %d images have no XML file and are left out, e.g. %s", images_dir, len(without), without[0]
        )
    return load_files(
        files,
        class_names=class_names,
        known=known,
        name=name or images_dir.name,
        problems=problems,
        check_sizes=True,
        drop_invalid=drop_invalid,
    )


def images_by_stem(folder: Path, problems: list[str]) -> dict[str, Path]:
    """The image files of a folder by their name without ending, which may be .jpg or .JPG."""
    if not folder.is_dir():
        problems.append(f"the image folder {folder} does not exist")
        return {}
    found: dict[str, Path] = {}
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        stem, ending = os.path.splitext(entry.name)
        if ending.lower() not in IMAGE_ENDINGS:
            continue
        if stem in found:
            problems.append(f"{folder}: images {found[stem].name} and {entry.name} have the same name")
        found[stem] = folder / entry.name
    if not found:
        problems.append(f"{folder}: there is no image")
    return found


def load_files(
    files: Sequence[XmlFile],
    *,
    class_names: Sequence[str] | None,
    known: Sequence[str],
    name: str,
    problems: list[str],
    check_sizes: bool = False,
    drop_invalid: bool = False,
) -> DetectionData:
    """Read annotation files and put them together; earlier `problems` are reported with those of the files."""
    read: list[tuple[XmlFile, Annotation]] = []
    num_dropped = 0
    for file in sorted(files):
        annotation = read_annotation(file.annotation, problems)
        if annotation is None:
            continue
        if check_sizes:
            _check_size(file, annotation, problems)
        annotation, dropped = _check_boxes(file, annotation, problems, drop_invalid=drop_invalid)
        num_dropped += dropped
        read.append((file, annotation))
    _raise_if_any(problems, name)
    if num_dropped:
        logger.warning("%s: %d boxes are invalid and dropped", name, num_dropped)
    names = sorted({name for _, annotation in read for name in annotation.names} | set(known))
    images = tuple(_record(file, annotation, names) for file, annotation in read)
    data = DetectionData(name, tuple(names), tuple(range(1, len(names) + 1)), images)
    return data if class_names is None else data.select_classes(class_names)


def read_annotation(path: Path, problems: list[str]) -> Annotation | None:
    """Read one file; None, with the reasons in `problems`, if something in it is wrong."""
    try:
        root = ElementTree.fromstring(path.read_bytes())
    except FileNotFoundError:
        problems.append(f"{path}: there is no such annotation file")
        return None
    except (SyntaxError, ValueError, OSError) as error:  # defusedxml refuses entities with a ValueError
        problems.append(f"{path}: not readable as XML ({error or type(error).__name__})")
        return None
    found: list[str] = []
    size = [_number(root, f"size/{key}", found) for key in ("width", "height")]
    if None not in size and (min(size) < 1 or any(side % 1 for side in size)):
        found.append(f"size is {size[0]:g}x{size[1]:g}; expected whole pixels above 0")
    names, boxes, difficult = [], [], []
    for position, element in enumerate(root.findall("object"), start=1):
        before = len(found)
        name = (element.findtext("name") or "").strip()
        if not name:
            found.append("has no 'name'")
        box = [_number(element, f"bndbox/{corner}", found) for corner in CORNERS]
        flag = (element.findtext("difficult") or "0").strip()
        if flag not in ("0", "1"):
            found.append(f"difficult is {flag!r}; expected 0 or 1")
        found[before:] = [f"object {position} ({name or 'without name'}): {line}" for line in found[before:]]
        names.append(name)
        boxes.append(box)
        difficult.append(flag == "1")
    problems += [f"{path}: {line}" for line in found]
    if found:
        return None
    boxes_array = np.array(boxes, dtype=np.float64).reshape(-1, 4)
    return Annotation(int(size[0]), int(size[1]), names, boxes_array, np.array(difficult, dtype=bool))


def _number(element: Element, path: str, found: list[str]) -> float | None:
    text = element.findtext(path)
    if text is None:
        found.append(f"has no '{path}'")
        return None
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not np.isfinite(value):
        found.append(f"{path} is {text.strip()!r}; expected a number")
        return None
    return value


def _check_size(file: XmlFile, annotation: Annotation, problems: list[str]) -> None:
    """Compare the stated size with that of the upright image; the image is not decoded here."""
    try:
        with Image.open(file.image) as image:
            size = image.size if image.getexif().get(EXIF_ORIENTATION) not in TURNED else image.size[::-1]
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        problems.append(f"{file.image}: not readable as an image ({error})")
        return
    stated = (annotation.width, annotation.height)
    if size != stated:
        problems.append(
            f"{file.annotation}: states {stated[0]}x{stated[1]} pixels, but {file.image.name} has {size[0]}x{size[1]}"
        )


def _check_boxes(
    file: XmlFile, annotation: Annotation, problems: list[str], *, drop_invalid: bool
) -> tuple[Annotation, int]:
    """Report or drop boxes without size or outside their image; the annotation without them, and their number."""
    low, high = annotation.boxes[:, :2] - 1, annotation.boxes[:, 2:]
    size = np.array([annotation.width, annotation.height])
    has_size = (high > low).all(axis=1)
    inside = (low >= -OUTSIDE_TOLERANCE).all(axis=1) & (high <= size + OUTSIDE_TOLERANCE).all(axis=1)
    inside &= (np.minimum(high, size) > np.maximum(low, 0)).all(axis=1)
    valid = has_size & inside
    if valid.all():
        return annotation, 0
    for position in np.flatnonzero(~valid):
        box = ", ".join(f"{value:g}" for value in annotation.boxes[position])
        what = (
            f"lies outside its image of {size[0]}x{size[1]} pixels" if has_size[position] else "has no size"
        )
        if not drop_invalid:
            problems.append(
                f"{file.annotation}: object {position + 1} ({annotation.names[position]}): box [{box}] {what}. "
                "Expected xmin, ymin, xmax, ymax from 1 to the image's width and height"
            )
    names = [name for name, good in zip(annotation.names, valid) if good]
    kept = annotation._replace(
        names=names, boxes=annotation.boxes[valid], is_difficult=annotation.is_difficult[valid]
    )
    return kept, int((~valid).sum())


def _record(file: XmlFile, annotation: Annotation, names: list[str]) -> ImageRecord:
    size = [annotation.width, annotation.height] * 2
    boxes = np.clip(annotation.boxes - [1, 1, 0, 0], 0, size).astype(np.float32)  # [N, 4]
    labels = np.array([names.index(name) for name in annotation.names], dtype=np.int64)
    return ImageRecord(
        image_id=file.image_id,
        path=file.image,
        height=annotation.height,
        width=annotation.width,
        boxes=boxes,
        labels=labels,
        is_crowd=np.zeros(len(labels), dtype=bool),
        is_difficult=annotation.is_difficult,
    )


def _raise_if_any(problems: list[str], name: str) -> None:
    if not problems:
        return
    count = len(problems)
    shown = [problems[0], *(f"  {line}" for line in problems[1:SHOWN_PROBLEMS])]
    if count > SHOWN_PROBLEMS:
        shown.append(f"  ... {count - SHOWN_PROBLEMS} more")
    todo = "Fix the files. Every problem of a folder: python -m risf_core.data.voc IMAGES [ANNOTATIONS]"
    shown.append(f"{name}: {count} problem{'s' if count > 1 else ''} in total. {todo}")
    error = DataError("\n".join(shown))
    error.problems = tuple(problems)
    raise error


def main(arguments: Sequence[str] | None = None) -> int:
    """Check a folder of images with XML files: print every problem (exit 1) or the counts (exit 0)."""
    parser = argparse.ArgumentParser(prog="python -m risf_core.data.voc", description=main.__doc__)
    parser.add_argument("images", type=Path, help="folder of the images")
    parser.add_argument("annotations", type=Path, nargs="?", help="folder of the XML files, if not the same")
    options = parser.parse_args(arguments)
    try:
        data = load_xml_folder(options.images, options.annotations)
    except RisfError as error:
        problems = getattr(error, "problems", ())
        print("\n".join([*problems, f"{len(problems)} problems in {options.images}"]) if problems else error)
        return 1
    print(summarize({data.name: data}).to_string())
    return 0


if __name__ == "__main__":
    sys.exit(main())
