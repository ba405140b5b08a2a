"""Parameters of 51_distilled_rescoring: a head on the detector's region features in CLIP's place. Imports no torch."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from risf_core.data_params import Count, Many, NotNegative, Positive, Seed, Share, SplitNumber, Strictly
from risf_core.params import Arm, NotebookParams, check_repeats
from risf_core.part_params import ClipSource, CmClipParams, LabelSpace, RunRef, RunRefs

TextGroup = Literal["base", "generic", "all"]


class HeadSpec(Strictly):
    """One distilled head: its layers, the weights of its losses, and what it is trained on."""

    layers: Literal["ridge", "linear", "mlp"] = Field(
        "mlp", description="ridge: linear, in closed form; mlp: Linear-GELU-Linear"
    )
    l1: NotNegative = Field(0.0, description="weight of the point-wise L1 loss")
    cosine: NotNegative = Field(1.0, description="weight of 1 - cosine")
    relation: NotNegative = Field(0.0, description="weight of relation matching")
    kl: NotNegative = Field(0.0, description="weight of the divergence over texts")
    kl_texts: TextGroup = Field(
        "base",
        description="base: base names and background (strict); generic: other things' names, too; all: novel, too",
    )
    images: Literal["all", "no_novel", "as_many"] = Field(
        "all", description="no_novel: without those that show a novel object; as_many: so many at random"
    )
    teacher: Literal["clip", "shuffled"] = Field(
        "clip", description="shuffled: each region has another's embedding, the negative control"
    )

    @model_validator(mode="after")
    def _learns_something(self) -> Self:
        if not (self.l1 or self.cosine or self.relation or self.kl):
            raise ValueError("every loss has weight 0; give at least one of l1, cosine, relation, kl")
        if self.layers == "ridge" and (self.l1 or self.relation or self.kl):
            raise ValueError("layers: ridge solves least squares; leave l1, relation and kl at 0")
        return self

    @property
    def is_candidate(self) -> bool:
        """Whether it may be chosen: the others answer a question of their own."""
        return self.images == "all" and self.teacher == "clip"


class RegionChoice(Strictly):
    """The regions of each base training image that are embedded by CLIP, with the detector's feature of each."""

    images: Count | None = Field(None, description="base training images, evenly spaced; null: all")
    annotated: int = Field(4, ge=0, description="boxes of base objects, an image")
    jittered: int = Field(4, ge=0, description="the same, moved")
    proposals: int = Field(12, ge=0, description="best proposals that are no annotated box")
    background: int = Field(4, ge=0, description="proposals of low objectness that touch no base object")
    jitter: Share = Field(0.1, description="standard deviation on each edge, as a share of the side")

    @model_validator(mode="after")
    def _takes_some(self) -> Self:
        if not self.annotated + self.jittered + self.proposals + self.background:
            raise ValueError("no region is taken; give at least one of annotated, jittered, proposals")
        return self


class HeadSolver(Strictly):
    """AdamW with a one-cycle schedule."""

    iterations: Count = Field(1500, description="steps")
    batch_size: int = Field(256, ge=2, description="regions a step")
    lr: float = Field(2.0e-3, gt=0, le=1, description="peak learning rate")
    weight_decay: float = Field(0.01, ge=0, le=1)
    hidden: Count = Field(512, description="width of an mlp")
    ridge: Positive = Field(1.0e-3, description="penalty of a ridge, features standardised")
    shot_iterations: int = Field(
        200, ge=0, description="further steps on the regions of the K-shot images; 0: none"
    )
    shot_lr: float = Field(5.0e-4, gt=0, le=1, description="their peak learning rate")


class Setting(Strictly):
    """How cosines become new scores."""

    temperature: float = Field(gt=0, le=1000)
    c: Share


HEADS = {
    "ridge": HeadSpec(layers="ridge"),
    "linear": HeadSpec(layers="linear"),
    "mlp": HeadSpec(),
    "mlp_l1": HeadSpec(l1=1.0, cosine=0.0),
    "mlp_relation": HeadSpec(relation=0.02),
    "mlp_kl_strict": HeadSpec(kl=1.0),
    "mlp_kl_generic": HeadSpec(kl=1.0, kl_texts="generic"),
    "mlp_kl_all": HeadSpec(kl=1.0, kl_texts="all"),
    "no_novel": HeadSpec(images="no_novel"),
    "as_many": HeadSpec(images="as_many"),
    "shuffled": HeadSpec(teacher="shuffled"),
}
HeadName = Annotated[str, Field(pattern=r"^[a-z0-9_]+$")]


class DistilledRescoringParams(NotebookParams):
    """51_distilled_rescoring: CM-CLIP without CLIP at test time, by a head distilled once on region features."""

    notebook: ClassVar[str] = "51_distilled_rescoring"
    base: RunRef = Field(description="run of 10_base_training: whose region features")
    fine_tuning: RunRefs = Field(
        min_length=1, description="runs of 20_fine_tuning of that base model, with stored cosines"
    )
    clip: ClipSource = Field(description="the teacher; as in fine_tuning")
    cm_clip: CmClipParams = Field(
        CmClipParams(label_spaces=("novel+background",)),
        description="the paper's values, and how crops are made",
    )
    selection: RunRef | None = Field(
        None, description="run of 51_distilled_rescoring on select_split; null: this one, or settings"
    )
    select_split: SplitNumber = Field(2, description="head, temperature and c are chosen on it")
    settings: dict[str, Setting] = Field(
        {}, description="of each way that is not chosen by a run; the first head in it is the main one"
    )
    label_spaces: Many[LabelSpace] = Field(("novel+background",), min_length=1)
    regions: RegionChoice = RegionChoice()
    heads: dict[HeadName, HeadSpec] = Field(HEADS, min_length=1, description="heads, by name")
    solver: HeadSolver = HeadSolver()
    temperatures: Many[Positive] = Field(
        (0.5, 1.0, 2.0, 3.0, 5.0, 8.0, 16.0, 32.0, 100.0), min_length=1, description="to choose from"
    )
    c: Many[Share] = Field(
        (0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9), min_length=1, description="weights to choose from"
    )
    target_betas: Many[Annotated[float, Field(gt=0, lt=1)]] = Field(
        (0.5,), description="shares of the text in few-shot visual targets; () none"
    )
    seeds: Many[Seed] | None = Field(None, description="draws taken; null: all of the runs")
    box_seeds: Many[Seed] = Field(
        (0, 1, 2), description="draws whose boxes are embedded anew: re-pooled, dense, targets; () none"
    )
    arm: Arm = "kshot"
    losses: Many[str] = Field(("ce",), min_length=1, description="names of the losses whose cells are taken")
    box_loss: str = Field("ce", description="whose boxes are embedded anew")
    truth_images: Count = Field(500, description="test images whose annotated boxes judge the heads")
    timed_images: int = Field(60, ge=0, description="test images that are timed; 0: none")
    rounds: Count = Field(5, description="and how often, in turns")

    @model_validator(mode="after")
    def _each_once(self) -> Self:
        check_repeats(self, "label_spaces", "temperatures", "c", "losses", "box_seeds", "target_betas")
        if not any(spec.is_candidate for spec in self.heads.values()):
            raise ValueError("heads: none has images: all and teacher: clip, so there is no main one")
        if self.box_seeds and self.box_loss not in self.losses:
            raise ValueError(f"box_loss is {self.box_loss!r}, which is not in losses {list(self.losses)}")
        if self.selection is not None and self.settings:
            raise ValueError("give selection or settings, not both")
        return self
