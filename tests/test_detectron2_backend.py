"""The detector on detectron2's parts beside ours, on the same weights."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from risf_core import fine_tuning
from risf_core.bnrl import get_loss
from risf_core.detector.build import build_detector
from risf_core.detector.checkpoints import load_weights
from risf_core.detector.faster_rcnn import FasterRCNN
from risf_core.errors import ParamsError
from risf_core.head_training import extract_region_features, train_box_head
from risf_core.params import DetectorParams, SolverParams

from .detector.conftest import TINY, make_images, square_data  # noqa: F401
from .detector.reference_model import (
    QUARTER_R101,
    REFERENCE,
    load_reference_model,
    needs_reference,
    two_threads,  # noqa: F401  a fixture
)
from .notebook_files import launch, link_project
from .test_fine_tuning import _params, _run, base  # noqa: F401

BOTTLENECK = {
    "block": "bottleneck",
    "stem": "resnet",
    "res2_width": 32,
    "res5_width": 64,
    "stride_in_1x1": True,
}
NETWORKS = {
    "mini": {},
    "paper's form": BOTTLENECK | {"dilate_res4": False, "norm": "FrozenBN", "class_agnostic_boxes": True},
    "dilated": BOTTLENECK | {"stride_in_1x1": False, "norm": "GN"},
    "plain basic": {"dilate_res4": False, "norm": "GN"},
}


@pytest.fixture(scope="module")
def detectron2():
    return pytest.importorskip("detectron2", reason="detectron2 is not installed; it is an optional back end")


def pair(changes=None, *, num_classes=3, seed=0):
    """Our detector and detectron2's with the same weights; statistics that normalise, so that nothing overflows."""
    params = DetectorParams(**(TINY | (changes or {})))
    torch.manual_seed(seed)
    ours = FasterRCNN(params, num_classes)
    theirs = build_detector(params.model_copy(update={"backend": "detectron2"}), num_classes)
    load_weights(theirs, ours.state_dict(), allow_missing=())
    return ours, theirs


def test_without_detectron2_the_error_says_what_to_do():
    code = """
import sys
sys.modules["detectron2"] = None
from risf_core.detector.build import build_detector
from risf_core.params import DetectorParams
try:
    build_detector(DetectorParams(backend="detectron2"), 2)
except Exception as error:
    print(type(error).__name__, error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "ParamsError detector.backend is detectron2, which cannot be imported" in done.stdout
    assert "backend: risf" in done.stdout


def test_ours_is_the_default():
    assert type(build_detector(DetectorParams(**TINY), 2)) is FasterRCNN


@pytest.mark.parametrize("changes", NETWORKS.values(), ids=NETWORKS)
def test_weights_go_both_ways_and_detections_are_equal(detectron2, changes):
    ours, theirs = pair(changes)
    assert list(ours.state_dict()) != [] and set(ours.state_dict()) == set(theirs.state_dict())
    load_weights(ours, theirs.state_dict(), allow_missing=())
    images, _ = make_images(2)
    images[1] = images[1][:, :50, :60]
    for one, other in zip(ours.eval()(images), theirs.eval()(images), strict=True):
        assert set(one) == set(other) and len(one["scores"]) > 0
        assert torch.equal(one["labels"], other["labels"])
        assert torch.equal(one["proposal"], other["proposal"])
        for key in ("boxes", "scores", "class_scores"):
            assert torch.allclose(one[key], other[key], atol=1e-4 if key == "boxes" else 1e-6), key


@pytest.mark.parametrize("changes", NETWORKS.values(), ids=NETWORKS)
def test_training_losses_and_gradients_are_equal(detectron2, changes):
    """Also the draw of anchors and RoIs: both take it from the same random numbers in the same order."""
    images, targets = make_images(3)
    targets[1] = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    results = []
    for detector in pair(changes):
        detector.train()
        torch.manual_seed(5)
        losses = detector(images, targets)
        sum(losses.values()).backward()
        gradients = {key: value.grad for key, value in detector.named_parameters() if value.grad is not None}
        results.append((losses, gradients))
    (losses, gradients), (their_losses, their_gradients) = results
    assert {k: v.item() for k, v in losses.items()} == pytest.approx(
        {k: v.item() for k, v in their_losses.items()}, rel=1e-5
    )
    assert set(gradients) == set(their_gradients)
    for key, gradient in gradients.items():
        assert (gradient - their_gradients[key]).norm() <= 1e-4 * gradient.norm() + 1e-7, key


@pytest.mark.parametrize("network", ["mini", "paper's form"])
def test_two_hundred_steps_take_the_same_way(detectron2, network):
    """From the same weights, on recorded minibatches, anchors and RoIs, in float64.

    Boxes of detectron2 are float32, so that anchors and objects have corners here which float32 holds exactly.
    """
    changes = NETWORKS[network] | {"anchor_ratios": (0.25, 1.0, 4.0), "cls_dropout": 0.0}
    ours, theirs = (detector.double().train() for detector in pair(changes))
    images, targets = make_images(6)
    solvers = [
        torch.optim.SGD(d.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4) for d in (ours, theirs)
    ]
    curves, recorded = ([], []), []
    draw = ours.draw_samples
    ours.draw_samples = lambda *step: recorded.append(draw(*step)) or recorded[-1]
    for step in range(200):
        chosen = [(2 * step + i) % 6 for i in range(2)]
        for detector, solver, curve in zip((ours, theirs), solvers, curves, strict=True):
            batch, sizes = detector.batch([images[i] for i in chosen])
            samples = recorded[step] if detector is theirs else None
            losses = detector.losses(batch, sizes, [targets[i] for i in chosen], samples=samples)
            solver.zero_grad()
            sum(losses.values()).backward()
            solver.step()
            curve.append([losses[key].item() for key in sorted(losses)])
    worst = np.abs(np.subtract(*curves)).max()
    assert np.isfinite(curves).all() and worst < 1e-6
    assert sum(curves[0][-1]) < 0.5 * sum(curves[0][0])


@pytest.mark.parametrize("name", ["box_head", "all_but_res5"])
def test_the_same_parameters_learn(detectron2, name):
    learning = []
    for detector in pair(NETWORKS["paper's form"] | {"freeze_at": 3}):
        detector.set_trainable(name)
        learning.append({key for key, value in detector.named_parameters() if value.requires_grad})
    assert learning[0] == learning[1]


def test_box_head_on_cached_features_trains_alike(detectron2, square_data):  # noqa: F811
    solver = SolverParams(iterations=8, batch_size=2, lr=0.05, precision="fp32")
    curves = []
    for detector in pair():
        cache = extract_region_features(detector, square_data, training=True)
        curves.append(train_box_head(detector, square_data, cache, solver, seed=4))
    assert [point["loss"] for point in curves[0]] == pytest.approx(
        [point["loss"] for point in curves[1]], rel=1e-4
    )


def test_fine_tuning_runs_on_it(detectron2, base, tmp_path):  # noqa: F811
    """A base model of ours, fine-tuned on detectron2's parts, learns and detects as ours does.

    In the setting gfsod the whole head comes from surgery; in fsod each draws its own.
    """
    found = []
    for backend in ("risf", "detectron2"):
        params = _params(base, setting="gfsod")
        context = fine_tuning.open_context(params, _run(base, tmp_path / backend))
        context.base = context.base.model_copy(
            update={"detector": context.base.detector.model_copy(update={"backend": backend})}
        )
        found.append(
            fine_tuning.fine_tune(
                context, get_loss("bnrl"), seed=0, arm="kshot", trainable="all", cached=False
            )
        )
    (ours, curve), (theirs, their_curve) = found
    assert [point["loss"] for point in curve] == pytest.approx([p["loss"] for p in their_curve], rel=1e-4)
    assert len(ours) > 0 and abs(len(ours) - len(theirs)) <= 0.02 * len(ours)


def test_base_training_runs_on_it(detectron2, base, tmp_path):  # noqa: F811
    from types import SimpleNamespace

    from risf_core.base_training import train_base_model
    from risf_core.params import BaseTrainingParams

    values = base.record["params"]
    values = values | {"detector": values["detector"] | {"backend": "detectron2"}}
    metrics = train_base_model(
        BaseTrainingParams.model_validate(values), SimpleNamespace(dir=tmp_path, device="cpu", environment={})
    )
    theirs, ours = metrics["curve"][0]["loss"], base.record["metrics"]["curve"][0]["loss"]
    assert np.isfinite(theirs) and (tmp_path / "model.pth").exists()
    assert theirs == pytest.approx(ours, rel=0.5)  # other first weights


def test_notebooks_run_on_it_when_a_parameter_says_so(detectron2, tmp_path):
    """Base training and fine-tuning at smoke size through the launcher, then the evaluation of the base model."""
    root = link_project(tmp_path)
    base_run = "{params: params/smoke/10_base_training.yaml, set: {detector.backend: detectron2}}"
    changes = {"base": base_run, "losses": "[bnrl]", "seeds": "[0]", "arms": "[kshot]", "clip": "null"}
    changes |= {"trainable": "all", "cached": "false"}
    for notebook, values in {
        "20_fine_tuning": changes,
        "21_evaluate": {"checkpoint": f"{{run: {base_run}}}"},
    }.items():
        words = [word for name, value in values.items() for word in ("-p", name, value)]
        command = (f"notebooks/{notebook}.ipynb", "--params", f"params/smoke/{notebook}.yaml")
        done = launch(root, *command, "--with-upstream", *words)
        assert done.returncode == 0, done.stderr
    records = [json.loads(path.read_text()) for path in (root / "results/smoke/records").glob("*.json")]
    trained, tuned, evaluated = sorted(records, key=lambda record: record["notebook"])
    assert trained["params"]["detector"]["backend"] == "detectron2"
    assert all(record["environment"]["versions"]["detectron2"] for record in records)
    assert tuned["rows"][0]["num_detections"] > 0
    assert evaluated["rows"][0]["bAP"] == trained["metrics"]["bAP"]


def test_networks_that_it_has_not_are_named(detectron2):
    params = DetectorParams(**(TINY | {"res5_width": 32, "backend": "detectron2"}))
    with pytest.raises(ParamsError, match="no stage of 32 to 32 channels with stride 2"):
        build_detector(params, 2)


@needs_reference
@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("case", ["eval0", "eval1"])
def test_published_detections_on_it(detectron2, case):
    theirs = build_detector(QUARTER_R101.model_copy(update={"backend": "detectron2"}), 20).eval()
    load_weights(theirs, load_reference_model().state_dict(), allow_missing=())
    reference = np.load(REFERENCE / "model_r101_quarter_eval.npz")
    image = torch.from_numpy(reference[f"{case}/image_u8_bgr_chw"])
    size = tuple(int(side) for side in reference[f"{case}/output_hw"])
    found = theirs.detect_resized_bgr(image, size, score_thresh=0.05, max_detections=100)
    assert np.array_equal(found["labels"], reference[f"{case}/det_classes"])
    assert np.abs(found["boxes"].numpy() - reference[f"{case}/det_boxes"]).max() < 0.01
    assert np.abs(found["scores"].numpy() - reference[f"{case}/det_scores"]).max() < 1e-5
