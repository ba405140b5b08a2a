"""A grid of few-shot fine-tunings of one base model: train, detect, re-score, evaluate; a row per re-scoring."""

import itertools
import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from risf_core.bnrl import get_loss
from risf_core.clip_models import LoadedClip, load_clip
from risf_core.cm_clip import CMCLIP, apply_cm_clip, encode_detections, label_space_names, rescored_rows
from risf_core.cm_clip.crop_choice import choose_crops
from risf_core.custom_loss import loss_name
from risf_core.data.benchmark import Benchmark, open_benchmark
from risf_core.data.dataset import DetectionData
from risf_core.data.left_out import left_out_of_training
from risf_core.data.loader import ImageCache
from risf_core.detecting import detect_images
from risf_core.detections import MAX_DETECTIONS, Detections, Similarities, cut
from risf_core.detector.build import build_detector
from risf_core.detector.checkpoints import load_weights, read_checkpoint, save_detector, surgery
from risf_core.detector.faster_rcnn import FasterRCNN
from risf_core.errors import DataError, ParamsError
from risf_core.head_training import (
    RegionFeatures,
    cached_region_features,
    detect_from_features,
    extract_region_features,
    train_box_head,
)
from risf_core.params import BaseTrainingParams, ClipSource, CmClipParams, FewShotParams, FineTuningParams
from risf_core.progress import progress
from risf_core.runs.state import data_hash
from risf_core.runs.yaml_files import project_path
from risf_core.training import seed_everything, step_seed, train_detector
from risf_core.voc_evaluation import evaluator_for

log = logging.getLogger(__name__)

Loss = Callable[[Tensor, Tensor], Tensor]
RESCORING_NAMES = {"novel+background": "cm_clip", "novel+base+background": "cm_clip_wide"}


@dataclass
class FewShotContext:
    """A base model with its data, ready to be fine-tuned; region features are stored beside the base model.

    ``class_names``: the classes of the fine-tuned head: novel (``fsod``), or base then novel (``gfsod``).
    """

    params: FewShotParams
    benchmark: Benchmark
    base: BaseTrainingParams
    state: dict[str, Tensor]
    regions_dir: Path
    device: torch.device
    class_names: tuple[str, ...] = field(init=False)
    test: DetectionData = field(init=False)

    def __post_init__(self) -> None:
        base_names = self.benchmark.base_names if self.params.setting == "gfsod" else ()
        self.class_names = (*base_names, *self.benchmark.novel_names)
        self.test = self.benchmark.test.select_classes(self.class_names)

    def groups(self) -> dict[str, tuple[str, ...]]:
        """Class groups whose AP is averaged apart: novel, and base where the head has it."""
        groups = {"novel": self.benchmark.novel_names}
        return groups | ({"base": self.benchmark.base_names} if self.params.setting == "gfsod" else {})

    def training_seed(self, seed: int, repeat: int = 0) -> int:
        """Seed of head, order and sampling: that of the draw, another for other repeats and other ``params.seed``."""
        if repeat == self.params.seed == 0:
            return seed
        return step_seed(step_seed(self.params.seed, repeat), seed)

    def detector(self, seed: int, loss: Loss) -> FasterRCNN:
        """The base detector after surgery, with a head for ``class_names`` that starts from a training seed."""
        head = self.params.head
        changes = {"rpn_post_nms_train": head.num_proposals, "roi_batch": head.roi_batch}
        changes |= {"cls_dropout": head.cls_dropout, "roi_gradient_scale": head.roi_gradient_scale}
        seed_everything(step_seed(seed, -1))
        detector = build_detector(
            self.base.detector.model_copy(update=changes), len(self.class_names), classification_loss=loss
        )
        state = surgery(
            self.state,
            "fsod" if head.start == "released" else self.params.setting,
            base_rows=range(len(self.benchmark.base_names)),
            num_classes=len(self.class_names),
            class_agnostic_boxes=self.base.detector.class_agnostic_boxes,
            seed=seed,
        )
        load_weights(detector, state, source="base model")
        return detector.to(self.device)

    def few_shot(self, seed: int, arm: str, shots: int | None = None) -> DetectionData:
        """The K-shot training set of a seed and arm."""
        shots = shots or self.params.shots
        return self.benchmark.few_shot(shots, seed, arm=arm, setting=self.params.setting)

    def train_regions(self, seed: int, arm: str) -> RegionFeatures:
        """Region features of a seed and arm: of the largest K-shot set where it holds the others."""
        shots = max(self.params.data.shots) if self.benchmark.is_nested else self.params.shots
        name = f"{self.params.setting}-seed{seed}-{arm}-{shots}shot-{self.params.head.num_proposals}proposals.npz"
        return cached_region_features(
            self.regions_dir / name,
            lambda: extract_region_features(
                self._frozen_detector(),
                self.few_shot(seed, arm, shots),
                training=True,
                desc=f"features of seed {seed}, {arm}",
            ),
        )

    def test_regions(self) -> RegionFeatures:
        """Region features of the test images."""
        return cached_region_features(
            self.regions_dir / "test.npz",
            lambda: extract_region_features(
                self._frozen_detector(), self.test, training=False, desc="features of the test images"
            ),
        )

    def _frozen_detector(self) -> FasterRCNN:
        detector = self.detector(0, torch.nn.functional.cross_entropy)
        detector.set_trainable("box_head")
        return detector


def open_context(params: FewShotParams, run) -> FewShotContext:
    """Load the base model that ``params.base`` names and its data."""
    upstream = run.upstream(params.base)
    base = BaseTrainingParams.model_validate(upstream.record["params"])
    benchmark = open_benchmark(params.data, split=params.split)
    state = read_checkpoint(upstream.dir / "model.pth")["model"]
    hashes = upstream.record["state_hash"], benchmark.hash, data_hash(params)
    regions = upstream.dir / "-".join(["regions", *(value[:8] for value in hashes)])
    return FewShotContext(params, benchmark, base, state, regions, torch.device(run.device))


def fine_tune(
    context: FewShotContext,
    loss: Loss,
    *,
    seed: int,
    arm: str,
    repeat: int = 0,
    trainable: str = "box_head",
    cached: bool = True,
    weights: Path | None = None,
    label: str = "fine-tuning",
) -> tuple[Detections, list[dict[str, float]]]:
    """Fine-tune on one K-shot set and detect in the test images.

    Args:
        loss: ``(logits [R, C+1], labels [R]) -> scalar``.
        seed: Number of the draw, which decides the randomness of training, too.
        repeat: Which training of that draw; others differ in head, order and sampling.
        cached: Train the box head on cached region features (``trainable`` must be ``box_head``); else the whole
            forward pass is computed in every step.
        weights: Where the fine-tuned detector is kept; None keeps it nowhere.
        label: What the progress is called, before seed and arm.

    Returns:
        Detections as stored (score > 0.001, at most 300 an image) and the loss curve.
    """
    training_seed = context.training_seed(seed, repeat)
    detector = context.detector(training_seed, loss)
    detector.set_trainable(trainable)
    data, desc = context.few_shot(seed, arm), f"{label}, seed {seed}, {arm}"
    solver = context.params.solver
    if cached:
        regions = context.train_regions(seed, arm)
        curve = train_box_head(detector, data, regions, solver, seed=training_seed, desc=desc)
    else:
        curve = train_detector(detector, data, solver, seed=training_seed, desc=desc)
    if weights is not None:
        save_detector(weights, detector, context.class_names)
    if cached:
        head, regions = detector.roi_heads.box_predictor, context.test_regions()
        return detect_from_features(head, regions, context.class_names), curve
    return detect_images(detector, context.test), curve


def open_clip_source(
    source: ClipSource, run, *, device: str = "cpu", seed: int = 0
) -> tuple[str, LoadedClip]:
    """The CLIP that a parameter names, with a short name for tables: trained here, or one of open_clip's."""
    if source.run is None:
        name = source.model + ("" if source.pretrained else " (random weights)")
        return name, load_clip(source.model, source.pretrained, device=device, seed=seed)
    upstream = run.upstream(source.run)
    tower = upstream.record["params"]["tower"]
    return tower, load_clip(tower, upstream.dir / "clip.pt", device=device)


def build_cm_clip(clip: LoadedClip, benchmark: Benchmark, cm_clip: CmClipParams) -> CMCLIP:
    """CM-CLIP over the widest label space; narrower ones are selections of its columns."""
    names = {"novel_names": benchmark.novel_names, "base_names": benchmark.base_names}
    return CMCLIP(
        clip.model,
        clip.tokenizer,
        benchmark.novel_names,
        label_space=label_space_names("novel+base+background", **names),
        templates=cm_clip.templates,
        temperature=cm_clip.temperature,
        text_store=project_path("results/text_features"),
        **cm_clip.engine_options(),
        **cm_clip.crop_options(),
    )


def note_clip(clip: CMCLIP, run) -> None:
    """Write what a run's CLIP says of itself to ``run.dir/clip.json`` and the record's environment."""
    facts = clip.facts()
    (run.dir / "clip.json").write_text(json.dumps(facts, indent=1))
    run.environment["cm_clip"] = facts


def settled(cm_clip: CmClipParams, folder: Path) -> CmClipParams:
    """The parameters with a learned temperature as the number that the CLIP of the run in ``folder`` has."""
    if cm_clip.temperature != "learned":
        return cm_clip
    try:
        value = json.loads((folder / "clip.json").read_text())["learned_temperature"]
    except (OSError, ValueError, KeyError) as error:
        raise DataError(
            f"{folder / 'clip.json'}: expected the learned temperature of the run's CLIP; run it again."
        ) from error
    return cm_clip.model_copy(update={"temperature": value})


def rescored(
    detections: Detections, similarities: Similarities, benchmark: Benchmark, cm_clip: CmClipParams
) -> Iterator[tuple[str, Detections]]:
    """The stored detections re-scored in each label space of ``cm_clip``: (row name, detections)."""
    for space in cm_clip.label_spaces:
        yield (
            RESCORING_NAMES[space],
            apply_cm_clip(
                detections,
                similarities,
                c=cm_clip.c,
                temperature=cm_clip.temperature,
                label_space=label_space_names(
                    space, novel_names=benchmark.novel_names, base_names=benchmark.base_names
                ),
                rescored_classes=benchmark.novel_names,
                score_thresh=cm_clip.score_thresh,
                fusion=cm_clip.fusion,
                not_encoded=cm_clip.not_encoded,
            ),
        )


def results_by_rescoring(
    detections: Detections,
    similarities: Similarities | None,
    benchmark: Benchmark,
    cm_clip: CmClipParams,
    *,
    score_thresh: float,
    max_detections: int = MAX_DETECTIONS,
) -> dict[str, Detections]:
    """The detections that count after `cut`, with the scores of the detector (``none``) and of each label space."""
    limits = {"score_thresh": score_thresh, "max_detections": max_detections}
    counting, beside = cut(detections, similarities, **limits)
    results = {"none": counting}
    return results if beside is None else results | dict(rescored(counting, beside, benchmark, cm_clip))


def cell_name(seed: int, arm: str, loss: str, repeat: int = 0) -> str:
    """File name (without ending) of a cell's stored detections."""
    again = f"-repeat{repeat}" if repeat else ""
    return f"seed{seed}-{arm}-{loss.replace(':', '_')}{again}"


def fine_tuning_grid(params: FineTuningParams, run) -> list[dict]:
    """Every cell (seed, arm, loss, repeat) of a run; finished cells are skipped, each other is stored when done.

    Detections go to ``run.dir/detections``, cosines to ``run.dir/similarities``, detectors that are to be kept to
    ``run.dir/weights``.

    Returns:
        All rows: one per cell and re-scoring (``none``, ``cm_clip``, ``cm_clip_wide``), AP in percent.
    """
    losses, context = _losses_by_name(params), open_context(params, run)
    options = context.benchmark.evaluation
    evaluator = evaluator_for(context.test, groups=context.groups(), max_dets=MAX_DETECTIONS, **options)
    clip, images, last = None, ImageCache(), "none"
    if params.clip is not None:
        _, loaded = open_clip_source(params.clip, run, device=run.device, seed=params.seed)
        clip = build_cm_clip(loaded, context.benchmark, params.cm_clip)
        note_clip(clip, run)
        last = RESCORING_NAMES[params.cm_clip.label_spaces[-1]]
    cm_clip = settled(params.cm_clip, run.dir) if clip is not None else params.cm_clip
    novel, rescored_above = context.benchmark.novel_names, cm_clip.score_thresh
    cells = list(itertools.product(params.seeds, params.arms, losses, range(params.repeats)))
    for seed, arm, loss, repeat in progress(cells, desc="cells", total=len(cells)):
        key = {"split": params.split, "shots": params.shots, "setting": params.setting}
        key |= {"seed": seed, "arm": arm, "loss": loss, "repeat": repeat}
        if run.rows.done(**key, rescoring=last):
            continue
        name = cell_name(seed, arm, loss, repeat)
        cell = {"name": name, "seed": seed, "arm": arm, "repeat": repeat}
        found, facts = _tune_cell(context, run, losses[loss], label=f"fine-tuning with {loss}", **cell)
        similarities = None
        if clip is not None:
            options = {"score_thresh": rescored_above, "rescored_classes": novel, "cache": images}
            chosen = cm_clip.crop_choice()
            similarities = encode_detections(found, context.test, clip, **options, **chosen)
            facts["crops"] = choose_crops(found, rescored_rows(found, novel, rescored_above), **chosen).counts
            similarities.save(run.dir / "similarities" / f"{name}.npz")
        cuts = {"score_thresh": params.score_thresh}
        results = results_by_rescoring(found, similarities, context.benchmark, cm_clip, **cuts)
        above = int(rescored_rows(results["none"], novel, rescored_above).sum())
        facts["above_thresh"] = above / len(context.test)
        for rescoring, detections in results.items():
            # a kill may have come between the rows of a cell
            if not run.rows.done(**key, rescoring=rescoring):
                run.rows.add(key | {"rescoring": rescoring}, evaluator.evaluate(detections) | facts)
    return run.rows.as_list()


def _losses_by_name(params: FineTuningParams) -> dict[str, Loss]:
    """The loss functions by their names in tables."""
    names = {loss_name(spec): spec for spec in params.losses}
    if len(names) < len(params.losses):
        raise ParamsError(f"losses {list(params.losses)} share a name in tables; rename one of the functions")
    return {name: get_loss(spec, **params.bnrl.model_dump()) for name, spec in names.items()}


def _tune_cell(
    context: FewShotContext, run, loss: Loss, *, name: str, seed: int, arm: str, repeat: int, label: str
) -> tuple[Detections, dict]:
    """Fine-tune and store the detections of one cell; also what its rows say of the training."""
    params = context.params
    found, curve = fine_tune(
        context,
        loss,
        seed=seed,
        arm=arm,
        repeat=repeat,
        trainable=params.trainable,
        cached=params.cached,
        weights=run.dir / "weights" / f"{name}.pth" if params.keep_weights else None,
        label=label,
    )
    found.save(run.dir / "detections" / f"{name}.npz")
    draw = context.few_shot(seed, arm)
    return found, {"final_loss": curve[-1]["loss"], "left_out": left_out_of_training(draw, draw)}


def stored_before_after(params: FineTuningParams, run) -> tuple[Detections, Detections, DetectionData] | None:
    """What counts of the first cell before and after CM-CLIP (first label space), and the test data; else None."""
    if params.clip is None:
        return None
    name = cell_name(params.seeds[0], params.arms[0], loss_name(params.losses[0]))
    benchmark = open_benchmark(params.data, split=params.split)
    found = Detections.load(run.dir / "detections" / f"{name}.npz")
    similarities = Similarities.load(run.dir / "similarities" / f"{name}.npz")
    cm_clip, cuts = settled(params.cm_clip, run.dir), {"score_thresh": params.score_thresh}
    before, after, *_ = results_by_rescoring(found, similarities, benchmark, cm_clip, **cuts).values()
    return before, after, benchmark.test.select_classes(found.class_names)
