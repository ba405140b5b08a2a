"""The files of ``python -m risf_core.predict``: which images are meant, and what its folder holds."""

from __future__ import annotations

import glob
import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from risf_core.errors import DataError, ParamsError

PICTURES = "pictures"  # the folder of the drawings


@dataclass(frozen=True)
class Inputs:
    """Image files, each once, in the order given; what was asked for and is not there; other files in the folders."""

    files: tuple[Path, ...]
    missing: tuple[str, ...]
    num_others: int


def find_images(words: Sequence[str], *, leave_out: Path | None = None) -> Inputs:
    """The image files that the words of a command line mean.

    Args:
        words: Files, folders (all files below them whose name ends as an image's) and patterns such as ``*.jpg``.
        leave_out: A folder that is not searched, such as the one of the pictures drawn.

    Returns:
        A file is taken whatever its name, so that a broken one is named when it is read.
    """
    from PIL import Image

    endings, skipped = set(Image.registered_extensions()), leave_out and leave_out.resolve()
    files: dict[Path, Path] = {}
    missing, num_others = [], 0
    for word in words:
        path = Path(word).expanduser()
        found = (
            [path] if path.exists() else [Path(name) for name in sorted(glob.glob(str(path), recursive=True))]
        )
        if not found:
            missing.append(word)
        for one in found:
            below = sorted(file for file in one.rglob("*") if file.is_file()) if one.is_dir() else [one]
            for file in below:
                if skipped and file.resolve().is_relative_to(skipped):
                    continue
                if one.is_dir() and file.suffix.lower() not in endings:
                    num_others += 1
                else:
                    files.setdefault(file.resolve(), file)
    return Inputs(tuple(files.values()), tuple(missing), num_others)


def check_output(folder: Path, *, overwrite: bool) -> None:
    """Refuse an output that is a file, or that holds results.

    Raises:
        ParamsError: If it does.
    """
    from risf_core.prediction import DETECTIONS, IMAGES, RESCORED

    if folder.exists() and not folder.is_dir():
        raise ParamsError(f"--output {folder} is a file. Expected a folder, new or yours.")
    held = [name for name in (IMAGES, DETECTIONS, RESCORED) if (folder / name).exists()]
    if held and not overwrite:
        raise ParamsError(
            f"--output {folder} holds the results of another run ({', '.join(held)}). Name another folder, or give "
            "--overwrite."
        )


def clear(folder: Path) -> None:
    """Remove the results files of a folder, and the pictures that they name."""
    from risf_core.prediction import DETECTIONS, IMAGES, RESCORED

    try:
        images = json.loads((folder / IMAGES).read_text(encoding="utf-8"))["images"]
        pictures = [Path(image["picture"]).name for image in images]
    except (OSError, ValueError, KeyError, TypeError):  # none, or of another program: no picture is ours
        pictures = []
    for name in (IMAGES, DETECTIONS, RESCORED, *(f"{PICTURES}/{picture}" for picture in pictures)):
        (folder / name).unlink(missing_ok=True)


def check_name(path: Path) -> None:
    """Refuse a file whose name no JSON file can hold.

    Raises:
        DataError: If it is no text.
    """
    try:
        str(path.absolute()).encode()
    except UnicodeEncodeError:
        raise DataError(f"{ascii(str(path))}: the name is not UTF-8. Rename the file.") from None


def free_name(stem: str, image_id: int, taken: Collection[str], folder: Path) -> str:
    """The file's own name, with the image's id where another image, or a file that is not ours, has it."""
    stem = stem.encode()[:200].decode(
        errors="ignore"
    )  # a name may have 255 bytes, with the id and the ending
    name, count = stem, 0
    while name.lower() in taken or (folder / f"{name}.png").exists():
        name = f"{stem}-{image_id}" + (f"-{count}" if count else "")
        count += 1
    return name
