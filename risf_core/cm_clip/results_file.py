"""Re-score the results file of any detector: find its images, encode its boxes once, blend, compare."""

from __future__ import annotations

import json
import logging
import os
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from risf_core.cm_clip.clip import CMCLIP
from risf_core.cm_clip.encoding import embed_detections
from risf_core.cm_clip.scores import Fusion, fuse, label_probabilities
from risf_core.data.coco import load_coco
from risf_core.data.dataset import DetectionData, ImageRecord
from risf_core.data.loader import EXIF_ORIENTATION
from risf_core.detections import Detections
from risf_core.errors import DataError
from risf_core.evaluation import Evaluator
from risf_core.results_formats import ClassList, CocoResults, Results

logger = logging.getLogger(__name__)

MAX_PER_CLASS = 100  # detections of a class in an image that count: COCO's maxDets
NUMBER = re.compile(r"(?:.*_)?(\d+)")  # 000000000139, COCO_val2014_000000000139


def find_images(
    results: Results, images_dir: str | Path, annotations: str | Path | None = None
) -> tuple[list[ImageRecord], DetectionData | None]:
    """The image of each id of a results file, and the ground truth if there is one.

    Args:
        results: The results file.
        images_dir: Folder of the images; without annotations those below it are searched as well.
        annotations: COCO file that names the image of each id. None: an id is the name of a file (``000000000139.jpg``
            or ``139.jpg`` for 139; with or without ending for a text).

    Returns:
        One record for each of `results.image_keys`; the ground truth where the file holds annotations.

    Raises:
        DataError: If an id has no image or several, with what was looked for; if an image cannot be opened.
    """
    folder = Path(images_dir)
    if not folder.is_dir():
        raise DataError(f"{folder}: there is no such folder. Give the folder of the images with --images.")
    if annotations is None:
        paths = _paths_by_name(results, folder)
        return [_record(path, position) for position, path in enumerate(paths)], None
    path = Path(annotations)
    names, has_truth = _annotated_names(path)
    if has_truth:
        truth = load_coco(path, folder, drop_invalid=True)
        by_key: dict[int | str, ImageRecord] = {record.image_id: record for record in truth.images}
    else:
        truth = None
        by_key = {image_id: _record(folder / name, image_id) for image_id, name in names.items()}
    by_key |= {record.path.stem: record for record in tuple(by_key.values())}
    missing = [key for key in results.image_keys if key not in by_key]
    if missing:
        raise DataError(
            f"{results.where}: {len(missing)} of {len(results.image_keys)} image ids stand not in {path}, the first is "
            f"{missing[0]!r}. Expected the file that the detector's images came from."
        )
    return [by_key[key] for key in results.image_keys], truth


def _annotated_names(path: Path) -> tuple[dict[int, str], bool]:
    """File name by image id of a COCO file, and whether it holds annotations."""
    try:
        content = json.loads(path.read_bytes())
        return {entry["id"]: entry["file_name"] for entry in content["images"]}, bool(
            content.get("annotations")
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f'{path}: no COCO file ({error}). Expected {{"images": [{{"id", "file_name"}}, ...], ...}}.'
        ) from error


def _paths_by_name(results: Results, folder: Path) -> list[Path]:
    """The image file of each id, by its name."""
    endings = set(Image.registered_extensions())
    by_name: dict[str | int, list[Path]] = defaultdict(list)
    for parent, _, names in os.walk(folder, followlinks=True):
        for name in sorted(names):
            stem, ending = os.path.splitext(name)
            if ending.lower() in endings:
                number = NUMBER.fullmatch(stem)
                for key in {stem, name, int(number[1]) if number else stem}:
                    by_name[key].append(Path(parent, name))
    missing = [key for key in results.image_keys if not by_name.get(key)]
    if missing:
        key = missing[0]
        tried = f"{key:012d}.*, {key}.*, *_{key:012d}.*" if isinstance(key, int) else f"{key}, {key}.*"
        raise DataError(
            f"{results.where}: {len(missing)} of {len(results.image_keys)} images were not found; the first is "
            f"{key!r}. Looked for {tried} in {folder} and below. Give --annotations, a COCO file with their names."
        )
    several = [key for key in results.image_keys if len(by_name[key]) > 1]
    if several:
        found = ", ".join(map(str, by_name[several[0]][:3]))
        raise DataError(
            f"{results.where}: image {several[0]!r} may be any of {found}. Give --annotations, a COCO file with the "
            "names, or a folder without the others."
        )
    return [by_name[key][0] for key in results.image_keys]


def _record(path: Path, image_id: int) -> ImageRecord:
    """An image without objects, at its upright size, which is read without decoding."""
    try:
        with Image.open(path) as file:
            width, height = file.size
            if file.getexif().get(EXIF_ORIENTATION, 1) >= 5:  # lies on its side
                width, height = height, width
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"image {path} cannot be opened: {error}. Expected a whole image file.") from error
    none = np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, bool)
    return ImageRecord(image_id, path, height, width, *none)


def rescorable(
    results: Results,
    records: Sequence[ImageRecord],
    labels: Sequence[int],
    *,
    score_thresh: float,
    top: int | None = None,
) -> tuple[np.ndarray, np.ndarray, dict[str, int]]:
    """Which entries are re-scored, by the first reason that speaks against it.

    Args:
        labels: The classes that are re-scored.
        score_thresh: Entries at or below it are not.
        top: Nor are those behind the best so many of an image, all classes together; None: no limit.

    Returns:
        bool [N]; the boxes cut to their images, float32 [N, 4]; how many entries there are, are of other classes, below
        the threshold, not among the best, empty, outside their image, re-scored; and how many repeat another one.
    """
    sizes = np.array([(record.width, record.height) for record in records], dtype=np.float64).reshape(-1, 2)
    limits = np.tile(sizes[results.images], 2)  # [N, 4]
    boxes = np.clip(results.boxes, 0, limits).astype(np.float32)
    reasons = {
        "other_class": ~np.isin(results.labels, labels),
        "low_score": ~(results.scores > score_thresh),
        "not_top": _ranks(results.scores, results.images) >= (len(results) if top is None else top),
        "empty": (results.boxes[:, 2:] <= results.boxes[:, :2]).any(axis=1),
        "outside": (boxes[:, 2:] <= boxes[:, :2]).any(axis=1),
    }
    wanted, counts = np.ones(len(results), dtype=bool), {"entries": len(results)}
    for name, speaks_against in reasons.items():
        counts[name] = int((wanted & speaks_against).sum())
        wanted &= ~speaks_against
    counts["rescored"] = int(wanted.sum())
    rows = np.column_stack([results.images, results.labels, results.boxes, results.scores])
    rows = rows[np.lexsort(rows.T)]
    counts["repeated"] = int((rows[1:] == rows[:-1]).all(axis=1).sum())
    return wanted, boxes, counts


def _ranks(scores: np.ndarray, *groups: np.ndarray) -> np.ndarray:
    """Place of each entry in its group, the best score first, then the order of the file: int64 [N]."""
    order = np.lexsort((-scores, *groups))
    changes = np.zeros(len(order), dtype=bool)
    for group in groups:
        changes[1:] |= group[order][1:] != group[order][:-1]
    starts = np.maximum.accumulate(np.where(changes, np.arange(len(order)), 0))
    ranks = np.empty(len(order), dtype=np.int64)
    ranks[order] = np.arange(len(order)) - starts
    return ranks


def to_detections(
    results: Results,
    records: Sequence[ImageRecord],
    classes: ClassList,
    rows: np.ndarray,
    *,
    boxes: np.ndarray | None = None,
    scores: np.ndarray | None = None,
) -> Detections:
    """Entries as detections whose `proposals` are their places in the file.

    Args:
        rows: int64 [n], the entries.
        boxes: float32 [N, 4] in place of the file's.
        scores: float64 [N] in place of the file's.

    Returns:
        Detections; class scores, which no results file holds, are zeros.
    """
    scores = (results.scores if scores is None else scores).astype(np.float32)
    boxes = (results.boxes if boxes is None else boxes).astype(np.float32)
    image_ids = np.array([record.image_id for record in records], dtype=np.int64)[results.images]
    # in the order of `Detections`, so that the zeros below are never copied
    rows = rows[np.lexsort((rows, -scores[rows], image_ids[rows]))]
    zeros = np.broadcast_to(np.float32(0), (len(rows), len(classes.names) + 1))
    columns = image_ids[rows], boxes[rows], scores[rows], results.labels[rows], zeros, rows
    return Detections(*columns, classes.names)


def rescore_results(
    results: Results,
    records: Sequence[ImageRecord],
    classes: ClassList,
    clip: CMCLIP,
    *,
    c: float = 0.7,
    fusion: Fusion = "arithmetic",
    score_thresh: float = 0.05,
    top: int | None = None,
    share: str = "none",
    budget: int | None = None,
    journal: Path | None = None,
) -> tuple[np.ndarray, dict[str, int]]:
    """New scores of a results file, in its order.

    Args:
        results: The results file.
        records: An image for each of `results.image_keys`.
        classes: The detector's classes; those of `clip.class_names` are re-scored.
        clip: The CLIP, its label space and temperature.
        c: Weight of the detector's score.
        fusion: How two scores become one; see `fuse`.
        score_thresh: Entries at or below it keep their score.
        top: Only the best of an image are re-scored; None: all.
        share: Which boxes share a crop; see `choose_crops`.
        budget: The most crops of an image; an entry without one keeps its score.
        journal: Folder of the encoded crops; see `embed_detections`.

    Returns:
        Scores float64 [N], the file's own where nothing is re-scored; the counts of `rescorable` and `choose_crops`.
    """
    labels = [classes.names.index(name) for name in clip.class_names]
    wanted, boxes, counts = rescorable(results, records, labels, score_thresh=score_thresh, top=top)
    found = to_detections(results, records, classes, np.flatnonzero(wanted), boxes=boxes)
    data = DetectionData(str(results.where), classes.names, classes.ids, tuple(records))
    embeddings = embed_detections(
        found,
        data,
        clip,
        score_thresh=-1.0,
        share=share,
        budget=budget,
        desc="encoding crops",
        journal=journal,
    )
    encoded, probs = label_probabilities(
        found,
        embeddings.similarities(clip.text_embeds_norm, clip.label_space),
        temperature=clip.temperature,
        label_space=clip.label_space,
        score_thresh=-1.0,
        not_encoded="refuse" if budget is None else "keep",
    )
    scores = results.scores.copy()
    rows = found.proposals[encoded]
    scores[rows] = fuse(scores[rows], probs.astype(np.float64), c=c, fusion=fusion)
    made = {name: embeddings.counts[name] for name in ("equal", "shared", "dropped", "encoded")}
    return scores, counts | made | {"rescored": counts["rescored"] - made["dropped"]}


def match_truth(results: Results, classes: ClassList, truth: DetectionData) -> DetectionData:
    """The ground truth with the detector's classes, by category id (VOC's files: by name), under the detector's names.

    Names may differ, so that a prompt can say "television" where the file says "tv".

    Raises:
        DataError: If a class is not there, or two names have changed places.
    """
    name_of = dict(zip(truth.category_ids, truth.class_names))
    if not isinstance(results, CocoResults):
        return truth.select_classes(classes.names)
    for name, category_id in zip(*classes):
        known = name_of.get(category_id)
        if known is None or (known != name and name in truth.class_names):
            there = "no class" if known is None else repr(known)
            raise DataError(
                f"{truth.name}: category id {category_id} is {there}, but {name!r} in the list of classes. Expected "
                "the same ids: give --classes a file with `id name` lines."
            )
    own = truth.select_classes([name_of[category_id] for category_id in classes.ids])
    return replace(own, class_names=classes.names)


def compare(
    results: Results,
    records: Sequence[ImageRecord],
    classes: ClassList,
    scores: np.ndarray,
    truth: DetectionData,
    rescored_classes: Sequence[str],
) -> tuple[dict, dict]:
    """COCO's AP of a results file with its own scores and with new ones, all and re-scored classes (``nAP``).

    As pycocotools: the best 100 of each class in an image count. `truth` is what `match_truth` gives.
    """
    groups = {"new scores": tuple(rescored_classes)}
    evaluator = Evaluator(truth, groups=groups, max_dets=max(1, len(results)))
    sides = []
    for side in (results.scores, scores):
        rows = np.flatnonzero(_ranks(side, results.images, results.labels) < MAX_PER_CLASS)
        sides.append(evaluator.evaluate(to_detections(results, records, classes, rows, scores=side)))
    return sides[0], sides[1]
