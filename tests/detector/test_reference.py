"""Equality of the evaluation path with numbers computed by the published code."""

import json

import numpy as np
import pytest
import torch
import yaml

from risf_core.detector.roi_heads import select_detections

from .reference_model import (
    QUARTER_R101,
    REFERENCE,
    load_reference_model,
    needs_reference,
    two_threads,  # noqa: F401  a fixture
)

pytestmark = [needs_reference, pytest.mark.usefixtures("two_threads")]


@pytest.fixture(scope="module")
def detector():
    return load_reference_model()


def load_case(name: str) -> dict[str, np.ndarray]:
    reference = np.load(REFERENCE / "model_r101_quarter_eval.npz")
    return {key.split("/")[1]: reference[key] for key in reference.files if key.startswith(f"{name}/")}


def worst(value, expected: np.ndarray) -> float:
    """Largest difference, relative to the largest expected value."""
    assert tuple(value.shape) == expected.shape
    return np.abs(np.asarray(value) - expected).max() / np.abs(expected).max()


def test_state_dict_keys_and_shapes_are_the_published_ones(detector):
    published = json.loads((REFERENCE / "model_r101_quarter_keys.json").read_text())
    assert {key: list(value.shape) for key, value in detector.state_dict().items()} == dict(published)


def test_preset_equals_the_published_configuration():
    # The file is YAML with anchors but plain types; the widths differ by the quarter, and sizes are lists there.
    published = yaml.safe_load((REFERENCE / "model_r101_quarter_cfg.yaml").read_text())
    model, inputs = published["MODEL"], published["INPUT"]
    expected = {
        "stem_width": model["RESNETS"]["STEM_OUT_CHANNELS"],
        "res2_width": model["RESNETS"]["RES2_OUT_CHANNELS"],
        "norm": model["RESNETS"]["NORM"],
        "stride_in_1x1": model["RESNETS"]["STRIDE_IN_1X1"],
        "freeze_at": model["BACKBONE"]["FREEZE_AT"],
        "anchor_sizes": tuple(model["ANCHOR_GENERATOR"]["SIZES"][0]),
        "anchor_ratios": tuple(model["ANCHOR_GENERATOR"]["ASPECT_RATIOS"][0]),
        "rpn_pre_nms_train": model["RPN"]["PRE_NMS_TOPK_TRAIN"],
        "rpn_pre_nms_test": model["RPN"]["PRE_NMS_TOPK_TEST"],
        "rpn_post_nms_train": model["RPN"]["POST_NMS_TOPK_TRAIN"],
        "rpn_post_nms_test": model["RPN"]["POST_NMS_TOPK_TEST"],
        "rpn_batch": model["RPN"]["BATCH_SIZE_PER_IMAGE"],
        "rpn_gradient_scale": model["RPN"]["BACKWARD_SCALE"],
        "roi_batch": model["ROI_HEADS"]["BATCH_SIZE_PER_IMAGE"],
        "roi_positive_fraction": model["ROI_HEADS"]["POSITIVE_FRACTION"],
        "roi_gradient_scale": model["ROI_HEADS"]["BACKWARD_SCALE"],
        "cls_dropout": model["ROI_HEADS"]["DROPOUT_RATIO"],
        "class_agnostic_boxes": model["ROI_BOX_HEAD"]["CLS_AGNOSTIC_BBOX_REG"],
        "pixel_mean": tuple(model["PIXEL_MEAN"]),
        "pixel_std": tuple(model["PIXEL_STD"]),
        "image_order": inputs["FORMAT"],
        "min_size": tuple(inputs["MIN_SIZE_TRAIN"]),
        "max_size": inputs["MAX_SIZE_TRAIN"],
    }
    assert {key: getattr(QUARTER_R101, key) for key in expected} == expected
    assert QUARTER_R101.min_size[-1] == inputs["MIN_SIZE_TEST"]
    assert sum(QUARTER_R101.stages) + QUARTER_R101.res5_blocks == (model["RESNETS"]["DEPTH"] - 2) // 3


@pytest.mark.parametrize("case", ["eval0", "eval1"])
def test_evaluation_path_equals_the_published_one(detector, case):
    expected = load_case(case)
    image = torch.from_numpy(expected["image_u8_bgr_chw"])
    with torch.no_grad():
        batch, sizes = detector.batch([image.flip(0)])
        features = detector.backbone(batch)
        ((proposals, proposal_logits),), (anchors, logits, deltas) = detector.proposals(features, sizes)
        affine = detector.affine_rcnn(features)
        crops = detector.roi_heads.pool(affine, [proposals[:8]])
        pooled = detector.region_features(features, [proposals])
        cls_logits, box_deltas = detector.roi_heads.box_predictor(pooled)

    height, width = expected["res4"].shape[2:]
    rpn_deltas = (
        expected["rpn_deltas_map"].reshape(15, 4, height, width).transpose(2, 3, 0, 1).reshape(1, -1, 4)
    )
    objectness = expected["rpn_objectness_map"].transpose(0, 2, 3, 1).reshape(1, -1)
    assert worst(features, expected["res4"]) < 1e-4
    assert np.array_equal(anchors, expected["anchors"])
    assert worst(logits, objectness) < 1e-4 and worst(deltas, rpn_deltas) < 1e-4
    assert worst(proposals, expected["proposal_boxes"]) < 1e-4  # all 1,000, in order
    assert worst(proposal_logits, expected["proposal_logits"]) < 1e-4
    assert worst(crops, expected["roi_pooled_first32"]) < 1e-4
    assert worst(pooled[:200], expected["roi_res5_mean_first200"]) < 1e-4
    assert worst(cls_logits, expected["cls_logits"]) < 1e-4
    assert worst(box_deltas, expected["box_deltas"]) < 1e-4


@pytest.mark.parametrize("case", ["eval0", "eval1"])
def test_all_hundred_detections_are_the_published_ones(detector, case):
    expected = load_case(case)
    output_size = tuple(int(side) for side in expected["output_hw"])
    image = torch.from_numpy(expected["image_u8_bgr_chw"])
    found = detector.detect_resized_bgr(image, output_size, score_thresh=0.05, max_detections=100)
    assert np.array_equal(found["labels"], expected["det_classes"])
    assert np.abs(found["boxes"].numpy() - expected["det_boxes"]).max() < 0.01  # pixels
    assert np.abs(found["scores"].numpy() - expected["det_scores"]).max() < 1e-5


@pytest.mark.parametrize("case", ["eval0", "eval1"])
def test_stages_fed_with_published_inputs_give_published_outputs_whatever_the_threads(detector, case):
    """Each stage alone, so that the rounding of the stages before it plays no part."""
    expected = load_case(case)
    features = torch.from_numpy(expected["res4"])
    boxes = torch.from_numpy(expected["proposal_boxes"])
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.no_grad():
        pooled = detector.region_features(features, [boxes])
        cls_logits, box_deltas = detector.roi_heads.box_predictor(pooled)
        _, (_, logits, _) = detector.proposals(features, [expected["image_u8_bgr_chw"].shape[1:]])
    torch.set_num_threads(threads)
    found = select_detections(
        torch.from_numpy(expected["cls_logits"]),
        torch.from_numpy(expected["box_deltas"]),
        boxes,
        expected["image_u8_bgr_chw"].shape[1:],
        score_thresh=0.05,
        max_detections=100,
    )
    objectness = expected["rpn_objectness_map"].transpose(0, 2, 3, 1).reshape(1, -1)
    assert worst(logits, objectness) < 1e-5
    assert worst(cls_logits, expected["cls_logits"]) < 1e-5
    assert worst(box_deltas, expected["box_deltas"]) < 1e-5
    assert np.array_equal(found["labels"], expected["det_classes"])
    assert np.abs(found["scores"].numpy() - expected["det_scores"]).max() < 1e-6
