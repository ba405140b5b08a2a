"""The sets of annotations that the data of a params file name, for the check of all of them."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from risf_core.data.benchmark import files_of, open_benchmark
from risf_core.data.problems import Problems
from risf_core.errors import RisfError
from risf_core.progress import progress
from risf_core.runs.yaml_files import project_path

if TYPE_CHECKING:
    from risf_core.data_params import CocoData, XmlData
    from risf_core.params import NotebookParams


class NamedSet(NamedTuple):
    """Annotations (a COCO file, a folder of XML files, a devkit), their images, the image sets of a devkit.

    `source` is that of the parameters; None where the annotations themselves tell.
    """

    annotations: Path
    images_dir: Path | None = None
    image_sets: tuple[str, ...] = ()
    source: str | None = None


def named_sets(params: NotebookParams) -> list[NamedSet]:
    """Training set, test set and given K-shot sets; those of pictograms are rendered first if they are not there."""
    data = params.data
    if data.source == "pictograms":
        return _of_pictograms(params)
    if data.source == "voc":
        sets = [NamedSet(project_path(data.voc2007), None, ("trainval", "test"))]
        return sets + [NamedSet(project_path(data.voc2012), None, ("trainval",))] if data.voc2012 else sets
    pairs = _of_coco(data) if data.source == "coco" else _of_xml(data)
    return [NamedSet(*map(project_path, pair), source=data.source) for pair in dict.fromkeys(pairs)]


def files_not_there(params: NotebookParams) -> list[Path]:
    """Files and folders that are missing, of the runs as well that this one builds on."""
    from risf_core.runs.run_specs import upstream  # here: it imports all models of parameters
    from risf_core.runs.state import missing_files

    above = (path for spec in upstream(params) for path in files_not_there(spec.params))
    return list(dict.fromkeys((*missing_files(params), *above)))


def _of_pictograms(params: NotebookParams) -> list[NamedSet]:
    from risf_core.data.shots import ARMS
    from risf_core.data.world import build_world

    world = build_world(params.data)
    folders = [world.few_shot_root(getattr(params, "split", 1), arm) for arm in ARMS]
    files = [world.trainval_annotations, world.test_annotations, *files_of(None, folders)]
    return [NamedSet(file, world.root) for file in files]


def _of_coco(data: CocoData) -> list[tuple[str, str]]:
    test_images = data.test_images or data.images
    pairs = [(data.annotations, data.images), (data.test_annotations, test_images)]
    if data.few_shot.kind == "files":
        pairs += [(file, data.images) for file in data.few_shot.files(data.shots, data.num_seeds)]
    if data.few_shot.kind == "published":
        pairs += [(str(file), data.images) for file in files_of(None, [project_path(data.few_shot.folder)])]
    return [pair for pair in pairs if pair[0] is not None]


def _of_xml(data: XmlData) -> list[tuple[str, str]]:
    pairs = [(data.annotations or data.images, data.images)]
    if data.test_images is not None:
        pairs.append((data.test_annotations or data.test_images, data.test_images))
    return pairs


def open_as_a_run(params: NotebookParams, problems: Problems) -> int:
    """Open the data as a run does and read every K-shot set; what is drawn is drawn in a temporary folder.

    Returns:
        The number of K-shot sets read.
    """
    data, setting, count = params.data, getattr(params, "setting", "fsod"), 0
    with tempfile.TemporaryDirectory() as folder:
        if data.source in ("coco", "xml"):
            data = data.model_copy(update={"root": folder})
        try:
            benchmark = open_benchmark(data, split=getattr(params, "split", 1))
        except RisfError as error:
            problems.add(getattr(error, "kind", "data"), str(error))
            return 0
        draws = [(shots, seed) for shots in benchmark.shots for seed in range(benchmark.num_seeds)]
        for shots, seed in progress(draws, desc="reading K-shot sets", unit="sets"):
            try:
                benchmark.few_shot(shots, seed, setting=setting)
                count += 1
            except RisfError as error:
                problems.add("K-shot set", f"K = {shots}, seed {seed}: {error}")
    return count
