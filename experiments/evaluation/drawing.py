"""Draws detections on images."""

import colorsys
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

Color = tuple[int, int, int]
Box = tuple[float, float, float, float]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

# Images whose longer side is shorter are enlarged, so that there is space for text.
_MIN_SIDE = 480
_LEGEND = "solid: detections    dashed: ground truth"
_GOLDEN_RATIO = (math.sqrt(5) - 1) / 2
_WHITE, _BLACK = (255, 255, 255), (0, 0, 0)


@dataclass(frozen=True)
class DrawnImage:
    """An image with its detections, and its ground truth if it is known."""

    image: Image.Image
    boxes: npt.NDArray[np.floating]
    """(n, 4) x1, y1, x2, y2 in pixels of the image."""
    labels: npt.NDArray[np.integer]
    """(n,)"""
    scores: npt.NDArray[np.floating]
    """(n,)"""
    truth_boxes: npt.NDArray[np.floating] | None = None
    """(m, 4) x1, y1, x2, y2 of the ground truth."""


def class_color(label: int) -> Color:
    """Return the colour of a class, which differs clearly from those of adjacent labels."""
    # Multiples of the golden ratio spread hues evenly for any number of classes; the lightness
    # distinguishes classes with similar hues.
    hue = (label * _GOLDEN_RATIO) % 1
    lightness = (0.55, 0.42, 0.68)[label % 3]
    red, green, blue = colorsys.hls_to_rgb(hue, lightness, 0.95)
    return round(255 * red), round(255 * green), round(255 * blue)


def draw_detections(
    image: Image.Image,
    boxes: npt.NDArray[np.floating],
    labels: npt.NDArray[np.integer],
    scores: npt.NDArray[np.floating],
    names: Callable[[int], str],
    *,
    truth_boxes: npt.NDArray[np.floating] | None = None,
) -> Image.Image:
    """Draw boxes with class names and scores, the best detections on top.

    Args:
        image: An image of any mode and size; small ones are enlarged to make the text readable.
        boxes: (n, 4) x1, y1, x2, y2 in pixels of the image.
        labels: (n,) class labels.
        scores: (n,) from 0 to 1.
        names: Returns the name of a label.
        truth_boxes: (m, 4) ground truth, drawn in white dashed lines.

    Returns:
        A new RGB image.
    """
    scale = max(1.0, _MIN_SIDE / max(image.size))
    size = (round(image.width * scale), round(image.height * scale))
    canvas = image.convert("RGB")
    if size != canvas.size:
        canvas = canvas.resize(size, Image.Resampling.BICUBIC)
    elif canvas is image:
        canvas = image.copy()
    draw = ImageDraw.Draw(canvas)
    width = max(2, round(max(size) / 320))
    font = ImageFont.load_default(max(13, round(max(size) / 44)))
    # Draw the best last, on top. Stable, so that equal scores keep their order.
    order = np.argsort(scores, kind="stable")
    for index in order:
        outline = class_color(int(labels[index]))
        draw.rectangle(_scale_box(boxes[index], scale, size), outline=outline, width=width)
    for box in truth_boxes if truth_boxes is not None else ():
        _draw_dashed(draw, _scale_box(box, scale, size), width)
    tags: list[tuple[Box, str, Color]] = []
    for index in order[::-1]:  # place the tags of the best detections first
        label = int(labels[index])
        text = f"{names(label)} {scores[index]:.2f}"
        occupied = [position for position, _, _ in tags]
        position = _tag_position(
            _tag_size(text, font), _scale_box(boxes[index], scale, size), size, occupied
        )
        tags.append((position, text, class_color(label)))
    for position, text, color in reversed(tags):
        _draw_tag(draw, position, text, color, font)
    return canvas


def contact_sheet(
    pictures: Sequence[DrawnImage],
    names: Callable[[int], str],
    *,
    columns: int = 4,
    tile: int = 480,
) -> Image.Image:
    """Draw several images in a grid, detections solid and ground truth dashed, with a legend.

    Args:
        pictures: At least one image.
        names: Returns the name of a label.
        columns: Images per row.
        tile: Length of an image's longer side, pixels.

    Raises:
        ValueError: There are no pictures.
    """
    if not pictures:
        raise ValueError("a contact sheet needs at least one picture")
    drawn = [_tile(picture, names, tile) for picture in pictures]
    columns = min(columns, len(drawn))
    rows = [drawn[at : at + columns] for at in range(0, len(drawn), columns)]
    gap, legend_height = 8, 34
    heights = [max(each.height for each in row) for row in rows]
    widths = [max(row[n].width for row in rows if n < len(row)) for n in range(columns)]
    sheet = Image.new(
        "RGB",
        (sum(widths) + gap * (columns + 1), sum(heights) + gap * (len(rows) + 1) + legend_height),
        _WHITE,
    )
    y = gap
    for row, height in zip(rows, heights, strict=True):
        x = gap
        for picture, width in zip(row, widths, strict=False):
            sheet.paste(picture, (x + (width - picture.width) // 2, y))
            x += width + gap
        y += height + gap
    ImageDraw.Draw(sheet).text(
        (gap, y + legend_height / 2 - gap / 2),
        _LEGEND,
        fill=(60, 60, 60),
        font=ImageFont.load_default(18),
        anchor="lm",
    )
    return sheet


def _tile(picture: DrawnImage, names: Callable[[int], str], side: int) -> Image.Image:
    """Resize an image before drawing on it, so that text and lines have the same size in all."""
    scale = side / max(picture.image.size)
    size = (round(picture.image.width * scale), round(picture.image.height * scale))
    truth = picture.truth_boxes
    return draw_detections(
        picture.image.convert("RGB").resize(size, Image.Resampling.LANCZOS),
        picture.boxes * scale,
        picture.labels,
        picture.scores,
        names,
        truth_boxes=truth * scale if truth is not None else None,
    )


def _scale_box(box: npt.NDArray[np.floating], scale: float, size: tuple[int, int]) -> Box:
    """Scale a box to the canvas, clip it, and sort its corners."""
    x1, x2 = sorted(min(max(float(value) * scale, 0.0), size[0] - 1.0) for value in box[::2])
    y1, y2 = sorted(min(max(float(value) * scale, 0.0), size[1] - 1.0) for value in box[1::2])
    return x1, y1, x2, y2


def _draw_dashed(draw: ImageDraw.ImageDraw, box: Box, width: int) -> None:
    """Draw a dashed white outline with a dark border, which is visible on white too."""
    x1, y1, x2, y2 = box
    dash = 4 * width
    corners = ((x1, y1), (x2, y1), (x2, y2), (x1, y2), (x1, y1))
    for color, thickness in ((_BLACK, width + 2), (_WHITE, width)):
        for (xa, ya), (xb, yb) in pairwise(corners):
            length = math.hypot(xb - xa, yb - ya)
            for offset in np.arange(0, length, 2 * dash):
                start, end = offset / length, min(offset + dash, length) / length
                draw.line(
                    (
                        xa + (xb - xa) * start,
                        ya + (yb - ya) * start,
                        xa + (xb - xa) * end,
                        ya + (yb - ya) * end,
                    ),
                    fill=color,
                    width=thickness,
                )


def _tag_size(text: str, font: Font) -> tuple[float, float]:
    """Return the width and height of a text with margins."""
    left, top, right, bottom = font.getbbox(text)
    margin = _margin(bottom - top)
    return right - left + 2 * margin, bottom - top + 2 * margin


def _margin(height: float) -> int:
    return max(2, round(height / 5))


def _tag_position(
    tag_size: tuple[float, float], box: Box, size: tuple[int, int], occupied: Sequence[Box]
) -> Box:
    """Find a position for a tag next to its box, if possible without overlapping another tag."""
    width, height = tag_size
    x1, y1, x2, y2 = box
    # Above the box, inside at its top, below it, inside at its bottom; each left and right.
    positions = [
        _move_inside((x, y, x + width, y + height), size)
        for y in (y1 - height, y1, y2, y2 - height)
        for x in (x1, x2 - width)
    ]
    return next((each for each in positions if not _overlaps(each, occupied)), positions[0])


def _draw_tag(
    draw: ImageDraw.ImageDraw, position: Box, text: str, color: Color, font: Font
) -> None:
    draw.rectangle(position, fill=color)
    red, green, blue = color
    is_dark = 0.299 * red + 0.587 * green + 0.114 * blue < 140
    left, top, _, bottom = font.getbbox(text)
    margin = _margin(bottom - top)
    origin = (position[0] + margin - left, position[1] + margin - top)
    draw.text(origin, text, fill=_WHITE if is_dark else _BLACK, font=font)


def _move_inside(position: Box, size: tuple[int, int]) -> Box:
    """Move a tag into the image; if it is too large, keep its beginning visible."""
    x1, y1, x2, y2 = position
    dx = max(-x1, 0.0) if x1 < 0 else max(min(size[0] - x2, 0.0), -x1)
    dy = max(-y1, 0.0) if y1 < 0 else max(min(size[1] - y2, 0.0), -y1)
    return x1 + dx, y1 + dy, x2 + dx, y2 + dy


def _overlaps(box: Box, others: Sequence[Box]) -> bool:
    return any(
        box[0] < other[2] and other[0] < box[2] and box[1] < other[3] and other[1] < box[3]
        for other in others
    )
