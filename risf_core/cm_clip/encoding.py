"""Encode the crops of stored detections: once, in batches that run across images."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from risf_core.cm_clip.clip import CMCLIP
from risf_core.cm_clip.scores import rescored_rows
from risf_core.data.dataset import DetectionData
from risf_core.data.loader import ImageCache
from risf_core.detections import Detections, Similarities
from risf_core.errors import DataError
from risf_core.progress import progress


def encode_detections(
    detections: Detections,
    data: DetectionData,
    clip: CMCLIP,
    *,
    score_thresh: float = 0.05,
    rescored_classes: Sequence[str] | None = None,
    cache: ImageCache | None = None,
    desc: str | None = None,
) -> Similarities:
    """Compare the crop of every detection that may be re-scored with the label space of `clip`.

    Give `clip` the widest label space of interest: each narrower one is a selection of its columns. Crops of many
    images share a batch, an image is read once, and equal boxes of an image are encoded once.

    Args:
        detections: Any detector's; their boxes are in pixels of the images.
        data: The images they lie in.
        clip: The CLIP and its label space.
        score_thresh: Detections at or below it are not encoded.
        rescored_classes: Names of the classes that are encoded; None for all.
        cache: Decoded images, for several calls on the same images.
        desc: What a progress bar over the images is called; None shows none.

    Returns:
        Cosines whose rows align with `detections`.

    Raises:
        DataError: If a detection lies in an image that `data` does not have.
    """
    records = {record.image_id: record for record in data.images}
    encoded = rescored_rows(detections, rescored_classes, score_thresh)
    keys = np.column_stack([detections.image_ids[encoded].astype(np.float64), detections.boxes[encoded]])
    # equal boxes of one image once: [U, 5], [n]
    keys, positions = np.unique(keys, axis=0, return_inverse=True)
    image_ids = keys[:, 0].astype(np.int64)
    unknown = sorted(set(image_ids.tolist()) - set(records))
    if unknown:
        raise DataError(f"{data.name}: detections in image {unknown[0]}, which the data does not have.")
    bounds = np.flatnonzero(np.diff(image_ids, prepend=-1, append=-1))
    spans = [
        (records[image_ids[start]], keys[start:stop, 1:]) for start, stop in zip(bounds[:-1], bounds[1:])
    ]
    steps = spans if desc is None else progress(spans, desc=desc, unit="image")
    parts = [
        clip.encode_crops(batch).cpu().numpy()
        for batch in _shared_batches(steps, clip, cache or ImageCache(0))
    ]
    cosines = np.full((len(detections), len(clip.label_space)), np.nan, dtype=np.float32)
    if parts:
        cosines[encoded] = np.concatenate(parts)[positions.reshape(-1)]
    return Similarities(cosines, encoded, clip.label_space)


def _shared_batches(spans, clip: CMCLIP, cache: ImageCache) -> Iterator[Tensor]:
    """Crops of (image record, boxes [n, 4]) in their order, in batches that run across images."""
    waiting, count = [], 0
    for record, boxes in spans:
        image = cache.read(record)
        for part in torch.from_numpy(boxes.astype(np.float32)).split(clip.batch_size):
            if count + len(part) > clip.batch_size:
                yield torch.cat(waiting)
                waiting, count = [], 0
            waiting.append(clip.crops(image, part))
            count += len(part)
    if waiting:
        yield torch.cat(waiting)
