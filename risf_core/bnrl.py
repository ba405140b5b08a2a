"""The classification losses of the suite by name; the one a reader comes for is :func:`bnrl_loss`.

Background Negative Re-scale Loss (RISF; Jung et al., CVIU 2024). In a few-shot image many objects stand
unannotated, so a confident answer on "background" is often right and should not be punished as hard as a
confusion between classes. The loss of RoI i with label y and class probabilities p = softmax(logits) is

    L_i = alpha * w_y * (1 - p_y)^gamma * (-log p_y) + beta * sum_{k != y} w_k * p_k^epsilon * (-log(1 - p_k))

where w of the background is ``background_weight`` and all other w are 1; the loss is the mean over the RoIs.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from risf_core.custom_loss import BUILT_IN_LOSSES, check_loss_name, is_custom, load_custom_loss
from risf_core.errors import ParamsError, ShapeError


def bnrl_loss(
    logits: Tensor,
    labels: Tensor,
    *,
    alpha: float = 0.2,
    beta: float | None = None,
    epsilon: float = 1.0,
    gamma: float = 4.0,
    background_weight: float = 0.2,
    class_weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Tensor:
    """Background Negative Re-scale Loss, the equation at the head of this file.

    The published code clips ``log(1 - p)`` and loses up to 39 % of the value in float32 when the softmax
    saturates; here everything is computed from logarithms, so value and gradient are finite and accurate for
    logits of any size.

    Args:
        logits: Class scores before softmax, floating, shape [N, C+1], background LAST.
        labels: int64, shape [N], in [0, C] (C is background) or ``ignore_index``.
        alpha: Weight of the label's own term, in [0, 1]. With alpha=1, gamma=0: weighted cross-entropy.
        beta: Weight of the other classes' term, >= 0; None means ``1 - alpha``.
        epsilon: Exponent >= 0 that mutes the classes which are hardly believed.
        gamma: Focusing exponent >= 0 that mutes the RoIs which are already right.
        background_weight: w of the background, >= 0.
        class_weight: All w, shape [C+1], >= 0; replaces ``background_weight``.
        ignore_index: RoIs with this label count in neither the sum nor the mean.
        reduction: "mean" over the RoIs not ignored, "sum", or "none" (shape [N], 0 where ignored).

    Returns:
        The loss in float32 (float64 for float64 logits), also under autocast and for half-precision logits.
        A batch that is empty, or ignored as a whole, gives 0 with a gradient of 0.

    Raises:
        ShapeError: If a tensor has the wrong shape, type or range.
        ParamsError: If a hyper-parameter is out of its range.

    Example:
        >>> bnrl_loss(torch.zeros(1, 2), torch.tensor([0]), alpha=0.5, gamma=1.0, background_weight=1.0)
        tensor(0.3466)
    """
    beta = _check_hyper_parameters(alpha, beta, epsilon, gamma, background_weight)
    is_kept = _check_tensors(logits, labels, ignore_index)
    logits = _at_least_float32(logits)
    weight = _class_weights(logits, background_weight, class_weight)  # [C+1]
    log_p, log_not_p = log_probs_and_complements(logits)  # log p and log(1 - p), both [N, C+1]

    # [N, 1]; an ignored RoI is computed, then masked
    label = torch.where(is_kept, labels, 0).unsqueeze(1)
    log_p_y, log_not_p_y = log_p.gather(1, label), log_not_p.gather(1, label)  # [N, 1]
    positive = weight[label] * (gamma * log_not_p_y).exp() * -log_p_y  # (1 - p_y)^gamma, in logarithms
    negative = weight * (epsilon * log_p).exp() * -log_not_p  # [N, C+1]
    negative = negative.scatter(1, label, 0.0).sum(1, keepdim=True)  # the sum runs over k != y
    losses = (alpha * positive + beta * negative).squeeze(1)  # [N]
    return _reduce(losses, is_kept, reduction)


def log_probs_and_complements(logits: Tensor) -> tuple[Tensor, Tensor]:
    """log p and log(1 - p) of a softmax over the columns, accurate at both ends; shapes [N, C+1].

    Only the largest p of a row can be near 1. It is therefore written as a sigmoid of its distance to the
    others: with ``rest = logsumexp(others) - largest``, p_top = sigmoid(-rest) and 1 - p_top = sigmoid(rest).
    No other p exceeds 1/2, where log(1 - p) = log1p(-p) loses nothing.
    """
    top = logits.argmax(dim=1, keepdim=True)  # [N, 1]
    shifted = logits - logits.gather(1, top)  # [N, C+1], <= 0
    rest = shifted.scatter(1, top, -math.inf).logsumexp(dim=1, keepdim=True)  # [N, 1]
    log_p = shifted + F.logsigmoid(-rest)
    log_not_p = torch.log1p(-log_p.scatter(1, top, -math.inf).exp())
    return log_p, log_not_p.scatter(1, top, F.logsigmoid(rest))


def cross_entropy(
    logits: Tensor,
    labels: Tensor,
    *,
    background_weight: float = 1.0,
    class_weight: Tensor | None = None,
    ignore_index: int = -100,
) -> Tensor:
    """Cross-entropy with a weight on the background, divided by the number of RoIs (not by their weights).

    With ``background_weight`` 1 this is plain cross-entropy (``ce``). With 0.2 it is what the released RISF
    code really trains (``ce_bg``): there the tuple of hyper-parameters arrives as the class weight, and
    alpha, beta, gamma, epsilon stay unused. Arguments, errors and the empty batch as in :func:`bnrl_loss`.
    """
    is_kept = _check_tensors(logits, labels, ignore_index)
    logits = _at_least_float32(logits)
    weight = _class_weights(logits, background_weight, class_weight)
    losses = F.cross_entropy(logits, labels, weight=weight, ignore_index=ignore_index, reduction="none")
    return _reduce(losses, is_kept, "mean")


def get_loss(
    spec: str,
    *,
    alpha: float = 0.2,
    beta: float | None = None,
    gamma: float = 4.0,
    epsilon: float = 1.0,
    background_weight: float = 0.2,
) -> Callable[[Tensor, Tensor], Tensor]:
    """The loss named by ``spec`` as a function (logits [N, C+1], labels [N]) -> scalar.

    Args:
        spec: ``"ce"``, ``"ce_bg"`` (uses background_weight), ``"bnrl"`` (uses all), or the user's own as
            ``"path/to/file.py:function"``, which is called as ``function(logits, labels)`` without
            hyper-parameters.
        alpha, beta, gamma, epsilon, background_weight: As in :func:`bnrl_loss`.

    Raises:
        ParamsError: If the name is unknown, a hyper-parameter is out of range, or the user's function breaks
        the contract.
    """
    if is_custom(spec):
        return load_custom_loss(spec)
    check_loss_name(spec)
    hyper = {
        "alpha": alpha,
        "beta": beta,
        "epsilon": epsilon,
        "gamma": gamma,
        "background_weight": background_weight,
    }
    _check_hyper_parameters(**hyper)
    losses = {
        "ce": cross_entropy,
        "ce_bg": lambda logits, labels: cross_entropy(logits, labels, background_weight=background_weight),
        "bnrl": lambda logits, labels: bnrl_loss(logits, labels, **hyper),
    }
    assert set(losses) == set(BUILT_IN_LOSSES)
    return losses[spec]


def _check_hyper_parameters(alpha, beta, epsilon, gamma, background_weight) -> float:
    """Check all ranges and return beta with its default filled in."""
    upper_limits = {"alpha": (alpha, 1.0), "epsilon": (epsilon, math.inf), "gamma": (gamma, math.inf)}
    upper_limits |= {"background_weight": (background_weight, math.inf)}
    if beta is not None:
        upper_limits["beta"] = (beta, math.inf)
    for name, (value, upper) in upper_limits.items():
        if not (0.0 <= value <= upper and math.isfinite(value)):
            expected = "a number in [0, 1]" if upper == 1.0 else "a finite number >= 0"
            raise ParamsError(f"{name} of the loss is {value}; expected {expected}.")
    return 1.0 - alpha if beta is None else beta


def _check_tensors(logits: Tensor, labels: Tensor, ignore_index: int) -> Tensor:
    """Check logits and labels; return the mask of the RoIs that count, shape [N]."""
    if logits.ndim != 2 or logits.shape[1] < 2 or not logits.is_floating_point():
        found = f"{logits.dtype} of shape {list(logits.shape)}"
        raise ShapeError(
            f"logits are {found}; expected a floating tensor [N, C+1] with background as the last column."
        )
    if labels.shape != logits.shape[:1] or labels.dtype != torch.int64:
        found = f"{labels.dtype} of shape {list(labels.shape)}"
        raise ShapeError(
            f"labels are {found}; expected int64 of shape [{len(logits)}], one per row of the logits."
        )
    is_kept = labels != ignore_index
    background = logits.shape[1] - 1
    is_wrong = is_kept & ((labels < 0) | (labels > background))
    if is_wrong.any():
        wrong = labels[is_wrong].unique().tolist()[:5]
        raise ShapeError(
            f"labels hold {wrong}; expected 0 to {background - 1} for classes, {background} for background"
            f" (the last of {background + 1} columns) or {ignore_index} for ignored."
        )
    return is_kept


def _at_least_float32(logits: Tensor) -> Tensor:
    """Half precision is left here; autocast would not go back to it, for it lowers products of matrices alone."""
    return logits if logits.dtype == torch.float64 else logits.float()


def _class_weights(logits: Tensor, background_weight: float, class_weight: Tensor | None) -> Tensor:
    """w of each column, shape [C+1], with the logits' device and dtype."""
    if class_weight is None:
        weight = logits.new_ones(logits.shape[1])
        weight[-1] = background_weight
        return weight
    weight = class_weight.to(logits)
    if weight.shape != logits.shape[1:] or not (weight.isfinite() & (weight >= 0)).all():
        expected = f"{logits.shape[1]} finite weights >= 0, background last"
        raise ShapeError(f"class_weight is {class_weight.tolist()}; expected {expected}.")
    return weight


def _reduce(losses: Tensor, is_kept: Tensor, reduction: str) -> Tensor:
    losses = torch.where(is_kept, losses, 0.0)
    if reduction == "none":
        return losses
    if reduction == "sum":
        return losses.sum()
    if reduction == "mean":
        return losses.sum() / is_kept.sum().clamp(min=1)
    raise ParamsError(f'reduction is "{reduction}"; expected "mean", "sum" or "none".')
