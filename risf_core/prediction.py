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
from risf_core.data.dataset import ImageRecord, check_class_list
from risf_core.data.loader import read_image
from risf_core.detections import MAX_DETECTIONS, Detections, Similarities, cut
from risf_core.detector.weight_files import read_weight_file
from risf_core.detector_files import LoadedDetector, load_detector
from risf_core.errors import CheckpointError
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
        c: Weight of the detector's score.
        score_thresh: Detections at or below it do not count.
        rescore_thresh: Detections at or below it keep their score.
        max_detections: The best of an image that count.
        fusion: How the two scores become one: "arithmetic" (published) or "geometric".
    """

    loaded: LoadedDetector
    clip: CMCLIP | None = None
    c: float = 0.7
    score_thresh: float = 0.05
    rescore_thresh: float = 0.05
    max_detections: int = MAX_DETECTIONS
    fusion: str = "arithmetic"

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
        before, _ = cut(detections, None, score_thresh=self.score_thresh, max_detections=self.max_detections)
        after = None if self.clip is None else self._rescore(before, image)
        empty = np.empty((0, 4), np.float32), np.empty(0, np.int64), np.empty(0, bool)
        record = ImageRecord(image_id, Path(path), height, width, *empty)
        return Prediction(record, image.permute(1, 2, 0).numpy(), before, after)

    def _rescore(self, detections: Detections, image: torch.Tensor) -> Detections:
        from risf_core.cm_clip import apply_cm_clip, rescored_rows

        rows = rescored_rows(detections, self.clip.class_names, self.rescore_thresh)
        cosines = np.full((len(rows), len(self.clip.label_space)), np.nan, dtype=np.float32)
        cosines[rows] = self.clip.cosines(image, torch.from_numpy(detections.boxes[rows])).cpu().numpy()
        return apply_cm_clip(
            detections,
            Similarities(cosines, rows, self.clip.label_space),
            c=self.c,
            temperature=self.clip.temperature,
            label_space=self.clip.label_space,
            rescored_classes=self.clip.class_names,
            score_thresh=self.rescore_thresh,
            fusion=self.fusion,
        )


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
        options: How crops and prompts are made; the first of its label spaces is taken.
        class_names: All classes of the detector: the others compete in novel+base+background.
        label_space: The names that compete, in place of the options'.
    """
    from risf_core.cm_clip import CMCLIP, label_space_names

    others = [name for name in class_names if name not in rescored_classes]
    known = {"novel_names": tuple(rescored_classes), "base_names": others}
    return CMCLIP(
        clip.model,
        clip.tokenizer,
        rescored_classes,
        label_space=label_space or label_space_names(options.label_spaces[0], **known),
        templates=options.templates,
        temperature=options.temperature,
        path=options.path,
        precision=options.precision,
        memory_budget_mb=options.memory_budget_mb,
        **options.crop_options(),
    )


def write_results(
    folder: Path,
    predictions: Sequence[Prediction],
    class_names: Sequence[str],
    category_ids: Sequence[int] | None = None,
) -> list[Path]:
    """Write the results files of COCO's form, and the images and categories that their ids mean.

    ``images.json`` is an annotation file without annotations, which pycocotools and ``python -m risf_core.cm_clip``
    read; file names in it are relative to the folder that ``info.images_dir`` names. ``detections.json`` holds the
    detector's scores, ``rescored.json`` those after CM-CLIP. Categories are numbered from 1 where no ids are given.

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
    ids = tuple(category_ids or range(1, len(class_names) + 1))
    categories = [{"id": number, "name": name} for number, name in zip(ids, class_names, strict=True)]
    index = {"info": {"images_dir": str(root)}, "images": images, "annotations": [], "categories": categories}
    files = {
        IMAGES: index,
        DETECTIONS: [row for one in predictions for row in one.before.to_coco_results(ids)],
    }
    if any(one.after is not None for one in predictions):
        files[RESCORED] = [row for one in predictions for row in one.after.to_coco_results(ids)]
    for name, content in files.items():
        write_json(folder / name, content)
    return [folder / name for name in files]


def common_folder(paths: Sequence[Path]) -> Path:
    """The deepest folder that all files lie in or below."""
    folders = [str(path.absolute().parent) for path in paths]
    return Path(os.path.commonpath(folders)) if folders else Path.cwd()
