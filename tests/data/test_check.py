"""The check of a data set: planted faults of every kind are found with their ids, none in sound sets; clean copies."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from risf_core.data.check import check_data_set, main
from risf_core.data.coco import load_coco
from risf_core.errors import DataError
from tests.data.coco_files import box_entry, image_entry, write_files

REAL = os.environ.get("RISF_REAL")  # folder of real data sets


def polygon(x: float, y: float, width: float, height: float) -> list:
    """The outline of a box as COCO has it."""
    return [[x, y, x + width, y, x + width, y + height, x, y + height]]


def sound_set(folder: Path, *, outlines: bool = True) -> dict:
    """Content of a sound set of six JPEG images, five boxes each, and its files."""
    rng = np.random.default_rng(3)
    images = [image_entry(n, width=60 + n, height=50, file_name=f"{n}.jpg") for n in range(1, 7)]
    annotations = []
    for number in range(30):
        x, y, width, height = (int(v) for v in rng.integers((5, 5, 6, 6), (30, 25, 20, 20)))
        extra = {"segmentation": polygon(x, y, width, height)} if outlines else {}
        entry = box_entry(
            100 + number, 1 + number % 6, 1, (x, y, width, height), area=width * height, **extra
        )
        annotations.append(entry | {"iscrowd": int(number == 7)})
    write_files(folder, images, annotations)
    pixels = rng.integers(0, 255, (50, 66, 3), dtype=np.uint8)
    for entry in images:
        Image.fromarray(pixels[:, : entry["width"]]).save(folder / entry["file_name"])
    return json.loads((folder / "instances.json").read_text())


def swap_to_corners(entry: dict, **changes) -> None:
    x, y, width, height = entry["bbox"]
    entry |= {"bbox": [x, y, x + width, y + height]} | changes


def plant(folder: Path, content: dict) -> None:
    """Plant one fault of each of the 14 kinds, each in an entry of its own."""
    boxes, images = content["annotations"], content["images"]
    boxes[0]["bbox"][2] = float("nan")
    boxes[1]["bbox"][0] = float("inf")
    boxes[2]["bbox"][2] = -4
    boxes[3]["bbox"][3] = 0
    boxes[4]["bbox"][0] = 66
    swap_to_corners(boxes[5])
    images.append(images[0] | {})
    boxes.append(boxes[8] | {})
    boxes[10]["image_id"] = 77
    boxes[11]["category_id"] = 9
    del boxes[12]["bbox"]
    boxes[13]["category_id"] = "person"
    images[4]["width"] += 3
    whole = (folder / "6.jpg").read_bytes()
    (folder / "6.jpg").write_bytes(whole[: len(whole) // 2])


PLANTED = {  # kind: what names the entry
    "NaN box": "annotation 100 (image 1)",
    "infinite box": "annotation 101 (image 2)",
    "negative box": "annotation 102 (image 3)",
    "empty box": "annotation 103 (image 4)",
    "box outside": "annotation 104 (image 5)",
    "swapped format": "annotation 105 (image 6)",
    "duplicate image id": "image id 1 ",
    "duplicate annotation id": "annotation id 108 ",
    "unknown image": "annotation 110:",
    "unknown category": "annotation 111 (image 6)",
    "missing key": "annotation 112 (image 1)",
    "wrong type": "annotation 113 (image 2)",
    "wrong image size": "image 5:",
    "unreadable image": "image 6:",
}


def test_each_planted_kind_is_found_once_with_file_and_id(tmp_path, capsys):
    content = sound_set(tmp_path)
    plant(tmp_path, content)
    (tmp_path / "instances.json").write_text(json.dumps(content))
    found = check_data_set(tmp_path / "instances.json", tmp_path)
    assert {problem.kind: problem.line.startswith(PLANTED[problem.kind]) for problem in found.problems} == (
        dict.fromkeys(PLANTED, True)
    )
    assert len(found.problems) == len(PLANTED) == 14
    assert main([str(tmp_path / "instances.json"), str(tmp_path)]) == 1
    printed = capsys.readouterr().out.splitlines()
    assert sum(line.startswith(f"{tmp_path}/instances.json: ") for line in printed) == 15
    assert "14 problems" in printed[-1] and str(tmp_path / "6.jpg") in "".join(printed)
    with pytest.raises(DataError, match="--drop"):
        load_coco(tmp_path / "instances.json", tmp_path)


@pytest.mark.parametrize("outlines", [True, False])
def test_sound_set_has_no_problem_and_its_counts_are_printed(tmp_path, capsys, outlines):
    sound_set(tmp_path, outlines=outlines)
    assert check_data_set(tmp_path / "instances.json", tmp_path).problems == ()
    assert main([str(tmp_path / "instances.json"), str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "6 images decoded" in printed and "hot dog" in printed


@pytest.mark.parametrize(
    ("bbox", "name"),
    [
        ((10, 8, 20, 15), "corners [x1, y1, x2, y2]"),
        ((8, 10, 7, 10), "[y, x, height, width]"),
        ((8, 10, 15, 20), "corners [y1, x1, y2, x2]"),
        ((15, 11.5, 10, 7), "[centre x, centre y, width, height]"),
        ((10 / 40, 8 / 30, 10 / 40, 7 / 30), "fractions of the image"),
        ((15 / 40, 11.5 / 30, 10 / 40, 7 / 30), "fractions [centre x, centre y, width, height]"),
        ((12, 8, 8, 7), None),  # sloppy, but in no other format
        ((10.4, 7.6, 9.8, 7.3), None),
    ],
)
def test_format_of_a_box_is_told_by_its_outline(tmp_path, bbox, name):
    other = box_entry(1, 1, 1, (3, 3, 20, 20))
    entry = box_entry(2, 1, 1, bbox, segmentation=polygon(10, 8, 10, 7), area=70)
    path = write_files(tmp_path, [image_entry(1)], [other, entry])
    found = check_data_set(path, tmp_path).problems
    assert [
        (problem.kind, problem.line.split(" looks like ")[-1].split(", by the")[0]) for problem in found
    ] == ([] if name is None else [("swapped format", name)])


def test_corners_are_told_by_the_area_where_there_is_no_outline(tmp_path):
    corners = box_entry(1, 1, 1, (10, 8, 20, 15), area=70)
    crowd = box_entry(2, 1, 1, (10, 8, 20, 15), area=70, segmentation={"counts": [1], "size": [1]}, iscrowd=1)
    path = write_files(tmp_path, [image_entry(1)], [corners, crowd])
    found = check_data_set(path, tmp_path).problems
    assert [problem.line.split(":")[0] for problem in found] == ["annotation 1 (image 1)"]
    assert "its area" in found[0].line


def test_clean_copy_keeps_the_rest_and_lists_what_went(tmp_path, capsys):
    content = sound_set(tmp_path)
    plant(tmp_path, content)
    content["annotations"].append(content["annotations"][9] | {"bbox": [1, 1, 9, 9], "segmentation": []})
    content["annotations"][-1]["area"] = 81
    path, copy = tmp_path / "instances.json", tmp_path / "clean.json"
    path.write_text(json.dumps(content | {"info": {"year": 2026}}))
    assert main([str(path), str(tmp_path), "--drop", str(copy)]) == 0
    assert check_data_set(copy, tmp_path).problems == ()
    clean = json.loads(copy.read_text())
    assert clean["info"] == {"year": 2026} and [image["id"] for image in clean["images"]] == [1, 2, 3, 4]
    faulty = {100, 101, 102, 103, 104, 105, 110, 111, 112, 113}
    left = [n for n in range(100, 130) if n not in faulty and (n - 100) % 6 < 4]
    assert [entry["id"] for entry in clean["annotations"]] == [*left, 130]
    assert clean["annotations"][-1]["bbox"] == [1, 1, 9, 9]
    assert clean["annotations"][0]["segmentation"] == content["annotations"][6]["segmentation"]
    lines = (tmp_path / "clean.json.dropped.txt").read_text().splitlines()
    gone = {n for n in range(100, 130) if (n - 100) % 6 >= 4} - faulty  # boxes of the two dropped images
    assert sum("is dropped" in line for line in lines) == len(gone) and len(lines) == 14 + len(gone) + 2
    assert "has the new id 130" in lines[-1] and str(copy) in capsys.readouterr().out


def test_images_that_share_an_id_are_both_dropped_if_they_differ(tmp_path):
    images = [image_entry(1), image_entry(1, file_name="other.png"), image_entry(2)]
    path = write_files(tmp_path, images, [box_entry(1, 1, 1), box_entry(2, 2, 1)])
    assert main([str(path), str(tmp_path), "--drop", str(tmp_path / "clean.json")]) == 0
    data = load_coco(tmp_path / "clean.json", tmp_path)
    assert [record.image_id for record in data.images] == [2]


def test_faults_of_the_whole_file_cannot_be_dropped(tmp_path, capsys):
    categories = [{"id": 1, "name": "cat"}, {"id": 1, "name": "dog"}]
    path = write_files(tmp_path, [image_entry(1)], [box_entry(1, 1, 1)], categories)
    copy = tmp_path / "clean.json"
    assert main([str(path), str(tmp_path), "--drop", str(copy)]) == 1 and not copy.exists()
    assert "category id 1 stands twice" in capsys.readouterr().err
    path = write_files(tmp_path, [image_entry(1, width=0)], [])
    assert main([str(path), str(tmp_path), "--drop", str(path)]) == 1
    assert (
        main([str(path), str(tmp_path), "--drop", str(copy)]) == 1 and not copy.exists()
    )  # nothing would be left


def test_files_of_a_params_file_are_checked(tmp_path, monkeypatch, capsys):
    sound_set(tmp_path)
    write_files(tmp_path, [image_entry(9, width=0)], [], name="test.json")
    data = {"source": "coco", "annotations": "instances.json", "images": ".", "test_annotations": "test.json"}
    content = {"profile": "own", "data": data | {"novel_classes": ["cat"]}}
    path = tmp_path / "00_check_setup.yaml"
    path.write_text(yaml.safe_dump(content))
    monkeypatch.setenv("RISF_ROOT", str(tmp_path))
    assert main(["--params", str(path)]) == 1
    printed = capsys.readouterr().out
    assert "instances.json: nothing is wrong" in printed and "image 9: width is 0" in printed
    path.write_text(yaml.safe_dump({"profile": "own"}))
    assert main(["--params", str(path)]) == 1
    assert "Expected data of source coco" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([str(path)])


@pytest.mark.skipif(REAL is None, reason="RISF_REAL does not name the folder of real data sets")
def test_real_set_has_no_problem():
    folder = Path(REAL) / "coco_permissive"
    found = check_data_set(folder / "instances.json", folder / "images")
    assert found.problems == () and found.num_images == 137
