"""Encode the crops of stored detections: once, in batches that run across images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from risf_core.cm_clip.clip import CMCLIP
from risf_core.cm_clip.crop_choice import choose_crops
from risf_core.cm_clip.scores import rescored_rows
from risf_core.data.dataset import DetectionData, ImageRecord
from risf_core.data.loader import ImageCache
from risf_core.detections import Detections, Similarities
from risf_core.errors import DataError
from risf_core.progress import progress

COUNTS = ("boxes", "equal", "shared", "dropped", "encoded")


@dataclass(frozen=True, eq=False)
class CropEmbeddings:
    """Embeddings of the crops of detections: any label space is one multiplication away.

    Attributes:
        embeds_norm: float32 [U, D], one row for each crop that was encoded.
        rows: int64 [N], for each detection the row of its crop; -1 if none was encoded for it.
        counts: What became of the boxes that were wanted; see `crop_choice.CropChoice`.
    """

    embeds_norm: np.ndarray
    rows: np.ndarray
    counts: dict[str, int]

    def similarities(self, text_embeds_norm: Tensor, names: Sequence[str]) -> Similarities:
        """Cosines with the texts [L, D] of L names."""
        texts = torch.as_tensor(text_embeds_norm).detach().float().cpu()
        cosines = (torch.from_numpy(self.embeds_norm) @ texts.T).numpy()  # [U, D] @ [D, L] -> [U, L]
        encoded = self.rows >= 0
        aligned = np.full((len(self.rows), len(names)), np.nan, dtype=np.float32)
        aligned[encoded] = cosines[self.rows[encoded]]
        return Similarities(aligned, encoded, tuple(names))


class _Span(NamedTuple):
    """The boxes of one image whose crops are encoded: float32 [n, 4]."""

    record: ImageRecord
    boxes: np.ndarray


def embed_detections(
    detections: Detections,
    data: DetectionData,
    clip: CMCLIP,
    *,
    score_thresh: float = 0.05,
    rescored_classes: Sequence[str] | None = None,
    share: str = "none",
    budget: int | None = None,
    cache: ImageCache | None = None,
    desc: str | None = None,
) -> CropEmbeddings:
    """Embed the crop of every detection that may be re-scored.

    Crops of many images share a batch, an image is read once, and equal boxes of an image are encoded once.

    Args:
        detections: Any detector's; their boxes are in pixels of the images.
        data: The images they lie in.
        clip: The CLIP.
        score_thresh: Detections at or below it are not encoded.
        rescored_classes: Names of the classes that are encoded; None for all.
        share: Whether boxes share a crop: "none", "iou" or "proposal", see `choose_crops`.
        budget: The most crops of an image; None encodes all. See `choose_crops`.
        cache: Decoded images, for several calls on the same images.
        desc: What a progress bar is called; None shows none.

    Raises:
        DataError: If a detection lies in an image that `data` does not have.
    """
    wanted = rescored_rows(detections, rescored_classes, score_thresh)
    owners, counts = choose_crops(detections, wanted, share=share, budget=budget)
    spans, rows = _spans(detections, data, owners)
    batches = _batches([len(span.boxes) for span in spans], clip.batch_size)
    steps = batches if desc is None else progress(batches, desc=desc, unit="batch")
    parts = [
        clip.embed_crops(crops).cpu().numpy() for crops in _crops(steps, spans, clip, cache or ImageCache(0))
    ]
    width = clip.text_embeds_norm.shape[1]
    return CropEmbeddings(np.concatenate([np.empty((0, width), np.float32), *parts]), rows, counts)


def encode_detections(
    detections: Detections,
    data: DetectionData,
    clip: CMCLIP,
    *,
    score_thresh: float = 0.05,
    rescored_classes: Sequence[str] | None = None,
    share: str = "none",
    budget: int | None = None,
    cache: ImageCache | None = None,
    desc: str | None = None,
) -> Similarities:
    """Compare the crop of every detection that may be re-scored with the label space of `clip`.

    Give `clip` the widest label space of interest: each narrower one is a selection of its columns. Arguments and
    errors are those of `embed_detections`.

    Returns:
        Cosines whose rows align with `detections`.
    """
    options = {"score_thresh": score_thresh, "rescored_classes": rescored_classes, "share": share}
    embeddings = embed_detections(detections, data, clip, budget=budget, cache=cache, desc=desc, **options)
    return embeddings.similarities(clip.text_embeds_norm, clip.label_space)


def _spans(detections: Detections, data: DetectionData, owners: np.ndarray) -> tuple[list[_Span], np.ndarray]:
    """The boxes to encode by image, and for each detection the position of its crop among them (-1: none)."""
    records = {record.image_id: record for record in data.images}
    leaders = np.unique(owners[owners >= 0])
    image_ids, boxes = detections.image_ids[leaders], detections.boxes[leaders]
    unknown = sorted(set(image_ids.tolist()) - set(records))
    if unknown:
        raise DataError(f"{data.name}: detections in image {unknown[0]}, which the data does not have.")
    # by image, then by corners: whatever the scores, the same boxes make the same batches
    order = np.lexsort((*boxes.T[::-1], image_ids))
    position = np.full(len(detections) + 1, -1, dtype=np.int64)  # the last one serves owner -1
    position[leaders[order]] = np.arange(len(leaders))
    image_ids, boxes = image_ids[order], boxes[order]
    starts = np.flatnonzero(np.diff(image_ids, prepend=np.nan))
    stops = [*starts[1:].tolist(), len(leaders)]
    spans = [_Span(records[int(image_ids[a])], boxes[a:b]) for a, b in zip(starts.tolist(), stops)]
    return spans, position[owners]


def _batches(lengths: Sequence[int], batch_size: int) -> list[list[tuple[int, int, int]]]:
    """Batches of (span, start, stop): they run across images, and hold at most `batch_size` boxes."""
    batches, count = [], batch_size
    for span, length in enumerate(lengths):
        for start in range(0, length, batch_size):
            stop = min(start + batch_size, length)
            if count + stop - start > batch_size:
                batches.append([])
                count = 0
            batches[-1].append((span, start, stop))
            count += stop - start
    return batches


def _crops(batches, spans: list[_Span], clip: CMCLIP, cache: ImageCache) -> Iterator[Tensor]:
    """The crops of each batch; an image is read once."""
    current, image = -1, None
    for batch in batches:
        parts = []
        for span, start, stop in batch:
            if span != current:
                current, image = span, cache.read(spans[span].record)
            parts.append(clip.crops(image, torch.from_numpy(spans[span].boxes[start:stop])))
        yield torch.cat(parts)
