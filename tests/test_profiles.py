"""The profiles of COCO and VOC: the published schedules, the whole grid, heads that tell what to expect."""

import re
from pathlib import Path

import pandas as pd
import pytest
import yaml

from risf_core import run
from risf_core.detector.presets import FINE_TUNING_GRADIENT_SCALE, published_detector
from risf_core.runs.run_specs import RunSpec, expand, load_list, load_run

ROOT = Path(__file__).parents[1]
STEP_HOURS, IMAGE_HOURS = 0.619 * 8 / 3600, 0.139 / 3600  # of one V100, from detectron2's MODEL_ZOO.md
TEST_IMAGES = {"coco": 5000, "voc": 4952}
# fmt: off
# (decay step, last step) by K, 16 images a step: the configs of er-muyue/DeFRCN (commit d07c3df); those of
# INFINIQ-AI1/RISF (commit 59aee90) equal the entries of 10 shots.
SCHEDULES = {
    ("coco", "fsod"): {1: (800, 1000), 2: (1200, 1500), 3: (1600, 2000), 5: (2000, 2500), 10: (2000, 2500),
                       30: (3200, 4000)},
    ("coco", "gfsod"): {1: (2560, 3200), 2: (3200, 4000), 3: (3840, 4800), 5: (4800, 6000), 10: (4800, 6000),
                        30: (9600, 12000)},
    ("voc", "fsod"): {1: (640, 800), 2: (960, 1200), 3: (1280, 1600), 5: (1600, 2000), 10: (3200, 4000)},
    ("voc", "gfsod"): {1: (800, 1000), 2: (1200, 1500), 3: (1600, 2000), 5: (2000, 2500), 10: (3200, 4000)},
}
BASE = {  # decay steps, last step, warm-up (COCO's is detectron2's default)
    "coco": ((85_000, 100_000), 110_000, 1000),
    "voc": ((10_000, 13_300), 15_000, 100),
}
# From DeFRCN's README: nAP of COCO (its paper, its code); nAP50 of VOC's three splits (paper, then code; in gfsod
# code, then the paper's split 1).
DEFRCN = {
    ("coco", "fsod"): {1: "9.3 9.7", 2: "12.9 13.1", 3: "14.8 14.5", 5: "16.1 15.6", 10: "18.5 18.4", 30: "22.6 22.6"},
    ("coco", "gfsod"): {1: "4.8 4.8", 2: "8.5 8.5", 3: "10.7 10.7", 5: "13.6 13.5", 10: "16.8 16.7", 30: "21.2 21.0"},
    ("voc", "fsod"): {1: "53.6 30.1 48.4 55.1 32.1 48.9", 2: "57.5 38.1 50.9 57.4 40.5 51.9",
                      3: "61.5 47.0 52.3 61.1 47.9 52.3", 5: "64.1 53.3 54.9 64.6 52.9 55.7",
                      10: "60.8 47.9 57.4 61.5 47.5 59.0"},
    ("voc", "gfsod"): {1: "43.8 31.5 38.2 40.2", 2: "57.5 40.9 50.9 53.6", 3: "61.4 45.6 54.1 58.2",
                       5: "65.3 50.1 59.2 63.6", 10: "67.0 52.9 61.9 66.5"},
}
# fmt: on
RISF = {1: "11.7", 10: "21.9", 30: "24.4"}  # nAP of COCO, fsod; no other number of its paper is known to us
CELLS = [(*key, shots) for key, row in SCHEDULES.items() for shots in row]
SPLITS = {"coco": (1,), "voc": (1, 2, 3)}


@pytest.fixture(autouse=True)
def empty_project(tmp_path, monkeypatch):
    """A project with params and notebooks, and with neither data nor weights."""
    for name in ("params", "notebooks"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.setenv("RISF_ROOT", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def load(profile: str, name: str, **changes):
    return load_run(f"params/{profile}/{name}.yaml", changes).params


def head(path: Path) -> str:
    """The comment before a file's first name, as one line."""
    text = path.read_text()
    lines = text[: re.search(r"^[a-z]", text, re.M).start()].splitlines()
    return " ".join(" ".join(line.strip("# \\") for line in lines).split())


# --- numbers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("profile", "setting", "shots"), CELLS)
def test_fine_tuning_has_the_published_schedule(profile, setting, shots):
    params = load(profile, f"20_fine_tuning.{setting}_{shots}shot")
    decay, last = SCHEDULES[profile, setting][shots]
    solver = params.solver
    assert (params.setting, params.shots, params.split) == (setting, shots, 1)
    assert (solver.iterations, solver.milestones, solver.batch_size) == (last, (decay,), 16)
    assert (solver.lr, solver.gamma, solver.warmup, solver.schedule) == (0.01, 0.1, 0, "multistep")
    assert (solver.momentum, solver.nesterov, solver.weight_decay) == (0.9, False, 5e-5)
    assert (solver.clip_norm, solver.precision, solver.group_by_aspect) == (None, "fp32", True)
    published = published_detector(101, data=profile, fine_tuning=True)
    assert params.head.cls_dropout == published.cls_dropout == 0.8
    assert params.head.roi_gradient_scale == FINE_TUNING_GRADIENT_SCALE[profile]
    assert (params.head.num_proposals, params.head.roi_batch) == (2000, 512)
    assert (params.trainable, params.cached, params.score_thresh) == ("all_but_res5", False, 0.05)
    assert (params.seeds, params.losses) == (tuple(range(10)), ("ce", "bnrl", "ce_bg"))
    assert (params.clip.model, params.clip.pretrained) == ("ViT-L-14-336-quickgelu", "openai")
    bnrl = params.bnrl
    assert (bnrl.alpha, bnrl.beta, bnrl.epsilon, bnrl.gamma, bnrl.background_weight) == (0.2, None, 1, 4, 0.2)
    own = params.cm_clip
    assert (own.c, own.temperature, own.score_thresh, own.preprocess) == (0.7, 100, 0.05, "clip")
    assert own.label_spaces == ("novel+background",) and own.templates == ("a photo of {}",)


@pytest.mark.parametrize("profile", BASE)
def test_base_training_has_the_published_schedule_and_detector(profile):
    params = load(profile, "10_base_training")
    milestones, last, warmup = BASE[profile]
    solver = params.solver
    assert (solver.iterations, solver.milestones, solver.warmup) == (last, milestones, warmup)
    assert (solver.lr, solver.batch_size, solver.gamma, solver.schedule) == (0.02, 16, 0.1, "multistep")
    assert (solver.momentum, solver.nesterov, solver.weight_decay) == (0.9, False, 5e-5)
    assert (solver.clip_norm, solver.precision) == (None, "fp32")
    assert params.detector == published_detector(101, data=profile)
    assert params.pretraining is None and params.weights == "data/weights/R-101.pkl"
    smallest = {"coco": 640, "voc": 480}[profile]
    assert params.detector.min_size == tuple(range(smallest, 801, 32)) and params.detector.max_size == 1333


@pytest.mark.parametrize("profile", BASE)
def test_checkpoints_are_evaluated_as_published(profile):
    for setting, classes in (("fsod", "novel"), ("gfsod", "all")):
        params = load(profile, f"21_evaluate.{setting}")
        assert params.checkpoint.detector == published_detector(101, data=profile)
        order = {"coco": "category_id", "voc": "base_novel"}[profile]
        assert (params.checkpoint.classes, params.checkpoint.class_order) == (classes, order)
        assert (params.score_thresh, params.max_detections, params.batch_size) == (0.05, 100, 1)


def test_fewer_gpus_are_one_parameter():
    """Images seen stay: 2 a step make 8 times the steps at an eighth of the learning rate, the decay at 0.8 of them."""
    fine_tuning = load("coco", "20_fine_tuning.fsod_10shot", **{"solver.batch_size": 2}).solver
    assert (fine_tuning.iterations, fine_tuning.milestones, fine_tuning.lr) == (20_000, (16_000,), 0.00125)
    base = load("voc", "10_base_training", **{"solver.batch_size": 4}).solver
    assert (base.iterations, base.milestones) == (60_000, (40_000, 53_200))
    assert (base.warmup, base.lr) == (400, 0.005)


def test_every_schedule_of_16_images_follows_the_batch_size():
    """Else -p solver.batch_size 4 would quarter the images seen."""
    found = 0
    for path in sorted((ROOT / "params").glob("*/[123]*.yaml")):
        solver = getattr(load_run(path).params, "solver", None)
        if solver is not None and solver.batch_size == 16:
            found += 1
            assert solver.reference_batch == 16, path
    assert found == len(CELLS) + 2 + 6  # the base models; CD-FSOD's sets


@pytest.mark.parametrize(
    ("profile", "expected"),
    [
        ("coco", ["coco/cocosplit/datasplit/5k.json"]),
        ("voc", ["VOCdevkit/VOC2007/Annotations", "VOCdevkit/VOC2007/ImageSets/Main"]),
    ],
)
def test_a_checkpoint_needs_the_files_of_the_test_images_alone(profile, expected):
    params = load(profile, "21_evaluate.gfsod")
    assert params.data_files() == tuple(f"data/{name}" for name in expected)
    assert set(params.data_files()) < set(load(profile, "10_base_training").data_files())


# --- the grid -------------------------------------------------------------------------------------------------------


def grid(profile: str, notebook: str) -> list[RunSpec]:
    return [spec for spec in load_list(f"params/{profile}/runs.yaml") if spec.params.notebook == notebook]


@pytest.mark.parametrize("profile", BASE)
def test_the_list_holds_the_whole_grid(profile):
    found = [
        (spec.params.split, spec.params.setting, spec.params.shots)
        for spec in grid(profile, "20_fine_tuning")
    ]
    expected = {
        (split, setting, shots)
        for split in SPLITS[profile]
        for data, setting, shots in CELLS
        if data == profile
    }
    assert set(found) == expected and len(found) == len(expected)
    assert [spec.params.split for spec in grid(profile, "10_base_training")] == list(SPLITS[profile])
    for spec in grid(profile, "20_fine_tuning"):
        (base,) = expand(spec.params.base)
        assert (base.params.split, base.params.data) == (spec.params.split, spec.params.data)


@pytest.mark.parametrize(("profile", "number"), [("coco", 17), ("voc", 38)])
def test_the_grid_is_listed_without_data(profile, number, capsys):
    assert run.main(["--list", f"params/{profile}/runs.yaml", "--dry-run"]) == 0
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert len(lines) == len(set(lines)) == number and all(line.startswith("would run ") for line in lines)
    assert "not there yet: " in printed.err and "data/weights/R-101.pkl" in printed.err
    assert run.main(["--list", f"params/{profile}/runs.yaml"]) == 2
    assert "no such file" in capsys.readouterr().err


def test_clean_seeds_are_added_as_the_heads_say():
    for profile in BASE:
        text = head(ROOT / "params" / profile / "fine_tuning.yaml")
        words = re.search(r"-p arms '(\[clean\])'", text)
        assert load(profile, "20_fine_tuning.fsod_5shot", arms=yaml.safe_load(words[1])).arms == ("clean",)
        entry = yaml.safe_load(re.search(r"\{params: .*?\}\}", text)[0])
        spec = load_run(entry["params"], entry["set"])
        assert spec.params.arms == ("clean",) and spec.params.profile == profile


def test_another_split_is_named_as_the_head_says():
    text = head(ROOT / "params" / "voc" / "fine_tuning.yaml")
    split, base = re.search(r"-p split (\d) -p base '(.*?)'", text).groups()
    params = load("voc", "20_fine_tuning.gfsod_5shot", split=int(split), base=yaml.safe_load(base))
    (base_run,) = expand(params.base)
    assert (params.split, base_run.params.split) == (2, 2)


# --- heads ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("profile", "setting", "shots"), CELLS)
def test_heads_hold_table_source_expected_numbers_and_hours(profile, setting, shots):
    folder = ROOT / "params" / profile
    text = head(folder / f"20_fine_tuning.{setting}_{shots}shot.yaml")
    assert ("`gfsod`" in text) == (setting == "gfsod") and "Feeds the table" in text
    numbers = re.findall(r"\b\d+\.\d\b", re.sub(r"https?://\S+|Time: .*", "", text))
    expected = DEFRCN[profile, setting][shots].split()
    own = [RISF[shots]] if profile == "coco" and setting == "fsod" and shots in RISF else []
    assert numbers[: len(own + expected)] == own + expected
    assert own or "no number of RISF is known to us" in text
    assert "https://github.com/er-muyue/DeFRCN" in text
    _, last = SCHEDULES[profile, setting][shots]
    hours = float(re.search(r"Time: (\S+) hours a seed and loss \(estimate", text)[1])
    assert hours == pytest.approx(last * STEP_HOURS, abs=0.05)  # what fine_tuning.yaml says it is made of
    shared = head(folder / "fine_tuning.yaml")
    assert "Hardware: one GPU" in shared and "(estimate, from the 0.619 s a step" in shared


@pytest.mark.parametrize(("profile", "hours"), [("coco", "about 2,300"), ("voc", "about 2,800")])
def test_hours_of_the_grid_are_training_and_detection(profile, hours):
    """Summed over the list itself, without CM-CLIP's crops, of which nobody knows the number."""
    found = 0.0
    for spec in grid(profile, "10_base_training"):
        found += spec.params.solver.iterations * STEP_HOURS + TEST_IMAGES[profile] * IMAGE_HOURS
    for spec in grid(profile, "20_fine_tuning"):
        own = spec.params
        one = own.solver.iterations * STEP_HOURS + TEST_IMAGES[profile] * IMAGE_HOURS
        found += len(own.seeds) * len(own.arms) * len(own.losses) * own.repeats * one
    assert f"about {round(found, -2):,.0f}" == hours
    listed = head(ROOT / "params" / profile / "runs.yaml")
    assert f"{hours} hours on one V100 without CM-CLIP's crops (estimate".lower() in listed.lower()
    row = re.search(
        r"\| the whole grid without CM-CLIP's crops \| (.*) h \| (.*) h \|", (ROOT / "README.md").read_text()
    )
    assert row[1 + list(BASE).index(profile)] == hours


@pytest.mark.parametrize("profile", BASE)
def test_a_crop_of_clip_costs_what_was_measured(profile):
    table = pd.read_csv(ROOT / "results" / "published" / "benchmarks" / "detector.csv")
    own = table[
        (table["detector"] == "ViT-L-14-336, one crop") & (table["device"] == "cpu") & (table["threads"] == 1)
    ]
    (measured,) = own.itertuples()
    tokens, width, layers = (336 // 14) ** 2 + 1, 1024, 24
    flop = 2 * measured.million_parameters * 1e6 * tokens + layers * 4 * tokens**2 * width
    assert f"{flop / 1e12:.2f} {flop / 15.7e12:.3f}" == "0.38 0.024"
    words = f"{measured.seconds:.1f} s a crop on one CPU core"
    for name in ("fine_tuning", "21_evaluate.fsod", "21_evaluate.gfsod"):
        text = head(ROOT / "params" / profile / f"{name}.yaml")
        assert f"{words} (measured" in text and "0.024 s (estimate: " in text and "0.38 TFLOP" in text
        assert name == "fine_tuning" or "both with -p clip null" in text
    assert f"{words} for each detection of a novel class above 0.05" in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("name", ["36_label_space", "37_rescoring_controls"])
def test_studies_of_voc_choose_on_split_2_and_say_what_they_cost(name):
    params, text = load("voc", name), head(ROOT / "params" / "voc" / f"{name}.yaml")
    refs = {
        "selection": params.selection,
        "reported": getattr(params, "reported", None) or params.fine_tuning,
    }
    runs = {role: [spec.params for ref in own for spec in expand(ref)] for role, own in refs.items()}
    assert {one.split for one in runs["selection"]} == {2} and {one.split for one in runs["reported"]} == {1}
    assert {(one.clip, one.setting) for one in sum(runs.values(), [])} == {(params.clip, "fsod")}
    if name == "36_label_space":
        cells = len(runs["selection"]) * len(params.selection_seeds) + len(runs["reported"]) * len(
            params.seeds
        )
    else:
        assert all({5} == {*params.encoded_shots} <= {one.shots for one in own} for own in runs.values())
        cells = (len(params.jitters) + 1) * len(params.seeds) + 2 * len(params.clips) * len(params.rule_seeds)
    hours = cells * TEST_IMAGES["voc"] * 20 * 0.024 / 3600
    assert f"Hardware: one GPU; at most {hours:.0f} hours on one V100 (estimate: " in text
    for part in ("Feeds the tables", "20 boxes (assumed)", "By COCO's metric", "but the same test images"):
        assert part in text


@pytest.mark.parametrize("profile", BASE)
def test_published_numbers_stand_beside_the_row_that_they_are_of(profile):
    """DeFRCN's beside a run without CLIP, RISF's beside one with it."""
    name = {"coco": "nAP", "voc": "nAP50"}[profile]
    for setting in ("fsod", "gfsod"):
        text = head(ROOT / "params" / profile / f"21_evaluate.{setting}.yaml")
        found = re.findall(r"(-p clip null )?-p published '(\{.*?\})'", text)
        paper = DEFRCN[profile, setting][10].split()
        theirs = float(paper[3 if (profile, setting) == ("voc", "gfsod") else 0])
        expected = [("-p clip null ", {name: theirs})]
        if (profile, setting) == ("coco", "fsod"):
            expected.insert(0, ("", {name: float(RISF[10])}))
        assert [(without, yaml.safe_load(value)) for without, value in found] == expected
        for without, value in expected:
            changes = {"published": value} | ({"clip": None} if without else {})
            params = load(profile, f"21_evaluate.{setting}", **changes)
            assert params.published == value and (params.clip is None) == bool(without)
    readme = re.findall(r"(-p clip null )?-p published '(\{.*?\})'", (ROOT / "README.md").read_text())
    assert readme == [("", "{nAP: 21.9}"), ("-p clip null ", "{nAP: 18.5}")]


@pytest.mark.parametrize(("profile", "setting", "shots"), [cell for cell in CELLS if cell[1] == "fsod"])
def test_heads_say_how_seed_0_is_repeated(profile, setting, shots):
    name = f"20_fine_tuning.{setting}_{shots}shot"
    text = head(ROOT / "params" / profile / f"{name}.yaml")
    words = re.search(r"-p seeds '(.*?)' -p repeats (\d+)", text)
    params = load(profile, name, seeds=yaml.safe_load(words[1]), repeats=int(words[2]))
    assert (params.seeds, params.repeats) == ((0,), 10)
    entry = yaml.safe_load(re.search(r"\{params: .*?\}\}", text)[0])
    assert entry["params"] == f"params/{profile}/{name}.yaml"
    assert load_run(entry["params"], entry["set"]).params == params
    assert load(profile, name).repeats == 1


def test_every_other_head_names_table_expectation_and_hardware():
    for profile in BASE:
        for path in (ROOT / "params" / profile).glob("[123]*.yaml"):
            words = ["Feeds the table", "Expected"]
            words += [] if path.name.startswith("20_") else ["Hardware: ", "(estimate"]
            assert all(word in head(path) for word in words), path
        assert "(estimate" in head(ROOT / "params" / profile / "runs.yaml")


def test_commands_in_heads_are_those_of_their_files():
    files = [path for profile in BASE for path in sorted((ROOT / "params" / profile).glob("[123]*.yaml"))]
    # of coco alone: 32_clip_backbones, 34_latency; of voc alone: 36_label_space, 37_rescoring_controls
    assert len(files) == 2 * 4 + 4 + len(CELLS)
    for path in files:
        command = r"python -m risf_core\.run notebooks/(\S+)\.ipynb --params (\S+)((?: -p \S+ \S+)*)"
        notebook, named, values = re.search(command, head(path)).groups()
        assert (path.name.split(".")[0], f"params/{path.parent.name}/{path.name}") == (notebook, named)
        words = values.split()
        assert load_run(named, dict(zip(words[1::3], map(yaml.safe_load, words[2::3])))).params
