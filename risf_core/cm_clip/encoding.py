"""Encode the crops of stored detections: once, in batches that run across images."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from risf_core.cm_clip.clip import CMCLIP
from risf_core.cm_clip.crop_choice import Share, choose_crops
from risf_core.cm_clip.journal import Journal, weights_hash
from risf_core.cm_clip.scores import rescored_rows
from risf_core.data.dataset import DetectionData, ImageRecord
from risf_core.data.loader import ImageCache
from risf_core.detections import Detections, Similarities
from risf_core.detections import _load_npz as load_arrays
from risf_core.detections import _save_npz as save_arrays
from risf_core.errors import DataError
from risf_core.progress import progress

logger = logging.getLogger(__name__)

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

    def save(self, path: str | Path) -> None:
        """Write an ``.npz`` file, as `Detections.save` does."""
        counts = np.array([self.counts[name] for name in COUNTS], dtype=np.int64)
        save_arrays(Path(path), {"embeds_norm": self.embeds_norm, "rows": self.rows, "counts": counts})

    @classmethod
    def load(cls, path: str | Path) -> CropEmbeddings:
        """Read a file that `save` wrote; errors as in `Detections.load`."""
        arrays = load_arrays(Path(path), ("embeds_norm", "rows", "counts"))
        return cls(**arrays | {"counts": dict(zip(COUNTS, arrays["counts"].tolist()))})


class _Span(NamedTuple):
    """The boxes of one image whose crops are encoded: float32 [n, 4]."""

    record: ImageRecord
    boxes: np.ndarray


class _Part(NamedTuple):
    """Some boxes of a span, from `start` to `stop`."""

    span: int
    start: int
    stop: int


def embed_detections(
    detections: Detections,
    data: DetectionData,
    clip: CMCLIP,
    *,
    score_thresh: float = 0.05,
    rescored_classes: Sequence[str] | None = None,
    share: Share = "none",
    budget: int | None = None,
    cache: ImageCache | None = None,
    desc: str | None = None,
    journal: Path | None = None,
) -> CropEmbeddings:
    """Embed the crop of every detection that may be re-scored.

    Crops of many images share a batch, an image is read once, and equal boxes of an image are encoded once.

    Args:
        detections: Any detector's; their boxes are in pixels of the images.
        data: The images they lie in.
        clip: The CLIP.
        score_thresh: Detections at or below it are not encoded.
        rescored_classes: Names of the classes that are encoded; None for all.
        share: Whether boxes share a crop: see `choose_crops`.
        budget: The most crops of an image; None encodes all. See `choose_crops`.
        cache: Decoded images, for several calls on the same images.
        desc: What a progress bar is called; None shows none.
        journal: Folder in which each batch is kept as soon as it is encoded, so that a killed run goes on and the next
            run on the same boxes, images, weights and options encodes nothing. None keeps nothing.

    Raises:
        DataError: If a detection lies in an image that `data` does not have.
    """
    wanted = rescored_rows(detections, rescored_classes, score_thresh)
    owners, counts = choose_crops(detections, wanted, share=share, budget=budget)
    spans, rows = _spans(detections, data, owners)
    batches = _batches([len(span.boxes) for span in spans], clip)
    options = {"cache": cache or ImageCache(0), "desc": desc}
    if journal is None:
        embeds_norm = _embed(batches, spans, clip, None, **options)
    else:
        with Journal(journal, _key(spans, clip)) as stored:
            embeds_norm = _embed(batches, spans, clip, stored, **options)
    return CropEmbeddings(embeds_norm, rows, counts)


def encode_detections(
    detections: Detections,
    data: DetectionData,
    clip: CMCLIP,
    *,
    score_thresh: float = 0.05,
    rescored_classes: Sequence[str] | None = None,
    share: Share = "none",
    budget: int | None = None,
    cache: ImageCache | None = None,
    desc: str | None = None,
    journal: Path | None = None,
) -> Similarities:
    """Compare the crop of every detection that may be re-scored with the label space of `clip`.

    Give `clip` the widest label space of interest: each narrower one is a selection of its columns. Arguments and
    errors are those of `embed_detections`.

    Returns:
        Cosines whose rows align with `detections`.
    """
    embeddings = embed_detections(
        detections,
        data,
        clip,
        score_thresh=score_thresh,
        rescored_classes=rescored_classes,
        share=share,
        budget=budget,
        cache=cache,
        desc=desc,
        journal=journal,
    )
    return embeddings.similarities(clip.text_embeds_norm, clip.label_space)


def _spans(detections: Detections, data: DetectionData, owners: np.ndarray) -> tuple[list[_Span], np.ndarray]:
    """The boxes to encode by image, and for each detection the position of its crop among them (-1: none)."""
    records = {record.image_id: record for record in data.images}
    leaders = np.unique(owners[owners >= 0])
    image_ids, boxes = detections.image_ids[leaders], detections.boxes[leaders]
    unknown = sorted(set(image_ids.tolist()) - set(records))
    if unknown:
        raise DataError(f"{data.name}: detections in image {unknown[0]}, which the data does not have.")
    # by file, then by corners: whatever the scores, ids and order of the detections, the same boxes of the same files
    # make the same batches
    places = {i: (records[i].path.name, str(records[i].path), i) for i in set(image_ids.tolist())}
    rank = {image_id: number for number, image_id in enumerate(sorted(places, key=places.get))}
    ranks = np.array([rank[image_id] for image_id in image_ids.tolist()], dtype=np.int64)
    order = np.lexsort((*boxes.T[::-1], ranks))
    position = np.full(len(detections) + 1, -1, dtype=np.int64)  # the last one serves owner -1
    position[leaders[order]] = np.arange(len(leaders))
    image_ids, boxes = image_ids[order], boxes[order]
    starts = np.flatnonzero(np.diff(image_ids, prepend=np.nan))
    stops = [*starts[1:].tolist(), len(leaders)]
    spans = [_Span(records[int(image_ids[a])], boxes[a:b]) for a, b in zip(starts.tolist(), stops)]
    return spans, position[owners]


def _batches(lengths: Sequence[int], clip: CMCLIP) -> list[list[_Part]]:
    """What goes through the model at once: crops of several images, or (dense) all boxes of one."""
    if clip.path == "dense":
        return [[_Part(span, 0, length)] for span, length in enumerate(lengths)]
    batches, count = [], clip.batch_size
    for span, length in enumerate(lengths):
        for start in range(0, length, clip.batch_size):
            stop = min(start + clip.batch_size, length)
            if count + stop - start > clip.batch_size:
                batches.append([])
                count = 0
            batches[-1].append(_Part(span, start, stop))
            count += stop - start
    return batches


def _embed(
    batches: list[list[_Part]],
    spans: list[_Span],
    clip: CMCLIP,
    journal: Journal | None,
    *,
    cache: ImageCache,
    desc: str | None,
) -> np.ndarray:
    """The embeddings of all batches, those that are not stored anew: float32 [U, D]; an image is read once."""
    ends = np.cumsum([0, *(sum(part.stop - part.start for part in batch) for batch in batches)])
    embeds_norm = np.empty((ends[-1], clip.text_embeds_norm.shape[1]), dtype=np.float32)
    missing = dict.fromkeys(range(len(batches)))
    for number, table in [] if journal is None else journal.stored():
        embeds_norm[ends[number] : ends[number + 1]] = table
        del missing[number]
    if len(missing) < len(batches):
        logger.info("%d of %d batches of crops are stored", len(batches) - len(missing), len(batches))
    current, image = -1, None
    for number in progress(missing, desc=desc, unit="batch") if desc and missing else missing:
        crops = []
        for span, start, stop in batches[number]:
            if span != current:
                current, image = span, cache.read(spans[span].record)
            boxes = torch.from_numpy(spans[span].boxes[start:stop])
            crops.append(boxes if clip.path == "dense" else clip.crops(image, boxes))
        embed = (
            clip.embed_boxes(image, *crops) if clip.path == "dense" else clip.embed_crops(torch.cat(crops))
        )
        table = embeds_norm[ends[number] : ends[number + 1]]
        table[:] = embed.cpu().numpy()
        if journal is not None:
            journal.add(number, table)
    return embeds_norm


def _key(spans: list[_Span], clip: CMCLIP) -> str:
    """Hash of all that the embeddings depend on: weights, options, boxes, and the images' files by content."""
    options = (clip.path, clip.dense_scale, clip.dense_stages, clip.crop, clip.resize, clip.preprocess)
    options += (clip.precision, clip.batch_size)
    digest = hashlib.sha256(f"{weights_hash(clip.model.visual)} {options}".encode())
    for record, boxes in spans:
        digest.update(f"{_content_hash(record.path)} {record.width} {record.height} ".encode())
        digest.update(boxes.tobytes())
    return digest.hexdigest()


def _content_hash(path: Path) -> str | None:
    """SHA-256 of a file; None where it cannot be read, which encoding will report."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None
