"""Stored detections and similarities: order, filters, files, and what they refuse."""

import numpy as np
import pytest
import torch

from risf_core.detections import Detections, Similarities
from risf_core.errors import DataError

CLASSES = ("anchor", "star")


def make(image_ids=(2, 1, 1, 1), scores=(0.9, 0.3, 0.8, 0.3), labels=(0, 1, 0, 0), proposals=(5, 4, 7, 4)):
    count = len(scores)
    boxes = np.arange(4 * count, dtype=np.float32).reshape(count, 4)
    class_scores = np.arange(3 * count, dtype=np.float32).reshape(count, 3) / 100
    return Detections(image_ids, boxes, scores, labels, class_scores, proposals, CLASSES)


def assert_same(left, right):
    assert left.class_names == right.class_names
    for name in ("image_ids", "boxes", "scores", "labels", "class_scores", "proposals"):
        assert getattr(left, name).dtype == getattr(right, name).dtype
        np.testing.assert_array_equal(getattr(left, name), getattr(right, name))


def test_order_is_image_then_score_then_proposal_then_label():
    detections = make()
    assert detections.image_ids.tolist() == [1, 1, 1, 2]
    assert detections.scores.tolist() == pytest.approx([0.8, 0.3, 0.3, 0.9])
    assert detections.labels.tolist() == [0, 0, 1, 0]  # the tie of proposal 4: label 0 first
    assert detections.boxes[:, 0].tolist() == [8, 12, 4, 0]  # rows move as a whole
    assert detections.class_scores[:, 0].tolist() == pytest.approx([0.06, 0.09, 0.03, 0.0])


def test_any_order_of_the_rows_gives_the_same_detections():
    generator = np.random.default_rng(0)
    columns = [generator.integers(0, 3, 60) for _ in range(4)]
    image_ids, labels, proposals = columns[0], columns[1] % 2, columns[2]
    scores, boxes = (
        columns[3] / 4,
        np.repeat(np.stack([*columns[:3], columns[3]], axis=1), 1, axis=0).cumsum(axis=1),
    )
    rows = np.unique(np.stack([image_ids, scores, proposals, labels]), axis=1, return_index=True)[1]

    def shuffled(seed):
        order = np.random.default_rng(seed).permutation(rows)
        class_scores = np.repeat(scores[order, None], 3, axis=1)
        corners = np.concatenate([boxes[order, :2], boxes[order, :2] + 1], axis=1)
        return Detections(
            image_ids[order], corners, scores[order], labels[order], class_scores, proposals[order], CLASSES
        )

    assert len(rows) > 25
    assert_same(shuffled(1), shuffled(2))


def test_types_are_the_stored_ones_and_inputs_stay():
    scores = np.array([0.1, 0.9])
    detections = make(image_ids=[1, 1], scores=scores, labels=[0, 1], proposals=[0, 1])
    assert detections.scores.dtype == np.float32 and detections.labels.dtype == np.int64
    assert scores.tolist() == [0.1, 0.9] and detections.scores[0] == np.float32(0.9)


def test_top_counts_all_classes_of_an_image():
    detections = make()
    best = detections.top(2)
    assert best.image_ids.tolist() == [1, 1, 2] and best.labels.tolist() == [0, 0, 0]
    assert detections.top(1).scores.tolist() == pytest.approx([0.8, 0.9])
    assert len(detections.top(0)) == 0 and detections.top(3) is detections


def test_what_counts_is_strictly_above_and_then_the_best_of_its_image():
    detections = make()
    for score_thresh, most, scores in (
        (0.3, 3, [0.8, 0.9]),
        (0.29, 3, [0.8, 0.3, 0.3, 0.9]),
        (0.29, 1, [0.8, 0.9]),
    ):
        counts = detections.counting(score_thresh=score_thresh, max_per_image=most)
        assert detections.keep(counts).scores.tolist() == pytest.approx(scores)


def test_new_scores_give_a_new_order_and_leave_the_old_object():
    detections = make()
    changed = detections.with_scores(np.array([0.1, 0.2, 0.3, 0.4]))
    assert changed.scores.tolist() == pytest.approx([0.3, 0.2, 0.1, 0.4])
    assert changed.boxes[:, 0].tolist() == [4, 12, 8, 0]
    assert detections.scores.tolist() == pytest.approx([0.8, 0.3, 0.3, 0.9])


def test_from_images_takes_the_detectors_tensors():
    one = {
        "boxes": torch.tensor([[0.0, 0, 5, 5], [1, 1, 2, 2]]),
        "scores": torch.tensor([0.2, 0.7]),
        "labels": torch.tensor([1, 0]),
        "class_scores": torch.tensor([[0.1, 0.2, 0.7], [0.7, 0.1, 0.2]]),
        "proposal": torch.tensor([3, 0]),
    }
    nothing = {key: value[:0] for key, value in one.items()}
    detections = Detections.from_images([7, 4, 5], [one, one, nothing], CLASSES)
    assert detections.image_ids.tolist() == [4, 4, 7, 7]
    assert detections.labels.tolist() == [0, 1, 0, 1] and detections.proposals.tolist() == [0, 3, 0, 3]
    np.testing.assert_array_equal(detections.class_scores[0], one["class_scores"][1].numpy())
    for outputs in ([nothing], []):
        empty = Detections.from_images(list(range(len(outputs))), outputs, CLASSES)
        assert len(empty) == 0 and empty.class_scores.shape == (0, 3) and len(empty.top(5)) == 0
    with pytest.raises(DataError, match="2 image ids \\(1 different\\) for 2 outputs"):
        Detections.from_images([7, 7], [one, one], CLASSES)


def test_coco_results():
    results = make().to_coco_results([17, 3])
    assert results[2] == {
        "image_id": 1,
        "category_id": 3,
        "bbox": [4.0, 5.0, 2.0, 2.0],
        "score": float(np.float32(0.3)),
    }
    assert [type(value) for value in results[0].values()] == [int, int, list, float]  # what json can write
    with pytest.raises(DataError, match="3 category ids for 2 classes"):
        make().to_coco_results([1, 2, 3])


def test_file_round_trip_repeats_byte_for_byte(tmp_path):
    path = tmp_path / "new" / "detections.npz"
    detections = make()
    detections.save(path)
    assert_same(Detections.load(path), detections)
    before = path.read_bytes()
    Detections.load(path).save(path)
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == ["detections.npz"]


def test_a_failed_save_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "detections.npz"
    make().save(path)
    before = path.read_bytes()

    def half(file, **arrays):
        file.write(b"PK")
        raise OSError("disk full")

    monkeypatch.setattr(np, "savez", half)
    with pytest.raises(OSError, match="disk full"):
        make(image_ids=(9, 9, 9, 9)).save(path)
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def similarities():
    cosines = np.array([[0.1, 0.2], [np.nan, np.nan], [0.3, -0.4]], dtype=np.float32)
    return Similarities(cosines, np.array([True, False, True]), ("anchor", "background"))


def test_similarities_round_trip_and_columns(tmp_path):
    similarities().save(tmp_path / "s.npz")
    loaded = Similarities.load(tmp_path / "s.npz")
    np.testing.assert_array_equal(loaded.cosines, similarities().cosines)
    assert loaded.encoded.tolist() == [True, False, True] and loaded.label_names == ("anchor", "background")
    np.testing.assert_array_equal(loaded.columns(["background", "anchor"]), loaded.cosines[:, ::-1])
    with pytest.raises(DataError, match="no column for 'star'; there are anchor, background"):
        loaded.columns(["star"])


def test_unreadable_files_are_named(tmp_path):
    for kind in (Detections, Similarities):
        with pytest.raises(DataError, match="none.npz: there is no such file"):
            kind.load(tmp_path / "none.npz")
    make().save(tmp_path / "d.npz")
    content = (tmp_path / "d.npz").read_bytes()
    for broken in (b"", b"text", content[: len(content) // 2]):
        (tmp_path / "broken.npz").write_bytes(broken)
        with pytest.raises(DataError, match="broken.npz: not a readable"):
            Detections.load(tmp_path / "broken.npz")
    with pytest.raises(DataError, match="d.npz: holds boxes.*expected cosines, encoded, label_names"):
        Similarities.load(tmp_path / "d.npz")


def test_a_file_with_wrong_content_is_named(tmp_path):
    make().save(tmp_path / "d.npz")
    with np.load(tmp_path / "d.npz") as file:
        arrays = dict(file)
    np.savez(tmp_path / "short.npz", **arrays | {"boxes": arrays["boxes"][:2]})
    with pytest.raises(
        DataError, match="short.npz: detections: boxes has shape \\(2, 4\\); expected \\(4, 4\\)"
    ):
        Detections.load(tmp_path / "short.npz")
    np.savez(tmp_path / "objects.npz", **arrays | {"labels": np.array([{}] * 4, dtype=object)})
    with pytest.raises(DataError, match="objects.npz"):  # a pickle inside is never opened
        Detections.load(tmp_path / "objects.npz")


@pytest.mark.parametrize(
    "change, message",
    [
        ({"labels": (0, 1, 2, 0)}, "labels reach from 0 to 2; expected 0 to 1"),
        ({"labels": (0, 1, -1, 0)}, "labels reach from -1 to 1"),
        ({"scores": (0.9, np.nan, 0.8, 0.3)}, "not finite"),
        ({"proposals": (1, 2)}, "proposals has shape \\(2,\\)"),
    ],
)
def test_wrong_arrays_are_refused(change, message):
    with pytest.raises(DataError, match=message):
        make(**change)


def test_wrong_boxes_masks_and_similarities_are_refused():
    good = make()
    arrays = (
        good.image_ids,
        good.boxes[:, ::-1],
        good.scores,
        good.labels,
        good.class_scores,
        good.proposals,
    )
    with pytest.raises(DataError, match="x2 < x1"):
        Detections(*arrays, CLASSES)
    with pytest.raises(
        DataError, match="class_scores has shape \\(4, 3\\); expected \\(4, 4\\) for 3 classes"
    ):
        Detections(good.image_ids, good.boxes, *arrays[2:], (*CLASSES, "key"))
    with pytest.raises(DataError, match="stands twice"):
        Detections(good.image_ids, good.boxes, *arrays[2:], ("anchor", "anchor"))
    with pytest.raises(DataError, match="mask is int64"):
        good.keep(np.array([0, 1, 2, 3]))
    with pytest.raises(DataError, match="new scores have shape \\(3,\\)"):
        good.with_scores(np.zeros(3))
    with pytest.raises(DataError, match="expected finite cosines"):
        Similarities(np.zeros((2, 1)), np.array([True, False]), ("anchor",))
    with pytest.raises(DataError, match="do not belong together"):
        Similarities(np.zeros((2, 2)), np.array([True, True]), ("anchor",))
