"""Grounds of the pictogram world: desaturated, mildly textured, with simple shapes that no concept looks like."""

import colorsys
from functools import cache

import numpy as np
from PIL import Image, ImageDraw


@cache
def _grid(size: int) -> tuple[np.ndarray, np.ndarray]:
    axis = np.arange(size, dtype=np.float32) / size
    return axis[None, :], axis[:, None]


def random_color(
    rng: np.random.Generator, saturation: tuple[float, float], value: tuple[float, float]
) -> np.ndarray:
    """A colour of any hue with saturation and value (0 to 1) in these ranges: float32 [3], RGB in 0-255."""
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


def background(rng: np.random.Generator, size: int) -> tuple[Image.Image, np.ndarray]:
    """A textured ground, [size, size], and its two colours, float32 [2, 3]."""
    texture, reach = _texture(rng, size)
    first = random_color(rng, (0.0, 0.5), (0.15, 1.0))
    step = rng.normal(0, 1, 3).astype(np.float32)
    second = np.clip(first + step / np.linalg.norm(step) * rng.uniform(0.35, 1.0) * reach, 0, 255)
    pixels = first + texture[..., None] * (second - first)
    return Image.fromarray(pixels.astype(np.uint8)), np.stack([first, second])


def draw_shapes(rng: np.random.Generator, image: Image.Image, count: int) -> None:
    """Draw that many outlines, lines, boxes, triangles and ellipses, in place."""
    draw, size = ImageDraw.Draw(image), image.width
    for _ in range(count):
        color = tuple(int(v) for v in random_color(rng, (0.0, 0.9), (0.1, 1.0)))
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
