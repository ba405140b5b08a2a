"""What the negative controls do to their regions: rows shuffled within a batch, texts and images moved together."""

import numpy as np
import torch
from torch.nn import functional as F

from risf_core.data.dataset import DetectionData
from risf_core.open_vocabulary.classifier import with_common_offset
from risf_core.open_vocabulary.detector import Batch, OpenVocabularyRCNN, RegionTargets, Supervision
from risf_core.open_vocabulary.regions import RegionSet
from risf_core.open_vocabulary.study import IMAGE_OFFSET, moved
from risf_core.open_vocabulary.training import TrainingSet, _Step
from risf_core.open_vocabulary_params import DistillationParams
from risf_core.params import DetectorParams, SolverParams

from .detector.conftest import TINY, square_data  # noqa: F401


def _shuffled(data: DetectionData, teacher: str) -> tuple[Batch, list[torch.Tensor]]:
    torch.manual_seed(0)
    detector = OpenVocabularyRCNN(DetectorParams(**TINY), torch.randn(3, 8))
    supervision = Supervision(DistillationParams(teacher=teacher))
    step = _Step(
        detector, TrainingSet(data), supervision, SolverParams(), seed=0, mixing="joint", images=None
    )
    embeddings = [torch.randn(4, 8), torch.randn(3, 8)]
    boxes = [torch.rand(4, 4), torch.rand(3, 4)]
    regions = [RegionTargets(boxes[0], embeddings[0]), None, RegionTargets(boxes[1], embeddings[1])]
    batch = Batch([], [], [], regions)
    step._shuffle(batch)
    assert batch.regions[1] is None and torch.equal(batch.regions[2].boxes, boxes[1])
    return batch, embeddings


def test_a_shuffled_teacher_gives_every_region_the_embedding_of_another(square_data):  # noqa: F811
    batch, before = _shuffled(square_data, "shuffled")
    found, own = torch.cat([batch.regions[0].embeddings, batch.regions[2].embeddings]), torch.cat(before)
    assert not (found == own).all(dim=1).any()
    assert torch.equal(found[found[:, 0].argsort()], own[own[:, 0].argsort()])


def test_the_teacher_itself_is_left_as_it_is(square_data):  # noqa: F811
    batch, before = _shuffled(square_data, "clip")
    assert torch.equal(batch.regions[0].embeddings, before[0])
    assert torch.equal(batch.regions[2].embeddings, before[1])


def test_a_cone_moves_images_along_the_direction_of_the_texts():
    generator = torch.Generator().manual_seed(0)
    texts, direction = with_common_offset(torch.randn(4, 12, generator=generator), 0.77)
    embeddings = torch.randn(5, 12, generator=generator)
    clip = {"name": "a", "weights": "0", "preprocess": "clip", "resize": "roi_align", "crop": "squash"}
    manifest = {"provider": "rpn", "sees_novel": "no", "clip": clip}
    boxes = np.tile(np.array([[1.0, 2, 9, 9]], dtype=np.float32), (5, 1))
    outputs = [{"boxes": boxes, "scores": np.ones(5), "embeddings": embeddings.numpy()}]
    found = moved(RegionSet.from_images([1], outputs, manifest), direction)
    after = torch.from_numpy(found.embeddings.astype(np.float32))
    expected = F.normalize(embeddings, dim=1) + IMAGE_OFFSET * direction
    assert torch.allclose(after, expected, atol=2e-3)
    before = F.cosine_similarity(embeddings[:, None], texts[None], dim=2).mean()
    assert F.cosine_similarity(after[:, None], texts[None], dim=2).mean() > before + 0.1
