"""The detectors of the paper as parameters: Faster R-CNN R-101-C4 and R-50-C4, as DeFRCN and RISF train them.

Importing this file does not import torch.
"""

from typing import Any, Literal

from risf_core.errors import ParamsError
from risf_core.params import DetectorParams

BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}  # res2 to res5
# Short sides drawn in training; the last is the one of testing. The long side is at most 1333.
SHORT_SIDES = {"coco": tuple(range(640, 801, 32)), "voc": tuple(range(480, 801, 32))}
BASE_GRADIENT_SCALE = 0.75  # lambda of the box head's decoupled layer
FINE_TUNING_GRADIENT_SCALE = {"coco": 0.01, "voc": 0.001}
# What ImageNet weights expect of their input, and where their bottlenecks have the stride.
CONVENTIONS: dict[str, dict[str, Any]] = {
    "msra": {
        "image_order": "BGR",
        "pixel_mean": (103.53, 116.28, 123.675),
        "pixel_std": (1.0, 1.0, 1.0),
        "stride_in_1x1": True,
    },
    "torchvision": {
        "image_order": "RGB",
        "pixel_mean": (123.675, 116.28, 103.53),
        "pixel_std": (58.395, 57.12, 57.375),
        "stride_in_1x1": False,
    },
}


def published_detector(
    depth: int = 101,
    *,
    data: Literal["coco", "voc"] = "coco",
    fine_tuning: bool = False,
    weights: Literal["msra", "torchvision"] = "msra",
) -> DetectorParams:
    """Parameters of the published detector; the numbers are those of DeFRCN's and RISF's configurations.

    Args:
        depth: 101 (the paper's) or 50.
        data: Decides the short sides and, in fine-tuning, the gradient scale of the box head.
        fine_tuning: False: base training (gradient scale 0.75, no dropout); True: 0.01 or 0.001, dropout 0.8.
        weights: Whose ImageNet weights the backbone starts from: they decide channel order, mean, deviation and the
            place of the stride. The paper starts from MSRA's.

    Raises:
        ParamsError: If there is no such detector.

    Example:
        >>> published_detector(50, data="voc").stages
        (3, 4, 6)
    """
    for name, value, known in (
        ("depth", depth, BLOCKS),
        ("data", data, SHORT_SIDES),
        ("weights", weights, CONVENTIONS),
    ):
        if value not in known:
            raise ParamsError(
                f"published_detector: {name} is {value!r}; expected one of {', '.join(map(str, known))}."
            )
    *stages, res5_blocks = BLOCKS[depth]
    return DetectorParams(
        block="bottleneck",
        stages=tuple(stages),
        stem="resnet",
        stem_width=64,
        res2_width=256,
        norm="FrozenBN",
        dilate_res4=False,
        res5_blocks=res5_blocks,
        res5_width=2048,
        freeze_at=3,
        anchor_sizes=(32.0, 64.0, 128.0, 256.0, 512.0),
        rpn_pre_nms_train=12000,
        rpn_pre_nms_test=6000,
        rpn_post_nms_train=2000,
        rpn_post_nms_test=1000,
        rpn_batch=256,
        roi_batch=512,
        roi_gradient_scale=FINE_TUNING_GRADIENT_SCALE[data] if fine_tuning else BASE_GRADIENT_SCALE,
        cls_dropout=0.8 if fine_tuning else 0.0,
        min_size=SHORT_SIDES[data],
        max_size=1333,
        **CONVENTIONS[weights],
    )
