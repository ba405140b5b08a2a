"""The few numbers of the studies and of the latency profile to look at first, in the form of `publish.headline`."""

from collections.abc import Mapping, Sequence

import pandas as pd

from risf_core.report.base_class_tables import RESCORED_TEXTS, SPACE_TEXTS, paper_c, rescored_cells
from risf_core.report.control_tables import CONTROL_TEXTS, control_cells, rule_cells
from risf_core.report.distilled_numbers import distilled_numbers
from risf_core.report.label_space_tables import grid_sizes, selection_cells
from risf_core.report.latency_tables import accuracy_cells, way_name
from risf_core.report.missing_rate_tables import ALL, SCORES, missing_rate_cells
from risf_core.report.missing_tables import OWN_RATES, SAME, TREATMENTS, fraction_cells, map_cells
from risf_core.report.open_vocabulary_numbers import open_vocabulary_numbers
from risf_core.report.other_detectors_tables import WAYS, gains, name_of
from risf_core.report.regime_tables import CHOSEN, REGIME_TEXTS, regime_cells
from risf_core.report.statistics import notebook_of
from risf_core.report.table_format import difference_text, interval_text, number

SHOTS = 5  # of the reported cells, as in `publish`
LEAST_CHANGE = 0.2  # of nAP, which an approximation may change at most to be named here


def study_numbers(records: Sequence[Mapping]) -> list[tuple]:
    """Rows of the notebooks that have a record, with the fields of `HeadlineNumber`."""
    return [
        *_label_spaces(records),
        *_controls(records),
        *_rule(records),
        *_base_classes(records),
        *_missing_annotations(records),
        *_regimes(records),
        *_missing_rate(records),
        *_other_detectors(records),
        *_latency(records),
        *open_vocabulary_numbers(records),
        *distilled_numbers(records),
    ]


def _runs(records: Sequence[Mapping], notebook: str) -> tuple[str, ...]:
    return tuple(sorted(record["run_id"] for record in records if notebook_of(record) == notebook))


def _gain(row) -> str:
    return difference_text(row.mean, row.half_width, int(row.up), row.n, "complete", 0)


def _label_spaces(records: Sequence[Mapping]) -> list[tuple]:
    notebook, cells, sizes = "36_label_space", selection_cells(records), grid_sizes(records)
    cells = cells[cells["shots"] == SHOTS]
    rows = []
    for key, own in cells.groupby(["vocabulary", "arm", "loss"], sort=False):
        by_name = {row.what: row for row in own.itertuples()}
        chosen, row = by_name["selected"].combination, by_name["selected − paper"]
        generic = f"; generic names: {key[0]}" if "generic" in chosen else ""
        what = f"{chosen}{generic}, chosen of {sizes.get(key[0], 'several')}, over the paper's CM-CLIP"
        fields = row.n, notebook, _runs(records, notebook), row.mean, row.half_width
        rows.append((f"{what}, nAP50, K={SHOTS}", _gain(row), *fields))
    return rows


def _controls(records: Sequence[Mapping]) -> list[tuple]:
    notebook, cells = "37_rescoring_controls", control_cells(records)
    cells = cells[(cells["shots"] == SHOTS) & (cells["control"] != "none")]
    rows = []
    for row in cells.itertuples():
        name = CONTROL_TEXTS.get(row.control, f"box {row.control}")
        gain = row.gain_mean, row.gain_half_width, int(row.gain_up), row.gain_n, "complete", 0
        quantity = f"gain over no re-scoring of {name}, nAP50, K={row.shots}, {row.arm}"
        fields = row.gain_n, notebook, _runs(records, notebook), row.gain_mean, row.gain_half_width
        rows.append((quantity, difference_text(*gain), *fields))
    return rows


def _rule(records: Sequence[Mapping]) -> list[tuple]:
    notebook, cells = "37_rescoring_controls", rule_cells(records)
    rows = []
    for row in cells[cells["role"] == "fine_tuning"].itertuples():
        quantity = f"mean gain of a class's AP50 over CLIPs good and bad, CM-CLIP {row.policy}"
        text = interval_text(row.gain, row.half_width, sign=True)
        if row.policy != "always":
            paired = difference_text(
                row.to_always, row.to_always_half_width, row.to_always_up, row.n, "complete", 0
            )
            text = f"{text}; less always: {paired}"
        fields = row.n, notebook, _runs(records, notebook), row.gain, row.half_width
        rows.append((quantity, text, *fields))
    return rows


def _base_classes(records: Sequence[Mapping]) -> list[tuple]:
    """gFSOD: the change of novel, base and all AP with the paper's classes and with base classes re-scored, too."""
    notebook, cells = "41_base_classes", rescored_cells(records)
    main_clip = cells["clip"].mode().tolist()[:1]  # the CLIP of most rows
    cells = cells[(cells["shots"] == SHOTS) & (cells["c"] == paper_c(records))]
    rows, named = [], {"n": ("novel",), "b": ("base", "both"), "": ("novel", "both")}
    for row in cells.to_dict("records"):
        for prefix in (prefix for prefix, ways in named.items() if row["rescored"] in ways):
            if row["rescored"] == "novel" and row["label_space"] == "all+background":
                continue  # the wider labels have a study of their own
            fields = (
                row[f"{prefix}change"],
                row[f"{prefix}change_half_width"],
                int(row[f"{prefix}up"]),
                row["n"],
            )
            what = (
                f"{RESCORED_TEXTS[row['rescored']]} classes re-scored among {SPACE_TEXTS[row['label_space']]}"
            )
            quantity = f"gfsod, {what}: change of {prefix}AP, K={SHOTS}, {row['loss']}"
            quantity += "" if row["clip"] in main_clip else f", CLIP {row['clip']}"
            text, runs = difference_text(*fields, "complete", 0), _runs(records, notebook)
            rows.append((quantity, text, row["n"], notebook, runs, *fields[:2]))
    return rows


def _missing_annotations(records: Sequence[Mapping]) -> list[tuple]:
    """bnrl against ce, and each against itself, at the ends of the known share; the regret of the fixed weights."""
    notebook = "33_missing_annotations"
    runs, cells, regrets = _runs(records, notebook), fraction_cells(records), map_cells(records)
    cells = cells[(cells["shots"] == SHOTS) & (cells["treatment"] == "ignored")]
    shares = [share for share in dict.fromkeys(cells["fraction"]) if "last" not in share]
    rows = []
    for row in cells.itertuples():
        is_end = row.fraction in (*shares[:1], *shares[-1:])
        if row.what in ("bnrl − ce", OWN_RATES[2]) and is_end:
            where = f"known share {row.fraction} of the missing annotations"
        elif row.what in ("ce", "bnrl", "bnrl − ce") and row.fraction not in shares:
            where = f"known share {shares[-1]} less {shares[0]}"
        else:
            continue
        quantity = f"{row.what}, nAP50, K={SHOTS}, {where}, {TREATMENTS['ignored']}"
        rows.append((quantity, _gain(row), row.n, notebook, runs, row.mean, row.half_width))
    for row in regrets[regrets["shots"] == SHOTS].itertuples():
        fields = row.regret, row.regret_half_width
        text = SAME if row.is_fixed else difference_text(*fields, int(row.up), row.n, "complete", 0)
        quantity = (
            f"regret of the fixed β, ω_bg, nAP50, K={SHOTS}, known share {row.fraction:g}: less than {row.beta:g}, "
            f"{row.background_weight:g}, chosen on split {row.select_split}"
        )
        rows.append((quantity, text, row.n, notebook, runs, *fields))
    return rows


def _regimes(records: Sequence[Mapping]) -> list[tuple]:
    """BNRL against cross-entropy by what is trained: at the reference rate, and each at its chosen rate."""
    notebook, cells = "39_training_regimes", regime_cells(records)
    rows = []
    for row in cells[cells["difference_n"] > 0].itertuples():
        if row.rate == CHOSEN:
            at = f"at chosen rates ({row.ce_lr:g}, {row.bnrl_lr:g})"
        elif row.ce_lr == row.reference_lr:
            at = f"both at {row.rate}"
        else:
            continue
        quantity = f"BNRL's gain over ce, {REGIME_TEXTS[row.regime]}, {at}, nAP50, K={row.shots}, {row.arm}"
        gain = row.difference, row.difference_half_width
        text = difference_text(*gain, int(row.difference_up), row.difference_n, "complete", 0)
        rows.append((quantity, text, row.difference_n, notebook, _runs(records, notebook), *gain))
    return rows


def _missing_rate(records: Sequence[Mapping]) -> list[tuple]:
    """Bias and error of the estimated missing rate over all planted sets, by kind of score."""
    notebook, cells = "42_missing_rate", missing_rate_cells(records)
    rows = []
    for row in cells[(cells["arm"] == ALL) & cells["rmse"].notna()].itertuples():
        quantity = f"bias of the estimated missing rate, {SCORES[row.score]}, points, K={row.shots}, all planted sets"
        bias = row.bias, row.bias_half_width
        text = f"{interval_text(*bias, sign=True)} (RMSE {number(row.rmse)}; {row.covered:.0f}/{row.n} intervals hold)"
        rows.append((quantity, text, row.n, notebook, _runs(records, notebook), *bias))
    return rows


def _other_detectors(records: Sequence[Mapping]) -> list[tuple]:
    notebook, cells = "35_other_detectors", gains(records)
    cells = cells[(cells["shots"] == "all") & cells["way"].isin(("paper", "selected"))]
    rows = []
    for row in cells.itertuples():
        way = WAYS[row.way][1] if row.way == "paper" else f"c = {row.c:g} chosen on split 2"
        quantity = f"CM-CLIP's gain on {name_of(row.detector)}, {way}, nAP50, mean over K"
        text = difference_text(row.gain, row.gain_half_width, int(row.up), row.n, "complete", 0)
        fields = row.n, notebook, _runs(records, notebook), row.gain, row.gain_half_width
        rows.append((quantity, text, *fields))
    return rows


def _latency(records: Sequence[Mapping]) -> list[tuple]:
    """For each CLIP: ours in each precision with every crop, and the fastest approximation of nearly the same nAP."""
    notebook, cells = "34_latency", accuracy_cells(records)
    rows = []
    ours = cells[(cells["way"] == "ours") & cells["times_faster"].notna()]
    for (clip, images_from), own in ours.groupby(["clip", "images_from"], sort=False):
        is_exact = (own["path"] == "crop") & (own["approximation"] == "none")
        near = own[~is_exact & (own["largest_change"] <= LEAST_CHANGE)]
        best = near.nlargest(1, "times_faster")
        for row in pd.concat([own[is_exact], best]).to_dict("records"):
            source = "both read files" if images_from == "files" else "both have the images in memory"
            way = way_name(row).removesuffix(", images in memory")
            quantity = f"{clip}: times less time than the published way ({source}), {way}"
            change = number(row["change"], decimals=2, sign=True)
            text = f"{number(row['times_faster'], decimals=2)} (change of nAP {change})"
            fields = int(row["n"]), notebook, _runs(records, notebook), row["times_faster"]
            rows.append((quantity, text, *fields))
    return rows
