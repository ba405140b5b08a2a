"""Find the images that the entries of a results file lie in."""

from __future__ import annotations

import json
import os
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from risf_core.data.coco import inspect_coco
from risf_core.data.dataset import DetectionData, ImageRecord
from risf_core.data.loader import EXIF_ORIENTATION, read_image
from risf_core.errors import DataError
from risf_core.results_formats import Results

NUMBER = re.compile(r"(?:.*_)?(\d+)")  # 000000000139, COCO_val2014_000000000139


def find_images(
    results: Results,
    images_dir: str | Path,
    annotations: str | Path | None = None,
    *,
    rows: np.ndarray | None = None,
) -> tuple[list[ImageRecord], DetectionData | None]:
    """The image of each id of a results file, and the ground truth if there is one.

    Args:
        results: The results file.
        images_dir: Folder of the images; without annotations those below it are searched as well.
        annotations: COCO file that names the image of each id. None: an id is the name of a file (``000000000139.jpg``
            or ``139.jpg`` for 139; with or without ending for a text).
        rows: bool [N], the entries that may be encoded; only their images need be there. None: all.

    Returns:
        One record for each of `results.image_keys`, of size 0 where nothing is encoded; the ground truth where the file
        holds annotations.

    Raises:
        DataError: If an id has no image or several, with what was looked for; if an image cannot be opened.
    """
    folder = Path(images_dir)
    if not folder.is_dir():
        raise DataError(f"{folder}: there is no such folder. Give the folder of the images with --images.")
    is_needed = np.zeros(len(results.image_keys), dtype=bool)
    is_needed[results.images if rows is None else results.images[rows]] = True
    needed = [key for key, is_one in zip(results.image_keys, is_needed) if is_one]
    if annotations is None:
        paths = dict(zip(needed, _paths_by_name(results.where, needed, folder)))
        return [_record(paths.get(key), i) for i, key in enumerate(results.image_keys)], None
    return _annotated_images(results, needed, folder, Path(annotations))


def _annotated_images(
    results: Results, needed: Sequence[int | str], folder: Path, path: Path
) -> tuple[list[ImageRecord], DetectionData | None]:
    """`find_images` with annotations; of the needed images alone the files are looked at."""
    names, has_truth = _annotated_names(path)
    ids = _annotated_ids(results, names, path)
    if not has_truth:
        paths = {key: folder / names[ids[key]] for key in needed}
        return [_record(paths.get(key), i) for i, key in enumerate(results.image_keys)], None
    truth = _read_truth(path, folder, names)
    by_id = {record.image_id: record for record in truth.images}
    for key in needed:
        _check_size(by_id[ids[key]])
    return [by_id[ids[key]] for key in results.image_keys], truth


def _annotated_names(path: Path) -> tuple[dict[int | str, str], bool]:
    """File name by image id of a COCO file, and whether it holds annotations."""
    try:
        content = json.loads(path.read_bytes())
        pairs = [(entry["id"], entry["file_name"]) for entry in content["images"]]
        has_truth = bool(content.get("annotations"))
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(
            f'{path}: no COCO file ({error}). Expected {{"images": [{{"id", "file_name"}}, ...], ...}}.'
        ) from error
    names: dict[int | str, str] = {}
    for image_id, name in pairs:
        if type(image_id) not in (int, str) or type(name) is not str or not name.strip():
            raise DataError(
                f"{path}: an image has the id {image_id!r} and the file_name {name!r}. Expected a whole number or a "
                "text, and a text."
            )
        if image_id in names:
            raise DataError(
                f"{path}: image id {image_id!r} stands twice, for {names[image_id]} and {name}. Expected each id once."
            )
        names[image_id] = name
    return names, has_truth


def _annotated_ids(results: Results, names: dict[int | str, str], path: Path) -> dict:
    """The id in the annotations of each image of the results: that id, or else the one whose file is called so."""
    called: dict[int | str, set[int | str]] = defaultdict(set)
    for image_id, name in names.items():
        for known_as in (name, Path(name).name, Path(name).stem):
            called[known_as].add(image_id)
    found = {key: {key} if key in names else called[key] for key in results.image_keys}
    missing = [key for key, ids in found.items() if not ids]
    if missing:
        raise DataError(
            f"{results.where}: {len(missing)} of {len(results.image_keys)} image ids stand not in {path}, the first is "
            f"{missing[0]!r:.60}. Expected the file that the detector's images came from."
        )
    for key, ids in found.items():
        if len(ids) > 1:
            files = " or ".join(sorted(names[image_id] for image_id in ids))
            raise DataError(f"{results.where}: image {key!r} may be {files} of {path}. Expected image ids.")
    return {key: next(iter(ids)) for key, ids in found.items()}


def _read_truth(path: Path, folder: Path, names: dict[int | str, str]) -> DetectionData:
    """The objects of a COCO file; whether the images are there is not looked at."""
    truth, problems, _ = inspect_coco(path, None, drop_invalid=True)
    problems.raise_if_any(f"{path} {folder}")
    images = [replace(record, path=folder / names[record.image_id]) for record in truth.images]
    return replace(truth, images=tuple(images))


def _paths_by_name(where: Path, keys: Sequence[int | str], folder: Path) -> list[Path]:
    """The image file of each id, by its name."""
    by_name: dict[str | int, list[Path]] = defaultdict(list)
    for path in _image_files(folder):
        number = NUMBER.fullmatch(path.stem)
        for key in {path.stem, path.name, int(number[1]) if number else path.stem}:
            by_name[key].append(path)
    missing = [key for key in keys if not by_name.get(key)]
    if missing:
        key = missing[0]
        tried = f"{key:012d}.*, {key}.*, *_{key:012d}.*" if isinstance(key, int) else f"{key}, {key}.*"
        raise DataError(
            f"{where}: {len(missing)} of {len(keys)} images were not found; the first is {key!r:.60}. Looked for "
            f"{tried:.200} in {folder} and below. Give --annotations, a COCO file with their names."
        )
    for key in keys:
        by_name[key] = list({os.path.realpath(path): path for path in by_name[key]}.values())
        if len(by_name[key]) > 1:
            found = ", ".join(map(str, by_name[key][:3]))
            raise DataError(
                f"{where}: image {key!r} may be any of {found}. Give --annotations, a COCO file with the names, or a "
                "folder without the others."
            )
    return [by_name[key][0] for key in keys]


def _image_files(folder: Path) -> Iterator[Path]:
    """All images in and below a folder; a folder that links lead to again is read once."""
    endings, seen = set(Image.registered_extensions()), set()
    for parent, folders, names in os.walk(folder, followlinks=True):
        place = os.path.realpath(parent)
        if place in seen:
            folders.clear()
            continue
        seen.add(place)
        folders.sort()
        yield from (Path(parent, name) for name in sorted(names) if Path(name).suffix.lower() in endings)


def _record(path: Path | None, image_id: int) -> ImageRecord:
    """An image without objects; of size 0 where there is no file to open."""
    width, height = (0, 0) if path is None else _upright_size(path)
    none = np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, bool)
    return ImageRecord(image_id, path or Path(), height, width, *none)


def _check_size(record: ImageRecord) -> None:
    """The size in the annotations must be the file's."""
    size = record.height, record.width
    if _upright_size(record.path) != size[::-1]:
        read_image(record.path, size=size)  # its error tells more


def _upright_size(path: Path) -> tuple[int, int]:
    """Width and height, which are read without decoding."""
    try:
        with Image.open(path) as file:
            lies_on_its_side = file.getexif().get(EXIF_ORIENTATION) in (5, 6, 7, 8)
            return file.size[::-1] if lies_on_its_side else file.size
    except FileNotFoundError as error:
        raise DataError(f"image {path} does not exist. Check --images, or restore the file.") from error
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"image {path} cannot be opened: {error}. Expected a whole image file.") from error
