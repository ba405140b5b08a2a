"""What may differ between two equal runs and is noted beside their numbers: times, memory, machine, versions."""

import os
import platform
import resource
import subprocess
import sys
import time
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "torchvision", "open_clip_torch", "numpy", "pycocotools", "pandas", "matplotlib")
PACKAGES += ("detectron2", "faster-coco-eval")  # optional


def package_versions() -> dict[str, str]:
    """Versions of the packages that make numbers, where installed."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def describe_environment(started: float, device: str) -> dict[str, Any]:
    """The environment block of a record of a run that `started` (seconds since the epoch) in this process."""
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_seconds = own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime
    # ru_maxrss is in KiB on Linux, in bytes on macOS
    per_mib = 2**10 if platform.system() == "Linux" else 2**20
    return {
        "started": datetime.fromtimestamp(started, UTC).isoformat(timespec="seconds"),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "wall_seconds": round(time.time() - started, 2),
        "cpu_seconds": round(cpu_seconds, 2),
        "peak_memory_mib": round(max(own.ru_maxrss, children.ru_maxrss) / per_mib, 1),
        "host": platform.node(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "device": _device_name(device),
        "python": platform.python_version(),
        "versions": package_versions(),
        "commit": _git("rev-parse", "HEAD"),
        "dirty": bool(_git("status", "--porcelain", "--untracked-files=no")),
    }


def _device_name(device: str) -> str:
    if device == "cuda":
        return sys.modules["torch"].cuda.get_device_name()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "cpu"


def _git(*words: str) -> str | None:
    """Output of a git command in this repository; None without git or repository."""
    try:
        done = subprocess.run(
            ["git", *words], cwd=Path(__file__).parent, capture_output=True, text=True, timeout=20, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
