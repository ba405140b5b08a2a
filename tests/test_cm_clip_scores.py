"""CM-CLIP's arithmetic beyond the published blend: fusion, label probabilities once, boxes that were not encoded."""

import numpy as np
import pytest
import torch

from risf_core.cm_clip import scores as scores_module
from risf_core.cm_clip.scores import apply_cm_clip, fuse, label_probabilities, rescore
from risf_core.detections import Detections, Similarities
from risf_core.errors import DataError, ParamsError

SPACE = ("red", "green", "background")


def made_up(count=40, *, seed=0, encoded_above=0.05) -> tuple[Detections, Similarities]:
    rng = np.random.default_rng(seed)
    corners = rng.uniform(0, 50, (count, 2))
    detections = Detections(
        image_ids=rng.integers(1, 5, count),
        boxes=np.concatenate([corners, corners + 10], axis=1),
        scores=rng.random(count),
        labels=rng.integers(0, 2, count),
        class_scores=np.full((count, 3), 1 / 3),
        proposals=np.arange(count),
        class_names=("red", "green"),
    )
    encoded = detections.scores > encoded_above
    cosines = np.where(encoded[:, None], rng.uniform(0.1, 0.4, (count, 4)), np.nan)
    return detections, Similarities(cosines, encoded, (*SPACE, "blue"))


def test_arithmetic_fusion_is_the_published_blend():
    scores, probs = np.random.default_rng(0).random((2, 50)).astype(np.float32)
    for c in (0.0, 0.3, 0.7, 1.0):
        assert np.array_equal(fuse(scores, probs, c=c), rescore(scores, probs, c=c))


def test_geometric_fusion_is_safe_at_zero_and_holds_its_ends():
    scores = np.array([0.0, 0.0, 0.5, 0.9, 1.0], dtype=np.float32)
    probs = np.array([0.0, 0.5, 0.0, 0.4, 1.0], dtype=np.float32)
    assert np.array_equal(fuse(scores, probs, c=1.0, fusion="geometric"), scores)
    assert np.array_equal(fuse(scores, probs, c=0.0, fusion="geometric"), probs)
    between = fuse(scores, probs, c=0.7, fusion="geometric")
    assert between.dtype == np.float32
    assert between == pytest.approx([0, 0, 0, 0.9**0.7 * 0.4**0.3, 1.0], rel=1e-6)
    as_tensor = fuse(torch.from_numpy(scores), torch.from_numpy(probs), c=0.7, fusion="geometric")
    assert as_tensor.numpy() == pytest.approx(between, rel=1e-6)


def test_fusion_refuses_what_it_cannot_fuse():
    with pytest.raises(ParamsError, match="fusion is 'harmonic'. Expected one of: arithmetic, geometric"):
        fuse(np.ones(1), np.ones(1), c=0.5, fusion="harmonic")
    with pytest.raises(DataError, match="negative"):
        fuse(np.array([-0.1]), np.ones(1), c=0.5, fusion="geometric")
    with pytest.raises(ValueError, match="c is 1.5"):
        fuse(np.ones(1), np.ones(1), c=1.5, fusion="geometric")


def test_label_probabilities_are_each_rows_own_softmax(monkeypatch):
    detections, similarities = made_up()
    rows, probs = label_probabilities(detections, similarities, temperature=20.0, label_space=SPACE)
    assert np.array_equal(rows, detections.scores > 0.05) and probs.dtype == np.float32
    logits = 20.0 * similarities.cosines[rows][:, :3].astype(np.float64)
    softmax = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert probs == pytest.approx(softmax[np.arange(rows.sum()), detections.labels[rows]], rel=1e-5)
    monkeypatch.setattr(scores_module, "CHUNK", 7)
    in_chunks = label_probabilities(detections, similarities, temperature=20.0, label_space=SPACE)
    assert np.array_equal(in_chunks[1], probs)


@pytest.mark.parametrize("temperature", ["learned", 0.0, float("nan")])
def test_a_temperature_is_a_number(temperature):
    with pytest.raises(ParamsError, match="Expected a number above 0"):
        label_probabilities(*made_up(), temperature=temperature, label_space=SPACE)


def test_label_probabilities_of_nothing_are_empty():
    detections, similarities = made_up()
    nothing = np.zeros(len(detections), dtype=bool)
    for subset, classes in ((nothing, None), (~nothing, [])):
        found = detections.keep(subset), similarities.keep(subset)
        rows, probs = label_probabilities(*found, label_space=SPACE, rescored_classes=classes)
        assert not rows.any() and len(probs) == 0


def test_geometric_rescoring_changes_the_rescored_rows_alone():
    detections, similarities = made_up()
    options = {"label_space": SPACE, "rescored_classes": ["red"]}
    rows, probs = label_probabilities(detections, similarities, **options)
    changed = apply_cm_clip(detections, similarities, c=0.4, fusion="geometric", **options)
    expected = detections.scores.copy()
    expected[rows] = expected[rows] ** 0.4 * probs**0.6
    by_proposal = np.argsort(changed.proposals), np.argsort(detections.proposals)
    assert changed.scores[by_proposal[0]] == pytest.approx(expected[by_proposal[1]], rel=1e-6)
    assert rows.any() and not rows[detections.labels == 1].any()


def test_boxes_that_a_budget_left_out_are_refused_zero_or_kept():
    detections, similarities = made_up(encoded_above=0.5)
    left_out = (detections.scores > 0.05) & ~similarities.encoded
    assert left_out.any()
    options = {"label_space": SPACE, "c": 0.6}
    with pytest.raises(
        DataError, match=f"{left_out.sum()} detections to re-score were not encoded.*above 0.05"
    ):
        apply_cm_clip(detections, similarities, **options)
    values = {}
    for choice in ("zero", "keep"):
        changed = apply_cm_clip(detections, similarities, not_encoded=choice, **options)
        values[choice] = changed.scores[np.argsort(changed.proposals)]
    where = np.argsort(detections.proposals)
    scores, left_out = detections.scores[where], left_out[where]
    assert values["zero"][left_out] == pytest.approx(0.6 * scores[left_out], rel=1e-6)
    assert np.array_equal(values["keep"][left_out], scores[left_out])
    assert np.array_equal(values["keep"][~left_out], values["zero"][~left_out])
    with pytest.raises(ParamsError, match="not_encoded is 'drop'"):
        apply_cm_clip(detections, similarities, not_encoded="drop", **options)
