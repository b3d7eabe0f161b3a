"""A generated data set to try the package without data or network: one shape on a background, five attributes.

The attributes are balanced in every split and independent of each other: one reveals nothing about another. Images
differ in position, rotation, shade and noise, and depend only on (seed, split, row, size).
"""

import colorsys
import io
import math
from typing import NamedTuple

import numpy as np
import PIL.Image
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, List, Value
from datasets.utils import tqdm
from PIL import ImageDraw, ImageFilter

# hue in degrees, saturation and lightness in percent
COLOURS = {
    "red": (356, 78, 52),
    "orange": (26, 94, 55),
    "yellow": (50, 97, 55),
    "green": (138, 55, 42),
    "blue": (212, 82, 51),
    "purple": (276, 56, 53),
    "pink": (328, 82, 70),
}
# factors of the radius that make shapes of one size look equally large
SHAPES = {"circle": 1.0, "square": 1.2, "triangle": 1.34, "star": 1.32, "heart": 1.12, "cross": 1.2}
# radius as a share of the side of the image
SIZES = {"tiny": 0.125, "small": 0.18, "medium": 0.245, "large": 0.325}
# factors of the radius that vary within a size
_VARIATION = (0.95, 1.05)

SHAPE_ATTRIBUTES: dict[str, list[str]] = {
    "colour": list(COLOURS),
    "shape": list(SHAPES),
    "pattern": ["plain", "stripes", "dots", "checks", "rings"],
    "size": list(SIZES),
    "background": ["paper", "sunset", "grid", "night", "waves"],
}

_SHARES = {"train": 0.7, "validation": 0.1, "test": 0.2}
_SUPERSAMPLING = 4
_POINTS_OF_A_CURVE = 72


def generate_shapes_dataset(num_images: int = 3000, image_size: int = 64, seed: int = 0) -> DatasetDict:
    """Draws the splits train (70 %), validation (10 %) and test (20 %).

    The columns are `image`, a `ClassLabel` for each of colour, shape, pattern, size and background, and the position
    of the shape: `bbox` (left, top, right, bottom in pixels) and `mask` (255 on the shape). `size_grade` is the size
    as a number, from 0 (the smallest shape that can be drawn) to 1 (the largest); it varies within a value of `size`.

    Args:
        num_images: number of images in all splits together, at least 100.
        image_size: height and width in pixels, at least 32.
    """
    if num_images < 100:
        raise ValueError(f"num_images must be at least 100, so that all splits have all values; got {num_images}")
    if image_size < 32:
        raise ValueError(f"image_size must be at least 32, so that patterns are visible; got {image_size}")
    sizes = {split: round(num_images * share) for split, share in _SHARES.items()}
    sizes["train"] = num_images - sizes["validation"] - sizes["test"]
    parts = enumerate(sizes.items())
    return DatasetDict(
        {split: _generate_split(split, number, image_size, [seed, index]) for index, (split, number) in parts}
    )


def _generate_split(split: str, num_images: int, image_size: int, seed: list[int]) -> Dataset:
    random = np.random.default_rng(seed)
    labels = {
        attribute: random.permutation(np.arange(num_images) % len(values)).tolist()
        for attribute, values in SHAPE_ATTRIBUTES.items()
    }
    rows = []
    for row in tqdm(range(num_images), desc=f"Drawing {split}", unit=" images"):
        values = {attribute: names[labels[attribute][row]] for attribute, names in SHAPE_ATTRIBUTES.items()}
        drawn = _draw(**values, image_size=image_size, random=np.random.default_rng([*seed, row]))
        place = {"bbox": drawn.bbox, "mask": {"bytes": drawn.mask}}
        rows.append({"image": {"bytes": drawn.image}, **values, **place, "size_grade": drawn.size_grade})
    features = Features(
        image=Image(),
        **{attribute: ClassLabel(names=values) for attribute, values in SHAPE_ATTRIBUTES.items()},
        bbox=List(Value("float32"), length=4),
        mask=Image(),
        size_grade=Value("float32"),
    )
    return Dataset.from_list(rows, features=features)


def shape_regions(masks: np.ndarray) -> dict[str, np.ndarray]:
    """The regions of an image that show each attribute.

    Colour and pattern are visible inside the shape; shape and size also on the light rim around it; the background is
    everything outside the rim.

    Args:
        masks: (N, H, W), the column `mask`: not 0 on the shape.

    Returns:
        attribute -> (N, H, W) bool.
    """
    inside = np.asarray(masks) > 0
    rim = 2 * math.ceil(rim_width(inside.shape[-1])) + 1
    filled = (PIL.Image.fromarray(255 * mask.astype(np.uint8)) for mask in inside)
    with_rim = np.stack([np.asarray(mask.filter(ImageFilter.MaxFilter(rim))) for mask in filled]) > 0
    return {"colour": inside, "shape": with_rim, "pattern": inside, "size": with_rim, "background": ~with_rim}


def draw_shape(
    *, colour: str, shape: str, pattern: str, size: str, background: str, image_size: int, random: np.random.Generator
) -> tuple[bytes, list[float], bytes]:
    """One image with these values of the attributes; everything else is random.

    Returns:
        The JPEG file; left, top, right and bottom of the shape in pixels; the PNG file of its mask, 255 on the shape.
    """
    values = {"colour": colour, "shape": shape, "pattern": pattern, "size": size, "background": background}
    drawn = _draw(**values, image_size=image_size, random=random)
    return drawn.image, drawn.bbox, drawn.mask


class _Drawn(NamedTuple):
    image: bytes
    bbox: list[float]
    mask: bytes
    size_grade: float


def _draw(
    *, colour: str, shape: str, pattern: str, size: str, background: str, image_size: int, random: np.random.Generator
) -> _Drawn:
    """As [`draw_shape`], with the size as a number."""
    variation = random.uniform(*_VARIATION)
    radius = SIZES[size] * SHAPES[shape] * image_size * variation
    rotation = random.uniform(-0.3, 0.3)
    outline = _rotate(_outline(shape), rotation) * radius
    # a centre for which the whole shape and its rim are inside the image
    margin = image_size / 32
    low, high = margin - outline.min(axis=0), image_size - margin - outline.max(axis=0)
    centre = random.uniform(np.minimum(low, high), np.maximum(low, high))
    outline = outline + centre

    mask = _fill(outline, image_size)
    sticker = _fill(outline, image_size, border=rim_width(image_size))
    base, light = _paint(colour, random)
    tint = mask * _pattern(pattern, centre, outline, radius / SHAPES[shape], image_size, random)

    canvas = _background(background, image_size, random)
    canvas = _blend(canvas, np.zeros(3), 0.32 * _shadow(sticker, image_size))
    canvas = _blend(canvas, np.full(3, 252.0), sticker)
    canvas = _blend(canvas, base, mask)
    canvas = _blend(canvas, light, tint)
    canvas += 3 * random.standard_normal(canvas.shape, dtype=np.float32)

    corners = np.concatenate([outline.min(axis=0), outline.max(axis=0)])
    image = _encode(np.clip(canvas, 0, 255), "JPEG", quality=92, subsampling=0)
    smallest, largest = min(SIZES.values()) * _VARIATION[0], max(SIZES.values()) * _VARIATION[1]
    return _Drawn(
        image=image,
        bbox=np.clip(corners, 0, image_size).tolist(),
        mask=_encode((mask >= 0.5) * 255, "PNG"),
        size_grade=(SIZES[size] * variation - smallest) / (largest - smallest),
    )


def rim_width(image_size: int) -> float:
    """Width in pixels of the light rim between shape and background."""
    return max(1.0, image_size / 40)


def _outline(shape: str) -> np.ndarray:
    """(points, 2) of the outline, y downwards, centred, about the size of the unit circle."""
    if shape == "circle":
        return _on_circle(np.linspace(0, 2 * math.pi, _POINTS_OF_A_CURVE, endpoint=False))
    if shape == "square":
        return _on_circle(np.arange(4) * math.pi / 2 + math.pi / 4)
    if shape == "triangle":
        return _on_circle(np.arange(3) * 2 * math.pi / 3 - math.pi / 2)
    if shape == "star":
        radii = np.where(np.arange(10) % 2 == 0, 1.0, 0.46)
        return _on_circle(np.arange(10) * math.pi / 5 - math.pi / 2) * radii[:, None]
    if shape == "heart":
        t = np.linspace(0, 2 * math.pi, _POINTS_OF_A_CURVE, endpoint=False)
        x = 16 * np.sin(t) ** 3
        y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))
        return np.stack([x, y - 2.5], axis=1) / 15.5
    arm = 0.33
    corner = [(arm, arm), (arm, 1.0), (-arm, 1.0)]
    quarters = [_rotate(np.array(corner), turn * math.pi / 2) for turn in range(4)]
    return np.concatenate(quarters)


def _on_circle(angles: np.ndarray) -> np.ndarray:
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _rotate(points: np.ndarray, angle: float) -> np.ndarray:
    cos, sin = math.cos(angle), math.sin(angle)
    return points @ np.array([[cos, sin], [-sin, cos]])


def _fill(outline: np.ndarray, image_size: int, border: float = 0.0) -> np.ndarray:
    """(height, width) coverage in [0, 1] of the inside of the outline, widened by `border` pixels."""
    side = image_size * _SUPERSAMPLING
    canvas = PIL.Image.new("L", (side, side))
    draw = ImageDraw.Draw(canvas)
    points = (outline * _SUPERSAMPLING).ravel().tolist()
    draw.polygon(points, fill=255)
    if border and len(outline) == _POINTS_OF_A_CURVE:
        along = np.roll(outline, -1, axis=0) - np.roll(outline, 1, axis=0)  # clockwise
        outwards = np.stack([along[:, 1], -along[:, 0]], axis=1) / np.linalg.norm(along, axis=1, keepdims=True)
        draw.polygon(((outline + border * outwards) * _SUPERSAMPLING).ravel().tolist(), fill=255)
    elif border:
        draw.line([*points, *points[:4]], fill=255, width=round(2 * border * _SUPERSAMPLING), joint="curve")
    return _reduce(canvas)


def _shadow(coverage: np.ndarray, image_size: int) -> np.ndarray:
    shift = max(1, image_size // 32)
    moved = np.roll(coverage, (shift, shift // 2), axis=(0, 1))
    moved[:shift] = 0
    soft = PIL.Image.fromarray((moved * 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(image_size / 40))
    return np.asarray(soft, dtype=np.float32) / 255


def _paint(colour: str, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A shade of the colour, and its light tint for patterns."""
    hue, saturation, lightness = COLOURS[colour]
    shade = colorsys.hls_to_rgb(
        (hue + random.uniform(-4, 4)) / 360 % 1,
        lightness / 100 * random.uniform(0.94, 1.06),
        min(saturation / 100 * random.uniform(0.9, 1.03), 1.0),
    )
    base = np.array(shade) * 255
    return base, base + 0.74 * (255 - base)


def _pattern(
    pattern: str, centre: np.ndarray, outline: np.ndarray, radius: float, image_size: int, random: np.random.Generator
) -> np.ndarray:
    """(height, width) strength of the light tint in [0, 1]. A shape of any size shows about four periods."""
    tint = np.zeros((image_size, image_size), dtype=np.float32)
    if pattern == "plain":
        return tint
    # computed only inside the bounding box of the shape
    left, top = np.maximum(np.floor(outline.min(axis=0)), 0).astype(int)
    right, bottom = np.minimum(np.ceil(outline.max(axis=0)), image_size).astype(int)
    period = radius * random.uniform(0.5, 0.6)
    x = ((_subpixels(left, right) - centre[0]) / period)[None, :]
    y = ((_subpixels(top, bottom) - centre[1]) / period)[:, None]
    if pattern == "rings":
        light = _fraction(np.sqrt(x * x + y * y)) > 0.55
    else:
        angle = random.uniform(0.5, 1.1) * random.choice([-1, 1])
        cos, sin = math.cos(angle), math.sin(angle)
        u = _fraction(x * cos + (y * sin + random.random()))
        v = _fraction(y * cos + (random.random() - x * sin))
        if pattern == "stripes":
            light = u > 0.55
        elif pattern == "dots":
            light = (u - 0.5) ** 2 + (v - 0.5) ** 2 < 0.3**2
        else:
            light = (u > 0.5) != (v > 0.5)
    tint[top:bottom, left:right] = _reduce(PIL.Image.fromarray(light.astype(np.uint8) * 255))
    return tint


def _subpixels(start: int, end: int) -> np.ndarray:
    """The centres of the subpixels in a range of pixels."""
    return start + (np.arange((end - start) * _SUPERSAMPLING) + 0.5) / _SUPERSAMPLING


def _fraction(values: np.ndarray) -> np.ndarray:
    values = values.astype(np.float32)
    return values - np.floor(values)  # np.remainder takes three times as long


def _reduce(image: PIL.Image.Image) -> np.ndarray:
    return np.asarray(image.reduce(_SUPERSAMPLING), dtype=np.float32) / 255


def _background(background: str, image_size: int, random: np.random.Generator) -> np.ndarray:
    """(height, width, 3) in [0, 255]."""
    steps = (np.arange(image_size, dtype=np.float32) + 0.5) / image_size
    x, y = steps[None, :], steps[:, None]
    if background == "paper":
        canvas = _mix((248, 243, 232), (238, 231, 216), random.random() + 0 * x * y)
    elif background == "sunset":
        canvas = _mix((255, 205, 165), (158, 140, 205), np.clip(y + random.uniform(-0.3, 0.3) * (x - 0.5), 0, 1))
    elif background == "grid":
        cells = random.uniform(6, 8)
        lines = np.maximum(_grid_line(x * cells + random.random()), _grid_line(y * cells + random.random()))
        canvas = _mix((222, 234, 238), (150, 180, 192), lines)
    elif background == "night":
        canvas = _mix((24, 30, 62), (52, 56, 104), y + 0 * x)
        stars = random.integers(0, image_size, (2, max(12, image_size // 4)))
        canvas[stars[0], stars[1]] += random.uniform(70, 170, (stars.shape[1], 1))
    else:
        swell = random.uniform(0.25, 0.4) * np.sin(2 * math.pi * (x * random.uniform(1.5, 2.5) + random.random()))
        height = y * random.uniform(5, 6.5) + swell
        canvas = _mix((150, 208, 200), (98, 172, 170), 0.5 + 0.5 * np.tanh(4 * np.sin(2 * math.pi * height)))
    return canvas + random.uniform(-5, 5, 3).astype(np.float32)


def _grid_line(place: np.ndarray) -> np.ndarray:
    """1 at integers, falling smoothly to 0 within a tenth of a cell."""
    return np.clip(1.6 - 16 * np.abs(place - np.round(place)), 0, 1)


def _mix(first: tuple[int, int, int], second: tuple[int, int, int], share: np.ndarray) -> np.ndarray:
    start, end = np.array(first, dtype=np.float32), np.array(second, dtype=np.float32)
    return start + share[..., None].astype(np.float32) * (end - start)


def _blend(canvas: np.ndarray, colour: np.ndarray, coverage: np.ndarray) -> np.ndarray:
    return canvas + coverage[..., None] * (colour.astype(np.float32) - canvas)


def _encode(pixels: np.ndarray, kind: str, **options: int) -> bytes:
    buffer = io.BytesIO()
    PIL.Image.fromarray(pixels.astype(np.uint8)).save(buffer, kind, **options)
    return buffer.getvalue()
