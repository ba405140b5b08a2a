"""Re-score the results file of any detector: encode its boxes once, blend, compare."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from risf_core.cm_clip.clip import CMCLIP
from risf_core.cm_clip.encoding import embed_detections
from risf_core.cm_clip.scores import Fusion, fuse, label_probabilities
from risf_core.data.dataset import DetectionData, ImageRecord
from risf_core.detections import Detections
from risf_core.errors import DataError
from risf_core.evaluation import Evaluator
from risf_core.results_formats import ClassList, CocoResults, Results

MAX_PER_CLASS = 100  # detections of a class in an image that count: COCO's maxDets


def candidates(
    results: Results, labels: Sequence[int], *, score_thresh: float, top: int | None = None
) -> np.ndarray:
    """Which entries may be re-scored, as far as the file alone tells: bool [N]; arguments as in `rescorable`."""
    return ~np.any(list(_reasons(results, labels, score_thresh, top).values()), axis=0)


def _reasons(
    results: Results, labels: Sequence[int], score_thresh: float, top: int | None
) -> dict[str, np.ndarray]:
    """Which entries each reason speaks against, bool [N]."""
    return {
        "other_class": ~np.isin(results.labels, labels),
        "low_score": ~(results.scores > score_thresh),
        "not_top": _ranks(results.scores, results.images) >= (len(results) if top is None else top),
        "empty": (results.boxes[:, 2:] <= results.boxes[:, :2]).any(axis=1),
    }


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
    reasons = _reasons(results, labels, score_thresh, top)
    reasons["outside"] = (boxes[:, 2:] <= boxes[:, :2]).any(axis=1)
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
