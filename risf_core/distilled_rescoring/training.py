"""Train a distilled head on pairs of region features and CLIP's embeddings."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from risf_core.distilled_rescoring.head import DistilledHead, ridge_head
from risf_core.distilled_rescoring.pairs import RegionPairs
from risf_core.distilled_rescoring_params import HeadSolver, HeadSpec
from risf_core.errors import DataError
from risf_core.open_vocabulary.distillation import point_loss, relation_loss, text_kl
from risf_core.training import step_seed

WARM_UP = 0.1  # share of the steps in which the rate rises


def distillation_loss(
    student: Tensor, teacher: Tensor, texts: Tensor, spec: HeadSpec, *, temperature: float
) -> Tensor:
    """The weighted sum of the losses of a head.

    ``l1 |q - v|_1 / d + cosine (1 - q.v) + relation |G(q) - G(v)|^2 + kl KL(softmax(t v.T) || softmax(t q.T))``,
    each as in `risf_core.open_vocabulary.distillation`; a loss of weight 0 is not computed.

    Args:
        student: [N, d], not normalised.
        teacher: [N, d].
        texts: [L, d], of the divergence.
        spec: The weights.
        temperature: t.
    """
    loss = student.sum() * 0.0
    if spec.l1:
        loss = loss + spec.l1 * point_loss(student, teacher, kind="l1")
    if spec.cosine:
        loss = loss + spec.cosine * point_loss(student, teacher, kind="cosine")
    if spec.relation:
        loss = loss + spec.relation * relation_loss(student, teacher)
    if spec.kl:
        loss = loss + spec.kl * text_kl(student, teacher, texts, temperature=temperature)
    return loss


def train_head(
    pairs: RegionPairs,
    spec: HeadSpec,
    solver: HeadSolver,
    texts: Tensor,
    *,
    temperature: float,
    seed: int,
) -> tuple[DistilledHead, float]:
    """Train one head, on the CPU.

    Args:
        pairs: All regions; ``spec.images`` selects among them.
        spec: Layers, losses and data of the head.
        solver: Its schedule.
        texts: Embeddings of the names of the divergence, [L, d].
        temperature: Of the divergence.
        seed: Of the weights, the order and what is shuffled or drawn.

    Returns:
        The head in evaluation mode, and its mean loss over the last tenth of the steps (of a ridge: over all regions).

    Raises:
        DataError: If there are fewer than two regions.
    """
    pairs = pairs.images(spec.images, seed=seed)
    if len(pairs) < 2:
        raise DataError(f"{len(pairs)} regions to distil from. Expected at least 2: raise regions.images.")
    features, embeds = torch.from_numpy(pairs.features), torch.from_numpy(pairs.embeds)
    if spec.teacher == "shuffled":
        embeds = embeds[torch.from_numpy(np.random.default_rng([seed, 7]).permutation(len(embeds)))]
    options = {"temperature": temperature}
    if spec.layers == "ridge":
        head = ridge_head(features, embeds, penalty=solver.ridge)
        with torch.no_grad():
            return head, float(distillation_loss(head(features), embeds, texts, spec, **options))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(step_seed(seed, -3))
        hidden = solver.hidden if spec.layers == "mlp" else 0
        head = DistilledHead(features.shape[1], embeds.shape[1], hidden=hidden)
    head.standardise(features)

    def loss(rows: Tensor) -> Tensor:
        return distillation_loss(head(features[rows]), embeds[rows], texts, spec, **options)

    draws = _draws(len(features), solver.batch_size, seed)
    curve = _fit(head, loss, draws, solver.iterations, lr=solver.lr, weight_decay=solver.weight_decay)
    return head.eval(), float(np.mean(curve[-max(1, len(curve) // 10) :]))


def continue_head(
    head: DistilledHead,
    pairs: RegionPairs,
    shot_pairs: tuple[np.ndarray, np.ndarray],
    spec: HeadSpec,
    solver: HeadSolver,
    texts: Tensor,
    *,
    temperature: float,
    seed: int,
) -> DistilledHead:
    """Go on with a head on the regions of K-shot images, half of each batch, and the base images' regions as before.

    Args:
        head: The head to start from; it is not changed.
        pairs: Regions of base images.
        shot_pairs: Features [S, D] and embeddings [S, d] of the K-shot images' regions.
        spec: The losses.
        solver: ``shot_iterations`` steps at ``shot_lr``.
        texts: Of the divergence.
        temperature: Of the divergence.
        seed: Of the order.
    """
    further = DistilledHead(len(head.mean), pairs.embeds.shape[1], hidden=head.hidden)
    further.load_state_dict(head.state_dict())
    if not solver.shot_iterations:
        return further.eval()
    base, shots = (
        [torch.from_numpy(part) for part in parts] for parts in ((pairs.features, pairs.embeds), shot_pairs)
    )
    half = max(1, solver.batch_size // 2)
    shot_draws = _draws(len(shots[0]), half, step_seed(seed, 1))

    def loss(rows: Tensor) -> Tensor:
        other = next(shot_draws)
        features, embeds = (torch.cat([own[rows], new[other]]) for own, new in zip(base, shots, strict=True))
        return distillation_loss(further(features), embeds, texts, spec, temperature=temperature)

    draws = _draws(len(pairs), half, seed)
    _fit(further, loss, draws, solver.shot_iterations, lr=solver.shot_lr, weight_decay=solver.weight_decay)
    return further.eval()


def _draws(count: int, size: int, seed: int):
    """Batches of row numbers without end, drawn with replacement."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield torch.randint(count, (size,), generator=generator)


def _fit(head: DistilledHead, loss, draws, iterations: int, *, lr: float, weight_decay: float) -> list[float]:
    """The steps of AdamW; returns the loss of each."""
    optimizer = torch.optim.AdamW(head.parameters(), lr=lr, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, lr, total_steps=iterations + 1, pct_start=WARM_UP
    )
    head.train()
    curve = []
    for _ in range(iterations):
        value = loss(next(draws))
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        schedule.step()
        curve.append(float(value.detach()))
    return curve
