"""Re-scoring results files of any detector: forms, images, rules for odd entries, being killed, AP."""

import contextlib
import io
import json
import multiprocessing
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from risf_core import clip_models
from risf_core.clip_models import LoadedClip
from risf_core.cm_clip import clip as clip_module
from risf_core.cm_clip.__main__ import main
from risf_core.cm_clip.result_images import find_images
from risf_core.errors import DataError
from risf_core.results_formats import ClassList, read_class_list, read_results
from tests.color_clip import ColorClip, color_tokens

CLASSES = ClassList(("red", "green"), (3, 7))


class LoggedClip(ColorClip):
    """Writes down how many crops it embeds, and may take its time."""

    def __init__(self, log: Path, seconds: float = 0.0) -> None:
        super().__init__(4)
        self.log, self.seconds = log, seconds

    def encode_image(self, crops):
        if not crops.is_meta:  # else it is only measured how much memory a batch takes
            time.sleep(self.seconds)
            with self.log.open("a") as log:
                log.write(f"{len(crops)}\n")
        return super().encode_image(crops)


@pytest.fixture
def clip(tmp_path, monkeypatch):
    """A CLIP that knows colours in place of open_clip's; `clip()` is how many crops it has embedded."""
    torch.manual_seed(0)
    model = LoggedClip(tmp_path / "log")
    monkeypatch.setattr(clip_models, "load_clip", lambda *a, **k: LoadedClip(model, color_tokens, None))

    def encoded() -> int:
        return sum(map(int, model.log.read_text().split())) if model.log.exists() else 0

    encoded.model = model
    return encoded


def write_images(folder: Path, *names: str) -> Path:
    """Images of 20 x 10 pixels, red on the left half and green on the right one."""
    folder.mkdir(parents=True, exist_ok=True)
    pixels = np.zeros((10, 20, 3), np.uint8)
    pixels[:, :10, 0], pixels[:, 10:, 1] = 255, 255
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / name)
    return folder


def entry(image_id=1, category_id=3, bbox=(0, 0, 8, 10), score=0.8, **others) -> dict:
    return {"image_id": image_id, "category_id": category_id, "bbox": list(bbox), "score": score} | others


@pytest.fixture
def command(tmp_path):
    """Runs the command line on entries; gives its exit code."""
    write_images(tmp_path / "images", "000000000001.png", "2.png")
    (tmp_path / "classes.txt").write_text("3 red\n7 green\n")

    def run(entries, *words, output=tmp_path / "out.json") -> int:
        if entries is not None:
            text = entries if isinstance(entries, str) else json.dumps(entries)
            (tmp_path / "results.json").write_text(text)
        fixed = ["--images", tmp_path / "images", "--classes", tmp_path / "classes.txt", "--output", output]
        fixed += ["--model", "colours", "--pretrained", "none", "--temperature", "2", "--device", "cpu"]
        return main([str(word) for word in (tmp_path / "results.json", *fixed, *words)])

    return run


HIT, MISS = np.exp(2) / (np.exp(2) + 2), 1 / (np.exp(2) + 2)  # softmax of 2, 0, 0


# ---------------------------------------------------------------------------------------------- COCO's form


def test_scores_by_hand_and_everything_else_as_it_was(command, tmp_path, clip):
    entries = [
        entry(2, 7, (0, 0, 8, 10), 0.5, id=7, segmentation={"counts": "a"}),  # says green, shows red
        entry(1, 3, (0, 0, 8, 10), 0.25),
        entry(1, 3, (0, 0, 8, 10), 0.05),  # at the threshold
        entry(1, 7, (12.5, 0, 7.5, 10), 0.9, name="ü"),
    ]
    assert command(entries, "--c", 0.25) == 0
    found = json.loads((tmp_path / "out.json").read_text())
    scores = [one.pop("score") for one in found]
    assert scores == pytest.approx(
        [0.125 + 0.75 * MISS, 0.0625 + 0.75 * HIT, 0.05, 0.225 + 0.75 * HIT], abs=1e-6
    )
    assert found == [{name: value for name, value in one.items() if name != "score"} for one in entries]
    assert clip() == 3


def test_what_is_not_rescored_stays_byte_by_byte(command, tmp_path, clip):
    text = (
        ' [\n {"score":0.80, "image_id":1,"category_id":3,"bbox":[0,0,8.00,1e1]},\n'
        '\t{"image_id":2,"category_id":7,"bbox":[0,0,8,1],"score":0.010,"n":"\\u00fc", "z": 1.50} ]\n'
    )
    assert command(text) == 0
    lines = (tmp_path / "out.json").read_text().split("\n")
    assert lines[0] == " [" and lines[2] == text.split("\n")[2]
    assert json.loads(lines[1].rstrip(",")) | {"score": 0} == json.loads(text)[0] | {"score": 0}
    assert command(text, "--c", 1) == 0
    assert (tmp_path / "out.json").read_text() == text


def test_half_a_surrogate_pair_comes_out_as_it_went_in(command, tmp_path, clip):
    text = '[{"image_id": 1, "category_id": 3, "bbox": [0, 0, 8, 10], "score": 0.8, "n": "\\ud800 \u00fc"}]'
    assert command(text) == 0
    assert json.loads((tmp_path / "out.json").read_text())[0]["n"] == "\ud800 ü"


def test_an_empty_list_and_entries_that_are_all_weak_are_fine(command, tmp_path, clip, capsys):
    for text in ("[]", " [ ]\n"):
        assert command(text) == 0 and (tmp_path / "out.json").read_text() == text
    weak = json.dumps([entry(score=0.01)])
    assert command(weak) == 0 and (tmp_path / "out.json").read_text() == weak
    assert clip() == 0 and "1 at or below the score threshold" in capsys.readouterr().out


def test_sigmoid_scores_of_several_labels_share_the_crop_of_their_box(command, tmp_path, clip, capsys):
    boxes = [(i / 10, 0, 8, 8) for i in range(50)]
    entries = [entry(1, category, box, 0.9 - 0.1 * (category == 3)) for box in boxes for category in (3, 7)]
    assert command(entries) == 0
    assert clip() == 50 and "equal 50 (50.0%)" in capsys.readouterr().out
    scores = [one["score"] for one in json.loads((tmp_path / "out.json").read_text())]
    assert scores[:2] == pytest.approx([0.56 + 0.3 * HIT, 0.63 + 0.3 * MISS], abs=1e-6)


def test_options_choose_what_is_rescored_and_what_is_encoded(command, tmp_path, clip):
    entries = [entry(1, 3, (i, 0, 8, 10), 0.5 + i / 10) for i in range(4)] + [entry(2, 7, score=0.6)]

    def changed(*words):
        assert command(entries, *words) == 0
        found = json.loads((tmp_path / "out.json").read_text())
        return [n for n, one in enumerate(found) if one["score"] != entries[n]["score"]]

    assert changed("--top", 2) == [2, 3, 4]
    assert changed("--score-thresh", 0.65) == [2, 3]
    assert changed("--rescored-classes", "green") == [4]
    (tmp_path / "novel.txt").write_text("green\n")
    assert changed("--rescored-classes", tmp_path / "novel.txt") == [4]
    before = clip()
    assert changed("--share", "object") == [0, 1, 2, 3, 4]
    assert (
        clip() - before == 3
    )  # of image 1 the boxes 2 and 1 share box 3's (IoU 7/9, 6/10), but 0 (5/11) does not


def test_what_a_budget_leaves_out_keeps_its_score(command, tmp_path, clip):
    entries = [entry(1, 3, (0, 0, 8, 10), 0.9), entry(1, 3, (12, 0, 8, 10), 0.5)]
    assert command(entries, "--budget", 1) == 0
    scores = [one["score"] for one in json.loads((tmp_path / "out.json").read_text())]
    assert scores == pytest.approx([0.63 + 0.3 * HIT, 0.5], abs=1e-6) and clip() == 1


def test_boxes_without_a_place_in_the_image_are_counted_and_stay(command, tmp_path, clip, capsys):
    odd = [
        entry(bbox=(3, 3, 0, 5)),
        entry(bbox=(3, 3, 5, 0)),
        entry(bbox=(25, 0, 5, 5)),
        entry(bbox=(-9, 0, 9, 5)),
    ]
    assert command([*odd, entry(bbox=(-4, -4, 12, 20)), entry(bbox=(-4, -4, 12, 20))]) == 0
    said = capsys.readouterr().out
    assert "2 without an area, 2 outside their image" in said and "1 entries repeat another one" in said
    found = json.loads((tmp_path / "out.json").read_text())
    assert found[:4] == odd
    assert [one["score"] for one in found[4:]] == pytest.approx(
        [0.56 + 0.3 * HIT] * 2, abs=1e-6
    )  # cut to the image


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{}", "not a list"),
        ('[{"image_id": 1}', "broken JSON at line 1, column 17: expected , or ]"),
        ('[{"image_id": 1, ', "broken JSON at line 1"),
        (
            '[{"image_id": 1},\n {"image_id" 2}]',
            "broken JSON at line 2, column 14: Expecting ':' delimiter. Is it cut",
        ),
        ("[1] 2", "text after the list"),
        ("[" * 100_000, "broken JSON at line 1, column 2: an entry is nested too deep"),
        (f'[{{"image_id": {"1" * 5000}}}]', "line 1, column 2: the entry has a whole number of thousands"),
        (json.dumps([entry(10**4000, score=3)]), "score of image 1000000000"),
        ("[3]", "entry 0: is 3. Expected an object"),
        ('[{"image_id": 1}]', "entry 0: has no 'category_id'"),
        (
            json.dumps([entry(), entry(bbox=(1, 2, 3))]),
            "entry 1: bbox of image 1 is [1, 2, 3]. Expected [x, y",
        ),
        (json.dumps([entry(bbox=(1, 2, "3", 4))]), "Expected [x, y, width, height]"),
        (json.dumps([entry(bbox=(1, 2, -3, 4))]), "negative width or height"),
        (json.dumps([entry(bbox=(1, 2, float("nan"), 4))]), "is not finite"),
        (json.dumps([entry(score=float("nan"))]), "score of image 1 is nan. Expected 0 to 1"),
        (json.dumps([entry(score=37.5)]), "divide percentages by 100"),
        (json.dumps([entry(score=-2.1)]), "through a sigmoid"),
        (json.dumps([entry(score="0.5")]), "score of image 1 is '0.5'"),
        (json.dumps([entry(score=None)]), "score of image 1 is None"),
        (json.dumps([entry(score=True)]), "score of image 1 is True"),
        (
            json.dumps([entry(category_id=1)]),
            "category_id 1 of image 1 is none of the classes' 2 ids (3 to 7)",
        ),
        (json.dumps([entry(image_id=None)]), "image_id is None"),
        (
            json.dumps([entry(image_id=5)]),
            "1 of 1 images were not found; the first is 5. Looked for 000000000005.*",
        ),
        (json.dumps([entry(image_id="x")]), "the first is 'x'. Looked for x, x.*"),
        (json.dumps([entry(score=2)] * 7), "7 problems in total"),
    ],
)
def test_broken_files_are_refused_in_one_error(command, tmp_path, clip, capsys, text, words):
    assert command(text) == 2
    said = capsys.readouterr().err
    assert words in said and said.startswith("DataError: ") and "results.json" in said
    assert "Traceback" not in said and not (tmp_path / "out.json").exists() and clip() == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--temperature", "hot"], "--temperature hot"),
        (["--rescored-classes", "gren"], "Did you mean 'green'?"),
        (
            ["--rescored-classes", "no.txt"],
            "--rescored-classes no.txt: there is no such file, and no such class",
        ),
        (["--label-space", "no.txt"], "--label-space no.txt: there is no such file"),
        (["--label-space", "few.txt"], "few.txt: 1 of 2 re-scored classes are missing, the first is 'green'"),
        (["--label-space", "twice.txt"], "twice.txt: class 'red' stands twice"),
        (["--label-space", "torch.txt"], "torch.txt: '__background__' would compete"),
        (["--classes", "torch.txt"], "torch.txt: class '__background__' (id 0) would compete"),
        (["--classes", "own.txt"], "own.txt: class 'Background' (id 8) would compete"),
        (["--classes", "no.txt"], "no.txt: there is no such file"),
        (
            ["--output", "few.txt/out.json"],
            "--output few.txt/out.json: nothing can be written in few.txt (Not a directory)",
        ),
        (["--output", "images"], "--output images is a folder"),
        (["--output", f"{'o' * 250}.json"], "(File name too long)"),
        (["--crops", "few.txt"], "--crops few.txt: nothing can be written in few.txt (Not a directory)"),
        (["--output", "/proc/new/out.json"], "--output /proc/new/out.json: nothing can be written in /proc"),
        (["--crops", "out.json"], "--crops out.json is the output's place too"),
        (["--images", "nowhere"], "there is no such folder"),
        (["--pretrained", "random", "--output", "results.json"], "is the input"),
    ],
)
def test_wrong_options_are_named(command, tmp_path, clip, capsys, monkeypatch, words, said):
    monkeypatch.chdir(tmp_path)
    lists = {"few": "red\n", "twice": "red\ngreen\nred\n", "own": "3 red\n7 green\n8 Background\n"}
    lists["torch"] = "0 __background__\n3 red\n7 green\n"
    for name, text in lists.items():
        (tmp_path / f"{name}.txt").write_text(text)
    before = set(tmp_path.rglob("*"))
    assert command([entry()], *words) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
    assert set(tmp_path.rglob("*")) - before <= {tmp_path / "results.json"} and clip() == 0


def test_a_class_called_background_may_stand_aside(command, tmp_path, clip):
    (tmp_path / "torch.txt").write_text("0 __background__\n3 red\n7 green\n")
    words = ["--classes", tmp_path / "torch.txt", "--rescored-classes", "red", "green"]
    assert command([entry(category_id=0), entry()], *words) == 0
    scores = [one["score"] for one in json.loads((tmp_path / "out.json").read_text())]
    assert scores == pytest.approx([0.8, 0.56 + 0.3 * HIT], abs=1e-6)


def test_a_word_that_is_no_number_is_named(command, clip, capsys):
    with pytest.raises(SystemExit):
        command([entry()], "--c", "abc")
    assert "argument --c: expected a number from 0 to 1, got 'abc'" in capsys.readouterr().err


def test_results_of_several_folders_are_not_written_over(tmp_path, clip, capsys):
    folders = [write_voc(tmp_path / name, "a 0.5 1 1 2 2\n", "a 0.5 1 1 2 2\n") for name in "ab"]
    files = [folders[0] / "comp4_det_test_red.txt", folders[1] / "comp4_det_test_green.txt"]
    (tmp_path / "c.txt").write_text("red\ngreen\n")
    words = [
        *files,
        "--images",
        tmp_path,
        "--classes",
        tmp_path / "c.txt",
        "--model",
        "m",
        "--pretrained",
        "x",
    ]
    assert main([str(word) for word in (*words, "--output", folders[1])]) == 2
    assert "is the input" in capsys.readouterr().err


def test_weights_must_be_named(tmp_path, capsys):
    (tmp_path / "r.json").write_text("[]")
    (tmp_path / "c.txt").write_text("red\n")
    words = [tmp_path / "r.json", "--images", tmp_path, "--model", "ViT-B-16"]
    assert main([str(word) for word in (*words, "--classes", tmp_path / "c.txt")]) == 2
    assert "without --pretrained" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([str(word) for word in words])
    assert "give --classes, or --annotations" in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------- class lists


def test_names_of_yolo_are_taken_as_they_stand(tmp_path):
    path = tmp_path / "data.yaml"
    path.write_text("path: ../data\nnc: 3\nnames: ['traffic light', no, 7]  # three\n")
    assert read_class_list(path) == (("traffic light", "no", "7"), (1, 2, 3))
    path.write_text("names:\n  0: person\n  2: car\n  1: bicycle\ntrain: images\n")
    assert read_class_list(path, first_id=0) == (("person", "bicycle", "car"), (0, 1, 2))


def test_class_lists_of_three_forms(tmp_path):
    path = tmp_path / "names.txt"
    path.write_text("traffic light\n\ncat \n")
    assert read_class_list(path) == (("traffic light", "cat"), (1, 2))
    assert read_class_list(path, first_id=0).ids == (0, 1)
    path.write_text("10 traffic light\n2\tcat\n")
    assert read_class_list(path) == (("traffic light", "cat"), (10, 2))
    path.write_text("7 up\ncola\n")
    assert read_class_list(path) == (("7 up", "cola"), (1, 2))
    path = tmp_path / "names.json"
    path.write_text(json.dumps({"categories": [{"id": 5, "name": "cat"}, {"id": 2, "name": "cow", "x": 1}]}))
    assert read_class_list(path) == (("cow", "cat"), (2, 5))


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.txt", "", "no class in the file"),
        ("a.txt", "cat\ncat\n", "'cat'"),
        ("a.txt", "1 cat\n1 cow\n", "an? .*id stands twice"),
        ("a.json", "[]", "no list of classes"),
        ("a.json", "{", "no list of classes"),
        ("a.json", "[" * 100_000, "no list of classes"),
        (
            "a.json",
            '{"categories": [{"id": "1", "name": "cat"}]}',
            "a.json: a category has the id '1' and the name",
        ),
        (
            "a.json",
            '{"categories": [{"id": 1, "name": "a"}, {"id": "x", "name": "b"}]}',
            "the id 'x' and the name 'b'",
        ),
        ("a.json", '{"categories": [{"id": 1, "name": 5}]}', "a category has the id 1 and the name 5"),
        ("a.yaml", "nc: 3\n", "`names` stands there 0 times. Expected YOLO's"),
        ("a.yaml", "names: [a]\nnames: [b]\n", "`names` stands there 2 times"),
        ("a.yaml", "- cat\n- dog\n", "`names` stands there 0 times"),
        ("a.yaml", "names: coco.names\n", "`names` is 'coco.names'. Expected"),
        ("a.yaml", "names: {1: cat, 2: dog}\n", "`names` has 2 numbers: 1, 2"),
        ("a.yaml", "names: {0: cat, 0: dog}\n", "`names` has 2 numbers: 0, 0"),
        ("a.yaml", "names: [a, [b]]\n", "a name under `names` is no text"),
        ("a.yaml", "names: [a\n", "a.yaml: no YAML"),
        ("a.yaml", "names: {? [0] : cat}\n", "`names` has 1 numbers"),
        ("a.yaml", "names: []\n", "no class in the file"),
        ("a.yaml", "", "`names` stands there 0 times"),
        ("b.txt", None, "b.txt: there is no such file"),
    ],
)
def test_faulty_class_lists_are_refused(tmp_path, name, text, words):
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(Exception, match=words):
        read_class_list(tmp_path / name)


# ---------------------------------------------------------------------------------------------- VOC's form


def write_voc(folder: Path, red: str, green: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "comp4_det_test_red.txt").write_text(red)
    (folder / "comp4_det_test_green.txt").write_text(green)
    return folder


def test_voc_files_come_out_with_other_scores_alone(tmp_path, clip):
    write_images(tmp_path / "images", "000001.png", "2.png")
    folder = write_voc(
        tmp_path / "dets", "000001 0.800 1.0 1.0 8.0 10.0\n\n2 0.010 1 1 8 8\n", "2 0.5 13.0 1 20 10"
    )
    (tmp_path / "c.txt").write_text("green\nred\n")
    words = [folder, "--images", tmp_path / "images", "--classes", tmp_path / "c.txt", "--temperature", 2]
    words = [str(word) for word in (*words, "--model", "m", "--pretrained", "x")]
    assert main(words) == 0
    red = (tmp_path / "dets.rescored" / "comp4_det_test_red.txt").read_text()
    green = (tmp_path / "dets.rescored" / "comp4_det_test_green.txt").read_text()
    assert red == f"000001 {0.56 + 0.3 * HIT:.6f} 1.0 1.0 8.0 10.0\n\n2 0.010 1 1 8 8\n"
    assert green == f"2 {0.35 + 0.3 * HIT:.6f} 13.0 1 20 10"
    assert main([*words, "--c", "1"]) == 0
    assert (tmp_path / "dets.rescored" / "comp4_det_test_green.txt").read_text() == "2 0.5 13.0 1 20 10"


def test_the_current_folder_of_voc_files_comes_out_beside_it(tmp_path, clip, monkeypatch):
    write_images(tmp_path / "images", "a.png")
    monkeypatch.chdir(write_voc(tmp_path / "dets", "a 0.8 1 1 8 10\n", ""))
    (tmp_path / "c.txt").write_text("red\ngreen\n")
    words = [".", "--images", "../images", "--classes", "../c.txt", "--model", "m", "--pretrained", "x"]
    assert main(words) == 0 and clip() == 1
    names = {path.name for path in (tmp_path / "dets.rescored").iterdir()}
    assert names == {"comp4_det_test_red.txt", "comp4_det_test_green.txt"}
    assert (tmp_path / "dets.rescored.crops").is_dir()


def test_voc_lines_keep_their_ends_and_spaces(tmp_path):
    folder = write_voc(tmp_path / "dets", "", "")
    (folder / "comp4_det_test_red.txt").write_bytes(
        b" a  0.50\t1 1  20.0 10 \r\nb 0.1 1 1 2 2\r\na 0.3 1 1 2 2"
    )
    results = read_results([folder], CLASSES)
    results.write(tmp_path / "out", np.where(results.scores == 0.1, 0.1, 0.25))
    text = (tmp_path / "out" / "comp4_det_test_red.txt").read_bytes()
    assert text == b" a  0.250000\t1 1  20.0 10 \r\nb 0.1 1 1 2 2\r\na 0.250000 1 1 2 2"


def test_two_voc_files_of_one_name_are_refused(tmp_path):
    folders = [write_voc(tmp_path / name, "a 0.5 1 1 2 2\n", "") for name in "ab"]
    with pytest.raises(DataError, match="two of the files have one name"):
        read_results([folder / "comp4_det_test_red.txt" for folder in folders], CLASSES)


def test_voc_pixels_count_from_one_and_include_the_last(tmp_path):
    folder = write_voc(tmp_path / "dets", "a 0.5 1 1 20 10\n", "")
    results = read_results([folder / "comp4_det_test_red.txt"], ClassList(("red",), (1,)))
    assert results.boxes.tolist() == [[0, 0, 20, 10]] and results.image_keys == ("a",)
    assert len(read_results([folder], CLASSES)) == 1


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("a 0.5 1 2 3", "comp4_det_test_red.txt, line 2: 'a 0.5 1 2 3'. Expected `image score x1 y1 x2 y2`"),
        ("a x 1 2 3 4", "Expected `image score"),
        ("a nan 1 2 3 4", "score of image 'a' is nan"),
        ("a 0.5 9 2 3 4", "negative width"),
        ("a 0.5 1 2 inf 4", "not finite"),
    ],
)
def test_faulty_voc_lines_are_named(tmp_path, line, words):
    with pytest.raises(DataError) as error:
        read_results([write_voc(tmp_path / "dets", f"a 0.5 1 1 2 2\n{line}\n", "")], CLASSES)
    assert words in str(error.value)


def test_voc_files_without_a_class_are_refused(tmp_path):
    folder = write_voc(tmp_path / "dets", "", "")
    with pytest.raises(DataError, match=r"ends with none of the 1 classes.*Did you mean 'greens'"):
        read_results([folder / "comp4_det_test_green.txt"], ClassList(("greens",), (1,)))
    with pytest.raises(DataError, match=r"no \.txt file"):
        read_results([tmp_path], CLASSES)
    with pytest.raises(DataError, match="2 files given"):
        read_results([folder / "a.json", folder / "b.json"], CLASSES)


# ---------------------------------------------------------------------------------------------- images


def results_of(tmp_path, *image_ids):
    path = tmp_path / "r.json"
    path.write_text(json.dumps([entry(image_id) for image_id in image_ids]))
    return read_results([path], CLASSES)


def test_images_are_found_by_number_or_name(tmp_path):
    names = ("000000000139.jpg", "7.png", "COCO_val2014_000000000042.jpg", "sub/12_a.png", "notes.txt")
    folder = write_images(tmp_path / "images", *names[:-1])
    (folder / "7.txt").write_text("no image")
    records, truth = find_images(results_of(tmp_path, 139, 7, 42), folder)
    assert [record.path.name for record in records] == [
        "000000000139.jpg",
        "7.png",
        names[2],
    ] and truth is None
    assert [(record.width, record.height) for record in records] == [(20, 10)] * 3
    records, _ = find_images(results_of(tmp_path, "000000000139", "12_a", "7.png", 42), folder)
    assert [record.path.name for record in records] == ["000000000139.jpg", "12_a.png", "7.png", names[2]]
    write_images(folder, "other/0007.jpg")
    with pytest.raises(DataError, match=r"image 7 may be any of .*7\.png, .*0007\.jpg"):
        find_images(results_of(tmp_path, 7), folder)


def test_annotations_name_the_images(tmp_path):
    folder = write_images(tmp_path / "images", "a.png", "b/c.png")
    sizes = {"width": 20, "height": 10}
    images = [{"id": 5, "file_name": "a.png"} | sizes, {"id": 6, "file_name": "b/c.png"} | sizes]
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"images": images}))
    records, truth = find_images(results_of(tmp_path, 6, 5), folder, path)
    assert [record.path for record in records] == [folder / "b" / "c.png", folder / "a.png"]
    assert truth is None
    for key in ("c", "c.png", "b/c.png"):
        assert find_images(results_of(tmp_path, key), folder, path)[0][0].path == folder / "b" / "c.png"
    with pytest.raises(DataError, match=r"1 of 2 image ids stand not in .*the first is 9"):
        find_images(results_of(tmp_path, 5, 9), folder, path)
    path.write_text("[]")
    with pytest.raises(DataError, match="no COCO file"):
        find_images(results_of(tmp_path, 5), folder, path)


BOX = {"id": 1, "bbox": [0, 0, 8, 10], "area": 80, "iscrowd": 0, "category_id": 3}


def annotate(path: Path, images: dict[int | str, str] | list[tuple], *, image_id=None) -> Path:
    """A COCO file of images by id; with an `image_id` also an object in that image."""
    pairs = images.items() if isinstance(images, dict) else images
    entries = [{"id": key, "file_name": name, "width": 20, "height": 10} for key, name in pairs]
    content = {"images": entries, "categories": [{"id": 3, "name": "red"}, {"id": 7, "name": "green"}]}
    boxes = [] if image_id is None else [BOX | {"image_id": image_id}]
    path.write_text(json.dumps(content | {"annotations": boxes}))
    return path


def test_an_explicit_id_wins_over_the_name_of_a_file(tmp_path):
    folder = write_images(tmp_path / "images", "000001.png", "000005.png", "a/b.png", "c/b.png")
    images = {"000001": "000005.png", "x": "000001.png", "ab": "a/b.png", "cb": "c/b.png"}
    path = annotate(tmp_path / "a.json", images)
    records, _ = find_images(results_of(tmp_path, "000001", "x", "000005"), folder, path)
    assert [record.path.name for record in records] == ["000005.png", "000001.png", "000005.png"]
    with pytest.raises(DataError, match=r"image 'b' may be a/b\.png or c/b\.png of .*a\.json"):
        find_images(results_of(tmp_path, "b"), folder, path)


@pytest.mark.parametrize("truth", [None, 5])
def test_an_image_id_that_stands_twice_is_refused(tmp_path, truth):
    folder = write_images(tmp_path / "images", "a.png", "b.png")
    path = annotate(tmp_path / "a.json", [(5, "a.png"), (5, "b.png")], image_id=truth)
    with pytest.raises(DataError, match=r"image id 5 stands twice, for a\.png and b\.png"):
        find_images(results_of(tmp_path, 5), folder, path)


@pytest.mark.parametrize("key", ["img1", 10**25])
def test_any_id_names_an_image_and_those_of_a_truth_are_numbers(command, tmp_path, clip, capsys, key):
    write_images(tmp_path / "images", "a.png")
    path = annotate(tmp_path / "a.json", {key: "a.png"})
    assert command([entry(key)], "--annotations", path) == 0 and clip() == 1
    assert json.loads((tmp_path / "out.json").read_text())[0]["score"] == pytest.approx(
        0.56 + 0.3 * HIT, abs=1e-6
    )
    assert command([entry(key)], "--annotations", annotate(path, {key: "a.png"}, image_id=key)) == 2
    assert f"id is {key!r}; expected a whole number" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("key", "name"), [(None, "a.png"), (True, "a.png"), ([1], "a.png"), (5, 7), (5, " ")]
)
def test_odd_images_of_annotations_are_named(tmp_path, key, name):
    folder = write_images(tmp_path / "images", "a.png")
    with pytest.raises(DataError, match=r"a\.json: an image has the id .* and the file_name"):
        find_images(results_of(tmp_path, 5), folder, annotate(tmp_path / "a.json", [(key, name)]))


@pytest.mark.parametrize("truth", [None, 5])
def test_images_without_entries_to_encode_need_not_be_there(command, tmp_path, clip, capsys, truth):
    write_images(tmp_path / "images", "a.png")
    path = annotate(tmp_path / "a.json", {5: "a.png", 6: "absent.png", 7: "weak.png"}, image_id=truth)
    entries = [entry(5), entry(7, score=0.01)]
    assert command(entries, "--annotations", path) == 0 and clip() == 1
    assert ("AP of all classes: 100.00" in capsys.readouterr().out) == (truth is not None)
    assert command([*entries, entry(7)], "--annotations", path) == 2
    assert "weak.png does not exist" in capsys.readouterr().err and clip() == 1
    assert command([entry(1), entry(7, score=0.01)]) == 0  # nor by name


def test_a_size_in_the_annotations_that_is_wrong_is_told_before_a_clip_is_loaded(
    tmp_path, command, clip, capsys
):
    path = annotate(tmp_path / "a.json", {5: "a.png"}, image_id=5)
    Image.new("RGB", (10, 20)).save(tmp_path / "images" / "a.png")
    assert command([entry(5), entry(5)], "--annotations", path) == 2
    assert "a.png has 10x20 pixels, its annotations say 20x10" in capsys.readouterr().err and clip() == 0


def test_links_do_not_make_an_image_ambiguous(tmp_path):
    folder = write_images(tmp_path / "images", "7.png", "sub/8.png")
    (folder / "round").symlink_to(".")
    (folder / "sub" / "up").symlink_to("..")
    (folder / "again").symlink_to("sub")
    (folder / "other.link.png").symlink_to("nowhere.png")
    (folder / "copy").mkdir()
    (folder / "copy" / "7.png").symlink_to(folder / "7.png")
    (tmp_path / "raw").mkdir()
    write_images(tmp_path / "raw", "9.png")
    (folder / "linked").symlink_to(tmp_path / "raw")
    records, _ = find_images(results_of(tmp_path, 7, 8, 9), folder)
    assert [record.path.name for record in records] == ["7.png", "8.png", "9.png"]


def test_images_that_lie_on_their_side_are_taken_upright(tmp_path, command, clip):
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = np.zeros((10, 20, 3), np.uint8)
    pixels[..., 0] = 255
    Image.fromarray(pixels).save(tmp_path / "images" / "3.jpg", exif=exif)
    records, _ = find_images(results_of(tmp_path, 3), tmp_path / "images")
    assert (records[0].width, records[0].height) == (10, 20)
    assert command([entry(3, bbox=(0, 12, 8, 8))]) == 0  # below the lower edge of the stored picture
    assert json.loads((tmp_path / "out.json").read_text())[0]["score"] == pytest.approx(
        0.56 + 0.3 * HIT, abs=0.01
    )


def test_an_image_that_is_broken_is_named(tmp_path, command, clip, capsys):
    (tmp_path / "images" / "8.png").write_bytes((tmp_path / "images" / "2.png").read_bytes()[:60])
    (tmp_path / "images" / "9.png").write_bytes(b"x")
    for image_id in (8, 9):
        assert command([entry(image_id)]) == 2
        assert f"{image_id}.png cannot be" in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------- stored crops


def test_another_blend_encodes_nothing_and_other_boxes_do(command, tmp_path, clip, capsys):
    entries = [entry(1, 3, (i, 0, 8, 10), 0.5) for i in range(5)]
    (tmp_path / "wide.txt").write_text("white\nred\ngreen\n")
    command(entries)
    first = (tmp_path / "out.json").read_text()
    for words in (
        ["--c", 0.2],
        ["--fusion", "geometric"],
        ["--temperature", 5],
        ["--label-space", tmp_path / "wide.txt"],
    ):
        assert command(entries, *words) == 0 and clip() == 5
        assert (tmp_path / "out.json").read_text() != first
    assert command(entries) == 0 and (tmp_path / "out.json").read_text() == first and clip() == 5
    assert command(entries[:3]) == 0 and clip() == 8


def test_killed_runs_go_on_and_end_as_one_that_was_not(command, tmp_path, clip):
    rng = np.random.default_rng(0)
    write_images(tmp_path / "images", *(f"{n}.png" for n in range(10, 40)))
    entries = [
        entry(10 + n % 30, (3, 7)[n % 2], [round(v, 2) for v in rng.uniform(2, 9, 4).tolist()], 0.5)
        for n in range(900)
    ]
    command(entries)
    expected, count = (tmp_path / "out.json").read_bytes(), clip()
    clip.model.log.unlink()
    (tmp_path / "out.json").unlink()
    for path in (tmp_path / "out.json.crops").iterdir():
        path.unlink()
    clip.model.seconds, kills, stored = 0.02, 0, 0
    for pause in (0.1, 0.15, 0.2):
        child = multiprocessing.get_context("fork").Process(target=command, args=(None,))
        child.start()
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline and not _grown(tmp_path, stored):
            time.sleep(0.002)
        time.sleep(pause / 10)
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        kills += child.exitcode == -signal.SIGKILL
        stored = _grown(tmp_path, 0)
    clip.model.seconds = 0.0
    assert kills == 3 and not (tmp_path / "out.json").exists()
    assert command(None) == 0
    assert (tmp_path / "out.json").read_bytes() == expected
    assert count == 900 and count <= clip() <= count + kills * 64  # at most the batch in work, each time


def _grown(tmp_path: Path, least: int) -> int:
    """Bytes of the stored crops if more than `least`, else 0."""
    size = sum(path.stat().st_size for path in (tmp_path / "out.json.crops").glob("*.crops"))
    return size if size > max(least, 100) else 0


def test_auto_keeps_the_precision_of_one_clip(command, tmp_path, clip, monkeypatch, capsys):
    probed, chosen = [], ["fp32", "bf16"]
    monkeypatch.setattr(clip_module, "fastest_precision", lambda *a: (probed.append(1), (chosen[0], {}))[1])
    noted = tmp_path / "out.json.crops" / "precision.json"

    def run(said: str) -> int:
        assert command([entry()], "--precision", "auto") == 0
        shown = capsys.readouterr()
        assert f"on cpu in {said}" in shown.out and list(json.loads(noted.read_text()).values())[-1] == said
        return len(probed)

    assert run("fp32") == 1 and run("fp32") == 1
    chosen.reverse()
    assert run("fp32") == 1  # as noted
    clip.model.visual.register_buffer("other", torch.ones(1))
    assert run("bf16") == 2 and run("bf16") == 2  # another CLIP's note is not this one's
    assert len(json.loads(noted.read_text())) == 2
    for text in ("", "[]", '{"a'):
        noted.write_text(text)
        before = len(probed)
        assert run("bf16") == before + 1


# ---------------------------------------------------------------------------------------------- AP


def stock_ap(truth: Path, entries: list[dict]) -> tuple[float, float]:
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(truth))
        evaluation = COCOeval(coco, coco.loadRes(entries), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return 100 * evaluation.stats[0], 100 * evaluation.stats[1]


def test_names_of_the_truth_may_differ_but_not_change_places(command, tmp_path, clip, capsys):
    truth = tmp_path / "truth.json"
    image = {"id": 2, "file_name": "2.png", "width": 20, "height": 10}
    box = {"id": 1, "image_id": 2, "category_id": 3, "bbox": [0, 0, 8, 10], "area": 80, "iscrowd": 0}

    def run(*names):
        categories = [{"id": category_id, "name": name} for category_id, name in zip((3, 7), names)]
        truth.write_text(json.dumps({"images": [image], "annotations": [box], "categories": categories}))
        return command([entry(2)], "--annotations", truth)

    assert run("Rouge", "verde") == 0 and "AP of all classes: 100.00 -> 100.00" in capsys.readouterr().out
    assert run("green", "red") == 2
    assert "category id 3 is 'green', but 'red' in the list" in capsys.readouterr().err
    assert run("red") == 2 and "category id 7 is no class, but 'green'" in capsys.readouterr().err
    assert clip() == 1


def test_a_stopped_run_says_that_it_goes_on(command, clip, capsys, monkeypatch):
    def stop(crops):
        raise KeyboardInterrupt

    monkeypatch.setattr(clip.model, "encode_image", stop)
    assert command([entry()]) == 130 and "goes on from there" in capsys.readouterr().err


def test_ap_before_and_after_equals_pycocotools(command, tmp_path, clip, capsys):
    rng = np.random.default_rng(1)
    images, annotations, entries = [], [], []
    for image_id in range(10, 22):
        write_images(tmp_path / "images", f"{image_id}.png")
        images.append({"id": image_id, "file_name": f"{image_id}.png", "width": 20, "height": 10})
        for left, category in ((0, 3), (10, 7)):
            box = [left + rng.integers(0, 3), 0, 6, 9]
            number = len(annotations) + 1
            facts = {"image_id": image_id, "category_id": category, "iscrowd": int(number == 5), "area": 54}
            annotations.append({"id": number, "bbox": [int(value) for value in box]} | facts)
        for _ in range(130):  # more than COCO counts of a class
            box = [*rng.uniform(0, 12, 1), *rng.uniform(0, 2, 1), *rng.uniform(4, 8, 2)]
            box, score = [round(float(v), 2) for v in box], round(float(rng.uniform(0.06, 1)), 5)
            entries.append(entry(image_id, 3 if rng.random() < 0.9 else 7, box, score))
    truth = tmp_path / "truth.json"
    categories = [{"id": 3, "name": "red"}, {"id": 7, "name": "green"}]
    truth.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    assert command(entries, "--annotations", truth, "--c", 0.3) == 0
    said = capsys.readouterr().out
    after = json.loads((tmp_path / "out.json").read_text())
    for metric, first, last in zip(("AP", "AP50"), stock_ap(truth, entries), stock_ap(truth, after)):
        assert f"{metric} of all classes: {first:.2f} -> {last:.2f}, difference {last - first:+.2f}" in said
        assert last > first + 1
    assert "better in 2, worse in 0 of 2" in said
