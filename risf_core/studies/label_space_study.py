"""The label space study: a grid of re-scorings on stored boxes, chosen on one split and reported on another."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from risf_core.cm_clip import BACKGROUND, CMCLIP, CropEmbeddings, embed_detections
from risf_core.cm_clip.scores import rescored_rows
from risf_core.data.benchmark import Benchmark
from risf_core.data.loader import ImageCache
from risf_core.detections import Detections
from risf_core.errors import ParamsError
from risf_core.fine_tuning import open_clip_source
from risf_core.progress import progress
from risf_core.studies.fitted_temperature import fit_temperature, is_at_bound, label_targets
from risf_core.studies.grid_ap50 import GridAP50
from risf_core.studies.label_spaces import (
    CellScores,
    Combination,
    Vocabulary,
    combinations,
    generic_vocabulary,
    names_of,
    paper_combination,
)
from risf_core.studies.selection import reported_combinations
from risf_core.studies.stored_cells import Splits, StoredCell, novel_metrics, stored_cells
from risf_core.studies.visual_prototypes import cache_affinity, embed_truth
from risf_core.study_params import LabelSpaceParams

ROLES = ("selection", "reported")
CHOSEN = ("paper", "selected", "selected over K")


def study_label_spaces(params: LabelSpaceParams, run) -> dict:
    """The whole study: every combination on every cell, the choice, and what is reported.

    Rows of part "grid" name the file of a cell's AP50s, one for each combination; rows of part "result" hold what is
    reported of a cell. A killed run goes on by cell.

    Returns:
        ``fitted_temperatures`` for each K and which of them are at a bound of the fit, ``vocabulary``, ``chosen`` for
        each K (and over K), and the ``grid``: nAP50, mean over the seeds, of each combination on either split.
    """
    study = _Study(params, run)
    temperatures, grids = {}, defaultdict(dict)
    for shots in study.shots:
        temperatures[shots] = study.temperatures(shots)
        for role in ROLES:
            cells = study.cells_of(role, shots)
            label = f"{len(study.grid)} combinations, K={shots}, {role}"
            grids[role][shots] = np.stack(
                [study.grid_of(role, cell, temperatures[shots]) for cell in progress(cells, desc=label)]
            )
    means = {role: {shots: grid.mean(axis=0) for shots, grid in own.items()} for role, own in grids.items()}
    reported = reported_combinations(study.grid, means["selection"], means["reported"], study.paper)
    for shots in progress(study.shots, desc="what is reported"):
        for role in ROLES:
            for cell in study.cells_of(role, shots):
                own = reported[shots]
                if role == "selection":  # where is chosen, what is chosen alone
                    own = {what: own[what] for what in CHOSEN}
                study.report(role, cell, own, temperatures[shots])
    return study.metrics(temperatures, means, reported)


class _Study:
    """What the steps share: the cells, the CLIP, the names."""

    def __init__(self, params: LabelSpaceParams, run) -> None:
        self.params, self.run = params, run
        seeds = {"selection": params.selection_seeds, "reported": params.seeds}
        options = {"arm": params.arm, "loss": params.loss}
        self.cells = {role: stored_cells(run.upstreams(role), **options, seeds=seeds[role]) for role in ROLES}
        self.shots = _common_shots(self.cells)
        self.grid, self.paper = combinations(params), paper_combination(params)
        self.clip_name, self.clip = open_clip_source(params.clip, run, device=run.device, seed=params.seed)
        self.splits, self.images = Splits(), ImageCache()
        self._clips: dict[tuple[str, ...], tuple[CMCLIP, Vocabulary]] = {}

    def cells_of(self, role: str, shots: int) -> list[StoredCell]:
        return [cell for cell in self.cells[role] if cell.key["shots"] == shots]

    def cm_clip(self, benchmark: Benchmark) -> tuple[CMCLIP, Vocabulary]:
        """CM-CLIP over all names of a split."""
        if benchmark.novel_names not in self._clips:
            vocabulary = generic_vocabulary(benchmark, self.params)
            names = (*benchmark.novel_names, *benchmark.base_names, *vocabulary.names, BACKGROUND)
            settings = self.params.cm_clip
            clip = CMCLIP(
                self.clip.model,
                self.clip.tokenizer,
                benchmark.novel_names,
                label_space=names,
                templates=settings.templates,
                **settings.crop_options(),
            )
            self._clips[benchmark.novel_names] = clip, vocabulary
        return self._clips[benchmark.novel_names]

    def scores_of(self, cell: StoredCell) -> CellScores:
        """A cell's stored detections with all that re-scores them; its crops are encoded once and kept."""
        benchmark, test, _ = self.splits.get(cell)
        clip, vocabulary = self.cm_clip(benchmark)
        found = cell.detections()
        rows = rescored_rows(found, benchmark.novel_names, self.params.cm_clip.score_thresh)
        path = self.run.dir / "embeddings" / f"{_stem(cell)}.npz"
        if not path.exists():
            options = {"score_thresh": self.params.cm_clip.score_thresh, "cache": self.images}
            embed_detections(found, test, clip, **options).save(path)
        stored = CropEmbeddings.load(path)
        embeds_norm = stored.embeds_norm[stored.rows[rows]]  # [n, D]
        shots = benchmark.few_shot(cell.key["shots"], cell.key["seed"], arm=self.params.arm)
        shots_norm, labels = embed_truth(shots, clip, cache=self.images)
        count = {"num_classes": len(benchmark.novel_names)}
        affinities = {
            beta: cache_affinity(embeds_norm, shots_norm, labels, beta=beta, **count)
            for beta in self.params.visual_betas
        }
        spaces = {space: names_of(space, benchmark, vocabulary.names) for space in self.params.label_spaces}
        cosines = embeds_norm @ clip.text_embeds_norm.cpu().numpy().T
        return CellScores(found, rows, cosines, affinities, clip.label_space, spaces)

    def temperatures(self, shots: int) -> dict[Combination, float]:
        """The factor for each combination that decides probabilities; fitted ones on the selection cells of a K."""
        wanted = dict.fromkeys(combination.probability() for combination in self.grid)
        fitted = [combination for combination in wanted if combination.temperature == "fitted"]
        found = {
            combination: self._named_temperature(combination.temperature)
            for combination in wanted
            if combination.temperature != "fitted"
        }
        cells = [(cell, self.scores_of(cell)) for cell in self.cells_of("selection", shots)] if fitted else []
        targets = {space: [] for space in self.params.label_spaces}
        for cell, scores in cells:
            data = self.splits.get(cell)[0].test
            own = scores.detections.keep(scores.rows)
            for space, names in scores.spaces.items():
                targets[space].append(label_targets(own, data, names))
        for combination in fitted:
            space, visual = combination.label_space, (combination.alpha, combination.beta)
            evidence = np.concatenate([scores.evidence(space, *visual) for _, scores in cells])
            found[combination] = fit_temperature(evidence, np.concatenate(targets[space]))
        return found

    def _named_temperature(self, name: str) -> float:
        if name != "learned":
            return float(name)
        return self.clip_temperature()

    def clip_temperature(self) -> float:
        """The CLIP's own: exp(logit_scale)."""
        return float(self.clip.model.logit_scale.detach().exp())

    def grid_of(self, role: str, cell: StoredCell, temperatures: Mapping[Combination, float]) -> np.ndarray:
        """AP50, mean over the novel classes, of each combination on a cell: float64 [G], kept in a file."""
        path = self.run.dir / "grids" / f"{role}-{_stem(cell)}.npy"
        key = {"part": "grid", "role": role, **cell.key}
        if not path.exists():
            scores = self.scores_of(cell)
            judge = GridAP50(scores.detections, self.splits.get(cell)[1])
            values = judge.mean(np.stack(list(scores.sweep(self.grid, temperatures))))
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_name(f".{path.name}")
            with temporary.open("wb") as file:
                np.save(file, values)
            temporary.replace(path)
        if not self.run.rows.done(**key):
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            name = str(path.relative_to(self.run.dir))
            self.run.rows.add(key, {"file": name, "sha256": digest, "combinations": len(self.grid)})
        return np.load(path, allow_pickle=False)

    def report(
        self,
        role: str,
        cell: StoredCell,
        reported: Mapping[str, Combination],
        temperatures: Mapping[Combination, float],
    ) -> None:
        """Rows of what is reported of a cell, each with all metrics."""
        keys = {
            what: {"part": "result", "role": role, **cell.key, "what": what} for what in ("none", *reported)
        }
        if all(self.run.rows.done(**key) for key in keys.values()):
            return
        scores, evaluator = self.scores_of(cell), self.splits.get(cell)[2]
        measured: dict[Combination | None, dict] = {}
        for what, key in keys.items():
            if self.run.rows.done(**key):
                continue
            combination = reported.get(what)
            if combination not in measured:
                measured[combination] = _measure(scores, evaluator, combination, temperatures)
            self.run.rows.add(key, measured[combination])

    def metrics(self, temperatures: Mapping, means: Mapping, reported: Mapping) -> dict:
        """What the record holds beside its rows."""
        fitted = {
            str(shots): {
                f"{one.label_space}, α={one.alpha:g}, β={one.beta:g}": value
                for one, value in own.items()
                if one.temperature == "fitted"
            }
            for shots, own in temperatures.items()
        }
        vocabularies = {
            f"split{cell.tuned.split}": self.cm_clip(self.splits.get(cell)[0])[1]
            for cells in self.cells.values()
            for cell in cells[:1]
        }
        return {
            "clip": self.clip_name,
            "learned_temperature": self.clip_temperature(),
            "fitted_temperatures": fitted,
            "fitted_at_bound": {
                shots: [name for name, value in own.items() if is_at_bound(value)]
                for shots, own in fitted.items()
            },
            "vocabulary": {name: one._asdict() for name, one in vocabularies.items()},
            "splits": {role: sorted({cell.tuned.split for cell in self.cells[role]}) for role in ROLES},
            "paper": str(self.paper),
            "chosen": {str(shots): str(own["selected"]) for shots, own in reported.items()},
            "chosen_over_K": str(reported[self.shots[0]]["selected over K"]),
            "grid": {
                "combinations": [str(combination) for combination in self.grid],
                **{
                    role: {str(shots): np.round(values, 3) for shots, values in own.items()}
                    for role, own in means.items()
                },
            },
        }


def _measure(
    scores: CellScores, evaluator, combination: Combination | None, temperatures: Mapping[Combination, float]
) -> dict:
    """The metrics of a cell with a combination (None: without re-scoring), and what it is."""
    if combination is None:
        return {"combination": "none"} | novel_metrics(evaluator.evaluate(scores.detections))
    temperature = temperatures[combination.probability()]
    label_probs = scores.label_probs(combination, temperature)
    changed = scores.rescored(label_probs, fusion=combination.fusion, c=combination.c)
    found: Detections = scores.detections.with_scores(changed)
    facts = {"combination": str(combination), "temperature": temperature}
    return facts | novel_metrics(evaluator.evaluate(found))


def _stem(cell: StoredCell) -> str:
    return f"split{cell.key['split']}-{cell.key['shots']}shot-{cell.name}"


def _common_shots(cells: Mapping[str, Sequence[StoredCell]]) -> list[int]:
    """The values of K that both roles have.

    Raises:
        ParamsError: If there is none, or a cell has both roles.
    """
    both = [cell.key for cell in cells["selection"] if cell.key in [one.key for one in cells["reported"]]]
    if both:
        raise ParamsError(
            f"the cell {both[0]} is chosen on and reported. Expected other runs (another split) or other seeds."
        )
    shots = [{cell.key["shots"] for cell in cells[role]} for role in ROLES]
    if not shots[0] & shots[1]:
        raise ParamsError(
            f"K is {sorted(shots[0])} where is chosen and {sorted(shots[1])} where is reported."
        )
    return sorted(shots[0] & shots[1])
