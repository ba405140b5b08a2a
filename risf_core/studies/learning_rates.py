"""Each loss at several learning rates, so that no comparison of losses is one of step sizes."""

import itertools
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import replace

import numpy as np

from risf_core.bnrl import get_loss
from risf_core.custom_loss import loss_name
from risf_core.detections import MAX_DETECTIONS, cut
from risf_core.errors import RecordError
from risf_core.fine_tuning import fine_tune, open_context
from risf_core.progress import progress
from risf_core.study_params import LearningRatesParams
from risf_core.voc_evaluation import evaluator_for

METRICS = ("nAP50", "nAP", "nAP75")


def sweep_rates(params: LearningRatesParams, run) -> list[dict]:
    """Fine-tune with every loss at every rate for each seed and arm; AP of the novel classes without re-scoring.

    All else is that of ``params.solver``: the number of steps stays the same.

    Returns:
        A row for each split, K, seed, arm, loss and rate (``lr``): AP in percent, and the loss of the last step.
    """
    context = open_context(params, run)
    options = {"groups": context.groups(), "max_dets": MAX_DETECTIONS}
    evaluator = evaluator_for(context.test, **options, **context.benchmark.evaluation)
    contexts = {
        rate: replace(
            context,
            params=params.model_copy(update={"solver": params.solver.model_copy(update={"lr": rate})}),
        )
        for rate in params.rates
    }
    cells = list(itertools.product(params.seeds, params.arms, params.losses, params.rates))
    for seed, arm, loss, rate in progress(cells, desc="cells", total=len(cells)):
        key = {"split": params.split, "shots": params.shots, "setting": params.setting}
        key |= {"seed": seed, "arm": arm, "loss": loss_name(loss), "lr": rate}
        if run.rows.done(**key):
            continue
        function = get_loss(loss, **params.bnrl.model_dump())
        label = f"fine-tuning with {loss_name(loss)} at {rate:g}"
        found, curve = fine_tune(contexts[rate], function, seed=seed, arm=arm, label=label)
        found, _ = cut(found, None, score_thresh=params.score_thresh)
        metrics = evaluator.evaluate(found)
        run.rows.add(key, {name: metrics[name] for name in METRICS} | {"final_loss": curve[-1]["loss"]})
    return run.rows.as_list()


def mean_by_rate(
    rows: Iterable[Mapping], *, metric: str = "nAP50", arm: str | None = None
) -> dict[str, dict[float, float]]:
    """For each loss the mean of ``metric`` at each rate over all K, seeds and arms (or those of one arm).

    Raises:
        RecordError: If a loss lacks a cell (split, K, seed, arm) at one of the rates: means would not compare.
    """
    values: dict[str, dict[float, dict[tuple, float]]] = defaultdict(lambda: defaultdict(dict))
    for row in rows:
        if arm in (None, row["arm"]):
            cell = (row["split"], row["shots"], row["seed"], row["arm"])
            values[row["loss"]][row["lr"]][cell] = row[metric]
    for loss, by_rate in values.items():
        cells = {frozenset(found) for found in by_rate.values()}
        if len(cells) > 1:
            raise RecordError(
                f"learning rates of {loss}: the rates were not tried on the same draws, K and arms. Expected a row of "
                "each for every rate; repeat the runs of 38_learning_rates with equal seeds, arms and rates."
            )
    return {
        loss: {rate: float(np.mean(list(found.values()))) for rate, found in sorted(by_rate.items())}
        for loss, by_rate in values.items()
    }


def best_rates(records: Iterable[Mapping], *, metric: str = "nAP50") -> dict[str, float]:
    """The rate of each loss with the best mean of ``metric`` over all K, seeds and arms; the smaller in a tie.

    Args:
        records: Records of 38_learning_rates, of the split to choose on.

    Raises:
        RecordError: If there is no row, or the rates of a loss were not tried on the same cells.
    """
    means = mean_by_rate([row for record in records for row in record["rows"]], metric=metric)
    if not means:
        raise RecordError("no row of 38_learning_rates to choose a learning rate from; run it first.")
    return {
        loss: max(by_rate, key=lambda rate, means=by_rate: (means[rate], -rate))
        for loss, by_rate in means.items()
    }


def is_at_edge(rates: Iterable[float], chosen: float) -> bool:
    """Whether the chosen rate is the smallest or the largest that was tried, so that a better one may lie beyond."""
    tried = sorted(rates)
    return len(tried) > 1 and (math.isclose(chosen, tried[0]) or math.isclose(chosen, tried[-1]))
