"""CM-CLIP and its evaluation on the stored boxes of any detector: cosines once, then every c and fusion."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from risf_core.ablations import PAPER_SPACE
from risf_core.cm_clip import CMCLIP, encode_detections
from risf_core.cm_clip.scores import label_probabilities, label_space_names
from risf_core.data.benchmark import open_benchmark
from risf_core.data.dataset import DetectionData
from risf_core.data.loader import ImageCache
from risf_core.detections import MAX_DETECTIONS, Detections, Similarities
from risf_core.evaluation import Evaluator
from risf_core.fine_tuning import build_cm_clip, note_clip, open_clip_source
from risf_core.score_sweeps import ScoreSweep, sweep_c
from risf_core.studies.stored_cells import novel_metrics
from risf_core.study_params import OtherDetectorsParams


class Classes(NamedTuple):
    """The classes that are re-scored; no others compete in the paper's label space."""

    novel_names: tuple[str, ...]
    base_names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Scene:
    """Test data of the classes that are re-scored, their evaluator, and CM-CLIP."""

    test: DetectionData
    evaluator: Evaluator
    clip: CMCLIP


@dataclass(frozen=True)
class CellBoxes:
    """A cell's detections as stored, those of them that count (above ``score_thresh``), and the cosines of these."""

    found: Detections
    counting: Detections
    cosines: Similarities
    score_thresh: float


class Rescoring:
    """CM-CLIP and its evaluation, the same for the boxes of every detector."""

    def __init__(self, params: OtherDetectorsParams, run) -> None:
        self.params, self.run, self.images = params, run, ImageCache()
        _, self._loaded = open_clip_source(params.clip, run, device=run.device, seed=params.seed)
        self._splits: dict[int, Scene] = {}
        self.grid = sorted({*params.c, params.cm_clip.c, 1.0})

    def scene(self, test: DetectionData) -> Scene:
        """Test data with their evaluator and a CM-CLIP for their classes."""
        names = test.class_names
        evaluator = Evaluator(test, groups={"novel": names}, max_dets=MAX_DETECTIONS)
        clip = build_cm_clip(self._loaded, Classes(names), self.params.cm_clip)
        note_clip(clip, self.run)
        return Scene(test, evaluator, clip)

    def split(self, number: int) -> Scene:
        """The novel test data of a split, opened once."""
        if number not in self._splits:
            benchmark = open_benchmark(self.params.data, split=number)
            self._splits[number] = self.scene(benchmark.test.select_classes(benchmark.novel_names))
        return self._splits[number]

    def is_done(self, key: dict) -> bool:
        """Whether every row of a cell is there."""
        last = {"fusion": self.params.fusions[-1], "c": self.grid[-1]}
        return self.run.rows.done(part="re-scored", **key, **last)

    def encode(self, key: dict, scene: Scene, counting: Detections, score_thresh: float) -> Similarities:
        """The cosines of a cell's boxes that count; stored, so that they are computed once."""
        path = self.run.dir / "similarities" / f"{cell_stem(key)}.npz"
        if not path.exists():
            options = {"score_thresh": score_thresh, "cache": self.images}
            if key["seed"] is None:  # a results file may be large: what is encoded survives a kill
                options["journal"] = self.run.dir / "journal" / cell_stem(key)
            encode_detections(counting, scene.test, scene.clip, **options).save(path)
        return Similarities.load(path)

    def add_rows(self, key: dict, scene: Scene, boxes: CellBoxes) -> None:
        """The rows of a cell: what its scores are like, and nAP at each c and fusion.

        Args:
            key: ``detector``, ``split``, ``shots``, ``seed``.
            scene: Of its split or results file.
            boxes: Its own.
        """
        rows, options = self.run.rows, self.options(scene, boxes)
        if not rows.done(part="scores", **key):
            _, label_probs = label_probabilities(boxes.counting, boxes.cosines, **options)
            uncut = novel_metrics(scene.evaluator.evaluate(boxes.found))
            facts = {"score_thresh": boxes.score_thresh, "uncut": uncut}
            facts |= score_facts(boxes.counting, label_probs, num_images=len(scene.test))
            rows.add({"part": "scores"} | key, facts)
        sweep = ScoreSweep(scene.evaluator, boxes.counting)
        for fusion in self.params.fusions:
            metrics = sweep_c(sweep, boxes.cosines, c=self.grid, fusion=fusion, **options)
            for c, values in zip(self.grid, metrics, strict=True):
                row = {"part": "re-scored"} | key | {"fusion": fusion, "c": c}
                if not rows.done(**row):
                    rows.add(row, novel_metrics(values))

    def options(self, scene: Scene, boxes: CellBoxes) -> dict:
        """What every re-scoring of a cell shares: the paper's label space and temperature, and the cell's cut."""
        space = label_space_names(PAPER_SPACE, novel_names=scene.test.class_names)
        temperature = scene.clip.temperature
        return {"temperature": temperature, "label_space": space, "score_thresh": boxes.score_thresh}


def score_facts(detections: Detections, label_probs: np.ndarray, *, num_images: int) -> dict[str, float]:
    """What decides how much a blend moves ranks: how many boxes, how high and how far apart their two scores are."""
    scores = detections.scores
    quartiles = [np.percentile(values, [25, 50, 75]) for values in (scores, label_probs) if len(values)]
    facts = {"per_image": len(scores) / num_images}
    for name, (low, middle, high) in zip(("score", "probability"), quartiles):
        facts |= {f"{name}_median": float(middle), f"{name}_spread": float(high - low)}
    return facts


def cell_stem(key: dict) -> str:
    """File name (without ending) of a cell's stored detections and cosines."""
    if key["seed"] is None:
        return f"file-{re.sub('[^A-Za-z0-9._-]', '_', key['detector'])}-split{key['split']}"
    return f"{key['detector']}-split{key['split']}-{key['shots']}shot-seed{key['seed']}"
