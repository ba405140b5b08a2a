"""One arm of the open-vocabulary study: its detector, its training, and what it is good for."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor
from torch.nn import functional as F

from risf_core.data.dataset import DetectionData
from risf_core.data.loader import ImageCache
from risf_core.detecting import propose_boxes
from risf_core.detector.checkpoints import load_weights, read_checkpoint, save_checkpoint
from risf_core.errors import CheckpointError
from risf_core.evaluation import proposal_recall
from risf_core.open_vocabulary.detector import OpenVocabularyRCNN
from risf_core.open_vocabulary.weight_transfer import linear_cka
from risf_core.params import DetectorParams
from risf_core.progress import progress
from risf_core.training import seed_everything, step_seed


@dataclass(frozen=True)
class Architecture:
    """What all arms share: the detector, the classifier's temperature and bias, and the width of weight transfer."""

    detector: DetectorParams
    temperature: float
    bias: float | None
    residual_width: int

    def new(self, texts: Tensor, *, seed: int, device: str | torch.device = "cpu") -> OpenVocabularyRCNN:
        """A freshly initialised detector over texts [C, d]."""
        seed_everything(step_seed(seed, -1))
        detector = OpenVocabularyRCNN(self.detector, texts, temperature=self.temperature, bias=self.bias)
        return detector.to(device)

    def load(
        self, path: Path, texts: Tensor, *, seed: int, device: str | torch.device = "cpu"
    ) -> OpenVocabularyRCNN:
        """A detector that `save_arm` wrote, over texts [C, d] of any vocabulary."""
        content = read_checkpoint(path)
        if "head" not in content:
            raise CheckpointError(f"{path}: no weights of an open-vocabulary arm; it says no kind of head.")
        detector = self.new(texts, seed=seed, device=device)
        detector.roi_heads.box_predictor.use_head(content["head"], width=self.residual_width)
        load_weights(detector, content["model"], source=str(path), allow_missing=())
        return detector


def save_arm(path: Path, detector: OpenVocabularyRCNN, head: str) -> None:
    """Write weights and the kind of head; the texts are no part of it, so any vocabulary goes with it."""
    save_checkpoint(path, {"model": detector.state_dict(), "head": head})


@dataclass(frozen=True)
class AnnotatedRegions:
    """Annotated boxes of test images with CLIP's embeddings: what embeddings of an arm are compared with.

    ``data``: the images. ``labels``: int64 [N], ``embeddings``: float32 [N, d] of the teacher, images in order.
    """

    data: DetectionData
    labels: np.ndarray
    embeddings: Tensor

    def rows_of(self, names: Sequence[str]) -> np.ndarray:
        """Which boxes are of these classes: bool [N]."""
        return np.isin(self.labels, [self.data.class_names.index(name) for name in names])


@torch.no_grad()
def own_embeddings(
    detector: OpenVocabularyRCNN, data: DetectionData, cache: ImageCache
) -> tuple[Tensor, Tensor]:
    """Embeddings of all annotated boxes, images in order: of f, and of the head that classifies, float32 [N, d]."""
    detector.eval()
    parts: list[tuple[Tensor, Tensor]] = []
    for record in progress(data.images, desc="embedding annotated boxes", unit="image"):
        boxes = torch.from_numpy(record.boxes[~record.is_crowd])
        if len(boxes):
            image = cache.read(record).to(detector.pixel_mean.device)
            parts.append(tuple(one.cpu() for one in detector.embed_regions(image, boxes)))
    return torch.cat([one[0] for one in parts]), torch.cat([one[1] for one in parts])


def fidelity(
    detector: OpenVocabularyRCNN,
    regions: AnnotatedRegions,
    texts: Tensor,
    groups: dict[str, Sequence[str]],
    *,
    cache: ImageCache,
) -> dict[str, float | None]:
    """How near an arm's embeddings are to CLIP's on annotated boxes that it never saw.

    Args:
        texts: float [C, d] of ``regions.data.class_names``.
        groups: Class names by group ("base", "novel").

    Returns:
        For each group ``zero_shot_`` (top-1 of f's embedding among all names, percent), ``zero_shot_own_`` (among the
        names of the group), ``head_`` (of the classifying head, among all), ``cosine_`` (mean with CLIP's),
        ``cka_`` (linear CKA), ``spearman_`` (of the entries above the diagonal of both Gram matrices); None without a
        box of the group.
    """
    distilled, classified = own_embeddings(detector, regions.data, cache)
    found: dict[str, float | None] = {}
    for group, names in groups.items():
        rows = regions.rows_of(names)
        u, h, v = distilled[rows], classified[rows], regions.embeddings[rows]
        labels = torch.from_numpy(regions.labels[rows])
        columns = [regions.data.class_names.index(name) for name in names]
        own_labels = torch.tensor([columns.index(label) for label in labels.tolist()], dtype=torch.int64)
        found |= {
            f"zero_shot_{group}": top1(u, texts, labels),
            f"zero_shot_own_{group}": top1(u, texts[columns], own_labels),
            f"head_{group}": top1(h, texts, labels),
            f"cosine_{group}": float(F.cosine_similarity(u, v).mean()) if len(u) else None,
            f"cka_{group}": linear_cka(u, v) if len(u) > 1 else None,
            f"spearman_{group}": gram_spearman(u, v),
        }
    return found


def top1(embeddings: Tensor, texts: Tensor, labels: Tensor) -> float | None:
    """Share of embeddings [N, d] whose nearest text [C, d] is that of their label [N], in percent."""
    if not len(embeddings):
        return None
    nearest = (embeddings @ F.normalize(texts, dim=1).T).argmax(dim=1)
    return 100.0 * float((nearest == labels).float().mean())


def gram_spearman(a: Tensor, b: Tensor) -> float | None:
    """Rank correlation of the cosines between all pairs of rows in two spaces; None for fewer than three rows."""
    if len(a) < 3:
        return None
    above = torch.triu_indices(len(a), len(a), 1)
    values = [(F.normalize(x, dim=1) @ F.normalize(x, dim=1).T)[above[0], above[1]].numpy() for x in (a, b)]
    return float(spearmanr(*values).statistic)


def proposal_recalls(
    detector: OpenVocabularyRCNN, data: DetectionData, groups: dict[str, Sequence[str]]
) -> dict[str, float]:
    """``recall_<group>_at_100``: share of a group's objects that one of the 100 best proposals covers, percent."""
    proposals = propose_boxes(detector, data)
    return {
        f"recall_{group}_at_100": proposal_recall(proposals, data, class_names=names, top=100)
        for group, names in groups.items()
    }
