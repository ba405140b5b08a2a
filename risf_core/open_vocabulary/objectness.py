"""A class-agnostic objectness that base boxes teach, and that nothing teaches to call novel objects background."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.ops import box_iou, roi_align

from risf_core.data.dataset import DetectionData
from risf_core.data.loader import load_batch
from risf_core.detector.faster_rcnn import FasterRCNN
from risf_core.errors import DataError
from risf_core.progress import progress

logger = logging.getLogger(__name__)

MIN_IOU = (
    0.3  # OLN (Kim et al. 2022): proposals below it are no samples of localisation quality, and no negatives
)
GRID = 3  # cells a side of the features that tell localisation quality; chosen by recall on split 2


class ObjectnessHead(nn.Module):
    """How well a proposal fits an object, whatever its class, from the detector's own map under it.

    Input are the features of `_quality_features`, which it standardises; two linear layers, a sigmoid.
    """

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(dim, hidden), nn.ReLU(), nn.Linear(hidden, 1))
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("std", torch.ones(dim))
        self.classes: tuple[str, ...] = ()  # whose boxes it was trained on

    def forward(self, features: Tensor) -> Tensor:
        """Expected IoU with the object, 0 to 1: [R, dim] -> [R]."""
        return self.layers((features.float() - self.mean) / self.std).squeeze(1).sigmoid()


def train_objectness(
    detector: FasterRCNN,
    data: DetectionData,
    *,
    seed: int,
    num_images: int = 300,
    hidden: int = 128,
    iterations: int = 500,
    batch_size: int = 256,
    lr: float = 2e-3,
    weight_decay: float = 0.01,
) -> ObjectnessHead:
    """Learn localisation quality from base boxes, in the manner of OLN (Kim et al. 2022, https://arxiv.org/abs/2108.06753).

    The target of a proposal is its IoU with the box that it overlaps most; those below 0.3 are left out. So nothing
    outside the boxes is a negative, and an unlabelled novel object is not taught to be background. Loss: L1. Detector
    and proposals stay as they are.

    Args:
        detector: A base model; its map is not trained.
        data: Images with the boxes to learn from: those of base classes, for a provider that has seen no novel ones.
        seed: Of the choice of images, the weights and the batches.
        num_images: Images whose proposals are used, at most.
        hidden: Width of the hidden layer.
        iterations: Steps of AdamW, the rate falling to 0 by a cosine.
        batch_size: Proposals of a step.
        lr: Its first rate.
        weight_decay: Of AdamW.

    Raises:
        DataError: If no proposal overlaps a box by 0.3.
    """
    features, quality = _quality_samples(detector, _some_images(data, num_images, seed))
    if not len(quality):
        raise DataError(
            f"{data.name}: none of the detector's proposals overlaps an annotated box by IoU {MIN_IOU}. Expected a "
            "trained detector and images with boxes."
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = ObjectnessHead(features.shape[1], hidden).to(features.device)
        head.mean.copy_(features.float().mean(0))
        head.std.copy_(features.float().std(0, correction=0).clamp(min=1e-6))
        optimizer = torch.optim.AdamW(head.parameters(), lr=lr, weight_decay=weight_decay)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, iterations)
        for _ in range(iterations):
            rows = torch.randint(len(quality), (batch_size,)).to(features.device)
            loss = (head(features[rows]) - quality[rows]).abs().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    head.classes = data.class_names
    with torch.no_grad():
        error = float((head(features) - quality).abs().mean())
    logger.info("objectness: %d proposals, mean error of the IoU %.3f at the end", len(quality), error)
    return head.eval().requires_grad_(False)


@torch.no_grad()
def proposals_with_features(
    detector: FasterRCNN, data: DetectionData, batch_size: int, desc: str | None
) -> Iterator[tuple]:
    """Of each image boxes [R, 4] in its pixels, logits [R], and a function that gives their features [R, F].

    Features are the backbone's map under each box as `GRID` x `GRID` cells: res5 is shaped by the base classes, and
    localisation quality needs to know where in the box something is.
    """
    detector.eval()
    starts = range(0, len(data), batch_size)
    for start in progress(starts, desc=desc, total=len(starts), unit="batch") if desc else starts:
        images, _ = load_batch(data, range(start, min(start + batch_size, len(data))))
        images = [image.to(detector.pixel_mean.device) for image in images]
        batch, sizes = detector.batch([detector.resize(image) for image in images])
        maps = detector.backbone(batch)
        found, _ = detector.proposals(maps, sizes)
        for number, (image, (height, width), (boxes, logits)) in enumerate(zip(images, sizes, found)):
            scale = boxes.new_tensor([image.shape[2] / width, image.shape[1] / height]).repeat(2)
            features = _features(maps[number : number + 1], boxes, detector.backbone.stride)
            yield boxes * scale, logits, features


def _features(maps: Tensor, boxes: Tensor, stride: int) -> Callable[[], Tensor]:
    """A function, so that those who need no features make none."""

    def features() -> Tensor:
        pooled = roi_align(maps, [boxes], GRID, spatial_scale=1.0 / stride, sampling_ratio=0, aligned=True)
        return pooled.flatten(1)

    return features


@torch.no_grad()
def _quality_samples(detector: FasterRCNN, data: DetectionData) -> tuple[Tensor, Tensor]:
    """Features float16 [S, F] and IoU [S] of the proposals that overlap a box by 0.3."""
    features, quality = [], []
    for record, (boxes, _, features_of) in zip(data.images, proposals_with_features(detector, data, 1, None)):
        objects = torch.from_numpy(record.boxes[~record.is_crowd]).to(boxes)
        if len(objects) and len(boxes):
            ious = box_iou(boxes, objects).amax(dim=1)
            is_sample = ious >= MIN_IOU
            features.append(features_of()[is_sample].half())
            quality.append(ious[is_sample])
    return (torch.cat(features), torch.cat(quality)) if quality else (torch.empty(0, 1), torch.empty(0))


def _some_images(data: DetectionData, count: int, seed: int) -> DetectionData:
    """At most so many of the images that have a box, drawn without replacement, in the order of the data."""
    full = data.drop_empty()
    order = np.random.default_rng(seed).permutation(len(full))[:count]
    images = tuple(full.images[place] for place in np.sort(order))
    return DetectionData(full.name, full.class_names, full.category_ids, images)
