"""The ways of re-scoring that the latency study sets side by side, each from stored boxes to new scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from risf_core.clip_models import LoadedClip
from risf_core.cm_clip.clip import CMCLIP
from risf_core.cm_clip.encoding import CropEmbeddings, embed_detections
from risf_core.cm_clip.scores import fuse, label_probabilities
from risf_core.data.dataset import DetectionData
from risf_core.data.loader import ImageCache
from risf_core.detections import Detections
from risf_core.measuring import Cost, measured
from risf_core.params import CmClipParams
from risf_core.studies.published_rescoring import PublishedRescoring
from risf_core.study_params import LatencyParams


class Way(NamedTuple):
    """One way of re-scoring, as the rows of the study name it.

    ``approximation``: "none", "share=iou", "share=proposal", "share=object" or "budget=N". ``images_from``: "files"
    (each is read once) or "memory" (the detector has decoded them already).
    """

    way: str
    precision: str
    path: str
    approximation: str = "none"
    images_from: str = "files"

    def options(self) -> dict:
        """What of `embed_detections`' arguments the approximation sets."""
        name, _, value = self.approximation.partition("=")
        return {} if name == "none" else {name: int(value) if name == "budget" else value}


PUBLISHED = Way("published", "fp32", "crop")


def exact_ways(params: LatencyParams) -> list[Way]:
    """The published way, then ours with every box: each precision and path."""
    return [PUBLISHED] + [
        Way("ours", precision, path) for path in params.paths for precision in params.precisions
    ]


def all_ways(params: LatencyParams) -> list[Way]:
    """`exact_ways`, ours on the path of crops with each approximation; all but dense also with the images in memory."""
    names = [f"share={share}" for share in params.shares] + [f"budget={budget}" for budget in params.budgets]
    precisions = params.precisions if "crop" in params.paths else ()
    ways = exact_ways(params)
    ways += [Way("ours", precision, "crop", name) for precision in precisions for name in names]
    return ways + [way._replace(images_from="memory") for way in ways if way.path == "crop"]


class Rescorer:
    """A CLIP in all its ways over one label space; models and texts are made when first asked for and kept.

    Args:
        clip: The CLIP, in float32.
        novel_names: The classes; background competes with them, as published.
        settings: Templates, temperature, c and how crops are made.
    """

    def __init__(self, clip: LoadedClip, novel_names: tuple[str, ...], settings: CmClipParams) -> None:
        self.clip, self.novel_names, self.settings = clip, novel_names, settings
        self._made: dict[tuple[str, str], CMCLIP] = {}
        self._published: PublishedRescoring | None = None

    def published(self) -> PublishedRescoring:
        """The published way."""
        self._published = self._published or PublishedRescoring(self.clip, self.novel_names)
        return self._published

    def ours(self, precision: str, path: str) -> CMCLIP:
        """CM-CLIP in a precision and path."""
        if (precision, path) not in self._made:
            self._made[precision, path] = CMCLIP(
                self.clip.model,
                self.clip.tokenizer,
                self.novel_names,
                templates=self.settings.templates,
                temperature=self.settings.temperature,
                memory_budget_mb=self.settings.memory_budget_mb,
                path=path,
                precision=precision,
                **self.settings.crop_options(),
            )
        return self._made[precision, path]

    def forget(self) -> None:
        """Let go of the models made so far."""
        self._made, self._published = {}, None

    def scores(
        self, way: Way, found: Detections, data: DetectionData, *, cache: ImageCache | None = None
    ) -> tuple[np.ndarray, int]:
        """New scores of stored detections in their order, float32 [D], and how many crops were encoded.

        Boxes that a budget leaves out keep the detector's score.
        """
        settings = self.settings
        if way.way == "published":
            scores = self.published().rescore_detections(
                found, data, c=settings.c, score_thresh=settings.score_thresh, cache=cache
            )
            return scores, int((found.scores > settings.score_thresh).sum())
        clip = self.ours(way.precision, way.path)
        options = {"score_thresh": settings.score_thresh, "cache": cache, **way.options()}
        embeddings = embed_detections(found, data, clip, rescored_classes=self.novel_names, **options)
        return self.blend(clip, embeddings, found, (settings.c,))[0], embeddings.counts["encoded"]

    def blend(
        self, clip: CMCLIP, embeddings: CropEmbeddings, found: Detections, weights: tuple[float, ...]
    ) -> list[np.ndarray]:
        """New scores for each weight of the detector, from embeddings alone."""
        rows, probs = label_probabilities(
            found,
            embeddings.similarities(clip.text_embeds_norm, clip.label_space),
            temperature=clip.temperature,
            label_space=clip.label_space,
            rescored_classes=self.novel_names,
            score_thresh=self.settings.score_thresh,
            not_encoded="keep",
        )
        results = []
        for c in weights:
            scores = found.scores.copy()
            scores[rows] = fuse(scores[rows], probs, c=c)
            results.append(scores)
        return results


class Turns(NamedTuple):
    """What `in_turns` measured of a way: a cost for each round, the new scores [D] and how many crops were encoded."""

    costs: list[Cost]
    scores: np.ndarray
    encoded: int


def in_turns(
    ways: Sequence[Way],
    rescorer: Rescorer,
    found: Detections,
    data: DetectionData,
    *,
    rounds: int,
    device: str = "cpu",
) -> dict[Way, Turns]:
    """Every way on the same detections, ``rounds`` times: in each round all of them, from another one on.

    Before that each does the first two images, since what a process does once is not measured. Dense ways, which take
    long, are in the first round alone. Memory is measured in the first round.
    """
    turns: dict[Way, Turns] = {}
    cache = ImageCache()
    for record in data.images:
        cache.read(record)
    caches = {"files": None, "memory": cache}
    few = found.keep(np.isin(found.image_ids, np.unique(found.image_ids)[:2]))
    for way in ways:
        rescorer.scores(way, few, data, cache=caches[way.images_from])
    for turn in range(rounds):
        first = turn * len(ways) // rounds
        for way in [*ways[first:], *ways[:first]]:
            if turn and way.path == "dense":
                continue
            with measured(device, memory=not turn) as cost:
                scores, encoded = rescorer.scores(way, found, data, cache=caches[way.images_from])
            turns.setdefault(way, Turns([], scores, encoded)).costs.append(cost)
    return turns
