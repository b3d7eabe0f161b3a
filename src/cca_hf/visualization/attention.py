"""Where each attribute looks: the attention of the conditional layer laid over the picture.

The picture falls back to a dim grey, and what is attended glows from violet over red to yellow: on black clothes and
on white paper alike. Its own structure stays visible through the glow.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from cca_hf.models.images import ImageInput, load_image
from cca_hf.models.modeling_cca import CCAModel

from .figures import INK, new_figure, quiet

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Heat 0, 1/4, ... 1: steps of rising brightness, so that the map reads in grey as well.
_GLOW = np.array([(40, 20, 90), (122, 28, 132), (210, 55, 95), (250, 140, 40), (255, 236, 130)], dtype=np.float32)


def attention_overlay(image: Image.Image, weights: NDArray, size: int = 224) -> Image.Image:
    """The picture, dimmed, with its attended places glowing.

    Args:
        weights: (h, w) attention over the picture, of any total; the grid covers the whole picture.
        size: the longer side of the result in pixels.
    """
    scale = size / max(image.size)
    shape = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    picture = np.asarray(image.resize(shape, Image.Resampling.LANCZOS), dtype=np.float32)
    heat = _smooth(_relative(weights), shape)
    grey = picture.mean(axis=2, keepdims=True)
    dimmed = 0.42 * grey + 0.08 * picture
    steps = np.linspace(0.0, 1.0, len(_GLOW))
    glow = np.stack([np.interp(heat, steps, _GLOW[:, channel]) for channel in range(3)], axis=2)
    opacity = 0.9 * heat[:, :, None] ** 0.6
    pixels = (1 - opacity) * dimmed + opacity * glow * (0.6 + 0.4 * grey / 255.0)
    return Image.fromarray(pixels.round().astype(np.uint8))


def attention_overlays(
    model: CCAModel, image: ImageInput, attributes: Sequence[str], size: int = 224
) -> dict[str, Image.Image]:
    """Attribute -> the picture as that attribute sees it, the heads' mean. One pass for all of them.

    Raises:
        ValueError: for an attribute the model does not know; names the closest.
    """
    picture = load_image(image)
    maps = model.attention_maps([picture], list(attributes))[0].mean(axis=1)  # (A, heads, h, w) -> (A, h, w)
    return {name: attention_overlay(picture, weights, size) for name, weights in zip(attributes, maps, strict=True)}


def plot_attention(
    model: CCAModel, image: ImageInput, attributes: Sequence[str] | None = None, *, columns: int = 4
) -> "Figure":
    """A picture, and beside it where each attribute looks in it; all attributes unless told.

    Save it with `figure.savefig("attention.png")`. Needs matplotlib (`pip install "cca_hf[plot]"`).

    Raises:
        ValueError: for an attribute the model does not know; names the closest.
        UnreadableImageError: for a picture that cannot be read; names it.
    """
    names = list(model.config.attributes if attributes is None else attributes)
    pictures = {"picture": load_image(image)} | attention_overlays(model, image, names, size=320)
    columns = min(columns, len(pictures))
    rows = -(-len(pictures) // columns)
    figure = new_figure(2.1 * columns, 2.35 * rows)
    for place, (name, picture) in enumerate(pictures.items()):
        axes = figure.add_subplot(rows, columns, place + 1)
        axes.imshow(picture)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_title(name, fontsize=10, color=INK, fontweight="bold" if place else "normal")
        quiet(axes)
    return figure


def _relative(weights: NDArray) -> NDArray[np.float32]:
    """0 where a place gets its even share or less, 1 at the peak; a map that is nearly even stays nearly dark."""
    mean = float(weights.mean())
    ratio = weights.astype(np.float32) / (mean if mean > 0 else 1.0)
    return np.clip((ratio - 1.0) / max(float(ratio.max()) - 1.0, 1.0), 0.0, 1.0)


def _smooth(heat: NDArray[np.float32], shape: tuple[int, int]) -> NDArray[np.float32]:
    """Enlarged to (width, height) without the grid showing: bicubic, then a blur of half a cell. The peak stays."""
    enlarged = Image.fromarray(heat).resize(shape, Image.Resampling.BICUBIC)
    pixels = np.asarray(enlarged).clip(0.0, 1.0) * 255.0
    radius = 0.5 * max(shape[0] / heat.shape[1], shape[1] / heat.shape[0])
    blurred = Image.fromarray(pixels.astype(np.uint8)).filter(ImageFilter.GaussianBlur(radius))
    smooth = np.asarray(blurred, dtype=np.float32)
    return smooth * (float(heat.max()) / max(float(smooth.max()), 1.0))
