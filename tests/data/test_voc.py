"""VOC's XML files: devkits, folders, and what may be wrong in them."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from risf_core.data.loader import check_images
from risf_core.data.voc import image_number, load_voc, load_xml_folder
from risf_core.errors import DataError, SplitError
from tests.data.voc_files import write_devkit, write_pair, xml_text
from tests.real_data import real_data

CLASSES = ("cat", "bird")


def problems_of(call) -> list[str]:
    with pytest.raises(DataError) as caught:
        call()
    return list(caught.value.problems)


def devkit(root: Path, year: int = 2007) -> Path:
    ids = ("000005", "000012") if year == 2007 else ("2008_000001", "2008_000002")
    images = {
        ids[0]: [("bird", (1, 1, 10, 20)), ("dog", (2, 2, 9, 9)), ("cat", (5, 6, 40, 30), True)],
        ids[1]: [("dog", (2, 2, 9, 9))],
    }
    return write_devkit(root / f"VOC{year}", images, {"trainval": ids, "test": ids[:1], "bird_test": ids})


# ------------------------------------------------------------ devkits


def test_boxes_count_from_zero_and_difficult_ones_are_marked(tmp_path):
    data = load_voc([(devkit(tmp_path), "trainval")], class_names=CLASSES)
    assert data.class_names == CLASSES and [image.image_id for image in data.images] == [5, 12]
    image = data.images[0]
    assert (image.width, image.height, image.path.name) == (40, 30, "000005.jpg")
    np.testing.assert_array_equal(
        image.boxes, [[0, 0, 10, 20], [4, 5, 40, 30]]
    )  # xmin, ymin less 1; the order of the file
    assert image.labels.tolist() == [1, 0]
    assert image.is_difficult.tolist() == [False, True] and not image.is_crowd.any()
    assert data.images[1].path.name == "000012.JPG" and len(data.images[1].labels) == 0


def test_parts_of_two_years_have_ids_of_their_own(tmp_path):
    parts = [(devkit(tmp_path), "test"), (devkit(tmp_path, 2012), "trainval")]
    data = load_voc(parts, class_names=("bird",), name="0712")
    assert [image.image_id for image in data.images] == [5, 2008000001, 2008000002]
    assert data.counts() == {"bird": 2} and data.name == "0712"
    assert image_number("2008_000002") == 2008000002


def test_classes_of_the_list_need_no_box(tmp_path):
    data = load_voc([(devkit(tmp_path), "test")], class_names=("sofa", "bird"))
    assert data.counts() == {"sofa": 0, "bird": 1}


def test_a_missing_image_set_says_which_there_are(tmp_path):
    with pytest.raises(DataError, match=r"no image set .*Main/train.txt. The folder has test, trainval\."):
        load_voc([(devkit(tmp_path), "train")], class_names=CLASSES)
    with pytest.raises(DataError, match="Expected a devkit's folder"):
        load_voc([(tmp_path / "nowhere", "train")], class_names=CLASSES)


def test_a_class_that_voc_does_not_have_is_refused(tmp_path):
    folder = write_devkit(
        tmp_path / "VOC2007", {"000005": [("brid", (1, 1, 9, 9))]}, {"trainval": ["000005"]}
    )
    found = problems_of(lambda: load_voc([(folder, "trainval")], class_names=CLASSES))
    assert len(found) == 1 and "object 1 (brid): expected one of the 20 classes" in found[0]


def test_missing_files_of_a_devkit_are_reported_together(tmp_path):
    folder = devkit(tmp_path)
    (folder / "JPEGImages" / "000005.jpg").unlink()
    (folder / "Annotations" / "000012.xml").unlink()
    (folder / "ImageSets" / "Main" / "trainval.txt").write_text("000005 1\n\n000012 -1\nhouse\n")
    found = problems_of(lambda: load_voc([(folder, "trainval")], class_names=CLASSES))
    assert len(found) == 3
    assert "there is no image 000005" in found[0]
    assert "image id 'house'; expected six digits" in found[1]
    assert "000012.xml: there is no such annotation file" in found[2]


# ------------------------------------------------------------ folders


def test_a_folder_is_read_with_its_own_classes_and_any_ending(tmp_path):
    write_pair(tmp_path, "b", [("king", (1, 1, 4, 4))], ending=".JPG")
    write_pair(tmp_path, "a", [("ace", (2, 3, 40, 30)), ("king", (1, 1, 4, 4))])
    write_pair(tmp_path, "c", [])
    Image.new("RGB", (8, 8)).save(tmp_path / "d.png")  # without XML: no part of the data
    data = load_xml_folder(tmp_path)
    assert data.class_names == ("ace", "king") and data.category_ids == (1, 2)
    assert [(image.image_id, image.path.name) for image in data.images] == [
        (1, "a.jpg"),
        (2, "b.JPG"),
        (3, "c.jpg"),
    ]
    np.testing.assert_array_equal(data.images[0].boxes, [[1, 2, 40, 30], [0, 0, 4, 4]])
    assert len(data.images[2].labels) == 0
    check_images(data)
    assert load_xml_folder(tmp_path, class_names=["king"]).counts() == {"king": 2}
    assert load_xml_folder(tmp_path, class_names=["king", "ten"], known=["ten"]).counts() == {
        "king": 2,
        "ten": 0,
    }
    with pytest.raises(SplitError, match="no class 'knig'.*'king'"):
        load_xml_folder(tmp_path, class_names=["knig"])


def test_annotations_may_lie_in_a_folder_of_their_own(tmp_path):
    write_pair(tmp_path / "images", "a", [("ace", (2, 3, 40, 30))])
    (tmp_path / "xml").mkdir()
    (tmp_path / "images" / "a.xml").rename(tmp_path / "xml" / "a.xml")
    assert load_xml_folder(tmp_path / "images", tmp_path / "xml").counts() == {"ace": 1}


def test_a_box_that_counts_from_zero_is_cut_to_the_image(tmp_path):
    write_pair(tmp_path, "a", [("ace", (0, 0, 41, 30.5))])
    np.testing.assert_array_equal(load_xml_folder(tmp_path).images[0].boxes, [[0, 0, 40, 30]])


def test_fractions_and_parts_with_boxes_of_their_own_are_read(tmp_path):
    """VOC 2012 has both."""
    write_pair(tmp_path, "a", [])
    part = "<part><name>head</name><bndbox><xmin>9</xmin><ymin>9</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></part>"
    text = xml_text([("person", (2, 45.7, 30.25, 50))], height=60)
    (tmp_path / "a.xml").write_text(text.replace("</name>", f"</name>{part}", 1))
    Image.new("RGB", (40, 60)).save(tmp_path / "a.jpg")
    data = load_xml_folder(tmp_path)
    np.testing.assert_allclose(data.images[0].boxes, [[1, 44.7, 30.25, 50]], rtol=1e-6)
    assert data.class_names == ("person",)


BAD = {  # planted in the first object of an otherwise right file: what is written, and what is said of it
    "no size": (xml_text([]).replace("<width>40</width>", ""), "has no 'size/width'"),
    "zero size": (xml_text([], width=0), "size is 0x30; expected whole pixels above 0"),
    "other size": (xml_text([], width=30, height=40), "states 30x40 pixels, but a.jpg has 40x30"),
    "no name": (xml_text([(" ", (1, 1, 5, 5))]), "object 1 (without name): has no 'name'"),
    "no number": (xml_text([("ace", ("one", 1, 5, 5))]), "object 1 (ace): bndbox/xmin is 'one'"),
    "not finite": (xml_text([("ace", (1, 1, "nan", 5))]), "bndbox/xmax is 'nan'; expected a number"),
    "no corner": (xml_text([("ace", (1, 1, 5))]), "object 1 (ace): has no 'bndbox/ymax'"),
    "flag": (
        xml_text([("ace", (1, 1, 5, 5))]).replace("</name>", "</name><difficult>yes</difficult>"),
        "difficult is 'yes'",
    ),
    "no width": (xml_text([("ace", (5, 5, 4, 9))]), "object 1 (ace): box [5, 5, 4, 9] has xmin > xmax"),
    "outside": (xml_text([("ace", (5, 5, 9, 33))]), "box [5, 5, 9, 33] lies outside its image of 40x30"),
    "not XML": ("<annotation>", "not readable as XML"),
    "entity": ('<!DOCTYPE a [<!ENTITY b "c">]><annotation>&b;</annotation>', "not readable as XML"),
}


@pytest.mark.parametrize("kind", BAD)
def test_each_fault_is_named_with_file_and_object(tmp_path, kind):
    write_pair(tmp_path, "a", [])
    text, expected = BAD[kind]
    (tmp_path / "a.xml").write_text(text)
    found = problems_of(lambda: load_xml_folder(tmp_path))
    assert len(found) == 1 and found[0].startswith(str(tmp_path / "a.xml")) and expected in found[0]


def test_all_faults_of_a_folder_are_in_one_error(tmp_path):
    write_pair(tmp_path, "a", [("ace", (5, 5, 4, 9)), ("ace", (1, 1, 5, 5)), ("ten", (50, 5, 60, 9))])
    write_pair(tmp_path, "b", [("", (1, 1, 5, 5))])
    (tmp_path / "c.xml").write_text(xml_text([]))
    (tmp_path / "b.png").write_bytes(b"")
    with pytest.raises(DataError, match="6 problems in total") as caught:
        load_xml_folder(tmp_path)
    kinds = (
        "have the same name",
        "no image c.*",
        "has xmin > xmax",
        "lies outside",
        "has no 'name'",
        "b.png: not readable",
    )
    assert all(any(kind in line for line in caught.value.problems) for kind in kinds)
    assert len(caught.value.problems) == 6


def test_invalid_boxes_are_dropped_on_request(tmp_path, caplog):
    objects = [("ace", (5, 5, 4, 9)), ("ten", (1, 1, 5, 5), True), ("ten", (1, "inf", 5, 5))]
    write_pair(tmp_path, "a", objects)
    data = load_xml_folder(tmp_path, drop_invalid=True)
    assert data.counts() == {"ten": 1} and data.images[0].is_difficult.tolist() == [True]
    assert "2 boxes are invalid and dropped" in caplog.text
    assert [line.split(": ")[1] for line in data.dropped] == ["object 3 (ten)", "object 1 (ace)"]
    assert data.select_classes(["ten"]).dropped == data.dropped


def test_an_image_that_is_turned_by_exif_has_its_upright_size(tmp_path):
    write_pair(tmp_path, "a", [("ace", (1, 1, 30, 40))])
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 30)).save(tmp_path / "a.jpg", exif=exif)
    found = problems_of(lambda: load_xml_folder(tmp_path))
    assert "lies outside" in found[0] and "states 40x30 pixels, but a.jpg has 30x40" in found[1]
    (tmp_path / "a.xml").write_text(xml_text([("ace", (1, 1, 30, 40))], width=30, height=40))
    data = load_xml_folder(tmp_path)
    check_images(data)
    assert (data.images[0].width, data.images[0].height) == (30, 40)


def test_wrong_folders_are_named(tmp_path):
    assert "does not exist" in problems_of(lambda: load_xml_folder(tmp_path / "nowhere"))[0]
    assert "there is no image" in problems_of(lambda: load_xml_folder(tmp_path))[0]
    Image.new("RGB", (8, 8)).save(tmp_path / "d.png")
    assert "there is no XML file" in problems_of(lambda: load_xml_folder(tmp_path))[0]


def test_real_photographs_of_playing_cards():
    """670 boxes of 363 photographs, with .JPG and .jpg mixed; the counts are those of the folder's CSV files."""
    root = real_data("playing_cards") / "images"
    for part, num_images in (("train", 296), ("test", 67)):
        data = load_xml_folder(root / part)
        assert len(data) == num_images
        assert {image.path.suffix for image in data.images} == {".jpg", ".JPG"}
        rows = [line.split(",") for line in (root / f"{part}_labels.csv").read_text().split()[1:]]
        assert data.counts() == Counter(row[3] for row in rows)
        ours = Counter(
            (image.path.name, *(box + [1, 1, 0, 0]).astype(int).tolist())
            for image in data.images
            for box in image.boxes
        )
        assert ours == Counter((row[0], *map(int, row[4:])) for row in rows)
