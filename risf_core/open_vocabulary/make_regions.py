"""Make a file of regions from a user's images: what ``python -m risf_core.open_vocabulary regions`` does.

Boxes are made in parts of `PART` images. Each part lies in ``OUT.parts`` as soon as it is done, under a name that all
it depends on decides, and the crops encoded so far lie in CM-CLIP's journal there; so a run that was killed goes on.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from risf_core.class_lists import read_class_list
from risf_core.cm_clip import CMCLIP
from risf_core.cm_clip.journal import weights_hash
from risf_core.command_line import device_of, names_of, say
from risf_core.data.coco import load_coco
from risf_core.data.coco_checks import check_images
from risf_core.data.dataset import DetectionData, ImageRecord
from risf_core.data.problems import Problems
from risf_core.detector.checkpoints import read_checkpoint, save_checkpoint
from risf_core.detector.faster_rcnn import FasterRCNN
from risf_core.errors import CheckpointError, DataError, ParamsError
from risf_core.open_vocabulary.image_label_files import read_image_labels, with_file_names
from risf_core.open_vocabulary.image_labels import ImageLabels
from risf_core.open_vocabulary.lvis_data import load_lvis
from risf_core.open_vocabulary.objectness import ObjectnessHead
from risf_core.open_vocabulary.providers import (
    TOP,
    external_regions,
    objectness_regions,
    rpn_regions,
    train_objectness,
)
from risf_core.open_vocabulary.regions import RegionSet, embed_regions

logger = logging.getLogger(__name__)

PART = 500  # images whose boxes a kill may cost
Maker = Callable[[DetectionData], RegionSet]


def make_regions(arguments: argparse.Namespace, parts: Path) -> RegionSet:
    """Propose, embed and write, as the command line says; ``parts`` is the folder of what is done so far."""
    labels = open_labels(arguments) if arguments.labels else None
    data = open_images(arguments.annotations, arguments.images) if labels is None else labels.data
    say(f"{len(data)} images of {arguments.annotations}")
    if labels is not None:
        count = sum(len(own) for own in labels.labels)
        say(f"{count} names to look for; {labels.without_label} images without a name are left out")
    clip = None if arguments.clip is None else open_teacher(arguments)  # before hours of proposing
    regions = _boxes(arguments, data, labels, parts)
    if arguments.sees_novel is not None:
        regions = regions.noted(sees_novel=arguments.sees_novel)
    if clip is not None:
        name = " ".join(filter(None, (arguments.clip, arguments.pretrained)))
        regions = embed_regions(regions, data, clip, name=name, journal=parts / "crops", desc="embedding")
    regions.save(arguments.out)
    _tell(regions, arguments.out, parts)
    return regions


def _tell(regions: RegionSet, out: Path, parts: Path) -> None:
    facts = regions.facts()
    has_embeddings = "no embeddings" if regions.embeddings is None else "embeddings"
    width = "" if regions.embeddings is None else f" of {regions.embeddings.shape[1]} numbers"
    say(
        f"{facts['regions']} regions, {facts['regions_an_image']:.2f} an image, {has_embeddings}{width}; provider "
        f"{facts['provider']}, sees_novel {facts['sees_novel']}"
    )
    empty = int((np.diff(regions.starts) == 0).sum())
    if empty:
        say(f"{empty} of {facts['images']} images have no region")
    say(f"written: {out}; parts, no longer needed: {parts}")


# ------------------------------------------------------------------------------------------------------------ inputs


def open_images(path: Path, images_dir: Path) -> DetectionData:
    """The images that a file in COCO's form lists, without boxes; its categories, if it has any.

    Raises:
        DataError: If it is no such file, or an image is not there; the error's `problems` are all findings.
    """
    content, problems = read_content(path), Problems(path)
    images = check_images(with_file_names(content["images"]), images_dir, problems, look_for_files=True)
    problems.raise_if_any(f"{path} {images_dir}")
    none = np.empty((0, 4), np.float32), np.empty(0, np.int64), np.empty(0, bool)
    names, ids = read_class_list(path) if content.get("categories") else ((), ())
    return DetectionData(path.stem, names, ids, tuple(ImageRecord(*one[:4], *none) for one in images))


def open_annotated(path: Path, images_dir: Path, *, lvis: bool) -> DetectionData:
    """Images with boxes of a file in COCO's or LVIS's form; impossible boxes are dropped and counted in the log."""
    return load_lvis(path, images_dir).data if lvis else load_coco(path, images_dir, drop_invalid=True)


def read_content(path: Path) -> dict[str, Any]:
    """A JSON file with a list of images.

    Raises:
        DataError: If it is none.
    """
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise DataError(f"--annotations {path}: there is no such file. Expected COCO's form.") from error
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"--annotations {path}: no JSON ({error}). Expected COCO's form.") from error
    if not isinstance(content, dict) or not isinstance(content.get("images"), list):
        raise DataError(f"--annotations {path}: has no list 'images'. Expected COCO's form.")
    return content


def open_labels(arguments: argparse.Namespace) -> ImageLabels:
    """What each image shows: by ``pos_category_ids``, by captions that name a class of ``--names``, or by its boxes.

    Raises:
        ParamsError: If captions come without names.
    """
    path, folder = arguments.annotations, arguments.images
    content = read_content(path)
    first = next(iter(content.get("annotations") or ()), {})
    if isinstance(first, dict) and "caption" in first:
        if arguments.names is None:
            raise ParamsError(
                f"--labels: {path} holds captions. Give --names, the classes to look for in them, a name a line."
            )
        names, ids = read_class_list(arguments.names)
        return read_image_labels(path, folder, names, ids)
    if any(isinstance(one, dict) and "pos_category_ids" in one for one in content["images"]):
        names, ids = read_class_list(path)
        return read_image_labels(path, folder, names, ids)
    data = open_annotated(path, folder, lvis=arguments.lvis)
    return ImageLabels.of(data, [[data.class_names[n] for n in one.labels] for one in data.images])


def open_teacher(arguments: argparse.Namespace) -> CMCLIP:
    """The CLIP whose image embeddings regions get; of texts it has two that play no part."""
    from risf_core.clip_models import load_clip

    loaded = load_clip(arguments.clip, clip_weights(arguments), device=device_of(arguments.device))
    return CMCLIP(
        loaded.model,
        loaded.tokenizer,
        ("object",),
        crop=arguments.crop,
        resize="roi_align" if arguments.crop == "squash" else "bicubic",
        precision=arguments.precision,
        memory_budget_mb=arguments.memory_budget,
    )


def clip_weights(arguments: argparse.Namespace) -> str | None:
    """What `load_clip` takes as pretrained; ``random`` is none."""
    if arguments.pretrained is None and not arguments.clip.startswith(("local-dir:", "hf-hub:")):
        raise ParamsError(
            f"--clip {arguments.clip} without --pretrained. Give a tag, such as openai, or the path of a checkpoint; "
            "`random` only to measure time."
        )
    return None if arguments.pretrained == "random" else arguments.pretrained


def open_proposer(arguments: argparse.Namespace) -> FasterRCNN:
    """The base model of ``--detector``: a file of ours, or one of others with its parameters and classes.

    Raises:
        CheckpointError: If the file is no detector's, or that of an arm of this package.
    """
    from risf_core.detector.weight_files import read_weight_file
    from risf_core.predict import read_detector_params
    from risf_core.prediction import open_detector_file

    path, params = arguments.detector, arguments.detector_params
    if not path.is_file():
        raise CheckpointError(f"--detector {path}: there is no such file. Expected a base model's model.pth.")
    content = read_weight_file(path)
    if "head" in content and "detector" not in content:
        raise CheckpointError(
            f"--detector {path}: the weights of an open-vocabulary arm, which do not say their detector. Expected a "
            "base model's model.pth."
        )
    if "detector" not in content and (params is None or arguments.classes is None):
        raise CheckpointError(
            f"--detector {path}: the file does not say which detector it is of. Give --detector-params FILE, such as "
            "params/coco/10_base_training.yaml, and --classes FILE, the names of its head's rows."
        )
    told = {
        "detector": None if params is None else read_detector_params(params),
        "class_names": None if arguments.classes is None else read_class_list(arguments.classes).names,
    }
    return open_detector_file(path, **told, device=device_of(arguments.device)).detector


# ------------------------------------------------------------------------------------------------------------- boxes


def _boxes(
    arguments: argparse.Namespace, data: DetectionData, labels: ImageLabels | None, parts: Path
) -> RegionSet:
    """The regions of the provider, without embeddings but for those that a file may have."""
    if arguments.provider == "file":
        options = {"outside": arguments.outside or "error", "missing": arguments.missing or "error"}
        found = external_regions(arguments.regions, data, sees_novel=arguments.sees_novel, **options)
        return found if arguments.top is None else found.top(arguments.top)
    makers = {"rpn": _rpn, "objectness": _objectness, "owlv2": _owlv2}
    make, facts = makers[arguments.provider](arguments, labels, parts)
    return boxes_in_parts(data, make, facts, parts)


def boxes_in_parts(data: DetectionData, make: Maker, facts: Mapping[str, Any], folder: Path) -> RegionSet:
    """Boxes of all images, those of finished parts from their files.

    Args:
        data: The images.
        make: Gives the regions of some images, each by itself.
        facts: All that they depend on beside the images, as plain types.
        folder: Of the parts.
    """
    places = [(part, folder / f"boxes-{part_key(facts, part.images)}.npz") for part in in_parts(data)]
    num_done = sum(len(part) for part, path in places if path.exists())
    if num_done:
        say(f"boxes of {num_done} of {len(data)} images were made before")
    found = []
    for part, path in places:
        regions = _stored(path)
        if regions is None:
            regions = make(part)
            regions.save(path)
        found.append(regions)
    outputs = [one.of(image_id) for one in found for image_id in one.image_ids.tolist()]
    manifest = dict(found[0].manifest)
    if "in_padding" in manifest:
        manifest["in_padding"] = sum(one.manifest["in_padding"] for one in found)
    return RegionSet.from_images(np.concatenate([one.image_ids for one in found]), outputs, manifest)


def in_parts(data: DetectionData) -> Iterator[DetectionData]:
    """The data in parts of `PART` images."""
    for start in range(0, len(data), PART):
        yield replace(data, images=data.images[start : start + PART])


def part_key(facts: Mapping[str, Any], images: Sequence[ImageRecord]) -> str:
    """Sixteen digits of a hash over facts and images: ids, sizes, and the files' names, lengths and times."""
    files = [(one.path, one.path.stat()) for one in images]
    places = [
        (one.image_id, one.height, one.width, str(path), state.st_size, state.st_mtime_ns)
        for one, (path, state) in zip(images, files, strict=True)
    ]
    return hashlib.sha256(json.dumps([facts, places], sort_keys=True).encode()).hexdigest()[:16]


def _stored(path: Path) -> RegionSet | None:
    if not path.exists():
        return None
    try:
        return RegionSet.load(path)
    except DataError as error:
        logger.warning("%s Its boxes are made anew.", error)
        return None


def _rpn(arguments: argparse.Namespace, labels: None, parts: Path) -> tuple[Maker, dict[str, Any]]:
    detector, top = open_proposer(arguments), arguments.top or TOP
    facts = _detector_facts(detector) | {"provider": "rpn", "top": top}
    return lambda part: rpn_regions(detector, part, top=top, sees_novel="unknown"), facts


def _objectness(arguments: argparse.Namespace, labels: None, parts: Path) -> tuple[Maker, dict[str, Any]]:
    """Learn the objectness from the boxes of base classes, or take it from the parts; then as `_rpn`."""
    detector, top = open_proposer(arguments), arguments.top or TOP
    boxed = open_annotated(arguments.boxes or arguments.annotations, arguments.images, lvis=arguments.lvis)
    if arguments.base is not None:
        boxed = boxed.select_classes(names_of(arguments.base))
    count = len(boxed.flat.labels)
    say(f"objectness learns from {count} boxes of {len(boxed.class_names)} classes, which are taken as base")
    facts = _detector_facts(detector) | {"seed": arguments.seed, "classes": list(boxed.class_names)}
    facts["boxes"] = hashlib.sha256(boxed.flat.boxes.tobytes() + boxed.flat.images.tobytes()).hexdigest()
    path = parts / f"objectness-{part_key(facts, boxed.images)}.pth"
    if path.exists():
        head = _head_of(read_checkpoint(path)["model"], boxed.class_names, detector)
    else:
        head = train_objectness(detector, boxed, seed=arguments.seed)
        save_checkpoint(path, {"model": head.state_dict()})
    facts |= {"provider": "objectness", "top": top, "head": weights_hash(head)}
    return lambda part: objectness_regions(detector, head, part, top=top, sees_novel="unknown"), facts


def _head_of(
    state: dict[str, torch.Tensor], classes: tuple[str, ...], detector: FasterRCNN
) -> ObjectnessHead:
    hidden, dim = state["layers.0.weight"].shape
    head = ObjectnessHead(dim, hidden)
    head.load_state_dict(state)
    head.classes = classes
    return head.to(detector.pixel_mean.device).eval().requires_grad_(False)


def _detector_facts(detector: FasterRCNN) -> dict[str, Any]:
    return {"weights": weights_hash(detector), "detector": detector.params.model_dump(mode="json")}


def _owlv2(
    arguments: argparse.Namespace, labels: ImageLabels | None, parts: Path
) -> tuple[Maker, dict[str, Any]]:
    """Class-agnostic boxes by objectness or, with labels, the best box of each name that an image shows."""
    from risf_core.open_vocabulary.live_provider import LiveProvider

    provider = LiveProvider.from_pretrained(arguments.owlv2, device=device_of(arguments.device))
    facts = {"provider": "owlv2", "weights": weights_hash(provider.model)}
    facts |= {"images": str(provider.processor.image_processor)}
    if labels is None:
        top = arguments.top or TOP
        return lambda part: provider.regions(part, top=top), facts | {"top": top}
    wanted = {one.image_id: labels.names(place) for place, one in enumerate(labels.data.images)}
    asked = json.dumps([[labels.class_names], [[key, *names] for key, names in wanted.items()]])
    facts |= {"asked": hashlib.sha256(asked.encode()).hexdigest()}
    return lambda part: provider.label_regions(part, wanted, labels.class_names), facts
