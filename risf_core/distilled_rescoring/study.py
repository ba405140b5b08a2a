"""The study of distilled re-scoring: heads, choices and cells, row by row, so that a killed run goes on.

Rows by ``part``: "head" (what was trained), "fidelity" (on annotated test boxes), "detections" (on a cell's), "grid"
(nAP50 of a cell for each temperature and c), "choice" (a way's temperature and c, and where it was chosen), "cell"
(nAP50, nAP, nAP75 of a cell by a way and its values), "cost" (see `costs`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from torch import Tensor

from risf_core.clip_models import LoadedClip
from risf_core.cm_clip import BACKGROUND, CMCLIP, label_space_names
from risf_core.data.benchmark import Benchmark
from risf_core.data.glyphs import EXTRA_CONCEPTS
from risf_core.detections import Detections, Similarities
from risf_core.detector.build import build_detector
from risf_core.detector.checkpoints import load_weights, read_checkpoint
from risf_core.detector.faster_rcnn import FasterRCNN
from risf_core.distilled_rescoring.choice import (
    CHOSEN,
    MATCHED,
    MATCHED_CHOSEN,
    PUBLISHED,
    choose,
    choose_head,
    is_control,
)
from risf_core.distilled_rescoring.costs import measure_costs
from risf_core.distilled_rescoring.fidelity import rank_agreement, text_fidelity, truth_boxes, truth_fidelity
from risf_core.distilled_rescoring.head import DistilledHead
from risf_core.distilled_rescoring.pairs import KINDS, RegionPairs, collect_pairs
from risf_core.distilled_rescoring.rescoring import CellScorer
from risf_core.distilled_rescoring.training import train_head
from risf_core.distilled_rescoring.ways import Ways
from risf_core.distilled_rescoring_params import DistilledRescoringParams, HeadSpec, Setting
from risf_core.errors import ParamsError
from risf_core.fine_tuning import build_cm_clip, open_clip_source, open_context
from risf_core.params import BaseTrainingParams
from risf_core.progress import progress
from risf_core.score_sweeps import ScoreSweep
from risf_core.studies.stored_cells import (
    METRICS,
    Splits,
    StoredCell,
    check_same_clip,
    novel_metrics,
    stored_cells,
)

DEFAULT_TEMPERATURE = 16.0  # of the divergence over texts, for a CLIP without a logit scale
PERMUTATIONS = 3  # of the control of random probabilities


def study_distilled_rescoring(params: DistilledRescoringParams, run) -> list[dict]:
    """All rows of the study; what a killed run has made stays."""
    study = Study(params, run)
    study.train_heads()
    study.judge_heads()
    study.try_settings(study.ways.simple())
    study.choose_main()
    study.try_settings(study.ways.of_main())
    study.note_choices()
    study.add_cells()
    study.judge_detections()
    measure_costs(study)
    return run.rows.as_list()


class Study:
    """One base model, its cells and its heads.

    Attributes:
        cells: The cells whose detections are re-scored.
        names: The names that students and teacher are compared with: novel, base, background.
        texts: Their embeddings, float32 [L, d].
        heads: The trained heads by name.
        main: The name of the head that is chosen.
        settings: The chosen setting of each (label space, way).
    """

    def __init__(self, params: DistilledRescoringParams, run) -> None:
        self.params, self.run, self.splits = params, run, Splits()
        self.base_run = run.upstream("base")
        self.base = BaseTrainingParams.model_validate(self.base_run.record["params"])
        self.cells = self._cells()
        self.context = open_context(self.cells[0].tuned, run)
        self.benchmark: Benchmark = self.splits.get(self.cells[0])[0]
        _, self.loaded = open_clip_source(params.clip, run, device=run.device, seed=params.seed)
        self.clip = self.cm_clip()
        self.names = self.clip.label_space
        self.texts = self.clip.text_embeds_norm.float().cpu().numpy()
        self.temperature = self.clip.learned_temperature or DEFAULT_TEMPERATURE
        self.published = Setting(temperature=self.clip.temperature, c=params.cm_clip.c)
        self.heads: dict[str, DistilledHead] = {}
        self.main = ""
        self.settings: dict[tuple[str, str], Setting] = {}
        self._detector: FasterRCNN | None = None
        self._pairs: RegionPairs | None = None
        self.ways = Ways(self)

    def _cells(self) -> list[StoredCell]:
        params, upstreams = self.params, self.run.upstreams("fine_tuning")
        cells = []
        for loss in params.losses:
            cells += stored_cells(upstreams, arm=params.arm, loss=loss, seeds=params.seeds)
        for cell in cells:
            check_same_clip(cell, params.clip, params.cm_clip)
            if self.run.upstream(cell.tuned.base).run_id != self.base_run.run_id:
                raise ParamsError(
                    f"{cell.run_id} is fine-tuned from another base model than {self.base_run.run_id}, whose features "
                    "the heads read. Expected fine_tuning runs of base alone."
                )
        return cells

    def cm_clip(self, **changes) -> CMCLIP:
        """CM-CLIP over all names, with some of its parameters changed."""
        settings = self.params.cm_clip.model_copy(update=changes)
        loaded: LoadedClip = self.loaded
        return build_cm_clip(loaded, self.benchmark, settings)

    @property
    def detector(self) -> FasterRCNN:
        """The base model, in evaluation mode."""
        if self._detector is None:
            state = read_checkpoint(self.base_run.dir / "model.pth")["model"]
            self._detector = build_detector(self.base.detector, len(self.benchmark.base_names))
            load_weights(self._detector, state, source="base model")
            self._detector.to(self.run.device).eval()
        return self._detector

    @property
    def pairs(self) -> RegionPairs:
        """The regions of base training images."""
        if self._pairs is None:
            options = {"seed": self.params.seed, "folder": self.run.dir / "pairs"}
            self._pairs = collect_pairs(
                self.detector, self.benchmark, self.clip, self.params.regions, **options
            )
        return self._pairs

    def divergence_texts(self, spec: HeadSpec) -> Tensor:
        """Embeddings of the names of a head's divergence, [L', d]; novel names are in it for "all" alone."""
        return (
            self.clip.encode_names(divergence_names(spec.kl_texts, self.benchmark, self.params)).float().cpu()
        )

    def train_heads(self) -> None:
        """Train every head, or load it."""
        for name, spec in self.params.heads.items():
            path = self.run.dir / "heads" / f"{name}.pth"
            if not path.exists() or not self.run.rows.done(part="head", head=name):
                options = {"temperature": self.temperature, "seed": self.params.seed}
                texts = self.divergence_texts(spec)
                head, loss = train_head(self.pairs, spec, self.params.solver, texts, **options)
                head.save(path)
                if not self.run.rows.done(part="head", head=name):
                    self.run.rows.add({"part": "head", "head": name}, self._facts(spec, head, loss))
            self.heads[name] = DistilledHead.load(path)

    def _facts(self, spec: HeadSpec, head: DistilledHead, loss: float) -> dict:
        pairs = self.pairs.images(spec.images, seed=self.params.seed)
        counts = np.bincount(pairs.kinds, minlength=len(KINDS)).tolist()
        return {
            "spec": spec.model_dump(),
            "loss": loss,
            "parameters": head.num_parameters,
            "images": len(np.unique(pairs.image_ids)),
            "images_with_novel": len(np.unique(pairs.image_ids[pairs.has_novel])),
            "regions": dict(zip(KINDS, counts, strict=True)),
        }

    def judge_heads(self) -> None:
        """Fidelity of every head on annotated test boxes of base and of novel classes."""
        groups = {"base": self.benchmark.base_names, "novel": self.benchmark.novel_names}
        keys = [{"part": "fidelity", "head": head, "group": group} for head in self.heads for group in groups]
        keys = [key for key in keys if not self.run.rows.done(**key)]
        if not keys:
            return
        options = {"count": self.params.truth_images, "path": self.run.dir / "truth.npz"}
        truth = truth_boxes(self.detector, self.benchmark, self.clip, **options)
        classes = (*self.benchmark.base_names, *self.benchmark.novel_names)
        for key in keys:
            wanted = np.isin(truth.labels, [classes.index(name) for name in groups[key["group"]]])
            if not wanted.any():
                continue
            own = replace(truth, **{name: value[wanted] for name, value in vars(truth).items()})
            embeds = self.heads[key["head"]].embed(own.features)
            values = truth_fidelity(
                embeds, own, self.texts, self.names, classes, temperature=self.temperature
            )
            self.run.rows.add(key, values)

    def scorer(self, cell: StoredCell, found: Detections, label_space: str) -> CellScorer:
        """The re-scoring of a cell in a label space."""
        names = {"novel_names": self.benchmark.novel_names, "base_names": self.benchmark.base_names}
        space = label_space_names(label_space, **names)
        thresh = self.params.cm_clip.score_thresh
        return CellScorer(found, space, self.benchmark.novel_names, score_thresh=thresh)

    def try_settings(self, ways: list[str]) -> None:
        """Rows of part "grid": every temperature and c of some ways on every cell, where this run chooses itself."""
        if self.params.selection is not None or self.base.split != self.params.select_split:
            return
        for cell in progress(self.cells, desc="temperatures and weights", total=len(self.cells)):
            todo = [
                (space, way)
                for space in self.params.label_spaces
                for way in ways
                if self.ways.takes(way, cell) and not self.run.rows.done(**self._grid_key(cell, space, way))
            ]
            if not todo:
                continue
            found, stored = cell.with_similarities()
            sweep = ScoreSweep(self.splits.get(cell)[2], found, metrics=("AP50",))
            for space, way in todo:
                scorer, cosines = self.scorer(cell, found, space), self.ways.cosines(way, cell, found, stored)
                values = []
                for temperature in self.params.temperatures:
                    rows, probs = scorer.probabilities(cosines, temperature)
                    scores = (scorer.blend(rows, probs, c) for c in self.params.c)
                    values.append([sweep.evaluate(one)["nAP50"] for one in scores])
                self.run.rows.add(self._grid_key(cell, space, way), {"nAP50": values})

    def _grid_key(self, cell: StoredCell, label_space: str, way: str) -> dict:
        return {"part": "grid", **cell.key, "label_space": label_space, "way": way}

    def _selection(self) -> tuple[list[dict], DistilledRescoringParams, int] | None:
        """Rows to choose on, the parameters they were made with, and their split; None: settings are given."""
        if self.params.selection is None:
            if self.base.split == self.params.select_split:
                return self.run.rows.as_list(), self.params, self.base.split
            if self.params.settings:
                return None
            raise ParamsError(
                f"split {self.base.split} is reported, but nothing says what was chosen on split "
                f"{self.params.select_split}. Give selection (a run of this notebook on that split), or settings."
            )
        upstream = self.run.upstream("selection")
        theirs = DistilledRescoringParams.model_validate(upstream.record["params"])
        splits = {row["split"] for row in upstream.record["rows"] if row["part"] == "grid"}
        if splits != {self.params.select_split} or self.base.split in splits:
            raise ParamsError(
                f"selection {upstream.run_id} is of split {sorted(splits)}, and {self.base.split} is reported. "
                f"Expected a run on select_split, {self.params.select_split}, and another split to report."
            )
        return upstream.record["rows"], theirs, self.params.select_split

    def choose_main(self) -> None:
        """The head of the rows to come: of the first label space."""
        chosen_on = self._selection()
        if chosen_on is None:
            given = [way.removeprefix("head:") for way in self.params.settings if way.startswith("head:")]
            self.main = given[0] if given else ""
        else:
            rows, params, _ = chosen_on
            self.main = choose_head(rows, params, label_space=self.params.label_spaces[0])
        if self.main not in self.heads:
            raise ParamsError(
                f"the chosen head is {self.main!r}, but heads are {', '.join(self.heads)}. Expected it among them."
            )

    def note_choices(self) -> None:
        """Rows of part "choice": each way's setting, and on how many cells of which split it was chosen."""
        chosen_on = self._selection()
        for space in self.params.label_spaces:
            for way in [f"head:{self.main}", *self.ways.simple(), *self.ways.of_main()]:
                setting, facts = self._choose(chosen_on, space, way)
                if setting is None:
                    continue
                self.settings[space, way] = setting
                key = {"part": "choice", "label_space": space, "way": way}
                if not self.run.rows.done(**key):
                    facts |= {"is_main": way == f"head:{self.main}", **setting.model_dump()}
                    self.run.rows.add(key, facts)

    def _choose(self, chosen_on, space: str, way: str) -> tuple[Setting | None, dict]:
        own = self.settings.get((space, f"head:{self.main}"))
        if is_control(way, self.params):
            return own, {"chosen_on": None, "mean": None, "cells": 0}
        if chosen_on is None:
            is_clip = way in ("cm_clip", "dense") or way.startswith("targets_clip")
            given = self.params.settings.get(way, None if is_clip else own)
            return given, {"chosen_on": None, "mean": None, "cells": 0}
        rows, params, split = chosen_on
        grid = {"temperatures": params.temperatures, "weights": params.c}
        found = choose(rows, way, label_space=space, **grid)
        if found is None:
            return None, {}
        return found.setting, {"chosen_on": split, "mean": found.mean, "cells": found.cells}

    def add_cells(self) -> None:
        """Rows of part "cell"; "none" is a cell's last."""
        for cell in progress(self.cells, desc="cells", total=len(self.cells)):
            found, stored = cell.with_similarities()
            sweep = ScoreSweep(self.splits.get(cell)[2], found)
            for space in self.params.label_spaces:
                key = {"part": "cell", **cell.key, "label_space": space}
                if self.run.rows.done(**key, way="none", values=PUBLISHED):
                    continue
                scorer = self.scorer(cell, found, space)
                for way in [*self.ways.simple(), *self.ways.of_main()]:
                    if self.ways.takes(way, cell):
                        cosines = self.ways.cosines(way, cell, found, stored)
                        for name, values, scores in self._scores(way, space, scorer, cosines, stored):
                            self._add_cell(sweep, key | {"way": name, "values": values}, scores)
                self._add_cell(sweep, key | {"way": "none", "values": PUBLISHED}, [found.scores])

    def _add_cell(self, sweep: ScoreSweep, key: dict, scores: list[np.ndarray]) -> None:
        """A row with the metrics of one score vector, or their means over several."""
        if not self.run.rows.done(**key):
            judged = [novel_metrics(sweep.evaluate(one)) for one in scores]
            self.run.rows.add(key, {name: float(np.mean([one[name] for one in judged])) for name in METRICS})

    def _scores(
        self, way: str, space: str, scorer: CellScorer, cosines: Similarities, stored: Similarities
    ) -> Iterator[tuple[str, str, list[np.ndarray]]]:
        """Name, values and score vectors of each row that a way's cosines give."""
        is_main, own = way == f"head:{self.main}", self.settings.get((space, way))
        if is_main or way in ("cm_clip", "dense"):
            yield way, PUBLISHED, [scorer.scores(cosines, self.published)]
        if own is not None:
            yield way, CHOSEN, [scorer.scores(cosines, own)]
        if is_main and own is not None:
            drawn = [scorer.permuted(cosines, own, seed=seed) for seed in range(PERMUTATIONS)]
            yield "permuted", CHOSEN, drawn
            yield way, MATCHED, [scorer.matched(cosines, own, stored, self.published)]
            if (theirs := self.settings.get((space, "cm_clip"))) is not None:
                yield way, MATCHED_CHOSEN, [scorer.matched(cosines, own, stored, theirs)]

    def judge_detections(self) -> None:
        """Fidelity of the main head on each cell's detections: best names, divergence, order of the probabilities."""
        space, way = self.params.label_spaces[0], f"head:{self.main}"
        setting = self.settings[space, way]
        for cell in self.cells:
            key = {"part": "detections", **cell.key, "head": self.main}
            if self.run.rows.done(**key):
                continue
            found, stored = cell.with_similarities()
            scorer, cosines = self.scorer(cell, found, space), self.ways.cosines(way, cell, found, stored)
            rows, probs = scorer.probabilities(cosines, setting.temperature)
            _, clip_probs = scorer.probabilities(stored, self.published.temperature)
            theirs = stored.columns(self.names)[rows]
            if not len(theirs):
                continue
            values = text_fidelity(cosines.columns(self.names)[rows], theirs, temperature=self.temperature)
            self.run.rows.add(
                key, values | {"spearman": rank_agreement(probs, clip_probs), "boxes": len(probs)}
            )


def divergence_names(kind: str, benchmark: Benchmark, params: DistilledRescoringParams) -> tuple[str, ...]:
    """The names of the divergence over texts, background last: "base", "generic" or "all" (see `HeadSpec`)."""
    classes = {*benchmark.base_names, *benchmark.novel_names, BACKGROUND}
    others: tuple[str, ...] = ()
    if kind != "base":
        listed = EXTRA_CONCEPTS
        if params.data.source != "pictograms":
            from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES

            listed = tuple(dict.fromkeys(IMAGENET_CLASSNAMES))
        others = tuple(name for name in listed if name not in classes)
    novel = benchmark.novel_names if kind == "all" else ()
    return (*benchmark.base_names, *novel, *others, BACKGROUND)
