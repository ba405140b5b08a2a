"""gFSOD with re-scored base classes: what lies beneath detections, every way of re-scoring, tables, gallery."""

from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from risf_core.data.dataset import DetectionData, ImageRecord
from risf_core.data.loader import ImageCache
from risf_core.detections import Detections, Similarities
from risf_core.errors import DataError, ParamsError
from risf_core.params import FineTuningParams
from risf_core.report.base_class_figures import base_class_figures
from risf_core.report.base_class_tables import (
    class_cells,
    class_table,
    confusion_cells,
    confusion_shares,
    confusion_table,
    rescored_cells,
    rescored_table,
)
from risf_core.report.gallery_pictures import gallery_figure
from risf_core.report.study_numbers import study_numbers
from risf_core.studies import base_classes
from risf_core.studies.changed_images import (
    ImageChange,
    image_changes,
    image_margins,
    most_changed,
    score_ranks,
)
from risf_core.studies.gallery import make_gallery
from risf_core.studies.matching import lies_on, named_by_best, takes_object
from risf_core.study_params import BaseClassesParams
from tests.color_cells import color_cells
from tests.test_evaluation import BOX, FAR, OTHER, data_of, detections_of, image

VALUES = {"profile": "t", "gfsod": ["a.yaml"], "clip": {"run": "c.yaml"}}
PARAMS = BaseClassesParams(**VALUES)


# ------------------------------------------------------------ what lies beneath


def test_a_detection_lies_on_its_own_class_first_then_on_what_it_overlaps_most():
    near = [12, 10, 32, 30]  # IoU 0.82 with BOX
    data = data_of(image(1, [(BOX, 0), (near, 1)]), image(2, [(OTHER, 2)]), image(3, [(FAR, 1, True)]))
    rows = [
        *[(1, BOX, 1, 0.9), (1, BOX, 0, 0.8), (1, BOX, 2, 0.7), (1, OTHER, 0, 0.6)],
        *[(2, OTHER, 2, 0.5), (2, BOX, 2, 0.4), (3, FAR, 1, 0.3), (3, FAR, 0, 0.2)],
    ]
    assert lies_on(detections_of(*rows), data).tolist() == [1, 0, 0, -1, 2, -1, -2, -2]


def test_an_object_is_taken_once_and_a_crowd_region_counts_neither_way():
    data = data_of(image(1, [(BOX, 0), (OTHER, 1)]), image(2, [(FAR, 1, True)]))
    rows = [(1, BOX, 0, 0.9), (1, BOX, 0, 0.8), (1, OTHER, 0, 0.7), (2, FAR, 1, 0.6), (2, BOX, 1, 0.5)]
    right = takes_object(detections_of(*rows), data)
    assert right[[0, 1, 2, 4]].tolist() == [1.0, 0.0, 0.0, 0.0] and np.isnan(right[3])


def test_the_best_detection_names_an_object():
    data = data_of(image(1, [(BOX, 0), (OTHER, 1), (FAR, 2)]), image(2, []))
    found = detections_of((1, BOX, 1, 0.9), (1, BOX, 0, 0.8), (1, OTHER, 1, 0.3))
    truth, called = named_by_best(found, data)
    assert (truth.tolist(), called.tolist()) == ([0, 1, 2], [1, 1, -1])
    assert named_by_best(found, data, np.array([0, 2, 2]))[1].tolist() == [0, 2, -1]


def test_detections_of_other_images_or_classes_are_refused():
    with pytest.raises(DataError, match="image 7, which the data does not have"):
        lies_on(detections_of((7, BOX, 0, 0.5)), data_of(image(1, [])))
    with pytest.raises(DataError, match="Expected the same, in the same order"):
        lies_on(detections_of(class_names=("a", "b")), data_of(image(1, [])))


# ------------------------------------------------------------ images that change most


def test_ranks_are_within_a_class_and_blind_to_a_common_lift():
    rows = [(1, BOX, 0, 0.9), (1, OTHER, 0, 0.5), (2, BOX, 0, 0.5), (2, FAR, 0, 0.1), (3, BOX, 2, 0.3)]
    found = detections_of(*rows)
    assert score_ranks(found).tolist() == pytest.approx([1.0, 0.5, 0.5, 0.0, 0.5])
    assert score_ranks(found.with_scores(0.5 + found.scores / 2)).tolist() == score_ranks(found).tolist()


def test_the_margin_is_right_ranks_less_wrong_ones():
    data = data_of(image(1, [(BOX, 0)]), image(2, []), image(3, [(FAR, 1, True)]))
    found = detections_of((1, BOX, 0, 0.75), (1, OTHER, 0, 0.5), (2, BOX, 0, 0.9), (3, FAR, 1, 0.5))
    assert image_margins(found, data) == {1: 0.5 - 0.0, 2: -1.0, 3: 0.0}
    after = found.with_scores(np.array([0.75, 0.25, 0.6, 0.1], dtype=np.float32))
    changes = image_changes(found, after, data, cell=4)
    assert changes == [ImageChange(1, 4, 0.5), ImageChange(2, 4, 0.5), ImageChange(3, 4, 0.0)]
    with pytest.raises(DataError, match="Expected the same boxes"):
        image_changes(found, found.keep(np.arange(4) > 0), data)


def test_the_most_changed_images_come_once_on_a_side_and_in_order():
    values = [(1, 0, 0.5), (1, 1, 0.9), (2, 0, 0.5), (3, 0, -0.1), (1, 2, -0.2), (4, 0, 0.0), (5, 0, 0.5)]
    gains, losses = most_changed([ImageChange(*row) for row in values], count=2)
    assert gains == [
        ImageChange(1, 1, 0.9),
        ImageChange(2, 0, 0.5),
    ]  # 2 before 5: a tie goes to the smaller id
    assert losses == [ImageChange(1, 2, -0.2), ImageChange(3, 0, -0.1)]


# ------------------------------------------------------------ parameters


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"c": [0.5, 0.9]}, "c lacks 0.7"),
        ({"label_spaces": ["all+background"]}, "lacks rescored"),
        ({"c": [0.7, 0.7]}, "value twice|twice"),
    ],
)
def test_parameters_hold_the_paper_and_each_value_once(wrong, message):
    with pytest.raises(ValueError, match=message):
        BaseClassesParams(**VALUES, **wrong)


def test_runs_of_another_setting_and_cells_given_twice_are_refused():
    tuned = FineTuningParams(profile="t", base="x.yaml", setting="gfsod").model_dump(mode="json")
    key = {"split": 1, "shots": 5, "seed": 0, "loss": "ce", "arm": "kshot", "setting": "gfsod", "repeat": 0}

    def upstream(name, **changes):
        rows = [{**key, "rescoring": "none"}]
        return SimpleNamespace(run_id=name, dir=None, record={"params": tuned | changes, "rows": rows})

    options = {"arm": "kshot", "losses": ("ce", "bnrl")}
    assert [cell.key for cell in base_classes.gfsod_cells([upstream("a")], **options)] == [key]
    with pytest.raises(ParamsError, match="a is of the setting fsod. Expected gfsod"):
        base_classes.gfsod_cells([upstream("a", setting="fsod")], **options)
    with pytest.raises(ParamsError, match="b: .* is in an earlier run, too"):
        base_classes.gfsod_cells([upstream("a"), upstream("b")], **options)
    with pytest.raises(ParamsError, match="no cell of arm missing and losses ce"):
        base_classes.gfsod_cells([upstream("a")], arm="missing", losses=("ce",))


# ------------------------------------------------------------ the whole study on a picture of colours


@pytest.fixture
def colours(tmp_path, monkeypatch):
    """A base object "red" that is green to CLIP, a red patch that is no object, and a novel object "green".

    The detector likes the base object best and the novel one less than the blue ground: re-scoring mends the novel
    class and harms the base class.
    """
    pixels = np.zeros((60, 60, 3), np.uint8)
    pixels[..., 2] = 255
    objects = {"base": [0, 0, 12, 12], "novel": [40, 40, 52, 52], "patch": [0, 40, 12, 52]}
    for name, color in (("base", (0, 255, 0)), ("novel", (0, 255, 0)), ("patch", (255, 0, 0))):
        x1, y1, x2, y2 = objects[name]
        pixels[y1:y2, x1:x2] = color
    Image.fromarray(pixels).save(tmp_path / "g.png")
    boxes = np.array([objects["base"], objects["novel"]], dtype=np.float32)
    record = ImageRecord(1, tmp_path / "g.png", 60, 60, boxes, np.array([0, 1]), np.zeros(2, dtype=bool))
    test = DetectionData("t", ("red", "green"), (1, 2), (record,))
    places = [[40, 0, 52, 12], objects["base"], objects["novel"], objects["patch"]]  # the first: ground
    found = Detections(
        [1] * 4, places, [0.9, 0.6, 0.5, 0.5], [1, 0, 1, 0], np.zeros((4, 3)), range(4), test.class_names
    )
    cells = color_cells(tmp_path, monkeypatch)
    benchmark = SimpleNamespace(base_names=("red",), novel_names=("green",), test=test, evaluation={})
    monkeypatch.setattr(base_classes, "open_benchmark", lambda data, split: benchmark)
    monkeypatch.setattr(base_classes, "open_clip_source", lambda *args, **options: ("colours", cells.loaded))
    (upstream,) = cells.run().upstreams("")
    params = FineTuningParams.model_validate(upstream.record["params"] | {"setting": "gfsod"})
    rows = [row | {"setting": "gfsod"} for row in upstream.record["rows"]]
    for seed in (0, 1):
        found.save(tmp_path / "gfsod" / "detections" / f"seed{seed}-kshot-ce.npz")
    record = {"params": params.model_dump(mode="json"), "rows": rows}
    ours = SimpleNamespace(dir=tmp_path / "gfsod", run_id="g", record=record)

    def run():
        one = cells.run()
        one.upstreams = lambda name: [ours if name == "gfsod" else upstream]
        one.upstream = lambda ref: SimpleNamespace(record={"params": {"iterations": 700}})
        return one

    return SimpleNamespace(run=run, found=found, test=test, fsod=cells, folder=tmp_path)


def _rescored(rows, **wanted):
    (row,) = [row for row in rows if row["part"] == "rescored" and wanted.items() <= row.items()]
    return row


def test_each_group_is_re_scored_as_told(colours):
    run = colours.run()
    base_classes.run_base_classes(PARAMS, run)
    rows = run.rows.as_list()
    none = _rescored(rows, rescored="none", seed=0)
    paper = {"label_space": "rescored+background", "c": 0.7, "seed": 0}
    novel, base = (_rescored(rows, rescored=name, **paper) for name in ("novel", "base"))
    both = _rescored(rows, rescored="both", label_space="all+background", c=0.7, seed=0)
    assert none["bAP50"] == pytest.approx(100.0) and none["nAP50"] < 60
    assert novel["nAP50"] == pytest.approx(100.0) and novel["bAP50"] == none["bAP50"]
    assert base["bAP50"] < 60 and base["nAP50"] == none["nAP50"]  # the paper's failure case
    assert both["bAP50"] == base["bAP50"] and both["nAP50"] == novel["nAP50"]
    assert both["AP50"] == pytest.approx((both["bAP50"] + both["nAP50"]) / 2)
    counts = {row["rescored"]: row["num_rescored"] for row in (none, novel, base, both)}
    assert counts == {"none": 0, "novel": 2, "base": 2, "both": 4}
    assert len([row for row in rows if row["part"] == "rescored"]) == 2 * (1 + 3 * (2 + 2 + 1))


def test_scores_by_hand_and_put_together_as_evaluated_at_once(colours):
    run = colours.run()
    base_classes.run_base_classes(PARAMS, run)
    (upstream,) = run.upstreams("gfsod")
    cell, _ = base_classes.gfsod_cells([upstream], arm="kshot", losses=("ce",))
    benchmark, test, evaluator = base_classes.GfsodSplits().get(cell)
    _, clip = base_classes.open_clip_source()
    cm_clip = base_classes.build_cm_clip(clip, benchmark, PARAMS.cm_clip)
    found = cell.detections()
    cosines = base_classes.encode_detections(found, test, cm_clip, cache=ImageCache())
    groups = base_classes.Groups(PARAMS, benchmark, found, cosines, temperature=100.0)
    assert groups.label_space("novel", "rescored+background") == ("green", "background")
    assert groups.label_space("base", "all+background") == ("red", "green", "background")
    # in the order of the scores: ground, base object, novel object, red patch
    by_hand = {
        ("novel", "rescored+background"): [0.63, 0.6, 0.65, 0.5],
        ("base", "rescored+background"): [
            0.9,
            0.42 + 0.15,
            0.5,
            0.65,
        ],  # green is as far from red as from blue
        ("base", "all+background"): [0.9, 0.42, 0.5, 0.65],
        ("both", "all+background"): [0.63, 0.42, 0.65, 0.65],
    }
    for (rescored, space), scores in by_hand.items():
        assert groups.scores(rescored, space, c=0.7) == pytest.approx(scores, abs=1e-4), (rescored, space)
        if space == "all+background":
            at_once = evaluator.evaluate(found.with_scores(groups.scores(rescored, space, c=0.7)))
            row = _rescored(run.rows.as_list(), rescored=rescored, label_space=space, c=0.7, seed=0)
            for name in ("AP", "AP50", "AP75", "bAP", "bAP50", "nAP", "nAP50", "nAP75"):
                assert row[name] == pytest.approx(at_once[name])


def test_rows_say_who_names_right_and_what_novel_detections_lie_on(colours):
    run = colours.run()
    base_classes.run_base_classes(PARAMS, run)
    rows = run.rows.as_list()
    naming = {row["name"]: row for row in rows if row["part"] == "naming" and row["seed"] == 0}
    fields = ("found", "objects", "detector_right", "clip_right")
    assert {name: [row[field] for field in fields] for name, row in naming.items()} == {
        "red": [1, 1, 1, 0],
        "green": [1, 1, 1, 1],
    }
    classes = {row["name"]: row for row in rows if row["part"] == "class"}
    assert {name: (row["group"], row["accuracy"]) for name, row in classes.items()} == {
        "red": ("base", 0.0),
        "green": ("novel", 100.0),
    }
    weights = {
        row["rescored"]: row["weights"] for row in rows if row["part"] == "confusion" and row["seed"] == 0
    }
    assert weights["none"] == pytest.approx({"green": 0.5, "background": 0.9})
    assert weights["novel"] == pytest.approx({"green": 0.65, "background": 0.63}, abs=1e-4)


@pytest.mark.parametrize("kept", [1, 9, 20])
def test_a_killed_run_goes_on_and_encodes_nothing_anew(colours, monkeypatch, kept):
    first = colours.run()
    base_classes.run_base_classes(PARAMS, first)
    whole = first.rows.as_list()
    path = first.dir / "rows.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:kept]))
    monkeypatch.setattr(base_classes, "encode_detections", lambda *a, **k: pytest.fail("encoded again"))
    again = colours.run()
    base_classes.run_base_classes(PARAMS, again)
    assert sorted(map(str, again.rows.as_list())) == sorted(map(str, whole))


def test_stored_cosines_of_other_detections_are_refused(colours):
    base_classes.run_base_classes(PARAMS, colours.run())
    one = colours.found.keep(np.arange(4) > 0)
    one.save(colours.folder / "gfsod" / "detections" / "seed1-kshot-ce.npz")
    run = colours.run()
    (run.dir / "rows.jsonl").unlink()
    run = colours.run()
    with pytest.raises(DataError, match="holds 4 rows for 3 detections of g"):
        base_classes.run_base_classes(PARAMS, run)


# ------------------------------------------------------------ gallery


def _with_cosines(colours):
    for seed in (0, 1):
        path = colours.folder / "similarities" / f"seed{seed}-kshot-ce.npz"
        Similarities(np.eye(3)[[2, 0, 1]], np.ones(3, bool), ("red", "green", "background")).save(path)
    return colours.run()


def test_the_gallery_shows_the_image_that_gains(colours):
    run = _with_cosines(colours)
    params = BaseClassesParams(**VALUES, fsod=["b.yaml"])
    gallery = make_gallery(params, run)
    # of the two detections called red the right one comes up: ranks 0 and 1 before, 1 and 0 after; green has one
    (one,) = gallery.gains
    assert (one.image_id, one.seed) == (1, 0) and one.change == pytest.approx(2.0)
    assert gallery.losses == () and (gallery.share_up, gallery.share_down) == (100.0, 0.0)
    (row,) = [row for row in run.rows.as_list() if row["part"] == "gallery"]
    assert (row["kind"], row["image_id"], row["change"]) == ("gain", 1, pytest.approx(2.0))
    means = [row["mean_change"] for row in run.rows.as_list() if row["part"] == "images"]
    assert means == pytest.approx([2.0, 2.0])
    drawing = gallery_figure(gallery)
    assert len(drawing.figure.axes) == 4 and "sum of the ranks of its right" in drawing.caption
    assert drawing.png() == gallery_figure(make_gallery(params, run)).png()  # and no row is added twice


def test_without_fsod_runs_there_is_no_gallery(colours):
    assert make_gallery(PARAMS, colours.run()) is None
    assert "no gallery" in gallery_figure(None).caption


def test_a_gallery_of_several_k_is_refused(colours):
    run = _with_cosines(colours)
    (first,) = run.upstreams("fsod")
    other = SimpleNamespace(dir=first.dir, run_id="s", record={**first.record})
    other.record["rows"] = [row | {"shots": 1} for row in first.record["rows"]]
    run.upstreams = lambda name: [first, other]
    with pytest.raises(ParamsError, match="differ in data, split or K"):
        make_gallery(BaseClassesParams(**VALUES, fsod=["b.yaml"]), run)


# ------------------------------------------------------------ tables and figures


NAMES = {"base": ("anchor", "cow"), "novel": ("cat", "queen")}


def made_record(*, falls=True, clip="resnet, 700 steps", losses=("ce", "bnrl"), all_k=(1, 5)) -> dict:
    """Made-up rows of two losses, two K and three seeds; base classes lose 4 points, or gain as many."""
    key = {"split": 1, "arm": "kshot", "setting": "gfsod", "repeat": 0, "clip": clip}
    rows = [
        {"part": "class", "split": 1, "name": name, "group": group, "objects": 9, "accuracy": 70.0 + 5 * place,
         "accuracy_in_group": 80.0, "clip": clip}
        for group, names in NAMES.items() for place, name in enumerate(names)
    ]  # fmt: skip
    change = {"base": -4.0 if falls else 4.0, "novel": 6.0}
    for loss, shots, seed in ((loss, k, s) for loss in losses for k in all_k for s in (0, 1, 2)):
        cell = {**key, "loss": loss, "shots": shots, "seed": seed}
        for rescored, space, c in base_classes.combinations(PARAMS):
            touched = {"base": ("base", "both"), "novel": ("novel", "both")}
            per_class = {
                name: 50.0 + seed + (change[group] + 0.1 * seed if rescored in touched[group] else 0.0)
                for group, names in NAMES.items()
                for name in names
            }
            groups = {**NAMES, "both": (*NAMES["base"], *NAMES["novel"])}
            values = base_classes.group_means({n: {"AP": v, "AP50": v} for n, v in per_class.items()}, groups)
            rows.append({"part": "rescored", **cell, "rescored": rescored, "label_space": space, "c": c, **values,
                         "per_class": per_class, "num_rescored": 3})  # fmt: skip
        for names in NAMES.values():
            for name in names:
                values = {"found": 8, "objects": 9, "detector_right": 6, "clip_right": 4}
                rows.append({"part": "naming", **cell, "name": name, **values})
        for name in NAMES["novel"]:
            weights = {"none": {"cow": 3.0, "background": 1.0, name: 4.0}, "novel": {name: 9.0, "cow": 1.0}}
            for rescored, own in weights.items():
                values = {"weights": own, "detections": 9}
                rows.append({"part": "confusion", **cell, "rescored": rescored, "name": name, **values})
    params = PARAMS.model_dump(mode="json")
    return {
        "run_id": f"base_classes-{clip}",
        "notebook": "41_base_classes",
        "params": params,
        "rows": rows,
        "metrics": {},
    }


def test_changes_are_paired_and_falling_base_classes_give_a_warning():
    records = [made_record()]
    cells = rescored_cells(records).set_index(["loss", "shots", "rescored", "label_space", "c"])
    both = cells.loc["ce", 5, "both", "all+background", 0.7]
    assert both["bchange"] == pytest.approx(-3.9) and both["nchange"] == pytest.approx(6.1)
    # values -4, -3.9, -3.8: s = 0.1, t = 4.3027 with two degrees of freedom
    assert both["bchange_half_width"] == pytest.approx(4.3027 * 0.1 / 3**0.5, abs=1e-4)
    assert (both["n"], both["bup"], both["nup"]) == (3, 0, 3) and both["mean"] == pytest.approx(52.1)
    table = rescored_table(records)
    assert "WARNING: bAP falls if base classes are re-scored, in 12 of 12 rows" in table.caption
    assert len(table.display) == 2 * 2 * 6 and len(table.data) == 2 * 2 * 16
    assert "WARNING" not in rescored_table([made_record(falls=False)]).caption


def test_classes_stand_beside_what_detector_and_clip_know():
    records = [made_record()]
    cells = class_cells(records)
    assert len(cells) == 2 * 2 * 4
    row = cells[(cells["loss"] == "ce") & (cells["shots"] == 5) & (cells["name"] == "cow")].iloc[0]
    assert (row["group"], row["accuracy"], row["detector_right"], row["clip_right"]) == (
        "base",
        75.0,
        75.0,
        50.0,
    )
    assert (
        row["AP50"] == pytest.approx(51.0) and row["all_change"] == pytest.approx(-3.9) == row["group_change"]
    )
    assert set(class_table(records).display["K"]) == {5}


def test_shares_of_confusions_sum_to_100_and_changes_are_paired():
    records = [made_record()]
    shares = confusion_shares(records)
    sums = shares.groupby(["loss", "shots", "seed", "rescored", "name"])["share"].sum()
    assert sums.to_numpy() == pytest.approx(np.full(len(sums), 100.0))
    cells = confusion_cells(records).set_index(["loss", "shots", "name", "on"])
    row = cells.loc["ce", 5, "queen", "cow"]
    assert (row["before"], row["after"], row["change"]) == pytest.approx((37.5, 10.0, -27.5))
    assert row["group"] == "base" and cells.loc["ce", 5, "queen", "queen"]["group"] == "own"
    top = confusion_table(records).display
    assert top["lies on"].tolist()[:2] == ["cow", "cow"] and set(top["K"]) == {5}


def test_figures_are_drawn_the_same_twice_and_without_records():
    records = [made_record()]
    first, second = base_class_figures(records), base_class_figures(records)
    assert {name: drawing.png() for name, drawing in first.items()} == {
        name: drawing.png() for name, drawing in second.items()
    }
    panels = {name: len(drawing.figure.axes) for name, drawing in first.items()}
    assert panels == {
        "base_classes_AP": 2 * 3,
        "base_classes_AP50": 2 * 3,
        "base_classes_by_class": 2 * 3,
        "novel_confusions": 2 * (3 + 2),  # with two colour bars a row
    }
    assert all("No record" in drawing.caption for drawing in base_class_figures([]).values())


def test_headline_names_the_changes_of_k_5():
    rows = study_numbers([made_record()])
    found = {row[0]: row for row in rows if row[3] == "41_base_classes"}
    name = "gfsod, base and novel classes re-scored among all classes + background: change of bAP, K=5, ce"
    assert found[name][1].startswith("−3.9 ± 0.2 (0/3 up)") and found[name][2] == 3
    assert not any("K=1" in quantity for quantity in found)


def test_another_clip_stands_apart_and_says_so():
    weaker = made_record(clip="resnet, 150 steps", losses=("ce",), all_k=(5,))
    records = [made_record(), weaker]
    of_one, of_both = (
        {row[0] for row in study_numbers(own) if row[3] == "41_base_classes"}
        for own in (records[:1], records)
    )
    name = "gfsod, base classes re-scored among re-scored classes + background: change of bAP, K=5, ce"
    assert of_one < of_both and f"{name}, CLIP resnet, 150 steps" in of_both - of_one and name in of_one
    tables = [rescored_table(records), class_table(records), confusion_table(records)]
    assert [set(table.display["clip"]) for table in tables] == [
        {"resnet, 700 steps", "resnet, 150 steps"}
    ] * 3
    assert len(base_class_figures(records)["base_classes_AP"].figure.axes) == 3 * 3
