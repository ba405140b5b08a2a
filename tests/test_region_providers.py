"""Who proposes regions: what each may see, in whose pixels its boxes are, and what counts as covered."""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.ops import box_iou

from risf_core.data.dataset import DetectionData, ImageRecord
from risf_core.detecting import propose_boxes
from risf_core.detector.faster_rcnn import FasterRCNN
from risf_core.error_kinds import overlap
from risf_core.errors import DataError, ParamsError, SplitError
from risf_core.open_vocabulary.objectness import MIN_IOU, _quality_samples
from risf_core.open_vocabulary.providers import (
    annotated_regions,
    best_of_class,
    objectness_regions,
    recall_of,
    rpn_regions,
    train_objectness,
    with_classes,
)
from risf_core.open_vocabulary.regions import RegionSet
from risf_core.params import DetectorParams

WIDTH, HEIGHT = 96, 64
DETECTOR = DetectorParams(
    stages=(1, 1, 1), stem_width=8, res2_width=8, res5_blocks=1, res5_width=16, anchor_sizes=(16.0, 24.0),
    rpn_post_nms_test=60,
)  # fmt: skip
COLORS = ((220, 40, 40), (40, 200, 60))


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> DetectionData:
    """Ten images of a red and a green square each, 16 to 28 pixels wide, on grey noise."""
    folder, rng, records = tmp_path_factory.mktemp("squares"), np.random.default_rng(0), []
    for number in range(10):
        pixels, boxes = rng.integers(90, 130, (HEIGHT, WIDTH, 3), dtype=np.uint8), []
        for label in range(2):
            side = int(rng.integers(16, 29))
            x, y = 48 * label + int(rng.integers(0, 48 - side)), int(rng.integers(0, HEIGHT - side))
            pixels[y : y + side, x : x + side] = COLORS[label]
            boxes.append([x, y, x + side, y + side])
        path = folder / f"{number}.png"
        Image.fromarray(pixels).save(path)
        labels, boxes = np.arange(2), np.array(boxes, dtype=np.float32)
        records.append(ImageRecord(number + 1, path, HEIGHT, WIDTH, boxes, labels, np.zeros(2, dtype=bool)))
    return DetectionData("squares", ("red", "green"), (1, 2), tuple(records))


def detector_of(params: DetectorParams = DETECTOR) -> FasterRCNN:
    """Random weights, with an RPN whose objectness differs from place to place."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        detector = FasterRCNN(params, 1)
        torch.nn.init.normal_(detector.proposal_generator.rpn_head.objectness_logits.weight, std=0.5)
        torch.nn.init.normal_(detector.proposal_generator.rpn_head.anchor_deltas.weight, std=0.2)
    return detector.eval()


@pytest.fixture(scope="module")
def detector() -> FasterRCNN:
    return detector_of()


def by_hand(boxes, *, labels=None, class_names=(), scores=None) -> RegionSet:
    """Regions of image 1."""
    scores = np.linspace(0.9, 0.1, len(boxes)) if scores is None else scores
    output = {"boxes": boxes, "scores": scores, "labels": labels}
    facts = {"provider": "by hand", "sees_novel": "no", "class_names": list(class_names)}
    return RegionSet.from_images([1], [output], facts)


# ---------------------------------------------------------------------------------------------- the RPN


def test_rpn_regions_are_its_best_boxes_that_do_not_overlap(detector, data):
    regions = rpn_regions(detector, data, top=4)
    assert list(regions.image_ids) == [record.image_id for record in data.images]
    assert regions.manifest == {
        "provider": "rpn", "sees_novel": "no", "top": 4, "class_names": [], "clip": None,
    }  # fmt: skip
    proposals = propose_boxes(detector, data)
    for image_id in regions.image_ids.tolist():
        boxes, scores = regions.of(image_id).boxes, regions.of(image_id).scores
        assert 1 <= len(boxes) <= 4 and (np.diff(scores) <= 0).all() and 0 < scores.min() <= scores.max() < 1
        assert boxes[0] == pytest.approx(proposals[image_id][0], abs=1e-4)
        ious = box_iou(*[torch.from_numpy(boxes)] * 2).fill_diagonal_(0)
        assert ious.max() <= 0.5
    assert np.array_equal(rpn_regions(detector, data, top=9).top(4).boxes, regions.boxes)
    batched = rpn_regions(detector, data, top=4, batch_size=4)
    assert batched.boxes == pytest.approx(regions.boxes, abs=1e-3)


def test_regions_are_in_pixels_of_the_original_image(data):
    regions = rpn_regions(detector_of(DETECTOR.model_copy(update={"min_size": (128,)})), data, top=60)
    limits = regions.boxes.max(axis=0)
    assert limits[2] == pytest.approx(WIDTH, abs=0.01) and limits[3] == pytest.approx(HEIGHT, abs=0.01)


# ---------------------------------------------------------------------------------------------- objectness


def test_objectness_samples_are_proposals_at_boxes_alone(detector, data):
    red = data.select_classes(["red"])
    features, quality = _quality_samples(detector, red)
    assert len(features) == len(quality) and quality.min() >= MIN_IOU
    proposals = propose_boxes(detector, red)
    expected = 0
    for record in red.images:
        ious = overlap(proposals[record.image_id], record.boxes)
        expected += int((ious.max(axis=1) >= MIN_IOU).sum())
    assert (
        len(quality) == expected < sum(map(len, proposals.values()))
    )  # green squares are no negatives: no samples


def test_objectness_learns_the_overlap_and_nothing_else_changes(detector, data):
    weights = {key: value.clone() for key, value in detector.state_dict().items()}
    torch.manual_seed(5)
    before = torch.get_rng_state()
    head = train_objectness(detector, data, seed=3, iterations=120, batch_size=64)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(value, weights[key]) for key, value in detector.state_dict().items())
    features, quality = _quality_samples(detector, data)
    assert (head(features) - quality).abs().mean() < 0.6 * (quality - quality.median()).abs().mean()
    again = train_objectness(detector, data, seed=3, iterations=120, batch_size=64)
    other = train_objectness(detector, data, seed=4, iterations=120, batch_size=64)
    assert torch.equal(head(features), again(features)) and not torch.equal(head(features), other(features))


def test_objectness_regions_rank_by_objectness_and_quality(detector, data):
    head = train_objectness(detector, data.select_classes(["red"]), seed=0, iterations=20)
    regions = objectness_regions(detector, head, data, top=60)
    assert regions.manifest["trained_on"] == ["red"] and regions.manifest["provider"] == "objectness"
    plain = rpn_regions(detector, data, top=60)
    constant = train_objectness(detector, data, seed=0, iterations=1)
    with torch.no_grad():
        constant.layers[2].weight.zero_()
        constant.layers[2].bias.zero_()  # quality 0.5 of all
    same = objectness_regions(detector, constant, data, top=60)
    assert np.array_equal(same.boxes, plain.boxes) and same.scores == pytest.approx(
        (plain.scores * 0.5) ** 0.5
    )
    assert not np.array_equal(regions.top(3).boxes, plain.top(3).boxes)


def test_objectness_without_a_proposal_at_a_box_is_refused(detector, data):
    boxes, labels, is_crowd = np.array([[0, 0, 1, 1]], np.float32), np.zeros(1, np.int64), np.zeros(1, bool)
    images = [
        ImageRecord(r.image_id, r.path, r.height, r.width, boxes, labels, is_crowd) for r in data.images
    ]
    with pytest.raises(DataError, match="overlaps an annotated box by IoU 0.3"):
        train_objectness(detector, dataclasses.replace(data, images=tuple(images)), seed=0)


# ---------------------------------------------------------------------------------------------- annotations


def test_annotated_boxes_are_an_oracle_unless_said_otherwise(data):
    regions = annotated_regions(data)
    assert np.array_equal(regions.boxes, data.flat.boxes) and np.array_equal(regions.labels, data.flat.labels)
    assert regions.manifest["provider"] == "oracle" and regions.manifest["sees_novel"] == "yes"
    base = annotated_regions(data.select_classes(["green"]), sees_novel="no")
    assert base.manifest["provider"] == "base boxes" and base.manifest["class_names"] == ["green"]
    assert len(base) == 10
    crowd = dataclasses.replace(data.images[0], is_crowd=np.array([True, False]))
    with_crowd = dataclasses.replace(data, images=(crowd, *data.images[1:]))
    assert annotated_regions(with_crowd).of(1).labels.tolist() == [1]


def test_jitter_moves_corners_within_its_share_and_misses_are_drawn(data):
    regions = annotated_regions(data, jitter=0.2, seed=1)
    sides = np.tile(data.flat.boxes[:, 2:] - data.flat.boxes[:, :2], 2)
    shift = np.abs(regions.boxes - data.flat.boxes) / sides
    assert 0.1 < shift.max() <= 0.2 + 1e-6 and (regions.boxes >= 0).all()
    assert np.array_equal(annotated_regions(data, jitter=0.2, seed=1).boxes, regions.boxes)
    assert not np.array_equal(annotated_regions(data, jitter=0.2, seed=2).boxes, regions.boxes)
    many = dataclasses.replace(
        data, images=tuple(dataclasses.replace(data.images[n % 10], image_id=n) for n in range(200))
    )
    assert 0.2 < 1 - len(annotated_regions(many, miss=0.3)) / 400 < 0.4  # four standard errors are 0.09
    with pytest.raises(ParamsError, match="0 <= jitter < 0.5"):
        annotated_regions(data, jitter=0.5)


# ---------------------------------------------------------------------------------------------- recall and classes


def test_recall_by_hand(data):
    first = dataclasses.replace(data, images=data.images[:1])
    red, green = first.images[0].boxes
    assert recall_of(annotated_regions(first), first, ["red", "green"]) == 100
    assert recall_of(by_hand([red]), first, ["red"]) == 100
    assert recall_of(by_hand([red]), first, ["green"]) == 0
    assert recall_of(by_hand([red]), first, ["green", "red"]) == 50
    width = red[2] - red[0]
    half = [red[0], red[1], red[0] + width / 2, red[3]]
    assert recall_of(by_hand([half]), first, ["red"]) == 100  # IoU 0.5
    less = [red[0], red[1], red[0] + width / 2 - 0.1, red[3]]
    assert recall_of(by_hand([less]), first, ["red"]) == 0
    assert recall_of(by_hand([less]), first, ["red"], iou_thresh=0.4) == 100
    crowd = dataclasses.replace(first.images[0], is_crowd=np.array([False, True]))
    assert recall_of(by_hand([red]), dataclasses.replace(first, images=(crowd,)), ["red", "green"]) == 100
    with pytest.raises(DataError, match="no object of red"):
        recall_of(by_hand([red]), DetectionData("none", ("red",), (1,), ()), ["red"])
    with pytest.raises(DataError, match="image 2 is not among"):
        recall_of(by_hand([red]), data, ["red"])


def test_best_box_of_each_name_of_an_image():
    boxes = [[0, 0, 9, 9], [1, 0, 9, 9], [2, 0, 9, 9], [3, 0, 9, 9], [4, 0, 9, 9]]
    found = by_hand(
        boxes, labels=[1, 0, 1, 2, -1], class_names=("cat", "dog", "sun"), scores=[0.9, 0.8, 0.7, 0.6, 0.5]
    )
    best = best_of_class(found, {1: ("dog", "cat")}, class_names=("dog", "cat"))
    assert best.labels.tolist() == [0, 1] and best.boxes[:, 0].tolist() == [0, 1]
    assert best.manifest["names_without_box"] == 0 and best.manifest["class_names"] == ["dog", "cat"]
    strict = best_of_class(found, {1: ("dog", "sun")}, class_names=("sun", "dog"), score_thresh=0.6)
    assert strict.labels.tolist() == [1] and strict.manifest["names_without_box"] == 1  # above it, not at it
    unseen = best_of_class(found, {1: ("bird",)}, class_names=("bird",))
    assert len(unseen) == 0 and list(unseen.image_ids) == [1] and unseen.manifest["names_without_box"] == 1
    with pytest.raises(SplitError, match="no class 'dog'"):
        best_of_class(found, {1: ("dog",)}, class_names=("cat",))
    with pytest.raises(DataError, match="image 4 is not among"):
        best_of_class(found, {4: ("dog",)}, class_names=("dog",))


def test_classes_are_renumbered_by_name():
    found = by_hand([[0, 0, 9, 9]] * 3, labels=[1, 0, -1], class_names=("cat", "dog"))
    assert with_classes(found, ("sun", "dog", "cat")).labels.tolist() == [1, 2, -1]
    with pytest.raises(SplitError, match="there is no class 'cat'"):
        with_classes(found, ("dog",))
