"""Results files of any detector, re-scored as all others are: read, cut, encoded, and judged over c.

A file has no seeds. The interval of its gain is a paired bootstrap over the images, which says how far the gain
depends on the test images that were drawn, and nothing of how far it depends on the detector's training.
"""

from __future__ import annotations

import numpy as np

from risf_core.cm_clip import apply_cm_clip
from risf_core.data.benchmark import open_benchmark
from risf_core.data.coco import load_coco
from risf_core.data.dataset import DetectionData
from risf_core.detections import Detections, cut
from risf_core.errors import DataError
from risf_core.paired_bootstrap import paired_ap50
from risf_core.progress import progress
from risf_core.results_formats import ClassList, Results, read_results
from risf_core.runs.yaml_files import project_path
from risf_core.studies.chosen_c import choose_c
from risf_core.studies.stored_boxes import CellBoxes, Rescoring, Scene
from risf_core.study_params import OtherDetectorsParams, ResultsFile


def rescore_results_files(rescoring: Rescoring) -> None:
    """The rows of every results file, those to choose c on first; then the gains of the others with intervals."""
    params = rescoring.params
    files = sorted(params.results_files, key=lambda file: file.split != params.select_split)
    for file in progress(files, desc="results files", total=len(files)):
        key = {"detector": file.name, "split": file.split, "shots": None, "seed": None}
        reported = file.split != params.select_split
        is_told = rescoring.run.rows.done(part="file", way="paper", **key) or not reported
        if rescoring.is_done(key) and is_told:
            continue
        found, test = open_results(file, params)
        scene, boxes = _boxes(rescoring, key, file, found, test)
        rescoring.add_rows(key, scene, boxes)
        if reported:
            _add_gains(rescoring, key, scene, boxes)


def open_results(file: ResultsFile, params: OtherDetectorsParams) -> tuple[Detections, DetectionData]:
    """The detections of the classes that are re-scored, and the test data of these classes.

    Raises:
        DataError: If file or annotations are wrong, or an image of the file is not among those of the annotations.
    """
    if file.annotations is None:
        benchmark = open_benchmark(params.data, split=file.split)
        test, names = benchmark.test, file.classes or benchmark.novel_names
    else:
        test = load_coco(project_path(file.annotations), project_path(file.images), drop_invalid=True)
        names = file.classes or test.class_names
    classes = ClassList(test.class_names, test.category_ids)
    results = read_results([project_path(file.results)], classes)
    return detections_of(results, test, names), test.select_classes(names)


def detections_of(results: Results, test: DetectionData, names: tuple[str, ...]) -> Detections:
    """The entries of the classes ``names`` as detections.

    A results file holds one score for each box. ``class_scores`` are that score in its own column, the rest in the
    background's and 0 elsewhere; ``proposals`` is the place of the entry in the file.
    """
    known = {record.image_id for record in test.images}
    unknown = [key for key in results.image_keys if key not in known]
    if unknown:
        raise DataError(
            f"{results.where}: image {unknown[0]!r} is none of the {len(known)} images of {test.name}. Expected the "
            "results of these images."
        )
    place = np.array([names.index(name) if name in names else -1 for name in test.class_names])
    rows = np.flatnonzero(place[results.labels] >= 0)
    labels, scores = place[results.labels[rows]], results.scores[rows]
    class_scores = np.zeros((len(rows), len(names) + 1))
    class_scores[np.arange(len(rows)), labels] = scores
    class_scores[:, -1] = 1 - scores
    image_ids = np.array(results.image_keys, dtype=np.int64)[results.images[rows]]
    return Detections(image_ids, results.boxes[rows], scores, labels, class_scores, rows, names)


def _boxes(
    rescoring: Rescoring, key: dict, file: ResultsFile, found: Detections, test: DetectionData
) -> tuple[Scene, CellBoxes]:
    scene = rescoring.scene(test)
    counting, _ = cut(found, None, score_thresh=file.score_thresh)
    cosines = rescoring.encode(key, scene, counting, file.score_thresh)
    return scene, CellBoxes(found, counting, cosines, file.score_thresh)


def _add_gains(rescoring: Rescoring, key: dict, scene: Scene, boxes: CellBoxes) -> None:
    """AP50 before and after at the paper's c, and at the c chosen on the files of ``select_split`` if there are any."""
    params, rows = rescoring.params, rescoring.run.rows
    chosen = {"detector": key["detector"], "select_split": params.select_split}
    ways = {
        "selected": ("arithmetic", choose_c(rows.as_list(), **chosen)),
        "geometric": ("geometric", choose_c(rows.as_list(), fusion="geometric", **chosen)),
        "paper": ("arithmetic", params.cm_clip.c),  # last: its row says that the file is done
    }
    options = rescoring.options(scene, boxes)
    has_crowd = any((record.is_crowd | record.is_difficult).any() for record in scene.test.images)
    for way, (fusion, c) in ways.items():
        row = {"part": "file", "way": way} | key
        if c is None or rows.done(**row):
            continue
        after = apply_cm_clip(boxes.counting, boxes.cosines, c=c, fusion=fusion, **options)
        values = {"fusion": fusion, "c": c, "num_images": len(scene.test)}
        sides = [scene.evaluator.evaluate(side)["nAP50"] for side in (boxes.counting, after)]
        values |= {"before": sides[0], "after": sides[1], "low": None, "high": None}
        if not has_crowd:  # the bootstrap's AP50 does not know regions that count neither way
            resampled = {"resamples": params.resamples, "seed": params.seed}
            found = paired_ap50(boxes.counting, after, scene.test, **resampled)
            values |= {"low": found.low, "high": found.high}
        rows.add(row, values)
