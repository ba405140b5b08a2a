"""The region head of a C4 detector: RoIAlign, res5, classifier and boxes, sampling, losses, detections."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection._utils import BoxCoder, Matcher
from torchvision.ops import batched_nms, box_iou, clip_boxes_to_image, roi_align

from risf_core.detector.resnet_c4 import build_stage
from risf_core.detector.rpn import at_least_float32, subsample
from risf_core.params import DetectorParams

ROI_IOU_FOREGROUND = 0.5
ROI_SIZE = 7  # POOLER_RESOLUTION of the published configurations; res5 then halves it
DETECTION_NMS_THRESH = 0.5
roi_box_coder = BoxCoder((10.0, 10.0, 5.0, 5.0))
roi_matcher = Matcher(ROI_IOU_FOREGROUND, ROI_IOU_FOREGROUND, allow_low_quality_matches=False)


class BoxPredictor(nn.Module):
    """Linear classifier (C classes, background last) with dropout on its input, and linear box deltas without it."""

    def __init__(self, dim: int, num_classes: int, *, dropout: float, class_agnostic: bool) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.dropout = dropout
        self.cls_score = nn.Linear(dim, num_classes + 1)
        self.bbox_pred = nn.Linear(dim, 4 if class_agnostic else 4 * num_classes)
        nn.init.normal_(self.cls_score.weight, std=0.01)
        nn.init.normal_(self.bbox_pred.weight, std=0.001)
        nn.init.zeros_(self.cls_score.bias)
        nn.init.zeros_(self.bbox_pred.bias)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:  # [R, D] -> [R, C+1], [R, 4C] or [R, 4]
        deltas = self.bbox_pred(features)
        logits = self.cls_score(F.dropout(features, self.dropout, self.training))
        return at_least_float32(logits), at_least_float32(deltas)


@dataclass(frozen=True)
class SampledRoIs:
    """RoIs of one image drawn for training: boxes [R, 4], labels [R] (C = background), matched ground truth [R, 4]."""

    boxes: Tensor
    labels: Tensor
    gt_boxes: Tensor

    def take(self, index: Tensor) -> "SampledRoIs":
        return SampledRoIs(self.boxes[index], self.labels[index], self.gt_boxes[index])

    def to(self, device: torch.device) -> "SampledRoIs":
        return SampledRoIs(self.boxes.to(device), self.labels.to(device), self.gt_boxes.to(device))


@torch.no_grad()
def label_rois(proposals: Tensor, gt_boxes: Tensor, gt_labels: Tensor, *, num_classes: int) -> SampledRoIs:
    """Append the ground truth to the proposals and give each its label: IoU >= 0.5 its object's, else background."""
    boxes = torch.cat([proposals, gt_boxes])
    if len(gt_boxes) == 0:
        labels = torch.full((len(boxes),), num_classes, dtype=torch.int64, device=boxes.device)
        return SampledRoIs(boxes, labels, torch.zeros_like(boxes))
    matched = roi_matcher(box_iou(gt_boxes, boxes))
    labels = torch.where(matched >= 0, gt_labels[matched.clamp(min=0)], num_classes)
    return SampledRoIs(boxes, labels, gt_boxes[matched.clamp(min=0)])


def sample_rois(labels: Tensor, *, count: int, positive_fraction: float, num_classes: int) -> Tensor:
    """Indices of the RoIs to train on, foreground first."""
    return torch.cat(
        subsample(labels, count=count, positive_fraction=positive_fraction, background=num_classes)
    )


def box_head_losses(
    predictor: BoxPredictor,
    features: Tensor,
    rois: SampledRoIs,
    classification_loss: Callable[[Tensor, Tensor], Tensor],
) -> dict[str, Tensor]:
    """The classification loss and the L1 box loss (foreground of its own class, over the number of all RoIs).

    Args:
        features: Pooled res5 features of the RoIs, [R, D].
        classification_loss: ``(logits [R, C+1], labels [R]) -> scalar``.
    """
    logits, deltas = predictor(features)
    foreground = torch.nonzero(rois.labels < predictor.num_classes).squeeze(1)
    deltas = deltas.view(len(deltas), deltas.shape[1] // 4, 4)
    columns = rois.labels[foreground] if deltas.shape[1] > 1 else torch.zeros_like(foreground)
    targets = roi_box_coder.encode_single(rois.gt_boxes[foreground], rois.boxes[foreground])
    loss_box = (deltas[foreground, columns] - targets).abs().sum() / max(len(rois.labels), 1)
    return {"loss_cls": classification_loss(logits, rois.labels), "loss_box": loss_box}


@torch.no_grad()
def select_detections(
    logits: Tensor,
    deltas: Tensor,
    proposals: Tensor,
    image_size: tuple[int, int],
    *,
    score_thresh: float,
    max_detections: int,
) -> dict[str, Tensor]:
    """Turn the head's output for one image into detections: decode, clip, threshold, class-wise NMS at IoU 0.5.

    Args:
        logits: [R, C+1], background last. deltas: [R, 4C] or [R, 4]. proposals: [R, 4].
        image_size: (height, width) of the image the boxes live in.
        score_thresh: Keep scores above it. max_detections: Keep the best of all classes together.

    Returns:
        ``boxes`` [D, 4], ``scores`` [D], ``labels`` [D], ``class_scores`` [D, C+1] of the proposal, ``proposal`` [D]
        (its index), best first. Detections equal in score keep the order of proposal, then class.
    """
    probs = logits.softmax(dim=1)
    num_classes = probs.shape[1] - 1
    deltas = deltas.view(len(deltas), deltas.shape[1] // 4, 4)  # not -1: there may be no proposal
    boxes = roi_box_coder.decode_single(
        deltas.reshape(-1, 4), proposals[:, None].expand(-1, deltas.shape[1], 4).reshape(-1, 4)
    )
    boxes = clip_boxes_to_image(boxes, image_size).view(-1, deltas.shape[1], 4).expand(-1, num_classes, 4)
    finite = torch.isfinite(boxes).all(dim=2) & torch.isfinite(probs).all(dim=1, keepdim=True)
    proposal, label = torch.nonzero((probs[:, :-1] > score_thresh) & finite, as_tuple=True)
    boxes, scores = boxes[proposal, label], probs[proposal, label]
    kept = batched_nms(boxes, scores, label, DETECTION_NMS_THRESH)[:max_detections]
    return {
        "boxes": boxes[kept],
        "scores": scores[kept],
        "labels": label[kept],
        "class_scores": probs[proposal[kept]],
        "proposal": proposal[kept],
    }


class Res5RoIHeads(nn.Module):
    """RoIAlign 7x7 (aligned, adaptive sampling), res5 with stride 2, spatial mean, then the box predictor."""

    def __init__(self, params: DetectorParams, channels: int, stride: int, num_classes: int) -> None:
        super().__init__()
        self.params = params
        self.spatial_scale = 1.0 / stride
        self.res5 = build_stage(params, channels, params.res5_width, blocks=params.res5_blocks, stride=2)
        self.box_predictor = BoxPredictor(
            params.res5_width,
            num_classes,
            dropout=params.cls_dropout,
            class_agnostic=params.class_agnostic_boxes,
        )

    def pool(self, features: Tensor, boxes: list[Tensor]) -> Tensor:  # [B, C, H, W] -> [R, C, 7, 7]
        return roi_align(
            features, boxes, ROI_SIZE, spatial_scale=self.spatial_scale, sampling_ratio=0, aligned=True
        )

    def region_features(self, features: Tensor, boxes: list[Tensor]) -> Tensor:
        """Mean res5 feature of each box, images in order: [B, C, H, W] -> [sum R_i, D]."""
        return self.res5(self.pool(features, boxes)).mean(dim=(2, 3))
