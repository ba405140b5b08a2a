"""The demo: committed weights and their hashes, half precision, the paired interval, the scenes, the numbers."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from risf_core import demo
from risf_core.clip_models import load_clip, new_clip
from risf_core.cm_clip import CMCLIP
from risf_core.data.dataset import DetectionData, ImageRecord
from risf_core.data.world import build_world
from risf_core.demo_weights import (
    CLIP,
    DETECTOR,
    EMBEDDING,
    FACTS,
    MAX_BYTES,
    halved,
    load_half_clip,
    read_facts,
    save_half_clip,
    save_half_detector,
    write_facts,
)
from risf_core.detections import Detections
from risf_core.detector.checkpoints import save_checkpoint, save_detector
from risf_core.errors import CheckpointError, DataError, ParamsError, RecordError
from risf_core.evaluation import Evaluator
from risf_core.paired_bootstrap import paired_ap50
from risf_core.params import PictogramData
from risf_core.prediction import open_detector_file
from risf_core.report.publish import publish_demo
from risf_core.runs.yaml_files import project_path

from .detector.conftest import tiny_detector, tiny_params  # noqa: F401  fixtures

PUBLISHED = project_path(demo.PUBLISHED)
published = pytest.mark.skipif(
    not (PUBLISHED / FACTS).is_file(),
    reason="no weights are published; make reproduce and make publish do it",
)
TOWER = "risf-tiny-resnet"
WORLD = {"image_size": 96, "num_base_images": 8, "num_test_images": 12, "shots": [1], "few_shot_seeds": 1}


@pytest.fixture(scope="module")
def clip_file(tmp_path_factory):
    """A tiny CLIP with random weights, whole and small."""
    folder = tmp_path_factory.mktemp("clip")
    model, _ = new_clip(TOWER, seed=3)
    save_checkpoint(folder / "clip.pt", dict(model.eval().state_dict()))
    captions = ["a photo of red cat", "a photo of dog", "background"]
    count = save_half_clip(folder / "clip.pt", folder / CLIP, tower=TOWER, captions=captions)
    return folder, count


@pytest.fixture
def weights(tmp_path, tiny_detector, clip_file):  # noqa: F811
    """A folder of small weights with their facts."""
    save_detector(tmp_path / "model.pth", tiny_detector, ["red", "green", "blue"])
    save_half_detector(tmp_path / "model.pth", tmp_path / "demo" / DETECTOR)
    shutil.copy(clip_file[0] / CLIP, tmp_path / "demo" / CLIP)
    write_facts(tmp_path / "demo", {"num_images": 3})
    return tmp_path / "demo"


# ------------------------------------------------------------------------------------------------------ the weights


def test_half_detector_is_one_of_ours_with_rounded_kernels(weights, tiny_detector):  # noqa: F811
    loaded = open_detector_file(weights / DETECTOR)
    assert loaded.class_names == ("red", "green", "blue")
    own, half = tiny_detector.state_dict(), loaded.detector.state_dict()
    for key, value in own.items():
        expected = value.half().float() if value.ndim >= 2 and value.is_floating_point() else value
        assert torch.equal(half[key], expected), key
    size = (weights / DETECTOR).stat().st_size
    assert size < 0.65 * (weights.parent / "model.pth").stat().st_size


def test_halving_refuses_what_leaves_the_range():
    with pytest.raises(CheckpointError, match="kernel leaves the range of float16"):
        halved({"norm.running_var": torch.tensor([1e6]), "kernel": torch.full((2, 2), 1e6)})


def test_half_clip_sees_and_reads_as_the_whole_one(clip_file):
    """Cosines of random crops and known names move by the rounding of float16 (2^-11 of a weight) alone."""
    folder, count = clip_file
    whole, small = load_clip(TOWER, folder / "clip.pt"), load_half_clip(folder / CLIP)
    assert count == 10  # padding, start, end, a photo of, red cat dog, background: one token each
    image = torch.randint(0, 255, (3, 80, 80), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    boxes = torch.tensor([[0.0, 0, 40, 40], [10, 10, 80, 60]])
    cosines = [
        CMCLIP(one.model, one.tokenizer, ["cat", "dog"]).cosines(image, boxes) for one in (whole, small)
    ]
    torch.testing.assert_close(cosines[0], cosines[1], atol=5e-3, rtol=0)
    assert not small.info.is_random and small.info.num_parameters == whole.info.num_parameters


def test_small_clip_refuses_a_word_it_never_saw(clip_file):
    small = load_half_clip(clip_file[0] / CLIP)
    with pytest.raises(ParamsError, match="'a photo of zebra' has 'zebra.*never saw"):
        CMCLIP(small.model, small.tokenizer, ["cat", "zebra"])
    assert torch.isnan(small.model.state_dict()[EMBEDDING]).any()


@pytest.mark.parametrize("name", [DETECTOR, CLIP])
def test_a_tampered_byte_is_refused_by_name(weights, name):
    content = bytearray((weights / name).read_bytes())
    content[len(content) // 2] ^= 1
    (weights / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"{name}: its SHA-256 is .* was not opened. Restore it"):
        read_facts(weights)


def test_missing_and_unreadable_files_are_named(weights):
    assert read_facts(weights)["num_images"] == 3
    (weights / CLIP).rename(weights / "other")
    with pytest.raises(CheckpointError, match=f"{CLIP}: there is no such file"):
        read_facts(weights)
    (weights / FACTS).write_text("{}")
    with pytest.raises(CheckpointError, match=f"{FACTS}: not readable"):
        read_facts(weights)


# ----------------------------------------------------------------------------------------------------- the interval


def made_detections(seed: int, num_images: int = 30, digits: int = 1) -> tuple[Detections, DetectionData]:
    """Up to three objects in an image, of two classes; jittered boxes around them, some of the other class."""
    rng = np.random.default_rng(seed)
    images, rows = [], []
    for image_id in range(1, num_images + 1):
        count = int(rng.integers(0, 4))
        corners = rng.uniform(0, 60, (count, 2)).astype(np.float32)
        boxes = np.concatenate([corners, corners + rng.uniform(8, 30, (count, 2)).astype(np.float32)], axis=1)
        labels = rng.integers(0, 2, count)
        images.append(
            ImageRecord(
                image_id, Path(f"{image_id}.png"), 100, 100, boxes, labels, np.zeros(count, dtype=bool)
            )
        )
        for box, label in zip([*boxes, *boxes], [*labels, *labels], strict=True):
            near = np.sort((box + rng.normal(0, 3, 4)).reshape(2, 2), axis=0).ravel()
            rows.append(
                (
                    image_id,
                    near,
                    round(rng.uniform(0.06, 1), digits),
                    label if rng.random() < 0.8 else 1 - label,
                )
            )
    image_ids, boxes, scores, labels = (np.array(column) for column in zip(*rows, strict=True))
    found = Detections(
        image_ids, boxes, scores, labels, np.zeros((len(rows), 3)), np.arange(len(rows)), ("red", "green")
    )
    return found, DetectionData("made", ("red", "green"), (1, 2), tuple(images))


@pytest.mark.parametrize("seed", range(5))
def test_ap50_is_that_of_pycocotools(seed):
    found, data = made_detections(seed)
    other = found.with_scores(np.random.default_rng(seed).permutation(found.scores))
    result = paired_ap50(found, other, data, resamples=50)
    evaluator = Evaluator(data)
    expected = [evaluator.evaluate(one)["AP50"] for one in (found, other)]
    assert [result.before, result.after] == pytest.approx(expected, abs=1e-9)  # other orders of the same sums
    assert result.low <= result.high and result.difference == result.after - result.before


def test_interval_is_that_of_images_drawn_with_replacement():
    """Weights stand for copies: a resample evaluated by pycocotools on copied images gives the same difference."""
    found, data = made_detections(7, num_images=12, digits=9)  # no ties: copies would mix them between images
    other = found.with_scores(found.scores[::-1].copy())
    drawn = np.random.default_rng(0).integers(0, 12, 12)
    copies, parts = [], {"before": [], "after": []}
    for new_id, place in enumerate(drawn.tolist(), start=1):
        record = data.images[place]
        values = {name: getattr(record, name) for name in ("boxes", "labels", "is_crowd")}
        copies.append(ImageRecord(new_id, record.path, 100, 100, **values))
        for name, detections in (("before", found), ("after", other)):
            part = detections.keep(detections.image_ids == record.image_id)
            parts[name].append((new_id, part))
    evaluator = Evaluator(DetectionData("copies", data.class_names, (1, 2), tuple(copies)))
    values = {name: evaluator.evaluate(join(copied))["AP50"] for name, copied in parts.items()}
    one = paired_ap50(found, other, data, resamples=1)
    assert one.low == one.high == pytest.approx(values["after"] - values["before"], abs=1e-9)


def join(parts) -> Detections:
    columns = ("boxes", "scores", "labels", "class_scores", "proposals")
    image_ids = np.concatenate([np.full(len(part), new_id) for new_id, part in parts])
    arrays = {name: np.concatenate([getattr(part, name) for _, part in parts]) for name in columns}
    return Detections(image_ids, **arrays, class_names=("red", "green"))


def test_interval_refuses_data_it_does_not_know():
    found, data = made_detections(0, num_images=4)
    with pytest.raises(DataError, match="classes are not those"):
        paired_ap50(found, found, data.select_classes(["green", "red"]))
    bare = tuple(record.keep(np.zeros(len(record.labels), dtype=bool)) for record in data.images)
    with pytest.raises(DataError, match="no image has an object of red, green"):
        paired_ap50(found, found, DetectionData("bare", ("red", "green"), (1, 2), bare))


# -------------------------------------------------------------------------------------------------- scenes, numbers


def test_scenes_are_the_first_of_the_world(tmp_path):
    data = PictogramData.model_validate(WORLD | {"root": str(tmp_path / "world")})
    facts = {"data": data.model_dump(mode="json", exclude={"root"}), "num_images": 5}
    few = demo.first_scenes(facts, tmp_path / "demo", ("cat", "queen"))
    world = build_world(data)
    annotations = json.loads(world.test_annotations.read_text())
    assert [record.image_id for record in few.images] == [image["id"] for image in annotations["images"][:5]]
    for record, image in zip(few.images, annotations["images"], strict=False):
        assert record.path.read_bytes() == (world.root / image["file_name"]).read_bytes()
    first_ids = {record.image_id for record in few.images}
    names = {entry["name"]: entry["id"] for entry in annotations["categories"]}
    for name, count in few.counts().items():
        own = [a for a in annotations["annotations"] if a["category_id"] == names[name]]
        assert count == sum(annotation["image_id"] in first_ids for annotation in own)
    assert not any((tmp_path / "demo").glob("*/trainval"))


def test_numbers_are_compared_with_the_stored_ones(tmp_path):
    _, data = made_detections(0)
    measured = demo.Measured(None, None, data, dict.fromkeys(demo.NUMBERS, 50.0))
    limit = demo.tolerance(data)
    assert limit == pytest.approx(100 / min(data.counts().values()) / 2)
    assert "exactly" in demo.compare(measured, dict.fromkeys(demo.NUMBERS, 50.0))
    assert "0.001 away" in demo.compare(measured, dict.fromkeys(demo.NUMBERS, 50.001))
    with pytest.raises(RecordError, match="found nAP50_before 50.00, .* expected nAP50_before"):
        demo.compare(measured, dict.fromkeys(demo.NUMBERS, 50.0 + 1.01 * limit))


def test_publishing_copies_the_weights_of_the_one_run_that_made_some(tmp_path):
    records = [{"notebook": name, "run_id": run} for name, run in (("22_predict", "a"), ("22_predict", "b"))]
    old, made = tmp_path / "published" / "demo", tmp_path / "artifacts" / "b" / "demo"
    old.mkdir(parents=True)
    (old / "old.txt").touch()
    publish_demo(records, tmp_path, tmp_path / "published")
    assert (old / "old.txt").exists()  # without weights nothing changes
    made.mkdir(parents=True)
    (made / FACTS).write_text("{}")
    publish_demo(records, tmp_path, tmp_path / "published")
    assert [path.name for path in old.iterdir()] == [FACTS]
    shutil.copytree(made, tmp_path / "artifacts" / "a" / "demo")
    with pytest.raises(RecordError, match="two runs made weights for the demo"):
        publish_demo(records, tmp_path, tmp_path / "published")


@published
def test_published_weights_are_small_and_whole():
    facts = read_facts(PUBLISHED)
    assert sum(path.stat().st_size for path in PUBLISHED.iterdir()) <= MAX_BYTES
    assert facts["expected"]["low"] <= facts["expected"]["difference"] <= facts["expected"]["high"]
    assert len(facts["detector"]["class_names"]) == 5 and facts["detector"]["shots"] == 10
    state = torch.load(PUBLISHED / DETECTOR, weights_only=True)["model"]
    assert {value.dtype for value in state.values() if value.ndim >= 2} == {torch.float16}


def test_a_missing_gpu_and_an_output_that_is_a_file_are_one_line(weights, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (tmp_path / "file").touch()
    for words, complaint in (
        (
            ["--device", "cuda", "--output", tmp_path / "out"],
            "ParamsError: --device cuda, but torch finds no GPU",
        ),
        (
            ["--output", tmp_path / "file"],
            f"ParamsError: --output {tmp_path / 'file'}: nothing can be written",
        ),
        (["--output", "/proc/x"], "ParamsError: --output /proc/x: nothing can be written there"),
    ):
        assert demo.main(["--weights", str(weights), *map(str, words)]) == 1
        said = capsys.readouterr()
        assert said.err.startswith(complaint) and said.err.count("\n") == 1 and not said.out
    assert not (tmp_path / "out").exists()


@published
def test_demo_gives_a_picture_and_the_number(tmp_path, capsys):
    """All of it at once, on fewer scenes: the stored numbers are those of other images, so they are taken anew."""
    folder = tmp_path / "weights"
    shutil.copytree(PUBLISHED, folder)
    facts = json.loads((folder / FACTS).read_text()) | {"num_images": 12, "resamples": 50}
    facts["expected"] = demo.measure(folder, facts, tmp_path / "out").numbers
    (folder / FACTS).write_text(json.dumps(facts))
    assert demo.main(["--weights", str(folder), "--output", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert "nAP50 on the first 12 test scenes, 5 novel classes, K = 10, ce, seed 0" in said
    assert "exactly those stored" in said and "bootstrap interval over the images" in said
    assert (tmp_path / "out" / "before_after.png").stat().st_size > 20_000
    (folder / CLIP).write_bytes(b"nothing")
    assert demo.main(["--weights", str(folder), "--output", str(tmp_path / "out")]) == 1
    assert f"{CLIP}: its SHA-256" in capsys.readouterr().err
