"""One training loop for pretraining, base training and fine-tuning: seeded per step, resumable, refusing bad losses."""

import hashlib
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from risf_core.data.dataset import DetectionData
from risf_core.data.loader import ImageCache, image_order, load_batch
from risf_core.detector.checkpoints import read_checkpoint, save_checkpoint
from risf_core.detector.faster_rcnn import FasterRCNN
from risf_core.errors import CheckpointError, RisfError
from risf_core.params import SolverParams
from risf_core.precision import resolve_precision
from risf_core.progress import progress

log = logging.getLogger(__name__)

Step = Callable[[int], dict[str, Tensor]]
CURVE_POINTS = 60  # points of a loss curve that go into a record


def step_seed(seed: int, iteration: int) -> int:
    """Seed of all randomness in one step, so that a resumed run draws what an undisturbed one would have drawn."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{iteration}".encode()).digest()[:6], "big")


def seed_everything(seed: int) -> None:
    """Seed torch's generators. ``torch.manual_seed`` would also queue a call for CUDA in every step without a GPU."""
    torch.random.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)


def make_optimizer(model: nn.Module, solver: SolverParams) -> tuple[torch.optim.Optimizer, object]:
    """SGD over the trainable parameters and its schedule, stepped once an iteration."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(
        parameters,
        lr=solver.lr,
        momentum=solver.momentum,
        nesterov=solver.nesterov,
        weight_decay=solver.weight_decay,
    )
    if solver.schedule == "onecycle":
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, max_lr=solver.lr, total_steps=solver.iterations, cycle_momentum=False
        )
        return optimizer, schedule

    def factor(iteration: int) -> float:
        decay = solver.gamma ** sum(iteration >= milestone for milestone in solver.milestones)
        warmup = min(1.0, 0.001 + (1 - 0.001) * iteration / solver.warmup) if solver.warmup else 1.0
        return warmup * (decay if solver.schedule == "multistep" else 1.0)

    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def fit(
    model: nn.Module,
    step: Step,
    solver: SolverParams,
    *,
    seed: int,
    desc: str,
    checkpoint: Path | None = None,
) -> list[dict[str, float]]:
    """Minimise the sum of the losses that ``step(iteration)`` returns; continue from ``checkpoint`` if it is there.

    Args:
        model: Its parameters with ``requires_grad`` are trained; the caller has put it in training mode.
        step: Forward pass of one iteration; every random number in it must come from torch's global generator, which
            is seeded anew for each iteration from ``seed`` and the iteration.
        checkpoint: Written every ``solver.checkpoint_every`` iterations (0: never) and at the end.

    Returns:
        The loss curve: about 60 points ``{"iteration", "loss", <part>...}``, each the mean since the point before.

    Raises:
        RisfError: If a loss is not finite: names the iteration and its parts.
        CheckpointError: If ``checkpoint`` belongs to another solver or model.
    """
    optimizer, schedule = make_optimizer(model, solver)
    device = next(model.parameters()).device
    dtype = resolve_precision(solver.precision, device)
    parameters = optimizer.param_groups[0]["params"]
    curve: list[dict[str, float]] = []
    start, pending = _resume(checkpoint, model, optimizer, schedule, curve, solver)
    every = max(1, solver.iterations // CURVE_POINTS)
    steps = progress(range(start, solver.iterations), desc=desc, total=solver.iterations - start)
    for iteration in steps:
        seed_everything(step_seed(seed, iteration))
        with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
            losses = step(iteration)
        loss = sum(losses.values())
        values = {
            "loss": float(loss.detach()),
            **{key: float(value.detach()) for key, value in losses.items()},
        }
        if not np.isfinite(values["loss"]):
            raise RisfError(
                f"{desc}: the loss is not finite at iteration {iteration}: {values}. Lower the learning rate "
                f"({solver.lr}) or look at the images of this step; the last checkpoint is untouched."
            )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if solver.clip_norm:
            nn.utils.clip_grad_norm_(parameters, solver.clip_norm)
        optimizer.step()
        schedule.step()
        pending.append(values)
        if len(pending) == every or iteration + 1 == solver.iterations:
            mean = {key: float(np.mean([point[key] for point in pending])) for key in values}
            curve.append({"iteration": iteration + 1, **mean})
            steps.note(loss=mean["loss"])
            pending = []
        due = solver.checkpoint_every and (iteration + 1) % solver.checkpoint_every == 0
        if checkpoint is not None and (due or iteration + 1 == solver.iterations):
            state = {
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "iteration": iteration + 1,
            }
            state |= {
                "schedule": schedule.state_dict(),
                "curve": curve,
                "pending": pending,
                "solver": solver.model_dump(),
            }
            save_checkpoint(checkpoint, state)
    return curve


def _resume(
    checkpoint: Path | None, model, optimizer, schedule, curve: list, solver: SolverParams
) -> tuple[int, list]:
    """Load a checkpoint into everything that has state; return the iteration to go on from and its open losses."""
    if checkpoint is None or not checkpoint.exists():
        return 0, []
    state = read_checkpoint(checkpoint)
    if state.get("solver") != solver.model_dump():
        raise CheckpointError(
            f"{checkpoint}: written with other solver parameters. Delete it to start again."
        )
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    schedule.load_state_dict(state["schedule"])
    curve.extend(state["curve"])
    log.info("%s: going on from iteration %d", checkpoint, state["iteration"])
    return state["iteration"], state["pending"]


class CropClassifier(nn.Module):
    """The detector's backbone and res5 under a linear classifier: what pretraining on labelled crops trains."""

    def __init__(self, detector: FasterRCNN, num_classes: int) -> None:
        super().__init__()
        self.backbone, self.res5 = detector.backbone, detector.roi_heads.res5
        self.fc = nn.Linear(detector.params.res5_width, num_classes)
        self.register_buffer("mean", detector.pixel_mean, persistent=False)
        self.register_buffer("std", detector.pixel_std, persistent=False)
        self.flip_channels = detector.params.image_order == "BGR"

    def forward(self, crops: Tensor) -> Tensor:  # uint8 RGB [B, 3, H, W] -> [B, num_classes]
        crops = crops.flip(1) if self.flip_channels else crops
        return self.fc(self.res5(self.backbone((crops.float() - self.mean) / self.std)).mean(dim=(2, 3)))


def pretrain(
    detector: FasterRCNN,
    crops: np.ndarray,
    labels: np.ndarray,
    solver: SolverParams,
    *,
    seed: int,
    held_out: int = 1000,
    checkpoint: Path | None = None,
) -> dict:
    """Train backbone and res5 to classify crops of concepts the detector never sees: the stand-in for ImageNet.

    Args:
        crops: uint8 [N, H, W, 3] RGB; the last ``held_out`` (at most a tenth) are kept for the accuracy.
        labels: int64 [N].

    Returns:
        ``accuracy`` in percent on the held-out crops, and the loss ``curve``.
    """
    held_out = min(held_out, len(crops) // 10)
    device = detector.pixel_mean.device
    seed_everything(step_seed(seed, -1))
    classifier = CropClassifier(detector, int(labels.max()) + 1).to(device).train()
    order = image_order(len(crops) - held_out, solver.batch_size, seed=seed)
    batches = batches_by_iteration(order)

    def tensors(indices) -> tuple[Tensor, Tensor]:
        images = torch.from_numpy(np.ascontiguousarray(crops[np.sort(indices)])).permute(0, 3, 1, 2)
        return images.to(device), torch.from_numpy(labels[np.sort(indices)]).to(device)

    def step(iteration: int) -> dict[str, Tensor]:
        images, targets = tensors(batches(iteration))
        shift_y, shift_x = (int(torch.randint(-4, 5, ())) for _ in range(2))
        images = torch.roll(images, (shift_y, shift_x), dims=(2, 3))
        flip = torch.rand(len(images), device=device) < 0.5
        images = torch.where(flip[:, None, None, None], images.flip(3), images)
        return {"loss_cls": F.cross_entropy(classifier(images).float(), targets)}

    curve = fit(classifier, step, solver, seed=seed, desc="pretraining", checkpoint=checkpoint)
    classifier.eval()
    correct = 0
    with torch.no_grad():
        for chunk in np.array_split(np.arange(len(crops) - held_out, len(crops)), max(1, held_out // 100)):
            images, targets = tensors(chunk)
            correct += int((classifier(images).argmax(1) == targets).sum())
    return {"accuracy": 100.0 * correct / held_out, "curve": curve}


def batches_by_iteration(order: Iterator) -> Callable[[int], list[int]]:
    """The batches of ``order`` by iteration: skips ahead when a run is resumed."""
    position = 0

    def batch(iteration: int) -> list[int]:
        nonlocal position
        while True:
            indices = next(order)
            position += 1
            if position > iteration:
                return indices

    return batch


def image_batches(data: DetectionData, solver: SolverParams, *, seed: int) -> Callable[[int], list[int]]:
    """The positions of each iteration's images; wide ones and others apart where the solver says so."""
    groups = [image.width > image.height for image in data.images] if solver.group_by_aspect else None
    return batches_by_iteration(image_order(len(data), solver.batch_size, seed=seed, groups=groups))


def train_detector(
    detector: FasterRCNN,
    data: DetectionData,
    solver: SolverParams,
    *,
    seed: int,
    desc: str,
    checkpoint: Path | None = None,
) -> list[dict[str, float]]:
    """Train the detector's trainable parameters on all of ``data`` with random horizontal flips.

    Returns:
        The loss curve (see ``fit``).
    """
    images = ImageCache()
    batches = image_batches(data, solver, seed=seed)
    detector.train()

    def step(iteration: int) -> dict[str, Tensor]:
        indices = batches(iteration)
        flips = (torch.rand(len(indices)) < 0.5).tolist()
        batch, targets = load_batch(data, indices, flips=flips, cache=images)
        device = detector.pixel_mean.device
        targets = [{key: value.to(device) for key, value in target.items()} for target in targets]
        return detector([image.to(device) for image in batch], targets)

    return fit(detector, step, solver, seed=seed, desc=desc, checkpoint=checkpoint)
