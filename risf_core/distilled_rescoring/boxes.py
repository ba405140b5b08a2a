"""The boxes of many cells, each once: embedded anew by the detector (re-pooled) or by CLIP, with one pass an image."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from risf_core.cm_clip import CMCLIP, embed_detections
from risf_core.data.dataset import DetectionData
from risf_core.data.loader import ImageCache
from risf_core.detections import Detections
from risf_core.detections import _load_npz as load_arrays
from risf_core.detections import _save_npz as save_arrays
from risf_core.detector.faster_rcnn import FasterRCNN
from risf_core.distilled_rescoring.pairs import pool_boxes, view_image
from risf_core.progress import progress


class BoxBank:
    """The different boxes of several sets of detections in the same images.

    Args:
        found: Detections of several cells; equal boxes of an image count once.
        data: The images.
        folder: Where what is embedded is kept.
    """

    def __init__(self, found: Sequence[Detections], data: DetectionData, folder: Path) -> None:
        self.data, self.folder = data, folder
        ids = np.concatenate([one.image_ids for one in found]).astype(np.float64)
        boxes = np.concatenate([one.boxes for one in found]).astype(np.float64)  # float32 values, exact
        unique, inverse = np.unique(np.column_stack([ids, boxes]), axis=0, return_inverse=True)
        self.image_ids, self.boxes = unique[:, 0].astype(np.int64), unique[:, 1:].astype(np.float32)
        lengths = [len(one) for one in found]
        self.rows = np.split(inverse.reshape(-1), np.cumsum(lengths)[:-1])  # of each set of detections

    def as_detections(self) -> Detections:
        """The boxes with score 1 and one class, for `embed_detections`; its order is `order`'s."""
        count, name = len(self.boxes), self.data.class_names[0]
        zeros = np.zeros(count, dtype=np.int64)
        scores = np.zeros((count, 2), dtype=np.float32)
        return Detections(
            self.image_ids, self.boxes, np.ones(count), zeros, scores, np.arange(count), (name,)
        )

    def by_clip(self, clip: CMCLIP, name: str) -> np.ndarray:
        """CLIP's normalised embedding of each box, float32 [N, d]; kept under ``name``."""
        path = self.folder / f"{name}.npz"
        if not path.exists():
            boxes = self.as_detections()
            options = {"score_thresh": -1.0, "cache": ImageCache(), "desc": f"boxes by CLIP ({name})"}
            made = embed_detections(
                boxes, self.data, clip, journal=self.folder / f"{name}-journal", **options
            )
            embeds = np.empty((len(self.boxes), made.embeds_norm.shape[1]), dtype=np.float32)
            embeds[boxes.proposals] = made.embeds_norm[made.rows]
            save_arrays(path, {"embeds": embeds})
        return load_arrays(path, ("embeds",))["embeds"]

    def by_detector(self, detector: FasterRCNN, name: str = "pooled") -> np.ndarray:
        """The detector's feature of each box, pooled again on the backbone map: float32 [N, D]; kept under ``name``."""
        path = self.folder / f"{name}.npz"
        if not path.exists():
            records = {record.image_id: record for record in self.data.images}
            starts = np.flatnonzero(np.diff(self.image_ids, prepend=np.nan))
            spans = list(zip(starts.tolist(), [*starts[1:].tolist(), len(self.boxes)]))
            parts = []
            for start, stop in progress(spans, desc="pooling boxes again", unit="image"):
                view = view_image(detector, records[int(self.image_ids[start])])
                parts.append(pool_boxes(detector, view, torch.from_numpy(self.boxes[start:stop])).numpy())
            save_arrays(path, {"features": np.concatenate(parts)})
        return load_arrays(path, ("features",))["features"]
