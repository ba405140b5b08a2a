"""Parameters: wrong names, types and values are refused with one clear line; grids and references resolve."""

import json
import subprocess
import sys

import pytest
import yaml
from pydantic import ValidationError

from risf_core.errors import ParamsError
from risf_core.notebook_models import MODELS
from risf_core.params import (
    AblationCParams,
    BaseTrainingParams,
    CheckSetupParams,
    ClipSource,
    CocoData,
    FineTuningParams,
    RunRef,
    TinyClipParams,
)
from risf_core.runs.run_specs import expand, load_list, load_run, upstream
from risf_core.runs.state import run_id
from risf_core.runs.yaml_files import parse_yaml, unflatten

MINIMAL = {"profile": "mini", "base": "params/mini/10_base_training.yaml"}


@pytest.fixture
def project(tmp_path, monkeypatch):
    """An empty project; files are written into it with ``project(name, text)``."""
    monkeypatch.setenv("RISF_ROOT", str(tmp_path))
    monkeypatch.chdir(tmp_path)

    def write(name: str, text: str):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    return write


def _refusal(function, *arguments, **keywords) -> str:
    with pytest.raises(ParamsError) as caught:
        function(*arguments, **keywords)
    message = str(caught.value)
    assert "\n" not in message
    return message


# --- YAML ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("shotz: 5", "unknown parameter 'shotz' (nearest: 'shots')"),
        ("solver: {lrr: 0.1}", "unknown parameter 'solver.lrr' (nearest: 'solver.lr')"),
        (
            "solver: {lr: 1e-4}",
            "solver.lr: expected a number, got text '1e-4': YAML reads it as text, write 1.0e-4",
        ),
        ("solver: {lr: 2.5e3}", "write 2.5e+3"),
        ("shots: five", "shots: expected a whole number, got text 'five'"),
        ("shots: 5.0", "shots: expected a whole number, got 5.0"),
        ("shots: true", "shots: expected a whole number, got true"),
        ("shots: -1", "shots: must be greater than or equal to 1, got -1"),
        ("shots: [1, 5]", "shots: expected a whole number, got the list [1, 5]"),
        ("seeds: 5", "seeds: expected a list, got 5"),
        ("seeds: []", "seeds: needs at least 1 items, got 0"),
        ("seeds: [0, x]", "seeds[1]: expected a whole number, got text 'x'"),
        ("solver: {lr: .nan}", "solver.lr: expected a finite number"),
        ("solver: 3", "solver: expected names with values, got 3"),
        ("setting: fsdo", "setting: expected one of fsod, gfsod, got text 'fsdo' (nearest: 'fsod')"),
        (
            "data: {source: cocoo}",
            "data.source: expected one of pictograms, coco, xml, voc, got text 'cocoo' (nearest: 'coco')",
        ),
        ("data: {sed: 1}", "unknown parameter 'data.sed' (nearest: 'data.seed')"),
        ("losses: [bnrll]", "unknown loss 'bnrll' (nearest: 'bnrl')"),
        ("losses: [my/loss.py:focal]", "there is no file"),
        ("losses: [ce, ce]", "losses holds a value twice: ['ce', 'ce']"),
        ("cm_clip: {crop: longest}", "cm_clip: crop: longest needs resize: bicubic"),
        ("shots: 4", "shots is 4, but data.shots is [1, 2, 3, 5, 10]"),
        ("seeds: [10]", "seeds 0 to 9"),
        ("shots: 010", "line 3: YAML reads 010 as 8: write 10 or 8"),
        ("shots: 1:30", "YAML reads 1:30 as 90"),
        ("shots: 1\nshots: 5", "line 4: 'shots' is given twice"),
        ("solver: {lr: 1.0, lr: 2.0}", "'lr' is given twice"),
        ("5: shots", "the name '5' is not text"),
        ("shots: [1", "not YAML: expected ',' or ']'"),
        ("\tshots: 1", "not YAML"),
        ("shots: !!python/tuple [1]", "the tag !!python/tuple is not allowed"),
        ("losses: [no]", "losses[0]: expected text, got false: YAML reads yes, no, on, off as true or false"),
        ("seeds: &itself [*itself]", "seeds[0]: expected a whole number"),
        ("seeds: " + "[" * 2000, "not YAML"),
        ("seeds: !!set {0, 1}", "the tag !!set is not allowed"),
    ],
)
def test_wrong_yaml_gives_one_clear_line(project, text, expected):
    file = project("params/mini/20_fine_tuning.yaml", f"profile: mini\nbase: some.yaml\n{text}\n")
    message = _refusal(load_run, file)
    assert expected in message
    assert "20_fine_tuning.yaml" in message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "the file is empty"),
        ("# nothing\n", "the file is empty"),
        ("- 1\n", "got the list [1]"),
        ("5\n", "got 5"),
    ],
)
def test_files_without_names_are_refused(project, text, expected):
    message = _refusal(load_run, project("00_check_setup.yaml", text))
    assert expected in message and "expected names with values" in message


def test_a_missing_or_binary_file_is_refused(project, tmp_path):
    project("00_check_setup.yaml", "profile: mini\n")
    message = _refusal(load_run, tmp_path / "00_check_setip.yaml", notebook="00_check_setup.ipynb")
    assert "no such params file; nearest in that folder: 00_check_setup.yaml" in message
    (tmp_path / "00_check_setup.yaml").write_bytes(b"profile: \xff\xfe")
    assert "not readable as text" in _refusal(load_run, tmp_path / "00_check_setup.yaml")


def test_nothing_in_a_file_is_executed(project, tmp_path):
    text = f"profile: !!python/object/apply:os.system ['touch {tmp_path}/executed']\n"
    assert "!!python/object/apply:os.system is not allowed" in _refusal(
        load_run, project("00_check_setup.yaml", text)
    )
    assert not (tmp_path / "executed").exists()


def test_numbers_read_as_written():
    values = parse_yaml("{a: 10, b: -3, c: 0, d: 1.0e-4, e: '010', f: +7}", where="here")
    assert values == {"a": 10, "b": -3, "c": 0, "d": 0.0001, "e": "010", "f": 7}


def test_several_problems_are_told_at_once(project):
    message = _refusal(load_run, project("00_check_setup.yaml", "profile: mini\nseed: x\ndevise: cpu\n"))
    assert "seed: expected a whole number" in message and "(nearest: 'device')" in message


# --- models -------------------------------------------------------------------------------------------------------


def test_lists_become_tuples_and_keep_strict_items():
    params = FineTuningParams(**MINIMAL, seeds=[0, 1], losses=["ce"])
    assert params.seeds == (0, 1) and params.losses == ("ce",)
    with pytest.raises(ValidationError):
        FineTuningParams(**MINIMAL, seeds=[0, 1.0])


def test_models_are_frozen():
    with pytest.raises(ValidationError):
        CheckSetupParams(profile="mini").seed = 3


@pytest.mark.parametrize("model", MODELS.values(), ids=list(MODELS))
def test_models_survive_json(model):
    given = {"profile": "mini", "base": "b.yaml", "fine_tuning": "f.yaml"}
    given["clips"] = [{"run": "c.yaml"}, {"model": "RN50", "path_only": True}]
    given["checkpoint"] = {"path": "model.pth", "detector": {"freeze_at": 3}, "classes": "novel"}
    given |= {"clip": {"run": "c.yaml"}, "selection": "f.yaml", "reported": "f.yaml"}
    given |= {"select_base": "b.yaml", "gfsod": "f.yaml"}
    given |= {"rates": "r.yaml"} if model.notebook == "33_missing_annotations" else {}
    params = model(**{name: value for name, value in given.items() if name in model.model_fields})
    assert model.model_validate(json.loads(params.model_dump_json())) == params


def test_a_clip_has_one_source_and_admits_random_weights():
    assert ClipSource(run="c.yaml").run == RunRef(params="c.yaml")
    for wrong in ({}, {"run": "c.yaml", "model": "RN50"}, {"model": "RN50"}):
        with pytest.raises(ValidationError):
            ClipSource(**wrong)


def test_coco_data_need_classes_and_have_arms_of_their_own():
    data = {"source": "coco", "annotations": "a.json", "images": "images", "novel_classes": ["cat"]}
    assert isinstance(FineTuningParams(**MINIMAL, data=data, shots=3).data, CocoData)
    assert FineTuningParams(**MINIMAL, data=data, shots=3, arms=["kshot", "clean"]).arms == ("kshot", "clean")
    with pytest.raises(ValidationError, match="data of source coco has the arms clean, kshot"):
        FineTuningParams(**MINIMAL, data=data, shots=3, arms=["kshot", "full"])
    with pytest.raises(ValidationError, match="data of source pictograms has the arms full, kshot, missing"):
        FineTuningParams(**MINIMAL, arms=["clean"])
    with pytest.raises(ValidationError, match="novel_classes"):
        FineTuningParams(**MINIMAL, data={"source": "coco", "annotations": "a.json", "images": "images"})


# --- in a notebook ------------------------------------------------------------------------------------------------


def test_a_notebook_is_validated_by_the_same_model():
    assert TinyClipParams.from_notebook({"profile": "mini", "lr": 1e-3, "_private": 1}).lr == 1e-3
    message = _refusal(TinyClipParams.from_notebook, {"profile": "mini", "iteration": 5})
    assert message == "12_tiny_clip: unknown parameter 'iteration' (nearest: 'iterations')."
    assert "lr: expected a number" in _refusal(
        TinyClipParams.from_notebook, {"profile": "mini", "lr": "1e-4"}
    )


def test_only_the_last_parameters_cell_counts_in_jupyter():
    namespace = {"profile": "mini", "lrr": 0.1, "lr": 0.1, "x": 3, "In": []}
    namespace["In"] = ["", "profile = 'mini'\nlrr = 0.1", "x = 3", "import json"]
    assert "unknown parameter 'lrr'" in _refusal(TinyClipParams.from_notebook, namespace)
    namespace["In"] += ["# mended\nprofile = 'mini'\nlr = 0.1", "y = json.dumps(lr)"]
    assert TinyClipParams.from_notebook(namespace).lr == 0.1


def test_what_was_deleted_from_the_parameters_cell_is_no_longer_in_force():
    """The kernel still has the name; a cell below the parameters cell may replace a value."""
    namespace = {"profile": "mini", "lr": 0.1, "iterations": 7, "batch_size": 8, "json": json, "In": [""]}
    namespace["In"] += ["profile = 'mini'\nlr = 0.1\nbatch_size = 64", "params = ...", "profile = 'mini'"]
    namespace["In"] += ["%pip list\nbatch_size = 4 * 2", "for iterations in range(8): pass", "if not a cell"]
    params = TinyClipParams.from_notebook(namespace)
    assert (params.batch_size, params.iterations) == (8, 7)
    assert params.lr == TinyClipParams.model_fields["lr"].default


# --- files, grids, references -------------------------------------------------------------------------------------


def test_extends_merges_nested_names_and_replaces_another_source(project):
    project("shared.yaml", "profile: mini\ndata: {num_base_images: 50, seed: 3}\n")
    file = project("00_check_setup.yaml", "extends: shared.yaml\ndata: {seed: 4}\n")
    data = load_run(file).params.data
    assert (data.num_base_images, data.seed) == (50, 4)
    coco = "{source: coco, annotations: a, images: b, novel_classes: [cat]}"
    file = project("00_check_setup.coco.yaml", f"extends: shared.yaml\ndata: {coco}\n")
    assert load_run(file).params.data.source == "coco"
    assert "extends itself" in _refusal(
        load_run, project("00_check_setup.a.yaml", "extends: 00_check_setup.a.yaml\n")
    )
    assert "same folder" in _refusal(load_run, project("00_check_setup.b.yaml", "extends: ../x.yaml\n"))


def test_replaced_values_reach_into_nested_models(project):
    file = project("10_base_training.yaml", "profile: mini\nsolver: {lr: 0.5}\n")
    spec = load_run(file, {"solver.iterations": 7, "data.root": "elsewhere"})
    assert (spec.params.solver.iterations, spec.params.solver.lr) == (7, 0.5)
    assert unflatten({"a.b": 1, "a.c": 2}) == {"a": {"b": 1, "c": 2}}
    words = "--params 10_base_training.yaml -p solver.iterations 7 -p data.root elsewhere"
    assert spec.command.endswith(f"python -m risf_core.run notebooks/10_base_training.ipynb {words}")


def test_a_dotted_name_replaces_one_value_of_a_default_that_the_file_leaves_out():
    path = "params/mini/20_fine_tuning.yaml"  # it has no solver: 300 steps are the notebook's default
    usual, other = load_run(path).params.solver, load_run(path, {"solver.lr": 0.05}).params.solver
    assert other == usual.model_copy(update={"lr": 0.05}) and other.iterations == 300


def test_a_list_for_a_single_value_makes_a_grid(project):
    project("params/20_fine_tuning.yaml", "profile: mini\nbase: x.yaml\nseeds: [0, 1]\n")
    ref = RunRef(
        params="params/20_fine_tuning.yaml", set={"shots": [1, 5], "seeds": [3], "solver": {"lr": [0.1, 0.2]}}
    )
    params = [spec.params for spec in expand(ref)]
    assert [(p.shots, p.seeds, p.solver.lr) for p in params] == [
        (1, (3,), 0.1), (1, (3,), 0.2), (5, (3,), 0.1), (5, (3,), 0.2),
    ]  # fmt: skip
    assert len({run_id(p) for p in params}) == 4
    empty = RunRef(params="params/20_fine_tuning.yaml", set={"shots": []})
    assert "the list is empty" in _refusal(expand, empty)


def test_a_list_of_runs_finds_files_beside_it(project):
    project("params/mini/00_check_setup.yaml", "profile: mini\n")
    item = yaml.safe_dump(
        {"runs": ["00_check_setup.yaml", {"params": "00_check_setup.yaml", "set": {"seed": [1, 2]}}]}
    )
    file = project("params/mini/runs.yaml", item)
    assert [spec.params.seed for spec in load_list(file)] == [0, 1, 2]
    assert "nearest: 'runs'" in _refusal(load_list, project("params/mini/b.yaml", "run: []\n"))
    wrong = project("params/mini/c.yaml", "runs: [{param: a.yaml}]\n")
    assert "runs, item 1" in _refusal(load_list, wrong) and "nearest: 'params'" in _refusal(load_list, wrong)
    unknown = project("params/mini/d.yaml", "runs: [21_fine_tuning.yaml]\n")
    assert "no notebook is called '21_fine_tuning' (nearest: '20_fine_tuning')" in _refusal(
        load_list, unknown
    )


def test_upstream_runs_must_fit(project):
    project("10_base_training.yaml", "profile: mini\n")
    project("10_base_training.other.yaml", "profile: mini\ndata: {seed: 9}\n")
    project("10_base_training.split2.yaml", "profile: mini\nsplit: 2\n")
    project("12_tiny_clip.yaml", "profile: mini\ndata: {seed: 9}\n")
    good = FineTuningParams(profile="mini", base="10_base_training.yaml", clip={"run": "12_tiny_clip.yaml"})
    assert [type(spec.params) for spec in upstream(good)] == [BaseTrainingParams, TinyClipParams]
    for base, expected in [
        ("12_tiny_clip.yaml", "base: expected a run of 10_base_training, got 12_tiny_clip.yaml"),
        ("10_base_training.other.yaml", "has data.seed 9, but this run has 0"),
        ("10_base_training.split2.yaml", "has split 2, but this run has 1"),
        ("10_base_training.none.yaml", "no such params file"),
    ]:
        assert expected in _refusal(upstream, FineTuningParams(profile="mini", base=base))


def test_one_reference_or_many_are_both_fine():
    many = AblationCParams(profile="mini", fine_tuning=["a.yaml", {"params": "b.yaml", "set": {"shots": 1}}])
    assert [ref.params for ref in many.fine_tuning] == ["a.yaml", "b.yaml"]
    assert AblationCParams(profile="mini", fine_tuning="a.yaml").fine_tuning == (RunRef(params="a.yaml"),)


def test_the_run_id_holds_parameters_and_own_code_but_not_the_device(project):
    loss = project("focal.py", "def focal(logits, labels): ...\n")
    params = FineTuningParams(**MINIMAL, losses=["ce", "focal.py:focal"])
    first = run_id(params)
    assert first.startswith("fine_tuning-split1-5shot-")
    elsewhere = {"device": "cpu", "num_threads": 4, "data": {"root": "/big/disk"}}
    assert run_id(FineTuningParams(**MINIMAL, losses=["ce", "focal.py:focal"], **elsewhere)) == first
    assert run_id(FineTuningParams(**MINIMAL, losses=["ce", "focal.py:focal"], seed=1)) != first
    loss.write_text("def focal(logits, labels): return 0\n")
    assert run_id(params) != first


def test_the_launcher_imports_no_torch():
    code = "import sys, risf_core.run; assert not {'torch', 'pandas', 'papermill', 'matplotlib'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)
