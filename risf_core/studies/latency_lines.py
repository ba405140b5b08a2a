"""Milliseconds of one image with N boxes, the floor under them, and the detector alone; weights do not matter here."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from risf_core.cm_clip.clip import CMCLIP
from risf_core.detector.faster_rcnn import FasterRCNN
from risf_core.detector.presets import published_detector
from risf_core.measuring import measured
from risf_core.params import DetectorParams
from risf_core.studies.latency_parts import summary
from risf_core.studies.rescoring_ways import Rescorer, Way, exact_ways
from risf_core.study_params import LatencyParams

MATRIX_SIDE = {"cpu": 2048, "cuda": 8192}  # large enough for the full rate
NUM_CLASSES = 20  # of the published detector's head in fsod
BOX_SIDES = (0.1, 0.6)  # of the image's short side: smallest and largest box
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def repeat(
    work: Callable[[], object], device: str, *, seconds: float, most: int
) -> tuple[list[float], float | None]:
    """Milliseconds of ``work()``, again and again for some seconds: at least once, at most ``most`` times.

    Returns:
        The milliseconds, and the peak of memory of the first call in MiB.
    """
    values, spent, peak = [], 0.0, None
    while not values or (spent < seconds and len(values) < most):
        with measured(device, memory=not values) as cost:
            work()
        peak = peak if values else cost.peak_mib
        values.append(1000 * cost.wall_seconds)
        spent += cost.wall_seconds
    return values, peak


def noise_image(params: LatencyParams) -> Tensor:
    """A picture of noise, uint8 [3, H, W]; time does not depend on what it shows."""
    pixels = np.random.default_rng(params.seed).integers(0, 256, (3, *params.large_image), dtype=np.uint8)
    return torch.from_numpy(pixels)


def random_boxes(count: int, size: tuple[int, int], *, seed: int) -> Tensor:
    """Boxes within an image of (height, width), the first of more are the same: float32 [count, 4]."""
    rng, (height, width) = np.random.default_rng(seed), size
    sides = min(size) * rng.uniform(*BOX_SIDES, (4096, 2))[:count]
    corners = rng.uniform(0, 1, (4096, 2))[:count] * (np.array([width, height]) - sides)
    return torch.from_numpy(np.concatenate([corners, corners + sides], axis=1).astype(np.float32))


def _points(params: LatencyParams, name: str, rescorer: Rescorer, *, is_large: bool) -> list[tuple[Way, int]]:
    """Ways and box counts. A large CLIP's dense path takes long, whatever the boxes: one point where asked for."""
    operations = flops_of_crop(rescorer.ours(params.precisions[0], "crop")) / 1e12
    most, points = params.most_tera_operations or np.inf, []
    counts = [count for count in sorted(params.box_counts) if count * operations <= most]
    is_wanted = any(name.startswith(f"{model} ") or name == model for model in params.large_dense)
    for way in exact_ways(params):
        if is_large and way.path == "dense":
            points += [(way, max(params.box_counts))] * (is_wanted and way.precision == params.precisions[-1])
        else:
            points += [(way, count) for count in counts]
    return points


def measure_lines(params: LatencyParams, notes, name: str, rescorer: Rescorer, *, is_large: bool) -> None:
    """Milliseconds of re-scoring one decoded image, crops made and encoded, for each way and number of boxes."""
    image, device, warm = noise_image(params), notes.run.device, set()
    seconds = params.seconds_per_point if is_large else params.seconds_per_fast_point
    limits = {"seconds": seconds, "most": params.max_repeats}
    for way, count in _points(params, name, rescorer, is_large=is_large):
        key = {"kind": "boxes", "clip": name, "boxes": count} | way._asdict()
        if notes.done(**key):
            continue
        boxes = random_boxes(count, tuple(params.large_image), seed=params.seed)
        if way not in warm and not (is_large and way.path == "dense"):
            embed_image(rescorer, way, image, boxes[:1])
            warm.add(way)
        work = functools.partial(embed_image, rescorer, way, image, boxes)
        values, peak = repeat(work, device, **limits)
        notes.add(key, {"is_large": is_large}, summary(values) | {"peak_mib": peak})


def embed_image(rescorer: Rescorer, way: Way, image: Tensor, boxes: Tensor) -> Tensor:
    """Embeddings of the boxes of one image: [N, D]."""
    if way.way == "published":
        clip = rescorer.published()
        return clip.embed_crops(clip.crops(image, boxes))
    return rescorer.ours(way.precision, way.path).embed_boxes(image, boxes)


def measure_floor(params: LatencyParams, notes, name: str, rescorer: Rescorer, *, is_large: bool) -> None:
    """The least time a crop can take, its operations over the measured rate of matrices, and what it does take."""
    device = notes.run.device
    for precision in params.precisions:
        key = {"kind": "floor", "clip": name, "precision": precision}
        if notes.done(**key):
            continue
        clip = rescorer.ours(precision, "crop")
        flops, rate = flops_of_crop(clip), matrix_rate(precision, device)
        most = 2 * params.seconds_per_point  # of one forward pass, at best
        size = clip.batch_size
        while size > 1 and size * flops / rate > most:
            size //= 2
        crops = torch.randn(size, 3, *clip.image_size, generator=torch.Generator().manual_seed(params.seed))
        crops = crops.to(device)
        clip.embed_crops(crops[:1] if is_large else crops)
        limits = {"seconds": params.seconds_per_point, "most": params.max_repeats}
        values, _ = repeat(lambda clip=clip, crops=crops: clip.embed_crops(crops), device, **limits)
        times = {"rate": rate, "batch": size, "floor_ms": 1000 * flops / rate, "n": len(values)}
        best, median = min(values) / size, float(np.median(values)) / size
        notes.add(
            key,
            {"flops": flops, "parameters": rescorer.clip.info.num_parameters, "is_large": is_large},
            times | {"ms": median, "best_ms": best},
        )


def flops_of_crop(clip: CMCLIP) -> int:
    """Floating-point operations of one crop's forward pass, multiplications and additions apart, as torch counts them.

    Attention is computed step by step while they are counted: torch's fused kernels count as nothing.
    """
    crop, fused = (
        torch.zeros(1, 3, *clip.image_size, device=clip.device),
        torch.backends.mha.get_fastpath_enabled(),
    )
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            clip.embed_crops(crop)
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
    return counter.get_total_flops()


def matrix_rate(precision: str, device: str) -> float:
    """Operations a second of a product of two large matrices in a precision; the best of some."""
    side = MATRIX_SIDE[device]
    matrix = torch.randn(side, side, device=device).to(DTYPES[precision])
    values, _ = repeat(lambda: matrix @ matrix, device, seconds=1.0, most=20)
    return 2 * side**3 / (min(values) / 1000)


def measure_detector(params: LatencyParams, notes) -> None:
    """The published detector with random weights on one picture of noise."""
    if params.large_detector is None:
        return
    key = {"kind": "detector", "detector": f"R-{params.large_detector}-C4 (random weights)"}
    if notes.done(**key):
        return
    device = notes.run.device
    settings = published_detector(params.large_detector, fine_tuning=True).model_copy(
        update={"min_size": None}
    )
    detector = random_detector(settings, seed=params.seed).to(device).eval()
    image = noise_image(params).to(device)
    limits = {"seconds": params.seconds_per_point, "most": params.max_repeats}
    with torch.inference_mode():
        detector([image])
        values, peak = repeat(lambda: detector([image]), device, **limits)
    size = "x".join(map(str, params.large_image))
    notes.add(key, {"image": size}, summary(values) | {"peak_mib": peak})


def random_detector(params: DetectorParams, *, seed: int) -> FasterRCNN:
    """A detector with random weights whose features stay in range, and whose proposals lie near their anchors."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        detector = FasterRCNN(params, NUM_CLASSES)
    for key, value in detector.state_dict().items():
        if key.endswith("conv3.norm.weight"):
            value.mul_(0.2)
        elif key.endswith("anchor_deltas.weight"):
            value.mul_(0.05)
    return detector
