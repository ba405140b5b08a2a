"""The parameters of data sets: one strict model for each source, and what all parameter models share."""

from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, Strict, field_validator, model_validator

T = TypeVar("T")
Many = Annotated[tuple[T, ...], Strict(False)]  # lax here alone: YAML has no tuples; the items stay strict
NotNegative = Annotated[float, Field(ge=0, le=20)]
Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]
SplitNumber = Annotated[int, Field(ge=1, le=3)]


class Strictly(BaseModel):
    """Base of all parameter models: frozen, no unknown names, no conversion of types, no NaN or infinity."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False)


def _check_each_once(values: tuple) -> tuple:
    if len(set(values)) < len(values):
        raise ValueError(f"holds a value twice: {list(values)}")
    return values


class PictogramData(Strictly):
    """The embedded world of pictograms, rendered on first use."""

    source: Literal["pictograms"] = "pictograms"
    root: str = Field("data", description="folder for data; no part of a run's identity")
    image_size: int = Field(160, ge=64, le=512, description="side of a scene in pixels")
    num_base_images: int = Field(4000, ge=8, description="training scenes")
    num_test_images: int = Field(500, ge=8, description="test scenes")
    num_classification: int = Field(14000, ge=100, description="crops of the 50 other concepts")
    num_corpus: int = Field(30000, ge=100, description="captioned crops that train the tiny CLIPs")
    extra_novel: int = Field(4, ge=0, le=8, description="more novel objects in missing and full")
    few_shot_splits: Many[SplitNumber] = Field((1,), min_length=1, description="splits written")
    few_shot_seeds: int = Field(10, ge=1, le=30, description="draws, seeds 0 to this - 1")
    shots: Many[Count] = Field((1, 2, 3, 5, 10), min_length=1, description="values of K, nested")
    seed: Seed = Field(0, description="seed of the whole world")

    _each_k_once = field_validator("shots")(_check_each_once)

    def files(self) -> tuple[str, ...]:
        """None: the world follows from the parameters."""
        return ()

    test_files = files


class DrawnShots(Strictly):
    """K-shot sets drawn here, by TFA's rule, and written in the published layout."""

    kind: Literal["drawn"] = "drawn"
    images: str | None = Field(
        None,
        description="text file, an image file a line, relative to images: novel boxes are drawn from these alone",
    )

    def files(self, shots: tuple[int, ...], num_seeds: int) -> tuple[str, ...]:
        """Files of the user that decide the K-shot sets."""
        return (self.images,) if self.images else ()


class PublishedShots(Strictly):
    """K-shot sets in TFA's layout: ``[seed{n}/]full_box_{K}shot_{class}_trainval.json``."""

    kind: Literal["published"]
    folder: str = Field(min_length=1, description="folder of the files, or of the folders seed0, seed1, ...")

    def files(self, shots: tuple[int, ...], num_seeds: int) -> tuple[str, ...]:
        """The folder."""
        return (self.folder,)


class ShotFiles(Strictly):
    """K-shot sets as one COCO file for each K, as the CD-FSOD benchmark has them (``1_shot.json``)."""

    kind: Literal["files"]
    pattern: str = Field(
        pattern=r"\{shots\}", description="path with {shots}, and {seed} if there are several"
    )

    def files(self, shots: tuple[int, ...], num_seeds: int) -> tuple[str, ...]:
        """The file of each K and seed."""
        names = (self.file(k, seed) for k in shots for seed in range(num_seeds))
        return tuple(dict.fromkeys(names))

    def file(self, shots: int, seed: int) -> str:
        """The file of one K and seed."""
        return self.pattern.replace("{shots}", str(shots)).replace("{seed}", str(seed))


FewShot = Annotated[DrawnShots | PublishedShots | ShotFiles, Field(discriminator="kind")]


class UserData(Strictly):
    """What all sources of the user's own images share."""

    root: str = Field("data", description="folder for what we write; no part of a run's identity")
    images: str = Field(min_length=1, description="folder of the images")
    test_images: str | None = Field(None, description="folder of the test images; null: the same as images")
    test_annotations: str | None = Field(None, description="of the test images; null: drawn from images")
    test_fraction: float = Field(0.5, gt=0, lt=1, description="share of images drawn for testing")
    drop_invalid: bool = Field(
        False, description="drop boxes that are impossible, instead of refusing the annotations"
    )
    base_classes: Many[str] | None = Field(
        None, description="null: all that are not novel; []: none, the base model comes from other data"
    )
    novel_classes: Many[str] | None = Field(
        None, min_length=1, description="names of the novel classes; null with base_classes []: all"
    )
    shots: Many[Count] = Field((1, 2, 3), min_length=1, description="values of K, nested if drawn here")
    num_seeds: int = Field(10, ge=1, le=30, description="draws, seeds 0 to this - 1")
    seed: Seed = Field(0, description="seed of the image split and of the draws")

    _each_k_once = field_validator("shots")(_check_each_once)

    @model_validator(mode="after")
    def _novel_classes_are_named(self) -> Self:
        if self.novel_classes is None and self.base_classes != ():
            raise ValueError("novel_classes: a value is missing (base_classes [] makes all classes novel)")
        return self


class CocoData(UserData):
    """Any data set in COCO's annotation form, with the names of its novel classes."""

    source: Literal["coco"]
    annotations: str | None = Field(None, min_length=1, description="annotation file (JSON) of all images")
    few_shot: FewShot = Field(DrawnShots(), description="where the K-shot sets come from")

    def files(self) -> tuple[str, ...]:
        """The user's files that decide boxes and splits, and folders of such files."""
        files = (self.annotations, self.test_annotations, *self.few_shot.files(self.shots, self.num_seeds))
        return tuple(name for name in files if name is not None)

    def test_files(self) -> tuple[str, ...]:
        """Those that decide the test images alone."""
        return self.files() if self.test_annotations is None else (self.test_annotations,)

    @model_validator(mode="after")
    def _enough_is_named(self) -> Self:
        files = self.few_shot.kind == "files"
        if self.annotations is None and not (files and self.base_classes == ()):
            raise ValueError(
                "annotations: a value is missing (only few_shot files with base_classes [] need none)"
            )
        if self.few_shot.kind != "drawn" and self.test_annotations is None:
            raise ValueError(
                f"few_shot {self.few_shot.kind} goes with test images of its own: give test_annotations"
            )
        if files and self.num_seeds > 1 and "{seed}" not in self.few_shot.pattern:
            raise ValueError("few_shot.pattern has no {seed}, so num_seeds must be 1")
        return self


class XmlData(UserData):
    """A folder of images with one XML file in VOC's form for each."""

    source: Literal["xml"]
    annotations: str | None = Field(None, description="folder of the XML files; null: beside the images")
    few_shot: FewShot = Field(DrawnShots(), description="drawn alone; given K-shot sets are COCO files")

    def files(self) -> tuple[str, ...]:
        """The user's folders and files that decide boxes and splits."""
        test = self.test_annotations or self.test_images
        names = (self.annotations or self.images, test, *self.few_shot.files(self.shots, self.num_seeds))
        return tuple(name for name in names if name is not None)

    def test_files(self) -> tuple[str, ...]:
        """Those that decide the test images alone."""
        return self.files() if self.test_images is None else (self.test_annotations or self.test_images,)

    @model_validator(mode="after")
    def _test_images_are_named(self) -> Self:
        if self.test_annotations is not None and self.test_images is None:
            raise ValueError("test_annotations: give the folder of the test_images as well")
        return self

    @model_validator(mode="after")
    def _shots_are_drawn(self) -> Self:
        if self.few_shot.kind != "drawn":
            raise ValueError(f"few_shot: kind {self.few_shot.kind} goes with source: coco, not with xml")
        return self


class VocData(Strictly):
    """PASCAL VOC 2007 and 2012 with the published splits and few-shot lists; tested on VOC 2007 test."""

    source: Literal["voc"]
    voc2007: str = Field("data/VOCdevkit/VOC2007", min_length=1, description="devkit folder of 2007")
    voc2012: str | None = Field(
        "data/VOCdevkit/VOC2012", description="devkit folder of 2012; null: 2007 alone"
    )
    splits: str = Field("data/vocsplit", min_length=1, description="folder of box_{K}shot_{class}_train.txt")
    metric: Literal["voc07", "voc_area"] = Field("voc07", description="11 recall points, or the area")
    rounding: Literal["published", "none"] = Field(
        "published", description="detections with 1 and 3 decimals, as the published evaluator reads them"
    )
    absent: Literal["left_out", "published"] = Field(
        "left_out",
        description="a class without an object that counts: outside the means; published: 0, NaN by area",
    )
    shots: Many[Count] = Field((1, 2, 3, 5, 10), min_length=1, description="values of K")
    num_seeds: int = Field(30, ge=1, le=30, description="lists of seeds 0 to this - 1")
    seed: Seed = Field(0, description="seed of the cut to K, where the listed images have more boxes")

    _each_k_once = field_validator("shots")(_check_each_once)

    def files(self) -> tuple[str, ...]:
        """The folders of the annotations, image sets and lists."""
        of_2012 = () if self.voc2012 is None else _devkit_files(self.voc2012)
        return (*self.test_files(), *of_2012, self.splits)

    def test_files(self) -> tuple[str, ...]:
        """Those of 2007, which has the test images."""
        return _devkit_files(self.voc2007)


def _devkit_files(folder: str) -> tuple[str, ...]:
    return f"{folder}/Annotations", f"{folder}/ImageSets/Main"


def _default_source(value: Any) -> Any:
    return {"source": "pictograms", **value} if isinstance(value, dict) else value


Data = Annotated[
    PictogramData | CocoData | XmlData | VocData,
    Field(discriminator="source"),
    BeforeValidator(_default_source),
]
