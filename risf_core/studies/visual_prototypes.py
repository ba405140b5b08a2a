"""The K shots as visual prototypes: a cache of their embeddings beside the class names, without any training.

After Tip-Adapter (Zhang et al., Training-free Adaption of CLIP for Few-shot Classification, ECCV 2022,
https://github.com/gaopengcuhk/Tip-Adapter). There an image's logits are ``100 cos(x, text) + a sum_k exp(-b (1 - cos(x,
f_k)))`` over a class's shots f_k. Here the sum is a mean, so that one weight serves every K, and the temperature
multiplies both terms, so that it serves every temperature: ``T (cos(x, text) + alpha mean_k exp(-beta (1 - cos(x,
f_k))))``. With a small beta the affinity is linear in the cosine with the class's mean embedding, a prototype. Names
without shots (base, generic, background) have no cache and keep their text alone.
"""

from __future__ import annotations

import numpy as np

from risf_core.cm_clip import CMCLIP, embed_detections
from risf_core.data.dataset import DetectionData
from risf_core.data.loader import ImageCache
from risf_core.detections import Detections


def truth_as_detections(data: DetectionData) -> Detections:
    """The boxes of annotated images, crowd regions left out, as detections with score 1."""
    records = [record.keep(~record.is_crowd) for record in data.images]
    ids = np.repeat([record.image_id for record in records], [len(record.labels) for record in records])
    boxes = np.concatenate([np.empty((0, 4), np.float32), *(record.boxes for record in records)])
    labels = np.concatenate([np.empty(0, np.int64), *(record.labels for record in records)])
    count = len(labels)
    class_scores = np.zeros((count, len(data.class_names) + 1))
    return Detections(ids, boxes, np.ones(count), labels, class_scores, np.arange(count), data.class_names)


def embed_truth(
    data: DetectionData, clip: CMCLIP, *, cache: ImageCache | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Normalised embeddings of all annotated boxes, float32 [B, D], and their labels, int64 [B]."""
    truth = truth_as_detections(data)
    embeddings = embed_detections(truth, data, clip, cache=cache)
    return embeddings.embeds_norm[embeddings.rows], truth.labels


def cache_affinity(
    embeds_norm: np.ndarray, shots_norm: np.ndarray, labels: np.ndarray, *, num_classes: int, beta: float
) -> np.ndarray:
    """Mean affinity of crops to the shots of each class.

    Args:
        embeds_norm: Embeddings of crops, [N, D].
        shots_norm: Embeddings of the shots, [S, D].
        labels: Their classes, [S].
        num_classes: C.
        beta: Sharpness; the affinity of a shot is exp(-beta (1 - cosine)).

    Returns:
        float32 [N, C] in [0, 1]; 0 for a class without a shot.
    """
    affinity = np.exp(np.float32(-beta) * (1 - embeds_norm @ shots_norm.T))  # [N, D] @ [D, S] -> [N, S]
    is_class = labels[:, None] == np.arange(num_classes)  # [S, C]
    return affinity @ (is_class / np.maximum(is_class.sum(axis=0), 1)).astype(np.float32)
