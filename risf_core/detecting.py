"""Run a whole detector over images: its detections, and the boxes that its RPN proposes.

Images go through one at a time unless asked otherwise, as published: in a batch of several sizes padding would change
the numbers a little. Nothing but the results is kept in memory, so any number of images will do.
"""

import numpy as np
import torch
from torch import Tensor

from risf_core.data.dataset import DetectionData
from risf_core.data.loader import load_batch
from risf_core.detections import Detections
from risf_core.detector.faster_rcnn import FasterRCNN
from risf_core.progress import progress


@torch.no_grad()
def detect_images(detector: FasterRCNN, data: DetectionData, *, batch_size: int = 1) -> Detections:
    """Detections of all images of ``data``, whose classes are those of the detector's head."""
    detector.eval()
    found: list[dict[str, Tensor]] = []
    for images in _batches(detector, data, batch_size, "detecting"):
        found += [{key: value.cpu() for key, value in one.items()} for one in detector(images)]
    return Detections.from_images([image.image_id for image in data.images], found, data.class_names)


@torch.no_grad()
def propose_boxes(
    detector: FasterRCNN, data: DetectionData, *, top: int = 100, batch_size: int = 1
) -> dict[int, np.ndarray]:
    """The best proposals of each image in its own pixels, best first: image id -> float32 [<= top, 4]."""
    detector.eval()
    found: list[np.ndarray] = []
    for images in _batches(detector, data, batch_size, "proposing"):
        batch, sizes = detector.batch([detector.resize(image) for image in images])
        proposals, _ = detector.proposals(detector.backbone(batch), sizes)
        for image, (height, width), (boxes, _) in zip(images, sizes, proposals, strict=True):
            scale = boxes.new_tensor([image.shape[2] / width, image.shape[1] / height]).repeat(2)
            found.append((boxes[:top] * scale).cpu().numpy())
    return {image.image_id: boxes for image, boxes in zip(data.images, found, strict=True)}


def _batches(detector: FasterRCNN, data: DetectionData, batch_size: int, desc: str):
    """The images of ``data`` on the detector's device, in batches."""
    starts = range(0, len(data), batch_size)
    for start in progress(starts, desc=desc, total=len(starts), unit="batch"):
        images, _ = load_batch(data, list(range(start, min(start + batch_size, len(data)))))
        yield [image.to(detector.pixel_mean.device) for image in images]
