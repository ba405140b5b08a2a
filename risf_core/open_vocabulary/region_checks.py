"""What must hold of regions before anything learns from them: shapes, rows, manifest, and a place in their images."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from risf_core.data.dataset import ImageRecord
from risf_core.errors import DataError

if TYPE_CHECKING:
    from risf_core.open_vocabulary.regions import RegionSet

SEES_NOVEL = ("no", "yes", "unknown")
ARRAYS = {
    "image_ids": (np.int64, ()),
    "starts": (np.int64, ()),
    "boxes": (np.float32, (4,)),
    "scores": (np.float32, ()),
    "labels": (np.int64, ()),
}


def areas(boxes: np.ndarray) -> np.ndarray:
    """Areas of corner boxes [M, 4] in square pixels, 0 for those without extent: float64 [M]."""
    return np.clip(boxes[:, 2:].astype(np.float64) - boxes[:, :2], 0, None).prod(axis=1)


def clip_to_images(boxes: np.ndarray, limits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Clip corner boxes, and tell which belong to their image.

    A box belongs to an image that its centre lies in. Transformers that predict centres in the image give no other
    boxes, whereas boxes of another image, scale or form soon do.

    Args:
        boxes: float32 [M, 4], x1 < x2 and y1 < y2, in pixels.
        limits: [M, 4], width, height, width, height of the image of each.

    Returns:
        The clipped boxes, float32 [M, 4], and bool [M]: the centre lies in the image.
    """
    clipped = np.clip(boxes, 0, limits).astype(np.float32)
    centres = (boxes[:, :2].astype(np.float64) + boxes[:, 2:]) / 2
    is_in = ((centres >= 0) & (centres <= limits[:, :2])).all(axis=1)
    return clipped, is_in & (areas(clipped) > 0)


def checked_manifest(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest as JSON would give it back, with what may be left out."""
    if not isinstance(manifest, Mapping):
        raise DataError(f"regions: the manifest is {type(manifest).__name__}. Expected a dictionary.")
    try:
        found = {"class_names": [], "clip": None} | json.loads(json.dumps(dict(manifest), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise DataError(f"regions: the manifest is not JSON ({error}).") from error
    if not (isinstance(found.get("provider"), str) and found["provider"]):
        raise DataError('regions: the manifest names no provider. Expected e.g. {"provider": "rpn", ...}.')
    if found.get("sees_novel") not in SEES_NOVEL:
        raise DataError(
            f"regions of {found['provider']}: sees_novel is {found.get('sees_novel')!r}. Expected one of: "
            f"{', '.join(SEES_NOVEL)} (whether the provider may have seen boxes of novel classes)."
        )
    names = found["class_names"]
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise DataError(
            f"regions of {found['provider']}: class_names is {names!r}. Expected a list of names."
        )
    if len(set(names)) != len(names):
        raise DataError(
            f"regions of {found['provider']}: a class stands twice in class_names. Expected each once."
        )
    if found["clip"] is not None and not isinstance(found["clip"], dict):
        raise DataError(
            f"regions of {found['provider']}: clip is {found['clip']!r}. Expected its facts, or none."
        )
    return found


def check_shapes(found: RegionSet) -> None:
    provider, count = found.manifest["provider"], len(found.scores)
    lengths = {"image_ids": (len(found.image_ids),), "starts": (len(found.image_ids) + 1,)}
    for name, (_, tail) in ARRAYS.items():
        expected = lengths.get(name, (count, *tail))
        if getattr(found, name).shape != expected:
            raise DataError(
                f"regions of {provider}: {name} has shape {getattr(found, name).shape}; expected {expected}."
            )
    embeddings, clip = found.embeddings, found.manifest["clip"]
    if embeddings is not None and (
        embeddings.ndim != 2 or len(embeddings) != count or not embeddings.shape[1]
    ):
        raise DataError(
            f"regions of {provider}: embeddings have shape {embeddings.shape}; expected ({count}, d)."
        )
    if (embeddings is None) != (clip is None):
        raise DataError(
            f"regions of {provider}: {'no ' if embeddings is None else ''}embeddings, and the manifest's clip is "
            f"{'given' if clip else 'missing'}. Expected both or none."
        )
    if len(set(found.image_ids.tolist())) != len(found.image_ids):
        raise DataError(f"regions of {provider}: an image id stands twice. Expected each once.")
    starts = found.starts
    if starts[0] != 0 or starts[-1] != count or (np.diff(starts) < 0).any():
        raise DataError(
            f"regions of {provider}: starts reach from {starts[0]} to {starts[-1]}. Expected rising, 0 to {count}."
        )


def check_rows(found: RegionSet) -> None:
    boxes, scores, labels = found.boxes, found.scores, found.labels
    same_image = np.ones(len(scores), dtype=bool)
    same_image[found.starts[:-1][np.diff(found.starts) > 0]] = False
    rises = np.zeros(len(scores), dtype=bool)
    rises[1:] = (scores[1:] > scores[:-1]) & same_image[1:]
    names = found.manifest["class_names"]
    problems = {
        "a box that is not finite": ~np.isfinite(boxes).all(axis=1),
        "a box without area (expected corners x1 < x2, y1 < y2)": (boxes[:, 2:] <= boxes[:, :2]).any(axis=1),
        "a box that begins left of or above its image (expected x1, y1 >= 0)": (boxes[:, :2] < 0).any(axis=1),
        "a score that is not finite": ~np.isfinite(scores),
        "a score above that of the region before it (expected falling scores)": rises,
        f"a label outside -1..{len(names) - 1} (there are {len(names)} class_names)": (labels < -1)
        | (labels >= len(names)),
    }
    if found.embeddings is not None:
        wide = found.embeddings.astype(np.float32)
        bad = ~np.isfinite(wide).all(axis=1) | ~wide.any(axis=1)
        problems["an embedding that is zero or not finite"] = bad
    for what, is_bad in problems.items():
        if is_bad.any():
            row = int(is_bad.argmax())
            raise DataError(
                f"regions of {found.manifest['provider']}: image {found.owners[row]} has {what}: box "
                f"{boxes[row].tolist()}, score {scores[row]:.4g}, label {labels[row]}. {int(is_bad.sum())} in all."
            )


def outside_message(provider: str, name: str, record: ImageRecord, box: np.ndarray, counts: str) -> str:
    """Why a box cannot be one of its image's.

    Args:
        provider: Who made it.
        name: Of the data.
        record: The image.
        box: Its corners as given, [4].
        counts: How many are so, such as "2 of 10".
    """
    return (
        f"{name}: the centre of box {box.tolist()} of {provider} lies outside of image {record.image_id} "
        f"({record.width} x {record.height} pixels, {record.path.name}); {counts} regions are so. Expected x1, y1, x2, "
        "y2 in pixels of the original image: these are of other images, of resized ones, or another form of box. Give "
        'outside="drop" to leave them out, counted.'
    )
