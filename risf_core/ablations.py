"""Sweeps over what fine-tuning has stored: c and the label space, the CLIPs; and over BNRL's hyper-parameters."""

import itertools
from collections.abc import Iterator
from pathlib import Path

from risf_core.bnrl import get_loss
from risf_core.clip_accuracy import crop_accuracy
from risf_core.clip_models import LoadedClip
from risf_core.cm_clip import CMCLIP, encode_detections
from risf_core.data.benchmark import Benchmark, open_benchmark
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
)
from risf_core.params import (
    AblationBnrlParams,
    AblationCParams,
    ClipBackbonesParams,
    CmClipParams,
    FineTuningParams,
)
from risf_core.progress import progress
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
    """nAP over c and the label space, from stored detections and cosines: no forward pass.

    At c = 1 CM-CLIP changes nothing, which the label spaces share.
    """
    benchmarks = _Benchmarks()
    cells = list(_stored_cells(params, run))
    for tuned, folder, key in progress(cells, desc="stored cells", total=len(cells)):
        benchmark, evaluator = benchmarks.get(tuned)
        name = cell_name(key["seed"], key["arm"], key["loss"], key["repeat"])
        found = Detections.load(folder / "detections" / f"{name}.npz")
        similarities = Similarities.load(folder / "similarities" / f"{name}.npz")
        found, similarities = cut(found, similarities, score_thresh=tuned.score_thresh)
        without = _novel(evaluator.evaluate(found))
        for space, c in itertools.product(params.label_spaces, params.c):
            row = key | {"label_space": space, "c": c}
            if run.rows.done(**row):
                continue
            metrics = without
            if c < 1:
                options = tuned.cm_clip.model_copy(update={"c": c, "label_spaces": (space,)})
                ((_, changed),) = rescored(found, similarities, benchmark, options)
                metrics = _novel(evaluator.evaluate(changed))
            run.rows.add(row, metrics)
    return run.rows.as_list()


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


def compare_clips(params: ClipBackbonesParams, run) -> list[dict]:
    """CM-CLIP's gain with each CLIP on the same stored detections (paper setting), beside its accuracy on crops."""
    benchmarks, images = _Benchmarks(), ImageCache()
    cells = list(_stored_cells(params, run))
    settings = params.cm_clip.model_copy(update={"label_spaces": (PAPER_SPACE,)})
    for source in params.clips:
        clip_name, clip = open_clip_source(source, run, device=run.device, seed=params.seed)
        built: dict[tuple, tuple[CMCLIP, dict]] = {}
        for tuned, folder, key in progress(cells, desc=clip_name, total=len(cells)):
            row = key | {"clip": clip_name} | settings.crop_options()
            if run.rows.done(**row):
                continue
            benchmark, evaluator = benchmarks.get(tuned)
            where = (tuned.data, tuned.split)
            if where not in built:
                cm_clip = build_cm_clip(clip, benchmark, settings)
                built[where] = cm_clip, _clip_facts(clip, clip_name, benchmark, settings)
            cm_clip, facts = built[where]
            name = cell_name(key["seed"], key["arm"], key["loss"], key["repeat"])
            found, _ = cut(
                Detections.load(folder / "detections" / f"{name}.npz"), None, score_thresh=tuned.score_thresh
            )
            similarities = encode_detections(
                found, evaluator.data, cm_clip, score_thresh=settings.score_thresh, cache=images
            )
            ((_, changed),) = rescored(found, similarities, benchmark, settings)
            without, metrics = _novel(evaluator.evaluate(found)), _novel(evaluator.evaluate(changed))
            gains = {"gain": metrics["nAP50"] - without["nAP50"], "gain_nAP": metrics["nAP"] - without["nAP"]}
            run.rows.add(row, facts | metrics | gains | {"path_only": source.path_only})
    return run.rows.as_list()


def _clip_facts(clip: LoadedClip, name: str, benchmark: Benchmark, cm_clip: CmClipParams) -> dict:
    """Size of the image tower and accuracy on ground-truth crops of test images, among novel and among all names."""
    test, options = benchmark.test, {"crop_options": cm_clip.crop_options()}
    novel = test.select_classes(benchmark.novel_names)
    return {
        "tower": name,
        "parameters": clip.info.num_parameters,
        "crop_accuracy": crop_accuracy(clip, novel, benchmark.novel_names, **options)["accuracy"],
        "crop_accuracy_all": crop_accuracy(clip, test, test.class_names, **options)["accuracy"],
    }
