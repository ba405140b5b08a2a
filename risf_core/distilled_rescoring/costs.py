"""What the ways of re-scoring cost an image, beside the detector's own time, all measured in turns in one run.

The detector runs on decoded test images; what is re-scored are the stored detections of one cell, since its box head is
not kept. Rows hold what repeats, the times and the memory go to ``run.environment["costs"]``, by the same key.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from risf_core.cm_clip import rescore
from risf_core.data.loader import read_image
from risf_core.detections import Detections
from risf_core.distilled_rescoring.head import DistilledHead
from risf_core.distilled_rescoring.pairs import ImageView, pool_boxes
from risf_core.measuring import measured
from risf_core.records import Rows

WAYS = ("detector", "cm_clip", "dense", "distilled", "distilled_pooled")
WARM_UP = 3  # images whose time does not count
MIB = 2**20


@dataclass
class Timed:
    """One image: what the detector makes of it, and the detections that are re-scored.

    ``view``: pixels and backbone map; ``batch`` and ``sizes``: the detector's input; ``pooled`` [R, D]: the features of
    its proposals, which the box head reads anyway; ``rows``: the detections' places in ``found``.
    """

    view: ImageView
    batch: Tensor
    sizes: list[tuple[int, int]]
    pooled: Tensor
    found: Detections
    boxes: Tensor


def measure_costs(study) -> None:
    """Rows of part "cost": one for each of `WAYS`, on the cell with the largest K."""
    params, run = study.params, study.run
    times = Rows(run.dir / "cost-times.jsonl")
    keys = {way: {"part": "cost", "way": way} for way in WAYS}
    if params.timed_images and not all(times.done(**key) and run.rows.done(**key) for key in keys.values()):
        cell = max(study.cells, key=lambda one: (one.key["shots"], -one.key["seed"]))
        images, work = _images(study, cell), _work(study)
        facts = {"num_images": len(images), "boxes": sum(len(one.boxes) for one in images), **cell.key}
        measures = _in_turns(images, work, rounds=params.rounds, device=run.device)
        for way, key in keys.items():
            if not times.done(**key):
                times.add(key, measures[way])
            if not run.rows.done(**key):
                run.rows.add(key, facts | {"weights_mib": _weights(study, way)})
    run.environment["costs"] = times.as_list()


@torch.inference_mode()
def _images(study, cell) -> list[Timed]:
    detector, found = study.detector, cell.detections()
    found = found.keep(found.scores > study.params.cm_clip.score_thresh)
    data, images = study.splits.get(cell)[1], []
    for record in data.images[: study.params.timed_images]:
        image = read_image(record.path)
        batch, sizes = detector.batch([detector.resize(image.to(detector.pixel_mean.device))])
        features = detector.backbone(batch)
        pooled = detector.region_features(features, [detector.proposals(features, sizes)[0][0][0]])
        own = found.keep(found.image_ids == record.image_id)
        boxes = torch.from_numpy(own.boxes)
        images.append(Timed(ImageView(image, features, sizes[0]), batch, sizes, pooled, own, boxes))
    return images


def _work(study) -> dict[str, Callable[[Timed], object]]:
    """What each way does with one image, from the decoded picture, or from what the detector leaves, to new scores."""
    detector, head, clip = study.detector, study.heads[study.main], study.clip
    dense = study.cm_clip(path="dense")
    novel = [study.names.index(name) for name in (*study.benchmark.novel_names, study.names[-1])]
    texts = clip.text_embeds_norm[novel].float()
    setting = study.settings[study.params.label_spaces[0], f"head:{study.main}"]

    def blend(found: Detections, embeds_norm: Tensor) -> np.ndarray:
        probs = (setting.temperature * embeds_norm @ texts.T).softmax(-1).cpu().numpy()
        return rescore(found.scores, probs[np.arange(len(found)), found.labels], c=setting.c)

    def by_head(found: Detections, features: Tensor) -> np.ndarray:
        return blend(found, nn.functional.normalize(head(features), dim=1))

    def detect(one: Timed) -> object:
        batch, sizes = detector.batch([detector.resize(one.view.image.to(detector.pixel_mean.device))])
        return detector.detect(batch, sizes, [tuple(one.view.image.shape[-2:])])

    return {
        "detector": detect,
        "cm_clip": lambda one: blend(one.found, clip.embed_boxes(one.view.image, one.boxes)),
        "dense": lambda one: blend(one.found, dense.embed_boxes(one.view.image, one.boxes)),
        "distilled": lambda one: by_head(one.found, one.pooled[torch.from_numpy(one.found.proposals)].cpu()),
        "distilled_pooled": lambda one: by_head(one.found, pool_boxes(detector, one.view, one.boxes)),
    }


@torch.inference_mode()
def _in_turns(
    images: list[Timed], work: dict[str, Callable[[Timed], object]], *, rounds: int, device: str
) -> dict[str, dict]:
    """Milliseconds an image of each way: in each round all images by every way, from another way on.

    An image without detections costs a re-scoring nothing. The share of the detector's time is that of the same round.
    Memory is the peak of one pass over all images, above what was in use, in a pass of its own.
    """
    names, values = list(work), defaultdict(list)

    def go(way: str, some: list[Timed]) -> None:
        for one in some:
            if way == "detector" or len(one.boxes):
                work[way](one)

    for way in names:
        go(way, images[:WARM_UP])
    peaks = {}
    for way in names:
        with measured(device) as cost:
            go(way, images)
        peaks[way] = cost.peak_mib
    for turn in range(rounds):
        first = turn * len(names) // rounds
        for way in [*names[first:], *names[:first]]:
            with measured(device, memory=False) as cost:
                go(way, images)
            values[way].append(1000 * cost.wall_seconds / len(images))
    base = np.array(values["detector"])
    return {
        way: {
            "ms": float(np.median(values[way])),
            "share_of_detector": float(np.median(np.array(values[way]) / base)),
            "peak_mib": peaks[way],
            "ms_rounds": values[way],
            "measured_at": time.strftime("%Y-%m-%d"),
        }
        for way in names
    }


def _weights(study, way: str) -> float:
    """MiB of the weights that a way needs in memory, the detector's own apart."""
    head: DistilledHead = study.heads[study.main]
    modules = {
        "detector": study.detector,
        "cm_clip": study.clip.model.visual,
        "dense": study.clip.model.visual,
        "distilled": head,
        "distilled_pooled": head,
    }
    values = (*modules[way].parameters(), *modules[way].buffers())
    return sum(value.numel() * value.element_size() for value in values) / MIB
