"""The data that the parameters of an open-vocabulary run name, pictograms or the user's files, and their evaluator."""

from dataclasses import replace

from risf_core.detections import MAX_DETECTIONS
from risf_core.errors import ParamsError
from risf_core.evaluation import Evaluator
from risf_core.open_vocabulary.coco_ovd import open_coco_ovd
from risf_core.open_vocabulary.lvis_data import open_lvis_ovd
from risf_core.open_vocabulary.lvis_evaluation import LVIS_MAX_DETS, LvisEvaluator
from risf_core.open_vocabulary.ovd_data import OvdData, open_pictogram_ovd
from risf_core.open_vocabulary_params import OpenVocabularyParams


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
    paths = (files.train_annotations, files.train_images, files.test_annotations, files.test_images)
    options = {"label_annotations": files.label_annotations, "label_images": files.label_images}
    if files.kind == "lvis_ovd":
        data, lvis = open_lvis_ovd(*paths, **options)
        evaluator: Evaluator = LvisEvaluator(lvis)
    else:
        data = open_coco_ovd(*paths, **options)
        evaluator = Evaluator(data.test, groups=data.groups, max_dets=MAX_DETECTIONS)
    return _with_labels(data, labels, params.seed), evaluator


def max_detections(params: OpenVocabularyParams) -> int:
    """Detections of an image that count, all classes together."""
    return LVIS_MAX_DETS if params.files is not None and params.files.kind == "lvis_ovd" else MAX_DETECTIONS


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
