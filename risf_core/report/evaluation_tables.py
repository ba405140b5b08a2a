"""The tables of evaluated checkpoints: all, base and novel classes beside published numbers, and each class."""

import math
from collections.abc import Mapping, Sequence

import pandas as pd

from risf_core.report.statistics import notebook_of, sort_cells
from risf_core.report.table_format import RESCORING_NAMES, Table, number, spread

GROUPS = {"all": "", "base": "b", "novel": "n"}  # prefix of each group's metrics
METRICS = ("AP", "AP50", "AP75")


def evaluation_cells(records: Sequence[Mapping]) -> pd.DataFrame:
    """One row for each run of 21_evaluate, re-scoring, group of classes and metric.

    Returns:
        run_id, split, rescoring, classes, metric, value, published, difference, missing ones NaN. A published number
        stands beside the last re-scoring of the paper's that the run has.
    """
    rows = []
    for record in sorted(records, key=lambda record: record["run_id"]):
        if notebook_of(record) != "21_evaluate":
            continue
        published = record["params"].get("published") or {}
        rescorings = {row["rescoring"] for row in record["rows"]}
        compared = "cm_clip" if "cm_clip" in rescorings else "none"
        for row in record["rows"]:
            for group, prefix in GROUPS.items():
                for metric in METRICS:
                    value = row.get(prefix + metric)
                    other = published.get(prefix + metric) if row["rescoring"] == compared else None
                    key = (record["run_id"], row["split"], row["rescoring"], group, metric)
                    rows.append((*key, *(math.nan if v is None else float(v) for v in (value, other))))
    columns = ["run_id", "split", "rescoring", "classes", "metric", "value", "published"]
    data = pd.DataFrame(rows, columns=columns)
    data["difference"] = data["value"] - data["published"]
    return sort_cells(data, ["run_id", "split", "rescoring"])


def evaluation_table(records: Sequence[Mapping]) -> Table:
    """AP, AP50, AP75 of all, base and novel classes of each evaluated checkpoint."""
    data = evaluation_cells(records)
    fields = data[["value", "published", "difference"]].itertuples(index=False, name=None)
    texts = [
        number(value) + ("" if math.isnan(other) else f" ({number(other)}, {number(difference, sign=True)})")
        for value, other, difference in fields
    ]
    keys = ["run_id", "split", "rescoring", "classes"]
    display = spread(data, keys, "metric", texts, heads={name: name for name in METRICS})
    caption = (
        "Checkpoints evaluated on the test images, without training: AP (%) over all classes of the head, and over "
        "its base and novel classes; n/a: the head has none of them. In brackets the published number and ours less "
        "it, where the parameters give one: beside cm_clip if the run has it, else beside none. Each row is one "
        "checkpoint (no interval)."
    )
    return Table("evaluation", caption, data, display.rename(columns={"run_id": "run"}))


def evaluation_classes_table(records: Sequence[Mapping], *, metric: str = "AP50") -> Table:
    """``metric`` of each class of each evaluated checkpoint, one column for each re-scoring."""
    rows = [
        (
            record["run_id"],
            row["split"],
            name,
            row["rescoring"],
            math.nan if values[metric] is None else values[metric],
        )
        for record in sorted(records, key=lambda record: record["run_id"])
        if notebook_of(record) == "21_evaluate"
        for row in record["rows"]
        for name, values in row["per_class"].items()
    ]
    data = pd.DataFrame(rows, columns=["run_id", "split", "class", "rescoring", metric])
    texts = [number(float(value)) for value in data[metric]]
    heads = {name: RESCORING_NAMES.get(name, name) for name in dict.fromkeys(data["rescoring"])}
    display = spread(data, ["run_id", "split", "class"], "rescoring", texts, heads=heads)
    caption = f"{metric} (%) of each class of the evaluated checkpoints. n/a: no test image shows the class."
    return Table("evaluation_classes", caption, data, display.rename(columns={"run_id": "run"}))
