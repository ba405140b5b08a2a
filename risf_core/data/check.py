"""Check a data set before anything is trained on it: every annotation, and every image decoded.

    python -m risf_core.data.check data/birds/instances.json data/birds/images    a COCO file and its images
    python -m risf_core.data.check data/birds/instances.json                      a COCO file alone
    python -m risf_core.data.check data/birds/xml [data/birds/images]             a folder of XML files
    python -m risf_core.data.check data/VOCdevkit/VOC2007                         a VOC devkit of one year
    python -m risf_core.data.check --params params/voc/10_base_training.yaml      all that a params file names

All problems are listed at once, each with its file and entry. ``--drop NEW.json`` writes a copy of a COCO file without
what is wrong. Exit code: 0 nothing is wrong (or a clean copy was written), 1 something is, 2 the command or the params
file is wrong.

Two things are reported here that training accepts, for published files have them: a box that stands twice, and a file
without any box. In VOC's devkit, and with ``drop_invalid: true``, boxes that stand twice are only mentioned.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from risf_core.data.clean_copy import write_clean_copy
from risf_core.data.coco import inspect_coco
from risf_core.data.coco_checks import COCO_EXPECTED
from risf_core.data.dataset import DetectionData, summarize
from risf_core.data.named_sets import NamedSet, files_not_there, named_sets, open_as_a_run
from risf_core.data.problems import Problems
from risf_core.data.voc import (
    VOC_CLASSES,
    Annotation,
    XmlFile,
    devkit_files,
    image_set_file,
    read_files,
    read_image_set,
    to_data,
    xml_files,
)
from risf_core.errors import DataError, ParamsError, RisfError
from risf_core.progress import progress

WORKERS = 4
SHOWN_SOUND = 2  # sets of a params file: training and test; K-shot sets may be thousands
DEVKIT_SETS = ("trainval", "test")


class ImageFile(NamedTuple):
    """An image to decode: how it is called, its stated (height, width), and what a clean copy drops with it."""

    called: str
    path: Path
    size: tuple[int, int] | None
    drop: tuple[tuple[str, int], ...] = ()


@dataclass(eq=False)
class CheckedSet:
    """One set of annotations: what is wrong with it, and the images to decode.

    Attributes:
        problems: Of the annotations; those of the images are added by `decode_all`.
        images: All that are there.
        data: The annotated images, if nothing is wrong with the annotations.
        num_decoded: How many images were decoded; fewer than `images` if another set has had some.
        note: What else was done.
    """

    problems: Problems
    images: list[ImageFile] = field(default_factory=list)
    data: DetectionData | None = None
    num_decoded: int = 0
    note: str = ""

    @property
    def kinds(self) -> dict[str, int]:
        """How many problems there are of each kind, the most frequent first."""
        return dict(Counter(problem.kind for problem in self.problems.found).most_common())

    def lines(self) -> list[str]:
        """Every problem with its file, the hints, and a count of each kind."""
        where, found = self.problems.where, self.problems.found
        lines = [
            *map(str, found),
            *(f"{where}: dropped on request: {line}" for line in self.problems.dropped),
        ]
        if found:
            kinds = ", ".join(f"{count} {kind}" for kind, count in self.kinds.items())
            problems = f"{len(found)} problem{'s' if len(found) > 1 else ''}"
            return [*lines, *self.problems.hints, f"{where}: {problems}: {kinds}"]
        decoded = f"{self.num_decoded} images decoded, all whole" if self.images else "no image was decoded"
        return [*lines, *self.problems.hints, f"{where}: nothing is wrong; {self.note or decoded}."]


# ------------------------------------------------------------ one set


def check_set(
    annotations: str | Path, images_dir: str | Path | None = None, *, workers: int = WORKERS
) -> CheckedSet:
    """Check a COCO file, a folder of XML files or a devkit of one year, and decode all its images.

    Args:
        annotations: The file or folder.
        images_dir: Folder of the images. None: that of the XML files or of the devkit; of a COCO file the annotations
            alone are checked.
        workers: Images decoded at the same time.
    """
    checked = _read_set(NamedSet(Path(annotations), None if images_dir is None else Path(images_dir)))
    decode_all([checked], workers=workers)
    return checked


def _read_set(named: NamedSet, *, drop_invalid: bool = False) -> CheckedSet:
    """Read the annotations; a file or folder that cannot be read at all is a problem like any other."""
    folder = named.annotations
    if not folder.exists():
        problems = Problems(folder)
        problems.add(
            "missing file", "does not exist. Expected a COCO file, a folder of XML files or a devkit"
        )
        if named.images_dir is not None and not named.images_dir.is_dir():
            problems.add("missing file", "does not exist, the folder of its images", file=named.images_dir)
        return CheckedSet(problems)
    try:
        if named.source == "coco" and folder.is_dir():
            raise DataError(f"is a folder. {COCO_EXPECTED}")
        if named.source == "xml" and not folder.is_dir():
            raise DataError("is a file. Expected a folder of XML files; for a COCO file write source: coco")
        if named.image_sets or (folder / "ImageSets" / "Main").is_dir():
            return _read_devkit(folder, named.image_sets)
        if folder.is_dir():
            return _read_xml_folder(folder, named.images_dir or folder, drop_invalid=drop_invalid)
        return _read_coco(folder, named.images_dir, drop_invalid=drop_invalid)
    except DataError as error:
        problems = Problems(folder)
        problems.add("unreadable file", str(error).removeprefix(f"{folder}: "))
        return CheckedSet(problems)


def _read_coco(path: Path, images_dir: Path | None, *, drop_invalid: bool) -> CheckedSet:
    data, problems, entries = inspect_coco(path, images_dir, drop_invalid=drop_invalid, with_duplicates=True)
    _check_any_box(data, problems)
    images = [
        ImageFile(
            f"image {entry.image_id}",
            entry.path,
            (entry.height, entry.width) if entry.height else None,
            (("images", entry.position),),
        )
        for entry in entries
        if images_dir is not None and os.path.isfile(entry.path)
    ]
    return CheckedSet(problems, images, data)


def _read_xml_folder(folder: Path, images_dir: Path, *, drop_invalid: bool) -> CheckedSet:
    problems = Problems(folder)
    files = xml_files(images_dir, folder, problems)
    read = read_files(files, problems, drop_invalid=drop_invalid)
    found = _duplicates(read)
    if drop_invalid:
        problems.mention_duplicates([f"{path}: {line}" for path, line in found])
    else:
        for path, line in found:
            problems.add("duplicate box", f"{line}. Expected each object once", file=path)
    return _of_xml_files(files, read, problems, known=())


def _read_devkit(folder: Path, image_sets: Sequence[str]) -> CheckedSet:
    """Image sets of a devkit; none given: all of `DEVKIT_SETS` that it has."""
    there = [name for name in DEVKIT_SETS if image_set_file(folder, name).is_file()]
    names = image_sets or there or DEVKIT_SETS
    problems = Problems(folder)
    ids = dict.fromkeys(text for name in names for text in read_image_set(folder, name))
    files = devkit_files(folder, ids, problems)
    read = read_files(files, problems, class_names=VOC_CLASSES)
    problems.mention_duplicates([f"{path}: {line}" for path, line in _duplicates(read)])
    return _of_xml_files(files, read, problems, known=VOC_CLASSES)


def _duplicates(read: Iterable[tuple[XmlFile, Annotation]]) -> list[tuple[Path, str]]:
    """File and words of each object that has the box and the class of an earlier one."""
    found = []
    for file, said in read:
        first: dict[tuple, int] = {}
        for name, box, position in zip(said.names, said.boxes.tolist(), said.positions, strict=True):
            other = first.setdefault((name, *box), position)
            if other != position:
                found.append((file.annotation, f"objects {other} and {position} ({name}) have the same box"))
    return found


def _check_any_box(data: DetectionData | None, problems: Problems) -> None:
    if data is not None and len(data) and not len(data.flat.labels) and not problems.dropped:
        problems.add("no box", "no image has a box; expected some, or the annotations got lost")


def _of_xml_files(
    files: Sequence[XmlFile],
    read: Sequence[tuple[XmlFile, Annotation]],
    problems: Problems,
    *,
    known: Sequence[str],
) -> CheckedSet:
    sizes = {file: (said.height, said.width) for file, said in read if said.width}
    images = [ImageFile(file.annotation.name, file.image, sizes.get(file)) for file in files]
    data = None
    if not problems.found:
        data = to_data(read, known=known, name=problems.where.name, dropped=problems.dropped)
        _check_any_box(data, problems)
    return CheckedSet(problems, images, data)


def decode_all(sets: Sequence[CheckedSet], *, workers: int = WORKERS) -> None:
    """Decode the images of all sets completely, each once, and add what is wrong with them to the sets' problems."""
    seen, todo = set(), []
    for checked in sets:
        for image in checked.images:
            if (image.path, image.size) not in seen:
                seen.add((image.path, image.size))
                todo.append((checked, image))
    with ThreadPoolExecutor(workers) as pool:
        faults = pool.map(_image_fault, (image for _, image in todo))
        for (checked, image), fault in zip(
            progress(todo, desc="decoding", unit="images"), faults, strict=True
        ):
            checked.num_decoded += 1
            if fault:
                checked.problems.add(fault[0], f"{image.called}: {fault[1]}", *image.drop)


def _image_fault(image: ImageFile) -> tuple[str, str] | None:
    """Kind and words of what is wrong with an image file, or None."""
    from risf_core.data.loader import ImageSizeError, read_image  # here: it imports torch

    try:
        read_image(image.path, size=image.size)
    except ImageSizeError as error:
        return "wrong image size", str(error)
    except DataError as error:
        return "unreadable image", str(error)
    return None


# ------------------------------------------------------------ the command


def check_params(file: str, *, workers: int = WORKERS) -> list[CheckedSet]:
    """Check the training set, the test set and the K-shot sets that a params file names.

    If nothing is wrong with the files, the data are opened as a run opens them, and every K-shot set is read.

    Raises:
        ParamsError: If the file, or that of a run that it builds on, is wrong.
    """
    from risf_core.runs.run_specs import load_run

    params = load_run(file).params
    drop_invalid = getattr(params.data, "drop_invalid", False)
    sets = [_read_set(named, drop_invalid=drop_invalid) for named in named_sets(params)]
    decode_all(sets, workers=workers)
    absent = Problems(file)
    named = {
        problem.file
        for checked in sets
        for problem in checked.problems.found
        if problem.kind == "missing file"
    }
    for path in files_not_there(params):
        if not any(path.is_relative_to(where) for where in named):
            absent.add("missing file", f"{path} does not exist")
    if absent.found:
        sets.append(CheckedSet(absent))
    if not any(checked.problems.found for checked in sets):
        problems = Problems(file)
        count = open_as_a_run(params, problems)
        sets.append(CheckedSet(problems, note=f"opened as a run opens the data, {count} K-shot sets read"))
    return sets


def parse_arguments(words: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m risf_core.data.check", description=__doc__.splitlines()[0]
    )
    parser.add_argument("annotations", type=Path, nargs="?", help="COCO file, folder of XML files, or devkit")
    parser.add_argument(
        "images", type=Path, nargs="?", help="folder of the images, if not that of the XML files"
    )
    parser.add_argument("--params", metavar="FILE", help="check all data that a params file names instead")
    parser.add_argument("--drop", metavar="NEW.json", type=Path, help="write a copy without what is wrong")
    parser.add_argument(
        "--workers", type=int, default=WORKERS, help=f"images decoded at the same time ({WORKERS})"
    )
    options = parser.parse_args(words)
    if options.workers < 1:
        parser.error(f"--workers {options.workers}: give 1 or more")
    if (options.annotations is None) == (options.params is None):
        parser.error("give ANNOTATIONS and IMAGES, or --params FILE")
    if options.drop and (options.images is None or options.annotations.is_dir()):
        parser.error("--drop is for a COCO file and its images")
    return options


def main(words: Sequence[str] | None = None) -> int:
    """Check, print everything that is wrong, and write a clean copy if asked; see the module's text."""
    options = parse_arguments(words)
    sys.stdout.reconfigure(errors="backslashreplace")  # names of files may be no text
    try:
        if options.params:
            sets = check_params(options.params, workers=options.workers)
        else:
            sets = [check_set(options.annotations, options.images, workers=options.workers)]
        _print_all(sets)
        if options.drop and sets[0].problems.found:
            return _drop(sets[0].problems, options.images, options.drop)
    except RisfError as error:
        print(error, file=sys.stderr)
        return 2 if isinstance(error, ParamsError) else 1
    return int(any(checked.problems.found for checked in sets))


def _print_all(sets: Sequence[CheckedSet]) -> None:
    """The lines of all sets, but one line together for many sound ones; the counts of a single set."""
    said = [(checked, checked.problems) for checked in sets]
    sound = [checked for checked, have in said if not (have.found or have.dropped or have.hints)]
    more = [checked for checked in sound if not checked.note][SHOWN_SOUND:]
    for checked in sets:
        if checked not in more:
            print("\n".join(checked.lines()))
    if more:
        count = sum(checked.num_decoded for checked in more)
        print(f"nothing is wrong with {len(more)} more; {count} more images decoded, all whole.")
    if len(sets) == 1 and sets[0].data is not None and not sets[0].problems.found:
        print(summarize({sets[0].data.name: sets[0].data}).to_string())


def _drop(problems: Problems, images_dir: Path, path: Path) -> int:
    lines = write_clean_copy(path, problems, images_dir)
    listing = path.with_name(f"{path.name}.dropped.txt")
    listing.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{path}: written without what is wrong; {listing}: the {len(lines)} entries that went")
    return 0


def run_main() -> int:
    """`main` for the shell; a reader that leaves early, as ``head`` does, is no error of ours."""
    try:
        code = main()
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left is written at the end
        return 1
    return code


if __name__ == "__main__":
    sys.exit(run_main())
