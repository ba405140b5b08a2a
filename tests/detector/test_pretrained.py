"""Files of other people's weights under the key names they really have."""

import pickle
from collections import OrderedDict

import numpy as np
import pytest
import torch
import torchvision

from risf_core.detector.faster_rcnn import FasterRCNN
from risf_core.detector.presets import published_detector
from risf_core.detector.pretrained import detector_key, load_pretrained, read_pretrained
from risf_core.errors import CheckpointError

NARROW = {"stem_width": 8, "res2_width": 16, "res5_width": 128}
CAFFE2_BRANCH = {"shortcut": "branch1", "conv1": "branch2a", "conv2": "branch2b", "conv3": "branch2c"}


def narrow_detector(depth=50, *, num_classes=3, weights="msra"):
    params = published_detector(depth, weights=weights).model_copy(update=NARROW)
    return FasterRCNN(params, num_classes).eval()


def caffe2_blobs(detector):
    """A file as MSRA's R-50.pkl and R-101.pkl are: convolutions, scales and shifts, the classifier, momenta."""
    blobs = {"conv1_b": np.zeros(8, np.float32), "fc1000_w": np.zeros((1000, 128), np.float32)}
    rng = np.random.default_rng(0)
    for key, value in detector.state_dict().items():
        body = key.removeprefix("backbone.").removeprefix("roi_heads.").split(".")
        if body[0] == "stem":
            name = {"weight": "conv1_w", "norm.weight": "res_conv1_bn_s", "norm.bias": "res_conv1_bn_b"}
            name = name.get(".".join(body[2:]))
        elif body[0].startswith("res"):
            stage, block, layer, *rest = body
            leaf = {"weight": "w", "norm.weight": "bn_s", "norm.bias": "bn_b"}.get(".".join(rest))
            name = leaf and f"{stage}_{block}_{CAFFE2_BRANCH[layer]}_{leaf}"
        else:
            name = None
        if name:
            blobs[name] = rng.normal(size=tuple(value.shape)).astype(np.float32)
            blobs[f"{name}_momentum"] = np.zeros(1, np.float32)
    return blobs


def write_pickle(path, content):
    path.write_bytes(pickle.dumps(content, protocol=2))
    return path


@pytest.mark.parametrize("depth", [50, 101])
def test_msra_pickle_loads_into_backbone_and_res5(tmp_path, depth):
    detector = narrow_detector(depth)
    blobs = caffe2_blobs(detector)
    report = load_pretrained(detector, write_pickle(tmp_path / "R.pkl", {"blobs": blobs, "cfg": "NAME: R"}))
    state = detector.state_dict()
    assert torch.equal(state["backbone.stem.conv1.weight"], torch.from_numpy(blobs["conv1_w"]))
    assert torch.equal(state["backbone.stem.conv1.norm.bias"], torch.from_numpy(blobs["res_conv1_bn_b"]))
    last = {50: 5, 101: 22}[depth]
    for ours, theirs in (
        ("backbone.res2.0.shortcut.weight", "res2_0_branch1_w"),
        ("backbone.res3.3.conv2.weight", "res3_3_branch2b_w"),
        (f"backbone.res4.{last}.conv3.norm.weight", f"res4_{last}_branch2c_bn_s"),
        ("roi_heads.res5.2.conv1.norm.bias", "res5_2_branch2a_bn_b"),
    ):
        assert torch.equal(state[ours], torch.from_numpy(blobs[theirs])), ours
    backbone = {key for key in state if key.startswith(("backbone.", "roi_heads.res5."))}
    assert set(report.matched) == backbone
    assert {key.split(".")[0] for key in report.reinitialised} == {
        "affine_rpn",
        "affine_rcnn",
        "proposal_generator",
        "roi_heads",
    }
    assert {"conv1_b", "fc1000_w", "conv1_w_momentum"} <= set(report.left_over)
    assert len(report.left_over) == len(blobs) - len([key for key in blobs if f"{key}_momentum" in blobs])


def test_msra_normalisation_is_scale_and_shift_alone(tmp_path):
    detector = narrow_detector()
    blobs = caffe2_blobs(detector)
    load_pretrained(detector, write_pickle(tmp_path / "R.pkl", blobs))
    x = torch.randn(2, 8, 4, 4)
    expected = x * torch.from_numpy(blobs["res_conv1_bn_s"]).view(1, -1, 1, 1)
    expected = expected + torch.from_numpy(blobs["res_conv1_bn_b"]).view(1, -1, 1, 1)
    assert torch.allclose(detector.backbone.stem.conv1.norm(x), expected, rtol=1e-5, atol=1e-5)
    assert detector.backbone.stem.conv1.norm.running_var.eq(1).all()  # as detectron2 fills it in


def test_torchvision_weights_give_torchvision_features(tmp_path):
    """All of ResNet-50's own key names, at its own width, and the same features from both."""
    torch.manual_seed(0)
    theirs = torchvision.models.resnet50(weights=None).eval()
    with torch.no_grad():
        for key, value in theirs.state_dict().items():
            if "running_" in key:
                value.uniform_(0.5, 1.5)
    torch.save(theirs.state_dict(), tmp_path / "resnet50-11ad3fa6.pth")
    params = published_detector(50, weights="torchvision").model_copy(update={"anchor_sizes": (32.0,)})
    detector = FasterRCNN(params, 2).eval()
    report = load_pretrained(detector, tmp_path / "resnet50-11ad3fa6.pth")
    assert [key for key in report.left_over if "num_batches_tracked" not in key] == ["fc.weight", "fc.bias"]

    image = torch.randint(0, 256, (3, 64, 96), dtype=torch.uint8)
    with torch.no_grad():
        batch, _ = detector.batch([image])
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
        assert torch.allclose(batch[0], (image / 255 - mean) / std, atol=1e-5)
        x = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(batch))))
        res4 = theirs.layer3(theirs.layer2(theirs.layer1(x)))
        assert torch.allclose(detector.backbone(batch), res4, rtol=1e-4, atol=1e-4 * float(res4.abs().max()))
        res5 = theirs.layer4(res4)
        assert torch.allclose(detector.roi_heads.res5(res4), res5, atol=1e-4 * float(res5.abs().max()))


@pytest.mark.parametrize("depth", [50, 101])
def test_torchvision_names_every_weight_of_the_backbone(depth):
    with torch.device("meta"):
        theirs = getattr(torchvision.models, f"resnet{depth}")(weights=None).state_dict()
        ours = FasterRCNN(published_detector(depth, weights="torchvision"), 2).state_dict()
    named = {detector_key(key): value.shape for key, value in theirs.items() if "num_batches" not in key}
    assert set(named) - set(ours) == {"fc.weight", "fc.bias"}
    body = {
        key: value.shape for key, value in ours.items() if key.startswith(("backbone.", "roi_heads.res5."))
    }
    assert {key: named[key] for key in named if key in ours} == body


@pytest.mark.parametrize("kind", ["pickle of arrays", "torch file"])
def test_detectron2_backbone_names(tmp_path, kind):
    """The form in which detectron2 keeps converted ImageNet weights: no prefix, an author."""
    detector, source = narrow_detector(weights="torchvision"), narrow_detector(weights="torchvision")
    weights = {
        key.removeprefix("backbone.").removeprefix("roi_heads."): torch.rand_like(value)
        for key, value in source.state_dict().items()
        if key.startswith(("backbone.", "roi_heads.res5."))
    }
    content = {"model": weights, "__author__": "torchvision", "matching_heuristics": True}
    path = tmp_path / "R-50.pkl"
    if kind == "torch file":
        torch.save(content, path)
    else:
        write_pickle(path, content | {"model": {key: value.numpy() for key, value in weights.items()}})
    assert read_pretrained(path).origin == "torchvision"
    report = load_pretrained(detector, path)
    assert len(report.matched) == len(weights) and report.left_over == ()
    assert torch.equal(detector.state_dict()["roi_heads.res5.1.conv2.weight"], weights["res5.1.conv2.weight"])


def test_whole_detectors_load_with_everything_that_lies_beside_them(tmp_path):
    """As detectron2's checkpointer writes them: model, optimizer, scheduler, iteration."""
    source, detector = narrow_detector(), narrow_detector()
    model = OrderedDict(source.state_dict()) | {
        "proposal_generator.anchor_generator.cell_anchors.0": torch.zeros(15, 4)
    }
    optimizer = torch.optim.SGD(source.parameters(), lr=0.1).state_dict()
    torch.save(
        {"model": model, "optimizer": optimizer, "scheduler": {"last_epoch": 3}, "iteration": 3},
        tmp_path / "m.pth",
    )
    report = load_pretrained(detector, tmp_path / "m.pth", allow_missing=())
    assert report.reinitialised == ()
    assert report.left_over == ("proposal_generator.anchor_generator.cell_anchors.0",)
    assert all(torch.equal(value, detector.state_dict()[key]) for key, value in source.state_dict().items())

    wrapped = {
        f"module.{key}": value for key, value in source.state_dict().items() if "box_predictor" not in key
    }
    torch.save(
        {"model": wrapped}, tmp_path / "reset.pth"
    )  # surgery took the head, DataParallel gave a prefix
    report = load_pretrained(detector, tmp_path / "reset.pth")
    assert len(report.reinitialised) == 4
    with pytest.raises(CheckpointError, match="4 keys are missing"):
        load_pretrained(detector, tmp_path / "reset.pth", allow_missing=())


def test_a_detector_without_decoupled_layers_keeps_them_neutral(tmp_path):
    """Plain detectron2 Faster R-CNN has no affine layers; they start as the identity."""
    source, detector = narrow_detector(), narrow_detector()
    model = {key: value for key, value in source.state_dict().items() if not key.startswith("affine_")}
    torch.save({"model": model}, tmp_path / "m.pth")
    report = load_pretrained(detector, tmp_path / "m.pth")
    assert len(report.reinitialised) == 4 and detector.affine_rpn.weight.eq(1).all()


def test_files_that_match_nothing_or_something_else_are_refused(tmp_path):
    detector = narrow_detector()
    blobs = caffe2_blobs(detector)
    with pytest.raises(CheckpointError, match="no key fits"):
        load_pretrained(detector, write_pickle(tmp_path / "a.pkl", {"features.0.weight": np.ones(3)}))
    with pytest.raises(CheckpointError, match="holds no weights; its keys are epoch"):
        load_pretrained(detector, write_pickle(tmp_path / "b.pkl", {"epoch": 3}))
    with pytest.raises(CheckpointError, match="keys are missing, first backbone.res4.6.conv1.weight"):
        load_pretrained(narrow_detector(101), write_pickle(tmp_path / "c.pkl", blobs))
    with pytest.raises(CheckpointError, match="differ in shape"):
        load_pretrained(
            detector, write_pickle(tmp_path / "d.pkl", blobs | {"conv1_w": np.ones((8, 3, 3, 3))})
        )
    with pytest.raises(CheckpointError, match="'stem.conv1.weight' and 'conv1_w' are both"):
        twice = blobs | {"stem.conv1.weight": blobs["conv1_w"]}
        load_pretrained(detector, write_pickle(tmp_path / "e.pkl", twice))
    with pytest.raises(CheckpointError, match="NaN"):
        load_pretrained(
            detector, write_pickle(tmp_path / "f.pkl", blobs | {"conv1_w": blobs["conv1_w"] * np.nan})
        )


def test_pixels_that_the_weights_do_not_expect_are_refused(tmp_path):
    path = write_pickle(tmp_path / "R-50.pkl", caffe2_blobs(narrow_detector()))
    with pytest.raises(CheckpointError, match="weights of msra need image_order BGR, the detector has RGB"):
        load_pretrained(narrow_detector(weights="torchvision"), path)
    published = narrow_detector().params.model_copy(
        update={"pixel_mean": (102.98, 115.95, 122.77)}
    )  # MSRA's own
    load_pretrained(FasterRCNN(published, 3), path)
    shifted = published.model_copy(update={"stride_in_1x1": False})
    with pytest.raises(CheckpointError, match="stride_in_1x1 True, the detector has False"):
        load_pretrained(FasterRCNN(shifted, 3), path)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("conv1_w", "backbone.stem.conv1.weight"),
        ("res_conv1_bn_b", "backbone.stem.conv1.norm.bias"),
        ("conv1_bn_s", "backbone.stem.conv1.norm.weight"),
        ("res4_22_branch2b_bn_riv", "backbone.res4.22.conv2.norm.running_var"),
        ("module.layer4.2.bn3.running_mean", "roi_heads.res5.2.conv3.norm.running_mean"),
        ("layer2.0.downsample.1.bias", "backbone.res3.0.shortcut.norm.bias"),
        ("bn1.weight", "backbone.stem.conv1.norm.weight"),
        ("stem.conv1.norm.weight", "backbone.stem.conv1.norm.weight"),
        ("res5.0.shortcut.weight", "roi_heads.res5.0.shortcut.weight"),
        ("backbone.res4.0.conv1.weight", "backbone.res4.0.conv1.weight"),
        ("fc.weight", "fc.weight"),
        (
            "res2_0_branch2a_b",
            "res2_0_branch2a_b",
        ),  # a bias of a convolution before a normalisation: not ours
        ("conv1_w_momentum", "conv1_w_momentum"),
    ],
)
def test_key_names(theirs, ours):
    assert detector_key(theirs) == ours
