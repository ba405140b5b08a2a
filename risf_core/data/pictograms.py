"""Render the pictogram world: scenes with boxes, K-shot images in two versions, and small photos of one thing.

Every image is a pure function of its key, a tuple of integers such as (world seed, part, index). Objects
look like stickers with a guarded contrast, so that a detector of 2 M parameters can learn them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from risf_core.data.canvas import CLUTTER, STICKER_SHARE, Canvas, SceneObject, make_patch
from risf_core.data.glyphs import (
    CLASSES,
    CONCEPTS,
    DESIGNS,
    EXTRA_CONCEPTS,
    SPLITS,
    color_word,
    corpus_designs,
    glyph_extent,
)
from risf_core.data.grounds import background, draw_shapes, random_color
from risf_core.errors import DataError

__all__ = [
    "CLASSES", "CONCEPTS", "DESIGNS", "EXTRA_CONCEPTS", "SPLITS",
    "Photo", "Scene", "SceneObject", "render_photo", "render_scene", "render_shot",
]  # fmt: skip

OBJECTS_PER_SCENE = (0.0, 0.12, 0.25, 0.26, 0.20, 0.11, 0.06)  # chance of 0..6 labelled objects, mean 3.1
SHOT_VISIBLE = 0.7  # least visible fraction of an annotated shot


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


def _side(rng: np.random.Generator, size: int) -> float:
    """Size of an object: log-normal, 26 / 39 / 63 pixels at the 5 / 50 / 95 % of a 160 pixel scene."""
    return float(np.clip(0.24 * np.exp(rng.normal(0, 0.27)), 0.14, 0.5)) * size


def _empty_canvas(rng: np.random.Generator, size: int) -> Canvas:
    """A ground with a few simple shapes on it."""
    image, grounds = background(rng, size)
    draw_shapes(rng, image, int(rng.integers(0, 5)))
    return Canvas(image, grounds)


def _draw_line_over(rng: np.random.Generator, canvas: Canvas) -> None:
    """Now and then a thin line over everything: a little occlusion."""
    if rng.random() > 0.25:
        return
    mask = Image.new("1", (canvas.size, canvas.size))
    x, y, right, down = (int(v) for v in rng.integers(0, canvas.size, 4))
    reach = canvas.size // 3
    end = (x + (right - x) % reach, y + (down - y) % reach)
    ImageDraw.Draw(mask).line((x, y, *end), fill=1, width=int(rng.integers(1, 4)))
    covered = np.asarray(mask)
    canvas.pixels[covered] = random_color(rng, (0.0, 0.9), (0.1, 1.0))
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
    canvas = _empty_canvas(rng, size)
    count = rng.choice(len(OBJECTS_PER_SCENE), p=OBJECTS_PER_SCENE)
    labelled = [CLASSES[i] for i in rng.integers(0, len(CLASSES), count)]
    clutter = [EXTRA_CONCEPTS[i] for i in rng.integers(0, len(EXTRA_CONCEPTS), rng.integers(0, 3))]
    for index in rng.permutation(len(labelled) + len(clutter)):
        if index < len(labelled):
            canvas.place(rng, labelled[index], _side(rng, size), labelled=True)
        else:
            canvas.place(rng, clutter[index - len(labelled)], _side(rng, size), labelled=False)
    _draw_line_over(rng, canvas)
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

    Raises:
        DataError: If there is no room for the further objects.
    """
    for attempt in range(100):
        rng = np.random.default_rng([*key, attempt])
        alone = _canvas_of_shot(rng, shot, base_names, size)
        if alone.objects()[0].visible < SHOT_VISIBLE:
            continue
        look = int(rng.integers(2**62))
        crowded, shot_box = alone.copy(), alone.boxes[0]
        sides = (_side(rng, size) for _ in extra_names)  # drawn one by one, between the placements
        if all(
            crowded.place(rng, name, side, labelled=True, keep_off=shot_box)
            for name, side in zip(extra_names, sides)
        ):
            return Scene(alone.finish(look), alone.objects()), Scene(crowded.finish(look), crowded.objects())
    raise DataError(
        f"no room for {len(extra_names)} further objects beside a {shot} in {size} x {size} pixels after 100 tries. "
        "Expected fewer of them: lower extra_novel."
    )


def _canvas_of_shot(rng: np.random.Generator, shot: str, base_names: Sequence[str], size: int) -> Canvas:
    """A shot, 0 to 2 base objects and 0 to 2 pieces of clutter."""
    canvas = _empty_canvas(rng, size)
    canvas.place(rng, shot, _side(rng, size), labelled=True)
    for concept in rng.choice(base_names, rng.integers(0, 3)):
        canvas.place(rng, str(concept), _side(rng, size), labelled=True)
    for index in rng.integers(0, len(EXTRA_CONCEPTS), rng.integers(0, 3)):
        canvas.place(rng, EXTRA_CONCEPTS[index], _side(rng, size), labelled=False)
    _draw_line_over(rng, canvas)
    return canvas


def render_photo(
    key: Sequence[int], concept: str | None, *, size: int = 64, for_corpus: bool = False
) -> Photo:
    """Render a small photo of one thing, as tight and as cluttered as the crop of a detected box.

    Args:
        key: Integers that name the image.
        concept: What it shows; None for background alone.
        size: Side of the square image in pixels.
        for_corpus: Leave out the designs that only the test may show, and let any concept look in at a corner.
            Otherwise only an extra concept does, so that no detection class gets into the pretraining crops.
    """
    rng = np.random.default_rng(list(key))
    canvas = _empty_canvas(rng, size)
    color = None
    if rng.random() < 0.4:
        neighbours = CONCEPTS if for_corpus else EXTRA_CONCEPTS
        neighbour = neighbours[int(rng.integers(len(neighbours)))]
        _draw_subject(rng, canvas, neighbour, _design(rng, neighbour, for_corpus), corner=True)
    if concept is not None:
        color = color_word(
            _draw_subject(rng, canvas, concept, _design(rng, concept, for_corpus), corner=False)
        )
    _draw_line_over(rng, canvas)
    return Photo(canvas.finish(int(rng.integers(2**62))), concept, color)


def _design(rng: np.random.Generator, concept: str, for_corpus: bool) -> int:
    designs = corpus_designs(concept) if for_corpus else DESIGNS[concept]
    return designs[int(rng.integers(len(designs)))]


def _draw_subject(
    rng: np.random.Generator, canvas: Canvas, concept: str, code: int, *, corner: bool
) -> np.ndarray:
    """Draw the subject of a photo near the middle, or a neighbour cut off by a corner; returns its main colour."""
    sticker = bool(rng.random() < STICKER_SHARE)
    squash = float(rng.random()) if rng.random() < 0.8 else 0.0
    side = canvas.size * rng.uniform(0.6, 1.0)
    wide, high = glyph_extent(code)
    side *= min(1.0, max(wide / high, high / wide) ** (-(1 - squash) / 2) * 1.1)  # keep long things inside
    patch = make_patch(rng, code, side, sticker=sticker, squash=squash)
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
