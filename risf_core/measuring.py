"""Seconds and peak memory of a piece of work. They differ between repeats, so they go into a record's environment."""

import ctypes
import gc
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

MIB = 2**20
STATUS, CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")
RESET_PEAK = "5"  # proc(5): the peak of resident memory starts from what is resident now


@dataclass
class Cost:
    """What `measured` found, filled when its block ends.

    Attributes:
        wall_seconds: Elapsed time; on a GPU until it has finished.
        cpu_seconds: Processor time of this process.
        peak_mib: Peak of memory above what was in use at the start, MiB: resident memory of this process, on a GPU
            what torch allocated there. None where the system does not tell (only Linux does).
    """

    wall_seconds: float = 0.0
    cpu_seconds: float = 0.0
    peak_mib: float | None = None


@contextmanager
def measured(device: str | torch.device = "cpu", *, memory: bool = True) -> Iterator[Cost]:
    """Measure the block; without ``memory`` the clock alone, which costs a microsecond."""
    is_cuda, cost = torch.device(device).type == "cuda", Cost()
    start = _start_memory(is_cuda) if memory else None
    if is_cuda:
        torch.cuda.synchronize()
    wall, cpu = time.perf_counter(), time.process_time()
    yield cost
    if is_cuda:
        torch.cuda.synchronize()
    cost.wall_seconds, cost.cpu_seconds = time.perf_counter() - wall, time.process_time() - cpu
    if start is not None:
        peak = torch.cuda.max_memory_allocated() if is_cuda else resident_bytes("VmHWM")
        cost.peak_mib = max(peak - start, 0) / MIB


def _start_memory(is_cuda: bool) -> int | None:
    """Set the peak back to what is in use, and return that in bytes; None where it cannot be set back."""
    gc.collect()
    if is_cuda:
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    _give_back()
    try:
        CLEAR_REFS.write_text(RESET_PEAK)
    except OSError:
        return None
    return resident_bytes("VmRSS")


def _give_back() -> None:
    """Let glibc return freed memory, which would hide what the block takes."""
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    except (OSError, AttributeError):
        return  # another C library


def resident_bytes(field: str) -> int | None:
    """A field of /proc/self/status: "VmRSS" is resident memory now, "VmHWM" its peak; None where there is none."""
    try:
        found = re.search(rf"^{field}:\s+(\d+) kB", STATUS.read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None
