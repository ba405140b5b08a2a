"""Fine-tuning of the box head alone on cached region features: what frozen features make exact and cheap.

With everything frozen but the box head, the feature of a region never changes during fine-tuning. It is computed once
for both mirror images of each picture; training then samples regions exactly as the detector would, in the same order
of random numbers (``tests/test_head_training.py`` compares both ways).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

from risf_core.data.dataset import DetectionData
from risf_core.data.loader import load_batch
from risf_core.detections import Detections
from risf_core.detector.faster_rcnn import (
    STORED_MAX_DETECTIONS,
    STORED_SCORE_THRESH,
    FasterRCNN,
    scale_detections,
)
from risf_core.detector.roi_heads import BoxPredictor, SampledRoIs, label_rois, select_detections
from risf_core.errors import CheckpointError
from risf_core.params import SolverParams
from risf_core.progress import progress
from risf_core.training import fit, image_batches


@dataclass(frozen=True)
class RegionFeatures:
    """Regions of many images with their pooled features; an image seen mirrored is an entry of its own.

    ``image_ids`` int64 [M]; ``flipped`` bool [M]; ``sizes`` int64 [M, 2] (height, width); ``counts`` and ``gt_counts``
    int64 [M]; ``boxes`` float32 [sum counts, 4], ``features`` float32 [sum counts, D] of the proposals, best first;
    ``gt_boxes`` [sum gt_counts, 4], ``gt_features`` [sum gt_counts, D] of the annotated boxes (none for test images).
    Boxes are in pixels of the image as the detector sees it: resized, and mirrored where ``flipped``.
    ``output_sizes`` int64 [M, 2] is the original (height, width).
    """

    image_ids: np.ndarray
    flipped: np.ndarray
    sizes: np.ndarray
    output_sizes: np.ndarray
    counts: np.ndarray
    gt_counts: np.ndarray
    boxes: np.ndarray
    features: np.ndarray
    gt_boxes: np.ndarray
    gt_features: np.ndarray

    def save(self, path: Path) -> None:
        """Write atomically as npz."""
        temporary = path.with_name(f".{path.name}.tmp.npz")
        np.savez(temporary, **vars(self))
        temporary.replace(path)

    @classmethod
    def load(cls, path: Path) -> "RegionFeatures":
        try:
            with np.load(path) as file:
                return cls(**{key: file[key] for key in cls.__dataclass_fields__})
        except (OSError, KeyError, ValueError) as error:
            raise CheckpointError(
                f"{path}: not a readable file of region features ({error}). Delete it."
            ) from error


@torch.no_grad()
def extract_region_features(
    detector: FasterRCNN,
    data: DetectionData,
    *,
    training: bool,
    desc: str = "region features",
) -> RegionFeatures:
    """Proposals and pooled features of every image; in ``training`` also mirrored, and of the annotated boxes.

    ``training`` uses the detector's training numbers of proposals, else those of testing. Images go through one at a
    time, as in detection: padding to a common size would change the numbers.
    """
    detector.train(training)
    parts: dict[str, list] = {key: [] for key in RegionFeatures.__dataclass_fields__}
    mirrors = (False, True) if training else (False,)
    for index in progress(range(len(data)), desc=desc, unit="image"):
        for flip in mirrors:
            (image,), (target,) = load_batch(data, [index], flips=[flip])
            values = _regions_of(detector, image, target["boxes"] if training else target["boxes"][:0])
            values |= {"image_ids": [data.images[index].image_id], "flipped": [flip]}
            for key, value in values.items():
                parts[key].append(np.asarray(value))
    return RegionFeatures(**{key: np.concatenate(values) for key, values in parts.items()})


def _regions_of(detector: FasterRCNN, image: torch.Tensor, gt_boxes: torch.Tensor) -> dict[str, object]:
    """What ``RegionFeatures`` holds of one image [3, H, W]; annotated boxes [N, 4] in its own pixels."""
    device = detector.pixel_mean.device
    batch, sizes = detector.batch([detector.resize(image.to(device))])
    features = detector.backbone(batch)
    boxes, _ = detector.proposals(features, sizes)[0][0]
    (height, width), own = sizes[0], image.shape[-2:]
    gt_boxes = (gt_boxes * torch.tensor([width / own[1], height / own[0]]).repeat(2)).to(device)
    pooled = detector.region_features(features, [torch.cat([boxes, gt_boxes])])
    return {
        "sizes": sizes,
        "output_sizes": [tuple(own)],
        "counts": [len(boxes)],
        "gt_counts": [len(gt_boxes)],
        "boxes": boxes.cpu().numpy(),
        "features": pooled[: len(boxes)].cpu().numpy(),
        "gt_boxes": gt_boxes.cpu().numpy(),
        "gt_features": pooled[len(boxes) :].cpu().numpy(),
    }


def cached_region_features(path: Path, compute: Callable[[], RegionFeatures]) -> RegionFeatures:
    """Load the features at ``path``; compute and store them first if they are not there (one process at a time)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        if not path.exists():
            compute().save(path)
    return RegionFeatures.load(path)


@dataclass(frozen=True)
class LabelledRegions:
    """The regions of one image (or its mirror image): candidates as ``SampledRoIs`` and their features [R, D]."""

    rois: SampledRoIs
    features: Tensor


def label_regions(cache: RegionFeatures, data: DetectionData) -> dict[tuple[int, bool], LabelledRegions]:
    """Label the cached regions with the annotations of ``data``, by image id and mirroring.

    ``data`` may hold fewer images and boxes than the cache was made from (fewer shots of the same draw).

    Raises:
        CheckpointError: If an image or a box of ``data`` is not in the cache.
    """
    position = {
        (int(i), bool(f)): m for m, (i, f) in enumerate(zip(cache.image_ids, cache.flipped, strict=True))
    }
    ends, gt_ends = cache.counts.cumsum(), cache.gt_counts.cumsum()
    labelled = {}
    for image in data.images:
        boxes, labels = image.boxes[~image.is_crowd], image.labels[~image.is_crowd]
        for flip in (False, True):
            if (m := position.get((image.image_id, flip))) is None:
                raise CheckpointError(f"region features hold no image {image.image_id} (flipped: {flip})")
            rows = slice(ends[m] - cache.counts[m], ends[m])
            gt_rows = slice(gt_ends[m] - cache.gt_counts[m], gt_ends[m])
            wanted = _as_seen(boxes, image, flip, cache.sizes[m])
            # [N, G]
            distance = np.abs(wanted[:, None] - cache.gt_boxes[gt_rows][None]).max(axis=2, initial=0.0)
            found = distance.argmin(axis=1) if distance.shape[1] else np.zeros(len(wanted), dtype=int)
            if len(wanted) and (not distance.shape[1] or distance[np.arange(len(found)), found].max() > 1e-2):
                raise CheckpointError(f"region features of image {image.image_id} lack an annotated box")
            gt_boxes = torch.from_numpy(cache.gt_boxes[gt_rows][found])
            rois = label_rois(
                torch.from_numpy(cache.boxes[rows]),
                gt_boxes,
                torch.from_numpy(labels),
                num_classes=len(data.class_names),
            )
            features = np.concatenate([cache.features[rows], cache.gt_features[gt_rows][found]])
            labelled[image.image_id, flip] = LabelledRegions(rois, torch.from_numpy(features))
    return labelled


def _as_seen(boxes: np.ndarray, image, flip: bool, size: Sequence[int]) -> np.ndarray:
    """Boxes of the original image in the pixels of the resized, perhaps mirrored one."""
    boxes = boxes.copy()
    if flip:
        boxes[:, [0, 2]] = image.width - boxes[:, [2, 0]]
    return boxes * np.tile([size[1] / image.width, size[0] / image.height], 2).astype(np.float32)


def train_box_head(
    detector: FasterRCNN,
    data: DetectionData,
    cache: RegionFeatures,
    solver: SolverParams,
    *,
    seed: int,
    desc: str = "box head",
) -> list[dict[str, float]]:
    """Train ``detector``'s box predictor on cached regions; nothing else of it changes. Returns the loss curve."""
    detector.set_trainable("box_head")
    detector.train()
    regions, device = label_regions(cache, data), detector.pixel_mean.device
    batches = image_batches(data, solver, seed=seed)

    def step(iteration: int) -> dict[str, Tensor]:
        indices = batches(iteration)
        flips = (torch.rand(len(indices)) < 0.5).tolist()
        chosen = [regions[data.images[i].image_id, flip] for i, flip in zip(indices, flips, strict=True)]
        samples = [detector.sample(region.rois.labels) for region in chosen]
        features = torch.cat([region.features[index] for region, index in zip(chosen, samples, strict=True)])
        rois = [region.rois.take(index).to(device) for region, index in zip(chosen, samples, strict=True)]
        return detector.head_losses(features.to(device), rois)

    return fit(detector, step, solver, seed=seed, desc=desc)


@torch.no_grad()
def detect_from_features(
    predictor: BoxPredictor,
    cache: RegionFeatures,
    class_names: Sequence[str],
    *,
    score_thresh: float = STORED_SCORE_THRESH,
    max_detections: int = STORED_MAX_DETECTIONS,
) -> Detections:
    """Detections of all cached test images with this box predictor, in original pixels."""
    predictor.eval()
    device = predictor.cls_score.weight.device
    logits, deltas = (output.cpu() for output in predictor(torch.from_numpy(cache.features).to(device)))
    boxes, counts = torch.from_numpy(cache.boxes), cache.counts.tolist()
    found = []
    for *one, size, output_size in zip(
        logits.split(counts),
        deltas.split(counts),
        boxes.split(counts),
        cache.sizes.tolist(),
        cache.output_sizes.tolist(),
        strict=True,
    ):
        selected = select_detections(
            *one, tuple(size), score_thresh=score_thresh, max_detections=max_detections
        )
        found.append(scale_detections(selected, tuple(size), tuple(output_size)))
    return Detections.from_images(cache.image_ids.tolist(), found, class_names)
