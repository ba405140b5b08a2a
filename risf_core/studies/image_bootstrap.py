"""How much of an effect's uncertainty comes from the test images: a bootstrap over images, paired over all cells.

Every resample draws as many test images as there are, with replacement, and the same ones for each split, base model,
draw, loss and re-scoring. AP50 of all resamples comes from one matching, as sums of matrices.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from risf_core.data.dataset import DetectionData
from risf_core.detections import Detections, Similarities
from risf_core.effects import EFFECTS, ON_SELECT_SPLIT, SELECT_SPLIT, Cell, Effect
from risf_core.errors import DataError, ParamsError
from risf_core.fine_tuning import results_by_rescoring, settled
from risf_core.paired_bootstrap import RECALLS, ClassMatches, class_matches
from risf_core.params import FineTuningParams
from risf_core.progress import progress
from risf_core.studies.stored_cells import Splits, StoredCell, stored_cells
from risf_core.study_params import TestImagesParams

TOLERANCE = 1e-6  # percent, to the evaluator's AP50 in the record


@dataclass(frozen=True)
class Place:
    """Where a value stands: all cells of an effect share it but for loss, rate and re-scoring."""

    split: int
    base: str
    seed: int
    repeat: int
    arm: str
    shots: int


def image_weights(num_images: int, resamples: int, *, seed: int) -> np.ndarray:
    """How often each image is there, float64 [1 + resamples, images]; the first row holds every image once."""
    generator = np.random.default_rng(seed)
    drawn = generator.integers(0, num_images, (resamples, num_images))
    counts = [np.bincount(own, minlength=num_images) for own in drawn]
    return np.array([np.ones(num_images, dtype=np.int64), *counts], dtype=np.float64)


def weighted_ap50(matches: ClassMatches, weights: np.ndarray) -> np.ndarray:
    """AP50 of one class in percent for each row of the weights, as `ClassMatches.ap50` gives for one.

    Only right detections can raise recall, and between two of them precision falls: it is enough to know how many
    detections stand before each right one.

    Args:
        matches: Of one class.
        weights: Whole numbers, float64 [B, images].

    Returns:
        float64 [B]; NaN where no object is there.
    """
    counts = weights @ matches.num_objects  # [B]
    places = np.flatnonzero(matches.is_right)  # T right ones
    images = matches.images
    # detections of each image up to each right one, [T, images]
    before = np.zeros((len(places), weights.shape[1]))
    group = np.searchsorted(places, np.arange(len(images)))  # the next right one
    inside = group < len(places)
    np.add.at(before, (group[inside], images[inside]), 1.0)
    shown = weights @ np.cumsum(before, axis=0).T  # [B, T]
    right = np.cumsum(weights[:, images[places]], axis=1)  # [B, T]
    precision = np.divide(right, shown, out=np.zeros_like(right), where=shown > 0)
    best = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    best = np.concatenate([best, np.zeros((len(best), 1))], axis=1)  # beyond the last: a recall never reached
    # how many right ones each recall takes, [B, 101], as the comparison of floats has it
    needed = np.zeros((len(counts), len(RECALLS)))
    for count in np.unique(counts[counts > 0]).astype(int):
        needed[counts == count] = np.searchsorted(np.arange(count + 1) / count, RECALLS, side="left")
    # the first right one that reaches it: one search in all rows, one after another on a common scale
    step = max(needed.max(initial=0.0), right.max(initial=0.0)) + 1.0
    offsets = step * np.arange(len(counts))[:, None]
    ends = (right + offsets).ravel()
    reached = np.searchsorted(ends, (needed + offsets).ravel(), side="left").reshape(needed.shape)
    reached -= len(places) * np.arange(len(counts))[:, None]
    result = 100.0 * np.take_along_axis(best, reached, axis=1).sum(axis=1) / len(RECALLS)
    return np.where(counts > 0, result, np.nan)


def mean_ap50(detections: Detections, data: DetectionData, weights: np.ndarray) -> np.ndarray:
    """AP50 in percent, mean over the classes that have an object in a resample: float64 [B], NaN without any.

    Raises:
        DataError: If the data have crowd regions or difficult boxes, which are not built in.
    """
    if any((record.is_crowd | record.is_difficult).any() for record in data.images):
        raise DataError(
            f"{data.name} has crowd regions or difficult boxes, which this bootstrap does not know."
        )
    values = np.array([weighted_ap50(one, weights) for one in class_matches(detections, data)])  # [C, B]
    known = ~np.isnan(values)
    return np.divide(
        np.where(known, values, 0.0).sum(axis=0),
        known.sum(axis=0),
        out=np.full(weights.shape[0], np.nan),
        where=known.any(axis=0),
    )


def effect_samples(
    effect: Effect, samples: Mapping[tuple[Place, Cell], np.ndarray]
) -> dict[Place, np.ndarray]:
    """The contrast at each place that has all cells of an effect: [B] each."""
    places = set.intersection(
        *({place for place, cell in samples if cell == term} for _, term in effect.terms)
    )
    order = sorted(places, key=lambda place: (place.split, place.base, place.seed, place.repeat))
    return {place: sum(sign * samples[place, cell] for sign, cell in effect.terms) for place in order}


def with_best_rates(samples: Mapping[tuple[Place, Cell], np.ndarray]) -> dict[tuple[Place, Cell], np.ndarray]:
    """The samples, with the main rate as the best of a loss that has no other, where another loss has one."""
    losses = {cell.loss for _, cell in samples}
    best = {cell.loss for _, cell in samples if cell.is_best}
    same = losses - best if best else set()
    return dict(samples) | {
        (place, cell._replace(is_best=True)): values
        for (place, cell), values in samples.items()
        if cell.loss in same
    }


def summarize(samples: Mapping[Place, np.ndarray]) -> dict[str, float | int]:
    """Mean of an effect over its places, splits counting the same, with the 95 % percentile interval of the resamples.

    Args:
        samples: [1 + resamples] for each place, the first of all images as they are.

    Returns:
        mean, low, high, standard_error (points), cells, splits and resamples.
    """
    by_split: dict[int, list[np.ndarray]] = {}
    for place, values in samples.items():
        by_split.setdefault(place.split, []).append(values)
    means = np.mean([np.mean(values, axis=0) for values in by_split.values()], axis=0)
    low, high = np.nanpercentile(means[1:], [2.5, 97.5])  # a draw may hold no object
    return {
        "mean": float(means[0]),
        "low": float(low),
        "high": float(high),
        "standard_error": float(np.nanstd(means[1:], ddof=1)),
        "cells": len(samples),
        "splits": len(by_split),
        "resamples": len(means) - 1,
    }


def bootstrap_images(params: TestImagesParams, run) -> None:
    """A row for each effect, arm and K; the samples of each stored cell are kept, so that a killed run goes on."""
    samples, splits, weights, images = {}, Splits(), None, None
    records = {upstream.run_id: upstream.record for upstream in run.upstreams("fine_tuning")}
    cells = [cell for arm in params.arms for loss in params.losses for cell in _cells(params, run, arm, loss)]
    for cell in progress(cells, desc="cells", total=len(cells)):
        _, test, _ = splits.get(cell)
        if weights is None:
            images = [record.image_id for record in test.images]
            weights = image_weights(len(images), params.resamples, seed=params.seed)
        if [record.image_id for record in test.images] != images:
            raise ParamsError(f"{cell.run_id}: its test images are others than those of {cells[0].run_id}.")
        samples |= _cell_samples(
            cell, _recorded(cell, records[cell.run_id]), splits, weights, run.dir / "samples"
        )
    samples = with_best_rates(samples)
    for effect in EFFECTS:
        if all(any(cell == term for _, cell in samples) for _, term in effect.terms):
            _add_rows(effect, effect_samples(effect, samples), run)


def _cells(params: TestImagesParams, run, arm: str, loss: str) -> list[StoredCell]:
    """The stored cells of an arm and loss, of all runs that have some; base models and rates apart."""
    found: list[StoredCell] = []
    for upstream in run.upstreams("fine_tuning"):  # one by one: other base models have the same keys
        tuned = FineTuningParams.model_validate(upstream.record["params"])
        if arm in tuned.arms and loss in tuned.losses:
            found += stored_cells([upstream], arm=arm, loss=loss, seeds=params.seeds)
    if not found:
        raise ParamsError(f"fine_tuning has no run of arm {arm} with {loss}. Expected at least one.")
    return found


def _cell_samples(
    cell: StoredCell, expected: Mapping[str, float | None], splits: Splits, weights: np.ndarray, folder: Path
) -> dict[tuple[Place, Cell], np.ndarray]:
    """AP50 of a stored cell, without and with CM-CLIP, for each resample; from the file if it is there."""
    path = folder / f"{cell.run_id}-{cell.name}.npy"
    if path.is_file():
        values = np.load(path)
    else:
        values = _resampled(cell, expected, splits, weights)
        folder.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        with temporary.open("wb") as file:
            np.save(file, values)
        os.replace(temporary, path)
    key = cell.key
    place = Place(key["split"], base_of(cell), key["seed"], key["repeat"], key["arm"], key["shots"])
    is_best = cell.tuned.solver.lr != FineTuningParams.model_fields["solver"].default.lr
    return {(place, Cell(key["loss"], is_best, bool(number))): own for number, own in enumerate(values)}


def _recorded(cell: StoredCell, record: Mapping) -> dict[str, float | None]:
    """nAP50 of a cell by re-scoring, as its run's evaluator found it."""
    return {
        row["rescoring"]: row["nAP50"]
        for row in record["rows"]
        if all(row[name] == value for name, value in cell.key.items())
    }


def base_of(cell: StoredCell) -> str:
    """Which base model a cell started from, as text."""
    return cell.tuned.base.model_dump_json()


def _resampled(
    cell: StoredCell, expected: Mapping[str, float | None], splits: Splits, weights: np.ndarray
) -> np.ndarray:
    """float64 [1 or 2, 1 + resamples]: without re-scoring and, if the run has a CLIP, with CM-CLIP as in the paper.

    Raises:
        DataError: If AP50 of all images is not the ``expected`` one of its record.
    """
    benchmark, test, _ = splits.get(cell)
    found = Detections.load(cell.folder / "detections" / f"{cell.name}.npz")
    similarities, cm_clip = None, cell.tuned.cm_clip
    if cell.tuned.clip is not None:
        similarities = Similarities.load(cell.folder / "similarities" / f"{cell.name}.npz")
        cm_clip = settled(cm_clip, cell.folder)
    cuts = {"score_thresh": cell.tuned.score_thresh}
    results = results_by_rescoring(found, similarities, benchmark, cm_clip, **cuts)
    if similarities is not None and "cm_clip" not in results:
        raise ParamsError(
            f"{cell.run_id}: re-scores in no label space of the paper. Expected novel+background."
        )
    values = []
    for name in ("none", "cm_clip") if similarities is not None else ("none",):
        values.append(mean_ap50(results[name], test, weights))
        recorded = expected.get(name)
        if recorded is None or abs(values[-1][0] - recorded) > TOLERANCE:
            raise DataError(
                f"{cell.run_id}, {cell.name}, {name}: AP50 is {values[-1][0]:.6f} here and {recorded} in its record. "
                "Expected the same: detections of that run, and COCO's metric. Repeat the run with --force."
            )
    return np.array(values)


def _add_rows(effect: Effect, samples: Mapping[Place, np.ndarray], run) -> None:
    """The rows of one effect: each arm and K, and the mean over K; apart on the split where rates were chosen."""
    sets = {effect.name: samples}
    if effect.takes_best:
        names = {True: f"{effect.name}{ON_SELECT_SPLIT}", False: effect.name}
        sets = {
            name: {place: own for place, own in samples.items() if (place.split == SELECT_SPLIT) == is_chosen}
            for is_chosen, name in names.items()
        }
    for name, own in sets.items():
        for arm in sorted({place.arm for place in own}):
            by_shots = {
                shots: {
                    place: values for place, values in own.items() if (place.arm, place.shots) == (arm, shots)
                }
                for shots in sorted({place.shots for place in own if place.arm == arm})
            }
            for shots, values in by_shots.items():
                key = {"effect": name, "loss": effect.loss, "arm": arm, "shots": shots}
                if not run.rows.done(**key):
                    run.rows.add(key, summarize(values))
