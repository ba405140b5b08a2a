"""Check a data set before anything is trained on it: the whole annotation file, and every image decoded.

    python -m risf_core.data.check data/birds/instances.json data/birds/images
    python -m risf_core.data.check data/birds/instances.json data/birds/images --drop data/birds/clean.json
    python -m risf_core.data.check --params params/photos/10_base_training.yaml

All problems are listed at once, each with its file and id. Exit code: 0 nothing is wrong (or a clean copy was written),
1 something is, 2 the command is wrong.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from risf_core.data.coco import inspect_coco, load_coco, write_json
from risf_core.data.coco_checks import ImageEntry, Problem
from risf_core.data.dataset import DetectionData, summarize
from risf_core.errors import DataError, RisfError
from risf_core.progress import progress

UNREADABLE, WRONG_SIZE = "unreadable image", "wrong image size"


@dataclass(frozen=True)
class Findings:
    """What is wrong with one annotation file and its images.

    Attributes:
        annotations: The file.
        problems: All of them, those of the file's entries first, then those of the images.
        hints: What may explain many of them.
        num_images: How many images were decoded.
        data: The data, if nothing is wrong with the file's entries.
    """

    annotations: Path
    problems: tuple[Problem, ...]
    hints: tuple[str, ...]
    num_images: int
    data: DetectionData | None

    def lines(self) -> list[str]:
        """Every problem with the file, the hints, and a count of each kind."""
        if not self.problems:
            return [f"{self.annotations}: nothing is wrong; {self.num_images} images decoded, all whole."]
        kinds = Counter(problem.kind for problem in self.problems)
        counts = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
        listed = [f"{self.annotations}: {problem.line}" for problem in self.problems]
        return [*listed, *self.hints, f"{self.annotations}: {len(self.problems)} problems: {counts}"]


def check_data_set(annotations: str | Path, images_dir: str | Path, *, workers: int = 4) -> Findings:
    """Check a COCO-format file and decode all its images.

    Args:
        annotations: The file.
        images_dir: Folder that the ``file_name`` of the images starts from.
        workers: Images decoded at the same time.

    Raises:
        DataError: If the file is no COCO file at all.
    """
    data, problems, images = inspect_coco(annotations, images_dir)
    present = [image for image in images if image.path.is_file()]
    with ThreadPoolExecutor(workers) as pool:
        faults = pool.map(_image_fault, present, chunksize=16)
        decoded = zip(present, faults, strict=True)
        for image, fault in progress(decoded, desc="decoding", total=len(present), unit="images"):
            if fault:
                problems.add(fault[0], f"image {image.image_id}: {fault[1]}", ("images", image.position))
    return Findings(problems.path, tuple(problems.found), tuple(problems.hints), len(present), data)


def _image_fault(image: ImageEntry) -> tuple[str, str] | None:
    """Kind and words of what is wrong with an image file, or None."""
    from risf_core.data.loader import ImageSizeError, read_image  # here: it imports torch

    try:
        read_image(image.path, size=(image.height, image.width) if image.height else None)
    except ImageSizeError as error:
        return WRONG_SIZE, str(error)
    except DataError as error:
        return UNREADABLE, str(error)
    return None


def write_clean(findings: Findings, images_dir: str | Path, path: Path) -> list[str]:
    """Write a copy of an annotation file without what is wrong; every other field of the file stays.

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
    if path.resolve() == findings.annotations.resolve():
        raise DataError(f"{path}: a clean copy does not replace the file. Give another name.")
    if lasting := [
        problem.line for problem in findings.problems if not problem.drop and problem.renumber is None
    ]:
        raise DataError(
            f"{findings.annotations}: {len(lasting)} problems cannot be dropped, first: {lasting[0]}. "
            "Nothing was written; correct the file."
        )
    content = json.loads(findings.annotations.read_bytes())
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


def named_sets(file: str) -> list[tuple[Path, Path]]:
    """The annotation files and image folders that a params file names.

    Raises:
        ParamsError: If the file is wrong.
        DataError: If its data are not files of the user.
    """
    from risf_core.runs.run_specs import load_run
    from risf_core.runs.yaml_files import project_path

    data = load_run(file).params.data
    if data.source != "coco":
        raise DataError(f"{file}: its data ({data.source}) are made here. Expected data of source coco.")
    pairs = [(data.annotations, data.images)]
    if data.test_annotations is not None:
        pairs.append((data.test_annotations, data.test_images or data.images))
    return [(project_path(annotations), project_path(images)) for annotations, images in pairs]


def parse_arguments(words: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m risf_core.data.check", description=__doc__.splitlines()[0]
    )
    parser.add_argument("annotations", type=Path, nargs="?", help="COCO-format JSON file")
    parser.add_argument(
        "images", type=Path, nargs="?", help="folder that the file names of the images start from"
    )
    parser.add_argument("--params", metavar="FILE", help="check the files that a params file names instead")
    parser.add_argument("--drop", metavar="NEW.json", type=Path, help="write a copy without what is wrong")
    parser.add_argument("--workers", type=int, default=4, help="images decoded at the same time (4)")
    options = parser.parse_args(words)
    if (options.images is None) == (options.params is None) or (options.params and options.drop):
        parser.error("give ANNOTATIONS and IMAGES, and --drop if you like, or --params FILE")
    return options


def main(words: Sequence[str] | None = None) -> int:
    """Check, print everything that is wrong, and write a clean copy if asked; see the module's text."""
    options = parse_arguments(words)
    try:
        sets = named_sets(options.params) if options.params else [(options.annotations, options.images)]
        found = [check_data_set(*files, workers=options.workers) for files in sets]
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
