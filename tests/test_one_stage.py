"""One-stage detectors: what is stored is what torchvision's classes return, and fine-tuning touches what it should."""

from inspect import signature

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.models.detection import FCOS, RetinaNet

from risf_core.data.dataset import DetectionData, ImageRecord
from risf_core.data.loader import load_batch
from risf_core.detector.faster_rcnn import FasterRCNN
from risf_core.errors import CheckpointError, DataError
from risf_core.params import DetectorParams, SolverParams
from risf_core.studies.one_stage import (
    CLASSIFIER,
    build_one_stage,
    detect_from_maps,
    head_losses,
    load_backbone,
    neck_maps,
    set_trainable,
    start_few_shot,
    train_base,
    train_few_shot,
)
from risf_core.study_params import OneStageParams, OtherDetectorsParams

KINDS = ("retinanet", "fcos")
SIDE = 64
DETECTOR = DetectorParams(stages=(1, 1, 1), stem_width=8, res2_width=8, res5_blocks=1, res5_width=16)
ONE_STAGE = OneStageParams(width=32, anchor_sizes=(20.0, 32.0), anchor_ratios=(1.0,))
SOLVER = SolverParams(iterations=12, batch_size=4, lr=0.05, precision="fp32")
COLORS = ((220, 40, 40), (40, 200, 60), (50, 70, 230))


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> DetectionData:
    """Six images of two coloured squares each, three classes."""
    folder, generator = tmp_path_factory.mktemp("squares"), np.random.default_rng(0)
    records = []
    for number in range(6):
        pixels = generator.integers(90, 130, (SIDE, SIDE, 3), dtype=np.uint8)
        labels, boxes = np.array([number % 3, (number + 1) % 3]), []
        for place, label in enumerate(labels):
            x, y = 4 + 30 * place + generator.integers(0, 6), 6 + generator.integers(0, 30)
            pixels[y : y + 22, x : x + 22] = COLORS[label]
            boxes.append([x, y, x + 22, y + 22])
        Image.fromarray(pixels).save(folder / f"{number}.png")
        boxes = np.array(boxes, dtype=np.float32)
        path = folder / f"{number}.png"
        records.append(ImageRecord(number + 1, path, SIDE, SIDE, boxes, labels, np.zeros(2, dtype=bool)))
    return DetectionData("squares", ("red", "green", "blue"), (1, 2, 3), tuple(records))


def _model(kind: str, num_classes: int = 3, seed: int = 0):
    torch.manual_seed(seed)
    return build_one_stage(kind, DETECTOR, ONE_STAGE, num_classes, SIDE)


def _shaken(kind: str):
    """A model whose outputs differ from place to place, as a fresh one's do not."""
    model = _model(kind)
    with torch.no_grad():
        for key, value in model.head.named_parameters():
            if "cls_logits.weight" in key or "bbox_reg.weight" in key:
                value.mul_(30)
            if "cls_logits.bias" in key:
                value.fill_(-1.0)
            if "bbox_reg.bias" in key and kind == "fcos":
                value.fill_(1.5)
    return model.eval()


@pytest.mark.parametrize("kind", KINDS)
def test_detections_from_stored_maps_are_torchvisions_own(kind, data):
    model = _shaken(kind)
    images, _ = load_batch(data, range(len(data)))
    with torch.no_grad():
        wanted = model([image.float() / 255 for image in images])
    found = detect_from_maps(model, neck_maps(model, data, desc="maps"), data)
    assert len(found) == sum(len(one["scores"]) for one in wanted) > 100
    for record, one in zip(data.images, wanted, strict=True):
        own = found.keep(found.image_ids == record.image_id)
        order = np.lexsort((one["labels"], -one["scores"]))
        again = np.lexsort((own.labels, -own.scores))
        np.testing.assert_allclose(own.scores[again], one["scores"][order], atol=1e-5)  # batches round apart
        for row in range(0, len(own), 7):  # near-equal scores may change places
            distance = np.abs(own.boxes[row] - one["boxes"].numpy()).max(axis=1)
            same = (distance < 0.01) & (one["labels"].numpy() == own.labels[row])
            assert np.abs(one["scores"].numpy()[same] - own.scores[row]).min() < 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_class_scores_hold_the_own_score_and_a_background_of_independent_classes(kind, data):
    model = _shaken(kind)
    found = detect_from_maps(model, neck_maps(model, data, desc="maps"), data)
    np.testing.assert_array_equal(found.class_scores[np.arange(len(found)), found.labels], found.scores)
    np.testing.assert_allclose(
        found.class_scores[:, -1], (1 - found.class_scores[:, :-1]).prod(axis=1), rtol=1e-5
    )
    places = (SIDE // 8) ** 2 * (2 if kind == "retinanet" else 1)
    assert 0 <= found.proposals.min() and found.proposals.max() < places
    same = (found.image_ids[:-1] == found.image_ids[1:]) & (found.proposals[:-1] == found.proposals[1:])
    assert (found.class_scores[:-1][same] == found.class_scores[1:][same]).all()


@pytest.mark.parametrize("kind", KINDS)
def test_losses_from_stored_maps_are_those_of_the_whole_detector(kind, data):
    model = _shaken(kind)
    maps = neck_maps(model, data, mirrored=True, desc="maps")
    images, targets = load_batch(data, [0, 3], flips=[True, False])
    model.train()
    model.backbone.eval()  # as where the maps were made
    with torch.no_grad():
        wanted = model([image.float() / 255 for image in images], targets)
        chosen = maps[torch.tensor([0, 3]), torch.tensor([1, 0])]
        found = head_losses(model, chosen, targets, SIDE)
    assert found.keys() == wanted.keys() and all(value > 0 for value in found.values())
    for name, value in wanted.items():
        assert float(found[name]) == pytest.approx(float(value), rel=1e-4), name


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("trainable", ["classification", "heads"])
def test_fine_tuning_trains_the_named_branches_alone_and_repeats_exactly(kind, trainable, data):
    novel = data.select_classes(["blue", "red"]).drop_empty()
    base = {key: value.clone() for key, value in _model(kind, num_classes=3).state_dict().items()}

    def tuned(seed: int) -> dict[str, torch.Tensor]:
        model = _model(kind, num_classes=2, seed=seed + 5)
        start_few_shot(model, base, seed=seed)
        maps = neck_maps(model, novel, mirrored=True, desc="maps")
        set_trainable(model, trainable)
        curve = train_few_shot(model, novel, maps, SOLVER, seed=seed, desc="few-shot")
        assert curve[-1]["loss"] < curve[0]["loss"]
        return model.state_dict()

    first, again, other = tuned(0), tuned(0), tuned(1)
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first[f"{CLASSIFIER}weight"], other[f"{CLASSIFIER}weight"])
    assert len(first[f"{CLASSIFIER}bias"]) == len(base[f"{CLASSIFIER}bias"]) * 2 // 3
    for key, value in first.items():
        if key.startswith(CLASSIFIER):
            continue
        may_change = key.startswith("head.classification_head.") or (
            trainable == "heads" and key.startswith("head.")
        )
        assert torch.equal(value, base[key]) != may_change, key


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_classifier_starts_at_the_prior_of_focal_loss(kind):
    base = _model(kind, num_classes=3).state_dict()
    models = [_model(kind, num_classes=2, seed=seed) for seed in (1, 2)]
    for model in models:
        start_few_shot(model, base, seed=7)
    first, second = (model.head.classification_head.cls_logits for model in models)
    assert torch.equal(first.weight, second.weight)  # of the seed given, whatever was drawn before
    assert torch.allclose(first.bias.sigmoid(), torch.tensor(0.01))
    assert 0.009 < float(first.weight.detach().std()) < 0.011


@pytest.mark.parametrize("kind", KINDS)
def test_base_training_starts_from_the_two_stage_backbone_and_learns(kind, data, tmp_path):
    torch.manual_seed(3)
    two_stage = FasterRCNN(DETECTOR, 3).state_dict()
    model = _model(kind)
    load_backbone(model, two_stage)
    assert torch.equal(model.backbone.body.res4[0].conv1.weight, two_stage["backbone.res4.0.conv1.weight"])
    solver = SOLVER.model_copy(update={"iterations": 40, "checkpoint_every": 20})
    path = tmp_path / "checkpoint.pth"
    curve = train_base(model, data, solver, seed=0, desc="base", checkpoint=path)
    assert curve[-1]["loss"] < 0.6 * curve[0]["loss"] and path.is_file()
    with pytest.raises(CheckpointError, match=r"two-stage base model"):
        load_backbone(_model(kind), {"backbone.stem.conv1.weight": torch.zeros(1)})


def test_an_image_of_another_size_is_refused_by_name(data):
    small = build_one_stage("fcos", DETECTOR, ONE_STAGE, 3, 96)
    with pytest.raises(DataError, match=r"squares: image 1 has 64x64 pixels.*one size, 96x96"):
        neck_maps(small, data, desc="maps")


def test_cut_nms_and_candidates_are_torchvisions_defaults():
    params = OtherDetectorsParams(profile="t", clip={"run": "x.yaml"})
    for kind, published in zip(KINDS, (RetinaNet, FCOS), strict=True):
        defaults = {name: value.default for name, value in signature(published).parameters.items()}
        model = _model(kind)
        assert params.score_threshs[kind] == defaults["score_thresh"]
        assert model.nms_thresh == defaults["nms_thresh"]
        assert model.topk_candidates == defaults["topk_candidates"]
