"""The base model: pretraining on disjoint concepts, training on the base classes, and what it is good for."""

import logging

import numpy as np

from risf_core.data.benchmark import Benchmark, open_benchmark
from risf_core.data.world import build_world
from risf_core.detector.checkpoints import save_checkpoint
from risf_core.detector.faster_rcnn import FasterRCNN
from risf_core.errors import ParamsError
from risf_core.evaluation import proposal_recall
from risf_core.head_training import RegionFeatures, detect_from_features, extract_region_features
from risf_core.params import BaseTrainingParams, PictogramData
from risf_core.training import pretrain, seed_everything, step_seed, train_detector
from risf_core.voc_evaluation import evaluator_for

log = logging.getLogger(__name__)


def train_base_model(params: BaseTrainingParams, run) -> dict:
    """Pretrain (pictograms only), train on the base classes, evaluate; write ``run.dir/model.pth``.

    Interrupted training goes on from its last checkpoint in ``run.dir``.

    Returns:
        ``pretraining_accuracy`` (percent of held-out crops, None without pretraining), the loss curves, and the
        results of ``evaluate_base_model``.
    """
    benchmark = open_benchmark(params.data, split=params.split)
    seed_everything(step_seed(params.seed, -2))
    detector = FasterRCNN(params.detector, len(benchmark.base_names)).to(run.device)
    metrics: dict = {"pretraining_accuracy": None, "pretraining_curve": None}
    if params.pretraining is not None:
        if not isinstance(params.data, PictogramData):
            raise ParamsError(
                "pretraining uses the pictograms' crops; with other data write pretraining: null"
            )
        crops, labels = build_world(params.data).classification()
        result = pretrain(
            detector,
            crops,
            np.asarray(labels),
            params.pretraining,
            seed=params.seed,
            checkpoint=run.dir / "pretraining_checkpoint.pth",
        )
        metrics |= {"pretraining_accuracy": result["accuracy"], "pretraining_curve": result["curve"]}
    metrics["curve"] = train_detector(
        detector,
        benchmark.base_train,
        params.solver,
        seed=params.seed,
        desc="base training",
        checkpoint=run.dir / "checkpoint.pth",
    )
    content = {"model": detector.state_dict(), "class_names": list(benchmark.base_names)}
    save_checkpoint(run.dir / "model.pth", content)
    return metrics | evaluate_base_model(detector, benchmark)


def evaluate_base_model(detector: FasterRCNN, benchmark: Benchmark) -> dict:
    """Base AP, AP50, AP75 and recall of the proposals on the test images, all in percent.

    ``recall_base_at_100`` and ``recall_novel_at_100``: share of base and novel objects that one of the 100 best
    proposals covers at IoU 0.5; novel ones were never annotated.
    """
    regions = extract_region_features(
        detector, benchmark.test, training=False, desc="features of the test images"
    )
    found = detect_from_features(detector.roi_heads.box_predictor, regions, benchmark.base_names)
    test = benchmark.test.select_classes(benchmark.base_names)
    evaluator = evaluator_for(test, groups={"base": benchmark.base_names}, **benchmark.evaluation)
    metrics = evaluator.evaluate(found)
    proposals = proposals_by_image(regions)
    for group, names in (("base", benchmark.base_names), ("novel", benchmark.novel_names)):
        metrics[f"recall_{group}_at_100"] = proposal_recall(
            proposals, benchmark.test, class_names=names, top=100
        )
    return metrics


def proposals_by_image(regions: RegionFeatures) -> dict[int, np.ndarray]:
    """Proposals of each image in original pixels, best first: image id -> float32 [R, 4]."""
    # [M, 4]: x, y, x, y
    scale = np.tile((regions.output_sizes / regions.sizes)[:, ::-1], 2).astype(np.float32)
    ends = np.cumsum(regions.counts)[:-1]
    boxes = np.split(regions.boxes * np.repeat(scale, regions.counts, axis=0), ends)
    return {int(i): b for i, b in zip(regions.image_ids, boxes, strict=True)}
