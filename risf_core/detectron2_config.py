"""What the keys of a detectron2 config of DeFRCN or RISF mean here.

A config file says only what differs from its code's defaults, so the defaults of every key that we map stand here; they
are detectron2's with DeFRCN's changes, as facts. A key is mapped to a parameter, or fixed (our detector has one value
for it), or without effect, or not mapped; `Config.report` names all of the last two.
"""

from __future__ import annotations

import re
from typing import Any

from risf_core.errors import ParamsError

RESNETS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}  # blocks of res2 to res5
DEFAULTS: dict[str, Any] = {
    "DATALOADER.ASPECT_RATIO_GROUPING": True,
    "DATASETS.TRAIN": (),
    "INPUT.FORMAT": "BGR",
    "INPUT.MAX_SIZE_TEST": 1333,
    "INPUT.MAX_SIZE_TRAIN": 1333,
    "INPUT.MIN_SIZE_TEST": 800,
    "INPUT.MIN_SIZE_TRAIN": (800,),
    "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": ((0.5, 1.0, 2.0),),
    "MODEL.ANCHOR_GENERATOR.SIZES": ((32.0, 64.0, 128.0, 256.0, 512.0),),
    "MODEL.BACKBONE.FREEZE": False,
    "MODEL.BACKBONE.FREEZE_AT": 3,
    "MODEL.PIXEL_MEAN": (103.53, 116.28, 123.675),
    "MODEL.PIXEL_STD": (1.0, 1.0, 1.0),
    "MODEL.RESNETS.DEPTH": 50,
    "MODEL.RESNETS.NORM": "FrozenBN",
    "MODEL.RESNETS.NUM_GROUPS": 1,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 256,
    "MODEL.RESNETS.STEM_OUT_CHANNELS": 64,
    "MODEL.RESNETS.STRIDE_IN_1X1": True,
    "MODEL.RESNETS.WIDTH_PER_GROUP": 64,
    "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG": False,
    "MODEL.ROI_HEADS.ALPHA": 1.0,
    "MODEL.ROI_HEADS.BACKWARD_SCALE": 1.0,
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 512,
    "MODEL.ROI_HEADS.BG_WEIGHT": 1.0,
    "MODEL.ROI_BOX_HEAD.CLS_LOSS_TYPE": "cross_entropy",
    "MODEL.ROI_HEADS.CLS_DROPOUT": False,
    "MODEL.ROI_HEADS.CLS_LOSS_TYPE": "cross_entropy",
    "MODEL.ROI_HEADS.DROPOUT_RATIO": 0.8,
    "MODEL.ROI_HEADS.ENABLE_DECOUPLE": False,
    "MODEL.ROI_HEADS.EPSILON": 0.0,
    "MODEL.ROI_HEADS.FREEZE_FEAT": False,
    "MODEL.ROI_HEADS.GAMMA": 0.0,
    "MODEL.ROI_HEADS.NUM_CLASSES": 80,
    "MODEL.ROI_HEADS.POSITIVE_FRACTION": 0.25,
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.05,
    "MODEL.RPN.BACKWARD_SCALE": 1.0,
    "MODEL.RPN.BATCH_SIZE_PER_IMAGE": 256,
    "MODEL.RPN.ENABLE_DECOUPLE": False,
    "MODEL.RPN.FREEZE": False,
    "MODEL.RPN.POST_NMS_TOPK_TEST": 1000,
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": 2000,
    "MODEL.RPN.PRE_NMS_TOPK_TEST": 6000,
    "MODEL.RPN.PRE_NMS_TOPK_TRAIN": 12000,
    "MODEL.WEIGHTS": "",
    "SEED": -1,
    "SOLVER.AMP.ENABLED": False,
    "SOLVER.BASE_LR": 0.001,
    "SOLVER.CHECKPOINT_PERIOD": 5000,
    "SOLVER.GAMMA": 0.1,
    "SOLVER.IMS_PER_BATCH": 16,
    "SOLVER.MAX_ITER": 40000,
    "SOLVER.MOMENTUM": 0.9,
    "SOLVER.NESTEROV": False,
    "SOLVER.STEPS": (30000,),
    "SOLVER.WARMUP_ITERS": 1000,
    "SOLVER.WEIGHT_DECAY": 5e-5,
    "SOLVER.WEIGHT_DECAY_NORM": 0.0,
    "TEST.CMCLIP_ALPHA": 0.7,
    "TEST.CMCLIP_ENABLE": False,
    "TEST.CMCLIP_LOWER": 0.05,
}
BY_DEFAULT = "(detectron2's or DeFRCN's default)"  # ends the note of a key that the config does not hold
LOSS_KEYS = (
    "MODEL.ROI_HEADS.CLS_LOSS_TYPE",
    "MODEL.ROI_BOX_HEAD.CLS_LOSS_TYPE",
)  # RISF has had it in both places
BNRL_KEYS = {
    "alpha": "MODEL.ROI_HEADS.ALPHA",
    "epsilon": "MODEL.ROI_HEADS.EPSILON",
    "gamma": "MODEL.ROI_HEADS.GAMMA",
    "background_weight": "MODEL.ROI_HEADS.BG_WEIGHT",
}
FIXED: dict[str, Any] = {  # the one value that our detector and its training have
    "DATALOADER.FILTER_EMPTY_ANNOTATIONS": True,
    "DATALOADER.SAMPLER_TRAIN": "TrainingSampler",
    "FLOAT32_PRECISION": "",
    "INPUT.CROP.ENABLED": False,
    "INPUT.MIN_SIZE_TRAIN_SAMPLING": "choice",
    "INPUT.RANDOM_FLIP": "horizontal",
    "MODEL.ANCHOR_GENERATOR.NAME": "DefaultAnchorGenerator",
    "MODEL.ANCHOR_GENERATOR.OFFSET": 0.0,
    "MODEL.BACKBONE.NAME": "build_resnet_backbone",
    "MODEL.KEYPOINT_ON": False,
    "MODEL.LOAD_PROPOSALS": False,
    "MODEL.MASK_ON": False,
    "MODEL.META_ARCHITECTURE": "GeneralizedRCNN",
    "MODEL.PROPOSAL_GENERATOR.MIN_SIZE": 0,
    "MODEL.PROPOSAL_GENERATOR.NAME": "RPN",
    "MODEL.RESNETS.DEFORM_ON_PER_STAGE": (False, False, False, False),
    "MODEL.RESNETS.OUT_FEATURES": ("res4",),
    "MODEL.RESNETS.RES5_DILATION": 1,
    "MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE": "smooth_l1",
    "MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_WEIGHT": 1.0,
    "MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS": (10.0, 10.0, 5.0, 5.0),
    "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": 7,
    "MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO": 0,
    "MODEL.ROI_BOX_HEAD.POOLER_TYPE": "ROIAlignV2",
    "MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA": 0.0,
    "MODEL.ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES": False,
    "MODEL.ROI_BOX_HEAD.USE_FED_LOSS": False,
    "MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE": False,
    "MODEL.ROI_HEADS.IN_FEATURES": ("res4",),
    "MODEL.ROI_HEADS.IOU_LABELS": (0, 1),
    "MODEL.ROI_HEADS.IOU_THRESHOLDS": (0.5,),
    "MODEL.ROI_HEADS.NAME": "Res5ROIHeads",
    "MODEL.ROI_HEADS.NMS_THRESH_TEST": 0.5,
    "MODEL.ROI_HEADS.OUTPUT_LAYER": "FastRCNNOutputLayers",
    "MODEL.ROI_HEADS.PROPOSAL_APPEND_GT": True,
    "MODEL.RPN.BBOX_REG_LOSS_TYPE": "smooth_l1",
    "MODEL.RPN.BBOX_REG_LOSS_WEIGHT": 1.0,
    "MODEL.RPN.BBOX_REG_WEIGHTS": (1.0, 1.0, 1.0, 1.0),
    "MODEL.RPN.BOUNDARY_THRESH": -1,
    "MODEL.RPN.CONV_DIMS": (-1,),
    "MODEL.RPN.HEAD_NAME": "StandardRPNHead",
    "MODEL.RPN.IN_FEATURES": ("res4",),
    "MODEL.RPN.IOU_LABELS": (0, -1, 1),
    "MODEL.RPN.IOU_THRESHOLDS": (0.3, 0.7),
    "MODEL.RPN.LOSS_WEIGHT": 1.0,
    "MODEL.RPN.NMS_THRESH": 0.7,
    "MODEL.RPN.POSITIVE_FRACTION": 0.5,
    "MODEL.RPN.SMOOTH_L1_BETA": 0.0,
    "SOLVER.BIAS_LR_FACTOR": 1.0,
    "SOLVER.CLIP_GRADIENTS.ENABLED": False,
    "SOLVER.LR_SCHEDULER_NAME": "WarmupMultiStepLR",
    "SOLVER.REFERENCE_WORLD_SIZE": 0,
    "SOLVER.WARMUP_FACTOR": 0.001,
    "SOLVER.WARMUP_METHOD": "linear",
    "TEST.AUG.ENABLED": False,
    "TEST.CMCLIP_UPPER": 1.0,
    "TEST.DETECTIONS_PER_IMAGE": 100,
    "TEST.PCB_ENABLE": False,
    "TEST.PRECISE_BN.ENABLED": False,
}
WITHOUT_EFFECT = {  # why: whole keys, and the parts, with a dot at the end, of which no key has an effect
    "a part that this detector does not have": (
        "DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TEST", "DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TRAIN",
        "DATASETS.PROPOSAL_FILES_TEST", "DATASETS.PROPOSAL_FILES_TRAIN", "INPUT.MASK_FORMAT",
        "MODEL.ANCHOR_GENERATOR.ANGLES", "MODEL.FPN.", "MODEL.PANOPTIC_FPN.", "MODEL.RESNETS.DEFORM_MODULATED",
        "MODEL.RESNETS.DEFORM_NUM_GROUPS", "MODEL.RETINANET.", "MODEL.ROI_BOX_CASCADE_HEAD.",
        "MODEL.ROI_BOX_HEAD.CONV_DIM", "MODEL.ROI_BOX_HEAD.FC_DIM", "MODEL.ROI_BOX_HEAD.FED_LOSS_FREQ_WEIGHT_POWER",
        "MODEL.ROI_BOX_HEAD.FED_LOSS_NUM_CLASSES", "MODEL.ROI_BOX_HEAD.NAME", "MODEL.ROI_BOX_HEAD.NORM",
        "MODEL.ROI_BOX_HEAD.NUM_CONV", "MODEL.ROI_BOX_HEAD.NUM_FC", "MODEL.ROI_KEYPOINT_HEAD.",
        "MODEL.ROI_MASK_HEAD.", "MODEL.SEM_SEG_HEAD.", "TEST.KEYPOINT_OKS_SIGMAS",
    ),
    "belongs to what is switched off": (
        "INPUT.CROP.SIZE", "INPUT.CROP.TYPE", "TEST.AUG.FLIP", "TEST.AUG.MAX_SIZE", "TEST.AUG.MIN_SIZES",
        "TEST.PRECISE_BN.NUM_ITER", "TEST.PCB_ALPHA", "TEST.PCB_LOWER", "TEST.PCB_MODELPATH", "TEST.PCB_MODELTYPE",
        "TEST.PCB_UPPER", "SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "SOLVER.CLIP_GRADIENTS.CLIP_VALUE",
        "SOLVER.CLIP_GRADIENTS.NORM_TYPE", "DATALOADER.REPEAT_SQRT", "DATALOADER.REPEAT_THRESHOLD",
        "SOLVER.NUM_DECAYS", "SOLVER.BASE_LR_END", "SOLVER.RESCALE_INTERVAL", *BNRL_KEYS.values(),
    ),
    "changes no number": (
        "CUDNN_BENCHMARK", "DATALOADER.NUM_WORKERS", "GLOBAL.HACK", "MUTE_HEADER", "OUTPUT_DIR", "TEST.EVAL_PERIOD",
        "TEST.EXPECTED_RESULTS", "VERSION", "VIS_PERIOD",
    ),
    "read by nothing in the released code": ("SOLVER.ACCUMULATE_ITER", "TEST.CMCLIP_MODELPATH"),
    "follows from the data": ("DATASETS.TEST", "MODEL.ROI_HEADS.NUM_CLASSES"),
    "take it from device: of the parameters": ("MODEL.DEVICE",),
}  # fmt: skip
DATA_NAME = re.compile(
    r"(?P<data>coco14|voc_20(?:07|12))_trainval_(?P<part>base|novel|all)(?P<split>[123x]?)"
    r"(?:_(?P<shots>\d+)shot_seed(?P<seed>\d+|x))?"
)


class Config:
    """The flat keys of a config, and what has become of each."""

    def __init__(self, values: dict[str, Any]) -> None:
        self.values = values
        self.mapped: set[str] = set()
        self.not_mapped: dict[str, list[str]] = {}
        self.unused: dict[str, str] = {}

    def take(self, key: str) -> Any:
        """The value of a key that has a parameter here, the code's default if the config does not give one.

        Raises:
            ParamsError: If the value is of another kind than the default.
        """
        self.mapped.add(key)
        default = DEFAULTS[key] if key in DEFAULTS else FIXED[key]
        value = self.values.get(key, default)
        if not _fits(value, default):
            raise ParamsError(f"{key} is {value!r}; expected {_kind(default)}.")
        return list(value) if isinstance(value, tuple | list) else value

    def refuse(self, key: str, why: str) -> None:
        """Note that the value of a key could not be mapped, beside what was noted of it before."""
        notes = self.not_mapped.setdefault(key, [])
        notes += [why] if why not in notes else []

    def ignore(self, keys: tuple[str, ...], why: str) -> None:
        """Note that these keys have no effect in what the config is converted to."""
        self.unused |= {key: why for key in keys if key in self.values and key not in self.mapped}

    def report(self) -> tuple[dict[str, str], dict[str, str]]:
        """Every key that has no parameter here, of the config or a default: not mapped, without effect, and why."""
        not_mapped = {
            key: "; ".join(notes) + ("" if key in self.values else f" {BY_DEFAULT}")
            for key, notes in self.not_mapped.items()
        }
        without_effect = dict(self.unused)
        for key, value in self.values.items():
            if key in self.mapped or key in not_mapped or key in without_effect:
                continue
            if key in FIXED:
                if not equal(value, FIXED[key]):
                    not_mapped[key] = f"is {value!r}; here it is always {FIXED[key]!r}"
                continue
            why = next((why for why, known in WITHOUT_EFFECT.items() if _is_among(key, known)), None)
            if why is None:
                not_mapped[key] = f"is {value!r}; unknown here"
            else:
                without_effect[key] = why
        return not_mapped, without_effect


def _is_among(key: str, known: tuple[str, ...]) -> bool:
    return key in known or key.startswith(tuple(part for part in known if part.endswith(".")))


def _fits(value: Any, default: Any) -> bool:
    """Whether a value is of the default's kind; a whole number is a number, a tuple is a list."""
    if isinstance(default, tuple):
        is_list = isinstance(value, tuple | list)
        return is_list and all(_fits(item, default[0]) for item in value if default)
    if isinstance(default, float):
        return isinstance(value, int | float) and not isinstance(value, bool)
    return type(value) is type(default)


def _kind(default: Any) -> str:
    if isinstance(default, tuple):
        return f"a list, each item {_kind(default[0])}" if default else "a list"
    return {bool: "True or False", int: "a whole number", float: "a number", str: "text"}[type(default)]


def equal(value: Any, other: Any) -> bool:
    """Whether two values are the same, lists and tuples alike."""
    if isinstance(value, list | tuple) and isinstance(other, list | tuple):
        return len(value) == len(other) and all(equal(*pair) for pair in zip(value, other, strict=True))
    return value == other


def detector(config: Config) -> dict[str, Any]:
    """`DetectorParams` of the base training or of a checkpoint."""
    depth, width = config.take("MODEL.RESNETS.DEPTH"), config.take("MODEL.RESNETS.RES2_OUT_CHANNELS")
    blocks = RESNETS.get(depth)
    if blocks is None:
        config.refuse("MODEL.RESNETS.DEPTH", f"is {depth!r}; expected one of {', '.join(map(str, RESNETS))}")
        blocks = RESNETS[101]
    groups = config.take("MODEL.RESNETS.NUM_GROUPS") * config.take("MODEL.RESNETS.WIDTH_PER_GROUP")
    if config.values.get("MODEL.RESNETS.NUM_GROUPS", 1) != 1 or groups * 4 != width:
        key = "MODEL.RESNETS.NUM_GROUPS" if groups * 4 == width else "MODEL.RESNETS.WIDTH_PER_GROUP"
        config.refuse(key, "here a block has one group of a quarter of its output's channels")
    values = {"block": "bottleneck", "stages": list(blocks[:3]), "res5_blocks": blocks[3], "stem": "resnet"}
    values |= {"stem_width": config.take("MODEL.RESNETS.STEM_OUT_CHANNELS"), "res2_width": width}
    values |= {"res5_width": 8 * width, "norm": config.take("MODEL.RESNETS.NORM"), "dilate_res4": False}
    values["stride_in_1x1"] = config.take("MODEL.RESNETS.STRIDE_IN_1X1")
    values["freeze_at"] = config.take("MODEL.BACKBONE.FREEZE_AT")
    for name, key in (("anchor_sizes", "SIZES"), ("anchor_ratios", "ASPECT_RATIOS")):
        rows = config.take(f"MODEL.ANCHOR_GENERATOR.{key}") or [[]]
        if len(rows) > 1:
            why = f"has {len(rows)} rows; here one map of features has anchors, those of the first row are taken"
            config.refuse(f"MODEL.ANCHOR_GENERATOR.{key}", why)
        values[name] = [float(value) for value in rows[0]]
    for ours, theirs in (("pre_nms", "PRE_NMS_TOPK"), ("post_nms", "POST_NMS_TOPK")):
        for phase in ("train", "test"):
            values[f"rpn_{ours}_{phase}"] = config.take(f"MODEL.RPN.{theirs}_{phase.upper()}")
    values["rpn_batch"] = config.take("MODEL.RPN.BATCH_SIZE_PER_IMAGE")
    values["roi_batch"] = config.take("MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE")
    values["roi_positive_fraction"] = config.take("MODEL.ROI_HEADS.POSITIVE_FRACTION")
    values |= {"rpn_gradient_scale": _scale(config, "RPN"), "roi_gradient_scale": _scale(config, "ROI_HEADS")}
    values["cls_dropout"] = _dropout(config)
    values["class_agnostic_boxes"] = config.take("MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG")
    return values | _preprocessing(config)


def _scale(config: Config, part: str) -> float:
    scale, is_decoupled = (
        config.take(f"MODEL.{part}.BACKWARD_SCALE"),
        config.take(f"MODEL.{part}.ENABLE_DECOUPLE"),
    )
    if not is_decoupled:
        why = "is False; here an affine layer, the identity at first, stands before this part at all times"
        config.refuse(f"MODEL.{part}.ENABLE_DECOUPLE", why)
    return float(scale) if is_decoupled else 1.0


def _dropout(config: Config) -> float:
    ratio, is_on = config.take("MODEL.ROI_HEADS.DROPOUT_RATIO"), config.take("MODEL.ROI_HEADS.CLS_DROPOUT")
    return ratio if is_on else 0.0


def _preprocessing(config: Config) -> dict[str, Any]:
    sizes, test = config.take("INPUT.MIN_SIZE_TRAIN"), config.take("INPUT.MIN_SIZE_TEST")
    if test not in sizes:
        config.refuse("INPUT.MIN_SIZE_TEST", f"is {test}; here it is one of the training sizes {sizes}")
    else:
        sizes = [size for size in sizes if size != test] + [test]  # here the last is the one of testing
    longest = config.take("INPUT.MAX_SIZE_TRAIN")
    if config.take("INPUT.MAX_SIZE_TEST") != longest:
        config.refuse("INPUT.MAX_SIZE_TEST", f"here it is that of training, {longest}")
    order = config.take("INPUT.FORMAT")
    if order not in ("RGB", "BGR"):
        config.refuse("INPUT.FORMAT", f"is {order!r}; expected RGB or BGR")
        order = "BGR"
    means = {
        name: [float(v) for v in config.take(f"MODEL.{name.upper()}")] for name in ("pixel_mean", "pixel_std")
    }
    return means | {"image_order": order, "min_size": sizes, "max_size": longest}


def solver(config: Config) -> dict[str, Any]:
    """`SolverParams`; with another batch size the schedule follows (`reference_batch`)."""
    steps, last = config.take("SOLVER.STEPS"), config.take("SOLVER.MAX_ITER")
    steps = [step for step in steps if step < last]
    batch = config.take("SOLVER.IMS_PER_BATCH")
    values = {"iterations": last, "batch_size": batch, "reference_batch": batch}
    values["group_by_aspect"] = config.take("DATALOADER.ASPECT_RATIO_GROUPING")
    values |= {"lr": float(config.take("SOLVER.BASE_LR")), "momentum": config.take("SOLVER.MOMENTUM")}
    values |= {"nesterov": config.take("SOLVER.NESTEROV"), "weight_decay": config.take("SOLVER.WEIGHT_DECAY")}
    bias_decay = config.values.get("SOLVER.WEIGHT_DECAY_BIAS")
    config.mapped.add("SOLVER.WEIGHT_DECAY_BIAS")
    if bias_decay not in (None, values["weight_decay"]):
        config.refuse("SOLVER.WEIGHT_DECAY_BIAS", f"is {bias_decay}; here it is that of the weights")
    _decay_of_norms(config, values["weight_decay"])
    values |= {"schedule": "multistep", "milestones": steps} if steps else {"schedule": "constant"}
    values |= {
        "gamma": config.take("SOLVER.GAMMA"),
        "warmup": config.take("SOLVER.WARMUP_ITERS"),
        "clip_norm": None,
    }
    values["precision"] = "auto" if config.take("SOLVER.AMP.ENABLED") else "fp32"
    period = config.take("SOLVER.CHECKPOINT_PERIOD")
    return values | {"checkpoint_every": period if period < last else 0}  # beyond the end: none but the last


def _decay_of_norms(config: Config, weight_decay: float) -> None:
    key, norm = "SOLVER.WEIGHT_DECAY_NORM", config.take("MODEL.RESNETS.NORM")
    decay = config.take(key)
    if norm != "FrozenBN" and decay != weight_decay:
        config.refuse(
            key, f"is {decay}; here the layers of norm {norm} have the weights' decay, {weight_decay}"
        )
    elif norm == "FrozenBN" and key in config.values:
        config.unused[key] = "frozen norms have nothing to train"


def fine_tuning(config: Config) -> dict[str, Any]:
    """What fine-tuning sets of `FineTuningParams`, but for data, base model and solver."""
    keys = ("MODEL.RPN.FREEZE", "MODEL.BACKBONE.FREEZE", "MODEL.ROI_HEADS.FREEZE_FEAT")
    rpn, backbone, res5 = map(config.take, keys)
    frozen = (backbone, rpn, res5)
    groups = {
        (False, False, True): "all_but_res5",
        (True, False, True): "head_and_rpn",
        (False, False, False): "all",
    }
    if frozen not in groups:
        key = next((key for key in keys if key in config.values), keys[0])
        config.refuse(key, f"no choice of trainable freezes backbone, RPN, res5 as {frozen} says")
    head = {"num_proposals": config.take("MODEL.RPN.POST_NMS_TOPK_TRAIN")}
    head |= {
        "roi_batch": config.take("MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE"),
        "cls_dropout": _dropout(config),
    }
    head["roi_gradient_scale"] = _scale(config, "ROI_HEADS")
    values = {"losses": _losses(config), "head": head}
    if values["losses"] != ["ce"]:
        values["bnrl"] = _bnrl(config)
    values |= {"trainable": groups.get(frozen, "all_but_res5"), "cached": False}
    return values | score_thresh(config) | rescoring(config)


def score_thresh(config: Config) -> dict[str, float]:
    """The cut of detections that count."""
    return {"score_thresh": float(config.take("MODEL.ROI_HEADS.SCORE_THRESH_TEST"))}


def _losses(config: Config) -> list[str]:
    names = [config.take(key) for key in LOSS_KEYS if key in config.values]
    if len(set(names)) > 1:
        config.refuse(LOSS_KEYS[1], f"is {names[1]!r}, but {LOSS_KEYS[0]} is {names[0]!r}, which is taken")
    known = {
        "cross_entropy": ["ce"],
        "bnrl_loss": ["bnrl", "ce_bg"],
    }  # the released code trains ce_bg as bnrl_loss
    name = names[0] if names else "cross_entropy"
    if name not in known:
        key = next(key for key in LOSS_KEYS if key in config.values)
        config.refuse(key, f"is {name!r}; expected one of {', '.join(known)}")
    return known.get(name, ["ce"])


def _bnrl(config: Config) -> dict[str, float]:
    return {name: float(config.take(key)) for name, key in BNRL_KEYS.items()}


def rescoring(config: Config) -> dict[str, Any]:
    """CM-CLIP: the CLIP that the released code takes, and its hyper-parameters."""
    c, lower = config.take("TEST.CMCLIP_ALPHA"), config.take("TEST.CMCLIP_LOWER")
    if not config.take("TEST.CMCLIP_ENABLE"):
        return {"clip": None}
    values = {"c": float(c), "score_thresh": float(lower), "label_spaces": ["novel+background"]}
    return {"clip": {"model": "ViT-L-14-336-quickgelu", "pretrained": "openai"}, "cm_clip": values}
