"""The params files of distilled re-scoring: what is chosen on split 2 is what the small profile takes."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from risf_core.distilled_rescoring.study import Study
from risf_core.distilled_rescoring_params import HEADS, Setting
from risf_core.errors import ParamsError
from risf_core.params import RunRef
from risf_core.runs.run_specs import load_run, upstream
from risf_core.runs.state import run_id

REPOSITORY = Path(__file__).parents[1]
FULL = "params/mini-full/51_distilled_rescoring.yaml"
SMALL = "params/ovd/51_distilled_rescoring.yaml"


@pytest.mark.parametrize("split", [1])
def test_reported_splits_take_the_choices_of_split_2_and_their_own_boxes(split):
    params = load_run(f"params/mini-full/51_distilled_rescoring.split{split}.yaml").params
    chosen = load_run(FULL).params
    specs = upstream(params)
    assert run_id(chosen) in {run_id(spec.params) for spec in specs} and chosen.selection is None
    tuned = [spec.params for spec in specs if spec.params.notebook == "20_fine_tuning"]
    assert sorted(one.shots for one in tuned) == [1, 2, 3, 5, 10] and {one.split for one in tuned} == {split}
    (base,) = {spec.params.split for spec in specs if spec.params.notebook == "10_base_training"}
    assert base == split and params.heads == chosen.heads == HEADS


def test_the_small_profile_takes_what_split_2_has_chosen():
    """From the published record, which says what was chosen; heads are trained as there."""
    small, full = load_run(SMALL).params, load_run(FULL).params
    assert all(spec == full.heads[name] for name, spec in small.heads.items())
    path = REPOSITORY / "results/published/mini-full/records" / f"{run_id(full)}.json"
    if not path.exists():
        pytest.skip(f"{path.name} is not published yet")
    rows = json.loads(path.read_text())["rows"]
    choices = {
        row["way"]: row
        for row in rows
        if row["part"] == "choice" and row["label_space"] == full.label_spaces[0]
    }
    (main,) = [way for way, row in choices.items() if row["is_main"]]
    assert next(iter(small.settings)) == main
    for way, setting in small.settings.items():
        assert (setting.temperature, setting.c) == (choices[way]["temperature"], choices[way]["c"]), way


def made_study(split: int, *, rows=(), **changes) -> Study:
    """A study of one split whose selection, if there is one, has these rows; nothing is opened or trained."""
    study = object.__new__(Study)
    study.params = load_run(FULL).params.model_copy(
        update={"temperatures": (1.0,), "c": (0.3, 0.7), **changes}
    )
    study.base = SimpleNamespace(split=split)
    record = {"params": study.params.model_dump(mode="json"), "rows": list(rows)}
    upstream = SimpleNamespace(run_id="distilled_rescoring-x", record=record)
    study.run = SimpleNamespace(
        upstream=lambda name: upstream, rows=SimpleNamespace(as_list=lambda: list(rows))
    )
    study.heads, study.settings, study.main = dict.fromkeys(HEADS), {}, ""
    return study


def grid_rows(split: int) -> list[dict]:
    """The linear head is the best candidate; a head on fewer images would be better still."""
    best = {"cm_clip": 70.0, "head:linear": 60.0, "head:mlp": 50.0, "head:no_novel": 80.0}
    row = {"part": "grid", "split": split, "label_space": "novel+background"}
    return [row | {"way": way, "nAP50": [[value - 1, value]]} for way, value in best.items()]


def test_a_reported_split_takes_head_and_setting_from_the_selection():
    study = made_study(1, rows=grid_rows(2), selection=RunRef(params=FULL))
    study.choose_main()
    chosen_on = study._selection()
    setting, facts = study._choose(chosen_on, "novel+background", "cm_clip")
    assert study.main == "linear" and facts["chosen_on"] == 2
    assert (setting.temperature, setting.c, facts["mean"]) == (1.0, 0.7, 70.0)


def test_a_split_is_not_chosen_on_itself_by_mistake():
    with pytest.raises(ParamsError, match="Expected a run on select_split, 2"):
        made_study(1, rows=grid_rows(1), selection=RunRef(params=FULL)).choose_main()
    with pytest.raises(ParamsError, match="Give selection .* or settings"):
        made_study(1, rows=grid_rows(1)).choose_main()
    study = made_study(2, rows=grid_rows(2))
    study.choose_main()
    assert study.main == "linear"


def test_given_settings_name_the_main_head_and_serve_its_variants():
    given = {"head:mlp": Setting(temperature=3.0, c=0.2), "cm_clip": Setting(temperature=2.0, c=0.4)}
    study = made_study(1, settings=given)
    study.choose_main()
    study.settings["novel+background", "head:mlp"] = given["head:mlp"]
    chosen = {way: study._choose(None, "novel+background", way)[0] for way in ("pooled", "cm_clip", "dense")}
    assert study.main == "mlp"
    assert chosen == {"pooled": given["head:mlp"], "cm_clip": given["cm_clip"], "dense": None}
    with pytest.raises(ParamsError, match="the chosen head is 'other'"):
        made_study(1, settings={"head:other": Setting(temperature=1.0, c=0.1)}).choose_main()


def test_a_shuffled_teacher_is_judged_at_the_main_heads_setting():
    study = made_study(2, rows=grid_rows(2))
    study.choose_main()
    own = study.settings["novel+background", "head:linear"] = Setting(temperature=1.0, c=0.3)
    assert study._choose(study._selection(), "novel+background", "head:shuffled")[0] == own
