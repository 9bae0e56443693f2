"""Detections drawn on images."""

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

# Under this many pixels on the longer side there is no room for words: images are enlarged to it.
_MIN_SIDE = 480
_LEGEND = "solid: detections    dashed: ground truth"
_GOLDEN_RATIO = (math.sqrt(5) - 1) / 2
_WHITE, _BLACK = (255, 255, 255), (0, 0, 0)


@dataclass(frozen=True)
class DrawnImage:
    """An image with what was found on it, and what there is to find where that is known."""

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
    """A colour for a class: the same in every picture, and far from those of its neighbours."""
    # Steps of the golden ratio spread hues evenly however many classes there are; the lightness
    # tells classes apart whose hues come close.
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
    """Draw boxes with class names and scores; the best detections lie on top.

    Args:
        image: any mode and size. Small ones are enlarged, so that the words can be read.
        boxes: (n, 4) x1, y1, x2, y2 in pixels of the image.
        labels: (n,) class labels.
        scores: (n,) in 0..1.
        names: the name of a label.
        truth_boxes: (m, 4) ground truth, drawn dashed in white.

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
    # Best last, so that it lies on top. Equal scores keep their order.
    order = np.argsort(scores, kind="stable")
    for index in order:
        outline = class_color(int(labels[index]))
        draw.rectangle(_scaled(boxes[index], scale, size), outline=outline, width=width)
    for box in truth_boxes if truth_boxes is not None else ():
        _draw_dashed(draw, _scaled(box, scale, size), width)
    plates: list[tuple[Box, str, Color]] = []
    for index in order[::-1]:  # the best choose their place first
        label = int(labels[index])
        words = f"{names(label)} {scores[index]:.2f}"
        taken = [place for place, _, _ in plates]
        place = _place_for(
            _plate_size(words, font), _scaled(boxes[index], scale, size), size, taken
        )
        plates.append((place, words, class_color(label)))
    for place, words, color in reversed(plates):
        _draw_plate(draw, place, words, color, font)
    return canvas


def contact_sheet(
    pictures: Sequence[DrawnImage],
    names: Callable[[int], str],
    *,
    columns: int = 4,
    tile: int = 480,
) -> Image.Image:
    """Several images in rows, detections solid and ground truth dashed, with a legend below.

    Args:
        pictures: at least one.
        names: the name of a label.
        columns: images in a row.
        tile: pixels of an image's longer side.

    Raises:
        ValueError: there are no pictures.
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
    """The picture drawn at the size at which it is shown, so that words and lines keep theirs."""
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


def _scaled(box: npt.NDArray[np.floating], scale: float, size: tuple[int, int]) -> Box:
    """The box on a canvas, its edges within it, and its corners in order."""
    x1, x2 = sorted(min(max(float(value) * scale, 0.0), size[0] - 1.0) for value in box[::2])
    y1, y2 = sorted(min(max(float(value) * scale, 0.0), size[1] - 1.0) for value in box[1::2])
    return x1, y1, x2, y2


def _draw_dashed(draw: ImageDraw.ImageDraw, box: Box, width: int) -> None:
    """A dashed outline, white with a dark rim that shows on white too."""
    x1, y1, x2, y2 = box
    dash = 4 * width
    corners = ((x1, y1), (x2, y1), (x2, y2), (x1, y2), (x1, y1))
    for color, thickness in ((_BLACK, width + 2), (_WHITE, width)):
        for (xa, ya), (xb, yb) in pairwise(corners):
            length = math.hypot(xb - xa, yb - ya)
            for at in np.arange(0, length, 2 * dash):
                start, end = at / length, min(at + dash, length) / length
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


def _plate_size(words: str, font: Font) -> tuple[float, float]:
    """Width and height of words with a rim around them."""
    left, top, right, bottom = font.getbbox(words)
    rim = _rim(bottom - top)
    return right - left + 2 * rim, bottom - top + 2 * rim


def _rim(height: float) -> int:
    return max(2, round(height / 5))


def _place_for(
    plate: tuple[float, float], box: Box, size: tuple[int, int], taken: Sequence[Box]
) -> Box:
    """Where a plate covers no other if that can be, near the box and within the image."""
    width, height = plate
    x1, y1, x2, y2 = box
    # Above the box, inside at its top, below it, inside at its bottom; to the left, to the right.
    places = [
        _inside((x, y, x + width, y + height), size)
        for y in (y1 - height, y1, y2, y2 - height)
        for x in (x1, x2 - width)
    ]
    return next((each for each in places if not _overlaps(each, taken)), places[0])


def _draw_plate(
    draw: ImageDraw.ImageDraw, place: Box, words: str, color: Color, font: Font
) -> None:
    draw.rectangle(place, fill=color)
    red, green, blue = color
    is_dark = 0.299 * red + 0.587 * green + 0.114 * blue < 140
    left, top, _, bottom = font.getbbox(words)
    rim = _rim(bottom - top)
    at = (place[0] + rim - left, place[1] + rim - top)
    draw.text(at, words, fill=_WHITE if is_dark else _BLACK, font=font)


def _inside(place: Box, size: tuple[int, int]) -> Box:
    """The place moved into the image; the beginning of the words stays where they are too long."""
    x1, y1, x2, y2 = place
    dx = max(-x1, 0.0) if x1 < 0 else max(min(size[0] - x2, 0.0), -x1)
    dy = max(-y1, 0.0) if y1 < 0 else max(min(size[1] - y2, 0.0), -y1)
    return x1 + dx, y1 + dy, x2 + dx, y2 + dy


def _overlaps(place: Box, taken: Sequence[Box]) -> bool:
    return any(
        place[0] < other[2] and other[0] < place[2] and place[1] < other[3] and other[1] < place[3]
        for other in taken
    )
