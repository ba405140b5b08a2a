"""The missing rate of K-shot images by cross-fitted fine-tuning, and its precision on planted truth.

Each image is judged by a detector that was fine-tuned on the others, so that none has learned that the image's
unannotated objects are background. The estimate itself: `risf_core.studies.missing_estimate`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from risf_core.bnrl import get_loss
from risf_core.cm_clip import CMCLIP, apply_cm_clip, encode_detections, label_space_names
from risf_core.data.dataset import DetectionData, ImageRecord
from risf_core.data.loader import ImageCache
from risf_core.detections import Detections, Similarities
from risf_core.errors import ParamsError
from risf_core.fine_tuning import FewShotContext, build_cm_clip, note_clip, open_clip_source, open_context
from risf_core.head_training import RegionFeatures, detect_from_features, train_box_head
from risf_core.progress import progress
from risf_core.studies.missing_estimate import (
    Places,
    bootstrap,
    choose_settings,
    estimate,
    places_of,
    point_at,
)
from risf_core.study_params import MissingRateParams

DETECTOR, CM_CLIP = "detector", "cm_clip"


class Planted(NamedTuple):
    """K-shot images of which it is known, or not (None), which objects are not annotated."""

    arm: str
    dropped: float | None  # share of the annotations left out here; None: as drawn
    data: DetectionData
    hidden: dict[int, np.ndarray] | None  # image id to boxes [H, 4]


# ------------------------------------------------------------ cross-fitting


def folds_of(data: DetectionData, folds: int, *, seed: int) -> list[np.ndarray]:
    """The positions of the images in each fold; the images of a class are spread over the folds.

    Raises:
        ParamsError: If there are fewer than two images: none would be left to train on.
    """
    if len(data) < 2:
        raise ParamsError(f"{data.name}: {len(data)} images; cross-fitting needs at least two.")
    rng = np.random.default_rng([seed, len(data)])
    first = np.array([record.labels[~record.is_crowd][0] for record in data.images])
    order = np.lexsort((rng.random(len(data)), first))  # by the class of the first box, within it by chance
    folds = min(folds, len(data))
    return [order[fold::folds] for fold in range(folds)]


def regions_of(regions: RegionFeatures, image_ids: Sequence[int]) -> RegionFeatures:
    """The regions of these images as they are, not mirrored, without annotated boxes: what detection reads."""
    rows = np.flatnonzero(np.isin(regions.image_ids, image_ids) & ~regions.flipped)
    ends = regions.counts.cumsum()
    places = [np.arange(ends[row] - regions.counts[row], ends[row]) for row in rows]
    index = np.concatenate(places) if places else np.empty(0, dtype=np.int64)
    per_image = ("image_ids", "flipped", "sizes", "output_sizes", "counts")
    return replace(
        regions,
        **{name: getattr(regions, name)[rows] for name in per_image},
        boxes=regions.boxes[index],
        features=regions.features[index],
        gt_counts=np.zeros(len(rows), dtype=regions.gt_counts.dtype),
        gt_boxes=regions.gt_boxes[:0],
        gt_features=regions.gt_features[:0],
    )


def held_out_detections(
    context: FewShotContext, data: DetectionData, regions: RegionFeatures, *, seed: int, folds: int, loss: str
) -> Detections:
    """Detections in every image by a box head that was trained on the images of the other folds.

    Args:
        context: The base model; its parameters hold the solver.
        data: The K-shot images with the boxes that count as annotated.
        regions: Region features of a set that holds them.
        seed: Of the folds and of training.
        folds: Number of folds; at most one for each image.
        loss: Name of the loss.
    """
    parts = []
    for fold, held_out in enumerate(folds_of(data, folds, seed=seed)):
        kept = tuple(record for place, record in enumerate(data.images) if place not in set(held_out))
        training_seed = context.training_seed(seed, fold)
        detector = context.detector(training_seed, get_loss(loss))
        options = {"seed": training_seed, "desc": f"fold {fold} of seed {seed}"}
        train_box_head(detector, replace(data, images=kept), regions, context.params.solver, **options)
        own = regions_of(regions, [data.images[place].image_id for place in held_out])
        parts.append(detect_from_features(detector.roi_heads.box_predictor, own, data.class_names))
    columns = ("image_ids", "boxes", "scores", "labels", "class_scores", "proposals")
    arrays = {name: np.concatenate([getattr(part, name) for part in parts]) for name in columns}
    return Detections(**arrays, class_names=data.class_names)


# ------------------------------------------------------------ planted truth


def planted_sets(context: FewShotContext, params: MissingRateParams, seed: int) -> Iterator[Planted]:
    """The arms of a draw with what is not annotated in them, and the arm full with shares of its annotations left out.

    An image that is left without a box is no K-shot image, and is left out.
    """
    full = context.few_shot(seed, "full")
    objects = {record.path: record for record in full.images}
    for arm in params.arms:
        data = context.few_shot(seed, arm)
        hidden = {
            record.image_id: _not_in(objects[record.path].boxes, record.boxes)
            if record.path in objects
            else np.empty(
                (0, 4), np.float32
            )  # the arm kshot has pictures of its own, without further objects
            for record in data.images
        }
        yield Planted(arm, None, data, hidden)
    for share in params.dropped_shares:
        yield Planted("full", share, *_leave_out(full, share, seed=seed))


def own_set(context: FewShotContext, seed: int) -> Planted:
    """A draw of the user's images as it is; what nobody annotated is known where the arm clean can be made."""
    data, hidden = context.few_shot(seed, "kshot"), None
    if "clean" in context.benchmark.arms:
        everything = {record.path: record.boxes for record in context.few_shot(seed, "clean").images}
        hidden = {record.image_id: _not_in(everything[record.path], record.boxes) for record in data.images}
    return Planted("kshot", None, data, hidden)


def first_draw(params: MissingRateParams, run) -> tuple[DetectionData, dict[int, np.ndarray] | None]:
    """The images that the rows of part "image" are about, and what is not annotated in them, where that is known."""
    split = run.upstream(params.base).record["params"]["split"]
    role = "own" if params.select_base is None else "reported"
    context = open_context(params.few_shot_params(split, role=role), run)
    seed = params.seeds[0]
    case = own_set(context, seed) if role == "own" else next(planted_sets(context, params, seed))
    return case.data, case.hidden


def _not_in(boxes: np.ndarray, known: np.ndarray) -> np.ndarray:
    """The boxes [N, 4] that are not among the known ones [M, 4]."""
    is_known = (np.abs(boxes[:, None] - known[None]).max(axis=2, initial=0.0) < 0.01).any(axis=1)
    return boxes[~is_known]


def _leave_out(
    data: DetectionData, share: float, *, seed: int
) -> tuple[DetectionData, dict[int, np.ndarray]]:
    """Data without a random share of its boxes, and the boxes left out by image id."""
    rng, images, hidden = np.random.default_rng([seed, 42]), [], {}
    order = rng.permutation(sum(len(record.labels) for record in data.images))
    is_kept = order >= round(share * len(order))  # larger shares leave out what smaller ones do, and more
    start = 0
    for record in data.images:
        mask = is_kept[start : start + len(record.labels)]
        start += len(record.labels)
        if mask.any():
            images.append(record.keep(mask))
            hidden[record.image_id] = record.boxes[~mask]
    return replace(data, images=tuple(images)), hidden


# ------------------------------------------------------------ the study


def measure_missing_rate(params: MissingRateParams, run) -> list[dict]:
    """Choose the settings on planted truth of one split, then estimate, with truth on another split or without any.

    Returns:
        Rows of part "cell" (one for each role, seed, arm, share left out and kind of score), of part "setting" (what
        was chosen for each kind of score) and of part "image" (the places of the first draw). Roles: "selection",
        "reported" (planted as well) and "own" (the images of ``data`` as they are, where ``select_base`` is null).
    """
    settings = {name: values.model_dump() for name, values in params.settings.items()}
    if params.select_base is not None:
        _Side(params, run, "selection").fill(None)
        cells = [row for row in run.rows.as_list() if row["part"] == "cell" and row["role"] == "selection"]
        settings = choose_settings(cells)
        for score, chosen in settings.items():
            if not run.rows.done(part="setting", score=score):
                run.rows.add({"part": "setting", "score": score}, chosen)
    _Side(params, run, "own" if params.select_base is None else "reported").fill(settings)
    return run.rows.as_list()


@dataclass
class _Side:
    """The cells of one role."""

    params: MissingRateParams
    run: object
    role: str

    def __post_init__(self) -> None:
        base = self.params.select_base if self.role == "selection" else self.params.base
        split = self.run.upstream(base).record["params"]["split"]
        self.context = open_context(self.params.few_shot_params(split, role=self.role), self.run)
        self.clip: CMCLIP | None = None
        if self.params.clip is not None:
            _, loaded = open_clip_source(
                self.params.clip, self.run, device=self.run.device, seed=self.params.seed
            )
            self.clip = build_cm_clip(loaded, self.context.benchmark, self.params.cm_clip)
            note_clip(self.clip, self.run)
        self.images = ImageCache()
        self.kinds = (DETECTOR,) if self.clip is None else (DETECTOR, CM_CLIP)

    def fill(self, settings: dict | None) -> None:
        """A row for each cell and kind of score; a killed run goes on by row."""
        seeds = self.context.params.seeds
        for seed in progress(seeds, desc=f"{self.role} draws", total=len(seeds)):
            for number, case in enumerate(self._cases(seed)):
                key = {"part": "cell", "role": self.role, "split": self.context.params.split}
                key |= {"shots": self.params.shots, "seed": seed, "arm": case.arm, "dropped": case.dropped}
                if all(self.run.rows.done(**key, score=kind) for kind in self.kinds):
                    continue
                found, similarities = self._detections(case, seed)
                is_shown = settings is not None and seed == seeds[0] and number == 0
                for kind in self.kinds:
                    if is_shown:
                        self._add_images(key, kind, case, found, similarities, settings)
                    if not self.run.rows.done(**key, score=kind):
                        values = self._cell(kind, case, found, similarities, settings)
                        self.run.rows.add(key | {"score": kind}, values)

    def _cases(self, seed: int) -> Iterator[Planted]:
        if self.role == "own":
            yield own_set(self.context, seed)
        else:
            yield from planted_sets(self.context, self.params, seed)

    def _detections(self, case: Planted, seed: int) -> tuple[Detections, Similarities | None]:
        options = {"seed": seed, "folds": self.params.folds, "loss": self.params.loss}
        regions = self.context.train_regions(seed, case.arm)
        found = held_out_detections(self.context, case.data, regions, **options)
        if self.clip is None:
            return found, None
        thresh = self.params.cm_clip.score_thresh
        return found, encode_detections(found, case.data, self.clip, score_thresh=thresh, cache=self.images)

    def _places(self, case: Planted, found: Detections, similarities, c: float | None) -> list[Places]:
        """The places by the detector's score (c None), or by the blend with CLIP's probability."""
        if c is None:
            return places_of(found, case.data)
        own, benchmark = self.params.cm_clip, self.context.benchmark
        names = {"novel_names": benchmark.novel_names, "base_names": benchmark.base_names}
        changed = apply_cm_clip(
            found,
            similarities,
            c=c,
            temperature=self.clip.temperature,
            label_space=label_space_names(own.label_spaces[-1], **names),
            rescored_classes=benchmark.novel_names,
            score_thresh=own.score_thresh,
        )
        return places_of(changed.keep(changed.scores > 0), case.data)

    def _cell(self, kind: str, case: Planted, found, similarities, settings: dict | None) -> dict:
        """What a row holds: the truth if it is known, counts at every recall, and the estimate with its interval."""
        values: dict = {
            "images": len(case.data),
            "annotated": sum(int((~record.is_crowd).sum()) for record in case.data.images),
            "unannotated": None if case.hidden is None else sum(len(boxes) for boxes in case.hidden.values()),
        }
        if settings is None:
            factors = (None,) if kind == DETECTOR else self.params.c
            values["points"] = [
                {"c": c, "recall": recall} | point_at(places, recall)._asdict()
                for c in factors
                for places in [self._places(case, found, similarities, c)]
                for recall in self.params.recalls
            ]
            return values
        c, options = (
            settings[kind]["c"],
            {name: settings[kind][name] for name in ("recall", "false_per_image")},
        )
        places = self._places(case, found, similarities, c)
        result = estimate(places, **options)
        interval = bootstrap(places, **options, resamples=self.params.resamples, seed=self.params.seed)
        numbers = {"estimated": result.unannotated, "rate": result.rate, "threshold": result.point.threshold}
        return values | numbers | {"found_per_box": result.point.found_per_box} | interval

    def _add_images(self, key: dict, kind: str, case: Planted, found, similarities, settings: dict) -> None:
        """A row for each image: the places above the threshold that no annotated box claims."""
        c, options = (
            settings[kind]["c"],
            {name: settings[kind][name] for name in ("recall", "false_per_image")},
        )
        places = self._places(case, found, similarities, c)
        threshold = estimate(places, **options).point.threshold
        records: dict[int, ImageRecord] = {record.image_id: record for record in case.data.images}
        for place in places:
            own = key | {"part": "image", "score": kind, "image_id": place.image_id}
            if self.run.rows.done(**own):
                continue
            is_suspected = ~place.is_claimed & (place.scores >= threshold)
            names = [case.data.class_names[label] for label in place.labels[is_suspected]]
            values = {"file": records[place.image_id].path.name, "annotated": place.num_annotated}
            values |= {"suspected": int(is_suspected.sum()), "boxes": place.boxes[is_suspected]}
            values |= {"names": names, "scores": place.scores[is_suspected]}
            values["unannotated"] = None if case.hidden is None else len(case.hidden[place.image_id])
            self.run.rows.add(own, values)
