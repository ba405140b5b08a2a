"""Check a data set before anything is trained on it: every annotation, and every image decoded.

    python -m risf_core.data.check data/birds/instances.json data/birds/images       a COCO file
    python -m risf_core.data.check data/birds/xml data/birds/images                  a folder of XML files
    python -m risf_core.data.check --params params/voc/10_base_training.yaml         all that a params file names
    python -m risf_core.data.check data/birds/instances.json data/birds/images --drop data/birds/clean.json

All problems are listed at once, each with its file and id. Exit code: 0 nothing is wrong (or a clean copy was written),
1 something is, 2 the command is wrong.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from risf_core.data.coco import inspect_coco, load_coco, write_json
from risf_core.data.coco_checks import Problem
from risf_core.data.dataset import DetectionData, summarize
from risf_core.errors import DataError, RisfError
from risf_core.progress import progress

WORKERS = 4
UNREADABLE, WRONG_SIZE = "unreadable image", "wrong image size"


class ImageFile(NamedTuple):
    """An image to decode: how it is called in a line, its file, its stated (height, width), what a clean copy drops."""

    called: str
    path: Path
    size: tuple[int, int] | None
    drop: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True)
class Findings:
    """What is wrong with one set of annotations and its images.

    Attributes:
        where: The annotation file or folder.
        problems: All of them, those of the annotations first, then those of the images.
        hints: What may explain many of them.
        num_images: How many images were decoded.
        data: The data, if nothing is wrong with the annotations.
    """

    where: Path
    problems: tuple[Problem, ...]
    hints: tuple[str, ...]
    num_images: int
    data: DetectionData | None

    def lines(self) -> list[str]:
        """Every problem with the file, the hints, and a count of each kind."""
        if not self.problems:
            return [f"{self.where}: nothing is wrong; {self.num_images} images decoded, all whole."]
        kinds = Counter(problem.kind for problem in self.problems)
        counts = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
        start = f"{self.where}: "
        listed = [
            line if line.startswith(str(self.where)) else start + line for line in self._problem_lines()
        ]
        return [*listed, *self.hints, f"{start}{len(self.problems)} problems: {counts}"]

    def _problem_lines(self) -> list[str]:
        return [problem.line for problem in self.problems]


def check_coco(annotations: str | Path, images_dir: str | Path, *, workers: int = WORKERS) -> Findings:
    """Check a COCO-format file and decode all its images, `workers` at the same time.

    Raises:
        DataError: If the file is no COCO file at all.
    """
    data, problems, images = inspect_coco(annotations, images_dir)
    present = [
        ImageFile(
            f"image {image.image_id}",
            image.path,
            (image.height, image.width) if image.height else None,
            (("images", image.position),),
        )
        for image in images
        if image.path.is_file()
    ]
    found = (*problems.found, *decode_all(present, workers=workers))
    return Findings(problems.path, found, tuple(problems.hints), len(present), data)


def check_xml(annotations_dir: str | Path, images_dir: str | Path, *, workers: int = WORKERS) -> Findings:
    """Check a folder of XML files in VOC's form and decode all its images."""
    from risf_core.data.voc import images_by_stem, load_xml_folder

    folder = Path(annotations_dir)
    data, problems = _collect(lambda: load_xml_folder(images_dir, folder))
    images = images_by_stem(Path(images_dir), [])
    annotated = {path.stem for path in folder.glob("*.xml")}
    files = [(f"image {stem}", path) for stem, path in images.items() if stem in annotated]
    return _with_images(folder, data, problems, files, workers=workers)


def check_devkit(folder: str | Path, image_set: str, *, workers: int = WORKERS) -> Findings:
    """Check one image set of a VOC devkit and decode all its images."""
    from risf_core.data.splits import VOC_CLASSES
    from risf_core.data.voc import devkit_files, load_voc, read_image_set

    folder = Path(folder)
    data, problems = _collect(lambda: load_voc([(folder, image_set)], class_names=VOC_CLASSES))
    known = folder.is_dir() and (folder / "ImageSets" / "Main" / f"{image_set}.txt").is_file()
    found = devkit_files(folder, read_image_set(folder, image_set), []) if known else []
    files = [(f"image {file.image.stem}", file.image) for file in found]
    return _with_images(folder, data, problems, files, workers=workers)


def _collect(load: Callable[[], DetectionData]) -> tuple[DetectionData | None, list[Problem]]:
    """What a loader returns, or the problems that it raises."""
    try:
        return load(), []
    except DataError as error:
        return None, [Problem("annotation", line) for line in getattr(error, "problems", (str(error),))]


def _with_images(
    where: Path,
    data: DetectionData | None,
    problems: list[Problem],
    files: list[tuple[str, Path]],
    *,
    workers: int,
) -> Findings:
    """Decode the images of XML files; one that the annotations' check has named already is not named twice."""
    sizes = {} if data is None else {record.path: (record.height, record.width) for record in data.images}
    images = [ImageFile(called, path, sizes.get(path)) for called, path in files]
    named = "\n".join(problem.line for problem in problems)
    decoded = decode_all(images, workers=workers)
    problems += [problem for problem in decoded if problem.line.split(" ")[3].rstrip(":") not in named]
    return Findings(where, tuple(problems), (), len(images), data)


def decode_all(images: Sequence[ImageFile], *, workers: int = WORKERS) -> list[Problem]:
    """Decode every image completely; a problem for each that is cut short, no image, or of another size."""
    found = []
    with ThreadPoolExecutor(workers) as pool:
        decoded = zip(images, pool.map(_image_fault, images, chunksize=16), strict=True)
        for image, fault in progress(decoded, desc="decoding", total=len(images), unit="images"):
            if fault:
                found.append(Problem(fault[0], f"{image.called}: {fault[1]}", image.drop))
    return found


def _image_fault(image: ImageFile) -> tuple[str, str] | None:
    """Kind and words of what is wrong with an image file, or None."""
    from risf_core.data.loader import ImageSizeError, read_image  # here: it imports torch

    try:
        read_image(image.path, size=image.size)
    except ImageSizeError as error:
        return WRONG_SIZE, str(error)
    except DataError as error:
        return UNREADABLE, str(error)
    return None


# ------------------------------------------------------------ all that a params file names


def check_params(file: str, *, workers: int = WORKERS) -> list[Findings]:
    """Check training set, test set and given K-shot sets of the data of a params file.

    Raises:
        ParamsError: If the file is wrong.
        DataError: If its data are made here, or a file of them is no COCO file at all.
    """
    from risf_core.runs.run_specs import load_run
    from risf_core.runs.yaml_files import project_path

    params = load_run(file).params
    data = params.data
    if data.source == "pictograms":
        raise DataError(f"{file}: its data (pictograms) are made here. Expected data of the user's own.")
    if data.source == "voc":
        sets = [(data.voc2007, "trainval"), (data.voc2012, "trainval"), (data.voc2007, "test")]
        found = [check_devkit(project_path(folder), name, workers=workers) for folder, name in sets if folder]
    else:
        check = check_coco if data.source == "coco" else check_xml
        pairs = _named_pairs(data)
        found = [check(*map(project_path, pair), workers=workers) for pair in pairs]
    drawn = data.source == "xml" or (data.source == "coco" and data.few_shot.kind == "drawn")
    if drawn or any(findings.problems for findings in found):
        return found
    return [*found, check_draws(params)]


def _named_pairs(data) -> list[tuple[str, str]]:
    """Annotations and images of the training part and, where they are named, of the test part."""
    pairs = []
    if data.annotations is not None or data.source == "xml":
        pairs.append((data.annotations or data.images, data.images))
    if data.source == "coco" and data.test_annotations is not None:
        pairs.append((data.test_annotations, data.test_images or data.images))
    if data.source == "xml" and data.test_images is not None:
        pairs.append((data.test_annotations or data.test_images, data.test_images))
    return list(dict.fromkeys(pairs))


def check_draws(params) -> Findings:
    """Read every given K-shot set; those without base classes where a file for them is missing are not asked for."""
    from risf_core.data.benchmark import open_benchmark

    data = params.data
    benchmark = open_benchmark(data, split=getattr(params, "split", 1))
    where = Path(
        data.splits if data.source == "voc" else getattr(data.few_shot, "folder", data.few_shot.kind)
    )
    problems = []
    draws = [(shots, seed) for shots in data.shots for seed in range(data.num_seeds)]
    for shots, seed in progress(draws, desc="reading K-shot sets", total=len(draws), unit="sets"):
        try:
            benchmark.few_shot(shots, seed)
        except RisfError as error:
            problems.append(Problem("K-shot set", f"K = {shots}, seed {seed}: {error}"))
    return Findings(where, tuple(problems), (), 0, None)


# ------------------------------------------------------------ a clean copy


def write_clean(findings: Findings, images_dir: str | Path, path: Path) -> list[str]:
    """Write a copy of a COCO file without what is wrong; every other field of the file stays.

    A dropped image takes its annotations along. An annotation whose id another one has, but not its content, gets a
    new id.

    Args:
        findings: Of the file.
        images_dir: Folder of the images; the copy is read again to prove that it is clean.
        path: The copy, another file.

    Returns:
        A line for each entry that was dropped or changed.

    Raises:
        DataError: If a problem is none of single images or annotations, or the copy would be the file itself.
    """
    if path.resolve() == findings.where.resolve():
        raise DataError(f"{path}: a clean copy does not replace the file. Give another name.")
    if lasting := [
        problem.line for problem in findings.problems if not problem.drop and problem.renumber is None
    ]:
        raise DataError(
            f"{findings.where}: {len(lasting)} problems cannot be dropped, first: {lasting[0]}. "
            "Nothing was written; correct the file."
        )
    content = json.loads(findings.where.read_bytes())
    drop: dict[str, set[int]] = {"images": set(), "annotations": set()}
    for problem in findings.problems:
        for name, position in problem.drop:
            drop[name].add(position)
    lines = [problem.line for problem in findings.problems]
    images = [entry for position, entry in enumerate(content["images"]) if position not in drop["images"]]
    lines += _drop_with_images(content, {entry["id"] for entry in images}, drop)
    lines += _renumber(
        content["annotations"], [p.renumber for p in findings.problems if p.renumber is not None]
    )
    annotations = [
        a for position, a in enumerate(content["annotations"]) if position not in drop["annotations"]
    ]
    write_json(path, content | {"images": images, "annotations": annotations})
    try:
        load_coco(path, images_dir)
    except DataError:
        path.unlink()
        raise
    return lines


def _drop_with_images(content: dict, image_ids: set[int], drop: dict[str, set[int]]) -> Iterator[str]:
    """Add the annotations of dropped images to `drop`; yield a line for each."""
    for position, entry in enumerate(content["annotations"]):
        if position not in drop["annotations"] and entry["image_id"] not in image_ids:
            drop["annotations"].add(position)
            yield f"annotation {entry['id']}: its image {entry['image_id']} is dropped"


def _renumber(annotations: list[dict], positions: Sequence[int]) -> Iterator[str]:
    """Give the annotations at these positions ids above all others; yield a line for each."""
    ids = [entry.get("id") for entry in annotations if isinstance(entry, dict)]
    highest = max((number for number in ids if type(number) is int), default=0)
    for new_id, position in enumerate(positions, start=highest + 1):
        yield f"annotation {annotations[position]['id']} (number {position} of the file): has the new id {new_id}"
        annotations[position]["id"] = new_id


# ------------------------------------------------------------ the command


def parse_arguments(words: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m risf_core.data.check", description=__doc__.splitlines()[0]
    )
    parser.add_argument(
        "annotations", type=Path, nargs="?", help="COCO-format JSON file, or folder of XML files"
    )
    parser.add_argument(
        "images", type=Path, nargs="?", help="folder of the images; not needed beside XML files"
    )
    parser.add_argument("--params", metavar="FILE", help="check the data that a params file names instead")
    parser.add_argument("--drop", metavar="NEW.json", type=Path, help="write a copy without what is wrong")
    parser.add_argument(
        "--workers", type=int, default=WORKERS, help=f"images decoded at the same time ({WORKERS})"
    )
    options = parser.parse_args(words)
    if (options.annotations is None) == (options.params is None):
        parser.error("give ANNOTATIONS and IMAGES, or --params FILE")
    options.is_xml = options.annotations is not None and options.annotations.is_dir()
    if options.is_xml:
        options.images = options.images or options.annotations
    if options.params is None and options.images is None:
        parser.error("give the folder of the images as well")
    if options.drop and (options.params or options.is_xml):
        parser.error("--drop is for a COCO file")
    return options


def main(words: Sequence[str] | None = None) -> int:
    """Check, print everything that is wrong, and write a clean copy if asked; see the module's text."""
    options = parse_arguments(words)
    try:
        if options.params:
            found = check_params(options.params, workers=options.workers)
        else:
            check = check_xml if options.is_xml else check_coco
            found = [check(options.annotations, options.images, workers=options.workers)]
        for findings in found:
            print("\n".join(findings.lines()))
            if findings.data is not None:
                print(summarize({findings.data.name: findings.data}).to_string())
        if options.drop and found[0].problems:
            return _drop(found[0], options.images, options.drop)
    except RisfError as error:
        print(error, file=sys.stderr)
        return 1
    return int(any(findings.problems for findings in found))


def _drop(findings: Findings, images_dir: Path, path: Path) -> int:
    lines = write_clean(findings, images_dir, path)
    listing = path.with_name(f"{path.name}.dropped.txt")
    listing.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{path}: written without what is wrong; {listing}: the {len(lines)} entries dropped or changed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
