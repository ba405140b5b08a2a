"""Re-score stored detections by a distilled head: its cosines in the place of CLIP's, and controls of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from risf_core.cm_clip.scores import fuse, label_probabilities
from risf_core.detections import Detections, Similarities
from risf_core.distilled_rescoring_params import Setting
from risf_core.errors import DataError
from risf_core.head_training import RegionFeatures


def proposal_features(regions: RegionFeatures, detections: Detections) -> np.ndarray:
    """The feature of each detection's proposal, which the box head has read already: float32 [D, dim].

    Args:
        regions: Of all test images, not mirrored, from the base model that the detections come from.
        detections: With the index of each one's proposal within its image.

    Raises:
        DataError: If an image or a proposal is not among the regions.
    """
    starts = np.cumsum(regions.counts) - regions.counts
    place = {int(image): m for m, image in enumerate(regions.image_ids)}
    unknown = sorted({*detections.image_ids.tolist()} - place.keys())
    if unknown:
        raise DataError(
            f"region features hold no image {unknown[0]} of the detections: another base model's?"
        )
    own = np.array([place[image] for image in detections.image_ids.tolist()], dtype=np.int64)
    if (detections.proposals >= regions.counts[own]).any():
        raise DataError("a detection names a proposal that its image does not have: other region features.")
    return regions.features[starts[own] + detections.proposals]


def similarities(embeds_norm: np.ndarray, texts_norm: np.ndarray, names: Sequence[str]) -> Similarities:
    """Cosines of all detections' embeddings [D, d] with the texts [L, d] of L names."""
    cosines = np.clip(embeds_norm.astype(np.float32) @ texts_norm.T.astype(np.float32), -1.0, 1.0)
    return Similarities(cosines, np.ones(len(cosines), dtype=bool), tuple(names))


def few_shot_targets(
    texts_norm: np.ndarray, shots_norm: np.ndarray, labels: np.ndarray, columns: Sequence[int], *, beta: float
) -> np.ndarray:
    """Texts moved towards the K shots: ``t'_c = normalise(beta t_c + (1 - beta) mean_k v_ck)``.

    Args:
        texts_norm: [L, d].
        shots_norm: CLIP's embeddings of the shots' crops, [S, d], normalised.
        labels: The class of each shot, int [S].
        columns: For each class its row among the texts.
        beta: Share of the text, in (0, 1].

    Returns:
        float32 [L, d], normalised; texts of names without a shot are as they were.
    """
    targets = texts_norm.astype(np.float32).copy()
    for label, column in enumerate(columns):
        own = shots_norm[labels == label]
        if len(own):
            mixed = beta * targets[column] + (1 - beta) * own.mean(axis=0)
            targets[column] = mixed / max(float(np.linalg.norm(mixed)), 1e-12)
    return targets


def rank_matched(probs: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Probabilities with the order of the first and the values of the second: a quantile map, float32 [N].

    What a blend then gains or loses is owed to the order alone, not to how sharp or flat the probabilities are. Equal
    ones keep their order.

    Args:
        probs: [N].
        reference: [N].
    """
    if probs.shape != reference.shape:
        raise DataError(f"{len(probs)} probabilities to map on {len(reference)}. Expected as many.")
    matched = np.empty(len(probs), dtype=np.float32)
    matched[np.argsort(probs, kind="stable")] = np.sort(reference)
    return matched


class CellScorer:
    """New scores of one cell's detections in one label space.

    Args:
        found: The detections that count.
        label_space: The names that compete, background last.
        novel_names: The classes that are re-scored.
        score_thresh: Detections at or below it keep their score.
    """

    def __init__(
        self,
        found: Detections,
        label_space: Sequence[str],
        novel_names: Sequence[str],
        *,
        score_thresh: float,
    ) -> None:
        self.found, self.label_space, self.novel_names = found, tuple(label_space), tuple(novel_names)
        self.score_thresh = score_thresh

    def probabilities(self, cosines: Similarities, temperature: float) -> tuple[np.ndarray, np.ndarray]:
        """Which detections are re-scored, bool [D], and the probability of each one's own label."""
        return label_probabilities(
            self.found,
            cosines,
            temperature=temperature,
            label_space=self.label_space,
            rescored_classes=self.novel_names,
            score_thresh=self.score_thresh,
        )

    def blend(self, rows: np.ndarray, probs: np.ndarray, c: float) -> np.ndarray:
        """The paper's blend of the detector's scores with probabilities, float32 [D]."""
        scores = self.found.scores.copy()
        scores[rows] = fuse(scores[rows], probs, c=c)
        return scores

    def scores(self, cosines: Similarities, setting: Setting) -> np.ndarray:
        """Softmax and blend, float32 [D]."""
        return self.blend(*self.probabilities(cosines, setting.temperature), setting.c)

    def matched(
        self, cosines: Similarities, setting: Setting, reference: Similarities, theirs: Setting
    ) -> np.ndarray:
        """The order of one set of probabilities with the values of another, blended with the other's c."""
        rows, probs = self.probabilities(cosines, setting.temperature)
        _, values = self.probabilities(reference, theirs.temperature)
        return self.blend(rows, rank_matched(probs, values), theirs.c)

    def permuted(self, cosines: Similarities, setting: Setting, *, seed: int) -> np.ndarray:
        """The same probabilities, each given to another detection: the control of random probabilities."""
        rows, probs = self.probabilities(cosines, setting.temperature)
        return self.blend(rows, np.random.default_rng([seed, len(probs)]).permutation(probs), setting.c)
