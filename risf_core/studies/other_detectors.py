"""Does CM-CLIP help other detectors? One-stage detectors trained here, the two-stage one beside them, any results file.

Each detector's boxes are stored once; each weight c is then arithmetic. c is chosen for each detector on one split and
reported on the others (`chosen_c`).
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from risf_core.data.benchmark import open_benchmark
from risf_core.detections import MAX_DETECTIONS, Detections, cut
from risf_core.detector.checkpoints import read_checkpoint, save_checkpoint
from risf_core.evaluation import Evaluator
from risf_core.params import BaseTrainingParams
from risf_core.precision import resolve_precision
from risf_core.progress import progress
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
from risf_core.studies.other_results import rescore_results_files
from risf_core.studies.stored_boxes import CellBoxes, Rescoring, cell_stem
from risf_core.studies.stored_cells import StoredCell, check_same_clip, stored_cells
from risf_core.study_params import OtherDetectorsParams
from risf_core.training import seed_everything, step_seed

TWO_STAGE = "faster_rcnn"
BASE_METRICS = ("bAP", "bAP50", "bAP75")


def study_other_detectors(params: OtherDetectorsParams, run) -> list[dict]:
    """All rows of the study; a killed run goes on where it was.

    Rows of part "base" hold a one-stage detector's AP on the base classes; of part "scores" what a cell (detector,
    split, K, seed) gives to CM-CLIP; of part "re-scored" its nAP at one c and fusion. c = 1 is the detector alone.
    A results file is a cell without K and seed; rows of part "file" hold its gains with their intervals. Detections and
    cosines go to ``run.dir``, as those of 20_fine_tuning do.
    """
    rescoring = Rescoring(params, run)
    for upstream in run.upstreams("base"):
        for kind in params.detectors:
            _one_stage_cells(rescoring, upstream, kind)
    cells = stored_cells(run.upstreams("fine_tuning"), arm="kshot", loss="ce") if params.fine_tuning else []
    for cell in progress(cells, desc="two-stage cells", total=len(cells)):
        _two_stage_cell(rescoring, cell)
    rescore_results_files(rescoring)
    return run.rows.as_list()


def seeds_of(params: OtherDetectorsParams, split: int) -> tuple[int, ...]:
    """The draws of a split: fewer are enough to choose on."""
    return params.select_seeds if split == params.select_split else params.seeds


def _two_stage_cell(rescoring: Rescoring, cell: StoredCell) -> None:
    params, key = rescoring.params, {"detector": TWO_STAGE}
    key |= {name: cell.key[name] for name in ("split", "shots", "seed")}
    is_wanted = key["shots"] in params.shots and key["seed"] in seeds_of(params, key["split"])
    if not is_wanted or rescoring.is_done(key):
        return
    check_same_clip(cell, params.clip, params.cm_clip)
    found = Detections.load(cell.folder / "detections" / f"{cell.name}.npz")
    boxes = CellBoxes(found, *cell.with_similarities(), cell.tuned.score_thresh)
    rescoring.add_rows(key, rescoring.split(cell.key["split"]), boxes)


def _one_stage_cells(rescoring: Rescoring, upstream, kind: Kind) -> None:
    """Base training of a one-stage detector on the split of a base model, then every K and seed."""
    params, run = rescoring.params, rescoring.run
    base = BaseTrainingParams.model_validate(upstream.record["params"])
    cells = itertools.product(params.shots, seeds_of(params, base.split))
    keys = [{"detector": kind, "split": base.split, "shots": k, "seed": seed} for k, seed in cells]
    keys = [key for key in keys if not rescoring.is_done(key)]
    base_key = {"part": "base", "detector": kind, "split": base.split}
    if not keys and run.rows.done(**base_key):
        return
    trainer = OneStageTraining(params, run, base, kind)
    state = trainer.base_state(upstream)
    if not run.rows.done(**base_key):
        run.rows.add(base_key, trainer.evaluate_base(state))
    scene, thresh = rescoring.split(base.split), params.score_threshs[kind]
    for key in progress(keys, desc=f"{kind}, split {base.split}", total=len(keys)):
        path = run.dir / "detections" / f"{cell_stem(key)}.npz"
        if not path.exists():
            trainer.fine_tune(state, key["shots"], key["seed"]).save(path)
        found = Detections.load(path)
        counting, _ = cut(found, None, score_thresh=thresh)
        cosines = rescoring.encode(key, scene, counting, thresh)
        rescoring.add_rows(key, scene, CellBoxes(found, counting, cosines, thresh))


class OneStageTraining:
    """Base training and K-shot fine-tuning of one one-stage detector on one split."""

    def __init__(self, params: OtherDetectorsParams, run, base: BaseTrainingParams, kind: Kind) -> None:
        self.params, self.run, self.base, self.kind = params, run, base, kind
        self.benchmark = open_benchmark(params.data, split=base.split)
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
            solver = self.params.one_stage.base_solvers[self.kind]
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
