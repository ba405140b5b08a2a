"""The check of all data that a params file names: training, test and K-shot sets of every source."""

from pathlib import Path

import pytest
import yaml

from risf_core.data.check import main
from risf_core.data.coco import load_coco
from risf_core.errors import DataError
from tests.data.coco_files import box_entry, image_entry, write_files
from tests.data.voc_files import write_devkit, write_pair, xml_text


def check_data_of(folder: Path, monkeypatch, *, run: dict | None = None, **data) -> int:
    """Check the data of a params file; `run`: other parameters, of a fine-tuning."""
    path = folder / ("20_fine_tuning.yaml" if run else "00_check_setup.yaml")
    path.write_text(yaml.safe_dump({"profile": "own", "data": data} | (run or {})))
    monkeypatch.setenv("RISF_ROOT", str(folder))
    return main(["--params", str(path)])


OWN = {
    "source": "coco",
    "annotations": "instances.json",
    "images": ".",
    "novel_classes": ["cat"],
    "shots": [1],
    "num_seeds": 1,
}


def two_classes(folder: Path) -> None:
    """Six images with a person and a cat each."""
    boxes = [box_entry(2 * n + c, n, (1, 3)[c]) for n in range(1, 7) for c in range(2)]
    write_files(folder, [image_entry(n) for n in range(1, 7)], boxes)


def test_each_image_of_a_params_file_is_decoded_once_and_faults_of_all_files_are_named(
    tmp_path, monkeypatch, capsys
):
    two_classes(tmp_path)
    write_files(tmp_path, [image_entry(9, width=0)], [], name="test.json")
    assert check_data_of(tmp_path, monkeypatch, **OWN, test_annotations="test.json") == 1
    printed = capsys.readouterr().out
    assert (
        "instances.json: nothing is wrong; 6 images decoded" in printed and "image 9: width is 0" in printed
    )
    write_files(tmp_path, [image_entry(6), image_entry(9)], [box_entry(1, 9, 1)], name="test.json")
    assert check_data_of(tmp_path, monkeypatch, **OWN, test_annotations="nowhere.json") == 1
    assert "nowhere.json: does not exist. Expected a COCO file, a folder" in capsys.readouterr().out
    assert check_data_of(tmp_path, monkeypatch, **OWN) == 0
    printed = capsys.readouterr().out
    assert "6 images decoded" in printed and "1 K-shot sets read" in printed
    assert not (tmp_path / "data").exists()  # drawn in a temporary folder


def test_classes_and_draws_that_cannot_be_had_are_named(tmp_path, monkeypatch, capsys):
    two_classes(tmp_path)
    assert check_data_of(tmp_path, monkeypatch, **OWN | {"novel_classes": ["cta"]}) == 1
    assert "there is no class 'cta'" in capsys.readouterr().out
    assert check_data_of(tmp_path, monkeypatch, **OWN | {"shots": [5]}) == 1
    assert "class 'cat' has 3 boxes" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["files", "published"])
def test_given_shot_sets_are_checked(tmp_path, monkeypatch, capsys, kind):
    two_classes(tmp_path)
    write_files(tmp_path, [image_entry(9)], [box_entry(1, 9, 1), box_entry(2, 9, 3)], name="test.json")
    few_shot = {"kind": "files", "pattern": "{shots}_shot.json"}
    path = tmp_path / "1_shot.json"
    if kind == "published":
        few_shot = {"kind": "published", "folder": "shots"}
        path = tmp_path / "shots" / "full_box_1shot_cat_trainval.json"
        path.parent.mkdir()
    options = OWN | {"few_shot": few_shot, "test_annotations": "test.json"}

    def write(*boxes: dict) -> None:
        images = [image_entry(1), image_entry(2)]
        write_files(tmp_path, images, boxes, name=path.relative_to(tmp_path).as_posix())

    write(box_entry(1, 1, 3))
    assert check_data_of(tmp_path, monkeypatch, **options) == 0
    assert "nothing is wrong with 1 more; 0 more images decoded" in capsys.readouterr().out
    write(box_entry(1, 1, 3, (1, 1, 0, 5)))
    assert check_data_of(tmp_path, monkeypatch, **options) == 1
    assert f"{path}: annotation 1 (image 1): box [1, 1, 0, 5] has zero width" in capsys.readouterr().out
    assert check_data_of(tmp_path, monkeypatch, **options, drop_invalid=True) == int(kind == "files")
    printed = capsys.readouterr().out
    assert f"{path}: dropped on request: annotation 1" in printed
    assert ("class 'cat' has 0 boxes" in printed) == (kind == "files")  # published sets may have fewer than K
    path.unlink()
    assert check_data_of(tmp_path, monkeypatch, **options) == 1
    missing = (
        f"{path}: does not exist" if kind == "files" else f"K = 1, seed 0: there is no few-shot file {path}"
    )
    assert missing in capsys.readouterr().out


def test_base_shots_are_read_where_the_head_has_base_classes(tmp_path, monkeypatch, capsys):
    two_classes(tmp_path)
    write_files(tmp_path, [image_entry(9)], [box_entry(1, 9, 1), box_entry(2, 9, 3)], name="test.json")
    write_files(tmp_path, [image_entry(1)], [box_entry(1, 1, 3)], name="1_shot.json")
    few_shot = {"kind": "files", "pattern": "{shots}_shot.json"}
    data = OWN | {"base_classes": ["person"], "few_shot": few_shot, "test_annotations": "test.json"}
    base = {"profile": "own", "data": data, "weights": "base.pkl", "pretraining": None}
    (tmp_path / "10_base_training.yaml").write_text(yaml.safe_dump(base))
    run = {"base": "10_base_training.yaml", "shots": 1, "seeds": [0], "setting": "fsod"}
    assert check_data_of(tmp_path, monkeypatch, run=run, **data) == 1
    assert f"{tmp_path / 'base.pkl'} does not exist" in capsys.readouterr().out
    (tmp_path / "base.pkl").write_bytes(b"")
    assert check_data_of(tmp_path, monkeypatch, run=run, **data) == 0
    assert check_data_of(tmp_path, monkeypatch, run=run | {"setting": "gfsod"}, **data) == 1
    assert "class 'person' has 0 boxes" in capsys.readouterr().out


def test_voc_of_a_params_file_is_checked_with_its_lists(tmp_path, monkeypatch, capsys):
    novel = ("bird", "bus", "cow", "motorbike", "sofa")
    images = {f"00000{n}": [(name, (1, 1, 9, 9))] for n, name in enumerate(novel)}
    write_devkit(tmp_path / "VOC2007", images, {"trainval": list(images), "test": list(images)})
    (tmp_path / "lists").mkdir()
    for number, name in enumerate(novel):
        path = tmp_path / "lists" / f"box_1shot_{name}_train.txt"
        path.write_text(f"datasets/VOC2007/JPEGImages/00000{number}.jpg\n")
    data = {
        "source": "voc",
        "voc2007": "VOC2007",
        "voc2012": None,
        "splits": "lists",
        "shots": [1],
        "num_seeds": 2,
    }
    assert check_data_of(tmp_path, monkeypatch, **data) == 1
    printed = capsys.readouterr().out
    assert "VOC2007: nothing is wrong; 5 images decoded" in printed and "1 problem: 1 K-shot set" in printed
    assert "K = 1, seed 1: there is no few-shot list" in printed
    assert check_data_of(tmp_path, monkeypatch, **data | {"num_seeds": 1}) == 0
    capsys.readouterr()
    (tmp_path / "VOC2007" / "JPEGImages" / "000001.JPG").write_bytes(b"")
    assert check_data_of(tmp_path, monkeypatch, **data | {"voc2012": "VOC2012"}) == 1
    printed = capsys.readouterr().out
    assert "000001.xml: image" in printed and "VOC2012: does not exist" in printed


def test_xml_folders_of_a_params_file_are_checked(tmp_path, monkeypatch, capsys):
    for part in ("train", "test"):
        for number in range(4):
            objects = [("king", (1, 1, 9, 9)), ("ace", (9, 9, 20, 20))]
            write_pair(tmp_path / part, f"{part}{number}", objects)
    data = {"source": "xml", "images": "train", "test_images": "test", "novel_classes": ["king"]}
    data |= {"shots": [1, 2], "num_seeds": 3}
    assert check_data_of(tmp_path, monkeypatch, **data) == 0
    printed = capsys.readouterr().out
    assert printed.count("4 images decoded") == 2 and "6 K-shot sets read" in printed
    (tmp_path / "test" / "test1.xml").write_text(xml_text([("king", (1, 1, 9, 99))]))
    assert check_data_of(tmp_path, monkeypatch, **data, drop_invalid=True) == 0
    printed = capsys.readouterr().out
    assert (
        "test: dropped on request" in printed
        and "test1.xml: object 1 (king): box [1, 1, 9, 99] lies" in printed
    )
    (tmp_path / "mine.txt").write_text("train9.jpg\n")
    few_shot = {"kind": "drawn", "images": "mine.txt"}
    assert check_data_of(tmp_path, monkeypatch, **data, few_shot=few_shot, drop_invalid=True) == 1
    assert "1 of 1 images are not in" in capsys.readouterr().out


def test_a_pictogram_world_has_no_problem(tmp_path, monkeypatch, capsys):
    data = {"num_base_images": 40, "num_test_images": 8, "image_size": 64, "num_classification": 100}
    data |= {"num_corpus": 100, "shots": [1], "few_shot_seeds": 1, "extra_novel": 0}
    assert check_data_of(tmp_path, monkeypatch, source="pictograms", root=str(tmp_path / "data"), **data) == 0
    printed = capsys.readouterr().out
    assert (
        "40 images decoded" in printed and "8 images decoded" in printed and "1 K-shot sets read" in printed
    )


def test_kind_of_a_problem_is_its_cause(tmp_path, monkeypatch, capsys):
    def kind_with(**changes) -> str:
        assert check_data_of(tmp_path, monkeypatch, **OWN | changes) == 1
        return capsys.readouterr().out.splitlines()[-1].split("1 problem: ")[1]

    two_classes(tmp_path)
    (tmp_path / "mine.txt").write_text("9.png\n")
    assert kind_with(novel_classes=["cta"]) == "1 base and novel classes"
    assert kind_with(shots=[5]) == "1 K boxes"
    assert kind_with(few_shot={"kind": "drawn", "images": "mine.txt"}) == "1 chosen images"
    assert kind_with(few_shot={"kind": "drawn", "images": "nowhere.txt"}) == "1 missing file"
    assert kind_with(test_annotations="instances.json") == "1 training and test overlap"


def test_folder_in_place_of_a_coco_file_is_called_so_and_the_other_way_round(tmp_path, monkeypatch, capsys):
    two_classes(tmp_path)
    write_pair(tmp_path / "xml", "a", [("cat", (1, 1, 9, 9))])
    assert check_data_of(tmp_path, monkeypatch, **OWN | {"annotations": "xml", "images": "xml"}) == 1
    printed = capsys.readouterr().out
    assert (
        "xml: is a folder. Expected a COCO JSON file; for a folder of XML files write source: xml" in printed
    )
    assert "nothing is wrong" not in printed and "does not exist" not in printed
    with pytest.raises(DataError, match="is a folder. Expected a COCO JSON"):
        load_coco(tmp_path / "xml", tmp_path)
    data = {"source": "xml", "images": "xml", "annotations": "instances.json", "novel_classes": ["cat"]}
    assert check_data_of(tmp_path, monkeypatch, **data) == 1
    assert "is a file. Expected a folder of XML files" in capsys.readouterr().out


def test_all_missing_files_are_listed_at_once_as_run_lists_them(tmp_path, monkeypatch, capsys):
    data = OWN | {
        "images": "photos",
        "test_annotations": "test.json",
        "few_shot": {"kind": "published", "folder": "shots"},
    }
    assert check_data_of(tmp_path, monkeypatch, **data) == 1
    printed = capsys.readouterr().out
    for name in ("instances.json", "test.json", "shots", "photos"):
        assert f"{tmp_path / name}" in printed
    assert printed.count("does not exist") == 5  # the folder of the images once for each of its sets


def test_wrong_params_are_said_as_run_says_them(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RISF_ROOT", str(tmp_path))
    assert main(["--params", "nope.yaml"]) == 2
    assert "nope.yaml: no such params file" in capsys.readouterr().err
    (tmp_path / "nope.yaml").write_text("profile: own\n")
    assert main(["--params", "nope.yaml"]) == 2 and "no notebook is called 'nope'" in capsys.readouterr().err


def test_duplicate_boxes_are_mentioned_where_the_file_is_taken_as_it_is(tmp_path, monkeypatch, capsys):
    boxes = [box_entry(2 * n + c, n, (1, 3)[c]) for n in range(1, 7) for c in range(2)] + [
        box_entry(99, 3, 1)
    ]
    write_files(tmp_path, [image_entry(n) for n in range(1, 7)], boxes)
    assert check_data_of(tmp_path, monkeypatch, **OWN) == 1 and "1 duplicate box" in capsys.readouterr().out
    assert check_data_of(tmp_path, monkeypatch, **OWN, drop_invalid=True) == 0
    printed = capsys.readouterr().out
    assert "1 boxes stand twice and are kept, as published; first: annotation 99" in printed
