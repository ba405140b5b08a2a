"""The detector's contract: inputs, outputs, what learns, and how images are prepared."""

import numpy as np
import pytest
import torch
from PIL import Image

from risf_core.detector.faster_rcnn import FasterRCNN, resized_size
from risf_core.errors import DataError
from risf_core.params import DetectorParams

from .conftest import TINY, make_images


def test_training_returns_the_four_losses_and_detection_keeps_its_contract(tiny_detector):
    images, targets = make_images(2)
    losses = tiny_detector.train()(images, targets)
    assert set(losses) == {"loss_rpn_objectness", "loss_rpn_box", "loss_cls", "loss_box"}
    assert all(torch.isfinite(value) for value in losses.values())
    found = tiny_detector.eval()([images[0], images[1][:, :50, :60]])
    assert len(found) == 2
    for one, (height, width) in zip(found, [(64, 64), (50, 60)], strict=True):
        count = len(one["scores"])
        assert one["boxes"].shape == (count, 4) and one["class_scores"].shape == (count, 4)
        assert one["scores"].diff().le(0).all() and count > 0
        assert torch.allclose(one["class_scores"].sum(1), torch.ones(count), atol=1e-5)
        assert torch.equal(one["scores"], one["class_scores"].gather(1, one["labels"][:, None]).squeeze(1))
        assert (
            (one["boxes"] >= 0).all()
            and one["boxes"][:, 2].max() <= width
            and one["boxes"][:, 3].max() <= height
        )


def test_detections_of_an_image_do_not_depend_on_its_batch(tiny_detector):
    images, _ = make_images(2)
    tiny_detector.eval()
    alone, together = tiny_detector(images[:1])[0], tiny_detector(images)[0]
    assert torch.equal(alone["labels"], together["labels"])
    assert torch.allclose(alone["boxes"], together["boxes"], atol=1e-3)


def test_some_steps_of_training_lower_the_loss(tiny_detector):
    images, targets = make_images(3)
    optimizer = torch.optim.SGD(tiny_detector.parameters(), lr=0.02, momentum=0.9)
    tiny_detector.train()
    totals = []
    for _ in range(25):
        losses = tiny_detector(images, targets)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        totals.append(float(losses["loss_cls"].detach()))
    assert sum(totals[-5:]) < 0.7 * sum(totals[:5])


@pytest.mark.parametrize(
    ("name", "learning", "frozen"),
    [
        ("box_head", "roi_heads.box_predictor.cls_score.weight", "proposal_generator.rpn_head.conv.weight"),
        ("head_and_rpn", "affine_rcnn.weight", "backbone.res4.0.conv1.weight"),
        ("all_but_res5", "backbone.res4.0.conv1.weight", "roi_heads.res5.0.conv1.weight"),
        ("all", "roi_heads.res5.0.conv1.weight", None),
    ],
)
def test_trainable_groups(tiny_detector, name, learning, frozen):
    tiny_detector.set_trainable(name)
    parameters = dict(tiny_detector.named_parameters())
    assert parameters[learning].requires_grad
    assert frozen is None or not parameters[frozen].requires_grad


def test_freeze_at_freezes_the_first_stages_and_their_statistics():
    detector = FasterRCNN(DetectorParams(**TINY, freeze_at=2), 3).train()
    images, targets = make_images(2)
    before = {key: value.clone() for key, value in detector.state_dict().items()}
    sum(detector(images, targets).values()).backward()
    assert detector.backbone.res2[0].conv1.weight.grad is None
    assert detector.backbone.res3[0].conv1.weight.grad is not None
    after = detector.state_dict()
    assert torch.equal(
        before["backbone.res2.0.conv1.norm.running_mean"], after["backbone.res2.0.conv1.norm.running_mean"]
    )
    assert not torch.equal(
        before["backbone.res3.0.conv1.norm.running_mean"], after["backbone.res3.0.conv1.norm.running_mean"]
    )


def test_rpn_gradient_stops_at_the_decoupled_layer(tiny_detector):
    images, targets = make_images(2)
    losses = tiny_detector.train()(images, targets)
    (losses["loss_rpn_objectness"] + losses["loss_rpn_box"]).backward()
    assert tiny_detector.affine_rpn.weight.grad is not None
    assert tiny_detector.backbone.res4[0].conv1.weight.grad is None


def test_resize_follows_short_and_long_side():
    detector = FasterRCNN(DetectorParams(**TINY, min_size=(80,), max_size=100), 3)
    assert detector.resize(torch.zeros(3, 40, 44, dtype=torch.uint8)).shape == (3, 80, 88)
    # long side decides
    assert detector.resize(torch.zeros(3, 40, 100, dtype=torch.uint8)).shape == (
        3,
        40,
        100,
    )
    image = torch.zeros(3, 7, 9, dtype=torch.uint8)
    assert FasterRCNN(DetectorParams(**TINY), 3).resize(image) is image


@pytest.mark.parametrize(
    ("size", "short_side", "expected"),
    [
        ((480, 640), 800, (800, 1067)),  # 640 x 5/3 = 1066.67
        ((375, 500), 480, (480, 640)),
        ((500, 333), 800, (1201, 800)),  # 1201.2
        ((240, 640), 800, (500, 1333)),  # 2133.3 is too long: 800 x 1333 / 2133.3 = 499.9
        (
            (2448, 1224),
            800,
            (1333, 667),
        ),  # 800 x 1333 / 1600 = 666.5; in one step, 1224 x 1333 / 2448, it is 666
        ((300, 300), 608, (608, 608)),
    ],
)
def test_sizes_are_detectron2_s(size, short_side, expected):
    assert resized_size(size, short_side, 1333) == expected


def test_pixels_are_resized_by_pil_s_bilinear_filter_mirrored_or_not():
    """detectron2 resizes and then mirrors; here the image comes mirrored, which is the same to the last bit."""
    pixels = np.random.default_rng(0).integers(0, 256, (37, 53, 3), dtype=np.uint8)
    expected = np.asarray(Image.fromarray(pixels).resize((86, 60), Image.Resampling.BILINEAR))
    detector = FasterRCNN(DetectorParams(**TINY, min_size=(60,), max_size=1333), 3)
    image = torch.from_numpy(pixels).permute(2, 0, 1)
    np.testing.assert_array_equal(detector.resize(image).permute(1, 2, 0).numpy(), expected)
    np.testing.assert_array_equal(detector.resize(image.flip(-1)).permute(1, 2, 0).numpy(), expected[:, ::-1])


def test_training_draws_the_short_side_from_the_list_and_evaluation_takes_the_last():
    detector = FasterRCNN(DetectorParams(**TINY, min_size=(48, 56, 64), max_size=100), 3)
    assert {detector.train().draw_short_side() for _ in range(50)} == {48, 56, 64}
    image = torch.zeros(3, 32, 40, dtype=torch.uint8)
    assert detector.eval().draw_short_side() is None and detector.resize(image).shape == (3, 64, 80)


def test_boxes_come_back_in_original_pixels():
    detector = FasterRCNN(DetectorParams(**TINY, min_size=(128,)), 3).eval()
    images, _ = make_images(1)
    found = detector(images)[0]
    assert found["boxes"].max() <= 64 and found["boxes"].max() > 48


def test_channels_and_padding(tiny_params):
    params = tiny_params.model_copy(
        update={"image_order": "BGR", "pixel_mean": (1.0, 2.0, 3.0), "pixel_std": (1.0, 1.0, 2.0)}
    )
    detector = FasterRCNN(params, 3)
    image = torch.stack([torch.full((2, 2), value, dtype=torch.uint8) for value in (30, 20, 10)])  # R, G, B
    batch, sizes = detector.batch([image, torch.zeros(3, 4, 3, dtype=torch.uint8)])
    assert sizes == [(2, 2), (4, 3)] and batch.shape == (2, 3, 4, 3)
    assert batch[0, :, 0, 0].tolist() == [9.0, 18.0, 13.5]  # B, G, R
    assert (batch[0, :, 2:] == 0).all() and (batch[0, :, :, 2:] == 0).all()  # padded after the mean is gone


@pytest.mark.parametrize(
    ("boxes", "labels", "message"),
    [
        ([[1.0, 1.0, float("nan"), 5.0]], [0], "finite"),
        ([[5.0, 1.0, 5.0, 9.0]], [0], "x1 < x2"),
        ([[1.0, 1.0, 5.0, 5.0]], [3], "labels must lie in 0..2"),
    ],
)
def test_poisonous_targets_are_refused(tiny_detector, boxes, labels, message):
    images, _ = make_images(1)
    target = {"boxes": torch.tensor(boxes), "labels": torch.tensor(labels)}
    with pytest.raises(DataError, match=message):
        tiny_detector.train()(images, [target])


def test_a_recorded_step_repeats_its_losses(tiny_detector):
    """With the recorded draw of anchors and RoIs, no random generator plays a part (dropout apart)."""
    tiny_detector.roi_heads.box_predictor.dropout = 0.0
    images, targets = make_images(2)
    batch, sizes = tiny_detector.train().batch(images)
    drawn = []
    draw = tiny_detector.draw_samples
    tiny_detector.draw_samples = lambda *step: drawn.append(draw(*step)) or drawn[-1]
    first = tiny_detector.losses(batch, sizes, targets)
    again = tiny_detector.losses(batch, sizes, targets, samples=drawn[0])
    assert len(drawn) == 1
    assert {key: value.item() for key, value in first.items()} == {k: v.item() for k, v in again.items()}


def test_an_image_without_boxes_trains(tiny_detector):
    images, targets = make_images(2)
    targets[0] = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    assert torch.isfinite(sum(tiny_detector.train()(images, targets).values()))
