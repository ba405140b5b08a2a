"""One data set made ready for few-shot detection: its base/novel partition, training and test parts, K-shot draws.

What is not on disk yet is rendered or drawn, and written, when a benchmark is opened for the first time.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from risf_core.data.coco import load_coco, write_coco, write_json
from risf_core.data.dataset import DetectionData, check_class_list, merge_images, summarize
from risf_core.data.few_shot import draw_few_shot, file_label, load_few_shot, write_few_shot
from risf_core.data.image_split import split_images
from risf_core.data.loader import check_images
from risf_core.errors import DataError, SplitError
from risf_core.runs.yaml_files import project_path

if TYPE_CHECKING:
    import pandas as pd

    from risf_core.params import CocoData, PictogramData

logger = logging.getLogger(__name__)

SEED_STRIDE = 1000  # between the draws of one data seed and the next
DRAW_VERSION = 1  # raise it whenever the same parameters give another image split or other draws
MAX_DECODED = (
    20_000  # images decoded once when a benchmark is prepared; larger sets are checked as they are read
)


@dataclass(frozen=True, eq=False)
class Benchmark:
    """A data set with one base/novel partition.

    Attributes:
        name: For messages, tables and pictures.
        base_names: Base classes, in the order of their labels.
        novel_names: Novel classes, in the order of their labels; they follow the base classes where both are present.
        test: Test images with the boxes of base and novel classes.
        arms: Kinds of K-shot images: ("kshot", "missing", "full") for pictograms, ("kshot",) for COCO-format data.
        shots: The values of K that were drawn.
        num_seeds: Draws are numbered 0 to this less one.
        hash: SHA-256 over annotation and split files.
        train_annotations: COCO file of the training images, with all boxes.
        images_dir: Folder of the training images.
        find_shots: ``find_shots(arm, with_base=False)`` gives the folder of an arm's draws, in the published layout;
            with_base asks for the files of the base classes there too.
        drop_invalid: Passed to `load_coco` with the training file.
    """

    name: str
    base_names: tuple[str, ...]
    novel_names: tuple[str, ...]
    test: DetectionData
    arms: tuple[str, ...]
    shots: tuple[int, ...]
    num_seeds: int
    hash: str
    train_annotations: Path
    images_dir: Path
    find_shots: Callable[..., Path]
    drop_invalid: bool = False

    @cached_property
    def train(self) -> DetectionData:
        """All training images with the boxes of all classes of the file; what base training may not see is in it."""
        return load_coco(
            self.train_annotations, self.images_dir, name=f"{self.name} train", drop_invalid=self.drop_invalid
        )

    @cached_property
    def base_train(self) -> DetectionData:
        """Training images with the boxes of base classes alone; images without one are dropped.

        Objects of novel and other classes in them become background, as published.
        """
        return self.train.select_classes(self.base_names).drop_empty()

    def few_shot(self, shots: int, seed: int, *, arm: str = "kshot", setting: str = "fsod") -> DetectionData:
        """The images of one draw.

        Args:
            shots: K.
            seed: Number of the draw.
            arm: Which K-shot images, one of `arms`.
            setting: "fsod" for the novel classes alone, "gfsod" for K boxes of each base and novel class.

        Returns:
            Data with the classes `novel_names`, or `base_names` + `novel_names` for "gfsod".

        Raises:
            SplitError: If there is no such draw, or it has not exactly K boxes of each class (arm "full" excepted).
        """
        self._check_draw(shots, seed, arm, setting)
        novel = self._load_draw(arm, shots, seed, self.novel_names, with_base=False)
        if setting == "fsod":
            return novel
        base = self._load_draw(arm, shots, seed, self.base_names, with_base=True)
        return merge_images([base, novel], name=novel.name, class_names=(*self.base_names, *self.novel_names))

    def _check_draw(self, shots: int, seed: int, arm: str, setting: str) -> None:
        choices = {
            "shots": (shots, self.shots),
            "seed": (seed, range(self.num_seeds)),
            "arm": (arm, self.arms),
        }
        choices["setting"] = (setting, ("fsod", "gfsod"))
        for what, (value, valid) in choices.items():
            if value not in valid:
                expected = ", ".join(str(choice) for choice in valid)
                raise SplitError(
                    f"{self.name}: there is no draw with {what} {value!r}. Expected one of: {expected}."
                )

    def _load_draw(
        self, arm: str, shots: int, seed: int, class_names: Sequence[str], *, with_base: bool
    ) -> DetectionData:
        root = self.find_shots(arm, with_base=with_base)
        data = load_few_shot(root, self.images_dir, shots=shots, seed=seed, class_names=class_names)
        wrong = [(name, count) for name, count in data.counts().items() if count != shots]
        if wrong and (arm != "full" or with_base):
            name, count = wrong[0]
            raise SplitError(
                f"{root}, seed {seed}: {count} boxes of {name!r}. Expected {shots}: delete the folder and rerun."
            )
        return data

    def summary(self) -> pd.DataFrame:
        """Images, boxes and crowd regions of each class in both parts, and what base training leaves out."""
        table = summarize({"base training": self.base_train, "test": self.test})
        left_out = summarize({"base training": self.train}).loc["all"] - table.loc["all"]
        table.loc["left out of base training"] = left_out.reindex(table.columns)
        groups = dict.fromkeys(self.base_names, "base") | dict.fromkeys(self.novel_names, "novel")
        table.insert(0, ("", "group"), [groups.get(name, "") for name in table.index])
        return table


def open_benchmark(data: PictogramData | CocoData, *, split: int = 1) -> Benchmark:
    """Open a data set for few-shot detection, and first render or draw what is not on disk yet.

    Several processes may open the same data at once; one of them prepares it.

    Args:
        data: The ``data`` part of a notebook's parameters.
        split: Number of the base/novel partition: 1 to 3 for pictograms, 1 for COCO-format data.

    Raises:
        DataError: If annotations or images are wrong.
        SplitError: If the partition or a draw of the novel classes is impossible.
    """
    if data.source == "pictograms":
        benchmark = _open_pictograms(data, split)
    else:
        benchmark = _open_coco(data, split)
    absent = [name for name, count in benchmark.test.counts().items() if count == 0]
    if absent:
        logger.warning(
            "%s: no test image has a box of %s; their AP is n/a and outside every mean",
            benchmark.name,
            ", ".join(absent),
        )
    return benchmark


def partition(
    base: Sequence[str] | None, novel: Sequence[str], available: Sequence[str], *, where: str
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Check a base/novel partition; base None means all other classes.

    Raises:
        SplitError: If a class is unknown, listed twice or in both lists, or a list is empty.
    """
    novel_names = check_class_list(novel, available, where=where)
    if base is None:
        base = [name for name in available if name not in novel_names]
    base_names = check_class_list(base, available, where=where)
    both = [name for name in base_names if name in novel_names]
    if both:
        raise SplitError(
            f"{where}: class {both[0]!r} is a base and a novel class. Expected it in one of the two lists."
        )
    if not base_names or not novel_names:
        raise SplitError(
            f"{where}: {len(base_names)} base and {len(novel_names)} novel classes. Expected some of each."
        )
    return base_names, novel_names


def _open_pictograms(data: PictogramData, split: int) -> Benchmark:
    from risf_core.data.pictograms import CLASSES, SPLITS
    from risf_core.data.shots import ARMS
    from risf_core.data.world import build_world

    if split not in SPLITS:
        raise SplitError(
            f"the pictogram world has no split {split}. Expected one of: {', '.join(map(str, SPLITS))}."
        )
    world = build_world(data)
    name = f"pictograms split {split}"
    folders = [world.few_shot_root(split, arm) for arm in ARMS]
    base_names, novel_names = partition(None, SPLITS[split], CLASSES, where=name)
    train_annotations, test_annotations = world.trainval_annotations, world.test_annotations
    return Benchmark(
        name=name,
        base_names=base_names,
        novel_names=novel_names,
        test=load_coco(
            test_annotations, world.root, class_names=(*base_names, *novel_names), name=f"{name} test"
        ),
        arms=ARMS,
        shots=tuple(data.shots),
        num_seeds=data.few_shot_seeds,
        hash=_hash_files(train_annotations, test_annotations, *_files_of(novel_names, folders)),
        train_annotations=train_annotations,
        images_dir=world.root,
        find_shots=partial(world.few_shot_root, split),
    )


def _open_coco(data: CocoData, split: int) -> Benchmark:
    if split != 1:
        raise SplitError(
            f"{data.annotations}: there is no split {split}. Expected 1: COCO-format data has one partition."
        )
    data = _with_absolute_paths(data)
    root = Path(data.root) / f"{Path(data.annotations).stem}-{_coco_hash(data)}"
    root.mkdir(parents=True, exist_ok=True)
    with FileLock(root / "build.lock"):
        if not (root / "done.json").exists():
            logger.info("Drawing image split and few-shot splits of %s into %s", data.annotations, root)
            _build_coco(data, root)
    done = _read_done(root)
    base_names, novel_names = tuple(done["base_names"]), tuple(done["novel_names"])
    drawn = data.test_annotations is None
    train_annotations = root / "annotations" / "train.json" if drawn else Path(data.annotations)
    test_annotations = root / "annotations" / "test.json" if drawn else Path(data.test_annotations)
    return Benchmark(
        name=root.name,
        base_names=base_names,
        novel_names=novel_names,
        test=_load_coco_test(data, test_annotations, (*base_names, *novel_names), root.name),
        arms=("kshot",),
        shots=tuple(data.shots),
        num_seeds=data.num_seeds,
        hash=_hash_files(
            train_annotations, test_annotations, *_files_of(None, [root / "few_shot" / "kshot"])
        ),
        train_annotations=train_annotations,
        images_dir=Path(data.images),
        find_shots=partial(_coco_shots, root),
        drop_invalid=data.drop_invalid and not drawn,
    )


def _with_absolute_paths(data: CocoData) -> CocoData:
    paths = {
        key: getattr(data, key)
        for key in ("root", "annotations", "images", "test_annotations", "test_images")
    }
    return data.model_copy(
        update={key: str(project_path(path)) for key, path in paths.items() if path is not None}
    )


def _coco_shots(root: Path, arm: str, *, with_base: bool = False) -> Path:
    """Folder of the draws; asked for base classes it refuses if some of them had too few boxes."""
    reasons = _read_done(root)["no_base_shots"]
    if with_base and reasons:
        raise SplitError(f"no gfsod draw, for {len(reasons)} base classes are too rare. {reasons[0]}")
    return root / "few_shot" / arm


def _load_coco_test(
    data: CocoData, annotations: Path, class_names: Sequence[str], name: str
) -> DetectionData:
    drawn = data.test_annotations is None
    return load_coco(
        annotations,
        data.images if drawn else data.test_images or data.images,
        class_names=class_names,
        name=f"{name} test",
        drop_invalid=data.drop_invalid and not drawn,
    )


def _coco_hash(data: CocoData) -> str:
    """Eight hex digits over what decides the files that we write; the folders of images and data are no part of it."""
    content = data.model_dump(
        mode="json", exclude={"root", "annotations", "images", "test_annotations", "test_images"}
    )
    content["version"] = DRAW_VERSION
    for key in ("annotations", "test_annotations"):
        path = getattr(data, key)
        if path is not None and not Path(path).is_file():
            raise DataError(
                f"{key}: file {path} does not exist. Expected a COCO-format JSON file; check the path."
            )
        content[key] = None if path is None else hashlib.sha256(Path(path).read_bytes()).hexdigest()
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:8]


def _build_coco(data: CocoData, root: Path) -> None:
    """Draw and write the image split (unless a test file is given) and the few-shot splits; `done.json` last."""
    whole = load_coco(data.annotations, data.images, drop_invalid=data.drop_invalid)
    base_names, novel_names = partition(
        data.base_classes, data.novel_classes, whole.class_names, where=data.annotations
    )
    class_names = (*base_names, *novel_names)
    if data.test_annotations is None:
        train, test = split_images(
            whole, test_fraction=data.test_fraction, seed=data.seed, class_names=class_names
        )
        write_coco(root / "annotations" / "train.json", train, images_dir=data.images)
        write_coco(root / "annotations" / "test.json", test, images_dir=data.images)
    else:
        train, test = whole, _load_coco_test(data, Path(data.test_annotations), class_names, root.name)
    shared = {record.path for record in train.images} & {record.path for record in test.images}
    if shared:
        raise SplitError(
            f"{len(shared)} images are for training and for testing, e.g. {min(shared)}. Expected none."
        )
    for class_name in novel_names:
        _draw_class(data, root, train, class_name)
    if len(train) + len(test) <= MAX_DECODED:
        check_images(train)
        check_images(test)
    no_base_shots = []
    for class_name in base_names:
        try:
            _draw_class(data, root, train, class_name)
        except SplitError as error:  # reported when a gfsod draw is asked for; fsod does not need it
            no_base_shots.append(str(error))
    if no_base_shots:
        logger.warning(
            "%s: %d of %d base classes are too rare for gfsod", root.name, len(no_base_shots), len(base_names)
        )
    write_json(
        root / "done.json",
        {"base_names": base_names, "novel_names": novel_names, "no_base_shots": no_base_shots},
    )


def _draw_class(data: CocoData, root: Path, train: DetectionData, class_name: str) -> None:
    """Draw and write the shots of one class, all K and seeds."""
    for seed in range(data.num_seeds):
        draws = draw_few_shot(train, [class_name], shots=data.shots, seed=SEED_STRIDE * data.seed + seed)
        write_few_shot(root / "few_shot" / "kshot", train, draws, seed=seed, images_dir=data.images)


def _read_done(folder: Path) -> dict:
    return json.loads((folder / "done.json").read_text())


def _files_of(class_names: Sequence[str] | None, folders: Sequence[Path]) -> list[Path]:
    """The few-shot files of some classes (None: of all) in some folders of draws."""
    endings = (
        None if class_names is None else {f"shot_{file_label(name)}_trainval.json" for name in class_names}
    )
    return [
        path
        for folder in folders
        for path in sorted(folder.rglob("full_box_*shot_*_trainval.json"))
        if endings is None or f"shot_{path.name.split('shot_', 1)[1]}" in endings
    ]


def _hash_files(*paths: Path) -> str:
    """SHA-256 over the names and contents of files; where they lie does not matter."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(f"{path.name} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()
