"""Seconds and memory on this machine: an image through each detector, a crop through the paper's CLIP.

    .venv/bin/python tools/benchmark_detector.py [--device cuda] [--threads N] [--repeats 3] [--only NAME ...]

One at a time, random weights: they cost what trained ones do as long as the RPN gives as many proposals, which the
table shows. ``detect`` is one image in evaluation, ``train`` a step of fine-tuning on one image with everything but
res5 learning, ``encode`` one crop through CLIP's image tower. Each measurement has a process of its own, so that the
peak of memory is its own; on a CPU it includes Python and torch. Writes results/published/benchmarks/detector.csv; rows
of other models, machines and settings stay.
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

from risf_core.clip_models import load_clip
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
CLIP, CLIP_ROW = "ViT-L-14-336-quickgelu", "ViT-L-14-336, one crop"
CASES = [(name, mode) for name in DETECTORS for mode in ("detect", "train")] + [(CLIP_ROW, "encode")]
SETTING = ("detector", "machine", "device", "threads", "torch")  # rows that agree in these are measured anew


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
    facts = (
        measure_clip(device, repeats) if mode == "encode" else measure_detector(name, mode, device, repeats)
    )
    environment = describe_environment(time.time(), device)
    return {
        "detector": name,
        "mode": mode,
        **facts,
        "machine": f"{environment['machine']}, {environment['device']}",
        "device": device,
        "threads": threads,
        "torch": environment["versions"]["torch"],
    }


def measure_clip(device: str, repeats: int) -> dict:
    """One crop through the image tower of the paper's CLIP, random weights."""
    clip = load_clip(CLIP, None, device=device)
    height, width = clip.info.image_size
    crop = torch.rand(1, 3, height, width, device=device)
    with torch.inference_mode():
        times = seconds_of(lambda: clip.model.encode_image(crop), repeats, device)
    return described(f"{height}x{width}", clip.model.visual, times, device) | {"proposals": None}


def described(image: str, model: torch.nn.Module, times: tuple[float, float], device: str) -> dict:
    """What a row says of the model, the seconds and the peak of memory until now."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    if device == "cuda":
        peak = torch.cuda.max_memory_allocated() / 2**20
    return {
        "image": image,
        "million_parameters": round(sum(p.numel() for p in model.parameters()) / 1e6, 1),
        "seconds": round(times[0], 3),
        "cpu_seconds": round(times[1], 3),
        "peak_memory_mib": round(peak),
    }


def measure_detector(name: str, mode: str, device: str, repeats: int) -> dict:
    """One image through a detector, in evaluation or in a step of training."""
    params, size = DETECTORS[name]
    detector = build(params).to(device)
    image = torch.randint(0, 256, (3, *size), dtype=torch.uint8, device=device)
    height, width = size
    boxes = torch.tensor([[0.1, 0.1, 0.5, 0.6], [0.5, 0.2, 0.9, 0.8]]) * torch.tensor([width, height] * 2)
    target = {"boxes": boxes.to(device), "labels": torch.tensor([1, 2], device=device)}
    if mode == "detect":
        detector.eval()
        times = seconds_of(lambda: detector([image]), repeats, device)
    else:
        detector.set_trainable("all_but_res5")
        detector.train()
        learning = [parameter for parameter in detector.parameters() if parameter.requires_grad]
        optimizer = torch.optim.SGD(learning, lr=1e-4, momentum=0.9)

        def step() -> None:
            optimizer.zero_grad()
            sum(detector([image], [target]).values()).backward()
            optimizer.step()

        times = seconds_of(step, repeats, device)
    facts = described(f"{height}x{width}", detector, times, device)
    with torch.no_grad():
        batch, sizes = detector.batch([image])
        ((proposals, _),), _ = detector.proposals(detector.backbone(batch), sizes)
    return facts | {"proposals": len(proposals)}


def merge(rows: pd.DataFrame, table: Path) -> pd.DataFrame:
    """The new rows behind those of ``table`` of other models, machines or settings."""
    if not table.exists():
        return rows
    old = pd.read_csv(table, dtype={"proposals": "Int64"})
    here = set(rows[list(SETTING)].astype(str).itertuples(index=False, name=None))
    others = [key not in here for key in old[list(SETTING)].astype(str).itertuples(index=False, name=None)]
    return pd.concat([old[others], rows], ignore_index=True)


def main() -> None:
    """Measure every model in its modes, print the table, write it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--repeats", type=int, default=3, help="timed calls of each; the fastest is shown")
    names = [*DETECTORS, CLIP_ROW]
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="NAME", help=f"of {names}")
    words = parser.parse_args()
    cases = [case for case in CASES if case[0] in words.only]
    # a process for each measurement
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
        settings = (words.device, words.threads, words.repeats)
        rows = [pool.submit(measure, *case, *settings).result() for case in cases]
    rows = pd.DataFrame(rows).astype({"proposals": "Int64"})
    print(rows.to_string(index=False))
    TABLE.parent.mkdir(parents=True, exist_ok=True)
    merge(rows, TABLE).to_csv(TABLE, index=False)


if __name__ == "__main__":
    main()
