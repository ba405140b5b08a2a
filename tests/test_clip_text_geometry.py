"""The classifier on genuine CLIP text features: the cone that all names lie in, and what that means for logits."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from risf_core.open_vocabulary.classifier import (
    TextClassifier,
    detection_loss,
    image_label_loss,
    mean_pairwise_cosine,
    with_common_offset,
)
from risf_core.open_vocabulary.coco_ovd import BASE_NAMES, CLASS_NAMES, NOVEL_NAMES
from risf_core.open_vocabulary.cross_data import permuted_names, read_text_features
from tests.real_data import real_data

FILES = {"coco": ("coco_clip_a+cname.npy", 80), "lvis": ("lvis_v1_clip_a+cname.npy", 1203)}
# Measured on these files, Detic's, of the prompt "a {name}": mean, least and largest cosine between two names, mean
# cosine with the mean text. Those of "a photo of a {name}", the prompt of object-centric-ovd, lie a little wider:
# 0.772 on COCO and 0.716 on LVIS.
CONES = {"coco": (0.799, 0.659, 0.936, 0.895), "lvis": (0.743, 0.469, 0.965, 0.862)}


def texts_of(name):
    file, count = FILES[name]
    return torch.from_numpy(read_text_features(real_data("clip_text") / file, range(count)))


@pytest.mark.parametrize("name", ["coco", "lvis"])
def test_the_files_hold_512_dimensions_in_half_precision_not_normalised(name):
    file, count = FILES[name]
    stored = np.load(real_data("clip_text") / file)
    assert stored.dtype == np.float16 and stored.shape == (count, 512)
    norms = np.linalg.norm(stored.astype(np.float32), axis=1)
    assert 7.5 < norms.min() and norms.max() < 14


@pytest.mark.parametrize("name", ["coco", "lvis"])
def test_all_names_lie_in_one_narrow_cone(name):
    rows = F.normalize(texts_of(name), dim=1)
    cosines = rows @ rows.T
    others = cosines[~torch.eye(len(rows), dtype=torch.bool)]
    mean, least, largest, with_mean = CONES[name]
    assert float(others.mean()) == pytest.approx(mean, abs=0.0006)
    assert mean_pairwise_cosine(texts_of(name)) == pytest.approx(float(others.mean()), abs=1e-5)
    assert float(others.min()) == pytest.approx(least, abs=0.0006)
    assert float(others.max()) == pytest.approx(largest, abs=0.0006)
    to_mean = F.cosine_similarity(rows, rows.mean(0, keepdim=True))
    assert float(to_mean.mean()) == pytest.approx(with_mean, abs=0.0006)


def test_the_matrix_has_columns_of_length_1_and_zeros_for_background():
    texts = texts_of("coco")
    classifier = TextClassifier(texts)
    matrix = classifier.texts_norm
    assert matrix.shape == (512, 81) and not matrix[:, -1].any() and classifier.num_classes == 80
    assert torch.allclose(matrix[:, :-1].norm(dim=0), torch.ones(80), atol=1e-6)
    assert not list(classifier.parameters())  # nothing to train
    scaled = TextClassifier(texts * torch.rand(80, 1).add(0.5))
    assert torch.allclose(scaled.texts_norm, matrix, atol=1e-6)


def test_every_name_is_nearest_to_itself_and_background_is_0():
    texts = texts_of("coco")
    logits = TextClassifier(texts)(3.7 * texts)
    assert (logits[:, :-1].argmax(dim=1) == torch.arange(80)).all()
    assert torch.allclose(logits[:, :-1].diagonal(), torch.full((80,), 50.0), atol=1e-3)
    assert not logits[:, -1].any()
    # in the cone the other names are far above background, too: 50 times the least cosine
    assert float(logits[:, :-1].min()) > 50 * 0.65
    biased = TextClassifier(texts, bias=-4.6)(texts)
    assert torch.allclose(biased, logits - 4.6, atol=1e-3) and biased[0, -1].item() == pytest.approx(-4.6)


def test_an_embedding_inside_the_cone_scores_all_names_one():
    """What region distillation asks of f and what the loss of background asks of it are at odds."""
    texts = texts_of("coco")
    mean = F.normalize(texts, dim=1).mean(0, keepdim=True)
    classifier = TextClassifier(texts)
    assert float(classifier(mean)[:, :-1].sigmoid().min()) > 0.999
    assert float(classifier(-mean)[:, :-1].sigmoid().max()) < 0.001


def test_masked_columns_get_no_gradient_from_boxes_and_one_from_names():
    texts = texts_of("coco")
    mask = torch.tensor([name in BASE_NAMES for name in CLASS_NAMES])
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.randn(12, 512, generator=generator).requires_grad_()
    logits = TextClassifier(texts)(embeddings)
    logits.retain_grad()
    labels = torch.tensor([0, 1, 80, 80, 4, 2, 80, 1, 0, 6, 7, 80])
    detection_loss(logits, labels, mask).backward(retain_graph=True)
    novel = [CLASS_NAMES.index(name) for name in NOVEL_NAMES]
    assert not logits.grad[:, novel].any() and not logits.grad[:, -1].any()
    assert logits.grad[:, :-1][:, mask].abs().min() > 0
    logits.grad = None
    image_label_loss(logits, torch.full((12,), novel[0]), torch.full((12,), 1 / 12)).backward()
    assert (logits.grad[:, novel[0]] < 0).all() and (logits.grad[:, novel[1:]] > 0).all()


def test_a_swap_to_lvis_keeps_the_detector_and_changes_the_columns():
    coco, lvis = texts_of("coco"), texts_of("lvis")
    classifier = TextClassifier(coco)
    embeddings = torch.randn(5, 512, generator=torch.Generator().manual_seed(1))
    before = classifier(embeddings)
    classifier.set_texts(lvis)
    assert classifier.num_classes == 1203 and classifier(embeddings).shape == (5, 1204)
    classifier.set_texts(coco)
    assert torch.equal(classifier(embeddings), before)


def test_permuted_texts_name_every_class_wrongly():
    texts = texts_of("coco")
    order = [CLASS_NAMES.index(name) for name in permuted_names(CLASS_NAMES, seed=0)]
    classifier = TextClassifier(texts[order])
    assert not (classifier(texts)[:, :-1].argmax(dim=1) == torch.arange(80)).any()


def test_a_common_offset_makes_a_wide_cone_narrow_and_keeps_the_neighbours():
    texts = F.normalize(texts_of("coco"), dim=1)
    wide = texts - texts.mean(0)
    assert mean_pairwise_cosine(wide) < 0.02
    narrow, direction = with_common_offset(wide, 0.799)
    assert mean_pairwise_cosine(narrow) == pytest.approx(0.799, abs=1e-4)
    assert float((F.normalize(wide, dim=1) @ direction).abs().max()) < 1e-5
    rows, moved = F.normalize(wide, dim=1), F.normalize(narrow, dim=1)
    off = ~torch.eye(80, dtype=torch.bool)
    order, after = (rows @ rows.T)[off].argsort(), (moved @ moved.T)[off].argsort()
    assert (order == after).float().mean() > 0.9  # but for ties that rounding breaks


def test_the_rows_stand_in_the_order_of_cocos_ids():
    """Each of these names is nearest to the one that a reader would expect."""
    rows = F.normalize(texts_of("coco"), dim=1)
    nearest = (rows @ rows.T - 2 * torch.eye(80)).argmax(dim=1).tolist()
    pairs = {
        "bicycle": "motorcycle",
        "cat": "dog",
        "horse": "cow",
        "fork": "knife",
        "microwave": "oven",
        "couch": "bench",
    }
    pairs |= {
        "apple": "orange",
        "laptop": "keyboard",
        "teddy bear": "bear",
        "bus": "train",
        "skis": "snowboard",
    }
    assert {name: CLASS_NAMES[nearest[CLASS_NAMES.index(name)]] for name in pairs} == pairs
