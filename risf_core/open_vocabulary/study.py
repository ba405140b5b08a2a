"""The open-vocabulary study: a stage 0, regions and teacher made once, then every arm; a row for each of them."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from risf_core.clip_models import load_clip
from risf_core.cm_clip import CMCLIP
from risf_core.data.dataset import DetectionData
from risf_core.data.loader import ImageCache
from risf_core.detector.checkpoints import load_weights, read_checkpoint
from risf_core.detector.pretrained import MAY_BE_MISSING, load_pretrained
from risf_core.evaluation import Evaluator
from risf_core.fine_tuning import open_clip_source
from risf_core.open_vocabulary.arms import (
    AnnotatedRegions,
    Architecture,
    fidelity,
    proposal_recalls,
    save_arm,
    top1,
)
from risf_core.open_vocabulary.classifier import mean_pairwise_cosine, with_common_offset
from risf_core.open_vocabulary.detector import OpenVocabularyRCNN, Supervision
from risf_core.open_vocabulary.large_vocabulary import detect_vocabulary
from risf_core.open_vocabulary.open_data import max_detections, open_data
from risf_core.open_vocabulary.ovd_data import OvdData
from risf_core.open_vocabulary.region_sources import RegionSources
from risf_core.open_vocabulary.regions import RegionSet
from risf_core.open_vocabulary.repeat_factors import repeated_batches
from risf_core.open_vocabulary.swaps import swapped_rows
from risf_core.open_vocabulary.training import TrainingSet, train_open_vocabulary
from risf_core.open_vocabulary_params import ArmParams, OpenVocabularyParams
from risf_core.params import BaseTrainingParams
from risf_core.precision import resolve_precision
from risf_core.runs.yaml_files import project_path
from risf_core.training import step_seed

log = logging.getLogger(__name__)

IMAGE_OFFSET = 0.3  # of the arm with a common offset of texts: how far images move along the same direction
JITTER = 0.15  # noise of the teacher's jittered boxes, as a share of their sides


def run_open_vocabulary(params: OpenVocabularyParams, run) -> list[dict]:
    """Train and test every arm of ``params``; arms whose row is there are skipped, so that a killed run goes on.

    Weights go to ``run.dir/weights`` (of arms that others start from, that are swapped, or that are ``kept``),
    regions to ``run.dir/regions``, detections to ``run.dir/detections``.

    Returns:
        All rows, of the parts "teacher", "provider", "arm" and "swap".
    """
    study = Study(params, run)
    study.teacher_row()
    for name in params.arms:
        study.arm(name)
    swapped_rows(study)
    return run.rows.as_list()


@dataclass
class Study:
    """What the arms of one run share, each part made when it is first needed."""

    params: OpenVocabularyParams
    run: object

    def __post_init__(self) -> None:
        self.images = ImageCache()
        self.key = {"split": self.params.split, "seed": self.params.seed}
        self.keep_from = {arm.start for arm in self.params.arms.values()}
        self.keep_from |= {*self.params.kept, *self.params.swapped}
        dtype = resolve_precision(self.params.solver.precision, torch.device(self.run.device))
        self.run.environment["training_precision"] = str(dtype).removeprefix("torch.")

    # ------------------------------------------------------------------ shared parts

    @cached_property
    def _opened(self) -> tuple[OvdData, Evaluator]:
        return open_data(self.params)

    @property
    def data(self) -> OvdData:
        """Boxes, names and test images; names of the variant "all"."""
        return self._opened[0]

    @property
    def evaluator(self) -> Evaluator:
        """Of the test images: all, base and novel classes."""
        return self._opened[1]

    @cached_property
    def test_subset(self) -> DetectionData:
        """The test images whose annotated boxes are embedded."""
        data, count = self.data.test, self.params.num_fidelity_images
        return DetectionData(
            f"{data.name}, first {count}", data.class_names, data.category_ids, data.images[:count]
        )

    @cached_property
    def base(self) -> BaseTrainingParams | None:
        """Parameters of the run that stage 0 starts from."""
        if self.params.base is None:
            return None
        return BaseTrainingParams.model_validate(self.run.upstream(self.params.base).record["params"])

    @cached_property
    def architecture(self) -> Architecture:
        """Detector and classifier of all arms."""
        detector = self.params.detector if self.base is None else self.base.detector
        return Architecture(
            detector.model_copy(update={"rpn_post_nms_train": self.params.num_proposals}),
            self.params.temperature,
            self.params.bias,
            self.params.residual_width,
        )

    @cached_property
    def clip(self) -> CMCLIP:
        """The teacher, with the names of the test set."""
        _, loaded = open_clip_source(
            self.params.clip, self.run, device=self.run.device, seed=self.params.seed
        )
        return self.teacher_of(loaded)

    def teacher_of(self, loaded) -> CMCLIP:
        """A CLIP as teacher: crops squashed to its input, as in re-scoring."""
        names = self.data.test.class_names
        return CMCLIP(
            loaded.model,
            loaded.tokenizer,
            names,
            label_space=names,
            templates=self.params.templates,
            text_store=project_path("results/text_features"),
        )

    @cached_property
    def random_clip(self) -> CMCLIP:
        """The same tower with random weights."""
        _, loaded = open_clip_source(
            self.params.clip, self.run, device=self.run.device, seed=self.params.seed
        )
        return self.teacher_of(load_clip(loaded.info.name, None, device=self.run.device, seed=1))

    @cached_property
    def sources(self) -> RegionSources:
        """Regions by source and teacher."""
        return RegionSources(self)

    @cached_property
    def annotated(self) -> AnnotatedRegions:
        """Annotated test boxes with the teacher's embeddings."""
        return self.embed_annotated(0.0)

    def embed_annotated(self, jitter: float) -> AnnotatedRegions:
        """The same of boxes moved by Gaussian noise, as a share of their sides."""
        embeddings, labels = [], []
        rng = np.random.default_rng(self.params.seed)
        for record in self.test_subset.images:
            boxes = record.boxes[~record.is_crowd]
            sides = np.tile(boxes[:, 2:] - boxes[:, :2], 2)
            moved = boxes + rng.normal(0.0, jitter, boxes.shape) * sides if jitter else boxes
            limits = np.array([record.width, record.height] * 2)
            near = np.clip(moved, 0, limits - 1)[:, :2]
            far = np.maximum(np.clip(moved, 0, limits)[:, 2:], near + 1)
            corners = torch.from_numpy(np.concatenate([near, far], axis=1).astype(np.float32))
            embeddings.append(self.clip.embed_boxes(self.images.read(record), corners).cpu())
            labels.append(record.labels[~record.is_crowd])
        return AnnotatedRegions(self.test_subset, np.concatenate(labels), torch.cat(embeddings).clone())

    def texts(self, names: tuple[str, ...]) -> Tensor:
        """Text features of names, float32 [C, d]."""
        return self.clip.encode_names(names).clone()

    # ------------------------------------------------------------------ rows

    def teacher_row(self) -> None:
        """How well the teacher itself tells the annotated test boxes apart, and how its texts lie."""
        key = {"part": "teacher", **self.key}
        if self.run.rows.done(**key):
            return
        names = self.data.test.class_names
        texts = self.texts(names)
        rows = F.normalize(texts, dim=1)
        above = torch.triu_indices(len(rows), len(rows), 1)
        cosines = (rows @ rows.T)[above[0], above[1]]
        values = {
            "text_cosine_mean": mean_pairwise_cosine(texts),
            "text_cosine_min": float(cosines.min()),
            "text_cosine_max": float(cosines.max()),
            "chance": 100.0 / len(names),
        }
        for prefix, regions in (
            ("zero_shot", self.annotated),
            ("jittered", self.embed_annotated(JITTER)),
        ):
            for group, members in self.data.groups.items():
                mask = regions.rows_of(members)
                labels = torch.from_numpy(regions.labels[mask])
                values[f"{prefix}_{group}"] = top1(regions.embeddings[mask], texts, labels)
        self.run.rows.add(key, values)

    def weights_file(self, name: str) -> Path:
        """Where an arm's weights are."""
        return self.run.dir / "weights" / f"{name}.pth"

    def arm(self, name: str) -> None:
        """Train and test one arm; nothing if its row is there, with the weights that others need."""
        key = {"part": "arm", **self.key, "arm": name}
        needed = name in self.keep_from and not self.weights_file(name).exists()
        if self.run.rows.done(**key) and not needed:
            return
        arm, start = self.params.arms[name], time.process_time()
        data = self.arm_data(arm)
        detector, supervision, facts = self.trained(name, arm, data)
        if name in self.keep_from:
            save_arm(self.weights_file(name), detector, self.head_of(name))
        if self.run.rows.done(**key):
            return
        texts = self.arm_texts(arm, self.data.test.class_names)[0]
        detector.set_texts(texts)
        values = self.judged(name, detector, texts)
        measured = supervision.measured
        values |= facts | {
            "gradient_cosine": float(np.mean(measured)) if measured else None,
            "cpu_seconds": round(time.process_time() - start, 1),
            "settings": arm.model_dump(mode="json"),
        }
        self.run.rows.add(key, values)

    def head_of(self, name: str) -> str:
        """The kind of head an arm's weights have: its own, or that of the untrained start."""
        arm = self.params.arms[name]
        return arm.head if arm.train or arm.start == "base" else self.head_of(arm.start)

    def judged(self, name: str, detector: OpenVocabularyRCNN, texts: Tensor) -> dict:
        """What an arm is good for on the test images."""
        path = self.run.dir / "detections" / f"{name}.npz"
        limits = {"score_thresh": self.params.score_thresh, "max_detections": max_detections(self.params)}
        counting = detect_vocabulary(detector, self.data.test, path, **limits)
        metrics = self.evaluator.evaluate(counting)
        values = fidelity(detector, self.annotated, texts, self.data.groups, cache=self.images)
        return metrics | values | proposal_recalls(detector, self.test_subset, self.data.groups)

    # ------------------------------------------------------------------ training

    def arm_data(self, arm: ArmParams) -> OvdData:
        """The data of an arm; another set of columns where the novel names are unknown in training."""
        labels = arm.images.labels if arm.images is not None else "all"
        return self.data if labels == "all" else open_data(self.params, labels=labels)[0]

    def arm_texts(self, arm: ArmParams, names: tuple[str, ...]) -> tuple[Tensor, Tensor | None]:
        """Text features of an arm's columns, and the direction they were moved along, if they were."""
        texts = self.texts(names)
        return (texts, None) if arm.text_cosine is None else with_common_offset(texts, arm.text_cosine)

    def stage0(self) -> Path:
        """Train stage 0 (boxes alone) once; returns its weights."""
        path = self.run.dir / "weights" / "stage0.pth"
        if path.exists():
            return path
        detector = self.architecture.new(
            self.texts(self.data.class_names), seed=self.params.seed, device=self.run.device
        )
        if self.base is not None:
            upstream = self.run.upstream(self.params.base)
            state = read_checkpoint(upstream.dir / "model.pth")["model"]
            state = {key: value for key, value in state.items() if not key.startswith(MAY_BE_MISSING[0])}
            load_weights(detector, state, source="base model")
        else:
            report = load_pretrained(
                detector, project_path(self.params.weights), allow_missing=MAY_BE_MISSING
            )
            log.info("%s: %s", self.params.weights, report)
        supervision = Supervision(
            class_mask=torch.from_numpy(self.data.class_mask), image_counts=self.image_counts(self.data)
        )
        train_open_vocabulary(
            detector,
            self.training_set(ArmParams(), self.data),
            supervision,
            self.params.stage0,
            seed=self.params.seed,
            desc="stage 0",
            images=self.images,
            checkpoint=self.run.dir / "stage0_checkpoint.pth",
        )
        save_arm(path, detector, "shared")
        return path

    def image_counts(self, data: OvdData) -> Tensor | None:
        """For federated loss: images of each column; None without it."""
        files = self.params.files
        return torch.from_numpy(data.image_counts) if files is not None and files.federated else None

    def trained(
        self, name: str, arm: ArmParams, data: OvdData
    ) -> tuple[OpenVocabularyRCNN, Supervision, dict]:
        """The detector of an arm, what it learned from, and facts for its row."""
        texts, direction = self.arm_texts(arm, data.class_names)
        start = self.stage0() if arm.start == "base" else self.weights_file(arm.start)
        seed = self.params.seed
        detector = self.architecture.load(start, texts, seed=seed, device=self.run.device)
        supervision = Supervision(
            arm.distillation,
            arm.images,
            class_mask=torch.from_numpy(data.class_mask),
            image_counts=self.image_counts(data),
        )
        facts = {"iterations": 0, "box_images": 0, "provider": None, "sees_novel": None}
        if not arm.train:
            return detector, supervision, facts
        if arm.head != "shared":
            torch.manual_seed(step_seed(seed, -4))
            detector.roi_heads.box_predictor.use_head(arm.head, width=self.params.residual_width)
            detector.to(self.run.device)
        train = self.training_set(arm, data, direction)
        solver = self.params.solver
        train_open_vocabulary(
            detector,
            train,
            supervision,
            solver,
            seed=step_seed(seed, -5) % 2**31,
            desc=f"arm {name}",
            mixing=self.params.mixing,
            images=self.images,
            checkpoint=self.run.dir / f"{name}_checkpoint.pth" if solver.checkpoint_every else None,
        )
        providers = [one.manifest for one in (train.regions, train.label_boxes) if one is not None]
        every = (
            2 if self.params.mixing == "alternate" and arm.images is not None else 1
        )  # steps to one with boxes
        box_steps = -(-solver.iterations // every)
        facts |= {"iterations": solver.iterations, "box_images": box_steps * solver.batch_size}
        facts |= {
            key: ", ".join(dict.fromkeys(str(one[key]) for one in providers)) or None
            for key in ("provider", "sees_novel")
        }
        return detector, supervision, facts

    def training_set(self, arm: ArmParams, data: OvdData, direction: Tensor | None = None) -> TrainingSet:
        """Boxes, names and regions of an arm."""
        regions = label_boxes = None
        if arm.distillation is not None:
            regions = self.sources.regions(arm.distillation)
            if direction is not None:
                regions = moved(regions, direction)
        if arm.images is not None and not arm.images.boxes.startswith("max_"):
            label_boxes = self.sources.label_boxes(arm.images.boxes, data)
        names = data.label_train if arm.images is not None else None
        return TrainingSet(data.box_train, names, regions, label_boxes, self.box_order(data))

    def box_order(self, data: OvdData) -> Callable[[int], list[int]] | None:
        """With repeat-factor sampling, the images with boxes of each step; else None."""
        files, solver = self.params.files, self.params.solver
        if files is None or files.repeat_threshold is None:
            return None
        return repeated_batches(
            data.box_train,
            solver.batch_size,
            seed=self.params.seed,
            threshold=files.repeat_threshold,
            group_by_aspect=solver.group_by_aspect,
        )


def moved(regions: RegionSet, direction: Tensor) -> RegionSet:
    """The regions with their embeddings moved along the direction that the texts moved along."""
    embeddings = F.normalize(torch.from_numpy(regions.embeddings.astype(np.float32)), dim=1)
    embeddings = embeddings + IMAGE_OFFSET * direction
    return replace(regions, embeddings=embeddings.numpy())
