"""Seconds and memory per image of the detectors on this machine: the paper's at 800x1067, the mini's at 160x160.

    .venv/bin/python tools/benchmark_detector.py [--device cuda] [--threads N] [--repeats 3]

One image at a time, random weights: they cost what trained ones do as long as the RPN gives as many proposals, which
the table shows. ``detect`` is one image in evaluation, ``train`` a step of fine-tuning on one image with everything but
res5 learning. Each measurement has a process of its own, so that the peak of memory is its own; on a CPU it includes
Python and torch. Writes results/published/benchmarks/detector.csv; rows of other machines and settings stay.
"""

import argparse
import os
import resource
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pandas as pd
import torch

from risf_core.detector.faster_rcnn import FasterRCNN
from risf_core.detector.presets import published_detector
from risf_core.params import DetectorParams
from risf_core.runs.environment import describe_environment

TABLE = Path(__file__).resolve().parents[1] / "results" / "published" / "benchmarks" / "detector.csv"
PAPER_SIZE, MINI_SIZE = (800, 1067), (160, 160)
NUM_CLASSES = 20
DETECTORS = {  # name -> parameters, (height, width)
    "R-101-C4": (published_detector(101, fine_tuning=True).model_copy(update={"min_size": None}), PAPER_SIZE),
    "R-50-C4": (published_detector(50, fine_tuning=True).model_copy(update={"min_size": None}), PAPER_SIZE),
    "mini": (DetectorParams(), MINI_SIZE),
}
SETTING = ("machine", "device", "threads", "torch")  # rows that agree in these are measured anew


def build(params: DetectorParams) -> FasterRCNN:
    """A detector with random weights; features stay in range however deep it is, and proposals near their anchors."""
    torch.manual_seed(0)
    detector = FasterRCNN(params, NUM_CLASSES)
    for key, value in detector.state_dict().items():
        if key.endswith("conv3.norm.weight"):
            value.mul_(0.2)
        elif key.endswith("anchor_deltas.weight"):
            value.mul_(0.05)
    return detector


def seconds_of(work, repeats: int, device: str) -> tuple[float, float]:
    """Least wall and processor seconds of ``work()``, after one call that does not count: other work only adds."""
    measured = []
    for _ in range(repeats + 1):
        wall, cpu = time.perf_counter(), time.process_time()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        measured.append((time.perf_counter() - wall, time.process_time() - cpu))
    return tuple(min(times) for times in zip(*measured[1:], strict=True))


def measure(name: str, mode: str, device: str, threads: int, repeats: int) -> dict:
    """One row of the table."""
    torch.set_num_threads(threads)
    params, size = DETECTORS[name]
    detector = build(params).to(device)
    image = torch.randint(0, 256, (3, *size), dtype=torch.uint8, device=device)
    height, width = size
    boxes = torch.tensor([[0.1, 0.1, 0.5, 0.6], [0.5, 0.2, 0.9, 0.8]]) * torch.tensor([width, height] * 2)
    target = {"boxes": boxes.to(device), "labels": torch.tensor([1, 2], device=device)}
    if mode == "detect":
        detector.eval()
        seconds, cpu_seconds = seconds_of(lambda: detector([image]), repeats, device)
    else:
        detector.set_trainable("all_but_res5")
        detector.train()
        learning = [parameter for parameter in detector.parameters() if parameter.requires_grad]
        optimizer = torch.optim.SGD(learning, lr=1e-4, momentum=0.9)

        def step() -> None:
            optimizer.zero_grad()
            sum(detector([image], [target]).values()).backward()
            optimizer.step()

        seconds, cpu_seconds = seconds_of(step, repeats, device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    if device == "cuda":
        peak = torch.cuda.max_memory_allocated() / 2**20
    with torch.no_grad():
        batch, sizes = detector.batch([image])
        ((proposals, _),), _ = detector.proposals(detector.backbone(batch), sizes)
    environment = describe_environment(time.time(), device)
    return {
        "detector": name,
        "image": f"{height}x{width}",
        "mode": mode,
        "proposals": len(proposals),
        "million_parameters": round(sum(p.numel() for p in detector.parameters()) / 1e6, 1),
        "seconds": round(seconds, 3),
        "cpu_seconds": round(cpu_seconds, 3),
        "peak_memory_mib": round(peak),
        "machine": f"{environment['machine']}, {environment['device']}",
        "device": device,
        "threads": threads,
        "torch": environment["versions"]["torch"],
    }


def merge(rows: pd.DataFrame, table: Path) -> pd.DataFrame:
    """The new rows behind those of ``table`` that were measured on other machines or with other settings."""
    if not table.exists():
        return rows
    old, here = pd.read_csv(table), set(rows[list(SETTING)].astype(str).itertuples(index=False, name=None))
    others = [key not in here for key in old[list(SETTING)].astype(str).itertuples(index=False, name=None)]
    return pd.concat([old[others], rows], ignore_index=True)


def main() -> None:
    """Measure every detector in both modes, print the table, write it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--repeats", type=int, default=3, help="timed images of each; the fastest is shown")
    words = parser.parse_args()
    cases = [(name, mode) for name in DETECTORS for mode in ("detect", "train")]
    # a process for each measurement
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
        settings = (words.device, words.threads, words.repeats)
        rows = pd.DataFrame([pool.submit(measure, *case, *settings).result() for case in cases])
    print(rows.to_string(index=False))
    TABLE.parent.mkdir(parents=True, exist_ok=True)
    merge(rows, TABLE).to_csv(TABLE, index=False)


if __name__ == "__main__":
    main()
