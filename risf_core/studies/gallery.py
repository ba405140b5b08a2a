"""The images that CM-CLIP changes most, with their stored detections before and after."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from risf_core.data.dataset import DetectionData
from risf_core.detections import Detections
from risf_core.errors import ParamsError
from risf_core.fine_tuning import rescored, settled
from risf_core.studies.changed_images import ImageChange, image_changes, most_changed
from risf_core.studies.stored_cells import Splits, stored_cells
from risf_core.study_params import BaseClassesParams

PAPER_SPACE = "novel+background"


@dataclass(frozen=True)
class GalleryImage:
    """One image with its detections that count.

    Attributes:
        image_id: Of the image.
        seed: Few-shot draw of the detector.
        change: Of the image's margin, see `changed_images.image_margins`.
        before: All detections of that detector.
        after: The same, re-scored.
    """

    image_id: int
    seed: int
    change: float
    before: Detections
    after: Detections


@dataclass(frozen=True)
class Gallery:
    """The largest gains and losses among ``num_images`` images in ``num_cells`` trainings.

    ``share_up`` and ``share_down`` (percent) and ``mean_change`` are over all images of all trainings.
    """

    gains: tuple[GalleryImage, ...]
    losses: tuple[GalleryImage, ...]
    data: DetectionData
    num_images: int
    num_cells: int
    share_up: float
    share_down: float
    mean_change: float
    setting: str


def make_gallery(params: BaseClassesParams, run) -> Gallery | None:
    """Choose images by `most_changed` from the stored files of the fsod runs; rows of the parts "images", "gallery".

    CM-CLIP as these runs applied it, in the paper's label space. None where the parameters name no such run.

    Raises:
        ParamsError: If no run holds a cell of the arm and loss, or the cells are of several splits, data sets or K.
    """
    upstreams = run.upstreams("fsod") if params.fsod else []
    if not upstreams:
        return None
    cells = stored_cells(upstreams, arm=params.arm, loss=params.gallery_loss, seeds=params.seeds)
    if len({(cell.tuned.data, cell.tuned.split, cell.key["shots"]) for cell in cells}) > 1:
        runs = ", ".join(dict.fromkeys(cell.run_id for cell in cells))
        raise ParamsError(
            f"fsod: {runs} differ in data, split or K. Expected runs of one split and K: name those."
        )
    splits, found, changes = Splits(), [], []
    for number, cell in enumerate(cells):
        benchmark, test, _ = splits.get(cell)
        settings = settled(cell.tuned.cm_clip, cell.folder).model_copy(
            update={"label_spaces": (PAPER_SPACE,)}
        )
        before, similarities = cell.with_similarities()
        ((_, after),) = rescored(before, similarities, benchmark, settings)
        own = image_changes(before, after, test, cell=number)
        found.append((before, after, test))
        changes += own
        values = np.array([one.change for one in own])
        key = {"part": "images", **cell.key}
        if not run.rows.done(**key):
            shares = {"up": int((values > 0).sum()), "down": int((values < 0).sum())}
            run.rows.add(key, {"images": len(values), "mean_change": float(values.mean())} | shares)
    chosen = most_changed(changes, count=params.gallery_images)
    for kind, ones in zip(("gain", "loss"), chosen):
        _add_rows(run, kind, ones, cells)
    gains, losses = (
        tuple(
            GalleryImage(one.image_id, cells[one.cell].key["seed"], one.change, *found[one.cell][:2])
            for one in ones
        )
        for ones in chosen
    )
    values, first = np.array([one.change for one in changes]), cells[0]
    return Gallery(
        gains,
        losses,
        found[0][2],
        len(found[0][2]),
        len(cells),
        share_up=100.0 * float((values > 0).mean()),
        share_down=100.0 * float((values < 0).mean()),
        mean_change=float(values.mean()),
        setting=f"arm {params.arm}, {params.gallery_loss}, K = {first.key['shots']}",
    )


def _add_rows(run, kind: str, ones: list[ImageChange], cells: list) -> None:
    for place, one in enumerate(ones, start=1):
        key = {"part": "gallery", "kind": kind, "place": place}
        values = {name: cells[one.cell].key[name] for name in ("split", "shots", "arm", "loss", "seed")}
        if not run.rows.done(**key):
            run.rows.add(key, {"image_id": one.image_id, "change": one.change} | values)
