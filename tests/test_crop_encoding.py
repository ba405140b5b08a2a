"""Which boxes get a crop, embeddings that serve any label space, and encoding that survives being killed."""

import dataclasses
import multiprocessing
import os
import random
import signal
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from risf_core.cm_clip import CMCLIP, CropEmbeddings, embed_detections, encode_detections
from risf_core.cm_clip.crop_choice import choose_crops, pair_ious
from risf_core.cm_clip.journal import Journal, weights_hash
from risf_core.data.dataset import DetectionData, ImageRecord
from risf_core.data.loader import ImageCache
from risf_core.detections import Detections
from risf_core.errors import DataError, ParamsError
from risf_core.fine_tuning import rescored
from risf_core.params import CmClipParams
from tests.color_clip import NAMES, ColorClip, color_clip, color_tokens


def of_one_image(boxes, *, proposals=None, labels=None, image_ids=None) -> Detections:
    """Detections in the order given, best first."""
    count = len(boxes)
    return Detections(
        np.ones(count) if image_ids is None else image_ids,
        boxes,
        np.linspace(0.9, 0.1, count),
        np.zeros(count) if labels is None else labels,
        np.zeros((count, 3)),
        np.arange(count) if proposals is None else proposals,
        NAMES,
    )


def shifted(*steps: float) -> list[list[float]]:
    """Boxes of 100 x 100 pixels, moved to the right: moved by s their IoU is (100 - s) / (100 + s)."""
    return [[step, 0, step + 100, 100] for step in steps]


def choice(detections, **options):
    return choose_crops(detections, np.ones(len(detections), bool), **options)


# ---------------------------------------------------------------------------------------------- which boxes


def test_ious_of_pairs_by_hand():
    boxes = np.array([[0, 0, 2, 2], [1, 0, 3, 2], [5, 5, 5, 5], [0, 0, 2, 2]], np.float32)
    expected = [[1, 1 / 3, 0, 1], [1 / 3, 1, 0, 1 / 3], [0, 0, 0, 0], [1, 1 / 3, 0, 1]]
    assert pair_ious(boxes) == pytest.approx(np.array(expected))


def test_equal_boxes_of_an_image_share_their_crop_and_of_two_images_do_not():
    boxes = [[0, 0, 5, 5], [0, 0, 5, 5], [0, 0, 5, 5], [1, 0, 5, 5]]
    found = choice(of_one_image(boxes, image_ids=[1, 1, 2, 2]))
    assert list(found.owners) == [0, 0, 2, 3]
    assert found.counts == {"boxes": 4, "equal": 1, "shared": 0, "dropped": 0, "encoded": 3}


def test_iou_groups_are_greedy_by_score_and_blind_to_the_class():
    # IoU with the first: 0.905, 0.869; of the third with the second: 0.961
    detections = of_one_image(shifted(0, 5, 7, 300), labels=[0, 1, 0, 1])
    found = choice(detections, share="iou")
    assert list(found.owners) == [0, 0, 2, 3]
    assert found.counts == {"boxes": 4, "equal": 0, "shared": 1, "dropped": 0, "encoded": 3}
    assert list(choice(detections, share="object").owners) == [0, 0, 0, 3]


def test_boxes_of_a_proposal_share_the_crop_of_the_best():
    detections = of_one_image(shifted(0, 50, 300, 350), proposals=[7, 8, 7, 8], image_ids=[1, 1, 1, 1])
    assert list(choice(detections, share="proposal").owners) == [0, 1, 0, 1]
    detections = of_one_image(shifted(0, 50), proposals=[7, 7], image_ids=[1, 2])
    assert list(choice(detections, share="proposal").owners) == [0, 1]


def test_budget_takes_an_object_each_then_by_score_and_lends_their_crops():
    # the second box overlaps the first by 0.6 and the third by 0.74, these two each other by 0.43
    detections = of_one_image(shifted(0, 25, 40, 500, 900))
    assert list(choice(detections, budget=5).owners) == [0, 1, 2, 3, 4]
    assert list(choice(detections, budget=4).owners) == [0, 2, 2, 3, 4]
    found = choice(detections, budget=2)
    assert list(found.owners) == [0, 2, 2, -1, -1]
    assert found.counts == {"boxes": 5, "equal": 0, "shared": 1, "dropped": 2, "encoded": 2}
    # an image within the budget is as without one; each image has its own
    detections = of_one_image(shifted(0, 25, 300, 0, 25), image_ids=[1, 1, 1, 2, 2])
    assert list(choice(detections, budget=2).owners) == [0, 0, 2, 3, 4]


def test_budget_counts_the_crops_that_sharing_leaves():
    detections = of_one_image(shifted(0, 2, 300, 302, 600))
    assert list(choice(detections, share="iou", budget=2).owners) == [0, 0, 2, 2, -1]
    equal = of_one_image(shifted(0, 0, 300, 300))
    found = choice(equal, budget=1)
    assert list(found.owners) == [0, 0, -1, -1]
    assert found.counts == {"boxes": 4, "equal": 1, "shared": 0, "dropped": 2, "encoded": 1}


@pytest.mark.parametrize("share", ["none", "iou", "proposal", "object"])
@pytest.mark.parametrize("budget", [None, 1, 3, 100])
def test_counts_sum_up_and_owners_lie_in_the_own_image(share, budget):
    rng = np.random.default_rng(0)
    corners = rng.integers(0, 30, (200, 2)).astype(float)
    boxes = np.concatenate([corners, corners + rng.integers(20, 30, (200, 2))], axis=1)
    boxes[10] = boxes[11] = boxes[12]
    detections = of_one_image(boxes, image_ids=rng.integers(1, 8, 200), proposals=rng.integers(0, 9, 200))
    wanted = detections.scores > 0.4
    owners, counts = choose_crops(detections, wanted, share=share, budget=budget)
    has_crop = owners >= 0
    assert not (has_crop & ~wanted).any() and wanted[owners[has_crop]].all()
    assert np.array_equal(detections.image_ids[owners[has_crop]], detections.image_ids[has_crop])
    leaders = np.unique(owners[has_crop])
    assert np.array_equal(owners[leaders], leaders)  # whoever lends a crop uses it
    parts = {name: counts[name] for name in ("equal", "shared", "dropped", "encoded")}
    assert counts["boxes"] == wanted.sum() == sum(parts.values()) and min(parts.values()) >= 0
    assert counts["encoded"] == len(leaders) and counts["dropped"] == (wanted & ~has_crop).sum()
    if budget is not None:
        assert np.bincount(detections.image_ids[leaders]).max() <= budget


def test_wrong_choices_are_named_and_nothing_is_fine():
    detections = of_one_image(shifted(0, 5))
    with pytest.raises(ParamsError, match="none, iou, proposal, object"):
        choice(detections, share="box")
    with pytest.raises(ParamsError, match="at least 1 crop"):
        choice(detections, budget=0)
    for share in ("none", "iou", "proposal", "object"):
        nothing = choose_crops(detections, np.zeros(2, bool), share=share, budget=1)
        assert list(nothing.owners) == [-1, -1] and set(nothing.counts.values()) == {0}


# ---------------------------------------------------------------------------------------------- embeddings


def scene(tmp_path, num_images=6, num_boxes=7) -> tuple[Detections, DetectionData]:
    """Random boxes in images of noise."""
    rng = np.random.default_rng(0)
    none = np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, bool)
    records = []
    for image_id in range(num_images):
        path = tmp_path / f"{image_id}.png"
        Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(path)
        records.append(ImageRecord(image_id, path, 40, 50, *none))
    count = num_images * num_boxes
    corners = rng.uniform(0, 20, (count, 2))
    detections = Detections(
        np.repeat(np.arange(num_images), num_boxes), np.concatenate([corners, corners + 15], axis=1),
        rng.uniform(0.1, 0.9, count), np.arange(count) % 2, np.zeros((count, 3)), np.arange(count), NAMES,
    )  # fmt: skip
    return detections, DetectionData("noise", NAMES, (1, 2), tuple(records))


def test_one_embedding_serves_every_label_space(tmp_path):
    detections, data = scene(tmp_path)
    clip = color_clip()
    embeddings = embed_detections(detections, data, clip)
    assert embeddings.embeds_norm.shape == (42, 3) and embeddings.embeds_norm.dtype == np.float32
    assert np.linalg.norm(embeddings.embeds_norm, axis=1) == pytest.approx(np.ones(42), abs=1e-6)
    own = encode_detections(detections, data, clip)
    assert np.array_equal(
        embeddings.similarities(clip.text_embeds_norm, clip.label_space).cosines, own.cosines
    )
    wide = ("red", "green", "white", "background")
    similarities = embeddings.similarities(clip.encode_names(wide), wide)
    assert similarities.columns(clip.label_space) == pytest.approx(own.cosines, abs=1e-6)


def test_shared_crops_give_equal_cosines_and_dropped_ones_none(tmp_path):
    detections, data = scene(tmp_path)
    clip = color_clip()
    embeddings = embed_detections(detections, data, clip, share="iou", budget=3)
    owners, counts = choose_crops(detections, np.ones(42, bool), share="iou", budget=3)
    assert sum(clip.model.batch_sizes) == counts["encoded"] == len(embeddings.embeds_norm) == 18
    assert embeddings.counts == counts
    found = embeddings.similarities(clip.text_embeds_norm, clip.label_space)
    assert np.array_equal(found.encoded, owners >= 0) and 0 < counts["dropped"]
    everything = encode_detections(detections, data, clip)
    assert found.cosines[owners >= 0] == pytest.approx(everything.cosines[owners[owners >= 0]], abs=1e-6)


def test_embeddings_are_read_back_as_they_were(tmp_path):
    detections, data = scene(tmp_path)
    embeddings = embed_detections(detections, data, color_clip(), budget=2)
    embeddings.save(tmp_path / "e.npz")
    again = CropEmbeddings.load(tmp_path / "e.npz")
    assert np.array_equal(again.embeds_norm, embeddings.embeds_norm) and again.counts == embeddings.counts
    assert np.array_equal(again.rows, embeddings.rows)
    with pytest.raises(DataError, match="no such file"):
        CropEmbeddings.load(tmp_path / "other.npz")


def test_an_image_is_read_once_though_its_crops_fill_several_batches(tmp_path, monkeypatch):
    detections, data = scene(tmp_path)
    read = []
    pixels = torch.zeros(3, 40, 50, dtype=torch.uint8)
    monkeypatch.setattr(ImageCache, "read", lambda self, record: read.append(record) or pixels)
    clip = color_clip(batch_size=3)
    embed_detections(detections, data, clip)
    assert read == list(data.images) and max(clip.model.batch_sizes) == 3


# ---------------------------------------------------------------------------------------------- being killed


def same_clip(**options) -> CMCLIP:
    """A CLIP whose weights are always the same."""
    torch.manual_seed(0)
    return color_clip(**options)


class SlowClip(ColorClip):
    """Takes its time, and writes down the mean colour of every crop that it embeds."""

    def __init__(self, log, seconds: float) -> None:
        super().__init__(4)
        self.log, self.seconds = log, seconds

    def encode_image(self, crops):
        time.sleep(self.seconds)
        with self.log.open("ab") as log:
            log.write(crops.mean((2, 3)).numpy().tobytes())
        return super().encode_image(crops)


def run_in_child(detections, data, clip, journal):
    process = multiprocessing.get_context("fork").Process(
        target=embed_detections, args=(detections, data, clip), kwargs={"journal": journal}
    )
    process.start()
    return process


def test_a_killed_run_goes_on_and_encodes_nothing_twice_that_is_stored(tmp_path):
    detections, data = scene(tmp_path, num_images=20)
    log, folder, kills = tmp_path / "log", tmp_path / "journal", 0
    clip = CMCLIP(SlowClip(log, 0.005), color_tokens, NAMES, batch_size=4)  # 40 batches
    expected = embed_detections(detections, data, same_clip(batch_size=4))
    rng, stored = random.Random(0), 0
    for _ in range(4):
        process = run_in_child(detections, data, clip, folder)
        time.sleep(rng.uniform(0.03, 0.08))
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        kills += process.exitcode == -signal.SIGKILL
        (path,) = folder.glob("*.crops")
        assert path.stat().st_size >= stored  # what was stored stays
        stored = path.stat().st_size
    found = embed_detections(detections, data, clip, journal=folder)
    assert np.array_equal(found.embeds_norm, expected.embeds_norm)  # bit for bit, in the same batches
    num_encoded = log.stat().st_size // (3 * 4)
    assert kills >= 2 and len(detections) <= num_encoded <= len(detections) + 4 * kills  # a batch each
    embed_detections(detections, data, clip, journal=folder)
    assert log.stat().st_size // (3 * 4) == num_encoded  # now nothing is left


def test_torn_and_damaged_ends_are_encoded_again(tmp_path):
    detections, data = scene(tmp_path)
    expected = embed_detections(detections, data, same_clip(batch_size=7), journal=tmp_path / "j")
    (path,) = (tmp_path / "j").glob("*.crops")
    whole = path.read_bytes()
    for end, lost in (
        (whole[:-1], 1),
        (whole[:-90], 1),
        (whole[:-110], 2),
        (whole + bytes(40), 0),
        (whole[:20], 6),
    ):
        path.write_bytes(end)
        clip = same_clip(batch_size=7)
        found = embed_detections(detections, data, clip, journal=tmp_path / "j")
        assert clip.model.batch_sizes == [7] * lost
        assert np.array_equal(found.embeds_norm, expected.embeds_norm) and path.read_bytes() == whole
    flipped = bytearray(whole)
    flipped[len(whole) - 150] ^= 1  # within the last but one
    path.write_bytes(flipped)
    clip = same_clip(batch_size=7)
    embed_detections(detections, data, clip, journal=tmp_path / "j")
    assert clip.model.batch_sizes == [7, 7]


def test_other_boxes_images_weights_or_options_start_anew_and_say_so(tmp_path, caplog):
    detections, data = scene(tmp_path)
    embed_detections(detections, data, same_clip(), journal=tmp_path / "j")

    def encoded(detections=detections, data=data, clip=None, **options):
        clip = clip or same_clip()
        embed_detections(detections, data, clip, journal=tmp_path / "j", **options)
        return sum(clip.model.batch_sizes)

    assert encoded() == 0 and "encoding anew" not in caplog.text
    assert encoded(detections.with_scores(detections.scores[::-1].copy())) == 0  # scores change no crop
    assert encoded(score_thresh=0.5) > 0 and "encoding anew" in caplog.text
    other = same_clip()
    with torch.no_grad():
        other.model.visual.conv.bias.add_(1)
    assert encoded(clip=other) == 42
    assert encoded(clip=same_clip(preprocess="released")) == 42
    pixels = np.random.default_rng(1).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    before = data.images[0].path.stat().st_size
    Image.fromarray(pixels).save(data.images[0].path)
    assert data.images[0].path.stat().st_size == before  # noise: only the content tells
    assert encoded() == 42
    assert len(list((tmp_path / "j").glob("*.crops"))) == 5  # the first of them is still there


def test_other_ids_and_orders_of_the_same_images_encode_nothing_again(tmp_path):
    detections, data = scene(tmp_path)
    first = embed_detections(detections, data, same_clip(), journal=tmp_path / "j")
    records = [dataclasses.replace(record, image_id=9 - record.image_id) for record in data.images[::-1]]
    reverse = np.arange(len(detections))[::-1]
    names = ("boxes", "scores", "labels", "class_scores", "proposals")
    columns = (getattr(detections, name)[reverse] for name in names)
    renamed = Detections(9 - detections.image_ids[reverse], *columns, NAMES)
    clip = same_clip()
    again = embed_detections(
        renamed, dataclasses.replace(data, images=tuple(records)), clip, journal=tmp_path / "j"
    )
    assert not clip.model.batch_sizes
    rows = dict(zip(detections.proposals.tolist(), first.rows.tolist()))
    assert again.rows.tolist() == [rows[proposal] for proposal in renamed.proposals.tolist()]


def test_two_processes_do_not_write_one_journal(tmp_path):
    with Journal(tmp_path, "k" * 64), pytest.raises(DataError, match="another process writes it"):
        Journal(tmp_path, "k" * 64)
    with pytest.raises(DataError, match="cannot be written .*Give a folder that you may write to"):
        Journal(tmp_path / f"{'k' * 16}.crops" / "x", "k" * 64)


def test_weights_and_structure_make_the_hash():
    torch.manual_seed(0)
    layers = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.GELU())
    same = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.GELU())
    assert weights_hash(same) != weights_hash(layers)
    same.load_state_dict(layers.state_dict())
    assert weights_hash(same) == weights_hash(layers)
    assert weights_hash(torch.nn.Sequential(layers[0], torch.nn.ReLU())) != weights_hash(layers)
    assert weights_hash(same.to(torch.bfloat16)) != weights_hash(layers)


# ---------------------------------------------------------------------------------------------- parameters


def test_parameters_reach_the_crops_and_what_is_left_out_keeps_its_score(tmp_path):
    detections, data = scene(tmp_path)
    params = CmClipParams(share="iou", budget=2, label_spaces=("novel+background",))
    clip = same_clip()
    similarities = encode_detections(detections, data, clip, **params.crop_choice())
    owners, _ = choose_crops(detections, np.ones(42, bool), share="iou", budget=2)
    benchmark = SimpleNamespace(novel_names=NAMES, base_names=())
    ((_, after),) = rescored(detections, similarities, benchmark, params)
    new = after.scores[np.argsort(after.proposals)][detections.proposals]
    assert np.array_equal(new != detections.scores, owners >= 0) and 0 < (owners < 0).sum() < 42
    without_budget = CmClipParams(label_spaces=("novel+background",))
    with pytest.raises(DataError, match="were not encoded"):
        list(rescored(detections, similarities, benchmark, without_budget))
