"""A CLIP that compares crops of an image with the names of a label space."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from open_clip.transform import image_transform
from PIL import Image
from torch import Tensor, nn
from torchvision.ops import roi_align

from risf_core.clip_models import preprocessing_of
from risf_core.cm_clip.costs import PRECISIONS, in_precision
from risf_core.cm_clip.scores import BACKGROUND, TEMPERATURE
from risf_core.cm_clip.texts import TEMPLATES as TEMPLATES
from risf_core.cm_clip.texts import encode_texts, templates_named
from risf_core.errors import DataError, ParamsError

CROP_RULES = ("squash", "shortest", "longest")  # open_clip's resize modes; the paper squashes
RESIZES = ("roi_align", "bicubic", "bicubic_tensor")
PREPROCESSINGS = ("clip", "released")
PATHS = ("crop",)
MAX_BATCH = 64  # fit a CPU's caches and are faster than 256


class CMCLIP:
    """A CLIP that compares crops of an image with the names of a label space.

    Args:
        model: An open_clip model, in evaluation mode.
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
            transform) or "bicubic_tensor" (the same rule on the model's device; see `_bicubic_crops`).
        preprocess: "clip" (RGB, the model's mean and std) or "released" (BGR in 0-1, nothing else: what the published
            code feeds).
        path: "crop" (each box alone through the model) or "dense" (one forward pass of the image; see `dense`).
        precision: What the image tower computes in: "fp32", "bf16", "fp16" or "auto" (the faster one here).
        memory_budget_mb: Peak memory above the loaded model; the batch size follows from it.
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
        precision: str = "fp32",
        memory_budget_mb: float = 1024,
        batch_size: int | None = None,
        text_store: Path | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.crop, self.resize, self.preprocess, self.path = crop, resize, preprocess, path
        self.precision, self.probe = precision, {}
        self.batch_size = batch_size or MAX_BATCH
        self.class_names = tuple(class_names)
        self.label_space = (*self.class_names, BACKGROUND) if label_space is None else tuple(label_space)
        self._check_choices(label_space)
        self.label_columns = np.array(
            [self.label_space.index(name) for name in self.class_names], dtype=np.int64
        )
        self.model = in_precision(model, precision)
        self.device, self._dtype = next(model.parameters()).device, PRECISIONS[precision]
        self.image_size, mean, std, self._interpolation = preprocessing_of(model)
        released = preprocess == "released"
        self._mean, self._std = ((0.0,) * 3, (1.0,) * 3) if released else (mean, std)
        scale = getattr(model, "logit_scale", None)
        self.learned_temperature = None if scale is None else float(scale.detach().exp())
        self.temperature = self._temperature(temperature)
        self.templates = templates_named(templates)
        self.text_embeds_norm = self.encode_names(self.label_space)

    def _temperature(self, temperature: float | str) -> float:
        if temperature != "learned":
            return float(temperature)
        if self.learned_temperature is None:
            raise ParamsError('temperature is "learned", but the model has no logit_scale. Give a number.')
        return self.learned_temperature

    def _check_choices(self, label_space: Sequence[str] | None) -> None:
        choices = (("crop", CROP_RULES), ("resize", RESIZES), ("preprocess", PREPROCESSINGS))
        choices += (("path", PATHS), ("precision", PRECISIONS))
        for name, known in choices:
            if getattr(self, name) not in known:
                raise ParamsError(f"{name} is {getattr(self, name)!r}. Expected one of: {', '.join(known)}.")
        if self.resize != "bicubic" and self.crop != "squash":
            raise ParamsError(
                f'crop="{self.crop}" keeps the aspect, which resize="{self.resize}" cannot: use "bicubic".'
            )
        if isinstance(label_space, str):
            raise ParamsError(
                f"label_space is {label_space!r}. Expected a list of names, {BACKGROUND!r} last."
            )
        names = self.label_space
        missing = [name for name in self.class_names if name not in names]
        if missing or len(set(names)) != len(names):
            raise ParamsError(
                f"label space {list(names)}: expected each class once; missing: {missing or 'none'}."
            )
        if BACKGROUND in names[:-1]:
            raise ParamsError(f"label space {list(names)}: expected {BACKGROUND!r} as the last name.")

    def encode_names(self, names: Sequence[str]) -> Tensor:
        """Normalised text embeddings of any names, by the templates: float32 [L', D]."""
        return encode_texts(self.model, self.tokenizer, names, self.templates)

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
        boxes = torch.as_tensor(boxes, dtype=torch.float32)
        if image.ndim != 3 or image.shape[0] != 3 or image.dtype != torch.uint8:
            raise DataError(f"the image is {image.dtype} {tuple(image.shape)}. Expected uint8 RGB [3, H, W].")
        if boxes.ndim != 2 or boxes.shape[1] != 4 or not boxes.isfinite().all():
            raise DataError(
                f"boxes have shape {tuple(boxes.shape)}, or are not finite. Expected finite [N, 4]."
            )
        if self.preprocess == "released":
            image = image.flip(0)  # RGB -> BGR
        if self.resize == "bicubic":
            return self._pil_crops(image, boxes)
        boxes, pixels = boxes.to(self.device), image.to(self.device, torch.float32)
        if self.resize == "bicubic_tensor":
            crops = self._bicubic_crops(pixels, boxes)
        else:
            rois = torch.cat([boxes.new_zeros(len(boxes), 1), boxes], dim=1)
            # Sampling ratio 0: as many points in a bin as it has pixels, so that large boxes are averaged, not thinned
            # out.
            crops = roi_align(pixels[None] / 255.0, rois, self.image_size, sampling_ratio=0, aligned=True)
        mean, std = (torch.tensor(v, device=self.device)[:, None, None] for v in (self._mean, self._std))
        return crops.sub_(mean).div_(std)

    def _bicubic_crops(self, pixels: Tensor, boxes: Tensor) -> Tensor:
        """What `_pil_crops` gives for crop="squash", before mean and std.

        Two passes, each rounded to whole levels, in the order of Pillow 13 (rows first where they shrink much more than
        the columns; older ones always take the columns first). Within 2 of 255 levels: Pillow computes in integers.
        """
        height, width = self.image_size
        crops = pixels.new_empty(len(boxes), 3, height, width)
        for i, box in enumerate(boxes.tolist()):
            x1, y1, x2, y2 = _pixel_box(box, pixels.shape[2], pixels.shape[1])
            crop = pixels[None, :, y1:y2, x1:x2]
            rows_first = y2 - y1 - height > 2 * max(x2 - x1 - width, 0)
            for size in ((height, x2 - x1) if rows_first else (y2 - y1, width), (height, width)):
                crop = nn.functional.interpolate(crop, size=size, mode=self._interpolation, antialias=True)
                crop = crop.add(0.5).floor().clamp(0, 255)
            crops[i] = crop[0]
        return crops.div_(255.0)

    def _pil_crops(self, image: Tensor, boxes: Tensor) -> Tensor:
        rule = {"mean": self._mean, "std": self._std, "interpolation": self._interpolation}
        transform = image_transform(self.image_size, is_train=False, resize_mode=self.crop, **rule)
        page = Image.fromarray(image.permute(1, 2, 0).contiguous().cpu().numpy())
        crops = [transform(page.crop(_pixel_box(box, page.width, page.height))) for box in boxes.tolist()]
        return torch.stack(crops).to(self.device) if crops else torch.empty(0, 3, *self.image_size)

    @torch.inference_mode()
    def embed_crops(self, crops: Tensor) -> Tensor:
        """Normalised embeddings of crops [N, 3, h, w]: float32 [N, D]."""
        crops = crops.to(self._dtype, memory_format=torch.channels_last)
        return nn.functional.normalize(self.model.encode_image(crops).float(), dim=-1)

    def encode_crops(self, crops: Tensor) -> Tensor:
        """Cosines of crops [N, 3, h, w] with the label space: float32 [N, L]."""
        return self.embed_crops(crops) @ self.text_embeds_norm.T  # [N, D] @ [D, L] -> [N, L]

    def embed_boxes(self, image: Tensor, boxes: Tensor) -> Tensor:
        """Normalised embeddings of an image's boxes, by the path: float32 [N, D]; arguments as in `crops`."""
        boxes = torch.as_tensor(boxes, dtype=torch.float32)
        parts = [
            self.embed_crops(self.crops(image, part)) for part in boxes.split(self.batch_size) if len(part)
        ]
        return (
            torch.cat(parts) if parts else self.text_embeds_norm.new_empty(0, self.text_embeds_norm.shape[1])
        )

    def cosines(self, image: Tensor, boxes: Tensor) -> Tensor:
        """Cosines of the boxes with the label space: float32 [N, L]; arguments as in `crops`."""
        return self.embed_boxes(image, boxes) @ self.text_embeds_norm.T

    def probabilities(self, image: Tensor, boxes: Tensor) -> Tensor:
        """Softmax of temperature * cosine over the label space, background last: float32 [N, L].

        Threshold and class filter are the caller's.
        """
        return (self.temperature * self.cosines(image, boxes)).softmax(dim=-1)


def _pixel_box(box: Sequence[float], width: int, height: int) -> tuple[int, int, int, int]:
    """The smallest box of whole pixels, at least one, that covers a box within the image."""
    x1, y1 = min(max(int(box[0]), 0), width - 1), min(max(int(box[1]), 0), height - 1)
    x2, y2 = min(math.ceil(box[2]), width), min(math.ceil(box[3]), height)
    return x1, y1, max(x2, x1 + 1), max(y2, y1 + 1)
