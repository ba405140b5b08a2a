"""The published detector at a quarter of its width, with weights from the folder that RISF_REFERENCE names."""

import os
from pathlib import Path

import pytest
import torch

from risf_core.detector.faster_rcnn import FasterRCNN
from risf_core.detector.presets import published_detector
from risf_core.detector.pretrained import load_pretrained

REFERENCE = Path(os.environ.get("RISF_REFERENCE", "nowhere"))
needs_reference = pytest.mark.skipif(
    not REFERENCE.is_dir(), reason="RISF_REFERENCE names no folder of reference numbers"
)
QUARTER_WIDTH = {"stem_width": 16, "res2_width": 64, "res5_width": 512}
QUARTER_R101 = published_detector(101, data="coco", fine_tuning=True).model_copy(update=QUARTER_WIDTH)


def load_reference_model(**changes) -> FasterRCNN:
    """The detector of the reference, 20 classes, in evaluation mode; ``changes`` replace its parameters."""
    model = FasterRCNN(QUARTER_R101.model_copy(update=changes), 20).eval()
    report = load_pretrained(model, REFERENCE / "model_r101_quarter_state_fp16.pth", allow_missing=())
    assert not report.left_over
    return model


@pytest.fixture(scope="module")
def two_threads():
    """The reference was computed with two threads, and res4's convolutions round differently with one: with two its
    values are met bit for bit, with one within 2e-6 of the map's scale, which moves scores by 1e-5."""
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)
