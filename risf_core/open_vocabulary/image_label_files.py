"""Image labels in files: category ids of each image, as released, and captions from which names are read.

A file of ids is COCO's form with ``pos_category_ids`` for each image; COCO's captions and ImageNet's folders come in it
(``captions_train2017_tags_allcaps.json``, ``imagenet_lvis_image_info.json`` of object-centric-ovd and Detic).
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from risf_core.data.coco import file_name, write_json
from risf_core.data.coco_checks import ImageEntry, check_categories, check_images
from risf_core.data.dataset import DetectionData, ImageRecord, check_class_list
from risf_core.data.problems import Problems
from risf_core.errors import DataError, SplitError
from risf_core.open_vocabulary.cross_data import name_words
from risf_core.open_vocabulary.image_labels import ImageLabels

CAPTION_RULES = ("words", "released")


def read_image_labels(
    path: str | Path,
    images_dir: str | Path,
    class_names: Sequence[str],
    category_ids: Sequence[int],
    *,
    synonyms: Mapping[str, Sequence[str]] | None = None,
    rule: str = "words",
) -> ImageLabels:
    """Read image labels from a file of category ids or of captions, whichever it is.

    Args:
        path: JSON with ``images``, and either ``categories`` and ``pos_category_ids`` in each image, or COCO captions.
        images_dir: Folder that the ``file_name`` of the images starts from.
        class_names: Columns of the classifier.
        category_ids: The id of each column; a file of ids must give each of its categories the same id and name.
        synonyms: For captions: other words for a class (`caption_tags`). None: the names themselves.
        rule: For captions: "words" or "released".

    Returns:
        Labels of all images that have one; the others are counted in ``without_label``.

    Raises:
        DataError: If the file is unreadable or an entry is wrong; the error's `problems` are all findings.
        SplitError: If a category is no column.
    """
    path, problems = Path(path), Problems(path)
    content = _read(path)
    entries = with_file_names(content["images"])
    images = check_images(entries, Path(images_dir), problems, look_for_files=True)
    if "annotations" in content and any("caption" in entry for entry in content["annotations"][:1]):
        captions = _captions(content["annotations"], {image.image_id for image in images}, problems)
        words = synonyms or {name: (name,) for name in class_names}
        check_class_list(tuple(words), class_names, where=f"{path}, synonyms")
        names = [caption_tags(captions[image.image_id], words, rule=rule) for image in images]
    else:
        names = _names_by_id(content, images, dict(zip(category_ids, class_names, strict=True)), problems)
    problems.raise_if_any(f"{path} {images_dir}")
    none = np.empty((0, 4), np.float32), np.empty(0, np.int64), np.empty(0, bool)
    records = tuple(ImageRecord(*image[:4], *none) for image in images)
    data = DetectionData(path.stem, tuple(class_names), tuple(category_ids), records)
    return ImageLabels.of(data, names)


def write_image_labels(path: str | Path, labels: ImageLabels, *, images_dir: str | Path) -> None:
    """Write a file of category ids, atomically; `read_image_labels` gives the same labels back."""
    data = labels.data
    images = [
        {
            "id": record.image_id,
            "file_name": file_name(record, images_dir),
            "height": record.height,
            "width": record.width,
            "pos_category_ids": [data.category_ids[label] for label in own.tolist()],
        }
        for record, own in zip(data.images, labels.labels, strict=True)
    ]
    categories = [{"id": key, "name": name} for key, name in zip(data.category_ids, data.class_names)]
    write_json(path, {"images": images, "annotations": [], "categories": categories})


def caption_tags(
    captions: Sequence[str], synonyms: Mapping[str, Sequence[str]], *, rule: str = "words"
) -> list[str]:
    """The classes that an image's captions name.

    Args:
        captions: All captions of the image.
        synonyms: Class name to the words that stand for it, the name itself among them or not. Underscores are spaces,
            and what stands in brackets is left out ("bat_(animal)" is looked for as "bat").
        rule: "words": a synonym counts where it stands between the ends of words, whatever sign follows ("a dog, two
            cats" names dog; "cats" is no "cat"). "released": the captions are joined by spaces, and a synonym counts
            with a space on both sides, or at an end of the whole text; so "a dog." names nothing, unless it is spelt
            that way.

    Returns:
        Names in the order of `synonyms`.

    Raises:
        SplitError: If there is no such rule.
    """
    if rule not in CAPTION_RULES:
        raise SplitError(
            f"there is no rule {rule!r} for captions. Expected one of: {', '.join(CAPTION_RULES)}."
        )
    texts = [caption.lower().strip() for caption in captions]
    if rule == "released":
        joined = f" {' '.join(texts)} "  # a space at both ends: an end of the text is as good as a space
        return [
            name for name, words in synonyms.items() if any(f" {_plain(one)} " in joined for one in words)
        ]
    joined = " | ".join(" ".join(text.split()) for text in texts)  # no synonym reaches across two captions
    return [name for name, words in synonyms.items() if any(_stands_in(_plain(one), joined) for one in words)]


def synonyms_from_lvis(
    class_names: Sequence[str], categories: Sequence[Mapping[str, Any]]
) -> dict[str, tuple]:
    """The words for each class: its name and LVIS's synonyms of the categories that have the name among theirs.

    Args:
        class_names: Any names, such as COCO's.
        categories: Of an LVIS annotation file, with ``name`` and ``synonyms``.
    """
    groups = [(one["name"], *one.get("synonyms", ())) for one in categories]
    found = {}
    for name in class_names:
        own = [group for group in groups if name_words(name) in {_plain(word) for word in group}]
        words = dict.fromkeys(_plain(word) for word in (name, *(word for group in own for word in group)))
        found[name] = tuple(words)
    return found


def read_categories(path: str | Path) -> list[dict]:
    """The categories of an annotation file, such as LVIS's with their synonyms.

    Raises:
        DataError: If the file is unreadable or has none.
    """
    categories = _read(Path(path)).get("categories")
    if not categories or not all(
        isinstance(one, dict) and isinstance(one.get("name"), str) for one in categories
    ):
        raise DataError(f"{path}: has no categories with names. Expected an LVIS annotation file.")
    return categories


def _plain(word: str) -> str:
    """A synonym as captions have it: lower case, underscores as spaces, brackets and what is in them left out."""
    return " ".join(re.sub(r"\([^)]*\)", " ", word.lower().replace("_", " ")).split())


def _stands_in(words: str, text: str) -> bool:
    # most words are in no caption: looking for the letters first is ten times as fast
    return words in text and re.search(rf"(?<!\w){re.escape(words)}(?!\w)", text) is not None


def _read(path: Path) -> dict:
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise DataError(f"image labels {path} do not exist. Expected a JSON file; check the path.") from error
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: not a JSON file ({error}). Expected image labels or captions.") from error
    if not isinstance(content, dict) or not isinstance(content.get("images"), list):
        raise DataError(f"{path}: has no list 'images'. Expected image labels or captions in COCO's form.")
    for key in ("annotations", "categories"):
        if not isinstance(content.get(key, []), list):
            raise DataError(
                f"{path}: '{key}' is not a list. Expected image labels or captions in COCO's form."
            )
    return content


def with_file_names(entries: list) -> list:
    """LVIS names a file by the end of its address alone: its last folder and name."""
    named = []
    for entry in entries:
        if isinstance(entry, dict) and "file_name" not in entry and isinstance(entry.get("coco_url"), str):
            entry = entry | {"file_name": "/".join(entry["coco_url"].split("/")[-2:])}
        named.append(entry)
    return named


def _captions(entries: list, known: set[int], problems: Problems) -> dict[int, list[str]]:
    """The captions of each image."""
    captions = defaultdict(list)
    for position, entry in enumerate(entries):
        good = isinstance(entry, dict) and isinstance(entry.get("caption"), str)
        if not good or entry.get("image_id") not in known:
            what = "is of no image of the file" if good else "has no text 'caption'"
            problems.add("wrong caption", f"caption number {position} {what}", ("annotations", position))
            continue
        captions[entry["image_id"]].append(entry["caption"])
    return captions


def _names_by_id(
    content: dict, images: list[ImageEntry], columns: Mapping[int, str], problems: Problems
) -> list[list[str]]:
    """What each image shows, by the ids of the columns, which the file's own categories must agree with."""
    if "categories" not in content:
        raise DataError(f"{problems.where}: has no list 'categories'. Expected image labels in COCO's form.")
    for key, name in check_categories(content["categories"], problems).items():
        if name and columns.get(key) != name:
            raise SplitError(
                f"{problems.where}: category {key} is {name!r}, but the columns have {columns.get(key)!r} there. "
                "Expected the categories of the boxes: labels by other ids would name other things."
            )
    names = []
    for image in images:
        entry = content["images"][image.position]
        ids = entry.get("pos_category_ids") if isinstance(entry, dict) else None
        if not isinstance(ids, list) or any(type(one) is not int or one not in columns for one in ids):
            line = f"image {image.image_id}: pos_category_ids is {ids!r:.60}; expected a list of category ids"
            problems.add("wrong value", line, ("images", image.position))
            ids = []
        names.append([columns[one] for one in ids])
    return names
