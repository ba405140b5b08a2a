"""The detector on detectron2's parts, for those who want to compare or to go on in detectron2.

``Detectron2RCNN`` has the contract and the state-dict keys of ``FasterRCNN``, so that weights go both ways and every
notebook runs on it. Backbone, RPN and region head are detectron2's classes: their forward passes, matching, sampling,
losses, non-maximum suppression and scaling are its code. The gradient-decoupled layers, which it lacks, are ours; so is
the reading of images. Losses are named as ours are.

detectron2 is optional: https://github.com/facebookresearch/detectron2 (Apache-2.0). Importing this file needs it.
"""

from collections.abc import Sequence

import torch
from detectron2.layers import CNNBlockBase, Conv2d, ShapeSpec, get_norm
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.backbone.resnet import BasicBlock, BasicStem, BottleneckBlock, ResNet
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.modeling.proposal_generator.rpn import RPN, StandardRPNHead
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers, fast_rcnn_inference
from detectron2.modeling.roi_heads.roi_heads import Res5ROIHeads
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import Tensor
from torch.nn import functional as F

from risf_core.detector.faster_rcnn import (
    STORED_MAX_DETECTIONS,
    STORED_SCORE_THRESH,
    FasterRCNN,
    Size,
)
from risf_core.detector.resnet_c4 import NORMS
from risf_core.detector.roi_heads import (
    DETECTION_NMS_THRESH,
    ROI_IOU_FOREGROUND,
    ROI_SIZE,
    SampledRoIs,
)
from risf_core.detector.rpn import (
    RPN_IOU_BACKGROUND,
    RPN_IOU_FOREGROUND,
    RPN_NMS_THRESH,
    RPN_POSITIVE_FRACTION,
    SampledAnchors,
    at_least_float32,
)
from risf_core.errors import ParamsError
from risf_core.params import DetectorParams

NO_SIZE = (0, 0)  # detectron2 wants an image size beside boxes, also where nobody reads it


class DeepStem(CNNBlockBase):
    """Two 3x3 convolutions of stride 2, which detectron2 has no stem for."""

    def __init__(self, width: int, norm) -> None:
        super().__init__(3, width, 4)
        self.conv1 = _conv(3, width, norm)
        self.conv2 = _conv(width, width, norm)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu_(self.conv2(F.relu_(self.conv1(x))))


def _conv(inputs: int, outputs: int, norm) -> Conv2d:
    conv = Conv2d(inputs, outputs, 3, stride=2, padding=1, bias=False, norm=get_norm(norm, outputs))
    torch.nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return conv


def _norm(params: DetectorParams):
    """detectron2's name of the normalisation; our group norm, since its 32 groups do not divide narrow layers."""
    return NORMS["GN"] if params.norm == "GN" else params.norm


def _stage(params: DetectorParams, inputs: int, outputs: int, *, blocks: int, stride: int, dilation: int = 1):
    strides = [stride] + [1] * (blocks - 1)
    shared = {"in_channels": inputs, "out_channels": outputs, "norm": _norm(params)}
    if inputs == outputs and stride > 1:
        raise ParamsError(f"detectron2 has no stage of {inputs} to {outputs} channels with stride {stride}.")
    if params.block == "bottleneck":
        return ResNet.make_stage(
            BottleneckBlock,
            blocks,
            stride_per_block=strides,
            bottleneck_channels=outputs // 4,
            stride_in_1x1=params.stride_in_1x1,
            dilation=dilation,
            **shared,
        )
    stage = ResNet.make_stage(BasicBlock, blocks, stride_per_block=strides, **shared)
    for block in stage if dilation > 1 else ():  # its basic block takes no dilation
        for conv in (block.conv1, block.conv2):
            conv.dilation = conv.padding = (dilation, dilation)
    return stage


class Backbone(ResNet):
    """detectron2's ResNet, stem to res4; gives the map itself."""

    def __init__(self, params: DetectorParams) -> None:
        width, norm = params.res2_width, _norm(params)
        stem = {"resnet": BasicStem(3, params.stem_width, norm), "deep": None}[params.stem]
        stride, dilation = (1, 2) if params.dilate_res4 else (2, 1)
        first, second, third = params.stages
        stages = [
            _stage(params, params.stem_width, width, blocks=first, stride=1),
            _stage(params, width, 2 * width, blocks=second, stride=2),
            _stage(params, 2 * width, 4 * width, blocks=third, stride=stride, dilation=dilation),
        ]
        super().__init__(stem or DeepStem(params.stem_width, norm), stages, out_features=["res4"])
        self.out_channels, self.stride = 4 * width, 8 * stride

    def forward(self, x: Tensor) -> Tensor:  # [B, 3, H, W] -> [B, out_channels, H/stride, W/stride]
        return super().forward(x)["res4"]


class ProposalGenerator(RPN):
    """detectron2's RPN under the contract of ours."""

    def __init__(self, params: DetectorParams, channels: int, stride: int) -> None:
        anchors = DefaultAnchorGenerator(
            sizes=[list(params.anchor_sizes)],
            aspect_ratios=[list(params.anchor_ratios)],
            strides=[stride],
            offset=0.0,  # its configurations' value; the class's own default is half a cell
        )
        super().__init__(
            in_features=["res4"],
            head=StandardRPNHead(in_channels=channels, num_anchors=anchors.num_anchors[0]),
            anchor_generator=anchors,
            anchor_matcher=Matcher([RPN_IOU_BACKGROUND, RPN_IOU_FOREGROUND], [0, -1, 1], True),
            box2box_transform=Box2BoxTransform((1.0, 1.0, 1.0, 1.0)),
            batch_size_per_image=params.rpn_batch,
            positive_fraction=RPN_POSITIVE_FRACTION,
            pre_nms_topk=(params.rpn_pre_nms_train, params.rpn_pre_nms_test),
            post_nms_topk=(params.rpn_post_nms_train, params.rpn_post_nms_test),
            nms_thresh=RPN_NMS_THRESH,
        )

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Anchors [HWA, 4], objectness logits [B, HWA] and deltas [B, HWA, 4], all in the anchors' order."""
        (logits,), (deltas,) = self.rpn_head([features])
        batch, _, height, width = logits.shape
        logits = logits.permute(0, 2, 3, 1).flatten(1)
        deltas = deltas.view(batch, -1, 4, height, width).permute(0, 3, 4, 1, 2).flatten(1, -2)
        return (
            self.anchor_generator([features])[0].tensor,
            at_least_float32(logits),
            at_least_float32(deltas),
        )

    @torch.no_grad()
    def proposals(self, anchors, logits, deltas, image_sizes, *, count: int) -> list[tuple[Tensor, Tensor]]:
        """The best ``count`` boxes [R_i, 4] (pixels of the resized image) and logits [R_i] of each image."""
        self.post_nms_topk = {True: count, False: count}
        found = self.predict_proposals([Boxes(anchors)], [logits.float()], [deltas], image_sizes)
        return [(one.proposal_boxes.tensor, one.objectness_logits) for one in found]

    def sample(self, anchors: Tensor, gt_boxes: Tensor) -> SampledAnchors:
        """Draw the anchors of one image that are trained on."""
        target = Instances(NO_SIZE, gt_boxes=Boxes(gt_boxes))
        (labels,), (matched,) = self.label_and_sample_anchors([Boxes(anchors)], [target])
        positive, negative = (torch.nonzero(labels == value).squeeze(1) for value in (1, 0))
        return SampledAnchors(positive, negative, matched[positive])

    def losses(self, anchors, logits, deltas, samples: Sequence[SampledAnchors]) -> dict[str, Tensor]:
        """The two losses over sampled anchors."""
        labels, matched = [], []
        for sample in samples:
            labels.append(torch.full((len(anchors),), -1, dtype=torch.int64, device=anchors.device))
            labels[-1][sample.positive], labels[-1][sample.negative] = 1, 0
            matched.append(anchors.clone())
            matched[-1][sample.positive] = sample.gt_boxes.to(anchors)
        with EventStorage():
            losses = super().losses([Boxes(anchors)], [logits], labels, [deltas], matched)
        return {"loss_rpn_objectness": losses["loss_rpn_cls"], "loss_rpn_box": losses["loss_rpn_loc"]}


class BoxPredictor(FastRCNNOutputLayers):
    """detectron2's two linear layers, with dropout on the classifier's input as DeFRCN has it."""

    def __init__(self, params: DetectorParams, num_classes: int) -> None:
        super().__init__(
            ShapeSpec(channels=params.res5_width),
            box2box_transform=Box2BoxTransform((10.0, 10.0, 5.0, 5.0)),
            num_classes=num_classes,
            cls_agnostic_bbox_reg=params.class_agnostic_boxes,
        )
        self.dropout = params.cls_dropout

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:  # [R, D] -> [R, C+1], [R, 4C] or [R, 4]
        logits = self.cls_score(F.dropout(features, self.dropout, self.training))
        return at_least_float32(logits), at_least_float32(self.bbox_pred(features))


class RoIHeads(Res5ROIHeads):
    """detectron2's region head of C4 models under the contract of ours."""

    def __init__(self, params: DetectorParams, channels: int, stride: int, num_classes: int) -> None:
        res5 = _stage(params, channels, params.res5_width, blocks=params.res5_blocks, stride=2)
        super().__init__(
            in_features=["res4"],
            pooler=ROIPooler(ROI_SIZE, (1.0 / stride,), sampling_ratio=0, pooler_type="ROIAlignV2"),
            res5=torch.nn.Sequential(*res5),
            box_predictor=BoxPredictor(params, num_classes),
            num_classes=num_classes,
            batch_size_per_image=params.roi_batch,
            positive_fraction=params.roi_positive_fraction,
            proposal_matcher=Matcher([ROI_IOU_FOREGROUND], [0, 1], allow_low_quality_matches=False),
        )

    def region_features(self, features: Tensor, boxes: list[Tensor]) -> Tensor:
        """Mean res5 feature of each box, images in order: [B, C, H, W] -> [sum R_i, D]."""
        return self._shared_roi_transform([features], [Boxes(b) for b in boxes]).mean(dim=[2, 3])


class Detectron2RCNN(FasterRCNN):
    """``FasterRCNN`` on detectron2's parts; see there for the arguments."""

    backbone_class, rpn_class, roi_heads_class = Backbone, ProposalGenerator, RoIHeads

    def draw_rois(self, proposals: list[Tensor], targets: Sequence[dict[str, Tensor]]) -> list[SampledRoIs]:
        """The RoIs of each image that are trained on, matched and drawn by detectron2."""
        given = [
            Instances(NO_SIZE, proposal_boxes=Boxes(boxes), objectness_logits=boxes.new_zeros(len(boxes)))
            for boxes in proposals
        ]
        objects = [
            Instances(NO_SIZE, gt_boxes=Boxes(target["boxes"]), gt_classes=target["labels"])
            for target in targets
        ]
        with EventStorage():
            drawn = self.roi_heads.label_and_sample_proposals(given, objects)
        return [
            SampledRoIs(
                one.proposal_boxes.tensor,
                one.gt_classes,
                # detectron2 gives no such field to an image without objects
                one.gt_boxes.tensor if one.has("gt_boxes") else torch.zeros_like(one.proposal_boxes.tensor),
            )
            for one in drawn
        ]

    def head_losses(self, pooled: Tensor, rois: list[SampledRoIs]) -> dict[str, Tensor]:
        """The box head's losses of pooled features [sum R_i, D] and their labelled RoIs."""
        boxes, labels, gt_boxes = (
            torch.cat([getattr(r, name) for r in rois]) for name in ("boxes", "labels", "gt_boxes")
        )
        predictor = self.roi_heads.box_predictor
        logits, deltas = predictor(pooled)
        return {
            "loss_cls": self.classification_loss(logits, labels),
            "loss_box": predictor.box_reg_loss(boxes, gt_boxes, deltas, labels),
        }

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
        """Detections of a normalised batch, scaled to ``output_sizes``."""
        features = self.backbone(batch)
        proposals, _ = self.proposals(features, sizes)
        given = [
            Instances(size, proposal_boxes=Boxes(boxes))
            for (boxes, _), size in zip(proposals, sizes, strict=True)
        ]
        predictor = self.roi_heads.box_predictor
        predictions = predictor(self.region_features(features, [boxes for boxes, _ in proposals]))
        probs = predictor.predict_probs(predictions, given)
        found, kept = fast_rcnn_inference(
            predictor.predict_boxes(predictions, given),
            probs,
            sizes,
            score_thresh,
            DETECTION_NMS_THRESH,
            max_detections,
        )
        results = []
        for one, rows, all_probs, (height, width) in zip(found, kept, probs, output_sizes, strict=True):
            one.class_scores, one.proposal = all_probs[rows], rows
            scaled = detector_postprocess(one, height, width)
            results.append(
                {
                    "boxes": scaled.pred_boxes.tensor,
                    "scores": scaled.scores,
                    "labels": scaled.pred_classes,
                    "class_scores": scaled.class_scores,
                    "proposal": scaled.proposal,
                }
            )
        return results
