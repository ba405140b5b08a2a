"""Training of an open-vocabulary detector: steps of images with boxes and images with names, on the shared loop."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from risf_core.data.dataset import DetectionData
from risf_core.data.loader import ImageCache, image_order, load_batch
from risf_core.errors import DataError
from risf_core.open_vocabulary.detector import (
    Batch,
    ImageNames,
    OpenVocabularyRCNN,
    RegionTargets,
    Supervision,
)
from risf_core.open_vocabulary.image_labels import ImageLabels
from risf_core.open_vocabulary.regions import RegionSet
from risf_core.params import SolverParams
from risf_core.training import batches_by_iteration, fit, image_batches, step_seed

GRADIENT_EVERY = 25  # steps between measurements of the gradients on f
FLIP_CHANCE = 0.5


@dataclass
class TrainingSet:
    """What the steps draw from.

    ``boxes``: images with boxes of base classes. ``names``: images with names, or None. ``regions``: regions with
    CLIP's embeddings for images of both, or None. ``label_boxes``: boxes of the names, given instead of chosen: a
    region set whose labels are columns; None where the detector chooses.
    """

    boxes: DetectionData
    names: ImageLabels | None = None
    regions: RegionSet | None = None
    label_boxes: RegionSet | None = None
    box_order: Callable[[int], list[int]] | None = None  # positions by iteration; None: every image alike


def train_open_vocabulary(
    detector: OpenVocabularyRCNN,
    data: TrainingSet,
    supervision: Supervision,
    solver: SolverParams,
    *,
    seed: int,
    desc: str,
    mixing: str = "joint",
    images: ImageCache | None = None,
    checkpoint: Path | None = None,
) -> list[dict[str, float]]:
    """Train on boxes, and on names and regions where ``supervision`` has them; returns the loss curve (see `fit`).

    Every step has ``solver.batch_size`` images with boxes. With image-level supervision there are also
    ``supervision.images.batch_size`` images with names: in the same step (``mixing`` "joint", the same number of steps
    and of images with boxes for every arm), or in steps of their own (``mixing`` "alternate", as published: every
    second step).

    Raises:
        DataError: If image-level supervision has no images with names.
    """
    step = _Step(detector, data, supervision, solver, seed=seed, mixing=mixing, images=images or ImageCache())
    detector.train()
    return fit(detector, step, solver, seed=seed, desc=desc, checkpoint=checkpoint)


class _Step:
    """One training step by its iteration."""

    def __init__(
        self,
        detector: OpenVocabularyRCNN,
        data: TrainingSet,
        supervision: Supervision,
        solver: SolverParams,
        *,
        seed: int,
        mixing: str,
        images: ImageCache,
    ) -> None:
        self.detector, self.data, self.supervision = detector, data, supervision
        self.mixing, self.images = mixing, images
        self.box_batches = data.box_order or image_batches(data.boxes, solver, seed=seed)
        self.name_batches = None
        if supervision.images is not None:
            if data.names is None or not len(data.names):
                raise DataError(
                    "image-level supervision without an image that has names. Give label images, or images: null."
                )
            order = image_order(len(data.names), supervision.images.batch_size, seed=step_seed(seed, -3))
            self.name_batches = batches_by_iteration(order)

    def __call__(self, iteration: int) -> dict[str, Tensor]:
        batch = Batch([], [], [], [])
        alternates = self.mixing == "alternate" and self.name_batches is not None
        if not alternates or iteration % 2 == 0:
            self._add_boxes(batch, self.box_batches(iteration))
        if self.name_batches is not None and (not alternates or iteration % 2 == 1):
            self._add_names(batch, self.name_batches(iteration))
        if self.supervision.distillation is not None:
            self._shuffle(batch)
        losses = self.detector.step_losses(batch, self.supervision)
        if iteration % GRADIENT_EVERY == 0:
            cosine = gradient_cosine(self.detector, losses)
            if cosine is not None:
                self.supervision.measured.append(cosine)
        return losses

    def _load(self, data: DetectionData, indices: list[int]) -> tuple[list[Tensor], list[dict], list[bool]]:
        flips = (torch.rand(len(indices)) < FLIP_CHANCE).tolist()
        images, targets = load_batch(data, indices, flips=flips, cache=self.images)
        device = self.detector.pixel_mean.device
        targets = [{key: value.to(device) for key, value in target.items()} for target in targets]
        return [image.to(device) for image in images], targets, flips

    def _add_boxes(self, batch: Batch, indices: list[int]) -> None:
        images, targets, flips = self._load(self.data.boxes, indices)
        batch.images += images
        batch.targets += targets
        batch.names += [None] * len(images)
        batch.regions += [self._regions(self.data.boxes, i, flip) for i, flip in zip(indices, flips)]

    def _add_names(self, batch: Batch, indices: list[int]) -> None:
        data = self.data.names.data
        images, _, flips = self._load(data, indices)
        batch.images += images
        batch.targets += [None] * len(images)
        batch.names += [self._names(i, flip) for i, flip in zip(indices, flips)]
        batch.regions += [self._regions(data, i, flip) for i, flip in zip(indices, flips)]

    def _regions(self, data: DetectionData, index: int, flip: bool) -> RegionTargets | None:
        if self.supervision.distillation is None or self.data.regions is None:
            return None
        record = data.images[index]
        found = self.data.regions.of(record.image_id)
        device = self.detector.pixel_mean.device
        boxes = torch.from_numpy(mirrored(found.boxes, record.width) if flip else found.boxes.copy())
        embeddings = torch.from_numpy(found.embeddings.astype(np.float32))
        return RegionTargets(boxes.to(device), embeddings.to(device))

    def _names(self, index: int, flip: bool) -> ImageNames:
        names, device = self.data.names, self.detector.pixel_mean.device
        labels = torch.from_numpy(names.labels[index]).to(device)
        if self.data.label_boxes is None:
            return ImageNames(labels)
        record = names.data.images[index]
        found = self.data.label_boxes.of(record.image_id)
        boxes = mirrored(found.boxes, record.width) if flip else found.boxes.copy()
        return ImageNames(
            torch.from_numpy(found.labels.copy()).to(device), torch.from_numpy(boxes).to(device)
        )

    def _shuffle(self, batch: Batch) -> None:
        """The control "shuffled": every region of the batch gets another's embedding."""
        if self.supervision.distillation.teacher != "shuffled":
            return
        there = [one for one in batch.regions if one is not None]
        mixed = torch.cat([one.embeddings for one in there])
        order = torch.randperm(len(mixed))
        source = torch.empty_like(order)
        source[order] = order.roll(1)  # one random cycle: none keeps its own
        mixed = mixed[source.to(mixed.device)]
        parts = iter(mixed.split([len(one.boxes) for one in there]))
        batch.regions = [
            None if one is None else RegionTargets(one.boxes, next(parts)) for one in batch.regions
        ]


def mirrored(boxes: np.ndarray, width: int) -> np.ndarray:
    """Boxes [N, 4] of an image mirrored left to right."""
    return np.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], axis=1)


def gradient_cosine(detector: OpenVocabularyRCNN, losses: dict[str, Tensor]) -> float | None:
    """Cosine between what distillation and classification want of the projection f; None where one of them is not."""
    weight = detector.roi_heads.box_predictor.projection.weight
    distilled = [losses[name] for name in ("loss_point", "loss_relation") if name in losses]
    classified = [losses[name] for name in ("loss_cls", "loss_image") if name in losses]
    if not (weight.requires_grad and distilled and classified):
        return None
    gradients = []
    for part in (distilled, classified):
        (gradient,) = torch.autograd.grad(sum(part), weight, retain_graph=True, allow_unused=True)
        if gradient is None or not gradient.any():
            return None
        gradients.append(gradient.flatten().float())
    return float(torch.cosine_similarity(*gradients, dim=0))
