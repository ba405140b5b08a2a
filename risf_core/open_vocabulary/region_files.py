"""Regions in the files of others: MViT's output, and the features and boxes of the released RKD code.

What is read, told apart by what is there:

- a pickle ``{stem: (boxes, scores)}``, as MViT (https://github.com/mmaaz60/mvits_for_class_agnostic_od) writes for a
  query, and for several queries after suppression (``combined.pkl``);
- a folder of such pickles, one a query: of each the best 50 of an image, then class-agnostic suppression at IoU 0.5, as
  the released RKD code joins its four queries (a ``combined.pkl`` among them is left out, since it is their union);
- a folder of ``{stem}.txt`` with lines ``label score x1 y1 x2 y2``, MViT's other form; its labels are always 0;
- a folder of ``{stem}.pkl`` lists of (box, tensor [1, d]): the features of the released RKD code
  (https://github.com/hanoonaR/object-centric-ovd), best first and without scores;
- a folder of ``{stem}.pkl`` dictionaries ``{category id: ([box], [score])}``, its boxes for image-level supervision,
  where the lists are empty for a class whose box scored too low;
- a ``.json`` in COCO's or LVIS's form, or a list of results. Released files hold corners where the form says x, y,
  width, height; which of the two fits the images is found out, and in doubt asked.

A stem is an image's file name up to its first dot. Per-image files may lie one level down in a folder named as the stem
up to its first ``_`` (ImageNet's). All other boxes are x1, y1, x2, y2 in pixels of the original image.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torchvision.ops import nms

from risf_core.data.dataset import DetectionData, ImageRecord
from risf_core.errors import DataError, ParamsError
from risf_core.open_vocabulary.region_checks import clip_to_images, outside_message
from risf_core.open_vocabulary.region_json import read_json_boxes
from risf_core.open_vocabulary.region_pickles import read_pickle
from risf_core.open_vocabulary.regions import RegionSet

logger = logging.getLogger(__name__)

QUERY_TOP, QUERY_NMS = 50, 0.5  # released RKD: of each query, and on their union
BOX_FORMS = ("auto", "xyxy", "xywh")
SALIENT = "salient"  # key of a box of no class in the released mapper
RELEASED_CLIP = {  # what the released code embeds with; the files do not say it
    "name": "ViT-B/32 of OpenAI, as the released code has it",
    "weights": None,
    "preprocess": "clip",
    "resize": "bicubic",
    "crop": "shortest",
}


class Found(NamedTuple):
    """What a file says of one image: boxes float64 [m, 4], scores [m], labels [m] or None, embeddings or None."""

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray | None = None
    embeddings: np.ndarray | None = None


def read_regions(
    path: str | Path,
    data: DetectionData,
    *,
    outside: str = "error",
    missing: str = "error",
    box_form: str = "auto",
    clip: Mapping[str, Any] | None = None,
) -> RegionSet:
    """Read regions of others for the images of `data`; the module's text says which files.

    Boxes are clipped to their image; those without extent, which whole pixels make of thin ones, are left out. The
    manifest counts these (``degenerate``), boxes outside (``dropped``), and images without an entry
    (``images_without_entry``).

    Args:
        path: File or folder.
        data: The images; where a file names categories, their ids are those of the data.
        outside: "error" or "drop": boxes whose centre lies outside of their image.
        missing: "error" or "empty": images that the file has nothing of.
        box_form: Of a ``.json`` alone: "xyxy", "xywh", or "auto".
        clip: Facts of the CLIP whose embeddings the file holds; None says what the released code has.

    Returns:
        Regions that have seen novel classes "unknown".

    Raises:
        DataError: If it is none of these files, or does not fit the images; the file is named.
    """
    path = Path(path)
    for name, value, known in (
        ("outside", outside, ("error", "drop")),
        ("missing", missing, ("error", "empty")),
        ("box_form", box_form, BOX_FORMS),
    ):
        if value not in known:
            raise ParamsError(f"{name} is {value!r}. Expected one of: {', '.join(known)}.")
    if not path.exists():
        raise DataError(f"{path}: there is no such file or folder of regions.")
    if path.suffix == ".json":
        parts = read_json_boxes(path, data, box_form)
        provider, found = "file of boxes", {image_id: Found(*part) for image_id, part in parts.items()}
    elif path.suffix == ".pkl" and path.is_file():
        provider, found = "MViT", _of_stems(_read_query(path), data)
    elif path.is_dir():
        provider, found = _read_folder(path, data)
    else:
        raise DataError(f"{path}: expected .npz, .pkl, .json, or a folder; see {__name__} for what is read.")
    lacking = [record for record in data.images if record.image_id not in found]
    if lacking and (missing == "error" or len(lacking) == len(data)):
        raise DataError(
            f"{path}: nothing for image {lacking[0].image_id} ({lacking[0].path.name}); {len(lacking)} of {len(data)} "
            'images of the data are so. Give missing="empty" to take them as images without a region.'
        )
    return _region_set(path, data, found, provider, outside, clip, len(lacking))


def _region_set(
    path: Path,
    data: DetectionData,
    found: Mapping[int, Found],
    provider: str,
    outside: str,
    clip: Mapping[str, Any] | None,
    num_lacking: int,
) -> RegionSet:
    """Clip and count, and put into one set."""
    notes = {"degenerate": 0, "dropped": 0, "images_without_entry": num_lacking}
    dims = {one.embeddings.shape[1] for one in found.values() if one.embeddings is not None}
    if len(dims) > 1:
        raise DataError(f"{path}: embeddings of {sorted(dims)} dimensions. Expected one number.")
    outputs, has_classes = [], any(one.labels is not None for one in found.values())
    empty = Found(np.empty((0, 4)), np.empty(0))
    for record in data.images:
        one = _in_image(path, data, record, found.get(record.image_id, empty), provider, outside, notes)
        output = {"boxes": one.boxes, "scores": one.scores, "labels": one.labels}
        if dims:
            output["embeddings"] = one.embeddings if len(one.scores) else np.empty((0, *dims))
        outputs.append(output)
    if notes["degenerate"] or notes["dropped"] or num_lacking:
        logger.warning("%s: %s", path, ", ".join(f"{name}: {count}" for name, count in notes.items()))
    facts = {"provider": provider, "sees_novel": "unknown", "file": path.name, **notes}
    facts["class_names"] = list(data.class_names) if has_classes else []
    facts["clip"] = dict(clip or RELEASED_CLIP) if dims else None
    return RegionSet.from_images([record.image_id for record in data.images], outputs, facts)


def _in_image(
    path: Path,
    data: DetectionData,
    record: ImageRecord,
    found: Found,
    provider: str,
    outside: str,
    notes: dict[str, int],
) -> Found:
    boxes, scores = found.boxes, found.scores
    if not (np.isfinite(boxes).all() and np.isfinite(scores).all()):
        raise DataError(
            f"{path}: image {record.image_id} ({record.path.name}) has a box or score that is not finite."
        )
    has_extent = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
    clipped, is_in = clip_to_images(boxes, np.array([[record.width, record.height] * 2]))
    is_out = has_extent & ~is_in
    if is_out.any() and outside == "error":
        counts = f"{int(is_out.sum())} of the image's {len(boxes)}"
        message = outside_message(provider, data.name, record, boxes[is_out.argmax()], counts)
        raise DataError(f"{path}: {message}")
    notes["degenerate"] += int((~has_extent).sum())
    notes["dropped"] += int(is_out.sum())
    kept = has_extent & is_in
    columns = (clipped, scores, found.labels, found.embeddings)
    return Found(*(None if column is None else column[kept] for column in columns))


# ---------------------------------------------------------------------------------------------- pickles and texts


def _read_folder(path: Path, data: DetectionData) -> tuple[str, dict[int, Found]]:
    """Per-image files if there is one of any image, else a pickle a query."""
    records = _records_by_stem(data)
    files = {stem: file for stem in records if (file := _image_file(path, stem)) is not None}
    if not files:
        queries = sorted(one for one in path.glob("*.pkl") if one.name != "combined.pkl")
        if not queries:
            raise DataError(
                f"{path}: no file {next(iter(records), 'stem')}.pkl or .txt of any of the {len(data)} images of "
                f"{data.name}, and no pickle of a query. See {__name__} for what is read."
            )
        logger.info("%s: joining the queries %s", path, ", ".join(one.name for one in queries))
        return "MViT", _of_stems(_joined([_read_query(one) for one in queries]), data)
    found, kinds = {}, {}
    for stem, file in files.items():
        kind, found[records[stem].image_id] = _read_image_file(file, data)
        kinds.setdefault(kind, file)
    if len(kinds) > 1:
        named = ", ".join(f"{file.name} ({kind})" for kind, file in kinds.items())
        raise DataError(f"{path}: files of several forms: {named}. Expected one form in a folder.")
    return next(iter(kinds)), found


def _image_file(path: Path, stem: str) -> Path | None:
    places = (path, path / stem.split("_")[0])
    return next(
        (p / f"{stem}{end}" for p in places for end in (".pkl", ".txt") if (p / f"{stem}{end}").is_file()),
        None,
    )


def _read_image_file(file: Path, data: DetectionData) -> tuple[str, Found]:
    """The form of a per-image file, and what it says."""
    if file.suffix == ".txt":
        return "MViT", _parse_text(file)
    content = read_pickle(file)
    if isinstance(content, list):
        return "MViT, released RKD features", _parse_features(file, content)
    if isinstance(content, dict):
        return "MViT, released ILS boxes", _parse_classes(file, content, data)
    return "MViT", _parse_pair(file, content)


def _parse_text(file: Path) -> Found:
    rows = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        parts = line.split()
        try:
            _, score, *box = (float(part) for part in parts)
            if len(box) != 4:
                raise ValueError
        except ValueError:
            raise DataError(
                f"{file}: line {number} is {line!r}. Expected: label score x1 y1 x2 y2."
            ) from None
        rows.append((*box, score))
    table = np.array(rows, dtype=np.float64).reshape(-1, 5)
    return Found(table[:, :4], table[:, 4])


def _parse_pair(file: Path, content: Any) -> Found:
    """(boxes, scores); MViT's multi-crop output nests the pair and leaves the scores of all boxes beside it."""
    pair = content
    if _is_pair(pair) and _is_pair(pair[0]) and isinstance(pair[0], tuple):
        pair = pair[0]
    if not _is_pair(pair):
        raise DataError(f"{file}: found {type(content).__name__}. Expected a pair (boxes, scores).")
    boxes = _boxes(file, pair[0])
    return Found(boxes, _scores(file, pair[1], len(boxes)))


def _is_pair(content: Any) -> bool:
    return isinstance(content, tuple | list) and len(content) == 2


def _parse_features(file: Path, content: list) -> Found:
    if not all(_is_pair(one) for one in content):
        raise DataError(f"{file}: expected a list of pairs (box, embedding).")
    boxes = _boxes(file, [box for box, _ in content])
    embeddings = [np.asarray(embedding, dtype=np.float64).reshape(1, -1) for _, embedding in content]
    if len({one.shape for one in embeddings}) > 1 or any(not one.size for one in embeddings):
        raise DataError(f"{file}: embeddings of different lengths. Expected tensors of shape [1, d].")
    # the file has no scores, but an order
    return Found(boxes, np.ones(len(boxes)), None, np.concatenate(embeddings) if embeddings else None)


def _parse_classes(file: Path, content: dict, data: DetectionData) -> Found:
    label_of = {category: label for label, category in enumerate(data.category_ids)}
    boxes, scores, labels = [], [], []
    for category, pair in content.items():
        if category != SALIENT and category not in label_of:
            raise DataError(
                f"{file}: category {category!r} is none of {data.name}'s ({len(label_of)} ids, such as "
                f"{', '.join(map(str, data.category_ids[:5]))}). Expected the ids of its annotation file."
            )
        own = _parse_pair(file, pair)
        boxes.append(own.boxes)
        scores.append(own.scores)
        labels += [label_of.get(category, -1)] * len(own.scores)
    return Found(
        np.concatenate([np.empty((0, 4)), *boxes]),
        np.concatenate([np.empty(0), *scores]),
        np.array(labels, dtype=np.int64),
    )


def _boxes(file: Path, values: Any) -> np.ndarray:
    try:
        boxes = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(f"{file}: boxes that are no numbers ({error}).") from None
    if boxes.size and (boxes.ndim != 2 or boxes.shape[1] != 4):
        raise DataError(f"{file}: boxes of shape {boxes.shape}. Expected [m, 4].")
    return boxes.reshape(-1, 4)


def _scores(file: Path, values: Any, count: int) -> np.ndarray:
    try:
        scores = np.asarray(values, dtype=np.float64).reshape(-1)
    except (TypeError, ValueError) as error:
        raise DataError(f"{file}: scores that are no numbers ({error}).") from None
    if len(scores) != count:
        raise DataError(f"{file}: {len(scores)} scores for {count} boxes. Expected one each.")
    return scores


def _read_query(path: Path) -> dict[str, Found]:
    content = read_pickle(path)
    if not isinstance(content, dict) or not all(isinstance(stem, str) for stem in content):
        raise DataError(f"{path}: expected a dictionary from image stems to (boxes, scores), MViT's form.")
    return {stem: _parse_pair(path, pair) for stem, pair in content.items()}


def _joined(queries: list[dict[str, Found]]) -> dict[str, Found]:
    """The best of each query together, suppressed; an image need not be in all of them."""
    joined = {}
    for stem in dict.fromkeys(stem for query in queries for stem in query):
        parts = [query[stem] for query in queries if stem in query]
        best = [np.argsort(-part.scores, kind="stable")[:QUERY_TOP] for part in parts]
        boxes = np.concatenate([part.boxes[rows] for part, rows in zip(parts, best)])
        scores = np.concatenate([part.scores[rows] for part, rows in zip(parts, best)])
        kept = nms(torch.from_numpy(boxes), torch.from_numpy(scores), QUERY_NMS).numpy()
        joined[stem] = Found(boxes[kept], scores[kept])
    return joined


def _of_stems(found: Mapping[str, Found], data: DetectionData) -> dict[int, Found]:
    records = _records_by_stem(data)
    return {records[stem].image_id: one for stem, one in found.items() if stem in records}


def _records_by_stem(data: DetectionData) -> dict[str, ImageRecord]:
    records: dict[str, ImageRecord] = {}
    for record in data.images:
        stem = record.path.name.split(".")[0]
        if stem in records:
            raise DataError(
                f"{data.name}: {record.path} and {records[stem].path} have one stem, by which regions are looked up."
            )
        records[stem] = record
    return records
