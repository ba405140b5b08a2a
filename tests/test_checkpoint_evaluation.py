"""Evaluation of checkpoints: which file is read how, the order of classes, the cuts, stored files, tables."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from risf_core import checkpoint_evaluation, fine_tuning
from risf_core.checkpoint_evaluation import evaluate_checkpoint, open_detector, open_test_set
from risf_core.data.coco import write_coco
from risf_core.data.dataset import DetectionData
from risf_core.detections import Detections, Similarities
from risf_core.detector.checkpoints import save_checkpoint, save_detector
from risf_core.detector.faster_rcnn import FasterRCNN
from risf_core.errors import CheckpointError, DataError, ParamsError, SplitError
from risf_core.evaluation import Evaluator
from risf_core.fine_tuning import detect_images
from risf_core.params import CheckpointSource, EvaluateParams
from risf_core.report.evaluation_tables import evaluation_cells, evaluation_classes_table, evaluation_table
from risf_core.runs.state import run_id, state_hash

from .detector.conftest import TINY, square_data, tiny_detector, tiny_params  # noqa: F401  fixtures
from .test_ablations import _Rows

HEAD = "roi_heads.box_predictor.cls_score.bias"


@pytest.fixture
def params(tmp_path, square_data):  # noqa: F811
    """Evaluation of a file on six test images: red (id 1) is novel, green and blue are base classes."""
    write_coco(tmp_path / "test.json", square_data, images_dir=tmp_path)
    data = {"source": "coco", "annotations": "none.json", "images": str(tmp_path), "novel_classes": ["red"]}
    data |= {"test_annotations": str(tmp_path / "test.json")}

    def make(**changes) -> EvaluateParams:
        source = {"path": str(tmp_path / "model.pth"), "detector": TINY, "classes": "all"}
        checkpoint = {key: value for key, value in (source | changes.pop("checkpoint", {})).items() if value}
        return EvaluateParams(profile="t", data=data, checkpoint=checkpoint, **changes)

    return make


@pytest.fixture
def run(tmp_path, monkeypatch):
    (tmp_path / "run").mkdir()
    monkeypatch.setattr(fine_tuning, "project_path", tmp_path.joinpath)  # of the stored text features
    return SimpleNamespace(dir=tmp_path / "run", device="cpu", rows=_Rows(), environment={})


def test_published_file_is_read_in_the_order_of_category_ids(params, run, tiny_detector, square_data):  # noqa: F811
    own = params(checkpoint={"class_order": "category_id"})
    content = {"model": tiny_detector.state_dict() | {"pixel_mean": torch.zeros(3, 1, 1)}, "iteration": 7}
    save_checkpoint(own.checkpoint.path and run.dir.parent / "model.pth", content)
    rows = evaluate_checkpoint(own, run)
    found = Detections.load(run.dir / "detections.npz")
    expected = detect_images(
        tiny_detector, square_data, batch_size=1
    )  # whose classes are in the order of ids
    assert found.class_names == ("red", "green", "blue") and len(found) == len(expected) > 0
    np.testing.assert_array_equal(found.boxes, expected.boxes)
    np.testing.assert_array_equal(found.labels, expected.labels)
    groups = {"base": ("green", "blue"), "novel": ("red",)}
    result = Evaluator(square_data, groups=groups).evaluate(expected)
    assert [(row["rescoring"], row["AP50"], row["bAP"], row["nAP75"]) for row in rows] == [
        ("none", result["AP50"], result["bAP"], result["nAP75"])
    ]
    other = params()
    assert open_detector(other.checkpoint, run, open_test_set(other.data)).class_names == (
        "green",
        "blue",
        "red",
    )


def test_own_file_says_what_it_is(params, run, tiny_detector):  # noqa: F811
    own = params(checkpoint={"detector": None, "classes": None})
    save_detector(run.dir.parent / "model.pth", tiny_detector, ["blue", "red", "green"])
    loaded = open_detector(own.checkpoint, run, open_test_set(own.data))
    assert loaded.class_names == ("blue", "red", "green") and loaded.detector.params == tiny_detector.params
    assert loaded.report.reinitialised == loaded.report.left_over == ()
    for key, value in tiny_detector.state_dict().items():
        assert torch.equal(loaded.detector.state_dict()[key], value)
    save_detector(run.dir.parent / "model.pth", tiny_detector, ["blue", "red", "gren"])
    with pytest.raises(SplitError, match="'gren'.*'green'"):
        evaluate_checkpoint(own, run)


def test_what_a_file_says_of_itself_stands_above_the_parameters(params, run, tiny_detector):  # noqa: F811
    """So the parameters for published files fit one of ours, whose classes have another order and which was resized."""
    save_detector(run.dir.parent / "model.pth", tiny_detector, ["blue", "red", "green"])
    own = params(checkpoint={"class_order": "category_id", "detector": TINY | {"image_order": "BGR"}})
    loaded = open_detector(own.checkpoint, run, open_test_set(own.data))
    assert loaded.class_names == ("blue", "red", "green") and loaded.detector.params == tiny_detector.params
    other = params(checkpoint={"classes": "base"})
    with pytest.raises(
        CheckpointError, match=r"head with 3 classes \(blue, red, green.*base names 2 \(green"
    ):
        open_detector(other.checkpoint, run, open_test_set(other.data))


def test_run_here_is_named_by_its_params_file(params, run, tiny_detector):  # noqa: F811
    save_detector(run.dir / "model.pth", tiny_detector, ["green", "blue", "red"])
    record = {"params": {"profile": "t", "detector": TINY, "pretraining": None}}
    run.upstream = lambda ref: SimpleNamespace(dir=run.dir, record=record)
    own = params(checkpoint={"path": None, "detector": None, "classes": None, "run": "10_base_training.yaml"})
    assert open_detector(own.checkpoint, run, open_test_set(own.data)).class_names == ("green", "blue", "red")


def test_files_that_do_not_fit_are_refused(params, run, tiny_params, tiny_detector):  # noqa: F811
    path, state = run.dir.parent / "model.pth", tiny_detector.state_dict()

    def refusal(content, **checkpoint) -> str:
        save_checkpoint(path, content)
        own = params(checkpoint=checkpoint)
        with pytest.raises(CheckpointError) as caught:
            open_detector(own.checkpoint, run, open_test_set(own.data))
        return str(caught.value)

    assert "checkpoint.detector" in refusal({"model": state}, detector=None)
    assert "base, novel or all" in refusal({"model": state}, classes=None)
    assert "3 classes and background, but 2 classes are named" in refusal({"model": state}, classes="base")
    assert "a whole detector" in refusal({"model": {k: v for k, v in state.items() if k != HEAD}})
    lacking = {key: value for key, value in state.items() if not key.startswith("proposal_generator")}
    assert "keys are missing, first proposal_generator" in refusal(lacking)
    wide = FasterRCNN(tiny_params.model_copy(update={"res5_width": 24}), 3).state_dict()
    assert "differ in shape" in refusal({"model": wide})


def test_content_of_the_file_is_part_of_the_run(params, run, tiny_detector):  # noqa: F811
    own = params()
    without = run_id(own)  # a list of runs can be shown before its files are there
    with pytest.raises(DataError, match="model.pth: no such file"):
        state_hash(own)
    save_checkpoint(run.dir.parent / "model.pth", tiny_detector.state_dict())
    first = run_id(own)
    save_checkpoint(run.dir.parent / "model.pth", tiny_detector.state_dict() | {"extra": torch.ones(1)})
    assert len({run_id(own), first, without}) == 3 and first.startswith("evaluate-split1-")


@pytest.mark.parametrize("wrong", [{}, {"run": "a.yaml", "path": "b"}, {"run": "a.yaml", "classes": "all"}])
def test_a_checkpoint_has_one_source(wrong):
    with pytest.raises(ValueError, match="give either run or path|belong to path"):
        CheckpointSource(**wrong)


def test_a_published_number_is_one_of_a_metric(params):
    assert params(published={"nAP": 18.5, "bAP50": 60, "AP75": 1.0}).published["bAP50"] == 60
    with pytest.raises(ValueError, match="published"):
        params(published={"mAP": 18.5})


def test_stored_files_are_not_made_again_and_base_heads_are_not_rescored(params, run, monkeypatch, tmp_path):
    def never(*args, **kwargs):
        raise AssertionError("the detector was run")

    monkeypatch.setattr(checkpoint_evaluation, "detect_images", never)
    empty = {name: np.zeros((0, *shape)) for name, shape in (("boxes", (4,)), ("class_scores", (3,)))}
    empty |= {name: np.zeros(0) for name in ("image_ids", "scores", "labels", "proposals")}
    Detections(**empty, class_names=("green", "blue")).save(run.dir / "detections.npz")
    rows = evaluate_checkpoint(params(), run)
    assert (rows[0]["bAP"], rows[0]["nAP"], rows[0]["AP"]) == (0.0, None, 0.0)
    with pytest.raises(ParamsError, match="clip: null"):
        evaluate_checkpoint(params(clip={"model": "risf-tiny-resnet", "path_only": True}), run)


def test_a_learned_temperature_stands_beside_the_cosines(params, run, square_data):  # noqa: F811
    """One detection of a novel class: its new score follows from the CLIP's own temperature, also when read again."""
    record = square_data.images[0]
    found = {"image_ids": [record.image_id], "boxes": [[4, 4, 40, 40]], "scores": [0.5], "labels": [0]}
    found |= {"class_scores": np.zeros((1, 4)), "proposals": [0]}
    Detections(**found, class_names=("red", "green", "blue")).save(run.dir / "detections.npz")
    clip = {"model": "risf-tiny-resnet", "path_only": True}
    own = params(clip=clip, cm_clip={"temperature": "learned", "label_spaces": ["novel+background"]})
    rows = evaluate_checkpoint(own, run)
    facts = json.loads((run.dir / "clip.json").read_text())
    assert run.environment["cm_clip"] == facts and facts["precision"] == "fp32"
    assert facts["temperature"] == facts["learned_temperature"] == pytest.approx(1 / 0.07)
    similarities = Similarities.load(run.dir / "similarities.npz")
    settled = fine_tuning.settled(own.cm_clip, run.dir)
    ((_, rescored),) = fine_tuning.rescored(
        Detections.load(run.dir / "detections.npz"), similarities, open_test_set(own.data), settled
    )
    red, background = (similarities.columns([name]).item() / 0.07 for name in ("red", "background"))
    expected = 0.7 * 0.5 + 0.3 / (1 + np.exp(background - red))
    assert rescored.scores.item() == pytest.approx(expected, abs=1e-6)
    assert {row["rescoring"] for row in rows} == {"none", "cm_clip"}
    (run.dir / "clip.json").unlink()
    with pytest.raises(DataError, match="clip.json: expected the learned temperature"):
        evaluate_checkpoint(own, run)


def test_a_head_that_cm_clip_cannot_rescore_is_refused_before_anything_is_detected(
    params,
    run,
    monkeypatch,
    tiny_params,  # noqa: F811
):
    save_checkpoint(run.dir.parent / "model.pth", FasterRCNN(tiny_params, 2).state_dict())
    monkeypatch.setattr(
        checkpoint_evaluation, "detect_images", lambda *a, **k: pytest.fail("the detector was run")
    )
    own = params(checkpoint={"classes": "base"}, clip={"model": "risf-tiny-resnet", "path_only": True})
    with pytest.raises(ParamsError, match="clip: null"):
        evaluate_checkpoint(own, run)


def test_test_file_needs_neither_training_images_nor_draws(params, square_data):  # noqa: F811
    test = open_test_set(params().data)
    assert isinstance(test.data, DetectionData) and test.data.class_names == ("green", "blue", "red")
    assert (test.base_names, test.novel_names) == (("green", "blue"), ("red",))


def test_tables_show_groups_beside_published_numbers():
    per_class = {
        "red": {"AP": 1.0, "AP50": 50.0, "AP75": None},
        "green": {"AP": 2.0, "AP50": None, "AP75": 0.0},
    }
    row = {
        "split": 1,
        "AP": 20.0,
        "AP50": 40.0,
        "nAP": 10.0,
        "nAP50": 30.0,
        "bAP": None,
        "per_class": per_class,
    }
    rows = [row | {"rescoring": "none"}, row | {"rescoring": "cm_clip", "nAP": 12.5}]
    record = {
        "notebook": "21_evaluate",
        "run_id": "e-1",
        "rows": rows,
        "params": {"published": {"nAP": 11.0}},
    }
    cells = evaluation_cells([record, {"notebook": "20_fine_tuning", "run_id": "x", "rows": rows}])
    novel = cells[(cells["classes"] == "novel") & (cells["metric"] == "AP")]
    assert novel["value"].tolist() == [10.0, 12.5] and novel["difference"].tolist()[1] == 1.5
    text = str(evaluation_table([record]))
    assert "12.5 (11.0, +1.5)" in text and "| n/a" in text
    classes = evaluation_classes_table([record])
    assert classes.display.columns.tolist() == ["run", "split", "class", "none", "CM-CLIP"]
    assert classes.display["none"].tolist() == ["50.0", "n/a"]
