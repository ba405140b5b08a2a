"""A canvas on which glyphs are transformed, coloured with a guarded contrast, and placed where there is room."""

import copy
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter

from risf_core.data.glyphs import DESIGNS, MASK_SIZE, glyph_extent, glyph_levels, palette
from risf_core.data.grounds import random_color

CONTRAST = 100.0  # RGB distance that an object keeps from what lies under it
STICKER_SHARE = 0.72  # the others are bare glyphs
PALETTE_SHARE = 0.6  # objects in one of the three usual colours of their concept
ROTATION_STD = np.deg2rad(13.0)
UNOWNED, CLUTTER = -1, -2  # values in the map of owners; 0 and up are the labelled objects

Box = tuple[int, int, int, int]  # x1, y1, x2, y2 in pixels


@dataclass(frozen=True)
class SceneObject:
    """One labelled object.

    Attributes:
        concept: Its class name.
        design: Its code point.
        box: x1, y1, x2, y2 in pixels, amodal (as if nothing covered it), clipped to the image.
        visible: Fraction of its pixels that lie inside the image and are not covered.
    """

    concept: str
    design: int
    box: Box
    visible: float


@dataclass(frozen=True)
class Patch:
    """A transformed glyph: ink and body masks, float32 [h, w] in 0..1, cut to the pixels of its body (or ink)."""

    code: int
    ink: np.ndarray
    alpha: np.ndarray


def make_patch(
    rng: np.random.Generator, code: int, side: float, *, sticker: bool, squash: float = 0.0
) -> Patch:
    """Rotate, shear and scale a glyph so that sqrt(width * height) of its unturned body is `side` pixels.

    Args:
        squash: 0 keeps the aspect, 1 makes the body square, as cropping and resizing a tight box does.
    """
    wide, high = glyph_extent(code)
    scale = side / (MASK_SIZE * np.sqrt(wide * high))
    stretch = (high / wide) ** (squash / 2) * np.exp(rng.normal(0, 0.06))
    turn, shear = rng.normal(0, ROTATION_STD), rng.normal(0, 0.08)
    cos, sin = np.cos(turn), np.sin(turn)
    forward = np.array([[cos, -sin], [sin, cos]]) @ np.array([[1.0, shear], [0.0, 1.0]])
    forward = forward @ np.diag([scale * stretch, scale / stretch])
    level = 0 if scale > 0.5 else 1 if scale > 0.25 else 2
    half = np.abs(forward) @ np.array([wide, high]) * MASK_SIZE / 2
    width, height = (int(np.ceil(2 * v)) + 4 for v in half)
    back = np.linalg.inv(forward) / 2**level
    center = MASK_SIZE / 2 ** (level + 1)
    shift = center - back @ (np.array([width, height]) / 2 + rng.uniform(-0.5, 0.5, 2))
    matrix = (back[0, 0], back[0, 1], shift[0], back[1, 0], back[1, 1], shift[1])
    image = glyph_levels(code)[level].transform(
        (width, height), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR
    )
    masks = np.asarray(image, np.float32) / 255.0
    alpha = masks[..., 1 if sticker else 0]
    inside = alpha >= 0.5
    rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
    window = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return Patch(code, masks[window][..., 0], alpha[window])


def _object_color(rng: np.random.Generator, concept: str, grounds: np.ndarray) -> np.ndarray:
    """A colour of the concept that keeps CONTRAST to all grounds [G, 3], or else the best one tried."""
    colors = (
        palette(concept)[rng.permutation(3)] if rng.random() < PALETTE_SHARE else np.empty((0, 3), np.float32)
    )
    best, distance = None, -1.0
    for attempt in range(12):
        color = colors[attempt] if attempt < len(colors) else random_color(rng, (0.4, 0.95), (0.3, 1.0))
        least = float(np.sqrt(((grounds - color) ** 2).sum(1)).min())
        if least > distance:
            best, distance = color, least
        if distance >= CONTRAST:
            break
    return best


def _line_color(rng: np.random.Generator, body: np.ndarray) -> np.ndarray:
    """Ink on a body: dark on a light one and light on a dark one, of any hue."""
    dark = random_color(rng, (0.2, 0.9), (0.0, 0.3))
    light = random_color(rng, (0.0, 0.25), (0.85, 1.0))
    brightness = float(body @ np.array([0.3, 0.59, 0.11], np.float32))
    return dark if brightness > (110 if rng.random() < 0.7 else 160) else light


def _paint(
    rng: np.random.Generator, patch: Patch, concept: str, grounds: np.ndarray, *, sticker: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Colour a patch: pixels float32 [h, w, 3], alpha float32 [h, w], and its main colour."""
    color = _object_color(rng, concept, grounds)
    ramp = np.linspace(-1, 1, patch.alpha.shape[0], dtype=np.float32)[:, None, None]
    shade = 1.0 + rng.uniform(0.0, 0.18) * ramp
    alpha = patch.alpha * rng.uniform(0.88, 1.0)
    if not sticker:
        return np.clip(color * shade, 0, 255) + np.zeros((*patch.alpha.shape, 1), np.float32), alpha, color
    line = _line_color(rng, color)
    body, ink = (line, color) if rng.random() < 0.3 else (color, line)
    pixels = (body + patch.ink[..., None] * (ink - body)) * shade
    return np.clip(pixels, 0, 255), alpha, color


class Canvas:
    """Pixels, a map of who owns each pixel, and the objects placed so far.

    Args:
        image: The ground, square.
        grounds: The colours of the ground that objects must differ from, float32 [G, 3].
    """

    def __init__(self, image: Image.Image, grounds: np.ndarray) -> None:
        self.pixels = np.asarray(image, np.float32).copy()
        self.size = image.width
        self.grounds = grounds
        self.owner = np.full((self.size, self.size), UNOWNED, np.int16)
        self.placed: list[tuple[str, int, Box, int]] = []  # concept, code, box, number of pixels
        self.boxes: list[Box] = []  # unclipped, of clutter too

    def copy(self) -> "Canvas":
        """A canvas of its own with the same content."""
        twin = copy.copy(self)
        twin.pixels, twin.owner = self.pixels.copy(), self.owner.copy()
        twin.placed, twin.boxes = list(self.placed), list(self.boxes)
        return twin

    def overlap(self, box: Box) -> float:
        """The largest share that this box and a placed one have in common, of the smaller of the two."""
        worst = 0.0
        for other in self.boxes:
            wide, high = (
                min(box[2], other[2]) - max(box[0], other[0]),
                min(box[3], other[3]) - max(box[1], other[1]),
            )
            if wide > 0 and high > 0:
                worst = max(worst, wide * high / min(_area(box), _area(other)))
        return worst

    def draw(
        self,
        rng: np.random.Generator,
        patch: Patch,
        concept: str,
        corner: tuple[int, int],
        *,
        sticker: bool,
        labelled: bool,
    ) -> np.ndarray:
        """Blend a patch in with its upper left corner at x, y, clipped to the canvas.

        Returns:
            The object's main colour, float32 [3], RGB in 0-255.
        """
        height, width = patch.alpha.shape
        x, y = corner
        x1, y1, x2, y2 = max(x, 0), max(y, 0), min(x + width, self.size), min(y + height, self.size)
        here, cut = np.s_[y1:y2, x1:x2], np.s_[y1 - y : y2 - y, x1 - x : x2 - x]
        local = self.pixels[here].reshape(-1, 3).mean(0, keepdims=True)
        colors, alpha, color = _paint(
            rng, patch, concept, np.concatenate([self.grounds, local]), sticker=sticker
        )
        self.pixels[here] += alpha[cut][..., None] * (colors[cut] - self.pixels[here])
        inside = patch.alpha >= 0.5
        self.owner[here][inside[cut]] = len(self.placed) if labelled else CLUTTER
        self.boxes.append((x, y, x + width, y + height))
        if labelled:
            self.placed.append((concept, patch.code, (x1, y1, x2, y2), int(inside.sum())))
        return color

    def place(
        self,
        rng: np.random.Generator,
        concept: str,
        side: float,
        *,
        labelled: bool,
        max_overlap: float = 0.2,
        keep_off: Box | None = None,
    ) -> bool:
        """Find room for an object of this concept in one of its designs, shrinking it when there is none.

        Args:
            rng: Decides everything about it.
            concept: What to draw.
            side: Size in pixels, see `make_patch`.
            labelled: Whether it is to be among `objects`.
            max_overlap: Largest `overlap` with what was placed before.
            keep_off: A box that the object must not even come near.

        Returns:
            False if there was no room and nothing was drawn.
        """
        designs = DESIGNS[concept]
        code = designs[int(rng.integers(len(designs)))]
        sticker = bool(rng.random() < STICKER_SHARE)
        for _ in range(4):
            patch = make_patch(rng, code, side, sticker=sticker)
            height, width = patch.alpha.shape
            for x, y in rng.random((8, 2)):
                corner = (
                    round(-0.12 * width + x * (self.size - 0.76 * width)),
                    round(-0.12 * height + y * (self.size - 0.76 * height)),
                )
                box = (corner[0], corner[1], corner[0] + width, corner[1] + height)
                if keep_off is not None and touches(box, keep_off):
                    continue
                if self.overlap(box) <= max_overlap:
                    self.draw(rng, patch, concept, corner, sticker=sticker, labelled=labelled)
                    return True
            side *= 0.8
        return False

    def objects(self) -> tuple[SceneObject, ...]:
        """The labelled objects in the order in which they were placed."""
        counts = np.bincount(self.owner.ravel().astype(np.int64) + 2, minlength=len(self.placed) + 2)[2:]
        return tuple(
            SceneObject(concept, code, box, int(seen) / pixels)
            for (concept, code, box, pixels), seen in zip(self.placed, counts, strict=True)
        )

    def finish(self, rng_seed: int) -> np.ndarray:
        """Mild blur, brightness and noise, all drawn from `rng_seed`: uint8 [H, W, 3]."""
        rng = np.random.default_rng(rng_seed)
        image = Image.fromarray(np.clip(self.pixels, 0, 255).astype(np.uint8))
        if rng.random() < 0.5:
            image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.2, 0.8)))
        noise = rng.standard_normal((self.size, self.size, 1), dtype=np.float32) * np.float32(
            rng.uniform(0, 9)
        )
        pixels = np.asarray(image, np.float32) * rng.uniform(0.92, 1.06, 3).astype(np.float32) + noise
        return np.clip(pixels, 0, 255).astype(np.uint8)


def _area(box: Box) -> int:
    return (box[2] - box[0]) * (box[3] - box[1])


def touches(box: Box, other: Box, margin: int = 5) -> bool:
    """Whether two boxes come within `margin` pixels of each other (more than the blur reaches)."""
    return (
        box[0] < other[2] + margin
        and other[0] < box[2] + margin
        and box[1] < other[3] + margin
        and other[1] < box[3] + margin
    )
