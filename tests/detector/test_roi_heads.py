"""Labels, losses and detections of the region head, by hand."""

import math

import pytest
import torch
from torch.nn import functional as F

from risf_core.detector.roi_heads import (
    BoxPredictor,
    SampledRoIs,
    box_head_losses,
    label_rois,
    roi_box_coder,
    select_detections,
)


def test_ground_truth_is_appended_and_labels_follow_iou():
    proposals = torch.tensor([[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 19.0], [0.0, 0.0, 10.0, 21.0]])
    rois = label_rois(proposals, torch.tensor([[0.0, 0.0, 10.0, 10.0]]), torch.tensor([2]), num_classes=5)
    assert rois.boxes.shape == (4, 4)
    assert rois.labels.tolist() == [2, 2, 5, 2]  # IoU 1, .53, .48 and the box itself; background is C
    empty = label_rois(proposals, torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), num_classes=5)
    assert empty.labels.tolist() == [5, 5, 5]


def test_losses_by_hand():
    predictor = BoxPredictor(2, 2, dropout=0.0, class_agnostic=False).eval()
    with torch.no_grad():
        for parameter in predictor.parameters():
            parameter.zero_()
        predictor.bbox_pred.bias[4:8] = 0.25  # deltas of class 1
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [5.0, 5.0, 9.0, 9.0]])
    rois = SampledRoIs(boxes, torch.tensor([1, 2]), boxes)
    losses = box_head_losses(predictor, torch.ones(2, 2), rois, F.cross_entropy)
    assert float(losses["loss_cls"]) == pytest.approx(math.log(3))
    assert float(losses["loss_box"]) == pytest.approx(4 * 0.25 / 2)  # one foreground RoI, over two RoIs


def test_dropout_reaches_the_classifier_alone():
    torch.manual_seed(0)
    predictor = BoxPredictor(64, 3, dropout=0.8, class_agnostic=False).train()
    features = torch.randn(5, 64)
    (logits, deltas), (again, deltas_again) = predictor(features), predictor(features)
    assert not torch.equal(logits, again)
    assert torch.equal(deltas, deltas_again)
    assert predictor.eval()(features)[0].equal(predictor(features)[0])


def test_class_agnostic_boxes_serve_every_class():
    predictor = BoxPredictor(2, 3, dropout=0.0, class_agnostic=True)
    assert predictor.bbox_pred.out_features == 4
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0]])
    losses = box_head_losses(
        predictor, torch.ones(1, 2), SampledRoIs(boxes, torch.tensor([2]), boxes), F.cross_entropy
    )
    assert torch.isfinite(losses["loss_box"])
    found = select_detections(
        torch.tensor([[2.0, 1.0, 0.0, 0.0]]),
        torch.zeros(1, 4),
        boxes,
        (20, 20),
        score_thresh=0.1,
        max_detections=9,
    )
    assert found["labels"].tolist() == [0, 1] and torch.equal(found["boxes"], boxes.expand(2, 4))


def test_detections_by_hand():
    proposals = torch.tensor([[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 11.0], [40.0, 40.0, 60.0, 60.0]])
    logits = torch.log(torch.tensor([[0.6, 0.1, 0.3], [0.7, 0.02, 0.28], [0.01, 0.2, 0.79]]))
    found = select_detections(
        logits, torch.zeros(3, 8), proposals, (50, 50), score_thresh=0.05, max_detections=10
    )
    # class 0: proposal 1 (.7) suppresses proposal 0 (.6); class 1: proposal 2 (.2), proposal 0 (.1)
    assert found["scores"].tolist() == pytest.approx([0.7, 0.2, 0.1])
    assert found["labels"].tolist() == [0, 1, 1]
    assert found["proposal"].tolist() == [1, 2, 0]
    assert found["boxes"][1].tolist() == [40, 40, 50, 50]  # clipped
    assert torch.allclose(found["class_scores"][0], torch.tensor([0.7, 0.02, 0.28]))
    best = select_detections(
        logits, torch.zeros(3, 8), proposals, (50, 50), score_thresh=0.05, max_detections=1
    )
    assert best["scores"].tolist() == pytest.approx([0.7])


def test_deltas_are_class_specific():
    proposals = torch.tensor([[0.0, 0.0, 10.0, 10.0]])
    target = torch.tensor([[2.0, 2.0, 12.0, 12.0]])
    deltas = torch.zeros(1, 8)
    deltas[:, 4:] = roi_box_coder.encode_single(target, proposals)
    found = select_detections(
        torch.tensor([[1.0, 1.0, 0.0]]), deltas, proposals, (50, 50), score_thresh=0.05, max_detections=10
    )
    boxes = {int(label): box for label, box in zip(found["labels"], found["boxes"], strict=True)}
    assert torch.allclose(boxes[0], proposals[0]) and torch.allclose(boxes[1], target[0], atol=1e-5)


@pytest.mark.parametrize("columns", [4, 12])
def test_no_proposal_gives_empty_tensors(columns):
    """All boxes of the RPN may be empty or not finite."""
    found = select_detections(
        torch.zeros(0, 4),
        torch.zeros(0, columns),
        torch.zeros(0, 4),
        (5, 5),
        score_thresh=0.05,
        max_detections=3,
    )
    assert found["boxes"].shape == (0, 4) and found["class_scores"].shape == (0, 4)


def test_no_detection_gives_empty_tensors():
    found = select_detections(
        torch.tensor([[-9.0, 9.0]]),
        torch.zeros(1, 4),
        torch.zeros(1, 4),
        (5, 5),
        score_thresh=0.05,
        max_detections=3,
    )
    assert found["boxes"].shape == (0, 4) and found["class_scores"].shape == (0, 2)
