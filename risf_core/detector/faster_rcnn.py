"""Faster R-CNN R-C4 with gradient-decoupled layers: the detector of DeFRCN and RISF, at any size.

``detector(images)`` takes uint8 RGB images of any size and returns detections in their own pixels; resizing, channel
order and normalisation happen inside, so that no caller can feed it the wrong preprocessing.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from risf_core.detector.gradient_decoupling import AffineLayer, decouple
from risf_core.detector.resnet_c4 import ResNetC4
from risf_core.detector.roi_heads import (
    Res5RoIHeads,
    SampledRoIs,
    box_head_losses,
    label_rois,
    sample_rois,
    select_detections,
)
from risf_core.detector.rpn import RPN, SampledAnchors
from risf_core.errors import DataError
from risf_core.params import DetectorParams

Size = tuple[int, int]  # height, width

# Stored detections reach below the published cuts (score > 0.05, 100 an image), which are filters on the stored ones.
STORED_SCORE_THRESH, STORED_MAX_DETECTIONS = 0.001, 300

TRAINABLE = {  # name -> prefixes of the parameters that fine-tuning may change
    "box_head": ("roi_heads.box_predictor.",),
    "head_and_rpn": ("roi_heads.box_predictor.", "affine_", "proposal_generator."),
    "all_but_res5": ("roi_heads.box_predictor.", "affine_", "proposal_generator.", "backbone."),
    "all": ("",),
}


class FasterRCNN(nn.Module):
    """The detector. ``num_classes`` C counts no background; its column is the last of the C+1 logits.

    Args:
        params: Architecture, sampling and preprocessing.
        num_classes: C.
        classification_loss: ``(logits [R, C+1], labels [R]) -> scalar`` of the box head; cross-entropy by default.
    """

    backbone_class, rpn_class, roi_heads_class = ResNetC4, RPN, Res5RoIHeads

    def __init__(
        self,
        params: DetectorParams,
        num_classes: int,
        *,
        classification_loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
    ) -> None:
        super().__init__()
        self.params = params
        self.num_classes = num_classes
        self.classification_loss = classification_loss
        self.backbone = self.backbone_class(params)
        channels, stride = self.backbone.out_channels, self.backbone.stride
        self.affine_rpn = AffineLayer(channels)
        self.affine_rcnn = AffineLayer(channels)
        self.proposal_generator = self.rpn_class(params, channels, stride)
        self.roi_heads = self.roi_heads_class(params, channels, stride, num_classes)
        self.register_buffer("pixel_mean", torch.tensor(params.pixel_mean).view(3, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(params.pixel_std).view(3, 1, 1), persistent=False)
        self.set_trainable("all")

    def set_trainable(self, name: str) -> None:
        """Let only the named group of parameters learn (``TRAINABLE``), and never the stages below ``freeze_at``."""
        frozen_stages = ("backbone.stem.", *(f"backbone.res{i}." for i in range(2, 5)))[
            : self.params.freeze_at
        ]
        for key, parameter in self.named_parameters():
            parameter.requires_grad_(key.startswith(TRAINABLE[name]) and not key.startswith(frozen_stages))

    def train(self, mode: bool = True) -> "FasterRCNN":
        """Training mode; a normalisation layer whose parameters are frozen keeps its statistics."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d) and not module.weight.requires_grad:
                module.eval()
        return self

    def draw_short_side(self) -> int | None:
        """In training, a random one of several short sides (multi-scale training); else the fixed one."""
        if self.training and self.params.min_size and len(self.params.min_size) > 1:
            return self.params.min_size[int(torch.randint(len(self.params.min_size), ()))]
        return None

    def resize(self, image: Tensor, short_side: int | None = None) -> Tensor:
        """Resize as detectron2 does: short side to ``min_size`` (the last of a list), long side at most ``max_size``.

        Args:
            image: uint8 [3, H, W]. With ``min_size`` None it is returned as it is.
        """
        if self.params.min_size is None:
            return image
        new_height, new_width = resized_size(
            tuple(image.shape[-2:]), short_side or self.params.min_size[-1], self.params.max_size
        )
        resized = Image.fromarray(image.permute(1, 2, 0).cpu().numpy()).resize(
            (new_width, new_height), Image.Resampling.BILINEAR
        )
        return torch.from_numpy(np.array(resized)).permute(2, 0, 1).to(image.device)

    def batch(self, images: Sequence[Tensor]) -> tuple[Tensor, list[Size]]:
        """Normalise resized RGB uint8 images and pad them (after the mean is gone) to one size: [B, 3, H, W]."""
        sizes = [tuple(image.shape[-2:]) for image in images]
        height, width = (max(size[i] for size in sizes) for i in (0, 1))
        batch = self.pixel_mean.new_zeros(len(images), 3, height, width)
        for slot, image in zip(batch, images, strict=True):
            channels = image.flip(0) if self.params.image_order == "BGR" else image
            slot[:, : image.shape[1], : image.shape[2]] = (
                channels.to(self.pixel_mean.device).float() - self.pixel_mean
            ) / self.pixel_std
        return batch, sizes

    def forward(self, images: Sequence[Tensor], targets: Sequence[dict[str, Tensor]] | None = None):
        """Losses in training mode, detections in evaluation mode.

        Args:
            images: uint8 RGB tensors [3, H_i, W_i].
            targets: In training, a ``{"boxes": float32 [N, 4] xyxy in those pixels, "labels": int64 [N]}`` per image.

        Returns:
            Training: ``loss_rpn_objectness``, ``loss_rpn_box``, ``loss_cls``, ``loss_box``. Evaluation: per image
            ``boxes``, ``scores``, ``labels``, ``class_scores``, ``proposal`` (see ``select_detections``).

        Raises:
            DataError: If a target box is not finite or a label is out of range.
        """
        batch, sizes = self.batch([self.resize(image, self.draw_short_side()) for image in images])
        if self.training:
            return self.losses(batch, sizes, scale_targets(targets, images, sizes, self.num_classes))
        return self.detect(batch, sizes, [tuple(image.shape[-2:]) for image in images])

    def proposals(self, features: Tensor, sizes: list[Size]) -> tuple[list[tuple[Tensor, Tensor]], tuple]:
        """Proposals (boxes, logits) of each image, and the raw RPN output (anchors, logits, deltas)."""
        output = self.proposal_generator(self.affine_rpn(decouple(features, self.params.rpn_gradient_scale)))
        count = self.params.rpn_post_nms_train if self.training else self.params.rpn_post_nms_test
        return self.proposal_generator.proposals(*output, sizes, count=count), output

    def region_features(self, features: Tensor, boxes: list[Tensor]) -> Tensor:
        """Mean res5 features of boxes behind the decoupled layer: [sum R_i, D]."""
        decoupled = self.affine_rcnn(decouple(features, self.params.roi_gradient_scale))
        return self.roi_heads.region_features(decoupled, boxes)

    def losses(
        self,
        batch: Tensor,
        sizes: list[Size],
        targets: Sequence[dict[str, Tensor]],
        *,
        samples: tuple[list[SampledAnchors] | None, list[SampledRoIs]] | None = None,
    ) -> dict[str, Tensor]:
        """The four losses of a normalised batch; boxes in the pixels of the resized images.

        Args:
            samples: What ``draw_samples`` would draw, to repeat a recorded step; None draws.
        """
        features = self.backbone(batch)
        proposals, rpn_output = self.proposals(features, sizes)
        anchors, rois = samples or self.draw_samples(
            rpn_output[0], [boxes for boxes, _ in proposals], targets
        )
        losses = {} if anchors is None else self.proposal_generator.losses(*rpn_output, anchors)
        pooled = self.region_features(features, [r.boxes for r in rois])
        return losses | self.head_losses(pooled, rois)

    def draw_samples(
        self, anchors: Tensor, proposals: list[Tensor], targets: Sequence[dict[str, Tensor]]
    ) -> tuple[list[SampledAnchors] | None, list[SampledRoIs]]:
        """The anchors (None for a frozen RPN) and the RoIs of each image that are trained on."""
        sampled = None
        if any(parameter.requires_grad for parameter in self.proposal_generator.parameters()):
            sampled = [self.proposal_generator.sample(anchors, target["boxes"]) for target in targets]
        return sampled, self.draw_rois(proposals, targets)

    def draw_rois(self, proposals: list[Tensor], targets: Sequence[dict[str, Tensor]]) -> list[SampledRoIs]:
        """The RoIs of each image that are trained on, labelled."""
        rois = []
        for boxes, target in zip(proposals, targets, strict=True):
            labelled = label_rois(boxes, target["boxes"], target["labels"], num_classes=self.num_classes)
            rois.append(labelled.take(self.sample(labelled.labels)))
        return rois

    def sample(self, labels: Tensor) -> Tensor:
        """Indices of the RoIs of one image that are trained on."""
        return sample_rois(
            labels,
            count=self.params.roi_batch,
            positive_fraction=self.params.roi_positive_fraction,
            num_classes=self.num_classes,
        )

    def head_losses(self, pooled: Tensor, rois: list) -> dict[str, Tensor]:
        """The box head's losses of pooled features [sum R_i, D] and their labelled RoIs."""
        merged = type(rois[0])(
            *(torch.cat([getattr(r, k) for r in rois]) for k in ("boxes", "labels", "gt_boxes"))
        )
        return box_head_losses(self.roi_heads.box_predictor, pooled, merged, self.classification_loss)

    @torch.no_grad()
    def detect(
        self,
        batch: Tensor,
        sizes: list[Size],
        output_sizes: list[Size],
        *,
        score_thresh: float = STORED_SCORE_THRESH,
        max_detections: int = STORED_MAX_DETECTIONS,
    ) -> list[dict[str, Tensor]]:
        """Detections of a normalised batch, scaled to ``output_sizes``."""
        features = self.backbone(batch)
        proposals, _ = self.proposals(features, sizes)
        boxes = [b for b, _ in proposals]
        logits, deltas = self.roi_heads.box_predictor(self.region_features(features, boxes))
        results, counts = [], [len(b) for b in boxes]
        for *one, size, output_size in zip(
            logits.split(counts), deltas.split(counts), boxes, sizes, output_sizes, strict=True
        ):
            found = select_detections(*one, size, score_thresh=score_thresh, max_detections=max_detections)
            results.append(scale_detections(found, size, output_size))
        return results

    def detect_resized_bgr(self, image: Tensor, output_size: Size, **cuts) -> dict[str, Tensor]:
        """Detections of one already resized BGR uint8 image [3, H, W]: the entry of parity checks."""
        batch, sizes = self.batch([image.flip(0)])
        return self.detect(batch, sizes, [output_size], **cuts)[0]


def resized_size(size: Size, short_side: int, max_size: int) -> Size:
    """The (height, width) that detectron2 resizes to: scaled to the short side first, and then down to ``max_size``.

    One scale for both steps would round another way where a side falls on half a pixel (2448x1224 at 800 and 1333).
    """
    scale = short_side / min(size)
    scaled = [float(short_side) if side == min(size) else scale * side for side in size]
    if max(scaled) > max_size:
        scale = max_size / max(scaled)
        scaled = [scale * side for side in scaled]
    return int(scaled[0] + 0.5), int(scaled[1] + 0.5)


def scale_targets(
    targets: Sequence[dict[str, Tensor]], images: Sequence[Tensor], sizes: list[Size], num_classes: int
) -> list[dict[str, Tensor]]:
    """Bring target boxes to the resized images' pixels and refuse what would poison the loss."""
    if targets is None or len(targets) != len(images):
        raise DataError(f"training needs one target per image: {len(images)} images, targets {type(targets)}")
    scaled = []
    for i, (target, image, (height, width)) in enumerate(zip(targets, images, sizes, strict=True)):
        boxes, labels = target["boxes"], target["labels"]
        if not torch.isfinite(boxes).all() or (boxes[:, 2:] <= boxes[:, :2]).any():
            raise DataError(
                f"target {i} of the batch: boxes must be finite with x1 < x2 and y1 < y2, got {boxes}"
            )
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
            raise DataError(
                f"target {i} of the batch: labels must lie in 0..{num_classes - 1}, got {labels.unique()}"
            )
        ratio = boxes.new_tensor([width / image.shape[2], height / image.shape[1]]).repeat(2)
        scaled.append({"boxes": boxes * ratio, "labels": labels})
    return scaled


def scale_detections(found: dict[str, Tensor], size: Size, output_size: Size) -> dict[str, Tensor]:
    """Scale boxes from the resized image to the original one, clip them, and drop those that became empty."""
    if size == output_size:
        return found
    (height, width), (out_height, out_width) = size, output_size
    boxes = found["boxes"] * found["boxes"].new_tensor([out_width / width, out_height / height]).repeat(2)
    boxes[:, 0::2] = boxes[:, 0::2].clamp(0, out_width)
    boxes[:, 1::2] = boxes[:, 1::2].clamp(0, out_height)
    kept = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    return {key: value[kept] for key, value in (found | {"boxes": boxes}).items()}
