"""The open-vocabulary detector: the few-shot side's Faster R-CNN with another box head, losses and scores.

A training step takes images of two kinds at once: some with boxes of the base classes, some with the names of what
is in them. Both may have regions with CLIP's embeddings, which are distilled. Either kind may be absent.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torchvision.ops import batched_nms, clip_boxes_to_image

from risf_core.detector.faster_rcnn import (
    STORED_MAX_DETECTIONS,
    STORED_SCORE_THRESH,
    FasterRCNN,
    Size,
    scale_detections,
    scale_targets,
)
from risf_core.detector.roi_heads import DETECTION_NMS_THRESH, SampledRoIs, box_head_losses, roi_box_coder
from risf_core.open_vocabulary.classifier import TEMPERATURE, detection_loss, federated_mask, image_label_loss
from risf_core.open_vocabulary.distillation import RKD_SCALE, point_loss, relation_loss
from risf_core.open_vocabulary.predictor import OpenVocabularyPredictor
from risf_core.open_vocabulary_params import DistillationParams, ImageSupervisionParams
from risf_core.params import DetectorParams


@dataclass(frozen=True)
class RegionTargets:
    """Regions of one image for distillation: boxes float32 [n, 4] in its pixels, CLIP's embeddings float [n, d]."""

    boxes: Tensor
    embeddings: Tensor


@dataclass(frozen=True)
class ImageNames:
    """What is in an image: labels int64 [n]; boxes float32 [n, 4] of them, or None where the detector chooses."""

    labels: Tensor
    boxes: Tensor | None = None


@dataclass
class Batch:
    """One training step: images uint8 RGB [3, H, W]; lists as long, None where an image has none of a kind.

    ``targets``: annotated boxes and labels (`FasterRCNN.forward`); ``names``: image-level labels; ``regions``: to
    distil.
    """

    images: list[Tensor]
    targets: list[dict[str, Tensor] | None]
    names: list[ImageNames | None]
    regions: list[RegionTargets | None]


@dataclass
class Supervision:
    """What a training arm learns from beside boxes; None leaves a part out."""

    distillation: DistillationParams | None = None
    images: ImageSupervisionParams | None = None
    class_mask: Tensor | None = None  # bool [C]; classes that have boxes
    image_counts: Tensor | None = None  # [C]: federated loss over these counts
    measured: list[float] = field(default_factory=list)  # cosines of gradients on f; see `gradient_cosine`


class OpenVocabularyRCNN(FasterRCNN):
    """Faster R-CNN whose classes are texts.

    Args:
        params: The detector; ``class_agnostic_boxes`` and ``cls_dropout`` do not apply.
        texts: float [C, d], text features of the vocabulary.
        temperature: Factor of the cosines.
        bias: Start of the classifier's one bias; None: none.
    """

    def __init__(
        self,
        params: DetectorParams,
        texts: Tensor,
        *,
        temperature: float = TEMPERATURE,
        bias: float | None = None,
    ) -> None:
        super().__init__(params, len(texts))
        self.roi_heads.box_predictor = OpenVocabularyPredictor(
            params.res5_width, texts, temperature=temperature, bias=bias
        )

    def set_texts(self, texts: Tensor) -> None:
        """Swap the vocabulary; the detector then has as many classes as there are texts [C', d]."""
        self.roi_heads.box_predictor.classifier.set_texts(texts)
        self.num_classes = len(texts)

    # ------------------------------------------------------------------ training

    def step_losses(self, batch: Batch, supervision: Supervision) -> dict[str, Tensor]:
        """All losses of one training step.

        ``loss_rpn_*``, ``loss_cls``, ``loss_box`` of the images with boxes (none of the others: they give the RPN no
        gradient), ``loss_image`` of those with names, ``loss_point`` and ``loss_relation`` of all regions together.
        """
        resized = [
            self.resize(image, self._short_side(image, names, supervision))
            for image, names in zip(batch.images, batch.names, strict=True)
        ]
        padded, sizes = self.batch(resized)
        features = self.backbone(padded)
        with_boxes = [i for i, target in enumerate(batch.targets) if target is not None]
        with_names = [i for i, names in enumerate(batch.names) if names is not None]
        losses, rois = self._rpn_part(batch, features, sizes, with_boxes)
        names = self._name_boxes(batch, features, sizes, with_names, supervision)
        regions = [_scaled(batch, i, sizes[i]) for i in range(len(batch.images))]
        boxes = [
            torch.cat([rois[i].boxes if i in rois else empty, names.get(i, empty), regions[i][0]])
            for i, empty in enumerate(padded.new_zeros(len(batch.images), 0, 4))
        ]
        pooled = self.region_features(features, boxes)
        parts: dict[str, list[Tensor]] = {"rois": [], "names": [], "regions": []}
        for i, rows in enumerate(pooled.split([len(b) for b in boxes])):
            counts = [len(rois[i].boxes) if i in rois else 0, len(names.get(i, ())), len(regions[i][0])]
            for part, values in zip(parts, rows.split(counts), strict=True):
                parts[part].append(values)
        if with_boxes:
            losses |= self._box_part(torch.cat(parts["rois"]), [rois[i] for i in with_boxes], supervision)
        if with_names:
            values = [parts["names"][i] for i in with_names]
            losses |= self._name_part(
                values, [batch.names[i] for i in with_names], [names[i] for i in with_names], supervision
            )
        if supervision.distillation is not None:
            losses |= self._distillation_part(
                torch.cat(parts["regions"]), torch.cat([one[1] for one in regions]), supervision.distillation
            )
        return losses

    def _short_side(self, image: Tensor, names: ImageNames | None, supervision: Supervision) -> int | None:
        """Of one training image: that of images with names where they have their own, the long side in proportion."""
        own = supervision.images.short_side if names is not None and supervision.images is not None else None
        if own is None or self.params.min_size is None:
            return self.draw_short_side()
        low, high = sorted(image.shape[-2:])
        longest = (
            self.params.max_size * own / self.params.min_size[-1]
        )  # published: 400 and 667, half of 800 and 1333
        return max(1, int(min(own, longest * low / high)))

    def _rpn_part(
        self, batch: Batch, features: Tensor, sizes: list[Size], with_boxes: list[int]
    ) -> tuple[dict[str, Tensor], dict[int, SampledRoIs]]:
        """The RPN's losses on the images with boxes, and the RoIs drawn there."""
        if not with_boxes:
            return {}, {}
        own_sizes = [sizes[i] for i in with_boxes]
        targets = scale_targets(
            [batch.targets[i] for i in with_boxes],
            [batch.images[i] for i in with_boxes],
            own_sizes,
            self.num_classes,
        )
        proposals, output = self.proposals(features[with_boxes], own_sizes)
        anchors, rois = self.draw_samples(output[0], [boxes for boxes, _ in proposals], targets)
        losses = {} if anchors is None else self.proposal_generator.losses(*output, anchors)
        return losses, dict(zip(with_boxes, rois, strict=True))

    def _box_part(
        self, pooled: Tensor, rois: list[SampledRoIs], supervision: Supervision
    ) -> dict[str, Tensor]:
        merged = SampledRoIs(
            *(torch.cat([getattr(one, name) for one in rois]) for name in ("boxes", "labels", "gt_boxes"))
        )
        mask = supervision.class_mask
        if supervision.image_counts is not None:
            mask = federated_mask(merged.labels, supervision.image_counts)
        if mask is None:
            mask = torch.ones(self.num_classes, dtype=torch.bool, device=pooled.device)

        def loss(logits: Tensor, labels: Tensor) -> Tensor:
            return detection_loss(logits, labels, mask.to(logits.device))

        return box_head_losses(self.roi_heads.box_predictor, pooled, merged, loss)

    def _name_boxes(
        self,
        batch: Batch,
        features: Tensor,
        sizes: list[Size],
        with_names: list[int],
        supervision: Supervision,
    ) -> dict[int, Tensor]:
        """The boxes that image-level labels may go to: given ones, else the best proposals of the RPN."""
        if not with_names:
            return {}
        chosen = {i: _scale(batch.names[i].boxes, batch.images[i], sizes[i]) for i in with_names}
        open_ones = [i for i, boxes in chosen.items() if boxes is None]
        if open_ones:
            with torch.no_grad():
                found, _ = self.proposals(features[open_ones].detach(), [sizes[i] for i in open_ones])
            count = supervision.images.num_proposals
            chosen |= {i: boxes[:count] for i, (boxes, _) in zip(open_ones, found, strict=True)}
        return chosen

    def _name_part(
        self,
        pooled: list[Tensor],
        names: list[ImageNames],
        boxes: list[Tensor],
        supervision: Supervision,
    ) -> dict[str, Tensor]:
        """Weighted `image_label_loss`: one pseudo box for each label of each image."""
        predictor, logits, labels, weights = self.roi_heads.box_predictor, [], [], []
        for rows, own, places in zip(pooled, names, boxes, strict=True):
            z = predictor.logits(rows)
            if own.boxes is None and len(z):
                rule = supervision.images.boxes
                z = z[choose_pseudo_boxes(rule, z.detach(), places, own.labels)]
            if not len(z):
                continue
            logits.append(z)
            labels.append(own.labels)
            weights.append(z.new_full((len(z),), 1 / (len(names) * len(z))))
        if not logits:
            return {"loss_image": torch.cat(pooled).sum() * 0.0}
        loss = image_label_loss(torch.cat(logits), torch.cat(labels), torch.cat(weights))
        return {"loss_image": supervision.images.weight * loss}

    def _distillation_part(
        self, pooled: Tensor, teacher: Tensor, params: DistillationParams
    ) -> dict[str, Tensor]:
        student = self.roi_heads.box_predictor.distilled(pooled)
        losses = {}
        if params.point_weight:
            losses["loss_point"] = RKD_SCALE * params.point_weight * point_loss(student, teacher)
        if params.relation_weight:
            relation = relation_loss(student, teacher, norm=params.relation_norm)
            losses["loss_relation"] = RKD_SCALE * params.relation_weight * relation
        return losses

    # ------------------------------------------------------------------ inference

    @torch.no_grad()
    def detect(
        self,
        batch: Tensor,
        sizes: list[Size],
        output_sizes: list[Size],
        *,
        score_thresh: float = STORED_SCORE_THRESH,
        max_detections: int = STORED_MAX_DETECTIONS,
    ) -> list[dict[str, Tensor]]:
        """Detections of a normalised batch, scaled to ``output_sizes``; scores are sigmoids, classes of their own."""
        features = self.backbone(batch)
        proposals, _ = self.proposals(features, sizes)
        boxes = [b for b, _ in proposals]
        logits, deltas = self.roi_heads.box_predictor(self.region_features(features, boxes))
        results, counts = [], [len(b) for b in boxes]
        for *one, size, output_size in zip(
            logits.split(counts), deltas.split(counts), boxes, sizes, output_sizes, strict=True
        ):
            found = select_by_sigmoid(*one, size, score_thresh=score_thresh, max_detections=max_detections)
            results.append(scale_detections(found, size, output_size))
        return results

    @torch.no_grad()
    def embed_regions(self, image: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """What f and the classifying head say of given boxes [N, 4] of an image, both float32 [N, d]."""
        padded, sizes = self.batch([self.resize(image)])
        scaled = _scale(boxes.to(padded), image, sizes[0])
        pooled = self.region_features(self.backbone(padded), [scaled])
        predictor = self.roi_heads.box_predictor
        return predictor.distilled(pooled), predictor.classified(pooled)


def choose_pseudo_boxes(rule: str, logits: Tensor, boxes: Tensor, labels: Tensor) -> Tensor:
    """Which proposal each image-level label goes to: int64 [n].

    Args:
        rule: "max_score" (the label's own best logit, as WSDDN), "max_size" (the largest box, as Detic),
            "max_objectness" (the first box).
        logits: [P, C + 1] of the proposals.
        boxes: [P, 4], best objectness first.
        labels: int64 [n].
    """
    if rule == "max_score":
        return logits[:, labels].argmax(dim=0)
    if rule == "max_size":
        sides = boxes[:, 2:] - boxes[:, :2]
        return sides.prod(dim=1).argmax().expand(len(labels))
    return torch.zeros_like(labels)


def _scale(boxes: Tensor | None, image: Tensor, size: Size) -> Tensor | None:
    """Boxes in the image's pixels as boxes in those of the resized image, clipped to it."""
    if boxes is None:
        return None
    ratio = boxes.new_tensor([size[1] / image.shape[2], size[0] / image.shape[1]]).repeat(2)
    return clip_boxes_to_image(boxes * ratio, size)


def _scaled(batch: Batch, i: int, size: Size) -> tuple[Tensor, Tensor]:
    """Boxes in the resized image and embeddings of the regions of image i; none of both where it has no regions."""
    regions = batch.regions[i]
    if regions is None:
        empty = torch.zeros(0, 4, device=batch.images[i].device)
        others = (one.embeddings for one in batch.regions if one is not None)
        width = next((values.shape[1] for values in others), 0)
        return empty, empty.new_zeros(0, width)
    return _scale(regions.boxes, batch.images[i], size), regions.embeddings


@torch.no_grad()
def select_by_sigmoid(
    logits: Tensor,
    deltas: Tensor,
    proposals: Tensor,
    image_size: Size,
    *,
    score_thresh: float,
    max_detections: int,
) -> dict[str, Tensor]:
    """Detections of one image: sigmoid scores, one box for all classes, class-wise NMS at IoU 0.5, best first.

    Args:
        logits: [R, C + 1]; background's column is left out. deltas: [R, 4]. proposals: [R, 4].
        image_size: (height, width) of the image the boxes live in.
        score_thresh: Keep scores above it. max_detections: Keep the best of all classes together.

    Returns:
        As `select_detections`; ``class_scores`` [D, C + 1] are sigmoids, background's 1 less the largest of them.
    """
    probs = logits[:, :-1].sigmoid()
    boxes = clip_boxes_to_image(roi_box_coder.decode_single(deltas, proposals), image_size)
    finite = torch.isfinite(boxes).all(dim=1) & torch.isfinite(probs).all(dim=1)
    proposal, label = torch.nonzero((probs > score_thresh) & finite[:, None], as_tuple=True)
    scores = probs[proposal, label]
    kept = batched_nms(boxes[proposal], scores, label, DETECTION_NMS_THRESH)[:max_detections]
    background = 1 - probs.amax(dim=1, keepdim=True) if probs.shape[1] else probs
    return {
        "boxes": boxes[proposal[kept]],
        "scores": scores[kept],
        "labels": label[kept],
        "class_scores": torch.cat([probs, background], dim=1)[proposal[kept]],
        "proposal": proposal[kept],
    }
