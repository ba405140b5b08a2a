"""The things that the pictogram world shows: concepts, their glyph designs, masks and colours.

A concept is a class name with one or more designs; a design is one code point of DejaVu Sans, the font that
matplotlib ships. DejaVu Sans Bold draws the very same outlines for these symbols (a test measures it), so a face
is no design of its own here.
"""

import colorsys
import zlib
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont
from scipy.ndimage import binary_fill_holes

from risf_core.errors import DataError

DESIGNS: dict[str, tuple[int, ...]] = {
    # The 20 detection classes, in the order of their category ids 1..20.
    "airplane": (0x2708,),
    "umbrella": (0x2602, 0x2614),
    "scissors": (0x2701, 0x2702, 0x2703, 0x2704),
    "telephone": (0x260E, 0x260F),
    "anchor": (0x2693,),
    "snowflake": (0x2744, 0x2745, 0x2746),
    "flower": (0x273F, 0x2740, 0x2741),
    "gear": (0x2699,),
    "sun": (0x2600, 0x263C),
    "heart": (0x2665, 0x2661, 0x2764),
    "spade": (0x2660, 0x2664),
    "king": (0x265A, 0x2654),
    "queen": (0x265B, 0x2655),
    "rook": (0x265C, 0x2656),
    "knight": (0x265E, 0x2658),
    "cat": (0x1F431,),
    "cow": (0x1F42E,),
    "pencil": (0x270E, 0x270F, 0x2710),
    "flag": (0x2690, 0x2691),
    "cup": (0x2615,),
    # The 50 further concepts: clutter, the crop-classification set, and the rest of the captioned corpus.
    "moon": (0x263D, 0x263E),
    "bolt": (0x26A1, 0x21AF),
    "hand": (0x261A, 0x261B, 0x261C, 0x261E),
    "victory": (0x270C,),
    "wheel": (0x2638,),
    "keyboard": (0x2328,),
    "dice": (0x2681, 0x2682, 0x2683, 0x2684, 0x2685),
    "domino": (0x1F037, 0x1F040, 0x1F05B),
    "card": (0x1F0CF,),
    "club": (0x2663, 0x2667),
    "diamond": (0x2666, 0x2662),
    "note": (0x266A, 0x266B, 0x266C),
    "biohazard": (0x2623,),
    "radiation": (0x2622,),
    "flask": (0x2697,),
    "swords": (0x2694,),
    "hammer": (0x2692,),
    "house": (0x2302,),
    "atom": (0x269B,),
    "molecule": (0x232C, 0x23E3),
    "skull": (0x2620,),
    "envelope": (0x2709,),
    "monkey": (0x1F435,),
    "mouse": (0x1F42D,),
    "pawn": (0x265F, 0x2659),
    "bishop": (0x265D, 0x2657),
    "cloud": (0x2601,),
    "snowman": (0x2603,),
    "star": (0x2605, 0x2606, 0x272D, 0x272F),
    "clover": (0x2618,),
    "leaf": (0x2767, 0x2619),
    "lily": (0x269C,),
    "smile": (0x263A, 0x263B, 0x1F603),
    "devil": (0x1F608,),
    "mask": (0x1F637,),
    "peace": (0x262E,),
    "yinyang": (0x262F,),
    "plus": (0x271A, 0x2719),
    "staff": (0x2624, 0x2695),
    "scales": (0x2696,),
    "trident": (0x2646,),
    "wheelchair": (0x267F,),
    "recycle": (0x267B, 0x267C),
    "spring": (0x2668,),
    "warning": (0x26A0,),
    "urn": (0x26B1,),
    "coin": (0x26C1, 0x26C3),
    "reel": (0x2707,),
    "pen": (0x2711, 0x2712),
    "arrow": (0x27A1, 0x2B05, 0x2B06, 0x27A8),
}
CLASSES: tuple[str, ...] = tuple(DESIGNS)[:20]
EXTRA_CONCEPTS: tuple[str, ...] = tuple(DESIGNS)[20:]
CONCEPTS: tuple[str, ...] = CLASSES + EXTRA_CONCEPTS

SPLITS: dict[int, tuple[str, ...]] = {  # the novel classes of each split; the other 15 are base
    1: ("queen", "knight", "cat", "flower", "telephone"),
    2: ("king", "cow", "snowflake", "umbrella", "pencil"),
    3: ("rook", "gear", "spade", "scissors", "cup"),
}

TEST_ONLY_DESIGNS: dict[str, tuple[int, ...]] = {  # never in the captioned corpus
    "umbrella": (0x2602,),
    "scissors": (0x2702,),
    "telephone": (0x260F,),
    "snowflake": (0x2745,),
    "flower": (0x2740,),
    "sun": (0x263C,),
    "heart": (0x2764,),
    "spade": (0x2664,),
    "king": (0x2654,),
    "queen": (0x2655,),
    "rook": (0x2656,),
    "knight": (0x2658,),
    "pencil": (0x270F,),
    "flag": (0x2690,),
}

MASK_SIZE = 128  # pixels of the largest cached mask; halves of it serve small objects
GLYPH_EXTENT = 108  # the longer side of the glyph in it


def corpus_designs(concept: str) -> tuple[int, ...]:
    """The designs of a concept that the captioned corpus may show."""
    return tuple(code for code in DESIGNS[concept] if code not in TEST_ONLY_DESIGNS.get(concept, ()))


def font_path() -> Path:
    """DejaVu Sans inside matplotlib's own data."""
    import matplotlib  # only for the path: importing it is slow and rendering needs nothing else of it

    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    if not path.is_file():
        raise DataError(
            f"{path}: matplotlib's copy of DejaVu Sans is missing; the pictogram world draws with it. "
            "Install matplotlib again."
        )
    return path


@cache
def _font() -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(font_path()), 240, layout_engine=ImageFont.Layout.BASIC)


def ink_mask(code: int, font: ImageFont.FreeTypeFont | None = None) -> Image.Image:
    """Draw one glyph, centred, its longer side GLYPH_EXTENT: mode L, MASK_SIZE square, 255 is ink."""
    page = Image.new("L", (480, 480), 0)
    ImageDraw.Draw(page).text(
        (240, 240), chr(code), fill=255, font=font or _font(), anchor="mm", stroke_width=2
    )
    glyph = page.crop(page.getbbox())
    scale = GLYPH_EXTENT / max(glyph.size)
    glyph = glyph.resize([max(1, round(side * scale)) for side in glyph.size], Image.Resampling.LANCZOS)
    mask = Image.new("L", (MASK_SIZE, MASK_SIZE), 0)
    mask.paste(glyph, ((MASK_SIZE - glyph.width) // 2, (MASK_SIZE - glyph.height) // 2))
    return mask


def body_mask(ink: Image.Image) -> Image.Image:
    """The silhouette of a glyph with a thin rim: what cannot be reached from the border of the ink mask."""
    silhouette = Image.fromarray(np.uint8(255) * binary_fill_holes(np.asarray(ink) > 90))
    rim = silhouette.filter(ImageFilter.GaussianBlur(2.5)).point(
        lambda value: min(255, max(0, value - 30) * 5)
    )
    return ImageChops.lighter(rim, ink)


@cache
def glyph_levels(code: int) -> tuple[Image.Image, ...]:
    """Ink, body and nothing as the three channels of RGB images of 128, 64 and 32 pixels."""
    ink = ink_mask(code)
    image = Image.merge("RGB", (ink, body_mask(ink), Image.new("L", ink.size, 0)))
    return tuple(image.resize((side, side), Image.Resampling.BOX) for side in (MASK_SIZE, 64, 32))


@cache
def glyph_extent(code: int) -> tuple[float, float]:
    """Width and height of the body as fractions of the mask."""
    left, top, right, bottom = glyph_levels(code)[0].getchannel(1).point(lambda v: 255 * (v > 127)).getbbox()
    return (right - left) / MASK_SIZE, (bottom - top) / MASK_SIZE


@cache
def palette(concept: str) -> np.ndarray:
    """The three usual colours of a concept: float32 [3, 3] RGB in 0-255, a function of its name alone."""
    rng = np.random.default_rng(zlib.crc32(concept.encode()))
    hues = (rng.random() + np.array([0.0, 0.33, 0.66]) + rng.uniform(-0.06, 0.06, 3)) % 1.0
    rows = [
        colorsys.hsv_to_rgb(h, s, v)
        for h, s, v in zip(hues, rng.uniform(0.55, 0.95, 3), rng.uniform(0.6, 0.97, 3))
    ]
    return np.array(rows, np.float32) * 255.0


def color_word(rgb: np.ndarray) -> str:
    """The plain word for a colour given as RGB in 0-255."""
    hue, saturation, value = colorsys.rgb_to_hsv(*(float(channel) / 255.0 for channel in rgb))
    if value < 0.2:
        return "black"
    if saturation < 0.18:
        return "white" if value > 0.8 else "gray"
    degrees = hue * 360.0
    if 12 <= degrees < 45:
        return "orange" if value > 0.65 else "brown"
    for limit, word in (
        (12, "red"),
        (70, "yellow"),
        (165, "green"),
        (260, "blue"),
        (295, "purple"),
        (345, "pink"),
    ):
        if degrees < limit:
            return word
    return "red"
