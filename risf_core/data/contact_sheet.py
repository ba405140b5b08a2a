"""Pictures of pictures: images with boxes and names on them, and sheets of many images."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from risf_core.data.glyphs import font_path

Color = tuple[int, int, int]


def draw_boxes(
    image: np.ndarray,
    boxes: np.ndarray,
    names: Sequence[str],
    *,
    colors: Color | Sequence[Color] = (230, 30, 30),
    zoom: int = 2,
) -> np.ndarray:
    """Enlarge an image and draw boxes with their names on it.

    Args:
        image: uint8 [H, W, 3].
        boxes: [N, 4] corners x1, y1, x2, y2 in pixels of the image as given.
        names: N texts; an empty one draws the box alone.
        colors: One RGB colour, or N.
        zoom: Whole factor of enlargement.

    Returns:
        uint8 [H * zoom, W * zoom, 3].
    """
    picture = Image.fromarray(image)
    picture = picture.resize((picture.width * zoom, picture.height * zoom), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(picture)
    font = ImageFont.truetype(str(font_path()), 9 + zoom)
    of_box = [colors] * len(names) if isinstance(colors[0], int) else list(colors)
    for box, name, color in zip(np.asarray(boxes, float) * zoom, names, of_box, strict=True):
        draw.rectangle((box[0], box[1], box[2] - 1, box[3] - 1), outline=color, width=max(1, zoom // 2))
        if name:
            place = draw.textbbox((box[0] + 1, max(0, box[1] - 9 - zoom)), name, font=font)
            draw.rectangle(place, fill=color)
            draw.text(place[:2], name, fill=(255, 255, 255), font=font, anchor="lt")
    return np.asarray(picture)


def contact_sheet(images: Sequence[np.ndarray], *, columns: int, gap: int = 4) -> np.ndarray:
    """Put images of one size on a white sheet, row by row.

    Args:
        images: At least one image, all uint8 [H, W, 3].
        columns: Images in a row.
        gap: White pixels between images.

    Returns:
        uint8 [rows * (H + gap) - gap, columns * (W + gap) - gap, 3].
    """
    height, width = images[0].shape[:2]
    rows = -(-len(images) // columns)
    sheet = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, 3), 255, np.uint8)
    for index, image in enumerate(images):
        y, x = index // columns * (height + gap), index % columns * (width + gap)
        sheet[y : y + height, x : x + width] = image
    return sheet
