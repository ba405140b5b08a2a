"""Value and gradient of the classification losses for one RoI: from formulas, and from the code through autograd.

All three built-in shapes are one closed form (see :mod:`risf_core.bnrl`): cross-entropy has alpha 1, beta 0, gamma 0;
focal loss (Lin et al., 2017, arXiv:1708.02002, without its class balance) alpha 1, beta 0, gamma 2. Torch is
imported only where autograd runs.
"""

from collections.abc import Callable, Mapping

import numpy as np
import pandas as pd

NUM_CLASSES = 5
REST = 0.001  # probability of each of the other classes beside a hard negative
CE = {"alpha": 1.0, "beta": 0.0, "gamma": 0.0, "epsilon": 0.0, "background_weight": 1.0}
FOCAL = CE | {"gamma": 2.0}
BNRL = {"alpha": 0.2, "beta": 0.8, "gamma": 4.0, "epsilon": 1.0, "background_weight": 0.2}
SITUATIONS = ("p_y", "p_k")


def situation(name: str, p: np.ndarray) -> tuple[np.ndarray, int, int]:
    """The probabilities of one RoI along a path.

    Args:
        name: "p_y": an object of class y = 0, the rest of the probability spread evenly over the other columns.
            "p_k": a RoI labelled background that the detector takes for class k = 0 (a hard negative, or an object
            nobody annotated); each other class has 0.1 %, background the rest.
        p: The probability that varies, in (0, 1), [N].

    Returns:
        Probabilities [N, C+1] with background last, the label, and the column whose logit the gradient is taken of.
    """
    if name == "p_y":
        probs = np.repeat(((1 - p) / NUM_CLASSES)[:, None], NUM_CLASSES + 1, axis=1)
        probs[:, 0] = p
        return probs, 0, 0
    probs = np.full((len(p), NUM_CLASSES + 1), REST)
    probs[:, 0] = p
    probs[:, -1] = 1 - probs[:, :-1].sum(axis=1)
    return probs, NUM_CLASSES, 0


def closed_form(
    probs: np.ndarray,
    label: int,
    column: int,
    *,
    alpha: float,
    beta: float,
    gamma: float,
    epsilon: float,
    background_weight: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Value of the loss and its derivative by the logit of ``column``, written out by hand.

    ``alpha w_y (1-p_y)^gamma (-log p_y) + beta sum_{k != y} w_k p_k^epsilon (-log(1-p_k))``; by the logits
    ``dL/dx_j = p_j (dL/dp_j - sum_i p_i dL/dp_i)``.

    Args:
        probs: [N, C+1], inside (0, 1), background last.
        label: Column y.
        column: Column j.

    Returns:
        Values and derivatives, both [N].
    """
    weight = np.ones(probs.shape[1])
    weight[-1] = background_weight
    others = weight * (np.arange(probs.shape[1]) != label)  # [C+1]
    p_y = probs[:, label]
    value = -alpha * weight[label] * (1 - p_y) ** gamma * np.log(p_y)
    value = value - beta * (others * probs**epsilon * np.log1p(-probs)).sum(axis=1)
    by_probs = (
        beta * others * (-epsilon * probs ** (epsilon - 1) * np.log1p(-probs) + probs**epsilon / (1 - probs))
    )
    focus = gamma * (1 - p_y) ** (gamma - 1) * np.log(p_y) - (1 - p_y) ** gamma / p_y
    by_probs[:, label] = alpha * weight[label] * focus
    by_logit = probs[:, column] * (by_probs[:, column] - (probs * by_probs).sum(axis=1))
    return value, by_logit


def autograd(loss: Callable, probs: np.ndarray, label: int, column: int) -> tuple[np.ndarray, np.ndarray]:
    """Value and derivative by the logit of ``column`` of a function (logits, labels) -> scalar, RoI by RoI, [N]."""
    import torch

    values, gradients = np.empty(len(probs)), np.empty(len(probs))
    for place, row in enumerate(probs):
        logits = torch.log(torch.tensor(row[None], dtype=torch.float64)).requires_grad_()  # [1, C+1]
        value = loss(logits, torch.tensor([label]))
        (gradient,) = torch.autograd.grad(value, logits)
        values[place], gradients[place] = value.item(), gradient[0, column].item()
    return values, gradients


def focal(logits, labels):
    """Focal loss with gamma 2, as a function of torch tensors [N, C+1] and [N]."""
    log_p_y = logits.log_softmax(dim=1).gather(1, labels[:, None])
    return (-((1 - log_p_y.exp()) ** FOCAL["gamma"]) * log_p_y).mean()


def loss_curves(
    *, bnrl: Mapping[str, float] = BNRL, own: Mapping[str, Callable] | None = None
) -> pd.DataFrame:
    """Value and gradient of ce, focal and bnrl (and the user's own) over p_y and over a hard negative's p_k.

    Args:
        bnrl: BNRL's hyper-parameters; ``beta`` None means ``1 - alpha``.
        own: Further losses by name, functions (logits, labels) -> scalar; they have no closed form.

    Returns:
        Columns situation ("p_y", "p_k"), loss, kind ("closed form": 197 points, "autograd": 20 points), p, value,
        gradient.
    """
    from risf_core.bnrl import get_loss

    bnrl = dict(bnrl)
    bnrl["beta"] = 1 - bnrl["alpha"] if bnrl.get("beta") is None else bnrl["beta"]
    functions = {"ce": get_loss("ce"), "focal": focal, "bnrl": get_loss("bnrl", **bnrl), **(own or {})}
    hyper = {"ce": CE, "focal": FOCAL, "bnrl": bnrl}
    points = {"closed form": np.linspace(0.01, 0.99, 197), "autograd": np.linspace(0.02, 0.98, 20)}
    parts = []
    for name in SITUATIONS:
        for kind, p in points.items():
            probs, label, column = situation(name, p)
            for loss, function in functions.items():
                if kind == "closed form" and loss not in hyper:
                    continue
                by_hand = kind == "closed form"
                found = (
                    closed_form(probs, label, column, **hyper[loss])
                    if by_hand
                    else autograd(function, probs, label, column)
                )
                frame = pd.DataFrame({"p": p, "value": found[0], "gradient": found[1]})
                parts.append(frame.assign(situation=name, loss=loss, kind=kind))
    return pd.concat(parts, ignore_index=True)[["situation", "loss", "kind", "p", "value", "gradient"]]


def largest_difference(*, bnrl: Mapping[str, float] = BNRL) -> float:
    """The largest difference between closed form and autograd over both situations, of values and gradients."""
    from risf_core.bnrl import get_loss

    bnrl = dict(bnrl)
    bnrl["beta"] = 1 - bnrl["alpha"] if bnrl.get("beta") is None else bnrl["beta"]
    cases = [(get_loss("ce"), CE), (focal, FOCAL), (get_loss("bnrl", **bnrl), bnrl)]
    gaps = []
    for name in SITUATIONS:
        probs, label, column = situation(name, np.linspace(0.02, 0.98, 20))
        for function, hyper in cases:
            by_hand, by_code = (
                closed_form(probs, label, column, **hyper),
                autograd(function, probs, label, column),
            )
            gaps += [np.abs(first - second).max() for first, second in zip(by_hand, by_code, strict=True)]
    return float(max(gaps))
