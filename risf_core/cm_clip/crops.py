"""Boxes of an image as the input of a CLIP: cut out, resized and normalised."""

import math
from collections.abc import Sequence

import torch
from open_clip.transform import image_transform
from PIL import Image
from torch import Tensor, nn
from torchvision.ops import roi_align

from risf_core.errors import DataError, ParamsError

CROP_RULES = ("squash", "shortest", "longest")  # open_clip's resize modes; the paper squashes
RESIZES = ("roi_align", "bicubic", "bicubic_tensor")
PREPROCESSINGS = ("clip", "released")
MAX_PIXELS = (
    2**19
)  # made float at once; RoIAlign takes 32 bytes for each on a CPU, and `costs.OVERHEAD_MB` holds them


class Cropper:
    """How boxes of an image become the input of a model; arguments as those of `CMCLIP`.

    Args:
        image_size: (height, width) of the model's input.
        mean: RGB, of values in 0-1.
        std: Likewise.
        interpolation: Of CLIP's own preprocessing.
    """

    def __init__(
        self,
        image_size: tuple[int, int],
        mean: Sequence[float],
        std: Sequence[float],
        interpolation: str,
        *,
        crop: str,
        resize: str,
        preprocess: str,
    ) -> None:
        choices = (("crop", crop, CROP_RULES), ("resize", resize, RESIZES))
        for name, value, known in (*choices, ("preprocess", preprocess, PREPROCESSINGS)):
            if value not in known:
                raise ParamsError(f"{name} is {value!r}. Expected one of: {', '.join(known)}.")
        if resize != "bicubic" and crop != "squash":
            raise ParamsError(
                f'crop="{crop}" keeps the aspect, which resize="{resize}" cannot: use "bicubic".'
            )
        self.image_size, self._interpolation = image_size, interpolation
        self._crop, self._resize, self._is_bgr = crop, resize, preprocess == "released"
        self._mean, self._std = ((0.0,) * 3, (1.0,) * 3) if self._is_bgr else (mean, std)

    def crops(self, image: Tensor, boxes: Tensor, device: torch.device) -> Tensor:
        """Float32 [N, 3, h, w] of boxes [N, 4] of an image, uint8 RGB [3, H, W]."""
        check_boxes(image, boxes)
        if self._resize != "bicubic":
            image, boxes = image.to(device), boxes.cpu()
        make = {"bicubic": self._pil_crops, "bicubic_tensor": self._bicubic_crops}
        crops = make.get(self._resize, self._roi_crops)(image, boxes).to(device)
        crops = crops.flip(1) if self._is_bgr else crops  # RGB -> BGR
        return crops if self._resize == "bicubic" else self._normalised(crops)

    def page(self, image: Tensor, size: tuple[int, int], device: torch.device) -> Tensor:
        """The whole image, resized (antialiased) and normalised: float32 [1, 3, *size]."""
        image = image.flip(0) if self._is_bgr else image
        page = image[None].to(device, torch.float32).div_(255.0)
        if size != tuple(image.shape[1:]):
            page = nn.functional.interpolate(page, size=size, mode=self._interpolation, antialias=True)
        return self._normalised(page.clamp_(0.0, 1.0))

    def _normalised(self, crops: Tensor) -> Tensor:
        mean, std = (torch.tensor(v, device=crops.device)[:, None, None] for v in (self._mean, self._std))
        return crops.sub_(mean).div_(std)

    def _roi_crops(self, image: Tensor, boxes: Tensor) -> Tensor:
        """RoIAlign of the image in 0-1; of a large image or box no more at a time than `MAX_PIXELS`."""
        if image[0].numel() <= MAX_PIXELS and _samples(boxes, self.image_size) <= MAX_PIXELS:
            return _roi_align(image, boxes, self.image_size)
        crops = torch.empty(len(boxes), 3, *self.image_size, device=image.device)
        for crop, box in zip(crops, boxes):
            _fill(crop, image, box.double())
        return crops

    def _bicubic_crops(self, image: Tensor, boxes: Tensor) -> Tensor:
        """What `_pil_crops` gives for crop="squash", before mean and std.

        Two passes, each rounded to whole levels, in the order of Pillow 13 (rows first where they shrink much more than
        the columns; older ones always take the columns first). Within 2 of 255 levels: Pillow computes in integers.
        """
        height, width = self.image_size
        crops = torch.empty(len(boxes), 3, height, width, device=image.device)
        for i, box in enumerate(boxes.tolist()):
            x1, y1, x2, y2 = _pixel_box(box, image.shape[2], image.shape[1])
            crop = image[None, :, y1:y2, x1:x2]
            if x2 - x1 == 1:
                crop = crop.expand(
                    -1, -1, -1, 2
                )  # of a single column PyTorch's antialiasing makes something else
            rows_first = y2 - y1 - height > 2 * max(x2 - x1 - width, 0)
            kept = (
                3 if rows_first else 2
            )  # the side that the first pass leaves: a large box goes in strips along it
            size = (height, crop.shape[3]) if rows_first else (crop.shape[2], width)
            first = crop.new_empty(1, 3, *size, dtype=torch.float32)
            count = max(1, min(-(-crop[0, 0].numel() // MAX_PIXELS), crop.shape[kept] // 2))
            for strip, part in zip(crop.tensor_split(count, kept), first.tensor_split(count, kept)):
                part.copy_(self._levels(strip.float(), tuple(part.shape[2:])))
            crops[i] = self._levels(first, (height, width))[0]
        return crops.div_(255.0)

    def _levels(self, crop: Tensor, size: tuple[int, int]) -> Tensor:
        """Resized, and rounded to whole levels."""
        crop = nn.functional.interpolate(crop, size=size, mode=self._interpolation, antialias=True)
        return crop.add_(0.5).floor_().clamp_(0, 255)

    def _pil_crops(self, image: Tensor, boxes: Tensor) -> Tensor:
        rule = {"mean": self._mean, "std": self._std, "interpolation": self._interpolation}
        transform = image_transform(self.image_size, is_train=False, resize_mode=self._crop, **rule)
        crops = []
        for box in boxes.tolist():
            x1, y1, x2, y2 = _pixel_box(box, image.shape[2], image.shape[1])
            part = image[:, y1:y2, x1:x2].permute(1, 2, 0).contiguous().cpu().numpy()
            crops.append(transform(Image.fromarray(part)))
        return torch.stack(crops) if crops else torch.empty(0, 3, *self.image_size)


def check_boxes(image: Tensor, boxes: Tensor) -> None:
    """DataError if image or boxes have another shape or type, or a box is not finite."""
    if image.ndim != 3 or image.shape[0] != 3 or image.dtype != torch.uint8:
        raise DataError(f"the image is {image.dtype} {tuple(image.shape)}. Expected uint8 RGB [3, H, W].")
    if boxes.ndim != 2 or boxes.shape[1] != 4 or not boxes.isfinite().all():
        raise DataError(f"boxes have shape {tuple(boxes.shape)}, or are not finite. Expected finite [N, 4].")


def _roi_align(image: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """RoIAlign of boxes [N, 4] of an image, uint8 [3, H, W], in 0-1; only the part that boxes touch is made float."""
    page = torch.zeros(1, *image.shape, device=image.device)
    x1, y1, x2, y2 = _touched(boxes, image.shape[2], image.shape[1])
    page[0, :, y1:y2, x1:x2] = image[:, y1:y2, x1:x2]
    page[0, :, y1:y2, x1:x2].div_(255.0)
    rois = torch.cat([boxes.new_zeros(len(boxes), 1), boxes], dim=1).to(image.device)
    # Sampling ratio 0: as many points in a bin as it has pixels, so that large boxes are averaged, not thinned out.
    return roi_align(page, rois, size, sampling_ratio=0, aligned=True)


def _samples(boxes: Tensor, size: tuple[int, int]) -> float:
    """The most points that RoIAlign samples in one of boxes [N, 4]."""
    sides = boxes.new_tensor([size[1], size[0]])
    points = ((boxes[:, 2:] - boxes[:, :2]) / sides).ceil().clamp(min=1) * sides
    return points.prod(1).max().item() if len(boxes) else 0.0


def _fill(crop: Tensor, image: Tensor, box: Tensor) -> None:
    """RoIAlign of one box, float64 [4], into a crop [3, h, w]: in halves along bins while the box is large.

    A half has the same points as the whole, up to the rounding of its corners.
    """
    size = tuple(crop.shape[1:])
    if _samples(box[None], size) <= MAX_PIXELS or size == (1, 1):
        x1, y1, x2, y2 = _touched(box, image.shape[2], image.shape[1])
        local = (box - box.new_tensor([x1, y1, x1, y1])).float()
        crop.copy_(_roi_align(image[:, y1:y2, x1:x2], local[None], size)[0])
        return
    axis = int(size[0] == 1 or (size[1] > 1 and box[2] - box[0] > box[3] - box[1]))  # 0: rows, 1: columns
    half = size[axis] // 2
    low, high = 1 - axis, 3 - axis  # of x1, y1, x2, y2
    cut = box[low] + (box[high] - box[low]) * half / size[axis]
    first, second = box.clone(), box.clone()
    first[high] = second[low] = cut
    _fill(crop.narrow(axis + 1, 0, half), image, first)
    _fill(crop.narrow(axis + 1, half, size[axis] - half), image, second)


def _touched(boxes: Tensor, width: int, height: int) -> tuple[int, int, int, int]:
    """The part of an image whose pixels RoIAlign may read: x1, y1, x2, y2."""
    if not len(boxes):
        return 0, 0, 0, 0
    corners = boxes.view(-1, 2, 2)
    low, high = corners.amin((0, 1)).tolist(), corners.amax((0, 1)).tolist()
    x1, y1 = (min(max(math.floor(v) - 2, 0), side - 1) for v, side in zip(low, (width, height)))
    x2, y2 = (min(max(math.ceil(v) + 2, 1), side) for v, side in zip(high, (width, height)))
    return x1, y1, x2, y2


def _pixel_box(box: Sequence[float], width: int, height: int) -> tuple[int, int, int, int]:
    """The smallest box of whole pixels, at least one, that covers a box within the image."""
    x1, y1 = min(max(int(box[0]), 0), width - 1), min(max(int(box[1]), 0), height - 1)
    x2, y2 = min(math.ceil(box[2]), width), min(math.ceil(box[3]), height)
    return x1, y1, max(x2, x1 + 1), max(y2, y1 + 1)
