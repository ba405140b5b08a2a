"""Equality of the training losses and their gradients with numbers computed by the published code.

The random draw of anchors and RoIs is part of the reference, so that no random generator has to be matched.
"""

import json

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from risf_core.bnrl import get_loss
from risf_core.detector.roi_heads import SampledRoIs, label_rois
from risf_core.detector.rpn import SampledAnchors

from .reference_model import (
    REFERENCE,
    load_reference_model,
    needs_reference,
    two_threads,  # noqa: F401  a fixture
)

pytestmark = [needs_reference, pytest.mark.usefixtures("two_threads")]

# What the released code trains, what it meant to, and cross-entropy.
LOSSES = {"released": get_loss("ce_bg"), "correct": get_loss("bnrl"), "ce": get_loss("ce")}
PUBLISHED_NAMES = {
    "loss_cls": "loss_cls",
    "loss_box": "loss_box_reg",
    "loss_rpn_objectness": "loss_rpn_cls",
    "loss_rpn_box": "loss_rpn_loc",
}


@pytest.fixture(scope="module")
def published():
    return json.loads((REFERENCE / "model_r101_quarter_train.json").read_text())


@pytest.fixture(scope="module")
def dumped():
    arrays = np.load(REFERENCE / "model_r101_quarter_train.npz")
    return {key: torch.from_numpy(arrays[key]) for key in arrays.files}


@pytest.fixture(scope="module")
def detector():
    """In training mode without dropout (the reference has none), res5 frozen as in the published fine-tuning."""
    model = load_reference_model(cls_dropout=0.0)
    model.set_trainable("all_but_res5")
    return model.train()


@pytest.fixture(scope="module")
def recorded_step(detector, dumped):
    """Batch, image sizes, targets and the recorded draw of anchors and RoIs."""
    batch, sizes = detector.batch([dumped[f"image{i}_u8_bgr_chw"].flip(0) for i in (0, 1)])
    targets = [{"boxes": dumped[f"gt_boxes{i}"], "labels": dumped[f"gt_classes{i}"]} for i in (0, 1)]
    anchors, rois = [], []
    for i in (0, 1):
        labels = dumped[f"released/rpn_gt_labels{i}"]
        positive, negative = (torch.nonzero(labels == value).squeeze(1) for value in (1, 0))
        anchors.append(SampledAnchors(positive, negative, dumped[f"released/rpn_gt_boxes{i}"]))
        boxes, classes = dumped[f"released/roi_boxes{i}"], dumped[f"released/roi_gt_classes{i}"]
        rois.append(SampledRoIs(boxes, classes, matched_boxes(boxes, targets[i])))
    return batch, sizes, targets, (anchors, rois)


def matched_boxes(boxes, target):
    """The object that each RoI is matched to (the reference holds it for the first image alone)."""
    labelled = label_rois(boxes, target["boxes"], target["labels"], num_classes=20)
    return labelled.gt_boxes[: len(boxes)]


@pytest.fixture(scope="module")
def all_losses(detector, recorded_step):
    """One forward pass: the losses with each classification loss, its logits, and the features at res4."""
    kept = {}

    def keep_logits(logits, labels):
        kept.update(logits=logits, labels=labels)
        return F.cross_entropy(logits, labels)

    detector.classification_loss = keep_logits
    hook = detector.backbone.register_forward_hook(lambda *call: kept.update(features=call[-1]))
    batch, sizes, targets, samples = recorded_step
    losses = detector.losses(batch, sizes, targets, samples=samples)
    hook.remove()
    variants = {name: loss(kept["logits"], kept["labels"]) for name, loss in LOSSES.items()}
    return {name: losses | {"loss_cls": value} for name, value in variants.items()} | kept


def test_exactly_the_published_parameters_learn(detector):
    published = json.loads((REFERENCE / "model_r101_quarter_params.json").read_text())
    learning = {key for key, parameter in detector.named_parameters() if parameter.requires_grad}
    assert learning == set(published["trainable"])
    frozen = {key for key, parameter in detector.named_parameters() if not parameter.requires_grad}
    assert frozen == set(published["frozen"])


def test_labels_and_matches_equal_the_recorded_ones(detector, dumped, recorded_step):
    batch, sizes, targets, (_, rois) = recorded_step
    with torch.no_grad():
        anchors, _, _ = detector.proposal_generator(torch.zeros(2, 256, 30, 40))
    for i, target in enumerate(targets):
        recorded = dumped[f"released/rpn_gt_labels{i}"].long()
        labels, matched = detector.proposal_generator.assign(anchors, target["boxes"])
        drawn = recorded >= 0
        assert int(drawn.sum()) == 256 and torch.equal(labels[drawn], recorded[drawn])
        assert torch.equal(matched[recorded == 1], dumped[f"released/rpn_gt_boxes{i}"])
        labelled = label_rois(rois[i].boxes, target["boxes"], target["labels"], num_classes=20)
        assert torch.equal(labelled.labels[:512], rois[i].labels)
    assert torch.equal(
        rois[0].gt_boxes[rois[0].labels < 20], dumped["released/roi_gt_boxes0"][rois[0].labels < 20]
    )


def test_training_proposals_equal_the_recorded_ones(detector, dumped, recorded_step):
    batch, sizes, *_ = recorded_step
    proposals, _ = detector.proposals(detector.backbone(batch), sizes)
    for i, (boxes, _) in enumerate(proposals):
        assert (boxes - dumped[f"released/rpn_props{i}"]).abs().max() < 0.01  # pixels; all 2,000, in order


@pytest.mark.parametrize("variant", LOSSES)
def test_losses_equal_the_published_ones(all_losses, published, variant):
    for name, value in all_losses[variant].items():
        assert value.item() == pytest.approx(published[variant]["losses"][PUBLISHED_NAMES[name]], rel=1e-4), (
            name
        )


def test_logits_equal_the_published_ones(all_losses, dumped):
    expected = dumped["released/cls_logits"]
    assert (all_losses["logits"] - expected).abs().max() < 1e-4 * expected.abs().max()


@pytest.mark.parametrize(
    ("variant", "name"),
    [*(("released", name) for name in PUBLISHED_NAMES), ("correct", "loss_cls"), ("ce", "loss_cls")],
)
def test_gradients_equal_the_published_ones(detector, all_losses, published, dumped, variant, name):
    parameters = {key: value for key, value in detector.named_parameters() if value.requires_grad}
    gradient_at_res4, *gradients = torch.autograd.grad(
        all_losses[variant][name],
        [all_losses["features"], *parameters.values()],
        retain_graph=True,
        allow_unused=True,
    )
    gradients = dict(zip(parameters, gradients, strict=True))
    theirs = PUBLISHED_NAMES[name]

    # Where the published code multiplies a gradient by 0 ours is none: a scale of 0 detaches.
    expected = published[variant]["grad_norms"][theirs]
    received = {key for key, gradient in gradients.items() if gradient is not None}
    assert received == {key for key, norm in expected.items() if norm}
    for key in received:
        assert gradients[key].norm().item() == pytest.approx(expected[key], rel=1e-3), key
    for key in received:
        recorded = dumped.get(f"{variant}/grad_{theirs}_{key}")
        assert recorded is None or (gradients[key] - recorded).norm() < 1e-3 * recorded.norm(), key

    # Behind the decoupling scale, summed over the map of each image.
    recorded = dumped[f"{variant}/grad_res4_sum_{theirs}"]
    if gradient_at_res4 is None:
        assert not recorded.any()
    else:
        assert (gradient_at_res4.sum(dim=(2, 3)) - recorded).norm() < 1e-3 * recorded.norm()
