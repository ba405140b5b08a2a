"""Regions of images with their CLIP embeddings, made once and offline: what region distillation learns from.

**The file**, one ``.npz`` for a part of a data set, arrays stored plain (not compressed, no Python objects):

=============== ============ ====== ====================================================================================
array           type         shape  content
=============== ============ ====== ====================================================================================
``image_ids``   int64        [I]    ids of the images in the annotation file, each once; an image may have no region
``starts``      int64        [I+1]  image i owns the rows ``starts[i]`` to ``starts[i+1]``; begins with 0, ends with M
``boxes``       float32      [M, 4] x1, y1, x2, y2 in pixels of the *original* image, 0 <= x1 < x2, 0 <= y1 < y2
``scores``      float32      [M]    confidence, finite, falling within an image; equal ones keep their order
``labels``      int64        [M]    index into the manifest's ``class_names``; -1 for a region of no class
``embeddings``  float16      [M, d] CLIP image embeddings of the crops, of any length but zero; whoever compares
                                    directions normalises. Left out where the regions were not embedded
``manifest``    text         []     JSON with sorted keys, below
=============== ============ ====== ====================================================================================

The manifest holds ``format`` (1), ``provider`` (who made the boxes), ``sees_novel`` ("no", "yes" or "unknown": whether
the provider may have seen boxes of novel classes), ``class_names`` (list; empty without classes) and ``clip`` (null
without embeddings; else ``name``, ``weights`` as a SHA-256 of the image tower, ``preprocess``, ``resize``, ``crop`` and
what else decides the numbers), and any further facts of the provider. The same regions give the same bytes.
"""

from __future__ import annotations

import json
import logging
import os
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from risf_core.cm_clip import CMCLIP, embed_detections
from risf_core.cm_clip.journal import weights_hash
from risf_core.data.dataset import DetectionData
from risf_core.data.loader import ImageCache
from risf_core.detections import Detections
from risf_core.errors import DataError
from risf_core.npz_files import check_npz
from risf_core.open_vocabulary.region_checks import (
    ARRAYS,
    check_rows,
    check_shapes,
    checked_manifest,
    clip_to_images,
    outside_message,
)

logger = logging.getLogger(__name__)

FORMAT = 1
OUTSIDE = ("error", "drop")


class Regions(NamedTuple):
    """The regions of one image: boxes [m, 4], scores [m], labels [m], embeddings [m, d] or None."""

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    embeddings: np.ndarray | None


@dataclass(frozen=True, eq=False)
class RegionSet:
    """Regions of many images; the module's text says what each array holds.

    Attributes:
        image_ids: int64 [I].
        starts: int64 [I+1].
        boxes: float32 [M, 4].
        scores: float32 [M].
        labels: int64 [M].
        embeddings: float16 [M, d]; None before `embed_regions`.
        manifest: Facts, as in the file; ``format`` is added on saving.

    Raises:
        DataError: If they do not belong together, or the manifest lacks something.
    """

    image_ids: np.ndarray
    starts: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    embeddings: np.ndarray | None
    manifest: dict[str, Any]

    def __post_init__(self) -> None:
        for name, (dtype, _) in ARRAYS.items():
            object.__setattr__(self, name, np.ascontiguousarray(getattr(self, name), dtype=dtype))
        if self.embeddings is not None:
            object.__setattr__(self, "embeddings", np.ascontiguousarray(self.embeddings, dtype=np.float16))
        object.__setattr__(self, "manifest", checked_manifest(self.manifest))
        check_shapes(self)
        check_rows(self)

    @classmethod
    def from_images(
        cls, image_ids: Sequence[int], outputs: Sequence[Mapping | Regions], manifest: Mapping[str, Any]
    ) -> RegionSet:
        """Collect the regions of each image, in falling score.

        Args:
            image_ids: One id for each image.
            outputs: For each image ``boxes`` [m, 4] and ``scores`` [m], and where there are ``labels`` [m] (else -1)
                and ``embeddings`` [m, d] (for all images or for none), as arrays or tensors on the CPU.
            manifest: ``provider`` and ``sees_novel`` at least.
        """
        if len(image_ids) != len(outputs):
            raise DataError(
                f"regions: {len(image_ids)} image ids for {len(outputs)} outputs. Expected one each."
            )
        columns: dict[str, list[np.ndarray]] = {name: [] for name in Regions._fields}
        for output in outputs:
            found = output._asdict() if isinstance(output, Regions) else dict(output)
            scores = np.asarray(found["scores"], dtype=np.float32).reshape(-1)
            order = np.argsort(-scores, kind="stable")
            given = {"scores": scores, "boxes": np.asarray(found["boxes"], dtype=np.float32).reshape(-1, 4)}
            labels = found.get("labels")
            given["labels"] = np.full(len(scores), -1) if labels is None else np.asarray(labels)
            if found.get("embeddings") is not None:
                given["embeddings"] = np.asarray(found["embeddings"])
            for name, value in given.items():
                if len(value) != len(scores):
                    raise DataError(f"regions: {len(value)} {name} for {len(scores)} scores of one image.")
                columns[name].append(value[order])
        if len(columns["embeddings"]) not in (0, len(outputs)):
            raise DataError("regions: some images have embeddings and others none. Expected all or none.")
        empty = {"boxes": np.empty((0, 4)), "scores": np.empty(0), "labels": np.empty(0)}
        flat = {name: np.concatenate([empty[name], *columns[name]]) for name in empty}
        embeddings = np.concatenate(columns["embeddings"]) if columns["embeddings"] else None
        starts = np.cumsum([0, *(len(scores) for scores in columns["scores"])])
        return cls(np.asarray(image_ids), starts, **flat, embeddings=embeddings, manifest=dict(manifest))

    def __len__(self) -> int:
        return len(self.scores)

    @cached_property
    def _places(self) -> dict[int, int]:
        return {image_id: place for place, image_id in enumerate(self.image_ids.tolist())}

    def place(self, image_id: int) -> int:
        """Position of an image in ``image_ids``; DataError if it has none."""
        try:
            return self._places[int(image_id)]
        except KeyError:
            raise DataError(
                f"regions of {self.manifest['provider']}: image {image_id} is not among its {len(self.image_ids)} "
                "images. Make the regions anew on these data, or select the images that both have."
            ) from None

    def of(self, image_id: int) -> Regions:
        """The regions of an image, best first; DataError if the set does not have the image."""
        place = self.place(image_id)
        own = slice(int(self.starts[place]), int(self.starts[place + 1]))
        embeddings = None if self.embeddings is None else self.embeddings[own]
        return Regions(self.boxes[own], self.scores[own], self.labels[own], embeddings)

    @property
    def owners(self) -> np.ndarray:
        """Id of the image of each region: int64 [M]."""
        return np.repeat(self.image_ids, np.diff(self.starts))

    def keep(self, mask: np.ndarray) -> RegionSet:
        """The regions of a bool mask [M]; all images stay."""
        mask = np.asarray(mask)
        if mask.shape != (len(self),) or mask.dtype != bool:
            raise DataError(f"regions: mask is {mask.dtype} {mask.shape}; expected bool ({len(self)},).")
        rows = {name: getattr(self, name)[mask] for name in ("boxes", "scores", "labels")}
        rows["embeddings"] = None if self.embeddings is None else self.embeddings[mask]
        starts = np.concatenate([[0], np.cumsum(mask)])[self.starts]
        return replace(self, starts=starts, **rows)

    def top(self, k: int) -> RegionSet:
        """The best ``k`` regions of each image, all classes together."""
        rank = np.arange(len(self)) - np.repeat(self.starts[:-1], np.diff(self.starts))
        return self.keep(rank < k)

    def select(self, image_ids: Sequence[int]) -> RegionSet:
        """The set of these images, in this order; DataError if it does not have one of them."""
        places = np.array([self.place(image_id) for image_id in image_ids], dtype=np.int64)
        counts = np.diff(self.starts)[places]
        starts = np.concatenate([[0], np.cumsum(counts)])
        rows = np.arange(starts[-1]) + np.repeat(self.starts[places] - starts[:-1], counts)
        columns = {name: getattr(self, name)[rows] for name in ("boxes", "scores", "labels")}
        columns["embeddings"] = None if self.embeddings is None else self.embeddings[rows]
        return replace(self, image_ids=self.image_ids[places], starts=starts, **columns)

    def noted(self, **facts: Any) -> RegionSet:
        """The same regions with these facts in the manifest."""
        return replace(self, manifest=self.manifest | facts)

    def fitted(self, data: DetectionData, *, outside: str = "error") -> RegionSet:
        """The regions of the images of ``data``, in its order, each clipped to its image; what was clipped is logged.

        Args:
            data: The images; each must be in the set.
            outside: What happens to a box whose centre lies outside of its image: "error", or "drop" (counted in the
                manifest as ``dropped``).

        Raises:
            DataError: If an image is missing, or a box lies outside.
        """
        if outside not in OUTSIDE:
            raise DataError(f"outside is {outside!r}. Expected one of: {', '.join(OUTSIDE)}.")
        chosen = self.select([record.image_id for record in data.images])
        sizes = np.array([[record.width, record.height] * 2 for record in data.images], dtype=np.float32)
        limits = np.repeat(sizes.reshape(-1, 4), np.diff(chosen.starts), axis=0)  # [M, 4]
        clipped, is_in = clip_to_images(chosen.boxes, limits)
        if not is_in.all() and outside == "error":
            row, counts = int((~is_in).argmax()), f"{int((~is_in).sum())} of {len(chosen)}"
            record = next(one for one in data.images if one.image_id == chosen.owners[row])
            provider = chosen.manifest["provider"]
            raise DataError(outside_message(provider, data.name, record, chosen.boxes[row], counts))
        is_cut = is_in & (clipped != chosen.boxes).any(axis=1)
        notes = {"dropped": int((~is_in).sum())} if outside == "drop" else {}
        if is_cut.any() or not is_in.all():
            counts = (int(is_cut.sum()), int((~is_in).sum()), len(chosen))
            logger.info("%s: %d regions clipped to their image, %d dropped, of %d", data.name, *counts)
        # dropped ones keep their old corners until `keep`, which checks the others
        boxes = np.where(is_in[:, None], clipped, chosen.boxes)
        return replace(chosen, boxes=boxes, manifest=chosen.manifest | notes).keep(is_in)

    def facts(self) -> dict[str, Any]:
        """What a record says of the set: provider, what it may have seen, counts, and the CLIP."""
        clip = self.manifest["clip"]
        return {
            "provider": self.manifest["provider"],
            "sees_novel": self.manifest["sees_novel"],
            "images": len(self.image_ids),
            "regions": len(self),
            "regions_an_image": len(self) / max(len(self.image_ids), 1),
            "classes": len(self.manifest["class_names"]),
            "clip": None if clip is None else {key: clip.get(key) for key in ("name", "weights")},
        }

    def save(self, path: str | Path) -> None:
        """Write the ``.npz`` file; it appears whole or not at all, and the same regions give the same bytes."""
        path = Path(path)
        arrays = {name: getattr(self, name) for name in ARRAYS}
        if self.embeddings is not None:
            arrays["embeddings"] = self.embeddings
        text = json.dumps(self.manifest | {"format": FORMAT}, sort_keys=True, allow_nan=False)
        arrays["manifest"] = np.array(text, dtype=np.str_)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            with temporary.open("wb") as file:
                np.savez(file, **arrays)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | Path) -> RegionSet:
        """Read a file in the format of this module, checked in full.

        Raises:
            DataError: If it is missing, unreadable, or holds anything else; the file is named.
        """
        path = Path(path)
        if not path.is_file():
            raise DataError(
                f"{path}: there is no such file of regions. Correct the path, or make the file first."
            )
        check_npz(path)
        arrays = _read_arrays(path)
        try:
            manifest = json.loads(str(arrays.pop("manifest")))
            if not isinstance(manifest, dict) or manifest.pop("format", None) != FORMAT:
                raise DataError(f"the manifest is not of format {FORMAT}.")
            return cls(**arrays, manifest=manifest)
        except (DataError, ValueError) as error:
            raise DataError(f"{path}: {error} The format is described in {__name__}.") from error


def embed_regions(
    regions: RegionSet,
    data: DetectionData,
    clip: CMCLIP,
    *,
    name: str | None = None,
    cache: ImageCache | None = None,
    journal: Path | None = None,
    desc: str | None = None,
) -> RegionSet:
    """Embed the crop of every region by the engine of CM-CLIP: the teacher of "RKD" (Bangalath et al. 2022).

    Crops of many images share a batch, an image is read once, and equal boxes of an image are encoded once.

    Args:
        regions: The regions; those they may have had as embeddings are replaced.
        data: The images; regions of its images are embedded, clipped to the image.
        clip: The CLIP, with its crop rule. The released code takes crop="shortest" (the ends of long objects are cut
            off) with resize="bicubic"; the re-scoring of this project squashes.
        name: Of the CLIP, for the manifest.
        cache: Decoded images, for several calls on the same images.
        journal: Folder in which batches are kept as soon as they are encoded; see `embed_detections`.
        desc: What a progress bar is called; None shows none.

    Returns:
        The regions of the images of `data` with float16 embeddings [M, d] of length 1, and the CLIP in the manifest.

    Raises:
        DataError: If an image has no entry in `regions`, or a box lies outside its image.
    """
    fitted = regions.fitted(data)
    count = len(fitted)
    boxes = Detections(
        fitted.owners,
        fitted.boxes,
        fitted.scores,
        np.zeros(count),
        np.zeros((count, 2)),
        np.arange(count),
        ("",),
    )  # sorted anew; the proposal of each row is its row here
    options = {"score_thresh": -np.inf, "cache": cache, "journal": journal, "desc": desc}
    found = embed_detections(boxes, data, clip, **options)
    embeddings = np.empty((count, found.embeds_norm.shape[1]), dtype=np.float16)
    embeddings[boxes.proposals] = found.embeds_norm[found.rows]
    return replace(fitted, embeddings=embeddings, manifest=fitted.manifest | {"clip": clip_facts(clip, name)})


def clip_facts(clip: CMCLIP, name: str | None = None) -> dict[str, Any]:
    """What decides the numbers of a CLIP's image embeddings, for a manifest."""
    facts = {"name": name or type(clip.model).__name__, "weights": weights_hash(clip.model.visual)}
    options = {key: getattr(clip, key) for key in ("preprocess", "resize", "crop", "path", "precision")}
    if clip.path == "dense":
        options |= {"dense_scale": clip.dense_scale, "dense_stages": clip.dense_stages}
    return facts | options | {"image_size": list(clip.image_size)}


def _read_arrays(path: Path) -> dict[str, Any]:
    expected = {*ARRAYS, "manifest"}
    try:
        with np.load(path, allow_pickle=False) as file:
            found = set(file.files)
            if found - {"embeddings"} != expected:
                raise DataError(
                    f"{path}: holds {', '.join(sorted(found))}; expected {', '.join(sorted(expected))} and maybe "
                    f"embeddings. The format is described in {__name__}."
                )
            arrays = {name: file[name] for name in found}
    except (OSError, ValueError, EOFError, AttributeError, TypeError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: not a readable .npz file ({error}).") from error
    types = {name: dtype for name, (dtype, _) in ARRAYS.items()} | {"embeddings": np.float16}
    for name, array in arrays.items():
        if name != "manifest" and array.dtype != types[name]:
            raise DataError(f"{path}: {name} is {array.dtype}; expected {np.dtype(types[name])}.")
    return {"embeddings": None} | arrays
