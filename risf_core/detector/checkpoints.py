"""Checkpoints of the detector: written whole or not at all, read without executing anything, loaded with a report.

Model surgery for fine-tuning is a function on a state dict (DeFRCN ``tools/model_surgery.py``).
"""

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from risf_core.detector.weight_files import reason
from risf_core.errors import CheckpointError

log = logging.getLogger(__name__)

HEAD = "roi_heads.box_predictor."


def save_checkpoint(path: Path, content: dict) -> None:
    """Write ``content`` (tensors and plain types) to ``path`` atomically: temporary file, fsync, replace."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with open(temporary, "wb") as file:
        torch.save(content, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def save_detector(path: Path, detector: nn.Module, class_names: Sequence[str]) -> None:
    """Write a detector so that the file alone says what it is: weights, architecture, classes of the head in order."""
    content = {"model": detector.state_dict(), "class_names": list(class_names)}
    save_checkpoint(path, content | {"detector": detector.params.model_dump(mode="json")})


def read_checkpoint(path: Path) -> dict:
    """Read a checkpoint without executing anything in it.

    Raises:
        CheckpointError: If the file is missing, broken, or holds anything but tensors and plain types.
    """
    if not Path(path).is_file():
        raise CheckpointError(
            f"{path}: no such checkpoint. Run the notebook that writes it, or correct the path."
        )
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for broken files; all mean the same to the user
        raise CheckpointError(
            f"{path}: not a readable checkpoint of tensors and plain types ({reason(error)}). "
            "Nothing in it was executed. Replace the file with a whole one."
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: expected a dictionary, found {type(content).__name__}.")
    return content


@dataclass(frozen=True)
class LoadReport:
    """What a state dict did to a model: keys that matched, model keys left as initialised, file keys left over."""

    matched: tuple[str, ...]
    reinitialised: tuple[str, ...]
    left_over: tuple[str, ...]

    def __str__(self) -> str:
        def some(keys: tuple[str, ...]) -> str:
            shown = ", ".join(keys[:4]) + (", ..." if len(keys) > 4 else "")
            return f"{len(keys)} ({shown})" if keys else "0"

        rest = f"re-initialised {some(self.reinitialised)}, left over {some(self.left_over)}"
        return f"matched {len(self.matched)}, {rest}"


def load_weights(
    model: nn.Module,
    state: dict[str, Tensor],
    *,
    source: str = "state dict",
    allow_missing: Sequence[str] = (HEAD,),
) -> LoadReport:
    """Load every tensor of ``state`` whose key and shape the model has, cast to the model's type; report the rest.

    Args:
        allow_missing: Prefixes of model keys that may stay as initialised.

    Raises:
        CheckpointError: If nothing matches, a shape differs, a key outside ``allow_missing`` is missing, or a tensor
            cannot be a weight: no floating-point numbers, not finite once cast, or a negative variance.
    """
    own = model.state_dict()
    matched = tuple(key for key in own if key in state)
    wrong = [key for key in matched if own[key].shape != state[key].shape]
    missing = tuple(key for key in own if key not in state and not key.endswith("num_batches_tracked"))
    report = LoadReport(matched, missing, tuple(key for key in state if key not in own))
    if not matched:
        raise CheckpointError(
            f"{source}: no key fits the model; it has {next(iter(own))!r}, ..., "
            f"the file has {next(iter(state), 'nothing')!r}, ... Is it a checkpoint of another model?"
        )
    if wrong:
        key = wrong[0]
        raise CheckpointError(
            f"{source}: {len(wrong)} tensors differ in shape, first {key}: file {tuple(state[key].shape)}, "
            f"model {tuple(own[key].shape)}. Check the detector parameters (widths, blocks) and the number of classes."
        )
    needed = [key for key in missing if not key.startswith(tuple(allow_missing))]
    if needed:
        raise CheckpointError(
            f"{source}: {len(needed)} keys are missing, first {needed[0]}. Check the detector parameters."
        )
    values = {key: state[key].to(own[key].dtype) for key in matched}
    for key in matched:
        _check_values(key, state[key], values[key], source)
    if narrow := {state[key].dtype for key in matched} & {torch.float16, torch.bfloat16}:
        log.info("%s: cast from %s", source, ", ".join(sorted(map(str, narrow))))
    model.load_state_dict(values, strict=False)
    log.info("%s: %s", source, report)
    return report


def _check_values(key: str, given: Tensor, value: Tensor, source: str) -> None:
    """Refuse what cannot be a weight; ``value`` is ``given`` in the model's type."""
    problem = None
    if value.is_floating_point() and not given.is_floating_point():
        problem = f"is {given.dtype}, not of floating-point numbers"
    elif not torch.isfinite(value).all():
        problem = "holds NaN or infinite values"
    elif key.endswith("running_var") and (value < 0).any():
        problem = "holds a negative variance"
    if problem:
        raise CheckpointError(f"{source}: {key} {problem}. Replace the file with a whole one.")


def surgery(
    state: dict[str, Tensor],
    setting: str,
    *,
    base_rows: Sequence[int] | None = None,
    num_classes: int | None = None,
    class_agnostic_boxes: bool = False,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Prepare a base model's state dict for fine-tuning; the input is not changed.

    Args:
        setting: ``fsod`` drops the box head, so that the new one starts fresh. ``gfsod`` widens it as DeFRCN's
            ``randinit`` does: base rows and the background row are copied, novel rows start at N(0, 0.01) weights, of
            both layers, and zero bias.
        base_rows: For ``gfsod``, the row of each base class in the new head, in the old head's order.
        num_classes: For ``gfsod``, classes of the new head.
        class_agnostic_boxes: Whether one regression serves all classes; it is kept.

    Returns:
        A state dict for a detector with the new head.
    """
    rest = {key: value for key, value in state.items() if not key.startswith(HEAD)}
    if setting == "fsod":
        return rest
    if setting != "gfsod" or base_rows is None or num_classes is None:
        raise CheckpointError(
            f"surgery for {setting!r} needs setting fsod or gfsod, base_rows and num_classes"
        )
    generator = torch.Generator().manual_seed(seed)
    old_classes = state[f"{HEAD}cls_score.bias"].numel() - 1
    if len(base_rows) != old_classes:
        raise CheckpointError(f"the base head has {old_classes} classes, base_rows names {len(base_rows)}")
    rows = torch.tensor([*base_rows, num_classes])
    box_rows = (torch.tensor(base_rows)[:, None] * 4 + torch.arange(4)).flatten()
    for layer, index, outputs in (
        ("cls_score", rows, num_classes + 1),
        ("bbox_pred", box_rows, 4 * num_classes),
    ):
        weight, bias = state[f"{HEAD}{layer}.weight"], state[f"{HEAD}{layer}.bias"]
        if layer == "bbox_pred" and class_agnostic_boxes:
            rest |= {f"{HEAD}{layer}.weight": weight, f"{HEAD}{layer}.bias": bias}
            continue
        new_weight = torch.normal(0.0, 0.01, (outputs, weight.shape[1]), generator=generator)
        new_bias = torch.zeros(outputs)
        new_weight[index], new_bias[index] = weight, bias
        rest |= {f"{HEAD}{layer}.weight": new_weight, f"{HEAD}{layer}.bias": new_bias}
    return rest
