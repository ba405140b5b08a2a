"""The params files of distilled re-scoring: what is chosen on split 2 is what the small profile takes."""

import json
from pathlib import Path

import pytest

from risf_core.distilled_rescoring_params import HEADS
from risf_core.runs.run_specs import load_run, upstream
from risf_core.runs.state import run_id

REPOSITORY = Path(__file__).parents[1]
FULL = "params/mini-full/51_distilled_rescoring.yaml"
SMALL = "params/ovd/51_distilled_rescoring.yaml"


@pytest.mark.parametrize("split", [1, 3])
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
