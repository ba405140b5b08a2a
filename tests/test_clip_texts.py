"""Prompts by name, embeddings of any names, and text features that are computed once and stored."""

import logging

import numpy as np
import open_clip
import pytest
import torch
from pydantic import ValidationError

from risf_core.cm_clip import CMCLIP
from risf_core.cm_clip.texts import encode_texts, templates_named
from risf_core.errors import ParamsError
from risf_core.params import CmClipParams
from tests.color_clip import color_clip
from tests.small_clips import long_tokens, small_clip

NAMES = ("cat", "dog", "background")
FAULTY = ("a photo", "a {} {}", "a {} {x}", "{}{", "a {{}}", "{.x}")
PROMPTS = ("a photo of {}", "a drawing of {}")


@pytest.fixture(scope="module")
def model():
    return small_clip("vit")


def test_sets_of_templates_are_clips_own():
    assert templates_named("published") == ("a photo of {}",)
    simple, openai = templates_named("simple"), templates_named("openai")
    assert (len(simple), len(openai)) == (7, 80) and set(simple) <= set(openai)
    assert "itap of a {}." in simple and "a photo of a {}." in openai
    assert templates_named(["my {}"]) == ("my {}",)


@pytest.mark.parametrize(
    ("templates", "words"),
    [("best", "published, simple, openai"), ([], "{}"), *(([text], "with {} once") for text in FAULTY)],
)
def test_other_templates_are_refused(templates, words):
    with pytest.raises(ParamsError, match=words):
        templates_named(templates)


def test_a_named_set_equals_the_classifier_of_open_clip(model):
    clip = CMCLIP(model, long_tokens, NAMES[:2], templates="simple")
    expected = open_clip.build_zero_shot_classifier(
        model, long_tokens, NAMES, open_clip.SIMPLE_IMAGENET_TEMPLATES
    )
    assert torch.allclose(clip.text_embeds_norm, expected.T, atol=1e-6)


def test_names_are_encoded_as_those_of_the_label_space(model):
    clip = CMCLIP(model, long_tokens, ["cat", "dog"], templates=PROMPTS)
    assert torch.equal(clip.encode_names(clip.label_space), clip.text_embeds_norm)
    assert torch.allclose(clip.encode_names(["dog", "cow"])[0], clip.text_embeds_norm[1], atol=1e-6)


def test_stored_features_are_the_same_bits_and_need_no_model(model, tmp_path, monkeypatch):
    first = encode_texts(model, long_tokens, NAMES, PROMPTS, store=tmp_path)
    assert torch.equal(first, encode_texts(model, long_tokens, NAMES, PROMPTS))
    (path,) = tmp_path.iterdir()  # nothing temporary stays
    monkeypatch.setattr(type(model), "encode_text", None)
    assert torch.equal(first, encode_texts(model, long_tokens, NAMES, PROMPTS, store=tmp_path))
    assert list(tmp_path.iterdir()) == [path]


def test_what_embeddings_follow_from_gives_another_file(model, tmp_path):
    def store(model=model, tokenizer=long_tokens, names=NAMES, templates=PROMPTS):
        encode_texts(model, tokenizer, names, templates, store=tmp_path)
        return len(list(tmp_path.iterdir()))

    other, longer = small_clip("vit"), lambda texts: long_tokens([text + "!" for text in texts])
    other.token_embedding.weight.data[5, 0] += 1
    assert [store(), store(other), store(tokenizer=longer), store(names=NAMES[::-1]), store(templates=PROMPTS[:1])] == [
        1, 2, 3, 4, 5,
    ]  # fmt: skip
    seen = small_clip("vit")
    seen.visual.proj.data += 1
    seen.logit_scale.data += 1
    assert store(seen) == 5 + 1  # the scale is the model's, the image tower is not the texts'
    seen.visual.proj.data += 1
    assert store(seen) == 6


@pytest.mark.parametrize("damage", ["cut", "flipped", "other"])
def test_a_damaged_file_is_made_again_with_a_warning(model, tmp_path, damage, caplog):
    first = encode_texts(model, long_tokens, NAMES, PROMPTS, store=tmp_path)
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    if damage == "cut":
        path.write_bytes(whole[: len(whole) // 2])
    elif damage == "flipped":
        middle = len(whole) // 2
        path.write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
    else:
        np.savez(path, embeds=np.zeros((7, 2)))
    with caplog.at_level(logging.WARNING):
        assert torch.equal(first, encode_texts(model, long_tokens, NAMES, PROMPTS, store=tmp_path))
    assert path.name in caplog.text and path.read_bytes() == whole


def test_texts_that_cannot_be_stored_are_encoded_with_a_warning(model, tmp_path, caplog):
    (tmp_path / "file").write_text("")
    with caplog.at_level(logging.WARNING):
        found = encode_texts(model, long_tokens, NAMES, PROMPTS, store=tmp_path / "file" / "store")
    assert "cannot be written" in caplog.text and str(tmp_path / "file" / "store") in caplog.text
    assert torch.equal(found, encode_texts(model, long_tokens, NAMES, PROMPTS))


@pytest.mark.parametrize("text", FAULTY)
def test_parameters_refuse_the_same_templates(text):
    with pytest.raises(ValidationError, match="with {} once"):
        CmClipParams(templates=("a {}", text))


@pytest.mark.parametrize(
    ("names", "space", "words"),
    [
        (["cat", "background"], None, "called 'background'.*Leave it out"),
        (["cat", "dog", "cat"], None, "classes to re-score: .*twice: cat"),
        (["cat"], ["cat", "dog", "dog", "background"], "label space: .*twice: dog"),
        (["cat", "cow"], ["cat", "background"], "missing: .*cow"),
    ],
)
def test_names_that_stand_twice_or_nowhere_are_named(model, names, space, words):
    with pytest.raises(ParamsError, match=words):
        CMCLIP(model, long_tokens, names, label_space=space)


def test_learned_temperature_is_the_models_own(model):
    clip = CMCLIP(model, long_tokens, ["cat"], temperature="learned")
    assert clip.temperature == clip.learned_temperature == pytest.approx(1 / 0.07)
    assert CMCLIP(model, long_tokens, ["cat"]).temperature == 100.0
    with pytest.raises(ParamsError, match="no logit_scale"):
        color_clip(temperature="learned")
    assert color_clip().learned_temperature is None


def test_softmax_of_a_sigmoid_trained_model_needs_no_bias():
    """Its logits are scale * cosine + bias; the bias is the same for all names."""
    model = small_clip("siglip")
    assert model.logit_bias.item() == -10
    clip = CMCLIP(model, long_tokens, ["cat", "dog"], temperature="learned")
    image = torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    box = torch.tensor([[0.0, 0.0, 64.0, 64.0]])
    with torch.inference_mode():
        logits, _ = model.get_logits(
            clip.crops(image, box),
            long_tokens([f"a photo of {name}" for name in clip.label_space]),
        )
    assert torch.allclose(clip.probabilities(image, box), logits.softmax(-1), atol=1e-5)
