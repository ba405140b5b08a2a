"""K-shot images whose further novel objects are known in part: the number of labels stays, the false negatives vary.

The images of a K-shot set show more novel objects than are labelled. A share of these further objects is made *known*
in one of two ways. ``ignored``: a candidate region on a known object is left out of training, so it is no longer
background; labels, images and positive regions stay the same, and only the missing negatives differ. ``labelled``: the
known objects are positives, too, so that there are more shots as well, the usual way to compare.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from risf_core.data.dataset import DetectionData, ImageRecord
from risf_core.detector.faster_rcnn import FasterRCNN
from risf_core.detector.roi_heads import BoxPredictor
from risf_core.errors import CheckpointError, DataError
from risf_core.head_training import LabelledRegions, RegionFeatures, label_regions
from risf_core.params import SolverParams
from risf_core.training import fit, image_batches

Regions = dict[tuple[int, bool], LabelledRegions]
KNOWN_STREAM = 33  # keeps the draw of what is known apart from other draws with the same seed


@dataclass(frozen=True, eq=False)
class CrowdedDraw:
    """One K-shot draw and the same images with every object of its classes annotated.

    Attributes:
        shots: The K-shot set: the labelled objects alone.
        everything: The same images with all their objects of these classes.
        shot_regions: Region features of `shots`' images and boxes.
        all_regions: Those of `everything`, with the same candidates.
        seed: Number of the draw; decides which objects become known first.
    """

    shots: DetectionData
    everything: DetectionData
    shot_regions: RegionFeatures
    all_regions: RegionFeatures
    seed: int

    def further(self) -> list[np.ndarray]:
        """For each image of `everything` which boxes are no shot: bool [N]."""
        return further_objects(self.shots, self.everything)

    def known(self, share: float) -> list[np.ndarray]:
        """For each image of `everything` which boxes are known: bool [N]; see `known_objects`."""
        return known_objects(self.further(), share, seed=self.seed)

    def ignored(self, share: float) -> tuple[DetectionData, Regions]:
        """The K-shot set, and its regions without those on known objects."""
        return self.shots, self._without_known(label_regions(self.shot_regions, self.shots), share)

    def labelled(self, share: float) -> tuple[DetectionData, Regions]:
        """The K-shot set with the known objects as further shots, and its regions."""
        pairs = zip(self.further(), self.known(share), strict=True)
        data = keep_boxes(self.everything, [~further | known for further, known in pairs])
        return data, label_regions(self.all_regions, data)

    def _without_known(self, regions: Regions, share: float) -> Regions:
        known = keep_boxes(self.everything, self.known(share))
        found = label_regions(self.all_regions, known)
        ids = {record.path: record.image_id for record in known.images}
        counts = {record.image_id: int((~record.is_crowd).sum()) for record in known.images}
        background, kept = len(self.shots.class_names), {}
        for record in self.shots.images:
            for flip in (False, True):
                other = found[ids[record.path], flip].rois
                candidates = len(other.labels) - counts[ids[record.path]]  # the annotated boxes stand behind
                kept[record.image_id, flip] = leave_out(
                    regions[record.image_id, flip],
                    other.boxes[:candidates],
                    other.labels[:candidates] < background,
                    background=background,
                )
        return kept


def leave_out(
    regions: LabelledRegions, candidates: Tensor, is_known: Tensor, *, background: int
) -> LabelledRegions:
    """The regions of an image without its background candidates on known objects.

    Args:
        regions: Candidates first, then the annotated boxes, R in all.
        candidates: The P candidates again, [P, 4], as a check that both come from the same proposals.
        is_known: bool [P], whether a candidate lies on a known object.
        background: Its label. A candidate that is positive stays, whatever else it lies on.

    Raises:
        CheckpointError: If the candidates are not those of `regions`.
    """
    count = len(candidates)
    if count > len(regions.rois.boxes) or not torch.equal(regions.rois.boxes[:count], candidates):
        raise CheckpointError(
            "the region features of the two kinds of K-shot images have other proposals. Expected the same images and "
            "base model: delete the folder of region features beside the base model and rerun."
        )
    is_left_out = torch.zeros(len(regions.rois.labels), dtype=torch.bool)
    is_left_out[:count] = is_known & (regions.rois.labels[:count] == background)
    return LabelledRegions(regions.rois.take(~is_left_out), regions.features[~is_left_out])


def further_objects(shots: DetectionData, everything: DetectionData) -> list[np.ndarray]:
    """For each image of ``everything`` which boxes are not annotated in ``shots``: bool [N]; crowds are not.

    Raises:
        DataError: If the two have other images, or a box of ``shots`` is not among those of ``everything``.
    """
    annotated = {record.path: set() for record in shots.images}
    for record in shots.images:
        annotated[record.path] |= _keys(record)
    if {record.path for record in everything.images} != annotated.keys():
        raise DataError(
            f"{everything.name}: {len(everything)} images, but {shots.name} has {len(annotated)} others. Expected the "
            "same images, once with the shots alone and once with every object annotated."
        )
    masks = []
    for record in everything.images:
        keys = [(int(label), *box) for label, box in zip(record.labels, record.boxes.tolist())]
        if not annotated[record.path] <= set(keys):
            raise DataError(
                f"{everything.name}: image {record.image_id} ({record.path}) lacks a box that {shots.name} has. "
                "Expected every shot among all objects: draw or render the images anew."
            )
        is_shot = np.array([key in annotated[record.path] for key in keys], dtype=bool)
        masks.append(~is_shot & ~record.is_crowd)
    return masks


def _keys(record: ImageRecord) -> set[tuple]:
    is_object = ~record.is_crowd
    return {
        (int(label), *box)
        for label, box in zip(record.labels[is_object], record.boxes[is_object].tolist(), strict=True)
    }


def known_objects(further: list[np.ndarray], share: float, *, seed: int) -> list[np.ndarray]:
    """A random share of the further objects; what is known at a share stays known at every larger one.

    Args:
        further: bool [N] for each image.
        share: In [0, 1]; of the further objects of all images together, rounded to a whole number of them.
        seed: Of the order in which objects become known.
    """
    lengths = [len(mask) for mask in further]
    flat = np.concatenate([np.zeros(0, dtype=bool), *further])
    order = np.random.default_rng([KNOWN_STREAM, seed]).permutation(np.flatnonzero(flat))
    known = np.zeros(len(flat), dtype=bool)
    known[order[: round(share * len(order))]] = True
    return np.split(known, np.cumsum(lengths)[:-1]) if lengths else []


def keep_boxes(data: DetectionData, masks: list[np.ndarray]) -> DetectionData:
    """The same images with the boxes of a bool mask [N] each; images may end without one."""
    images = tuple(record.keep(mask) for record, mask in zip(data.images, masks, strict=True))
    return replace(data, images=images)


def train_on_regions(
    detector: FasterRCNN,
    data: DetectionData,
    regions: Regions,
    solver: SolverParams,
    *,
    seed: int,
    desc: str = "box head",
) -> list[dict[str, float]]:
    """`risf_core.head_training.train_box_head` on regions that were labelled before; returns the loss curve.

    Random numbers are drawn in the same order, so that equal regions give equal weights.
    """
    detector.set_trainable("box_head")
    detector.train()
    batches, device = image_batches(data, solver, seed=seed), detector.pixel_mean.device

    def step(iteration: int) -> dict[str, Tensor]:
        indices = batches(iteration)
        flips = (torch.rand(len(indices)) < 0.5).tolist()
        chosen = [regions[data.images[i].image_id, flip] for i, flip in zip(indices, flips, strict=True)]
        samples = [detector.sample(region.rois.labels) for region in chosen]
        features = torch.cat([region.features[index] for region, index in zip(chosen, samples, strict=True)])
        rois = [region.rois.take(index).to(device) for region, index in zip(chosen, samples, strict=True)]
        return detector.head_losses(features.to(device), rois)

    return fit(detector, step, solver, seed=seed, desc=desc)


@torch.no_grad()
def object_probabilities(predictor: BoxPredictor, draw: CrowdedDraw) -> dict[str, float | None]:
    """What a fine-tuned head believes of the objects of its own training images, seen unmirrored, in percent.

    Returns:
        ``shot_score``: mean probability of the true class on the labelled objects; ``further_score``: on the further
        ones; ``further_background``: mean probability of background on these. None where there are none.
    """
    predictor.eval()
    regions, device = label_regions(draw.all_regions, draw.everything), predictor.cls_score.weight.device
    features, labels, is_further = [], [], []
    for record, further in zip(draw.everything.images, draw.further(), strict=True):
        is_object = ~record.is_crowd
        own = regions[record.image_id, False].features
        features.append(own[len(own) - int(is_object.sum()) :])  # annotated boxes stand last, in their order
        labels.append(torch.from_numpy(record.labels[is_object]))
        is_further.append(torch.from_numpy(further[is_object]))
    logits, _ = predictor(torch.cat(features).to(device))
    probs, labels, is_further = logits.softmax(dim=1).cpu(), torch.cat(labels), torch.cat(is_further)
    true = probs.gather(1, labels.unsqueeze(1)).squeeze(1)  # [G]

    def percent(values: Tensor) -> float | None:
        return 100.0 * float(values.mean()) if len(values) else None

    return {
        "shot_score": percent(true[~is_further]),
        "further_score": percent(true[is_further]),
        "further_background": percent(probs[is_further, -1]),
    }
