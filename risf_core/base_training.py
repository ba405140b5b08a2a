"""The base model: pretraining on disjoint concepts, training on the base classes, and what it is good for."""

import logging

import numpy as np
import torch

from risf_core.data.benchmark import Benchmark, open_benchmark
from risf_core.data.left_out import left_out_of_training
from risf_core.data.world import build_world
from risf_core.detecting import detect_images, propose_boxes
from risf_core.detections import cut
from risf_core.detector.build import build_detector
from risf_core.detector.checkpoints import HEAD, save_detector
from risf_core.detector.faster_rcnn import FasterRCNN
from risf_core.detector.pretrained import MAY_BE_MISSING, load_pretrained
from risf_core.errors import ParamsError
from risf_core.evaluation import proposal_recall
from risf_core.params import BaseTrainingParams, PictogramData
from risf_core.precision import resolve_precision
from risf_core.runs.yaml_files import project_path
from risf_core.training import pretrain, seed_everything, step_seed, train_detector
from risf_core.voc_evaluation import evaluator_for

log = logging.getLogger(__name__)


def train_base_model(params: BaseTrainingParams, run) -> dict:
    """Start from weights or pretrain, train on the base classes, evaluate; write ``run.dir/model.pth``.

    Interrupted training goes on from its last checkpoint in ``run.dir``. Without a solver the detector of ``weights``,
    whose head has the base classes in the order of their labels, is the base model as it is; for data without base
    classes its head, of whatever classes, is left.

    Returns:
        ``pretraining_accuracy`` (percent of held-out crops, None without pretraining), the loss curves, what was
        ``left_out`` of training, and the results of ``evaluate_base_model``.
    """
    benchmark = open_benchmark(params.data, split=params.split)
    seed_everything(step_seed(params.seed, -2))
    detector = build_detector(params.detector, len(benchmark.base_names)).to(run.device)
    metrics = {"pretraining_accuracy": None, "pretraining_curve": None, "curve": None} | _start(
        detector, params, run
    )
    if params.solver is not None:
        dtype = resolve_precision(params.solver.precision, torch.device(run.device))
        run.environment["training_precision"] = str(dtype).removeprefix("torch.")
        metrics["left_out"] = left_out_of_training(benchmark.train, benchmark.base_train)
        metrics["curve"] = train_detector(
            detector,
            benchmark.base_train,
            params.solver,
            seed=params.seed,
            desc="base training",
            checkpoint=run.dir / "checkpoint.pth",
        )
    save_detector(run.dir / "model.pth", detector, benchmark.base_names)
    return metrics | evaluate_base_model(detector, benchmark, score_thresh=params.score_thresh)


def _start(detector: FasterRCNN, params: BaseTrainingParams, run) -> dict:
    """Load the weights that training starts from, or pretrain (pictograms only); what it has to say about it."""
    if params.weights is not None:
        allow_missing = MAY_BE_MISSING if params.solver is not None else ("affine_",)
        leave = () if detector.num_classes else (HEAD,)
        report = load_pretrained(
            detector, project_path(params.weights), allow_missing=allow_missing, leave=leave
        )
        log.info("%s: %s", params.weights, report)
        return {"weights": {name: len(keys) for name, keys in vars(report).items()}}
    if params.pretraining is None:
        return {}
    if not isinstance(params.data, PictogramData):
        raise ParamsError("pretraining uses the pictograms' crops; with other data write pretraining: null")
    crops, labels = build_world(params.data).classification()
    checkpoint = run.dir / "pretraining_checkpoint.pth"
    options = {"seed": params.seed, "checkpoint": checkpoint}
    result = pretrain(detector, crops, np.asarray(labels), params.pretraining, **options)
    return {"pretraining_accuracy": result["accuracy"], "pretraining_curve": result["curve"]}


def evaluate_base_model(detector: FasterRCNN, benchmark: Benchmark, *, score_thresh: float) -> dict:
    """Base AP, AP50, AP75 of detections above a score, and recall of the proposals, all in percent of the test images.

    ``recall_base_at_100`` and ``recall_novel_at_100``: share of base and novel objects that one of the 100 best
    proposals covers at IoU 0.5; novel ones were never annotated. Without base classes only the latter is there.
    """
    groups, metrics = {"novel": benchmark.novel_names}, {}
    if benchmark.base_names:
        groups["base"] = benchmark.base_names
        test = benchmark.test.select_classes(benchmark.base_names)
        evaluator = evaluator_for(test, groups={"base": benchmark.base_names}, **benchmark.evaluation)
        found, _ = cut(detect_images(detector, test), None, score_thresh=score_thresh)
        metrics = evaluator.evaluate(found)
    proposals = propose_boxes(detector, benchmark.test)
    for group, names in groups.items():
        metrics[f"recall_{group}_at_100"] = proposal_recall(
            proposals, benchmark.test, class_names=names, top=100
        )
    return metrics
