"""What the smoke tests hold the studies' records to: re-scoring by hand from stored files, AP50 by pycocotools itself.

Nothing of `risf_core` computes here, but for reading the stored files.
"""

import contextlib
import io
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from risf_core.detections import Detections, Similarities
from tests.smoke_project import Smoke

CUT, BEST = 0.05, 100  # a detection counts above this score, if it is among so many of its image
BACKGROUND = "background"


def annotations(smoke: Smoke) -> Path:
    """The world's test annotations."""
    (path,) = smoke.root.glob("data/pictograms-*/annotations/test.json")
    return path


def stored(folder: Path, name: str, *, above: float = CUT) -> tuple[Detections, Similarities]:
    """The detections of a folder of artifacts that count, with their cosines."""
    found = Detections.load(folder / "detections" / f"{name}.npz")
    similarities = Similarities.load(folder / "similarities" / f"{name}.npz")
    counts = found.scores > above
    for image_id in np.unique(found.image_ids):
        own = np.flatnonzero(counts & (found.image_ids == image_id))  # in falling score
        counts[own[BEST:]] = False
    if len(similarities) == len(counts):  # else they are of what counts alone
        similarities = similarities.keep(counts)
    return found.keep(counts), similarities


def probabilities(cosines: Similarities, names: Sequence[str], *, temperature: float = 100.0) -> np.ndarray:
    """CLIP's softmax over some names and background, which comes last: [D, L]."""
    logits = temperature * cosines.columns((*names, BACKGROUND)).astype(np.float64)
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def label_probs(
    found: Detections, cosines: Similarities, names: Sequence[str], *, temperature: float = 100.0
) -> np.ndarray:
    """CLIP's probability of each detection's own class, for which the name at its place in ``names`` stands: [D]."""
    return probabilities(cosines, names, temperature=temperature)[np.arange(len(found)), found.labels]


def fused(scores: np.ndarray, probs: np.ndarray, *, c: float, fusion: str = "arithmetic") -> np.ndarray:
    """Both scores as one: their weighted mean, arithmetic or geometric."""
    scores = scores.astype(np.float64)
    return c * scores + (1 - c) * probs if fusion == "arithmetic" else scores**c * probs ** (1 - c)


def blended(found: Detections, probs: np.ndarray, **how) -> Detections:
    """The detections with both scores as one."""
    return replace(found, scores=fused(found.scores, probs, **how))


def entries_of(found: Detections, categories: dict[str, int]) -> list[dict]:
    """COCO's results list."""
    sides = np.concatenate([found.boxes[:, :2], found.boxes[:, 2:] - found.boxes[:, :2]], axis=1)
    ids = [categories[found.class_names[label]] for label in found.labels]
    rows = zip(found.image_ids.tolist(), ids, sides.tolist(), found.scores.tolist())
    return [dict(zip(("image_id", "category_id", "bbox", "score"), row)) for row in rows]


def ap50(
    smoke: Smoke,
    entries: Detections | list[dict],
    names: Sequence[str],
    *,
    images: int | None = None,
    area: tuple[float, float] = (0.0, 1e10),
) -> float:
    """AP50 in percent, the mean over those of the classes that have objects.

    ``images``: of the first so many; ``area``: of objects with an area (pixels) in this range.
    """
    content = json.loads(annotations(smoke).read_text())
    categories = {category["name"]: category["id"] for category in content["categories"]}
    if isinstance(entries, Detections):
        entries = entries_of(entries, categories)
    image_ids = [image["id"] for image in content["images"]][:images]
    if not entries:
        return 0.0
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(annotations(smoke))
        evaluation = COCOeval(coco, coco.loadRes(entries), "bbox")
        evaluation.params.catIds = [categories[name] for name in names]
        evaluation.params.imgIds = image_ids
        evaluation.params.areaRng, evaluation.params.areaRngLbl = [list(area)], ["all"]
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval["precision"][0, :, :, 0, -1]  # at an IoU of 0.5, for each recall and class
    return 100 * precision[precision > -1].mean()
