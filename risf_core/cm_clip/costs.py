"""What CLIP's image tower costs here: the precision it computes in, and how many crops fit a memory budget."""

import copy
import math
import time
import weakref
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from risf_core.errors import ParamsError

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
MAX_BATCH = 64  # fit a CPU's caches: tiny towers are slower at 256, and large ones no faster
HOPELESS = 4.0  # times slower than the best: not tried further
# Beyond the tensors alive at a time: what oneDNN and the C library hold (reordered weights, scratch, memory freed and
# not given back), and of an image the pixels that are cut out at once (`crops.MAX_PIXELS`). tests/test_clip_costs.py
# measures whole processes against the budget.
OVERHEAD, OVERHEAD_MB = 1.75, 32.0
PROBE_SECONDS = 0.25


def in_precision(model: nn.Module, precision: str) -> nn.Module:
    """The model with its image tower's weights in a precision; the texts' tower is shared, the given model stays."""
    dtype = PRECISIONS[precision]
    if all(weight.dtype == dtype for weight in model.visual.parameters()):
        return model
    return _converted(model, lambda tensor: tensor.to(dtype) if tensor.is_floating_point() else tensor)


def _converted(model: nn.Module, convert: Callable[[Tensor], Tensor]) -> nn.Module:
    """A copy of the model with converted weights and buffers of its image tower, which shares everything else."""
    # what `deepcopy` finds in its memo it takes as the copy
    memo = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    memo |= {id(buffer): convert(buffer.detach()) for buffer in model.visual.buffers()}
    for weight in model.visual.parameters():
        memo[id(weight)] = nn.Parameter(convert(weight.detach()), requires_grad=False)
    return copy.deepcopy(model, memo)


class _LiveBytes(TorchDispatchMode):
    """Counts the bytes of the tensors that are made and alive; ``peak`` is the most at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **kwargs or {})
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self._seen:
            self._seen.add(key)
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._free, key, storage.nbytes())

    def _free(self, key: int, count: int) -> None:
        self._seen.discard(key)
        self.now -= count


def check_budget(budget_mb: float) -> None:
    """ParamsError if a memory budget is not a number of MiB."""
    try:
        is_valid = 0 < float(budget_mb) < math.inf
    except (TypeError, ValueError):
        is_valid = False
    if not is_valid:
        raise ParamsError(f"memory_budget_mb is {budget_mb!r}. Expected a finite number of MiB above 0.")


def crops_within(
    model: nn.Module, budget_mb: float, *, image_size: tuple[int, int], dtype: torch.dtype
) -> int:
    """How many crops one forward pass may hold so that a process grows by no more than a budget.

    Measured, not fitted: a pass of two crops on the "meta" device, which computes nothing, counts the bytes of all
    tensors alive at a time. Beside them are the crops in float32, twice: cut out, and joined.

    Raises:
        ParamsError: If the budget is not a number above 0, or not even one crop fits.
    """
    check_budget(budget_mb)
    tower = _converted(model, lambda tensor: tensor.to("meta"))
    with torch.inference_mode(), _LiveBytes() as live:
        crops = torch.empty(2, 3, *image_size, device="meta", dtype=dtype)
        tower.encode_image(crops.contiguous(memory_format=torch.channels_last))
    joined = 2 * 3 * image_size[0] * image_size[1] * 4
    crop_mb = (OVERHEAD * live.peak / 2 + joined) / 2**20
    count = int((budget_mb - OVERHEAD_MB) / crop_mb)
    if count < 1:
        raise ParamsError(
            f"memory_budget_mb is {budget_mb:g}, but one crop of {image_size[0]} x {image_size[1]} pixels takes "
            f"{OVERHEAD_MB + crop_mb:.0f} MiB in this CLIP. Give at least that."
        )
    return min(count, MAX_BATCH)


def fastest_precision(model: nn.Module, image_size: tuple[int, int]) -> tuple[str, dict]:
    """The precision in which the image tower is fastest on this machine, and what was measured.

    A small product of matrices comes first: a precision without the processor's support (fp16 on most) is hundreds
    of times slower, and one crop would take minutes.

    Returns:
        The name, and {"matmul_gflops": {name: rate}, "ms_per_crop": {name: ms of those worth trying}}.
    """
    device = next(model.parameters()).device
    rates = {name: _matmul_gflops(dtype, device) for name, dtype in PRECISIONS.items()}
    times = {}
    for name in PRECISIONS:
        if rates[name] * HOPELESS >= rates["fp32"]:
            times[name] = _ms_per_crop(in_precision(model, name), PRECISIONS[name], image_size, device)
    return min(times, key=times.get), {"matmul_gflops": rates, "ms_per_crop": times}


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def _matmul_gflops(dtype: torch.dtype, device: torch.device) -> float:
    side = 192
    matrix = torch.ones(side, side, device=device).to(dtype)
    seconds = min(_seconds(lambda: matrix @ matrix, device) for _ in range(3))
    return round(2e-9 * side**3 / seconds, 2)


@torch.inference_mode()
def _ms_per_crop(
    model: nn.Module, dtype: torch.dtype, image_size: tuple[int, int], device: torch.device
) -> float:
    """Of as many crops as the probe's time allows, after one that warms up; of that one alone where it is slow."""
    crop = torch.rand(1, 3, *image_size, generator=torch.Generator().manual_seed(0))
    crop = crop.to(device, dtype, memory_format=torch.channels_last)
    first = _seconds(lambda: model.encode_image(crop), device)
    if first > 4 * PROBE_SECONDS:
        return round(1000 * first, 3)
    again = _seconds(lambda: model.encode_image(crop), device)
    count = max(1, min(MAX_BATCH, int(PROBE_SECONDS / again)))
    crops = crop.repeat(count, 1, 1, 1).contiguous(memory_format=torch.channels_last)
    seconds = min(_seconds(lambda: model.encode_image(crops), device) for _ in range(2))
    return round(1000 * min(seconds / count, again), 3)
