"""What the stored detections of paired cells say: change by kind of error, and by image.

A cell's detections are read, re-scored as its row says, and held against the row's own nAP50 before they are used.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from risf_core.comparison import FINE_TUNING, Pairing, plain
from risf_core.data.dataset import DetectionData
from risf_core.detections import Detections, Similarities
from risf_core.error_kinds import KINDS, Judged, judge
from risf_core.errors import DataError, RecordError
from risf_core.ground_truth import GroundTruth
from risf_core.paired_means import group_columns, groups, unit_means
from risf_core.params import CmClipParams
from risf_core.progress import progress
from risf_core.report.statistics import student_interval
from risf_core.selectors import Source, Truths

TOLERANCE = 0.01  # points of nAP50 between a row and its stored detections


class NoDetections(Exception):
    """A cell without what is needed to know its detections; the message says what is missing, and `source` whose."""

    def __init__(self, message: str, source: Source) -> None:
        super().__init__(message)
        self.source = source


@dataclass(frozen=True, eq=False)
class Cell:
    """The detections of a row that count, with their test data."""

    detections: Detections
    truth: GroundTruth
    data: DetectionData
    judged: Judged

    @property
    def ap50(self) -> float:
        """AP50 of the novel classes, in percent."""
        return self.judged.ap50(classes=self.truth.novel_names)


class Cells:
    """Reads cells; the re-scorings of one cell are read at once, and the last few are kept."""

    def __init__(self, truths: Truths) -> None:
        self._truths = truths
        self._kept: dict[tuple, dict[str, Detections]] = {}
        self._selected: dict[tuple, DetectionData] = {}

    def get(self, source: Source, row: Mapping[str, Any]) -> Cell:
        """The cell of a row of 20_fine_tuning.

        Raises:
            NoDetections: If its detections, or the similarities that its re-scoring needs, are not stored here.
            RecordError: If the stored detections do not give the row's nAP50.
        """
        truth = self._truths.get(source, plain(row["split"]))
        try:
            results = self._results(source, row, truth)
        except (KeyError, TypeError, ValueError) as error:  # pydantic's ValidationError is a ValueError
            reason = " ".join(str(error).split())[:200]
            raise RecordError(
                f"{source.run_id} ({source.origin}): its parameters are not valid here: {reason}"
            ) from None
        if row["rescoring"] not in results:
            raise NoDetections(f"no stored similarities for the re-scoring {row['rescoring']}", source)
        detections = results[row["rescoring"]]
        key = (id(truth), detections.class_names)
        if key not in self._selected:
            self._selected[key] = truth.data.select_classes(detections.class_names)
        cell = Cell(detections, truth, self._selected[key], judge(detections, self._selected[key]))
        if not truth.evaluation and abs(cell.ap50 - row["nAP50"]) > TOLERANCE:
            raise RecordError(
                f"{source.run_id} ({source.origin}): the stored detections of seed {row['seed']}, {row['arm']}, "
                f"{row['loss']}, {row['rescoring']} give an nAP50 of {cell.ap50:.2f}, its record has "
                f"{row['nAP50']:.2f}. They are not of one run: repeat it with --force, or ask for the pack anew."
            )
        return cell

    def _results(self, source: Source, row: Mapping[str, Any], truth: GroundTruth) -> dict[str, Detections]:
        from risf_core.fine_tuning import cell_name, results_by_rescoring, settled

        name = cell_name(*(plain(row[key]) for key in ("seed", "arm", "loss", "repeat")))
        files = [source.artifacts / folder / f"{name}.npz" for folder in ("detections", "similarities")]
        if files[0] not in self._kept:
            if not files[0].is_file():
                raise NoDetections("no stored detections", source)
            found, params = Detections.load(files[0]), source.record["params"]
            options, similarities = CmClipParams.model_validate(params["cm_clip"]), None
            if files[1].is_file():
                similarities, options = Similarities.load(files[1]), settled(options, source.artifacts)
            cut = float(params["score_thresh"])
            if len(self._kept) >= 4:
                self._kept.pop(next(iter(self._kept)))
            self._kept[files[0]] = results_by_rescoring(found, similarities, truth, options, score_thresh=cut)
        return self._kept[files[0]]


@dataclass
class CellResults:
    """What the cells of the pairs say.

    Attributes:
        kinds: A row for each pair with detections: its place in ``pairing.pairs``, ``a_ap50``, ``b_ap50``, and for
            each kind of error ``a_<kind>``, ``b_<kind>`` (points of AP50 that fixing it alone would give) and
            ``a_num_<kind>``, ``b_num_<kind>`` (errors an image).
        images: A row for each pair and image that changed: ``pair``, ``split``, ``image_id``, ``a``, ``b``.
        missing: Why a pair has no detections, counted.
        lacking: Origin and id of each run whose stored files a pair lacks, to the run.
        bootstrap: Group (by its place) to low and high of the 95 % interval of B - A over resampled test images, for
            groups of a single pair.
    """

    kinds: pd.DataFrame = field(default_factory=pd.DataFrame)
    images: pd.DataFrame = field(default_factory=pd.DataFrame)
    missing: Counter = field(default_factory=Counter)
    lacking: dict[tuple[str, str], Source] = field(default_factory=dict)
    bootstrap: dict[int, tuple[float, float]] = field(default_factory=dict)


def read_cells(pairing: Pairing, cells: Cells, by: Sequence[str], *, resamples: int = 1000) -> CellResults:
    """Judge the detections of every pair that has some on both sides.

    Args:
        pairing: Pairs of rows.
        cells: Reads them.
        by: Columns that group the pairs.
        resamples: Draws of the bootstrap over images, for groups of a single pair.
    """
    results, kinds, images = CellResults(), [], []
    if pairing.notebook != FINE_TUNING:
        results.missing[f"rows of {pairing.notebook} have no stored detections"] = len(pairing.pairs)
        return results
    for pair in progress(list(pairing.pairs.itertuples()), desc="pairs", total=len(pairing.pairs)):
        try:
            sides = cells_of(pairing, cells, pair)
        except NoDetections as reason:
            results.missing[str(reason)] += 1
            results.lacking[reason.source.origin, reason.source.run_id] = reason.source
            continue
        kinds.append({"pair": pair.Index} | _kinds_of(sides))
        images += _images_of(sides, pair)
    results.kinds, results.images = pd.DataFrame(kinds), pd.DataFrame(images)
    known = set(results.kinds["pair"]) if kinds else set()
    numbered = pairing.pairs.assign(pair=pairing.pairs.index)
    for place, (_, group) in enumerate(groups(pairing, numbered, by)):
        if len(group) == 1 and group["pair"].iloc[0] in known:
            interval = _bootstrap(cells_of(pairing, cells, next(group.itertuples())), resamples)
            results.bootstrap |= {} if interval is None else {place: interval}
    return results


def cells_of(pairing: Pairing, cells: Cells, pair) -> tuple[Cell, Cell]:
    """Both cells of a row of ``pairing.pairs``."""
    places = (pair.a_place, pair.b_place)
    return tuple(
        cells.get(pairing.source(side, place), pairing.row(side, place)) for side, place in enumerate(places)
    )


def _kinds_of(sides: Sequence[Cell]) -> dict[str, float]:
    row = {}
    for name, cell in zip("ab", sides):
        novel = cell.truth.novel_names
        row[f"{name}_ap50"] = cell.ap50
        row |= {f"{name}_{kind}": gain for kind, gain in cell.judged.gains(novel).items()}
        counts = cell.judged.counts(novel)
        row |= {f"{name}_num_{kind}": count / len(cell.data) for kind, count in counts.items()}
    return row


def _images_of(sides: Sequence[Cell], pair) -> list[dict]:
    parts = [cell.judged.contributions(cell.truth.novel_names) for cell in sides]
    key = {"pair": pair.Index, "split": getattr(pair, "split", None)}
    ids = sorted(parts[0].keys() | parts[1].keys())
    return [key | {"image_id": one, "a": parts[0].get(one, 0.0), "b": parts[1].get(one, 0.0)} for one in ids]


def _bootstrap(sides: Sequence[Cell], resamples: int) -> tuple[float, float] | None:
    """The paired interval over test images; None where crowd regions or difficult boxes forbid it."""
    from risf_core.paired_bootstrap import paired_ap50

    names = sides[0].truth.novel_names
    data = sides[0].truth.data.select_classes(names)
    try:
        found = paired_ap50(
            *(_of_classes(cell.detections, names) for cell in sides), data, resamples=resamples
        )
    except DataError:
        return None
    return found.low, found.high


def _of_classes(detections: Detections, names: Sequence[str]) -> Detections:
    """The detections of some classes alone, which are numbered in this order."""
    if detections.class_names == tuple(names):
        return detections
    labels = np.array([names.index(name) if name in names else -1 for name in detections.class_names])
    kept = detections.keep(labels[detections.labels] >= 0)
    columns = [detections.class_names.index(name) for name in names]
    return Detections(
        kept.image_ids,
        kept.boxes,
        kept.scores,
        labels[kept.labels],
        kept.class_scores[:, [*columns, -1]],
        kept.proposals,
        tuple(names),
    )


# --- sums ---------------------------------------------------------------------------------------------------------


def kinds_summary(pairing: Pairing, results: CellResults, by: Sequence[str]) -> pd.DataFrame:
    """A row for each group and kind of error (and for AP50 itself): means of A, B and B - A over draws.

    Columns as in `comparison.summary`, with ``kind`` and the errors an image of either side.
    """
    rows = []
    judged = pairing.pairs.join(results.kinds.set_index("pair"), how="inner") if len(results.kinds) else []
    if not len(judged):
        return pd.DataFrame()
    for key, group in groups(pairing, judged, by):
        for kind in ("ap50", *KINDS):
            sides = group.assign(now=group[f"b_{kind}"] - group[f"a_{kind}"])
            units, _ = unit_means(sides, [f"a_{kind}", f"b_{kind}", "now"], by)
            row = {**key, "kind": "AP50" if kind == "ap50" else kind, "pairs": len(group), "n": len(units)}
            for name, column in (("a", f"a_{kind}"), ("b", f"b_{kind}"), ("difference", "now")):
                interval = student_interval(units[column])
                row |= {name: interval.mean, f"{name}_half_width": interval.half_width}
            for name in "ab":
                row[f"{name}_errors_per_image"] = (
                    None if kind == "ap50" else group[f"{name}_num_{kind}"].mean()
                )
            rows.append(row)
    return pd.DataFrame(rows)


def image_columns(pairing: Pairing, by: Sequence[str]) -> list[str]:
    """Columns that separate the means of images: those of all means, and the split, which has images of its own."""
    return group_columns(pairing, [*by, "split"])


def image_changes(pairing: Pairing, results: CellResults, by: Sequence[str]) -> pd.DataFrame:
    """A row for each group and image that changed: mean contribution in A and B, change, and pairs that rose and fell.

    Groups are in the project's order, within one the largest gain comes first. Means are over all pairs of the group
    that have detections; no mean goes over what keeps pairs apart in the paired table, nor over splits.

    Args:
        pairing: Pairs of rows.
        results: What their cells say.
        by: Columns that group the pairs.

    Returns:
        The group's columns, then ``image_id``, ``a``, ``b``, ``change`` (points of AP50), ``up``, ``down``, ``pairs``.
    """
    if not len(results.images):
        return pd.DataFrame()
    judged = pairing.pairs.assign(pair=pairing.pairs.index).loc[results.kinds["pair"]]
    frames = []
    for key, group in groups(pairing, judged, [*by, "split"]):
        own = results.images[results.images["pair"].isin(group["pair"])]
        own = own.assign(up=own["b"] > own["a"], down=own["b"] < own["a"])
        sums = own.groupby("image_id", as_index=False)[["a", "b", "up", "down"]].sum()
        a, b = sums["a"] / len(group), sums["b"] / len(group)
        frame = sums.assign(a=a, b=b, change=b - a, pairs=len(group))
        frame = frame.sort_values(["change", "image_id"], ascending=[False, True])
        for place, (name, value) in enumerate(key.items()):
            frame.insert(place, name, [value] * len(frame))
        frames.append(frame)
    order = [*image_columns(pairing, by), "image_id", "a", "b", "change", "up", "down", "pairs"]
    return pd.concat(frames, ignore_index=True)[order]


def changed_groups(
    pairing: Pairing, changes: pd.DataFrame, by: Sequence[str]
) -> list[tuple[dict[str, Any], pd.DataFrame]]:
    """The groups of `image_changes` with the values of their columns, in its order."""
    columns = image_columns(pairing, by)
    found = changes.groupby(columns, sort=False, dropna=False) if columns else [((), changes)]
    return [(dict(zip(columns, key, strict=True)), own) for key, own in found]


def pairs_of(pairing: Pairing, key: Mapping[str, Any]) -> list[int]:
    """Places in ``pairing.pairs`` of the pairs that have a group's values."""
    pairs = pairing.pairs
    for name, value in key.items():
        pairs = pairs[pairs[name].isna() if pd.isna(value) else pairs[name] == value]
    return pairs.index.tolist()


def extremes(own: pd.DataFrame, sign: int, count: int) -> pd.DataFrame:
    """The images of a group that gain most (sign 1) or lose most (sign -1), the most changed first."""
    ordered = own if sign > 0 else own.iloc[::-1]
    return ordered[sign * ordered["change"] > 0].head(count)
