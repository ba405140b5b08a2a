"""Checkpoints: atomic, never executed, loaded with a report; and the surgery for fine-tuning."""

import os
import pickle

import pytest
import torch

from risf_core.detector.checkpoints import HEAD, load_weights, read_checkpoint, save_checkpoint, surgery
from risf_core.detector.faster_rcnn import FasterRCNN
from risf_core.detector.resnet_c4 import ResNetC4
from risf_core.errors import CheckpointError
from risf_core.params import DetectorParams


class _Evil:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_round_trip_and_no_leftover_files(tmp_path):
    save_checkpoint(tmp_path / "a.pth", {"x": torch.arange(3), "n": 1})
    assert torch.equal(read_checkpoint(tmp_path / "a.pth")["x"], torch.arange(3))
    assert [path.name for path in tmp_path.iterdir()] == ["a.pth"]


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.pth"
    save_checkpoint(path, {"x": 1})
    with pytest.raises(AttributeError):
        save_checkpoint(path, {"x": lambda: 0})  # cannot be pickled
    assert read_checkpoint(path) == {"x": 1}


def test_nothing_in_a_pickle_is_executed(tmp_path):
    path = tmp_path / "evil.pth"
    torch.save({"model": _Evil(tmp_path / "executed")}, path)
    with pytest.raises(CheckpointError, match="Nothing in it was executed"):
        read_checkpoint(path)
    path.write_bytes(pickle.dumps(_Evil(tmp_path / "executed")))
    with pytest.raises(CheckpointError):
        read_checkpoint(path)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04broken"])
def test_broken_files_are_named(tmp_path, content):
    path = tmp_path / "broken.pth"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="broken.pth"):
        read_checkpoint(path)
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        read_checkpoint(tmp_path / "absent.pth")


def test_published_key_names():
    params = DetectorParams(
        block="bottleneck", stages=(1, 1, 1), stem="resnet", res2_width=64, norm="FrozenBN"
    )
    keys = set(FasterRCNN(params, 2).state_dict())
    assert {
        "backbone.stem.conv1.weight",
        "backbone.stem.conv1.norm.running_var",
        "backbone.res2.0.shortcut.norm.bias",
        "backbone.res4.0.conv3.weight",
        "proposal_generator.rpn_head.anchor_deltas.bias",
        "roi_heads.res5.0.conv2.norm.weight",
        "roi_heads.box_predictor.bbox_pred.weight",
        "affine_rpn.weight",
        "affine_rcnn.bias",
    } <= keys
    assert not [key for key in keys if "cells" in key or "pixel" in key]  # constants are no weights


def test_stride_and_width_of_the_backbone():
    for dilate, stride in ((True, 8), (False, 16)):
        params = DetectorParams(block="bottleneck", stem="resnet", dilate_res4=dilate, res2_width=16)
        backbone = ResNetC4(params).eval()
        assert backbone.stride == stride
        assert backbone(torch.zeros(1, 3, 64, 96)).shape == (1, 64, 64 // stride, 96 // stride)


def test_load_reports_and_refuses(tiny_detector, tiny_params):
    state = tiny_detector.state_dict()
    report = load_weights(
        FasterRCNN(tiny_params, 5), surgery(state, "fsod") | {"other.weight": torch.ones(1)}
    )
    assert len(report.reinitialised) == 4 and all(key.startswith(HEAD) for key in report.reinitialised)
    assert report.left_over == ("other.weight",)
    assert "re-initialised 4" in str(report)
    with pytest.raises(CheckpointError, match="no key fits"):
        load_weights(tiny_detector, {"module.x": torch.ones(1)})
    with pytest.raises(CheckpointError, match=r"differ in shape.*file \(4, 16\), model \(6, 16\)"):
        load_weights(FasterRCNN(tiny_params, 5), state)
    with pytest.raises(CheckpointError, match="keys are missing, first backbone.stem.conv1.weight"):
        load_weights(
            tiny_detector, {key: value for key, value in state.items() if key != "backbone.stem.conv1.weight"}
        )


@pytest.mark.parametrize(
    ("key", "change", "problem"),
    [
        ("affine_rpn.bias", lambda x: x * float("nan"), "NaN or infinite"),
        ("affine_rpn.bias", lambda x: torch.full_like(x, 1e300, dtype=torch.float64), "NaN or infinite"),
        ("affine_rpn.bias", lambda x: x.long(), "is torch.int64, not of floating-point"),
        ("affine_rpn.bias", lambda x: x.bool(), "is torch.bool, not of floating-point"),
        ("backbone.stem.conv1.norm.running_var", lambda x: x - 2, "negative variance"),
    ],
    ids=["nan", "too large", "integers", "booleans", "variance"],
)
def test_tensors_that_cannot_be_weights_are_named(tiny_detector, key, change, problem):
    state = tiny_detector.state_dict()
    with pytest.raises(CheckpointError, match=f"base: {key} .*{problem}"):
        load_weights(tiny_detector, state | {key: change(state[key])}, source="base")


def test_half_precision_is_cast_and_said(tiny_detector, caplog):
    state = tiny_detector.state_dict().items()
    half = {key: value.half() if value.is_floating_point() else value + 3 for key, value in state}
    with caplog.at_level("INFO"):
        load_weights(tiny_detector, half, source="base", allow_missing=())
    assert "base: cast from torch.float16" in caplog.text
    for key, value in tiny_detector.state_dict().items():
        kind = torch.int64 if key.endswith("num_batches_tracked") else torch.float32
        assert value.dtype == kind and torch.equal(value, half[key].to(kind))


@pytest.mark.parametrize("num_base", [1, 3])
def test_gfsod_surgery_keeps_a_regression_that_serves_all_classes(tiny_params, num_base):
    agnostic = tiny_params.model_copy(update={"class_agnostic_boxes": True})
    state = FasterRCNN(agnostic, num_base).state_dict()
    options = {"base_rows": range(num_base), "num_classes": 5, "class_agnostic_boxes": True}
    new = surgery(state, "gfsod", **options)
    assert torch.equal(new[f"{HEAD}bbox_pred.weight"], state[f"{HEAD}bbox_pred.weight"])
    load_weights(FasterRCNN(agnostic, 5), new, allow_missing=())


def test_gfsod_surgery_copies_base_and_background_rows(tiny_detector, tiny_params):
    state = tiny_detector.state_dict()
    with torch.no_grad():
        for key in state:
            if key.startswith(HEAD):
                state[key].copy_(torch.randn(state[key].shape))
    new = surgery(state, "gfsod", base_rows=[0, 2, 3], num_classes=5, seed=1)
    weight, old = new[f"{HEAD}cls_score.weight"], state[f"{HEAD}cls_score.weight"]
    assert torch.equal(weight[[0, 2, 3, 5]], old)  # background stays last
    assert weight[[1, 4]].abs().max() < 0.06 and weight[1].std() > 0
    assert (new[f"{HEAD}cls_score.bias"][[1, 4]] == 0).all()
    boxes, old_boxes = new[f"{HEAD}bbox_pred.weight"], state[f"{HEAD}bbox_pred.weight"]
    assert torch.equal(boxes.view(5, 4, -1)[[0, 2, 3]], old_boxes.view(3, 4, -1))
    fresh = torch.cat([weight[[1, 4]].flatten(), boxes.view(5, 4, -1)[[1, 4]].flatten()])
    for rows in (weight[[1, 4]], boxes.view(5, 4, -1)[[1, 4]]):
        assert rows.std().item() == pytest.approx(0.01, rel=0.35)  # as published, in both layers
    assert fresh.mean().abs() < 0.003
    load_weights(FasterRCNN(tiny_params, 5), new, allow_missing=())
    assert torch.equal(
        surgery(state, "gfsod", base_rows=[0, 2, 3], num_classes=5, seed=1)[f"{HEAD}cls_score.weight"], weight
    )
    with pytest.raises(CheckpointError, match="3 classes, base_rows names 2"):
        surgery(state, "gfsod", base_rows=[0, 1], num_classes=5)
