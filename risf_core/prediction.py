"""A detector on single images, before and after CM-CLIP: what the command line, a notebook and the demo share.

Imports CLIP only where there is one, so that a prediction without it starts at once.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from risf_core.data.coco import write_json
from risf_core.data.dataset import DetectionData, ImageRecord, check_class_list
from risf_core.data.loader import ImageCache, read_image
from risf_core.detections import MAX_DETECTIONS, Detections, cut
from risf_core.detector.weight_files import read_weight_file
from risf_core.detector_files import LoadedDetector, load_detector
from risf_core.errors import CheckpointError, ParamsError
from risf_core.params import CmClipParams, DetectorParams

if TYPE_CHECKING:
    from risf_core.clip_models import LoadedClip
    from risf_core.cm_clip import CMCLIP

IMAGES, DETECTIONS, RESCORED = "images.json", "detections.json", "rescored.json"


@dataclass(frozen=True, eq=False)
class Prediction:
    """What a detector finds in an image.

    Attributes:
        record: The image, without annotations; its size is that of the upright image.
        pixels: uint8 RGB [H, W, 3], EXIF orientation applied: what the boxes are in.
        before: The detections that count, with the detector's scores.
        after: The same with new scores; None without a CLIP.
    """

    record: ImageRecord
    pixels: np.ndarray
    before: Detections
    after: Detections | None = None

    @property
    def last(self) -> Detections:
        """The detections with their final scores."""
        return self.before if self.after is None else self.after

    def without_pixels(self) -> Prediction:
        """The same without the image, to be kept for many images."""
        return replace(self, pixels=self.pixels[:0])


@dataclass(frozen=True, eq=False)
class Predictor:
    """A detector and, where there is one, the CLIP that re-scores.

    Attributes:
        loaded: The detector and its classes.
        clip: CM-CLIP over its label space; its classes are those that are re-scored.
        cm_clip: How it re-scores; what is CLIP's own part of it (prompts, crops, label space), `clip` was built with.
        score_thresh: Detections at or below it do not count.
        max_detections: The best of an image that count.
    """

    loaded: LoadedDetector
    clip: CMCLIP | None = None
    cm_clip: CmClipParams = CmClipParams()
    score_thresh: float = 0.05
    max_detections: int = MAX_DETECTIONS

    @property
    def device(self) -> str:
        """Where the detector computes."""
        return str(self.loaded.detector.pixel_mean.device)

    @torch.no_grad()
    def predict(self, path: Path, image_id: int = 1) -> Prediction:
        """Detect in one image file of any format that PIL reads.

        Raises:
            DataError: If the file is no whole image.
        """
        image = read_image(path)
        _, height, width = image.shape
        (found,) = self.loaded.detector([image.to(self.device)])
        found = {key: value.cpu() for key, value in found.items()}
        detections = Detections.from_images([image_id], [found], self.loaded.class_names)
        empty = np.empty((0, 4), np.float32), np.empty(0, np.int64), np.empty(0, bool)
        record = ImageRecord(image_id, Path(path), height, width, *empty)
        ids = tuple(range(1, len(self.loaded.class_names) + 1))
        before, after = counting(
            detections,
            DetectionData(str(path), self.loaded.class_names, ids, (record,)),
            self.clip,
            self.cm_clip,
            score_thresh=self.score_thresh,
            max_detections=self.max_detections,
            cache=_OneImage(image),
        )
        return Prediction(record, image.permute(1, 2, 0).numpy(), before, after)


class _OneImage(ImageCache):
    """The image that is already read."""

    def __init__(self, image: torch.Tensor) -> None:
        super().__init__(0)
        self._image = image

    def read(self, record: ImageRecord) -> torch.Tensor:
        return self._image


def counting(
    found: Detections,
    data: DetectionData,
    clip: CMCLIP | None,
    cm_clip: CmClipParams,
    *,
    score_thresh: float,
    max_detections: int = MAX_DETECTIONS,
    cache: ImageCache | None = None,
) -> tuple[Detections, Detections | None]:
    """The detections that count, before and after CM-CLIP, as 20_fine_tuning makes them: encoded, cut, re-scored.

    Args:
        found: All that the detector finds in the images of ``data``.
        data: The images.
        clip: The CLIP, see `cm_clip_of`; None: no re-scoring.
        cm_clip: The same options that the CLIP was built with.
        score_thresh: Detections at or below it do not count.
        max_detections: The best of an image that count.
        cache: Images that are already read.
    """
    cuts = {"score_thresh": score_thresh, "max_detections": max_detections}
    if clip is None:
        return cut(found, None, **cuts)
    from risf_core.cm_clip import apply_cm_clip, encode_detections

    rescored = {"rescored_classes": clip.class_names, "score_thresh": cm_clip.score_thresh}
    similarities = encode_detections(found, data, clip, cache=cache, **rescored, **cm_clip.crop_choice())
    before, beside = cut(found, similarities, **cuts)
    after = apply_cm_clip(
        before,
        beside,
        c=cm_clip.c,
        temperature=clip.temperature,
        label_space=clip.label_space,
        fusion=cm_clip.fusion,
        not_encoded=cm_clip.not_encoded,
        **rescored,
    )
    return before, after


def open_detector_file(
    path: Path,
    *,
    detector: DetectorParams | None = None,
    class_names: Sequence[str] | None = None,
    device: str = "cpu",
) -> LoadedDetector:
    """The detector of a file: one of ours, or of DeFRCN, RISF or detectron2 with what these files do not say.

    Args:
        path: The file.
        detector: Architecture and preprocessing, of a file that does not say it.
        class_names: Classes of the head in the order of its rows, of a file that does not name them.

    Raises:
        CheckpointError: If the file is no such detector's, does not say what it is, or says something else.
    """
    content = read_weight_file(path)
    if "detector" in content:
        detector = DetectorParams.model_validate(content["detector"])
    if detector is None:
        raise CheckpointError(
            f"{path}: the file does not say which detector it is of. Give its parameters: --detector FILE (in a "
            "notebook checkpoint.detector), such as params/coco/10_base_training.yaml."
        )
    stored = content.get("class_names")
    if stored is None and class_names is None:
        raise CheckpointError(
            f"{path}: the file names no classes. Name those of its head, in the order of its rows: --classes FILE, a "
            "name a line (in a notebook checkpoint.classes)."
        )
    if stored is not None and class_names is not None and tuple(stored) != tuple(class_names):
        raise CheckpointError(
            f"{path}: the file is of a head with the classes {', '.join(stored)}; the list that was given says "
            f"{', '.join(class_names)}. Leave the list out."
        )
    names = tuple(stored if stored is not None else class_names)
    return load_detector(
        path, content, detector, check_class_list(names, names, where=str(path)), device=device
    )


def cm_clip_of(
    clip: LoadedClip,
    rescored_classes: Sequence[str],
    options: CmClipParams,
    *,
    class_names: Sequence[str] = (),
    label_space: Sequence[str] | None = None,
) -> CMCLIP:
    """CM-CLIP for some classes of a detector.

    Args:
        clip: The model.
        rescored_classes: The classes whose scores change.
        options: How crops and prompts are made and CLIP computes; its only label space.
        class_names: All classes of the detector: the others compete in novel+base+background.
        label_space: The names that compete, in place of the options'.

    Raises:
        ParamsError: If the options name several label spaces, or one whose base classes are not known.
    """
    from risf_core.cm_clip import CMCLIP

    return CMCLIP(
        clip.model,
        clip.tokenizer,
        rescored_classes,
        label_space=label_space or _only_label_space(options, rescored_classes, class_names),
        templates=options.templates,
        temperature=options.temperature,
        **options.engine_options(),
        **options.crop_options(),
    )


def _only_label_space(
    options: CmClipParams, rescored_classes: Sequence[str], class_names: Sequence[str]
) -> tuple[str, ...]:
    """The names of the options' label space."""
    from risf_core.cm_clip import label_space_names

    if len(options.label_spaces) != 1:
        raise ParamsError(
            f"cm_clip.label_spaces: {', '.join(options.label_spaces)}. Expected one: a prediction has one."
        )
    (space,) = options.label_spaces
    others = [name for name in class_names if name not in rescored_classes]
    if "base" in space.split("+") and not others:
        raise ParamsError(
            f"cm_clip.label_spaces: {space}, but all classes of the detector are re-scored: it names no base class. "
            "Take novel+background, or name fewer rescored_classes."
        )
    return label_space_names(space, novel_names=tuple(rescored_classes), base_names=others)


def write_results(
    folder: Path,
    predictions: Sequence[Prediction],
    class_names: Sequence[str],
    category_ids: Sequence[int] | None = None,
    pictures: Sequence[str] | None = None,
) -> list[Path]:
    """Write the results files of COCO's form, and the images and categories that their ids mean.

    ``images.json`` is an annotation file without annotations, which pycocotools and ``python -m risf_core.cm_clip``
    read; file names in it are relative to the folder that ``info.images_dir`` names. ``detections.json`` holds the
    detector's scores, ``rescored.json`` those after CM-CLIP; one of an earlier run is removed if there are none now.
    Categories are numbered from 1 where no ids are given. ``pictures`` are the drawings' paths below the folder.

    Returns:
        The files written.
    """
    root = common_folder([prediction.record.path for prediction in predictions])
    images = [
        {
            "id": one.record.image_id,
            "file_name": one.record.path.absolute().relative_to(root).as_posix(),
            "width": one.record.width,
            "height": one.record.height,
        }
        for one in predictions
    ]
    for image, picture in zip(images, pictures or (), strict=pictures is not None):
        image["picture"] = picture
    ids = tuple(category_ids or range(1, len(class_names) + 1))
    categories = [{"id": number, "name": name} for number, name in zip(ids, class_names, strict=True)]
    index = {"info": {"images_dir": str(root)}, "images": images, "annotations": [], "categories": categories}
    files = {
        IMAGES: index,
        DETECTIONS: [row for one in predictions for row in one.before.to_coco_results(ids)],
    }
    if any(one.after is not None for one in predictions):
        files[RESCORED] = [row for one in predictions for row in one.after.to_coco_results(ids)]
    else:
        (folder / RESCORED).unlink(missing_ok=True)
    for name, content in files.items():
        write_json(folder / name, content)
    return [folder / name for name in files]


def common_folder(paths: Sequence[Path]) -> Path:
    """The deepest folder that all files lie in or below."""
    folders = [str(path.absolute().parent) for path in paths]
    return Path(os.path.commonpath(folders)) if folders else Path.cwd()
