"""Weights that others trained: ImageNet backbones (MSRA, torchvision) and detectors of detectron2, DeFRCN and RISF.

The key of a weight tells who wrote the file. Block j of stage i, second convolution and its normalisation:

    Caffe2, MSRA's      res4_6_branch2b_w         res4_6_branch2b_bn_s        stem: conv1_w    res_conv1_bn_s
    torchvision         layer3.6.conv2.weight     layer3.6.bn2.weight               conv1.weight     bn1.weight
    detectron2          res4.6.conv2.weight       res4.6.conv2.norm.weight          stem.conv1.weight ...
    a whole detector    backbone.res4.6.conv2.weight, roi_heads.res5..., proposal_generator..., affine_rpn...

stem to res4 go to ``backbone``, res5 to ``roi_heads.res5``. MSRA's weights expect BGR pixels minus a mean, without a
deviation, and the stride in the first 1x1 convolution of a block; torchvision's expect RGB, its mean and deviation,
and the stride in the 3x3 (``presets.CONVENTIONS``). A detector with other settings is refused, since it would train
without an error and be worse for it.
"""

import re
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from risf_core.detector.checkpoints import HEAD, LoadReport, load_weights
from risf_core.detector.faster_rcnn import FasterRCNN
from risf_core.detector.presets import CONVENTIONS
from risf_core.detector.weight_files import find_weights, read_weight_file
from risf_core.errors import CheckpointError

# What an ImageNet classifier does not hold; a detector after surgery lacks the first, one of detectron2 the second.
MAY_BE_MISSING = (HEAD, "affine_", "proposal_generator.")
AUTHORS = {"torchvision": "torchvision", "Caffe2": "msra"}  # of a detectron2 pickle

CAFFE2_BLOCK = re.compile(r"res([2-5])_(\d+)_branch(1|2a|2b|2c)_(w|bn_\w+)")
CAFFE2_STEM = re.compile(r"(?:res_)?conv1_(w|bn_\w+)")
CAFFE2_LAYER = {"1": "shortcut", "2a": "conv1", "2b": "conv2", "2c": "conv3"}
CAFFE2_LEAF = {
    "w": "weight",
    "bn_s": "norm.weight",
    "bn_b": "norm.bias",
    "bn_rm": "norm.running_mean",
    "bn_riv": "norm.running_var",
    "bn_gamma": "norm.weight",
    "bn_beta": "norm.bias",
    "bn_running_mean": "norm.running_mean",
    "bn_running_var": "norm.running_var",
}
TORCHVISION_BLOCK = re.compile(r"layer([1-4])\.(\d+)\.(?:(conv|bn)([1-3])|downsample\.([01]))\.(\w+)")
TORCHVISION_STEM = re.compile(r"(conv|bn)1\.(\w+)")
# Caffe2's normalisation is scale and shift alone. These statistics are detectron2's, which published models start from;
# with the epsilon of 1e-5 they shrink the scale by 5e-6.
NEUTRAL = {"running_mean": 0.0, "running_var": 1.0}


@dataclass(frozen=True)
class PretrainedWeights:
    """A file's weights by our keys.

    ``origin``: ``msra``, ``torchvision``, or ``detector`` (detectron2's names; which pixels they expect is unknown).
    ``file_keys``: our key to the file's. ``left_over``: the file's keys that hold no weight.
    """

    path: Path
    origin: str
    state: dict[str, Tensor]
    file_keys: dict[str, str]
    left_over: tuple[str, ...]


def read_pretrained(path: Path) -> PretrainedWeights:
    """Read a file of weights of any of the kinds above, executing nothing, and give its weights our keys.

    Raises:
        CheckpointError: If the file is missing, broken or hostile, holds no weights, or one weight twice.
    """
    content = read_weight_file(path)
    weights, others = find_weights(content)
    if not weights:
        raise CheckpointError(
            f"{path}: holds no weights; its keys are {', '.join(map(str, list(content)[:5]))}."
        )
    state, file_keys = {}, {}
    for key, value in weights.items():
        name = detector_key(key)
        if name in state:
            raise CheckpointError(f"{path}: {key!r} and {file_keys[name]!r} are both {name!r}; expected one.")
        state[name], file_keys[name] = value, key
    return PretrainedWeights(Path(path), _origin(content, weights), state, file_keys, others)


def load_pretrained(
    detector: FasterRCNN,
    path: Path,
    *,
    allow_missing: tuple[str, ...] = MAY_BE_MISSING,
    leave: tuple[str, ...] = (),
) -> LoadReport:
    """Load a file of weights into a detector, and say what matched, stayed as initialised, and was left over.

    Args:
        detector: Of the file's depth and widths; of its classes, too, where the file holds a box predictor.
        allow_missing: Prefixes of the detector's keys that may stay as initialised; () for a whole detector.
        leave: Prefixes of the detector's keys that are not taken from the file, whatever it holds.

    Returns:
        ``matched`` and ``reinitialised`` name the detector's keys, ``left_over`` the file's.

    Raises:
        CheckpointError: If the file cannot be read, nothing or too little of it matches, a shape differs, or the
            detector prepares its pixels otherwise than the weights expect.
    """
    weights = read_pretrained(path)
    _check_convention(weights, detector)
    own = detector.state_dict()
    state = weights.state | {
        key: torch.full_like(own[key], value) for key, value in _neutral_statistics(weights.state, own)
    }
    left = tuple(key for key in state if key.startswith(leave))
    state = {key: value for key, value in state.items() if key not in left}
    report = load_weights(detector, state, source=str(path), allow_missing=(*allow_missing, *leave))
    left_over = tuple(weights.file_keys[key] for key in (*report.left_over, *left)) + weights.left_over
    return replace(report, left_over=left_over)


def detector_key(key: str) -> str:
    """Our key of a weight that the file calls ``key``; a key of no known form is returned as it is.

    Example:
        >>> detector_key("res5_2_branch2c_bn_s"), detector_key("layer1.0.downsample.0.weight")
        ('roi_heads.res5.2.conv3.norm.weight', 'backbone.res2.0.shortcut.weight')
    """
    key = key.removeprefix("module.")
    name = _caffe2_name(key) or _torchvision_name(key) or key
    if name.startswith("res5."):
        return f"roi_heads.{name}"
    return f"backbone.{name}" if re.match(r"stem\.|res[2-4]\.", name) else name


def _caffe2_name(key: str) -> str | None:
    if match := CAFFE2_BLOCK.fullmatch(key):
        stage, block, branch, leaf = match.groups()
        prefix = f"res{stage}.{block}.{CAFFE2_LAYER[branch]}"
    elif match := CAFFE2_STEM.fullmatch(key):
        prefix, leaf = "stem.conv1", match[1]
    else:
        return None
    return f"{prefix}.{CAFFE2_LEAF[leaf]}" if leaf in CAFFE2_LEAF else None


def _torchvision_name(key: str) -> str | None:
    if match := TORCHVISION_STEM.fullmatch(key):
        return f"stem.conv1.{'norm.' * (match[1] == 'bn')}{match[2]}"
    match = TORCHVISION_BLOCK.fullmatch(key)
    if match is None:
        return None
    layer, block, kind, number, downsample, leaf = match.groups()
    conv = "shortcut" if downsample else f"conv{number}"
    norm = "norm." if kind == "bn" or downsample == "1" else ""
    return f"res{int(layer) + 1}.{block}.{conv}.{norm}{leaf}"


def _origin(content: dict, weights: dict[str, Tensor]) -> str:
    if any(CAFFE2_BLOCK.fullmatch(key) for key in weights):
        return "msra"
    if any(TORCHVISION_BLOCK.fullmatch(key.removeprefix("module.")) for key in weights):
        return "torchvision"
    return AUTHORS.get(str(dict.get(content, "__author__")), "detector")


def _neutral_statistics(state: dict[str, Tensor], own: dict[str, Tensor]):
    """Keys and values of the statistics that the detector has and a file of scales and shifts lacks."""
    for key in state:
        prefix, _, leaf = key.rpartition(".norm.")
        if leaf == "weight":
            for name, value in NEUTRAL.items():
                statistic = f"{prefix}.norm.{name}"
                if statistic in own and statistic not in state:
                    yield statistic, value


def _check_convention(weights: PretrainedWeights, detector: FasterRCNN) -> None:
    wanted = dict(CONVENTIONS.get(weights.origin, {}))
    if detector.params.block == "basic":
        wanted.pop("stride_in_1x1", None)
    for name, value in wanted.items():
        found = getattr(detector.params, name)
        same = np.allclose(found, value, atol=2.0) if name == "pixel_mean" else found == value
        if not same:
            expected = ", ".join(f"{key}: {item}" for key, item in wanted.items())
            raise CheckpointError(
                f"{weights.path}: weights of {weights.origin} need {name} {value}, the detector has {found}. "
                f"Set in its parameters: {expected}."
            )
