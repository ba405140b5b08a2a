"""The losses of region-based knowledge distillation (RKD): a student's region embeddings against CLIP's.

All inputs are L2-normalised here, so that only directions count. The published weights belong to the published forms
(`norm="l1"`, sums over all pairs): other norms change the relation loss up to 1,600 times and need other weights.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from risf_core.errors import ParamsError

RKD_SCALE = 100.0  # the released code multiplies both weights by it
POINT_LOSSES = ("l1", "cosine")
RELATION_NORMS = ("l1", "l2", "l2_mean")
SMALLEST_NORM = 1e-12


def point_loss(student: Tensor, teacher: Tensor, *, kind: str = "l1") -> Tensor:
    """Point-wise distillation of region embeddings.

    ``l1`` is RKD's: ``sum_n |u_n - v_n|_1 / (N d)`` of the normalised u (student) and v (teacher). ``cosine`` is the
    mean of ``1 - u_n . v_n``.

    Args:
        student: float [N, d], not normalised; gradients flow into it.
        teacher: float [N, d], not normalised; a constant.
        kind: "l1" or "cosine".

    Returns:
        A scalar of 0 or more; 0 with a gradient of 0 for N = 0.

    Raises:
        ParamsError: If the kind is unknown, or the shapes differ.
    """
    _check(student, teacher, "kind", kind, POINT_LOSSES)
    if not len(student):
        return student.sum()
    u, v = _directions(student, teacher)
    return (u - v).abs().mean() if kind == "l1" else (1 - (u * v).sum(dim=1)).mean()


def relation_loss(student: Tensor, teacher: Tensor, *, norm: str = "l1") -> Tensor:
    """Inter-embedding relation matching (IRM): the Gram matrix of the student's embeddings against the teacher's.

    ``|| G(u) - G(v) ||_F^2`` with ``G(x) = X X^T`` of the normalised rows, each row of G divided by its norm:
    ``l1`` (the released code) by the sum of absolute values, ``l2`` by the Euclidean norm, ``l2_mean`` the same with
    the result divided by N^2. All N regions of a batch stand in one matrix, the diagonal included.

    Any rotation of the student's space leaves it as it is, so alone it cannot align the student with texts.

    Args:
        student: float [N, d_s], not normalised; gradients flow into it.
        teacher: float [N, d_t], not normalised; a constant. The dimensions may differ.
        norm: "l1", "l2" or "l2_mean".

    Returns:
        A scalar of 0 or more; 0 with a gradient of 0 for N = 0.

    Raises:
        ParamsError: If the norm is unknown, or the numbers of rows differ.
    """
    _check(student[:, :1], teacher[:, :1], "norm", norm, RELATION_NORMS)
    if not len(student):
        return student.sum()
    u, v = _directions(student, teacher)
    difference = (gram_rows(u, norm=norm) - gram_rows(v, norm=norm)).square().sum()
    return difference / len(u) ** 2 if norm == "l2_mean" else difference


def gram_rows(embeds_norm: Tensor, *, norm: str) -> Tensor:
    """The Gram matrix of normalised embeddings [N, d] with each row divided by its norm: [N, N]."""
    gram = embeds_norm @ embeds_norm.T
    return F.normalize(gram, p=1 if norm == "l1" else 2, dim=1, eps=SMALLEST_NORM)


def text_kl(student: Tensor, teacher: Tensor, texts: Tensor, *, temperature: float) -> Tensor:
    """Kullback-Leibler divergence of what student and teacher say about a list of texts.

    ``KL(softmax(t v.T) || softmax(t q.T))``, mean over the regions: it spends the student's capacity on the
    directions that re-scoring reads.

    Args:
        student: float [N, d], not normalised; gradients flow into it.
        teacher: float [N, d], not normalised; a constant.
        texts: float [L, d], not normalised.
        temperature: Factor t of the cosines, above 0.

    Returns:
        A scalar of 0 or more; 0 with a gradient of 0 for N = 0.

    Raises:
        ParamsError: If the shapes differ or the temperature is not above 0.
    """
    _check(student, teacher, "temperature", temperature > 0, (True,))
    if not len(student):
        return student.sum()
    u, v = _directions(student, teacher)
    texts_norm = F.normalize(texts.to(u.dtype), dim=1)
    said = (temperature * u @ texts_norm.T).log_softmax(dim=1)
    return F.kl_div(
        said, (temperature * v @ texts_norm.T).log_softmax(dim=1), log_target=True, reduction="batchmean"
    )


def _directions(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Both with rows of length 1, in float32 or the wider type of the student."""
    dtype = torch.promote_types(student.dtype, torch.float32)
    with torch.autocast(student.device.type, enabled=False):
        return (
            F.normalize(student.to(dtype), dim=1, eps=SMALLEST_NORM),
            F.normalize(teacher.detach().to(dtype), dim=1, eps=SMALLEST_NORM),
        )


def _check(student: Tensor, teacher: Tensor, name: str, value: object, known: tuple) -> None:
    if value not in known:
        raise ParamsError(f"{name} is {value!r}. Expected one of: {', '.join(map(str, known))}.")
    if student.ndim != 2 or student.shape != teacher.shape:
        raise ParamsError(
            f"embeddings of student {tuple(student.shape)} and teacher {tuple(teacher.shape)}. Expected [N, d] of both."
        )
