"""Turn a config file of DeFRCN or RISF into a params file of this project.

    python -m risf_core.convert_config path/to/defrcn_fsod_r101_novel_10shot_seedx.yaml
    python -m risf_core.convert_config path/to/gfsod_10shot_seed0.yaml --notebook 21_evaluate

`_BASE_` is resolved, and the defaults of the code that reads such files are filled in (`risf_core.detectron2_config`).
Every key that has no parameter here is named, on the screen and in the head of the new file. Which notebook, split, K
and seed are meant is read from the name of the training set; a placeholder (`seedx`) is named as well.
"""

from __future__ import annotations

import argparse
import ast
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from risf_core.detectron2_config import (
    BNRL_KEYS,
    BY_DEFAULT,
    DATA_NAME,
    DEFAULTS,
    FIXED,
    LOSS_KEYS,
    Config,
    detector,
    equal,
    fine_tuning,
    rescoring,
    score_thresh,
    solver,
)
from risf_core.errors import ParamsError, RisfError
from risf_core.params import RunRef
from risf_core.runs.run_specs import load_run, shown
from risf_core.runs.yaml_files import merge, parse_yaml, project_path

NOTEBOOKS = ("10_base_training", "20_fine_tuning", "21_evaluate")
TRAINING_KEYS = (  # those that say nothing of a finished checkpoint and its test
    "DATALOADER.ASPECT_RATIO_GROUPING", "DATALOADER.FILTER_EMPTY_ANNOTATIONS", "DATALOADER.SAMPLER_TRAIN",
    "INPUT.CROP.ENABLED", "INPUT.MIN_SIZE_TRAIN_SAMPLING", "INPUT.RANDOM_FLIP",
    "MODEL.BACKBONE.FREEZE", "MODEL.RPN.FREEZE", "MODEL.ROI_HEADS.FREEZE_FEAT",
    "MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE", "MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_WEIGHT",
    "MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA", "MODEL.ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES", "MODEL.ROI_BOX_HEAD.USE_FED_LOSS",
    "MODEL.ROI_HEADS.IOU_LABELS", "MODEL.ROI_HEADS.IOU_THRESHOLDS", "MODEL.ROI_HEADS.PROPOSAL_APPEND_GT",
    "MODEL.RPN.BBOX_REG_LOSS_TYPE", "MODEL.RPN.BBOX_REG_LOSS_WEIGHT", "MODEL.RPN.BOUNDARY_THRESH",
    "MODEL.RPN.IOU_LABELS", "MODEL.RPN.IOU_THRESHOLDS", "MODEL.RPN.LOSS_WEIGHT", "MODEL.RPN.POSITIVE_FRACTION",
    "MODEL.RPN.SMOOTH_L1_BETA", "TEST.PRECISE_BN.ENABLED", *LOSS_KEYS, *BNRL_KEYS.values(),
    "SOLVER.WEIGHT_DECAY_BIAS", *(key for key in (*DEFAULTS, *FIXED) if key.startswith("SOLVER.")),
)  # fmt: skip
BASE_KEYS = {  # what fine-tuning takes from its base model: the field of its detector, the key that says it in a config
    "block": "MODEL.RESNETS.DEPTH",
    "stages": "MODEL.RESNETS.DEPTH",
    "res5_blocks": "MODEL.RESNETS.DEPTH",
    "stem": "MODEL.RESNETS.STEM_OUT_CHANNELS",
    "stem_width": "MODEL.RESNETS.STEM_OUT_CHANNELS",
    "res2_width": "MODEL.RESNETS.RES2_OUT_CHANNELS",
    "res5_width": "MODEL.RESNETS.RES2_OUT_CHANNELS",
    "norm": "MODEL.RESNETS.NORM",
    "dilate_res4": "MODEL.RESNETS.OUT_FEATURES",
    "stride_in_1x1": "MODEL.RESNETS.STRIDE_IN_1X1",
    "freeze_at": "MODEL.BACKBONE.FREEZE_AT",
    "anchor_sizes": "MODEL.ANCHOR_GENERATOR.SIZES",
    "anchor_ratios": "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS",
    "rpn_pre_nms_train": "MODEL.RPN.PRE_NMS_TOPK_TRAIN",
    "rpn_pre_nms_test": "MODEL.RPN.PRE_NMS_TOPK_TEST",
    "rpn_post_nms_test": "MODEL.RPN.POST_NMS_TOPK_TEST",
    "rpn_batch": "MODEL.RPN.BATCH_SIZE_PER_IMAGE",
    "roi_positive_fraction": "MODEL.ROI_HEADS.POSITIVE_FRACTION",
    "rpn_gradient_scale": "MODEL.RPN.BACKWARD_SCALE",
    "class_agnostic_boxes": "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG",
    "pixel_mean": "MODEL.PIXEL_MEAN",
    "pixel_std": "MODEL.PIXEL_STD",
    "image_order": "INPUT.FORMAT",
    "min_size": "INPUT.MIN_SIZE_TRAIN",
    "max_size": "INPUT.MAX_SIZE_TRAIN",
}
HEAD_FIELDS = {
    "rpn_post_nms_train",
    "roi_batch",
    "cls_dropout",
    "roi_gradient_scale",
}  # of fine-tuning itself
PLACEHOLDER = "/path/to"  # of the published files, in any case of letters


@dataclass(frozen=True)
class Converted:
    """What a config file became.

    Attributes:
        notebook: Which notebook the parameters are for.
        source: "coco" or "voc".
        values: The parameters.
        not_mapped: Key to why it is not mapped.
        without_effect: Key to why it has none here.
    """

    notebook: str
    source: str
    values: dict[str, Any]
    not_mapped: dict[str, str]
    without_effect: dict[str, str]


def read_config(path: Path, *, _above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Names and values of a config file, laid on those of the file that `_BASE_` names.

    Values are read as yacs does: a text such as ``(640, 800)`` or ``1e-4`` is a Python literal.

    Raises:
        ParamsError: If a file is missing, no config, or its own base.
    """
    path = Path(os.path.normpath(path.expanduser().absolute()))
    if path in _above:
        raise ParamsError(f"{path}: _BASE_ leads back to the file itself.")
    try:
        content = parse_yaml(path.read_text(encoding="utf-8"), where=str(path))
    except (OSError, UnicodeDecodeError) as error:
        named = f", which {_above[-1]} names as _BASE_" if _above else ""
        raise ParamsError(f"{path}{named}: not readable: {error}.") from None
    if not isinstance(content, dict):
        raise ParamsError(f"{path}: expected a config with names and values.")
    base = content.pop("_BASE_", None)
    values = _decode(content)
    if base is None:
        return values
    if not isinstance(base, str) or "://" in base:
        raise ParamsError(f"{path}: _BASE_ is {base!r}; expected the path of a file here.")
    return merge(read_config(path.parent / Path(base).expanduser(), _above=(*_above, path)), values)


def _decode(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _decode(item) for name, item in value.items()}
    if isinstance(value, str):
        try:
            return ast.literal_eval(value)
        except (ValueError, SyntaxError):
            return value
    return value


def flat_keys(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """``{"MODEL": {"WEIGHTS": ""}}`` as ``{"MODEL.WEIGHTS": ""}``."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        below = isinstance(value, dict) and value
        flat |= flat_keys(value, f"{prefix}{name}.") if below else {f"{prefix}{name}": value}
    return flat


def convert(path: Path, *, notebook: str | None = None) -> Converted:
    """Map a config file.

    Args:
        path: The file.
        notebook: One of `NOTEBOOKS`; None: base training or fine-tuning, as its training set says.

    Raises:
        ParamsError: If the file is no config, or its training set does not say enough.
    """
    config = Config(flat_keys(read_config(path)))
    named = _training_set(config, path)
    part, is_voc = named["part"], named["data"].startswith("voc")
    source = "voc" if is_voc else "coco"
    notebook = notebook or ("10_base_training" if part == "base" else "20_fine_tuning")
    if (notebook == "10_base_training") != (part == "base") and notebook != "21_evaluate":
        raise ParamsError(f"{path}: it trains on {part} classes, which is not what {notebook} does.")
    values: dict[str, Any] = (
        {"split": int(named["split"])} if is_voc and named["split"] in ("1", "2", "3") else {}
    )
    if is_voc and not values:
        config.refuse(
            "DATASETS.TRAIN", f"the split {named['split'] or '(none)'} is no number; split 1 is taken"
        )
    values |= _seed(config)
    if notebook == "10_base_training":
        values |= _base_training(config)
    elif notebook == "20_fine_tuning":
        values |= _fine_tuning(config, named, source, values)
    else:
        values |= _evaluate(config, part, is_voc)
    return Converted(notebook, source, values, *config.report())


def _training_set(config: Config, path: Path) -> dict[str, str]:
    """Parts of the name of the training set."""
    names = config.take("DATASETS.TRAIN")
    found = [DATA_NAME.fullmatch(str(name)) for name in names]
    if not found or not all(found):
        raise ParamsError(
            f"{path}: DATASETS.TRAIN is {names}. Expected names such as coco14_trainval_base, "
            "coco14_trainval_novel_10shot_seed0 or voc_2007_trainval_all1_5shot_seed3: they say what is trained."
        )
    first, *others = ({key: value or "" for key, value in match.groupdict().items()} for match in found)
    years = {"voc_2007", "voc_2012"}
    if any(
        first | {"data": other["data"]} != other or not {first["data"], other["data"]} <= years
        for other in others
    ):
        raise ParamsError(
            f"{path}: DATASETS.TRAIN is {names}; expected one set, or the same one of both VOC years."
        )
    if first["data"] in years and first["part"] == "base" and {match["data"] for match in found} != years:
        config.refuse("DATASETS.TRAIN", f"is {names}; here a base training has the images of both years")
    return first


def _seed(config: Config) -> dict[str, int]:
    seed = config.take("SEED")
    if seed >= 0:
        return {"seed": seed}
    if "SEED" in config.values:
        config.refuse("SEED", f"is {seed}: not repeatable there; here seed 0 is taken, or what -p seed says")
    return {}


def _weights(config: Config, otherwise: str) -> str:
    """The file of weights that the config names; `otherwise` for a placeholder, a download or nothing."""
    weights = config.take("MODEL.WEIGHTS")
    if weights and "://" not in str(weights) and not str(weights).lower().startswith(PLACEHOLDER):
        return str(weights)
    config.refuse("MODEL.WEIGHTS", f"is {weights!r}, no file here; {otherwise} is taken, put it there")
    return otherwise


def _base_training(config: Config) -> dict[str, Any]:
    values: dict[str, Any] = {"pretraining": None, "detector": detector(config), "solver": solver(config)}
    weights = _weights(config, f"data/weights/R-{config.take('MODEL.RESNETS.DEPTH')}.pkl")
    return {"weights": weights} | values | score_thresh(config)


def _fine_tuning(config: Config, named: dict[str, str], source: str, above: dict[str, Any]) -> dict[str, Any]:
    base: Any = f"params/{source}/10_base_training.yaml"
    if "split" in above:
        base = {"params": base, "set": {"split": above["split"]}}
    if "MODEL.WEIGHTS" in config.values:
        weights = config.take("MODEL.WEIGHTS")
        config.refuse("MODEL.WEIGHTS", f"is {weights!r}; here the base model is a run, see base")
    _compare_with_base(config, base)
    values = {"setting": "gfsod" if named["part"] == "all" else "fsod", "base": base}
    if named["shots"]:
        values["shots"] = int(named["shots"])
    if named["seed"].isdigit():
        values["seeds"] = [int(named["seed"])]
    else:
        seed = named["seed"] or "(none)"
        config.refuse("DATASETS.TRAIN", f"the seed {seed} is no number; seeds: [0] is taken")
        values["seeds"] = [0]
    return values | fine_tuning(config) | {"solver": solver(config)}


def _compare_with_base(config: Config, base: Any) -> None:
    """Name every key of architecture, preprocessing and RPN that is not as the base model has it."""
    ref = RunRef.model_validate(base)
    theirs = load_run(project_path(ref.params), ref.set).params.detector.model_dump()
    for field, value in detector(config).items():
        if field in HEAD_FIELDS:
            continue
        key, expected = BASE_KEYS[field], theirs[field]
        if field == "min_size" and expected and sorted(value) == sorted(expected):
            key, value, expected = "INPUT.MIN_SIZE_TEST", value[-1], expected[-1]
        if field == "rpn_gradient_scale" and not config.take("MODEL.RPN.ENABLE_DECOUPLE"):
            key = "MODEL.RPN.ENABLE_DECOUPLE"
        if not equal(value, expected):
            config.refuse(key, f"makes {field} {value!r}; the base model, {ref.params}, has {expected!r}")


def _evaluate(config: Config, part: str, is_voc: bool) -> dict[str, Any]:
    order = "base_novel" if is_voc else "category_id"
    path = _weights(config, "data/weights/model_final.pth")
    checkpoint = {"path": path, "classes": part, "class_order": order, "detector": detector(config)}
    values = {"checkpoint": checkpoint} | score_thresh(config)
    values["max_detections"] = config.take("TEST.DETECTIONS_PER_IMAGE")
    values |= rescoring(config)
    config.ignore(TRAINING_KEYS, "of training alone")
    return values


def text_of(converted: Converted, path: Path) -> str:
    """The params file: what could not be mapped in its head, then the parameters."""
    head = [f"# From {path.name} by  python -m risf_core.convert_config"]
    if converted.notebook == "20_fine_tuning" and "ce_bg" in converted.values.get("losses", ()):
        head += [
            "# Its bnrl_loss is bnrl as the paper has it; what the released code trains under this name is ce_bg."
        ]
    if converted.values.get("clip"):
        head += [
            "# The released code shows CLIP crops in BGR divided by 255: cm_clip: {preprocess: released}."
        ]
    is_risf = converted.values.get("clip") or "ce_bg" in converted.values.get("losses", ())
    if converted.values.get("setting") == "gfsod" and is_risf:
        head += [
            "# The released code starts the head of base and novel classes afresh: head: {start: released}."
        ]
    head += [f"# NOT MAPPED {key}: {why}" for key, why in converted.not_mapped.items()]
    head += [f"# without effect here, {key}: {why}" for key, why in converted.without_effect.items()]
    body = yaml.safe_dump(converted.values, sort_keys=False, default_flow_style=None, width=110)
    return "\n".join([*head, "extends: shared.yaml", body])


def write_params(converted: Converted, path: Path, folder: Path, *, force: bool = False) -> Path:
    """Write the params file into the folder of a profile, if it is valid there.

    Raises:
        ParamsError: If the folder has no shared.yaml, the file is there already, or its values are refused.
    """
    if not (folder / "shared.yaml").is_file():
        raise ParamsError(
            f"{folder}: has no shared.yaml with profile and data; name a profile's folder: --into FOLDER"
        )
    target = folder / f"{converted.notebook}.{path.stem}.yaml"
    if target.exists() and not force:
        raise ParamsError(f"{target}: is there already; --force replaces it.")
    before = target.read_bytes() if target.exists() else None
    target.write_text(text_of(converted, path), encoding="utf-8")
    try:
        load_run(target)
    except ParamsError:
        target.unlink() if before is None else target.write_bytes(before)
        raise
    return target


def main(words: Sequence[str] | None = None) -> int:
    """Convert one file and name every key that has no parameter here."""
    parser = argparse.ArgumentParser(
        prog="python -m risf_core.convert_config", description=__doc__.splitlines()[0]
    )
    parser.add_argument("config", type=Path, help="config file (YAML) of DeFRCN or RISF")
    parser.add_argument("--notebook", choices=NOTEBOOKS, help="which notebook the params file is for")
    parser.add_argument(
        "--into", type=Path, metavar="FOLDER", help="a profile's folder (params/coco or params/voc)"
    )
    parser.add_argument("--force", action="store_true", help="replace the params file if it is there")
    options = parser.parse_args(words)
    try:
        converted = convert(options.config, notebook=options.notebook)
        folder = options.into or project_path(f"params/{converted.source}")
        target = write_params(converted, options.config, folder, force=options.force)
    except RisfError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    for key, why in converted.not_mapped.items():
        print(f"NOT MAPPED {key}: {why}")
    for key, why in converted.without_effect.items():
        print(f"without effect here, {key}: {why}")
    number = sum(not why.endswith(BY_DEFAULT) for why in converted.not_mapped.values())
    keys = "1 key" if number == 1 else f"{number} keys"
    print(f"{shown(target)}: written; {keys} of {options.config} could not be mapped")
    print(f"python -m risf_core.run notebooks/{converted.notebook}.ipynb --params {shown(target)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
