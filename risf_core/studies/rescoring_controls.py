"""Where CM-CLIP's gain comes from: controls on the stored boxes of the paper's setting, and the gain by object size."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from risf_core.clip_models import load_clip
from risf_core.cm_clip import BACKGROUND, CMCLIP, embed_detections, rescore, rescored_rows
from risf_core.cm_clip.scores import label_probabilities
from risf_core.data.benchmark import Benchmark
from risf_core.data.dataset import DetectionData
from risf_core.data.loader import ImageCache
from risf_core.detections import Detections, Similarities
from risf_core.fine_tuning import build_cm_clip, open_clip_source
from risf_core.progress import progress
from risf_core.studies.grid_ap50 import EVERY_AREA, GridAP50
from risf_core.studies.stored_cells import (
    METRICS,
    Splits,
    StoredCell,
    check_same_clip,
    novel_metrics,
    stored_cells,
)
from risf_core.study_params import RescoringControlsParams


def run_controls(params: RescoringControlsParams, run) -> None:
    """Rows of part "control" and "size" for every stored cell; a killed run goes on by row.

    The stored cosines serve all controls but those that need other crops or another CLIP, which are made for the K of
    ``encoded_shots``.
    """
    options = {"arm": params.arm, "loss": params.loss, "seeds": params.seeds}
    cells = stored_cells(run.upstreams("fine_tuning"), **options)
    splits, images = Splits(), ImageCache()
    _, clip = open_clip_source(params.clip, run, device=run.device, seed=params.seed)
    for cell in progress(cells, desc="controls", total=len(cells)):
        check_same_clip(cell, params.clip, params.cm_clip)
        benchmark, test, evaluator = splits.get(cell)
        found, similarities = cell.with_similarities()
        controls = _Controls(params, benchmark, found)
        for name, scores in controls.stored(similarities):
            key = {"part": "control", **cell.key, "control": name}
            if not run.rows.done(**key):
                judged = [novel_metrics(evaluator.evaluate(found.with_scores(one))) for one in scores]
                run.rows.add(key, {name: float(np.mean([one[name] for one in judged])) for name in METRICS})
        _add_sizes(params, run, cell, benchmark, test, controls.paper(similarities))
        if cell.key["shots"] not in params.encoded_shots:
            continue
        for name in (*(f"jitter {jitter:g}" for jitter in params.jitters), "random-weight CLIP"):
            key = {"part": "control", **cell.key, "control": name}
            if not run.rows.done(**key):
                loaded = clip
                if name == "random-weight CLIP":  # another draw of weights for each seed
                    loaded = load_clip(clip.info.name, None, device=run.device, seed=cell.key["seed"])
                jitter = float(name.removeprefix("jitter ")) if name.startswith("jitter") else 0.0
                cm_clip = build_cm_clip(loaded, benchmark, params.cm_clip)
                scores = controls.encoded(cm_clip, test, jitter=jitter, seed=cell.key["seed"], cache=images)
                run.rows.add(key, novel_metrics(evaluator.evaluate(found.with_scores(scores))))


class _Controls:
    """New scores of stored detections by each control, with the paper's softmax over novel names and background."""

    def __init__(self, params: RescoringControlsParams, benchmark: Benchmark, found: Detections) -> None:
        self.settings, self.found = params.cm_clip, found
        self.names = benchmark.novel_names
        self.space = (*benchmark.novel_names, BACKGROUND)
        self.options = {
            "temperature": self.settings.temperature,
            "label_space": self.space,
            "rescored_classes": benchmark.novel_names,
            "score_thresh": self.settings.score_thresh,
        }

    def stored(self, similarities: Similarities) -> Iterator[tuple[str, list[np.ndarray]]]:
        """Controls from stored cosines: name and one or several score vectors, whose metrics are averaged.

        "permuted names": every class is given another's name, once for each cyclic shift of the list.
        "background only": 1 - p(background), whatever the class.
        """
        yield "none", [self.found.scores]
        yield "paper", [self.paper(similarities)]
        shifts = range(1, len(self.names))
        if len(shifts):
            yield "permuted names", [self._rescored(self._permuted(similarities, shift)) for shift in shifts]
        rows = rescored_rows(self.found, self.names, self.settings.score_thresh)
        # as the label of every detection, background itself
        as_background = _softmax(self.settings.temperature * similarities.columns(self.space)[rows])[:, -1]
        yield "background only", [self._blend(rows, 1 - as_background)]

    def paper(self, similarities: Similarities) -> np.ndarray:
        """The paper's re-scoring, float32 [D]."""
        return self._rescored(similarities)

    def _permuted(self, similarities: Similarities, shift: int) -> Similarities:
        """The cosines with the novel names moved on by ``shift`` places."""
        shifted = tuple(np.roll(self.names, shift).tolist())
        cosines = similarities.columns((*shifted, BACKGROUND))
        return Similarities(cosines, similarities.encoded, self.space)

    def _rescored(self, similarities: Similarities) -> np.ndarray:
        return self._blend(*label_probabilities(self.found, similarities, **self.options))

    def _blend(self, rows: np.ndarray, label_probs: np.ndarray) -> np.ndarray:
        scores = self.found.scores.copy()
        scores[rows] = rescore(scores[rows], label_probs, c=self.settings.c)
        return scores

    def encoded(
        self, clip: CMCLIP, data: DetectionData, *, jitter: float, seed: int, cache: ImageCache
    ) -> np.ndarray:
        """Scores by crops that are encoded anew, of boxes moved by noise if ``jitter`` is above 0: float32 [D].

        The detections' own boxes stay as they are.
        """
        boxes = jittered(self.found, data, jitter, seed=seed)
        options = {"score_thresh": self.settings.score_thresh, "rescored_classes": self.names}
        embeddings = embed_detections(replace(self.found, boxes=boxes), data, clip, cache=cache, **options)
        return self._rescored(embeddings.similarities(clip.text_embeds_norm, clip.label_space))


def _softmax(logits: np.ndarray) -> np.ndarray:
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True, initial=-np.inf))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def jittered(detections: Detections, data: DetectionData, jitter: float, *, seed: int) -> np.ndarray:
    """Boxes whose edges are moved by Gaussian noise, within the image and at least a pixel wide: float32 [D, 4].

    Args:
        detections: Their boxes.
        data: Their images.
        jitter: Standard deviation, as a fraction of the box's width or height; 0 changes nothing.
        seed: Of the noise.
    """
    if jitter == 0.0:
        return detections.boxes
    sizes = {record.image_id: (record.width, record.height) for record in data.images}
    limits = np.tile(np.array([sizes[i] for i in detections.image_ids.tolist()]).reshape(-1, 2), 2)  # [D, 4]
    sides = np.tile(detections.boxes[:, 2:] - detections.boxes[:, :2], 2)
    noise = np.random.default_rng([seed, len(detections)]).normal(0.0, jitter, detections.boxes.shape)
    corners = np.sort((detections.boxes + noise * sides).reshape(-1, 2, 2), axis=1).reshape(-1, 4)
    near = np.clip(corners, 0, limits - 1)[:, :2]
    far = np.maximum(np.clip(corners, 0, limits)[:, 2:], near + 1)
    return np.concatenate([near, far], axis=1).astype(np.float32)


def size_ranges(data: DetectionData, count: int) -> list[tuple[float, float]]:
    """Area ranges in pixels that hold equally many of the objects of all classes, smallest first."""
    boxes = data.flat.boxes[~data.flat.is_crowd]
    areas = (boxes[:, 2:] - boxes[:, :2]).astype(np.float64).prod(axis=1)
    inner = np.quantile(areas, [place / count for place in range(1, count)]).tolist() if len(areas) else []
    bounds = [EVERY_AREA[0], *inner, EVERY_AREA[1]]
    return list(zip(bounds[:-1], bounds[1:]))


def _add_sizes(
    params: RescoringControlsParams,
    run,
    cell: StoredCell,
    benchmark: Benchmark,
    test: DetectionData,
    rescored: np.ndarray,
) -> None:
    """AP50 within each size of objects, without and with CM-CLIP."""
    found = cell.detections()
    for place, (low, high) in enumerate(size_ranges(benchmark.test, params.num_sizes), start=1):
        key = {"part": "size", **cell.key, "size": place}
        if run.rows.done(**key):
            continue
        judge = GridAP50(found, test, area_range=(low, high))
        without, with_clip = judge.mean(np.stack([found.scores, rescored])).tolist()
        upper = high if high < EVERY_AREA[1] else None
        values = {"area_from": low, "area_to": upper, "objects": judge.num_objects}
        run.rows.add(key, values | {"without": without, "with": with_clip, "gain": with_clip - without})
