"""Any CLIP of open_clip: what its tag or folder says of it is kept, and what is missing is named."""

import json
import logging

import open_clip
import pytest
import torch
from open_clip.constants import INCEPTION_MEAN, OPENAI_DATASET_MEAN
from open_clip.transformer import QuickGELU
from torch import nn

from risf_core import clip_models
from risf_core.clip_models import load_clip
from risf_core.cm_clip import CMCLIP
from risf_core.errors import CheckpointError
from tests.small_clips import SIGLIP_TEXT, VIT

SMALL = {"embed_dim": 32, "vision_cfg": VIT, "text_cfg": SIGLIP_TEXT}


@pytest.fixture
def offline(monkeypatch):
    def unreachable(*_, **__):
        raise OSError("no route")

    monkeypatch.setattr("socket.create_connection", unreachable)
    monkeypatch.setattr("risf_core.clip_models.getproxies", dict)


@pytest.fixture
def small_model(tmp_path, monkeypatch):
    """A model of open_clip's list, "small-clip", with tags, and a file of its weights."""
    config = tmp_path / "small-clip.json"
    config.write_text(json.dumps(SMALL))
    clip_models.register_configs()
    open_clip.add_model_config(config)
    path = tmp_path / "weights.pt"
    torch.save(load_clip("small-clip", None).model.state_dict(), path)

    def have_tags(**tags):
        monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "small-clip", tags)
        return path

    yield have_tags
    open_clip.factory._MODEL_CONFIGS.pop("small-clip")
    open_clip.factory._MODEL_CONFIG_PATHS[:] = [
        known for known in open_clip.factory._MODEL_CONFIG_PATHS if known != config
    ]


def activations(model: nn.Module) -> set[type]:
    return {type(part) for part in model.modules() if isinstance(part, QuickGELU | nn.GELU)}


def test_a_tag_and_its_file_give_activation_and_normalisation(small_model):
    """open_clip only warns of GELU where a tag was trained with QuickGELU, and gives a file OpenAI's mean."""
    sigmoid = {"mean": INCEPTION_MEAN, "std": (0.5,) * 3, "interpolation": "bicubic", "resize_mode": "squash"}
    path = small_model(openai={"quick_gelu": True}, webli=sigmoid)
    loaded = load_clip("small-clip", f"openai={path}")
    assert activations(loaded.model) == {QuickGELU} and loaded.info.mean == OPENAI_DATASET_MEAN
    assert not loaded.info.is_random and loaded.info.pretrained == f"openai={path}"
    loaded = load_clip("small-clip", f"webli={path}")
    assert activations(loaded.model) == {nn.GELU} and loaded.info.mean == INCEPTION_MEAN
    assert loaded.info.std == (0.5,) * 3


def test_a_file_alone_gets_what_all_tags_agree_on_or_a_warning(small_model, caplog):
    sigmoid = {"mean": INCEPTION_MEAN, "std": (0.5,) * 3}
    path = small_model(webli=sigmoid, other=sigmoid)
    assert load_clip("small-clip", path).info.mean == INCEPTION_MEAN and not caplog.records
    path = small_model(webli=sigmoid, other={})
    with caplog.at_level(logging.WARNING):
        assert load_clip("small-clip", path).info.mean == OPENAI_DATASET_MEAN
    assert "tags differ in mean or std" in caplog.text and "TAG=PATH" in caplog.text


def test_the_papers_model_knows_its_activation():
    settings = clip_models._settings_of_tag("ViT-L-14-336", "openai", None)
    assert settings == {"force_quick_gelu": True}
    assert not clip_models._settings_of_tag("ViT-B-16-SigLIP", "webli", None)["force_quick_gelu"]
    own = clip_models._settings_of_tag("ViT-B-16-SigLIP", None, "file.safetensors")
    assert own["image_mean"] == own["image_std"] == (0.5, 0.5, 0.5)


def test_a_tag_with_a_missing_file_is_refused(small_model, tmp_path):
    small_model(openai={})
    with pytest.raises(CheckpointError, match="no file and no pretrained tag.*TAG=PATH, or one of: openai"):
        load_clip("small-clip", f"openai={tmp_path / 'nothing.pt'}")


# ---------------------------------------------------------------------------------------------- folders


def write_folder(folder, text_cfg: dict, *, with_weights: bool = True) -> str:
    """A SigLIP-like model as open_clip publishes one: its own normalisation, texts and head; weights from a seed."""
    vision = {"timm_model_name": "test_vit3", "timm_pool": "map", "timm_proj": "none", "image_size": 160}
    model = {"embed_dim": 96, "init_logit_bias": -10, "custom_text": True}
    model |= {"vision_cfg": vision, "text_cfg": text_cfg}
    preprocessing = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "squash"}
    folder.mkdir(exist_ok=True)
    config = folder / "open_clip_config.json"
    config.write_text(json.dumps({"model_cfg": model, "preprocess_cfg": preprocessing}))
    if with_weights:
        torch.save(_built(model).state_dict(), folder / "open_clip_pytorch_model.bin")
    return f"local-dir:{folder}"


def _built(config: dict) -> nn.Module:
    torch.manual_seed(0)
    parts = {key: value for key, value in config.items() if key != "custom_text"}
    vision = parts["vision_cfg"] | {"timm_model_pretrained": False}
    return open_clip.CustomTextCLIP(**parts | {"vision_cfg": vision})


def check_folder(name: str, length: int) -> None:
    loaded = load_clip(name, None)
    assert (
        not loaded.info.is_random and loaded.info.mean == (0.5,) * 3 and loaded.info.image_size == (160, 160)
    )
    assert loaded.tokenizer(["a cat"]).shape == (1, length)
    clip = CMCLIP(loaded.model, loaded.tokenizer, ["cat", "dog"], temperature="learned")
    image = torch.full((3, 50, 60), 51, dtype=torch.uint8)
    box = torch.tensor([[0.0, 0.0, 60.0, 50.0]])
    assert torch.allclose(clip.crops(image, box), torch.tensor(51 / 255 * 2 - 1), atol=1e-5)
    probs = clip.probabilities(image, box)
    assert probs.shape == (1, 3) and probs.sum().item() == pytest.approx(1)
    assert (clip.text_embeds_norm[0] - clip.text_embeds_norm[1]).abs().max() > 1e-4


def test_a_folder_brings_its_own_model_and_normalisation(tmp_path):
    own = SIGLIP_TEXT | {"tokenizer_kwargs": {"clean": "canonicalize"}}
    check_folder(write_folder(tmp_path / "model", own), 16)


def test_a_folder_brings_its_own_tokenizer(tmp_path):
    """SigLIP's is a file of the hub; here a made one of whole words, read by the same library."""
    pytest.importorskip("transformers", reason="tokenizers of the hub need transformers")
    tokenizers = pytest.importorskip("tokenizers")
    words = tokenizers.models.WordLevel({w: i for i, w in enumerate(["<pad>", "<unk>", "a", "photo", "of", "cat"])},
                                        unk_token="<unk>")  # fmt: skip
    made = tokenizers.Tokenizer(words)
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    name = write_folder(tmp_path / "model", SIGLIP_TEXT | {"context_length": 12, "hf_tokenizer_name": "own"})
    made.save(str(tmp_path / "model" / "tokenizer.json"))
    rules = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "<pad>", "unk_token": "<unk>"}
    (tmp_path / "model" / "tokenizer_config.json").write_text(json.dumps(rules))
    check_folder(name, 12)
    assert load_clip(name, None).tokenizer(["a photo of cat"])[0, :5].tolist() == [2, 3, 4, 5, 0]


# ---------------------------------------------------------------------------------------------- what is missing


def test_a_tokenizer_out_of_reach_gives_one_error(offline, tmp_path):
    """Found before the model is built; without the library that reads it, that is said."""
    with pytest.raises(CheckpointError) as error:
        load_clip("ViT-SO400M-14-SigLIP", "webli", cache_dir=str(tmp_path))
    parts = (
        "ViT-SO400M-14-SigLIP",
        "tokenizer (timm/ViT-B-16-SigLIP)",
        str(tmp_path),
        "local-dir:FOLDER",
    )
    assert all(part in str(error.value) for part in parts) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("model", "pretrained", "parts"),
    [
        ("ViT-L-14-336", "openai", ("'openai'", "pretrained: openai=/path/to/file")),
        ("hf-hub:someone/some-clip", None, ("someone/some-clip", "local-dir:FOLDER")),
    ],
)
def test_weights_out_of_reach_give_one_error(offline, tmp_path, model, pretrained, parts):
    with pytest.raises(CheckpointError) as error:
        load_clip(model, pretrained, cache_dir=str(tmp_path))
    assert all(part in str(error.value) for part in (model, "cannot be fetched", *parts))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("with_config", "words"), [(True, "could not be loaded"), (False, "config file missing")]
)
def test_a_folder_without_config_or_weights_is_named(tmp_path, with_config, words):
    folder = tmp_path / "model"
    folder.mkdir()
    if with_config:
        write_folder(folder, SIGLIP_TEXT, with_weights=False)
    with pytest.raises(CheckpointError) as error:
        load_clip(f"local-dir:{folder}", None)
    assert words in str(error.value) and "Expected open_clip_config.json and" in str(error.value)
