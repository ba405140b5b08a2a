"""R-50-C4 and R-101-C4 against the models that detectron2 builds from its own configuration.

Both at a quarter of their width, with the published sizes of everything else. detectron2 has no decoupled layers: ours
are at rest (affine maps as they start, gradient scale 1), where they change nothing.
"""

import numpy as np
import pytest
import torch
from PIL import Image

from risf_core.detector.checkpoints import load_weights, save_detector
from risf_core.detector.faster_rcnn import FasterRCNN, resized_size
from risf_core.detector.presets import published_detector
from risf_core.detector.pretrained import load_pretrained

from .reference_model import QUARTER_WIDTH
from .test_pretrained import caffe2_blobs, write_pickle

pytest.importorskip("detectron2", reason="detectron2 is not installed; it is an optional back end")

from detectron2.checkpoint import DetectionCheckpointer  # noqa: E402
from detectron2.config import get_cfg  # noqa: E402
from detectron2.data.transforms import ResizeShortestEdge  # noqa: E402
from detectron2.modeling import build_model  # noqa: E402
from detectron2.structures import Boxes, Instances  # noqa: E402
from detectron2.utils.events import EventStorage  # noqa: E402

NUM_CLASSES = 20
LOSSES = {
    "loss_rpn_objectness": "loss_rpn_cls",
    "loss_rpn_box": "loss_rpn_loc",
    "loss_cls": "loss_cls",
    "loss_box": "loss_box_reg",
}


def native_model(depth: int):
    """detectron2's C4 model with the changes that DeFRCN's configurations make to its defaults."""
    config = get_cfg()
    model = config.MODEL
    model.DEVICE, model.MASK_ON, model.BACKBONE.FREEZE_AT = "cpu", False, 3
    model.RESNETS.DEPTH = depth
    model.RESNETS.STEM_OUT_CHANNELS, model.RESNETS.RES2_OUT_CHANNELS = 16, 64
    model.RESNETS.WIDTH_PER_GROUP = 16
    model.RPN.PRE_NMS_TOPK_TEST, model.RPN.POST_NMS_TOPK_TEST = 6000, 1000
    model.RPN.PRE_NMS_TOPK_TRAIN, model.RPN.POST_NMS_TOPK_TRAIN = 12000, 2000
    model.ROI_HEADS.NUM_CLASSES, model.ROI_BOX_HEAD.POOLER_RESOLUTION = NUM_CLASSES, 7
    torch.manual_seed(depth)
    native = build_model(config)
    for key, value in native.state_dict().items():  # so that maps stay in range and scores spread
        scale = {"conv3.norm.weight": 0.2, "objectness_logits.weight": 5.0, "anchor_deltas.weight": 2.0}
        scale |= {"cls_score.weight": 3.0, "bbox_pred.weight": 20.0}
        value.mul_(next((factor for name, factor in scale.items() if key.endswith(name)), 1.0))
    return native


def pair(depth: int, **changes):
    """Our detector and detectron2's with its weights."""
    native = native_model(depth)
    ours = FasterRCNN(published_detector(depth).model_copy(update=QUARTER_WIDTH | changes), NUM_CLASSES)
    report = load_weights(ours, native.state_dict(), allow_missing=("affine_",))
    assert report.left_over == () and all(key.startswith("affine_") for key in report.reinitialised)
    return ours, native


def picture(height: int, width: int) -> np.ndarray:
    """Coloured patches: uint8 RGB [height, width, 3]."""
    patches = np.random.default_rng(0).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    return np.array(Image.fromarray(patches).resize((width, height), Image.Resampling.BICUBIC))


@pytest.mark.parametrize("depth", [50, 101])
def test_detections_from_the_file_on_are_those_of_detectron2(depth):
    """With its own resizing to a short side of 800, and back to the original pixels."""
    ours, native = (model.eval() for model in pair(depth))
    rgb = picture(131, 200)
    bgr = np.ascontiguousarray(rgb[:, :, ::-1])
    resized = ResizeShortestEdge([800, 800], 1333).get_transform(bgr).apply_image(bgr)
    image = torch.from_numpy(resized.astype(np.float32).transpose(2, 0, 1))
    with torch.no_grad():
        (expected,) = native([{"image": image, "height": 131, "width": 200}])
        batch, sizes = ours.batch([ours.resize(torch.from_numpy(rgb).permute(2, 0, 1))])
        (found,) = ours.detect(batch, sizes, [(131, 200)], score_thresh=0.05, max_detections=100)
    expected = expected["instances"]
    assert len(found["scores"]) == 100 and found["labels"].unique().numel() > 1
    assert 0.05 < float(found["scores"].min()) < float(found["scores"].max()) < 1
    assert torch.equal(found["labels"], expected.pred_classes)
    assert torch.allclose(found["boxes"], expected.pred_boxes.tensor, atol=0.01, rtol=0)
    assert torch.allclose(found["scores"], expected.scores, atol=1e-5, rtol=0)


@pytest.mark.parametrize("short_side", [480, 640, 800])
def test_every_size_is_resized_to_that_of_detectron2(short_side):
    for height, width in np.ndindex(90, 120):
        height, width = 20 + 17 * height, 20 + 13 * width
        expected = ResizeShortestEdge.get_output_shape(height, width, short_side, 1333)
        assert resized_size((height, width), short_side, 1333) == expected, (height, width)


@pytest.mark.parametrize("depth", [50, 101])
def test_a_training_step_is_that_of_detectron2(depth):
    """Two images of two sizes; anchors and RoIs are drawn from the same random numbers."""
    ours, native = pair(depth, roi_gradient_scale=1.0, rpn_gradient_scale=1.0, min_size=None)
    rgb = torch.from_numpy(picture(160, 213)).permute(2, 0, 1)
    images = [rgb, rgb[:, :120, :200].flip(2)]
    boxes = ([[20.0, 30.0, 90.0, 120.0], [100.0, 20.0, 200.0, 150.0]], [[5.0, 5.0, 60.0, 60.0]])
    targets = [
        {"boxes": torch.tensor(b), "labels": torch.tensor(c)}
        for b, c in zip(boxes, ([3, 7], [0]), strict=True)
    ]
    torch.manual_seed(3)
    losses = ours.train()(images, targets)
    inputs = []
    for image, target in zip(images, targets, strict=True):
        objects = {"gt_boxes": Boxes(target["boxes"]), "gt_classes": target["labels"]}
        inputs.append(
            {"image": image.flip(0).float(), "instances": Instances(tuple(image.shape[1:]), **objects)}
        )
    torch.manual_seed(3)
    with EventStorage():
        expected = native.train()(inputs)
    for name, theirs in LOSSES.items():
        assert losses[name].item() == pytest.approx(expected[theirs].item(), rel=1e-6), name

    sum(losses.values()).backward()
    sum(expected.values()).backward()
    gradients, theirs = (
        {key: value.grad for key, value in model.named_parameters() if value.grad is not None}
        for model in (ours, native)
    )
    assert {key for key in gradients if not key.startswith("affine_")} == set(theirs)
    for key, gradient in theirs.items():
        assert (gradients[key] - gradient).norm() <= 1e-4 * gradient.norm(), key


@pytest.mark.parametrize("depth", [50, 101])
def test_msra_weights_load_as_in_detectron2(tmp_path, depth):
    ours, native = pair(depth)
    path = write_pickle(tmp_path / f"R-{depth}.pkl", {"blobs": caffe2_blobs(ours)})
    DetectionCheckpointer(native).load(str(path))
    report = load_pretrained(ours, path)
    state = ours.state_dict()
    body = [key for key in state if key.startswith(("backbone.", "roi_heads.res5."))]
    assert sorted(report.matched) == sorted(body)
    assert all(torch.equal(state[key], value) for key, value in native.state_dict().items() if key in body)


def test_our_checkpoints_load_in_detectron2(tmp_path):
    ours, native = pair(50)
    with torch.no_grad():
        for value in ours.state_dict().values():
            value.add_(1.0)
    save_detector(tmp_path / "model.pth", ours, [f"class {i}" for i in range(NUM_CLASSES)])
    DetectionCheckpointer(native).load(str(tmp_path / "model.pth"))
    state = ours.state_dict()
    assert all(torch.equal(state[key], value) for key, value in native.state_dict().items())
