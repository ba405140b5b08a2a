"""What re-scoring costs on this machine, beside what it gains; the released code's way measured in the same run.

Rows of the record hold what repeats (which boxes, how many crops, nAP); times and memory differ between repeats and go
to ``run.environment["latency"]``, a row for each row of the record, by the same key.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from risf_core.data.benchmark import open_benchmark
from risf_core.detector.build import build_detector
from risf_core.detector.checkpoints import load_weights, read_checkpoint
from risf_core.fine_tuning import open_clip_source
from risf_core.measuring import Cost
from risf_core.params import BaseTrainingParams
from risf_core.progress import progress
from risf_core.records import Rows
from risf_core.score_sweeps import ScoreSweep
from risf_core.studies.latency_lines import measure_detector, measure_floor, measure_lines
from risf_core.studies.latency_parts import measure_all_c, measure_parts
from risf_core.studies.rescoring_ways import PUBLISHED, Rescorer, all_ways, in_turns
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
    """Each way on a stored cell: nAP and crops encoded on all its images; time and memory on the first, in turns."""
    _, test, evaluator = splits.get(cell)
    found, start = cell.detections(), {"kind": "stored", **cell.key, "clip": name}
    ways = [way for way in all_ways(params) if not notes.done(**start, **way._asdict())]
    timed = replace(test, images=test.images[: params.timed_images])
    part = found.keep(np.isin(found.image_ids, [record.image_id for record in timed.images]))
    turns = in_turns(ways, rescorer, part, timed, rounds=params.rounds, device=notes.run.device)
    sweep, facts = ScoreSweep(evaluator, found), {"num_images": len(test), "timed_images": len(timed)}
    facts["num_boxes"] = int((found.scores > params.cm_clip.score_thresh).sum())
    without, made = novel_metrics(sweep.evaluate(found.scores)), {}
    for way in ways:
        same = way._replace(images_from="files")  # where images come from changes no score
        if same not in made:
            made[same] = rescorer.scores(same, found, test)
        scores, encoded = made[same]
        metrics = novel_metrics(sweep.evaluate(scores))
        gains = {f"gain_{metric}": metrics[metric] - without[metric] for metric in ("nAP", "nAP50")}
        values = metrics | gains | facts | {"encoded": encoded}
        notes.add(start | way._asdict(), values, per_image(turns[way].costs, len(timed)))
    _measure_equality(notes, start, rescorer, part, timed)


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


def per_image(costs: Sequence[Cost], num_images: int) -> dict:
    """Costs of some rounds as milliseconds an image: median, and each; memory is that of the whole first round."""
    wall = [1000 * cost.wall_seconds / num_images for cost in costs]
    cpu = [1000 * cost.cpu_seconds / num_images for cost in costs]
    times = {"ms": float(np.median(wall)), "cpu_ms": float(np.median(cpu)), "peak_mib": costs[0].peak_mib}
    return times | {"ms_rounds": wall, "cpu_ms_rounds": cpu}
