"""PASCAL VOC as a benchmark: trained on 2007 and 2012 trainval, tested on 2007 test, published splits and lists."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from risf_core.data.benchmark import Benchmark, hash_files
from risf_core.data.dataset import DetectionData
from risf_core.data.splits import VOC_CLASSES, load_voc_shots, voc_partition
from risf_core.data.voc import load_voc
from risf_core.runs.yaml_files import project_path

if TYPE_CHECKING:
    from risf_core.data_params import VocData


def open_voc(data: VocData, split: int) -> Benchmark:
    """Open VOC with one of its published splits; nothing is written.

    Raises:
        DataError: If image sets, images or annotations are missing or wrong.
        SplitError: If there is no such split.
    """
    base_names, novel_names = voc_partition(split)
    voc2007 = project_path(data.voc2007)
    voc2012 = None if data.voc2012 is None else project_path(data.voc2012)
    trainval = [(folder, "trainval") for folder in (voc2007, voc2012) if folder is not None]
    name = f"VOC split {split}"
    folders = {"voc2007": voc2007, "voc2012": voc2012, "lists": project_path(data.splits)}
    return Benchmark(
        name=name,
        base_names=base_names,
        novel_names=novel_names,
        test=load_voc_test(data, split),
        arms=("kshot", "clean"),
        shots=tuple(data.shots),
        num_seeds=data.num_seeds,
        hash=hash_files(*(project_path(folder) for folder in data.files())),
        load_train=partial(load_voc, trainval, class_names=VOC_CLASSES, name=f"{name} train"),
        load_shots=partial(_load_shots, folders, base_names, novel_names, data.seed),
        is_exact=False,
        is_nested=False,
        evaluation=evaluation_of(data),
    )


def load_voc_test(data: VocData, split: int) -> DetectionData:
    """The test images of 2007, base classes first; nothing else need be there."""
    base_names, novel_names = voc_partition(split)
    folder, name = project_path(data.voc2007), f"VOC split {split} test"
    return load_voc([(folder, "test")], class_names=(*base_names, *novel_names), name=name)


def evaluation_of(data: VocData) -> dict[str, str]:
    """Options of `risf_core.voc_evaluation.evaluator_for`."""
    return {"metric": data.metric, "rounding": data.rounding, "absent": data.absent}


def _load_shots(
    folders: dict[str, Path],
    base_names: tuple[str, ...],
    novel_names: tuple[str, ...],
    cut_seed: int,
    *,
    arm: str,
    shots: int,
    seed: int,
    setting: str,
) -> DetectionData:
    """A published draw; `arm` is kshot, for the clean one follows from it."""
    class_names = novel_names if setting == "fsod" else (*base_names, *novel_names)
    return load_voc_shots(shots=shots, seed=seed, class_names=class_names, cut_seed=cut_seed, **folders)
