"""Small VOC files for the tests: XML written by hand, with real image files of one colour."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image


def xml_text(objects: Sequence[tuple], *, width: int = 40, height: int = 30, file_name: str = "x.jpg") -> str:
    """An annotation file's text; objects are (name, (xmin, ymin, xmax, ymax)) or (name, box, difficult)."""
    parts = [f"<filename>{file_name}</filename><size><width>{width}</width><height>{height}</height></size>"]
    for name, box, *difficult in objects:
        corners = "".join(
            f"<{key}>{value}</{key}>" for key, value in zip(("xmin", "ymin", "xmax", "ymax"), box)
        )
        flag = f"<difficult>{int(difficult[0])}</difficult>" if difficult else ""
        parts.append(f"<object><name>{name}</name>{flag}<bndbox>{corners}</bndbox></object>")
    return f"<annotation>{''.join(parts)}</annotation>"


def write_pair(
    folder: Path, stem: str, objects: Sequence[tuple], *, ending: str = ".jpg", **size: int
) -> None:
    """An image and its XML file beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (size.get("width", 40), size.get("height", 30))).save(
        folder / (stem + ending), format="JPEG"
    )
    (folder / f"{stem}.xml").write_text(xml_text(objects, file_name=stem + ending, **size))


def write_devkit(
    folder: Path, images: Mapping[str, Sequence[tuple]], sets: Mapping[str, Sequence[str]]
) -> Path:
    """A devkit folder of one year with an image for each id; every second one ends in .JPG."""
    for sub in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (folder / sub).mkdir(parents=True, exist_ok=True)
    for number, (text, objects) in enumerate(images.items()):
        ending = (".jpg", ".JPG")[number % 2]
        Image.new("RGB", (40, 30)).save(folder / "JPEGImages" / (text + ending), format="JPEG")
        (folder / "Annotations" / f"{text}.xml").write_text(xml_text(objects))
    for name, ids in sets.items():
        (folder / "ImageSets" / "Main" / f"{name}.txt").write_text("".join(f"{text}\n" for text in ids))
    return folder
