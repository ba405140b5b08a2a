"""The published partitions and VOC's few-shot lists."""

import shutil

import numpy as np
import pytest

from risf_core.data.splits import (
    VOC_CLASSES,
    VOC_NOVEL,
    load_voc_shots,
    read_voc_list,
    voc_list_file,
    voc_partition,
)
from risf_core.errors import DataError, SplitError
from tests.data.voc_files import write_devkit
from tests.real_data import real_data


def test_voc_partitions_put_the_novel_classes_last():
    for split in (1, 2, 3):
        base, novel = voc_partition(split)
        assert len(base) == 15 and len(novel) == 5 and sorted(base + novel) == list(VOC_CLASSES)
        assert base == tuple(sorted(base))
    assert voc_partition(2)[1] == ("aeroplane", "bottle", "cow", "horse", "sofa")
    with pytest.raises(SplitError, match="no split 4. Expected one of: 1, 2, 3"):
        voc_partition(4)


# ------------------------------------------------------------ VOC's lists


@pytest.fixture
def voc(tmp_path):
    """Two devkits of a few images, and lists of draws 0 (in the root) and 3."""
    bird = [("bird", (1, 1, 10 + n, 20)) for n in range(3)]
    of_2007 = {
        "000001": [bird[0], ("cow", (2, 2, 9, 9)), (*bird[1], True)],
        "000002": [("cow", (3, 3, 9, 9))],
    }
    of_2012 = {"2008_000003": bird}
    write_devkit(tmp_path / "VOC2007", of_2007, {})
    write_devkit(tmp_path / "VOC2012", of_2012, {})
    lists = tmp_path / "vocsplit"
    contents = {
        "box_1shot_bird": ["VOC2007/JPEGImages/000001.jpg"],
        "box_5shot_bird": ["VOC2012/JPEGImages/2008_000003.jpg", "VOC2007/JPEGImages/000001.jpg"],
        "box_1shot_cow": ["VOC2007/JPEGImages/000001.jpg"],
        "box_5shot_cow": [
            "VOC2007/JPEGImages/000002.jpg",
            "VOC2007/JPEGImages/000001.jpg",
            "VOC2007/JPEGImages/000002.jpg",
        ],
    }
    for folder in (lists, lists / "seed3"):
        folder.mkdir()
        for name, lines in contents.items():
            (folder / f"{name}_train.txt").write_text("".join(f"datasets/{line}\n" for line in lines))
    return tmp_path


def shots_of(root, shots, seed=0, class_names=("cow", "bird"), **changes):
    folders = {"voc2007": root / "VOC2007", "voc2012": root / "VOC2012"} | changes
    return load_voc_shots(root / "vocsplit", shots=shots, seed=seed, class_names=class_names, **folders)


def test_each_object_is_a_record_of_its_own_without_the_others(voc):
    data = shots_of(voc, 5)
    assert data.class_names == ("cow", "bird")
    assert all(len(record.labels) == 1 for record in data.images)
    assert data.counts() == {"cow": 3, "bird": 5}
    birds = [record for record in data.images if record.labels[0] == 1]
    assert [record.path.stem for record in birds] == ["2008_000003"] * 3 + [
        "000001"
    ] * 2  # the order of the list
    assert sorted(record.boxes[0, 2] for record in birds) == [10, 10, 11, 11, 12]
    assert [bool(record.is_difficult[0]) for record in birds] == [False] * 4 + [True]  # difficult ones stay
    assert len({record.image_id for record in birds}) == 5


def test_an_image_listed_twice_counts_twice(voc):
    cows = [record.path.stem for record in shots_of(voc, 5, class_names=["cow"]).images]
    assert cows == ["000002", "000001", "000002"]


def test_the_cut_to_k_repeats_and_is_seeded(voc):
    """One of two birds; NumPy's global generator has no part in it."""
    chosen = []
    for cut_seed in range(20):
        np.random.seed(cut_seed)
        data = shots_of(voc, 1, class_names=["bird"], cut_seed=cut_seed)
        assert data.counts() == {"bird": 1}
        chosen.append(float(data.images[0].boxes[0, 2]))
        np.random.seed(99)
        again = shots_of(voc, 1, class_names=["bird"], cut_seed=cut_seed)
        assert again.images[0].boxes[0, 2] == chosen[-1]
    assert set(chosen) == {10.0, 11.0}
    # a draw of one class does not depend on the others
    both = [record for record in shots_of(voc, 1, cut_seed=3).images if record.labels[0] == 1]
    assert float(both[0].boxes[0, 2]) == chosen[3]


def test_fewer_objects_than_k_are_kept_and_said(voc, caplog):
    assert shots_of(voc, 5, class_names=["cow"]).counts() == {"cow": 3}
    assert "3 boxes of cow, fewer than K; kept as published" in caplog.text


def test_seed_0_is_the_root_or_its_own_folder_which_wins(voc, caplog):
    lists = voc / "vocsplit"
    assert voc_list_file(lists, "cow", shots=1, seed=0) == lists / "box_1shot_cow_train.txt"
    assert voc_list_file(lists, "cow", shots=1, seed=3) == lists / "seed3" / "box_1shot_cow_train.txt"
    shutil.copytree(lists / "seed3", lists / "seed0")
    assert voc_list_file(lists, "cow", shots=1, seed=0).parent.name == "seed0" and not caplog.text
    (lists / "seed0" / "box_1shot_cow_train.txt").write_text("datasets/VOC2007/JPEGImages/000002.jpg\n")
    assert [record.path.stem for record in shots_of(voc, 1, class_names=["cow"]).images] == ["000002"]
    assert "seed0/box_1shot_cow_train.txt is read" in caplog.text


def test_what_is_missing_is_named(voc):
    with pytest.raises(SplitError, match=r"box_2shot_cow_train.txt. The folder has lists for shots 1, 5\."):
        shots_of(voc, 2)
    with pytest.raises(SplitError, match="seed7 does not exist"):
        shots_of(voc, 1, seed=7)
    with pytest.raises(DataError, match="1 images are of 2012, e.g. 2008_000003. Expected a voc2012 folder"):
        shots_of(voc, 5, voc2012=None)
    (voc / "VOC2007" / "Annotations" / "000001.xml").unlink()
    with pytest.raises(DataError, match="000001.xml: there is no such annotation file"):
        shots_of(voc, 1)


def test_an_object_less_list_and_a_wrong_line_are_refused(voc):
    path = voc / "vocsplit" / "box_1shot_bird_train.txt"
    path.write_text("datasets/VOC2007/JPEGImages/000002.jpg\n")
    with pytest.raises(SplitError, match="no object of class 'bird'"):
        shots_of(voc, 1)
    path.write_text("datasets/VOC2007/JPEGImages/000002\n")
    with pytest.raises(SplitError, match="line 1 is 'datasets/VOC2007/JPEGImages/000002'"):
        shots_of(voc, 1)
    path.write_text("\n")
    with pytest.raises(SplitError, match="the list is empty"):
        shots_of(voc, 1)


def test_the_3000_published_lists():
    """All seeds, shots and classes: at most K lines, ids of both years by their underscore."""
    lists = real_data("vocsplit")
    num_short = num_repeating = 0
    for seed in range(30):
        for name in VOC_CLASSES:
            for shots in (1, 2, 3, 5, 10):
                path = voc_list_file(lists, name, shots=shots, seed=seed)
                ids = read_voc_list(path)
                assert 1 <= len(ids) <= shots
                for text, line in zip(ids, path.read_text().split(), strict=True):
                    assert (f"VOC{2012 if '_' in text else 2007}/" in line) and line.endswith(f"/{text}.jpg")
                num_short += len(ids) < shots
                num_repeating += len(set(ids)) < len(ids)
    assert (num_short, num_repeating) == (658, 20)
    assert set(VOC_NOVEL) == {1, 2, 3}
