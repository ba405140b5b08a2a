"""The open-vocabulary detector: which loss reaches which weight, what is masked, and other vocabularies."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from risf_core.errors import ParamsError
from risf_core.open_vocabulary.arms import Architecture, gram_spearman, save_arm, top1
from risf_core.open_vocabulary.classifier import (
    TextClassifier,
    detection_loss,
    federated_mask,
    image_label_loss,
    mean_pairwise_cosine,
    with_common_offset,
)
from risf_core.open_vocabulary.detector import (
    Batch,
    ImageNames,
    OpenVocabularyRCNN,
    RegionTargets,
    Supervision,
    choose_pseudo_boxes,
    select_by_sigmoid,
)
from risf_core.open_vocabulary.training import gradient_cosine, mirrored
from risf_core.open_vocabulary.weight_transfer import HEADS, linear_cka
from risf_core.open_vocabulary_params import (
    DistillationParams,
    ImageSupervisionParams,
    OpenVocabularyParams,
)
from risf_core.params import DetectorParams

DETECTOR = DetectorParams(
    stages=(1, 1, 1), stem_width=8, res2_width=8, res5_blocks=1, res5_width=16, norm="FrozenBN"
)
DIM, CLASSES = 12, 5
BASE_MASK = torch.tensor([True, True, True, False, False])


def _texts(count: int = CLASSES, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, DIM, generator=torch.Generator().manual_seed(seed))


def _detector(seed: int = 0, **options) -> OpenVocabularyRCNN:
    torch.manual_seed(seed)
    return OpenVocabularyRCNN(DETECTOR, _texts(), **options).train()


def _image(seed: int = 0) -> torch.Tensor:
    return torch.randint(
        0, 256, (3, 64, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
    )


TARGET = {"boxes": torch.tensor([[4.0, 6, 30, 40], [50, 10, 80, 50]]), "labels": torch.tensor([0, 2])}


def _regions(seed: int = 0, dim: int = DIM) -> RegionTargets:
    generator = torch.Generator().manual_seed(seed)
    boxes = torch.tensor([[2.0, 3, 20, 30], [40, 8, 90, 60], [10, 10, 50, 50]])
    return RegionTargets(boxes, torch.randn(3, dim, generator=generator))


def _box_batch(regions: bool = False) -> Batch:
    one = _regions() if regions else None
    return Batch([_image(), _image(1)], [TARGET, TARGET], [None, None], [one, one])


def _name_batch(boxes: torch.Tensor | None = None, regions: bool = False) -> Batch:
    names = ImageNames(torch.tensor([1, 4]), boxes)
    return Batch([_image(2)], [None], [names], [_regions(1) if regions else None])


def _supervision(**options) -> Supervision:
    return Supervision(class_mask=BASE_MASK, **options)


# ---------------------------------------------------------------- classifier


def test_logits_are_scaled_cosines_and_background_is_zero():
    classifier, features = TextClassifier(_texts(), temperature=50.0), torch.randn(3, DIM)
    logits = classifier(features)
    expected = 50 * F.cosine_similarity(features[:, None], _texts()[None], dim=2)
    assert torch.allclose(logits[:, :-1], expected, atol=1e-4)
    assert (logits[:, -1] == 0).all() and logits.shape == (3, CLASSES + 1)
    assert torch.allclose(classifier(7.5 * features), logits, atol=1e-4)
    assert torch.allclose(TextClassifier(3 * _texts())(features), logits, atol=1e-4)
    assert not list(classifier.parameters())


def test_the_bias_is_one_learnable_number_for_all_columns():
    classifier, features = TextClassifier(_texts(), bias=-4.6), torch.randn(3, DIM)
    without = TextClassifier(_texts())(features)
    assert torch.allclose(classifier(features), without - 4.6, atol=1e-4)
    assert [parameter.shape for parameter in classifier.parameters()] == [torch.Size([])]


def test_another_vocabulary_of_any_size_and_no_other_dimension():
    classifier = TextClassifier(_texts())
    classifier.set_texts(_texts(9, seed=3))
    assert classifier(torch.randn(2, DIM)).shape == (2, 10) and classifier.num_classes == 9
    with pytest.raises(ParamsError, match=f"11 dimensions. Expected {DIM}"):
        classifier.set_texts(torch.randn(4, 11))
    with pytest.raises(ParamsError, match="none of them zero"):
        TextClassifier(torch.zeros(2, DIM))


def test_masked_classes_get_no_gradient_from_boxes_and_background_none_at_all():
    logits = torch.randn(6, CLASSES + 1, requires_grad=True)
    labels = torch.tensor([0, 1, 2, 5, 5, 5])
    loss = detection_loss(logits, labels, BASE_MASK)
    targets = F.one_hot(labels, 6).float()[:, :3]
    expected = F.binary_cross_entropy_with_logits(logits[:, :3], targets, reduction="sum") / 6
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-6)
    loss.backward()
    assert logits.grad[:, :3].ne(0).all() and not logits.grad[:, 3:].any()


def test_names_reach_every_column_of_the_pseudo_box_alone():
    logits = torch.randn(4, CLASSES + 1, requires_grad=True)
    rows = torch.tensor([1, 3])
    loss = image_label_loss(logits[rows], torch.tensor([4, 0]), torch.tensor([0.5, 0.25]))
    loss.backward()
    assert logits.grad[rows].ne(0).all() and not logits.grad[torch.tensor([0, 2])].any()
    targets = F.one_hot(torch.tensor([4, 0]), 6).float()
    sums = F.binary_cross_entropy_with_logits(logits[rows], targets, reduction="none").sum(dim=1)
    by_hand = 0.5 * sums[0] + 0.25 * sums[1]
    assert float(loss.detach()) == pytest.approx(float(by_hand.detach()), rel=1e-6)


def test_federated_loss_keeps_the_present_classes_and_draws_by_the_root_of_counts():
    counts = torch.tensor([0] + [1] * 40 + [400] * 9 + [10000])
    labels = torch.tensor([3, 5, 51, 51])  # background: 51
    drawn = torch.zeros(51)
    for seed in range(400):
        torch.manual_seed(seed)
        mask = federated_mask(labels, counts, num_classes=6)
        assert mask.sum() == 6 and mask[3] and mask[5] and not mask[0]
        drawn += mask
    assert drawn[50] > drawn[41:50].mean() > 4 * drawn[6:41].mean()  # roots 100, 20, 1
    assert federated_mask(labels, counts).sum() == 50
    assert federated_mask(labels, counts, num_classes=500).sum() == 50  # all that have images


def test_a_common_offset_narrows_the_cone_and_keeps_differences():
    texts = F.normalize(_texts(), dim=1)
    moved, direction = with_common_offset(texts, 0.77)
    assert mean_pairwise_cosine(moved) == pytest.approx(0.77, abs=1e-5)
    assert torch.allclose(moved - moved[:1], texts - texts[:1], atol=1e-6)
    assert torch.allclose(texts @ direction, torch.zeros(CLASSES), atol=1e-6)
    with pytest.raises(ParamsError, match="no direction orthogonal"):
        with_common_offset(_texts(DIM), 0.9)
    with pytest.raises(ParamsError, match="Expected more than the present"):
        with_common_offset(moved, 0.5)


# ---------------------------------------------------------------- which loss reaches what


def _gradients(detector: OpenVocabularyRCNN, batch: Batch, supervision: Supervision, *names: str):
    detector.zero_grad()
    torch.manual_seed(0)
    losses = detector.step_losses(batch, supervision)
    sum(losses[name] for name in names or losses).backward()
    return losses


def _has_gradient(module: torch.nn.Module) -> bool:
    return any(one.grad is not None and bool(one.grad.any()) for one in module.parameters())


def test_a_step_on_boxes_has_the_losses_of_the_few_shot_detector():
    losses = _gradients(_detector(), _box_batch(), _supervision())
    assert sorted(losses) == ["loss_box", "loss_cls", "loss_rpn_box", "loss_rpn_objectness"]


def test_images_with_names_give_the_rpn_no_gradient_and_no_box_loss():
    detector = _detector()
    losses = _gradients(detector, _name_batch(), _supervision(images=ImageSupervisionParams()))
    predictor = detector.roi_heads.box_predictor
    assert list(losses) == ["loss_image"] and float(losses["loss_image"].detach()) > 0
    assert not _has_gradient(detector.proposal_generator) and not _has_gradient(predictor.bbox_pred)
    assert _has_gradient(predictor.projection) and _has_gradient(detector.backbone)


def test_names_count_by_their_weight_and_share_it():
    given = torch.tensor([[4.0, 6, 30, 40], [50, 10, 80, 50]])
    losses = [
        _gradients(_detector(), _name_batch(given), _supervision(images=ImageSupervisionParams(weight=weight)))
        for weight in (0.1, 0.4)
    ]  # fmt: skip
    assert float(losses[1]["loss_image"]) == pytest.approx(4 * float(losses[0]["loss_image"]), rel=1e-5)
    detector = _detector()
    _, embeddings = detector.embed_regions(_image(2), given)
    logits = detector.roi_heads.box_predictor.classifier(embeddings)
    by_hand = 0.1 * image_label_loss(logits, torch.tensor([1, 4]), torch.full((2,), 0.5))
    assert float(losses[0]["loss_image"]) == pytest.approx(float(by_hand), rel=1e-4)


def test_distillation_reaches_projection_features_and_backbone_but_not_the_boxes():
    detector = _detector()
    losses = _gradients(
        detector,
        _box_batch(regions=True),
        _supervision(distillation=DistillationParams()),
        "loss_point",
        "loss_relation",
    )
    predictor = detector.roi_heads.box_predictor
    assert {"loss_point", "loss_relation", "loss_cls"} <= set(losses)
    assert all(
        _has_gradient(part) for part in (predictor.projection, detector.roi_heads.res5, detector.backbone)
    )
    assert not _has_gradient(predictor.bbox_pred) and not _has_gradient(detector.proposal_generator)


def test_distillation_runs_on_images_with_names_too():
    batch, names = _box_batch(regions=True), _name_batch(regions=True)
    both = Batch(*(getattr(batch, key) + getattr(names, key) for key in vars(batch)))
    supervision = _supervision(distillation=DistillationParams(), images=ImageSupervisionParams())
    losses = _gradients(_detector(), both, supervision)
    assert {"loss_cls", "loss_image", "loss_point", "loss_relation"} <= set(losses)


def test_a_weight_of_zero_leaves_its_loss_out_and_the_factor_is_a_hundred():
    first = DistillationParams(point_weight=0.15, relation_weight=0.0)
    second = DistillationParams(point_weight=0.3, relation_weight=0.0)
    values = [
        _gradients(_detector(), _box_batch(regions=True), _supervision(distillation=one)) for one in (first, second)
    ]  # fmt: skip
    assert "loss_relation" not in values[0]
    assert float(values[1]["loss_point"]) == pytest.approx(2 * float(values[0]["loss_point"]), rel=1e-5)
    student, _ = _detector().embed_regions(_image(), _regions().boxes)
    other, _ = _detector().embed_regions(_image(1), _regions().boxes)
    from risf_core.open_vocabulary.distillation import point_loss

    teacher = _regions().embeddings.repeat(2, 1)
    by_hand = 15 * point_loss(torch.cat([student, other]), teacher)
    assert float(values[0]["loss_point"]) == pytest.approx(float(by_hand), rel=1e-3)


# ---------------------------------------------------------------- weight transfer


def test_weight_transfer_freezes_the_source_and_trains_the_rest():
    detector = _detector()
    predictor = detector.roi_heads.box_predictor
    before = predictor.projection.weight.detach().clone()
    predictor.use_head("transfer", width=8)
    assert torch.equal(predictor.head.source, before)
    supervision = _supervision(distillation=DistillationParams(), images=ImageSupervisionParams())
    _gradients(detector, _box_batch(regions=True), supervision)
    head = predictor.head
    assert predictor.projection.weight.grad is None and predictor.projection.bias.grad is None
    assert all(_has_gradient(part) for part in (head.theta1, head.theta2, head.residual))
    _gradients(detector, _box_batch(regions=True), supervision, "loss_point", "loss_relation")
    assert not _has_gradient(head) and _has_gradient(detector.backbone)  # through the frozen f


def test_weight_transfer_is_its_formula():
    detector = _detector()
    predictor = detector.roi_heads.box_predictor
    predictor.use_head("transfer", width=8)
    head, features = predictor.head, torch.randn(4, DETECTOR.res5_width)
    first = F.leaky_relu(predictor.projection.weight @ head.theta1.weight.T + head.theta1.bias, 0.1)
    made = first @ head.theta2.weight.T + head.theta2.bias
    assert made.shape == predictor.projection.weight.shape
    expected = features @ made.T + head.residual(features)
    assert torch.allclose(head(features), expected, atol=1e-5)
    assert torch.allclose(predictor.classified(features), expected, atol=1e-5)
    assert torch.allclose(predictor.distilled(features), predictor.projection(features))


@pytest.mark.parametrize("kind", HEADS)
def test_every_kind_of_head_trains_and_survives_its_file(kind, tmp_path):
    detector = _detector()
    predictor = detector.roi_heads.box_predictor
    shared = predictor.classified(torch.ones(1, DETECTOR.res5_width))
    predictor.use_head(kind, width=8)
    _gradients(detector, _box_batch(regions=True), _supervision(distillation=DistillationParams()))
    frozen = predictor.projection.weight.grad is None
    assert frozen == (kind in ("transfer", "free", "frozen", "random_source"))
    same = torch.allclose(shared, predictor.classified(torch.ones(1, DETECTOR.res5_width)))
    assert same == (kind in ("shared", "two_heads", "frozen"))
    save_arm(tmp_path / "arm.pth", detector, kind)
    again = Architecture(DETECTOR, 50.0, None, 8).load(tmp_path / "arm.pth", _texts(7), seed=3).eval()
    detector.set_texts(_texts(7))
    outputs = [one.eval()([_image(5)])[0] for one in (detector, again)]
    assert torch.equal(outputs[0]["scores"], outputs[1]["scores"]) and len(outputs[0]["scores"])


def test_an_unknown_head_is_refused():
    with pytest.raises(ParamsError, match="head is 'free_lunch'. Expected one of: shared, transfer"):
        _detector().roi_heads.box_predictor.use_head("free_lunch")


# ---------------------------------------------------------------- choice of boxes, detections


def test_pseudo_boxes_by_each_rule():
    logits = torch.tensor([[0.0, 5.0, 1.0], [3.0, 1.0, 2.0], [1.0, 0.0, 9.0]])
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 5, 5], [0, 0, 30, 20]])
    labels = torch.tensor([1, 0, 1])
    assert choose_pseudo_boxes("max_score", logits, boxes, labels).tolist() == [0, 1, 0]
    assert choose_pseudo_boxes("max_size", logits, boxes, labels).tolist() == [2, 2, 2]
    assert choose_pseudo_boxes("max_objectness", logits, boxes, labels).tolist() == [0, 0, 0]


def test_detections_have_sigmoid_scores_one_box_for_all_classes_and_no_background():
    proposals = torch.tensor([[10.0, 10, 30, 30], [40, 10, 80, 50]])
    logits = torch.tensor([[2.0, -9.0, 1.0, 30.0], [-1.0, 0.5, -9.0, 30.0]])
    found = select_by_sigmoid(
        logits, torch.zeros(2, 4), proposals, (64, 96), score_thresh=0.05, max_detections=10
    )
    assert found["labels"].tolist() == [0, 2, 1, 0] and found["proposal"].tolist() == [0, 0, 1, 1]
    assert torch.allclose(found["scores"], torch.tensor([2.0, 1.0, 0.5, -1.0]).sigmoid())
    assert torch.equal(found["boxes"][0], found["boxes"][1])
    assert torch.allclose(found["class_scores"][:, -1], 1 - found["class_scores"][:, :-1].amax(dim=1))


def test_the_vocabulary_is_swapped_at_test_time():
    detector = _detector().eval()
    first = detector([_image()])[0]
    detector.set_texts(_texts(3, seed=8))
    second = detector([_image()])[0]
    assert first["class_scores"].shape[1] == 6 and second["class_scores"].shape[1] == 4
    order = torch.tensor([4, 2, 0, 1, 3])
    detector.set_texts(_texts()[order])
    third = detector([_image()])[0]
    assert torch.allclose(third["scores"], first["scores"], atol=1e-5)
    assert torch.equal(order[third["labels"]], first["labels"])


def test_mirrored_boxes_return():
    boxes = np.array([[2.0, 3, 20, 30], [0, 0, 96, 64]])
    assert mirrored(boxes, 96).tolist() == [[76, 3, 94, 30], [0, 0, 96, 64]]
    assert np.array_equal(mirrored(mirrored(boxes, 96), 96), boxes)


def test_regions_follow_image_and_resizing():
    """The same region of an image seen at twice the size has nearly the same place on the map."""
    params = DETECTOR.model_copy(update={"min_size": (128,)})
    torch.manual_seed(0)
    large = OpenVocabularyRCNN(params, _texts()).eval()
    padded, sizes = large.batch([large.resize(_image())])
    scaled = large.region_features(large.backbone(padded), [2.0 * _regions().boxes])
    expected = large.roi_heads.box_predictor.distilled(scaled)
    assert sizes == [(128, 192)]
    assert torch.allclose(large.embed_regions(_image(), _regions().boxes)[0], expected, atol=1e-6)


def test_cosine_of_gradients_is_that_of_two_backward_passes():
    detector = _detector()
    torch.manual_seed(0)
    supervision = _supervision(distillation=DistillationParams())
    losses = detector.step_losses(_box_batch(regions=True), supervision)
    cosine = gradient_cosine(detector, losses)
    weight = detector.roi_heads.box_predictor.projection.weight
    grads = []
    for names in (("loss_point", "loss_relation"), ("loss_cls",)):
        detector.zero_grad()
        sum(losses[name] for name in names).backward(retain_graph=True)
        grads.append(weight.grad.flatten().clone())
    assert cosine == pytest.approx(float(F.cosine_similarity(*grads, dim=0)), rel=1e-4)
    detector.roi_heads.box_predictor.use_head("frozen")
    assert gradient_cosine(detector, losses) is None


# ---------------------------------------------------------------- measures of fidelity


def test_measures_of_fidelity_at_their_ends():
    a = torch.randn(20, 6, generator=torch.Generator().manual_seed(0))
    rotation = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(1))).Q
    noise = torch.randn(20, 6, generator=torch.Generator().manual_seed(2))
    assert linear_cka(a, 3 * a @ rotation) == pytest.approx(1.0) and linear_cka(a, noise) < 0.6
    assert gram_spearman(a, 2 * a @ rotation) == pytest.approx(1.0, abs=1e-3)
    assert abs(gram_spearman(a, noise)) < 0.3
    labels = torch.arange(20) % 3
    texts = torch.eye(6)[:3]
    assert top1(texts[labels] + 0.1, texts, labels) == 100.0
    assert top1(texts[(labels + 1) % 3], texts, labels) == 0.0 and top1(a[:0], texts, labels[:0]) is None


# ---------------------------------------------------------------- parameters


@pytest.mark.parametrize(
    "arms, words",
    [
        ({"a": {"start": "b"}}, "a starts from 'b', which is no arm above it"),
        ({"a": {"head": "transfer"}, "b": {"start": "a"}}, "whose head is transfer"),
        ({"base": {}}, "base is stage 0 itself"),
        ({"stage0": {}}, "stage0 is no name of an arm"),
        ({"a": {"train": False, "head": "free"}}, "train: false evaluates the start"),
        ({"a": {"distillation": {"top": 21}}}, "takes the top 21 regions, but region_candidates is 20"),
        ({"a": {"distillation": {"point_weight": 0.0, "relation_weight": 0.0}}}, "both 0"),
    ],
)
def test_arms_that_would_do_something_else_are_refused(arms, words):
    from pydantic import ValidationError

    given = {"profile": "ovd", "base": "a.yaml", "clip": {"run": "b.yaml"}}
    with pytest.raises(ValidationError) as refused:
        OpenVocabularyParams.model_validate(given | {"arms": arms})
    assert words in str(refused.value)
    OpenVocabularyParams.model_validate(given | {"arms": {"base": {"train": False}, "a": {}}})


def test_the_parameters_of_a_record_are_valid_though_its_arms_are_sorted():
    from pydantic import ValidationError

    arms = {"rkd": {}, "both": {"start": "rkd"}, "a_base": {"start": "both"}}
    given = {"profile": "ovd", "base": "a.yaml", "clip": {"run": "b.yaml"}}
    OpenVocabularyParams.model_validate(given | {"arms": arms})
    OpenVocabularyParams.model_validate(given | {"arms": dict(sorted(arms.items()))})
    with pytest.raises(ValidationError, match="no arm above it"):
        OpenVocabularyParams.model_validate(given | {"arms": {"both": {"start": "rkd"}, "rkd": {}, "a": {}}})
    with pytest.raises(ValidationError, match="no arm above it"):
        OpenVocabularyParams.model_validate(given | {"arms": {"rkd": {"start": "rkd"}}})
