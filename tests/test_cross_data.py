"""Another data set or vocabulary at test time: names to columns, permuted texts, and the second look of the scenes."""

from pathlib import Path

import numpy as np
import pytest

from risf_core.data.benchmark import open_benchmark
from risf_core.data.coco import load_coco
from risf_core.data.dataset import DetectionData, ImageRecord
from risf_core.data.glyphs import CONCEPTS
from risf_core.data.loader import read_image
from risf_core.detections import Detections
from risf_core.errors import DataError, SplitError
from risf_core.evaluation import evaluate
from risf_core.open_vocabulary.cross_data import (
    match_names,
    name_words,
    other_palette,
    permuted_names,
    pictogram_vocabularies,
    read_text_features,
    released_texts,
    repaint,
    swap_vocabulary,
)
from risf_core.params import PictogramData
from tests.real_data import real_data

BOXES = np.array([[1, 1, 5, 5], [2, 2, 8, 8], [0, 0, 9, 4]], np.float32)


def toy(class_names=("sofa", "wine_glass", "bat_(animal)")):
    labels, crowd = np.arange(3) % len(class_names), np.zeros(3, bool)
    image = ImageRecord(7, Path("7.png"), 10, 10, BOXES, labels, crowd)
    return DetectionData("toy", class_names, (3, 5, 9)[: len(class_names)], (image,))


# ------------------------------------------------------------ names to columns


def test_classes_find_their_columns_by_their_words():
    swapped = swap_vocabulary(toy(), ("dog", "Bat (animal)", "wine glass", "Sofa"))
    assert swapped.class_names == ("dog", "Bat (animal)", "wine glass", "Sofa")
    assert swapped.images[0].labels.tolist() == [3, 2, 1]
    assert swapped.category_ids == (1, 2, 3, 4)
    assert swapped.counts() == {"dog": 0, "Bat (animal)": 1, "wine glass": 1, "Sofa": 1}


def test_renamed_classes_may_share_a_column_and_others_be_left_out():
    swapped = swap_vocabulary(
        toy(), ("couch", "cup"), renamed={"sofa": "couch", "wine_glass": "cup"}, leave_out=["bat_(animal)"]
    )
    assert swapped.images[0].labels.tolist() == [0, 1]
    assert swapped.images[0].boxes.tolist() == BOXES[:2].tolist()
    merged = swap_vocabulary(toy(("cup", "mug")), ("cup",), renamed={"mug": "cup"})
    assert merged.images[0].labels.tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("names", "options", "message"),
    [
        (("sofas", "wine glass", "bat animal"), {}, "'sofa' of the data has no column.*'sofas'"),
        (("sofa", "wine glass", "wine-glass", "bat animal"), {}, "could be 'wine glass' or 'wine-glass'"),
        (("sofa", "glass", "bat animal"), {"renamed": {"wine_glass": "glas"}}, "no class 'glas'"),
        (("sofa",), {"renamed": {"couch": "sofa"}}, "no class 'couch'"),
        (("sofa",), {"leave_out": ["wine"]}, "no class 'wine'"),
        (("sofa", "sofa"), {}, "twice"),
    ],
)
def test_names_that_do_not_fit_are_refused(names, options, message):
    with pytest.raises(SplitError, match=message):
        swap_vocabulary(toy(), names, **options)


def test_the_exact_spelling_comes_before_the_words():
    assert match_names(["wine-glass"], ("wine glass", "wine-glass"), {}) == {"wine-glass": 1}


def test_words_of_names_as_lvis_writes_them():
    assert name_words("bow_(decorative_ribbons)") == "bow decorative ribbons"
    assert name_words("T-shirt") == "t shirt"
    assert released_texts(["bat_(animal)"]) == ("a photo of a bat_(animal)",)


def test_distractor_columns_have_no_ap_and_leave_the_mean_alone():
    swapped = swap_vocabulary(toy(), ("sofa", "wine glass", "bat animal", "dog"))
    scores = np.array([0.9, 0.8, 0.7, 0.6])
    boxes, labels = np.vstack([BOXES, BOXES[:1]]), np.arange(4)
    found = Detections(
        np.full(4, 7), boxes, scores, labels, np.zeros((4, 5)), np.arange(4), swapped.class_names
    )
    result = evaluate(found, swapped)
    assert result["AP50"] == pytest.approx(100.0) and result["per_class"]["dog"]["AP50"] is None


def test_a_real_coco_file_goes_under_another_vocabulary():
    folder = real_data("coco_permissive")
    data = load_coco(folder / "instances.json", folder / "images")
    names = tuple(reversed([name.replace(" ", "_") for name in data.class_names])) + ("anchor",)
    swapped = swap_vocabulary(data, names)
    assert {name.replace("_", " "): count for name, count in swapped.counts().items() if count} == {
        name: count for name, count in data.counts().items() if count
    }


# ------------------------------------------------------------ permuted texts, text features


def test_every_column_gets_the_text_of_another():
    names = tuple(CONCEPTS)
    for seed in range(5):
        permuted = permuted_names(names, seed=seed)
        assert sorted(permuted) == sorted(names)
        assert all(own != other for own, other in zip(names, permuted, strict=True))
    assert permuted_names(names, seed=1) == permuted_names(names, seed=1) != permuted_names(names, seed=2)
    with pytest.raises(SplitError, match="cannot be permuted"):
        permuted_names(("sun",), seed=0)


def test_text_features_are_read_and_checked(tmp_path):
    path, names = tmp_path / "texts.npy", ("sun", "cat", "cup")
    features = np.arange(1, 13, dtype=np.float16).reshape(3, 4)
    np.save(path, features)
    read = read_text_features(path, names)
    assert read.dtype == np.float32 and (read == features).all()
    with pytest.raises(DataError, match="for 2 classes"):
        read_text_features(path, names[:2])
    features[1] = 0
    np.save(path, features)
    with pytest.raises(DataError, match="'cat' is zero"):
        read_text_features(path, names)
    features[1], features[2, 0] = 1, np.nan
    np.save(path, features)
    with pytest.raises(DataError, match="'cup' is zero or not finite"):
        read_text_features(path, names)
    path.write_bytes(b"\x93NUMPY")
    with pytest.raises(DataError, match="not a readable"):
        read_text_features(path, names)
    with pytest.raises(DataError, match="no such file"):
        read_text_features(tmp_path / "none.npy", names)


# ------------------------------------------------------------ the pictogram world


def test_the_colours_turn_and_grey_stays_but_for_the_light():
    pixels = np.zeros((20, 20, 3), np.uint8)
    pixels[:10], pixels[10:] = (200, 0, 0), (100, 100, 100)
    painted = repaint(pixels, number=3)
    assert (painted[:10, :, :2] == 0).all() and (painted[:10, :, 2] > 100).all()  # red is blue
    grey = painted[10:].astype(int)
    assert (grey.max(axis=2) == grey.min(axis=2)).all()
    flat = repaint(np.full((40, 40, 3), 100, np.uint8), number=8)[..., 0]
    assert flat.min() == 75 and flat.max() == 125  # light from 1 - 0.25 to 1 + 0.25
    assert flat.mean() == pytest.approx(100, abs=0.5)
    assert (repaint(pixels, number=3) == painted).all() and (repaint(pixels, number=4) != painted).any()
    assert (repaint(np.full((4, 4, 3), 255, np.uint8), number=1) >= 190).all()  # clipped, not wrapped


def test_the_other_palette_has_the_same_boxes_and_is_written_once(tmp_path):
    data = PictogramData(
        root=str(tmp_path), image_size=96, num_base_images=60, num_test_images=8, num_classification=100,
        num_corpus=100, extra_novel=1, few_shot_seeds=1, shots=(1,),
    )  # fmt: skip
    test = open_benchmark(data, split=1).test
    painted = other_palette(data, test)
    for old, new in zip(test.images, painted.images, strict=True):
        assert (old.boxes == new.boxes).all() and (old.labels == new.labels).all()
        pixels = read_image(old.path).permute(1, 2, 0).numpy()
        expected = repaint(pixels, number=old.image_id)
        assert (read_image(new.path, size=(96, 96)).permute(1, 2, 0).numpy() == expected).all()
    assert painted.class_names == test.class_names
    written = painted.images[0].path.stat().st_mtime_ns
    assert other_palette(data, test).images[0].path.stat().st_mtime_ns == written
    other_split = other_palette(data, open_benchmark(data, split=2).test)
    assert other_split.images[0].path == painted.images[0].path  # one folder for all splits


def test_the_vocabularies_of_the_world():
    found = pictogram_vocabularies(("queen", "sun"))
    assert found["own"] == ("queen", "sun") and found["all"][:2] == ("queen", "sun")
    assert len(found["all"]) == 2 + 50
