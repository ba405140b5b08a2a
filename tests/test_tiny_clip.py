"""Tiny CLIPs: training repeats exactly and learns, open_clip loads the checkpoint, accuracy by hand."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch

from risf_core.clip_models import load_clip, new_clip
from risf_core.errors import CheckpointError, DataError, ParamsError
from risf_core.params import CocoData, PictogramData, TinyClipParams
from risf_core.tiny_clip import (
    fit_clip,
    held_out_photos,
    low_res_views,
    save_clip,
    train_and_score,
    train_tiny_clip,
)

TOWERS = ["risf-tiny-resnet", "risf-tiny-vit", "risf-tiny-convnext", "risf-tiny-swin"]


def bars(count: int, *, seed: int = 0) -> tuple[np.ndarray, list[str], np.ndarray]:
    """Photos of a bright bar on dark noise, upright or flat, with captions and labels (0 upright, 1 flat)."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 80, (count, 64, 64, 3), dtype=np.uint8)
    labels = np.arange(count) % 2
    for image, label in zip(images, labels):
        start = rng.integers(16, 36)
        part = (
            (slice(None), slice(start, start + 12)) if label == 0 else (slice(start, start + 12), slice(None))
        )
        image[part] = 220
    return images, [f"a photo of {('umbrella', 'keyboard')[label]}" for label in labels], labels


def params(**values) -> TinyClipParams:
    return TinyClipParams(profile="smoke", **{"iterations": 2, "batch_size": 8, "lr": 1.0e-3} | values)


@pytest.mark.parametrize("tower", TOWERS)
def test_same_seed_gives_identical_parameters(tower):
    images, captions, _ = bars(16)
    runs = [fit_clip(images, captions, params(tower=tower, seed=seed)) for seed in (3, 3, 4)]
    states = [model.state_dict() for model, _ in runs]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert not torch.equal(states[0]["text_projection"], states[2]["text_projection"])
    assert runs[0][1] == runs[1][1] and runs[0][1][-1]["iteration"] == 2


def test_training_leaves_the_global_generator_alone():
    images, captions, _ = bars(16)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    fit_clip(images, captions, params())
    assert torch.equal(before, torch.get_rng_state())


def test_loss_falls_and_bars_are_told_apart():
    images, captions, labels = bars(64)
    model, curve = fit_clip(
        images, captions, params(iterations=30, batch_size=16, lr=2.0e-3, precision="fp32")
    )
    # 16 photos with 2 captions: chance is log(16) = 2.77, and the captions' ambiguity alone leaves log(8) = 2.08.
    assert curve[0]["loss"] > 2.5 and np.mean([point["loss"] for point in curve[-5:]]) < 2.25
    assert len(curve) == 30 and not model.training


@pytest.mark.parametrize("tower", TOWERS)
def test_open_clip_loads_the_checkpoint(tower, tmp_path):
    model, tokenizer = new_clip(tower, seed=5)
    model.eval().requires_grad_(False)  # the flag decides which attention kernel runs
    save_clip(model, tmp_path / "clip.pt")
    again, _, _ = open_clip.create_model_and_transforms(tower, pretrained=str(tmp_path / "clip.pt"))
    ours = load_clip(tower, tmp_path / "clip.pt")
    photos, tokens = torch.randn(3, 3, 64, 64), tokenizer(["a photo of a cat", "cup"])
    for loaded in (again.eval().requires_grad_(False), ours.model):
        # ours keeps channels last, in which convolutions round differently
        assert torch.allclose(loaded.encode_image(photos), model.encode_image(photos), atol=1e-5)
        for name, weight in model.state_dict().items():
            assert torch.equal(loaded.state_dict()[name], weight)
        assert torch.equal(loaded.encode_text(tokens), model.encode_text(tokens))
    assert not ours.info.is_random and ours.info.image_size == (64, 64)
    assert tokens.shape == (2, 16) and [path.name for path in tmp_path.iterdir()] == ["clip.pt"]


def test_random_weights_are_marked_and_follow_the_seed():
    first, again, other = (load_clip("risf-tiny-resnet", None, seed=seed) for seed in (1, 1, 2))
    weights = [clip.model.visual.conv1.weight for clip in (first, again, other)]
    assert (
        first.info.is_random
        and torch.equal(weights[0], weights[1])
        and not torch.equal(weights[0], weights[2])
    )
    assert not weights[0].requires_grad and not first.model.training


@dataclass
class FakeWorld:
    photos: int = 20

    def corpus(self):
        return bars(self.photos)


@dataclass
class FakeRun:
    dir: Path
    device: str = "cpu"
    environment: dict = field(default_factory=dict)


def test_run_trains_on_all_but_the_held_out_photos(tmp_path):
    run = FakeRun(tmp_path)
    path, curve = train_tiny_clip(params(batch_size=4), FakeWorld(), run)
    images, captions, _ = bars(20)
    expected, _ = fit_clip(images[:18], captions[:18], params(batch_size=4))
    state = torch.load(path, weights_only=True)
    assert all(torch.equal(state[key], value) for key, value in expected.state_dict().items())
    assert run.environment["training_precision"] in ("bfloat16", "float32") and len(curve) == 2
    assert held_out_photos(20) == 2 and held_out_photos(30_000) == 1000


def test_scores_of_a_run_on_a_tiny_world(tmp_path):
    data = PictogramData(root=str(tmp_path / "data"), image_size=96, num_test_images=8, num_corpus=100)
    run = FakeRun(tmp_path)
    metrics = train_and_score(params(data=data, batch_size=4), run)
    accuracy = metrics["crop_accuracy"]
    assert set(accuracy) == {"split1", "split2", "split3", "all"} and (tmp_path / "clip.pt").is_file()
    matrix = np.array(metrics["confusion"]["matrix"])
    assert matrix.shape == (20, 20) and matrix.sum() == accuracy["all"]["num_crops"] > 5
    assert accuracy["all"]["accuracy"] == pytest.approx(100 * matrix.trace() / matrix.sum())
    assert metrics["confusion"]["class_names"][0] == "airplane" == next(iter(metrics["per_class"]))
    assert {"accuracy", "seen_designs", "held_out_designs", "num_crops"} == set(accuracy["split1"])
    assert 0 <= metrics["corpus_accuracy"] <= 100 and metrics["parameters"] == 1_416_184
    photos = CocoData(source="coco", annotations="a.json", images="a", novel_classes=["cat"])
    with pytest.raises(ParamsError, match="captioned corpus"):
        train_and_score(params(data=photos), run)


def test_low_res_views_lose_detail_but_keep_the_picture():
    photos = torch.zeros(8, 3, 64, 64)
    photos[:, 0] = torch.arange(64.0)  # a ramp from left to right
    photos[:, 1] = 100.0 * (torch.arange(64) % 2)  # stripes of one pixel
    views = low_res_views(photos, size=48, generator=torch.Generator().manual_seed(0))
    assert views.shape == (8, 3, 48, 48)
    ramp = views[:, 0, :, 2:-2]  # but for the clamped border
    assert (ramp.diff(dim=2) > 0).all() and (ramp >= 0).all() and (ramp <= 63).all()
    span = ramp[:, :, -1].mean(1) - ramp[:, :, 0].mean(1)
    # each view is its own cut, of at least 60 %
    assert span.min() > 63 * 0.6 * 0.8 and len(span.unique()) == 8
    assert views[:, 1].std(dim=(1, 2)).max() < 50.0  # the stripes' own is 50
    again = low_res_views(photos, size=48, generator=torch.Generator().manual_seed(0))
    assert torch.equal(views, again)


def test_wrong_input_is_named(tmp_path, monkeypatch):
    images, captions, _ = bars(8)
    with pytest.raises(DataError, match="8 images and 7 captions"):
        fit_clip(images, captions[:7], params())
    with pytest.raises(ParamsError, match="risf-tiny-resnet"):
        fit_clip(images, captions, params(tower="risf-tiny-resnett"))
    with pytest.raises(CheckpointError, match="no pretrained tag.*openai"):
        load_clip("ViT-B-32", "opena")
    with pytest.raises(CheckpointError, match="nowhere.pt"):
        load_clip("risf-tiny-resnet", tmp_path / "nowhere.pt")
    torch.save({"conv.weight": torch.zeros(1)}, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match="other.pt"):
        load_clip("risf-tiny-resnet", tmp_path / "other.pt")
    # anything but tensors and plain types is refused unexecuted
    torch.save({"run": Path}, tmp_path / "code.pt")
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "program.pt")
    for name in ("code.pt", "program.pt"):
        with pytest.raises(CheckpointError, match=name) as error:
            load_clip("risf-tiny-resnet", tmp_path / name)
        assert "Re-running" not in str(error.value) and "TorchScript programs" in str(error.value)


def test_weights_out_of_reach_give_one_error(tmp_path, monkeypatch, caplog):
    def unreachable(*_, **__):
        raise OSError("no route")

    monkeypatch.setattr("socket.create_connection", unreachable)
    monkeypatch.setattr("risf_core.clip_models.getproxies", dict)
    with pytest.raises(CheckpointError) as error:
        load_clip("RN50", "openai", cache_dir=str(tmp_path / "cache"))
    for part in ("RN50", "'openai'", str(tmp_path / "cache"), "pretrained: openai=/path/to/file"):
        assert part in str(error.value)
    assert "\n" not in str(error.value) and not caplog.records
