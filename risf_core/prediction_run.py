"""Predictions from a notebook's parameters: a fine-tuning run's cell, its CLIP, and the small weights of the demo."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np

from risf_core.bnrl import get_loss
from risf_core.checkpoint_evaluation import open_test_set
from risf_core.class_lists import read_class_list
from risf_core.cm_clip import BACKGROUND
from risf_core.custom_loss import loss_name
from risf_core.data.dataset import check_class_list
from risf_core.data.glyphs import CONCEPTS
from risf_core.data.world import CAPTIONS, build_world
from risf_core.demo import measure
from risf_core.demo_weights import CLIP, DETECTOR, save_half_clip, save_half_detector, write_facts
from risf_core.detections import ARRAY_TYPES, Detections
from risf_core.detector_files import LoadedDetector
from risf_core.errors import DataError, ParamsError
from risf_core.fine_tuning import cell_name, fine_tune, open_clip_source, open_context
from risf_core.params import FineTuningParams, PredictorSource, PredictParams, TinyClipParams
from risf_core.prediction import (
    Prediction,
    Predictor,
    cm_clip_of,
    open_detector_file,
    write_results,
)
from risf_core.records import Run
from risf_core.runs.yaml_files import project_path
from risf_core.tiny_clip import CHECKPOINT

log = logging.getLogger(__name__)


def open_predictor(params: PredictParams, run: Run) -> Predictor:
    """The detector and the CLIP that the parameters name."""
    loaded = open_source(params.checkpoint, run)
    clip = None
    if params.clip is not None:
        _, model = open_clip_source(params.clip, run, device=run.device, seed=params.seed)
        rescored = params.rescored_classes or loaded.class_names
        check_class_list(rescored, loaded.class_names, where="rescored_classes")
        clip = cm_clip_of(model, rescored, params.cm_clip, class_names=loaded.class_names)
    cuts = {"score_thresh": params.score_thresh, "max_detections": params.max_detections}
    return Predictor(loaded, clip, params.cm_clip, **cuts)


def open_source(source: PredictorSource, run: Run) -> LoadedDetector:
    """The detector of a cell, kept or trained again, or of a file."""
    if source.run is not None:
        return open_detector_file(cell_weights(source, run), device=run.device)
    names = None if source.classes is None else read_class_list(project_path(source.classes)).names
    path = project_path(source.path)
    return open_detector_file(path, detector=source.detector, class_names=names, device=run.device)


def cell_weights(source: PredictorSource, run: Run) -> Path:
    """The checkpoint of a fine-tuning run's cell: the one that the run kept, else ``run.dir/detector.pth``.

    Without ``keep_weights`` the cell is trained again, which takes seconds from stored region features. On a CPU that
    gives the very detections that the run has stored; elsewhere a warning says how many differ.

    Raises:
        ParamsError: If the run has no such cell.
    """
    upstream = run.upstream(source.run)
    params = FineTuningParams.model_validate(upstream.record["params"])
    losses = {loss_name(spec): spec for spec in params.losses}
    for what, value, known in (
        ("seed", source.seed, params.seeds),
        ("arm", source.arm, params.arms),
        ("loss", source.loss, tuple(losses)),
    ):
        if value not in known:
            cells = ", ".join(map(str, known))
            raise ParamsError(f"checkpoint.{what} is {value!r}, but {upstream.run_id} has {cells}.")
    name = cell_name(source.seed, source.arm, source.loss)
    kept = upstream.dir / "weights" / f"{name}.pth"
    if kept.is_file():
        return kept
    path = run.dir / DETECTOR
    if not path.is_file():
        found, _ = fine_tune(
            open_context(params, run),
            get_loss(losses[source.loss], **params.bnrl.model_dump()),
            seed=source.seed,
            arm=source.arm,
            trainable=params.trainable,
            cached=params.cached,
            weights=path,
            label=f"training {upstream.run_id} again",
        )
        stored = Detections.load(upstream.dir / "detections" / f"{name}.npz")
        if not same_detections(found, stored):
            log.warning(
                "%s: trained again, it does not give the stored detections of %s", path, upstream.run_id
            )
    return path


def same_detections(first: Detections, second: Detections) -> bool:
    """Whether both are equal to the last bit."""
    return all(np.array_equal(getattr(first, name), getattr(second, name)) for name in ARRAY_TYPES)


def predict_images(params: PredictParams, run: Run, predictor: Predictor) -> list[Prediction]:
    """Predict in the images that the parameters name, and write the results files to ``run.dir``."""
    places = [place for place in params.images if isinstance(place, int)]
    test = open_test_set(params.data, split=params.split).data.images if places else ()
    if places and max(places) >= len(test):
        raise DataError(
            f"images: there is no test image {max(places)}. Expected 0 to {len(test) - 1}, or a file."
        )
    paths = [test[one].path if isinstance(one, int) else project_path(one) for one in params.images]
    predictions = [predictor.predict(path, image_id) for image_id, path in enumerate(paths, start=1)]
    write_results(run.dir, predictions, predictor.loaded.class_names)
    return predictions


def write_demo(params: PredictParams, run: Run) -> dict:
    """Write the small weights of ``make demo`` to ``run.dir/demo``, with what they give on the first test scenes.

    Returns:
        The numbers, see `risf_core.demo.NUMBERS`; nothing without ``params.demo``.
    """
    if params.demo is None:
        return {}
    folder, source = run.dir / "demo", params.checkpoint
    tuned, clip = run.upstream(source.run), run.upstream(params.clip.run)
    facts = save_half_detector(cell_weights(source, run), folder / DETECTOR)
    cell = {"seed": source.seed, "arm": source.arm, "loss": source.loss}
    trained = TinyClipParams.model_validate(clip.record["params"])
    num_tokens = save_half_clip(
        clip.dir / CHECKPOINT, folder / CLIP, tower=trained.tower, captions=corpus_texts(trained)
    )
    facts = {
        "detector": facts | cell | {"run_id": tuned.run_id, "shots": tuned.record["params"]["shots"]},
        "clip": {"run_id": clip.run_id, "tower": trained.tower, "num_tokens": num_tokens},
        "data": params.data.model_dump(mode="json", exclude={"root"}),
        "num_images": params.demo.num_images,
        "resamples": params.demo.resamples,
        "cm_clip": params.cm_clip.model_dump(mode="json"),
    }
    # the numbers as they are computed from these very files
    measured = measure(folder, facts, run.dir / "scenes")
    write_facts(folder, facts | {"expected": measured.numbers})
    return measured.numbers


def corpus_texts(params: TinyClipParams) -> list[str]:
    """The captions that a tiny CLIP was trained on, and each concept in each template: a small corpus may miss one."""
    _, captions, _ = build_world(params.data).corpus()
    concepts = (*CONCEPTS, BACKGROUND)
    return captions + [template.format(concept) for template in CAPTIONS for concept in concepts]
