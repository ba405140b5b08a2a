"""The losses of region distillation: their identities, and their values computed by hand."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from risf_core.errors import ParamsError
from risf_core.open_vocabulary.distillation import (
    POINT_LOSSES,
    RELATION_NORMS,
    gram_rows,
    point_loss,
    relation_loss,
    text_kl,
)


def _embeddings(count: int = 7, dim: int = 5, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _rotation(dim: int = 5) -> torch.Tensor:
    return torch.linalg.qr(_embeddings(dim, dim, seed=9)).Q


def test_point_loss_is_the_mean_over_regions_and_dimensions():
    student, teacher = _embeddings(), _embeddings(seed=1)
    u = student.numpy() / np.linalg.norm(student.numpy(), axis=1, keepdims=True)
    v = teacher.numpy() / np.linalg.norm(teacher.numpy(), axis=1, keepdims=True)
    assert float(point_loss(student, teacher)) == pytest.approx(np.abs(u - v).sum() / (7 * 5), rel=1e-12)
    assert float(point_loss(student, teacher, kind="cosine")) == pytest.approx(1 - (u * v).sum(1).mean())


@pytest.mark.parametrize("norm", RELATION_NORMS)
def test_relation_loss_equals_its_definition(norm):
    student, teacher = _embeddings(), _embeddings(dim=3, seed=1)  # another dimension is allowed
    grams = []
    for x in (student.numpy(), teacher.numpy()):
        x = x / np.linalg.norm(x, axis=1, keepdims=True)
        gram = x @ x.T
        lengths = np.abs(gram).sum(1) if norm == "l1" else np.sqrt((gram**2).sum(1))
        grams.append(gram / lengths[:, None])
    expected = ((grams[0] - grams[1]) ** 2).sum() / (49 if norm == "l2_mean" else 1)
    assert float(relation_loss(student, teacher, norm=norm)) == pytest.approx(expected, rel=1e-12)


def test_rows_of_the_published_norm_sum_to_one():
    rows = gram_rows(F.normalize(_embeddings(), dim=1), norm="l1")
    assert torch.allclose(rows.abs().sum(dim=1), torch.ones(7, dtype=torch.float64))


@pytest.mark.parametrize("norm", RELATION_NORMS)
def test_relations_know_no_rotation_and_points_do(norm):
    student, teacher, rotation = _embeddings(), _embeddings(seed=1), _rotation()
    assert float(relation_loss(student, student, norm=norm)) == 0.0
    turned = float(relation_loss(student @ rotation, teacher, norm=norm))
    assert turned == pytest.approx(float(relation_loss(student, teacher, norm=norm)), rel=1e-9)
    assert abs(float(point_loss(student @ rotation, teacher) - point_loss(student, teacher))) > 0.01


@pytest.mark.parametrize("norm, factor", [("l1", 0.5 * 2), ("l2", 2.0), ("l2_mean", 0.5)])
def test_every_region_twice(norm, factor):
    """Twice the regions: 4 times the entries; rows twice as long by L1, sqrt(2) times by L2."""
    student, teacher = _embeddings(), _embeddings(seed=1)
    once = float(relation_loss(student, teacher, norm=norm))
    twice = float(relation_loss(student.repeat(2, 1), teacher.repeat(2, 1), norm=norm))
    assert twice == pytest.approx(factor * once, rel=1e-9)
    assert float(point_loss(student.repeat(2, 1), teacher.repeat(2, 1))) == pytest.approx(
        float(point_loss(student, teacher))
    )


def test_text_kl_is_zero_for_the_teacher_alone():
    student, teacher, texts = _embeddings(), _embeddings(seed=1), _embeddings(4, seed=2)
    assert float(text_kl(teacher, teacher, texts, temperature=50.0)) == pytest.approx(0.0, abs=1e-12)
    cosines = [F.normalize(x, dim=1) @ F.normalize(texts, dim=1).T for x in (teacher, student)]
    p, q = ((3.0 * x).softmax(dim=1) for x in cosines)
    expected = float((p * (p / q).log()).sum(dim=1).mean())
    assert float(text_kl(student, teacher, texts, temperature=3.0)) == pytest.approx(expected, rel=1e-9)


def test_lengths_do_not_matter_and_the_teacher_gets_no_gradient():
    student, teacher = _embeddings().requires_grad_(), _embeddings(seed=1).requires_grad_()
    for loss in (point_loss, relation_loss):
        value = loss(student, teacher)
        assert float(loss(3.0 * student, 0.2 * teacher).detach()) == pytest.approx(float(value.detach()))
        value.backward()
    assert student.grad is not None and student.grad.any() and teacher.grad is None


def test_no_region_is_a_zero_with_a_gradient():
    student = torch.zeros(0, 5, requires_grad=True)
    losses = [point_loss(student, student.detach()), relation_loss(student, student.detach())]
    losses.append(text_kl(student, student.detach(), _embeddings(4).float(), temperature=1.0))
    sum(losses).backward()
    assert [float(loss.detach()) for loss in losses] == [0.0, 0.0, 0.0]


def test_half_precision_is_computed_in_single():
    student, teacher = _embeddings().bfloat16(), _embeddings(seed=1)
    exact = point_loss(student.double(), teacher)
    assert float(point_loss(student, teacher)) == pytest.approx(float(exact), rel=1e-6)


def test_unknown_forms_and_shapes_are_refused():
    with pytest.raises(ParamsError, match=f"kind is 'l3'. Expected one of: {', '.join(POINT_LOSSES)}"):
        point_loss(_embeddings(), _embeddings(), kind="l3")
    with pytest.raises(ParamsError, match="norm is 'p1'"):
        relation_loss(_embeddings(), _embeddings(), norm="p1")
    with pytest.raises(ParamsError, match=r"student \(7, 5\) and teacher \(6, 5\)"):
        point_loss(_embeddings(), _embeddings(6))
    with pytest.raises(ParamsError, match="temperature"):
        text_kl(_embeddings(), _embeddings(), _embeddings(3), temperature=0.0)
