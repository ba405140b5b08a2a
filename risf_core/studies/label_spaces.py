"""What may change of CM-CLIP without training: names, temperature, fusion, c and visual prototypes, as one grid."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from risf_core.cm_clip.scores import BACKGROUND, fuse
from risf_core.data.benchmark import Benchmark
from risf_core.data.glyphs import EXTRA_CONCEPTS
from risf_core.detections import Detections
from risf_core.errors import DataError
from risf_core.runs.yaml_files import project_path
from risf_core.study_params import LabelSpaceParams

CHANGES = ("label_space", "temperature", "fusion", "visual", "c")


@dataclass(frozen=True)
class Combination:
    """One way to re-score. ``alpha`` 0 is without visual prototypes; ``temperature`` is as the parameters name it."""

    label_space: str
    temperature: str
    fusion: str
    c: float
    alpha: float = 0.0
    beta: float = 0.0

    def probability(self) -> Combination:
        """What of it decides CLIP's probabilities: combinations that share it share these."""
        return replace(self, fusion="", c=0.0)

    def changed(self, other: Combination) -> set[str]:
        """Which of `CHANGES` set it apart from another."""
        names = {name for name in CHANGES if name != "visual" and getattr(self, name) != getattr(other, name)}
        return names | ({"visual"} if (self.alpha, self.beta) != (other.alpha, other.beta) else set())

    def __str__(self) -> str:
        visual = f"visual α={self.alpha:g} β={self.beta:g}" if self.alpha else "no visual"
        return f"{self.label_space}, T {self.temperature}, {self.fusion}, c={self.c:g}, {visual}"


def temperature_name(temperature: float | str) -> str:
    """As tables have it: 100, learned, fitted."""
    return temperature if isinstance(temperature, str) else f"{temperature:g}"


def paper_combination(params: LabelSpaceParams) -> Combination:
    """The combination that the paper has."""
    temperature = temperature_name(params.cm_clip.temperature)
    return Combination("novel+background", temperature, "arithmetic", params.cm_clip.c)


def combinations(params: LabelSpaceParams) -> list[Combination]:
    """The whole grid; the paper's combination is in it."""
    visual = [(0.0, 0.0), *itertools.product(params.visual_alphas, params.visual_betas)]
    temperatures = [temperature_name(temperature) for temperature in params.temperatures]
    axes = itertools.product(params.label_spaces, temperatures, visual, params.fusions, params.c)
    return [Combination(space, t, fusion, c, *pair) for space, t, pair, fusion, c in axes]


class Vocabulary(NamedTuple):
    """Generic names and those that were left out since they are classes (or stand twice)."""

    names: tuple[str, ...]
    source: str
    removed: tuple[str, ...]


def generic_vocabulary(benchmark: Benchmark, params: LabelSpaceParams) -> Vocabulary:
    """Names of other things: the user's file, else the world's other concepts, else ImageNet's classes.

    ImageNet's names are those that open_clip ships for zero-shot classification.

    Raises:
        DataError: If the user's file has no name but those of classes.
    """
    if params.user_files():
        path = project_path(params.vocabulary)
        listed, source = _names_in(path), path.name
    elif params.vocabulary is None and params.data.source == "pictograms":
        listed, source = EXTRA_CONCEPTS, "other concepts of the pictogram world"
    else:
        from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES

        listed, source = IMAGENET_CLASSNAMES, "ImageNet's class names, of open_clip"
    taken = {name.casefold() for name in (*benchmark.base_names, *benchmark.novel_names, BACKGROUND)}
    names, removed = [], []
    for name in listed:
        (removed if name.casefold() in taken else names).append(name)
        taken.add(name.casefold())
    if not names:
        raise DataError(
            f"{source}: no name is left once the classes are removed. Expected other things' names."
        )
    return Vocabulary(tuple(names), source, tuple(removed))


def _names_in(path: Path) -> tuple[str, ...]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text ({error}). Expected one name a line.") from error
    return tuple(line.strip() for line in lines if line.strip())


def names_of(label_space: str, benchmark: Benchmark, generic: Sequence[str]) -> tuple[str, ...]:
    """The names of a label space such as "novel+generic+background", novel ones first and background last."""
    groups = {"novel": benchmark.novel_names, "base": benchmark.base_names, "generic": generic}
    groups[BACKGROUND] = (BACKGROUND,)
    return tuple(name for group in label_space.split("+") for name in groups[group])


@dataclass(frozen=True, eq=False)
class CellScores:
    """Stored detections with all that re-scores them.

    Attributes:
        detections: D of them.
        rows: bool [D], the n that are re-scored.
        cosines: float32 [n, L], with each of `names`, the C novel ones first.
        affinities: Of the K shots' cache by beta: float32 [n, C].
        names: The L names.
        spaces: Names of each label space, novel ones first.
    """

    detections: Detections
    rows: np.ndarray
    cosines: np.ndarray
    affinities: Mapping[float, np.ndarray]
    names: tuple[str, ...]
    spaces: Mapping[str, tuple[str, ...]]

    def evidence(self, label_space: str, alpha: float, beta: float) -> np.ndarray:
        """What the temperature multiplies: cosines with a label space, novel ones with their visual part: [n, L']."""
        columns = [self.names.index(name) for name in self.spaces[label_space]]
        evidence = self.cosines[:, columns]  # a copy
        if alpha:
            affinity = self.affinities[beta]
            evidence[:, : affinity.shape[1]] += np.float32(alpha) * affinity
        return evidence

    def label_probs(self, combination: Combination, temperature: float) -> np.ndarray:
        """CLIP's probability of each re-scored detection's own label, float32 [n]."""
        evidence = self.evidence(combination.label_space, combination.alpha, combination.beta)
        logits = np.float32(temperature) * evidence
        logits -= logits.max(axis=1, keepdims=True, initial=-np.inf)
        exponentials = np.exp(logits)
        own = self.detections.labels[self.rows]
        return exponentials[np.arange(len(own)), own] / exponentials.sum(axis=1)

    def rescored(self, label_probs: np.ndarray, *, fusion: str, c: float) -> np.ndarray:
        """New scores of all detections, float32 [D]."""
        scores = self.detections.scores.copy()
        scores[self.rows] = fuse(scores[self.rows], label_probs, c=c, fusion=fusion)
        return scores

    def sweep(
        self, grid: Sequence[Combination], temperatures: Mapping[Combination, float]
    ) -> Iterator[np.ndarray]:
        """New scores for each combination in turn, float32 [D].

        Args:
            grid: Combinations; neighbours that differ in c or fusion alone share their probabilities.
            temperatures: The factor for each `Combination.probability`.
        """
        for same, group in itertools.groupby(grid, key=Combination.probability):
            label_probs = self.label_probs(same, temperatures[same])
            for combination in group:
                yield self.rescored(label_probs, fusion=combination.fusion, c=combination.c)
