"""Other detectors: results files become detections, c is chosen where nothing is reported, and a killed run goes on."""

import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from PIL import Image
from pydantic import ValidationError

from risf_core.data.benchmark import open_benchmark
from risf_core.data.coco import write_coco
from risf_core.data.dataset import DetectionData, ImageRecord
from risf_core.detector.build import build_detector
from risf_core.detector.checkpoints import save_detector
from risf_core.errors import DataError, ParamsError
from risf_core.params import BaseTrainingParams, DetectorParams, FineTuningParams, PictogramData
from risf_core.records import Rows
from risf_core.report.other_detectors_figures import other_detectors_figure
from risf_core.report.other_detectors_tables import (
    choices,
    gains,
    other_detectors_files_table,
    other_detectors_scores_table,
    other_detectors_table,
)
from risf_core.report.selection import figures_of, tables_of
from risf_core.results_formats import ClassList, read_results
from risf_core.studies import other_detectors, stored_boxes
from risf_core.studies.chosen_c import choose_c
from risf_core.studies.other_results import detections_of
from risf_core.study_params import OtherDetectorsParams
from tests.color_clip import COLORS, ColorClip, color_tokens
from tests.made_results import FOLDER, detr_like, smoke_contents, yolo_like

SIDE = 48
CLIP = {"run": "x.yaml"}


class _Run:
    """What the study needs of a run."""

    device = "cpu"

    def __init__(self, folder, upstreams=()):
        self.dir, self.environment, self._upstreams = folder, {}, list(upstreams)
        self.dir.mkdir(parents=True, exist_ok=True)
        self.rows = Rows(folder / "rows.jsonl")

    def upstreams(self, name):
        return self._upstreams if name == "base" else []


@pytest.fixture
def clip(monkeypatch) -> ColorClip:
    """The study's CLIP, which sees the mean colour of a crop; other names are far from red and green."""
    for place in range(200):
        monkeypatch.setitem(COLORS, f"name{place}", (0.0, 0.0, 1.0))
    model = ColorClip()
    loaded = SimpleNamespace(model=model, tokenizer=color_tokens, info=None)
    monkeypatch.setattr(stored_boxes, "open_clip_source", lambda *args, **options: ("colour", loaded))
    return model


@pytest.fixture
def squares(tmp_path) -> DetectionData:
    """Thirty images with a red and a green square each."""
    generator, records = np.random.default_rng(0), []
    for number in range(1, 31):
        pixels, boxes = np.full((SIDE, SIDE, 3), (0, 0, 200), dtype=np.uint8), []
        for place, color in enumerate(((250, 0, 0), (0, 250, 0))):
            x, y = 2 + 24 * place, int(generator.integers(2, 24))
            pixels[y : y + 20, x : x + 20] = color
            boxes.append([x, y, x + 20, y + 20])
        path = tmp_path / "images" / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(path)
        boxes = np.array(boxes, dtype=np.float32)
        records.append(
            ImageRecord(number, path, SIDE, SIDE, boxes, np.array([0, 1]), np.zeros(2, dtype=bool))
        )
    return DetectionData("squares", ("red", "green"), (3, 8), tuple(records))


def _write(path, content):
    path.write_text(json.dumps(content))
    return path


def _params(**values) -> OtherDetectorsParams:
    return OtherDetectorsParams.model_validate({"profile": "t", "clip": CLIP, "c": [0.3, 0.5]} | values)


# --- results files ------------------------------------------------------------------------------------------------


def test_several_labels_on_a_box_stay_detections_of_their_own(squares, tmp_path):
    entries = yolo_like(squares)
    results = read_results([_write(tmp_path / "yolo.json", entries)], ClassList(("red", "green"), (3, 8)))
    found = detections_of(results, squares, ("green",))
    wanted = [entry for entry in entries if entry["category_id"] == 8]
    assert len(found) == len(wanted) > 40 and set(found.labels) == {0} and found.class_names == ("green",)
    own = [entries[row] for row in found.proposals.tolist()]  # the place in the file
    assert all(entry["category_id"] == 8 for entry in own)
    np.testing.assert_allclose(found.scores, [entry["score"] for entry in own], atol=1e-6)
    np.testing.assert_allclose(found.class_scores, np.stack([found.scores, 1 - found.scores], 1), atol=1e-6)
    both = detections_of(results, squares, ("red", "green"))
    keys = [(i, *box) for i, box in zip(both.image_ids.tolist(), both.boxes.tolist(), strict=True)]
    assert len(set(keys)) < len(keys)  # one box under two labels


def test_the_queries_of_a_detr_are_all_read_and_the_best_hundred_count(squares, tmp_path, clip):
    entries = detr_like(squares, queries=300)
    assert len(entries) == 300 * len(squares)
    write_coco(tmp_path / "truth.json", squares, images_dir=tmp_path / "images")
    path = str(_write(tmp_path / "detr.json", entries))
    where = {"annotations": str(tmp_path / "truth.json"), "images": str(tmp_path / "images")}
    params = _params(results_files=[{"name": "DETR", "results": path, "score_thresh": 0.0} | where])
    run = _Run(tmp_path / "run")
    rows = other_detectors.study_other_detectors(params, run)
    (scores,) = [row for row in rows if row["part"] == "scores"]
    assert scores["per_image"] == 100 and max(clip.batch_sizes) > 1


def test_an_image_that_the_annotations_lack_is_named(squares, tmp_path):
    path = _write(
        tmp_path / "r.json", [{"image_id": 77, "category_id": 3, "bbox": [0, 0, 9, 9], "score": 0.5}]
    )
    with pytest.raises(DataError, match=r"r\.json: image 77 is none of the 30 images of squares"):
        detections_of(read_results([path], ClassList(("red", "green"), (3, 8))), squares, ("red",))


def test_a_colour_blind_detector_gains_from_a_clip_that_sees_colour(squares, tmp_path, clip):
    """Wrong and right label on each box, the wrong one a little higher: only the pictures can tell."""
    entries = []
    for record in squares.images:
        for label, box in zip(record.labels, record.boxes.tolist(), strict=True):
            bbox = [box[0], box[1], box[2] - box[0], box[3] - box[1]]
            for own, score in ((3, 0.5), (8, 0.45)) if label else ((8, 0.5), (3, 0.45)):
                entries.append(
                    {"image_id": record.image_id, "category_id": own, "bbox": bbox, "score": score}
                )
    path = str(_write(tmp_path / "blind.json", entries))
    write_coco(tmp_path / "truth.json", squares, images_dir=tmp_path / "images")
    where = {"annotations": str(tmp_path / "truth.json"), "images": str(tmp_path / "images")}
    files = [{"name": "blind", "results": path, "split": split} | where for split in (2, 1)]
    params, run = _params(results_files=files, resamples=50), _Run(tmp_path / "run")
    rows = other_detectors.study_other_detectors(params, run)
    gained = [row for row in rows if row["part"] == "file"]
    assert {row["way"] for row in gained} == {"paper", "selected", "geometric"}
    assert all(row["split"] == 1 and row["num_images"] == 30 for row in gained)
    for row in gained:
        assert row["before"] < 60 and row["after"] == pytest.approx(100)
        assert row["low"] <= row["after"] - row["before"] + 1e-9 and row["low"] > 20 and row["high"] <= 100
    alone = {row["nAP50"] for row in rows if row["part"] == "re-scored" and row["c"] == 1.0}
    assert len(alone) == 1 and alone == {gained[0]["before"]}
    encoded = sum(clip.batch_sizes)
    assert encoded == 2 * 60  # each box once, for two labels, on either split
    again = _Run(tmp_path / "run")
    assert other_detectors.study_other_detectors(params, again) == rows and sum(clip.batch_sizes) == encoded
    table = other_detectors_files_table([_record(rows)])
    assert list(table.data["way"]) == ["paper", "selected", "geometric"] and (table.data["gain"] > 40).all()
    assert "n = 1" in table.caption and "bootstrap over the images" in table.caption
    assert other_detectors_table([_record(rows)]).data.empty  # a file is no few-shot cell


def test_without_a_file_to_choose_on_there_is_the_papers_c_alone_and_crowds_have_no_interval(
    squares, tmp_path, clip
):
    crowd = squares.images[0]
    flags = np.array([False, True])
    record = ImageRecord(1, crowd.path, SIDE, SIDE, crowd.boxes, crowd.labels, flags)
    data = DetectionData("squares", ("red", "green"), (3, 8), (record, *squares.images[1:]))
    write_coco(tmp_path / "truth.json", data, images_dir=tmp_path / "images")
    path = str(_write(tmp_path / "yolo.json", yolo_like(squares)))
    where = {"annotations": str(tmp_path / "truth.json"), "images": str(tmp_path / "images")}
    params = _params(results_files=[{"name": "YOLO", "results": path} | where])
    rows = other_detectors.study_other_detectors(params, _Run(tmp_path / "run"))
    (row,) = [row for row in rows if row["part"] == "file"]
    assert row["way"] == "paper" and row["c"] == 0.7 and row["low"] is None is row["high"]
    shown = other_detectors_files_table([_record(rows)]).display["gain [bootstrap over images]"]
    assert shown.iloc[0].endswith("no interval")


def test_the_files_of_the_smoke_profile_are_what_the_maker_makes(smoke_world):
    for name, content in smoke_contents(open_benchmark(smoke_world, split=1).test).items():
        assert (FOLDER / name).read_text() == content, f"python -m tests.made_results writes {name} anew"


# --- one-stage detectors ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def smoke_world(tmp_path_factory) -> PictogramData:
    values = yaml.safe_load((FOLDER / "shared.yaml").read_text())["data"]
    return PictogramData.model_validate(values | {"root": str(tmp_path_factory.mktemp("data"))})


@pytest.fixture
def one_stage(smoke_world, tmp_path, monkeypatch, clip):
    """Parameters of a small study, a maker of runs, and the base model they start from."""
    names = (*open_benchmark(smoke_world, split=1).base_names, *open_benchmark(smoke_world).novel_names)
    for name in names:
        monkeypatch.setitem(COLORS, name, (0.5, 0.5, 0.1))
    detector = DetectorParams(stages=(1, 1, 1), stem_width=8, res2_width=8, res5_blocks=1, res5_width=16)
    base = BaseTrainingParams(profile="t", data=smoke_world, detector=detector)
    torch.manual_seed(0)
    model = build_detector(detector, len(names) - 5)
    save_detector(tmp_path / "base" / "model.pth", model, names[:-5])
    record = {"params": base.model_dump(mode="json")}
    upstream = SimpleNamespace(run_id="base", dir=tmp_path / "base", record=record)
    short = {"batch_size": 4, "lr": 0.05, "precision": "fp32"}
    solvers = {"base_solvers": dict.fromkeys(("retinanet", "fcos"), short | {"iterations": 6})}
    solvers |= {"solver": short | {"iterations": 4}}
    params = _params(
        data=smoke_world,
        base=["b.yaml"],
        shots=[2],
        seeds=[0, 1],
        select_seeds=[0, 1],
        one_stage={"width": 32} | solvers,
        score_threshs={"retinanet": 0.005, "fcos": 0.05},
    )
    return params, lambda name: _Run(tmp_path / name, [upstream])


def test_a_killed_study_goes_on_and_gives_the_rows_of_an_undisturbed_one(one_stage, monkeypatch):
    params, make = one_stage
    whole = other_detectors.study_other_detectors(params, make("whole"))
    parts = [row["part"] for row in whole]
    points = 2 * 4  # fusions, and c of 0.3, 0.5, the paper's 0.7 and 1
    assert parts.count("base") == 2 and parts.count("scores") == 4 and parts.count("re-scored") == 4 * points
    assert all(0 < row["per_image"] <= 100 for row in whole if row["part"] == "scores")
    tune, calls = other_detectors.train_few_shot, []

    def killed(*args, **options):
        calls.append(options["desc"])
        if len(calls) == 2:
            raise KeyboardInterrupt
        return tune(*args, **options)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(other_detectors, "train_few_shot", killed)
        other_detectors.study_other_detectors(params, make("killed"))
    before = len(make("killed").rows)
    assert 0 < before < len(whole)

    def trained_again(model, *args, **options):
        assert "retinanet" not in options["desc"], "its base training was finished"
        return train(model, *args, **options)

    train = other_detectors.train_base
    monkeypatch.setattr(other_detectors, "train_base", trained_again)
    assert other_detectors.study_other_detectors(params, make("killed")) == whole


@pytest.mark.parametrize(
    "other",
    [
        {"clip": {"run": "other.yaml"}},
        {"cm_clip": {"preprocess": "released"}},
        {"cm_clip": {"score_thresh": 0.5}},
    ],
)
def test_cosines_of_another_clip_of_other_crops_or_of_fewer_boxes_are_refused(one_stage, other):
    params, make = one_stage
    rescoring = stored_boxes.Rescoring(params, make("other"))
    values = {"profile": "t", "base": "x.yaml", "clip": params.clip, "cm_clip": params.cm_clip} | other
    tuned = FineTuningParams.model_validate(values)
    cell = SimpleNamespace(tuned=tuned, run_id="tuned", key={"split": 1, "shots": 2, "seed": 0})
    with pytest.raises(ParamsError, match="tuned has stored cosines of another CLIP"):
        other_detectors._two_stage_cell(rescoring, cell)


# --- the choice, the tables, the figure ----------------------------------------------------------------------------


def _record(rows: list[dict], **params) -> dict:
    values = {"select_split": 2, "cm_clip": {"c": 0.7}} | params
    return {
        "run_id": "o-1", "notebook": "35_other_detectors", "params": values, "rows": rows, "environment": {},
    }  # fmt: skip


def _rows() -> list[dict]:
    """FCOS: 0.3 is best on split 2, 0.5 on split 1; the seeds of split 1 gain 10 and 14 at 0.3, 3 at the paper's c."""
    level = {(2, 0.3): 50.0, (2, 0.5): 45.0, (2, 0.7): 40.0, (2, 1.0): 30.0}
    level |= {(1, 0.3): 32.0, (1, 0.5): 36.0, (1, 0.7): 23.0, (1, 1.0): 20.0}
    rows = [{"part": "base", "detector": "fcos", "split": 1, "bAP": 60.0, "bAP50": 88.0, "bAP75": 70.0}]
    for (split, c), value in level.items():
        for shots in (5, 10):
            for seed in (0, 1):
                spread = 2.0 * (2 * seed - 1) if (split, c) == (1, 0.3) else 0.0
                key = {"detector": "fcos", "split": split, "shots": shots, "seed": seed}
                nap50 = value + spread + shots
                for fusion, shift in (("arithmetic", 0.0), ("geometric", -1.0 if c < 1 else 0.0)):
                    row = {"part": "re-scored", "fusion": fusion, "c": c, "nAP": nap50 / 2, "nAP75": None}
                    rows.append(row | key | {"nAP50": nap50 + shift})
                if c == 1.0:
                    facts = {"per_image": 4.0, "score_median": 0.3, "score_spread": 0.1}
                    facts |= {"probability_median": 0.9, "probability_spread": 0.7, "score_thresh": 0.2}
                    rows.append({"part": "scores"} | key | facts | {"uncut": {"nAP50": nap50 + 1.0}})
    return rows


def test_c_is_chosen_on_the_other_split_and_a_tie_trusts_the_detector():
    rows = _rows()
    assert choose_c(rows, detector="fcos", select_split=2) == 0.3
    assert choose_c(rows, detector="fcos", select_split=1) == 0.5
    assert choose_c(rows, detector="retinanet", select_split=2) is None
    tied = [row | {"nAP50": 40.0} for row in rows if row["part"] == "re-scored"]
    assert choose_c(tied, detector="fcos", select_split=2) == 1.0
    chosen = choices(_record(rows)).set_index("way")["c"]
    assert dict(chosen) == {"paper": 0.7, "selected": 0.3, "geometric": 0.3, "oracle": 0.5}


def test_gains_are_paired_by_seed_and_averaged_over_k_within_a_seed():
    cells = gains([_record(_rows())]).set_index(["shots", "way"])
    paper, chosen = cells.loc[(5, "paper")], cells.loc[(5, "selected")]
    assert (paper["gain"], paper["n"], paper["up"], paper["without"]) == (3.0, 2, 2, 25.0)
    assert paper["gain_half_width"] == pytest.approx(0.0)
    assert chosen["gain"] == pytest.approx(12.0) and chosen["mean"] == pytest.approx(37.0)
    assert chosen["gain_half_width"] == pytest.approx(
        12.7062 * 2.0, rel=1e-4
    )  # t of 1 degree, s / sqrt(2) = 2
    assert cells.loc[("all", "selected"), "gain"] == pytest.approx(12.0)
    assert cells.loc[("all", "oracle"), "gain"] == pytest.approx(16.0)
    assert cells.loc[(10, "geometric"), "gain"] == pytest.approx(11.0)
    assert set(cells["split"]) == {1}  # where c is chosen nothing is reported


def test_tables_and_figure_are_shown_where_there_are_rows():
    record = _record(_rows())
    shown = other_detectors_table([record]).display
    assert list(shown["K"]) == [5, 10, "mean over K"] and set(shown["detector"]) == {"FCOS"}
    assert shown["c chosen"].iloc[0] == "c = 0.3: +12.0 ± 25.4 (2/2 up)"
    assert shown["TEST ORACLE"].iloc[0].startswith("c = 0.5: +16.0")
    scores = other_detectors_scores_table([record])
    line = scores.data[(scores.data["split"] == 1) & (scores.data["shots"] == 5)].iloc[0]
    assert (line["bAP50"], line["uncut"], line["cut_cost"], line["n"]) == (88.0, 26.0, -1.0, 2)
    assert pd.isna(scores.data.loc[scores.data["split"] == 2, "bAP50"]).all()
    names = [table.name for table in tables_of([record])]
    assert {"other_detectors", "other_detectors_scores"} <= set(
        names
    ) and "other_detectors_files" not in names
    assert "other_detectors" in figures_of([record], tables_of([record]))
    drawing = other_detectors_figure([record])
    assert "split 2" in drawing.caption and "SENSITIVITY" in drawing.caption
    assert len(drawing.figure.axes) == 2  # the gains, and one curve


def test_bad_parameters_are_refused_with_their_names():
    file = {"name": "yolo", "results": "r.json"}
    for values, message in [
        ({"results_files": [file, file]}, "'yolo' stands twice with one split"),
        ({"results_files": [file | {"name": "fcos"}]}, "'fcos' is the name of a detector trained here"),
        ({"results_files": [file | {"images": "x"}]}, "annotations and images go together"),
        ({"base": ["b.yaml"], "shots": [4]}, r"shots is \[4\], but data.shots"),
        ({"base": ["b.yaml"], "seeds": [10]}, "seeds has 10, but the data has 0 to 9"),
        ({"detectors": ["yolo"]}, "retinanet"),
        ({"score_threshs": {"fcos": 0.2}}, "score_threshs has none for retinanet"),
    ]:
        with pytest.raises(ValidationError, match=message):
            _params(**values)
    params = _params(results_files=[file | {"annotations": "a.json", "images": "i"}])
    assert params.user_files() == ("r.json",) and params.data_files() == ("a.json",)
