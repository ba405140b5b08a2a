"""What lies beneath detections: the object of the own class that each takes, or the class of the object it overlaps."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from pycocotools import mask as coco_mask

from risf_core.data.dataset import DetectionData, ImageRecord
from risf_core.detections import Detections, xyxy_to_xywh
from risf_core.errors import DataError

IOU_THRESH = 0.5
ON_NOTHING, NOT_COUNTED = -1, -2


def overlaps_by_image(
    detections: Detections, data: DetectionData
) -> Iterator[tuple[np.ndarray, ImageRecord, np.ndarray]]:
    """For each image its detections (positions, best score first), its record, and their IoU [n, objects].

    Raises:
        DataError: If the classes differ, or a detection lies in an image that the data does not have.
    """
    if detections.class_names != data.class_names:
        raise DataError(
            f"{data.name} has the classes {', '.join(data.class_names)}, the detections "
            f"{', '.join(detections.class_names)}. Expected the same, in the same order."
        )
    records = {record.image_id: record for record in data.images}
    if unknown := set(detections.image_ids.tolist()) - set(records):
        raise DataError(
            f"{data.name}: detections in image {min(unknown)}, which the data does not have. Expected those of the "
            "test images; name the runs and the data of one split."
        )
    for image_id in sorted(records):
        start, stop = np.searchsorted(detections.image_ids, [image_id, image_id + 1])
        record, rows = records[image_id], np.arange(start, stop)
        overlaps = np.zeros((len(rows), len(record.labels)))
        if overlaps.size:
            crowd = record.is_crowd.astype(np.uint8)
            boxes = xyxy_to_xywh(detections.boxes[rows]), xyxy_to_xywh(record.boxes)
            overlaps = np.asarray(coco_mask.iou(*boxes, crowd))  # of crowd regions: share of the detection
        yield rows, record, overlaps


def lies_on(detections: Detections, data: DetectionData) -> np.ndarray:
    """The class of the object that each detection lies on, int64 [D].

    That is its own class where it overlaps such an object enough (IoU of 0.5 or more), else the class of the object it
    overlaps most. ``ON_NOTHING`` (-1): no object overlaps it enough; ``NOT_COUNTED`` (-2): only a crowd region or a box
    marked as difficult does.
    """
    beneath = np.full(len(detections), ON_NOTHING, dtype=np.int64)
    for rows, record, overlaps in overlaps_by_image(detections, data):
        if not overlaps.size:
            continue
        is_ignored = record.is_crowd | record.is_difficult
        is_close = overlaps >= IOU_THRESH
        own = is_close & (record.labels == detections.labels[rows][:, None])
        # an own object before others, one that counts before one that does not, then the largest overlap
        rank = overlaps + 2.0 * ~is_ignored + 4.0 * own
        best = np.where(is_close, rank, -1.0).argmax(axis=1)
        found = np.where(is_ignored[best], NOT_COUNTED, record.labels[best])
        beneath[rows] = np.where(is_close.any(axis=1), found, ON_NOTHING)
    return beneath


def takes_object(detections: Detections, data: DetectionData) -> np.ndarray:
    """Whether each detection is right, float64 [D]: 1 right, 0 wrong, NaN counted neither way.

    COCO's rule at an IoU of 0.5, image by image: the best detection first takes the object of its class that it
    overlaps most, an object only once; crowd regions and boxes marked as difficult count neither way.
    """
    right = np.zeros(len(detections))
    for rows, record, overlaps in overlaps_by_image(detections, data):
        is_ignored, taken = record.is_crowd | record.is_difficult, np.zeros(len(record.labels), dtype=bool)
        for row, own in zip(rows.tolist(), overlaps):  # in falling score
            fits = (own >= IOU_THRESH) & (record.labels == detections.labels[row])
            free = np.flatnonzero(fits & ~taken & ~is_ignored)
            if len(free):
                taken[free[own[free].argmax()]] = True
                right[row] = 1.0
            elif (fits & is_ignored).any():
                right[row] = np.nan
    return right


def named_by_best(
    detections: Detections, data: DetectionData, names: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """What the best-scoring detection on each object calls it.

    Args:
        detections: Those that count.
        data: The test images with the detector's classes.
        names: Another namer's label of each detection's box, int64 [D]; None takes the detections' own.

    Returns:
        The class of each object that counts, int64 [G], and the label of the best-scoring detection that overlaps it
        enough, int64 [G]; -1 where none does.
    """
    labels = detections.labels if names is None else names
    truth, called = [], []
    for rows, record, overlaps in overlaps_by_image(detections, data):
        counts = np.flatnonzero(~(record.is_crowd | record.is_difficult))
        is_close = overlaps[:, counts] >= IOU_THRESH  # [n, G]
        truth.append(record.labels[counts])
        first = is_close.argmax(axis=0) if len(rows) else np.zeros(len(counts), dtype=np.int64)
        of_first = labels[rows][first] if len(rows) else np.full(len(counts), ON_NOTHING)
        called.append(np.where(is_close.any(axis=0), of_first, ON_NOTHING))
    none = np.empty(0, dtype=np.int64)
    return np.concatenate([none, *truth]), np.concatenate([none, *called])
