"""Regions of a live open-vocabulary detector: OWLv2 (Minderer et al. 2023, https://arxiv.org/abs/2306.09683).

Its class-agnostic objectness gives regions for distillation; asked for names, it gives boxes for image-level
supervision. It needs ``transformers`` and weights: by name from a hub, or from a folder. Its training corpus is not
disjoint from any novel classes that one would choose, unless the user knows better: it has seen them "unknown".

OWLv2 pads an image at the right and below to a square, and its boxes are shares of that square's side.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.ops import box_convert, nms

from risf_core.clip_models import _impatient_hub as impatient_hub
from risf_core.data.dataset import DetectionData, ImageRecord, check_class_list
from risf_core.data.loader import read_image
from risf_core.errors import CheckpointError, DataError, ParamsError
from risf_core.open_vocabulary.providers import NMS_THRESH, TOP
from risf_core.open_vocabulary.region_checks import clip_to_images
from risf_core.open_vocabulary.regions import RegionSet
from risf_core.progress import progress

logger = logging.getLogger(__name__)

TEMPLATE = "a photo of a {}"  # of OWLv2's own training
NEEDS = "transformers>=4.45"


class LiveProvider:
    """An OWLv2 and its processor.

    Args:
        model: ``transformers.Owlv2ForObjectDetection``.
        processor: Its ``Owlv2Processor``: an image processor that pads to squares, and a tokenizer.
        name: For the manifest.
        sees_novel: What the user knows: "no", "yes" or "unknown".

    Raises:
        ParamsError: If the processor does not pad, so that boxes would be shares of something else.
    """

    def __init__(self, model: Any, processor: Any, *, name: str, sees_novel: str = "unknown") -> None:
        if not getattr(processor.image_processor, "do_pad", False):
            raise ParamsError(
                f"{name}: its image processor ({type(processor.image_processor).__name__}) does not pad images to "
                "squares. Expected that of an OWLv2."
            )
        self.model, self.processor = model.eval().requires_grad_(False), processor
        self.name, self.sees_novel = name, sees_novel
        self.device = next(model.parameters()).device

    @classmethod
    def from_pretrained(
        cls, source: str, *, device: str | torch.device = "cpu", sees_novel: str = "unknown"
    ) -> LiveProvider:
        """Load by a hub's name, such as ``google/owlv2-base-patch16-ensemble``, or from a folder.

        Raises:
            ParamsError: If transformers is not installed, or too old.
            CheckpointError: If the weights or the processor cannot be fetched or read.
        """
        library = _transformers()
        try:
            with impatient_hub():
                processor = library.Owlv2Processor.from_pretrained(source)
                model = library.Owlv2ForObjectDetection.from_pretrained(source)
        except Exception as error:  # the library raises many kinds; all mean the same to the user
            why = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise CheckpointError(
                f"OWLv2 {source!r} cannot be loaded: {why} Expected a hub's name, or a folder that save_pretrained of "
                "model and processor wrote (config.json, model.safetensors, tokenizer and preprocessor_config.json)."
            ) from error
        return cls(model.to(device), processor, name=str(source), sees_novel=sees_novel)

    def regions(self, data: DetectionData, *, top: int = TOP) -> RegionSet:
        """The best boxes of each image by objectness, after class-agnostic suppression at IoU 0.5.

        Args:
            data: The images.
            top: Regions of an image, at most.

        Returns:
            Class-agnostic regions; scores are the objectness, 0 to 1. The manifest counts the boxes whose centre lay in
            the padding, or that had no extent (``in_padding``): they are no regions.
        """
        outputs, padding = [], 0
        for record in progress(data.images, desc=f"proposing ({self.name})", unit="image"):
            features, boxes, is_in = self._boxes(record)
            scores = self.model.objectness_predictor(features)[0].sigmoid()[is_in]
            kept = nms(boxes, scores, NMS_THRESH)[:top]
            outputs.append(_output(boxes[kept], scores[kept]))
            padding += int((~is_in).sum())
        return self._region_set(data, outputs, {"top": top, "in_padding": padding})

    def label_regions(
        self,
        data: DetectionData,
        wanted: Mapping[int, Sequence[str]],
        class_names: Sequence[str],
        *,
        top: int = 1,
        template: str = TEMPLATE,
    ) -> RegionSet:
        """The best boxes of each name that an image is known to show; others are not asked for.

        Args:
            data: The images.
            wanted: Image id -> names, for each image of the data.
            class_names: The names that labels are positions of.
            top: Boxes of an image and name, after suppression at IoU 0.5.
            template: Query with {} for the name.

        Returns:
            Regions with classes; scores are the sigmoids of the class logits. `best_of_class` cuts by score.

        Raises:
            DataError: If an image has no entry in `wanted`.
            SplitError: If a name is not among `class_names`.
        """
        if lacking := [record.image_id for record in data.images if record.image_id not in wanted]:
            raise DataError(f"{data.name}: no names for image {lacking[0]}; {len(lacking)} images are so.")
        used = sorted({name for names in wanted.values() for name in names})
        check_class_list(used, class_names, where=f"names of {data.name}")
        texts = dict(zip(used, self._texts([template.format(name) for name in used]))) if used else {}
        outputs, padding = [], 0
        for record in progress(data.images, desc=f"asking for names ({self.name})", unit="image"):
            names, parts = list(wanted[record.image_id]), []
            features, boxes, is_in = self._boxes(record)
            padding += int((~is_in).sum())
            if names:
                queries = torch.stack([texts[name] for name in names])[None]  # [1, Q, D]
                logits, _ = self.model.class_predictor(features, queries)  # [1, P, Q]
                scores = logits[0, is_in].sigmoid()
            for column, name in enumerate(names):
                kept = nms(boxes, scores[:, column], NMS_THRESH)[:top]
                parts.append(_output(boxes[kept], scores[kept, column], list(class_names).index(name)))
            outputs.append(_joined(parts))
        facts = {"top": top, "template": template, "class_names": list(class_names), "in_padding": padding}
        return self._region_set(data, outputs, facts)

    @torch.no_grad()
    def _boxes(self, record: ImageRecord) -> tuple[Tensor, Tensor, Tensor]:
        """Features [1, P, D] of all places, clipped boxes [p, 4] of those in the image, and which these are [P]."""
        image = read_image(record.path, size=(record.height, record.width))
        picture = Image.fromarray(image.permute(1, 2, 0).numpy())
        pixels = self.processor.image_processor(images=[picture], return_tensors="pt")["pixel_values"]
        feature_map = self.model.image_embedder(pixels.to(self.device))[0]  # [1, h, w, D]
        features = feature_map.flatten(1, 2)
        shares = self.model.box_predictor(features, feature_map)[0].float().cpu()
        square = box_convert(shares, "cxcywh", "xyxy") * max(record.height, record.width)
        clipped, is_in = clip_to_images(square.numpy(), np.array([[record.width, record.height] * 2]))
        is_in = torch.from_numpy(is_in)
        return features, torch.from_numpy(clipped)[is_in].to(self.device), is_in.to(self.device)

    @torch.no_grad()
    def _texts(self, queries: list[str]) -> Tensor:
        """Text embeddings [Q, D]; the class head normalises them."""
        length = self.model.config.text_config.max_position_embeddings
        options = {"padding": "max_length", "truncation": True, "max_length": length, "return_tensors": "pt"}
        tokens = self.processor.tokenizer(queries, **options)
        given = {key: tokens[key].to(self.device) for key in ("input_ids", "attention_mask")}
        owl = self.model.owlv2
        return owl.text_projection(owl.text_model(**given)[1])

    def _region_set(self, data: DetectionData, outputs: list[dict], facts: dict[str, Any]) -> RegionSet:
        manifest = {"provider": f"OWLv2 ({self.name})", "sees_novel": self.sees_novel, **facts}
        return RegionSet.from_images([record.image_id for record in data.images], outputs, manifest)


def _transformers() -> Any:
    try:
        import transformers

        transformers.Owlv2ForObjectDetection, transformers.Owlv2Processor  # noqa: B018, imported when named
    except (ImportError, AttributeError) as error:
        raise ParamsError(
            f"the live provider needs {NEEDS}, which cannot be imported ({error}). Install it: pip install "
            f"'{NEEDS}'. Regions of other systems can also be read from files."
        ) from error
    return transformers


def _output(boxes: Tensor, scores: Tensor, label: int = -1) -> dict[str, np.ndarray]:
    columns = {"boxes": boxes.cpu().numpy(), "scores": scores.detach().float().cpu().numpy()}
    return columns | {"labels": np.full(len(scores), label)}


def _joined(parts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The boxes of all names of an image."""
    empty = {"boxes": np.empty((0, 4), np.float32), "scores": np.empty(0), "labels": np.empty(0, np.int64)}
    return {key: np.concatenate([none, *(part[key] for part in parts)]) for key, none in empty.items()}
