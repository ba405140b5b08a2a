"""AP50 of many score vectors at once: every number is that of pycocotools."""

import contextlib
import copy
import io
from dataclasses import replace

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from risf_core.errors import DataError
from risf_core.evaluation import evaluate
from risf_core.studies.grid_ap50 import GridAP50
from tests.test_evaluation import BOX, coco_dataset, data_of, detections_of, image, random_case

SMALL = (0.0, 32.0**2)  # COCO's


def doubled(data):
    """The data with a second object of the same class two pixels beside each, so that detections have a choice."""
    images = []
    for record in data.images:
        rows = list(zip(record.boxes, record.labels.tolist(), record.is_crowd.tolist()))
        images.append(image(record.image_id, [*rows, *((row[0] + 2, *row[1:]) for row in rows)]))
    return replace(data, images=tuple(images))


@pytest.mark.parametrize("crowd_share, change", [(0.1, None), (0.0, doubled), (0.1, doubled)])
@pytest.mark.parametrize("seed", range(2))
def test_equals_one_evaluation_each(seed, crowd_share, change):
    """Random scores with many ties, objects that contend for a detection, crowd regions, a class without objects."""
    data, found = random_case(seed, crowd_share=crowd_share)
    data = data if change is None else change(data)
    rng = np.random.default_rng(seed)
    scores = np.stack([found.scores, *rng.random((4, len(found))).round(1)]).astype(np.float32)
    grid = GridAP50(found, data)
    assert any(one.contested for one in grid._classes)  # the case holds what is hard
    values = grid.per_class(scores)
    for own, vector in zip(values, scores):
        expected = evaluate(found.with_scores(vector), data)
        per_class = [expected["per_class"][name]["AP50"] for name in data.class_names]
        assert own.tolist() == pytest.approx(per_class[:-1] + [np.nan], abs=1e-12, nan_ok=True)
        assert per_class[-1] is None  # without objects
        assert grid.mean(vector[None])[0] == pytest.approx(expected["AP50"], abs=1e-12)


@pytest.mark.parametrize("change", [None, doubled])
def test_area_range_is_cocos(change):
    data, found = random_case(3)
    data = data if change is None else change(data)
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = copy.deepcopy(coco_dataset(data))
        coco.createIndex()
        stock = COCOeval(coco, coco.loadRes(found.to_coco_results(data.category_ids)), "bbox")
        stock.evaluate()
        stock.accumulate()
    precision = stock.eval["precision"][0, :, :, 1, 2]  # IoU 0.5, small, 100 detections: [R, K]
    expected = np.where(precision[0] == -1, np.nan, 100 * precision.mean(axis=0))
    own = GridAP50(found, data, area_range=SMALL).per_class(found.scores[None])[0]
    assert own.tolist() == pytest.approx(expected.tolist(), abs=1e-10, nan_ok=True)
    whole = GridAP50(found, data).per_class(found.scores[None])[0]
    assert not np.allclose(own, whole, equal_nan=True)


def test_chunks_change_nothing(monkeypatch):
    data, found = random_case(0)
    scores = np.random.default_rng(0).random((7, len(found)))
    whole = GridAP50(found, data).mean(scores)
    monkeypatch.setattr("risf_core.studies.grid_ap50.CHUNK", 2)
    assert GridAP50(found, data).mean(scores).tolist() == whole.tolist()


def test_no_detection_is_zero_and_other_shapes_are_refused():
    data = data_of(image(1, [(BOX, 0)]))
    assert GridAP50(detections_of(), data).mean(np.empty((2, 0))).tolist() == [0.0, 0.0]
    with pytest.raises(DataError, match=r"scores have shape \(3,\). Expected \[M, 0\]"):
        GridAP50(detections_of(), data).mean(np.zeros(3))
    with pytest.raises(DataError, match="the same, in the same order"):
        GridAP50(detections_of(class_names=("star",)), data)
