"""A CLIP that compares crops of an image with the names of a label space."""

import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from risf_core.clip_models import preprocessing_of
from risf_core.cm_clip.costs import PRECISIONS, check_budget, crops_within, fastest_precision, in_precision
from risf_core.cm_clip.crops import Cropper, check_boxes
from risf_core.cm_clip.dense import DenseTower
from risf_core.cm_clip.scores import BACKGROUND, TEMPERATURE
from risf_core.cm_clip.texts import TEMPLATES as TEMPLATES
from risf_core.cm_clip.texts import encode_texts, templates_named
from risf_core.errors import ParamsError

PATHS = ("crop", "dense")


class CMCLIP:
    """A CLIP that compares crops of an image with the names of a label space.

    Models trained with a sigmoid (SigLIP) get the same softmax: their bias is one number for all names, so it cancels.

    Args:
        model: An open_clip model, in evaluation mode. It stays as it is; a reduced precision works on a copy of the
            image tower.
        tokenizer: Its tokenizer.
        class_names: The classes whose detections are re-scored; each must stand in the label space.
        label_space: All names that compete in the softmax, "background" last. None is the paper's: the classes and
            background.
        templates: Prompts with {} for the name, or "published" (one), "simple" (7) or "openai" (80); embeddings of
            several are averaged after normalisation.
        temperature: Factor of the cosines in the softmax; "learned" takes the model's own, exp(logit_scale).
        crop: How a crop becomes the model's input size: "squash" (both sides, as published), or with resize="bicubic"
            also open_clip's "shortest" (resize, then centre crop) and "longest".
        resize: "roi_align" (bilinear, averaged where it shrinks, as published), "bicubic" (PIL crop and open_clip's own
            transform) or "bicubic_tensor" (the same rule on the model's device, within 2 of 255 levels).
        preprocess: "clip" (RGB, the model's mean and std) or "released" (BGR in 0-1, nothing else: what the published
            code feeds).
        path: "crop" (each box alone through the model) or "dense" (all boxes of an image from one pass; see `dense`).
        dense_scale: Of the dense path: sides of the image as the tower sees it over those of the given one.
        dense_stages: Of the dense path: how many of the tower's four stages run once for all boxes.
        precision: What the image tower computes in: "fp32", "bf16", "fp16", or "auto" (the fastest on this machine).
            Cosines and texts stay in float32.
        memory_budget_mb: The most MiB by which encoding crops raises the peak of a process above the loaded model and
            the decoded image (3 bytes a pixel, and what the decoder took); the batch size follows. It holds for images
            and boxes of any size. Not covered: on the dense path the image's pass, with resize="bicubic" Pillow's
            copies of a box's pixels, and the embeddings of all boxes (D floats each).
        batch_size: Crops in one forward pass, whatever the budget.
        text_store: Folder in which text features are kept for other runs; None keeps them nowhere.

    Attributes:
        label_space: The L names.
        label_columns: int64 [C], the column of each class.
        text_embeds_norm: [L, D], computed once.
        learned_temperature: exp(logit_scale) of the model; None where it has none.
        precision: The one in use; `probe` holds what "auto" measured.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer,
        class_names: Sequence[str],
        *,
        label_space: Sequence[str] | None = None,
        templates: Sequence[str] | str = TEMPLATES,
        temperature: float | str = TEMPERATURE,
        crop: str = "squash",
        resize: str = "roi_align",
        preprocess: str = "clip",
        path: str = "crop",
        dense_scale: float = 1.5,
        dense_stages: int = 2,
        precision: str = "fp32",
        memory_budget_mb: float = 1024,
        batch_size: int | None = None,
        text_store: Path | None = None,
    ) -> None:
        check_budget(memory_budget_mb)
        for name, value, known in (("path", path, PATHS), ("precision", precision, (*PRECISIONS, "auto"))):
            if value not in known:
                raise ParamsError(f"{name} is {value!r}. Expected one of: {', '.join(known)}.")
        self.class_names = tuple(class_names)
        self.label_space = (*self.class_names, BACKGROUND) if label_space is None else tuple(label_space)
        self._check_names(label_space)
        self.label_columns = np.array(
            [self.label_space.index(name) for name in self.class_names], dtype=np.int64
        )
        self.tokenizer, self.text_store, self.templates = tokenizer, text_store, templates_named(templates)
        self.device, self.memory_budget_mb = next(model.parameters()).device, memory_budget_mb
        self.image_size, *preprocessing = preprocessing_of(model)
        self.crop, self.resize, self.preprocess = crop, resize, preprocess
        rules = {"crop": crop, "resize": resize, "preprocess": preprocess}
        self._cropper = Cropper(self.image_size, *preprocessing, **rules)
        scale = getattr(model, "logit_scale", None)
        self.learned_temperature = None if scale is None else float(scale.detach().exp())
        self.temperature = self._temperature(temperature)
        self.precision, self.probe = precision, {}
        if precision == "auto":
            self.precision, self.probe = fastest_precision(model, self.image_size)
        self.model, self._dtype = in_precision(model, self.precision), PRECISIONS[self.precision]
        if batch_size is not None:
            self.batch_size = batch_size
        self.path, self.dense_scale, self.dense_stages = path, dense_scale, dense_stages
        self._tower = DenseTower(self.model.visual, shared=dense_stages) if path == "dense" else None
        self.text_embeds_norm = self.encode_names(self.label_space)

    def _check_names(self, label_space: Sequence[str] | None) -> None:
        if isinstance(label_space, str):
            raise ParamsError(
                f"label_space is {label_space!r}. Expected a list of names, {BACKGROUND!r} last."
            )
        names = self.label_space
        if BACKGROUND in self.class_names:
            raise ParamsError(
                f"one of the classes to re-score is called {BACKGROUND!r}, which is the label space's own last name. "
                "Leave it out of the classes to re-score."
            )
        for what, given in (("the classes to re-score", self.class_names), ("the label space", names)):
            if twice := sorted({name for name in given if given.count(name) > 1}):
                raise ParamsError(
                    f"{what}: expected each class once, but these stand twice: {', '.join(twice)}."
                )
        if missing := [name for name in self.class_names if name not in names]:
            raise ParamsError(
                f"label space {list(names)}: expected each class to re-score in it; missing: {missing}."
            )
        if BACKGROUND in names[:-1]:
            raise ParamsError(f"label space {list(names)}: expected {BACKGROUND!r} as the last name.")

    def _temperature(self, temperature: float | str) -> float:
        if temperature != "learned":
            return float(temperature)
        if self.learned_temperature is None:
            raise ParamsError('temperature is "learned", but the model has no logit_scale. Give a number.')
        return self.learned_temperature

    @functools.cached_property
    def batch_size(self) -> int:
        """Crops in one forward pass: as many as the memory budget allows, at most 64."""
        return crops_within(self.model, self.memory_budget_mb, image_size=self.image_size, dtype=self._dtype)

    def facts(self) -> dict:
        """What a record says of it: the temperatures, and what it computes in, with what "auto" measured."""
        names = ("temperature", "learned_temperature", "precision", "probe")
        return {name: getattr(self, name) for name in names}

    def encode_names(self, names: Sequence[str]) -> Tensor:
        """Normalised text embeddings of any names, by the templates: float32 [L', D]."""
        return encode_texts(self.model, self.tokenizer, names, self.templates, store=self.text_store)

    def crops(self, image: Tensor, boxes: Tensor) -> Tensor:
        """Cut boxes out of an image and make them the model's input.

        Args:
            image: uint8 RGB [3, H, W].
            boxes: [N, 4], x1, y1, x2, y2 in pixels of the image.

        Returns:
            float32 [N, 3, h, w] of the model's input size.

        Raises:
            DataError: If image or boxes have another shape or type, or a box is not finite.
        """
        return self._cropper.crops(image, torch.as_tensor(boxes, dtype=torch.float32), self.device)

    @torch.inference_mode()
    def embed_crops(self, crops: Tensor) -> Tensor:
        """Normalised embeddings of crops [N, 3, h, w]: float32 [N, D]."""
        crops = crops.to(self._dtype, memory_format=torch.channels_last)
        return nn.functional.normalize(self.model.encode_image(crops).float(), dim=-1)

    def encode_crops(self, crops: Tensor) -> Tensor:
        """Cosines of crops [N, 3, h, w] with the label space: float32 [N, L]."""
        return self._cosines(self.embed_crops(crops))

    def embed_boxes(self, image: Tensor, boxes: Tensor) -> Tensor:
        """Normalised embeddings of an image's boxes, by the path: float32 [N, D]; arguments as in `crops`."""
        boxes = torch.as_tensor(boxes, dtype=torch.float32)
        if not len(boxes):
            return self.text_embeds_norm.new_empty(0, self.text_embeds_norm.shape[1])
        if self.path == "dense":
            return self._dense_embeds(image, boxes)
        parts = boxes.split(self.batch_size)
        return torch.cat([self.embed_crops(self.crops(image, part)) for part in parts])

    @torch.inference_mode()
    def _dense_embeds(self, image: Tensor, boxes: Tensor) -> Tensor:
        """The image goes through the tower once, its sides multiples of the tower's stride."""
        check_boxes(image, boxes)
        (height, width), stride = image.shape[1:], self._tower.stride
        rows, columns = (max(1, round(side * self.dense_scale / stride)) * stride for side in (height, width))
        page = self._cropper.page(image, (rows, columns), self.device)
        boxes = boxes.clamp(min=0).minimum(boxes.new_tensor([width, height] * 2))
        boxes = boxes * boxes.new_tensor([columns / width, rows / height] * 2)
        page = page.to(self._dtype, memory_format=torch.channels_last)
        embeds = self._tower.embed(page, boxes.to(self.device), batch_size=self.batch_size)
        return nn.functional.normalize(embeds.float(), dim=-1)

    def cosines(self, image: Tensor, boxes: Tensor) -> Tensor:
        """Cosines of an image's boxes with the label space, by the path: float32 [N, L]; arguments as in `crops`."""
        return self._cosines(self.embed_boxes(image, boxes))

    def _cosines(self, embeds_norm: Tensor) -> Tensor:
        return embeds_norm @ self.text_embeds_norm.T  # [N, D] @ [D, L] -> [N, L]

    def probabilities(self, image: Tensor, boxes: Tensor) -> Tensor:
        """Softmax of temperature * cosine over the label space, background last: float32 [N, L].

        Threshold and class filter are the caller's.
        """
        return (self.temperature * self.cosines(image, boxes)).softmax(dim=-1)
