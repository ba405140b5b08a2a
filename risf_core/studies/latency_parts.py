"""Image by image, as a user waits for them: milliseconds of each part, end to end; and re-scoring for many c."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch

from risf_core.cm_clip.encoding import embed_detections
from risf_core.cm_clip.scores import TEMPERATURE, rescore
from risf_core.data.dataset import DetectionData
from risf_core.data.loader import read_image
from risf_core.detections import Detections
from risf_core.measuring import measured
from risf_core.studies.published_rescoring import detections_by_image
from risf_core.studies.rescoring_ways import PUBLISHED, Rescorer, Way, exact_ways
from risf_core.study_params import LatencyParams

PARTS = ("decode", "detector", "read_again", "crop", "encode", "blend")
ENOUGH_FOR_P95 = 20  # values; of fewer it is the largest
WARM_UP = 3  # images whose time does not count


class Stopwatch:
    """Milliseconds of named parts, one value for each image."""

    def __init__(self, device: str) -> None:
        self.is_cuda = device == "cuda"
        self.values: dict[str, list[float]] = defaultdict(list)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Measure a block as a part of the image under way."""
        start = self._now()
        yield
        self.values[name].append(1000 * (self._now() - start))

    def _now(self) -> float:
        if self.is_cuda:
            torch.cuda.synchronize()
        return time.perf_counter()


def summary(values: Sequence[float]) -> dict[str, float | int | None]:
    """n, median, mean, largest of some milliseconds; the 95th percentile where n allows it."""
    array = np.asarray(values, dtype=np.float64)
    p95 = float(np.percentile(array, 95)) if len(array) >= ENOUGH_FOR_P95 else None
    return {
        "n": len(array),
        "p50": float(np.median(array)),
        "mean": float(array.mean()),
        "max": float(array.max()),
        "p95": p95,
    }


def measure_parts(
    params: LatencyParams,
    notes,
    name: str,
    rescorer: Rescorer,
    detector: torch.nn.Module,
    found: Detections,
    data: DetectionData,
) -> None:
    """Each exact way on ``num_images`` test images one after another, from the file to the new scores.

    The detector runs on each image; the boxes are the stored ones, since its head has other classes.
    """
    spans, texts = _first_images(found, data, params, params.num_images), _text_milliseconds(rescorer)
    boxes = sum(len(rows) for _, rows in spans)
    for way in exact_ways(params):
        key = {"kind": "parts", "clip": name} | way._asdict()
        if notes.done(**key):
            continue
        for images in (spans[:WARM_UP], spans):
            watch = Stopwatch(notes.run.device)
            with measured(notes.run.device) as cost:
                for record, rows in images:
                    with watch.part("total"):  # by a clock of its own: what no part measures is in it
                        _one_image(watch, way, rescorer, detector, record, found, rows)
        times = {part: summary(values) for part, values in watch.values.items()}
        times |= {"text_once": texts, "peak_mib": cost.peak_mib}
        times["images_per_second"] = 1000 / times["total"]["mean"]
        notes.add(key, {"num_images": len(spans), "num_boxes": boxes}, times)


def _first_images(found: Detections, data: DetectionData, params: LatencyParams, count: int) -> list:
    """The first images with detections above the threshold, and their rows."""
    spans = detections_by_image(found, data, score_thresh=params.cm_clip.score_thresh)
    return [span for span, _ in zip(spans, range(count))]


@torch.inference_mode()
def _one_image(
    watch: Stopwatch,
    way: Way,
    rescorer: Rescorer,
    detector: torch.nn.Module,
    record,
    found: Detections,
    rows: np.ndarray,
) -> None:
    with watch.part("decode"):
        image = read_image(record.path)
    with watch.part("detector"):
        detector([image.to(detector.pixel_mean.device)])
    boxes, c = torch.from_numpy(found.boxes[rows]), rescorer.settings.c
    if way.way == "published":
        clip, temperature = rescorer.published(), TEMPERATURE
        with watch.part("read_again"):
            image = read_image(record.path)
    else:
        clip = rescorer.ours(way.precision, way.path)
        temperature = clip.temperature
    if way.path == "dense":
        with watch.part("encode"):
            embeds_norm = clip.embed_boxes(image, boxes)
    else:
        with watch.part("crop"):
            crops = clip.crops(image, boxes)
        with watch.part("encode"):
            embeds_norm = clip.embed_crops(crops)
    with watch.part("blend"):
        probs = (temperature * embeds_norm @ clip.text_embeds_norm.T).softmax(-1).cpu().numpy()
        rescore(found.scores[rows], probs[np.arange(len(rows)), found.labels[rows]], c=c)


def _text_milliseconds(rescorer: Rescorer) -> float:
    """Milliseconds of the texts of the label space, which every way encodes once, in float32."""
    clip = rescorer.ours("fp32", "crop")
    with measured(clip.device, memory=False) as cost:
        clip.encode_names(clip.label_space)
    return 1000 * cost.wall_seconds


def measure_all_c(
    params: LatencyParams, notes, name: str, rescorer: Rescorer, found: Detections, data: DetectionData
) -> None:
    """New scores of some images for ``num_c`` values of c: the published way does all of its work for each."""
    spans = _first_images(found, data, params, params.c_images)
    wanted = np.isin(found.image_ids, [record.image_id for record, _ in spans])
    part = found.keep(wanted)
    weights = tuple(np.linspace(0.0, 1.0, params.num_c).tolist())
    start = {"kind": "all_c", "clip": name, "num_c": params.num_c}
    options = {"score_thresh": params.cm_clip.score_thresh, "rescored_classes": rescorer.novel_names}
    for way in [way for way in exact_ways(params) if way.path == "crop"]:
        key = start | way._asdict()
        if notes.done(**key):
            continue
        costs, rounds = [], 1 if way == PUBLISHED else params.rounds  # that one repeats itself for each c
        for _ in range(rounds):
            with measured(notes.run.device, memory=False) as cost:
                if way == PUBLISHED:
                    for c in weights:
                        rescorer.published().rescore_detections(part, data, c=c)
                else:
                    clip = rescorer.ours(way.precision, way.path)
                    embeds = embed_detections(part, data, clip, **options)
                    rescorer.blend(clip, embeds, part, weights)
            costs.append((cost.wall_seconds, cost.cpu_seconds))
        seconds, cpu_seconds = np.median(costs, axis=0).tolist()
        times = {"seconds": seconds, "cpu_seconds": cpu_seconds}
        notes.add(key, {"num_images": len(spans), "num_boxes": sum(len(rows) for _, rows in spans)}, times)
