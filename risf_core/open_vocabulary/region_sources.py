"""Regions for distillation and boxes for names, by source: made once for a run and kept in its folder."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from torchvision.ops import nms

from risf_core.data.benchmark import open_benchmark
from risf_core.data.dataset import DetectionData
from risf_core.detecting import detect_images
from risf_core.detections import Detections
from risf_core.errors import ParamsError
from risf_core.open_vocabulary.detector import OpenVocabularyRCNN, Supervision
from risf_core.open_vocabulary.providers import (
    annotated_regions,
    best_of_class,
    external_regions,
    objectness_regions,
    recall_of,
    rpn_regions,
    train_objectness,
)
from risf_core.open_vocabulary.regions import RegionSet, embed_regions
from risf_core.open_vocabulary.training import TrainingSet, train_open_vocabulary
from risf_core.open_vocabulary_params import DistillationParams
from risf_core.params import PictogramData
from risf_core.runs.yaml_files import project_path

if TYPE_CHECKING:
    from risf_core.open_vocabulary.ovd_data import OvdData
    from risf_core.open_vocabulary.study import Study

REGION_NMS_THRESH = 0.5  # class-agnostic, as the released regions


class RegionSources:
    """Regions of the training images, with and without boxes, by source and teacher."""

    def __init__(self, study: Study) -> None:
        self.study = study
        self.folder = study.run.dir / "regions"

    @cached_property
    def images(self) -> DetectionData:
        """All training images, without boxes, under the columns of the test."""
        data, names = self.study.data, self.study.data.test
        images = [record.keep(np.zeros(len(record.labels), dtype=bool)) for record in data.box_train.images]
        there = {record.image_id for record in images}
        others = data.label_train.data.images if data.label_train is not None else ()
        # COCO's captions are of the images with boxes
        images += [record for record in others if record.image_id not in there]
        return DetectionData(
            f"{data.name} training images", names.class_names, names.category_ids, tuple(images)
        )

    @cached_property
    def annotated(self) -> DetectionData:
        """The same images with the boxes of all classes, which an oracle alone may see."""
        if not isinstance(self.study.params.data, PictogramData) or self.study.params.files is not None:
            raise ParamsError("oracle boxes are there for the pictograms alone; leave arms with oracle out")
        train = open_benchmark(self.study.params.data, split=self.study.params.split).train
        records = {record.image_id: record for record in train.images}
        chosen = tuple(records[record.image_id] for record in self.images.images)
        return replace(train, images=chosen).select_classes(self.images.class_names)

    def regions(self, distillation: DistillationParams) -> RegionSet:
        """Regions with the teacher's embeddings; "shuffled" is done in each batch, so its file is the teacher's."""
        teacher = "random" if distillation.teacher == "random" else "clip"
        path = self.folder / f"{distillation.regions}-top{distillation.top}-{teacher}.npz"
        if not path.exists():
            boxes = self.boxes(distillation.regions).top(distillation.top)
            self._embedded(boxes, teacher, f"embedding regions ({distillation.regions})").save(path)
        regions = RegionSet.load(path)
        self._note(distillation.regions, regions)
        return self._complete(regions)

    def _embedded(self, boxes: RegionSet, teacher: str, desc: str) -> RegionSet:
        """The regions with the teacher's embeddings: those of the file they came from, where it has some, or new."""
        external = self.study.params.external
        clip = self.study.random_clip if teacher == "random" else self.study.clip
        width = clip.text_embeds_norm.shape[1]
        if (
            boxes.embeddings is None
            or teacher == "random"
            or external is None
            or not external.file_embeddings
        ):
            return embed_regions(boxes, self._images_of(boxes), clip, cache=self.study.images, desc=desc)
        if boxes.embeddings.shape[1] != width:
            raise ParamsError(
                f"{external.regions}: embeddings of {boxes.embeddings.shape[1]} numbers, but the texts of this CLIP "
                f"have {width}. Give the CLIP that made the file, or external.file_embeddings: false."
            )
        return boxes

    def _images_of(self, regions: RegionSet) -> DetectionData:
        there = set(regions.image_ids.tolist())
        return replace(self.images, images=tuple(one for one in self.images.images if one.image_id in there))

    def _complete(self, regions: RegionSet) -> RegionSet:
        """With an empty entry for every training image that the source has none of."""
        there = set(regions.image_ids.tolist())
        lacking = [one.image_id for one in self.images.images if one.image_id not in there]
        ids = np.concatenate([regions.image_ids, np.array(lacking, dtype=np.int64)])
        starts = np.concatenate([regions.starts, np.full(len(lacking), regions.starts[-1])])
        return replace(regions, image_ids=ids, starts=starts)

    def boxes(self, source: str) -> RegionSet:
        """The boxes of a source, best first."""
        params, seed = self.study.params, self.study.params.seed
        if source == "rpn":
            return rpn_regions(self._stage0(), self.images, top=params.region_candidates)
        if source == "objectness":
            detector, boxed = self._stage0(), self.study.data.box_train
            base = boxed.select_classes(self.study.data.base_names)
            head = train_objectness(detector, base, seed=seed)
            return objectness_regions(detector, head, self.images, top=params.region_candidates)
        if source == "oracle":
            noise = {"jitter": params.jitter, "miss": params.miss, "seed": seed}
            return annotated_regions(self.annotated, **noise)
        if source == "base_boxes":
            boxed = self.study.data.box_train.select_classes(self.study.data.base_names)
            return annotated_regions(boxed, sees_novel="no")
        if params.external is not None:
            if params.external.regions is None:
                raise ParamsError("distillation.regions is external; give external.regions, a file or folder")
            path = project_path(params.external.regions)
            return external_regions(path, self.images, sees_novel=params.external.sees_novel)
        return self._class_agnostic(source)

    def _note(self, source: str, regions: RegionSet) -> None:
        """The provider's row: how many objects its regions cover."""
        key = {"part": "provider", **self.study.key, "provider": source}
        if self.study.run.rows.done(**key) or self.study.params.files is not None:
            return
        values = {"regions": len(regions) / max(len(regions.image_ids), 1)}
        values["sees_novel"] = regions.manifest["sees_novel"]
        there = set(regions.image_ids.tolist())
        full = replace(
            self.annotated, images=tuple(one for one in self.annotated.images if one.image_id in there)
        )
        for group, names in self.study.data.groups.items():
            values[f"recall_{group}"] = recall_of(regions, full, names)
        self.study.run.rows.add(key, values)

    def _stage0(self) -> OpenVocabularyRCNN:
        study = self.study
        texts = study.texts(study.data.class_names)
        return study.architecture.load(
            study.stage0(), texts, seed=study.params.seed, device=study.run.device
        ).eval()

    # ------------------------------------------------------------------ boxes of names

    def label_boxes(self, source: str, data: OvdData) -> RegionSet:
        """One box for each name of each image, labels in the columns of ``data``."""
        images, params = data.label_train, self.study.params
        wanted = {record.image_id: images.names(place) for place, record in enumerate(images.data.images)}
        least = 0.0
        if source == "oracle":
            found = self.boxes("oracle")
        elif params.external is not None:
            if params.external.label_boxes is None:
                raise ParamsError("images.boxes is external; give external.label_boxes, a file or folder")
            options = {"classes": images.class_names, "sees_novel": params.external.sees_novel}
            found = external_regions(project_path(params.external.label_boxes), images.data, **options)
            least = params.external.label_score
        else:
            found = self._by_class(source)
        return best_of_class(found, wanted, class_names=images.class_names, score_thresh=least)

    # ------------------------------------------------------------------ an external provider for the pictograms

    def _found(self, source: str) -> Detections:
        """What a detector trained on the grounding scenes finds in the training images, for all names.

        "external": it was trained with the boxes of all classes, novel ones too, as MViT's corpus had them;
        "external_filtered": without those of novel classes.
        """
        path = self.folder / f"{source}-detections.npz"
        if not path.exists():
            study, names = self.study, self.images.class_names
            seen = names if source == "external" else study.data.base_names
            grounding = study.data.grounding.select_classes(names)
            if source == "external_filtered":
                grounding = _only(grounding, seen)
            detector = self._stage0()
            detector.set_texts(study.texts(names))
            mask = torch.tensor([name in seen for name in names])
            train_open_vocabulary(
                detector,
                TrainingSet(grounding.drop_empty()),
                Supervision(class_mask=mask),
                study.params.stage0,
                seed=study.params.seed + 1,
                desc=f"{source} provider",
                images=study.images,
            )
            detect_images(detector, self.images).save(path)
        return Detections.load(path)

    def _manifest(self, source: str) -> dict:
        sees = "yes" if source == "external" else "no"
        return {"provider": source, "sees_novel": sees, "class_names": list(self.images.class_names)}

    def _class_agnostic(self, source: str) -> RegionSet:
        """The best boxes of each image, whatever their class."""
        found, outputs, ids = self._found(source), [], []
        for record in self.images.images:
            rows = np.flatnonzero(found.image_ids == record.image_id)
            boxes, scores = torch.from_numpy(found.boxes[rows]), torch.from_numpy(found.scores[rows])
            kept = nms(boxes, scores, REGION_NMS_THRESH)[: self.study.params.region_candidates]
            outputs.append({"boxes": boxes[kept].numpy(), "scores": scores[kept].numpy()})
            ids.append(record.image_id)
        return RegionSet.from_images(ids, outputs, self._manifest(source) | {"class_names": []})

    def _by_class(self, source: str) -> RegionSet:
        found, outputs, ids = self._found(source), [], []
        for record in self.images.images:
            rows = np.flatnonzero(found.image_ids == record.image_id)
            outputs.append(
                {"boxes": found.boxes[rows], "scores": found.scores[rows], "labels": found.labels[rows]}
            )
            ids.append(record.image_id)
        return RegionSet.from_images(ids, outputs, self._manifest(source))


def _only(data: DetectionData, names: tuple[str, ...]) -> DetectionData:
    """The boxes of some classes alone; the columns stay."""
    columns = [data.class_names.index(name) for name in names]
    return replace(data, images=tuple(one.keep(np.isin(one.labels, columns)) for one in data.images))
