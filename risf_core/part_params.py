"""The parts that parameters of notebooks are made of: detector, solver, head, loss, CLIP and re-scoring, other runs."""

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from risf_core.data_params import Count, Many, Positive, Share, Strictly
from risf_core.errors import ParamsError
from risf_core.schedules import STEPS, rescale

LabelSpace = Literal["novel+background", "novel+base+background"]
Precision = Literal["auto", "fp32", "bf16"]


class RunRef(Strictly):
    """One run, or a grid of runs: a params file and the values that replace those of the file.

    Written as ``{params: params/mini/20_fine_tuning.yaml, set: {shots: [1, 5]}}`` or as the path alone. A list given
    to a parameter that is not a list makes one run for each of its items.
    """

    params: str = Field(min_length=1, description="params file, relative to the repository")
    set: dict[str, Any] = Field(default={}, description="replace those of the file; may be dotted")

    @model_validator(mode="before")
    @classmethod
    def _from_path(cls, value: Any) -> Any:
        return {"params": value} if isinstance(value, str) else value


def _one_or_many(value: Any) -> Any:
    return value if isinstance(value, (list, tuple)) else (value,)


RunRefs = Annotated[Many[RunRef], BeforeValidator(_one_or_many)]


class DetectorParams(Strictly):
    """C4 Faster R-CNN with gradient-decoupled layers; the defaults are the mini detector's."""

    backend: Literal["risf", "detectron2"] = Field("risf", description="whose parts; detectron2 is optional")
    block: Literal["basic", "bottleneck"] = Field("basic", description="residual block of res2 to res5")
    stages: Many[Count] = Field(
        (1, 2, 2), min_length=3, max_length=3, description="blocks of res2, res3, res4"
    )
    stem: Literal["deep", "resnet"] = Field("deep", description="two 3x3 / 2 convs; 7x7 / 2, max-pool")
    stem_width: int = Field(32, ge=4, description="channels of the stem")
    res2_width: int = Field(32, ge=4, description="output channels of res2; doubled by each stage")
    norm: Literal["BN", "FrozenBN", "GN"] = Field("BN", description="normalisation layers")
    dilate_res4: bool = Field(True, description="res4 with stride 1 and dilation 2 (stride 8 in all)")
    res5_blocks: Count = Field(2, description="blocks of res5, the box head")
    res5_width: int = Field(192, ge=4, description="output channels of res5")
    stride_in_1x1: bool = Field(False, description="of a bottleneck, for MSRA weights")
    freeze_at: int = Field(0, ge=0, le=4, description="frozen from the stem on; 3: stem, res2, res3")
    anchor_sizes: Many[Positive] = Field((24.0, 42.0, 72.0), min_length=1, description="pixels")
    anchor_ratios: Many[Positive] = Field((0.5, 1.0, 2.0), min_length=1, description="h / w")
    rpn_pre_nms_train: Count = Field(600, description="proposals kept before NMS in training")
    rpn_pre_nms_test: Count = Field(600, description="proposals kept before NMS in testing")
    rpn_post_nms_train: Count = Field(300, description="proposals kept after NMS in training")
    rpn_post_nms_test: Count = Field(100, description="proposals kept after NMS in testing")
    rpn_batch: Count = Field(64, description="anchors an image in the RPN's loss")
    roi_batch: Count = Field(16, description="RoIs an image in the box head's loss")
    roi_positive_fraction: Share = Field(0.25, description="largest share of positive RoIs")
    rpn_gradient_scale: Share = Field(0.0, description="from the RPN to the backbone")
    roi_gradient_scale: Share = Field(0.75, description="from the head to the backbone")
    cls_dropout: float = Field(0.5, ge=0, lt=1, description="dropout before the classifier (published: 0.8)")
    pixel_mean: Many[float] = Field((123.675, 116.28, 103.53), min_length=3, max_length=3)
    pixel_std: Many[Positive] = Field((58.395, 57.12, 57.375), min_length=3, max_length=3)
    image_order: Literal["RGB", "BGR"] = Field("RGB", description="order that mean and weights expect")
    min_size: Many[Count] | None = Field(None, description="shorter side, drawn in training; null: as is")
    max_size: Count = Field(1333, description="longest side after resizing")
    class_agnostic_boxes: bool = Field(False, description="one box regression for all classes")


class SolverParams(Strictly):
    """SGD and its schedule."""

    iterations: Count = Field(1200, description="steps")
    batch_size: Count = Field(8, description="images a step")
    group_by_aspect: bool = Field(
        False,
        description="wide images and others in steps of their own, as detectron2 has them: less padding",
    )
    lr: float = Field(0.02, gt=0, le=10, description="peak learning rate")
    momentum: float = Field(0.9, ge=0, lt=1)
    nesterov: bool = True
    weight_decay: float = Field(1.0e-4, ge=0, le=1)
    schedule: Literal["onecycle", "multistep", "constant"] = "onecycle"
    milestones: Many[Count] = Field((), description="steps at which gamma is applied")
    gamma: float = Field(0.1, gt=0, le=1, description="factor at each milestone")
    warmup: int = Field(0, ge=0, description="linear warm-up steps")
    clip_norm: float | None = Field(10.0, gt=0, description="largest norm of the gradient; null: unclipped")
    precision: Precision = Field(
        "auto", description="auto: bf16 where the processor computes in it, else fp32"
    )
    checkpoint_every: int = Field(0, ge=0, description="steps between checkpoints; 0: none but the last")
    reference_batch: Count | None = Field(
        None,
        description="batch size that lr and all steps are given for; batch_size may differ: they follow it",
    )

    @model_validator(mode="before")
    @classmethod
    def _follow_batch_size(cls, values: Any) -> Any:
        """Rescale a schedule that is given for another batch size; what is recorded is what runs."""
        if not isinstance(values, dict) or values.get("reference_batch") is None:
            return values
        defaults = {name: info.default for name, info in cls.model_fields.items()}
        given = {name: values.get(name, defaults[name]) for name in (*STEPS, "lr", "milestones")}
        sizes = (values["reference_batch"], values.get("batch_size", defaults["batch_size"]))
        milestones = given["milestones"] if isinstance(given["milestones"], list | tuple) else [None]
        whole = [*sizes, *(given[name] for name in STEPS), *milestones]
        if not all(type(number) is int and number >= 0 for number in whole) or min(sizes) < 1:
            return values  # the fields refuse it
        if type(given["lr"]) not in (int, float):
            return values
        rescaled = rescale(given | {"batch_size": sizes[0]}, batch_size=sizes[1])
        return values | rescaled | {"reference_batch": sizes[1]}

    @model_validator(mode="after")
    def _milestones_need_multistep(self) -> Self:
        if bool(self.milestones) != (self.schedule == "multistep"):
            raise ValueError("milestones belong to schedule: multistep, and that schedule needs them")
        return self


class ClipSource(Strictly):
    """A CLIP: trained here (`run`), or one of open_clip's (`model`, `pretrained`)."""

    run: RunRef | None = Field(None, description="run of 12_tiny_clip")
    model: str | None = Field(None, description="open_clip's name of a model, or local-dir:FOLDER")
    pretrained: str | None = Field(None, description="open_clip's tag, a file or TAG=FILE; null: random")
    path_only: bool = Field(False, description="says that weights are random and numbers mean nothing")

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.run is None) == (self.model is None):
            raise ValueError("give either run or model")
        named = self.model is not None and not self.model.startswith(("local-dir:", "hf-hub:"))
        if named and self.pretrained is None and not self.path_only:
            raise ValueError(f"{self.model!r} without pretrained has random weights; say path_only: true")
        return self


class HeadParams(Strictly):
    """What fine-tuning changes of the base model's detector parameters, and how the new head starts."""

    start: Literal["copied", "released"] = Field(
        "copied",
        description="gfsod: base rows of the base model; released: all fresh, its surgery is missing",
    )
    num_proposals: Count = Field(100, description="proposals an image in fine-tuning (rpn_post_nms_train)")
    roi_batch: Count = Field(64, description="RoIs an image in the box head's loss")
    cls_dropout: float = Field(0.5, ge=0, lt=1, description="dropout before the classifier (published: 0.8)")
    roi_gradient_scale: Share = Field(0.01, description="from the head to the backbone")


class BnrlParams(Strictly):
    """The loss's hyper-parameters (paper's letters)."""

    alpha: Share = Field(0.2, description="weight of the positive term")
    beta: float | None = Field(None, ge=0, le=10, description="weight of the negative term; null: 1 - alpha")
    gamma: float = Field(4.0, ge=0, le=20, description="focusing exponent")
    epsilon: float = Field(1.0, ge=0, le=20)
    background_weight: float = Field(0.2, ge=0, le=10, description="of background RoIs, also in ce_bg")


def check_template(template: str) -> str:
    """ParamsError if a template is not a text with one place for the name."""
    mark = "\0"
    try:
        count = template.format(mark).count(mark)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError):
        count = 0
    if count != 1:
        raise ParamsError(
            f"templates: {template!r}, but expected a text with {{}} once, for the class name, and no other braces."
        )
    return template


Templates = Annotated[Many[str], Field(min_length=1)]


FusionName = Literal["arithmetic", "geometric"]
Temperature = Annotated[float, Field(gt=0, le=1000)] | Literal["learned"]


class CmClipParams(Strictly):
    """Re-scoring by image-text similarity."""

    c: Share = Field(0.7, description="weight of the detector's score")
    temperature: Temperature = Field(
        100.0, description="factor of the cosines in the softmax; learned: the CLIP's own"
    )
    templates: Templates | Literal["published", "simple", "openai"] = Field(
        ("a photo of {}",), description="{} is the class name; or the name of a set of 1, 7 or 80"
    )
    score_thresh: Share = Field(0.05, description="detections at or below it are not re-scored")
    preprocess: Literal["clip", "released"] = Field("clip", description="released: BGR/255")
    resize: Literal["roi_align", "bicubic", "bicubic_tensor"] = Field(
        "roi_align", description="as published; bicubic: as CLIP itself, by PIL or on the device"
    )
    crop: Literal["squash", "shortest", "longest"] = Field("squash", description="others need bicubic")
    path: Literal["crop", "dense"] = Field("crop", description="dense: one forward pass an image, RoIAlign")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "fp32", description="of CLIP's image tower; auto: the fastest here, which the record names"
    )
    dense_scale: float = Field(1.5, gt=0, le=8, description="dense: sides of the image in CLIP over its own")
    dense_stages: int = Field(2, ge=0, le=4, description="dense: stages of the tower that all boxes share")
    memory_budget_mb: float = Field(
        1024,
        gt=0,
        allow_inf_nan=False,
        description="MiB by which crops raise the peak above the loaded CLIP and image",
    )
    share: Literal["none", "iou", "proposal", "object"] = Field(
        "none", description="whose crop serves other boxes; all but none are approximations"
    )
    budget: Count | None = Field(
        None, description="most crops of an image; boxes without one keep their score; null: all"
    )
    label_spaces: Many[LabelSpace] = Field(("novel+background", "novel+base+background"), min_length=1)
    fusion: FusionName = Field("arithmetic", description="of the two scores; geometric: an extension")

    def crop_options(self) -> dict[str, str]:
        """How a crop becomes CLIP's input."""
        return {"preprocess": self.preprocess, "resize": self.resize, "crop": self.crop}

    def engine_options(self) -> dict[str, Any]:
        """How CLIP computes."""
        names = ("path", "dense_scale", "dense_stages", "precision", "memory_budget_mb")
        return {name: getattr(self, name) for name in names}

    @property
    def not_encoded(self) -> str:
        """What becomes of a box to re-score without a crop: a budget leaves boxes out, else there is none."""
        return "refuse" if self.budget is None else "keep"

    def crop_choice(self) -> dict[str, Any]:
        """Which boxes get a crop."""
        return {"share": self.share, "budget": self.budget}

    @model_validator(mode="after")
    def _pil_alone_keeps_the_aspect(self) -> Self:
        if self.crop != "squash" and self.resize != "bicubic":
            raise ValueError(f"crop: {self.crop} needs resize: bicubic")
        return self

    @model_validator(mode="after")
    def _templates_have_a_place(self) -> Self:
        given = () if isinstance(self.templates, str) else self.templates
        for template in given:
            try:
                check_template(template)
            except ParamsError as error:
                raise ValueError(str(error)) from error
        return self
