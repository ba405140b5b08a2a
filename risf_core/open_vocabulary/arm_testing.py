"""Test a trained arm on any annotated images: what ``python -m risf_core.open_vocabulary test`` does.

An arm's file holds weights and the kind of its head. The rest stands in the record of its run: the detector (or the
base model's run that has it), temperature, bias and residual width, the prompts, and the CLIP whose texts it classifies
by. The columns of the text matrix are swapped for the names of the data; nothing is trained.
"""

from __future__ import annotations

import argparse
import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ValidationError

from risf_core.class_lists import read_class_list
from risf_core.clip_models import load_clip
from risf_core.cm_clip import CMCLIP
from risf_core.command_line import device_of, say
from risf_core.data.coco import load_coco, write_json
from risf_core.data.dataset import DetectionData, check_class_list
from risf_core.detections import MAX_DETECTIONS, Detections, cut
from risf_core.detections import _load_npz as load_arrays
from risf_core.detector.checkpoints import read_checkpoint
from risf_core.errors import CheckpointError, DataError, ParamsError, SplitError
from risf_core.evaluation import METRICS, Evaluator
from risf_core.open_vocabulary.arms import Architecture
from risf_core.open_vocabulary.cross_data import match_names, swap_vocabulary
from risf_core.open_vocabulary.detector import OpenVocabularyRCNN
from risf_core.open_vocabulary.large_vocabulary import KEPT, LARGE, LeanDetections, detect_vocabulary
from risf_core.open_vocabulary.lvis_data import FREQUENCIES, LvisData, load_lvis
from risf_core.open_vocabulary.lvis_evaluation import LVIS_MAX_DETS, LvisEvaluator
from risf_core.open_vocabulary.make_regions import clip_weights, in_parts, logger, part_key
from risf_core.open_vocabulary_params import OpenVocabularyParams
from risf_core.params import BaseTrainingParams, DetectorParams
from risf_core.runs.run_specs import load_run, upstream
from risf_core.runs.state import load_record, results_dir, run_id
from risf_core.runs.yaml_files import explain, project_root

PROJECTION = "roi_heads.box_predictor.projection.weight"  # of f, float [d, D]
BASE, CLIP = "10_base_training", "12_tiny_clip"


def run_test(arguments: argparse.Namespace, parts: Path) -> dict[str, Any]:
    """Detect, write and evaluate, as the command line says; ``parts`` is the folder of what is done so far.

    Returns:
        The metrics (`Evaluator.evaluate`).
    """
    run = read_run(arguments.record or record_of(arguments.weights))
    arm = arm_of(run.params, arguments.arm or arguments.weights.stem)
    test = open_test(arguments)
    say(
        f"{len(test.data)} images, {test.num_objects} objects of {len(test.classes)} classes; {len(test.names)} names"
    )
    detector, clip_name = open_arm(run, arguments, test.names, parts)
    limits = {
        "score_thresh": run.params.score_thresh if arguments.score_thresh is None else arguments.score_thresh,
        "max_detections": LVIS_MAX_DETS if arguments.lvis else MAX_DETECTIONS,
    }
    found = detect_in_parts(detector, test.data, parts, **limits)
    write_json(arguments.out, found.to_coco_results(test.category_ids))
    metrics = test.evaluator.evaluate(found)
    facts = {"weights": str(arguments.weights), "arm": arm, "run_id": run.name, "clip": clip_name, **limits}
    facts |= {"templates": list(run.params.templates), "annotations": str(arguments.annotations)}
    summary = metrics_path(arguments.out)
    write_json(summary, facts | test.facts() | {"metrics": metrics})
    _tell(metrics, test)
    say(f"written: {arguments.out}, {summary}; parts, no longer needed: {parts}")
    return metrics


def metrics_path(out: Path) -> Path:
    """Where metrics, names and their ids go: beside the results."""
    return out.with_suffix(".metrics.json")


def _tell(metrics: Mapping[str, Any], test: TestSet) -> None:
    if not test.num_objects:
        say("there are no objects in the annotations, so there is no AP")
        return
    titles = {"": "all classes", **{name[:1]: f"{name} classes" for name in ("base", "novel")}}
    for prefix, title in titles.items():
        values = {name: metrics.get(prefix + name) for name in METRICS}
        if any(value is not None for value in values.values()):
            say(f"{title}: {', '.join(f'{name} {value:.2f}' for name, value in values.items())}")
    for letter, word in FREQUENCIES.items():
        if metrics.get(f"AP{letter}") is not None:
            say(f"{word} classes: AP {metrics[f'AP{letter}']:.2f}")


# ----------------------------------------------------------------------------------------------------- the arm's run


@dataclass(frozen=True)
class ArmRun:
    """What the run of an arm says.

    Attributes:
        name: Its run id.
        params: Its parameters.
        detector: The detector of all its arms.
        tower: Of the CLIP that it was trained with, where a run of this project made it, else None.
        clip_file: That CLIP's weights.
    """

    name: str
    params: OpenVocabularyParams
    detector: DetectorParams
    tower: str | None
    clip_file: Path | None

    @property
    def architecture(self) -> Architecture:
        """As in the run (`risf_core.open_vocabulary.study`)."""
        detector = self.detector.model_copy(update={"rpn_post_nms_train": self.params.num_proposals})
        return Architecture(detector, self.params.temperature, self.params.bias, self.params.residual_width)


def record_of(weights: Path) -> Path:
    """The record of the run that wrote weights: ``P/records/ID.json`` of ``P/artifacts/ID/weights/ARM.pth``.

    Raises:
        ParamsError: If there is none.
    """
    folder = weights.absolute().parent.parent
    path = folder.parent.with_name("records") / f"{folder.name}.json"
    if not path.is_file():
        raise ParamsError(
            f"--weights {weights}: {path} is not there, so the run of the arm is not known. Give --record, its record "
            "or params file."
        )
    return path


def read_run(path: Path) -> ArmRun:
    """The run of an arm, from its record (``.json``) or its params file (``.yaml``), with those that it builds on.

    A record names the runs that it builds on with their states; their own records are looked for beside it and in the
    other profiles of its ``results`` folder, and must have these states.

    Raises:
        ParamsError: If it is of another notebook, or a value in it is wrong.
        DataError: If the record is unreadable, or one that it builds on is missing or was made anew since.
    """
    if path.suffix in (".yaml", ".yml"):
        params = load_run(path).params
        _check_notebook(path, params.notebook)
        name = run_id(params)
        above = {
            spec.params.notebook: (
                spec.params.model_dump(mode="json"),
                results_dir(spec.params.profile) / "artifacts" / run_id(spec.params),
            )
            for spec in upstream(params)
        }
    else:
        record = load_record(path)
        if record is None:
            raise DataError(
                f"--record {path}: no readable record. Expected results/PROFILE/records/open_vocabulary-*.json."
            )
        _check_notebook(path, record.get("notebook"))
        params, name = _validated(OpenVocabularyParams, record["params"], path), record["run_id"]
        found = [_record_above(path, one, state) for one, state in record.get("upstream", {}).items()]
        above = {one["notebook"]: (one["params"], folder) for one, folder in found}
    detector, tower, clip_file = params.detector, None, None
    if params.base is not None:
        detector = _validated(BaseTrainingParams, _of(above, BASE, path)[0], path).detector
    if params.clip.run is not None:
        values, folder = _of(above, CLIP, path)
        tower, clip_file = values["tower"], folder / "clip.pt"
    return ArmRun(name, params, detector, tower, clip_file)


def _of(above: Mapping[str, tuple[dict, Path]], notebook: str, path: Path) -> tuple[dict, Path]:
    """Parameters and folder of the one run of a notebook."""
    if notebook not in above:
        raise DataError(
            f"--record {path}: names no run of {notebook} that it builds on. Expected the whole record."
        )
    return above[notebook]


def _check_notebook(path: Path, notebook: str | None) -> None:
    if notebook != OpenVocabularyParams.notebook:
        raise ParamsError(
            f"--record {path}: of the notebook {notebook}. Expected a run of {OpenVocabularyParams.notebook}."
        )


def _validated(model: type[BaseModel], values: dict, path: Path) -> Any:
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise ParamsError(f"--record {path}: {explain(error, model)}") from None


def _record_above(path: Path, name: str, state: str) -> tuple[dict[str, Any], Path]:
    """The record of a run that a record builds on, and the folder of its artifacts."""
    beside = [path.absolute().parent / f"{name}.json"]
    roots = dict.fromkeys((*list(path.absolute().parents)[2:3], project_root() / "results"))
    found = [*beside, *(one for root in roots for one in sorted(root.glob(f"*/records/{name}.json")))]
    records = [(record, one) for one in found if (record := load_record(one)) is not None]
    if not records:
        raise DataError(
            f"--record {path} builds on the run {name}, whose record is not beside it. Copy it there."
        )
    for record, one in records:
        if record["state_hash"] == state:
            return record, one.parents[1] / "artifacts" / name
    raise DataError(
        f"--record {path}: {records[0][1]} was made anew since, with other code or data. Run the arm anew."
    )


def arm_of(params: OpenVocabularyParams, name: str) -> str:
    """The arm's name, checked.

    Raises:
        ParamsError: If the run has no such arm, or its texts were moved along a direction of their own.
    """
    if name != "stage0" and name not in params.arms:
        raise ParamsError(
            f"the run has no arm {name!r}. Give --arm, one of: stage0, {', '.join(params.arms)}."
        )
    if name in params.arms and params.arms[name].text_cosine is not None:
        raise ParamsError(
            f"the arm {name} was trained on texts moved along a direction that belongs to its own names "
            "(text_cosine). Expected an arm without it: other names have no such direction."
        )
    return name


def open_arm(
    run: ArmRun, arguments: argparse.Namespace, names: Sequence[str], store: Path
) -> tuple[OpenVocabularyRCNN, str]:
    """The arm over the texts of names, and its CLIP's name.

    Raises:
        CheckpointError: If the CLIP's file is missing or of other width, or the weights are not the arm's.
    """
    device, source = device_of(arguments.device), run.params.clip
    weights = read_checkpoint(arguments.weights)
    if arguments.clip is not None:
        loaded, name = load_clip(arguments.clip, clip_weights(arguments), device=device), arguments.clip
    elif run.tower is None:
        loaded = load_clip(source.model, source.pretrained, device=device, seed=run.params.seed)
        name = " ".join(filter(None, (source.model, source.pretrained)))
    else:
        if not run.clip_file.is_file():
            raise CheckpointError(
                f"{run.clip_file}: the CLIP that the arm was trained with is not there. Give it: --clip {run.tower} "
                "--pretrained FILE."
            )
        loaded, name = load_clip(run.tower, run.clip_file, device=device), str(run.clip_file)
    templates = run.params.templates
    clip = CMCLIP(
        loaded.model, loaded.tokenizer, names, label_space=names, templates=templates, text_store=store
    )
    texts, projection = clip.encode_names(tuple(names)).clone(), weights.get("model", {}).get(PROJECTION)
    if projection is not None and len(projection) != texts.shape[1]:
        raise CheckpointError(
            f"{arguments.weights}: made for texts of {len(projection)} numbers, but those of {name} have "
            f"{texts.shape[1]}. Give the CLIP that it was trained with."
        )
    return run.architecture.load(arguments.weights, texts, seed=run.params.seed, device=device), name


# ------------------------------------------------------------------------------------------------- data and names


@dataclass(frozen=True, eq=False)
class TestSet:
    """Annotated images under the columns of a vocabulary.

    Attributes:
        data: The images; its classes are the columns.
        evaluator: Of these.
        classes: The classes of the file that each column with objects is.
        category_ids: Of each column in results files: that of the file where it is one class of it, else a new one.
        left_out: Classes whose boxes are left out.
    """

    data: DetectionData
    evaluator: Evaluator
    classes: dict[str, list[str]]
    category_ids: tuple[int, ...]
    left_out: tuple[str, ...]
    __test__ = False  # no test of pytest's

    @property
    def names(self) -> tuple[str, ...]:
        """The columns."""
        return self.data.class_names

    @property
    def num_objects(self) -> int:
        """Boxes that count."""
        return len(self.data.flat.labels)

    def facts(self) -> dict[str, Any]:
        """For the file beside the results."""
        columns = [
            {"name": name, "category_id": key, "classes": self.classes.get(name, [])}
            for name, key in zip(self.names, self.category_ids, strict=True)
        ]
        return {
            "images": len(self.data),
            "objects": self.num_objects,
            "names": columns,
            "left_out": self.left_out,
        }


def open_test(arguments: argparse.Namespace) -> TestSet:
    """The images and boxes of ``--annotations`` under the names of ``--names``, or under their own.

    Raises:
        SplitError: If a class has no column, or could be several.
        ParamsError: If a name of ``--novel`` is no class.
    """
    path, folder = arguments.annotations, arguments.images
    lvis = load_lvis(path, folder) if arguments.lvis else None
    own = lvis.data if lvis is not None else load_coco(path, folder, drop_invalid=True)
    renamed, left_out = dict(arguments.rename), tuple(arguments.leave_out)
    check_class_list(left_out, own.class_names, where="--leave-out")
    check_class_list(tuple(renamed), own.class_names, where="--rename")
    kept = [name for name in own.class_names if name not in left_out]
    if arguments.names is not None:
        names = read_class_list(arguments.names).names
    else:
        names = tuple(dict.fromkeys(renamed.get(name, name) for name in kept))
    try:
        data = swap_vocabulary(own, names, renamed=renamed, leave_out=left_out)
    except SplitError as error:
        raise SplitError(f"{error} On the command line: --rename OLD=NEW, --leave-out NAME.") from error
    column, classes = match_names(kept, names, renamed), defaultdict(list)
    for name in kept:
        classes[names[column[name]]].append(name)
    if lvis is not None:
        evaluator: Evaluator = LvisEvaluator(swap_lvis(lvis, data, column))
    else:
        groups = _groups(arguments.novel, classes, names, renamed)
        evaluator = Evaluator(data, groups=groups, max_dets=MAX_DETECTIONS)
    return TestSet(data, evaluator, dict(classes), _category_ids(own, names, classes), left_out)


def _category_ids(
    own: DetectionData, names: Sequence[str], classes: Mapping[str, list[str]]
) -> tuple[int, ...]:
    new, ids = max(own.category_ids, default=0), []
    by_name = dict(zip(own.class_names, own.category_ids, strict=True))
    for name in names:
        if len(classes.get(name, ())) == 1:
            ids.append(by_name[classes[name][0]])
        else:
            new += 1
            ids.append(new)
    return tuple(ids)


def _groups(
    novel: Sequence[str] | None,
    classes: Mapping[str, list[str]],
    names: Sequence[str],
    renamed: Mapping[str, str],
) -> dict[str, list[str]]:
    """Base and novel columns; a novel name may be the column's or the class's."""
    if novel is None:
        return {}
    column_of = {one: column for column, own in classes.items() for one in own} | {
        name: name for name in names
    }
    check_class_list(tuple(novel), tuple(column_of), where="--novel")
    chosen = list(dict.fromkeys(column_of[name] for name in novel))
    if missing := [name for name in chosen if name not in classes]:
        raise ParamsError(
            f"--novel: no class of the annotations is {missing[0]!r}. Expected classes that are tested."
        )
    groups = {"base": [name for name in classes if name not in chosen], "novel": chosen}
    return {name: members for name, members in groups.items() if members}


def swap_lvis(lvis: LvisData, data: DetectionData, column: Mapping[str, int]) -> LvisData:
    """An LVIS file under other columns: what each image is known to lack, and the frequency of each class, go along.

    Args:
        lvis: The file.
        data: Its images under the new columns (`swap_vocabulary`).
        column: The column of each class that is kept. Columns of no class count as frequent; no box is theirs.

    Raises:
        SplitError: If two classes are one column: what an image lacks is known by class alone.
    """
    names, own = data.class_names, lvis.data.class_names
    if len(set(column.values())) < len(column):
        twice = next(one for one in column.values() if list(column.values()).count(one) > 1)
        both = " and ".join(repr(name) for name, place in column.items() if place == twice)
        raise SplitError(
            f"--lvis: {both} would be one column, {names[twice]!r}. Leave one out, or name both."
        )
    new_label = np.array([column.get(name, -1) for name in own], dtype=np.int64)

    def swapped(labels: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
        moved = (new_label[one] for one in labels)
        return tuple(np.sort(one[one >= 0]) for one in moved)

    frequency, synonyms = ["f"] * len(names), [(name,) for name in names]
    for name, place in column.items():
        old = own.index(name)
        frequency[place], synonyms[place] = lvis.frequency[old], lvis.synonyms[old]
    known = swapped(lvis.negative), swapped(lvis.not_exhaustive)
    return LvisData(data, tuple(frequency), *known, tuple(synonyms))


# ---------------------------------------------------------------------------------------------------------- detecting


def detect_in_parts(
    detector: OpenVocabularyRCNN, data: DetectionData, folder: Path, **limits: float
) -> LeanDetections:
    """The detections that count, those of finished parts from their files.

    Args:
        detector: The arm over the columns of ``data``.
        data: The images.
        folder: Of the parts.
        limits: ``score_thresh`` and ``max_detections`` of `detect_vocabulary`.
    """
    from risf_core.cm_clip.journal import weights_hash

    predictor = detector.roi_heads.box_predictor
    texts = np.ascontiguousarray(predictor.classifier.texts_norm.cpu().numpy())
    facts = {
        "weights": weights_hash(detector),
        "texts": hashlib.sha256(texts.tobytes()).hexdigest(),
        **limits,
    }
    facts |= {"detector": detector.params.model_dump(mode="json"), "names": list(data.class_names)}
    facts["temperature"] = predictor.classifier.temperature
    places = [(part, folder / f"detections-{part_key(facts, part.images)}.npz") for part in in_parts(data)]
    num_done = sum(len(part) for part, path in places if path.exists())
    if num_done:
        say(f"{num_done} of {len(data)} images were done before")
    columns: dict[str, list[np.ndarray]] = {name: [] for name in KEPT}
    for part, path in places:
        rows = _stored(path, data.class_names, limits)
        if rows is None:
            with torch.no_grad():
                found = detect_vocabulary(detector, part, path, **limits)
            rows = {name: getattr(found, name) for name in KEPT}
        for name in KEPT:
            columns[name].append(rows[name])
    joined = {name: np.concatenate(values) for name, values in columns.items()}
    return LeanDetections.of(joined, data.class_names)


def _stored(
    path: Path, class_names: tuple[str, ...], limits: Mapping[str, float]
) -> dict[str, np.ndarray] | None:
    """The rows of a finished part that count; None if it is not there or damaged."""
    if not path.exists():
        return None
    try:
        if len(class_names) >= LARGE:
            return load_arrays(path, (*KEPT, "class_names"))
        found = cut(Detections.load(path), None, **limits)[0]
    except DataError as error:
        logger.warning("%s Its images are done anew.", error)
        return None
    return {name: getattr(found, name) for name in KEPT}
