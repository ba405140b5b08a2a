"""How the losses compare as annotations go missing: the annotated share, BNRL's two weights, and BNRL's parts.

Everything is trained on cached features of frozen layers. Learning rates of the losses come from 38_learning_rates;
what else is chosen is chosen on one base model's split and reported on another's.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from typing import NamedTuple

from torch import Tensor

from risf_core.bnrl import get_loss
from risf_core.data.benchmark import Benchmark
from risf_core.data.dataset import DetectionData
from risf_core.detections import MAX_DETECTIONS, Detections, cut
from risf_core.detector.roi_heads import BoxPredictor
from risf_core.errors import ParamsError
from risf_core.fine_tuning import open_context
from risf_core.head_training import detect_from_features, label_regions
from risf_core.params import BaseTrainingParams
from risf_core.progress import progress
from risf_core.studies.annotated_share import CrowdedDraw, Regions, object_probabilities, train_on_regions
from risf_core.studies.learning_rates import best_rates, mean_by_rate
from risf_core.studies.novel_errors import error_rates
from risf_core.studies.share_choices import choose
from risf_core.study_params import MissingAnnotationsParams
from risf_core.voc_evaluation import evaluator_for

METRICS = ("nAP50", "nAP", "nAP75")
SELECTION, REPORTED = "selection", "reported"  # roles: what is chosen on, and what is reported
CONTROL = "control"  # reported, too: each loss at the learning rate that is best for images such as these
IGNORED, LABELLED = "ignored", "labelled"  # treatments: how a known object counts in training


class Recipe(NamedTuple):
    """A loss with its two weights and its learning rate; ``beta`` None for losses without BNRL's other terms."""

    loss: str
    beta: float | None
    background_weight: float
    lr: float


def recipe(loss: str, params: MissingAnnotationsParams, lr: float) -> Recipe:
    """A loss, or one of BNRL's parts, with the weights of ``params.bnrl``.

    ``focal``: BNRL's first term alone (beta 0, background weight 1); ``focal_mirror``: with the second term, which
    punishes the other classes; ``focal_omega``: the first term with BNRL's background weight; ``bnrl``: all.

    Raises:
        ParamsError: If there is no such loss.
    """
    beta, weight = fixed_point(params)
    weights = {
        "ce": (None, 1.0),
        "ce_bg": (None, weight),
        "focal": (0.0, 1.0),
        "focal_mirror": (beta, 1.0),
        "focal_omega": (0.0, weight),
        "bnrl": (beta, weight),
    }
    if loss not in weights:
        raise ParamsError(f"there is no loss {loss!r} here; choose from {', '.join(weights)}.")
    return Recipe(loss, *weights[loss], lr)


def fixed_point(params: MissingAnnotationsParams) -> tuple[float, float]:
    """BNRL's beta and background weight as the paper has them."""
    bnrl = params.bnrl
    return round(1 - bnrl.alpha, 6) if bnrl.beta is None else bnrl.beta, bnrl.background_weight


class _Side:
    """One base model with its data, the images of one draw after another, and the test images."""

    def __init__(self, params: MissingAnnotationsParams, run, role: str) -> None:
        ref, self.role = params.base if role == REPORTED else params.select_base, role
        base = BaseTrainingParams.model_validate(run.upstream(ref).record["params"])
        seeds = params.seeds if role == REPORTED else params.select_seeds
        self.params, self.seeds, self.split = params, seeds, base.split
        self.context = open_context(params.few_shot_params(base.split, role=role), run)
        options = {"groups": self.context.groups(), "max_dets": MAX_DETECTIONS}
        self.evaluator = evaluator_for(self.context.test, **options, **self.context.benchmark.evaluation)
        self.test_regions = self.context.test_regions()
        self._draw: CrowdedDraw | None = None

    @property
    def benchmark(self) -> Benchmark:
        return self.context.benchmark

    def draw(self, seed: int) -> CrowdedDraw:
        """A draw's images; the last one is kept."""
        if self._draw is None or self._draw.seed != seed:
            some, all_ = self.params.arms[:2]
            data = (self.context.few_shot(seed, arm) for arm in (some, all_))
            regions = (self.context.train_regions(seed, arm) for arm in (some, all_))
            self._draw = CrowdedDraw(*data, *regions, seed)
        return self._draw

    def images(self, seed: int, treatment: str, share: float | None) -> tuple[DetectionData, Regions]:
        """Training images and their labelled regions; a treatment that is an arm has its images as they are."""
        if treatment in (IGNORED, LABELLED):
            return getattr(self.draw(seed), treatment)(share)
        data = self.context.few_shot(seed, treatment)
        return data, label_regions(self.context.train_regions(seed, treatment), data)

    def train(
        self, tried: Recipe, seed: int, treatment: str, share: float | None
    ) -> tuple[Detections, BoxPredictor, dict[str, float]]:
        """Fine-tune the box head; the detections that count, the head, and what was trained on."""
        data, regions = self.images(seed, treatment, share)
        training_seed = self.context.training_seed(seed)
        detector = self.context.detector(training_seed, loss_of(tried, self.params))
        solver = self.params.solver.model_copy(update={"lr": tried.lr})
        desc = f"{tried.loss}, seed {seed}, {treatment}" + ("" if share is None else f" {share:g}")
        curve = train_on_regions(detector, data, regions, solver, seed=training_seed, desc=desc)
        head = detector.roi_heads.box_predictor
        found = detect_from_features(head, self.test_regions, self.context.class_names)
        found, _ = cut(found, None, score_thresh=self.params.score_thresh)
        facts = {"labels": sum(data.counts().values()), "final_loss": curve[-1]["loss"]}
        sizes = [len(region.rois.labels) for region in regions.values()]
        return found, head, facts | {"images": len(data), "candidates": sum(sizes) / len(sizes)}


def loss_of(tried: Recipe, params: MissingAnnotationsParams) -> Callable[[Tensor, Tensor], Tensor]:
    """The loss function of a recipe; letters that it does not name are those of ``params.bnrl``."""
    hyper = params.bnrl.model_dump() | {"background_weight": tried.background_weight}
    if tried.beta is None:
        return get_loss(tried.loss, **hyper)
    return get_loss("bnrl", **hyper | {"beta": tried.beta})


def run_missing_annotations(params: MissingAnnotationsParams, run) -> list[dict]:
    """All trainings of the study, a row each; a killed run goes on by row.

    Returns:
        Rows with the keys role ("selection", "reported", "control"), split, shots, seed, treatment ("ignored",
        "labelled", or an arm), fraction (the known share of the further objects; None for an arm), loss, beta,
        background_weight, lr.
        Values: AP in percent, `error_rates` on the test images, `object_probabilities` on the training images, what
        was trained on, and is_fixed: whether the weights are those of ``params.bnrl``.
    """
    rates = chosen_rates(params, run)
    reported, selection = _Side(params, run, REPORTED), _Side(params, run, SELECTION)
    if reported.split == selection.split and set(reported.seeds) & set(selection.seeds):
        raise ParamsError(
            f"base and select_base are both of split {reported.split}, and seeds and select_seeds share a draw. "
            "Expected to choose on other draws than are reported: take a base model of another split."
        )
    plain = [recipe(loss, params, rates[loss]) for loss in params.losses]
    _work(run, reported, _curves(plain, params.fractions), "annotated share")
    arms = [(own, arm, None) for own in plain for arm in params.arms[2:]]
    _work(run, reported, arms, "other images")
    own = [
        (recipe(loss, params, rate), IGNORED, share)
        for share, of_share in own_rates(params, run).items()
        for loss, rate in of_share.items()
    ]
    _work(run, reported, own, "rates of their own", role=CONTROL)

    parts = [recipe(part, params, lr) for part in params.components for lr in params.component_rates]
    _work(run, selection, [(own, IGNORED, 0.0) for own in parts], "learning rates of the parts")
    chosen = choose(_rows(run, SELECTION, params.components), by=["loss"], among=["lr"])
    parts = [recipe(part, params, *chosen[part,]) for part in params.components]
    cells = itertools.product(parts, [IGNORED], params.component_fractions)
    _work(run, reported, cells, "parts of the loss")

    points = itertools.product(params.betas, params.background_weights)
    grid = [Recipe("bnrl", *point, rates["bnrl"]) for point in points]
    _work(run, selection, itertools.product(grid, [IGNORED], params.fractions), "weights")
    chosen = choose(_rows(run, SELECTION, ["bnrl"]), by=["fraction"], among=["beta", "background_weight"])
    best = [(Recipe("bnrl", *chosen[share,], rates["bnrl"]), IGNORED, share) for share in params.fractions]
    _work(run, reported, best, "chosen weights")
    return run.rows.as_list()


def chosen_rates(params: MissingAnnotationsParams, run) -> dict[str, float]:
    """The learning rate of each loss, as the runs of 38_learning_rates choose it.

    Raises:
        ParamsError: If they lack one of the losses.
    """
    rates = best_rates([upstream.record for upstream in run.upstreams("rates")])
    if missing := [loss for loss in (*params.losses, "bnrl") if loss not in rates]:
        raise ParamsError(
            f"rates: the runs of 38_learning_rates tried {', '.join(sorted(rates))}, but not {missing[0]}. Add it to "
            "their losses, or leave it out of losses here."
        )
    return rates


def own_rates(params: MissingAnnotationsParams, run) -> dict[float, dict[str, float]]:
    """For the smallest and the largest known share the rate of ce and bnrl that is best on images such as these.

    A rate that is chosen over all kinds of images may suit one loss at one end of the curve and not at the other. With
    nothing known images are those of the first arm; with all known no object is a false negative, as in the third arm
    (or, where there is none, the second).

    Returns:
        ``{share: {loss: learning rate}}``, without what the runs of 38_learning_rates did not try.
    """
    rows = [row for upstream in run.upstreams("rates") for row in upstream.record["rows"]]
    without_missing = params.arms[2] if len(params.arms) > 2 else params.arms[1]
    ends = {min(params.fractions): params.arms[0], max(params.fractions): without_missing}
    found = {}
    for share, arm in ends.items():
        means = mean_by_rate(rows, arm=arm)
        losses = [loss for loss in ("ce", "bnrl") if loss in params.losses and loss in means]
        found[share] = {
            loss: min(means[loss], key=lambda rate: (-means[loss][rate], rate)) for loss in losses
        }
    return found


def _curves(recipes: list[Recipe], fractions: Iterable[float]) -> list[tuple[Recipe, str, float]]:
    """Each recipe at each share with known objects ignored, and labelled; with none known both are the same."""
    return [
        (own, treatment, share)
        for own in recipes
        for share in fractions
        for treatment in (IGNORED, LABELLED)
        if share > 0 or treatment == IGNORED
    ]


def _rows(run, role: str, losses: Iterable[str]) -> list[dict]:
    return [row for row in run.rows.as_list() if row["role"] == role and row["loss"] in losses]


def _work(
    run, side: _Side, cells: Iterable[tuple[Recipe, str, float | None]], desc: str, *, role: str = ""
) -> None:
    """Train every cell (recipe, treatment, share) for each seed of the side, and add its row; finished ones stay."""
    todo = list(itertools.product(side.seeds, cells))
    for seed, (tried, treatment, share) in progress(todo, desc=desc, total=len(todo)):
        key = {"role": role or side.role, "split": side.split, "shots": side.params.shots, "seed": seed}
        key |= {"treatment": treatment, "fraction": share, **tried._asdict()}
        if run.rows.done(**key):
            continue
        same = key | {"role": side.role}
        if run.rows.done(**same):  # the control's rate is the chosen one
            stored = run.rows.get(**same)
            run.rows.add(key, {name: stored[name] for name in stored.keys() - key.keys()})
            continue
        found, head, facts = side.train(tried, seed, treatment, share)
        metrics = side.evaluator.evaluate(found)
        names = {"test": side.benchmark.test, "novel_names": side.benchmark.novel_names}
        values = {name: metrics[name] for name in METRICS} | error_rates(found, **names) | facts
        values |= object_probabilities(head, side.draw(seed))
        run.rows.add(key, values | {"is_fixed": tried[:3] == recipe(tried.loss, side.params, tried.lr)[:3]})
