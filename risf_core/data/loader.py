"""From annotated images on disk to the lists of tensors that the detector takes."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Hashable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from risf_core.data.dataset import DetectionData, ImageRecord
from risf_core.errors import DataError
from risf_core.progress import progress

logger = logging.getLogger(__name__)

EXIF_ORIENTATION = 0x0112  # tag of the EXIF standard
CACHE_BYTES = 512 * 2**20


class ImageSizeError(DataError):
    """An image is not of the size that its annotations give."""


def read_image(path: str | Path, *, size: tuple[int, int] | None = None) -> Tensor:
    """Decode an image file completely.

    EXIF orientation is applied. Grey, palette and CMYK images become RGB, transparency is left out, 16-bit
    grey keeps its upper 8 bits.

    Args:
        path: The file.
        size: (height, width) in pixels that the annotations give; None checks nothing.

    Returns:
        uint8 RGB, [3, H, W].

    Raises:
        DataError: Naming the file, if it is missing, cut short, no image, or of another size than `size`.
    """
    path = Path(path)
    try:
        with Image.open(path) as file:
            file.load()  # Image.verify() would pass a JPEG that is cut short
            stored_size = (file.height, file.width)
            pixels = np.array(_to_rgb(ImageOps.exif_transpose(file)))  # [H, W, 3]
    except FileNotFoundError as error:
        raise DataError(
            f"image {path} does not exist. Restore the file or check the image folder."
        ) from error
    except (OSError, ValueError, SyntaxError, EOFError, MemoryError, Image.DecompressionBombError) as error:
        raise DataError(
            f"image {path} cannot be decoded: {error}. Expected a whole image file; replace it."
        ) from error
    if size is not None and pixels.shape[:2] != tuple(size):
        _raise_size(path, pixels.shape[:2], stored_size, tuple(size))
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()  # [H, W, 3] -> [3, H, W]


def _to_rgb(image: Image.Image) -> Image.Image:
    # 16-bit grey; PIL's own conversion would clip everything above 255 to white
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError(f"pixel values from {values.min()} to {values.max()}, expected 8 or 16 bits")
        image = Image.fromarray((values >> 8).astype(np.uint8))
    elif image.mode == "F":
        raise ValueError("floating-point pixels, whose white is not defined; expected 8 or 16 bits")
    return image.convert("RGB")


def _raise_size(path: Path, found: tuple, stored: tuple, expected: tuple) -> None:
    message = (
        f"image {path} has {found[1]}x{found[0]} pixels, its annotations say {expected[1]}x{expected[0]}."
    )
    if found != stored and stored == expected:
        message += " The annotations ignore the file's EXIF orientation: remove the tag or rotate the boxes."
    raise ImageSizeError(message + " Expected the size of the upright image.")


class ImageCache:
    """Decoded images of a small data set in memory, up to a number of bytes; others are read each time."""

    def __init__(self, max_bytes: int = CACHE_BYTES) -> None:
        self.max_bytes = max_bytes
        self.num_bytes = 0
        self._images: dict[Path, Tensor] = {}

    def read(self, record: ImageRecord) -> Tensor:
        """The image of a record, uint8 [3, H, W]; shared, so it must not be written to."""
        image = self._images.get(record.path)
        if image is None:
            image = read_image(record.path, size=(record.height, record.width))
            if self.num_bytes + image.nbytes <= self.max_bytes:
                self._images[record.path] = image
                self.num_bytes += image.nbytes
        return image


def image_order(
    num_images: int, batch_size: int, *, seed: int, groups: Sequence[Hashable] | None = None
) -> Iterator[list[int]]:
    """Yield batches of image positions without end: all images in a new random order, again and again.

    Batches are always full: they run across the end of a pass, so a small data set may have an image twice
    in one.

    Args:
        num_images: Number of images.
        batch_size: Images of a batch.
        seed: Seed of the order.
        groups: A group for each image; a batch has images of one group, and comes when so many of it have come. None:
            all are of one.

    Raises:
        DataError: If there is no image (at the first batch).
    """
    if num_images < 1 or batch_size < 1:
        raise DataError(
            f"cannot draw batches of {batch_size} from {num_images} images. Expected at least one of each."
        )
    generator = torch.Generator().manual_seed(seed)
    waiting: defaultdict[Hashable, list[int]] = defaultdict(list)
    while True:
        for image in torch.randperm(num_images, generator=generator).tolist():
            group = groups[image] if groups is not None else None
            waiting[group].append(image)
            if len(waiting[group]) == batch_size:
                yield waiting.pop(group)


def load_batch(
    data: DetectionData,
    indices: Sequence[int],
    *,
    flips: Sequence[bool] | None = None,
    cache: ImageCache | None = None,
) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """Read images and their training targets.

    Args:
        data: The data.
        indices: Positions in ``data.images``.
        flips: For each index whether to mirror image and boxes left to right; None mirrors none.
        cache: Memory to look for the images in and to keep them; None reads the files.

    Returns:
        Images, uint8 RGB [3, H, W] each at its own size, and targets ``{"boxes", "labels"}``: float32 [N, 4]
        x1, y1, x2, y2 in pixels, and int64 [N]. Crowd regions are no targets and are left out.

    Raises:
        DataError: If a file is unreadable, or not of the size that the annotations give.
    """
    images, targets = [], []
    for index, flip in zip(indices, [False] * len(indices) if flips is None else flips, strict=True):
        record = data.images[index]
        image = cache.read(record) if cache else read_image(record.path, size=(record.height, record.width))
        boxes = torch.from_numpy(record.boxes[~record.is_crowd])  # [N, 4], a copy
        if flip:
            image = image.flip(-1)
            boxes = torch.stack(
                [record.width - boxes[:, 2], boxes[:, 1], record.width - boxes[:, 0], boxes[:, 3]], 1
            )
        images.append(image)
        targets.append({"boxes": boxes, "labels": torch.from_numpy(record.labels[~record.is_crowd])})
    return images, targets


def check_images(data: DetectionData) -> None:
    """Decode every image of the data once, so that a bad file is found before training, not in its middle.

    Raises:
        DataError: With the first bad files and how many there are; all messages are the error's `problems`.
    """
    problems = []
    for record in progress(data.images, desc=f"decoding {data.name}", unit="images"):
        try:
            read_image(record.path, size=(record.height, record.width))
        except DataError as error:
            problems.append(str(error))
    if problems:
        more = f"\n{len(problems)} bad images of {len(data)} in {data.name}." if len(problems) > 1 else ""
        raise DataError("\n".join(problems[:5]) + more, problems=tuple(problems))
    logger.info("%s: %d images decoded, all whole", data.name, len(data))
