"""Equality with numbers computed by the published code, where its folder is given as RISF_REFERENCE."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from risf_core.detector.checkpoints import load_weights
from risf_core.detector.faster_rcnn import FasterRCNN
from risf_core.params import DetectorParams

REFERENCE = Path(os.environ.get("RISF_REFERENCE", "nowhere"))
pytestmark = pytest.mark.skipif(
    not REFERENCE.is_dir(), reason="RISF_REFERENCE names no folder of reference numbers"
)

QUARTER_R101 = DetectorParams(
    block="bottleneck",
    stages=(3, 4, 23),
    stem="resnet",
    stem_width=16,
    res2_width=64,
    norm="FrozenBN",
    dilate_res4=False,
    res5_blocks=3,
    res5_width=512,
    stride_in_1x1=True,
    freeze_at=3,
    anchor_sizes=(32.0, 64.0, 128.0, 256.0, 512.0),
    rpn_pre_nms_test=6000,
    rpn_post_nms_test=1000,
    pixel_mean=(103.53, 116.28, 123.675),
    pixel_std=(1.0, 1.0, 1.0),
    image_order="BGR",
    min_size=(800,),
)


@pytest.fixture(scope="module")
def detector():
    model = FasterRCNN(QUARTER_R101, 20).eval()
    state = torch.load(REFERENCE / "model_r101_quarter_state_fp16.pth", weights_only=True)
    report = load_weights(model, {key: value.float() for key, value in state.items()}, allow_missing=())
    assert not report.left_over
    return model


def test_state_dict_keys_and_shapes_are_the_published_ones(detector):
    published = json.loads((REFERENCE / "model_r101_quarter_keys.json").read_text())
    assert {key: list(value.shape) for key, value in detector.state_dict().items()} == dict(published)


@pytest.mark.parametrize(("case", "output_size"), [("eval0", (480, 640)), ("eval1", (249, 375))])
def test_evaluation_path_equals_the_published_one(detector, case, output_size):
    reference = np.load(REFERENCE / "model_r101_quarter_eval.npz")
    expected = {key.split("/")[1]: reference[key] for key in reference.files if key.startswith(case)}
    image = torch.from_numpy(expected["image_u8_bgr_chw"])
    with torch.no_grad():
        batch, sizes = detector.batch([image.flip(0)])
        features = detector.backbone(batch)
        _, (anchors, logits, _) = detector.proposals(features, sizes)
        # near-equal logits may swap places among the 1,000
        boxes = torch.from_numpy(expected["proposal_boxes"])
        pooled = detector.region_features(features, [boxes])
        cls_logits, box_deltas = detector.roi_heads.box_predictor(pooled)
    found = detector.detect_resized_bgr(image, output_size, score_thresh=0.05, max_detections=100)

    def worst(value, key):
        return np.abs(np.asarray(value) - expected[key]).max() / np.abs(expected[key]).max()

    assert worst(features, "res4") < 1e-4
    assert np.array_equal(anchors, expected["anchors"])
    objectness = expected["rpn_objectness_map"].transpose(0, 2, 3, 1).reshape(1, -1)
    assert np.abs(logits.numpy() - objectness).max() < 1e-4 * np.abs(objectness).max()
    assert worst(pooled[:200], "roi_res5_mean_first200") < 1e-4
    assert worst(cls_logits, "cls_logits") < 1e-4 and worst(box_deltas, "box_deltas") < 1e-4
    assert np.array_equal(found["labels"], expected["det_classes"])
    assert np.abs(found["boxes"].numpy() - expected["det_boxes"]).max() < 0.01
    assert np.abs(found["scores"].numpy() - expected["det_scores"]).max() < 2e-5
