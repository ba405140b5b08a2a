"""Where 01_explore takes its files from: finished fine-tunings, or the committed weights of ``make demo``.

Where no fine-tuning is finished, these weights make the files for the first test scenes, in seconds.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from risf_core.cm_clip.scores import label_space_names
from risf_core.data.benchmark import Benchmark, open_benchmark
from risf_core.data.dataset import ImageRecord
from risf_core.detections import Detections, Similarities, cut
from risf_core.errors import ParamsError, RecordError
from risf_core.explore import Cell, CellKey, View
from risf_core.params import CmClipParams, ExploreParams, FineTuningParams, RunRef
from risf_core.runs.run_specs import expand
from risf_core.runs.yaml_files import project_path

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Exploration:
    """What there is to choose from.

    Attributes:
        source: Where it comes from, a sentence.
        loaders: For each cell what reads its files; they are read when they are asked for, once.
        num_images: So many test images are offered, the first ones.
    """

    source: str
    loaders: dict[CellKey, Callable[[], Cell]]
    num_images: int
    _opened: dict[CellKey, Cell] = field(default_factory=dict, repr=False)

    def cell(self, key: CellKey) -> Cell:
        """The stored files of a cell.

        Raises:
            ParamsError: If there is no such cell.
        """
        if key not in self.loaders:
            raise ParamsError(f"there is no cell of {key}; {len(self.loaders)} others are there.")
        if key not in self._opened:
            self._opened[key] = self.loaders[key]()
        return self._opened[key]

    def images(self, key: CellKey) -> list[ImageRecord]:
        """The images offered of a cell."""
        return list(self.cell(key).data.images[: self.num_images])

    def summary(self) -> pd.DataFrame:
        """The cells to choose from: a row for each split, K, loss and arm, with their draws."""
        frame = pd.DataFrame(list(self.loaders), columns=CellKey._fields).rename(columns={"shots": "K"})
        seeds = frame.groupby(["split", "K", "loss", "arm"], sort=False)["seed"]
        return seeds.apply(lambda own: ", ".join(map(str, own))).rename("seeds").reset_index()


def open_exploration(params: ExploreParams, run) -> Exploration:
    """The cells of the finished runs; where none is finished, one that the demo's committed weights make.

    Runs that are not finished are counted and named in a warning.

    Args:
        params: Of the notebook.
        run: The notebook's run.

    Raises:
        ParamsError: If a run is not of the setting fsod, has stored no cosines, or has a cell of another.
    """
    loaders: dict[CellKey, Callable[[], Cell]] = {}
    finished, missing = _finished(params.fine_tuning, run)
    benchmarks: dict = {}
    for upstream in finished:
        for key, loader in _cells(upstream, benchmarks):
            if key in loaders:
                raise ParamsError(f"{upstream.run_id}: {key} is in an earlier run, too; name one of them.")
            loaders[key] = loader
    if missing:
        log.warning(
            "%d of %d runs are not finished (or out of date) and are left out; make them: make reproduce. "
            "The first: %s",
            len(missing), len(missing) + len(finished), missing[0],
        )  # fmt: skip
    if loaders:
        source = f"{len(loaders)} fine-tunings of {len(finished)} finished runs."
        return Exploration(source, loaders, params.num_images)
    return demo_exploration(params.num_images, device=run.device)


def _finished(refs: Sequence[RunRef], run) -> tuple[list, list[str]]:
    """The runs of the references that are finished, and for each other the message that says how to make it."""
    finished, missing = [], []
    for spec in [spec for ref in refs for spec in expand(ref)]:
        try:
            finished.append(run.upstream(RunRef(params=str(spec.file), set=spec.overrides)))
        except RecordError as error:
            missing.append(str(error))
    return finished, missing


def _cells(upstream, benchmarks: dict) -> Iterator[tuple[CellKey, Callable[[], Cell]]]:
    """The cells of a finished run, each with what reads it; of repeated trainings the first."""
    tuned = FineTuningParams.model_validate(upstream.record["params"])
    if tuned.setting != "fsod" or tuned.clip is None:
        found = f"setting {tuned.setting}" if tuned.setting != "fsod" else "no stored cosines (clip: null)"
        raise ParamsError(f"fine_tuning: {upstream.run_id} has {found}. Expected setting fsod and a clip.")

    def benchmark() -> Benchmark:
        name = tuned.data, tuned.split
        if name not in benchmarks:
            benchmarks[name] = open_benchmark(tuned.data, split=tuned.split)
        return benchmarks[name]

    for row in upstream.record["rows"]:
        if row["rescoring"] == "none" and row["repeat"] == 0:
            key = CellKey(*(row[name] for name in CellKey._fields))
            yield key, lambda key=key: _read_cell(upstream.dir, key, tuned, benchmark())


def _read_cell(folder: Path, key: CellKey, tuned: FineTuningParams, benchmark: Benchmark) -> Cell:
    from risf_core.fine_tuning import cell_name

    name = f"{cell_name(key.seed, key.arm, key.loss, 0)}.npz"
    found = Detections.load(folder / "detections" / name)
    similarities = Similarities.load(folder / "similarities" / name)
    kept, beside = cut(found, similarities, score_thresh=tuned.score_thresh)
    data = benchmark.test.select_classes(benchmark.novel_names)
    return Cell(kept, beside, data, benchmark.base_names, tuned.cm_clip)


def demo_exploration(num_images: int, *, device: str = "cpu") -> Exploration:
    """The one cell that the demo's committed weights make of the first test scenes: detected and encoded here, once.

    Args:
        num_images: So many scenes are rendered (once) and detected in.
        device: Where detector and CLIP compute.

    Raises:
        CheckpointError: If the weights are not those published.
    """
    from risf_core.cm_clip import encode_detections
    from risf_core.data.pictograms import CLASSES
    from risf_core.demo import OUTPUT, PUBLISHED, first_scenes
    from risf_core.demo_weights import CLIP, DETECTOR, load_half_clip, read_facts
    from risf_core.detecting import detect_images
    from risf_core.prediction import cm_clip_of, open_detector_file

    folder = project_path(PUBLISHED)
    facts = read_facts(folder)
    options, about = CmClipParams.model_validate(facts["cm_clip"]), facts["detector"]
    loaded = open_detector_file(folder / DETECTOR, device=device)
    data = first_scenes(facts | {"num_images": num_images}, project_path(OUTPUT), loaded.class_names)
    base_names = tuple(name for name in CLASSES if name not in data.class_names)
    widest = label_space_names("novel+base+background", novel_names=data.class_names, base_names=base_names)
    clip = cm_clip_of(
        load_half_clip(folder / CLIP, device=device), data.class_names, options, label_space=widest
    )
    found = detect_images(loaded.detector, data)
    similarities = encode_detections(found, data, clip, score_thresh=options.score_thresh)
    kept = cut(found, similarities, score_thresh=options.score_thresh)
    cell = Cell(*kept, data, base_names, options)
    split = facts["data"]["few_shot_splits"][0]
    key = CellKey(split, about["shots"], about["loss"], about["arm"], about["seed"])
    source = (
        "No finished fine-tuning: this is the small detector of `make demo`, and its CLIP, on the first "
        f"{num_images} test scenes. `make reproduce` makes the others."
    )
    return Exploration(source, {key: lambda: cell}, num_images)


def first_view(exploration: Exploration, params: ExploreParams) -> tuple[CellKey, View]:
    """The cell and the image that the parameters ask for.

    Raises:
        ParamsError: If there is none of these; what there is, is listed.
    """
    keys = list(exploration.loaders)
    for name, parameter in zip(CellKey._fields, ("first_split", "shots", "loss", "arm", "few_shot_seed")):
        known = list(dict.fromkeys(getattr(key, name) for key in keys))
        value = getattr(params, parameter)
        if value is None:
            value = max(known) if name == "shots" else known[0]
        elif value not in known:
            choices = ", ".join(map(str, known))
            raise ParamsError(f"{parameter}: {value}, but of what was chosen before it there is {choices}.")
        keys = [key for key in keys if getattr(key, name) == value]
    (key,) = keys
    images = exploration.images(key)
    if params.image is not None and params.image >= len(images):
        raise ParamsError(
            f"image: {params.image}, but the first {len(images)} test images are offered, from 0 on; raise num_images."
        )
    cell = exploration.cell(key)
    if params.image is None:
        image_id = most_changed(cell, images, params.c, params.label_space)
    else:
        image_id = images[params.image].image_id
    return key, cell.view(image_id, params.label_space)


def most_changed(cell: Cell, images: Sequence[ImageRecord], c: float, label_space: str) -> int:
    """Id of the image with an object on which a score changes most at c; the first image where none changes."""
    changes = np.abs(cell.scores([c], label_space)[0] - cell.detections.scores)
    with_object = [record.image_id for record in images if not record.is_crowd.all()]
    changes[~np.isin(cell.detections.image_ids, with_object)] = -1.0
    if changes.max(initial=-1.0) <= 0:
        return images[0].image_id
    return int(cell.detections.image_ids[changes.argmax()])
