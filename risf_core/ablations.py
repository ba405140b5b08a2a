"""Sweeps over what fine-tuning has stored: c and the label space, the CLIPs; and over BNRL's hyper-parameters."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from risf_core.bnrl import get_loss
from risf_core.clip_accuracy import crop_accuracy
from risf_core.clip_models import LoadedClip, load_clip
from risf_core.cm_clip import CMCLIP, label_space_names
from risf_core.cm_clip.encoding import embed_detections
from risf_core.data.benchmark import Benchmark, open_benchmark
from risf_core.data.dataset import DetectionData
from risf_core.data.loader import ImageCache
from risf_core.detections import MAX_DETECTIONS, Detections, Similarities, cut
from risf_core.errors import ParamsError
from risf_core.evaluation import Evaluator
from risf_core.fine_tuning import (
    build_cm_clip,
    cell_name,
    fine_tune,
    open_clip_source,
    open_context,
    rescored,
    settled,
)
from risf_core.measuring import Cost, measured
from risf_core.params import (
    AblationBnrlParams,
    AblationCParams,
    ClipBackbonesParams,
    CmClipParams,
    FineTuningParams,
)
from risf_core.progress import progress
from risf_core.score_sweeps import ScoreSweep, sweep_c
from risf_core.voc_evaluation import evaluator_for

PAPER_SPACE = "novel+background"


def _stored_cells(params, run) -> Iterator[tuple[FineTuningParams, Path, dict]]:
    """Each stored cell of the fine-tuning runs that ``params`` names: its run's parameters, folder and row key."""
    data, keys = None, []
    for upstream in run.upstreams("fine_tuning"):
        tuned = FineTuningParams.model_validate(upstream.record["params"])
        if tuned.setting != "fsod":
            raise ParamsError(
                f"{upstream.run_id}: sweeps are over the setting fsod, this run is {tuned.setting}."
            )
        data = data or tuned.data
        if tuned.data != data:
            raise ParamsError(f"{upstream.run_id}: its data differ from an earlier run's; sweep each apart.")
        for row in upstream.record["rows"]:
            wanted = row["seed"] in (params.seeds or tuned.seeds) and row["loss"] in (
                params.losses or [row["loss"]]
            )
            if row["rescoring"] == "none" and wanted:
                names = ("split", "shots", "seed", "loss", "arm", "setting", "repeat")
                key = {name: row[name] for name in names}
                if key in keys:
                    raise ParamsError(
                        f"{upstream.run_id}: {key} is in an earlier run, too; name one of them."
                    )
                keys.append(key)
                yield tuned, upstream.dir, key


class _Benchmarks:
    """Benchmarks and their novel test data, opened once for many cells."""

    def __init__(self) -> None:
        self._opened: dict = {}

    def get(self, tuned: FineTuningParams) -> tuple[Benchmark, Evaluator]:
        key = (tuned.data, tuned.split)
        if key not in self._opened:
            benchmark = open_benchmark(tuned.data, split=tuned.split)
            test = benchmark.test.select_classes(benchmark.novel_names)
            options = {"groups": {"novel": benchmark.novel_names}, "max_dets": MAX_DETECTIONS}
            self._opened[key] = benchmark, evaluator_for(test, **options, **benchmark.evaluation)
        return self._opened[key]


def _novel(metrics: dict) -> dict[str, float | None]:
    return {name: metrics[name] for name in ("nAP", "nAP50", "nAP75")}


def ablate_c(params: AblationCParams, run) -> list[dict]:
    """nAP over c and what else re-scoring has, from stored detections and cosines: no forward pass.

    At c = 1 CM-CLIP changes nothing, which all points share.
    """
    benchmarks = _Benchmarks()
    cells = list(_stored_cells(params, run))
    for tuned, folder, key in progress(cells, desc="stored cells", total=len(cells)):
        points = [key | point for point in rescoring_points(params, tuned, folder)]
        rows = [[point | {"c": c} for c in params.c] for point in points]
        if all(run.rows.done(**row) for own in rows for row in own):
            continue
        benchmark, evaluator = benchmarks.get(tuned)
        name = cell_name(key["seed"], key["arm"], key["loss"], key["repeat"])
        found = Detections.load(folder / "detections" / f"{name}.npz")
        similarities = Similarities.load(folder / "similarities" / f"{name}.npz")
        found, similarities = cut(found, similarities, score_thresh=tuned.score_thresh)
        sweep = ScoreSweep(evaluator, found)
        for point, own in zip(points, rows, strict=True):
            swept = sweep_c(sweep, similarities, c=params.c, **_options(point, tuned, folder, benchmark))
            for row, metrics in zip(own, swept, strict=True):
                if not run.rows.done(**row):
                    run.rows.add(row, _novel(metrics))
    return run.rows.as_list()


def rescoring_points(params: AblationCParams, tuned: FineTuningParams, folder: Path) -> list[dict]:
    """What varies beside c, as row keys: label space, temperature, threshold and fusion; a run's own where not given.

    Raises:
        ParamsError: If a threshold lies below the one above which the run in ``folder`` encoded.
    """
    own = tuned.cm_clip
    thresholds = params.score_threshs or (own.score_thresh,)
    if min(thresholds) < own.score_thresh:
        raise ParamsError(
            f"score_threshs holds {min(thresholds):g}, but {folder.name} encoded what scores above "
            f"{own.score_thresh:g} alone. Give {own.score_thresh:g} or more, or fine-tune again with "
            f"cm_clip.score_thresh: {min(thresholds):g}."
        )
    axes = {
        "label_space": params.label_spaces,
        "temperature": params.temperatures or (own.temperature,),
        "score_thresh": thresholds,
        "fusion": params.fusions or (own.fusion,),
    }
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def _options(point: dict, tuned: FineTuningParams, folder: Path, benchmark: Benchmark) -> dict:
    """A point's options of `sweep_c`, with a learned temperature as the number that the run's CLIP has."""
    names = {"novel_names": benchmark.novel_names, "base_names": benchmark.base_names}
    same = tuned.cm_clip.model_copy(update={"temperature": point["temperature"]})
    return {
        "fusion": point["fusion"],
        "temperature": settled(same, folder).temperature,
        "label_space": label_space_names(point["label_space"], **names),
        "rescored_classes": benchmark.novel_names,
        "score_thresh": point["score_thresh"],
        "not_encoded": tuned.cm_clip.not_encoded,
    }


def bnrl_sweeps(params: AblationBnrlParams) -> list[dict[str, float | str]]:
    """The hyper-parameters of each sweep: beta tied to 1 - alpha, beta alone, and gamma x epsilon."""
    paper = params.bnrl
    points = []
    for background_weight in params.background_weights:
        tied = [{"alpha": alpha, "beta": round(1 - alpha, 6)} for alpha in params.alphas]
        alone = [{"alpha": paper.alpha, "beta": beta} for beta in params.betas]
        for sweep, values in (("beta_tied", tied), ("beta_fixed_alpha", alone)):
            fixed = {"gamma": paper.gamma, "epsilon": paper.epsilon, "background_weight": background_weight}
            points += [{"sweep": sweep} | value | fixed for value in values]
    fixed = {"alpha": paper.alpha, "background_weight": paper.background_weight}
    fixed["beta"] = round(1 - paper.alpha, 6) if paper.beta is None else paper.beta
    for gamma, epsilon in itertools.product(params.gammas, params.epsilons):
        points.append({"sweep": "gamma_epsilon", "gamma": gamma, "epsilon": epsilon} | fixed)
    return points


def ablate_bnrl(params: AblationBnrlParams, run) -> list[dict]:
    """Fine-tune with each point of ``bnrl_sweeps`` for every seed and arm; nAP without re-scoring."""
    context = open_context(params, run)
    options = context.benchmark.evaluation
    evaluator = evaluator_for(context.test, groups=context.groups(), max_dets=MAX_DETECTIONS, **options)
    cells = list(itertools.product(params.seeds, params.arms, bnrl_sweeps(params)))
    measured: dict[tuple, dict] = {}  # sweeps cross: the same loss is trained once
    for seed, arm, point in progress(cells, desc="points", total=len(cells)):
        key = {"split": params.split, "shots": params.shots, "seed": seed, "arm": arm} | point
        hyper = {name: value for name, value in point.items() if name != "sweep"}
        same = (seed, arm, *sorted(hyper.items()))
        if run.rows.done(**key):
            stored = run.rows.get(**key)
            measured[same] = _novel(stored)
            continue
        if same not in measured:
            label = "bnrl with " + ", ".join(f"{name} {value:g}" for name, value in hyper.items())
            found, _ = fine_tune(context, get_loss("bnrl", **hyper), seed=seed, arm=arm, label=label)
            found, _ = cut(found, None, score_thresh=params.score_thresh)
            measured[same] = _novel(evaluator.evaluate(found))
        run.rows.add(key, measured[same])
    return run.rows.as_list()


class _NamedClip(NamedTuple):
    """A CLIP to compare: its name in tables, its tower, and how many steps it was trained here (None: elsewhere)."""

    name: str
    tower: str
    iterations: int | None
    path_only: bool
    clip: LoadedClip


def _clips_to_compare(params: ClipBackbonesParams, run) -> Iterator[_NamedClip]:
    """The CLIPs of ``params``, loaded one after another; where a tower was trained several times its steps name it."""
    found = [(source, run.upstreams(source.run) if source.run else [None]) for source in params.clips]
    runs = [upstream for _, upstreams in found for upstream in upstreams if upstream]
    towers = [upstream.record["params"]["tower"] for upstream in runs]
    for source, upstreams in found:
        for upstream in upstreams:
            if upstream is None:
                name, clip = open_clip_source(source, run, device=run.device, seed=params.seed)
                yield _NamedClip(name, name, None, source.path_only, clip)
                continue
            tower, steps = (upstream.record["params"][key] for key in ("tower", "iterations"))
            name = tower if towers.count(tower) == 1 else f"{tower}, {steps} steps"
            clip = load_clip(tower, upstream.dir / "clip.pt", device=run.device)
            yield _NamedClip(name, tower, steps, source.path_only, clip)


def compare_clips(params: ClipBackbonesParams, run) -> list[dict]:
    """CM-CLIP's gain with each CLIP on the same stored detections (paper setting), beside its accuracy on crops.

    What a crop costs with each CLIP goes to ``run.environment["clips"]``.
    """
    benchmarks, images = _Benchmarks(), ImageCache()
    cells = list(_stored_cells(params, run))
    settings = params.cm_clip.model_copy(update={"label_spaces": (PAPER_SPACE,)})
    for named in _clips_to_compare(params, run):
        built: dict[tuple, tuple[CMCLIP, dict]] = {}
        for tuned, folder, key in progress(cells, desc=named.name, total=len(cells)):
            row = key | {"clip": named.name} | settings.crop_options()
            if run.rows.done(**row):
                continue
            benchmark, evaluator = benchmarks.get(tuned)
            where = (tuned.data, tuned.split)
            if where not in built:
                _read_ahead(images, evaluator.data)
                cm_clip = build_cm_clip(named.clip, benchmark, settings)
                built[where] = cm_clip, _clip_facts(named, benchmark, settings)
            cm_clip, facts = built[where]
            name = cell_name(key["seed"], key["arm"], key["loss"], key["repeat"])
            found, _ = cut(
                Detections.load(folder / "detections" / f"{name}.npz"), None, score_thresh=tuned.score_thresh
            )
            options = {"score_thresh": settings.score_thresh, "cache": images} | settings.crop_choice()
            with measured(run.device) as cost:
                embeddings = embed_detections(found, evaluator.data, cm_clip, **options)
            _note_cost(run, named.name, cm_clip, cost, embeddings.counts["encoded"])
            similarities = embeddings.similarities(cm_clip.text_embeds_norm, cm_clip.label_space)
            own = settings.model_copy(update={"temperature": cm_clip.temperature})
            ((_, changed),) = rescored(found, similarities, benchmark, own)
            without, metrics = _novel(evaluator.evaluate(found)), _novel(evaluator.evaluate(changed))
            gains = {"gain": metrics["nAP50"] - without["nAP50"], "gain_nAP": metrics["nAP"] - without["nAP"]}
            run.rows.add(row, facts | metrics | gains | {"path_only": named.path_only})
    return run.rows.as_list()


def _read_ahead(images: ImageCache, data: DetectionData) -> None:
    """Fill the cache, so that the first CLIP's time holds no more decoding than the others'."""
    for record in data.images:
        before = images.num_bytes
        images.read(record)
        if before and images.num_bytes == before:
            return  # full, or filled already


def _note_cost(run, name: str, cm_clip: CMCLIP, cost: Cost, num_crops: int) -> None:
    """Add what encoding some crops cost to the record's environment."""
    notes = run.environment.setdefault("clips", {})
    note = notes.setdefault(
        name, {"precision": cm_clip.precision, "seconds": 0.0, "crops": 0, "peak_mib": None}
    )
    note["seconds"] += cost.wall_seconds
    note["crops"] += num_crops
    if cost.peak_mib is not None:
        note["peak_mib"] = max(cost.peak_mib, note["peak_mib"] or 0.0)


def _clip_facts(named: _NamedClip, benchmark: Benchmark, cm_clip: CmClipParams) -> dict:
    """Size and training of the image tower, and accuracy on ground-truth crops of test images, novel names or all."""
    test, options = benchmark.test, {"crop_options": cm_clip.crop_options()}
    novel = test.select_classes(benchmark.novel_names)
    return {
        "tower": named.tower,
        "iterations": named.iterations,
        "parameters": named.clip.info.num_parameters,
        "crop_accuracy": crop_accuracy(named.clip, novel, benchmark.novel_names, **options)["accuracy"],
        "crop_accuracy_all": crop_accuracy(named.clip, test, test.class_names, **options)["accuracy"],
    }
