"""Evaluate a trained detector on the test images of a data set, without any training: the release's ``--eval-only``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from risf_core.cm_clip import CMCLIP, encode_detections
from risf_core.data.benchmark import open_benchmark
from risf_core.data.dataset import DetectionData, check_class_list
from risf_core.data.splits import voc_partition
from risf_core.data.user_benchmark import open_test_images
from risf_core.data.voc_benchmark import evaluation_of, load_voc_test
from risf_core.detecting import detect_images
from risf_core.detections import Detections, Similarities
from risf_core.detector.weight_files import read_weight_file
from risf_core.detector_files import LoadedDetector, load_detector
from risf_core.errors import CheckpointError, ParamsError
from risf_core.fine_tuning import build_cm_clip, note_clip, open_clip_source, results_by_rescoring, settled
from risf_core.params import CheckpointSource, Data, DetectorParams, EvaluateParams
from risf_core.runs.yaml_files import project_path
from risf_core.voc_evaluation import evaluator_for


@dataclass(frozen=True, eq=False)
class TestSet:
    """Test images with the boxes of base and novel classes, in this order.

    ``hash``: of the files, None where only the test images are read. ``evaluation``: options of ``evaluator_for``.
    """

    __test__ = False  # for pytest, which takes the name for a test's
    data: DetectionData
    base_names: tuple[str, ...]
    novel_names: tuple[str, ...]
    hash: str | None = None
    evaluation: Mapping[str, str] = field(default_factory=dict)


def open_test_set(data: Data, *, split: int = 1) -> TestSet:
    """The test images of a data set; where it names them, no training image and no few-shot set need be there.

    Raises:
        DataError: If annotations or images are wrong.
        SplitError: If the base/novel partition is impossible.
    """
    if data.source == "voc":
        return TestSet(load_voc_test(data, split), *voc_partition(split), evaluation=evaluation_of(data))
    named = open_test_images(data) if data.source in ("coco", "xml") else None
    if named is not None:
        return TestSet(*named)
    benchmark = open_benchmark(data, split=split)
    names = benchmark.base_names, benchmark.novel_names
    return TestSet(benchmark.test, *names, benchmark.hash, benchmark.evaluation)


def open_detector(source: CheckpointSource, run, test: TestSet) -> LoadedDetector:
    """Build the detector of a checkpoint and load all its weights.

    Args:
        source: Which checkpoint, and for a file of others its architecture and classes; one of ours says both itself.
        run: The run, which knows those that it builds on.
        test: Says what the classes of a file of others are.

    Raises:
        CheckpointError: If the file is no such detector's, or has not as many classes as said.
    """
    path = run.upstream(source.run).dir / "model.pth" if source.run is not None else project_path(source.path)
    content = read_weight_file(path)
    params = _detector_params(source, content, path)
    class_names = _class_names(source, content, test, path)
    return load_detector(path, content, params, class_names, device=run.device)


def _detector_params(source: CheckpointSource, content: dict, path: Path) -> DetectorParams:
    """What the file says of its detector, else what the parameters say."""
    if "detector" in content:
        return DetectorParams.model_validate(content["detector"])
    if source.detector is None:
        raise CheckpointError(
            f"{path}: the file does not say which detector it is of. Expected checkpoint.detector in the parameters, "
            "such as the detector of params/coco/10_base_training.yaml."
        )
    return source.detector


def _class_names(source: CheckpointSource, content: dict, test: TestSet, path: Path) -> tuple[str, ...]:
    """Classes of the head, in the order of its rows: what the file says, else what the parameters say."""
    named = None if source.classes is None else _named_classes(source, test)
    if "class_names" not in content:
        if named is None:
            raise CheckpointError(
                f"{path}: the file names no classes. Say which its head has: checkpoint.classes: base, novel or all."
            )
        return named
    stored = check_class_list(
        content["class_names"], test.data.class_names, where=f"{path}: classes of its head"
    )
    if named is not None and set(named) != set(stored):
        raise CheckpointError(
            f"{path}: the file is of a head with {len(stored)} classes ({', '.join(stored[:3])}, ...), but "
            f"checkpoint.classes: {source.classes} names {len(named)} ({', '.join(named[:3])}, ...)."
        )
    return stored


def _named_classes(source: CheckpointSource, test: TestSet) -> tuple[str, ...]:
    both = {"base": test.base_names, "novel": test.novel_names, "all": (*test.base_names, *test.novel_names)}
    names = both[source.classes]
    if source.class_order == "base_novel":
        return names
    ids = dict(zip(test.data.class_names, test.data.category_ids, strict=True))
    return tuple(sorted(names, key=ids.__getitem__))


def evaluate_checkpoint(params: EvaluateParams, run) -> list[dict]:
    """Detect in all test images and evaluate, also after re-scoring where there is a CLIP; no training.

    Writes ``run.dir/detections.npz`` (score > 0.001, at most 300 an image) and ``run.dir/similarities.npz``, whose rows
    align; what is there already is not made again. ``score_thresh`` and ``max_detections`` cut the stored detections
    before they are re-scored, as published.

    Returns:
        A row for each re-scoring (``none``, ``cm_clip``, ``cm_clip_wide``): AP, AP50, AP75 in percent over the classes
        of the head, over base (b) and novel (n) ones (None where it has none of them), and of each class.
    """
    test = open_test_set(params.data, split=params.split)
    clip = _open_clip(
        params, run, test
    )  # what is missing is better missed before hours of detection than after
    found = stored_detections(params, run, test)
    similarities = stored_similarities(params, run, test, found, clip)
    cuts = {"score_thresh": params.score_thresh, "max_detections": params.max_detections}
    cm_clip = settled(params.cm_clip, run.dir)
    results = results_by_rescoring(found, similarities, test, cm_clip, **cuts)
    evaluator = evaluator_for(
        test.data,
        groups={"base": test.base_names, "novel": test.novel_names},
        max_dets=params.max_detections,
        engine=params.engine,
        **test.evaluation,
    )
    for rescoring, detections in results.items():
        if not run.rows.done(split=params.split, rescoring=rescoring):
            run.rows.add({"split": params.split, "rescoring": rescoring}, evaluator.evaluate(detections))
    return run.rows.as_list()


def stored_detections(params: EvaluateParams, run, test: TestSet) -> Detections:
    """The detections of all test images: read if they are stored, else made and stored."""
    path = run.dir / "detections.npz"
    if not path.exists():
        loaded = open_detector(params.checkpoint, run, test)
        _check_rescored(params, loaded.class_names, test)
        data = test.data.select_classes(loaded.class_names)
        detect_images(loaded.detector, data, batch_size=params.batch_size).save(path)
    return Detections.load(path)


def _open_clip(params: EvaluateParams, run, test: TestSet) -> CMCLIP | None:
    """CM-CLIP where there is one and its cosines are not stored yet."""
    if params.clip is None or (run.dir / "similarities.npz").exists():
        return None
    _, clip = open_clip_source(params.clip, run, device=run.device, seed=params.seed)
    cm_clip = build_cm_clip(clip, test, params.cm_clip)
    note_clip(cm_clip, run)
    return cm_clip


def stored_similarities(
    params: EvaluateParams, run, test: TestSet, found: Detections, clip: CMCLIP | None
) -> Similarities | None:
    """Cosines of the detections' crops, one row for each: read, or made by `clip`; None without a CLIP."""
    if params.clip is None:
        return None
    _check_rescored(params, found.class_names, test)
    path = run.dir / "similarities.npz"
    if not path.exists():
        encode_detections(
            found,
            test.data,
            clip,
            score_thresh=params.cm_clip.score_thresh,
            rescored_classes=test.novel_names,
            desc="encoding crops",
            **params.cm_clip.crop_choice(),
        ).save(path)
    return Similarities.load(path)


def _check_rescored(params: EvaluateParams, class_names: Sequence[str], test: TestSet) -> None:
    if params.clip is not None and not set(test.novel_names) <= set(class_names):
        raise ParamsError(
            "CM-CLIP re-scores novel classes, and the head of this checkpoint lacks some of them; write clip: null"
        )
