"""Every parameter and its default: one strict model per notebook.

A wrong name, type or value is refused before a kernel starts (``risf_core.run``) and, by the same model, in a
notebook that is opened by hand. This file imports no torch, so that a refusal takes well under two seconds.
"""

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, ValidationError, model_validator

from risf_core.data_params import CocoData as CocoData
from risf_core.data_params import (
    Count,
    Data,
    Many,
    NotNegative,
    PictogramData,
    Seed,
    Share,
    SplitNumber,
    Strictly,
)
from risf_core.data_params import VocData as VocData
from risf_core.data_params import XmlData as XmlData
from risf_core.errors import ParamsError
from risf_core.part_params import BnrlParams as BnrlParams
from risf_core.part_params import ClipSource as ClipSource
from risf_core.part_params import CmClipParams as CmClipParams
from risf_core.part_params import DetectorParams as DetectorParams
from risf_core.part_params import FusionName as FusionName
from risf_core.part_params import HeadParams as HeadParams
from risf_core.part_params import LabelSpace as LabelSpace
from risf_core.part_params import Precision as Precision
from risf_core.part_params import RunRef as RunRef
from risf_core.part_params import RunRefs as RunRefs
from risf_core.part_params import SolverParams as SolverParams
from risf_core.part_params import Temperature as Temperature
from risf_core.part_params import Templates as Templates
from risf_core.runs.notebook_cells import names_in_force, names_in_parameters_cell
from risf_core.runs.yaml_files import explain, nearest, project_path

LOSSES = ("bnrl", "ce", "ce_bg")
ARMS = ("kshot", "missing", "full", "clean")
Arm = Literal["kshot", "missing", "full", "clean"]
MetricName = Annotated[str, Field(pattern=r"^[bn]?AP(50|75)?$")]
ScoreThresh = Annotated[
    float, Field(ge=0, le=1, description="detections at or below it do not count; published: 0.05")
]


class NotebookParams(Strictly):
    """What all notebooks share."""

    notebook: ClassVar[str]  # stem of the notebook's file
    needs_torch: ClassVar[bool] = True  # whether start_run sets torch's threads and seeds
    after_all: ClassVar[bool] = False  # whether the run reads all current records of its profile
    profile: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]*$", description="results go to results/<profile>/")
    data: Data = Field(PictogramData(), description="data set")
    seed: Seed = Field(0, description="seed of weights, order and sampling")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto takes a GPU where there is one")
    num_threads: int = Field(1, ge=1, le=256, description="1 repeats numbers exactly")

    def label(self) -> str:
        """Readable part of the run's name, made of [a-z0-9_-]."""
        return self.notebook.split("_", 1)[1]

    def user_files(self) -> tuple[str, ...]:
        """Paths of the user's own code that the run executes; their content is part of the run's identity."""
        return ()

    def data_files(self) -> tuple[str, ...]:
        """Annotation files, and folders of them, that the run reads; their content is part of its state."""
        return self.data.files()

    @classmethod
    def from_notebook(cls, namespace: dict[str, Any]) -> Self:
        """Validate the names that a notebook's `parameters` cell left in `namespace` (``globals()``).

        Raises:
            ParamsError: If the cell holds an unknown name, or a value of a wrong type or range.
        """
        for name in names_in_parameters_cell(namespace, cls.model_fields):
            if name not in cls.model_fields:
                known = nearest(name, cls.model_fields)
                raise ParamsError(f"{cls.notebook}: unknown parameter {name!r} (nearest: {known!r}).")
        try:
            known = names_in_force(namespace) & namespace.keys()
            return cls.model_validate({key: namespace[key] for key in cls.model_fields if key in known})
        except ValidationError as error:
            raise ParamsError(f"{cls.notebook}: {explain(error, cls)}") from None


class CheckSetupParams(NotebookParams):
    """00_check_setup: versions, device, data."""

    notebook: ClassVar[str] = "00_check_setup"
    needs_torch: ClassVar[bool] = False


class PictogramWorldParams(NotebookParams):
    """02_pictogram_world: the embedded data set."""

    notebook: ClassVar[str] = "02_pictogram_world"
    needs_torch: ClassVar[bool] = False
    split: SplitNumber = Field(1, description="split whose K-shot images are shown")
    shots: Count = Field(3, description="K of the images shown")
    few_shot_seed: Seed = Field(0, description="draw that is shown")


class BaseTrainingParams(NotebookParams):
    """10_base_training: pretraining on disjoint concepts, then the base classes."""

    notebook: ClassVar[str] = "10_base_training"
    split: SplitNumber = Field(1, description="base/novel split")
    detector: DetectorParams = DetectorParams()
    pretraining: SolverParams | None = Field(
        SolverParams(iterations=900, batch_size=64, lr=0.05, checkpoint_every=300),
        description="null: no training on crops before",
    )
    weights: str | None = Field(
        None, min_length=1, description="file to start from: an ImageNet backbone, or a whole detector"
    )
    solver: SolverParams | None = Field(
        SolverParams(iterations=1400, checkpoint_every=200),
        description="null: the detector of `weights` is the base model as it is",
    )
    score_thresh: ScoreThresh = 0.05

    def label(self) -> str:
        return f"base_training-split{self.split}"

    def user_files(self) -> tuple[str, ...]:
        return (self.weights,) if self.weights else ()

    @model_validator(mode="after")
    def _one_start(self) -> Self:
        if self.weights is not None and self.pretraining is not None:
            raise ValueError("weights are given, so nothing is pretrained; write pretraining: null")
        if self.solver is None and self.weights is None:
            raise ValueError("solver: null takes the base model from weights; give its file")
        return self


class TinyClipParams(NotebookParams):
    """12_tiny_clip: a small CLIP trained on the captioned corpus."""

    notebook: ClassVar[str] = "12_tiny_clip"
    tower: str = Field("risf-tiny-resnet", pattern=r"^[A-Za-z0-9._-]+$", description="open_clip config")
    iterations: Count = Field(700, description="steps")
    batch_size: int = Field(128, ge=2, description="crops a step")
    lr: float = Field(2.0e-3, gt=0, le=1, description="peak learning rate of AdamW")
    weight_decay: float = Field(0.05, ge=0, le=1)
    warmup_fraction: Share = Field(0.3, description="share of the steps in which the rate rises")
    low_res_after: Share = Field(0.25, description="share of steps before crops are blurred")
    precision: Precision = "auto"
    splits: Many[SplitNumber] = Field((1, 2, 3), min_length=1, description="splits scored")

    def label(self) -> str:
        return f"tiny_clip-{self.tower.removeprefix('risf-tiny-').lower()}"


LossName = Annotated[str, Field(description="bnrl, ce, ce_bg or path/to/file.py:function")]


def loss_files(losses: tuple[str, ...]) -> tuple[str, ...]:
    """The files of a user's own losses, each once."""
    return tuple(dict.fromkeys(name.rpartition(":")[0] for name in losses if ":" in name))


def check_losses(losses: tuple[str, ...]) -> None:
    """ValueError for a loss that is neither one of LOSSES nor an existing ``path/to/file.py:function``."""
    for name in losses:
        path, _, function = name.rpartition(":")
        if not path and name not in LOSSES:
            raise ValueError(
                f"unknown loss {name!r} (nearest: {nearest(name, LOSSES)!r}); "
                f"choose from {', '.join(LOSSES)} or path/to/file.py:function"
            )
        if path and not (path.endswith(".py") and function.isidentifier()):
            raise ValueError(f"loss {name!r} is not of the form path/to/file.py:function")
        if path and not project_path(path).is_file():
            raise ValueError(f"loss {name!r}: there is no file {project_path(path)}")


def check_repeats(params: Strictly, *names: str) -> None:
    """ValueError if one of the named parameters holds a value twice."""
    for name in names:
        values = getattr(params, name)
        if len(set(values)) < len(values):
            raise ValueError(f"{name} holds a value twice: {list(values)}")


class FewShotParams(NotebookParams):
    """Which K-shot sets a notebook trains on, and how."""

    split: SplitNumber = Field(1, description="base/novel split")
    shots: Count = Field(5, description="K, boxes per class")
    seeds: Many[Seed] = Field((0, 1, 2, 3, 4), min_length=1, description="draws of K-shot images")
    arms: Many[Arm] = Field(("kshot",), min_length=1, description="which annotations the K-shot images have")
    base: RunRef = Field(description="run of 10_base_training")
    setting: Literal["fsod", "gfsod"] = Field("fsod", description="novel classes alone, or base and novel")
    head: HeadParams = HeadParams()
    solver: SolverParams = SolverParams(iterations=300, lr=0.02, weight_decay=1.0e-3, precision="fp32")
    score_thresh: ScoreThresh = 0.05

    @model_validator(mode="after")
    def _within_data(self) -> Self:
        data, pictograms = self.data, isinstance(self.data, PictogramData)
        num_seeds = data.few_shot_seeds if pictograms else data.num_seeds
        check_repeats(self, "seeds", "arms")
        if self.shots not in data.shots:
            raise ValueError(
                f"shots is {self.shots}, but data.shots is {list(data.shots)}: add {self.shots} to data.shots, "
                "or choose one of these"
            )
        if max(self.seeds) >= num_seeds:
            raise ValueError(f"seeds has {max(self.seeds)}, but the data has seeds 0 to {num_seeds - 1}")
        if pictograms and self.split not in data.few_shot_splits:
            raise ValueError(
                f"split {self.split} is not in data.few_shot_splits {list(data.few_shot_splits)}"
            )
        known = {"kshot", "missing", "full"} if pictograms else {"kshot", "clean"}
        if not set(self.arms) <= known:
            raise ValueError(f"data of source {data.source} has the arms {', '.join(sorted(known))}")
        if "clean" in self.arms and data.source == "coco" and data.annotations is None:
            raise ValueError(
                "arms: clean needs the training images with all their boxes: give data.annotations"
            )
        return self


class FineTuningParams(FewShotParams):
    """20_fine_tuning: K-shot fine-tuning with each loss, with and without CM-CLIP."""

    notebook: ClassVar[str] = "20_fine_tuning"
    losses: Many[LossName] = Field(("ce", "bnrl"), min_length=1, description="names or path.py:function")
    clip: ClipSource | None = Field(None, description="null: no re-scoring")
    bnrl: BnrlParams = BnrlParams()
    cm_clip: CmClipParams = CmClipParams()
    # published: all_but_res5
    trainable: Literal["box_head", "head_and_rpn", "all_but_res5", "all"] = "box_head"
    cached: bool = Field(True, description="train the box head from cached features of frozen layers")
    repeats: int = Field(
        1, ge=1, le=100, description="trainings of each draw; published fsod: seed 0, 10 times"
    )
    keep_weights: bool = Field(False, description="keep each fine-tuned detector, for 21_evaluate")

    def label(self) -> str:
        setting = "-gfsod" if self.setting == "gfsod" else ""
        return f"fine_tuning-split{self.split}-{self.shots}shot{setting}"

    def user_files(self) -> tuple[str, ...]:
        return loss_files(self.losses)

    @model_validator(mode="after")
    def _known_losses(self) -> Self:
        check_repeats(self, "losses")
        check_losses(self.losses)
        return self

    @model_validator(mode="after")
    def _cache_needs_frozen_layers(self) -> Self:
        if self.cached and self.trainable != "box_head":
            raise ValueError("cached: true needs trainable: box_head (all else must be frozen)")
        return self


class CheckpointSource(Strictly):
    """A trained detector: a run's, or a file of ours, of DeFRCN or of RISF."""

    run: RunRef | None = Field(None, description="run of 10_base_training")
    path: str | None = Field(None, min_length=1, description="checkpoint file (.pth, .pkl)")
    # of a file that does not say it itself, as those of DeFRCN and RISF:
    detector: DetectorParams | None = Field(None, description="its architecture and preprocessing")
    classes: Literal["base", "novel", "all"] | None = Field(None, description="which classes its head has")
    class_order: Literal["base_novel", "category_id"] = Field(
        "base_novel", description="and in which order; published: COCO category_id, VOC base_novel"
    )

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.run is None) == (self.path is None):
            raise ValueError("give either run or path, and null for the other: -p checkpoint.run null")
        if self.run is not None and (self.detector is not None or self.classes is not None):
            raise ValueError("detector and classes belong to path; a run says both itself")
        return self


class EvaluateParams(NotebookParams):
    """21_evaluate: a checkpoint on the test images of a data set, without any training."""

    notebook: ClassVar[str] = "21_evaluate"
    split: SplitNumber = Field(1, description="base/novel split")
    checkpoint: CheckpointSource
    score_thresh: ScoreThresh = 0.05
    max_detections: int = Field(100, ge=1, le=300, description="the best of an image that count")
    batch_size: Count = Field(1, description="images at a time; 1 as published, for padding changes numbers")
    clip: ClipSource | None = Field(None, description="null: no re-scoring")
    cm_clip: CmClipParams = CmClipParams()
    engine: Literal["pycocotools", "faster-coco-eval"] = Field(
        "pycocotools", description="of COCO's metric; both give the same numbers"
    )
    published: dict[MetricName, float] = Field({}, description="to compare with, such as {nAP: 18.5}")

    def label(self) -> str:
        return f"evaluate-split{self.split}"

    def user_files(self) -> tuple[str, ...]:
        return (self.checkpoint.path,) if self.checkpoint.path else ()

    def data_files(self) -> tuple[str, ...]:
        return self.data.test_files()


class PredictorSource(Strictly):
    """The detector that predicts: one cell of a fine-tuning run, or a file of ours, of DeFRCN or of RISF."""

    run: RunRef | None = Field(None, description="run of 20_fine_tuning")
    # the cell of that run; trained again where the run has not kept its weights
    seed: Seed = 0
    arm: Arm = "kshot"
    loss: str = Field("ce", description="its name in the tables")
    path: str | None = Field(None, min_length=1, description="checkpoint file (.pth, .pkl)")
    # of a file that does not say it itself, as those of DeFRCN and RISF:
    detector: DetectorParams | None = Field(None, description="its architecture and preprocessing")
    classes: str | None = Field(None, min_length=1, description="file with its classes, a name a line")

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.run is None) == (self.path is None):
            raise ValueError("give either run or path, and null for the other: -p checkpoint.run null")
        if self.run is not None and (self.detector is not None or self.classes is not None):
            raise ValueError("detector and classes belong to path; a run says both itself")
        return self


class DemoParams(Strictly):
    """The small weights that `make demo` takes, and what they are measured on."""

    num_images: Count = Field(200, description="test scenes, the first ones")
    resamples: Count = Field(1000, description="of the bootstrap over images")


class OneLabelSpaceParams(CmClipParams):
    """Re-scoring of a prediction, which has one label space."""

    label_spaces: Many[LabelSpace] = Field(("novel+background",), min_length=1, max_length=1)


class PredictParams(NotebookParams):
    """22_predict: a detector on single images, before and after CM-CLIP."""

    notebook: ClassVar[str] = "22_predict"
    split: SplitNumber = Field(1, description="base/novel split")
    checkpoint: PredictorSource
    images: Many[Annotated[int, Field(ge=0)] | Annotated[str, Field(min_length=1)]] = Field(
        (0,), min_length=1, description="image files, or places of test images"
    )
    score_thresh: ScoreThresh = 0.05
    max_detections: int = Field(100, ge=1, le=300, description="the best of an image that count")
    draw_thresh: Share = Field(0.3, description="scores at or below it are not drawn")
    clip: ClipSource | None = Field(None, description="null: no re-scoring")
    rescored_classes: Many[str] | None = Field(None, description="null: all of the detector's")
    cm_clip: OneLabelSpaceParams = OneLabelSpaceParams()
    demo: DemoParams | None = Field(None, description="null: no small weights are written")

    def label(self) -> str:
        return f"predict-split{self.split}"

    def user_files(self) -> tuple[str, ...]:
        source = self.checkpoint
        files = (source.path, source.classes, *(name for name in self.images if isinstance(name, str)))
        return tuple(name for name in files if name is not None)

    @model_validator(mode="after")
    def _demo_is_small(self) -> Self:
        if self.demo is None:
            return self
        if self.data.source != "pictograms" or self.checkpoint.run is None:
            raise ValueError("a demo needs data of source pictograms and checkpoint.run")
        if self.clip is None or self.clip.run is None:
            raise ValueError("a demo needs clip.run")
        if self.demo.num_images > self.data.num_test_images:
            raise ValueError(
                f"demo.num_images is {self.demo.num_images}, but there are {self.data.num_test_images} test scenes"
            )
        return self


class AblationCParams(NotebookParams):
    """30_ablation_c: nAP over c, label space, temperature, threshold and fusion, from stored files."""

    notebook: ClassVar[str] = "30_ablation_c"
    fine_tuning: RunRefs = Field(min_length=1, description="runs of 20_fine_tuning")
    c: Many[Share] = Field(
        tuple(i / 10 for i in range(11)), min_length=1, description="weights of the detector"
    )
    label_spaces: Many[LabelSpace] = ("novel+background", "novel+base+background")
    temperatures: Many[Temperature] | None = Field(None, description="null: that of the runs")
    score_threshs: Many[Share] | None = Field(
        None, description="re-scored above these; at least what the runs encoded above; null: theirs"
    )
    fusions: Many[FusionName] | None = Field(None, description="null: that of the runs")
    seeds: Many[Seed] | None = Field(None, description="draws to take; null: all of the runs")
    losses: Many[str] | None = Field(None, description="names of the losses to take; null: all of the runs")

    @model_validator(mode="after")
    def _each_point_once(self) -> Self:
        for name in ("c", "label_spaces", "temperatures", "score_threshs", "fusions"):
            if getattr(self, name) is not None:
                check_repeats(self, name)
                if not getattr(self, name):
                    raise ValueError(f"{name} is empty; give a value, or null for that of the runs")
        return self


class AblationBnrlParams(FewShotParams):
    """31_ablation_bnrl: the loss's curves, then its hyper-parameters."""

    notebook: ClassVar[str] = "31_ablation_bnrl"
    setting: Literal["fsod"] = Field("fsod", description="sweeps are over novel classes alone")
    bnrl: BnrlParams = Field(BnrlParams(), description="values of the letters that a sweep does not change")
    alphas: Many[Share] = Field((0.2, 0.5, 0.8), min_length=1, description="with beta = 1 - alpha")
    betas: Many[NotNegative] = Field((0.2, 0.5, 0.8), description="with alpha fixed")
    background_weights: Many[NotNegative] = Field((0.05, 0.2, 0.5, 1.0), min_length=1)
    gammas: Many[NotNegative] = Field((0.0, 2.0, 4.0), min_length=1)
    epsilons: Many[NotNegative] = Field((0.0, 1.0), min_length=1)

    def label(self) -> str:
        return f"ablation_bnrl-split{self.split}-{self.shots}shot"


class ClipBackbonesParams(NotebookParams):
    """32_clip_backbones: CM-CLIP's gain for each CLIP."""

    notebook: ClassVar[str] = "32_clip_backbones"
    fine_tuning: RunRefs = Field(min_length=1, description="runs of 20_fine_tuning")
    clips: Many[ClipSource] = Field(min_length=1, description="the CLIPs to compare")
    cm_clip: CmClipParams = CmClipParams()
    seeds: Many[Seed] | None = Field(None, description="draws to take; null: all of the runs")
    losses: Many[str] | None = Field(None, description="names of the losses to take; null: all of the runs")


class ResultsParams(NotebookParams):
    """40_results: all tables and figures, from records alone."""

    notebook: ClassVar[str] = "40_results"
    needs_torch: ClassVar[bool] = False
    after_all: ClassVar[bool] = True
    runs: str | None = Field(None, description="list of runs; those missing are shown as missing")


class ExploreParams(NotebookParams):
    """01_explore: one image at a time, its stored detections and CLIP's probabilities, with a slider over c."""

    notebook: ClassVar[str] = "01_explore"
    fine_tuning: RunRefs = Field((), description="runs of 20_fine_tuning; none finished: the demo's weights")
    num_images: Count = Field(40, description="test images to choose from, the first ones")
    # what is shown first, and in a run without sliders
    # not named split: runs of several splits may be shown side by side
    first_split: SplitNumber | None = Field(None, description="split; null: the first")
    shots: Count | None = Field(None, description="K; null: the largest")
    loss: str | None = Field(None, description="its name in the tables; null: the first")
    arm: Arm | None = Field(None, description="which K-shot images; null: the first")
    few_shot_seed: Seed | None = Field(None, description="the draw; null: the first")
    image: Annotated[int, Field(ge=0)] | None = Field(
        None, description="place of the test image; null: one with an object, where c changes a score most"
    )
    label_space: LabelSpace = Field("novel+background", description="names that compete in CLIP's softmax")
    c: Share = Field(0.7, description="weight of the detector's score")
    shown_c: Many[Share] = Field((1.0, 0.7, 0.3), min_length=1, max_length=5, description="of the figure")
    draw_thresh: Share = Field(0.3, description="scores at or below it are not drawn")

    @model_validator(mode="after")
    def _each_c_once(self) -> Self:
        check_repeats(self, "shown_c")
        return self
