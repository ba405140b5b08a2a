"""Does CM-CLIP help other detectors? One-stage detectors trained here, the two-stage one beside them, any results file.

Each detector's boxes are stored once; each weight c is then arithmetic. c is chosen for each detector on one split and
reported on the others (`chosen_c`).
"""

from __future__ import annotations

import itertools
import logging
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from risf_core.cm_clip import CMCLIP, encode_detections
from risf_core.cm_clip.scores import label_probabilities, label_space_names
from risf_core.data.benchmark import Benchmark, open_benchmark
from risf_core.data.dataset import DetectionData
from risf_core.data.loader import ImageCache
from risf_core.detections import MAX_DETECTIONS, Detections, Similarities, cut
from risf_core.detector.checkpoints import read_checkpoint, save_checkpoint
from risf_core.errors import ParamsError
from risf_core.evaluation import Evaluator
from risf_core.fine_tuning import build_cm_clip, open_clip_source
from risf_core.params import BaseTrainingParams
from risf_core.precision import resolve_precision
from risf_core.progress import progress
from risf_core.score_sweeps import ScoreSweep, sweep_c
from risf_core.studies.one_stage import (
    Kind,
    OneStage,
    build_one_stage,
    detect_from_maps,
    load_backbone,
    neck_maps,
    set_trainable,
    start_few_shot,
    train_base,
    train_few_shot,
)
from risf_core.studies.stored_cells import StoredCell, novel_metrics, stored_cells
from risf_core.study_params import OtherDetectorsParams
from risf_core.training import seed_everything, step_seed

log = logging.getLogger(__name__)

TWO_STAGE = "faster_rcnn"
PAPER_SPACE = "novel+background"
BASE_METRICS = ("bAP", "bAP50", "bAP75")


def study_other_detectors(params: OtherDetectorsParams, run) -> list[dict]:
    """All rows of the study; a killed run goes on where it was.

    Rows of part "base" hold a one-stage detector's AP on the base classes; of part "scores" what a cell (detector,
    split, K, seed) gives to CM-CLIP; of part "re-scored" its nAP at one c and fusion. c = 1 is the detector alone.
    Detections and cosines go to ``run.dir``, as those of 20_fine_tuning do.
    """
    rescoring = Rescoring(params, run)
    for upstream in run.upstreams("base"):
        for kind in params.detectors:
            _one_stage_cells(rescoring, upstream, kind)
    cells = (
        stored_cells(run.upstreams("fine_tuning"), arm="kshot", loss="ce", seeds=params.seeds)
        if params.fine_tuning
        else []
    )
    for cell in progress(cells, desc="two-stage cells", total=len(cells)):
        if cell.key["shots"] in params.shots:
            _two_stage_cell(rescoring, cell)
    return run.rows.as_list()


@dataclass(frozen=True)
class SplitData:
    """A benchmark with its novel test data, their evaluator, and CM-CLIP."""

    benchmark: Benchmark
    test: DetectionData
    evaluator: Evaluator
    clip: CMCLIP


class Rescoring:
    """CM-CLIP and its evaluation, the same for the boxes of every detector."""

    def __init__(self, params: OtherDetectorsParams, run) -> None:
        self.params, self.run, self.images = params, run, ImageCache()
        _, self._loaded = open_clip_source(params.clip, run, device=run.device, seed=params.seed)
        self._splits: dict[int, SplitData] = {}
        self.grid = sorted({*params.c, params.cm_clip.c, 1.0})

    def split(self, number: int) -> SplitData:
        """The data of a split, opened once."""
        if number not in self._splits:
            benchmark = open_benchmark(self.params.data, split=number)
            names = benchmark.novel_names
            test = benchmark.test.select_classes(names)
            evaluator = Evaluator(test, groups={"novel": names}, max_dets=MAX_DETECTIONS)
            clip = build_cm_clip(self._loaded, benchmark, self.params.cm_clip)
            self._splits[number] = SplitData(benchmark, test, evaluator, clip)
        return self._splits[number]

    def is_done(self, key: dict) -> bool:
        """Whether every row of a cell is there."""
        last = {"fusion": self.params.fusions[-1], "c": self.grid[-1]}
        return self.run.rows.done(part="re-scored", **key, **last)

    def encode(self, key: dict, found: Detections, score_thresh: float) -> Similarities:
        """The cosines of a cell's boxes that count; stored, so that they are computed once."""
        path = self.run.dir / "similarities" / f"{cell_stem(key)}.npz"
        if not path.exists():
            split = self.split(key["split"])
            counting, _ = cut(found, None, score_thresh=score_thresh)
            options = {"score_thresh": score_thresh, "cache": self.images}
            encode_detections(counting, split.test, split.clip, **options).save(path)
        return Similarities.load(path)

    def add_rows(
        self, key: dict, found: Detections, counting: Detections, cosines: Similarities, score_thresh: float
    ) -> None:
        """The rows of a cell: what its scores are like, and nAP at each c and fusion.

        Args:
            key: ``detector``, ``split``, ``shots``, ``seed``.
            found: Its detections as stored.
            counting: Those that count, and
            cosines: theirs.
            score_thresh: What they were cut at.
        """
        rows, split = self.run.rows, self.split(key["split"])
        sweep = ScoreSweep(split.evaluator, counting)
        options = {
            "temperature": self.params.cm_clip.temperature,
            "label_space": label_space_names(PAPER_SPACE, novel_names=split.benchmark.novel_names),
            "score_thresh": score_thresh,
        }
        if not rows.done(part="scores", **key):
            _, label_probs = label_probabilities(counting, cosines, **options)
            facts = {"score_thresh": score_thresh, "uncut": novel_metrics(split.evaluator.evaluate(found))}
            facts |= score_facts(counting, label_probs, num_images=len(split.test))
            rows.add({"part": "scores"} | key, facts)
        for fusion in self.params.fusions:
            metrics = sweep_c(sweep, cosines, c=self.grid, fusion=fusion, **options)
            for c, values in zip(self.grid, metrics, strict=True):
                row = {"part": "re-scored"} | key | {"fusion": fusion, "c": c}
                if not rows.done(**row):
                    rows.add(row, novel_metrics(values))


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
    return f"{key['detector']}-split{key['split']}-{key['shots']}shot-seed{key['seed']}"


def _two_stage_cell(rescoring: Rescoring, cell: StoredCell) -> None:
    key = {name: cell.key[name] for name in ("split", "shots", "seed")}
    key = {"detector": TWO_STAGE} | key
    if rescoring.is_done(key):
        return
    if cell.tuned.clip != rescoring.params.clip:
        raise ParamsError(
            f"{cell.run_id}: its cosines are of another CLIP than that of this study. Name the same one under clip."
        )
    found = Detections.load(cell.folder / "detections" / f"{cell.name}.npz")
    counting, cosines = cell.with_similarities()
    rescoring.add_rows(key, found, counting, cosines, cell.tuned.score_thresh)


def _one_stage_cells(rescoring: Rescoring, upstream, kind: Kind) -> None:
    """Base training of a one-stage detector on the split of a base model, then every K and seed."""
    params, run = rescoring.params, rescoring.run
    base = BaseTrainingParams.model_validate(upstream.record["params"])
    cells = itertools.product(params.shots, params.seeds)
    keys = [{"detector": kind, "split": base.split, "shots": k, "seed": seed} for k, seed in cells]
    keys = [key for key in keys if not rescoring.is_done(key)]
    base_key = {"part": "base", "detector": kind, "split": base.split}
    if not keys and run.rows.done(**base_key):
        return
    trainer = OneStageTraining(params, run, rescoring.split(base.split).benchmark, base, kind)
    state = trainer.base_state(upstream)
    if not run.rows.done(**base_key):
        run.rows.add(base_key, trainer.evaluate_base(state))
    thresh = params.score_threshs[kind]
    for key in progress(keys, desc=f"{kind}, split {base.split}", total=len(keys)):
        path = run.dir / "detections" / f"{cell_stem(key)}.npz"
        if not path.exists():
            trainer.fine_tune(state, key["shots"], key["seed"]).save(path)
        found = Detections.load(path)
        cosines = rescoring.encode(key, found, thresh)
        counting, _ = cut(found, None, score_thresh=thresh)
        rescoring.add_rows(key, found, counting, cosines, thresh)


class OneStageTraining:
    """Base training and K-shot fine-tuning of one one-stage detector on one split."""

    def __init__(
        self, params: OtherDetectorsParams, run, benchmark: Benchmark, base: BaseTrainingParams, kind: Kind
    ) -> None:
        self.params, self.run, self.benchmark, self.base, self.kind = params, run, benchmark, base, kind
        self._test_maps: Tensor | None = None

    def _build(self, num_classes: int, seed: int) -> OneStage:
        seed_everything(step_seed(seed, -2))
        options = self.base.detector, self.params.one_stage, num_classes, self.params.data.image_size
        return build_one_stage(self.kind, *options).to(self.run.device)

    def base_state(self, upstream) -> dict[str, Tensor]:
        """The weights after base training, which goes on from its last checkpoint; kept in ``run.dir``."""
        name = f"{self.kind}-split{self.base.split}"
        path = self.run.dir / f"{name}.pth"
        if not path.exists():
            model = self._build(len(self.benchmark.base_names), self.params.seed)
            load_backbone(model, read_checkpoint(upstream.dir / "model.pth")["model"])
            solver = self.params.one_stage.base_solver
            dtype = resolve_precision(solver.precision, torch.device(self.run.device))
            self.run.environment["training_precision"] = str(dtype).removeprefix("torch.")
            train_base(
                model,
                self.benchmark.base_train,
                solver,
                seed=self.params.seed,
                desc=f"{self.kind}, base training on split {self.base.split}",
                checkpoint=self.run.dir / f"{name}-checkpoint.pth",
            )
            save_checkpoint(path, {"model": model.state_dict()})
        return read_checkpoint(path)["model"]

    def evaluate_base(self, state: dict[str, Tensor]) -> dict:
        """AP of the base classes on the test images."""
        names = self.benchmark.base_names
        model = self._build(len(names), self.params.seed)
        model.load_state_dict(state)
        test = self.benchmark.test.select_classes(names)
        maps = neck_maps(model, test, desc=f"{self.kind}, test images")
        found, _ = cut(
            detect_from_maps(model, maps, test), None, score_thresh=self.params.score_threshs[self.kind]
        )
        metrics = Evaluator(test, groups={"base": names}, max_dets=MAX_DETECTIONS).evaluate(found)
        return {name: metrics[name] for name in BASE_METRICS}

    def fine_tune(self, state: dict[str, Tensor], shots: int, seed: int) -> Detections:
        """Train the heads for the novel classes on one draw; detections of the test images as stored."""
        names = self.benchmark.novel_names
        model = self._build(len(names), seed)
        start_few_shot(model, state, seed=seed)
        if self._test_maps is None:  # neither backbone nor neck is changed by fine-tuning
            test = self.benchmark.test
            self._test_maps = neck_maps(model, test, desc=f"{self.kind}, test images")
        data = self.benchmark.few_shot(shots, seed)
        maps = neck_maps(model, data, mirrored=True, desc=f"{self.kind}, K-shot images")
        set_trainable(model, self.params.one_stage.trainable)
        train_few_shot(
            model,
            data,
            maps,
            self.params.one_stage.solver,
            seed=seed,
            desc=f"{self.kind}, K={shots}, seed {seed}",
        )
        return detect_from_maps(model, self._test_maps, self.benchmark.test.select_classes(names))
