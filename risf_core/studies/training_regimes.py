"""Does it depend on what is trained whether BNRL helps? Frozen features, the RPN trained, res5 trained as well.

Every loss is trained at several learning rates, so that cross-entropy with a smaller step stands beside BNRL. The
backbone is frozen in all regimes: its maps are computed once, and every step starts from them, which is exact.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from risf_core.bnrl import get_loss
from risf_core.data.dataset import DetectionData
from risf_core.data.loader import load_batch
from risf_core.detections import MAX_DETECTIONS, Detections, cut
from risf_core.detector.faster_rcnn import FasterRCNN
from risf_core.errors import ParamsError
from risf_core.fine_tuning import FewShotContext, open_context
from risf_core.head_training import detect_from_features, train_box_head
from risf_core.params import SolverParams
from risf_core.precision import resolve_precision
from risf_core.progress import progress
from risf_core.studies.stored_cells import novel_metrics
from risf_core.study_params import TrainingRegimesParams
from risf_core.training import fit, image_batches
from risf_core.voc_evaluation import evaluator_for

FROZEN = "frozen"
DETECTION_BATCH = 8  # maps a forward pass; all are of one size, so that nothing is padded


def set_regime(detector: FasterRCNN, regime: str) -> None:
    """Let the parameters of a regime learn.

    Args:
        detector: Changed in place.
        regime: "frozen": the box head alone. "rpn": also the RPN and the affine layers behind the backbone. "res5":
            these and the weights of res5. Batch normalisation stays as it is, as published with FrozenBN.

    Raises:
        ParamsError: If there is no such regime.
    """
    if regime not in (FROZEN, "rpn", "res5"):
        raise ParamsError(f"there is no regime {regime!r}; expected {FROZEN}, rpn or res5.")
    detector.set_trainable("box_head" if regime == FROZEN else "head_and_rpn")
    if regime == "res5":
        for module in detector.roi_heads.res5.modules():
            if not isinstance(module, nn.BatchNorm2d):
                for parameter in module.parameters(recurse=False):
                    parameter.requires_grad_(True)


@torch.no_grad()
def backbone_maps(detector: FasterRCNN, data: DetectionData, *, flipped: bool = False) -> Tensor:
    """What the frozen backbone makes of every image, mirrored if ``flipped``: float32 [M, C, h, w].

    Raises:
        ParamsError: If images are resized, or differ in size.
    """
    sizes = {(image.height, image.width) for image in data.images}
    if detector.params.min_size is not None or len(sizes) > 1:
        raise ParamsError(
            f"{data.name}: maps of the backbone are kept for images of one size that are not resized; found "
            f"{len(sizes)} sizes and min_size {detector.params.min_size}. Take data of source pictograms."
        )
    detector.backbone.eval()
    maps = []
    for index in range(len(data)):
        images, _ = load_batch(data, [index], flips=[flipped])
        batch, _ = detector.batch([image.to(detector.pixel_mean.device) for image in images])
        maps.append(detector.backbone(batch))
    return torch.cat(maps)


def losses_from_maps(
    detector: FasterRCNN, features: Tensor, sizes: list[tuple[int, int]], targets: list[dict[str, Tensor]]
) -> dict[str, Tensor]:
    """The losses that ``detector.losses`` gives of images, from the backbone's maps of them.

    Args:
        features: [B, C, h, w], of a frozen backbone.
        sizes: (height, width) of each image in pixels.
        targets: ``{"boxes" [N, 4], "labels" [N]}`` of each image.
    """
    proposals, rpn_output = detector.proposals(features, sizes)
    anchors, rois = detector.draw_samples(rpn_output[0], [boxes for boxes, _ in proposals], targets)
    losses = {} if anchors is None else detector.proposal_generator.losses(*rpn_output, anchors)
    pooled = region_features_from_maps(detector, features, [one.boxes for one in rois])
    return losses | detector.head_losses(pooled, rois)


def region_features_from_maps(detector: FasterRCNN, features: Tensor, boxes: list[Tensor]) -> Tensor:
    """``detector.region_features`` of maps that need no gradient: [sum R_i, D].

    RoIAlign is linear, so that the affine layer can come after it: pool(w x + b) = w pool(x) + b pool(1), where pool(1)
    is 1 but at the image's rim. Nothing then flows back through RoIAlign, which costs a fifth of a step.
    """
    heads, affine = detector.roi_heads, detector.affine_rcnn
    with torch.no_grad():
        pooled = heads.pool(features, boxes)  # [R, C, 7, 7]
        inside = heads.pool(torch.ones_like(features[:, :1]), boxes)  # [R, 1, 7, 7]
    return heads.res5(pooled * affine.weight + inside * affine.bias).mean(dim=(2, 3))


def train_from_maps(
    detector: FasterRCNN,
    data: DetectionData,
    maps: tuple[Tensor, Tensor],
    solver: SolverParams,
    *,
    seed: int,
    desc: str,
) -> list[dict[str, float]]:
    """Train what ``set_regime`` has let learn; the same steps as `risf_core.training.train_detector` takes.

    Args:
        detector: Its backbone is not used.
        maps: Of the images as they are, and mirrored: two of `backbone_maps`.

    Returns:
        The loss curve (see `risf_core.training.fit`).
    """
    batches = image_batches(data, solver, seed=seed)
    size = (data.images[0].height, data.images[0].width)
    targets = {
        (index, flip): load_batch(data, [index], flips=[flip])[1][0]
        for index in range(len(data))
        for flip in (False, True)
    }
    device = detector.pixel_mean.device
    detector.train()

    def step(iteration: int) -> dict[str, Tensor]:
        indices = batches(iteration)
        flips = (torch.rand(len(indices)) < 0.5).tolist()
        pairs = list(zip(indices, flips, strict=True))
        batch = torch.stack([maps[flip][index] for index, flip in pairs])
        wanted = [{key: value.to(device) for key, value in targets[pair].items()} for pair in pairs]
        return losses_from_maps(detector, batch, [size] * len(indices), wanted)

    return fit(detector, step, solver, seed=seed, desc=desc)


@torch.no_grad()
def detect_from_maps(
    detector: FasterRCNN, data: DetectionData, maps: Tensor, *, precision: str = "fp32"
) -> Detections:
    """Detections of all images from their maps: what `risf_core.detecting.detect_images` finds."""
    backbone, detector.backbone = detector.backbone, nn.Identity()  # detect() takes the maps for images
    detector.eval()
    size, device = (data.images[0].height, data.images[0].width), maps.device
    dtype, found = resolve_precision(precision, device), []
    for batch in maps.split(DETECTION_BATCH):
        sizes = [size] * len(batch)
        with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
            results = detector.detect(batch, sizes, sizes)
        found += [{key: value.cpu() for key, value in one.items()} for one in results]
    detector.backbone = backbone
    return Detections.from_images([image.image_id for image in data.images], found, data.class_names)


def train_regimes(params: TrainingRegimesParams, run) -> list[dict]:
    """Fine-tune with every loss at every rate of every regime, for each seed and arm; a killed run goes on by row.

    Returns:
        A row for each role, seed, arm, regime, loss and rate (``lr``). Role "selection" is the split on which rates are
        chosen, "reported" the other one. AP of the novel classes in percent, without re-scoring.
    """
    for role, context in _contexts(params, run):
        side = _Side(context, params.num_test_images, params.detection_precision)
        own = context.params
        cells = itertools.product(own.seeds, own.arms, _settings(params))
        cells = [(seed, arm, *setting) for seed, arm, setting in cells]
        for seed, arm, regime, loss, rate in progress(cells, desc=f"{role} cells", total=len(cells)):
            key = {"role": role, "split": own.split, "shots": own.shots, "seed": seed, "arm": arm}
            key |= {"regime": regime, "loss": loss, "lr": rate}
            if not run.rows.done(**key):
                solver = own.solver.model_copy(update={"lr": rate})
                function = get_loss(loss, **params.bnrl.model_dump())
                run.rows.add(key, side.judge(function, solver, seed=seed, arm=arm, regime=regime))
    return run.rows.as_list()


def _contexts(params: TrainingRegimesParams, run) -> Iterator[tuple[str, FewShotContext]]:
    """Role and context of the split that is reported, and of the one on which rates are chosen."""
    for role, base in (("reported", params.base), ("selection", params.select_base)):
        split = run.upstream(base).record["params"]["split"]
        yield role, open_context(params.few_shot_params(split, role=role), run)


def _settings(params: TrainingRegimesParams) -> list[tuple[str, str, float]]:
    """Every (regime, loss, rate)."""
    return [
        (regime, loss, rate)
        for regime, losses in params.rates.items()
        for loss, rates in losses.items()
        for rate in rates
    ]


class _Side:
    """One split with what its cells share: test images, their maps, the maps of the last K-shot set."""

    def __init__(self, context: FewShotContext, num_test_images: int, precision: str) -> None:
        self.context, self.precision = context, precision
        self.test = replace(context.test, images=context.test.images[:num_test_images])
        options = {"groups": context.groups(), "max_dets": MAX_DETECTIONS}
        self.evaluator = evaluator_for(self.test, **options, **context.benchmark.evaluation)
        self._test_maps: Tensor | None = None
        self._few_shot: tuple[tuple, DetectionData, tuple[Tensor, Tensor]] | None = None

    def judge(self, loss, solver: SolverParams, *, seed: int, arm: str, regime: str) -> dict:
        """Fine-tune once and evaluate: the values of a row."""
        training_seed = self.context.training_seed(seed)
        detector = self.context.detector(training_seed, loss)
        set_regime(detector, regime)
        options = {"seed": training_seed, "desc": f"{regime}, rate {solver.lr:g}, seed {seed}, {arm}"}
        if regime == FROZEN:
            data, regions = self.context.few_shot(seed, arm), self.context.train_regions(seed, arm)
            curve = train_box_head(detector, data, regions, solver, **options)
            head = detector.roi_heads.box_predictor
            found = detect_from_features(head, self.context.test_regions(), self.context.class_names)
            kept = np.array([image.image_id for image in self.test.images], dtype=np.int64)
            found = found.keep(np.isin(found.image_ids, kept))
        else:
            data, maps = self._maps_of(seed, arm)
            curve = train_from_maps(detector, data, maps, solver, **options)
            found = detect_from_maps(detector, self.test, self._maps_of_test(), precision=self.precision)
        counting, _ = cut(found, None, score_thresh=self.context.params.score_thresh)
        metrics = self.evaluator.evaluate(counting)
        return novel_metrics(metrics) | {
            "final_loss": curve[-1]["loss"],
            "num_detections": metrics["num_detections"],
        }

    def _maps_of(self, seed: int, arm: str) -> tuple[DetectionData, tuple[Tensor, Tensor]]:
        if self._few_shot is None or self._few_shot[0] != (seed, arm):
            data = self.context.few_shot(seed, arm)
            maps = tuple(backbone_maps(self._base(), data, flipped=flip) for flip in (False, True))
            self._few_shot = (seed, arm), data, maps
        return self._few_shot[1:]

    def _maps_of_test(self) -> Tensor:
        if self._test_maps is None:
            self._test_maps = backbone_maps(self._base(), self.test)
        return self._test_maps

    def _base(self) -> FasterRCNN:
        """The detector before fine-tuning, whose backbone is that of every cell."""
        return self.context.detector(0, get_loss("ce"))
