"""Anchors, sampling, assignment and proposals of the RPN."""

import torch

from risf_core.detector.rpn import RPN, cell_anchors, grid_anchors, subsample


def test_anchors_are_size_major_and_not_rounded():
    anchors = cell_anchors([10.0, 20.0], [0.5, 1.0, 2.0])
    widths, heights = anchors[:, 2] - anchors[:, 0], anchors[:, 3] - anchors[:, 1]
    assert torch.allclose(widths * heights, torch.tensor([100.0] * 3 + [400.0] * 3))
    assert torch.allclose(heights / widths, torch.tensor([0.5, 1.0, 2.0] * 2))
    assert torch.allclose(anchors[1], torch.tensor([-5.0, -5.0, 5.0, 5.0]))
    assert abs(float(widths[0]) - 200**0.5) < 1e-5


def test_grid_is_row_major_with_anchors_innermost():
    grid = grid_anchors(torch.tensor([[-1.0, -1.0, 1.0, 1.0], [-2.0, -2.0, 2.0, 2.0]]), 2, 3, 8)
    assert grid.shape == (12, 4)
    assert grid[0].tolist() == [-1, -1, 1, 1]  # offset 0: the first cell is centred on the corner
    assert grid[3].tolist() == [6, -2, 10, 2]  # second cell of the first row, second anchor
    assert grid[6].tolist() == [-1, 7, 1, 9]  # first cell of the second row


def test_subsample_keeps_the_fraction_and_never_draws_ignored():
    labels = torch.tensor([1] * 10 + [0] * 50 + [-1] * 40)
    positive, negative = subsample(labels, count=16, positive_fraction=0.25, background=0)
    assert len(positive) == 4 and len(negative) == 12
    assert (labels[positive] == 1).all() and (labels[negative] == 0).all()
    positive, negative = subsample(labels[8:], count=16, positive_fraction=0.25, background=0)
    assert len(positive) == 2 and len(negative) == 14  # too few positives are filled up with negatives


def test_assignment_thresholds_and_low_quality_match(tiny_params):
    rpn = RPN(tiny_params, 8, 8)
    gt = torch.tensor([[0.0, 0.0, 10.0, 10.0], [100.0, 100.0, 140.0, 140.0]])
    anchors = torch.tensor(
        [
            [0.0, 0.0, 10.0, 10.0],  # IoU 1: object
            [0.0, 0.0, 10.0, 20.0],  # IoU 0.5: ignored
            [0.0, 0.0, 10.0, 50.0],  # IoU 0.2: background
            [100.0, 100.0, 120.0, 120.0],  # IoU 0.25 only, but the best of the second box: object
        ]
    )
    labels, matched = rpn.assign(anchors, gt)
    assert labels.tolist() == [1, -1, 0, 1]
    assert torch.equal(matched[3], gt[1])
    labels, _ = rpn.assign(anchors, gt[:0])
    assert labels.tolist() == [0, 0, 0, 0]


def test_proposals_are_sorted_clipped_and_suppressed(tiny_params):
    rpn = RPN(tiny_params, 8, 8).eval()
    anchors = torch.tensor([[-5.0, -5.0, 10.0, 10.0], [-5.0, -5.0, 10.0, 10.0], [20.0, 20.0, 40.0, 40.0]])
    logits = torch.tensor([[0.5, 2.0, 1.0]])
    ((boxes, scores),) = rpn.proposals(anchors, logits, torch.zeros(1, 3, 4), [(32, 32)], count=10)
    assert scores.tolist() == [2.0, 1.0]  # the duplicate is suppressed
    assert boxes.tolist() == [[0, 0, 10, 10], [20, 20, 32, 32]]


def test_losses_of_a_perfect_rpn_vanish(tiny_params):
    rpn = RPN(tiny_params, 8, 8)
    gt = torch.tensor([[0.0, 0.0, 10.0, 10.0]])
    anchors = torch.tensor([[0.0, 0.0, 10.0, 10.0], [50.0, 50.0, 60.0, 60.0]])
    losses = rpn.losses(
        anchors, torch.tensor([[40.0, -40.0]]), torch.zeros(1, 2, 4), [rpn.sample(anchors, gt)]
    )
    assert float(sum(losses.values())) < 1e-6
    losses = rpn.losses(
        anchors, torch.tensor([[0.0, 0.0]]), torch.full((1, 2, 4), 0.5), [rpn.sample(anchors, gt)]
    )
    batch = tiny_params.rpn_batch
    assert abs(float(losses["loss_rpn_objectness"]) - 2 * torch.log(torch.tensor(2.0)).item() / batch) < 1e-6
    assert abs(float(losses["loss_rpn_box"]) - 4 * 0.5 / batch) < 1e-6  # only the positive anchor counts
