"""The few numbers of distilled re-scoring to look at first, in the form of `publish.headline`."""

import math
from collections.abc import Mapping, Sequence

from risf_core.report.distilled_rows import (
    NOTEBOOK,
    SPACE_TEXTS,
    cost_cells,
    kept_text,
    published_text,
    retention_cells,
    way_cells,
)
from risf_core.report.statistics import notebook_of
from risf_core.report.table_format import difference_text

LARGE_K = 5  # from here on the share that is kept is told for each K
ONCE = ("kept_no_novel", "kept_as_many")  # told at LARGE_K alone, where such a head was trained
NAMED = ("permuted", "head:shuffled", "head:no_novel", "head:as_many", "pooled")


def distilled_numbers(records: Sequence[Mapping]) -> list[tuple]:
    """What is kept of CM-CLIP's gain at K of 5 and more, the controls beside it, and the cost."""
    runs = tuple(sorted(record["run_id"] for record in records if notebook_of(record) == NOTEBOOK))
    reported = [record for record in records if notebook_of(record) == NOTEBOOK and not _is_chosen_on(record)]
    rows = []
    for cell in retention_cells(reported).to_dict("records"):
        if cell["shots"] < LARGE_K:
            continue
        where = f"nAP50, split {cell['split']}, K={cell['shots']}, {SPACE_TEXTS[cell['label_space']]}"
        for name, (how, head) in _kept_texts(reported).items():
            if name in ONCE and (cell["shots"] != LARGE_K or math.isnan(cell[name])):
                continue
            text = kept_text(cell[name], cell[f"{name}_low"], cell[f"{name}_high"])
            quantity = f"share of CM-CLIP's gain that {head} keeps, {how}, {where}"
            rows.append((quantity, text, int(cell["n"]), NOTEBOOK, runs, cell[name]))
    return rows + _gains(reported, runs) + _costs(records, runs)


def _kept_texts(records: Sequence[Mapping]) -> dict[str, tuple[str, str]]:
    """Of each share that compares like with like: how both are set, and the head in words."""
    tuned = "T and c of both chosen in the same way"
    return {
        "kept_chosen": (tuned, "the distilled head"),
        "kept_published": (f"both as published ({published_text(records)})", "the distilled head"),
        "kept_no_novel": (tuned, "a head trained without images that show novel objects"),
        "kept_as_many": (tuned, "a head trained on as many images at random"),
    }


def _is_chosen_on(record: Mapping) -> bool:
    """Whether head, temperature and c were chosen on the record's own split."""
    parts = [row for row in record.get("rows") or [] if row["part"] in ("choice", "cell")]
    splits = {row["split"] for row in parts if row["part"] == "cell"}
    return any(row["part"] == "choice" and row["chosen_on"] in splits for row in parts)


def _gains(records: Sequence[Mapping], runs: tuple[str, ...]) -> list[tuple]:
    """The distilled head's gain over none at K = 5 in the paper's label space, with its controls and variants."""
    cells = way_cells(records)
    cells = cells[(cells["shots"] == LARGE_K) & (cells["label_space"] == "novel+background")]
    rows = []
    for cell in cells[cells["values"] == "chosen"].to_dict("records"):
        if cell["way"] not in ("distilled", *NAMED):
            continue
        name = {"head:shuffled": "shuffled teacher", "permuted": "permuted probabilities"}.get(cell["way"])
        name = name or cell["way"].removeprefix("head:").replace("_", " ")
        gain = cell["gain"], cell["gain_half_width"]
        text = difference_text(*gain, cell["up"], cell["n"], "complete", 0)
        quantity = (
            f"distilled re-scoring, gain over none of {name}, nAP50, split {cell['split']}, K={LARGE_K}"
        )
        rows.append((quantity, text, cell["n"], NOTEBOOK, runs, *gain))
    return rows


def _costs(records: Sequence[Mapping], runs: tuple[str, ...]) -> list[tuple]:
    """The share of the detector's own time, of the proposals' features and of CM-CLIP."""
    rows = []
    for run, own in cost_cells(records).groupby("run_id", sort=True):
        shares = own.set_index("way")["share_of_detector"]
        if {"distilled", "cm_clip"} <= set(shares.index):
            text = f"{100 * shares['distilled']:.1f} %; CM-CLIP: {100 * shares['cm_clip']:.1f} %"
            split = own["split"].iloc[0]
            quantity = (
                f"distilled re-scoring, share of the detector's time, proposal's feature, split {split}"
            )
            rows.append((quantity, text, int(own["num_images"].iloc[0]), NOTEBOOK, (run,)))
    return rows
