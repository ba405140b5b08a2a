"""gFSOD with novel, base or all classes re-scored, and what detections of novel classes are confused with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from risf_core.clip_accuracy import crop_accuracy
from risf_core.clip_models import LoadedClip
from risf_core.cm_clip import BACKGROUND, CMCLIP, encode_detections, rescore, rescored_rows
from risf_core.cm_clip.scores import label_probabilities
from risf_core.data.benchmark import Benchmark, open_benchmark
from risf_core.data.dataset import DetectionData
from risf_core.data.loader import ImageCache
from risf_core.detections import MAX_DETECTIONS, Detections, Similarities
from risf_core.errors import DataError, ParamsError
from risf_core.evaluation import Evaluator
from risf_core.fine_tuning import build_cm_clip, open_clip_source
from risf_core.params import FineTuningParams
from risf_core.progress import progress
from risf_core.studies.matching import NOT_COUNTED, ON_NOTHING, lies_on, named_by_best
from risf_core.studies.stored_cells import StoredCell
from risf_core.study_params import BaseClassesParams
from risf_core.voc_evaluation import evaluator_for

RESCORED = ("none", "novel", "base", "both")
OWN_SPACE, ALL_SPACE = "rescored+background", "all+background"
AVERAGES = ("AP", "AP50", "AP75")


def run_base_classes(params: BaseClassesParams, run) -> None:
    """Rows of the parts "class", "rescored", "naming" and "confusion"; a killed run goes on by row.

    The crops of all detections that count are encoded once for each cell; their cosines are stored in
    ``run.dir/similarities``.
    """
    cells = gfsod_cells(run.upstreams("gfsod"), arm=params.arm, losses=params.losses, seeds=params.seeds)
    splits, images = GfsodSplits(), ImageCache()
    name, clip = _named_clip(params, run)
    for cell in progress(cells, desc="cells", total=len(cells)):
        key = cell.key | {"clip": name}
        benchmark, test, evaluator = splits.get(cell)
        _add_classes(params, run, key, benchmark, test, clip, images)
        found = cell.detections()
        cm_clip = build_cm_clip(clip, benchmark, params.cm_clip)
        cosines = _stored_cosines(params, run, cell, found, test, cm_clip, images)
        groups = Groups(params, benchmark, found, cosines, temperature=cm_clip.temperature)
        _add_rescored(params, run, key, groups, evaluator)
        _add_naming(run, key, groups, test)
        _add_confusions(params, run, key, groups, test)


def _named_clip(params: BaseClassesParams, run) -> tuple[str, LoadedClip]:
    """The CLIP with its name in tables, which tells training lengths apart."""
    name, clip = open_clip_source(params.clip, run, device=run.device, seed=params.seed)
    if params.clip.run is None:
        return name, clip
    return f"{name}, {run.upstream(params.clip.run).record['params']['iterations']} steps", clip


def gfsod_cells(
    upstreams: Sequence, *, arm: str, losses: Sequence[str], seeds: Sequence[int] | None = None
) -> list[StoredCell]:
    """The cells of one arm in finished runs of 20_fine_tuning of the setting gfsod, in the order of K, loss and seed.

    Args:
        upstreams: What `Run.upstreams` returns.
        arm: Which K-shot images.
        losses: Names of the losses taken.
        seeds: Draws to take; None for all.

    Raises:
        ParamsError: If there is none, one is there twice, or a run is of another setting.
    """
    cells: dict[tuple, StoredCell] = {}
    for upstream in upstreams:
        tuned = FineTuningParams.model_validate(upstream.record["params"])
        if tuned.setting != "gfsod":
            raise ParamsError(
                f"{upstream.run_id} is of the setting {tuned.setting}. Expected gfsod, whose detector knows the base "
                "classes; name such runs under gfsod."
            )
        for row in upstream.record["rows"]:
            wanted = row["rescoring"] == "none" and row["arm"] == arm and row["loss"] in losses
            if not wanted or (seeds is not None and row["seed"] not in seeds):
                continue
            names = ("split", "shots", "seed", "loss", "arm", "setting", "repeat")
            key = {name: row[name] for name in names}
            if tuple(key.values()) in cells:
                raise ParamsError(f"{upstream.run_id}: {key} is in an earlier run, too; name one of them.")
            cells[tuple(key.values())] = StoredCell(upstream.run_id, upstream.dir, tuned, key)
    if not cells:
        runs = ", ".join(upstream.run_id for upstream in upstreams)
        raise ParamsError(
            f"no cell of arm {arm} and losses {', '.join(losses)} in {runs}. Expected at least one."
        )
    place = {loss: number for number, loss in enumerate(losses)}

    def order(cell: StoredCell) -> tuple:
        key = cell.key
        return key["split"], key["shots"], place[key["loss"]], key["seed"], key["repeat"]

    return sorted(cells.values(), key=order)


class GfsodSplits:
    """Benchmarks with their test data of all classes and the evaluator of 20_fine_tuning, opened once."""

    def __init__(self) -> None:
        self._opened: dict = {}

    def get(self, cell: StoredCell) -> tuple[Benchmark, DetectionData, Evaluator]:
        """Benchmark, test images with base and novel boxes, and their evaluator with both groups."""
        key = (cell.tuned.data, cell.tuned.split)
        if key not in self._opened:
            benchmark = open_benchmark(cell.tuned.data, split=cell.tuned.split)
            test = benchmark.test.select_classes((*benchmark.base_names, *benchmark.novel_names))
            groups = {"novel": benchmark.novel_names, "base": benchmark.base_names}
            options = {"groups": groups, "max_dets": MAX_DETECTIONS, **benchmark.evaluation}
            self._opened[key] = benchmark, test, evaluator_for(test, **options)
        return self._opened[key]


class Groups:
    """New scores of one cell's detections, with the classes of one or both groups re-scored.

    Args:
        params: Threshold and c.
        benchmark: Its base and novel names.
        found: Detections that count.
        cosines: With all names and background, of every detection above the threshold.
        temperature: Factor of the cosines.
    """

    def __init__(
        self,
        params: BaseClassesParams,
        benchmark: Benchmark,
        found: Detections,
        cosines: Similarities,
        *,
        temperature: float,
    ) -> None:
        self.settings, self.found, self.cosines, self.temperature = (
            params.cm_clip,
            found,
            cosines,
            temperature,
        )
        self.names = {"novel": tuple(benchmark.novel_names), "base": tuple(benchmark.base_names), "none": ()}
        self.names["both"] = (*self.names["base"], *self.names["novel"])

    def label_space(self, rescored: str, space: str) -> tuple[str, ...]:
        """The names that compete: those of the re-scored classes, or all; background last."""
        return (*self.names[rescored if space == OWN_SPACE else "both"], BACKGROUND)

    def scores(self, rescored: str, space: str, *, c: float) -> np.ndarray:
        """``c s + (1 - c) p`` for the detections of the re-scored classes, the detector's s for all others: [D]."""
        scores = self.found.scores.copy()
        if rescored == "none":
            return scores
        rows, label_probs = label_probabilities(
            self.found,
            self.cosines,
            temperature=self.temperature,
            label_space=self.label_space(rescored, space),
            rescored_classes=self.names[rescored],
            score_thresh=self.settings.score_thresh,
        )
        scores[rows] = rescore(scores[rows], label_probs, c=c)
        return scores

    def count(self, rescored: str) -> int:
        """How many detections are re-scored."""
        return int(rescored_rows(self.found, self.names[rescored], self.settings.score_thresh).sum())


def combinations(params: BaseClassesParams) -> Iterator[tuple[str, str, float]]:
    """Every (re-scored classes, label space, c); for both groups the two label spaces are one."""
    yield "none", "", 1.0
    for rescored in RESCORED[1:]:
        spaces = params.label_spaces if rescored != "both" else (ALL_SPACE,)
        for space in spaces:
            for c in params.c:
                yield rescored, space, c


def group_means(
    per_class: Mapping[str, Mapping[str, float | None]], names: Mapping[str, Sequence[str]]
) -> dict:
    """AP, AP50, AP75 over all classes, and with the prefixes b and n over base and novel ones; None without a value."""
    means = {}
    for prefix, group in (("", "both"), ("b", "base"), ("n", "novel")):
        for metric in AVERAGES:
            values = [per_class[name].get(metric) for name in names[group]]
            known = [value for value in values if value is not None]
            means[prefix + metric] = float(np.mean(known)) if known else None
    return means


def _stored_cosines(
    params: BaseClassesParams,
    run,
    cell: StoredCell,
    found: Detections,
    test: DetectionData,
    clip: CMCLIP,
    images: ImageCache,
) -> Similarities:
    """The cosines of a cell's detections with all names and background, encoded if no file holds them."""
    path = run.dir / "similarities" / f"{cell.run_id}-{cell.name}.npz"
    if path.is_file():
        stored = Similarities.load(path)
        if len(stored) != len(found):
            raise DataError(
                f"{path} holds {len(stored)} rows for {len(found)} detections of {cell.run_id}. Expected as many; "
                "delete the file and run again."
            )
        return stored
    options = {"score_thresh": params.cm_clip.score_thresh, "cache": images}
    cosines = encode_detections(found, test, clip, **options)
    cosines.save(path)
    return cosines


def _add_classes(
    params: BaseClassesParams,
    run,
    cell_key: Mapping,
    benchmark: Benchmark,
    test: DetectionData,
    clip: LoadedClip,
    images: ImageCache,
) -> None:
    """For each class of a split: how well the CLIP knows its ground-truth crops among all names and in its group."""
    shared = {"part": "class", "split": cell_key["split"], "clip": cell_key["clip"]}
    if run.rows.done(**shared, name=benchmark.novel_names[-1]):
        return
    options = {"cache": images, "crop_options": params.cm_clip.crop_options()}
    among_all = crop_accuracy(clip, test, test.class_names, **options)
    counts = test.counts()
    for group, names in (("base", benchmark.base_names), ("novel", benchmark.novel_names)):
        in_group = crop_accuracy(clip, test, names, **options)
        for name in names:
            key = shared | {"name": name}
            if not run.rows.done(**key):
                values = {"group": group, "objects": counts[name]}
                values |= {"accuracy": among_all["per_class"][name]}
                run.rows.add(key, values | {"accuracy_in_group": in_group["per_class"][name]})


def _add_rescored(
    params: BaseClassesParams, run, cell_key: Mapping, groups: Groups, evaluator: Evaluator
) -> None:
    """AP of all, base and novel classes for each combination.

    A class's AP depends on its own detections alone, so one evaluation of new scores of both groups serves base, novel
    and both.
    """
    none, judged = None, {}
    for rescored, space, c in combinations(params):
        key = {"part": "rescored", **cell_key, "rescored": rescored, "label_space": space, "c": c}
        if run.rows.done(**key):
            continue
        none = none or evaluator.evaluate(groups.found)["per_class"]
        if rescored != "none" and (space, c) not in judged:
            scores = groups.scores("novel", space, c=c)
            is_base = np.isin(
                groups.found.labels, [groups.found.class_names.index(n) for n in groups.names["base"]]
            )
            scores = np.where(is_base, groups.scores("base", space, c=c), scores)
            judged[space, c] = evaluator.evaluate(groups.found.with_scores(scores))["per_class"]
        changed = groups.names[rescored]
        per_class = {
            name: judged[space, c][name] if name in changed else values for name, values in none.items()
        }
        values = group_means(per_class, groups.names) | {"num_rescored": groups.count(rescored)}
        if rescored == "none" or c == params.cm_clip.c:
            values["per_class"] = {name: own["AP50"] for name, own in per_class.items()}
        run.rows.add(key, values)


def _add_naming(run, cell_key: Mapping, groups: Groups, test: DetectionData) -> None:
    """For each class: of its objects that any detection finds, how many the detector and how many CLIP name rightly.

    Both judge the same box, the best-scoring one on the object: the detector by that detection's label, CLIP by the
    nearest of all names (a box that is not encoded counts as wrong).
    """
    names = groups.found.class_names
    if run.rows.done(part="naming", **cell_key, name=names[-1]):
        return
    nearest = np.nan_to_num(groups.cosines.columns(names), nan=-2.0).argmax(axis=1)
    nearest = np.where(groups.cosines.encoded, nearest, ON_NOTHING)
    truth, by_detector = named_by_best(groups.found, test)
    _, by_clip = named_by_best(groups.found, test, nearest)
    for label, name in enumerate(names):
        key = {"part": "naming", **cell_key, "name": name}
        own = (truth == label) & (by_detector != ON_NOTHING)
        values = {"found": int(own.sum()), "objects": int((truth == label).sum())}
        values |= {"detector_right": int((by_detector[own] == label).sum())}
        if not run.rows.done(**key):
            run.rows.add(key, values | {"clip_right": int((by_clip[own] == label).sum())})


def _add_confusions(
    params: BaseClassesParams, run, cell_key: Mapping, groups: Groups, test: DetectionData
) -> None:
    """What the detections of each novel class lie on, weighted by their scores, without re-scoring and as published."""
    beneath = lies_on(groups.found, test)
    for rescored, space in (("none", ""), ("novel", OWN_SPACE)):
        scores = groups.scores(rescored, space, c=params.cm_clip.c)
        for name in groups.names["novel"]:
            key = {"part": "confusion", **cell_key, "rescored": rescored, "name": name}
            if run.rows.done(**key):
                continue
            own = groups.found.labels == groups.found.class_names.index(name)
            counted = own & (beneath != NOT_COUNTED)
            weights = {
                (BACKGROUND if label == ON_NOTHING else groups.found.class_names[label]): float(
                    scores[counted & (beneath == label)].sum(dtype=np.float64)
                )
                for label in np.unique(beneath[counted]).tolist()
            }
            run.rows.add(key, {"weights": weights, "detections": int(counted.sum())})
