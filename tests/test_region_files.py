"""Boxes of others: what MViT and the released code really write, and pickles that would do more than hold numbers."""

import json
import os
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from risf_core.data.dataset import DetectionData, ImageRecord
from risf_core.errors import DataError, ParamsError
from risf_core.open_vocabulary.providers import external_regions
from risf_core.open_vocabulary.region_files import read_regions

NAMES = ("n01_7.JPEG", "000002.jpg", "street.left.png")  # stems n01_7, 000002, street


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> DetectionData:
    """Three images of 60 x 40 pixels with ids 11 to 13; categories 3 (cat) and 7 (dog)."""
    folder, records = tmp_path_factory.mktemp("images"), []
    none = np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, bool)
    for image_id, name in enumerate(NAMES, 11):
        Image.new("RGB", (60, 40)).save(folder / name)
        records.append(ImageRecord(image_id, folder / name, 40, 60, *none))
    return DetectionData("three", ("cat", "dog"), (3, 7), tuple(records))


def write(path, content) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(content))


def test_mvit_output_of_one_query(tmp_path, data):
    """Lists of whole pixels, scores as NumPy's numbers; the union of queries has arrays."""
    one = (
        [[5, 5, 20, 20], [0, 0, 61, 40], [7, 7, 7, 30]],
        [np.float32(0.2), np.float32(0.9), np.float32(0.5)],
    )
    union = ([np.array([1, 2, 9, 9])], [np.float32(0.4)])
    write(tmp_path / "all_objects.pkl", {"n01_7": one, "000002": union, "street": ([], []), "other": one})
    regions = read_regions(tmp_path / "all_objects.pkl", data)
    assert list(regions.image_ids) == [11, 12, 13]
    assert regions.of(11).boxes.tolist() == [
        [0, 0, 60, 40],
        [5, 5, 20, 20],
    ]  # by score, clipped, none without extent
    assert regions.of(11).scores == pytest.approx([0.9, 0.2])
    assert regions.of(12).boxes.tolist() == [[1, 2, 9, 9]] and len(regions.of(13).scores) == 0
    assert regions.manifest["provider"] == "MViT" and regions.manifest["sees_novel"] == "unknown"
    assert regions.manifest["degenerate"] == 1 and regions.embeddings is None and set(regions.labels) == {-1}


def test_multi_crop_output_nests_its_pair(tmp_path, data):
    kept = ([np.array([1.0, 2, 9, 9])], [np.float32(0.4)])
    write(tmp_path / "x.pkl", dict.fromkeys(("n01_7", "000002", "street"), (kept, [0.4, 0.3, 0.2])))
    assert read_regions(tmp_path / "x.pkl", data).of(12).boxes.tolist() == [[1, 2, 9, 9]]


def test_queries_of_a_folder_are_joined_and_suppressed(tmp_path, data):
    boxes = {"a": [[0, 0, 10, 10], [30, 0, 40, 10]], "b": [[1, 0, 11, 10], [30, 20, 40, 30]]}
    scores = {"a": [0.5, 0.4], "b": [0.8, 0.1]}
    for query, own in boxes.items():
        write(tmp_path / f"{query}.pkl", dict.fromkeys(("n01_7", "000002", "street"), (own, scores[query])))
    write(tmp_path / "combined.pkl", dict.fromkeys(("n01_7", "000002", "street"), ([[0, 0, 1, 1]], [1.0])))
    found = read_regions(tmp_path, data).of(13)
    assert found.boxes.tolist() == [
        [1, 0, 11, 10],
        [30, 0, 40, 10],
        [30, 20, 40, 30],
    ]  # IoU 9/11 with the first
    assert found.scores == pytest.approx([0.8, 0.4, 0.1])


def test_only_the_best_fifty_of_a_query_are_joined(tmp_path, data):
    boxes = [[x, y, x + 3, y + 3] for x in range(0, 56, 4) for y in range(0, 36, 4)]
    entry = (boxes, list(np.linspace(0.9, 0.1, len(boxes))))
    write(tmp_path / "q.pkl", dict.fromkeys(("n01_7", "000002", "street"), entry))
    assert len(boxes) > 50 and len(read_regions(tmp_path, data).of(11).scores) == 50


def test_text_files(tmp_path, data):
    (tmp_path / "000002.txt").write_text("0 0.25 1 2 9 9\n0 0.75 3 3 30 30\n")
    (tmp_path / "street.txt").write_text("")
    found = read_regions(tmp_path, data, missing="empty")
    assert found.of(12).scores == pytest.approx([0.75, 0.25]) and found.of(12).boxes[1].tolist() == [
        1,
        2,
        9,
        9,
    ]
    assert len(found.of(11).scores) == len(found.of(13).scores) == 0
    assert found.manifest["images_without_entry"] == 1  # the empty file is an entry
    with pytest.raises(DataError, match=r"nothing for image 11 \(n01_7.JPEG\); 1 of 3"):
        read_regions(tmp_path, data)
    (tmp_path / "street.txt").write_text("0 0.5 1 2 9\n")
    with pytest.raises(DataError, match="street.txt: line 1 is '0 0.5 1 2 9'"):
        read_regions(tmp_path, data)


def test_released_features_keep_order_and_length(tmp_path, data):
    generator = torch.Generator().manual_seed(0)
    embeds = 10 * torch.randn(3, 1, 8, generator=generator)
    first = [([4.0, 4.0, 20.0, 20.0], embeds[0]), ([1.5, 2.0, 30.0, 30.0], embeds[1])]
    write(tmp_path / "n01" / "n01_7.pkl", first)  # ImageNet's place
    write(tmp_path / "000002.pkl", [([0, 0, 9, 9], embeds[2].half())])
    write(tmp_path / "street.pkl", [])  # an image whose regions all failed
    found = read_regions(tmp_path, data)
    assert found.embeddings.shape == (3, 8) and found.of(13).embeddings.shape == (0, 8)
    assert found.of(11).embeddings == pytest.approx(embeds[:2, 0].numpy(), rel=1e-3, abs=1e-3)
    assert found.of(12).embeddings == pytest.approx(embeds[2].numpy(), rel=1e-3, abs=1e-2)
    assert found.of(11).boxes.tolist() == [[4, 4, 20, 20], [1.5, 2, 30, 30]] and set(found.scores) == {1.0}
    assert found.manifest["clip"]["crop"] == "shortest" and found.manifest["clip"]["weights"] is None
    write(tmp_path / "street.pkl", [([0, 0, 9, 9], torch.ones(1, 9))])
    with pytest.raises(DataError, match=r"embeddings of \[8, 9\] dimensions"):
        read_regions(tmp_path, data)


def test_released_boxes_of_classes_may_be_empty(tmp_path, data):
    write(tmp_path / "n01_7.pkl", {7: ([np.array([1, 1, 9, 9])], [np.float32(0.99)]), 3: ([], [])})
    write(tmp_path / "000002.pkl", {3: ([[2, 2, 8, 8]], [0.7]), "salient": ([[0, 0, 9, 9]], [0.5])})
    write(tmp_path / "street.pkl", {})
    found = read_regions(tmp_path, data)
    assert list(found.labels) == [1, 0, -1] and found.manifest["class_names"] == ["cat", "dog"]
    assert found.of(11).boxes.tolist() == [[1, 1, 9, 9]]
    renamed = external_regions(tmp_path, data, classes=("dog", "bird", "cat"), sees_novel="yes")
    assert list(renamed.labels) == [0, 2, -1] and renamed.manifest["sees_novel"] == "yes"
    with pytest.raises(DataError, match="no class 'dog'|'dog'"):
        _refused(external_regions, tmp_path, data, classes=("cat",))
    write(tmp_path / "street.pkl", {5: ([[0, 0, 9, 9]], [0.5])})
    with pytest.raises(DataError, match="street.pkl: category 5 is none of three's"):
        read_regions(tmp_path, data)


def _refused(call, *args, **options):
    """Any error of ours as a DataError, for one `raises`."""
    from risf_core.errors import RisfError

    try:
        call(*args, **options)
    except RisfError as error:
        raise DataError(str(error)) from error


def coco(boxes, **more) -> dict:
    images = [{"id": 500 + number, "file_name": f"folder/{name}"} for number, name in enumerate(NAMES)]
    rows = [{"id": n, "image_id": 500 + n % 3, "category_id": 7, "bbox": box} for n, box in enumerate(boxes)]
    return {"images": images, "annotations": rows, **more}


CORNERS = [[30, 20, 50, 35], [5, 5, 40, 30], [10, 10, 20, 20]]


def test_json_with_corners_where_the_form_says_sides(tmp_path, data):
    """The released file for ImageNet-LVIS: read as sides, the first box would reach to 80 of 60 pixels."""
    path = tmp_path / "pis.json"
    path.write_text(json.dumps(coco(CORNERS)))
    found = read_regions(path, data)
    assert found.of(11).boxes.tolist() == [CORNERS[0]] and found.of(11).labels.tolist() == [1]
    sides = [[x1, y1, x2 - x1, y2 - y1] for x1, y1, x2, y2 in CORNERS]
    path.write_text(json.dumps(coco(sides)))
    assert np.array_equal(read_regions(path, data).boxes, found.boxes)


def test_json_that_fits_both_forms_is_asked_for(tmp_path, data):
    path = tmp_path / "both.json"
    path.write_text(json.dumps(coco([[5, 5, 20, 20]] * 3)))
    with pytest.raises(DataError, match='0 do not fit as corners, 0 not as x, y.*box_form="xyxy" or "xywh"'):
        read_regions(path, data)
    assert read_regions(path, data, box_form="xywh").boxes[0].tolist() == [5, 5, 25, 25]
    assert read_regions(path, data, box_form="xyxy").boxes[0].tolist() == [5, 5, 20, 20]
    path.write_text(json.dumps(coco([[30, 20, 50, 35], [30, 20, 10, 10], [30, 20, 10, 10]])))
    with pytest.raises(DataError, match="2 do not fit as corners, 1 not as x, y"):
        read_regions(path, data)


def test_results_list_has_scores_and_ids_of_the_data(tmp_path, data):
    rows = [{"image_id": 12, "category_id": 3, "bbox": [30, 20, 10, 10], "score": s} for s in (0.2, 0.6)]
    (tmp_path / "r.json").write_text(json.dumps(rows))
    found = read_regions(tmp_path / "r.json", data, missing="empty")
    assert found.of(12).scores == pytest.approx([0.6, 0.2]) and found.manifest["images_without_entry"] == 2
    (tmp_path / "r.json").write_text(json.dumps(coco([])))
    with pytest.raises(DataError, match="it has no boxes"):
        read_regions(tmp_path / "r.json", data)
    (tmp_path / "r.json").write_text(json.dumps([{"image_id": 99, "bbox": [1, 1, 2, 2]}]))
    with pytest.raises(DataError, match="none of its 1 boxes lies in an image"):
        read_regions(tmp_path / "r.json", data)


def test_boxes_of_another_scale_are_refused_or_dropped(tmp_path, data):
    entry = ([[10, 10, 20, 20], [70, 50, 90, 70]], [0.5, 0.9])
    write(tmp_path / "x.pkl", dict.fromkeys(("n01_7", "000002", "street"), entry))
    with pytest.raises(
        DataError, match=r"x.pkl: three: the centre of box \[70.0, 50.0, 90.0, 70.0\] of MViT"
    ):
        read_regions(tmp_path / "x.pkl", data)
    found = read_regions(tmp_path / "x.pkl", data, outside="drop")
    assert len(found) == 3 and found.manifest["dropped"] == 3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"n01_7": ([[1, 2, 3]], [0.5])}, r"boxes of shape \(1, 3\)"),
        ({"n01_7": ([[1, 2, 3, 4]], [0.5, 0.5])}, "2 scores for 1 boxes"),
        ({"n01_7": ([["a", 2, 3, 4]], [0.5])}, "boxes that are no numbers"),
        ({"n01_7": 5}, "Expected a pair"),
        ({"n01_7": ([[1, 2, np.nan, 4]], [0.5])}, "not finite"),
        ({3: ([], [])}, "expected a dictionary from image stems"),
        ([1, 2], "expected a dictionary from image stems"),
        ({"other": ([], [])}, "nothing for image 11"),
    ],
)
def test_wrong_pickles_are_named(tmp_path, data, content, message):
    write(tmp_path / "bad.pkl", content)
    with pytest.raises(DataError, match=message) as error:
        read_regions(tmp_path / "bad.pkl", data, missing="empty")
    assert "bad.pkl" in str(error.value)


class Harmful:
    def __init__(self, call, *args):
        self.call, self.args = call, args

    def __reduce__(self):
        return self.call, self.args


def test_nothing_in_a_pickle_is_executed(tmp_path, data):
    mark = tmp_path / "mark"
    calls = [
        Harmful(os.mkdir, str(mark)),
        Harmful(torch.storage._load_from_bytes, pickle.dumps(Harmful(os.mkdir, str(mark)))),
        Harmful(torch.load, str(mark)),
        Harmful(eval, f"__import__('os').mkdir({str(mark)!r})"),
    ]
    for content in calls:
        write(tmp_path / "bad.pkl", {"n01_7": content})
        with pytest.raises(
            DataError, match="bad.pkl: not a readable pickle of boxes .*Nothing in it was executed"
        ):
            read_regions(tmp_path / "bad.pkl", data)
        assert not mark.exists()
    (tmp_path / "bad.pkl").write_bytes(b"hello")
    with pytest.raises(DataError, match="not a readable pickle"):
        read_regions(tmp_path / "bad.pkl", data)


def test_a_tensor_larger_than_its_storage_is_refused(tmp_path, data):
    storage = torch.ones(4).__reduce_ex__(2)[1][0]  # as torch pickles it
    for size, stride, offset in (((1, 8), (8, 1), 0), ((1, 4), (4, 1), 2), ((2**20, 2**20), (0, 0), 0)):
        tensor = Harmful(torch._utils._rebuild_tensor_v2, storage, offset, size, stride, False, {})
        write(tmp_path / "000002.pkl", [([0, 0, 5, 5], tensor)])
        with pytest.raises(DataError, match="not a readable pickle"):
            read_regions(tmp_path, data, missing="empty")


def test_forms_are_not_mixed_and_others_are_refused(tmp_path, data):
    write(tmp_path / "mixed" / "n01_7.pkl", {3: ([], [])})
    write(tmp_path / "mixed" / "000002.pkl", [([0, 0, 5, 5], torch.ones(1, 4))])
    with pytest.raises(DataError, match=r"files of several forms: n01_7.pkl .*, 000002.pkl"):
        read_regions(tmp_path / "mixed", data, missing="empty")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no file n01_7.pkl or .txt of any of the 3 images"):
        read_regions(tmp_path / "empty", data)
    with pytest.raises(DataError, match="no such file or folder"):
        read_regions(tmp_path / "no", data)
    (tmp_path / "boxes.csv").write_text("")
    with pytest.raises(DataError, match="expected .npz, .pkl, .json, or a folder"):
        read_regions(tmp_path / "boxes.csv", data)
    with pytest.raises(ParamsError, match="missing is 'skip'"):
        read_regions(tmp_path / "mixed", data, missing="skip")


def test_our_own_file_is_external_too(tmp_path, data):
    entry = ([[10, 10, 20, 20]], [0.5])
    write(tmp_path / "x.pkl", dict.fromkeys(("n01_7", "000002", "street"), entry))
    read_regions(tmp_path / "x.pkl", data).save(tmp_path / "x.npz")
    found = external_regions(tmp_path / "x.npz", data)
    assert found.manifest["sees_novel"] == "unknown" and found.of(12).boxes.tolist() == [[10, 10, 20, 20]]
    assert external_regions(tmp_path / "x.npz", data, sees_novel="no").manifest["sees_novel"] == "no"
