"""PASCAL VOC's annotation files: the devkit of 2007 and 2012, and any folder of images with an XML file each.

VOC counts pixels from 1 and means the last one with xmax and ymax. Like detectron2 we subtract 1 from xmin and ymin and
leave xmax and ymax, so that a box reaches from the outer edge of its first pixel to that of its last one.

XML files come from strangers: they are read through defusedxml, which refuses entities. Whatever is wrong is collected
and reported in one error; ``python -m risf_core.data.check FOLDER`` lists every problem, and decodes the images.
"""

from __future__ import annotations

import logging
import math
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple
from xml.etree.ElementTree import Element

import numpy as np
from defusedxml import ElementTree
from PIL import Image

from risf_core.data.dataset import DetectionData, ImageRecord
from risf_core.data.problems import Problems
from risf_core.errors import DataError

logger = logging.getLogger(__name__)

IMAGE_ENDINGS = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"}  # in any case of letters
CORNERS = ("xmin", "ymin", "xmax", "ymax")
LARGEST = 10**6  # pixels; a larger side is a slip
NOT_FINITE = ("NaN box", "infinite box")
OUTSIDE_TOLERANCE = 1.0  # pixels; tools that count from 0 write boxes one pixel to the left
EXIF_ORIENTATION, TURNED = 0x0112, (5, 6, 7, 8)  # the values that exchange width and height
VOC_ID = re.compile(r"(\d{4}_)?\d{6}")
VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip


class XmlFile(NamedTuple):
    """One annotation file and the image that it belongs to."""

    image_id: int
    annotation: Path
    image: Path


class Annotation(NamedTuple):
    """What one file says of its well-formed objects.

    Attributes:
        width, height: Of the image; 0 where the file does not say them.
        names: Class of each object.
        boxes: float64 [N, 4], the file's own numbers xmin, ymin, xmax, ymax.
        is_difficult: bool [N].
        positions: int64 [N], where they stand in the file, from 1.
    """

    width: int
    height: int
    names: list[str]
    boxes: np.ndarray
    is_difficult: np.ndarray
    positions: np.ndarray

    def keep(self, mask: np.ndarray) -> Annotation:
        """The annotation with the objects of a bool mask [N] alone."""
        names = [name for name, kept in zip(self.names, mask, strict=True) if kept]
        arrays = (self.boxes, self.is_difficult, self.positions)
        return Annotation(self.width, self.height, names, *(array[mask] for array in arrays))


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
    problems = Problems(parts[0][0])
    files = []
    for folder, image_set in parts:
        files += devkit_files(folder, read_image_set(folder, image_set), problems)
    return load_devkit_files(files, class_names=class_names, name=name, problems=problems)


def load_devkit_files(
    files: Sequence[XmlFile], *, class_names: Sequence[str], name: str, problems: Problems
) -> DetectionData:
    """Read annotation files of devkits; `problems` that there are already are reported with those of the files."""
    read = read_files(files, problems, class_names=VOC_CLASSES)
    problems.raise_if_any("--params PARAMS.yaml, or the devkit's folder")
    return to_data(read, known=VOC_CLASSES, name=name).select_classes(class_names)


def image_set_file(folder: str | Path, image_set: str) -> Path:
    """The file of an image set of a devkit."""
    return Path(folder) / "ImageSets" / "Main" / f"{image_set}.txt"


def read_image_set(folder: str | Path, image_set: str) -> list[str]:
    """The ids of an image set of a devkit, in the order of its file."""
    path = image_set_file(folder, image_set)
    if not path.is_file():
        sets = sorted(entry.stem for entry in path.parent.glob("*.txt") if "_" not in entry.stem)
        found = f"The folder has {', '.join(sets)}." if sets else "Expected a devkit's folder, e.g. VOC2007."
        raise DataError(f"there is no image set {path}. {found}")
    return [line.split()[0] for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def devkit_files(folder: str | Path, ids: Iterable[str], problems: Problems) -> list[XmlFile]:
    """The files of some images of a devkit; what is missing goes to `problems`."""
    folder = Path(folder)
    images = images_by_stem(folder / "JPEGImages", problems)
    files = []
    for text in ids:
        path = folder / "Annotations" / f"{text}.xml"
        if not VOC_ID.fullmatch(text):
            line = f"image id {text!r}; expected six digits, perhaps after a year and '_'"
            problems.add("wrong value", line, file=folder)
        elif text not in images:
            problems.add("unknown image", f"there is no image {text}", file=folder / "JPEGImages")
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
    folder = Path(annotations_dir or images_dir)
    problems = Problems(folder)
    files = xml_files(Path(images_dir), folder, problems)
    read = read_files(files, problems, known=known, drop_invalid=drop_invalid)
    for file, annotation in read:
        _check_size(file, annotation, problems)
    problems.raise_if_any(str(folder) if folder == Path(images_dir) else f"{folder} {images_dir}")
    data = to_data(read, known=known, name=name or Path(images_dir).name, dropped=problems.dropped)
    return data if class_names is None else data.select_classes(class_names)


def xml_files(images_dir: Path, folder: Path, problems: Problems) -> list[XmlFile]:
    """The XML files of a folder with their images; what is missing goes to `problems`."""
    images = images_by_stem(images_dir, problems)
    paths = _xml_paths(folder, problems) if folder.is_dir() else []
    if not paths and images:
        problems.add("missing file", "there is no XML file", file=folder)
    files = []
    for number, path in enumerate(paths, start=1):
        if path.stem in images:
            files.append(XmlFile(number, path, images[path.stem]))
        else:
            problems.add("unknown image", f"there is no image {path.stem}.* in {images_dir}", file=path)
    without = sorted(images.keys() - {path.stem for path in paths})
    if without:
        logger.warning(
            "%s: %d images have no XML file and are left out, e.g. %s", images_dir, len(without), without[0]
        )
    return files


def _xml_paths(folder: Path, problems: Problems) -> list[Path]:
    """The XML files of a folder; those with another case in their ending are reported, those in sub-folders logged."""
    names, below = [], []
    for entry in os.scandir(folder):
        if entry.is_dir():
            below += sorted(Path(entry.path).glob("*.[xX][mM][lL]"))
        elif entry.name.lower().endswith(".xml"):
            names.append(entry.name)
    for name in sorted(names):
        if not name.endswith(".xml"):
            problems.add("wrong file name", "ends in capitals; expected .xml: rename it", file=folder / name)
    if below:
        logger.warning(
            "%s: %d XML files of its sub-folders are left out, e.g. %s", folder, len(below), min(below)
        )
    return [folder / name for name in sorted(names) if name.endswith(".xml")]


def images_by_stem(folder: Path, problems: Problems) -> dict[str, Path]:
    """The image files of a folder by their name without ending, which may be .jpg or .JPG."""
    if not folder.is_dir():
        problems.add("missing file", "the image folder does not exist", file=folder)
        return {}
    found: dict[str, Path] = {}
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        stem, ending = os.path.splitext(entry.name)
        if ending.lower() not in IMAGE_ENDINGS:
            continue
        if stem in found:
            line = f"images {found[stem].name} and {entry.name} have the same name"
            problems.add("duplicate image", line, file=folder)
        found[stem] = folder / entry.name
    if not found:
        problems.add("missing file", "there is no image", file=folder)
    return found


def read_files(
    files: Sequence[XmlFile],
    problems: Problems,
    *,
    class_names: Sequence[str] | None = None,
    known: Sequence[str] = (),
    drop_invalid: bool = False,
) -> list[tuple[XmlFile, Annotation]]:
    """Read annotation files and check all that is in them, but for the images.

    Args:
        files: What to read.
        problems: Where to report.
        class_names: The only classes that objects may have; None allows all that differ in more than spelling.
        known: Classes that exist even if no file has an object of them.
        drop_invalid: Report boxes not finite, without size or outside as dropped, not as problems.

    Returns:
        The readable files, each with its sound objects.
    """
    read = []
    first: dict[str, str | Path] = dict.fromkeys(known, "the other images")
    for file in sorted(files):
        annotation = read_annotation(file.annotation, problems, drop_invalid=drop_invalid)
        if annotation is None:
            continue
        for name, position in zip(annotation.names, annotation.positions, strict=True):
            first.setdefault(name, file.annotation)
            if class_names is not None and name not in class_names:
                line = (
                    f"object {position} ({name}): expected one of the {len(class_names)} classes of the set"
                )
                problems.add("unknown category", line, file=file.annotation)
        read.append((file, _check_boxes(file, annotation, problems, drop_invalid=drop_invalid)))
    if class_names is None:
        problems.add_similar_names(first)
    return read


def to_data(
    read: Sequence[tuple[XmlFile, Annotation]],
    *,
    known: Sequence[str],
    name: str,
    dropped: Sequence[str] = (),
) -> DetectionData:
    """Put files together; classes by name, with the `known` ones even if they have no box."""
    names = sorted({name for _, annotation in read for name in annotation.names} | set(known))
    images = tuple(_record(file, annotation, names) for file, annotation in read)
    return DetectionData(name, tuple(names), tuple(range(1, len(names) + 1)), images, tuple(dropped))


def read_annotation(path: Path, problems: Problems, *, drop_invalid: bool = False) -> Annotation | None:
    """Read one file; its well-formed objects, or None if it is not readable at all."""
    try:
        root = ElementTree.fromstring(path.read_bytes())
    except FileNotFoundError:
        problems.add("missing file", "there is no such annotation file", file=path)
        return None
    except (SyntaxError, ValueError, LookupError, OSError) as error:  # the last but one: unknown encodings
        problems.add("unreadable file", f"not readable as XML ({error or type(error).__name__})", file=path)
        return None
    if root.tag != "annotation":
        line = f"is no annotation: its root is <{root.tag[:60]}>; expected <annotation>"
        problems.add("unreadable file", line, file=path)
        return None
    width, height, faults = _read_size(root)
    for kind, line in faults:
        problems.add(kind, line, file=path)
    objects = []
    for position, element in enumerate(root.findall("object"), start=1):
        name, box, is_difficult, faults = _read_object(element)
        for kind, line in faults:
            line = f"object {position} ({name or 'without name'}): {line}"
            if drop_invalid and kind in NOT_FINITE:
                problems.dropped.append(f"{path}: {line}")
            else:
                problems.add(kind, line, file=path)
        if not faults:
            objects.append((name, box, is_difficult, position))
    names, boxes, flags, positions = zip(*objects, strict=True) if objects else ((), (), (), ())
    return Annotation(
        width,
        height,
        list(names),
        np.array(boxes, dtype=np.float64).reshape(-1, 4),
        np.array(flags, dtype=bool),
        np.array(positions, dtype=np.int64),
    )


def _read_size(root: Element) -> tuple[int, int, list[tuple[str, str]]]:
    """Width and height, 0 where they are wrong, and the kind and words of each fault in them."""
    (width, fault), (height, other) = (_number(root, f"size/{key}") for key in ("width", "height"))
    faults = [("wrong value" if one[0] in NOT_FINITE else one[0], one[1]) for one in (fault, other) if one]
    if not faults and (
        not 1 <= min(width, height) <= max(width, height) <= LARGEST or width % 1 or height % 1
    ):
        faults = [("wrong value", f"size is {width:g}x{height:g}; expected whole pixels above 0")]
    return (0, 0, faults) if faults else (int(width), int(height), [])


def _read_object(element: Element) -> tuple[str, list[float], bool, list[tuple[str, str]]]:
    """Class name, corners and difficult flag of an object, and the kind and words of each fault in them."""
    name = (element.findtext("name") or "").strip()
    faults = [] if name else [("missing key", "has no 'name'")]
    for key in ("name", "bndbox"):
        if (count := len(element.findall(key))) > 1:
            faults.append(("repeated key", f"has {count} times '{key}'; expected it once"))
    corners = [_number(element, f"bndbox/{corner}") for corner in CORNERS]
    faults += [fault for _, fault in corners if fault]
    flag = (element.findtext("difficult") or "0").strip()
    if flag not in ("0", "1"):
        faults.append(("wrong value", f"difficult is {flag!r}; expected 0 or 1"))
    return name, [value for value, _ in corners], flag == "1", faults


def _number(element: Element, path: str) -> tuple[float, tuple[str, str] | None]:
    """The number at a path, and kind and words of what is wrong with it, or None."""
    text = element.findtext(path)
    if text is None:
        return math.nan, ("missing key", f"has no '{path}'")
    try:
        value = float(text)
    except ValueError:
        return math.nan, ("wrong type", f"{path} is {text.strip()[:60]!r}; expected a number")
    if math.isfinite(value):
        return value, None
    return value, (NOT_FINITE[math.isinf(value)], f"{path} is {text.strip()[:60]!r}; expected a number")


def _check_size(file: XmlFile, annotation: Annotation, problems: Problems) -> None:
    """Compare the stated size with that of the upright image; the image is not decoded here."""
    try:
        with Image.open(file.image) as image:
            size = image.size if image.getexif().get(EXIF_ORIENTATION) not in TURNED else image.size[::-1]
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        problems.add("unreadable image", f"not readable as an image ({error})", file=file.image)
        return
    stated = (annotation.width, annotation.height)
    if size != stated and stated != (0, 0):
        line = f"states {stated[0]}x{stated[1]} pixels, but {file.image.name} has {size[0]}x{size[1]}"
        problems.add("wrong image size", line, file=file.annotation)


@np.errstate(over="ignore", invalid="ignore")  # boxes may hold any number
def _check_boxes(
    file: XmlFile, annotation: Annotation, problems: Problems, *, drop_invalid: bool
) -> Annotation:
    """Report boxes without size or outside their image; the annotation without them."""
    low, high = annotation.boxes[:, :2] - 1, annotation.boxes[:, 2:]
    size = np.array([annotation.width, annotation.height])
    sides = (high.astype(np.float32) - low.astype(np.float32)).min(
        axis=1
    )  # the shorter one, as training has it
    inside = (low >= -OUTSIDE_TOLERANCE).all(axis=1) & (high <= size + OUTSIDE_TOLERANCE).all(axis=1)
    inside &= (np.clip(high, 0, size).astype(np.float32) > np.clip(low, 0, size).astype(np.float32)).all(
        axis=1
    )
    inside |= annotation.width == 0  # a size that is wrong is reported already
    valid = (sides > 0) & inside
    for number in np.flatnonzero(~valid):
        kind, what = _why(annotation.boxes[number], size)
        box = ", ".join(f"{value:g}" for value in annotation.boxes[number])
        line = f"object {annotation.positions[number]} ({annotation.names[number]}): box [{box}] {what}"
        if drop_invalid:
            problems.dropped.append(f"{file.annotation}: {line}")
        else:
            line += ". Expected xmin, ymin, xmax, ymax from 1 to the image's width and height"
            problems.add(kind, line, file=file.annotation)
    return annotation.keep(valid)


def _why(box: np.ndarray, size: np.ndarray) -> tuple[str, str]:
    """Kind and words of what is wrong with one box [4] in an image of `size` (width, height)."""
    swapped = [
        f"{low} > {high}" for low, high, wrong in zip(CORNERS, CORNERS[2:], box[:2] > box[2:]) if wrong
    ]
    if swapped:
        is_empty = (box[2:] - box[:2] + 1 >= 0).all()  # the pixel of xmax is inside
        return "empty box" if is_empty else "negative box", f"has {' and '.join(swapped)}"
    return "box outside", f"lies outside its image of {size[0]}x{size[1]} pixels"


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
