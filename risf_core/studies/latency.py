"""What re-scoring costs on this machine, beside what it gains; the released code's way measured in the same run.

Rows of the record hold what repeats (which boxes, how many crops, nAP); times and memory differ between repeats and go
to ``run.environment["latency"]``, a row for each row of the record, by the same key.
"""

from __future__ import annotations

import logging

import numpy as np
import torch

from risf_core.cm_clip.clip import CMCLIP
from risf_core.data.benchmark import open_benchmark
from risf_core.data.loader import ImageCache
from risf_core.detector.build import build_detector
from risf_core.detector.checkpoints import load_weights, read_checkpoint
from risf_core.fine_tuning import open_clip_source
from risf_core.measuring import Cost, measured
from risf_core.params import BaseTrainingParams
from risf_core.progress import progress
from risf_core.records import Rows
from risf_core.score_sweeps import ScoreSweep
from risf_core.studies.latency_lines import measure_detector, measure_floor, measure_lines
from risf_core.studies.latency_parts import measure_all_c, measure_parts
from risf_core.studies.rescoring_ways import PUBLISHED, Rescorer, all_ways
from risf_core.studies.stored_cells import Splits, StoredCell, novel_metrics, stored_cells
from risf_core.study_params import LatencyParams

log = logging.getLogger(__name__)

TIMES = "checkpoint-times.jsonl"  # in the run's folder, so that a killed run keeps what it has measured


class Notes:
    """Rows of a record and, apart, what was measured for each of them."""

    def __init__(self, run) -> None:
        self.run, self.times = run, Rows(run.dir / TIMES)

    def done(self, **key) -> bool:
        """Whether the row and its times are there."""
        return self.run.rows.done(**key) and self.times.done(**key)

    def add(self, key: dict, values: dict, times: dict) -> None:
        """Add the times, then the row; a kill may have come between the two."""
        if not self.times.done(**key):
            self.times.add(key, times)
        if not self.run.rows.done(**key):
            self.run.rows.add(key, values)


def measure_latency(params: LatencyParams, run) -> list[dict]:
    """All measurements of ``params``; those that a killed run has made are kept.

    Returns:
        The rows, by ``kind``: "stored" (all test images of a stored cell), "equality", "parts" (image by image),
        "all_c" (many values of c), "floor", "boxes" (one image with N boxes), "detector".
    """
    notes, splits = Notes(run), Splits()
    cells = stored_cells(run.upstreams("fine_tuning"), arm=params.arm, loss=params.loss, seeds=params.seeds)
    detector = _base_detector(params, run)
    sources = [(source, False) for source in params.clips] + [(source, True) for source in params.large_clips]
    for source, is_large in progress(sources, desc="CLIPs", total=len(sources)):
        name, clip = open_clip_source(source, run, device=run.device, seed=params.seed)
        rescorer = Rescorer(clip, splits.get(cells[0])[0].novel_names, params.cm_clip)
        if not is_large:
            _note_probe(run, name, rescorer)
            for cell in cells:
                _measure_stored(params, notes, name, rescorer, cell, splits)
            _, test, _ = splits.get(cells[0])
            measure_parts(params, notes, name, rescorer, detector, cells[0].detections(), test)
            measure_all_c(params, notes, name, rescorer, cells[0].detections(), test)
        measure_floor(params, notes, name, rescorer, is_large=is_large)
        measure_lines(params, notes, name, rescorer, is_large=is_large)
        rescorer.forget()
    measure_detector(params, notes)
    run.environment["latency"] = notes.times.as_list()
    return run.rows.as_list()


def _base_detector(params: LatencyParams, run) -> torch.nn.Module:
    """The trained detector of ``params.base``, in evaluation mode."""
    upstream = run.upstream("base")
    base = BaseTrainingParams.model_validate(upstream.record["params"])
    state = read_checkpoint(upstream.dir / "model.pth")["model"]
    benchmark = open_benchmark(base.data, split=base.split)
    detector = build_detector(base.detector, len(benchmark.base_names))
    load_weights(detector, state, source="base model")
    return detector.to(run.device).eval()


def _note_probe(run, name: str, rescorer: Rescorer) -> None:
    """What precision "auto" takes here, and what it measured, for the record's environment."""
    settings = rescorer.settings.model_copy(update={"precision": "auto"})
    auto = Rescorer(rescorer.clip, rescorer.novel_names, settings).ours("auto", "crop")
    run.environment.setdefault("auto", {})[name] = {"precision": auto.precision, "probe": auto.probe}


def _measure_stored(
    params: LatencyParams, notes: Notes, name: str, rescorer: Rescorer, cell: StoredCell, splits: Splits
) -> None:
    """Each way on all detections of a stored cell: nAP, crops encoded, time, memory; ways take turns."""
    _, test, evaluator = splits.get(cell)
    found, cache = cell.detections(), ImageCache()
    for record in test.images:
        cache.read(record)
    sweep, start = ScoreSweep(evaluator, found), {"kind": "stored", **cell.key, "clip": name}
    without = novel_metrics(sweep.evaluate(found.scores))
    first = found.keep(found.image_ids == found.image_ids[0])
    rescorer.scores(PUBLISHED, first, test)  # what a process does once is not measured
    for way in all_ways(params):
        key = start | way._asdict()
        if notes.done(**key):
            continue
        if way.way == "ours":
            _warm_up(rescorer.ours(way.precision, way.path))
        with measured(notes.run.device) as cost:
            scores, encoded = rescorer.scores(
                way, found, test, cache=cache if way.images_from == "memory" else None
            )
        metrics = novel_metrics(sweep.evaluate(scores))
        facts = {
            "num_images": len(test),
            "num_boxes": int((found.scores > params.cm_clip.score_thresh).sum()),
        }
        gains = {f"gain_{metric}": metrics[metric] - without[metric] for metric in ("nAP", "nAP50")}
        notes.add(key, metrics | gains | facts | {"encoded": encoded}, per_image(cost, len(test)))
    _measure_equality(notes, start, rescorer, found, test)


def _warm_up(clip: CMCLIP) -> None:
    """Two boxes of an empty image: what a process does once is not measured."""
    boxes = torch.tensor([[0.0, 0.0, 32.0, 32.0], [8.0, 8.0, 60.0, 60.0]])
    clip.embed_boxes(torch.zeros(3, 64, 64, dtype=torch.uint8), boxes)


def _measure_equality(notes: Notes, start: dict, rescorer: Rescorer, found, test) -> None:
    """The largest difference of a score between the released way and ours, fed the same, in float32."""
    key = start | {"kind": "equality"}
    if notes.done(**key):
        return
    settings = rescorer.settings.model_copy(update={"preprocess": "released"})
    same = Rescorer(rescorer.clip, rescorer.novel_names, settings)
    theirs, _ = rescorer.scores(PUBLISHED, found, test)
    ours, _ = same.scores(PUBLISHED._replace(way="ours"), found, test)
    notes.add(key, {"scores": len(found)}, {"largest_difference": float(np.abs(theirs - ours).max())})


def per_image(cost: Cost, num_images: int) -> dict:
    """A cost as milliseconds an image; memory is that of the whole."""
    return {
        "ms": 1000 * cost.wall_seconds / num_images,
        "cpu_ms": 1000 * cost.cpu_seconds / num_images,
        "peak_mib": cost.peak_mib,
    }
