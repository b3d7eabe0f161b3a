"""The attention of an attribute as an overlay on the image.

The image is drawn in dark grey, with attended regions from violet over red to yellow. They are visible on black
clothes as well as on a white background.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from cca_hf.models.images import ImageInput, load_image
from cca_hf.models.modeling_cca import CCAModel

from .figures import INK, Figure, new_figure, quiet

# Colours of the heat 0, 1/4, ... 1, from dark to bright, so that the map is readable in grey too.
_GLOW = np.array([(40, 20, 90), (122, 28, 132), (210, 55, 95), (250, 140, 40), (255, 236, 130)], dtype=np.float32)


def attention_overlay(image: Image.Image, weights: NDArray, size: int = 224) -> Image.Image:
    """Draw attention weights over an image.

    Args:
        weights: (h, w) attention on a grid over the whole image, with any sum.
        size: the longer side of the result in pixels.
    """
    scale = size / max(image.size)
    shape = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    resized = np.asarray(image.resize(shape, Image.Resampling.LANCZOS), dtype=np.float32)
    heat = _smooth(_relative(weights), shape)
    grey = resized.mean(axis=2, keepdims=True)
    dimmed = 0.42 * grey + 0.08 * resized
    steps = np.linspace(0.0, 1.0, len(_GLOW))
    glow = np.stack([np.interp(heat, steps, _GLOW[:, channel]) for channel in range(3)], axis=2)
    opacity = 0.9 * heat[:, :, None] ** 0.6
    pixels = (1 - opacity) * dimmed + opacity * glow * (0.6 + 0.4 * grey / 255.0)
    return Image.fromarray(pixels.round().astype(np.uint8))


def attention_overlays(
    model: CCAModel, image: ImageInput, attributes: Sequence[str], size: int = 224
) -> dict[str, Image.Image]:
    """Attribute -> the image with the attention of that attribute, averaged over the heads.

    Raises:
        ValueError: for an unknown attribute; the message names the closest one.
    """
    loaded = load_image(image)
    maps = model.attention_maps([loaded], list(attributes))[0].mean(axis=1)  # (A, heads, h, w) -> (A, h, w)
    return {name: attention_overlay(loaded, weights, size) for name, weights in zip(attributes, maps, strict=True)}


def plot_attention(
    model: CCAModel, image: ImageInput, attributes: Sequence[str] | None = None, *, columns: int = 4
) -> Figure:
    """Draw an image and the attention of attributes on it, by default of all attributes.

    Save the figure with `figure.savefig("attention.png")`. Needs matplotlib (`pip install "cca_hf[plot]"`).

    Raises:
        ValueError: for an unknown attribute; the message names the closest one.
        UnreadableImageError: if the image cannot be read; the message names it.
    """
    names = list(model.config.attributes if attributes is None else attributes)
    images = {"image": load_image(image)} | attention_overlays(model, image, names, size=320)
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    figure = new_figure(2.1 * columns, 2.35 * rows)
    for place, (name, overlay) in enumerate(images.items()):
        axes = figure.add_subplot(rows, columns, place + 1)
        axes.imshow(overlay)
        axes.set(xticks=[], yticks=[])
        axes.set_title(name, fontsize=10, color=INK, fontweight="bold" if place else "normal")
        quiet(axes)
    return figure


def _relative(weights: NDArray) -> NDArray[np.float32]:
    """0 where the attention is at most the mean, 1 at the peak; a nearly uniform map is nearly 0."""
    mean = float(weights.mean())
    ratio = weights.astype(np.float32) / (mean if mean > 0 else 1.0)
    return np.clip((ratio - 1.0) / max(float(ratio.max()) - 1.0, 1.0), 0.0, 1.0)


def _smooth(heat: NDArray[np.float32], shape: tuple[int, int]) -> NDArray[np.float32]:
    """Enlarge to (width, height) without visible cells: bicubic, then a blur of half a cell. The peak is unchanged."""
    enlarged = Image.fromarray(heat).resize(shape, Image.Resampling.BICUBIC)
    pixels = np.asarray(enlarged).clip(0.0, 1.0) * 255.0
    radius = 0.5 * max(shape[0] / heat.shape[1], shape[1] / heat.shape[0])
    blurred = Image.fromarray(pixels.astype(np.uint8)).filter(ImageFilter.GaussianBlur(radius))
    smooth = np.asarray(blurred, dtype=np.float32)
    return smooth * (float(heat.max()) / max(float(smooth.max()), 1.0))
