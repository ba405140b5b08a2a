"""The stored cells of fine-tuning runs: what studies re-score without a detector."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from risf_core.data.benchmark import Benchmark, open_benchmark
from risf_core.data.dataset import DetectionData
from risf_core.detections import MAX_DETECTIONS, Detections, Similarities, cut
from risf_core.errors import ParamsError
from risf_core.evaluation import Evaluator
from risf_core.fine_tuning import cell_name
from risf_core.params import ClipSource, CmClipParams, FineTuningParams

METRICS = ("nAP50", "nAP", "nAP75")


@dataclass(frozen=True)
class StoredCell:
    """One fine-tuning: its run's parameters and folder, and the key of its rows."""

    run_id: str
    folder: Path
    tuned: FineTuningParams
    key: dict

    @property
    def name(self) -> str:
        """Stem of the cell's files."""
        return cell_name(self.key["seed"], self.key["arm"], self.key["loss"], self.key["repeat"])

    def detections(self) -> Detections:
        """Its detections that count."""
        return self._cut(None)[0]

    def with_similarities(self) -> tuple[Detections, Similarities]:
        """Its detections that count, with the cosines that its run has stored."""
        return self._cut(Similarities.load(self.folder / "similarities" / f"{self.name}.npz"))

    def _cut(self, similarities: Similarities | None) -> tuple[Detections, Similarities | None]:
        found = Detections.load(self.folder / "detections" / f"{self.name}.npz")
        return cut(found, similarities, score_thresh=self.tuned.score_thresh)


def stored_cells(
    upstreams: Sequence, *, arm: str, loss: str, seeds: Sequence[int] | None = None
) -> list[StoredCell]:
    """The cells of one arm and loss in finished runs of 20_fine_tuning, in the order of K and seed.

    Args:
        upstreams: What `Run.upstreams` returns.
        arm: Which K-shot images.
        loss: Name of the loss.
        seeds: Draws to take; None for all.

    Raises:
        ParamsError: If there is none, one is there twice, or a run is not of the setting fsod.
    """
    names = ("split", "shots", "seed", "loss", "arm", "setting", "repeat")
    cells: list[StoredCell] = []
    for upstream in upstreams:
        tuned = FineTuningParams.model_validate(upstream.record["params"])
        if tuned.setting != "fsod":
            raise ParamsError(f"{upstream.run_id}: studies take the setting fsod alone.")
        for row in upstream.record["rows"]:
            wanted = row["rescoring"] == "none" and row["arm"] == arm and row["loss"] == loss
            if wanted and (seeds is None or row["seed"] in seeds):
                key = {name: row[name] for name in names}
                if any(key == cell.key for cell in cells):
                    raise ParamsError(
                        f"{upstream.run_id}: {key} is in an earlier run, too; name one of them."
                    )
                cells.append(StoredCell(upstream.run_id, upstream.dir, tuned, key))
    if not cells:
        runs = ", ".join(upstream.run_id for upstream in upstreams)
        raise ParamsError(f"no cell of arm {arm} and loss {loss} in {runs}. Expected at least one.")
    return sorted(cells, key=lambda cell: (cell.key["shots"], cell.key["seed"], cell.key["repeat"]))


def check_same_clip(cell: StoredCell, clip: ClipSource, settings: CmClipParams) -> None:
    """ParamsError unless a cell's stored cosines are of this CLIP, of these crops and of all boxes above the cut."""
    theirs = cell.tuned.cm_clip
    same_crops = settings.crop_options() == theirs.crop_options() and settings.templates == theirs.templates
    if cell.tuned.clip != clip or not same_crops or settings.score_thresh < theirs.score_thresh:
        raise ParamsError(
            f"{cell.run_id} has stored cosines of another CLIP, of other crops or above another threshold. Expected "
            "clip and cm_clip as in that run."
        )


class Splits:
    """Benchmarks with their novel test data and evaluator, opened once for many cells."""

    def __init__(self) -> None:
        self._opened: dict = {}

    def get(self, cell: StoredCell) -> tuple[Benchmark, DetectionData, Evaluator]:
        """The benchmark of a cell's split, its test images with novel boxes alone, and their evaluator.

        By COCO's metric on any data; boxes that VOC marks as difficult are ignored like crowd regions.
        """
        key = (cell.tuned.data, cell.tuned.split)
        if key not in self._opened:
            benchmark = open_benchmark(cell.tuned.data, split=cell.tuned.split)
            test = _difficult_ignored(benchmark.test.select_classes(benchmark.novel_names))
            evaluator = Evaluator(test, groups={"novel": benchmark.novel_names}, max_dets=MAX_DETECTIONS)
            self._opened[key] = benchmark, test, evaluator
        return self._opened[key]


def _difficult_ignored(data: DetectionData) -> DetectionData:
    if not any(record.is_difficult.any() for record in data.images):
        return data
    images = (replace(record, is_crowd=record.is_crowd | record.is_difficult) for record in data.images)
    return replace(data, images=tuple(images))


def novel_metrics(metrics: dict) -> dict[str, float | None]:
    """What rows of studies hold of an evaluation."""
    return {name: metrics[name] for name in METRICS}
