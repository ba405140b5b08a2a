"""One data set made ready for few-shot detection: its base/novel partition, training and test parts, K-shot draws.

What is not on disk yet is rendered or drawn, and written, when a benchmark is opened for the first time.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

from risf_core.data.clean_seeds import restore_instances
from risf_core.data.coco import load_coco
from risf_core.data.dataset import DetectionData, check_class_list, merge_images, summarize
from risf_core.data.few_shot import file_label, load_few_shot
from risf_core.errors import SplitError

if TYPE_CHECKING:
    import pandas as pd

    from risf_core.data_params import CocoData, PictogramData, VocData, XmlData

logger = logging.getLogger(__name__)

ANNOTATION_ENDINGS = {".json", ".xml", ".txt"}  # of the files that count in a folder of data


@dataclass(frozen=True, eq=False)
class Benchmark:
    """A data set with one base/novel partition.

    Attributes:
        name: For messages, tables and pictures.
        base_names: Base classes, in the order of their labels; none where the base model comes from other data.
        novel_names: Novel classes, in the order of their labels; they follow the base classes where both are present.
        test: Test images with the boxes of base and novel classes.
        arms: Kinds of K-shot images: ("kshot", "missing", "full") for pictograms, ("kshot", "clean") for data of the
            user (`risf_core.data.clean_seeds`), ("kshot",) where there are no annotations but those of the shots.
        shots: The values of K that there are.
        num_seeds: Draws are numbered 0 to this less one.
        hash: SHA-256 over annotation and split files.
        load_train: Reads the training images with the boxes of all classes.
        load_shots: ``load_shots(arm=, shots=, seed=, setting=)`` reads a draw.
        is_exact: Whether every draw has exactly K boxes of each class; published ones may not.
        is_nested: Whether the images and boxes of a smaller K are among those of a larger one.
        evaluation: Options of `risf_core.voc_evaluation.evaluator_for` for VOC; empty for COCO's.
    """

    name: str
    base_names: tuple[str, ...]
    novel_names: tuple[str, ...]
    test: DetectionData
    arms: tuple[str, ...]
    shots: tuple[int, ...]
    num_seeds: int
    hash: str
    load_train: Callable[[], DetectionData]
    load_shots: Callable[..., DetectionData]
    is_exact: bool = True
    is_nested: bool = True
    evaluation: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def train(self) -> DetectionData:
        """All training images with the boxes of all classes of the file; what base training may not see is in it."""
        return self.load_train()

    @cached_property
    def base_train(self) -> DetectionData:
        """Training images with the boxes of base classes alone; images without one are dropped.

        Objects of novel and other classes in them become background, as published.

        Raises:
            SplitError: If there are no base classes.
        """
        self._check_base_names("base training")
        return self.train.select_classes(self.base_names).drop_empty()

    def few_shot(self, shots: int, seed: int, *, arm: str = "kshot", setting: str = "fsod") -> DetectionData:
        """The images of one draw.

        Args:
            shots: K.
            seed: Number of the draw.
            arm: Which K-shot images, one of `arms`.
            setting: "fsod" for the novel classes alone, "gfsod" for K boxes of each base and novel class.

        Returns:
            Data with the classes `novel_names`, or `base_names` + `novel_names` for "gfsod"; images without a box of
            these are dropped.

        Raises:
            SplitError: If there is no such draw, or it has not exactly K boxes of each class (arms "full" and "clean",
                and published draws, excepted).
        """
        self._check_draw(shots, seed, arm, setting)
        if arm == "clean":
            return restore_instances(self.few_shot(shots, seed, setting=setting), self.train)
        data = self.load_shots(arm=arm, shots=shots, seed=seed, setting=setting).drop_empty()
        exact = self.base_names if arm == "full" else data.class_names
        wrong = [(name, count) for name, count in data.counts().items() if count != shots and name in exact]
        if wrong and self.is_exact:
            name, count = wrong[0]
            raise SplitError(
                f"{data.name}: {count} boxes of {name!r}. Expected {shots}: delete the folder of draws and rerun."
            )
        return data

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
        if setting == "gfsod":
            self._check_base_names("gfsod")

    def _check_base_names(self, what: str) -> None:
        if not self.base_names:
            raise SplitError(f"{self.name}: there are no base classes. Expected some for {what}.")

    def summary(self) -> pd.DataFrame:
        """Images, boxes and crowd regions of each class in both parts, and what base training leaves out."""
        if not self.base_names:
            return summarize({"test": self.test})
        table = summarize({"base training": self.base_train, "test": self.test})
        left_out = summarize({"base training": self.train}).loc["all"] - table.loc["all"]
        table.loc["left out of base training"] = left_out.reindex(table.columns)
        groups = dict.fromkeys(self.base_names, "base") | dict.fromkeys(self.novel_names, "novel")
        table.insert(0, ("", "group"), [groups.get(name, "") for name in table.index])
        return table


def open_benchmark(data: PictogramData | CocoData | XmlData | VocData, *, split: int = 1) -> Benchmark:
    """Open a data set for few-shot detection, and first render or draw what is not on disk yet.

    Several processes may open the same data at once; one of them prepares it.

    Args:
        data: The ``data`` part of a notebook's parameters.
        split: Number of the base/novel partition: 1 to 3 for pictograms and VOC, 1 for other data.

    Raises:
        DataError: If annotations or images are wrong.
        SplitError: If the partition or a draw of the novel classes is impossible.
    """
    if data.source == "pictograms":
        benchmark = _open_pictograms(data, split)
    elif data.source == "voc":
        from risf_core.data.voc_benchmark import open_voc

        benchmark = open_voc(data, split)
    else:
        from risf_core.data.user_benchmark import open_user_data

        benchmark = open_user_data(data, split)
    absent = [name for name, count in benchmark.test.counts().items() if count == 0]
    if absent:
        logger.warning(
            "%s: no test image has a box of %s; their AP is n/a and outside every mean",
            benchmark.name,
            ", ".join(absent),
        )
    return benchmark


def partition(
    base: Sequence[str] | None, novel: Sequence[str] | None, available: Sequence[str], *, where: str
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Check a base/novel partition; base None means all other classes, an empty tuple none; novel None means all.

    Raises:
        SplitError: If a class is unknown, listed twice or in both lists, or there are none where some are needed.
    """
    novel_names = check_class_list(available if novel is None else novel, available, where=where)
    if base is None:
        base = [name for name in available if name not in novel_names]
    base_names = check_class_list(base, available, where=where)
    both = [name for name in base_names if name in novel_names]
    if both:
        raise SplitError(
            f"{where}: class {both[0]!r} is a base and a novel class. Expected it in one of the two lists."
        )
    if (not base_names and base != ()) or not novel_names:
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
        hash=hash_files(train_annotations, test_annotations, *files_of(novel_names, folders)),
        load_train=partial(load_coco, train_annotations, world.root, name=f"{name} train"),
        load_shots=partial(
            load_layout, partial(world.few_shot_root, split), world.root, base_names, novel_names
        ),
    )


def load_layout(
    find_shots: Callable[..., Path],
    images_dir: Path,
    base_names: Sequence[str],
    novel_names: Sequence[str],
    *,
    arm: str,
    shots: int,
    seed: int,
    setting: str,
    drop_invalid: bool = False,
) -> DetectionData:
    """Read a draw from the published file layout.

    ``find_shots(arm, with_base=False)`` gives the folder of an arm's draws; with_base asks for the base classes' too.
    """
    options = {"shots": shots, "seed": seed, "drop_invalid": drop_invalid}
    novel = load_few_shot(find_shots(arm), images_dir, class_names=novel_names, **options)
    if setting == "fsod":
        return novel
    base = load_few_shot(find_shots(arm, with_base=True), images_dir, class_names=base_names, **options)
    return merge_images([base, novel], name=novel.name, class_names=(*base_names, *novel_names))


def files_of(class_names: Sequence[str] | None, folders: Sequence[Path]) -> list[Path]:
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


def hash_files(*paths: Path) -> str:
    """SHA-256 over the names and contents of files, in folders of those below; where they lie does not matter."""
    digest = hashlib.sha256()
    for path in paths:
        inside = (file for file in path.rglob("*") if file.suffix in ANNOTATION_ENDINGS)
        for file in sorted(inside) if path.is_dir() else [path]:
            name = file.relative_to(path).as_posix() if path.is_dir() else path.name
            with file.open("rb") as content:
                digest.update(f"{name} {hashlib.file_digest(content, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()
