"""Every notebook at smoke size through the launcher: what it records, stores and shows, and that all of it repeats.

The list of the smoke profile, with one run added that fails in its middle, is killed with -9 while it trains and
started again. All tests of this file look at that one project; some make a copy of it first.
"""

import base64
import hashlib
import itertools
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from risf_core.ablations import ablate_c
from risf_core.clip_models import load_clip
from risf_core.cm_clip import CMCLIP, apply_cm_clip
from risf_core.data.pictograms import CLASSES, SPLITS
from risf_core.detections import Detections, Similarities
from risf_core.distilled_rescoring.head import DistilledHead
from risf_core.head_training import RegionFeatures
from risf_core.notebook_models import MODELS
from risf_core.open_vocabulary.regions import RegionSet
from risf_core.records import read_records, start_run
from risf_core.runs.run_specs import RunSpec, load_list
from risf_core.runs.state import run_id
from risf_core.tables import paired_table
from tests.notebook_files import launch, link_project, project_environment
from tests.smoke_checks import (
    BEST,
    CUT,
    annotations,
    ap50,
    blended,
    entries_of,
    fused,
    label_probs,
    probabilities,
    stored,
)
from tests.smoke_project import (
    LIST,
    STUDIES,
    Smoke,
    add_own_loss,
    content,
    files_that_repeat,
    own_loss_words,
    readme_loss,
    readme_section,
    repeat_studies,
    work_off,
)

KEY = ("split", "shots", "seed", "loss", "arm")
SPACES = {"novel+background": "cm_clip", "novel+base+background": "cm_clip_wide"}
T95_ONE_DEGREE = 12.7062  # Student's t at 97.5 % with one degree of freedom, so n = 2 (any table of t)


@pytest.fixture(scope="module")
def smoke(tmp_path_factory) -> Smoke:
    return work_off(tmp_path_factory.mktemp("smoke"))


@pytest.fixture(scope="module")
def own(tmp_path_factory) -> Path:
    return add_own_loss(tmp_path_factory.mktemp("own"))


def _specs(smoke: Smoke, monkeypatch) -> list[RunSpec]:
    monkeypatch.setenv("RISF_ROOT", str(smoke.root))
    return load_list(LIST)


# --- the launcher ---------------------------------------------------------------------------------------------------


def test_a_killed_list_leaves_no_process_and_repeats_nothing(smoke):
    """Neither a finished run nor a finished cell of the run that was under way is made again."""
    assert not smoke.outlived
    kinds = Counter(path.parent.name for path in smoke.made_before)
    assert kinds["records"] >= 2 and kinds["detections"] >= 1
    assert {path: path.stat().st_mtime_ns for path in smoke.made_before} == smoke.made_before
    began = set(re.findall(r"start   (\S+)", smoke.done.stdout))
    assert began and not began & {path.stem for path in smoke.made_before}


def test_a_run_that_fails_keeps_its_traceback_and_the_others_finish(smoke, monkeypatch):
    specs = _specs(smoke, monkeypatch)
    assert smoke.done.returncode == 1
    (line,) = [line for line in smoke.done.stderr.splitlines() if line.startswith("FAILED")]
    assert "RuntimeError: stopped in the middle of training" in line
    name = line.split()[1].rstrip(":")
    assert not (smoke.results / "records" / f"{name}.json").exists()
    (error,) = [o for o in smoke.notebook_outputs(name) if o["output_type"] == "error"]
    assert error["ename"] == "RuntimeError" and "my_losses.py" in "".join(error["traceback"])
    finished = {path.stem for path in (smoke.results / "records").glob("*.json")}
    assert finished == {run_id(spec.params) for spec in specs}
    assert {spec.params.notebook for spec in specs} == set(MODELS)  # the smoke list holds every notebook


def test_a_finished_list_has_nothing_to_do(smoke, monkeypatch):
    """And finds out without torch."""
    number = len(_specs(smoke, monkeypatch))
    code = "import sys, risf_core.run as r; assert r.main(sys.argv[1:]) == 0 and 'torch' not in sys.modules"
    done = subprocess.run(
        [sys.executable, "-c", code, "--list", LIST, "--workers", "2"],
        cwd=smoke.root,
        env=project_environment(smoke.root),
        capture_output=True,
        text=True,
        timeout=60,
    )
    expected = f"nothing to do: {number} of {number} runs are finished; --force repeats them\n"
    assert (done.returncode, done.stdout) == (0, expected), done.stderr


# --- executed notebooks ---------------------------------------------------------------------------------------------

PICTURES = {
    "00_check_setup": 0,
    "01_explore": 1,  # one image at a few c; the sliders stay out of a run that nobody watches
    "02_pictogram_world": 3,  # scenes, designs, K-shot images
    "10_base_training": 2,  # scenes, curves
    "12_tiny_clip": 2,  # curve, confusion
    "20_fine_tuning": 2,  # K-shot images, before and after re-scoring
    "21_evaluate": 1,
    "22_predict": 1,
    "30_ablation_c": 1,
    "31_ablation_bnrl": 3,  # the loss's shape, two heat maps
    "32_clip_backbones": 2,  # gain by accuracy, towers at equal accuracy
    "33_missing_annotations": 4,  # known share, map of the weights, parts, kinds of images
    "34_latency": 3,  # accuracy by time, parts, boxes an image
    "35_other_detectors": 1,
    "36_label_space": 2,  # what was chosen, single changes
    "37_rescoring_controls": 3,  # controls, sizes, classes
    "38_learning_rates": 1,
    "43_test_images": 1,
    "41_base_classes": 4,  # changes over c, classes, confusions, gallery
    "39_training_regimes": 1,
    "42_missing_rate": 2,  # estimated over planted rates, suspected places
    "50_open_vocabulary": 4,  # scenes, arms, fidelity, gallery
    "51_distilled_rescoring": 2,  # kept of the gain, ways
}


def test_executed_notebooks_show_their_figures_and_no_error(smoke):
    for record in smoke.all_records():
        outputs = smoke.notebook_outputs(record["run_id"])
        assert "error" not in {output["output_type"] for output in outputs}
        printed = "".join("".join(o["text"]) for o in outputs if o["output_type"] == "stream")
        assert f"run {record['run_id']} (started by the launcher)\nseed 0, device cpu, 1 thread" in printed
        page = "".join("".join(output.get("data", {}).get("text/html", "")) for output in outputs)
        pictures = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
        assert all(base64.b64decode(picture).startswith(b"\x89PNG") for picture in pictures)
        expected = PICTURES.get(record["notebook"], record["metrics"].get("num_figures"))
        assert len(pictures) == expected, record["run_id"]


def test_explore_shows_the_stored_scores_and_no_widget(smoke):
    record = smoke.record("01_explore")
    metrics, thresh = record["metrics"], record["params"]["draw_thresh"]
    assert metrics["num_cells"] == 16  # two each of K, seed, arm and loss
    assert metrics["cell"] == {"split": 1, "shots": 2, "loss": "ce", "arm": "kshot", "seed": 0}
    (run,) = [run for run in smoke.fine_tuning() if run["params"]["shots"] == 2]
    found, cosines = stored(smoke.artifacts(run), "seed0-kshot-ce")
    own = found.image_ids == metrics["image_id"]
    found, cosines = found.keep(own), cosines.keep(own)
    assert metrics["num_boxes"] == len(found) > 0
    space = (*found.class_names, "background")
    for c in (1.0, 0.7, 0.3):
        scores = apply_cm_clip(found, cosines, c=c, label_space=space).scores
        assert metrics["num_drawn"][f"c={c:g}"] == (scores > thresh).sum()
    outputs = smoke.notebook_outputs(record["run_id"])
    assert not any("widget" in kind for output in outputs for kind in output.get("data", {}))


# --- records --------------------------------------------------------------------------------------------------------


def test_records_hold_parameters_hashes_and_environment(smoke, monkeypatch):
    by_name = {run_id(spec.params): spec.params for spec in _specs(smoke, monkeypatch)}
    states = {record["run_id"]: record["state_hash"] for record in smoke.all_records()}
    for record in smoke.all_records():
        assert record["params"] == by_name[record["run_id"]].model_dump(mode="json")
        assert record["upstream"] == {name: states[name] for name in record["upstream"]}
        environment = record["environment"]
        assert 0 < environment["cpu_seconds"] < 300 and 50 < environment["peak_memory_mib"] < 4096
        assert environment["versions"]["torch"] == torch.__version__.partition("+")[0]
    for record in smoke.records("20_fine_tuning"):
        assert sorted(name.split("-")[0] for name in record["upstream"]) == ["base_training", "tiny_clip"]


def test_00_check_setup(smoke):
    record = smoke.record("00_check_setup")
    assert record["metrics"] == {"finished": True} and record["rows"] == []
    assert record["environment"]["precision"] in ("torch.float32", "torch.bfloat16")


def _test_objects(smoke: Smoke) -> Counter:
    """Objects in the test scenes by class, from the annotation file itself."""
    content = json.loads(annotations(smoke).read_text())
    names = {category["id"]: category["name"] for category in content["categories"]}
    return Counter(names[box["category_id"]] for box in content["annotations"])


def test_02_pictogram_world(smoke):
    metrics = smoke.record("02_pictogram_world")["metrics"]
    assert {name: count for name, count in metrics["counts"].items() if count} == _test_objects(smoke)
    assert set(metrics["counts"]) == set(CLASSES)
    assert [row["split"] for row in metrics["unannotated_novel"]] == [1, 2, 3]
    for row in metrics["unannotated_novel"]:
        assert 0 < row["images_with_novel"] <= row["base_images"] <= 64 and row["novel_objects"] > 0
    overlap = {row["class"]: row for row in metrics["design_overlap"]}
    assert set(overlap) > set(CLASSES)
    assert all(0 <= overlap[name]["seen_share"] <= 100 for name in _test_objects(smoke))


def test_10_base_training(smoke):
    record = smoke.record("10_base_training")
    metrics, params = record["metrics"], record["params"]
    assert [point["iteration"] for point in metrics["curve"]][-1] == params["solver"]["iterations"]
    assert metrics["pretraining_curve"][-1]["iteration"] == params["pretraining"]["iterations"]
    last = metrics["curve"][-1]
    parts = [value for name, value in last.items() if name.startswith("loss_")]
    assert len(parts) == 4 and last["loss"] == pytest.approx(sum(parts), rel=1e-5)
    assert last["loss"] < metrics["curve"][0]["loss"]
    present = [name for name in _test_objects(smoke) if name not in SPLITS[1]]
    known = {name: values for name, values in metrics["per_class"].items() if values["AP50"] is not None}
    assert set(metrics["per_class"]) == set(CLASSES) - set(SPLITS[1]) and set(known) == set(present)
    for name in ("AP", "AP50", "AP75"):
        mean = np.mean([values[name] for values in known.values()])
        assert metrics[f"b{name}"] == pytest.approx(mean) and 0 <= mean <= 100
    for name in ("recall_base_at_100", "recall_novel_at_100", "pretraining_accuracy"):
        assert 0 <= metrics[name] <= 100
    content = torch.load(smoke.artifacts(record) / "model.pth", weights_only=True)
    assert set(content["class_names"]) == set(CLASSES) - set(SPLITS[1])
    assert all(tensor.isfinite().all() for tensor in content["model"].values() if tensor.is_floating_point())


def test_12_tiny_clip(smoke):
    record, objects = smoke.record("12_tiny_clip"), _test_objects(smoke)
    metrics = record["metrics"]
    assert len(metrics["curve"]) == record["params"]["iterations"]
    names, matrix = metrics["confusion"]["class_names"], np.array(metrics["confusion"]["matrix"])
    assert matrix.shape == (20, 20) and names == list(CLASSES)
    assert matrix.sum() == metrics["crop_accuracy"]["all"]["num_crops"] <= sum(objects.values())
    assert all(crops <= objects[name] for name, crops in zip(names, matrix.sum(axis=1), strict=True))
    accuracy = 100 * matrix.trace() / matrix.sum()
    assert metrics["crop_accuracy"]["all"]["accuracy"] == pytest.approx(accuracy)
    assert set(metrics["crop_accuracy"]) == {"all", "split1", "split2", "split3"}
    state = torch.load(smoke.artifacts(record) / "clip.pt", weights_only=True)
    counted = [name for name in state if re.fullmatch(r"visual\.(?!.*(running_|num_batches)).*", name)]
    assert metrics["parameters"] == sum(state[name].numel() for name in counted)


def test_20_fine_tuning(smoke):
    novel, base = set(SPLITS[1]), set(CLASSES) - set(SPLITS[1])
    records = smoke.fine_tuning()
    assert sorted(record["params"]["shots"] for record in records) == [1, 2]
    for record in records:
        keys = {tuple(row[name] for name in (*KEY[2:], "rescoring")) for row in record["rows"]}
        assert len(record["rows"]) == len(keys) == 2 * 2 * 2 * 3  # seeds, losses, arms, re-scorings
        for row in record["rows"]:
            assert set(row["per_class"]) == novel and "bAP" not in row
            assert row["shots"] == record["params"]["shots"] and row["setting"] == "fsod"
            known = [values["AP50"] for values in row["per_class"].values() if values["AP50"] is not None]
            assert row["nAP50"] == pytest.approx(np.mean(known)) and 0 <= row["nAP50"] <= 100
            assert 0 < row["num_detections"] <= 100 and row["final_loss"] > 0
    assert len({row["final_loss"] for row in smoke.rows(rescoring="none")}) == 16  # no cell is another's copy
    (record,) = smoke.fine_tuning("gfsod")
    assert len(record["rows"]) == 2 * 2 * 3
    for row in record["rows"]:
        assert set(row["per_class"]) == novel | base
        for group, names in (("n", novel), ("b", base), ("", novel | base)):
            values = [row["per_class"][name]["AP"] for name in names]
            mean = np.mean([value for value in values if value is not None])
            assert row[f"{group}AP"] == pytest.approx(mean)


def test_21_evaluate_finds_what_base_training_recorded(smoke):
    """The same detector, images and cut, so the same numbers; the head has no novel class."""
    record, base = smoke.record("21_evaluate"), smoke.record("10_base_training")["metrics"]
    (row,) = record["rows"]
    for name in ("AP", "AP50", "AP75", "bAP", "bAP50", "bAP75", "per_class", "num_detections"):
        assert row[name] == base[name], name
    assert (row["rescoring"], row["nAP"], row["nAP50"]) == ("none", None, None)
    found = Detections.load(smoke.artifacts(record) / "detections.npz")
    assert set(found.class_names) == set(CLASSES) - set(SPLITS[1])
    assert row["num_detections"] * 24 == found.counting(score_thresh=0.05, max_per_image=100).sum()
    table = smoke.table("evaluation")
    assert table["run_id"].unique().tolist() == [record["run_id"]] and len(table) == 9


def _by_cell(rows: list[dict]) -> dict[tuple, tuple]:
    """nAP, nAP50 and nAP75 of each cell."""
    return {tuple(row[key] for key in KEY): tuple(row[f"nAP{x}"] for x in ("", 50, 75)) for row in rows}


def test_re_scoring_changes_some_result(smoke):
    """Else the comparisons below would hold whatever the code did."""
    none = _by_cell(smoke.rows(rescoring="none"))
    narrow, wide = (_by_cell(smoke.rows(rescoring=name)) for name in ("cm_clip", "cm_clip_wide"))
    assert none != narrow and none != wide and narrow != wide


def test_30_ablation_c_agrees_with_fine_tuning(smoke):
    """c = 1 is the detector alone, in both label spaces; c = 0.7 is what fine-tuning recorded."""
    rows = smoke.record("30_ablation_c")["rows"]
    assert len(rows) == 2 * 8 * 2 * 3 * 2 * 2  # K, cells, label spaces, c, temperatures, fusions
    papers = {"temperature": 100.0, "fusion": "arithmetic", "score_thresh": 0.05}
    rows = [row for row in rows if papers.items() <= row.items()]
    for space, name in SPACES.items():
        own = [row for row in rows if row["label_space"] == space]
        at = {c: _by_cell([row for row in own if row["c"] == c]) for c in (0.0, 0.7, 1.0)}
        assert at[1.0] == _by_cell(smoke.rows(rescoring="none"))
        assert at[0.7] == _by_cell(smoke.rows(rescoring=name))
        assert at[0.0].keys() == at[1.0].keys() and at[0.0] != at[1.0]


def test_30_ablation_c_needs_no_forward_pass(smoke, tmp_path, monkeypatch):
    """Neither the base model nor the CLIP is there, and no network may be called."""
    link_project(tmp_path)
    (tmp_path / "data").symlink_to(smoke.root / "data")
    shutil.copytree(
        smoke.results,
        tmp_path / "results" / "smoke",
        ignore=shutil.ignore_patterns("base_training-*", "tiny_clip-*", "figures", "tables"),
    )
    shutil.copytree(smoke.results / "records", tmp_path / "results" / "smoke" / "records", dirs_exist_ok=True)
    monkeypatch.setenv("RISF_ROOT", str(tmp_path))
    monkeypatch.setattr(torch.nn.Module, "__call__", lambda *_, **__: pytest.fail("a network was called"))
    record = smoke.record("30_ablation_c")
    params = MODELS["30_ablation_c"].model_validate(record["params"])
    assert ablate_c(params, start_run(params)) == record["rows"]


def test_31_ablation_bnrl(smoke):
    rows = smoke.record("31_ablation_bnrl")["rows"]
    # arms x (background weights x (alphas + betas) + gammas x epsilons)
    assert len(rows) == 2 * (2 * (2 + 2) + 2 * 2)
    values = {}
    for row in rows:
        assert 0 <= row["nAP50"] <= 100 and row["seed"] == 0
        if row["sweep"] == "beta_tied":
            assert row["beta"] == pytest.approx(1 - row["alpha"])
        else:
            assert row["alpha"] == 0.2
        point = tuple(row[k] for k in ("arm", "alpha", "beta", "gamma", "epsilon", "background_weight"))
        values.setdefault(point, set()).add((row["nAP"], row["nAP50"]))
    assert all(len(found) == 1 for found in values.values())  # where sweeps cross, they agree
    assert len(values) == 2 * (2 * 3 + 3) and len(set().union(*values.values())) > 2


def test_32_clip_backbones(smoke):
    """The CLIP of the fine-tuning run gives the rows of that run; the other has random weights and says so."""
    rows = smoke.record("32_clip_backbones")["rows"]
    trained = [row for row in rows if row["clip"] == "risf-tiny-resnet"]
    random = [row for row in rows if row not in trained]
    assert len(trained) == len(random) == 2 * 2  # seeds, arms
    assert {row["clip"] for row in random} == {"risf-tiny-vit (random weights)"}
    assert not any(row["path_only"] for row in trained) and all(row["path_only"] for row in random)
    cells = {"shots": 2, "loss": "ce"}
    without, rescored = (_by_cell(smoke.rows(rescoring=name, **cells)) for name in ("none", "cm_clip"))
    assert _by_cell(trained) == rescored and _by_cell(random).keys() == rescored.keys()
    accuracy = smoke.record("12_tiny_clip")["metrics"]["crop_accuracy"]
    for row in rows:
        before = without[tuple(row[key] for key in KEY)]
        gains = (row["nAP"] - before[0], row["nAP50"] - before[1])
        assert (row["gain_nAP"], row["gain"]) == pytest.approx(gains)
    for row in trained:
        assert row["crop_accuracy"] == pytest.approx(accuracy["split1"]["accuracy"])
        assert row["crop_accuracy_all"] == pytest.approx(accuracy["all"]["accuracy"])
        assert row["parameters"] == smoke.record("12_tiny_clip")["metrics"]["parameters"]
        assert row["iterations"] == smoke.record("12_tiny_clip")["params"]["iterations"]
    assert {row["iterations"] for row in random} == {None}
    boxes = sum(
        len(stored(smoke.artifacts(_tuned(smoke)), f"seed{seed}-{arm}-ce")[0])
        for seed, arm in {(row["seed"], row["arm"]) for row in rows}
    )
    for cost in smoke.record("32_clip_backbones")["environment"]["clips"].values():
        assert 0 < cost["crops"] <= boxes and cost["seconds"] > 0 and cost["precision"] == "fp32"


def _tuned(smoke: Smoke, *, shots: int = 2) -> dict:
    """The record of the fine-tuning that the studies build on."""
    (record,) = (record for record in smoke.fine_tuning() if record["params"]["shots"] == shots)
    return record


def _cell(smoke: Smoke, *, seed: int) -> tuple[Detections, Similarities]:
    """What the studies re-score: arm kshot, loss ce, K = 2."""
    return stored(smoke.artifacts(_tuned(smoke)), f"seed{seed}-kshot-ce")


def _nap50(smoke: Smoke, rescoring: str, *, seed: int) -> float:
    """What fine-tuning recorded of it."""
    (row,) = smoke.rows(shots=2, seed=seed, arm="kshot", loss="ce", rescoring=rescoring)
    return row["nAP50"]


NOVEL, BASE = SPLITS[1], tuple(name for name in CLASSES if name not in SPLITS[1])


def test_22_predict_finds_what_fine_tuning_stored(smoke):
    """The detector was trained again, and sees the image alone."""
    record = smoke.record("22_predict")
    folder = smoke.artifacts(record)
    images, before, after = (
        json.loads((folder / f"{name}.json").read_text()) for name in ("images", "detections", "rescored")
    )
    first = json.loads(annotations(smoke).read_text())["images"][0]
    assert images["images"][0]["file_name"] == Path(first["file_name"]).name
    found, beside = _cell(smoke, seed=0)
    own = found.image_ids == first["id"]
    found, beside = found.keep(own), beside.keep(own)
    assert len(found) > 3 and record["metrics"]["num_images"] == len(images["images"]) == 1
    ids = {category["name"]: category["id"] for category in images["categories"]}
    both = blended(found, label_probs(found, beside, NOVEL), c=0.7)
    for listed, expected in ((before, found), (after, both)):
        expected, listed = (
            sorted(entries, key=lambda entry: (entry["category_id"], *entry["bbox"]))
            for entries in (entries_of(expected, ids), listed)
        )
        assert [entry["category_id"] for entry in listed] == [entry["category_id"] for entry in expected]
        for one, other in zip(listed, expected, strict=True):
            assert one["score"] == pytest.approx(other["score"], abs=1e-4)
            assert one["bbox"] == pytest.approx(other["bbox"], abs=0.05)  # pixels
    assert record["metrics"]["num_drawn"] == [sum(entry["score"] > 0.1 for entry in after)]


def test_22_predict_writes_small_weights_that_give_its_numbers(smoke):
    """At half precision: near what the whole detector and CLIP give on these scenes, which fine-tuning stored."""
    record = smoke.record("22_predict")
    folder, demo = smoke.artifacts(record) / "demo", record["metrics"]["demo"]
    facts = json.loads((folder / "demo.json").read_text())
    assert facts["expected"] == demo and facts["num_images"] == 12
    for name, entry in facts["files"].items():
        data = (folder / name).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (entry["bytes"], entry["sha256"])
    found, beside = _cell(smoke, seed=0)
    after = blended(found, label_probs(found, beside, NOVEL), c=0.7)
    numbers = [ap50(smoke, side, NOVEL, images=12) for side in (found, after)]
    assert [demo["nAP50_before"], demo["nAP50_after"]] == pytest.approx(numbers, abs=0.5)
    assert demo["difference"] == pytest.approx(demo["nAP50_after"] - demo["nAP50_before"])
    assert demo["low"] <= demo["high"]


def test_30_ablation_c_takes_temperatures_and_fusions(smoke):
    """Beside the run's own: the factor that the CLIP has learned, and the weighted geometric mean."""
    record = smoke.record("30_ablation_c")
    learned = _learned_temperature(smoke)
    assert learned != pytest.approx(100.0)
    (found, beside), rows = _cell(smoke, seed=0), []
    key = {"shots": 2, "seed": 0, "arm": "kshot", "loss": "ce"}
    for row in record["rows"]:
        if key.items() <= row.items():
            names = NOVEL if row["label_space"] == "novel+background" else (*NOVEL, *BASE)
            factor = learned if row["temperature"] == "learned" else row["temperature"]
            probs = label_probs(found, beside, names, temperature=factor)
            both = blended(found, probs, c=row["c"], fusion=row["fusion"])
            assert row["nAP50"] == pytest.approx(ap50(smoke, both, NOVEL), abs=1e-4), row
            rows.append(row)
    assert len(rows) == 2 * 2 * 2 * 3  # label spaces, temperatures, fusions, c
    assert len({row["nAP"] for row in rows if row["c"] == 0.7}) > 2


def _learned_temperature(smoke: Smoke) -> float:
    path = smoke.artifacts(smoke.record("12_tiny_clip")) / "clip.pt"
    return float(torch.load(path, weights_only=True)["logit_scale"].exp())


def test_33_missing_annotations_begins_where_other_notebooks_train(smoke):
    """With nothing known, and on the arm kshot, its rows are those of 38_learning_rates at the chosen rate."""
    record, rates = smoke.record("33_missing_annotations"), smoke.record("38_learning_rates")["rows"]
    means = {(row["loss"], row["lr"]): [] for row in rates}
    for row in rates:
        means[row["loss"], row["lr"]].append(row["nAP50"])
    for loss, rate in record["metrics"]["rates"].items():
        assert np.mean(means[loss, rate]) == max(
            np.mean(own) for (name, _), own in means.items() if name == loss
        )
        for treatment, fraction, arm in (("ignored", 0.0, "missing"), ("kshot", None, "kshot")):
            own = {
                "treatment": treatment,
                "fraction": fraction,
                "loss": loss,
                "role": "reported",
                "is_fixed": True,
            }
            (row,) = [row for row in record["rows"] if own.items() <= row.items()]
            (other,) = [r for r in rates if (r["arm"], r["loss"], r["lr"], r["seed"]) == (arm, loss, rate, 0)]
            assert [row[name] for name in ("nAP50", "nAP")] == [other[name] for name in ("nAP50", "nAP")]


def test_33_missing_annotations_keeps_the_labels_constant(smoke):
    rows = smoke.record("33_missing_annotations")["rows"]
    own = [
        row for row in rows if row["role"] == "reported" and row["is_fixed"] and row["loss"] in ("ce", "bnrl")
    ]
    ignored = {(row["loss"], row["fraction"]): row for row in own if row["treatment"] == "ignored"}
    assert sorted(ignored) == [(loss, share) for loss in ("bnrl", "ce") for share in (0.0, 0.5, 1.0)]
    for loss in ("ce", "bnrl"):
        none, half, all_ = (ignored[loss, share] for share in (0.0, 0.5, 1.0))
        assert none["labels"] == half["labels"] == all_["labels"] == 2 * len(NOVEL)
        assert none["candidates"] >= half["candidates"] >= all_["candidates"]
        assert none["candidates"] > all_["candidates"]
        (labelled,) = [
            row for row in own if (row["treatment"], row["fraction"], row["loss"]) == ("labelled", 1.0, loss)
        ]
        assert labelled["labels"] == 2 * len(NOVEL) * (1 + 4)  # four further novel objects an image
    chosen = {row["lr"] for row in rows if row["loss"] == "focal" and row["role"] == "reported"}
    tried = {row["lr"]: row["nAP50"] for row in rows if row["loss"] == "focal" and row["role"] == "selection"}
    assert chosen == {min(rate for rate in tried if tried[rate] == max(tried.values()))}


def test_34_latency_counts_what_it_measures(smoke):
    """Rows hold what repeats: crops encoded and what they give, for the boxes that fine-tuning stored."""
    rows = smoke.record("34_latency")["rows"]
    found, _ = _cell(smoke, seed=0)
    own = [row for row in rows if row["kind"] == "stored"]
    proposals = set(zip(found.image_ids.tolist(), found.proposals.tolist()))
    encoded = {"none": len(found), "share=proposal": len(proposals), "budget=1": len(set(found.image_ids))}
    exact = []
    for row in own:
        assert (row["num_images"], row["num_boxes"]) == (24, len(found))
        assert row["gain_nAP50"] == pytest.approx(row["nAP50"] - _nap50(smoke, "none", seed=0))
        assert row["encoded"] == encoded.get(row["approximation"], row["encoded"]) <= len(found)
        if (row["way"], row["path"], row["approximation"]) == ("ours", "crop", "none"):
            exact.append(row["nAP50"])
    assert exact == pytest.approx([_nap50(smoke, "cm_clip", seed=0)] * 2)  # from files and from memory
    first = np.unique(found.image_ids)[:4]
    for row in (row for row in rows if row["kind"] == "parts"):
        assert (row["num_images"], row["num_boxes"]) == (4, np.isin(found.image_ids, first).sum())
    floors = {(row["clip"], row["precision"]): row for row in rows if row["kind"] == "floor"}
    assert (
        floors["risf-tiny-resnet", "fp32"]["parameters"]
        == smoke.record("12_tiny_clip")["metrics"]["parameters"]
    )


def test_34_latency_keeps_times_apart(smoke):
    record = smoke.record("34_latency")
    rows, times = record["rows"], record["environment"]["latency"]
    assert len(rows) == len(times) and Counter(row["kind"] for row in rows).keys() == {
        "stored", "equality", "parts", "all_c", "floor", "boxes",
    }  # fmt: skip
    for row, time in zip(rows, times):
        shared = row.keys() & time.keys()
        assert {"kind", "clip"} <= shared and all(row[name] == time[name] for name in shared)
        assert not {"ms", "mean", "seconds", "rate"} & row.keys()
    milliseconds = {"stored": "ms", "floor": "ms", "boxes": "mean"}
    assert min(time[milliseconds[time["kind"]]] for time in times if time["kind"] in milliseconds) > 0
    assert min(time["total"]["mean"] for time in times if time["kind"] == "parts") > 0
    (equality,) = (time for time in times if time["kind"] == "equality")
    assert equality["largest_difference"] < 1e-4  # of a score: the published way and ours, fed the same


def test_35_other_detectors_and_results_files_are_rescored(smoke):
    record = smoke.record("35_other_detectors")
    parts = Counter(row["part"] for row in record["rows"])
    # a base training for each detector; three detectors x two seeds and four files, each at every fusion and c
    assert parts == {"base": 2, "scores": 3 * 2 + 4, "re-scored": 10 * 2 * 4, "file": 2 * 3}
    assert {row["way"] for row in record["rows"] if row["part"] == "file"} == {
        "paper",
        "selected",
        "geometric",
    }
    for row in (row for row in record["rows"] if row["part"] == "base"):
        assert 0 <= row["bAP"] <= row["bAP50"] <= 100


def _swept(record: dict, **wanted) -> dict[tuple, float]:
    """nAP50 of the rows of 35_other_detectors with these values, by fusion and c."""
    rows = [row for row in record["rows"] if row["part"] == "re-scored" and wanted.items() <= row.items()]
    return {(row["fusion"], row["c"]): row["nAP50"] for row in rows}


@pytest.mark.parametrize("detector, above", [("faster_rcnn", 0.05), ("retinanet", 0.05), ("fcos", 0.2)])
def test_35_rows_of_a_detector_follow_from_its_stored_boxes(smoke, detector, above):
    record, seen = smoke.record("35_other_detectors"), set()
    for seed in (0, 1):
        if detector == "faster_rcnn":
            found, beside = _cell(smoke, seed=seed)
        else:
            name = f"{detector}-split1-2shot-seed{seed}"
            found, beside = stored(smoke.artifacts(record), name, above=above)
        key = {"detector": detector, "split": 1, "shots": 2, "seed": seed}
        (facts,) = (row for row in record["rows"] if row["part"] == "scores" and key.items() <= row.items())
        assert facts["per_image"] == pytest.approx(len(found) / 24) and len(found) > 24
        probs, values = label_probs(found, beside, NOVEL), _swept(record, **key)
        assert set(values) == set(itertools.product(("arithmetic", "geometric"), (0.3, 0.5, 0.7, 1.0)))
        for (fusion, c), value in values.items():
            both = blended(found, probs, c=c, fusion=fusion)
            assert value == pytest.approx(ap50(smoke, both, NOVEL), abs=1e-4), (fusion, c)
        seen |= set(values.values())
    assert len(seen) > 4


@pytest.mark.parametrize("name", ["YOLO-like (made)", "DETR-like (made)"])
def test_35_gains_of_a_results_file_follow_from_the_file(smoke, name):
    """c is chosen on split 2 and reported on split 1."""
    record, values, measured = smoke.record("35_other_detectors"), {}, {}
    for split in (1, 2):
        found = _entries_with_probabilities(smoke, record, name, split)
        values[split] = _swept(record, detector=name, split=split)
        for (fusion, c), value in values[split].items():
            measured[split, fusion, c] = _ap50_of_blend(smoke, *found, split, c=c, fusion=fusion)
            assert value == pytest.approx(measured[split, fusion, c], abs=1e-4)
    assert len(set(measured.values())) > 2
    ways = {row["way"]: row for row in record["rows"] if row["part"] == "file" and row["detector"] == name}
    for way, fusion in {"paper": "arithmetic", "selected": "arithmetic", "geometric": "geometric"}.items():
        row, choices = ways[way], {c: value for (other, c), value in values[2].items() if other == fusion}
        chosen = 0.7 if way == "paper" else max(choices, key=lambda c: (choices[c], c))  # noqa: B023
        assert (row["split"], row["fusion"], row["c"]) == (1, fusion, chosen)
        assert row["before"] == pytest.approx(measured[1, fusion, 1.0], abs=1e-4)
        assert row["after"] == pytest.approx(measured[1, fusion, chosen], abs=1e-4)
        assert row["low"] <= row["high"]


def _entries_with_probabilities(
    smoke: Smoke, record: dict, name: str, split: int
) -> tuple[list[dict], np.ndarray]:
    """The entries of a results file that are re-scored, in the order of the stored cosines, and CLIP's probability."""
    files = {(file["name"], file["split"]): file["results"] for file in record["params"]["results_files"]}
    categories = json.loads(annotations(smoke).read_text())["categories"]
    names, novel = {category["id"]: category["name"] for category in categories}, SPLITS[split]
    entries = json.loads((smoke.root / files[name, split]).read_text())
    entries = [one for one in entries if one["score"] > CUT and names[one["category_id"]] in novel]
    entries.sort(key=lambda one: (one["image_id"], -one["score"]))
    assert max(Counter(one["image_id"] for one in entries).values()) <= BEST
    stem = re.sub(r"[^A-Za-z0-9._-]", "_", name)
    cosines = Similarities.load(smoke.artifacts(record) / "similarities" / f"file-{stem}-split{split}.npz")
    labels = [novel.index(names[one["category_id"]]) for one in entries]
    return entries, probabilities(cosines, novel)[np.arange(len(entries)), labels]


def _ap50_of_blend(smoke: Smoke, entries: list[dict], probs: np.ndarray, split: int, **how) -> float:
    scores = fused(np.array([one["score"] for one in entries]), probs, **how)
    after = [one | {"score": score} for one, score in zip(entries, scores.tolist(), strict=True)]
    return ap50(smoke, after, SPLITS[split])


def test_36_label_space_reports_what_the_other_seed_chose(smoke):
    record = smoke.record("36_label_space")
    metrics, folder = record["metrics"], smoke.artifacts(record)
    names, grids = metrics["grid"]["combinations"], {}
    assert len(names) == len(set(names)) == 4 * 3 * 2 * 2 * 2  # spaces, temperatures, prototypes, fusions, c
    for row in (row for row in record["rows"] if row["part"] == "grid"):
        file = folder / row["file"]
        assert hashlib.sha256(file.read_bytes()).hexdigest() == row["sha256"]
        grids[row["role"]] = np.load(file)
        assert metrics["grid"][row["role"]]["2"] == pytest.approx(grids[row["role"]].tolist(), abs=6e-4)
    seeds = {"selection": 1, "reported": 0}
    reported = {(row["role"], row["what"]): row for row in record["rows"] if row["part"] == "result"}
    for role, seed in seeds.items():
        assert reported[role, "none"]["nAP50"] == _nap50(smoke, "none", seed=seed)
        assert reported[role, "paper"]["nAP50"] == pytest.approx(_nap50(smoke, "cm_clip", seed=seed))
    chosen = names[int(grids["selection"].argmax())]
    assert metrics["chosen"] == {"2": chosen} and reported["reported", "selected"]["combination"] == chosen
    assert reported["reported", "test oracle"]["nAP50"] == pytest.approx(grids["reported"].max())
    for (role, what), row in reported.items():
        if what != "none":
            assert row["nAP50"] == pytest.approx(grids[role][names.index(row["combination"])]), what


def test_36_label_space_grid_follows_from_stored_cosines(smoke):
    """Where no crop is encoded anew: the paper's names and those with the base classes, without prototypes."""
    record = smoke.record("36_label_space")
    learned, seen = _learned_temperature(smoke), set()
    assert record["metrics"]["learned_temperature"] == pytest.approx(learned)
    for role, seed in {"selection": 1, "reported": 0}.items():
        found, beside = _cell(smoke, seed=seed)
        values = dict(zip(record["metrics"]["grid"]["combinations"], record["metrics"]["grid"][role]["2"]))
        spaces = {"novel+background": NOVEL, "novel+base+background": (*NOVEL, *BASE)}
        factors = {"100": 100.0, "learned": learned}
        for space, factor, fusion, c in itertools.product(
            spaces, factors, ("arithmetic", "geometric"), (0.3, 0.7)
        ):
            probs = label_probs(found, beside, spaces[space], temperature=factors[factor])
            value = values[f"{space}, T {factor}, {fusion}, c={c:g}, no visual"]
            assert value == pytest.approx(
                ap50(smoke, blended(found, probs, c=c, fusion=fusion), NOVEL), abs=6e-4
            )
            seen.add(value)
    assert len(seen) > 8


def test_37_rescoring_controls_follow_from_stored_cosines(smoke):
    rows = smoke.record("37_rescoring_controls")["rows"]
    controls = {row["control"]: row["nAP50"] for row in rows if row["part"] == "control"}
    found, beside = _cell(smoke, seed=0)

    def rescored(probs: np.ndarray) -> float:
        return ap50(smoke, blended(found, probs, c=0.7), NOVEL)

    shifted = [(*NOVEL[-shift:], *NOVEL[:-shift]) for shift in range(1, len(NOVEL))]
    expected = {
        "none": _nap50(smoke, "none", seed=0),
        "paper": _nap50(smoke, "cm_clip", seed=0),
        "permuted names": np.mean([rescored(label_probs(found, beside, names)) for names in shifted]),
        "background only": rescored(1 - probabilities(beside, NOVEL)[:, -1]),
    }
    assert controls.keys() == expected.keys() | {"jitter 0.2", "random-weight CLIP"}
    assert {name: controls[name] for name in expected} == pytest.approx(expected, abs=1e-4)
    assert len(set(controls.values())) > 3


def test_39_training_regimes_has_a_row_for_every_cell(smoke):
    """And its table pairs them by seed."""
    record = smoke.record("39_training_regimes")
    rates, rows = record["params"]["rates"], record["rows"]
    settings = {(r, loss, lr) for r, losses in rates.items() for loss, own in losses.items() for lr in own}
    for role, seeds in (("reported", {0, 1}), ("selection", {0})):
        own = [row for row in rows if row["role"] == role]
        assert {(row["regime"], row["loss"], row["lr"]) for row in own} == settings
        assert {row["seed"] for row in own} == seeds and len(own) == len(seeds) * 2 * len(settings)
    assert all(0 <= row["nAP50"] <= 100 for row in rows) and len({row["final_loss"] for row in rows}) >= 24
    values = {
        (row["regime"], row["arm"], row["loss"], row["lr"], row["seed"]): row["nAP50"]
        for row in rows
        if row["role"] == "reported"
    }
    table = smoke.table("regimes")
    for row in table[table["rate"] == "0.05"].to_dict("records"):
        place = row["regime"], row["arm"]
        pairs = [values[(*place, "bnrl", 0.05, seed)] - values[(*place, "ce", 0.05, seed)] for seed in (0, 1)]
        assert row["difference"] == pytest.approx(np.mean(pairs), abs=1e-4) and row["difference_n"] == 2
    assert (table["rate"] == "chosen").sum() == 4  # two regimes, two arms


def test_42_missing_rate_estimates_what_was_planted(smoke):
    record = smoke.record("42_missing_rate")
    cells = [row for row in record["rows"] if row["part"] == "cell"]
    assert len(cells) == 2 * 3 * 2  # roles, sets of images, kinds of score
    for row in cells:
        assert row["annotated"] > 0 and row["images"] > 0
        if (row["arm"], row["dropped"]) == ("missing", None):  # four further objects in each image
            assert row["unannotated"] == 4 * row["images"] == 4 * row["annotated"]
        if row["dropped"] == 0.0:
            assert row["unannotated"] == 0
        if row["role"] == "reported":
            expected = row["estimated"] / (row["annotated"] + row["estimated"])
            assert row["rate"] == pytest.approx(expected) and 0 <= row["low"] <= row["high"] <= 1
    chosen = {row["score"]: row for row in record["rows"] if row["part"] == "setting"}
    assert chosen.keys() == {"detector", "cm_clip"} and chosen["cm_clip"]["c"] == 0.5
    images = [row for row in record["rows"] if row["part"] == "image" and row["score"] == "detector"]
    (cell,) = [r for r in cells if (r["role"], r["dropped"], r["score"]) == ("reported", None, "detector")]
    counted = sum(row["suspected"] for row in images) - chosen["detector"]["false_per_image"] * cell["images"]
    assert cell["estimated"] == pytest.approx(max(0.0, counted) / cell["found_per_box"])
    table = smoke.table("missing_rate")
    assert set(table["arm"]) == {"missing", "full", "all"} and len(table) == 2 * 4


def test_37_rescoring_controls_tell_sizes_and_classes_apart(smoke):
    rows, objects = smoke.record("37_rescoring_controls")["rows"], _test_objects(smoke)
    found, beside = _cell(smoke, seed=0)
    both = blended(found, label_probs(found, beside, NOVEL), c=0.7)
    sizes = [row for row in rows if row["part"] == "size"]
    content = json.loads(annotations(smoke).read_text())
    ids = {category["id"] for category in content["categories"] if category["name"] in NOVEL}
    areas = np.array([box["area"] for box in content["annotations"] if box["category_id"] in ids])
    assert len(sizes) == 3
    for row in sizes:
        area = (row["area_from"], row["area_to"] or 1e10)
        assert row["objects"] == ((areas >= area[0]) & (areas <= area[1])).sum() > 0
        for side, name in ((found, "without"), (both, "with")):
            assert row[name] == pytest.approx(ap50(smoke, side, NOVEL, area=area), abs=1e-4)
        assert row["gain"] == pytest.approx(row["with"] - row["without"])
    classes = {row["name"]: row for row in rows if row["part"] == "class"}
    assert classes.keys() == set(NOVEL)
    key = {"shots": 2, "seed": 0, "arm": "kshot", "loss": "ce"}
    for side, rescoring in (("without", "none"), ("with", "cm_clip")):
        (row,) = smoke.rows(rescoring=rescoring, **key)
        stored_ones = {name: values["AP50"] for name, values in row["per_class"].items()}
        assert {name: own[side] for name, own in classes.items()} == pytest.approx(stored_ones)
    accuracy = smoke.record("12_tiny_clip")["metrics"]["crop_accuracy"]["split1"]
    known = [(objects[name], row["accuracy"]) for name, row in classes.items() if objects[name]]
    right = sum(count * value / 100 for count, value in known)
    assert 100 * right / sum(count for count, _ in known) == pytest.approx(accuracy["accuracy"])


def test_41_base_classes_agrees_with_fine_tuning_where_both_measure(smoke):
    """Nothing re-scored, and the novel classes as published, are rows of the gfsod run, too."""
    record, (tuned,) = smoke.record("41_base_classes"), smoke.fine_tuning("gfsod")
    rows = [row for row in record["rows"] if row["part"] == "rescored"]
    assert len(rows) == 2 * 2 * (1 + 3 * (2 + 2 + 1))  # seeds, losses; c, label spaces
    at = {"rescored+background": "cm_clip", "": "none"}
    own = [row for row in rows if row["rescored"] in ("none", "novel") and row["c"] in (0.7, 1.0)]
    compared = [row for row in own if row["label_space"] in at]
    assert len(compared) == 2 * 2 * 2
    for row in compared:
        key = {name: row[name] for name in ("seed", "loss")} | {"rescoring": at[row["label_space"]]}
        (theirs,) = [one for one in tuned["rows"] if key.items() <= one.items()]
        for name in ("AP", "AP50", "bAP", "bAP50", "nAP", "nAP50"):
            assert row[name] == pytest.approx(theirs[name], abs=1e-4)
    objects = _test_objects(smoke)
    classes = {row["name"]: row for row in record["rows"] if row["part"] == "class"}
    assert {name: row["objects"] for name, row in classes.items()} == {
        name: objects[name] for name in CLASSES
    }
    changes = [row for row in record["rows"] if row["part"] == "images"]
    assert len(changes) == 2 and {row["images"] for row in changes} == {24}


def test_50_open_vocabulary_records_every_arm_on_the_same_test_images(smoke):
    """AP50 of the stored detections by pycocotools; steps, regions and names as the parameters say."""
    record = smoke.record("50_open_vocabulary")
    params, folder = record["params"], smoke.artifacts(record)
    arms = {row["arm"]: row for row in record["rows"] if row["part"] == "arm"}
    assert arms.keys() == params["arms"].keys() and {row["seed"] for row in arms.values()} == {params["seed"]}
    for name, row in arms.items():
        found = Detections.load(folder / "detections" / f"{name}.npz")
        counting = found.keep(found.counting(score_thresh=CUT, max_per_image=BEST))
        for group, names in (("n", NOVEL), ("b", BASE), ("", CLASSES)):
            assert row[f"{group}AP50"] == pytest.approx(ap50(smoke, counting, names), abs=1e-3), name
        assert row["settings"] == params["arms"][name]
        steps = params["solver"]["iterations"] if name != "base" else 0
        assert (row["iterations"], row["box_images"]) == (steps, steps * params["solver"]["batch_size"])
        assert row["sees_novel"] == ("no" if row["settings"]["distillation"] else None)
        assert all(0 <= row[f"recall_{group}_at_100"] <= 100 for group in ("base", "novel"))
    steps = smoke.table("open_vocabulary_cost").set_index("arm")["total_iterations"]
    assert steps["weight_transfer"] == steps["base_twice"] == 2 * steps["base_continued"] > steps["base"] == 0
    regions = RegionSet.load(folder / "regions" / "rpn-top3-clip.npz")
    (provider,) = [row for row in record["rows"] if row["part"] == "provider"]
    assert (
        provider["regions"] == pytest.approx(len(regions) / len(regions.image_ids))
        and provider["regions"] <= 3
    )
    swaps = {(row["renderer"], row["vocabulary"]) for row in record["rows"] if row["part"] == "swap"}
    assert swaps == {("own", "all"), ("own", "permuted"), ("other palette", "own"), ("other palette", "all")}
    assert {f"{name}.pth" for name in ("rkd_rpn", "base_continued")} <= {
        p.name for p in (folder / "weights").iterdir()
    }


def test_51_distilled_rescoring_follows_from_the_stored_head(smoke):
    """CLIP's numbers are those of the cell's own run; the head's follow from weights and proposals' features."""
    record = smoke.record("51_distilled_rescoring")
    rows, folder = record["rows"], smoke.artifacts(record)
    (chosen,) = [row for row in rows if row["part"] == "choice" and row["is_main"]]
    head = DistilledHead.load(folder / "heads" / f"{chosen['way'].removeprefix('head:')}.pth")
    (base,), found, beside = smoke.records("10_base_training"), *_cell(smoke, seed=0)
    regions = RegionFeatures.load(next(smoke.artifacts(base).glob("regions-*/test.npz")))
    starts = dict(zip(regions.image_ids.tolist(), np.cumsum(regions.counts) - regions.counts))
    places = [starts[image] + proposal for image, proposal in zip(found.image_ids.tolist(), found.proposals)]
    model = load_clip("risf-tiny-resnet", smoke.artifacts(smoke.record("12_tiny_clip")) / "clip.pt")
    clip = CMCLIP(model.model, model.tokenizer, NOVEL, label_space=beside.label_names)
    cosines = head.embed(regions.features[places]) @ clip.text_embeds_norm.numpy().T
    similarities = Similarities(cosines, np.ones(len(found), dtype=bool), beside.label_names)
    probs = label_probs(found, similarities, NOVEL, temperature=chosen["temperature"])
    first = [row for row in rows if row["part"] == "cell" and (row["shots"], row["seed"]) == (2, 0)]
    cells = {(row["way"], row["values"]): row["nAP50"] for row in first}
    expected = {
        (chosen["way"], "chosen"): ap50(smoke, blended(found, probs, c=chosen["c"]), NOVEL),
        ("none", "published"): _nap50(smoke, "none", seed=0),
        ("cm_clip", "published"): _nap50(smoke, "cm_clip", seed=0),
    }
    assert {key: cells[key] for key in expected} == pytest.approx(expected, abs=1e-3)
    others = {"dense", "pooled", "continued", "targets:0.5", "targets_clip:0.5", "permuted", "head:shuffled"}
    assert others <= {way for way, _ in cells}
    times = {row["way"]: row for row in record["environment"]["costs"]}
    assert (
        0 < times["distilled"]["ms"] < times["detector"]["ms"] and times["detector"]["share_of_detector"] == 1
    )
    assert {row["images"] for row in rows if row["part"] == "head"} == {24}


# --- stored files ---------------------------------------------------------------------------------------------------


def test_stored_detections_reach_below_the_cut_and_have_similarities_beside_them(smoke):
    above, below = 0, 0
    for record in smoke.records("20_fine_tuning"):
        folder, params = smoke.artifacts(record), record["params"]
        cells = itertools.product(params["seeds"], params["arms"], params["losses"])
        names = sorted(f"seed{seed}-{arm}-{loss}.npz" for seed, arm, loss in cells)
        for kind in ("detections", "similarities"):
            assert sorted(path.name for path in (folder / kind).iterdir()) == names
        for name in names:
            found = Detections.load(folder / "detections" / name)
            beside = Similarities.load(folder / "similarities" / name)
            assert (
                found.scores.min(initial=1.0) > 0.001 and np.bincount(found.image_ids).max(initial=0) <= 300
            )
            assert found.class_scores.shape == (len(found), len(found.class_names) + 1)
            own = found.class_scores[np.arange(len(found)), found.labels]
            np.testing.assert_array_equal(own, found.scores)
            is_novel = np.isin(found.labels, [found.class_names.index(label) for label in SPLITS[1]])
            np.testing.assert_array_equal(beside.encoded, (found.scores > 0.05) & is_novel)
            assert set(beside.label_names) > set(CLASSES) and np.nanmax(abs(beside.cosines), initial=0) <= 1.0
            above, below = above + (found.scores > 0.05).sum(), below + (found.scores <= 0.05).sum()
    assert above and below


# --- tables and figures ---------------------------------------------------------------------------------------------


def test_40_results_writes_every_table_and_figure_in_every_form(smoke):
    metrics = smoke.record("40_results")["metrics"]
    tables, figures = smoke.results / "tables", smoke.results / "figures"
    pairs = {f"before_after-{record['run_id']}" for record in smoke.records("20_fine_tuning")}
    pairs.add("gallery_gains_losses")  # of 41_base_classes
    pairs |= {f"open_vocabulary_gallery-{one['run_id']}" for one in smoke.records("50_open_vocabulary")}
    for folder, endings, number in (
        (tables, ("csv", "md", "tex"), metrics["num_tables"]),
        (figures, ("png", "pdf", "txt"), metrics["num_figures"] + len(pairs)),
    ):
        names = {path.stem for path in folder.iterdir()}
        assert len(names) == number
        assert {path.name for path in folder.iterdir()} == {f"{n}.{e}" for n in names for e in endings}
        assert all(path.stat().st_size > 20 for path in folder.iterdir())
    assert {path.stem for path in tables.glob("*.csv")} >= {
        "main_nAP", "main_nAP50", "paired_nAP50", "interaction_nAP50", "sensitivity_c_nAP50", "sensitivity_beta_omega",
        "sensitivity_gamma_epsilon", "backbones", "gfsod", "per_class_fsod", "base_training", "tiny_clip", "cost",
    }  # fmt: skip
    assert {path.stem for path in figures.glob("*.png")} >= {
        "main_nAP50", "paired_nAP50", "interaction_nAP50", "sensitivity_c_nAP50", "sensitivity_beta_omega",
        "sensitivity_gamma_epsilon", "backbones", *pairs,
    }  # fmt: skip


def test_tables_hold_means_and_intervals_of_the_rows(smoke):
    """n = 2: the half-width is t s / sqrt(2) = 12.7 |a - b| / 2."""
    frame = smoke.table("main_nAP50")
    frame = frame[frame["setting"] == "fsod"]
    keys = ("arm", "loss", "rescoring", "shots")
    assert len(frame.drop_duplicates(list(keys))) == len(frame) == 2 * 2 * 2 * 2
    assert set(frame["rescoring"]) == {"none", "cm_clip"}  # the wider label space is no column beside these
    for row in frame.to_dict("records"):
        first, second = (found["nAP50"] for found in smoke.rows(**{key: row[key] for key in keys}))
        assert row["mean"] == pytest.approx((first + second) / 2, abs=1e-4)
        assert row["half_width"] == pytest.approx(T95_ONE_DEGREE * abs(first - second) / 2, abs=1e-4)
        assert (row["n"], row["status"]) == (2, "complete")


def test_paired_table_holds_differences_seed_by_seed(smoke):
    frame = smoke.table("paired_nAP50")
    frame = frame[(frame["setting"] == "fsod") & (frame["shots"] != "all")]
    sides = {
        "CM-CLIP − none": ({"rescoring": "cm_clip"}, {"rescoring": "none"}, "loss"),
        "bnrl − ce": ({"loss": "bnrl"}, {"loss": "ce"}, "rescoring"),
    }
    assert set(frame["comparison"]) == set(sides) and len(frame) == 2 * 2 * 2 * 2
    for row in frame.to_dict("records"):
        plus, minus, given = sides[row["comparison"]]
        fixed = {"arm": row["arm"], "shots": int(row["shots"]), given: row["given"]}
        sides_of = [[smoke.rows(seed=seed, **fixed, **side)[0] for side in (plus, minus)] for seed in (0, 1)]
        differences = [first["nAP50"] - second["nAP50"] for first, second in sides_of]
        assert row["mean"] == pytest.approx(np.mean(differences), abs=1e-4) and row["n"] == 2
        spread = T95_ONE_DEGREE * abs(differences[0] - differences[1]) / 2
        assert row["half_width"] == pytest.approx(spread, abs=1e-4)


# --- the same again -------------------------------------------------------------------------------------------------


def test_the_same_parameters_give_the_same_numbers_in_fresh_processes(smoke, own):
    """Base model, CLIP and fine-tuning, the world and all stored files: killed and resumed here, undisturbed there."""
    paths = sorted((own / "results" / "smoke" / "records").glob("*.json"))
    names = [path.stem for path in paths]
    assert [name.split("-")[0] for name in names] == ["base_training", "fine_tuning", "tiny_clip"]
    for path in (paths[0], paths[2]):
        first, second = (json.loads(p.read_text()) for p in (smoke.results / "records" / path.name, path))
        assert first.pop("environment") != second.pop("environment")
        assert first == second
    (first,) = (record for record in smoke.fine_tuning() if record["params"]["shots"] == 1)
    second = json.loads(paths[1].read_text())
    assert first["rows"] == [row for row in second["rows"] if row["loss"] != "focal"]
    assert first["upstream"] == second["upstream"] and first["split_hash"] == second["split_hash"]
    files = files_that_repeat(own)
    kinds = Counter(path.suffix for path in files)
    assert kinds[".pth"] == kinds[".pt"] == 1 and kinds[".npz"] > 2 * 8 and kinds[".png"] > 80
    for name, path in files.items():
        twin = smoke.root / str(name).replace(names[1], first["run_id"])
        is_shared = names[1] not in name.parts or (path.suffix == ".npz" and "focal" not in name.stem)
        assert not is_shared or content(path) == content(twin), name


def test_killed_studies_go_on_and_end_as_those_that_were_not(smoke, tmp_path):
    """Times alone differ: they stand in the records' environment and in files that are no result."""
    written = repeat_studies(smoke, tmp_path)
    assert any(written.values())  # a row at least was made before the kill, and kept
    for first in smoke.records(*STUDIES):
        path = tmp_path / "results" / "smoke" / "records" / f"{first['run_id']}.json"
        second = json.loads(path.read_text())
        assert first.pop("environment") != second.pop("environment")
        assert first == second
        folder = Path("results", "smoke", "artifacts", first["run_id"])
        files, twins = (
            {name: path for name, path in files_that_repeat(root).items() if folder in name.parents}
            for root in (tmp_path, smoke.root)
        )
        for one in (files, twins):
            one.pop(folder / "images.json", None)  # says where the images lie
        assert files.keys() == twins.keys()
        assert [name for name in files if content(files[name]) != content(twins[name])] == []


# drawn by notebooks from stored detections, not from records
PICTURES_OF_IMAGES = ("before_after-", "gallery_", "open_vocabulary_gallery-")


def test_the_same_records_give_the_same_tables_and_figures(smoke, tmp_path):
    """40_results, in a kernel, against ``make figures`` in a project that holds the records alone (but its own)."""
    results = link_project(tmp_path) / "results" / "smoke"
    shutil.copytree(
        smoke.results / "records", results / "records", ignore=shutil.ignore_patterns("results-*")
    )
    command = [sys.executable, "-m", "risf_core.tables", "--profile", "smoke"]
    subprocess.run(command, cwd=tmp_path, env=project_environment(tmp_path), check=True, capture_output=True)
    for folder in ("tables", "figures"):
        first, second = (
            {path.name: path.read_bytes() for path in (place / folder).iterdir()}
            for place in (smoke.results, results)
        )
        from_records = {name for name in first if not name.startswith(PICTURES_OF_IMAGES)}
        assert from_records == second.keys() and len(second) > 20
        assert [name for name in second if first[name] != second[name]] == []


# --- a loss of the user's own ---------------------------------------------------------------------------------------


def test_the_readme_shows_a_short_loss_and_how_to_run_it():
    assert len(readme_loss().splitlines()) <= 15
    command = re.search(r"(?m)^    (\S+python -m risf_core.run(?:.*\\\n)*.*)$", readme_section())
    words = shlex.split(command[1])
    assert words[1:3] == ["-m", "risf_core.run"] and words[-2:] == ["losses", "[my_losses.py:focal]"]


def test_an_own_loss_has_rows_and_paired_differences(own, monkeypatch):
    monkeypatch.setenv("RISF_ROOT", str(own))
    (record,) = read_records("smoke", "20_fine_tuning")
    rows = [row for row in record["rows"] if (row["arm"], row["rescoring"]) == ("missing", "none")]
    cells = {(row["loss"], row["seed"]): row for row in rows}
    assert cells.keys() == {(loss, seed) for loss in ("ce", "bnrl", "focal") for seed in (0, 1)}
    for metric in ("final_loss", "nAP"):  # each cell is a training of its own
        assert len({row[metric] for row in rows}) == len(rows)
    frame = paired_table(read_records("smoke"), metric="nAP").data
    frame = frame[(frame["arm"] == "missing") & (frame["given"] == "none") & (frame["shots"] == 1)]
    pairs = {row["comparison"]: row for row in frame.to_dict("records")}
    for other in ("ce", "bnrl"):
        differences = [cells["focal", seed]["nAP"] - cells[other, seed]["nAP"] for seed in (0, 1)]
        pair = pairs[f"focal − {other}"]
        assert pair["mean"] == pytest.approx(np.mean(differences)) and pair["n"] == 2
        assert pair["up"] == sum(difference > 0 for difference in differences)


def test_the_content_of_an_own_loss_is_part_of_the_run(own):
    file, asked = own / "my_losses.py", own_loss_words("--dry-run")
    assert launch(own, *asked).stdout.startswith("nothing to do: 1 of 1 runs are finished")
    original = file.read_text()
    file.write_text(original.replace("gamma=2.0", "gamma=3.0"))
    try:
        assert launch(own, *asked).stdout.startswith("would run ")
    finally:
        file.write_text(original)
