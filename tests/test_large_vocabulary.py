"""Detections under a large vocabulary are those of a small one, without the scores of all classes."""

import numpy as np
import torch

from risf_core.data.dataset import DetectionData
from risf_core.open_vocabulary import large_vocabulary
from risf_core.open_vocabulary.detector import OpenVocabularyRCNN
from risf_core.open_vocabulary.large_vocabulary import KEPT, LeanDetections, detect_vocabulary
from risf_core.params import DetectorParams

from .detector.conftest import TINY, square_data  # noqa: F401


def _found(data: DetectionData, path, monkeypatch, large: int):
    torch.manual_seed(0)
    texts = torch.randn(len(data.class_names), 12)
    detector = OpenVocabularyRCNN(DetectorParams(**TINY), texts)
    monkeypatch.setattr(large_vocabulary, "LARGE", large)
    return detect_vocabulary(detector, data, path, score_thresh=0.3, max_detections=7)


def test_both_ways_find_the_same(square_data, tmp_path, monkeypatch):  # noqa: F811
    whole = _found(square_data, tmp_path / "whole.npz", monkeypatch, 300)
    lean = _found(square_data, tmp_path / "lean.npz", monkeypatch, 1)
    assert isinstance(lean, LeanDetections) and not isinstance(whole, LeanDetections) and len(lean) > 10
    for name in KEPT:
        assert np.array_equal(getattr(whole, name), getattr(lean, name)), name
    assert np.bincount(lean.image_ids).max() == 7
    with np.load(tmp_path / "lean.npz") as file:
        assert set(file.files) == {*KEPT, "class_names"} and np.array_equal(file["scores"], lean.scores)


def test_class_scores_take_no_memory_through_filters(square_data, tmp_path, monkeypatch):  # noqa: F811
    lean = _found(square_data, tmp_path / "lean.npz", monkeypatch, 1)
    few = lean.keep(np.arange(len(lean)) % 2 == 0).top(2)
    assert isinstance(few, LeanDetections) and 0 < len(few) < len(lean)
    for one in (lean, few):
        assert one.class_scores.shape == (len(one), 4) and one.class_scores.strides == (0, 0)
