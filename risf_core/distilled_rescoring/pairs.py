"""What a head is trained on: the detector's feature and CLIP's embedding of the same boxes of base training images.

Novel objects stand unlabelled in some of these images. Their proposals are taken like any others, which the pairs note
(``has_novel``), so that they can be left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import box_iou

from risf_core.cm_clip import CMCLIP
from risf_core.data.benchmark import Benchmark
from risf_core.data.dataset import DetectionData, ImageRecord
from risf_core.data.loader import read_image
from risf_core.detections import _load_npz as load_arrays
from risf_core.detections import _save_npz as save_arrays
from risf_core.detector.faster_rcnn import FasterRCNN
from risf_core.distilled_rescoring_params import RegionChoice
from risf_core.errors import DataError
from risf_core.progress import progress

KINDS = ("annotated", "jittered", "proposal", "background")
SAME_BOX = 0.7  # a proposal that overlaps an annotated box so much is that box again
TOUCHES = 0.3  # background regions overlap no annotated box so much
BLOCK = 200  # images stored at a time
FIRST_BACKGROUND = 30  # of the proposals, best first: those behind have a low objectness


@dataclass(frozen=True, eq=False)
class RegionPairs:
    """Regions of many images, as the detector and as CLIP see them.

    Attributes:
        features: float32 [M, D], the detector's, behind its decoupled layer and last stage.
        embeds: float32 [M, d], CLIP's, normalised.
        kinds: int64 [M], index into `KINDS`.
        image_ids: int64 [M].
        has_novel: bool [M], whether the image shows a novel object, which nobody has labelled.
        boxes: float32 [M, 4], corners in pixels of the original image.
    """

    features: np.ndarray
    embeds: np.ndarray
    kinds: np.ndarray
    image_ids: np.ndarray
    has_novel: np.ndarray
    boxes: np.ndarray

    def __post_init__(self) -> None:
        lengths = {name: len(value) for name, value in vars(self).items()}
        if len(set(lengths.values())) > 1:
            raise DataError(f"region pairs: arrays of {lengths} rows. Expected as many of each.")

    def __len__(self) -> int:
        return len(self.features)

    def keep(self, mask: np.ndarray) -> RegionPairs:
        """The regions of a bool mask [M]."""
        return RegionPairs(**{name: value[mask] for name, value in vars(self).items()})

    def images(self, choice: str, *, seed: int) -> RegionPairs:
        """Of all images, of those without a novel object, or of as many as these at random.

        Args:
            choice: "all", "no_novel" or "as_many".
            seed: Of the draw.

        Raises:
            DataError: If no image is left.
        """
        if choice == "all":
            return self
        every = np.unique(self.image_ids)
        without = np.unique(self.image_ids[~self.has_novel])
        if not len(without):
            raise DataError(f"all {len(every)} images show a novel object, so none is left without one.")
        if choice == "as_many":
            without = np.random.default_rng([seed, len(every)]).choice(every, len(without), replace=False)
        return self.keep(np.isin(self.image_ids, without))

    @classmethod
    def join(cls, parts: Sequence[RegionPairs]) -> RegionPairs:
        """Several parts as one."""
        return cls(
            **{
                name: np.concatenate([getattr(part, name) for part in parts])
                for name in cls.__dataclass_fields__
            }
        )

    def save(self, path: Path) -> None:
        """Write an ``.npz`` file; it appears whole or not at all."""
        save_arrays(path, vars(self))

    @classmethod
    def load(cls, path: Path) -> RegionPairs:
        """Read a file that `save` wrote; a DataError names one that is missing or unreadable."""
        return cls(**load_arrays(path, tuple(cls.__dataclass_fields__)))


class ImageView(NamedTuple):
    """One image in the detector: its pixels, its backbone map [1, C, h, w], and its size as the detector sees it."""

    image: Tensor
    features: Tensor
    size: tuple[int, int]

    @property
    def scale(self) -> Tensor:
        """From pixels of the original image to those of the resized one, [4]."""
        height, width = self.image.shape[1:]
        return torch.tensor([self.size[1] / width, self.size[0] / height]).repeat(2)


@torch.no_grad()
def view_image(detector: FasterRCNN, record: ImageRecord) -> ImageView:
    """Read an image and run the backbone on it; the detector is in evaluation mode."""
    image = read_image(record.path, size=(record.height, record.width))
    batch, sizes = detector.batch([detector.resize(image.to(detector.pixel_mean.device))])
    return ImageView(image, detector.backbone(batch), sizes[0])


@torch.no_grad()
def pool_boxes(detector: FasterRCNN, view: ImageView, boxes: Tensor) -> Tensor:
    """The detector's features of boxes [N, 4] in pixels of the original image: [N, D] on the CPU."""
    device = view.features.device
    return detector.region_features(view.features, [(boxes * view.scale).to(device)]).cpu()


@torch.no_grad()
def propose(detector: FasterRCNN, view: ImageView) -> Tensor:
    """The proposals of an image, best first, in pixels of the original image: [R, 4] on the CPU."""
    return detector.proposals(view.features, [view.size])[0][0][0].cpu() / view.scale


def choose_regions(
    truth: Tensor, proposals: Tensor, size: tuple[int, int], choice: RegionChoice, rng: np.random.Generator
) -> tuple[Tensor, np.ndarray]:
    """The regions of one image.

    Args:
        truth: Annotated boxes of base classes, [G, 4].
        proposals: Best first, [R, 4].
        size: (height, width) of the image.
        choice: How many of each kind.
        rng: Draws which annotated boxes and background proposals, and the noise.

    Returns:
        Boxes [N, 4] and their kinds, int64 [N].
    """
    overlap = box_iou(proposals, truth).amax(dim=1) if len(truth) else torch.zeros(len(proposals))
    order = torch.from_numpy(rng.permutation(len(truth)))
    low = torch.nonzero(overlap[FIRST_BACKGROUND:] < TOUCHES).squeeze(1) + FIRST_BACKGROUND
    low = low[torch.from_numpy(rng.permutation(len(low)))[: choice.background]]
    parts = (
        truth[order[: choice.annotated]],
        _moved(truth[order[: choice.jittered]], size, choice.jitter, rng),
        proposals[torch.nonzero(overlap < SAME_BOX).squeeze(1)[: choice.proposals]],
        proposals[low],
    )
    return torch.cat(parts), np.repeat(np.arange(len(KINDS)), [len(part) for part in parts])


def _moved(boxes: Tensor, size: tuple[int, int], jitter: float, rng: np.random.Generator) -> Tensor:
    """Boxes with Gaussian noise on each edge, within the image and at least a pixel wide."""
    limits = torch.tensor([size[1], size[0]], dtype=torch.float32)
    sides = (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)
    corners = boxes + torch.from_numpy(rng.normal(0.0, jitter, tuple(boxes.shape)).astype(np.float32)) * sides
    near = torch.minimum(corners[:, :2], corners[:, 2:]).clamp(min=0).minimum(limits - 1)
    far = torch.maximum(torch.maximum(corners[:, :2], corners[:, 2:]).minimum(limits), near + 1)
    return torch.cat([near, far], dim=1)


def collect_pairs(
    detector: FasterRCNN, benchmark: Benchmark, clip: CMCLIP, choice: RegionChoice, *, seed: int, folder: Path
) -> RegionPairs:
    """Embed the regions of base training images with the detector and with CLIP; each image is decoded once.

    Args:
        detector: The base model; its proposals are those of testing.
        benchmark: Its base training images.
        clip: The teacher.
        choice: Which regions, and of how many images.
        seed: Of what is drawn.
        folder: Where each block of images is kept as soon as it is done, so that a killed run goes on.
    """
    detector.eval()
    with_novel = benchmark.train.select_classes(benchmark.novel_names).drop_empty()
    novel = {image.image_id for image in with_novel.images}
    records = _spread(benchmark.base_train, choice.images)
    blocks = [records[start : start + BLOCK] for start in range(0, len(records), BLOCK)]
    pairs = []
    for number, block in enumerate(progress(blocks, desc="regions of base images", unit="block")):
        path = folder / f"pairs-{number:03d}.npz"
        if not path.exists():
            options = {"novel": novel, "seed": seed}
            RegionPairs.join([image_pairs(detector, one, clip, choice, **options) for one in block]).save(
                path
            )
        pairs.append(RegionPairs.load(path))
    return RegionPairs.join(pairs)


def image_pairs(
    detector: FasterRCNN,
    record: ImageRecord,
    clip: CMCLIP,
    choice: RegionChoice,
    *,
    novel: set[int],
    seed: int,
) -> RegionPairs:
    """The regions of one image; ``novel`` holds the ids of the images that show a novel object."""
    rng = np.random.default_rng([seed, record.image_id])
    view = view_image(detector, record)
    truth = torch.from_numpy(record.boxes[~record.is_crowd])
    size = (record.height, record.width)
    boxes, kinds = choose_regions(truth, propose(detector, view), size, choice, rng)
    return RegionPairs(
        features=pool_boxes(detector, view, boxes).numpy(),
        embeds=clip.embed_boxes(view.image, boxes).cpu().numpy(),
        kinds=kinds,
        image_ids=np.full(len(boxes), record.image_id),
        has_novel=np.full(len(boxes), record.image_id in novel),
        boxes=boxes.numpy(),
    )


def _spread(data: DetectionData, count: int | None) -> list[ImageRecord]:
    """So many images, evenly spaced; all if there are no more."""
    if count is None or count >= len(data):
        return list(data.images)
    places = np.linspace(0, len(data) - 1, count).round().astype(int)
    return [data.images[place] for place in places]
