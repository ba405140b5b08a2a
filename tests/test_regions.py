"""Regions in one file: what is refused, what is clipped, and whose embeddings stand in which row."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from PIL import Image

from risf_core.data.dataset import DetectionData, ImageRecord
from risf_core.errors import DataError
from risf_core.open_vocabulary.regions import Regions, RegionSet, embed_regions
from tests.color_clip import color_clip

MANIFEST = {"provider": "by hand", "sees_novel": "no", "class_names": ["a", "b"]}
COLORS = {5: (255, 0, 0), 2: (0, 255, 0), 9: (0, 0, 255)}


def three_images(**changes) -> RegionSet:
    """Two regions, none, and three, of images 5, 2 and 9; best first."""
    values = {
        "image_ids": [5, 2, 9],
        "starts": [0, 2, 2, 5],
        "boxes": [[0, 0, 10, 10], [4, 4, 8, 20], [1, 2, 3, 4], [0, 0, 30, 20], [5, 5, 9, 9]],
        "scores": [0.9, 0.5, 0.8, 0.8, 0.1],
        "labels": [0, -1, 1, 0, -1],
        "embeddings": None,
        "manifest": MANIFEST,
    }
    return RegionSet(**values | changes)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> DetectionData:
    """Images of one colour each, 30 x 20 pixels; the right half of image 9 is white."""
    folder, records = tmp_path_factory.mktemp("colors"), []
    none = np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, bool)
    for image_id, color in COLORS.items():
        pixels = np.full((20, 30, 3), color, dtype=np.uint8)
        if image_id == 9:
            pixels[:, 15:] = 255
        Image.fromarray(pixels).save(folder / f"{image_id}.png")
        records.append(ImageRecord(image_id, folder / f"{image_id}.png", 20, 30, *none))
    return DetectionData("colors", ("a",), (1,), tuple(records))


def test_regions_of_an_image_are_its_own_rows():
    regions = three_images()
    assert len(regions) == 5 and regions.boxes.dtype == np.float32 and regions.labels.dtype == np.int64
    assert regions.of(9).scores == pytest.approx([0.8, 0.8, 0.1]) and regions.of(9).embeddings is None
    assert regions.of(2).boxes.shape == (0, 4)
    assert list(regions.owners) == [5, 5, 9, 9, 9]
    with pytest.raises(DataError, match="image 7 is not among its 3 images"):
        regions.of(7)


def test_top_and_select_keep_images_and_order():
    regions = three_images()
    assert regions.top(1).scores == pytest.approx([0.9, 0.8]) and list(regions.top(1).starts) == [0, 1, 1, 2]
    assert len(regions.top(0)) == 0 and np.array_equal(regions.top(9).boxes, regions.boxes)
    chosen = regions.select([9, 2])
    assert list(chosen.image_ids) == [9, 2] and list(chosen.starts) == [0, 3, 3]
    assert np.array_equal(chosen.boxes, regions.boxes[2:])
    with pytest.raises(DataError, match="image 1 is not among"):
        regions.select([1])


def test_regions_of_images_are_put_in_falling_score():
    outputs = [
        {"boxes": torch.tensor([[0.0, 0, 1, 1], [0, 0, 2, 2]]), "scores": torch.tensor([0.1, 0.7])},
        Regions(np.array([[1, 1, 2, 2]]), np.array([0.3]), np.array([1]), None),
        {"boxes": [], "scores": []},
    ]
    regions = RegionSet.from_images([3, 1, 2], outputs, MANIFEST)
    assert regions.of(3).boxes.tolist() == [[0, 0, 2, 2], [0, 0, 1, 1]]
    assert list(regions.labels) == [-1, -1, 1] and list(regions.starts) == [0, 2, 3, 3]
    assert len(RegionSet.from_images([], [], MANIFEST)) == 0
    with pytest.raises(DataError, match="2 boxes for 1 scores"):
        RegionSet.from_images([1], [{"boxes": np.ones((2, 4)), "scores": [1.0]}], MANIFEST)
    some = [{"boxes": [[0, 0, 1, 1]], "scores": [1.0], "embeddings": np.ones((1, 3))}, outputs[2]]
    with pytest.raises(DataError, match="some images have embeddings"):
        RegionSet.from_images([1, 2], some, MANIFEST)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_ids": [5, 2, 5]}, "stands twice"),
        ({"starts": [0, 2, 1, 5]}, "Expected rising, 0 to 5"),
        ({"starts": [0, 2, 2, 4]}, "starts reach from 0 to 4"),
        ({"boxes": np.zeros((4, 4))}, r"boxes has shape \(4, 4\); expected \(5, 4\)"),
        ({"boxes": [[0, 0, 10, 10], [8, 4, 4, 20], *np.ones((3, 4)) * [0, 0, 3, 3]]}, "image 5 has a box without"),
        ({"boxes": [[0, 0, 10, 10]] * 4 + [[-1, 0, 10, 10]]}, "image 9 has a box that begins left of"),
        ({"boxes": [[0, 0, 10, 10]] * 4 + [[0, 0, np.inf, 10]]}, "image 9 has a box that is not finite"),
        ({"scores": [0.5, 0.9, 0.8, 0.8, 0.1]}, "image 5 has a score above"),
        ({"scores": [0.9, np.nan, 0.8, 0.8, 0.1]}, "a score that is not finite"),
        ({"labels": [0, -1, 2, 0, -1]}, "a label outside -1..1"),
        ({"embeddings": np.ones((5, 3))}, "Expected both or none"),
        ({"manifest": MANIFEST | {"clip": {"name": "x"}}}, "Expected both or none"),
        ({"manifest": {"provider": "x"}}, "sees_novel is None. Expected one of: no, yes, unknown"),
        ({"manifest": {"sees_novel": "no"}}, "names no provider"),
        ({"manifest": MANIFEST | {"class_names": ["a", "a"]}}, "stands twice in class_names"),
        ({"manifest": MANIFEST | {"top": np.ones(2)}}, "not JSON"),
    ],
)  # fmt: skip
def test_what_does_not_belong_together_is_refused(changes, message):
    with pytest.raises(DataError, match=message):
        three_images(**changes)


def test_an_embedding_without_direction_is_refused():
    clip = MANIFEST | {"clip": {"name": "x"}}
    embeddings = np.ones((5, 3))
    assert three_images(embeddings=embeddings, manifest=clip).embeddings.dtype == np.float16
    embeddings[3] = 0
    with pytest.raises(DataError, match="image 9 has an embedding that is zero or not finite"):
        three_images(embeddings=embeddings, manifest=clip)


def test_file_is_read_back_and_its_bytes_do_not_change(tmp_path):
    clip = MANIFEST | {"clip": {"name": "x", "weights": "0" * 64}, "top": 5}
    regions = three_images(embeddings=np.arange(15).reshape(5, 3) + 1, manifest=clip)
    regions.save(tmp_path / "a.npz")
    again = RegionSet.load(tmp_path / "a.npz")
    for field in dataclasses.fields(RegionSet):
        one, other = getattr(regions, field.name), getattr(again, field.name)
        assert np.array_equal(one, other) if field.name != "manifest" else one == other
    again.save(tmp_path / "b.npz")
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.npz", "b.npz"]
    three_images().save(tmp_path / "plain.npz")
    assert RegionSet.load(tmp_path / "plain.npz").embeddings is None
    with np.load(tmp_path / "a.npz") as file:  # as the module's text says it
        assert json.loads(str(file["manifest"]))["format"] == 1 and file["embeddings"].dtype == np.float16


def _changed(path, **changes):
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files} | changes
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"boxes": None}, "expected boxes, image_ids"),
        ({"extra": np.ones(1)}, "holds boxes, extra"),
        ({"boxes": np.ones((5, 4))}, "boxes is float64; expected float32"),
        ({"manifest": np.array("{}")}, "not of format 1"),
        ({"manifest": np.array("no json")}, "The format is described in risf_core"),
        ({"scores": np.array([{}] * 5)}, "Python objects"),
        ({"labels": np.full(5, 7)}, "a label outside"),
    ],
)
def test_wrong_files_are_named(tmp_path, changes, message):
    path = tmp_path / "regions.npz"
    three_images().save(path)
    _changed(path, **changes)
    with pytest.raises(DataError, match=message) as error:
        RegionSet.load(path)
    assert "regions.npz" in str(error.value)


def test_missing_and_broken_files_are_named(tmp_path):
    with pytest.raises(DataError, match="no such file of regions"):
        RegionSet.load(tmp_path / "no.npz")
    (tmp_path / "text.npz").write_text("hello")
    with pytest.raises(DataError, match="text.npz: not a readable"):
        RegionSet.load(tmp_path / "text.npz")


def test_boxes_are_clipped_to_their_image_and_those_of_others_refused(data, caplog):
    boxes = [[0, 0, 10, 10], [4, 4, 8, 24], [1, 2, 3, 4], [0, 0, 30, 20], [5, 5, 9, 9]]
    with caplog.at_level("INFO"):
        fitted = three_images(boxes=boxes).fitted(data)
    assert fitted.of(5).boxes.tolist() == [[0, 0, 10, 10], [4, 4, 8, 20]]
    assert "1 regions clipped to their image, 0 dropped, of 5" in caplog.text
    boxes[4] = [5, 15, 9, 30]
    with pytest.raises(DataError, match=r"outside of image 9 \(30 x 20 pixels, 9.png\); 1 of 5"):
        three_images(boxes=boxes).fitted(data)
    dropped = three_images(boxes=boxes).fitted(data, outside="drop")
    assert len(dropped) == 4 and dropped.manifest["dropped"] == 1 and list(dropped.starts) == [0, 2, 2, 4]
    with pytest.raises(DataError, match="Expected one of: error, drop"):
        three_images().fitted(data, outside="skip")


def test_embeddings_are_those_of_the_own_crops(data):
    clip = color_clip()
    found = embed_regions(three_images(), data, clip, name="colours")
    red, blue, white = np.eye(3)[0], np.eye(3)[2], np.ones(3) / 3**0.5
    assert found.embeddings.dtype == np.float16 and found.embeddings.shape == (5, 3)
    assert found.of(5).embeddings == pytest.approx(np.stack([red, red]), abs=1e-3)
    assert found.of(9).embeddings[[0, 2]] == pytest.approx(np.stack([blue, blue]), abs=1e-3)
    mixed = (blue + white * 3**0.5) / np.linalg.norm(blue + white * 3**0.5)
    assert found.of(9).embeddings[1] == pytest.approx(mixed, abs=2e-3)
    assert clip.model.batch_sizes == [5]  # crops of all images in one batch
    facts = found.manifest["clip"]
    assert facts["name"] == "colours" and len(facts["weights"]) == 64 and facts["crop"] == "squash"
    assert found.facts()["clip"] == {"name": "colours", "weights": facts["weights"]}
    assert np.array_equal(found.boxes, three_images().boxes) and list(found.labels) == [0, -1, 1, 0, -1]


def test_embedding_the_same_regions_in_another_order_gives_the_same_rows(data):
    found = embed_regions(three_images(), data, color_clip())
    turned = embed_regions(three_images().select([9, 5, 2]), data, color_clip())
    assert list(turned.image_ids) == [5, 2, 9]  # the order of the data
    assert np.array_equal(turned.embeddings, found.embeddings)
    assert embed_regions(three_images().top(0), data, color_clip()).embeddings.shape == (0, 3)


def test_facts_count_regions_and_images():
    facts = three_images().facts()
    assert (facts["images"], facts["regions"], facts["classes"], facts["clip"]) == (3, 5, 2, None)
    assert facts["regions_an_image"] == pytest.approx(5 / 3)
