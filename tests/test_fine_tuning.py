"""Fine-tuning of a tiny base model on a tiny world: settings, cache, rows, resuming."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from risf_core import fine_tuning
from risf_core.base_training import evaluate_base_model, train_base_model
from risf_core.bnrl import get_loss
from risf_core.checkpoint_evaluation import evaluate_checkpoint
from risf_core.data.benchmark import open_benchmark
from risf_core.data.pictograms import SPLITS
from risf_core.detecting import propose_boxes
from risf_core.detections import Detections, Similarities, cut
from risf_core.detector.checkpoints import HEAD
from risf_core.errors import CheckpointError, ParamsError
from risf_core.head_training import extract_region_features
from risf_core.params import (
    BaseTrainingParams,
    CheckpointSource,
    EvaluateParams,
    FineTuningParams,
    PictogramData,
    SolverParams,
    XmlData,
)
from risf_core.runs.state import digest
from risf_core.voc_evaluation import evaluator_for

from .data.voc_files import write_pair
from .detector.conftest import TINY
from .test_ablations import _Rows


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A base model trained for a few steps on a tiny world, as an upstream run."""
    root = tmp_path_factory.mktemp("world")
    data = PictogramData(
        root=str(root),
        image_size=64,
        num_base_images=90,
        num_test_images=16,
        num_classification=100,
        num_corpus=100,
        few_shot_seeds=1,
        shots=(1, 2),
    )
    solver = SolverParams(iterations=4, batch_size=4)
    params = BaseTrainingParams(profile="t", data=data, detector=TINY, pretraining=solver, solver=solver)
    folder = tmp_path_factory.mktemp("base")
    run = SimpleNamespace(dir=folder, device="cpu", environment={})
    metrics = train_base_model(params, run)
    record = {"params": params.model_dump(mode="json"), "metrics": metrics, "state_hash": digest("base")}
    return SimpleNamespace(dir=folder, record=record, run_id="base", data=data)


def _run(base, folder):
    return SimpleNamespace(upstream=lambda name: base, dir=folder, device="cpu", rows=_Rows(), environment={})


def _params(base, **changes):
    solver = SolverParams(iterations=6, batch_size=2, precision="fp32")
    values = {
        "profile": "t",
        "data": base.data,
        "base": "x.yaml",
        "shots": 2,
        "seeds": (0,),
        "solver": solver,
    }
    return FineTuningParams(**(values | {"head": {"num_proposals": 20, "roi_batch": 8}} | changes))


def test_base_training_reports_ap_recall_and_curves(base):
    metrics = base.record["metrics"]
    assert 0 <= metrics["bAP50"] <= 100 and 0 <= metrics["pretraining_accuracy"] <= 100
    assert 0 <= metrics["recall_novel_at_100"] <= 100 and len(metrics["per_class"]) == 15
    assert metrics["curve"][-1]["iteration"] == 4 and (base.dir / "model.pth").exists()


def test_a_detector_of_other_classes_is_the_base_model_of_data_without_base_classes(base, tmp_path):
    """A published checkpoint and images of one's own: no other data are needed."""
    for n in range(8):
        write_pair(tmp_path / "cards", f"{n}", [("ace", (1, 1, 20, 20)), ("king", (15, 5, 39, 29))])
    options = {"images": str(tmp_path / "cards"), "root": str(tmp_path / "data"), "shots": (1, 2)}
    data = XmlData(source="xml", base_classes=(), **options, num_seeds=1)
    values = base.record["params"] | {"data": data, "pretraining": None, "solver": None}
    params = BaseTrainingParams.model_validate(values | {"weights": str(base.dir / "model.pth")})
    run = SimpleNamespace(dir=tmp_path / "base", device="cpu", environment={})
    metrics = train_base_model(params, run)
    assert {name for name, value in metrics.items() if value is not None} == {
        "weights",
        "recall_novel_at_100",
    }
    assert (
        metrics["weights"]["left_over"] == metrics["weights"]["reinitialised"] == 4
    )  # weights and biases of the head
    record = {"params": params.model_dump(mode="json"), "metrics": metrics, "state_hash": digest("other")}
    other = SimpleNamespace(dir=run.dir, record=record, run_id="other", data=data)
    stored, own = (torch.load(folder / "model.pth")["model"] for folder in (base.dir, run.dir))
    assert all(torch.equal(stored[key], own[key]) for key in stored if not key.startswith(HEAD))
    (row,) = fine_tuning.fine_tuning_grid(_params(other, losses=("ce",)), _run(other, tmp_path / "tuned"))
    assert sorted(row["per_class"]) == ["ace", "king"] and "bAP" not in row


def test_a_second_base_training_goes_on_from_its_checkpoint(base):
    params = BaseTrainingParams.model_validate(base.record["params"])
    again = train_base_model(params, SimpleNamespace(dir=base.dir, device="cpu", environment={}))
    assert again["bAP50"] == base.record["metrics"]["bAP50"]  # nothing was left to train


def test_repeats_train_the_same_draw_anew(base, tmp_path):
    """The published fsod protocol: seed 0, trained several times. The first is what a run without repeats makes."""
    runs = {name: _run(base, tmp_path / name) for name in ("once", "thrice", "other")}
    once = fine_tuning.fine_tuning_grid(_params(base, losses=("ce",)), runs["once"])
    thrice = fine_tuning.fine_tuning_grid(_params(base, losses=("ce",), repeats=3), runs["thrice"])
    other = fine_tuning.fine_tuning_grid(_params(base, losses=("ce",), seed=1), runs["other"])
    assert [(row["seed"], row["repeat"]) for row in thrice] == [(0, 0), (0, 1), (0, 2)]
    losses = [row["final_loss"] for row in (*thrice, *other)]
    assert losses[0] == once[0]["final_loss"] and len(set(losses)) == 4
    stored = sorted(path.name for path in (tmp_path / "thrice" / "detections").iterdir())
    assert stored == ["seed0-kshot-ce-repeat1.npz", "seed0-kshot-ce-repeat2.npz", "seed0-kshot-ce.npz"]


def test_what_training_leaves_out_is_counted(base):
    left_out = base.record["metrics"]["left_out"]
    train = open_benchmark(base.data, split=1).train
    novel = sum(count for name, count in train.counts().items() if name in SPLITS[1])
    assert left_out["boxes_of_other_classes"] == novel > 0
    assert left_out["crowd_regions"] == left_out["difficult_boxes"] == left_out["invalid_boxes"] == 0
    assert left_out["images_without_box"] == len(left_out["named"].get("images_without_box", ()))


def test_weights_of_a_file_are_the_base_model_or_its_start(base, tmp_path):
    values = base.record["params"] | {"pretraining": None, "weights": str(base.dir / "model.pth")}
    params = BaseTrainingParams.model_validate(values | {"solver": None})
    metrics = train_base_model(params, SimpleNamespace(dir=tmp_path, device="cpu", environment={}))
    assert metrics["bAP"] == base.record["metrics"]["bAP"] and metrics["curve"] is None
    assert metrics["weights"]["reinitialised"] == metrics["weights"]["left_over"] == 0
    stored, own = (torch.load(folder / "model.pth")["model"] for folder in (base.dir, tmp_path))
    assert all(torch.equal(stored[key], own[key]) for key in stored)
    state = {key: value for key, value in stored.items() if key.startswith(("backbone.", "roi_heads.res5."))}
    torch.save(state, tmp_path / "backbone.pth")
    params = BaseTrainingParams.model_validate(values | {"weights": str(tmp_path / "backbone.pth")})
    run = SimpleNamespace(dir=tmp_path / "started", device="cpu", environment={})
    assert train_base_model(params, run)["weights"]["reinitialised"] > 0
    with pytest.raises(CheckpointError, match="keys are missing"):
        params = BaseTrainingParams.model_validate(values | {"weights": params.weights, "solver": None})
        train_base_model(params, run)
    for wrong in ({"solver": None, "weights": None}, {"pretraining": base.record["params"]["pretraining"]}):
        with pytest.raises(ValueError, match="give its file|nothing is pretrained"):
            BaseTrainingParams.model_validate(values | wrong)


def test_pretraining_needs_pictograms(base, monkeypatch):
    from risf_core import base_training

    params = BaseTrainingParams.model_validate(base.record["params"]).model_copy(update={"data": object()})
    monkeypatch.setattr(
        base_training, "open_benchmark", lambda *a, **k: SimpleNamespace(base_names=("a", "b"))
    )
    with pytest.raises(ParamsError, match="pretraining: null"):
        train_base_model(params, SimpleNamespace(dir=base.dir, device="cpu", environment={}))


def test_settings_choose_classes_and_head(base, tmp_path):
    fsod = fine_tuning.open_context(_params(base), _run(base, tmp_path))
    gfsod = fine_tuning.open_context(_params(base, setting="gfsod"), _run(base, tmp_path))
    assert fsod.class_names == fsod.benchmark.novel_names and list(fsod.groups()) == ["novel"]
    assert gfsod.class_names == (*fsod.benchmark.base_names, *fsod.benchmark.novel_names)
    loss = get_loss("ce")
    head = "roi_heads.box_predictor.cls_score.weight"
    assert fsod.detector(0, loss).state_dict()[head].shape[0] == 6
    widened = gfsod.detector(0, loss).state_dict()[head]
    assert torch.equal(widened[:15], gfsod.state[head][:15]) and torch.equal(
        widened[20], gfsod.state[head][15]
    )
    assert torch.equal(fsod.detector(1, loss).state_dict()[head], fsod.detector(1, loss).state_dict()[head])
    assert not torch.equal(
        fsod.detector(0, loss).state_dict()[head], fsod.detector(1, loss).state_dict()[head]
    )
    assert set(gfsod.few_shot(0, "kshot").counts().values()) == {2}


def test_cached_and_whole_fine_tuning_detect_the_same(base, tmp_path):
    context = fine_tuning.open_context(_params(base), _run(base, tmp_path))
    loss = get_loss("bnrl")
    cached, curve = fine_tuning.fine_tune(context, loss, seed=0, arm="kshot")
    whole, whole_curve = fine_tuning.fine_tune(context, loss, seed=0, arm="kshot", cached=False)
    assert curve[-1]["loss"] == pytest.approx(whole_curve[-1]["loss"], rel=1e-3)
    assert len(cached) == len(whole) > 0
    assert np.allclose(np.sort(cached.scores), np.sort(whole.scores), atol=1e-4)


def test_grid_writes_rows_and_files_and_goes_on_where_it_was_killed(base, tmp_path, monkeypatch):
    params = _params(base, losses=("ce", "bnrl"))
    undisturbed = fine_tuning.fine_tuning_grid(params, _run(base, tmp_path / "a"))
    assert [(row["loss"], row["rescoring"]) for row in undisturbed] == [("ce", "none"), ("bnrl", "none")]
    assert all(0 <= row["nAP50"] <= 100 and len(row["per_class"]) == 5 for row in undisturbed)
    assert all(
        row["left_out"]["images_without_box"] == 0 == len(row["left_out"]["named"]) for row in undisturbed
    )
    run, real, calls = _run(base, tmp_path / "b"), fine_tuning.fine_tune, []

    def killed_in_the_second_cell(*args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(fine_tuning, "fine_tune", killed_in_the_second_cell)
    with pytest.raises(KeyboardInterrupt):
        fine_tuning.fine_tuning_grid(params, run)
    assert fine_tuning.fine_tuning_grid(params, run) == undisturbed
    assert len(calls) == 3  # the first cell was not repeated


def test_two_losses_of_one_name_are_refused(base, tmp_path):
    for name in ("a.py", "b.py"):
        (tmp_path / name).write_text("def mine(logits, labels):\n    return (logits**2).mean()\n")
    params = _params(base, losses=(f"{tmp_path}/a.py:mine", f"{tmp_path}/b.py:mine"))
    with pytest.raises(ParamsError, match="share a name"):
        fine_tuning.fine_tuning_grid(params, _run(base, tmp_path))


def test_proposals_are_scaled_to_original_pixels(base):
    detector_params = BaseTrainingParams.model_validate(base.record["params"]).detector
    from risf_core.detector.faster_rcnn import FasterRCNN

    torch.manual_seed(0)
    detector = FasterRCNN(detector_params.model_copy(update={"min_size": (128,)}), 15)
    benchmark = open_benchmark(base.data, split=1)
    boxes = propose_boxes(detector, benchmark.test, top=15)
    regions = extract_region_features(detector, benchmark.test, training=False)
    first = regions.boxes[:15] / 2
    assert np.allclose(boxes[benchmark.test.images[0].image_id], first, atol=1e-3)
    assert set(boxes) == {image.image_id for image in benchmark.test.images}
    assert max(box.max() for box in boxes.values()) <= 64 + 1e-3 and regions.boxes.max() > 64
    assert 0 <= evaluate_base_model(detector, benchmark, score_thresh=0.05)["bAP"] <= 100


def test_gfsod_copies_base_rows_and_its_released_start_copies_none(base, tmp_path):
    """The release lacks the surgery tool: its recipe starts every row of the wider head afresh."""
    heads = {}
    for start in ("copied", "released"):
        head = {"num_proposals": 20, "roi_batch": 8, "start": start}
        context = fine_tuning.open_context(_params(base, setting="gfsod", head=head), _run(base, tmp_path))
        predictor = context.detector(0, torch.nn.functional.cross_entropy).roi_heads.box_predictor
        heads[start] = predictor.cls_score.weight.detach()
    old = context.state["roi_heads.box_predictor.cls_score.weight"]
    rows = [*range(len(old) - 1), len(heads["copied"]) - 1]  # base classes first, background last
    assert torch.equal(heads["copied"][rows], old)
    assert heads["released"].shape == heads["copied"].shape
    assert not (heads["released"][rows] == old).any()


def test_detections_that_count_are_cut_before_they_are_rescored():
    """Novel class red, base class green; three detections of the first image are above 0.05, one of the second."""
    scores = np.array([0.9, 0.6, 0.3, 0.02, 0.8, 0.01])
    labels, ids = np.array([0, 0, 1, 0, 1, 0]), np.array([1, 1, 1, 1, 2, 2])
    boxes = np.tile([1, 1, 9, 9], (6, 1))
    found = Detections(ids, boxes, scores, labels, np.zeros((6, 3)), np.arange(6), ("red", "green"))
    encoded = (labels == 0) & (scores > 0.05)
    cosines = np.where(encoded[:, None], np.arange(18).reshape(6, 3) / 20, np.nan)
    similarities = Similarities(cosines, encoded, ("red", "green", "background"))
    kept, rows = cut(found, similarities, score_thresh=0.05, max_detections=2)
    assert sorted(kept.proposals.tolist()) == [0, 1, 4]
    assert [row[0] for row in rows.cosines.tolist()[:2]] == pytest.approx([0.0, 0.15])
    assert rows.encoded.tolist() == [True, True, False]
    kept, rows = cut(found, None, score_thresh=0.0)
    assert len(kept) == 6 and rows is None


def test_tables_and_figure_see_the_same_cut(base, tmp_path, monkeypatch):
    """What does not count is drawn nowhere and re-scored nowhere, though cosines of it are stored."""

    def encode(found, data, clip, *, score_thresh, rescored_classes, cache, **_):
        labels = (*rescored_classes, "background")
        cosines = np.random.default_rng(0).uniform(0, 0.1, (len(found), len(labels)))
        return Similarities(cosines, np.ones(len(found), bool), labels)

    monkeypatch.setattr(fine_tuning, "encode_detections", encode)
    monkeypatch.setattr(fine_tuning, "open_clip_source", lambda *a, **k: ("none", None))
    monkeypatch.setattr(fine_tuning, "build_cm_clip", lambda *a: SimpleNamespace(facts=dict))
    run, rescoring = _run(base, tmp_path), {"label_spaces": ["novel+background"]}
    options = {"clip": {"model": "none", "path_only": True}, "cm_clip": rescoring, "losses": ("ce",)}
    params = _params(base, **options, score_thresh=0.16)  # about the middle of what this detector says
    rows = {row["rescoring"]: row for row in fine_tuning.fine_tuning_grid(params, run)}
    before, after, test = fine_tuning.stored_before_after(params, run)
    stored = Detections.load(tmp_path / "detections" / "seed0-kshot-ce.npz")
    assert 0 < len(before) == len(after) == (stored.scores > 0.16).sum() < len(stored)
    evaluator = evaluator_for(test, groups={"novel": test.class_names})
    assert rows["none"]["nAP"] == evaluator.evaluate(before)["nAP"]
    assert rows["cm_clip"]["nAP"] == evaluator.evaluate(after)["nAP"]  # of this detector both may be 0
    assert not np.array_equal(np.sort(before.scores), np.sort(after.scores))
    for row in rows.values():
        assert row["above_thresh"] == row["num_detections"] == len(before) / len(test)


def test_kept_weights_detect_what_was_stored(base, tmp_path):
    params = _params(base, losses=("ce",), keep_weights=True)
    rows = fine_tuning.fine_tuning_grid(params, _run(base, tmp_path))
    source = CheckpointSource(path=str(tmp_path / "weights" / "seed0-kshot-ce.pth"))
    evaluation = EvaluateParams(profile="t", data=base.data, checkpoint=source)
    run = SimpleNamespace(dir=tmp_path / "evaluation", device="cpu", rows=_Rows(), environment={})
    (row,) = evaluate_checkpoint(evaluation, run)
    stored = Detections.load(tmp_path / "detections" / "seed0-kshot-ce.npz")
    again = Detections.load(run.dir / "detections.npz")
    assert again.class_names == stored.class_names and len(again) == len(stored) > 0
    assert np.allclose(again.scores, stored.scores, atol=1e-4)  # cached features are of half the precision
    assert row["nAP"] == pytest.approx(rows[0]["nAP"], abs=1.0) and row["bAP"] is None
