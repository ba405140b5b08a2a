"""The region proposal network: anchors, objectness and deltas, proposals, and its two losses."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection._utils import BoxCoder, Matcher
from torchvision.ops import batched_nms, box_iou, clip_boxes_to_image

from risf_core.params import DetectorParams

RPN_NMS_THRESH = 0.7  # Faster R-CNN; detectron2's default
RPN_IOU_BACKGROUND, RPN_IOU_FOREGROUND = 0.3, 0.7  # Faster R-CNN, section 3.1.2
RPN_POSITIVE_FRACTION = 0.5
rpn_box_coder = BoxCoder((1.0, 1.0, 1.0, 1.0))


def cell_anchors(sizes: list[float], ratios: list[float]) -> Tensor:
    """Anchors around (0, 0), size-major, not rounded: float32 [len(sizes) * len(ratios), 4], pixels.

    ``ratio`` is height / width at constant area ``size ** 2``.
    """
    anchors = []
    for size in sizes:
        for ratio in ratios:
            width = (size**2 / ratio) ** 0.5
            height = ratio * width
            anchors.append([-width / 2, -height / 2, width / 2, height / 2])
    return torch.tensor(anchors, dtype=torch.float32)


def grid_anchors(cells: Tensor, height: int, width: int, stride: int) -> Tensor:
    """Shift the cell anchors over the map: [height * width * A, 4], offset 0, row-major, anchors innermost."""
    shift_y, shift_x = torch.meshgrid(
        torch.arange(0, height * stride, stride, dtype=torch.float32, device=cells.device),
        torch.arange(0, width * stride, stride, dtype=torch.float32, device=cells.device),
        indexing="ij",
    )
    shifts = torch.stack((shift_x, shift_y, shift_x, shift_y), dim=-1).reshape(-1, 1, 4)
    return (shifts + cells).reshape(-1, 4)


def subsample(
    labels: Tensor, *, count: int, positive_fraction: float, background: int
) -> tuple[Tensor, Tensor]:
    """Draw at most ``count`` indices, at most ``positive_fraction`` of them positive; -1 is never drawn.

    Args:
        labels: int64 [N]; -1 ignored, ``background`` negative, everything else positive.

    Returns:
        Indices of the positives and of the negatives, in random order from torch's global generator.
    """
    positive = torch.nonzero((labels != -1) & (labels != background)).squeeze(1)
    negative = torch.nonzero(labels == background).squeeze(1)
    num_positive = min(positive.numel(), int(count * positive_fraction))
    num_negative = min(negative.numel(), count - num_positive)
    positive = positive[torch.randperm(positive.numel(), device=labels.device)[:num_positive]]
    negative = negative[torch.randperm(negative.numel(), device=labels.device)[:num_negative]]
    return positive, negative


@dataclass(frozen=True)
class SampledAnchors:
    """Anchors of one image drawn for training: indices [P] and [Q], and the box of each positive one [P, 4]."""

    positive: Tensor
    negative: Tensor
    gt_boxes: Tensor


class RPNHead(nn.Module):
    """A 3x3 convolution, then objectness and deltas of the A anchors of each cell."""

    def __init__(self, channels: int, num_anchors: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.objectness_logits = nn.Conv2d(channels, num_anchors, 1)
        self.anchor_deltas = nn.Conv2d(channels, 4 * num_anchors, 1)
        for layer in (self.conv, self.objectness_logits, self.anchor_deltas):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)

    def forward(
        self, features: Tensor
    ) -> tuple[Tensor, Tensor]:  # [B, C, H, W] -> [B, A, H, W], [B, 4A, H, W]
        hidden = F.relu_(self.conv(features))
        return self.objectness_logits(hidden), self.anchor_deltas(hidden)


class RPN(nn.Module):
    """Class-agnostic proposals from one feature map."""

    def __init__(self, params: DetectorParams, channels: int, stride: int) -> None:
        super().__init__()
        self.params = params
        self.stride = stride
        self.register_buffer(
            "cells", cell_anchors(params.anchor_sizes, params.anchor_ratios), persistent=False
        )
        self.rpn_head = RPNHead(channels, len(self.cells))
        self.matcher = Matcher(RPN_IOU_FOREGROUND, RPN_IOU_BACKGROUND, allow_low_quality_matches=True)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Anchors [HWA, 4], objectness logits [B, HWA] and deltas [B, HWA, 4], all in the anchors' order."""
        logits, deltas = self.rpn_head(features)
        batch, _, height, width = logits.shape
        anchors = grid_anchors(self.cells, height, width, self.stride)
        logits = logits.permute(0, 2, 3, 1).reshape(batch, -1).float()
        deltas = deltas.view(batch, -1, 4, height, width).permute(0, 3, 4, 1, 2).reshape(batch, -1, 4).float()
        return anchors, logits, deltas

    @torch.no_grad()
    def proposals(
        self,
        anchors: Tensor,
        logits: Tensor,
        deltas: Tensor,
        image_sizes: list[tuple[int, int]],
        *,
        count: int,
    ) -> list[tuple[Tensor, Tensor]]:
        """The best ``count`` boxes [R_i, 4] (pixels of the resized image) and logits [R_i] of each image."""
        pre_nms = self.params.rpn_pre_nms_train if self.training else self.params.rpn_pre_nms_test
        top_logits, top = logits.topk(min(pre_nms, logits.shape[1]), dim=1)
        results = []
        for i, image_size in enumerate(image_sizes):
            boxes = rpn_box_coder.decode_single(deltas[i, top[i]], anchors[top[i]])
            boxes = clip_boxes_to_image(boxes, image_size)
            kept = torch.isfinite(boxes).all(1) & (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
            boxes, scores = boxes[kept], top_logits[i][kept]
            kept = batched_nms(boxes, scores, torch.zeros_like(scores, dtype=torch.int64), RPN_NMS_THRESH)[
                :count
            ]
            results.append((boxes[kept], scores[kept]))
        return results

    @torch.no_grad()
    def assign(self, anchors: Tensor, gt_boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Label of each anchor (1 object, 0 background, -1 ignored) [N] and the box it is matched to [N, 4]."""
        if len(gt_boxes) == 0:
            return torch.zeros(len(anchors), dtype=torch.int64, device=anchors.device), torch.zeros_like(
                anchors
            )
        matched = self.matcher(box_iou(gt_boxes, anchors))
        labels = (matched >= 0).long()
        labels[matched == Matcher.BETWEEN_THRESHOLDS] = -1
        return labels, gt_boxes[matched.clamp(min=0)]

    def sample(self, anchors: Tensor, gt_boxes: Tensor) -> SampledAnchors:
        """Draw the anchors of one image that are trained on."""
        labels, matched = self.assign(anchors, gt_boxes)
        positive, negative = subsample(
            labels, count=self.params.rpn_batch, positive_fraction=RPN_POSITIVE_FRACTION, background=0
        )
        return SampledAnchors(positive, negative, matched[positive])

    def losses(
        self, anchors: Tensor, logits: Tensor, deltas: Tensor, samples: Sequence[SampledAnchors]
    ) -> dict[str, Tensor]:
        """Binary cross-entropy over sampled anchors and L1 over the positive ones, per sampled anchor.

        Args:
            anchors: [N, 4]. logits: [B, N]. deltas: [B, N, 4].
            samples: The anchors of each image to train on, as ``sample`` draws them.
        """
        loss_objectness, loss_box = logits.sum() * 0.0, deltas.sum() * 0.0
        for i, sample in enumerate(samples):
            sampled = torch.cat([sample.positive, sample.negative])
            objects = torch.zeros_like(logits[i, sampled])
            objects[: len(sample.positive)] = 1.0
            loss_objectness = loss_objectness + F.binary_cross_entropy_with_logits(
                logits[i, sampled], objects, reduction="sum"
            )
            targets = rpn_box_coder.encode_single(sample.gt_boxes, anchors[sample.positive])
            loss_box = loss_box + (deltas[i, sample.positive] - targets).abs().sum()
        normalizer = self.params.rpn_batch * len(samples)
        return {"loss_rpn_objectness": loss_objectness / normalizer, "loss_rpn_box": loss_box / normalizer}
