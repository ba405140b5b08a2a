"""Decoding images, batches of training images and targets."""

from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from risf_core.data.coco import load_coco
from risf_core.data.loader import ImageCache, check_images, image_order, load_batch, read_image
from risf_core.errors import DataError
from tests.data.coco_files import box_entry, image_entry, write_files

PIXELS = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3) * 3


def test_image_is_rgb_with_channels_first(tmp_path):
    Image.fromarray(PIXELS).save(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png", size=(4, 6))
    assert image.shape == (3, 4, 6) and image.dtype == torch.uint8 and image.is_contiguous()
    np.testing.assert_array_equal(image.permute(1, 2, 0).numpy(), PIXELS)


def test_exif_orientation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees clockwise
    Image.fromarray(PIXELS).save(tmp_path / "a.png", exif=exif)
    image = read_image(tmp_path / "a.png", size=(6, 4))
    np.testing.assert_array_equal(image.permute(1, 2, 0).numpy(), np.rot90(PIXELS, -1))
    with pytest.raises(DataError, match="4x6 pixels, its annotations say 6x4.*EXIF"):
        read_image(tmp_path / "a.png", size=(4, 6))


def test_other_modes_become_rgb(tmp_path):
    grey = np.array([[0, 100], [200, 255]], np.uint8)
    cases = {
        "grey.png": Image.fromarray(grey),
        "deep.png": Image.fromarray(grey.astype(np.uint16) * 256 + 7),
        "palette.png": Image.fromarray(np.dstack([grey] * 3)).convert("P", palette=Image.Palette.ADAPTIVE),
        "alpha.png": Image.fromarray(np.dstack([grey, grey, grey, 255 - grey])),
    }
    for name, image in cases.items():
        image.save(tmp_path / name)
        np.testing.assert_array_equal(read_image(tmp_path / name).numpy(), np.stack([grey] * 3), err_msg=name)
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "cmyk.jpg")
    red, green, blue = read_image(tmp_path / "cmyk.jpg")[:, 4, 4].tolist()
    assert red > 240 and green < 15 and blue < 15  # JPEG rounds
    Image.fromarray(grey.astype(np.float32)).save(tmp_path / "float.tiff")
    with pytest.raises(DataError, match="float.tiff.*floating-point"):
        read_image(tmp_path / "float.tiff")


@pytest.mark.parametrize("ending", ["jpg", "png"])
def test_truncated_files_are_named(tmp_path, ending):
    path = tmp_path / f"a.{ending}"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DataError, match=f"a.{ending} cannot be decoded"):
        read_image(path)


def test_files_that_are_missing_or_no_image_are_named(tmp_path):
    (tmp_path / "a.png").write_text("<html>not found</html>")
    with pytest.raises(DataError, match="a.png cannot be decoded"):
        read_image(tmp_path / "a.png")
    with pytest.raises(DataError, match="b.png does not exist"):
        read_image(tmp_path / "b.png")


def test_order_takes_every_image_once_in_each_pass():
    stream = [index for batch in islice(image_order(5, 3, seed=0), 20) for index in batch]
    passes = [tuple(stream[start : start + 5]) for start in range(0, 60, 5)]
    assert all(sorted(one) == [0, 1, 2, 3, 4] for one in passes) and len(set(passes)) > 6
    assert list(islice(image_order(5, 3, seed=0), 4)) == [
        stream[start : start + 3] for start in range(0, 12, 3)
    ]
    assert [len(batch) for batch in islice(image_order(2, 5, seed=1), 3)] == [5, 5, 5]


def test_batches_are_of_one_group_and_come_when_they_are_full():
    groups = ["wide", "tall", "wide", "wide", "tall"]
    batches = list(islice(image_order(5, 2, seed=0, groups=groups), 9))
    assert all(groups[first] == groups[second] for first, second in batches)
    # the first pass has two full pairs; its third wide image waits and leads the next wide pair
    assert {groups[pair[0]] for pair in batches[:2]} == {"wide", "tall"}
    shown = {image for pair in batches[:2] for image in pair}
    (left,) = set(range(5)) - shown
    assert next(pair for pair in batches[2:] if groups[pair[0]] == "wide")[0] == left
    # two passes have 10 images: every one stands twice in the 5 pairs that they fill
    assert all(sum(pair.count(image) for pair in batches[:5]) == 2 for image in range(5))


def test_order_leaves_the_global_generator_alone_and_needs_an_image():
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    next(image_order(9, 2, seed=0))
    assert torch.equal(before, torch.random.get_rng_state())
    with pytest.raises(DataError, match="from 0 images"):
        next(image_order(0, 2, seed=0))


@pytest.fixture
def data(tmp_path: Path):
    boxes = [box_entry(1, 1, 3, (1, 0, 2, 3)), box_entry(2, 1, 1, (0, 0, 6, 4), iscrowd=1)]
    path = write_files(
        tmp_path, [image_entry(1, width=6, height=4), image_entry(2, width=5, height=7)], boxes
    )
    Image.fromarray(PIXELS).save(tmp_path / "1.png")
    return load_coco(path, tmp_path)


def test_batch_has_images_at_their_own_size_and_targets_without_crowd(data):
    images, targets = load_batch(data, [1, 0])
    assert [tuple(image.shape) for image in images] == [(3, 7, 5), (3, 4, 6)]
    assert targets[1]["boxes"].tolist() == [[1, 0, 3, 3]] and targets[1]["labels"].tolist() == [1]
    assert targets[0]["boxes"].shape == (0, 4) and targets[0]["boxes"].dtype == torch.float32
    assert targets[0]["labels"].dtype == torch.int64


def test_flip_mirrors_image_and_boxes(data):
    (plain, flipped), (_, target) = load_batch(data, [0, 0], flips=[False, True])
    np.testing.assert_array_equal(flipped.numpy(), plain.numpy()[:, :, ::-1])
    assert target["boxes"].tolist() == [[3, 0, 5, 3]]
    assert data.images[0].boxes[0].tolist() == [1, 0, 3, 3]


def test_cache_keeps_what_fits_and_gives_the_same_pixels(data, tmp_path):
    cache = ImageCache(max_bytes=3 * 4 * 6)
    first, _ = load_batch(data, [0, 1], cache=cache)
    (tmp_path / "1.png").unlink()
    again, _ = load_batch(data, [0], cache=cache)
    assert torch.equal(first[0], again[0]) and cache.num_bytes == 72
    (tmp_path / "2.png").unlink()
    with pytest.raises(DataError, match="2.png"):
        load_batch(data, [1], cache=cache)


def test_size_that_differs_from_the_annotations_is_refused(data, tmp_path):
    Image.new("RGB", (9, 9)).save(tmp_path / "2.png")
    with pytest.raises(DataError, match="2.png has 9x9 pixels, its annotations say 5x7"):
        load_batch(data, [1])
    (tmp_path / "1.png").write_bytes(b"")
    with pytest.raises(DataError, match="2 bad images of 2") as caught:
        check_images(data)
    assert len(caught.value.problems) == 2
