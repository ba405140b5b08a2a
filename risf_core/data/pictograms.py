"""Render the pictogram world: scenes with boxes, K-shot images in two versions, and small photos of one thing.

Every image is a pure function of its key, a tuple of integers such as (world seed, part, index). World v2 of the
trial in docs: sticker-like objects with a guarded contrast, which a detector of 2 M parameters can learn.
"""

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from risf_core.data.glyphs import (
    CLASSES,
    CONCEPTS,
    DESIGNS,
    EXTRA_CONCEPTS,
    MASK_SIZE,
    SPLITS,
    color_word,
    corpus_designs,
    glyph_extent,
    glyph_levels,
    palette,
)

__all__ = [
    "CLASSES", "CONCEPTS", "DESIGNS", "EXTRA_CONCEPTS", "SPLITS",
    "Photo", "Scene", "SceneObject", "render_photo", "render_scene", "render_shot",
]  # fmt: skip

CONTRAST = 100.0  # RGB distance that an object keeps from what lies under it
STICKER_SHARE = 0.72  # the others are bare glyphs
PALETTE_SHARE = 0.6  # objects in one of the three usual colours of their concept
ROTATION_STD = np.deg2rad(13.0)
OBJECTS_PER_SCENE = (0.0, 0.12, 0.25, 0.26, 0.20, 0.11, 0.06)  # chance of 0..6 labelled objects, mean 3.1
SHOT_VISIBLE = 0.7  # least visible fraction of an annotated shot
UNOWNED, CLUTTER = -1, -2  # values in the map of owners


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
    box: tuple[int, int, int, int]
    visible: float


@dataclass(frozen=True)
class Scene:
    """An image, uint8 [H, W, 3], and its labelled objects."""

    image: np.ndarray
    objects: tuple[SceneObject, ...]


@dataclass(frozen=True)
class Photo:
    """A small image, uint8 [size, size, 3], of one concept (or of background alone: None) and its colour word."""

    image: np.ndarray
    concept: str | None
    color: str | None


# ---------------------------------------------------------------------------------------------- backgrounds


@cache
def _grid(size: int) -> tuple[np.ndarray, np.ndarray]:
    axis = np.arange(size, dtype=np.float32) / size
    return axis[None, :], axis[:, None]


def _random_color(
    rng: np.random.Generator, saturation: tuple[float, float], value: tuple[float, float]
) -> np.ndarray:
    hsv = rng.random(3)
    low, high = np.array([0.0, saturation[0], value[0]]), np.array([1.0, saturation[1], value[1]])
    return np.array(colorsys.hsv_to_rgb(*(low + (high - low) * hsv)), np.float32) * 255.0


def _smooth_noise(rng: np.random.Generator, size: int, cells: int) -> np.ndarray:
    coarse = Image.fromarray(rng.integers(0, 256, (cells, cells), dtype=np.uint8))
    return np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC), np.float32) / 255.0


def _texture(rng: np.random.Generator, size: int) -> tuple[np.ndarray, float]:
    """A map in 0..1, float32 [size, size], and how far the second colour may lie from the first."""
    kind = rng.choice(5, p=(0.2, 0.22, 0.16, 0.2, 0.22))
    if kind == 0:
        return np.zeros((size, size), np.float32), 0.0
    columns, rows = _grid(size)
    angle = rng.uniform(0, 2 * np.pi)
    ramp = columns * np.cos(angle) + rows * np.sin(angle)
    if kind == 1:
        return (ramp - ramp.min()) / (ramp.max() - ramp.min()), 110.0
    noise = _smooth_noise(rng, size, int(rng.integers(3, 9)))
    if kind == 2:
        waves = (ramp * rng.uniform(4, 14) + noise * rng.uniform(0, 0.8)) % 1.0
        return np.clip((np.abs(waves - 0.5) - 0.25) * 12 + 0.5, 0, 1), 70.0
    if kind == 3:
        return np.clip((noise - 0.5) * 10 + 0.5, 0, 1), 80.0
    return noise, 90.0


def _background(rng: np.random.Generator, size: int) -> tuple[Image.Image, np.ndarray]:
    """A desaturated textured ground and its two colours, float32 [2, 3]."""
    texture, reach = _texture(rng, size)
    first = _random_color(rng, (0.0, 0.5), (0.15, 1.0))
    step = rng.normal(0, 1, 3).astype(np.float32)
    second = np.clip(first + step / np.linalg.norm(step) * rng.uniform(0.35, 1.0) * reach, 0, 255)
    pixels = first + texture[..., None] * (second - first)
    return Image.fromarray(pixels.astype(np.uint8)), np.stack([first, second])


def _draw_shapes(rng: np.random.Generator, image: Image.Image, count: int) -> None:
    """Draw simple shapes: clutter that no concept looks like."""
    draw, size = ImageDraw.Draw(image), image.width
    for _ in range(count):
        color = tuple(int(v) for v in _random_color(rng, (0.0, 0.9), (0.1, 1.0)))
        x, y = (int(v) for v in rng.integers(-size // 10, size, 2))
        width, height = (int(v) for v in rng.integers(size // 20, size // 3, 2))
        kind = rng.integers(0, 5)
        if kind == 0:
            draw.ellipse((x, y, x + width, y + width), outline=color, width=int(rng.integers(1, 3)))
        elif kind == 1:
            draw.line((x, y, x + width, y + height - size // 6), fill=color, width=int(rng.integers(1, 4)))
        elif kind == 2:
            draw.rectangle((x, y, x + width // 2, y + height // 2), outline=color)
        elif kind == 3:
            draw.polygon(
                [(x, y), (x + width // 2, y + height // 4), (x + width // 4, y + height // 2)], fill=color
            )
        else:
            draw.ellipse((x, y, x + width // 2, y + height // 3), fill=color)


# ---------------------------------------------------------------------------------------------- one object


@dataclass(frozen=True)
class _Patch:
    """A transformed glyph: ink and body masks, float32 [h, w] in 0..1, cut to the pixels of its body (or ink)."""

    code: int
    ink: np.ndarray
    alpha: np.ndarray


def _patch(rng: np.random.Generator, code: int, side: float, *, sticker: bool, squash: float = 0.0) -> _Patch:
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
    return _Patch(code, masks[window][..., 0], alpha[window])


def _object_color(rng: np.random.Generator, concept: str, grounds: np.ndarray) -> np.ndarray:
    """A colour of the concept that keeps CONTRAST to all grounds [G, 3], or else the best one tried."""
    colors = (
        palette(concept)[rng.permutation(3)] if rng.random() < PALETTE_SHARE else np.empty((0, 3), np.float32)
    )
    best, distance = None, -1.0
    for attempt in range(12):
        color = colors[attempt] if attempt < len(colors) else _random_color(rng, (0.4, 0.95), (0.3, 1.0))
        least = float(np.sqrt(((grounds - color) ** 2).sum(1)).min())
        if least > distance:
            best, distance = color, least
        if distance >= CONTRAST:
            break
    return best


def _line_color(rng: np.random.Generator, body: np.ndarray) -> np.ndarray:
    """Ink on a body: dark on a light one and light on a dark one, of any hue."""
    dark = _random_color(rng, (0.2, 0.9), (0.0, 0.3))
    light = _random_color(rng, (0.0, 0.25), (0.85, 1.0))
    brightness = float(body @ np.array([0.3, 0.59, 0.11], np.float32))
    return dark if brightness > (110 if rng.random() < 0.7 else 160) else light


def _paint(rng: np.random.Generator, patch: _Patch, concept: str, grounds: np.ndarray, *, sticker: bool):
    """Colour a patch: pixels float32 [h, w, 3], alpha float32 [h, w], and its main colour."""
    color = _object_color(rng, concept, grounds)
    shade = (
        1.0
        + rng.uniform(0.0, 0.18) * (np.linspace(-1, 1, patch.alpha.shape[0], dtype=np.float32))[:, None, None]
    )
    alpha = patch.alpha * rng.uniform(0.88, 1.0)
    if not sticker:
        return np.clip(color * shade, 0, 255) + np.zeros((*patch.alpha.shape, 1), np.float32), alpha, color
    line = _line_color(rng, color)
    body, ink = (line, color) if rng.random() < 0.3 else (color, line)
    pixels = (body + patch.ink[..., None] * (ink - body)) * shade
    return np.clip(pixels, 0, 255), alpha, color


# ---------------------------------------------------------------------------------------------- many objects


class _Canvas:
    """Pixels, a map of who owns each pixel, and the objects placed so far."""

    def __init__(self, image: Image.Image, grounds: np.ndarray) -> None:
        self.pixels = np.asarray(image, np.float32).copy()
        self.size = image.width
        self.grounds = grounds
        self.owner = np.full((self.size, self.size), UNOWNED, np.int16)
        self.placed: list[
            tuple[str, int, tuple[int, int, int, int], int]
        ] = []  # concept, code, box, number of pixels
        self.boxes: list[tuple[int, int, int, int]] = []  # unclipped, of clutter too

    def copy(self) -> "_Canvas":
        twin = _Canvas.__new__(_Canvas)
        twin.pixels, twin.owner, twin.size, twin.grounds = (
            self.pixels.copy(),
            self.owner.copy(),
            self.size,
            self.grounds,
        )
        twin.placed, twin.boxes = list(self.placed), list(self.boxes)
        return twin

    def overlap(self, box: tuple[int, int, int, int], margin: int = 0) -> float:
        """The largest share of the smaller box that this box has in common with a placed one."""
        worst = 0.0
        for other in self.boxes:
            wide = min(box[2], other[2] + margin) - max(box[0], other[0] - margin)
            high = min(box[3], other[3] + margin) - max(box[1], other[1] - margin)
            if wide > 0 and high > 0:
                areas = (box[2] - box[0]) * (box[3] - box[1]), (other[2] - other[0]) * (other[3] - other[1])
                worst = max(worst, wide * high / min(areas))
        return worst

    def draw(
        self, rng, patch: _Patch, concept: str, corner: tuple[int, int], *, sticker: bool, labelled: bool
    ) -> np.ndarray:
        """Blend a patch in; returns its main colour."""
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
        self, rng, concept: str, side: float, *, labelled: bool, max_overlap: float = 0.2, keep_off=None
    ) -> bool:
        """Find room for an object, shrinking it when there is none; False when it was given up."""
        designs = DESIGNS[concept]
        code = designs[int(rng.integers(len(designs)))]
        sticker = bool(rng.random() < STICKER_SHARE)
        for _ in range(4):
            patch = _patch(rng, code, side, sticker=sticker)
            height, width = patch.alpha.shape
            for x, y in rng.random((8, 2)):
                corner = (
                    round(-0.12 * width + x * (self.size - 0.76 * width)),
                    round(-0.12 * height + y * (self.size - 0.76 * height)),
                )
                box = (corner[0], corner[1], corner[0] + width, corner[1] + height)
                if keep_off is not None and _touches(box, keep_off):
                    continue
                if self.overlap(box) <= max_overlap:
                    self.draw(rng, patch, concept, corner, sticker=sticker, labelled=labelled)
                    return True
            side *= 0.8
        return False

    def objects(self) -> tuple[SceneObject, ...]:
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


def _touches(box: tuple[int, int, int, int], other: tuple[int, int, int, int], margin: int = 5) -> bool:
    """Whether two boxes come within `margin` pixels of each other (more than the blur reaches)."""
    return (
        box[0] < other[2] + margin
        and other[0] < box[2] + margin
        and box[1] < other[3] + margin
        and other[1] < box[3] + margin
    )


def _side(rng: np.random.Generator, size: int) -> float:
    """Size of an object: log-normal, 26 / 39 / 63 pixels at the 5 / 50 / 95 % of a 160 pixel scene."""
    return float(np.clip(0.24 * np.exp(rng.normal(0, 0.27)), 0.14, 0.5)) * size


def _start(rng: np.random.Generator, size: int) -> _Canvas:
    image, grounds = _background(rng, size)
    _draw_shapes(rng, image, int(rng.integers(0, 5)))
    return _Canvas(image, grounds)


def _cover(rng: np.random.Generator, canvas: _Canvas) -> None:
    """Now and then a thin line over everything: a little occlusion."""
    if rng.random() > 0.25:
        return
    mask = Image.new("1", (canvas.size, canvas.size))
    x, y, right, down = (int(v) for v in rng.integers(0, canvas.size, 4))
    reach = canvas.size // 3
    end = (x + (right - x) % reach, y + (down - y) % reach)
    ImageDraw.Draw(mask).line((x, y, *end), fill=1, width=int(rng.integers(1, 4)))
    covered = np.asarray(mask)
    canvas.pixels[covered] = _random_color(rng, (0.0, 0.9), (0.1, 1.0))
    canvas.owner[covered] = CLUTTER


def render_scene(key: Sequence[int], *, size: int = 160) -> Scene:
    """Render a scene of about three labelled objects among clutter.

    Args:
        key: Integers that name the image; the same key gives the same bytes.
        size: Side of the square image in pixels.

    Returns:
        The scene; every labelled object is one of CLASSES.
    """
    rng = np.random.default_rng(list(key))
    canvas = _start(rng, size)
    labelled = [
        CLASSES[i]
        for i in rng.integers(0, len(CLASSES), rng.choice(len(OBJECTS_PER_SCENE), p=OBJECTS_PER_SCENE))
    ]
    clutter = [EXTRA_CONCEPTS[i] for i in rng.integers(0, len(EXTRA_CONCEPTS), rng.integers(0, 3))]
    for index in rng.permutation(len(labelled) + len(clutter)):
        if index < len(labelled):
            canvas.place(rng, labelled[index], _side(rng, size), labelled=True)
        else:
            canvas.place(rng, clutter[index - len(labelled)], _side(rng, size), labelled=False)
    _cover(rng, canvas)
    return Scene(canvas.finish(int(rng.integers(2**62))), canvas.objects())


def render_shot(
    key: Sequence[int], shot: str, *, base_names: Sequence[str], extra_names: Sequence[str], size: int = 160
) -> tuple[Scene, Scene]:
    """Render one K-shot image twice: with the shot as its only novel object, and with further novel objects.

    Args:
        key: Integers that name the image.
        shot: Class of the shot; it is the first object of both scenes and at least SHOT_VISIBLE visible.
        base_names: Classes of which 0 to 2 objects are drawn in.
        extra_names: Classes of the further novel objects of the second version, one object for each name.
        size: Side of the square image in pixels.

    Returns:
        Both scenes. Inside the box of the shot their pixels are equal. The second holds all the objects of the first,
        in the same order, and then the further ones.
    """
    for attempt in range(100):
        rng = np.random.default_rng([*key, attempt])
        canvas = _start(rng, size)
        canvas.place(rng, shot, _side(rng, size), labelled=True)
        for concept in rng.choice(base_names, rng.integers(0, 3)):
            canvas.place(rng, str(concept), _side(rng, size), labelled=True)
        for index in rng.integers(0, len(EXTRA_CONCEPTS), rng.integers(0, 3)):
            canvas.place(rng, EXTRA_CONCEPTS[index], _side(rng, size), labelled=False)
        _cover(rng, canvas)
        if canvas.objects()[0].visible < SHOT_VISIBLE:
            continue
        finish = int(rng.integers(2**62))
        crowded = canvas.copy()
        shot_box = canvas.boxes[0]
        if all(
            crowded.place(rng, name, _side(rng, size), labelled=True, keep_off=shot_box)
            for name in extra_names
        ):
            return Scene(canvas.finish(finish), canvas.objects()), Scene(
                crowded.finish(finish), crowded.objects()
            )
    raise RuntimeError(f"no room for {len(extra_names)} further objects beside a {shot} in {size} pixels")


def render_photo(
    key: Sequence[int], concept: str | None, *, size: int = 64, corpus_only: bool = False
) -> Photo:
    """Render a small photo of one thing, as tight and as cluttered as the crop of a detected box.

    Args:
        key: Integers that name the image.
        concept: What it shows; None for background alone.
        size: Side of the square image in pixels.
        corpus_only: Leave out the designs that only the test may show.
    """
    rng = np.random.default_rng(list(key))
    canvas = _start(rng, size)
    color = None
    if rng.random() < 0.4:
        neighbour = CONCEPTS[int(rng.integers(len(CONCEPTS)))]
        designs = corpus_designs(neighbour) if corpus_only else DESIGNS[neighbour]
        _beside(rng, canvas, neighbour, designs[int(rng.integers(len(designs)))], corner=True)
    if concept is not None:
        designs = corpus_designs(concept) if corpus_only else DESIGNS[concept]
        color = color_word(
            _beside(rng, canvas, concept, designs[int(rng.integers(len(designs)))], corner=False)
        )
    _cover(rng, canvas)
    return Photo(canvas.finish(int(rng.integers(2**62))), concept, color)


def _beside(
    rng: np.random.Generator, canvas: _Canvas, concept: str, code: int, *, corner: bool
) -> np.ndarray:
    """Draw the subject of a photo near the middle, or a neighbour cut off by a corner; returns its main colour."""
    sticker = bool(rng.random() < STICKER_SHARE)
    squash = float(rng.random()) if rng.random() < 0.7 else 0.0
    side = canvas.size * rng.uniform(0.55, 0.95)
    wide, high = glyph_extent(code)
    side *= min(1.0, max(wide / high, high / wide) ** (-(1 - squash) / 2) * 1.1)  # keep long things inside
    patch = _patch(rng, code, side, sticker=sticker, squash=squash)
    height, width = patch.alpha.shape
    room = np.array([canvas.size - width, canvas.size - height])
    if corner:
        ends = np.where(rng.random(2) < 0.5, -0.72, 0.72)
        middle = room / 2 + ends * canvas.size
    else:
        middle = room * rng.uniform(0.2, 0.8, 2) + rng.normal(0, 0.02 * canvas.size, 2)
    x, y = (int(v) for v in np.round(middle))
    if x + width <= 0 or y + height <= 0 or x >= canvas.size or y >= canvas.size:
        return np.zeros(3, np.float32)
    return canvas.draw(rng, patch, concept, (x, y), sticker=sticker, labelled=False)
