"""A live OWLv2 with random weights: whose pixels its boxes are in, what it is asked for, what is said without it."""

import sys

import numpy as np
import pytest
import torch
from PIL import Image

from risf_core.data.dataset import DetectionData, ImageRecord
from risf_core.errors import CheckpointError, DataError, ParamsError, SplitError
from risf_core.open_vocabulary.live_provider import LiveProvider
from risf_core.open_vocabulary.providers import best_of_class

transformers = pytest.importorskip("transformers")
SIZES = {1: (80, 40), 2: (30, 60)}  # width, height
LETTERS = "abcdefghijklmnopqrstuvwxyz"


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> DetectionData:
    folder, records = tmp_path_factory.mktemp("noise"), []
    none = np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, bool)
    for image_id, (width, height) in SIZES.items():
        pixels = np.random.default_rng(image_id).integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{image_id}.png")
        records.append(ImageRecord(image_id, folder / f"{image_id}.png", height, width, *none))
    return DetectionData("noise", ("cat", "dog"), (1, 2), tuple(records))


@pytest.fixture(scope="module")
def parts():
    """A model of 16 places (64 pixels in patches of 16), and its processor with a tokenizer of letters."""
    common = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.Owlv2Config(
        text_config=common
        | {"vocab_size": 64, "max_position_embeddings": 16, "bos_token_id": 1, "eos_token_id": 2},
        vision_config=common | {"image_size": 64, "patch_size": 16},
        projection_dim=16,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.Owlv2ForObjectDetection(config)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    vocab = ["!", "<|startoftext|>", "<|endoftext|>", *LETTERS, *(f"{letter}</w>" for letter in LETTERS)]
    tokenizer = transformers.CLIPTokenizer({token: place for place, token in enumerate(vocab)}, [])
    images = transformers.Owlv2ImageProcessor(size={"height": 64, "width": 64})
    return model, transformers.Owlv2Processor(images, tokenizer)


@pytest.fixture
def provider(parts) -> LiveProvider:
    return LiveProvider(*parts, name="tiny")


def with_boxes(provider, monkeypatch, boxes) -> None:
    """Let the first places predict these boxes (centre, width, height as shares), the others one of no extent."""
    shares = torch.zeros(1, 16, 4)
    shares[:, : len(boxes)] = torch.tensor(boxes)
    monkeypatch.setattr(provider.model, "box_predictor", lambda features, feature_map: shares)


def test_boxes_are_shares_of_the_padded_square(provider, data, monkeypatch):
    with_boxes(
        provider, monkeypatch, [[0.25, 0.125, 0.5, 0.25], [0.75, 0.25, 0.1, 0.1], [0.25, 0.75, 0.2, 0.2]]
    )
    found = provider.regions(data, top=16)
    wide = {tuple(box) for box in found.of(1).boxes.round(3).tolist()}
    assert wide == {(0, 0, 40, 20), (56, 16, 64, 24)}  # shares of 80; the third lies below the image
    high = {tuple(box) for box in found.of(2).boxes.round(3).tolist()}
    assert high == {(0, 0, 30, 15), (9, 39, 21, 51)}  # shares of 60; the second lies right of the image
    assert found.manifest["in_padding"] == 2 * 13 + 2 and found.manifest["sees_novel"] == "unknown"


def test_the_image_lies_top_left_in_the_square(provider):
    """Otherwise the boxes above would be shifted."""
    white = Image.new("RGB", (80, 40), (255, 255, 255))
    pixels = provider.processor.image_processor(images=[white], return_tensors="pt")["pixel_values"]
    light = pixels[0, 0] > pixels.mean()
    assert pixels.shape == (1, 3, 64, 64) and light[:31].all() and not light[33:].any()


def test_regions_are_ranked_by_objectness(provider, data):
    found = provider.regions(data, top=3)
    assert list(found.image_ids) == [1, 2] and 1 <= len(found.of(1).scores) <= 3
    assert (found.boxes[:, 2:] <= np.repeat([SIZES[1], SIZES[2]], np.diff(found.starts), axis=0)).all()
    assert ((found.scores > 0) & (found.scores < 1)).all() and set(found.labels) == {-1}
    # the whole model in one call says the same
    picture = Image.open(data.images[0].path)
    inputs = provider.processor(text=[["a cat"]], images=[picture], return_tensors="pt")
    with torch.no_grad():
        outputs = provider.model(**inputs)
    assert found.of(1).scores[0] == pytest.approx(outputs.objectness_logits.sigmoid().max().item(), abs=1e-5)


def test_names_are_asked_for_where_an_image_shows_them(provider, data):
    wanted = {1: ("dog", "cat"), 2: ()}
    found = provider.label_regions(data, wanted, ("cat", "bird", "dog"))
    assert sorted(found.of(1).labels.tolist()) == [0, 2] and len(found.of(2).labels) == 0
    assert found.manifest["class_names"] == ["cat", "bird", "dog"]
    # the score of a name is that of the model's own forward pass
    picture = Image.open(data.images[0].path)
    queries = [["a photo of a cat", "a photo of a dog"]]
    inputs = provider.processor(text=queries, images=[picture], return_tensors="pt")
    with torch.no_grad():
        logits = provider.model(**inputs).logits[0]  # [16, 2]
    best = dict(zip(found.of(1).labels.tolist(), found.of(1).scores.tolist()))
    assert [best[0], best[2]] == pytest.approx(logits.sigmoid().amax(0).tolist(), abs=1e-5)
    assert len(best_of_class(found, wanted, class_names=("dog", "cat"), score_thresh=max(best.values()))) == 0
    with pytest.raises(DataError, match="no names for image 2"):
        provider.label_regions(data, {1: ("dog",)}, ("dog",))
    with pytest.raises(SplitError, match="no class 'dog'"):
        provider.label_regions(data, wanted, ("cat", "bird"))


def test_a_saved_folder_is_loaded_without_any_hub(parts, data, tmp_path):
    for part in parts:
        part.save_pretrained(tmp_path)
    loaded = LiveProvider.from_pretrained(str(tmp_path), sees_novel="yes")
    found = loaded.label_regions(data, {1: ("cat",), 2: ("dog",)}, ("cat", "dog"))
    ours = LiveProvider(*parts, name="x").label_regions(data, {1: ("cat",), 2: ("dog",)}, ("cat", "dog"))
    assert np.array_equal(found.boxes, ours.boxes) and found.manifest["sees_novel"] == "yes"
    (tmp_path / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(CheckpointError, match="cannot be loaded: .*Expected a hub's name, or a folder"):
        LiveProvider.from_pretrained(str(tmp_path))


def test_a_processor_that_does_not_pad_is_refused(parts):
    model, processor = parts
    images = transformers.Owlv2ImageProcessor(size={"height": 64, "width": 64}, do_pad=False)
    with pytest.raises(ParamsError, match="does not pad images to squares"):
        LiveProvider(model, transformers.Owlv2Processor(images, processor.tokenizer), name="tiny")


def test_without_transformers_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ParamsError, match="needs transformers>=4.45, which cannot be imported"):
        LiveProvider.from_pretrained("google/owlv2-base-patch16-ensemble")
