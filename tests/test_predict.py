"""Predictions on single images: formats and orientation, results files, published files, what is refused, pictures."""

import contextlib
import io
import json
import os
import subprocess
import sys
from types import SimpleNamespace
from unittest.mock import patch

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO

from risf_core import demo, predict, prediction_run
from risf_core.clip_models import new_clip
from risf_core.cm_clip.__main__ import main as rescore_main
from risf_core.data.benchmark import open_benchmark
from risf_core.data.dataset import DetectionData, ImageRecord
from risf_core.data.loader import read_image
from risf_core.demo_weights import CLIP, load_half_clip, read_facts, save_half_clip
from risf_core.detecting import detect_images
from risf_core.detections import Detections
from risf_core.detector.checkpoints import save_checkpoint, save_detector
from risf_core.errors import DataError, ParamsError
from risf_core.fine_tuning import fine_tuning_grid
from risf_core.params import CmClipParams, PredictParams, TinyClipParams
from risf_core.prediction import Predictor, cm_clip_of, common_folder, counting, open_detector_file
from risf_core.report.prediction_pictures import detections_table, prediction_figure

from .detector.conftest import TINY, square_data, tiny_detector, tiny_params  # noqa: F401  fixtures
from .test_fine_tuning import _params, _run, base  # noqa: F401  a fixture

NAMES = ["red", "green", "blue"]


@pytest.fixture
def checkpoint(tmp_path, tiny_detector):  # noqa: F811
    path = tmp_path / "model.pth"
    save_detector(path, tiny_detector, NAMES)
    return path


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A small CLIP with random weights that knows the names."""
    folder = tmp_path_factory.mktemp("clip")
    model, _ = new_clip("risf-tiny-resnet", seed=1)
    save_checkpoint(folder / "clip.pt", dict(model.state_dict()))
    texts = [text for name in (*NAMES, "background", "cow") for text in (name, f"a photo of {name}")]
    save_half_clip(folder / "clip.pt", folder / CLIP, tower="risf-tiny-resnet", captions=texts)
    return folder / CLIP


@pytest.fixture
def images(tmp_path):
    """One picture of 96 x 64 pixels, not symmetric, stored in every way."""
    folder = tmp_path / "images"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 80, (64, 96, 3)).astype(np.uint8)
    pixels[10:34, 60:84, 1] = 250
    image = Image.fromarray(pixels)
    image.save(folder / "rgb.png")
    image.convert("L").save(folder / "grey.tif")
    image.convert("P").save(folder / "palette.gif")
    image.convert("CMYK").save(folder / "cmyk.jpg", quality=95)
    Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257).save(folder / "deep.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by 90 degrees clockwise
    image.rotate(90, expand=True).save(folder / "turned.png", exif=exif)
    return folder


def run(*words) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of the command line."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = predict.main([str(word) for word in words])
    return code, out.getvalue(), err.getvalue()


# ------------------------------------------------------------------------------------------------- the command line


def test_every_format_is_predicted_as_what_the_user_sees(images, checkpoint, tmp_path):
    code, said, _ = run(
        images, "--checkpoint", checkpoint, "--output", tmp_path / "out", "--score-thresh", 0.01
    )
    assert code == 0 and "6 images" in said
    index = json.loads((tmp_path / "out" / "images.json").read_text())
    by_name = {entry["file_name"]: entry for entry in index["images"]}
    assert {(entry["width"], entry["height"]) for entry in index["images"]} == {(96, 64)}
    rows = json.loads((tmp_path / "out" / "detections.json").read_text())
    own = {name: [r for r in rows if r["image_id"] == entry["id"]] for name, entry in by_name.items()}
    strip = lambda found: [{key: value for key, value in row.items() if key != "image_id"} for row in found]  # noqa: E731
    # the turned file shows the same pixels upright, so its boxes are those of the upright one
    assert len(own["rgb.png"]) > 0 and strip(own["turned.png"]) == strip(own["rgb.png"])
    assert strip(own["deep.png"]) == strip(own["grey.tif"])
    assert len(list((tmp_path / "out" / "pictures").glob("*.png"))) == 6
    assert not (tmp_path / "out" / "rescored.json").exists()


def test_results_are_read_by_pycocotools_and_hold_both_scores(images, checkpoint, clip, tmp_path):
    words = ["--cm-clip", clip, "--rescored-classes", "green", "blue", "--c", 0.5, "--score-thresh", 0.01]
    code, _, _ = run(images / "*.png", "--checkpoint", checkpoint, *words, "--output", tmp_path / "out")
    assert code == 0
    with contextlib.redirect_stdout(io.StringIO()):
        index = COCO(tmp_path / "out" / "images.json")
        before, after = (
            index.loadRes(str(tmp_path / "out" / n)) for n in ("detections.json", "rescored.json")
        )
    assert [category["name"] for category in index.loadCats(index.getCatIds())] == NAMES
    assert len(index.imgs) == 3 and len(before.anns) == len(after.anns) > 0
    key = lambda row: (row["image_id"], row["category_id"], *row["bbox"])  # noqa: E731
    old, new = ({key(row): row["score"] for row in part.anns.values()} for part in (before, after))
    assert old.keys() == new.keys()
    changed = {category for (_, category, *_), _ in [(k, v) for k, v in new.items() if v != old[k]]}
    assert changed == {2, 3}  # red is not re-scored


def test_results_go_on_to_the_re_scoring_of_files(images, checkpoint, clip, tmp_path):
    """`python -m risf_core.cm_clip` on detections.json and images.json gives the scores of rescored.json."""
    whole = clip.with_name("clip.pt")
    words = ["--checkpoint", checkpoint, "--cm-clip", f"risf-tiny-resnet:{whole}", "--score-thresh", 0.01]
    out = tmp_path / "out"
    assert run(images / "*.png", *words, "--output", out)[0] == 0
    root = json.loads((out / "images.json").read_text())["info"]["images_dir"]
    words = ["--images", root, "--annotations", out / "images.json", "--output", out / "again.json"]
    words += ["--model", "risf-tiny-resnet", "--pretrained", whole, "--score-thresh", 0.01]
    with contextlib.redirect_stdout(io.StringIO()):
        assert rescore_main([str(word) for word in (out / "detections.json", *words)]) == 0
    first, second = (json.loads((out / name).read_text()) for name in ("rescored.json", "again.json"))
    key = lambda row: (row["image_id"], row["category_id"], *row["bbox"])  # noqa: E731
    assert len(first) == len(second) > 0
    for one, other in zip(sorted(first, key=key), sorted(second, key=key), strict=True):
        assert key(one) == key(other) and one["score"] == pytest.approx(other["score"], abs=1e-5)


def test_scores_are_those_of_the_blend_done_by_hand(images, checkpoint, clip):
    """Predictor against CMCLIP's own probabilities: c * s + (1 - c) * p of the label."""
    words = [str(images / "rgb.png"), "--checkpoint", str(checkpoint), "--cm-clip", str(clip), "--c", "0.6"]
    arguments = predict.parse_arguments([*words, "--score-thresh", "0.01", "--label-space", "all+background"])
    predictor = predict.open_predictor(arguments)
    assert predictor.clip.label_space == (*NAMES, "background")
    found = predictor.predict(images / "rgb.png", 5)
    probs = predictor.clip.probabilities(read_image(images / "rgb.png"), torch.from_numpy(found.before.boxes))
    expected = 0.6 * found.before.scores + 0.4 * probs[range(len(probs)), found.before.labels].numpy()
    np.testing.assert_allclose(np.sort(found.after.scores), np.sort(expected), atol=1e-6)
    assert set(found.after.image_ids.tolist()) == {5} and found.pixels.shape == (64, 96, 3)


CHANGES = {
    "c": 0.3,
    "temperature": 10.0,
    "templates": ["{}"],
    "score_thresh": 0.06,
    "preprocess": "released",
    "resize": "bicubic",
    "crop": "longest",
    "path": "dense",
    "precision": "bf16",
    "dense_scale": 3.0,
    "dense_stages": 1,
    "memory_budget_mb": 50.0,
    "share": "object",
    "budget": 1,
    "label_spaces": ["novel+base+background"],
    "fusion": "geometric",
}
NEEDS = {
    "crop": {"resize": "bicubic"},
    "dense_scale": {"path": "dense"},
    "dense_stages": {"path": "dense"},
    "budget": {"share": "none"},
}


@pytest.mark.parametrize("name", CmClipParams.model_fields)
def test_every_option_of_the_re_scoring_has_an_effect(name, images, checkpoint, clip):
    """On made detections whose boxes overlap, two of three classes re-scored, each option changes the scores."""
    image = images / "rgb.png"
    record = ImageRecord(1, image, 64, 96, np.empty((0, 4), np.float32), np.empty(0, int), np.empty(0, bool))
    data = DetectionData("one", tuple(NAMES), (1, 2, 3), (record,))
    boxes = np.array([[5, 5, 60, 50], [6, 8, 60, 54], [40, 20, 90, 60], [58, 8, 88, 36]], np.float32)
    columns = np.array([0.9, 0.5, 0.4, 0.055], np.float32), np.array([0, 1, 0, 1]), np.zeros((4, 4))
    found = Detections(np.ones(4, np.int64), boxes, *columns, np.arange(4), tuple(NAMES))
    loaded = load_half_clip(clip)
    shake = torch.Generator().manual_seed(0)
    with torch.no_grad():  # as it starts, it sees nearly the same in every picture
        for parameter in loaded.model.visual.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=shake)

    def scores(options):
        options = CmClipParams(**({"label_spaces": ["novel+background"]} | options))
        built = cm_clip_of(loaded, NAMES[:2], options, class_names=NAMES)
        return built, counting(found, data, built, options, score_thresh=0.01)[1].scores

    without, change = NEEDS.get(name, {}), {name: CHANGES[name]}
    (first, before), (second, after) = scores(without), scores(without | change)
    if name == "memory_budget_mb":  # what it sets is the batch; scores do not depend on it
        assert first.batch_size > second.batch_size >= 1
        np.testing.assert_allclose(before, after, atol=1e-5)
    else:
        assert np.abs(before - after).max() > 1e-4


def test_label_spaces_that_a_prediction_cannot_have_are_refused(clip):
    loaded = load_half_clip(clip)
    with pytest.raises(ParamsError, match="Expected one: a prediction has one"):
        cm_clip_of(loaded, NAMES, CmClipParams(), class_names=NAMES)
    with pytest.raises(ParamsError, match="it names no base class"):
        cm_clip_of(loaded, NAMES, CmClipParams(label_spaces=["novel+base+background"]), class_names=NAMES)
    with pytest.raises(ValueError, match="label_spaces"):
        PredictParams(
            profile="t", checkpoint={"path": "x"}, cm_clip={"label_spaces": CmClipParams().label_spaces}
        )


def test_an_image_without_detections_is_re_scored_to_none(images, checkpoint, clip):
    loaded = open_detector_file(checkpoint)
    options = CmClipParams(label_spaces=["novel+background"])
    predictor = Predictor(loaded, cm_clip_of(load_half_clip(clip), NAMES, options), options)
    empty = {
        "boxes": torch.empty(0, 4),
        "scores": torch.empty(0),
        "labels": torch.empty(0, dtype=torch.int64),
    }
    empty |= {"class_scores": torch.empty(0, 4), "proposal": torch.empty(0, dtype=torch.int64)}
    with patch.object(loaded.detector, "forward", lambda batch: [empty]):
        found = predictor.predict(images / "rgb.png")
    assert len(found.before) == len(found.after) == 0


def test_broken_and_missing_inputs_are_named_and_the_others_go_on(images, checkpoint, tmp_path):
    whole = (images / "cmyk.jpg").read_bytes()
    (images / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (images / "notes.txt").write_text("no image")
    words = [images, images / "notes.txt", images / "no*.png", "--checkpoint", checkpoint]
    code, said, complaints = run(*words, "--output", tmp_path / "out")
    assert code == 1
    assert "1 files of the folders are no images by their names" in said and "6 images" in said
    lines = complaints.strip().splitlines()
    assert len(lines) == 4 and lines[-1] == "3 of 9 inputs were left out."
    for name in (
        "cut.jpg cannot be decoded",
        "notes.txt cannot be decoded",
        "no*.png: there is no such file",
    ):
        assert sum(name in line for line in lines) == 1


def test_an_image_comes_once_and_pictures_of_equal_names_do_not_collide(images, checkpoint, tmp_path):
    (images / "below").mkdir()
    (images / "below" / "rgb.png").write_bytes((images / "rgb.png").read_bytes())
    words = [images / "rgb.png", images, "--checkpoint", checkpoint, "--output", images / "out"]
    for again in ([], ["--overwrite"]):  # pictures of the first time are no images of the second
        assert run(*words, *again)[0] == 0
        index = json.loads((images / "out" / "images.json").read_text())
        names = [entry["file_name"] for entry in index["images"]]
        assert names[0] == "rgb.png" and len(names) == len(set(names)) == 7 and "below/rgb.png" in names
        assert index["info"]["images_dir"] == str(images)
        assert len(list((images / "out" / "pictures").iterdir())) == 7


def test_pictures_take_no_name_that_another_has_taken(images, checkpoint, tmp_path):
    content = (images / "rgb.png").read_bytes()
    places = ["a-3.png", "a.png", "below/a.png", "A.png", "below/a-3.png", f"{'é' * 120}.png"]
    for place in places:
        (tmp_path / "own" / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "own" / place).write_bytes(content)
    words = [tmp_path / "own" / place for place in places]
    assert run(*words, "--checkpoint", checkpoint, "--output", tmp_path / "out")[0] == 0
    index = json.loads((tmp_path / "out" / "images.json").read_text())
    pictures = {entry["picture"] for entry in index["images"]}
    assert len({name.lower() for name in pictures}) == len(places)
    assert pictures == {f"pictures/{path.name}" for path in (tmp_path / "out" / "pictures").iterdir()}


def test_results_of_another_run_are_refused_or_replaced_as_a_whole(images, checkpoint, clip, tmp_path):
    out, words = tmp_path / "out", ["--checkpoint", checkpoint, "--output", tmp_path / "out"]
    assert run(images / "rgb.png", images / "grey.tif", *words, "--cm-clip", clip)[0] == 0
    for name in ("own.png", "cmyk.png"):  # the user's
        (out / "pictures" / name).touch()
    state = {path: path.read_bytes() for path in out.rglob("*.*")}
    code, _, complaint = run(images / "cmyk.jpg", *words)
    assert (
        code == 2 and "holds the results of another run (images.json, detections.json, rescored" in complaint
    )
    (tmp_path / "broken.png").write_bytes(b"nothing")
    code, _, complaints = run(tmp_path / "broken.png", *words, "--overwrite")
    assert code == 2 and "1 of 1 inputs were left out" in complaints
    assert state == {path: path.read_bytes() for path in out.rglob("*.*")}
    assert run(images / "cmyk.jpg", *words, "--overwrite")[0] == 0
    left = {path.name for path in out.rglob("*.*")}
    assert left == {"images.json", "detections.json", "cmyk-1.png", "own.png", "cmyk.png"}
    assert (out / "pictures" / "cmyk.png").stat().st_size == 0


def test_images_beside_the_results_are_searched(images, checkpoint):
    """The output may be the images' own folder: only the pictures drawn are left out."""
    code, said, _ = run(images, "--checkpoint", checkpoint, "--output", images)
    assert code == 0 and "6 images" in said


@pytest.mark.parametrize("place", ["file", "file/below", "/proc/x"])
def test_an_output_that_cannot_be_written_is_one_line(place, images, checkpoint, tmp_path):
    (tmp_path / "file").touch()
    output = tmp_path / place
    code, _, complaint = run(images / "rgb.png", "--checkpoint", checkpoint, "--output", output)
    assert (
        code == 2 and complaint.startswith(f"ParamsError: --output {output}") and complaint.count("\n") == 1
    )


def test_a_name_that_is_no_text_is_left_out(images, checkpoint, tmp_path):
    try:
        (images / "rgb.png").rename(images / os.fsdecode(b"\xff.png"))
    except OSError:
        pytest.skip("the file system takes no such name")
    code, said, complaints = run(images, "--checkpoint", checkpoint, "--output", tmp_path / "out")
    assert code == 1 and "5 images" in said and r"\udcff.png': the name is not UTF-8" in complaints


def test_a_run_that_is_stopped_keeps_what_is_done(images, checkpoint, tmp_path):
    own, predictor = Predictor.predict, []

    def stop_at_the_third(*given):
        predictor.append(given)
        if len(predictor) == 3:
            raise KeyboardInterrupt
        return own(*given)

    with patch.object(Predictor, "predict", stop_at_the_third):
        code, said, _ = run(images, "--checkpoint", checkpoint, "--output", tmp_path / "out")
    assert code == 130 and "2 images" in said
    assert len(json.loads((tmp_path / "out" / "images.json").read_text())["images"]) == 2


def test_a_file_of_others_needs_its_detector_and_classes(images, tiny_detector, tmp_path):  # noqa: F811
    path, words = (
        tmp_path / "model_final.pth",
        (images / "rgb.png", "--checkpoint", tmp_path / "model_final.pth"),
    )
    save_checkpoint(path, {"model": tiny_detector.state_dict(), "iteration": 7})
    (tmp_path / "detector.yaml").write_text(json.dumps({"detector": json.loads(json.dumps(TINY))}))
    (tmp_path / "classes.txt").write_text("red\ngreen\n\nblue\n")
    given = ["--detector", tmp_path / "detector.yaml", "--classes", tmp_path / "classes.txt"]
    assert "Give its parameters: --detector FILE" in run(*words)[2]
    assert "Name those of its head" in run(*words, *given[:2])[2]
    code, _, complaints = run(*words, *given, "--output", tmp_path / "out")
    assert code == 0, complaints
    categories = [{"id": 7 * number, "name": name} for number, name in enumerate(NAMES, start=1)]
    (tmp_path / "classes.json").write_text(json.dumps({"categories": categories}))
    given[3] = tmp_path / "classes.json"
    assert run(*words, *given, "--output", tmp_path / "ids")[0] == 0
    one, two = (json.loads((tmp_path / name / "detections.json").read_text()) for name in ("out", "ids"))
    assert [row["category_id"] for row in two] == [7 * row["category_id"] for row in one] != []
    given[3] = tmp_path / "classes.txt"
    (tmp_path / "classes.txt").write_text("red\ngreen\n")
    code, _, complaints = run(*words, *given)
    assert code == 2 and "its head has 3 classes and background, but 2 classes are named" in complaints


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--checkpoint", "nowhere.pth"], "is no file and no run of results/"),
        (["--cm-clip", "nothing"], "is no file and no run of 12_tiny_clip"),
        (["--cm-clip", "risf-tiny-resnett:x"], "open_clip has no model"),
        (["--cm-clip", "CLIP", "--rescored-classes", "gren"], "Did you mean 'green'"),
        (["--cm-clip", "CLIP", "--label-space", "novel"], "expected rescored+background or all+background"),
        (["--cm-clip", "CLIP", "--label-space", "SPACE"], "'a photo of zebra' has 'zebra"),
        (["--cm-clip", "CLIP", "--label-space", "LACKS"], "green of the classes to re-score stand not in"),
        (["--cm-clip", "WHOLE"], "the file does not say its model. Write MODEL:"),
    ],
)
def test_what_is_refused_names_what_to_do(words, complaint, images, checkpoint, clip, tmp_path):
    (tmp_path / "space.txt").write_text("red\ngreen\nblue\nzebra\nbackground\n")
    (tmp_path / "lacks.txt").write_text("red\ncow\nblue\nbackground\n")
    files = {
        "CLIP": str(clip),
        "WHOLE": str(clip.with_name("clip.pt")),
        "SPACE": str(tmp_path / "space.txt"),
        "LACKS": str(tmp_path / "lacks.txt"),
    }
    words = [files.get(word, word) for word in words]
    given = words if "--checkpoint" in words else ["--checkpoint", checkpoint, *words]
    code, _, said = run(images / "rgb.png", *given, "--output", tmp_path / "out")
    assert code == 2 and complaint in said and "Traceback" not in said
    assert not (tmp_path / "out").exists()


def test_no_image_and_bad_numbers_are_refused(images, checkpoint, capsys):
    assert "there is no image" in run(images / "*.bmp", "--checkpoint", checkpoint)[2]
    for wrong in (
        ["--c", "1.5"],
        ["--c", "abc"],
        ["--max-detections", "0"],
        ["--label-space", "all+background"],
    ):
        with pytest.raises(SystemExit):
            predict.main([str(images), "--checkpoint", str(checkpoint), *wrong])
    complaints = capsys.readouterr().err
    assert "--label-space belongs to --cm-clip" in complaints
    assert "argument --c: expected a number from 0 to 1, got 'abc'" in complaints


def test_a_run_names_its_detector(tmp_path, monkeypatch, tiny_detector):  # noqa: F811
    monkeypatch.setattr(predict, "project_root", lambda: tmp_path)
    folder = tmp_path / "results" / "mini" / "artifacts" / "fine_tuning-1"
    folder.mkdir(parents=True)
    with pytest.raises(ParamsError, match="keeps no detector"):
        predict.find_checkpoint("fine_tuning-1")
    for name in ("seed0-kshot-ce.pth", "seed1-kshot-ce.pth"):
        save_detector(folder / "weights" / name, tiny_detector, NAMES)
    with pytest.raises(ParamsError, match=r"keeps 2 detectors; name one: .*seed0-kshot-ce.pth, .*seed1"):
        predict.find_checkpoint("fine_tuning-1")
    (folder / "weights" / "seed1-kshot-ce.pth").unlink()
    assert predict.find_checkpoint("fine_tuning-1").name == "seed0-kshot-ce.pth"


def test_start_needs_no_torch():
    """A wrong argument is refused, and images are searched, before seconds of imports."""
    code = "import sys, risf_core.predict; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


# ------------------------------------------------------------------------------------------------------ the picture


def test_picture_marks_what_crosses_the_threshold(images, checkpoint):
    predictor = Predictor(open_detector_file(checkpoint), score_thresh=0.0)
    found = predictor.predict(images / "rgb.png")
    boxes = [[1, 1, 20, 20], [30, 5, 60, 40], [50, 10, 90, 60]]
    rows = [
        np.ones(3),
        np.array(boxes),
        np.array([0.8, 0.5, 0.2]),
        np.arange(3),
        np.zeros((3, 4)),
        np.arange(3),
    ]
    before = Detections(*rows, tuple(NAMES))
    after = before.with_scores(np.array([0.7, 0.1, 0.6]))
    drawing = prediction_figure(found.record, found.pixels, before, after, score_thresh=0.3)
    left, right = ({text.get_text() for text in ax.texts} for ax in drawing.figure.axes)
    assert left == {"red 0.80", "green 0.50"} and right == {"red 0.70 (-0.10)", "blue 0.60 (+0.40)"}
    labels = [text.get_text() for text in drawing.figure.legends[0].get_texts()]
    assert len(labels) == 3 and "2 of 3 detections" in drawing.caption
    table = detections_table(before, after)
    assert table["class"].tolist() == ["red", "blue", "green"]
    assert table["change"].tolist() == [-0.1, 0.4, -0.4] and table["detector"].tolist() == [0.8, 0.2, 0.5]
    empty = before.keep(np.zeros(3, dtype=bool))
    assert "0 of 0" in prediction_figure(found.record, found.pixels, empty).caption


def test_common_folder(tmp_path):
    paths = [tmp_path / "a" / "b" / "1.png", tmp_path / "a" / "2.png"]
    assert common_folder(paths) == tmp_path / "a" and common_folder(paths[:1]) == tmp_path / "a" / "b"


# ----------------------------------------------------------------------------------------------------- the notebook


@pytest.fixture(scope="module")
def notebook(base, tmp_path_factory):  # noqa: F811
    """A run that builds on a fine-tuning run without kept weights, on a tiny world, and a CLIP with random weights."""
    folder = tmp_path_factory.mktemp("tuned")
    tuned_params = _params(base, losses=["ce"])
    fine_tuning_grid(tuned_params, _run(base, folder))
    record = {"params": tuned_params.model_dump(mode="json")}
    tuned = SimpleNamespace(dir=folder, record=record, run_id="tuned")
    clip_params = TinyClipParams(profile="t", data=base.data)
    clip_dir = tmp_path_factory.mktemp("tiny_clip")
    save_checkpoint(clip_dir / "clip.pt", dict(new_clip(clip_params.tower, seed=0)[0].state_dict()))
    record = {"params": clip_params.model_dump(mode="json")}
    clip_run = SimpleNamespace(dir=clip_dir, record=record, run_id="tiny_clip")
    runs = {"tuned.yaml": tuned, "clip.yaml": clip_run, "x.yaml": base}
    own = SimpleNamespace(
        upstream=lambda ref: runs[ref.params],
        dir=tmp_path_factory.mktemp("run"),
        device="cpu",
        environment={},
    )
    params = PredictParams(
        profile="t",
        data=base.data,
        checkpoint={"run": "tuned.yaml"},
        clip={"run": "clip.yaml"},
        images=[3, str(base.dir / "own.png")],
        demo={"num_images": 16, "resamples": 20},
    )
    Image.new("RGB", (50, 40), (200, 30, 30)).save(base.dir / "own.png")
    return params, own, tuned


def test_a_cell_trained_again_is_the_one_of_the_run(notebook, caplog):
    params, own, tuned = notebook
    path = prediction_run.cell_weights(params.checkpoint, own)
    assert path == own.dir / "detector.pth" and "trained again" not in caplog.text
    file = tuned.dir / "detections" / "seed0-kshot-ce.npz"
    stored = Detections.load(file)
    stored.with_scores(stored.scores * np.float32(0.999)).save(file)
    other = SimpleNamespace(upstream=own.upstream, dir=tuned.dir, device="cpu", environment={})
    prediction_run.cell_weights(params.checkpoint, other)
    stored.save(file)
    assert "trained again, it does not give the stored detections of tuned" in caplog.text
    data = open_benchmark(params.data).test.select_classes(stored.class_names)
    loaded = open_detector_file(path)
    found = detect_images(loaded.detector, data)
    # the run detects from stored features: the boxes are the same up to rounding
    assert loaded.class_names == stored.class_names and len(found) == len(stored) > 0
    np.testing.assert_allclose(np.sort(found.scores), np.sort(stored.scores), atol=1e-5)
    for change in ({"seed": 1}, {"arm": "missing"}, {"loss": "bnrl"}):
        with pytest.raises(ParamsError, match=f"checkpoint.{next(iter(change))} is "):
            prediction_run.cell_weights(params.checkpoint.model_copy(update=change), own)


def test_a_kept_cell_is_taken_as_it_is(notebook, tiny_detector):  # noqa: F811
    params, own, tuned = notebook
    kept = tuned.dir / "weights" / "seed0-kshot-ce.pth"
    save_detector(kept, tiny_detector, NAMES)
    try:
        assert prediction_run.cell_weights(params.checkpoint, own) == kept
    finally:
        kept.unlink()


def test_notebook_predicts_on_test_images_and_files(notebook):
    params, own, _ = notebook
    predictor = prediction_run.open_predictor(params, own)
    first, second = prediction_run.predict_images(params, own, predictor)
    test = open_benchmark(params.data).test
    assert first.record.path == test.images[3].path and second.pixels.shape == (40, 50, 3)
    assert predictor.clip.label_space == (*test.class_names[-5:], "background")
    assert (own.dir / "rescored.json").is_file()
    with pytest.raises(DataError, match="no test image 16. Expected 0 to 15"):
        prediction_run.predict_images(params.model_copy(update={"images": (16,)}), own, predictor)


def test_notebook_writes_the_demo_s_weights_with_their_numbers(notebook):
    params, own, _ = notebook
    numbers = prediction_run.write_demo(params, own)
    facts = read_facts(own.dir / "demo")
    assert facts["expected"] == numbers and set(numbers) == set(demo.NUMBERS)
    assert facts["detector"]["run_id"] == "tuned" and facts["clip"]["run_id"] == "tiny_clip"
    again = demo.measure(own.dir / "demo", facts, own.dir / "scenes")
    assert again.numbers == numbers
    assert prediction_run.write_demo(params.model_copy(update={"demo": None}), own) == {}
    with pytest.raises(ValueError, match=r"demo.num_images is 17, but there are 16"):
        PredictParams(**(params.model_dump(exclude_none=True) | {"demo": {"num_images": 17}}))
