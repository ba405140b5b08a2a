"""Parameters of the second system, open-vocabulary detection by region distillation; as in `risf_core.params`."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from risf_core.data_params import Count, Many, PictogramData, Share, SplitNumber, Strictly
from risf_core.params import (
    ClipSource,
    DetectorParams,
    NotebookParams,
    RunRef,
    ScoreThresh,
    SolverParams,
    Templates,
)

RegionSource = Literal["rpn", "objectness", "external", "external_filtered", "oracle", "base_boxes"]
ArmName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_]*$")]


class DistillationParams(Strictly):
    """RKD: which regions, which teacher, and how much of each loss."""

    regions: RegionSource = Field("rpn", description="who proposes the regions; oracle: annotated boxes")
    top: Count = Field(5, description="regions of an image")
    teacher: Literal["clip", "shuffled", "random"] = Field(
        "clip", description="controls: its rows shuffled within a batch; a CLIP of random weights"
    )
    # times 100, as in the released code
    point_weight: float = Field(0.15, ge=0, le=100, description="of the L1 loss")
    relation_weight: float = Field(0.15, ge=0, le=100, description="of relation matching; 0: without")
    relation_norm: Literal["l1", "l2", "l2_mean"] = Field(
        "l1", description="of the rows of the Gram matrix; published: l1"
    )

    @model_validator(mode="after")
    def _has_a_loss(self) -> Self:
        if not (self.point_weight or self.relation_weight):
            raise ValueError("point_weight and relation_weight are both 0; write distillation: null")
        return self


class ImageSupervisionParams(Strictly):
    """ILS: which box of an image a label goes to, and how much the loss counts."""

    boxes: Literal["max_score", "max_size", "max_objectness", "external", "external_filtered", "oracle"] = (
        Field("max_score", description="a proposal of the RPN, or the box of an external provider")
    )
    labels: Literal["all", "base", "permuted", "strict"] = Field(
        "all", description="base and novel names; controls: base alone, of another image, novel ones unknown"
    )
    weight: float = Field(0.1, gt=0, le=100, description="PMS_LOSS_WEIGHT")
    num_proposals: Count = Field(32, description="proposals of the RPN to choose from")
    batch_size: Count = Field(4, description="images with names in a step")
    short_side: Count | None = Field(
        None, description="shorter side of these images (published: 400); null: as the others"
    )


class ArmParams(Strictly):
    """One training: where it starts, what it learns from beside boxes, and the head that classifies."""

    start: ArmName = Field("base", description="an arm above; base is stage 0")
    distillation: DistillationParams | None = None
    images: ImageSupervisionParams | None = Field(None, description="image-level supervision")
    head: Literal["shared", "transfer", "free", "two_heads", "frozen", "random_source"] = Field(
        "shared", description="transfer: weight transfer; the others are its controls"
    )
    text_cosine: float | None = Field(
        None, gt=0, lt=1, description="mean pairwise cosine of the texts after a common offset"
    )
    train: bool = Field(True, description="false: the arm is its start, evaluated")

    @model_validator(mode="after")
    def _untrained_arms_learn_nothing(self) -> Self:
        if not self.train and (self.distillation or self.images or self.head != "shared"):
            raise ValueError("train: false evaluates the start; leave distillation, images and head out")
        return self


class OpenVocabularyFiles(Strictly):
    """The user's files of an open-vocabulary benchmark, in COCO's or LVIS's form."""

    kind: Literal["coco_ovd", "lvis_ovd"] = Field(description="classes of COCO 48/17, or LVIS by frequency")
    train_annotations: str = Field(min_length=1, description="boxes of the base classes")
    train_images: str = Field(min_length=1, description="folder of their images")
    test_annotations: str = Field(min_length=1, description="boxes of base and novel classes")
    test_images: str = Field(min_length=1, description="folder of the test images")
    label_annotations: str | None = Field(
        None, min_length=1, description="image-level labels: pos_category_ids of each image, or captions"
    )
    label_images: str | None = Field(None, min_length=1, description="folder of their images")
    all_classes: bool = Field(
        False, description="coco_ovd: files of all 80 classes; boxes that do not belong are left out"
    )
    caption_rule: Literal["words", "released"] = Field(
        "words", description="how captions name a class: between ends of words; with a space on both sides"
    )
    synonyms: str | None = Field(
        None, min_length=1, description="LVIS annotation file whose synonyms captions are searched for"
    )
    federated: bool = Field(False, description="federated loss (LVIS)")
    repeat_threshold: float | None = Field(
        None, gt=0, le=1, description="repeat-factor sampling of images with rare classes; LVIS: 0.001"
    )

    def files(self) -> tuple[str, ...]:
        """The annotation files."""
        names = (self.train_annotations, self.test_annotations, self.label_annotations, self.synonyms)
        return tuple(name for name in names if name is not None)


class ExternalFiles(Strictly):
    """What another system says of the training images (`risf_core.open_vocabulary.region_files`)."""

    regions: str | None = Field(
        None, min_length=1, description="class-agnostic boxes, for distillation, of every training image"
    )
    label_boxes: str | None = Field(None, min_length=1, description="a box for each image-level label")
    label_score: Share = Field(0.0, description="boxes at or below it are left out; COCO captions: 0.95")
    file_embeddings: bool = Field(
        True, description="take the embeddings of a file that has some; false: encode its boxes anew"
    )
    sees_novel: Literal["no", "yes", "unknown"] = Field(
        "unknown", description="whether that system was trained on boxes of the novel classes"
    )


class OpenVocabularyParams(NotebookParams):
    """50_open_vocabulary: RKD, image-level supervision, weight transfer and their controls."""

    notebook: ClassVar[str] = "50_open_vocabulary"
    split: SplitNumber = Field(1, description="base/novel split")
    files: OpenVocabularyFiles | None = Field(None, description="null: the pictograms of data")
    external: ExternalFiles | None = Field(
        None, description="null: pictograms train an external provider of their own"
    )
    base: RunRef | None = Field(None, description="run of 10_base_training that stage 0 starts from")
    weights: str | None = Field(None, min_length=1, description="or a file of ImageNet weights")
    detector: DetectorParams | None = Field(None, description="the detector of weights")
    clip: ClipSource = Field(description="the teacher, and the texts")
    templates: Templates = Field(("a photo of {}",), description="prompts of the classifier")
    temperature: float = Field(50.0, gt=0, le=1000, description="factor of the cosines")
    bias: float | None = Field(None, description="start of the classifier's bias; LVIS: -4.6; null: none")
    residual_width: Count = Field(1024, description="width of weight transfer's residual MLP")
    num_box_images: Count = Field(1500, description="training scenes with boxes of base classes")
    num_label_images: Count = Field(1000, description="further scenes with names alone")
    mixing: Literal["joint", "alternate"] = Field(
        "joint", description="images with names: in every step beside those with boxes, or every second step"
    )
    stage0: SolverParams = SolverParams(iterations=400, lr=0.02)
    solver: SolverParams = Field(SolverParams(iterations=250, lr=0.01), description="of every arm")
    arms: dict[ArmName, ArmParams] = Field(
        {"base": ArmParams(train=False), "base_continued": ArmParams()},
        min_length=1,
        description="in the order of training",
    )
    swapped: Many[ArmName] = Field((), description="arms tested with other vocabularies and palette")
    kept: Many[ArmName] = Field((), description="arms whose weights are kept")
    jitter: float = Field(
        0.1, ge=0, lt=0.5, description="noise of the oracle's boxes, as a share of their sides"
    )
    miss: float = Field(0.1, ge=0, lt=1, description="share of boxes that the oracle leaves out")
    num_proposals: Count = Field(100, description="proposals an image in training (rpn_post_nms_train)")
    region_candidates: Count = Field(20, description="best boxes of a source that its regions are taken from")
    num_fidelity_images: Count = Field(
        200, description="test images on which embeddings and proposals are looked at"
    )
    score_thresh: ScoreThresh = 0.05

    def label(self) -> str:
        if self.files is not None:
            return f"open_vocabulary-{self.files.kind.replace('_', '-')}"
        return f"open_vocabulary-split{self.split}"

    @model_validator(mode="after")
    def _arms_start_from_arms_above(self) -> Self:
        names = list(self.arms)
        for place, (name, arm) in enumerate(self.arms.items()):
            # the arms of a record are sorted by name, and were in order when it was made
            above = names if names == sorted(names) else names[:place]
            if arm.start not in ("base", *above) or arm.start == name != "base":
                raise ValueError(f"arms: {name} starts from {arm.start!r}, which is no arm above it")
            start = self.arms.get(arm.start) if arm.start != "base" else None
            if start is not None and start.head != "shared":
                raise ValueError(
                    f"arms: {name} starts from {arm.start!r}, whose head is {start.head}; arms start from arms with "
                    "head: shared, since another head would be lost"
                )
            if arm.distillation is not None and arm.distillation.top > self.region_candidates:
                raise ValueError(
                    f"arms: {name} takes the top {arm.distillation.top} regions, but region_candidates is "
                    f"{self.region_candidates}"
                )
        if "stage0" in self.arms or ("base" in self.arms and self.arms["base"].train):
            raise ValueError(
                "arms: stage0 is no name of an arm, and base is stage 0 itself; write base: {train: false}"
            )
        for field in ("swapped", "kept"):
            if missing := [name for name in getattr(self, field) if name not in names]:
                raise ValueError(f"{field}: {missing[0]!r} is no arm")
        return self

    def user_files(self) -> tuple[str, ...]:
        return () if self.weights is None else (self.weights,)

    def data_files(self) -> tuple[str, ...]:
        external = self.external or ExternalFiles()
        names = (external.regions, external.label_boxes)  # files, or folders of files
        given = self.files.files() if self.files is not None else self.data.files()
        return (*given, *(name for name in names if name is not None))

    @model_validator(mode="after")
    def _one_start(self) -> Self:
        if (self.base is None) == (self.weights is None):
            raise ValueError("give either base or weights")
        if (self.weights is None) != (self.detector is None):
            raise ValueError("weights and detector go together: a run says its detector itself")
        return self

    @model_validator(mode="after")
    def _the_world_has_the_images(self) -> Self:
        if self.files is None:
            if not isinstance(self.data, PictogramData):
                raise ValueError("data of other sources than pictograms: give files")
            wanted = self.num_box_images + self.num_label_images
            if wanted > self.data.num_base_images:
                raise ValueError(
                    f"num_box_images and num_label_images are {wanted} together, but data.num_base_images is "
                    f"{self.data.num_base_images}"
                )
        elif self.swapped:
            raise ValueError("swapped: other vocabularies and palette are those of the pictograms; write []")
        return self
