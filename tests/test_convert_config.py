"""Configs of DeFRCN and RISF as params files: what is mapped, what is filled in, and that every other key is named."""

import os
import re
import shutil
from pathlib import Path

import pytest
import yaml

from risf_core import convert_config
from risf_core.convert_config import (
    BASE_KEYS,
    HEAD_FIELDS,
    TRAINING_KEYS,
    convert,
    flat_keys,
    main,
    read_config,
    text_of,
    write_params,
)
from risf_core.detectron2_config import BNRL_KEYS, DEFAULTS, FIXED, LOSS_KEYS, WITHOUT_EFFECT, _is_among
from risf_core.errors import ParamsError
from risf_core.params import DetectorParams, SolverParams
from risf_core.runs.run_specs import load_run

REFERENCE = os.environ.get("RISF_REFERENCE")
CONFIGS = os.environ.get("RISF_CONFIGS")  # any folder that holds the published configs
ROOT = Path(__file__).parents[1]
# Written for these tests, with the published keys; numbers that are no one's defaults show that each is read.
BASE = """
MODEL:
  META_ARCHITECTURE: "GeneralizedRCNN"
  RPN: {PRE_NMS_TOPK_TEST: 5000, POST_NMS_TOPK_TEST: 900}
INPUT: {MIN_SIZE_TRAIN: "(600, 700, 800)"}
SOLVER: {IMS_PER_BATCH: 12, BASE_LR: 0.03, STEPS: "(7, 8)", MAX_ITER: 9}
VERSION: 2
"""
FINE_TUNING = """
_BASE_: "../Base.yaml"
MODEL:
  WEIGHTS: "/some/base.pth"
  BACKBONE: {FREEZE: False}
  RESNETS: {DEPTH: 101}
  RPN: {ENABLE_DECOUPLE: True, BACKWARD_SCALE: 0.0, FREEZE: False}
  ROI_HEADS:
    NUM_CLASSES: 80
    ENABLE_DECOUPLE: True
    BACKWARD_SCALE: 0.02
    FREEZE_FEAT: True
    CLS_DROPOUT: True
    CLS_LOSS_TYPE : 'bnrl_loss'
    ALPHA : 0.3
    EPSILON : 1.5
    GAMMA : 3.0
    BG_WEIGHT : 0.1
DATASETS:
  TRAIN: ('coco14_trainval_all_5shot_seed3',)
  TEST: ('coco14_test_all',)
SOLVER: {STEPS: "(4800,)", MAX_ITER: 6000, WARMUP_ITERS: 0, WEIGHT_DECAY: 1e-4, CHECKPOINT_PERIOD: 100000}
TEST: {CMCLIP_ENABLE: True, CMCLIP_ALPHA: 0.6}
OUTPUT_DIR: "/some/where"
"""
BASE_TRAINING = """
_BASE_: "../Base.yaml"
MODEL:
  WEIGHTS: "{weights}"
  MASK_ON: False
  RESNETS: {{DEPTH: 50}}
  RPN: {{ENABLE_DECOUPLE: True, BACKWARD_SCALE: 0.0}}
  ROI_HEADS: {{NUM_CLASSES: 15, ENABLE_DECOUPLE: True, BACKWARD_SCALE: 0.75}}
DATASETS:
  TRAIN: ('voc_2007_trainval_base2', 'voc_2012_trainval_base2')
  TEST: ('voc_2007_test_base2',)
SOLVER: {{STEPS: "(10, 13)", MAX_ITER: 15}}
"""


PROFILE = {  # the detector of the base training that fine-tuning builds on, as BASE and R-101 make it
    **{"block": "bottleneck", "stages": [3, 4, 23], "res5_blocks": 3, "stem": "resnet", "stem_width": 64},
    **{
        "res2_width": 256,
        "res5_width": 2048,
        "norm": "FrozenBN",
        "dilate_res4": False,
        "stride_in_1x1": True,
    },
    **{"freeze_at": 3, "anchor_sizes": [32.0, 64.0, 128.0, 256.0, 512.0], "rpn_batch": 256, "roi_batch": 512},
    **{
        "rpn_pre_nms_train": 12000,
        "rpn_pre_nms_test": 5000,
        "rpn_post_nms_train": 2000,
        "rpn_post_nms_test": 900,
    },
    **{"roi_gradient_scale": 0.75, "cls_dropout": 0.0, "pixel_mean": [103.53, 116.28, 123.675]},
    **{
        "pixel_std": [1.0, 1.0, 1.0],
        "image_order": "BGR",
        "min_size": [700, 600, 800],
    },  # drawn: no order but the last
}


@pytest.fixture
def configs(tmp_path, project):
    """Write configs beside a base file: ``configs(name, text)`` gives the path."""
    folder = tmp_path / "configs" / "coco"
    folder.mkdir(parents=True)
    (folder.parent / "Base.yaml").write_text(BASE)

    def write(name: str, text: str) -> Path:
        (folder / name).write_text(text)
        return folder / name

    return write


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project with the profiles' shared files."""
    monkeypatch.setenv("RISF_ROOT", str(tmp_path))
    coco = {"source": "coco", "annotations": "a.json", "images": "images", "novel_classes": ["cat"]}
    base = {"extends": "shared.yaml", "detector": PROFILE}
    for profile in ("coco", "voc"):
        folder = tmp_path / "params" / profile
        folder.mkdir(parents=True)
        shared = {"profile": profile, "data": coco | {"shots": [1, 5, 10]}}
        (folder / "shared.yaml").write_text(yaml.safe_dump(shared))
        (folder / "10_base_training.yaml").write_text(yaml.safe_dump(base))
    return tmp_path


def named(made) -> set[str]:
    """Keys that are not mapped."""
    return set(made.not_mapped)


def test_fine_tuning_takes_every_number_of_file_base_and_defaults(configs):
    made = convert(configs("gfsod.yaml", FINE_TUNING))
    values = made.values
    assert (made.notebook, made.source) == ("20_fine_tuning", "coco")
    assert {key: values[key] for key in ("setting", "shots", "seeds")} == {
        "setting": "gfsod",
        "shots": 5,
        "seeds": [3],
    }
    assert values["base"] == "params/coco/10_base_training.yaml"
    assert values["losses"] == ["bnrl", "ce_bg"]  # as the paper has it, and what the released code trains
    assert values["bnrl"] == {"alpha": 0.3, "epsilon": 1.5, "gamma": 3.0, "background_weight": 0.1}
    assert values["score_thresh"] == 0.05
    head = {"num_proposals": 2000, "roi_batch": 512, "cls_dropout": 0.8, "roi_gradient_scale": 0.02}
    assert values["head"] == head and values["trainable"] == "all_but_res5" and values["cached"] is False
    assert values["clip"]["pretrained"] == "openai"
    assert values["cm_clip"] == {"c": 0.6, "score_thresh": 0.05, "label_spaces": ["novel+background"]}
    solver = SolverParams.model_validate(values["solver"])
    assert (solver.iterations, solver.milestones, solver.warmup) == (6000, (4800,), 0)
    assert solver.group_by_aspect  # detectron2's default
    assert (solver.batch_size, solver.reference_batch, solver.lr, solver.weight_decay) == (12, 12, 0.03, 1e-4)
    assert (solver.momentum, solver.nesterov, solver.clip_norm, solver.precision) == (
        0.9,
        False,
        None,
        "fp32",
    )
    assert named(made) == {"MODEL.WEIGHTS"} and "/some/base.pth" in made.not_mapped["MODEL.WEIGHTS"]
    without = {"MODEL.ROI_HEADS.NUM_CLASSES", "DATASETS.TEST", "OUTPUT_DIR", "VERSION"}
    assert set(made.without_effect) == without


def test_base_training_takes_detector_and_schedule(configs):
    made = convert(configs("base.yaml", BASE_TRAINING.format(weights="data/R-50.pkl")))
    assert (made.notebook, made.source, made.values["split"]) == ("10_base_training", "voc", 2)
    assert made.values["weights"] == "data/R-50.pkl" and made.values["pretraining"] is None
    detector = DetectorParams.model_validate(made.values["detector"])
    assert (detector.block, detector.stages, detector.res5_blocks) == ("bottleneck", (3, 4, 6), 3)
    assert (detector.stem_width, detector.res2_width, detector.res5_width) == (64, 256, 2048)
    assert (detector.norm, detector.stride_in_1x1, detector.freeze_at) == ("FrozenBN", True, 3)
    assert (detector.rpn_pre_nms_train, detector.rpn_pre_nms_test) == (12000, 5000)
    assert (detector.rpn_post_nms_train, detector.rpn_post_nms_test) == (2000, 900)
    assert (detector.rpn_gradient_scale, detector.roi_gradient_scale, detector.cls_dropout) == (
        0.0,
        0.75,
        0.0,
    )
    assert (detector.image_order, detector.pixel_mean[0], detector.pixel_std[0]) == ("BGR", 103.53, 1.0)
    assert (detector.min_size, detector.max_size) == ((600, 700, 800), 1333)
    assert made.values["solver"]["warmup"] == 1000 and made.values["solver"]["milestones"] == [10, 13]
    assert not named(made)
    assert made.values["score_thresh"] == 0.05


@pytest.mark.parametrize("weights", ["detectron2://MSRA/R-50.pkl", "/Path/to/ImageNet/Pretrain/Weight", ""])
def test_weights_that_are_no_file_are_named_and_never_left_out(configs, weights):
    """Without the key a base training would start from scratch; the file that is taken instead must be there."""
    path = configs("base.yaml", BASE_TRAINING.format(weights=weights))
    made = convert(path)
    assert made.values["weights"] == "data/weights/R-50.pkl" and named(made) == {"MODEL.WEIGHTS"}
    assert "put it there" in made.not_mapped["MODEL.WEIGHTS"]
    made = convert(path, notebook="21_evaluate")
    assert made.values["checkpoint"]["path"] == "data/weights/model_final.pth"
    assert named(made) == {"MODEL.WEIGHTS"}


def test_letters_of_a_loss_that_is_not_trained_are_without_effect(configs):
    made = convert(configs("ce.yaml", FINE_TUNING.replace("bnrl_loss", "cross_entropy")))
    assert made.values["losses"] == ["ce"] and "bnrl" not in made.values
    assert set(BNRL_KEYS.values()) < set(made.without_effect) and named(made) == {"MODEL.WEIGHTS"}


def test_notes_of_one_key_stand_side_by_side(configs):
    text = FINE_TUNING.replace("coco14_trainval_all_5shot_seed3", "voc_2007_trainval_allx_5shot_seedx")
    note = convert(configs("voc.yaml", text)).not_mapped["DATASETS.TRAIN"]
    assert "the split x is no number; split 1 is taken; the seed x is no number; seeds: [0]" in note


def test_evaluation_takes_the_checkpoint_and_the_published_cuts(configs):
    made = convert(configs("gfsod.yaml", FINE_TUNING), notebook="21_evaluate")
    checkpoint = made.values["checkpoint"]
    assert (checkpoint["path"], checkpoint["classes"]) == ("/some/base.pth", "all")
    assert checkpoint["class_order"] == "category_id" and checkpoint["detector"]["res5_width"] == 2048
    assert (made.values["score_thresh"], made.values["max_detections"]) == (0.05, 100)
    assert made.values["cm_clip"]["c"] == 0.6 and not named(made)


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ("MODEL: {ROI_BOX_HEAD: {POOLER_RESOLUTION: 14}}", "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION"),
        ("MODEL: {ROI_HEADS: {NAME: StandardROIHeads}}", "MODEL.ROI_HEADS.NAME"),
        ("MODEL: {ROI_HEADS: {CLS_LOSS_TYPE: focal}}", "MODEL.ROI_HEADS.CLS_LOSS_TYPE"),
        ("MODEL: {RPN: {FREEZE: True}}", "MODEL.RPN.FREEZE"),
        ("MODEL: {RPN: {ENABLE_DECOUPLE: False}}", "MODEL.RPN.ENABLE_DECOUPLE"),
        ("MODEL: {RESNETS: {DEPTH: 18}}", "MODEL.RESNETS.DEPTH"),
        ("MODEL: {RESNETS: {WIDTH_PER_GROUP: 4}}", "MODEL.RESNETS.WIDTH_PER_GROUP"),
        ("MODEL: {RESNETS: {NUM_GROUPS: 32, WIDTH_PER_GROUP: 2}}", "MODEL.RESNETS.NUM_GROUPS"),
        ("MODEL: {ANCHOR_GENERATOR: {OFFSET: 0.5}}", "MODEL.ANCHOR_GENERATOR.OFFSET"),
        ("INPUT: {MIN_SIZE_TEST: 1000}", "INPUT.MIN_SIZE_TEST"),
        ("INPUT: {MAX_SIZE_TEST: 2000}", "INPUT.MAX_SIZE_TEST"),
        ("INPUT: {CROP: {ENABLED: True}}", "INPUT.CROP.ENABLED"),
        ("SOLVER: {LR_SCHEDULER_NAME: WarmupCosineLR}", "SOLVER.LR_SCHEDULER_NAME"),
        ("SOLVER: {WEIGHT_DECAY_BIAS: 0.0}", "SOLVER.WEIGHT_DECAY_BIAS"),
        ("TEST: {PCB_ENABLE: True, PCB_ALPHA: 0.5}", "TEST.PCB_ENABLE"),
        ("TEST: {CMCLIP_UPPER: 0.9}", "TEST.CMCLIP_UPPER"),
        ("TEST: {DETECTIONS_PER_IMAGE: 300}", "TEST.DETECTIONS_PER_IMAGE"),
        ("DATALOADER: {SAMPLER_TRAIN: RepeatFactorTrainingSampler}", "DATALOADER.SAMPLER_TRAIN"),
        ("DATASETS: {TRAIN: \"('coco14_trainval_novel_5shot_seedx',)\"}", "DATASETS.TRAIN"),
        ("SEED: -1", "SEED"),
        ("MODEL: {SOMETHING: {NEW: 3}}", "MODEL.SOMETHING.NEW"),
    ],
)
def test_what_has_no_parameter_is_named(configs, change, key):
    assert named(changed(configs, change)) == {"MODEL.WEIGHTS", key}


def test_every_key_is_mapped_fixed_or_named_once():
    lists = [set(DEFAULTS) | set(LOSS_KEYS), set(FIXED)]
    assert not lists[0] & lists[1]
    starts = [start for group in WITHOUT_EFFECT.values() for start in group]
    doubly = {key for key in lists[0] if any(_is_among(key, (start,)) for start in starts)}
    # of the number of classes nothing is read; BNRL's letters have an effect with its loss alone
    assert doubly == {"MODEL.ROI_HEADS.NUM_CLASSES", *BNRL_KEYS.values()}
    assert len(set(starts)) == len(starts)
    assert set(BASE_KEYS) | HEAD_FIELDS == set(DetectorParams.model_fields) - {"backend"}
    assert set(TRAINING_KEYS) <= {*DEFAULTS, *FIXED, "SOLVER.WEIGHT_DECAY_BIAS"}


def changed(configs, change: str, **options):
    """The fine-tuning config with a few values changed, converted."""
    configs("fine.yaml", FINE_TUNING)
    values = yaml.safe_load(change) | {"_BASE_": "fine.yaml"}
    return convert(configs("changed.yaml", yaml.safe_dump(values)), **options)


@pytest.mark.parametrize(
    ("change", "key", "words"),
    [
        (
            "MODEL: {RESNETS: {DEPTH: 50}}",
            "MODEL.RESNETS.DEPTH",
            r"stages \[3, 4, 6\]; the base model, params/coco",
        ),
        ("MODEL: {RESNETS: {STRIDE_IN_1X1: False}}", "MODEL.RESNETS.STRIDE_IN_1X1", "False; .* has True"),
        ("MODEL: {RESNETS: {STEM_OUT_CHANNELS: 32}}", "MODEL.RESNETS.STEM_OUT_CHANNELS", "stem_width 32"),
        (
            "{MODEL: {RESNETS: {NORM: GN}}, SOLVER: {WEIGHT_DECAY_NORM: 0.0001}}",
            "MODEL.RESNETS.NORM",
            "FrozenBN",
        ),
        ("MODEL: {PIXEL_MEAN: [1.0, 2.0, 3.0]}", "MODEL.PIXEL_MEAN", "103.53"),
        ("MODEL: {PIXEL_STD: [57.0, 57.0, 58.0]}", "MODEL.PIXEL_STD", "57.0"),
        ("INPUT: {FORMAT: RGB}", "INPUT.FORMAT", "'RGB'; .* has 'BGR'"),
        ("INPUT: {MIN_SIZE_TRAIN: [400, 800]}", "INPUT.MIN_SIZE_TRAIN", "400, 800"),
        ("INPUT: {MIN_SIZE_TEST: 700}", "INPUT.MIN_SIZE_TEST", "700; .* has 800"),
        ("INPUT: {MAX_SIZE_TRAIN: 700, MAX_SIZE_TEST: 700}", "INPUT.MAX_SIZE_TRAIN", "max_size 700"),
        ("MODEL: {BACKBONE: {FREEZE_AT: 1}}", "MODEL.BACKBONE.FREEZE_AT", "freeze_at 1"),
        ("MODEL: {RPN: {BACKWARD_SCALE: 0.5}}", "MODEL.RPN.BACKWARD_SCALE", "0.5; .* has 0.0"),
        ("MODEL: {RPN: {POST_NMS_TOPK_TEST: 300}}", "MODEL.RPN.POST_NMS_TOPK_TEST", "300; .* has 900"),
        ("MODEL: {RPN: {PRE_NMS_TOPK_TEST: 1000}}", "MODEL.RPN.PRE_NMS_TOPK_TEST", "1000; .* has 5000"),
        ("MODEL: {RPN: {PRE_NMS_TOPK_TRAIN: 100}}", "MODEL.RPN.PRE_NMS_TOPK_TRAIN", "100; .* has 12000"),
        ("MODEL: {RPN: {BATCH_SIZE_PER_IMAGE: 64}}", "MODEL.RPN.BATCH_SIZE_PER_IMAGE", "64; .* has 256"),
        ("MODEL: {ROI_HEADS: {POSITIVE_FRACTION: 0.5}}", "MODEL.ROI_HEADS.POSITIVE_FRACTION", "has 0.25"),
        (
            "MODEL: {ROI_BOX_HEAD: {CLS_AGNOSTIC_BBOX_REG: True}}",
            "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG",
            "True",
        ),
        ("MODEL: {ANCHOR_GENERATOR: {SIZES: [[16, 32]]}}", "MODEL.ANCHOR_GENERATOR.SIZES", "16.0, 32.0"),
        ("MODEL: {ANCHOR_GENERATOR: {ASPECT_RATIOS: [[1]]}}", "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS", "1.0"),
    ],
)
def test_fine_tuning_names_what_its_base_model_has_otherwise(configs, change, key, words):
    made = changed(configs, change)
    assert named(made) == {"MODEL.WEIGHTS", key}
    assert re.search(words, made.not_mapped[key])


def test_a_default_that_the_base_model_does_not_have_is_named(configs):
    made = convert(configs("fine.yaml", FINE_TUNING.replace("RESNETS: {DEPTH: 101}", "RESNETS: {}")))
    assert "MODEL.RESNETS.DEPTH" in made.not_mapped  # R-50 without a word


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ("MODEL: {ROI_HEADS: {NMS_THRESH_TEST: 0.3}}", "MODEL.ROI_HEADS.NMS_THRESH_TEST"),
        ("MODEL: {ROI_HEADS: {OUTPUT_LAYER: CosineSimOutputLayers}}", "MODEL.ROI_HEADS.OUTPUT_LAYER"),
        ("MODEL: {ROI_HEADS: {NAME: StandardROIHeads}}", "MODEL.ROI_HEADS.NAME"),
        ("MODEL: {ROI_BOX_HEAD: {POOLER_RESOLUTION: 14}}", "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION"),
        ("MODEL: {ROI_BOX_HEAD: {POOLER_TYPE: ROIAlign}}", "MODEL.ROI_BOX_HEAD.POOLER_TYPE"),
        ("MODEL: {ROI_BOX_HEAD: {USE_SIGMOID_CE: True}}", "MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE"),
        ("MODEL: {ROI_HEADS: {OUTPUT_LAYR: x}}", "MODEL.ROI_HEADS.OUTPUT_LAYR"),
        ("SOLVER: {STEP: 3}", "SOLVER.STEP"),
        ("MODEL: {ANCHOR_GENERATOR: {SIZES: [[16], [32]]}}", "MODEL.ANCHOR_GENERATOR.SIZES"),
        ("MODEL: {ANCHOR_GENERATOR: {ASPECT_RATIOS: [[1], [2]]}}", "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS"),
        ("VERSIONX: 3", "VERSIONX"),
        ("OUTPUT_DIRX: here", "OUTPUT_DIRX"),
        ("TEST: {PCB_ALFA: 0.5}", "TEST.PCB_ALFA"),
    ],
)
def test_evaluation_names_every_key_of_testing_and_every_unknown_one(configs, change, key):
    made = changed(configs, change, notebook="21_evaluate")
    assert named(made) == {key} and key not in made.without_effect


def test_evaluation_has_no_use_for_keys_of_training(configs):
    change = "{SOLVER: {LR_SCHEDULER_NAME: X, WEIGHT_DECAY_NORM: 1.0}, MODEL: {ROI_HEADS: {PROPOSAL_APPEND_GT: False}}}"
    made = changed(configs, change, notebook="21_evaluate")
    training = {key for key, why in made.without_effect.items() if why == "of training alone"}
    assert not named(made) and {"MODEL.ROI_HEADS.FREEZE_FEAT", "MODEL.ROI_HEADS.ALPHA"} < training
    keys = {"SOLVER.LR_SCHEDULER_NAME", "SOLVER.WEIGHT_DECAY_NORM", "MODEL.ROI_HEADS.PROPOSAL_APPEND_GT"}
    assert keys < training


def test_training_sets_are_one_and_of_both_years(configs):
    text = BASE_TRAINING.format(weights="data/R-50.pkl")
    for wrong in (
        "'voc_2012_trainval_base3'",
        "'coco14_trainval_base'",
        "'voc_2012_trainval_novel2_5shot_seed0'",
    ):
        with pytest.raises(ParamsError, match="expected one set, or the same one of both VOC years"):
            convert(configs("base.yaml", text.replace("'voc_2012_trainval_base2'", wrong)))
    made = convert(configs("base.yaml", text.replace("'voc_2012_trainval_base2'", "")))
    assert "both years" in made.not_mapped["DATASETS.TRAIN"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("SEED: abc", "SEED is 'abc'; expected a whole number"),
        ("SEED: 1.5", "SEED is 1.5; expected a whole number"),
        ("SOLVER: {MAX_ITER: x}", "SOLVER.MAX_ITER is 'x'; expected a whole number"),
        ("SOLVER: {MAX_ITER: True}", "SOLVER.MAX_ITER is True; expected a whole number"),
        ("SOLVER: {BASE_LR: [1]}", "SOLVER.BASE_LR is .*; expected a number"),
        ("SOLVER: {STEPS: 3}", "SOLVER.STEPS is 3; expected a list, each item a whole number"),
        ("SOLVER: {AMP: {ENABLED: 1}}", "SOLVER.AMP.ENABLED is 1; expected True or False"),
        ("DATASETS: {TRAIN: 3}", "DATASETS.TRAIN is 3; expected a list"),
        (
            "MODEL: {ANCHOR_GENERATOR: {SIZES: 3}}",
            "SIZES is 3; expected a list, each item a list, each item a number",
        ),
        ("MODEL: {ANCHOR_GENERATOR: {SIZES: [3]}}", "MODEL.ANCHOR_GENERATOR.SIZES is .3.; expected a list"),
        ("MODEL: {PIXEL_MEAN: null}", "MODEL.PIXEL_MEAN is None; expected a list, each item a number"),
        ("MODEL: {PIXEL_MEAN: [[1], 2, 3]}", "MODEL.PIXEL_MEAN is .*; expected a list, each item a number"),
        ("MODEL: {ROI_HEADS: {CLS_LOSS_TYPE: [x]}}", "MODEL.ROI_HEADS.CLS_LOSS_TYPE is .'x'.; expected text"),
    ],
)
def test_values_of_the_wrong_kind_are_refused_by_name(configs, change, message):
    with pytest.raises(ParamsError, match=message):
        changed(configs, change)


def test_no_row_of_anchors_is_an_empty_row(configs):
    made = changed(configs, "MODEL: {ANCHOR_GENERATOR: {SIZES: []}}")
    assert "MODEL.ANCHOR_GENERATOR.SIZES" in made.not_mapped


def test_a_note_stands_once_and_seed_and_losses_have_theirs(configs):
    made = changed(configs, "{SEED: -1, MODEL: {ROI_HEADS: {ENABLE_DECOUPLE: False}}}")
    assert made.not_mapped["MODEL.ROI_HEADS.ENABLE_DECOUPLE"].count("affine layer") == 1
    assert "not repeatable there; here seed 0" in made.not_mapped["SEED"] and "seed" not in made.values
    assert changed(configs, "SEED: 7").values["seed"] == 7
    made = changed(configs, "MODEL: {ROI_BOX_HEAD: {CLS_LOSS_TYPE: cross_entropy}}")
    assert "which is taken" in made.not_mapped["MODEL.ROI_BOX_HEAD.CLS_LOSS_TYPE"]


@pytest.mark.parametrize(
    ("norm", "decay", "is_named"),
    [("FrozenBN", 0.5, False), ("BN", 0.0, True), ("GN", 0.0, True), ("BN", 1e-4, False)],
)
def test_decay_of_norms_matters_where_norms_are_trained(configs, norm, decay, is_named):
    change = {"MODEL": {"RESNETS": {"NORM": norm}}, "SOLVER": {"WEIGHT_DECAY_NORM": decay}}
    made = changed(configs, yaml.safe_dump(change))
    key = "SOLVER.WEIGHT_DECAY_NORM"
    assert (key in made.not_mapped) == is_named
    assert ("frozen" in made.without_effect.get(key, "")) == (norm == "FrozenBN")


def test_head_of_the_file_says_how_the_released_code_starts_a_head(configs):
    path, words = configs("gfsod.yaml", FINE_TUNING), "head: {start: released}"
    assert words in text_of(convert(path), path)
    for old, new in (("_all_", "_novel_"), ("CMCLIP_ENABLE: True", "CMCLIP_ENABLE: False")):
        text = FINE_TUNING.replace(old, new).replace("bnrl_loss", "cross_entropy")
        path = configs("other.yaml", text)
        assert words not in text_of(convert(path), path)


def test_bases_are_laid_under_and_may_not_go_in_circles(configs):
    values = flat_keys(read_config(configs("gfsod.yaml", FINE_TUNING)))
    assert values["INPUT.MIN_SIZE_TRAIN"] == (600, 700, 800) and values["SOLVER.STEPS"] == (4800,)
    assert values["SOLVER.WEIGHT_DECAY"] == 1e-4 and "_BASE_" not in values
    with pytest.raises(ParamsError, match="back to the file itself"):
        read_config(configs("circle.yaml", "_BASE_: circle.yaml\n"))
    with pytest.raises(ParamsError, match="no.yaml, which .*a.yaml names as _BASE_"):
        read_config(configs("a.yaml", "_BASE_: no.yaml\n"))
    with pytest.raises(ParamsError, match="the path of a file here"):
        read_config(configs("a.yaml", "_BASE_: 'https://example.org/x.yaml'\n"))
    with pytest.raises(ParamsError, match="not allowed"):
        read_config(configs("a.yaml", "X: !!python/object/apply:os.system [echo]\n"))
    with pytest.raises(ParamsError, match="DATASETS.TRAIN is .*my_birds.*Expected names such as"):
        convert(configs("a.yaml", "DATASETS:\n  TRAIN: ('my_birds',)\n"))
    with pytest.raises(ParamsError, match="not what 10_base_training does"):
        convert(configs("gfsod.yaml", FINE_TUNING), notebook="10_base_training")


def test_one_command_writes_a_valid_params_file(configs, project, capsys):
    path = configs("gfsod_5shot.yaml", FINE_TUNING)
    assert main([str(path)]) == 0
    target = project / "params" / "coco" / "20_fine_tuning.gfsod_5shot.yaml"
    printed = capsys.readouterr().out
    assert "NOT MAPPED MODEL.WEIGHTS" in printed and "OUTPUT_DIR: changes no number" in printed
    assert "params/coco/20_fine_tuning.gfsod_5shot.yaml: written; 1 key of " in printed
    text = target.read_text()
    assert "# NOT MAPPED MODEL.WEIGHTS" in text and "trains under this name is ce_bg" in text
    params = load_run(target).params
    assert (params.profile, params.setting, params.shots, params.head.roi_gradient_scale) == (
        "coco",
        "gfsod",
        5,
        0.02,
    )
    assert main([str(path)]) == 2 and "is there already" in capsys.readouterr().err
    assert main([str(path), "--force"]) == 0
    assert main([str(path), "--notebook", "21_evaluate"]) == 0
    assert load_run(project / "params/coco/21_evaluate.gfsod_5shot.yaml").params.checkpoint.classes == "all"


def test_a_default_that_is_not_mapped_is_marked_and_not_counted(configs, capsys):
    text = FINE_TUNING.replace("RPN: {ENABLE_DECOUPLE: True, BACKWARD_SCALE: 0.0, FREEZE: False}", "RPN: {}")
    assert main([str(configs("gfsod_5shot.yaml", text))]) == 0
    printed = capsys.readouterr().out
    marked = [line for line in printed.splitlines() if line.endswith("(detectron2's or DeFRCN's default)")]
    assert [line.split(":")[0] for line in marked] == ["NOT MAPPED MODEL.RPN.ENABLE_DECOUPLE"]
    assert "NOT MAPPED MODEL.WEIGHTS" in printed and "written; 1 key of " in printed


def test_a_refused_loss_or_freezing_is_named_by_the_key_of_the_file(configs):
    at_box_head = FINE_TUNING.replace(
        "    CLS_LOSS_TYPE : 'bnrl_loss'\n", "  ROI_BOX_HEAD: {CLS_LOSS_TYPE: focal}\n"
    )
    at_box_head = at_box_head.replace(
        "    ALPHA : 0.3\n    EPSILON : 1.5\n    GAMMA : 3.0\n    BG_WEIGHT : 0.1\n", ""
    )
    assert "MODEL.ROI_BOX_HEAD.CLS_LOSS_TYPE" in named(convert(configs("loss.yaml", at_box_head)))
    frozen = FINE_TUNING.replace("FREEZE: False", "FREEZE: True", 1).replace(", FREEZE: False}", "}")
    made = convert(configs("frozen.yaml", frozen.replace("FREEZE_FEAT: True", "FREEZE_FEAT: False")))
    assert "MODEL.BACKBONE.FREEZE" in named(made) and "MODEL.RPN.FREEZE" not in named(made)


def test_what_the_models_refuse_is_not_written(configs, project, capsys):
    path = configs("bad.yaml", FINE_TUNING.replace("5shot", "7shot"))
    assert main([str(path)]) == 2
    assert "shots is 7" in capsys.readouterr().err
    assert not (project / "params" / "coco" / "20_fine_tuning.bad.yaml").exists()
    assert main([str(path), "--into", str(project)]) == 2 and "shared.yaml" in capsys.readouterr().err


@pytest.mark.skipif(REFERENCE is None, reason="RISF_REFERENCE does not name the folder of reference values")
def test_whole_config_of_the_released_code_is_accounted_for():
    """All keys of a config that the released code wrote: the detector is known, and what is named has no parameter."""
    made = convert(Path(REFERENCE) / "model_r101_quarter_cfg.yaml")
    values = made.values
    assert (values["setting"], values["shots"], values["seeds"]) == ("fsod", 10, [0])
    assert values["head"]["roi_gradient_scale"] == 0.01 and values["losses"] == ["bnrl", "ce_bg"]
    # of a quarter of the width, and not as the base model of params/coco is
    expected = {"MODEL.WEIGHTS", "SEED", "MODEL.RESNETS.STEM_OUT_CHANNELS", "MODEL.RESNETS.RES2_OUT_CHANNELS"}
    assert set(made.not_mapped) == expected
    config = convert_config.Config(flat_keys(read_config(Path(REFERENCE) / "model_r101_quarter_cfg.yaml")))
    detector = DetectorParams.model_validate(convert_config.detector(config))
    assert (detector.stem_width, detector.res2_width, detector.res5_width, detector.stages) == (
        16,
        64,
        512,
        (3, 4, 23),
    )


@pytest.mark.skipif(
    CONFIGS is None, reason="RISF_CONFIGS names no folder with the configs of DeFRCN and RISF"
)
def test_published_configs_become_the_profiles(tmp_path, monkeypatch):
    """Each gives the numbers of params/coco and params/voc, but for its one seed, loss and re-scoring."""
    shutil.copytree(ROOT / "params", tmp_path / "params")
    (tmp_path / "notebooks").symlink_to(ROOT / "notebooks")
    monkeypatch.setenv("RISF_ROOT", str(tmp_path))
    configs = [path for path in sorted(Path(CONFIGS).rglob("*.yaml")) if path.name != "Base-RCNN.yaml"]
    assert len(configs) >= 32
    for path in configs:
        made = convert(path)
        folder = tmp_path / "params" / made.source
        found = load_run(write_params(made, path, folder, force=True)).params
        assert named(made) <= {"MODEL.WEIGHTS", "DATASETS.TRAIN", "TEST.PCB_ENABLE"}, path
        profile = folder / f"{made.notebook}.yaml"
        own, steps = {"split", "seeds", "losses", "base", "clip", "cm_clip", "solver"}, set()
        if made.notebook == "20_fine_tuning":
            profile = folder / f"{made.notebook}.{found.setting}_{found.shots}shot.yaml"
            assert found.clip in (None, load_run(profile).params.clip)
        elif "RISF" not in str(path):
            steps = {"checkpoint_every"}  # DeFRCN's base training keeps none on the way
        expected = load_run(profile).params
        assert found.solver.model_dump(exclude=steps) == expected.solver.model_dump(exclude=steps), path
        assert found.model_dump(exclude=own) == expected.model_dump(exclude=own), path
