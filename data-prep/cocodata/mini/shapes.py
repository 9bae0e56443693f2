"""Pictures for the generated data set: textured shapes on textured backgrounds.

A category has an outline and a hue; light, texture, size, tilt and background vary. A few pictures
are grayscale, where only the outline tells categories apart.
"""

import colorsys
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

# Ids with gaps, as COCO's own have.
CATEGORY_IDS = {"disc": 1, "square": 2, "triangle": 3, "star": 5, "cross": 7, "ring": 8}

_SUPERSAMPLING = 4
# Of the picture's shorter side. At 128 pixels the smallest anchor is 32 pixels wide: an object half
# as wide has an IoU of at most .25 with it: it would hardly be learnt but count in the metric.
_SIZES = (0.3, 0.6)
_MIN_VISIBLE = 0.85  # An object of which less is visible cannot be recognized by its outline.
_MIN_CONTRAST = 70.0  # Of 255, between the mean colours of an object and of what it covers.


@dataclass(frozen=True)
class ShapeInstance:
    """One object, or one crowd of them, in a picture.

    Attributes:
        category: name of the category.
        box: x, y, width, height in pixels of its visible part.
        area: number of visible pixels.
        crowd: whether this is a group annotated as one.
    """

    category: str
    box: tuple[int, int, int, int]
    area: int
    crowd: bool = False


def draw_scene(
    rng: np.random.Generator, width: int, height: int, num_objects: int, *, crowd: bool
) -> tuple[NDArray[np.uint8], list[ShapeInstance]]:
    """Draw a picture.

    Args:
        rng: source of every choice.
        width: in pixels.
        height: in pixels.
        num_objects: how many single objects to try to place; one that does not fit is left out.
        crowd: whether to add a group of small objects annotated as one crowd.

    Returns:
        The picture (height, width, 3) and the objects in it.
    """
    canvas = _background(rng, width, height)
    # Which object each pixel shows: later ones cover earlier ones.
    owner = np.zeros((height, width), np.int32)
    kinds: list[tuple[str, bool]] = []
    if crowd:
        category = _choose(rng, list(CATEGORY_IDS))
        kinds.append((category, True))
        _draw_crowd(rng, canvas, owner, category)
    sizes = np.sort(rng.uniform(*_SIZES, num_objects))[::-1]  # Small ones on top of large ones.
    for size in sizes * min(width, height):
        category = _choose(rng, list(CATEGORY_IDS))
        if _place(rng, canvas, owner, category, float(size)):
            kinds.append((category, False))
    shown = []
    for number, (category, is_crowd) in enumerate(kinds, start=1):
        rows, columns = np.nonzero(owner == number)
        x, y = int(columns.min()), int(rows.min())
        box = (x, y, int(columns.max()) + 1 - x, int(rows.max()) + 1 - y)
        shown.append(ShapeInstance(category, box, len(rows), is_crowd))
    noise = rng.normal(0, rng.uniform(2, 10), canvas.shape)
    return np.clip(canvas + noise, 0, 255).astype(np.uint8), shown


def _choose(rng: np.random.Generator, names: list[str]) -> str:
    return names[int(rng.integers(len(names)))]


def _place(
    rng: np.random.Generator,
    canvas: NDArray[np.float64],
    owner: NDArray[np.int32],
    category: str,
    size: float,
) -> bool:
    """Draw one object where it does not hide others too much; return whether there was space."""
    height, width = owner.shape
    number = int(owner.max()) + 1
    areas = np.bincount(owner.ravel(), minlength=number)
    for _ in range(12):
        alpha = _mask(rng, category, size)
        h, w = alpha.shape
        if h > height or w > width:
            continue
        top, left = int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1))
        window = owner[top : top + h, left : left + w]
        hidden = np.bincount(window[alpha > 0.5], minlength=number)
        if np.any(hidden[1:number] > (1 - _MIN_VISIBLE) * areas[1:number]):
            continue
        _paint(rng, canvas[top : top + h, left : left + w], alpha, category)
        window[alpha > 0.5] = number
        return True
    return False


def _draw_crowd(
    rng: np.random.Generator, canvas: NDArray[np.float64], owner: NDArray[np.int32], category: str
) -> None:
    height, width = owner.shape
    extent = 0.45 * min(width, height)
    top, left = rng.uniform(0, height - extent), rng.uniform(0, width - extent)
    for _ in range(14):
        alpha = _mask(rng, category, 0.25 * extent)
        h, w = alpha.shape
        y = int(top + rng.uniform(0, extent - h))
        x = int(left + rng.uniform(0, extent - w))
        _paint(rng, canvas[y : y + h, x : x + w], alpha, category)
        owner[y : y + h, x : x + w][alpha > 0.5] = 1


def _paint(
    rng: np.random.Generator,
    window: NDArray[np.float64],
    alpha: NDArray[np.float64],
    category: str,
) -> None:
    behind = window.reshape(-1, 3).mean(axis=0)
    colour = _colour(rng, category)
    for _ in range(20):
        if np.abs(colour - behind).max() >= _MIN_CONTRAST:
            break
        colour = _colour(rng, category)
    h, w = alpha.shape
    texture = colour + _pattern(rng, w, h)[..., None] * rng.uniform(-30, 30, 3)
    window += alpha[..., None] * (np.clip(texture, 0, 255) - window)


def _colour(rng: np.random.Generator, category: str) -> NDArray[np.float64]:
    """A colour about the category's own hue, light or dark."""
    hue = list(CATEGORY_IDS).index(category) / len(CATEGORY_IDS) + rng.uniform(-0.04, 0.04)
    saturation, value = rng.uniform(0.6, 1.0), rng.uniform(0.5, 1.0)
    return 255 * np.array(colorsys.hsv_to_rgb(hue % 1.0, saturation, value))


def _background(rng: np.random.Generator, width: int, height: int) -> NDArray[np.float64]:
    """Blurred blotches, a pattern, and thin lines, in colours that stay in one tonal range."""
    base = rng.uniform(50, 205)
    cells = rng.uniform(-25, 25, (int(rng.integers(2, 7)), int(rng.integers(2, 7)), 3)) + base
    blotches = Image.fromarray(np.clip(cells, 0, 255).astype(np.uint8))
    canvas = np.asarray(
        blotches.resize((width, height), Image.Resampling.BICUBIC), dtype=np.float64
    ).copy()
    canvas += _pattern(rng, width, height)[..., None] * rng.uniform(-20, 20, 3)
    picture = Image.fromarray(np.clip(canvas, 0, 255).astype(np.uint8))
    pen = ImageDraw.Draw(picture)
    for _ in range(int(rng.integers(0, 7))):
        ends = rng.uniform(-0.1, 1.1, (2, 2)) * (width, height)
        colour = np.clip(rng.uniform(-60, 60, 3) + base, 0, 255).astype(int)
        pen.line(
            [(float(x), float(y)) for x, y in ends],
            fill=(int(colour[0]), int(colour[1]), int(colour[2])),
            width=int(rng.integers(1, 4)),
        )
    return np.asarray(picture, dtype=np.float64).copy()


def _pattern(rng: np.random.Generator, width: int, height: int) -> NDArray[np.float64]:
    """Return a (height, width) texture in -1..1: plain, stripes, checks or grain."""
    kind = int(rng.integers(4))
    y, x = np.mgrid[:height, :width].astype(np.float64)
    if kind == 0:
        return np.zeros((height, width))
    if kind == 1:
        angle, period = rng.uniform(0, np.pi), rng.uniform(4, 16)
        return np.sin((x * np.cos(angle) + y * np.sin(angle)) * 2 * np.pi / period)
    if kind == 2:
        period = rng.uniform(4, 12)
        return np.sign(np.sin(x * np.pi / period) * np.sin(y * np.pi / period))
    return rng.uniform(-1, 1, (height, width))


def _mask(rng: np.random.Generator, category: str, size: float) -> NDArray[np.float64]:
    """Return the coverage, 0..1, of an object about `size` pixels across, cropped to it."""
    outline, hole = _outlines(category)
    angle = rng.uniform(-np.pi / 8, np.pi / 8)
    aspect = rng.uniform(0.8, 1.25)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    scale = size * _SUPERSAMPLING / 2 * np.array([np.sqrt(aspect), 1 / np.sqrt(aspect)])
    points = (outline * scale) @ turn.T
    low, high = points.min(axis=0), points.max(axis=0)
    columns, rows = np.ceil((high - low) / _SUPERSAMPLING).astype(int) + 1
    picture = Image.new("L", (int(columns) * _SUPERSAMPLING, int(rows) * _SUPERSAMPLING))
    pen = ImageDraw.Draw(picture)
    pen.polygon([(float(x), float(y)) for x, y in points - low], fill=255)
    if hole is not None:
        inner = (hole * scale) @ turn.T - low
        pen.polygon([(float(x), float(y)) for x, y in inner], fill=0)
    return np.asarray(picture.reduce(_SUPERSAMPLING), dtype=np.float64) / 255


def _outlines(category: str) -> tuple[NDArray[np.float64], NDArray[np.float64] | None]:
    """Return the outline, and the hole of one that has a hole, within the unit circle."""
    match category:
        case "disc":
            return _regular(48), None
        case "ring":
            return _regular(48), 0.55 * _regular(48)
        case "square":
            return _regular(4), None
        case "triangle":
            return _regular(3), None
        case "star":
            points = _regular(10)
            points[1::2] *= 0.4
            return points, None
        case "cross":
            arm = 0.32
            corner = [(arm, 1.0), (arm, arm), (1.0, arm)]
            quarter = np.array([(x, -y) for x, y in corner])
            turns = [np.array([[c, -s], [s, c]]) for c, s in ((1, 0), (0, 1), (-1, 0), (0, -1))]
            return 0.95 * np.concatenate([quarter @ turn.T for turn in turns]), None
    raise ValueError(f"no category {category!r}; there are {', '.join(CATEGORY_IDS)}")


def _regular(corners: int) -> NDArray[np.float64]:
    angles = np.arange(corners) * 2 * np.pi / corners
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)
