"""Parameters of the studies: one strict model per notebook, as in `risf_core.params`."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from risf_core.data_params import (
    Count,
    Many,
    NotNegative,
    PictogramData,
    Positive,
    Seed,
    Share,
    SplitNumber,
    Strictly,
)
from risf_core.params import (
    Arm,
    BnrlParams,
    ClipSource,
    CmClipParams,
    FewShotParams,
    HeadParams,
    LossName,
    NotebookParams,
    Precision,
    RunRef,
    RunRefs,
    ScoreThresh,
    SolverParams,
    check_losses,
    check_repeats,
    loss_files,
)


class OneStageParams(Strictly):
    """A one-stage detector of torchvision on the base model's ResNet: one map, a narrow neck, torchvision's heads."""

    width: int = Field(64, ge=32, multiple_of=32, description="channels of neck and heads")
    anchor_sizes: Many[Positive] = Field((24.0, 42.0, 72.0), min_length=1, description="RetinaNet's, pixels")
    anchor_ratios: Many[Positive] = Field((0.5, 1.0, 2.0), min_length=1, description="RetinaNet's, h / w")
    trainable: Literal["classification", "heads"] = Field(
        "classification", description="branches of the heads that fine-tuning trains"
    )
    base_solvers: dict[Literal["retinanet", "fcos"], SolverParams] = Field(
        {
            "retinanet": SolverParams(iterations=900, lr=0.05, checkpoint_every=300),
            "fcos": SolverParams(iterations=600, lr=0.05, checkpoint_every=300),
        },
        description="base training; RetinaNet learns more slowly",
    )
    solver: SolverParams = SolverParams(iterations=300, lr=0.1, weight_decay=1.0e-3, precision="fp32")


class ResultsFile(Strictly):
    """A results file in COCO's form of any detector, as 35_other_detectors re-scores it."""

    name: str = Field(min_length=1, description="of the detector, in tables; the same for both splits")
    results: str = Field(min_length=1, description="results file (JSON)")
    annotations: str | None = Field(
        None, min_length=1, description="of its images (COCO's JSON); null: the test images of data"
    )
    images: str | None = Field(None, min_length=1, description="folder of the images of annotations")
    classes: Many[str] | None = Field(
        None, min_length=1, description="names of the classes re-scored; null: the novel ones, or all"
    )
    split: SplitNumber = Field(1, description="c is chosen on the files of select_split")
    score_thresh: ScoreThresh = 0.05

    @model_validator(mode="after")
    def _images_go_with_annotations(self) -> Self:
        if (self.annotations is None) != (self.images is None):
            raise ValueError("annotations and images go together: give both or neither")
        return self


class OtherDetectorsParams(NotebookParams):
    """35_other_detectors: CM-CLIP on one-stage detectors, and on any detector's results file."""

    notebook: ClassVar[str] = "35_other_detectors"
    data: PictogramData = Field(PictogramData(), description="one-stage detectors need images of one size")
    base: RunRefs = Field((), description="runs of 10_base_training, one a split; none: results files alone")
    fine_tuning: RunRefs = Field((), description="runs of 20_fine_tuning: the two-stage detector's rows")
    clip: ClipSource
    cm_clip: CmClipParams = CmClipParams(label_spaces=("novel+background",))
    detectors: Many[Literal["retinanet", "fcos"]] = ("retinanet", "fcos")
    one_stage: OneStageParams = OneStageParams()
    select_split: SplitNumber = Field(2, description="c is chosen on it, and reported on the others")
    shots: Many[Count] = Field((1, 5), min_length=1, description="values of K")
    seeds: Many[Seed] = Field((0, 1, 2, 3, 4), min_length=1, description="draws that are reported")
    select_seeds: Many[Seed] = Field((0, 1, 2), min_length=1, description="draws of select_split")
    c: Many[Share] = Field(
        tuple(i / 10 for i in range(11)), min_length=1, description="weights of the detector to choose from"
    )
    fusions: Many[Literal["arithmetic", "geometric"]] = Field(
        ("arithmetic", "geometric"), min_length=1, description="arithmetic: the paper's"
    )
    score_threshs: dict[Literal["retinanet", "fcos"], ScoreThresh] = Field(
        {"retinanet": 0.05, "fcos": 0.2},
        description="what counts, and is re-scored: torchvision's own cuts; FCOS's scores hold the centre-ness",
    )
    results_files: Many[ResultsFile] = Field((), description="results files of other detectors")
    resamples: Count = Field(
        1000, description="draws of the images with replacement: the interval of a results file"
    )

    def user_files(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(file.results for file in self.results_files))

    def data_files(self) -> tuple[str, ...]:
        own = (file.annotations for file in self.results_files if file.annotations is not None)
        return (*self.data.files(), *dict.fromkeys(own))

    @model_validator(mode="after")
    def _cells_are_in_the_data(self) -> Self:
        if self.base and not set(self.shots) <= set(self.data.shots):
            raise ValueError(f"shots is {list(self.shots)}, but data.shots is {list(self.data.shots)}")
        if self.base and max(self.seeds) >= self.data.few_shot_seeds:
            raise ValueError(
                f"seeds has {max(self.seeds)}, but the data has 0 to {self.data.few_shot_seeds - 1}"
            )
        return self

    @model_validator(mode="after")
    def _every_detector_has_its_numbers(self) -> Self:
        for name, values in (
            ("score_threshs", self.score_threshs),
            ("one_stage.base_solvers", self.one_stage.base_solvers),
        ):
            if missing := [kind for kind in self.detectors if kind not in values]:
                raise ValueError(f"{name} has none for {missing[0]}")
        return self

    @model_validator(mode="after")
    def _each_file_is_named_apart(self) -> Self:
        names = [(file.name, file.split) for file in self.results_files]
        if twice := [name for name, split in names if names.count((name, split)) > 1]:
            raise ValueError(f"results_files: {twice[0]!r} stands twice with one split; name detectors apart")
        if taken := {name for name, _ in names} & {"faster_rcnn", "retinanet", "fcos"}:
            raise ValueError(f"results_files: {taken.pop()!r} is the name of a detector trained here")
        return self


class LatencyParams(NotebookParams):
    """34_latency: what re-scoring costs here, by CLIP, precision, path and approximation, beside the published way."""

    notebook: ClassVar[str] = "34_latency"
    fine_tuning: RunRefs = Field(
        min_length=1, description="runs of 20_fine_tuning: the boxes of the test images"
    )
    base: RunRef = Field(description="run of 10_base_training: the detector whose time stands beside")
    clips: Many[ClipSource] = Field(min_length=1, description="trained CLIPs: cost beside accuracy")
    large_clips: Many[ClipSource] = Field((), description="CLIPs of which the cost alone is measured")
    large_dense: Many[str] = Field((), description="of these the models whose dense path is measured, too")
    large_detector: Literal[50, 101] | None = Field(
        None, description="depth of the published detector, with random weights; null: none"
    )
    large_image: Many[Count] = Field(
        (800, 1067), min_length=2, max_length=2, description="height and width in pixels, of noise"
    )
    cm_clip: CmClipParams = CmClipParams(label_spaces=("novel+background",))
    precisions: Many[Literal["fp32", "bf16", "fp16"]] = Field(("fp32", "bf16"), min_length=1)
    paths: Many[Literal["crop", "dense"]] = Field(("crop", "dense"), min_length=1)
    shares: Many[Literal["iou", "proposal", "object"]] = Field(
        ("iou", "proposal", "object"), description="approximations: whose crop serves other boxes"
    )
    budgets: Many[Count] = Field((2, 4, 6, 8), description="approximations: crops an image")
    num_c: Count = Field(21, description="values of c, for each of which the published way repeats its work")
    seeds: Many[Seed] | None = Field(None, description="draws to take; null: all of the runs")
    arm: Arm = Field("kshot", description="which annotations the K-shot images had")
    loss: str = Field("ce", description="name of the loss")
    timed_images: Count = Field(60, description="test images on which the ways of a cell take turns")
    rounds: Count = Field(3, description="and how often; dense ways once")
    num_images: Count = Field(60, description="test images measured one after another")
    c_images: Count = Field(20, description="test images re-scored for all c")
    box_counts: Many[Count] = Field((1, 2, 4, 8, 16), min_length=3, description="boxes an image measured")
    most_tera_operations: Positive | None = Field(
        2.0, description="points with more operations are left out; null: none is"
    )
    line_to: Count = Field(100, description="boxes an image up to which the fitted line is drawn")
    seconds_per_point: Positive = Field(1.0, description="a point of the line is repeated for as long")
    max_repeats: int = Field(20, ge=2, description="and at most so often")
    seconds_per_fast_point: Positive = Field(
        3.0, description="the same for trained CLIPs, so that fast ones have enough values for a percentile"
    )


StudyLabelSpace = Literal[
    "novel+background",
    "novel+base+background",
    "novel+generic+background",
    "novel+base+generic+background",
]


class LabelSpaceParams(NotebookParams):
    """36_label_space: label space, temperature, fusion and visual prototypes, chosen on one split, told on another."""

    notebook: ClassVar[str] = "36_label_space"
    selection: RunRefs = Field(min_length=1, description="runs of 20_fine_tuning on which all is chosen")
    reported: RunRefs = Field(min_length=1, description="runs of 20_fine_tuning that are reported")
    clip: ClipSource
    cm_clip: CmClipParams = Field(CmClipParams(), description="the paper's values, and how crops are made")
    label_spaces: Many[StudyLabelSpace] = Field(
        ("novel+background", "novel+base+background", "novel+generic+background")
        + ("novel+base+generic+background",),
        min_length=1,
        description="names that compete in the softmax",
    )
    vocabulary: str | None = Field(
        None,
        min_length=1,
        description="imagenet, or a text file, one name a line; null: the world's other concepts, or imagenet",
    )
    temperatures: Many[Annotated[float, Field(gt=0, le=1000)] | Literal["learned", "fitted"]] = Field(
        (100.0, "learned", "fitted"), min_length=1, description="factor of the cosines"
    )
    fusions: Many[Literal["arithmetic", "geometric"]] = Field(("arithmetic", "geometric"), min_length=1)
    c: Many[Share] = Field((0.1, 0.3, 0.5, 0.6, 0.7, 0.8, 0.9), min_length=1, description="of the detector")
    visual_alphas: Many[Positive] = Field(
        (0.3, 1.0, 3.0, 10.0), description="weights of the K shots' cache; () none"
    )
    visual_betas: Many[Positive] = Field((1.0, 5.5, 11.0), description="sharpness of the cache's affinity")
    seeds: Many[Seed] | None = Field(None, description="draws reported; null: all of the runs")
    selection_seeds: Many[Seed] | None = Field(None, description="draws to choose on; null: all of the runs")
    arm: Arm = "kshot"
    loss: str = Field("ce", description="name of the loss whose cells are taken")

    def user_files(self) -> tuple[str, ...]:
        return (self.vocabulary,) if self.vocabulary not in (None, "imagenet") else ()

    @model_validator(mode="after")
    def _holds_the_paper(self) -> Self:
        paper = {
            "label_spaces": "novel+background",
            "temperatures": self.cm_clip.temperature,
            "fusions": "arithmetic",
            "c": self.cm_clip.c,
        }
        for name, value in paper.items():
            if value not in getattr(self, name):
                raise ValueError(f"{name} lacks {value!r}, the paper's value, to which all is compared")
        if bool(self.visual_alphas) != bool(self.visual_betas):
            raise ValueError("visual_alphas and visual_betas go together: give both or neither")
        return self


class RescoringControlsParams(NotebookParams):
    """37_rescoring_controls: what CM-CLIP's gain comes from, and for which classes it is better left out."""

    notebook: ClassVar[str] = "37_rescoring_controls"
    fine_tuning: RunRefs = Field(min_length=1, description="runs of 20_fine_tuning whose boxes are re-scored")
    selection: RunRefs = Field(
        (), description="runs of 20_fine_tuning of another split: the rule's threshold"
    )
    clip: ClipSource
    clips: Many[ClipSource] = Field((), description="the CLIPs that the rule is made from; a grid is allowed")
    cm_clip: CmClipParams = Field(CmClipParams(), description="the paper's values, and how crops are made")
    jitters: Many[Annotated[float, Field(gt=0, le=1)]] = Field(
        (0.1, 0.2, 0.3), description="standard deviation of the noise on each edge, as a share of the side"
    )
    encoded_shots: Many[Count] = Field((5,), description="values of K whose boxes are encoded anew")
    num_sizes: int = Field(3, ge=1, le=5, description="groups of objects by area, equally many in each")
    rule_seeds: Many[Seed] = Field((0, 1, 2), min_length=1, description="draws that the rule is made from")
    seeds: Many[Seed] | None = Field(None, description="draws to take; null: all of the runs")
    arm: Arm = "kshot"
    loss: str = Field("ce", description="name of the loss whose cells are taken")


class LearningRatesParams(FewShotParams):
    """38_learning_rates: each loss at several learning rates, to choose one for each."""

    notebook: ClassVar[str] = "38_learning_rates"
    setting: Literal["fsod"] = Field("fsod", description="over novel classes alone")
    losses: Many[LossName] = Field(
        ("ce", "ce_bg", "bnrl"), min_length=1, description="names or path.py:function"
    )
    bnrl: BnrlParams = BnrlParams()
    rates: Many[Positive] = Field(
        (0.005, 0.01, 0.02, 0.05, 0.1), min_length=1, description="peak learning rates; replace solver.lr"
    )

    def label(self) -> str:
        return f"learning_rates-split{self.split}-{self.shots}shot"

    def user_files(self) -> tuple[str, ...]:
        return loss_files(self.losses)

    @model_validator(mode="after")
    def _known_losses(self) -> Self:
        check_repeats(self, "losses", "rates")
        check_losses(self.losses)
        return self


class OnTwoSplits(NotebookParams):
    """What studies share that choose on one split's base model (``select_base``) and report on another's (``base``)."""

    def few_shot_params(self, split: int, *, role: str) -> FewShotParams:
        """What a fine-tuning of this study takes, on the base model of one role ("reported" or "selection")."""
        shared = ("profile", "data", "seed", "device", "num_threads", "shots", "arms", "head", "solver")
        own = {name: getattr(self, name) for name in (*shared, "score_thresh")}
        is_reported = role == "reported"
        return FewShotParams(
            **own,
            split=split,
            seeds=self.seeds if is_reported else self.select_seeds,
            base=self.base if is_reported else self.select_base,
        )

    @model_validator(mode="after")
    def _cells_are_in_the_data(self) -> Self:
        for role in ("reported", "selection"):  # FewShotParams checks K, draws and arms against the data
            self.few_shot_params(getattr(self.data, "few_shot_splits", (1,))[0], role=role)
        return self


class TrainingRegimesParams(OnTwoSplits):
    """39_training_regimes: BNRL against cross-entropy with frozen features, with the RPN trained, with res5 trained."""

    notebook: ClassVar[str] = "39_training_regimes"
    data: PictogramData = Field(PictogramData(), description="images of one size, whose maps are kept")
    base: RunRef = Field(description="run of 10_base_training that is reported")
    select_base: RunRef = Field(description="run of 10_base_training, of another split, to choose rates on")
    shots: Count = Field(5, description="K, boxes per class")
    seeds: Many[Seed] = Field((0, 1, 2), min_length=1, description="draws that are reported")
    select_seeds: Many[Seed] = Field((0,), min_length=1, description="draws to choose rates on")
    arms: Many[Literal["kshot", "missing", "full"]] = Field(("missing", "full"), min_length=1)
    bnrl: BnrlParams = BnrlParams()
    rates: dict[Literal["frozen", "rpn", "res5"], dict[Literal["ce", "bnrl"], Many[Positive]]] = Field(
        {
            "frozen": {"ce": (0.005, 0.01, 0.02, 0.05), "bnrl": (0.005, 0.01, 0.02, 0.05)},
            "rpn": {"ce": (0.005, 0.01, 0.02), "bnrl": (0.01, 0.02)},
            "res5": {"ce": (0.002, 0.005, 0.01, 0.02), "bnrl": (0.005, 0.01, 0.02)},
        },
        min_length=1,
        description="regimes to train, each loss with its peak learning rates",
    )
    head: HeadParams = HeadParams()
    solver: SolverParams = Field(
        SolverParams(iterations=200, batch_size=4, weight_decay=1.0e-3, precision="fp32"),
        description="of all regimes; its lr is replaced by each of rates",
    )
    score_thresh: ScoreThresh = 0.05
    detection_precision: Precision = Field("fp32", description="of the forward pass over the test images")
    num_test_images: Count = Field(500, description="test images judged, the first ones")

    @model_validator(mode="after")
    def _losses_share_a_rate(self) -> Self:
        for regime, losses in self.rates.items():
            if set(losses) != {"ce", "bnrl"} or not set(losses["ce"]) & set(losses["bnrl"]):
                raise ValueError(f"rates: {regime} needs ce and bnrl, and a rate that both have")
            for loss, rates in losses.items():
                if len(set(rates)) < len(rates):
                    raise ValueError(f"rates: {regime}, {loss} has a rate twice: {list(rates)}")
        return self


class MissingAnnotationsParams(OnTwoSplits):
    """33_missing_annotations: the losses as annotations go missing, BNRL's weights and BNRL's parts."""

    notebook: ClassVar[str] = "33_missing_annotations"
    base: RunRef = Field(description="run of 10_base_training that is reported")
    select_base: RunRef = Field(description="run of 10_base_training, of another split, to choose on")
    rates: RunRefs = Field(min_length=1, description="runs of 38_learning_rates: each loss's learning rate")
    shots: Count = Field(5, description="K, boxes per class")
    seeds: Many[Seed] = Field((0, 1, 2, 3, 4), min_length=1, description="draws that are reported")
    select_seeds: Many[Seed] = Field((0, 1, 2), min_length=1, description="draws to choose on")
    arms: Many[Arm] = Field(
        ("missing", "full", "kshot"),
        min_length=2,
        description="images with objects left out; the same with all of them; others, to compare",
    )
    losses: Many[Literal["ce", "ce_bg", "bnrl"]] = Field(("ce", "ce_bg", "bnrl"), min_length=1)
    fractions: Many[Share] = Field(
        (0.0, 0.25, 0.5, 0.75, 1.0), min_length=2, description="shares of the further objects that are known"
    )
    bnrl: BnrlParams = Field(BnrlParams(), description="the fixed loss")
    betas: Many[NotNegative] = Field((0.2, 0.8, 3.2), min_length=1, description="weights to choose from")
    background_weights: Many[NotNegative] = Field((0.05, 0.2, 1.0), min_length=1)
    components: Many[Literal["focal", "focal_mirror", "focal_omega"]] = Field(
        ("focal", "focal_mirror", "focal_omega"), min_length=1, description="parts of the loss"
    )
    component_rates: Many[Positive] = Field(
        (0.02, 0.05, 0.2, 0.5), min_length=1, description="learning rates of the parts to choose from"
    )
    component_fractions: Many[Share] = Field((0.0, 1.0), min_length=1, description="shares for the parts")
    head: HeadParams = HeadParams()
    solver: SolverParams = SolverParams(iterations=300, lr=0.02, weight_decay=1.0e-3, precision="fp32")
    score_thresh: ScoreThresh = 0.05

    @model_validator(mode="after")
    def _grids_hold_what_is_compared(self) -> Self:
        check_repeats(
            self,
            *("losses", "fractions", "betas", "background_weights"),
            *("components", "component_rates", "component_fractions"),
        )
        if 0.0 not in self.fractions:
            raise ValueError(f"fractions is {list(self.fractions)}; expected 0 among them, as drawn")
        if unknown := set(self.component_fractions) - set(self.fractions):
            raise ValueError(f"component_fractions has {unknown.pop():g}, which is not in fractions")
        beta = round(1 - self.bnrl.alpha, 6) if self.bnrl.beta is None else self.bnrl.beta
        for name, value in (("betas", beta), ("background_weights", self.bnrl.background_weight)):
            if value not in getattr(self, name):
                raise ValueError(f"{name} lacks {value:g}, the fixed loss's, to which the choice is compared")
        return self


class BaseClassesParams(NotebookParams):
    """41_base_classes: gFSOD with novel, base or all classes re-scored, what is confused with what, and a gallery."""

    notebook: ClassVar[str] = "41_base_classes"
    gfsod: RunRefs = Field(min_length=1, description="runs of 20_fine_tuning of the setting gfsod")
    fsod: RunRefs = Field(
        (), description="runs of 20_fine_tuning of the setting fsod: the gallery; none: no gallery"
    )
    clip: ClipSource
    cm_clip: CmClipParams = Field(
        CmClipParams(label_spaces=("novel+background",)),
        description="the paper's values, and how crops are made",
    )
    label_spaces: Many[Literal["rescored+background", "all+background"]] = Field(
        ("rescored+background", "all+background"),
        min_length=1,
        description="names in the softmax: of the re-scored classes (novel alone: the paper's), or of all",
    )
    c: Many[Share] = Field((0.5, 0.7, 0.9), min_length=1, description="weights of the detector")
    arm: Arm = "kshot"
    losses: Many[str] = Field(("ce", "bnrl"), min_length=1, description="names of the losses taken")
    seeds: Many[Seed] | None = Field(None, description="draws to take; null: all of the runs")
    gallery_loss: str = Field("ce", description="of the gallery")
    gallery_images: int = Field(4, ge=1, le=8, description="largest gains shown, and as many losses")

    @model_validator(mode="after")
    def _each_once_and_the_paper(self) -> Self:
        check_repeats(self, "label_spaces", "c", "losses")
        if self.cm_clip.c not in self.c:
            raise ValueError(
                f"c lacks {self.cm_clip.c:g}, the value of cm_clip, whose classes are told apart"
            )
        if "rescored+background" not in self.label_spaces:
            raise ValueError(
                "label_spaces lacks rescored+background, the paper's where novel classes are re-scored"
            )
        return self


class TestImagesParams(NotebookParams):
    """43_test_images: how much of an effect's uncertainty the test images make, by drawing them anew."""

    __test__: ClassVar[bool] = False  # no test of pytest's, whatever its name
    notebook: ClassVar[str] = "43_test_images"
    fine_tuning: RunRefs = Field(
        min_length=1, description="runs of 20_fine_tuning whose boxes and cosines are taken"
    )
    arms: Many[Arm] = Field(("kshot", "missing"), min_length=1, description="which K-shot images")
    losses: Many[str] = Field(("ce", "bnrl"), min_length=1, description="names of the losses taken")
    seeds: Many[Seed] | None = Field(None, description="draws to take; null: all of the runs")
    resamples: int = Field(1000, ge=20, description="draws of the test images with replacement")

    @model_validator(mode="after")
    def _each_once(self) -> Self:
        check_repeats(self, "arms", "losses")
        return self


class EstimatorSettings(Strictly):
    """How 42_missing_rate counts with one kind of score."""

    c: Share | None = Field(None, description="weight of the detector's score beside CLIP's; null: it alone")
    recall: float = Field(
        0.5, gt=0, le=1, description="claimed places for each annotated box at the score taken"
    )
    false_per_image: float = Field(0.0, ge=0, description="false places an image at that score")


class MissingRateParams(NotebookParams):
    """42_missing_rate: how many objects nobody annotated in K-shot images, with the error on planted truth."""

    notebook: ClassVar[str] = "42_missing_rate"
    base: RunRef = Field(description="run of 10_base_training: of the images that are judged")
    select_base: RunRef | None = Field(
        None,
        description="run of 10_base_training, of another split, to choose settings on; null: judge images as they are",
    )
    settings: dict[Literal["detector", "cm_clip"], EstimatorSettings] = Field(
        {"detector": EstimatorSettings(), "cm_clip": EstimatorSettings(c=0.3)},
        description="taken where select_base is null; false places are the images' own, 0 where nobody knows them",
    )
    shots: Count = Field(5, description="K, boxes per class")
    seeds: Many[Seed] = Field((0, 1, 2, 3, 4), min_length=1, description="draws that are judged")
    select_seeds: Many[Seed] = Field((0, 1, 2), min_length=1, description="draws to choose settings on")
    arms: Many[Literal["kshot", "missing"]] = Field(
        ("missing", "kshot"), description="as drawn, where planted"
    )
    dropped_shares: Many[Share] = Field(
        (0.0, 0.2, 0.4, 0.6, 0.8), description="shares of all annotations left out, where planted"
    )
    folds: int = Field(
        5, ge=2, description="an image is judged by a detector that was trained without its fold"
    )
    loss: Literal["ce", "ce_bg", "bnrl"] = Field("ce", description="of the detectors that judge")
    clip: ClipSource | None = Field(None, description="null: by the detector's score alone")
    cm_clip: CmClipParams = Field(
        CmClipParams(), description="how crops are made; its last label space is taken"
    )
    c: Many[Share] = Field(
        (0.0, 0.3, 0.5, 0.7), min_length=1, description="weights of the detector to choose from"
    )
    recalls: Many[Annotated[float, Field(gt=0, le=1)]] = Field(
        (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8), min_length=1, description="recalls to choose from"
    )
    resamples: Count = Field(500, description="draws of the images with replacement, for the interval")
    head: HeadParams = HeadParams()
    solver: SolverParams = SolverParams(iterations=150, lr=0.05, weight_decay=1.0e-3, precision="fp32")

    def few_shot_params(self, split: int, *, role: str) -> FewShotParams:
        """What a fine-tuning of this study takes; role: "selection", "reported" (both planted) or "own"."""
        shared = ("profile", "data", "seed", "device", "num_threads", "shots", "head", "solver")
        is_selection = role == "selection"
        return FewShotParams(
            **{name: getattr(self, name) for name in shared},
            split=split,
            arms=("kshot",) if role == "own" else tuple(dict.fromkeys(("full", *self.arms))),
            seeds=self.select_seeds if is_selection else self.seeds,
            base=self.select_base if is_selection else self.base,
        )

    @model_validator(mode="after")
    def _cells_are_in_the_data(self) -> Self:
        check_repeats(self, "arms", "dropped_shares", "c", "recalls")
        if self.shots < 2:
            raise ValueError("shots is 1; expected 2 or more: a class must be left where a fold is held out")
        if self.select_base is not None and self.data.source != "pictograms":
            raise ValueError("select_base needs data of source pictograms, whose truth is known; write null")
        split = getattr(self.data, "few_shot_splits", (1,))[0]
        for role in ("own",) if self.select_base is None else ("reported", "selection"):
            self.few_shot_params(split, role=role)
        return self

    @model_validator(mode="after")
    def _every_kind_has_settings(self) -> Self:
        kinds = {"detector": True, "cm_clip": self.clip is not None}
        if lacking := [kind for kind, needed in kinds.items() if needed and kind not in self.settings]:
            raise ValueError(f"settings has none for {lacking[0]}")
        if self.settings.get("cm_clip") is not None and self.settings["cm_clip"].c is None:
            raise ValueError("settings: cm_clip needs c, the weight of the detector's score")
        return self
