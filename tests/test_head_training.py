"""Training the box head on cached features equals training it through the whole frozen detector."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from risf_core.detecting import detect_images
from risf_core.detector.faster_rcnn import FasterRCNN
from risf_core.errors import CheckpointError
from risf_core.head_training import (
    RegionFeatures,
    cached_region_features,
    detect_from_features,
    extract_region_features,
    label_regions,
    train_box_head,
)
from risf_core.params import DetectorParams, SolverParams
from risf_core.training import train_detector

from .detector.conftest import TINY, square_data  # noqa: F401

SOLVER = SolverParams(iterations=15, batch_size=2, lr=0.05, precision="fp32")


def _detector(**changes):
    torch.manual_seed(0)
    detector = FasterRCNN(DetectorParams(**(TINY | {"cls_dropout": 0.5, "roi_batch": 8} | changes)), 3)
    detector.set_trainable("box_head")
    return detector


@pytest.mark.parametrize("changes", [{}, {"min_size": (96,)}])
def test_cached_training_equals_training_through_the_detector(square_data, changes):  # noqa: F811
    through, cached = _detector(**changes), _detector(**changes)
    cache = extract_region_features(cached, square_data, training=True)
    curve_cached = train_box_head(cached, square_data, cache, SOLVER, seed=4)
    curve_through = train_detector(through, square_data, SOLVER, seed=4, desc="through")
    for a, b in zip(curve_through, curve_cached, strict=True):
        # the sum of exact reals is the same; convolutions over other batches round differently
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4) and a["loss_box"] == pytest.approx(
            b["loss_box"], abs=1e-4
        )
    for (name, a), b in zip(through.state_dict().items(), cached.state_dict().values(), strict=True):
        assert torch.allclose(a, b, atol=2e-5), name
    assert not torch.equal(
        cached.roi_heads.box_predictor.cls_score.weight,
        _detector(**changes).roi_heads.box_predictor.cls_score.weight,
    )


def test_fewer_shots_use_the_same_cache(square_data):  # noqa: F811
    detector = _detector()
    cache = extract_region_features(detector, square_data, training=True)
    fewer = replace(square_data, images=square_data.images[2:4])
    regions = label_regions(cache, fewer)
    assert len(regions) == 4  # two images, each also mirrored
    for image in fewer.images:
        for flip in (False, True):
            region = regions[image.image_id, flip]
            own = region.rois.labels == int(image.labels[0])
            assert own[-1] and region.features.shape == (len(region.rois.labels), 16)
            expected = image.boxes[0].copy()
            if flip:
                expected[[0, 2]] = 64 - expected[[2, 0]]
            assert np.allclose(region.rois.boxes[-1], expected)


def test_unknown_image_or_box_is_refused(square_data):  # noqa: F811
    cache = extract_region_features(
        _detector(), replace(square_data, images=square_data.images[:2]), training=True
    )
    with pytest.raises(CheckpointError, match="no image 3"):
        label_regions(cache, square_data)
    moved = replace(square_data.images[0], boxes=square_data.images[0].boxes + 2)
    with pytest.raises(CheckpointError, match="lack an annotated box"):
        label_regions(cache, replace(square_data, images=(moved,)))


def test_detections_from_features_equal_the_detector(square_data):  # noqa: F811
    """Also for images of several sizes: nothing is padded to the size of another."""
    records = []
    for number, record in enumerate(square_data.images):
        height, width = (64, 96, 64)[number % 3], (64, 64, 110)[number % 3]
        with Image.open(record.path) as image:
            image.resize((width, height)).save(record.path)
        records.append(replace(record, height=height, width=width))
    data = replace(square_data, images=tuple(records))
    detector = _detector(min_size=(96,))
    cache = extract_region_features(detector, data, training=False)
    stored = detect_from_features(detector.roi_heads.box_predictor, cache, data.class_names)
    direct = detect_images(detector, data)
    assert len(stored) == len(direct) > 0
    for name in ("image_ids", "labels", "boxes", "scores"):
        np.testing.assert_allclose(getattr(stored, name), getattr(direct, name), rtol=1e-6, err_msg=name)


def test_annotated_boxes_follow_each_side_of_the_image(square_data):  # noqa: F811
    """65 x 97 becomes 96 x 143: the sides are rounded, so their scales differ."""
    record = square_data.images[0]
    with Image.open(record.path) as image:
        image.resize((97, 65)).save(record.path)
    data = replace(square_data, images=(replace(record, height=65, width=97),))
    cache = extract_region_features(_detector(min_size=(96,)), data, training=True)
    assert cache.sizes.tolist() == [[96, 143]] * 2
    expected = record.boxes * np.array([143 / 97, 96 / 65] * 2)
    np.testing.assert_allclose(cache.gt_boxes[:1], expected, rtol=1e-6)


def test_cache_file_is_computed_once_and_checked(tmp_path, square_data):  # noqa: F811
    calls = []

    def compute():
        calls.append(1)
        return extract_region_features(_detector(), square_data, training=False)

    path = tmp_path / "deep" / "features.npz"
    first, second = cached_region_features(path, compute), cached_region_features(path, compute)
    assert len(calls) == 1 and np.array_equal(first.features, second.features)
    path.write_bytes(b"broken")
    with pytest.raises(CheckpointError, match="features.npz"):
        RegionFeatures.load(path)
