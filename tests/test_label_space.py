"""The label space study: names, visual prototypes, the fitted temperature, and what is chosen where."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from risf_core.cm_clip import apply_cm_clip
from risf_core.detections import Detections, Similarities
from risf_core.errors import DataError, ParamsError
from risf_core.evaluation import Evaluator
from risf_core.studies import label_space_study
from risf_core.studies.fitted_temperature import fit_temperature, is_at_bound, label_targets
from risf_core.studies.label_spaces import (
    CellScores,
    Combination,
    combinations,
    generic_vocabulary,
    names_of,
    paper_combination,
)
from risf_core.studies.selection import reported_combinations
from risf_core.studies.visual_prototypes import cache_affinity
from risf_core.study_params import LabelSpaceParams
from tests.color_cells import color_cells
from tests.test_evaluation import BOX, FAR, OTHER, data_of, detections_of, image

RUNS = {"selection": ["a.yaml"], "reported": ["b.yaml"], "clip": {"run": "c.yaml"}}
WORLD = SimpleNamespace(novel_names=("queen", "cat"), base_names=("king",))


def params_of(**values) -> LabelSpaceParams:
    return LabelSpaceParams.model_validate({"profile": "t", **RUNS, **values})


# ------------------------------------------------------------ names


def test_the_worlds_other_concepts_are_the_generic_names():
    vocabulary = generic_vocabulary(WORLD, params_of())
    assert len(vocabulary.names) == 50 and not vocabulary.removed and "moon" in vocabulary.names


def test_names_of_classes_are_removed_from_a_users_file_and_counted(tmp_path):
    path = tmp_path / "names.txt"
    path.write_text("tree\nQueen\n\nhouse \nking\ntree\nbackground\n", encoding="utf-8")
    vocabulary = generic_vocabulary(WORLD, params_of(vocabulary=str(path)))
    assert vocabulary.names == ("tree", "house") and vocabulary.source == "names.txt"
    assert vocabulary.removed == ("Queen", "king", "tree", "background")
    path.write_text("queen\n")
    with pytest.raises(DataError, match="names.txt: no name is left"):
        generic_vocabulary(WORLD, params_of(vocabulary=str(path)))
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="Expected one name a line"):
        generic_vocabulary(WORLD, params_of(vocabulary=str(path)))


def test_real_data_get_imagenets_names(tmp_path):
    data = {"source": "coco", "images": "x", "annotations": "y.json", "novel_classes": ["tench"]}
    benchmark = SimpleNamespace(novel_names=("tench",), base_names=("goldfish",))
    vocabulary = generic_vocabulary(benchmark, params_of(data=data))
    assert "tench" in vocabulary.removed and "goldfish" in vocabulary.removed
    assert not {"tench", "goldfish"} & set(vocabulary.names)
    assert len(set(vocabulary.names)) == len(vocabulary.names) == 1000 - len(vocabulary.removed)
    asked_for = params_of(vocabulary="imagenet")  # of the pictogram world
    assert asked_for.user_files() == () and "tench" in generic_vocabulary(WORLD, asked_for).names


def test_a_label_space_has_novel_names_first_and_background_last():
    names = names_of("novel+base+generic+background", WORLD, ("moon",))
    assert names == ("queen", "cat", "king", "moon", "background")


def test_the_papers_values_must_be_in_the_grid():
    paper = paper_combination(params_of())
    assert paper == Combination("novel+background", "100", "arithmetic", 0.7)
    assert combinations(params_of()).count(paper) == 1
    for name, value in {"c": [0.5], "fusions": ["geometric"], "temperatures": ["learned"]}.items():
        with pytest.raises(ValueError, match=f"{name} lacks"):
            params_of(**{name: value})
    with pytest.raises(ValueError, match="go together"):
        params_of(visual_alphas=[])


# ------------------------------------------------------------ scores


def cell_scores(seed=0, count=40) -> tuple[CellScores, Similarities]:
    """Random cosines with five names; every second detection below the threshold."""
    rng = np.random.default_rng(seed)
    scores = np.where(np.arange(count) % 2, 0.01, rng.random(count) + 0.1)
    labels = rng.integers(0, 2, count)
    found = Detections(
        np.arange(count) // 4, rng.random((count, 2))[:, [0, 1, 0, 1]] + [0, 0, 9, 9], scores, labels,
        np.zeros((count, 3)), np.arange(count), ("queen", "cat"),
    )  # fmt: skip
    rows = found.scores > 0.05
    names = ("queen", "cat", "king", "moon", "background")
    cosines = rng.normal(0, 0.1, (count, 5)).astype(np.float32)
    cosines[~rows] = np.nan
    spaces = {
        space: names_of(space, WORLD, ("moon",)) for space in ("novel+background", "novel+generic+background")
    }
    affinities = {2.0: rng.random((rows.sum(), 2)).astype(np.float32)}
    own = CellScores(found, rows, cosines[rows], affinities, names, spaces)
    return own, Similarities(cosines, rows, names)


@pytest.mark.parametrize("fusion", ["arithmetic", "geometric"])
def test_without_prototypes_the_scores_are_cm_clips(fusion):
    own, similarities = cell_scores()
    for space, names in own.spaces.items():
        one = Combination(space, "30", fusion, 0.4)
        (scores,) = own.sweep([one], {one.probability(): 30.0})
        expected = apply_cm_clip(
            own.detections, similarities, c=0.4, temperature=30.0, label_space=names, fusion=fusion
        )
        assert own.detections.with_scores(scores).scores.tolist() == expected.scores.tolist()


def test_prototypes_add_to_the_evidence_of_novel_names_alone():
    own, _ = cell_scores()
    plain, visual = (own.evidence("novel+generic+background", alpha, 2.0) for alpha in (0.0, 0.5))
    assert np.allclose(visual[:, :2] - plain[:, :2], 0.5 * own.affinities[2.0], atol=1e-6)
    assert (visual[:, 2:] == plain[:, 2:]).all()


def test_cache_affinity_is_the_mean_over_the_shots_of_a_class():
    embeds = np.array([[1.0, 0.0]], dtype=np.float32)
    shots = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]], dtype=np.float32)
    found = cache_affinity(embeds, shots, np.array([0, 0, 1]), num_classes=3, beta=2.0)
    assert found[0].tolist() == pytest.approx([(1 + np.exp(-2)) / 2, np.exp(-4), 0.0])


def test_fitted_temperature_is_the_one_that_made_the_labels():
    rng = np.random.default_rng(0)
    cosines = rng.normal(0, 0.1, (20_000, 4))
    logits = 25.0 * cosines
    probs = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    targets = (probs.cumsum(axis=1) < rng.random((len(probs), 1))).sum(axis=1)
    assert fit_temperature(cosines, targets) == pytest.approx(25.0, rel=0.03)  # 20,000 draws
    with pytest.raises(DataError, match="no detection to fit"):
        fit_temperature(cosines[:0], targets[:0])


def test_targets_are_what_a_detection_lies_on():
    data = data_of(image(1, [(BOX, 0), (OTHER, 1)]), image(2, [(FAR, 2), (BOX, 0, True)]))
    moved = np.array(BOX) + [0, 0, 4, 4]
    rows = [(1, moved, 2, 0.9), (1, OTHER, 0, 0.8), (1, FAR, 0, 0.7), (2, FAR, 1, 0.9), (2, BOX, 0, 0.5)]
    names = ("anchor", "star", "background")  # "key" competes not
    assert label_targets(detections_of(*rows), data, names).tolist() == [0, 1, 2, 2, 2]


# ------------------------------------------------------------ selection


def test_only_the_oracle_looks_at_the_reported_split():
    grid = combinations(params_of())
    rng = np.random.default_rng(0)
    chosen_on, reported = ({1: rng.random(len(grid)), 5: rng.random(len(grid))} for _ in range(2))
    paper = paper_combination(params_of())
    first = reported_combinations(grid, chosen_on, reported, paper)
    for shots, own in first.items():
        assert own["selected"] == grid[int(chosen_on[shots].argmax())]
        assert own["test oracle"] == grid[int(reported[shots].argmax())]
        assert own["selected over K"] == grid[int((chosen_on[1] + chosen_on[5]).argmax())]
    other = reported_combinations(grid, chosen_on, {k: 1 - v for k, v in reported.items()}, paper)
    for shots, own in first.items():
        changed = {name for name in own if own[name] != other[shots][name]}
        assert changed == {"test oracle"}


def test_single_changes_change_one_thing_and_take_the_best_of_its_values():
    grid, paper = combinations(params_of()), paper_combination(params_of())
    means = np.random.default_rng(1).random(len(grid))
    own = reported_combinations(grid, {5: means}, {5: means}, paper)[5]
    assert own["only fusion: geometric"] == Combination("novel+background", "100", "geometric", 0.7)
    for name, one in own.items():
        words = name.removeprefix("only ").removeprefix("all but ")
        change = words.split(":")[0].split(",")[0]
        if name.startswith("only "):
            assert one.changed(paper) - {"c"} == {change} - {"c"}
            assert ("c" in one.changed(paper)) <= (name.endswith("c chosen") or change == "c")
        if name.startswith("all but "):
            assert change not in one.changed(paper)
            kept = [place for place, other in enumerate(grid) if change not in other.changed(paper)]
            assert one == grid[kept[int(means[kept].argmax())]]
    visual = [place for place, one in enumerate(grid) if one.changed(paper) == {"visual"}]
    assert own["only visual"] == grid[visual[int(means[visual].argmax())]]
    assert len([name for name in own if name.startswith("only label_space")]) == 2 * 3


def test_a_fit_to_evidence_that_misleads_ends_at_its_bound_and_is_told():
    evidence = np.tile([0.5, 0.2], (20, 1))
    found = fit_temperature(evidence, np.ones(20, int))
    assert found == pytest.approx(0.1, rel=0.01) and is_at_bound(found)
    mixed = fit_temperature(evidence, np.arange(20) % 10 // 9)  # every tenth is of the other name
    assert 0.3 * mixed == pytest.approx(np.log(9), abs=1e-3) and not is_at_bound(mixed)


# ------------------------------------------------------------ the whole study on a picture of colours


@pytest.fixture
def colours(tmp_path, monkeypatch):
    """The study of one picture (`color_cells`): seed 0 is chosen on, seed 1 reported."""
    cells = color_cells(tmp_path, monkeypatch)
    monkeypatch.setattr(label_space_study, "open_clip_source", lambda *_, **__: ("colours", cells.loaded))
    names = tmp_path / "names.txt"
    names.write_text("white\n")
    values = {"vocabulary": str(names), "selection_seeds": [0], "seeds": [1], "visual_alphas": [1.0]}
    values |= {"visual_betas": [5.5], "label_spaces": ["novel+background", "novel+generic+background"]}
    study = params_of(c=[0.0, 0.7, 0.9], **values)
    return study, cells.run, cells.loaded.model, cells.test, cells.found


def test_the_study_chooses_and_reports(colours):
    study, run, _, test, found = colours
    one = run()
    metrics = label_space_study.study_label_spaces(study, one)
    rows = [row for row in one.rows.as_list() if row["part"] == "result"]
    reported = {row["what"]: row for row in rows if row["role"] == "reported"}
    assert {row["seed"] for row in rows if row["role"] == "reported"} == {1}
    assert {row["seed"] for row in rows if row["role"] == "selection"} == {0}
    evaluator = Evaluator(test, groups={"novel": ("red", "green")})
    assert reported["none"]["nAP50"] == evaluator.evaluate(found)["nAP50"]
    assert reported["selected"]["nAP50"] == pytest.approx(100.0)  # CLIP sees that the ground is neither
    assert metrics["learned_temperature"] == pytest.approx(20.0)
    assert list(metrics["fitted_at_bound"]) == ["5"] and metrics["fitted_at_bound"]["5"] == []
    grid = [row for row in one.rows.as_list() if row["part"] == "grid"]
    assert {row["combinations"] for row in grid} == {len(metrics["grid"]["combinations"])}
    values = np.load(one.dir / grid[-1]["file"])
    place = metrics["grid"]["combinations"].index(metrics["paper"])
    assert values[place] == pytest.approx(reported["paper"]["nAP50"], abs=1e-9)
    json.dumps(one.rows.as_list(), allow_nan=False)


def test_a_killed_study_goes_on_without_encoding_again(colours):
    study, run, clip, *_ = colours
    label_space_study.study_label_spaces(study, run())
    whole = run()
    rows, encoded = whole.rows.as_list(), sum(clip.batch_sizes)
    lines = (whole.dir / "rows.jsonl").read_text().splitlines()
    (whole.dir / "rows.jsonl").write_text("\n".join(lines[:-5]) + "\n")  # the last rows were never written
    clip.batch_sizes.clear()
    again = run()
    label_space_study.study_label_spaces(study, again)
    assert again.rows.as_list() == rows
    shots = 2  # boxes of the K shots, the only crops encoded again
    assert encoded >= 6 and sum(clip.batch_sizes) % shots == 0 and set(clip.batch_sizes) == {shots}


def test_a_cell_is_not_chosen_on_and_reported(colours):
    study, run, *_ = colours
    both = study.model_copy(update={"seeds": (0, 1)})
    with pytest.raises(ParamsError, match="is chosen on and reported"):
        label_space_study.study_label_spaces(both, run())
    with pytest.raises(ParamsError, match="no cell of arm kshot and loss bnrl"):
        label_space_study.study_label_spaces(study.model_copy(update={"loss": "bnrl"}), run())


def test_params_files_are_valid():
    from risf_core.runs.run_specs import load_run

    for profile in ("studies", "smoke", "voc"):
        for stem in ("36_label_space", "37_rescoring_controls"):
            assert load_run(Path(__file__).parents[1] / "params" / profile / f"{stem}.yaml")
