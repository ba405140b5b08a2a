"""Parts of the detector against stored excerpts of what the published code computes (``tests/data_reference``)."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from risf_core.detector.faster_rcnn import FasterRCNN, scale_detections
from risf_core.detector.gradient_decoupling import AffineLayer
from risf_core.detector.roi_heads import (
    BoxPredictor,
    Res5RoIHeads,
    SampledRoIs,
    box_head_losses,
    label_rois,
    select_detections,
)
from risf_core.detector.rpn import RPN, grid_anchors

from .reference_model import QUARTER_R101


@pytest.fixture(scope="module")
def cases():
    with np.load(Path(__file__).parents[1] / "data_reference" / "detector_cases.npz") as file:
        return {name: torch.from_numpy(file[name]) for name in file.files}


@pytest.fixture(scope="module")
def rpn():
    return RPN(QUARTER_R101, 256, 16).eval()


@pytest.fixture(scope="module")
def anchors(cases, rpn):
    return grid_anchors(rpn.cells, *cases["rpn/map_size"].tolist(), 16)


def test_keys_shapes_and_learning_parameters_are_the_published_ones(cases):
    with torch.device("meta"):
        detector = FasterRCNN(QUARTER_R101, 20)
    detector.set_trainable("all_but_res5")
    learns = {
        key: "learns" if value.requires_grad else "frozen" for key, value in detector.named_parameters()
    }
    lines = bytes(cases["keys"].tolist()).decode().splitlines()
    assert len(lines) == 534 and sorted(lines) == sorted(
        f"{key} {'x'.join(map(str, value.shape))} {learns.get(key, 'buffer')}"
        for key, value in detector.state_dict().items()
    )


def test_from_pixels_to_the_stem(cases):
    detector = FasterRCNN(QUARTER_R101.model_copy(update={"stages": (1, 1, 1), "res5_blocks": 1}), 20)
    stem = detector.backbone.stem
    weights = {
        key.removeprefix("stem/"): value.float() for key, value in cases.items() if "stem/conv1" in key
    }
    stem.load_state_dict(weights)
    batch, _ = detector.batch([cases["stem/image"].flip(0)])
    with torch.no_grad():
        found = stem(batch)[0, :8, :8, :8]
    assert torch.allclose(found, cases["stem/expected"], atol=1e-5 * float(cases["stem/expected"].max()))


def test_anchors_and_proposals(cases, rpn, anchors):
    """The 300 best of an image, in order, with those that they suppress."""
    number = cases["rpn/anchor"].long()
    assert torch.equal(anchors[number[:60]], cases["rpn/anchor_boxes"])
    ((boxes, _),) = rpn.proposals(
        anchors[number], cases["rpn/logits"][None], cases["rpn/deltas"][None], [(480, 640)], count=300
    )
    assert len(number) > 350 and boxes.shape == (300, 4)
    assert torch.allclose(boxes, cases["rpn/expected"], atol=1e-3)  # pixels


def test_labels_of_drawn_anchors(cases, rpn, anchors):
    labels, matched = rpn.assign(anchors, cases["train/gt_boxes"])
    drawn, expected = cases["train/anchor"].long(), cases["train/anchor_labels"].long()
    assert torch.equal(labels[drawn], expected)
    assert torch.equal(matched[drawn[expected == 1]], cases["train/anchor_gt_boxes"])


def test_roi_align_behind_the_affine_layer(cases):
    affine = AffineLayer(2)
    affine.load_state_dict({name: cases[f"roi_align/{name}"][None].float() for name in ("weight", "bias")})
    params = QUARTER_R101.model_copy(update={"res5_width": 8, "res5_blocks": 1})
    heads = Res5RoIHeads(params, 2, 16, 1)
    with torch.no_grad():
        found = heads.pool(affine(cases["roi_align/features"][None]), [cases["roi_align/boxes"]])
    assert torch.allclose(found, cases["roi_align/expected"], atol=1e-5)


def test_box_loss(cases):
    """Foreground RoIs of their own class, over all 1,024 RoIs; the objects of image 1 are matched here."""
    boxes, classes = cases["box_loss/boxes"], cases["box_loss/classes"].long()
    gt_boxes = torch.zeros_like(boxes)
    for image, objects in enumerate(("train/gt_boxes", "box_loss/gt_boxes1")):
        mine = cases["box_loss/image"] == image
        gt_classes = cases[objects.replace("boxes", "classes")]
        labelled = label_rois(boxes[mine], cases[objects], gt_classes, num_classes=20)
        assert torch.equal(labelled.labels[: int(mine.sum())], classes[mine])
        gt_boxes[mine] = labelled.gt_boxes[: int(mine.sum())]
    predictor = BoxPredictor(80, 20, dropout=0.0, class_agnostic=False)
    torch.nn.init.eye_(predictor.bbox_pred.weight)  # so that features are deltas
    deltas = torch.full((1024, 20, 4), 9.0)  # of other classes and of background: they do not count
    deltas[torch.arange(len(boxes)), classes] = cases["box_loss/deltas"]
    rest = torch.zeros(1024 - len(boxes), 4)
    labels = torch.cat([classes, torch.full((len(rest),), 20)])
    rois = SampledRoIs(torch.cat([boxes, rest]), labels, torch.cat([gt_boxes, rest]))
    loss = box_head_losses(predictor, deltas.flatten(1), rois, F.cross_entropy)["loss_box"]
    assert loss.item() == pytest.approx(float(cases["box_loss/expected"]), rel=1e-5)


def test_all_hundred_detections_in_original_pixels(cases):
    size, output_size = (tuple(one) for one in cases["detections/sizes"].tolist())
    proposals = cases["detections/proposals"]
    deltas = torch.zeros(len(proposals), 20, 4)
    row, label = cases["detections/row"].long(), cases["detections/label"].long()
    deltas[row, label] = cases["detections/deltas"]
    found = select_detections(
        cases["detections/logits"],
        deltas.flatten(1),
        proposals,
        size,
        score_thresh=float(cases["detections/score_thresh"]),
        max_detections=100,
    )
    found = scale_detections(found, size, output_size)
    assert len(row) > 100 and torch.equal(found["labels"], cases["detections/det_labels"].long())
    assert torch.allclose(found["boxes"], cases["detections/det_boxes"], atol=0.01, rtol=0)
    assert torch.allclose(found["scores"], cases["detections/det_scores"], atol=1e-6, rtol=0)
