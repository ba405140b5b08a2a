"""Both published profiles from base training to tables, on drawn images in the published layout and at toy size."""

import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from risf_core import checkpoint_evaluation, fine_tuning
from risf_core.ablations import ablate_c
from risf_core.base_training import train_base_model
from risf_core.checkpoint_evaluation import evaluate_checkpoint
from risf_core.cm_clip import rescored_rows
from risf_core.detections import Similarities
from risf_core.detector.checkpoints import HEAD
from risf_core.errors import CheckpointError
from risf_core.runs.run_specs import load_run
from risf_core.runs.state import data_hash, digest
from risf_core.tables import gfsod_table, main_table

from .test_ablations import _Rows
from .toy_trees import shrink_profile, write_coco_tree, write_voc_tree

NUMBERS = ("AP", "AP50", "AP75", "bAP", "bAP50", "nAP", "nAP50")
TREES = {"coco": (write_coco_tree, 60, 20), "voc": (write_voc_tree, 15, 5)}


def encode_without_clip(found, data, clip, *, score_thresh, rescored_classes, **_options):
    """Cosines that follow from a detection's box alone, so that the same detections get the same ones."""
    labels = (*rescored_classes, "background")
    cosines = np.sin(found.boxes @ np.linspace(1, 2, 4 * len(labels)).reshape(4, -1)) / 20
    encoded = rescored_rows(found, rescored_classes, score_thresh)
    cosines[~encoded] = np.nan
    return Similarities(cosines, encoded, labels)


@pytest.fixture
def no_clip(monkeypatch):
    for module in (fine_tuning, checkpoint_evaluation):
        monkeypatch.setattr(module, "encode_detections", encode_without_clip)
        monkeypatch.setattr(module, "open_clip_source", lambda *a, **k: ("none", None))
        monkeypatch.setattr(module, "build_cm_clip", lambda *a: SimpleNamespace(facts=dict))


class Project:
    """A profile at toy size, whose runs are made in this process."""

    def __init__(self, root, profile: str) -> None:
        self.root, self.profile = root, profile

    def params(self, name: str, **changes):
        return load_run(f"params/{self.profile}/{name}.yaml", changes).params

    def run(self, name: str, *upstream):
        """What `start_run` gives, but for the record."""
        folder = self.root / "runs" / name
        folder.mkdir(parents=True)
        options = {"upstream": lambda ref: upstream[0], "upstreams": lambda ref: upstream}
        return SimpleNamespace(dir=folder, device="cpu", rows=_Rows(), environment={}, run_id=name, **options)

    def record(self, params, run) -> dict:
        """Beside the run, as a run that builds on it sees it."""
        content = {"params": params.model_dump(mode="json"), "rows": run.rows.as_list(), "metrics": {}}
        content |= {"notebook": params.notebook, "run_id": run.run_id, "state_hash": digest(run.run_id)}
        run.record = content
        return content


def numbers(row: dict) -> list:
    return [row.get(name) for name in NUMBERS]


def as_published(project: Project, weights, setting: str) -> str:
    """A kept detector as a pickle of DeFRCN's kind: arrays alone, in COCO with the head's rows by ascending id."""
    content = torch.load(weights, weights_only=True)
    state, names = content["model"], content["class_names"]
    if project.profile == "coco" and setting == "gfsod":
        test = checkpoint_evaluation.open_test_set(project.params("21_evaluate.fsod").data)
        ids = dict(zip(test.data.class_names, test.data.category_ids, strict=True))
        order = sorted(range(len(names)), key=lambda row: ids[names[row]])
        assert order != sorted(order)
        for key in ("cls_score.weight", "cls_score.bias"):
            state[HEAD + key] = state[HEAD + key][[*order, len(names)]]
        for key in ("bbox_pred.weight", "bbox_pred.bias"):
            by_class = state[HEAD + key].reshape(len(names), 4, -1)
            state[HEAD + key] = by_class[order].reshape(state[HEAD + key].shape)
    path = project.root / f"{setting}.pkl"
    arrays = {key: value.numpy() for key, value in state.items()}
    path.write_bytes(pickle.dumps({"model": arrays, "__author__": "somebody"}))
    return str(path)


@pytest.mark.parametrize("profile", TREES)
def test_profile_runs_from_base_training_to_tables(profile, tmp_path, monkeypatch, no_clip):
    monkeypatch.setenv("RISF_ROOT", str(tmp_path))
    monkeypatch.chdir(tmp_path)  # where params files are looked for first
    write_tree, num_base, num_novel = TREES[profile]
    write_tree(tmp_path / "data")
    shrink_profile(tmp_path, profile)
    project, records = Project(tmp_path, profile), []
    params, base = project.params("10_base_training"), project.run("base")
    metrics = train_base_model(params, base)
    assert len(metrics["per_class"]) == num_base and metrics["bAP"] is not None
    assert metrics["left_out"]["boxes_of_other_classes"] > 0
    project.record(params, base)

    for setting, num_classes in (("fsod", num_novel), ("gfsod", num_base + num_novel)):
        params = project.params(f"20_fine_tuning.{setting}_1shot", losses=["ce", "bnrl"])
        run = project.run(setting, base)
        rows = fine_tuning.fine_tuning_grid(params, run)
        keys = [(row["loss"], row["rescoring"]) for row in rows]
        assert keys == [(loss, name) for loss in ("ce", "bnrl") for name in ("none", "cm_clip")]
        assert all(len(row["per_class"]) == num_classes and row["num_detections"] > 1 for row in rows)
        assert (rows[0].get("bAP") is not None) == (setting == "gfsod")
        records.append(project.record(params, run))

        weights = run.dir / "weights" / "seed0-kshot-ce.pth"
        for kind, path in (("own", str(weights)), ("published", as_published(project, weights, setting))):
            evaluation = project.params(f"21_evaluate.{setting}", **{"checkpoint.path": path})
            again = evaluate_checkpoint(evaluation, project.run(f"{setting}-{kind}"))
            assert [row["rescoring"] for row in again] == ["none", "cm_clip"]
            assert [numbers(row) for row in again] == [numbers(row) for row in rows[:2]]
        other = project.params("21_evaluate.gfsod" if setting == "fsod" else "21_evaluate.fsod")
        wrong = other.model_copy(
            update={"checkpoint": other.checkpoint.model_copy(update={"path": path})}
        )  # of the other setting
        with pytest.raises(CheckpointError, match=rf"its head has {num_classes} classes and background, but"):
            evaluate_checkpoint(wrong, project.run(f"{setting}-wrong"))
        if setting == "fsod":
            fsod, swept = rows, ablate_c(project.params("30_ablation_c"), project.run("c", run))
    for name in (
        "coco/trainval2014",
        "coco/cocosplit/datasplit/trainvalno5k.json",
        "VOCdevkit/VOC2012",
        "vocsplit",
    ):
        if (path := tmp_path / "data" / name).exists():
            path.rename(path.with_name("away"))  # evaluation of a checkpoint needs the test images alone
    again = evaluate_checkpoint(evaluation, project.run("without-training-images"))
    assert [numbers(row) for row in again] == [numbers(row) for row in rows[:2]] and data_hash(evaluation)
    assert max(row["nAP50"] for row in fsod) > 0  # else the comparisons above would hold of anything
    for rescoring, c in (("none", 1.0), ("cm_clip", 0.7)):
        own = [row["nAP"] for row in fsod if row["rescoring"] == rescoring]
        assert [row["nAP"] for row in swept if row["c"] == c] == own
    assert len(main_table(records[:1]).data) == 4 and len(gfsod_table(records).data) > 0
