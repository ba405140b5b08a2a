"""01_explore: scores under the slider are those of CM-CLIP, whatever is chosen; what there is not is refused."""

import json
import re
import time
from dataclasses import replace
from types import SimpleNamespace
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from risf_core import explore_sources
from risf_core.cm_clip import apply_cm_clip
from risf_core.data.dataset import DetectionData, ImageRecord
from risf_core.detections import Detections, Similarities
from risf_core.errors import DataError, ParamsError, RecordError
from risf_core.explore import MAX_BOXES, Cell, CellKey
from risf_core.explore_sources import Exploration, first_view, most_changed, open_exploration
from risf_core.explore_widgets import NO_SLIDERS, ExplorePanel, explore_panel
from risf_core.params import CmClipParams, ExploreParams, FineTuningParams
from risf_core.report.explore_figures import explore_figure
from risf_core.report.explore_svg import CURVE_HEIGHT, LINE, MARGIN, boxes_svg, curves_svg, spread, table_html

NOVEL, BASE, WIDE = ("cat", "queen"), ("star", "key"), "novel+base+background"
PAPER = "novel+background"
GRID = tuple(step / 10 for step in range(11))
KEY = CellKey(1, 5, "ce", "kshot", 0)


def make_data(folder) -> DetectionData:
    """Three images of 60 x 40 pixels: a cat and a queen, then a cat, then none and no detection."""
    records = []
    truth = {1: ([[5, 5, 25, 25], [30, 10, 55, 35]], [0, 1]), 2: ([[10, 10, 30, 30]], [0]), 3: ([], [])}
    for image_id, (boxes, labels) in truth.items():
        Image.new("RGB", (60, 40), (40 * image_id, 90, 120)).save(folder / f"{image_id}.png")
        none = np.zeros(len(labels), bool)
        own = np.array(boxes, np.float32).reshape(-1, 4), np.array(labels, np.int64), none
        records.append(ImageRecord(image_id, folder / f"{image_id}.png", 40, 60, *own))
    return DetectionData("three images", NOVEL, (1, 2), tuple(records))


def make_cell(folder, *, names=(*NOVEL, *BASE, "background"), **options) -> Cell:
    """Seven detections in the first two images; the last of image 1 is below the re-scoring threshold."""
    boxes = [
        [5, 5, 25, 25],
        [30, 10, 55, 35],
        [5, 5, 25, 26],
        [0, 0, 9, 9],
        [10, 10, 30, 30],
        [40, 20, 59, 39],
        [1, 1, 6, 6],
    ]
    rng = np.random.default_rng(3)
    found = Detections(
        [1, 1, 1, 1, 2, 2, 2], boxes, [0.9, 0.6, 0.4, 0.04, 0.7, 0.35, 0.2], [0, 1, 1, 0, 0, 1, 0],
        np.zeros((7, 3)), np.arange(7), NOVEL,
    )  # fmt: skip
    cosines = rng.uniform(0.15, 0.3, (7, len(names))).astype(np.float32)
    encoded = found.scores > 0.05
    cosines[~encoded] = np.nan
    similarities = Similarities(cosines, encoded, names)
    return Cell(found, similarities, make_data(folder), BASE, CmClipParams(**options))


def rescored(cell: Cell, c: float, label_space: str) -> dict[tuple[int, int], float]:
    """The scores of `apply_cm_clip` by image and proposal."""
    after = apply_cm_clip(
        cell.detections,
        cell.similarities,
        c=c,
        temperature=cell.options.temperature,
        label_space=cell.names(label_space),
        score_thresh=cell.options.score_thresh,
        fusion=cell.options.fusion,
    )
    return dict(zip(zip(after.image_ids.tolist(), after.proposals.tolist()), after.scores.tolist()))


@pytest.mark.parametrize("label_space", [PAPER, WIDE])
@pytest.mark.parametrize("fusion", ["arithmetic", "geometric"])
def test_scores_are_those_of_cm_clip_at_every_c(tmp_path, label_space, fusion):
    cell = make_cell(tmp_path, fusion=fusion)
    changed = 0
    for image_id in (1, 2, 3):
        view = cell.view(image_id, label_space)
        for c in GRID:
            expected = rescored(cell, c, label_space)
            own = [expected[image_id, proposal] for proposal in view.detections.proposals.tolist()]
            assert view.scores(c).tolist() == own
            changed += sum(abs(view.scores(c) - view.detections.scores) > 0.05)
    assert changed > 20


def test_c_1_gives_the_detectors_scores_and_c_0_clips(tmp_path):
    view = make_cell(tmp_path).view(1, WIDE)
    assert view.scores(1.0).tolist() == view.detections.scores.tolist()
    probabilities = view.probabilities
    encoded = view.cell.similarities.encoded
    assert encoded.tolist() == [True, True, True, False]
    own = probabilities[np.arange(4), view.detections.labels]  # novel names come first
    assert view.scores(0.0)[encoded] == pytest.approx(own[encoded], abs=1e-6)
    assert view.scores(0.0)[3] == view.detections.scores[3]  # below the threshold: never re-scored


@pytest.mark.parametrize("label_space", [PAPER, WIDE])
def test_probabilities_sum_to_one(tmp_path, label_space):
    cell = make_cell(tmp_path)
    probabilities = cell.probabilities(label_space)
    encoded = cell.similarities.encoded
    assert probabilities.shape == (7, len(cell.names(label_space)))
    assert probabilities[encoded].sum(axis=1) == pytest.approx(1.0, abs=1e-6)
    assert np.isnan(probabilities[~encoded]).all()


def test_the_table_orders_boxes_by_the_new_score_and_names_clips_first(tmp_path):
    cell = make_cell(tmp_path)
    view = cell.view(1, PAPER)
    table = view.table(0.3, top=2)
    assert table["score"].is_monotonic_decreasing and set(table["box"]) == {1, 2, 3, 4}
    first = table.set_index("box").loc[1]
    names = cell.names(PAPER)
    order = np.argsort(-view.probabilities[0])[:2]
    expected = ", ".join(f"{names[place]} {view.probabilities[0, place]:.2f}" for place in order)
    assert first["CLIP's first names"] == expected and first["detector"] == np.float32(0.9)
    assert first["change"] == pytest.approx(first["score"] - 0.9)
    assert table.set_index("box").loc[4, "CLIP's first names"] == "not encoded"
    assert table.set_index("box")["right"].to_dict() == {1: "yes", 2: "yes", 3: "no", 4: "no"}


def test_an_image_without_detections_works(tmp_path):
    view = make_cell(tmp_path).view(3, PAPER)
    assert len(view.detections) == len(view.scores(0.5)) == len(view.table(0.5)) == 0
    assert "no box above the drawn score" in boxes_svg(view, 0.5, 0.3)
    assert "<polyline" not in curves_svg(view, 0.5, 0.3) and "no box above" in table_html(view, 0.5)
    drawing = explore_figure(view, "t", shown_c=(1.0, 0.3), draw_thresh=0.3)
    assert drawing.png().startswith(b"\x89PNG") and "0 boxes" in drawing.caption


def test_only_the_best_boxes_of_an_image_are_shown(tmp_path):
    cell = make_cell(tmp_path)
    count = MAX_BOXES + 7
    rows = np.zeros(count, int)
    found = Detections(
        rows + 1, np.tile([1, 1, 9, 9], (count, 1)), np.linspace(0.1, 0.9, count), rows, np.zeros((count, 3)),
        np.arange(count), NOVEL,
    )  # fmt: skip
    similarities = Similarities(
        np.full((count, 3), 0.2, np.float32), np.ones(count, bool), (*NOVEL, "background")
    )
    view = replace(cell, detections=found, similarities=similarities).view(1, PAPER)
    assert view.detections.scores.tolist() == sorted(found.scores.tolist(), reverse=True)[:MAX_BOXES]


# --- pictures -------------------------------------------------------------------------------------------------------


def test_the_pictures_follow_c_and_the_drawn_score(tmp_path):
    view = make_cell(tmp_path).view(1, PAPER)
    for c in (0.0, 0.37, 1.0):
        for thresh in (0.0, 0.3, 1.0):
            drawn = np.flatnonzero(view.scores(c) > thresh)
            picture = ElementTree.fromstring(boxes_svg(view, c, thresh))
            texts = {one.text for one in picture.iter("{http://www.w3.org/2000/svg}text")}
            assert texts == {f"{row + 1} {view.class_names[row]} {view.scores(c)[row]:.2f}" for row in drawn}
            curves = ElementTree.fromstring(curves_svg(view, c, thresh))
            assert len(list(curves.iter("{http://www.w3.org/2000/svg}polyline"))) == 4
            assert len(list(curves.iter("{http://www.w3.org/2000/svg}circle"))) == len(drawn)


def test_curves_pass_through_the_scores(tmp_path):
    """Read back from the picture: the corner at c = 0.5 is as high as the score there."""
    view = make_cell(tmp_path).view(1, PAPER)
    (points, *_) = re.findall(r'<polyline points="([^"]+)"', curves_svg(view, 0.5, 0.3))
    heights = [float(point.split(",")[1]) for point in points.split()]
    top, high = MARGIN["top"], CURVE_HEIGHT - MARGIN["top"] - MARGIN["bottom"]
    assert heights[10] == pytest.approx(top + high * (1 - view.scores(0.5)[0]), abs=0.06)


def test_labels_keep_clear_of_each_other():
    tops = spread([(0, 5), (3, 5), (2, 8), (200, 5)], [50, 50, 50, 50], 100)
    assert tops[0] == 5 and tops[3] == 5
    assert all(abs(one - other) >= LINE for k, one in enumerate(tops[:3]) for other in tops[:3][k + 1 :])
    assert spread([(0, -20)], [10], 100) == [0] and spread([(0, 99)], [10], 100) == [100 - LINE]


def test_a_redraw_is_quick(tmp_path):
    """Of an image as full as any may be, far below the third of a second at which a slider begins to lag."""
    panel = make_panel(full_cell(tmp_path))
    began = time.process_time()
    for step in range(20):
        panel.c.value = step / 20
    assert (time.process_time() - began) / 20 < 0.1


def full_cell(folder) -> Cell:
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 20, (MAX_BOXES, 2))
    rows = np.zeros(MAX_BOXES, int)
    found = Detections(
        rows + 1, np.hstack([corners, corners + 15]), rng.uniform(0.3, 1, MAX_BOXES), rows,
        np.zeros((MAX_BOXES, 3)), np.arange(MAX_BOXES), NOVEL,
    )  # fmt: skip
    cosines = rng.uniform(0.1, 0.3, (MAX_BOXES, 5)).astype(np.float32)
    similarities = Similarities(cosines, np.ones(MAX_BOXES, bool), (*NOVEL, *BASE, "background"))
    return Cell(found, similarities, make_data(folder), BASE, CmClipParams())


# --- widgets --------------------------------------------------------------------------------------------------------


def make_panel(cell: Cell, **others: Cell) -> ExplorePanel:
    loaders = {KEY: lambda: cell} | {
        KEY._replace(**json.loads(name)): lambda own=own: own for name, own in others.items()
    }
    exploration = Exploration("made", loaders, 3)
    return ExplorePanel(exploration, KEY, cell.view(1, PAPER), c=0.7, draw_thresh=0.3)


def shown(panel: ExplorePanel) -> tuple[str, ...]:
    return (*(layer.value for layer in panel.layers), panel.curves.value, panel.table.value)


def test_moving_the_slider_redraws_all_but_the_detectors_own_picture(tmp_path):
    panel = make_panel(make_cell(tmp_path))
    before = shown(panel)
    panel.c.value = 0.2
    after = shown(panel)
    assert after[0] == before[0] and all(one != other for one, other in zip(after[1:], before[1:]))
    assert "c = 0.20" in panel.titles[1].value and "score at c = 0.20" in panel.table.value
    panel.c.value = 0.7
    assert shown(panel) == before
    panel.thresh.value = 0.95
    assert "no box above the drawn score" in panel.layers[0].value


def test_image_and_label_space_are_chosen(tmp_path):
    panel = make_panel(make_cell(tmp_path))
    assert [name for name, _ in panel.image.options] == ["1: cat, queen", "2: cat", "3: no object"]
    before, photo = shown(panel), panel.photos[0].value
    panel.space.value = WIDE
    assert shown(panel)[1] != before[1] and panel.photos[0].value == photo
    panel.image.value = 3
    assert panel.photos[0].value != photo and "no box above" in panel.table.value
    assert panel.message.value == ""


def test_choosers_offer_what_there_is(tmp_path):
    """K = 10 has one loss alone: choosing it changes the loss with it, and back."""
    first, second = make_cell(tmp_path), make_cell(tmp_path, temperature=20.0)
    others = {'{"loss": "bnrl"}': second, '{"shots": 10, "loss": "ce_bg"}': second}
    panel = make_panel(first, **others)
    loss, shots = panel.choosers["loss"], panel.choosers["shots"]
    assert list(loss.options) == ["ce", "bnrl"] and list(shots.options) == [5, 10]
    before = shown(panel)
    shots.value = 10
    assert list(loss.options) == ["ce_bg"] and panel.key == KEY._replace(shots=10, loss="ce_bg")
    assert shown(panel)[1] != before[1]
    shots.value = 5
    assert panel.key == KEY and shown(panel) == before


def test_an_error_is_shown_in_the_panel(tmp_path):
    def fails():
        raise DataError("detections/x.npz: there is no such file.")

    cell = make_cell(tmp_path)
    panel = make_panel(cell)
    panel.exploration.loaders[KEY._replace(seed=1)] = fails
    panel._offer(KEY)
    panel.choosers["seed"].value = 1
    assert "DataError: detections/x.npz" in panel.message.value
    panel.choosers["seed"].value = 0
    assert panel.message.value == ""


def test_a_run_that_nobody_watches_has_no_widgets(tmp_path):
    cell = make_cell(tmp_path)
    exploration, params = Exploration("made", {KEY: lambda: cell}, 3), ExploreParams(profile="t")
    arguments = exploration, KEY, cell.view(1, PAPER), params
    assert explore_panel(*arguments, SimpleNamespace(is_scratch=False)).data == NO_SLIDERS
    assert "risf-explore" in explore_panel(*arguments, SimpleNamespace(is_scratch=True))._dom_classes


# --- choices --------------------------------------------------------------------------------------------------------


def test_the_first_view_is_what_the_parameters_ask_for(tmp_path):
    cell = make_cell(tmp_path)
    keys = [KEY, KEY._replace(loss="bnrl"), KEY._replace(shots=10), KEY._replace(shots=10, seed=3)]
    exploration = Exploration("made", dict.fromkeys(keys, lambda: cell), 3)

    def first(**values):
        return first_view(exploration, ExploreParams(profile="t", **values))

    assert first()[0] == KEY._replace(shots=10)  # the largest K
    assert first(shots=5, loss="bnrl")[0] == KEY._replace(loss="bnrl")
    assert first(few_shot_seed=3, image=1)[0].seed == 3 and first(image=1)[1].record.image_id == 2
    for values, message in (
        ({"shots": 3}, "shots: 3, but of what was chosen before it there is 5, 10"),
        ({"loss": "bnrl"}, "loss: bnrl, but of what was chosen before it there is ce"),
        ({"first_split": 2}, "first_split: 2, but"),
        ({"few_shot_seed": 7}, "few_shot_seed: 7, but of what was chosen before it there is 0, 3"),
        ({"image": 3}, "image: 3, but the first 3 test images are offered"),
    ):
        with pytest.raises(ParamsError, match=re.escape(message)):
            first(**values)


def test_the_image_shown_first_is_the_one_with_an_object_that_changes_most(tmp_path):
    cell = make_cell(tmp_path)
    changes = {}
    for record in cell.data.images[:2]:
        view = cell.view(record.image_id, PAPER)
        changes[record.image_id] = abs(view.scores(0.5) - view.detections.scores).max()
    best = max(changes, key=changes.get)
    (other,) = {1, 2} - {best}
    images = list(cell.data.images)
    assert most_changed(cell, images, 0.5, PAPER) == best
    images[best - 1] = images[best - 1].keep(np.zeros(len(images[best - 1].labels), bool))
    assert most_changed(cell, images, 0.5, PAPER) == other  # the better one has no object any more
    assert most_changed(cell, images[-1:], 0.5, PAPER) == 3  # without a detection
    assert most_changed(cell, images, 1.0, PAPER) == 1  # nothing changes: the first


def test_wrong_choices_are_refused(tmp_path):
    cell = make_cell(tmp_path, names=(*NOVEL, "background"))
    assert cell.label_spaces == (PAPER,)
    with pytest.raises(ParamsError, match="stored cosines for novel.background alone"):
        cell.view(1, WIDE)
    with pytest.raises(DataError, match="no image 77"):
        cell.view(77, PAPER)
    with pytest.raises(ParamsError, match="there is no cell of split 1, K = 5, ce, arm kshot, seed 0"):
        Exploration("made", {}, 3).cell(KEY)
    with pytest.raises(ValueError, match="shown_c holds a value twice"):
        ExploreParams(profile="t", shown_c=(0.5, 0.5))


# --- sources --------------------------------------------------------------------------------------------------------


def stored_run(folder, data: DetectionData, monkeypatch, **changes) -> SimpleNamespace:
    """A finished fine-tuning with two seeds on disk, as `Run.upstream` gives it."""
    cell = make_cell(folder)
    for seed in (0, 1):
        cell.detections.save(folder / "detections" / f"seed{seed}-kshot-ce.npz")
        cell.similarities.save(folder / "similarities" / f"seed{seed}-kshot-ce.npz")
    values = {"clip": {"run": "c.yaml"}} | changes
    tuned = FineTuningParams(profile="t", base="x.yaml", seeds=(0, 1), **values)
    row = {"split": 1, "shots": 5, "loss": "ce", "arm": "kshot", "setting": "fsod", "repeat": 0}
    rows = [row | {"seed": seed, "rescoring": how} for seed in (0, 1) for how in ("none", "cm_clip")]
    content = {"params": tuned.model_dump(mode="json"), "rows": [*rows, rows[0] | {"repeat": 1}]}
    benchmark = SimpleNamespace(novel_names=NOVEL, base_names=BASE, test=data)
    monkeypatch.setattr(explore_sources, "open_benchmark", lambda data, split: benchmark)
    return SimpleNamespace(dir=folder, run_id="fine_tuning-1", record=content)


def opened(monkeypatch, *answers, refs=None) -> Exploration:
    """What is opened where `Run.upstream` answers so, run by run."""
    specs = [SimpleNamespace(file=f"{place}.yaml", overrides={}) for place in range(len(answers))]
    monkeypatch.setattr(explore_sources, "expand", lambda ref: specs)

    def upstream(ref):
        answer = answers[int(ref.params.split(".")[0])]
        if isinstance(answer, Exception):
            raise answer
        return answer

    params = ExploreParams(profile="t", fine_tuning=("grid.yaml",), num_images=2)
    return open_exploration(params, SimpleNamespace(upstream=upstream, device="cpu"))


def test_finished_runs_are_read_and_others_counted(tmp_path, monkeypatch, caplog):
    finished = stored_run(tmp_path, make_data(tmp_path), monkeypatch)
    missing = RecordError("The run fine_tuning-2 is needed and not finished; make it: python -m x")
    exploration = opened(monkeypatch, finished, missing)
    assert list(exploration.loaders) == [KEY, KEY._replace(seed=1)]
    assert exploration.summary().to_dict("records") == [
        {"split": 1, "K": 5, "loss": "ce", "arm": "kshot", "seeds": "0, 1"}
    ]
    assert "1 of 2 runs are not finished" in caplog.text and "fine_tuning-2" in caplog.text
    cell = exploration.cell(KEY)
    assert exploration.cell(KEY) is cell and len(cell.detections) == 6  # one is at or below 0.05
    assert [record.image_id for record in exploration.images(KEY)] == [1, 2]
    expected = rescored(cell, 0.7, PAPER)
    view = cell.view(1, PAPER)
    assert view.scores(0.7).tolist() == [expected[1, number] for number in view.detections.proposals.tolist()]


def test_runs_that_cannot_be_shown_are_refused(tmp_path, monkeypatch):
    finished = stored_run(tmp_path, make_data(tmp_path), monkeypatch)
    with pytest.raises(ParamsError, match="split 1, K = 5, ce, arm kshot, seed 0 is in an earlier run"):
        opened(monkeypatch, finished, finished)
    for changes, words in (({"setting": "gfsod"}, "setting gfsod"), ({"clip": None}, "no stored cosines")):
        with pytest.raises(ParamsError, match=words):
            opened(monkeypatch, stored_run(tmp_path, make_data(tmp_path), monkeypatch, **changes))


def test_without_a_finished_run_the_demo_is_shown(monkeypatch, caplog):
    shown = []
    monkeypatch.setattr(
        explore_sources,
        "demo_exploration",
        lambda number, *, device: shown.append((number, device)) or "demo",
    )
    assert opened(monkeypatch, RecordError("not finished; make it: command")) == "demo"
    assert shown == [(2, "cpu")] and "1 of 1 runs are not finished" in caplog.text
    caplog.clear()
    assert open_exploration(ExploreParams(profile="t"), SimpleNamespace(device="cpu")) == "demo"
    assert caplog.text == ""
