"""The rule that rescales a published schedule to fewer GPUs: the images seen stay the same.

DeFRCN and RISF train with 16 images a step on 8 GPUs. With 2 images a step there are 8 times as many steps, and the
learning rate, which is linear in the batch, is an eighth; all else on the axis of steps (warm-up, decays) stretches
alike, so a decay at 0.8 of the last step stays there. This is the advice of DeFRCN's authors for small machines
(https://github.com/er-muyue/DeFRCN/issues/19). Importing this file imports no torch.
"""

from collections.abc import Mapping
from typing import Any

STEPS = ("iterations", "warmup", "checkpoint_every")  # numbers of steps


def rescale(values: Mapping[str, Any], *, batch_size: int) -> dict[str, Any]:
    """The schedule of a solver for another batch size.

    Args:
        values: Of a solver: ``batch_size``, ``lr``, ``milestones`` and some of ``STEPS``; all others stay.
        batch_size: Images a step from now on.

    Returns:
        All values, rescaled; numbers of steps are rounded, and at least 1 unless they are 0.

    Example:
        >>> voc_1shot = {"batch_size": 16, "lr": 0.01, "iterations": 800, "milestones": (640,), "warmup": 0}
        >>> rescale(voc_1shot, batch_size=2)
        {'batch_size': 2, 'lr': 0.00125, 'iterations': 6400, 'milestones': (5120,), 'warmup': 0}
    """
    reference = values["batch_size"]

    def stretch(steps: int) -> int:
        return max(1, (steps * reference + batch_size // 2) // batch_size) if steps else 0

    changed = {name: stretch(values[name]) for name in STEPS if name in values}
    changed |= {"milestones": tuple(stretch(step) for step in values["milestones"])}
    changed |= {"batch_size": batch_size, "lr": values["lr"] * batch_size / reference}
    return {name: changed.get(name, value) for name, value in values.items()}
