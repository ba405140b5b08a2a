"""RetinaNet and FCOS, torchvision's own classes, as few-shot detectors on the base model's ResNet.

One map instead of a pyramid: all objects of the small world are of a size. Base training starts from the backbone of
the two-stage base model and trains everything; fine-tuning leaves backbone and neck alone, so that their maps are
computed once for all few-shot sets, and starts the classifier of the novel classes afresh. The box branch, which
knows no classes, goes on from the base classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.fcos import FCOS, FCOSHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.retinanet import RetinaNet, RetinaNetHead
from torchvision.ops import batched_nms, clip_boxes_to_image

from risf_core.data.dataset import DetectionData
from risf_core.data.loader import ImageCache, load_batch
from risf_core.detections import Detections
from risf_core.detector.checkpoints import load_weights
from risf_core.detector.faster_rcnn import STORED_MAX_DETECTIONS, STORED_SCORE_THRESH
from risf_core.detector.resnet_c4 import ResNetC4
from risf_core.errors import DataError
from risf_core.params import DetectorParams, SolverParams
from risf_core.progress import progress
from risf_core.study_params import OneStageParams
from risf_core.training import fit, image_batches, seed_everything, step_seed

OneStage = RetinaNet | FCOS
Kind = Literal["retinanet", "fcos"]
CLASSIFIER = "head.classification_head.cls_logits."
BOX_BRANCH = "head.regression_head."
CANDIDATES = 1000  # before NMS; torchvision's default of both
NMS_THRESH = {"retinanet": 0.5, "fcos": 0.6}  # torchvision's defaults
DETECTION_BATCH = 20  # images


class NeckedBackbone(nn.Module):
    """ResNet-C4 and a 1x1 convolution to the width of the heads: [B, 3, H, W] -> [B, width, H/s, W/s]."""

    def __init__(self, params: DetectorParams, width: int) -> None:
        super().__init__()
        self.body = ResNetC4(params)
        self.neck = nn.Sequential(nn.Conv2d(self.body.out_channels, width, 1), _norm(width))
        self.out_channels = width

    def forward(self, x: Tensor) -> Tensor:
        return self.neck(self.body(x))


def _norm(width: int) -> nn.GroupNorm:
    return nn.GroupNorm(16, width)


def build_one_stage(
    kind: Kind, detector: DetectorParams, one_stage: OneStageParams, num_classes: int, image_size: int
) -> OneStage:
    """A freshly initialised RetinaNet or FCOS on a ResNet-C4.

    Args:
        kind: Which.
        detector: Of the base model: backbone, and the mean and deviation of its pixels.
        one_stage: Width of neck and heads, RetinaNet's anchors.
        num_classes: C, without background.
        image_size: Side of the images, which are not resized.
    """
    backbone = NeckedBackbone(detector, one_stage.width)
    options = {
        "image_mean": [value / 255 for value in detector.pixel_mean],
        "image_std": [value / 255 for value in detector.pixel_std],
        "min_size": image_size,
        "max_size": image_size,
        "score_thresh": STORED_SCORE_THRESH,
        "nms_thresh": NMS_THRESH[kind],
        "detections_per_img": STORED_MAX_DETECTIONS,
        "topk_candidates": CANDIDATES,
    }
    if kind == "retinanet":
        anchors = AnchorGenerator((tuple(one_stage.anchor_sizes),), (tuple(one_stage.anchor_ratios),))
        per_place = anchors.num_anchors_per_location()[0]
        head = RetinaNetHead(one_stage.width, per_place, num_classes, norm_layer=_norm)
        model = RetinaNet(backbone, num_classes, anchor_generator=anchors, head=head, **options)
    else:
        anchors = AnchorGenerator(((backbone.body.stride,),), ((1.0,),))
        head = FCOSHead(one_stage.width, 1, num_classes)
        model = FCOS(backbone, num_classes, anchor_generator=anchors, head=head, **options)
    # under autocast the losses are computed in single precision
    model.head.register_forward_hook(
        lambda module, inputs, outputs: {k: v.float() for k, v in outputs.items()}
    )
    return model


def load_backbone(model: OneStage, base: dict[str, Tensor]) -> None:
    """Start the ResNet from the backbone of a two-stage base model, whose state dict is given."""
    state = {
        key.removeprefix("backbone."): value for key, value in base.items() if key.startswith("backbone.")
    }
    load_weights(model.backbone.body, state, source="two-stage base model", allow_missing=())


def train_base(
    model: OneStage,
    data: DetectionData,
    solver: SolverParams,
    *,
    seed: int,
    desc: str,
    checkpoint: Path | None = None,
) -> list[dict[str, float]]:
    """Train the whole detector on the base classes with random horizontal flips; returns the loss curve."""
    images, batches = ImageCache(), image_batches(data, solver, seed=seed)
    model.train()

    def step(iteration: int) -> dict[str, Tensor]:
        indices = batches(iteration)
        flips = (torch.rand(len(indices)) < 0.5).tolist()
        batch, targets = load_batch(data, indices, flips=flips, cache=images)
        device = next(model.parameters()).device
        targets = [{key: value.to(device) for key, value in target.items()} for target in targets]
        return model([image.to(device).float() / 255 for image in batch], targets)

    return fit(model, step, solver, seed=seed, desc=desc, checkpoint=checkpoint)


@torch.no_grad()
def neck_maps(model: OneStage, data: DetectionData, *, mirrored: bool = False, desc: str) -> Tensor:
    """What the heads read of each image: [N, width, H/s, W/s], or with mirror images [N, 2, width, H/s, W/s].

    Raises:
        DataError: If an image has another size than that the detector was built for.
    """
    model.eval()
    device, (side,) = next(model.parameters()).device, model.transform.min_size
    for image in data.images:
        if (image.height, image.width) != (side, side):
            raise DataError(
                f"{data.name}: image {image.image_id} has {image.width}x{image.height} pixels; one-stage detectors "
                f"are trained here on images of one size, {side}x{side}."
            )
    maps = []
    for index in progress(range(len(data)), desc=desc, unit="image"):
        for flip in (False, True) if mirrored else (False,):
            (image,), _ = load_batch(data, [index], flips=[flip])
            batch, _ = model.transform([image.to(device).float() / 255])
            maps.append(model.backbone(batch.tensors))
    stacked = torch.cat(maps)
    return stacked.unflatten(0, (len(data), 2)) if mirrored else stacked


def start_few_shot(model: OneStage, base: dict[str, Tensor], *, seed: int) -> None:
    """Load the base weights but for the classifier, which starts afresh from a seed."""
    seed_everything(step_seed(seed, -1))
    head = model.head.classification_head
    nn.init.normal_(head.cls_logits.weight, std=0.01)  # the bias is torchvision's: a probability of 0.01
    state = {key: value for key, value in base.items() if not key.startswith(CLASSIFIER)}
    load_weights(model, state, source="one-stage base model", allow_missing=(CLASSIFIER,))


def set_trainable(model: OneStage, trainable: str) -> None:
    """Let only the heads learn: "classification" its branch alone, "heads" the box branch as well."""
    for key, parameter in model.named_parameters():
        is_wanted = key.startswith("head.") and (trainable == "heads" or not key.startswith(BOX_BRANCH))
        parameter.requires_grad_(is_wanted)


def train_few_shot(
    model: OneStage, data: DetectionData, maps: Tensor, solver: SolverParams, *, seed: int, desc: str
) -> list[dict[str, float]]:
    """Train the heads on stored maps of the K-shot images, half of the time mirrored; returns the loss curve.

    Args:
        maps: Of ``neck_maps`` with mirror images, [N, 2, width, H/s, W/s].
    """
    batches, (side,) = image_batches(data, solver, seed=seed), model.transform.min_size
    model.train()

    def step(iteration: int) -> dict[str, Tensor]:
        indices = batches(iteration)
        flips = (torch.rand(len(indices)) < 0.5).long()
        targets = [_target(data, index, bool(flip)) for index, flip in zip(indices, flips, strict=True)]
        targets = [{key: value.to(maps.device) for key, value in target.items()} for target in targets]
        return head_losses(model, maps[torch.tensor(indices), flips], targets, side)

    return fit(model, step, solver, seed=seed, desc=desc)


def _target(data: DetectionData, index: int, flip: bool) -> dict[str, Tensor]:
    image = data.images[index]
    boxes = torch.from_numpy(image.boxes[~image.is_crowd])
    if flip:
        boxes = torch.stack(
            [image.width - boxes[:, 2], boxes[:, 1], image.width - boxes[:, 0], boxes[:, 3]], 1
        )
    return {"boxes": boxes, "labels": torch.from_numpy(image.labels[~image.is_crowd])}


def head_losses(
    model: OneStage, maps: Tensor, targets: Sequence[dict[str, Tensor]], side: int
) -> dict[str, Tensor]:
    """torchvision's losses from the maps of a batch [B, width, h, w] of square images."""
    outputs, anchors = _head_outputs(model, maps, side)
    places = ([maps.shape[-2] * maps.shape[-1]],) if isinstance(model, FCOS) else ()
    return model.compute_loss(list(targets), outputs, anchors, *places)


def _head_outputs(model: OneStage, maps: Tensor, side: int) -> tuple[dict[str, Tensor], list[Tensor]]:
    """The head's outputs [B, N, ...] and the anchors [N, 4] of each image."""
    images = ImageList(maps.new_empty(len(maps), 3, side, side), [(side, side)] * len(maps))
    return model.head([maps]), model.anchor_generator(images, [maps])


@torch.no_grad()
def detect_from_maps(model: OneStage, maps: Tensor, data: DetectionData) -> Detections:
    """Detections of all images of ``data`` from their stored maps [N, width, h, w]: what torchvision's class returns.

    Beside its boxes, scores and labels each detection has ``class_scores`` [C+1], the scores of all classes at its
    place, background last: the product of (1 - score) over the classes, the probability that none of them is there if
    they are taken as independent, which separate sigmoids say they are; and ``proposal``, the number of its place.
    """
    model.eval()
    (side,), found = model.transform.min_size, []
    for part in maps.split(DETECTION_BATCH):
        outputs, anchors = _head_outputs(model, part, side)
        scores = outputs["cls_logits"].sigmoid()  # [B, N, C]
        if isinstance(model, FCOS):
            scores = torch.sqrt(scores * outputs["bbox_ctrness"].sigmoid())
        for one in zip(scores, outputs["bbox_regression"], anchors, strict=True):
            found.append({key: value.cpu() for key, value in _select(model, *one, side).items()})
    return Detections.from_images([image.image_id for image in data.images], found, data.class_names)


def _select(model: OneStage, scores: Tensor, deltas: Tensor, anchors: Tensor, side: int) -> dict[str, Tensor]:
    """The detections of one image: scores [N, C], deltas and anchors [N, 4]."""
    flat = scores.flatten()
    above = torch.nonzero(flat > model.score_thresh).squeeze(1)
    best, order = flat[above].topk(min(model.topk_candidates, len(above)))
    place, label = above[order] // scores.shape[1], above[order] % scores.shape[1]
    decode = model.box_coder.decode if isinstance(model, FCOS) else model.box_coder.decode_single
    boxes = clip_boxes_to_image(decode(deltas[place], anchors[place]), (side, side))
    kept = batched_nms(boxes, best, label, model.nms_thresh)[: model.detections_per_img]
    class_scores = scores[place[kept]]  # [D, C]
    background = (1 - class_scores).prod(dim=1, keepdim=True)
    return {
        "boxes": boxes[kept],
        "scores": best[kept],
        "labels": label[kept],
        "class_scores": torch.cat([class_scores, background], dim=1),
        "proposal": place[kept],
    }
