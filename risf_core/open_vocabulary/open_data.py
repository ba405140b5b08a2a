"""The data that the parameters of an open-vocabulary run name, pictograms or the user's files, and their evaluator."""

from dataclasses import replace
from pathlib import Path

from risf_core.detections import MAX_DETECTIONS
from risf_core.errors import ParamsError
from risf_core.evaluation import Evaluator
from risf_core.open_vocabulary.coco_ovd import CLASS_NAMES, open_coco_ovd
from risf_core.open_vocabulary.image_label_files import read_categories, synonyms_from_lvis
from risf_core.open_vocabulary.lvis_data import open_lvis_ovd
from risf_core.open_vocabulary.lvis_evaluation import LVIS_MAX_DETS, LvisEvaluator
from risf_core.open_vocabulary.ovd_data import OvdData, open_pictogram_ovd
from risf_core.open_vocabulary_params import OpenVocabularyParams
from risf_core.runs.yaml_files import project_path


def open_data(params: OpenVocabularyParams, *, labels: str = "all") -> tuple[OvdData, Evaluator]:
    """Boxes of base classes, image labels and test images, and what judges detections in these.

    Args:
        params: Of the run.
        labels: Which names the images without boxes have: "all", "base", "permuted" or, for pictograms, "strict".

    Raises:
        ParamsError: If the files have no such labels.
    """
    if params.files is None:
        data = open_pictogram_ovd(
            params.data,
            params.split,
            num_box_images=params.num_box_images,
            num_label_images=params.num_label_images,
            seed=params.seed,
            labels=labels,
        )
        return data, Evaluator(data.test, groups=data.groups, max_dets=MAX_DETECTIONS)
    files = params.files
    names = (files.train_annotations, files.train_images, files.test_annotations, files.test_images)
    paths = [project_path(name) for name in names]
    options = {"label_annotations": _path(files.label_annotations), "label_images": _path(files.label_images)}
    if files.kind == "lvis_ovd":
        data, lvis = open_lvis_ovd(*paths, **options)
        evaluator: Evaluator = LvisEvaluator(lvis)
    else:
        synonyms = None
        if files.synonyms is not None:
            synonyms = synonyms_from_lvis(CLASS_NAMES, read_categories(project_path(files.synonyms)))
        options |= {"synonyms": synonyms, "caption_rule": files.caption_rule}
        data = open_coco_ovd(*paths, **options, from_all_classes=files.all_classes)
        evaluator = Evaluator(data.test, groups=data.groups, max_dets=MAX_DETECTIONS)
    return _with_labels(data, labels, params.seed), evaluator


def max_detections(params: OpenVocabularyParams) -> int:
    """Detections of an image that count, all classes together."""
    return LVIS_MAX_DETS if params.files is not None and params.files.kind == "lvis_ovd" else MAX_DETECTIONS


def _path(name: str | None) -> Path | None:
    return None if name is None else project_path(name)


def _with_labels(data: OvdData, labels: str, seed: int) -> OvdData:
    if labels == "all" or data.label_train is None:
        return data
    if labels == "base":
        return replace(data, label_train=data.label_train.only(data.base_names))
    if labels == "permuted":
        return replace(data, label_train=data.label_train.permuted(seed=seed))
    raise ParamsError(
        f"images.labels is {labels}, which the pictograms alone have. For files give label_annotations that name no "
        "novel class."
    )
