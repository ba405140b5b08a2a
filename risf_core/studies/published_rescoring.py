"""CM-CLIP as the released code goes about it, to measure ours against: image by image, all of it again for every c.

Written anew from a description of RISF's `cmclip.py` (CC BY-NC, no code of it is here): an image is read again from
its file; all its detections above the threshold, base classes too, are cut out by RoIAlign; blue, green, red in 0-1
without CLIP's mean and std; one batch of whatever size in float32; text features once; softmax of 100 times the
cosines over novel names and background. Devices are the caller's and an empty list is allowed, which is where this
differs from the released code.
"""

import copy
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.ops import roi_align

from risf_core.clip_models import LoadedClip
from risf_core.cm_clip.scores import BACKGROUND, TEMPERATURE, rescore
from risf_core.data.dataset import DetectionData
from risf_core.data.loader import ImageCache, read_image
from risf_core.detections import Detections

PROMPT = "a photo of {}"
SCORE_THRESH = 0.05


class PublishedRescoring:
    """Re-scores image by image.

    Args:
        clip: An open_clip model in float32; its image tower is copied into contiguous memory, as it is loaded.
        novel_names: The classes that compete with background, and whose detections are re-scored.

    Attributes:
        text_embeds_norm: [L, D], novel names then background.
    """

    def __init__(self, clip: LoadedClip, novel_names: Sequence[str]) -> None:
        self.novel_names, self.image_size = tuple(novel_names), clip.info.image_size
        self.visual = copy.deepcopy(clip.model.visual).to(memory_format=torch.contiguous_format)
        self.device = next(clip.model.parameters()).device
        with torch.inference_mode():
            tokens = clip.tokenizer([PROMPT.format(name) for name in (*self.novel_names, BACKGROUND)])
            texts = clip.model.encode_text(tokens.to(self.device)).float()
        self.text_embeds_norm = nn.functional.normalize(texts, dim=-1)

    @torch.inference_mode()
    def crops(self, image: Tensor, boxes: Tensor) -> Tensor:
        """RoIAlign of the raw picture: uint8 RGB [3, H, W], boxes [N, 4] -> float32 [N, 3, h, w]."""
        pixels = image.flip(0).to(self.device, torch.float32)[None] / 255.0  # RGB -> BGR
        return roi_align(pixels, [boxes.to(self.device)], self.image_size, sampling_ratio=0, aligned=True)

    @torch.inference_mode()
    def embed_crops(self, crops: Tensor) -> Tensor:
        """All crops in one forward pass: [N, 3, h, w] -> float32 [N, D], normalised."""
        if not len(crops):
            return self.text_embeds_norm[:0]
        return nn.functional.normalize(self.visual(crops).float(), dim=-1)

    @torch.inference_mode()
    def probabilities(self, embeds_norm: Tensor) -> Tensor:
        """Softmax over novel names and background: [N, D] -> [N, L]."""
        return (TEMPERATURE * embeds_norm @ self.text_embeds_norm.T).softmax(dim=-1)

    def rescore_image(
        self,
        image: Tensor,
        boxes: np.ndarray,
        labels: np.ndarray,
        scores: np.ndarray,
        columns: np.ndarray,
        *,
        c: float,
    ) -> np.ndarray:
        """New scores of one image's detections above the threshold, float32 [n].

        Args:
            image: uint8 RGB [3, H, W].
            boxes: float32 [n, 4].
            labels: int64 [n].
            scores: float32 [n].
            columns: int64 [C], each class's place in the label space; -1 for those that keep their scores.
            c: Weight of the detector's score.
        """
        embeds_norm = self.embed_crops(self.crops(image, torch.from_numpy(boxes)))
        probs = self.probabilities(embeds_norm).cpu().numpy()
        own = columns[labels]  # [n]
        new, rows = scores.copy(), np.flatnonzero(own >= 0)
        new[rows] = rescore(scores[rows], probs[rows, own[rows]], c=c)
        return new

    def rescore_detections(
        self,
        detections: Detections,
        data: DetectionData,
        *,
        c: float,
        score_thresh: float = SCORE_THRESH,
        cache: ImageCache | None = None,
    ) -> np.ndarray:
        """New scores of all detections in their order, float32 [D]; images are read from files, or from ``cache``."""
        columns = np.array(
            [self.novel_names.index(n) if n in self.novel_names else -1 for n in detections.class_names]
        )
        scores = detections.scores.copy()
        for record, rows in detections_by_image(detections, data, score_thresh=score_thresh):
            size = (record.height, record.width)
            image = read_image(record.path, size=size) if cache is None else cache.read(record)
            own = (detections.boxes[rows], detections.labels[rows], detections.scores[rows])
            scores[rows] = self.rescore_image(image, *own, columns, c=c)
        return scores


def detections_by_image(
    detections: Detections, data: DetectionData, *, score_thresh: float
) -> Iterator[tuple[object, np.ndarray]]:
    """Each image of ``data`` that has detections above the threshold, with their rows, int64 [n]."""
    above = np.flatnonzero(detections.scores > score_thresh)
    starts = np.searchsorted(detections.image_ids[above], [record.image_id for record in data.images])
    stops = np.searchsorted(
        detections.image_ids[above], [record.image_id for record in data.images], side="right"
    )
    for record, start, stop in zip(data.images, starts, stops, strict=True):
        if stop > start:
            yield record, above[start:stop]
