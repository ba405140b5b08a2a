"""Two sides compared: what pairs, what does not, numbers by hand, errors by kind, and packs of others."""

import json
import re
import shlex
import shutil

import numpy as np
import pandas as pd
import pytest

from risf_core import compare, pack, selectors
from risf_core.compared_cells import Cells, _of_classes, image_changes, kinds_summary, read_cells
from risf_core.comparison import check_test_data, pair_sides
from risf_core.errors import ParamsError, RecordError
from risf_core.paired_means import summary
from risf_core.records import read_records
from risf_core.report.compare_tables import images_table
from risf_core.report.statistics import student_interval
from risf_core.runs.run_specs import load_list
from risf_core.runs.state import run_id
from risf_core.runs.yaml_files import project_path
from risf_core.selectors import Truths, opened
from tests.compare_project import SEEDS, tiny_world, write_run
from tests.test_evaluation import BOX, FAR, detections_of

NONE = "rescoring=none"
RUNS = {1: "fine_tuning-split1-1shot-11111111", 2: "fine_tuning-split1-2shot-22222222"}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A project with two runs, K = 1 and 2, and the folder of its data; no test changes it."""
    root = tmp_path_factory.mktemp("project")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RISF_ROOT", str(root))
        data = tiny_world(root / "data")
        for shots in (1, 2):
            write_run(root, data, shots=shots, tag=str(shots) * 8)
    return root, data


@pytest.fixture
def project(world, monkeypatch):
    """That project; its records count as current, for it has no notebooks."""
    monkeypatch.setenv("RISF_ROOT", str(world[0]))
    monkeypatch.setattr(selectors, "_why_not_current", lambda path: "")
    return world[0]


@pytest.fixture
def other(world, tmp_path, monkeypatch):
    """An empty project on the same data."""
    monkeypatch.setenv("RISF_ROOT", str(tmp_path))
    monkeypatch.setattr(selectors, "_why_not_current", lambda path: "")
    return tmp_path, world[1]


def rows_of(project, run_id):
    return json.loads((project / "results" / "mini" / "records" / f"{run_id}.json").read_text())["rows"]


def value(project, shots, seed, loss, rescoring="none"):
    rows = rows_of(project, RUNS[shots])
    key = {"seed": seed, "loss": loss, "rescoring": rescoring}
    return next(row["nAP50"] for row in rows if key.items() <= row.items())


def paired(first, second, *, by=("shots",), metric="nAP50"):
    with opened([first, second]) as sides:
        return pair_sides(*sides, by=by, metric=metric)


def edited(path, change):
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))


# ------------------------------------------------------------ pairs and means


def test_pairs_are_of_one_seed_and_k_and_the_sides_differ_in_the_loss(project):
    pairing = paired(f"mini:loss=ce,{NONE}", f"mini:loss=bnrl,{NONE}")
    assert pairing.differing == {"loss": ("ce", "bnrl")} and pairing.unpaired.empty and pairing.notes == []
    assert pairing.pairs[["shots", "seed"]].to_numpy().tolist() == [[k, s] for k in (1, 2) for s in SEEDS]
    for row in pairing.pairs.itertuples():
        expected = value(project, row.shots, row.seed, "bnrl") - value(project, row.shots, row.seed, "ce")
        assert row.difference == pytest.approx(expected)


def test_intervals_are_over_seeds_and_several_k_of_a_seed_count_once(project):
    pairing = paired(f"mini:loss=ce,{NONE}", f"mini:loss=bnrl,{NONE}")
    by_k, all_k = summary(pairing, ["shots"]), summary(pairing, [])
    change = {k: [value(project, k, s, "bnrl") - value(project, k, s, "ce") for s in SEEDS] for k in (1, 2)}
    for row in by_k.itertuples():
        expected = student_interval(change[row.shots])
        found = row.difference, row.difference_half_width, row.n, row.pairs
        assert found == pytest.approx((expected.mean, expected.half_width, 3, 3))
        assert row.up == sum(one > 0 for one in change[row.shots])
    (row,) = all_k.itertuples()
    expected = student_interval(np.mean([change[1], change[2]], axis=0))
    assert (row.difference, row.difference_half_width) == pytest.approx((expected.mean, expected.half_width))
    assert (row.n, row.pairs) == (3, 6)


def test_no_mean_goes_over_losses_or_rescorings(project):
    pairing = paired("mini:loss=ce", "mini:loss=bnrl", by=())
    assert [row.rescoring for row in summary(pairing, []).itertuples()] == ["none", "cm_clip", "cm_clip_wide"]


def test_rows_without_a_partner_are_named_and_in_no_number(project, tmp_path, monkeypatch, capsys):
    words = [f"mini:loss=ce,{NONE}", f"mini:loss=bnrl,{NONE},seed=0,seed=1,K=1"]
    assert compare.main([*words, "--table-only", "--output", str(tmp_path)]) == 0
    told = capsys.readouterr().out
    assert "Rows without a partner: 4 of A and 0 of B, beside 2 pairs" in told
    listed = pd.read_csv(tmp_path / "unpaired.csv")
    assert sorted(zip(listed["shots"], listed["seed"])) == [(1, 2), (2, 0), (2, 1), (2, 2)]
    assert set(listed["side"]) == {"A"} and set(listed["why"]) == {"no partner"}
    assert pd.read_csv(tmp_path / "paired.csv")["n"].tolist() == [2]


def test_a_seed_that_lacks_a_k_is_in_no_mean_over_k(project):
    pairing = paired(f"mini:loss=ce,{NONE}", f"mini:loss=bnrl,{NONE}", by=())
    last = pairing.pairs.index[-1]  # K = 2, seed 2
    object.__setattr__(pairing, "pairs", pairing.pairs.drop(last))
    (row,) = summary(pairing, []).itertuples()
    assert row.n == 2 and row.left_out == "split 1 seed 2 repeat 0 (1 of 2)"


def test_a_row_without_the_number_is_named(project, tmp_path):
    folder = tmp_path / "records"
    folder.mkdir()
    path = folder / f"{RUNS[1]}.json"
    path.write_text((project / "results" / "mini" / "records" / path.name).read_text())
    edited(path, lambda record: record["rows"][0].update(nAP50=None))
    pairing = paired(f"{folder}:loss=ce,{NONE}", f"{folder}:loss=bnrl,{NONE}")
    assert pairing.unpaired[["side", "why", "seed"]].to_numpy().tolist() == [
        ["A", "no nAP50", 0],
        ["B", "no partner", 0],
    ]


def test_runs_with_other_parameters_are_variants_and_are_not_mixed(other):
    project, data = other
    write_run(project, data, tag="aaaaaaaa")
    write_run(project, data, tag="bbbbbbbb", score_thresh=0.4)
    pairing = paired(f"mini:loss=ce,{NONE}", f"mini:loss=bnrl,{NONE}")
    assert summary(pairing, [])["variant"].tolist() == ["", "score_thresh=0.4"]
    pairing = paired(f"mini:{NONE},loss=ce,score_thresh=0.05", f"mini:{NONE},loss=ce,score_thresh=0.4")
    assert pairing.differing == {"variant": ("", "score_thresh=0.4")}


def test_two_runs_with_the_same_cells_are_refused(other):
    project, data = other
    write_run(project, data, tag="aaaaaaaa")
    write_run(project, data, tag="bbbbbbbb")  # the same again, with another number
    path = project / "results" / "mini" / "records" / "fine_tuning-split1-1shot-bbbbbbbb.json"
    same = paired(f"mini:loss=ce,{NONE}", f"mini:loss=bnrl,{NONE}")
    assert len(same.pairs) == 3 and any(
        "3 rows repeat others with the same nAP50" in note for note in same.notes
    )
    edited(path, lambda record: record["rows"][0].update(nAP50=1.0))
    with pytest.raises(RecordError, match=r"2 rows are the same cell .*run_id=.*aaaaaaaa\|.*bbbbbbbb"):
        paired(f"mini:loss=ce,{NONE}", f"mini:loss=bnrl,{NONE}")


def test_what_pairs_with_nothing_is_refused(project):
    with pytest.raises(RecordError, match="seed is 0 in A and 1 in B"):
        paired("mini:loss=ce,seed=0", "mini:loss=bnrl,seed=1")
    with pytest.raises(ParamsError, match="are the same 18 rows"):
        paired("mini:loss=ce", "mini:loss=ce")
    with pytest.raises(ParamsError, match=r"--by loss: A and B differ in it \(ce and bnrl\)"):
        paired("mini:loss=ce", "mini:loss=bnrl", by=("loss",))


def test_a_row_is_not_compared_with_itself_but_with_its_copy(project, tmp_path):
    with pytest.raises(ParamsError, match="are the same 6 rows"):
        paired(f"mini:{NONE}", f"mini:loss=bnrl,{NONE}")
    shutil.copytree(project / "results" / "mini" / "records", tmp_path / "earlier" / "records")
    pairing = paired(str(tmp_path / "earlier" / "records"), "mini")
    assert len(pairing.pairs) == 36 and (pairing.pairs["difference"] == 0).all() and pairing.differing == {}


# ------------------------------------------------------------ words


@pytest.mark.parametrize(
    "word, runs, rows",
    [
        ("mini", 2, 36),
        ("mini/fine_tuning-split1-1shot", 1, 18),
        ("fine_tuning-split1-2shot-22222222:loss=ce", 1, 9),
        ("mini:shots=1,K=2,seed=0", 2, 12),
        ("mini:solver.lr=0.020", 2, 36),
        ("mini:run_id=fine_tuning-split1-1shot-11111111", 1, 18),
    ],
)
def test_what_a_word_means(word, runs, rows, project):
    with opened([word]) as (side,):
        assert len(side.sources) == runs
        fits = [
            row
            for source in side.sources
            for row in source.record["rows"]
            if all(any(selectors.same(row[n], v) for v in values) for n, values in side.wanted.items())
        ]
    assert len(fits) == rows


def test_files_folders_and_patterns(project, monkeypatch):
    records = project / "results" / "mini" / "records"
    for word in (records, records.parent, records / "*.json", records / "fine*-2shot-*.json"):
        with opened([str(word)]) as (side,):
            assert len(side.sources) == (1 if "2shot" in str(word) else 2)
            assert side.sources[0].artifacts.is_dir() and side.origin == "own"


@pytest.mark.parametrize(
    "word, match",
    [
        ("nothing", r"'nothing' is no profile, run, file.*Profiles with records: mini\."),
        ("mini:loss=bce", r"no row has loss=bce\. There are: ce, bnrl\."),
        ("mini:los=ce", r"'los' is no column of the rows and no parameter \(nearest: 'loss'\)"),
        ("mini:loss", "'loss' is no condition. Expected NAME=VALUE"),
        ("mini:solver.lr=7", r"no run has solver.lr=7. There are: 0.02"),
        ("mini:", "expected WHERE"),
        (":loss=ce", "expected WHERE"),
        ("fine_tuning-split1", r"is the beginning of 2 runs: mini/fine_tuning-split1-1shot-11111111, "),
    ],
)
def test_a_word_that_means_nothing_is_refused(word, match, project):
    with pytest.raises(ParamsError, match=match), opened([word]):
        pass


def test_records_of_a_profile_that_are_out_of_date_are_left_out(project, monkeypatch, caplog):
    reasons = {RUNS[1]: "made with other code, data or upstream runs"}
    monkeypatch.setattr(selectors, "_why_not_current", lambda path: reasons.get(path.stem, ""))
    pairing = paired(f"mini:loss=ce,{NONE}", f"mini:loss=bnrl,{NONE}")
    assert (
        set(pairing.pairs["shots"]) == {2}
        and "11111111.json is left out: made with other code" in caplog.text
    )
    pairing = paired(f"{RUNS[1]}:loss=ce,{NONE}", f"{RUNS[1]}:loss=bnrl,{NONE}")
    assert len(pairing.pairs) == 3 and "is compared as it is: made with other code" in caplog.text
    reasons[RUNS[2]] = reasons[RUNS[1]]
    with pytest.raises(ParamsError, match="none of its 2 records is current"):
        paired(f"mini:loss=ce,{NONE}", f"mini:loss=bnrl,{NONE}")


# ------------------------------------------------------------ cells


@pytest.fixture
def cells(project):
    with opened([f"mini:loss=ce,{NONE}", "mini:loss=ce,rescoring=cm_clip"]) as sides:
        pairing = pair_sides(*sides, by=("shots",))
        yield pairing, read_cells(pairing, Cells(Truths()), ["shots"])


def test_errors_are_told_for_every_pair_with_detections(cells):
    pairing, results = cells
    assert len(results.kinds) == 6 and not results.missing
    for row, pair in zip(results.kinds.itertuples(), pairing.pairs.itertuples()):
        assert (row.a_ap50, row.b_ap50) == pytest.approx((pair.a, pair.b), abs=1e-6)
    table = kinds_summary(pairing, results, ["shots"])
    assert table["kind"].tolist() == [*(["AP50"] + list(_kinds()))] * 2
    first = table[(table["kind"] == "AP50") & (table["shots"] == 1)].iloc[0]
    expected = summary(pairing, ["shots"]).iloc[0]
    assert first["difference"] == pytest.approx(expected["difference"], abs=1e-6)
    assert first["difference_half_width"] == pytest.approx(expected["difference_half_width"], abs=1e-6)


def _kinds():
    from risf_core.error_kinds import KINDS

    return KINDS


def test_images_that_changed_are_ordered_by_their_change(cells):
    pairing, results = cells
    changes = image_changes(pairing, results, [])
    assert changes["change"].is_monotonic_decreasing and changes["image_id"].is_unique
    assert set(changes["pairs"]) == {6} and ((changes["up"] + changes["down"]) <= 6).all()
    total = results.images.groupby("pair")[["a", "b"]].sum()  # AP50 without interpolation, a little below it
    assert (total["a"].to_numpy() <= pairing.pairs["a"].to_numpy() + 1e-6).all()
    assert changes["change"].sum() == pytest.approx((total["b"] - total["a"]).mean())


def test_no_mean_of_images_goes_over_arms_or_what_by_keeps_apart(cells):
    pairing, results = cells
    by_k = image_changes(pairing, results, ["shots"])
    assert by_k["shots"].unique().tolist() == [1, 2] and set(by_k["pairs"]) == {3}
    arms = [
        "missing" if place % 2 else "kshot" for place in range(6)
    ]  # as if every second pair were of another arm
    pairing.pairs["arm"] = arms
    changes = image_changes(pairing, results, [])
    assert changes["arm"].unique().tolist() == ["kshot", "missing"]
    for arm, own in changes.groupby("arm"):
        pairs = results.images[results.images["pair"].isin(pairing.pairs.index[pairing.pairs["arm"] == arm])]
        expected = (pairs["b"] - pairs["a"]).groupby(pairs["image_id"]).sum() / 3
        assert own.set_index("image_id")["change"].sort_index().to_numpy() == pytest.approx(
            expected.to_numpy()
        )
        assert own["change"].is_monotonic_decreasing and set(own["pairs"]) == {3}
    table = images_table(pairing, changes, [])
    assert set(table.display["arm"]) == {"kshot", "missing"} and len(table.display) <= 12
    assert "Of each of 2 groups at most 3 that gain most" in table.caption


def test_detections_of_some_classes_are_numbered_anew():
    names = ("anchor", "star", "key")
    found = detections_of((1, BOX, 0, 0.9), (1, FAR, 2, 0.8), (2, FAR, 1, 0.7), class_names=names)
    novel = _of_classes(found, ("key", "star"))
    assert novel.class_names == ("key", "star") and novel.labels.tolist() == [0, 1]
    assert novel.scores.tolist() == pytest.approx([0.8, 0.7]) and novel.class_scores.shape == (2, 3)


def test_a_single_pair_has_an_interval_over_images(project, tmp_path, capsys):
    words = [f"mini:loss={loss},{NONE},seed=0,K=1" for loss in ("ce", "bnrl")]
    assert compare.main([*words, "--output", str(tmp_path)]) == 0
    row = pd.read_csv(tmp_path / "paired.csv").iloc[0]
    assert row["images_low"] < row["difference"] < row["images_high"] and np.isnan(
        row["difference_half_width"]
    )
    assert "over images" in capsys.readouterr().out


def test_detections_of_another_run_are_refused(other):
    project, data = other
    run_id = write_run(project, data)
    folder = project / "results" / "mini" / "artifacts" / run_id / "detections"
    (folder / "seed1-kshot-ce.npz").write_bytes((folder / "seed0-kshot-ce.npz").read_bytes())
    with opened([f"mini:loss=ce,{NONE}", f"mini:loss=bnrl,{NONE}"]) as sides:
        pairing = pair_sides(*sides)
        with pytest.raises(RecordError, match=r"detections of seed 1, kshot, ce, none give an nAP50 of"):
            read_cells(pairing, Cells(Truths()), [])


def test_pairs_without_detections_are_counted(other, tmp_path, capsys):
    project, data = other
    write_run(project, data, with_artifacts=False)
    words = [f"mini:loss=ce,{NONE}", f"mini:loss=bnrl,{NONE}", "--output", str(tmp_path / "out")]
    assert compare.main(words) == 0
    told = capsys.readouterr().out
    assert "3 of 3 pairs are in no table of errors and images (3: no stored detections)" in told
    command = (
        r"repeat the runs: .*python -m risf_core\.run notebooks/20_fine_tuning\.ipynb --params .* --force"
    )
    assert re.search(command, told)
    assert not (tmp_path / "out" / "error_kinds.csv").exists()


def test_the_command_that_repeats_a_run_is_that_of_its_profiles_list():
    specs = load_list(project_path("params/mini/runs.yaml"))
    spec = next(one for one in specs if run_id(one.params).startswith("fine_tuning-split1-10shot"))
    record = {"params": spec.params.model_dump(mode="json"), "notebook": "20_fine_tuning"}
    source = selectors.Source(record | {"run_id": run_id(spec.params)}, project_path("none"))
    assert compare._command(source) == spec.command and "-p shots 10" in spec.command


# ------------------------------------------------------------ the command line


def test_the_examples_of_help_work(project, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        compare.main(["--help"])
    assert stop.value.code == 0
    lines = re.findall(r"python -m risf_core\.compare (mini.*)", capsys.readouterr().out)
    assert len(lines) == 2
    for number, line in enumerate(lines):
        folder = tmp_path / str(number)
        assert compare.main([*shlex.split(line), "--output", str(folder)]) == 0
        written = {path.name for path in folder.iterdir()}
        assert {
            "paired.csv",
            "paired.md",
            "error_kinds.csv",
            "error_kinds.png",
            "images.csv",
            "images.png",
        } <= written
        assert (folder / "images.png").read_bytes().startswith(b"\x89PNG")
    told = capsys.readouterr().out
    assert "They differ in re-scoring (none | cm_clip)." in told and "What each kind of error costs" in told


def test_the_same_comparison_gives_the_same_bytes(project, tmp_path):
    words = [f"mini:loss=ce,{NONE},K=1", f"mini:loss=bnrl,{NONE},K=1"]
    contents = []
    for folder in (tmp_path / "a", tmp_path / "b"):
        assert compare.main([*words, "--output", str(folder)]) == 0
        contents.append({path.name: path.read_bytes() for path in folder.iterdir()})
    assert contents[0] == contents[1] and len(contents[0]) > 10
    # and an earlier comparison leaves nothing behind
    assert compare.main([*words, "--table-only", "--output", str(folder)]) == 0
    assert not (folder / "images.png").exists() and (folder / "paired.csv").exists()


def test_a_wrong_name_lists_what_can_be_named(project):
    words = f"mini:loss=ce,{NONE}", f"mini:loss=bnrl,{NONE}"
    for name in ("sharpness", "loss", "base", "seed", "per_class", "run_id"):
        with pytest.raises(ParamsError, match=f"--metric {name}: no number of both sides") as caught:
            paired(*words, metric=name)
        listed = set(re.search(r"There are: (.*)\.", str(caught.value))[1].split(", "))
        assert {"nAP50", "nAP", "AP50"} <= listed and "nearest" not in str(caught.value)
        assert not listed & {
            "arm",
            "base",
            "loss",
            "run_id",
            "rescoring",
            "per_class",
            "seed",
            "shots",
            "split",
        }
    with pytest.raises(ParamsError, match=r"--by arms: no column of both sides \(nearest: 'arm'\)") as caught:
        paired(*words, by=("arms",))
    listed = set(re.search(r"There are: (.*)\.", str(caught.value))[1].split(", "))
    assert {"arm", "loss", "shots", "seed"} <= listed and not listed & {"nAP50", "per_class", "source"}


@pytest.mark.parametrize(
    "words, match",
    [
        (["mini:loss=ce", "mini:loss=bnr"], "ParamsError: mini:loss=bnr: no row has loss=bnr"),
        (["mini:loss=ce", "mini:loss=bnrl", "--by", "Kk"], "ParamsError: --by Kk: no column of both sides"),
        (
            ["mini:loss=ce", "mini:loss=bnrl", "--by", "K,shots"],
            "ParamsError: --by K,shots: a column is given twice",
        ),
        (["mini:loss=ce", "mini:loss=bnrl", "--metric", "nap50"], r"--metric nap50: .*nearest: 'nAP50'"),
        (["mini:loss=ce,seed=0", "mini:loss=bnrl,seed=1"], "RecordError: no row of mini:loss=ce,seed=0"),
        (["none.risf.zip", "mini"], "DataError: none.risf.zip: there is no such file"),
    ],
)
def test_wrong_input_is_refused_in_one_line(words, match, project, capsys, tmp_path):
    assert compare.main([*words, "--output", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert re.match(match, error) or re.search(match, error)
    assert error.count("\n") == 1 and not (tmp_path / "out").exists()


# ------------------------------------------------------------ packs


@pytest.fixture
def theirs(project, tmp_path):
    """A pack of the project's run of K = 1."""
    path = tmp_path / "theirs.risf.zip"
    assert pack.main(["make", str(path), f"mini/{RUNS[1]}"]) == 0
    return path


def test_results_of_a_pack_are_the_same_and_named_foreign(theirs, project, tmp_path, capsys):
    own = paired(f"mini:loss=ce,{NONE},K=1", f"mini:loss=bnrl,{NONE},K=1")
    folder = tmp_path / "out"
    words = [f"mini:loss=ce,{NONE}", f"{theirs}:loss=bnrl,{NONE}", "--output", str(folder)]
    assert compare.main(words) == 0
    told = capsys.readouterr().out
    assert "B (foreign: theirs)" in told and "foreign: theirs, not of this project; 3 rows of 1 run" in told
    table = pd.read_csv(folder / "paired.csv")
    assert set(table["a_origin"]) == {"own"} and set(table["b_origin"]) == {"foreign: theirs"}
    expected = summary(own, ["shots"]).iloc[0]
    assert table["difference"][0] == pytest.approx(expected["difference"], abs=1e-4)
    for name in ("paired", "error_kinds", "images", "unpaired"):
        assert "foreign: theirs" in (folder / f"{name}.md").read_text()
    assert (folder / "images.png").is_file()


def test_a_pack_holds_what_rescored_rows_need(theirs, project, tmp_path):
    words = [
        f"{theirs}:loss=ce,{NONE}",
        f"{theirs}:loss=ce,rescoring=cm_clip",
        "--output",
        str(tmp_path / "out"),
    ]
    assert compare.main(words) == 0
    assert len(pd.read_csv(tmp_path / "out" / "error_kinds.csv")) == 7
    small = tmp_path / "small.risf.zip"
    assert pack.main(["make", str(small), RUNS[1], "--without-similarities"]) == 0
    assert small.stat().st_size < theirs.stat().st_size
    words = [
        f"{small}:loss=ce,{NONE}",
        f"{small}:loss=ce,rescoring=cm_clip",
        "--output",
        str(tmp_path / "out"),
    ]
    assert compare.main(words) == 0
    assert (
        "3: no stored similarities for the re-scoring cm_clip" in (tmp_path / "out" / "notes.txt").read_text()
    )


def test_an_unpacked_pack_is_read_by_name_and_by_nothing_else(theirs, other, capsys):
    project, data = other
    write_run(project, data, tag="99999999")
    assert pack.main(["unpack", str(theirs)]) == 0
    assert [record["run_id"][-8:] for record in read_records("mini", all=True)] == ["99999999"]
    pairing = paired(f"mini:loss=ce,{NONE}", f"foreign/theirs:loss=bnrl,{NONE}")
    assert [side.origin for side in pairing.sides] == ["own", "foreign: theirs"]
    check_test_data(pairing, Truths())
    folder = project / "results" / "foreign" / "theirs" / "records"
    with opened([str(folder)]) as (side,):  # by path as well, and never as one's own
        assert side.origin == "foreign: theirs"
    edited(folder / f"{RUNS[1]}.json", lambda record: record["rows"][0].update(nAP50=99.0))
    assert compare.main([f"mini:loss=ce,{NONE}", "foreign/theirs:loss=bnrl"]) == 2
    assert "changed since it was unpacked. Unpack theirs.risf.zip anew" in capsys.readouterr().err


def test_records_of_packs_and_own_ones_are_not_mixed_in_one_side(theirs, other):
    project, data = other
    write_run(project, data, tag="99999999")
    assert pack.main(["unpack", str(theirs)]) == 0
    word = f"{project}/results/**/records/*.json"
    with pytest.raises(ParamsError, match="mixes foreign: theirs and own"), opened([word]):
        pass


def test_rows_judged_on_other_test_data_are_refused(theirs, other, tmp_path, capsys):
    project, _ = other
    write_run(project, tiny_world(tmp_path / "other_data", seed=5), tag="99999999")
    assert compare.main([f"mini:loss=ce,{NONE}", f"{theirs}:loss=bnrl,{NONE}"]) == 2
    error = capsys.readouterr().err
    assert "were judged on different test data" in error and "(foreign: theirs)" in error
    assert len(set(re.findall(r"hash ([0-9a-f]{8})", error))) == 2
    # own ones as well
    write_run(
        project, tiny_world(tmp_path / "other_data", seed=5, num_base_images=64), profile="b", tag="88888888"
    )
    assert (
        compare.main([f"mini:loss=ce,{NONE}", f"b:loss=bnrl,{NONE}", "--table-only"]) == 0
    )  # the same test scenes


@pytest.mark.parametrize(
    "change, match",
    [
        (lambda record: record["params"].update(score_thresh="high"), "its parameters are not valid here"),
        (
            lambda record: record["params"]["cm_clip"].update(c=7),
            "its parameters are not valid here: .*CmClipParams",
        ),
        (lambda record: record["rows"][3].pop("seed"), "a row has no seed"),
    ],
)
def test_records_of_a_pack_with_impossible_values_are_refused(change, match, theirs, other, tmp_path, capsys):
    project, data = other
    write_run(project, data, tag="99999999")
    path = project / "results" / "mini" / "records" / "fine_tuning-split1-1shot-99999999.json"
    edited(path, change)
    hostile = tmp_path / "hostile.risf.zip"
    assert pack.main(["make", str(hostile), str(path)]) == 0
    words = [f"{theirs}:loss=ce,{NONE}", f"{hostile}:loss=bnrl,{NONE}", "--output", str(tmp_path / "out")]
    assert compare.main(words) == 2
    error = capsys.readouterr().err
    assert error.startswith("RecordError: ") and re.search(match, error) and "foreign: hostile" in error


def test_a_pack_takes_whole_records(project, tmp_path, capsys):
    assert pack.main(["make", str(tmp_path / "x.risf.zip"), "mini:loss=ce"]) == 2
    assert "loss chooses rows, and a pack holds whole records" in capsys.readouterr().err
    paths = [tmp_path / "a.risf.zip", tmp_path / "b.risf.zip"]
    for path in paths:
        assert pack.main(["make", str(path), "mini"]) == 0
    assert paths[0].read_bytes() == paths[1].read_bytes()
