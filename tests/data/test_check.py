"""The check of a data set: planted faults of every kind are found with their ids, none in sound sets; clean copies."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from risf_core.data.check import check_set, main
from risf_core.data.coco import load_coco
from risf_core.data.voc import load_xml_folder
from risf_core.errors import DataError
from tests.data.coco_files import box_entry, image_entry, write_files
from tests.data.voc_files import write_devkit, write_pair, xml_text
from tests.real_data import real_data


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
    found = check_set(tmp_path / "instances.json", tmp_path).problems.found
    assert {problem.kind: problem.line.startswith(PLANTED[problem.kind]) for problem in found} == (
        dict.fromkeys(PLANTED, True)
    )
    assert len(found) == len(PLANTED) == 14
    assert main([str(tmp_path / "instances.json"), str(tmp_path)]) == 1
    printed = capsys.readouterr().out.splitlines()
    assert sum(line.startswith(f"{tmp_path}/instances.json: ") for line in printed) == 15
    assert "14 problems" in printed[-1] and str(tmp_path / "6.jpg") in "".join(printed)
    with pytest.raises(DataError, match=f"data.check {tmp_path}/instances.json {tmp_path}$") as caught:
        load_coco(tmp_path / "instances.json", tmp_path)
    assert len(caught.value.problems) == 12  # the images are decoded when they are read


@pytest.mark.parametrize("outlines", [True, False])
def test_sound_set_has_no_problem_and_its_counts_are_printed(tmp_path, capsys, outlines):
    sound_set(tmp_path, outlines=outlines)
    assert check_set(tmp_path / "instances.json", tmp_path).problems.found == []
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
    found = check_set(path, tmp_path).problems.found
    assert [
        (problem.kind, problem.line.split(" looks like ")[-1].split(", by the")[0]) for problem in found
    ] == ([] if name is None else [("swapped format", name)])


def test_a_box_that_fits_several_formats_is_right_in_its_own(tmp_path):
    square = box_entry(1, 1, 1, (10, 10, 10, 10), segmentation=polygon(10, 10, 10, 10))
    path = write_files(tmp_path, [image_entry(1)], [square, box_entry(2, 1, 1, (3, 3, 20, 20))])
    assert check_set(path, tmp_path).problems.found == []


def test_corners_are_told_by_the_area_where_there_is_no_outline(tmp_path):
    corners = box_entry(1, 1, 1, (10, 8, 20, 15), area=70)
    crowd = box_entry(2, 1, 1, (10, 8, 20, 15), area=70, segmentation={"counts": [1], "size": [1]}, iscrowd=1)
    path = write_files(tmp_path, [image_entry(1)], [corners, crowd])
    found = check_set(path, tmp_path).problems.found
    assert [problem.line.split(":")[0] for problem in found] == ["annotation 1 (image 1)"]
    assert "its area" in found[0].line


def test_clean_copy_keeps_the_rest_and_lists_what_went(tmp_path, capsys):
    content = sound_set(tmp_path)
    plant(tmp_path, content)
    path, copy = tmp_path / "instances.json", tmp_path / "clean.json"
    path.write_text(json.dumps(content | {"info": {"year": 2026}}))
    assert main([str(path), str(tmp_path), "--drop", str(copy)]) == 0
    assert check_set(copy, tmp_path).problems.found == []
    clean = json.loads(copy.read_text())
    assert clean["info"] == {"year": 2026} and [image["id"] for image in clean["images"]] == [1, 2, 3, 4]
    faulty = {100, 101, 102, 103, 104, 105, 110, 111, 112, 113}
    assert [entry["id"] for entry in clean["annotations"]] == [
        n for n in range(100, 130) if n not in faulty and (n - 100) % 6 < 4
    ]
    assert clean["annotations"][0]["segmentation"] == content["annotations"][6]["segmentation"]
    lines = (tmp_path / "clean.json.dropped.txt").read_text().splitlines()
    gone = {n for n in range(100, 130) if (n - 100) % 6 >= 4} - faulty  # boxes of the two dropped images
    assert sum("is dropped" in line for line in lines) == len(gone) and len(lines) == 14 + len(gone)
    assert str(copy) in capsys.readouterr().out


def test_an_object_whose_id_another_has_is_not_dropped(tmp_path, capsys):
    boxes = [box_entry(1, 1, 1), box_entry(1, 1, 1, (1, 1, 9, 9))]
    path = write_files(tmp_path, [image_entry(1)], boxes)
    assert main([str(path), str(tmp_path), "--drop", str(tmp_path / "clean.json")]) == 1
    printed = capsys.readouterr().err
    assert "1 problem cannot be dropped" in printed and "annotation id 1 stands twice" in printed
    assert not (tmp_path / "clean.json").exists()


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


@pytest.mark.parametrize("number", [0, 1])
def test_images_of_another_size_by_exif_are_told(tmp_path, number):
    """Sizes and boxes are those of the upright image, as published; a file that states the stored size is refused."""
    path = write_files(
        tmp_path, [image_entry(1, width=(40, 30)[number], height=(30, 40)[number])], [box_entry(1, 1, 1)]
    )
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 30)).save(tmp_path / "1.png", exif=exif)
    found = check_set(path, tmp_path).problems.found
    if number:
        assert found == []
    else:
        assert [problem.kind for problem in found] == ["wrong image size"] and "EXIF" in found[0].line


@pytest.mark.parametrize(
    ("bbox", "kinds"),
    [
        ((-1, 10, 42, 21), []),  # exactly one pixel on three sides
        ((0.5, 0.25, 39.5000001, 29.7500001), []),
        ((-1.01, 10, 9, 9), ["box outside"]),
        ((30, 10, 11.01, 9), ["box outside"]),
        ((-0.9, 10, 0.9, 9), ["box outside"]),  # nothing of it is in the image
        ((30, 10, 1e-7, 9), ["empty box"]),  # no width in single precision
        ((30, 10, 1e300, 9), ["box outside"]),
        ((1e308, 10, 1e308, 9), ["box outside"]),
    ],
)
def test_boxes_at_the_border_may_end_a_pixel_outside(tmp_path, bbox, kinds):
    path = write_files(tmp_path, [image_entry(1)], [box_entry(1, 1, 1, bbox), box_entry(2, 1, 1)])
    checked = check_set(path, tmp_path)
    assert list(checked.kinds) == kinds
    if not kinds:
        x1, y1, x2, y2 = checked.data.images[0].boxes[0]
        assert 0 <= x1 < x2 <= 40 and 0 <= y1 < y2 <= 30


def test_areas_that_are_not_of_boxes_tell_no_format(tmp_path):
    """Outlines' areas fit one reading or the other by chance; so they count only where they fit as a whole."""
    boxes = [box_entry(n, 1, 1, (2, 3, 10 + n, 12), area=40 + 3 * n) for n in range(9)]
    boxes.append(box_entry(9, 1, 1, (5, 5, 20, 20), area=225))  # that of the corners, by chance
    path = write_files(tmp_path, [image_entry(1)], boxes)
    assert check_set(path, tmp_path).problems.found == []
    for entry in boxes[:9]:
        entry["area"] = entry["bbox"][2] * entry["bbox"][3]
    path = write_files(tmp_path, [image_entry(1)], boxes)
    assert [problem.line.split(" (")[0] for problem in check_set(path, tmp_path).problems.found] == [
        "annotation 9"
    ]


def test_corners_are_not_dropped_as_boxes_outside(tmp_path):
    corners = [box_entry(n, 1, 1, (20, 10 + n, 38, 29)) for n in range(3)]
    corners.append(box_entry(9, 1, 1, (1, 1, 12, 12)))
    path = write_files(tmp_path, [image_entry(1)], corners)
    with pytest.raises(DataError, match="all boxes would be right as corners|All boxes would be right"):
        load_coco(path, tmp_path, drop_invalid=True)


XML_PLANTED = {  # kind: file, text, what is said
    "NaN box": (xml_text([("ace", (1, 1, "nan", 5))]), "object 1 (ace): bndbox/xmax is 'nan'"),
    "infinite box": (xml_text([("ace", (1, 1, 9, "1e999"))]), "object 1 (ace): bndbox/ymax is '1e999'"),
    "negative box": (xml_text([("ace", (9, 1, 5, 5))]), "object 1 (ace): box [9, 1, 5, 5] has xmin > xmax"),
    "empty box": (xml_text([("ace", (6, 1, 5, 5))]), "object 1 (ace): box [6, 1, 5, 5] has xmin > xmax"),
    "box outside": (xml_text([("ace", (6, 1, 50, 5))]), "lies outside its image of 40x30"),
    "missing key": (xml_text([("", (6, 1, 9, 5))]), "object 1 (without name): has no 'name'"),
    "wrong type": (xml_text([("ace", (6, "one", 9, 5))]), "bndbox/ymin is 'one'"),
    "wrong value": (xml_text([], width=0), "size is 0x30"),
    "wrong image size": (xml_text([], width=41), "has 40x30 pixels, its annotations say 41x30"),
    "unreadable image": (xml_text([]), "cannot be decoded"),
    "unreadable file": ('<!DOCTYPE a [<!ENTITY b "c">]><annotation>&b;</annotation>', "not readable as XML"),
}


def test_each_planted_kind_is_found_once_in_xml_files(tmp_path, capsys):
    for kind, (text, _) in XML_PLANTED.items():
        write_pair(tmp_path, kind, [])
        (tmp_path / f"{kind}.xml").write_text(text)
    whole = (tmp_path / "unreadable image.jpg").read_bytes()
    (tmp_path / "unreadable image.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "unknown image.xml").write_text(xml_text([]))
    write_pair(tmp_path, "duplicate image", [])
    Image.new("RGB", (40, 30)).save(tmp_path / "duplicate image.png")
    found = check_set(tmp_path).problems.found
    assert sorted(problem.kind for problem in found) == sorted(
        [*XML_PLANTED, "unknown image", "duplicate image"]
    )
    for problem in found:
        assert problem.kind in str(problem) and XML_PLANTED.get(problem.kind, ("", ""))[1] in problem.line
    assert main([str(tmp_path)]) == 1
    assert "13 problems" in capsys.readouterr().out.splitlines()[-1]


def test_a_sound_folder_of_xml_files_prints_its_counts(tmp_path, capsys):
    write_pair(tmp_path / "xml", "a", [("ace", (1, 1, 4, 9))])
    (tmp_path / "images").mkdir()
    (tmp_path / "xml" / "a.jpg").rename(tmp_path / "images" / "a.jpg")
    assert main([str(tmp_path / "xml"), str(tmp_path / "images")]) == 0
    assert "1 images decoded" in (printed := capsys.readouterr().out) and "ace" in printed
    assert main([str(tmp_path / "nowhere")]) == 1 and "does not exist" in capsys.readouterr().out


def test_a_devkit_is_checked_in_all_its_sets(tmp_path, capsys):
    images = {"000001": [("bird", (1, 1, 9, 9))], "000002": [("brid", (1, 1, 9, 9))], "000003": []}
    folder = write_devkit(tmp_path / "VOC2007", images, {"trainval": ["000001"], "test": ["000002"]})
    assert main([str(folder)]) == 1
    printed = capsys.readouterr().out
    assert (
        "000002.xml: object 1 (brid): expected one of the 20 classes" in printed and "1 problem:" in printed
    )
    (folder / "Annotations" / "000002.xml").write_text(xml_text([("cat", (1, 1, 9, 9), True)]))
    assert main([str(folder)]) == 0 and "2 images decoded" in capsys.readouterr().out


def test_words_that_do_not_go_together_are_refused(tmp_path):
    for words in (
        [],
        ["a.json", "--workers", "0"],
        ["a.json", "--params", "b.yaml"],
        [str(tmp_path), str(tmp_path), "--drop", "c.json"],
    ):
        with pytest.raises(SystemExit):
            main(words)
    assert main(["--params", str(tmp_path / "nowhere.yaml")]) == 2


# ------------------------------------------------------------ slips that no single entry shows


def kinds_of(*where: Path) -> list[str]:
    return [problem.kind for problem in check_set(*where).problems.found]


@pytest.mark.parametrize("other", ["cat ", "Cat", "cAT"])
def test_category_that_differs_in_spelling_alone_is_refused(tmp_path, other):
    categories = [{"id": 1, "name": "cat"}, {"id": 2, "name": other}, {"id": 3, "name": "cats"}]
    path = write_files(tmp_path, [image_entry(1)], [box_entry(1, 1, 1)], categories)
    (problem,) = check_set(path, tmp_path).problems.found
    assert problem.kind == "similar class names" and repr(other) in problem.line and "'cat'" in problem.line
    with pytest.raises(DataError, match="but for its spelling"):
        load_coco(path, tmp_path)


def test_xml_label_that_differs_in_spelling_alone_is_refused_with_its_first_file(tmp_path):
    for stem, name in (("a", "hot dog"), ("b", "Hot_Dog"), ("c", "Hot_Dog"), ("d", "hotter dog")):
        write_pair(tmp_path, stem, [(name, (1, 1, 9, 9))])
    (problem,) = check_set(tmp_path).problems.found
    assert problem.kind == "similar class names" and "'hot dog'" in problem.line
    assert f"'Hot_Dog' (first in {tmp_path / 'b.xml'})" in problem.line
    with pytest.raises(DataError, match="but for its spelling"):
        load_xml_folder(tmp_path)
    (tmp_path / "a.xml").write_text(xml_text([]))
    assert kinds_of(tmp_path) == []
    with pytest.raises(DataError, match="first in the other images"):  # test images of other spelling
        load_xml_folder(tmp_path, known=["hot dog", "ace"])


def test_box_that_stands_twice_is_reported_and_can_be_dropped_but_is_loaded(tmp_path, capsys):
    boxes = [box_entry(1, 1, 1), box_entry(2, 2, 1), box_entry(3, 1, 3), box_entry(4, 1, 1)]
    boxes += [
        box_entry(5, 1, 1, (5, 6, 10, 12.5)),
        box_entry(6, 1, 1, iscrowd=1),
        box_entry(7, 1, 1, iscrowd=1),
    ]
    path = write_files(tmp_path, [image_entry(1), image_entry(2)], boxes)
    (problem,) = check_set(path, tmp_path).problems.found
    assert problem.kind == "duplicate box" and problem.drop == (("annotations", 3),)
    assert problem.line.startswith("annotation 4 (image 1)") and "that of annotation 1" in problem.line
    assert len(load_coco(path, tmp_path).flat.labels) == 7  # as published evaluation counts them
    assert main([str(path), str(tmp_path), "--drop", str(tmp_path / "clean.json")]) == 0
    assert kinds_of(tmp_path / "clean.json", tmp_path) == []


def test_object_that_stands_twice_in_xml_is_reported_and_in_a_devkit_mentioned(tmp_path, capsys):
    objects = [("bird", (1, 1, 9, 9)), ("cat", (1, 1, 9, 9)), ("bird", (1, 1, 9, 9)), ("bird", (1, 1, 9, 10))]
    write_pair(tmp_path / "xml", "a", objects)
    (problem,) = check_set(tmp_path / "xml").problems.found
    assert problem.kind == "duplicate box" and problem.file.name == "a.xml"
    assert "objects 1 and 3 (bird)" in problem.line
    assert len(load_xml_folder(tmp_path / "xml").flat.labels) == 4
    folder = write_devkit(tmp_path / "VOC2007", {"000001": objects}, {"trainval": ["000001"]})
    assert main([str(folder)]) == 0
    assert "1 boxes stand twice and are kept" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (
            '{"images": [], "categories": [], "annotations": [], "images": []}',
            "an object has 2 times the key 'images'",
        ),
        (
            '{"images": [{"id": 5, "id": 5}], "categories": [], "annotations": []}',
            "id 5 has 2 times the key 'id'",
        ),
    ],
)
def test_repeated_key_of_json_is_reported(tmp_path, text, line):
    (tmp_path / "a.json").write_text(text)
    (problem,) = (one for one in check_set(tmp_path / "a.json").problems.found if one.kind == "repeated key")
    assert line in problem.line


def test_repeated_element_of_xml_is_reported(tmp_path):
    write_pair(tmp_path, "a", [])
    box = "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>"
    text = xml_text([("ace", (1, 1, 9, 9))])
    (tmp_path / "a.xml").write_text(text.replace("<bndbox>", f"{box}<bndbox>"))
    (problem,) = check_set(tmp_path).problems.found
    assert problem.kind == "repeated key" and "object 1 (ace): has 2 times 'bndbox'" in problem.line


def test_set_without_any_box_is_reported(tmp_path):
    assert kinds_of(write_files(tmp_path / "coco", [image_entry(1)], []), tmp_path / "coco") == ["no box"]
    write_pair(tmp_path / "xml", "a", [])
    assert kinds_of(tmp_path / "xml") == ["no box"]


def test_xml_of_another_kind_or_name_is_reported(tmp_path, caplog):
    for stem in ("a", "b", "c"):
        write_pair(tmp_path, stem, [("ace", (1, 1, 9, 9))])
    text = (tmp_path / "b.xml").read_text()
    (tmp_path / "b.xml").write_text(text.replace("annotation>", "Results>"))
    (tmp_path / "c.xml").rename(tmp_path / "c.XML")
    write_pair(tmp_path / "more", "d", [])
    found = {problem.kind: str(problem) for problem in check_set(tmp_path).problems.found}
    assert found.keys() == {"unreadable file", "wrong file name"}
    assert "root is <Results>; expected <annotation>" in found["unreadable file"]
    assert "c.XML" in found["wrong file name"]
    assert "1 XML files of its sub-folders are left out, e.g." in caplog.text


def test_box_far_outside_is_not_called_one_without_width(tmp_path):
    path = write_files(tmp_path / "coco", [image_entry(1)], [box_entry(1, 1, 1, (1e30, 5, 10, 10))])
    write_pair(tmp_path / "xml", "a", [("ace", (1e30, 1, 1e30, 9))])
    for problems in (check_set(path, path.parent).problems, check_set(tmp_path / "xml").problems):
        assert [problem.kind for problem in problems.found] == ["box outside"]
        assert "lies outside its image of 40x30" in problems.found[0].line


def test_reader_that_leaves_early_is_no_error(tmp_path):
    boxes = [box_entry(n, 1, 1, (5, 6, 0, 9)) for n in range(20_000)]
    path = write_files(tmp_path, [image_entry(1)], boxes)
    command = f"{sys.executable} -m risf_core.data.check {path} | head -1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=60)
    assert "annotation 0 (image 1)" in done.stdout and done.stderr == ""


# ------------------------------------------------------------ real sets


def test_real_sets_have_no_problem(tmp_path):
    folder = real_data("coco_permissive")
    photos = check_set(folder / "instances.json", folder / "images")
    assert photos.problems.found == [] and photos.num_decoded == 137
    for part, count in (("train", 296), ("test", 67)):
        cards = check_set(real_data("playing_cards") / "images" / part)
        assert cards.problems.found == [] and cards.num_decoded == count
    truth = real_data("coco_eval_parity") / "instances_val2014_100.json"
    alone = check_set(truth)
    assert alone.problems.found == [] and len(alone.data.flat.labels) == 839 and alone.num_decoded == 0
    assert list(check_set(truth, tmp_path / "nowhere").kinds) == ["missing file"]


def test_real_boxes_look_like_no_other_format_without_their_outlines(tmp_path):
    content = json.loads((real_data("coco_permissive") / "instances.json").read_text())
    for entry in content["annotations"]:
        del entry["segmentation"]
    (tmp_path / "a.json").write_text(json.dumps(content))
    assert check_set(tmp_path / "a.json").problems.found == []
