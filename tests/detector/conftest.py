"""A tiny detector and made images for the detector's tests."""

import numpy as np
import pytest
import torch

from risf_core.data.dataset import DetectionData, ImageRecord
from risf_core.detector.faster_rcnn import FasterRCNN
from risf_core.params import DetectorParams

TINY = {
    "stages": (1, 1, 1),
    "stem_width": 8,
    "res2_width": 8,
    "res5_blocks": 1,
    "res5_width": 16,
    "anchor_sizes": (16.0, 32.0),
    "rpn_pre_nms_train": 60,
    "rpn_pre_nms_test": 60,
    "rpn_post_nms_train": 20,
    "rpn_post_nms_test": 20,
}


@pytest.fixture
def tiny_params():
    return DetectorParams(**TINY)


@pytest.fixture
def tiny_detector(tiny_params):
    torch.manual_seed(0)
    return FasterRCNN(tiny_params, 3)


def make_images(count: int, *, size: int = 64, seed: int = 0) -> tuple[list, list]:
    """Images with one bright square each, and their targets."""
    generator = torch.Generator().manual_seed(seed)
    images, targets = [], []
    for i in range(count):
        image = torch.randint(0, 60, (3, size, size), generator=generator, dtype=torch.uint8)
        x, y = (int(torch.randint(4, size - 28, (), generator=generator)) for _ in range(2))
        image[i % 3, y : y + 24, x : x + 24] = 250
        images.append(image)
        targets.append({"boxes": torch.tensor([[x, y, x + 24.0, y + 24.0]]), "labels": torch.tensor([i % 3])})
    return images, targets


@pytest.fixture
def square_data(tmp_path):
    """Six images on disk with one square of one of three classes each."""
    from PIL import Image

    images, targets = make_images(6)
    records = []
    for i, (image, target) in enumerate(zip(images, targets, strict=True)):
        path = tmp_path / f"{i}.png"
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)
        records.append(
            ImageRecord(
                image_id=i + 1,
                path=path,
                height=64,
                width=64,
                boxes=target["boxes"].numpy(),
                labels=target["labels"].numpy(),
                is_crowd=np.zeros(1, dtype=bool),
            )
        )
    return DetectionData("squares", ("red", "green", "blue"), (1, 2, 3), tuple(records))
