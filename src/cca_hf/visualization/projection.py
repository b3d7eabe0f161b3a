"""Embeddings in the plane, with a panel for each attribute, coloured by the values of that attribute.

The projection is t-SNE (scikit-learn), or UMAP if `umap-learn` is installed. Both preserve neighbourhoods, not
distances: clusters are meaningful, the gaps between them are not.
"""

import warnings
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from cca_hf.evaluation.arrays import to_numpy
from cca_hf.extras import require

from .figures import INK, MUTED, Axes, Figure, new_figure, quiet

Method = Literal["tsne", "umap"]
_NAMED_VALUES = 10  # colours that are easy to tell apart; rarer values share a grey
_LEAST_IMAGES = 5


def plot_projection(
    embeddings: NDArray | torch.Tensor,
    labels: NDArray | torch.Tensor,
    attributes: Mapping[str, Sequence[str]],
    *,
    method: Method = "tsne",
    max_images: int = 1500,
    columns: int = 3,
    seed: int = 0,
) -> Figure:
    """Draw the embeddings of each attribute in the plane, coloured by the values of that attribute.

    Save the figure with `figure.savefig("projection.png", dpi=150)`. Needs matplotlib and scikit-learn
    (`pip install "cca_hf[plot,analysis]"`).

    Args:
        embeddings: (N, A, D), in the order of `attributes`.
        labels: (N, A) value ids. An image with -1 (not labelled) is not drawn in that panel.
        attributes: attribute name -> value names in id order.
        max_images: of more images, a random sample is drawn.

    Raises:
        ValueError: if the shapes do not match, or the method is unknown.
        ImportError: if a package is missing; the message says how to install it.
    """
    vectors, ids = to_numpy(embeddings), to_numpy(labels)
    if vectors.ndim != 3 or vectors.shape[:2] != ids.shape or ids.shape[1] != len(attributes):
        raise ValueError(
            f"embeddings must have shape (images, {len(attributes)}, dim) and labels (images, {len(attributes)}); "
            f"got {vectors.shape} and {ids.shape}"
        )
    columns = min(columns, len(attributes))
    rows = -(-len(attributes) // columns)
    figure = new_figure(3.6 * columns, 3.9 * rows)
    drawn = np.arange(len(ids))
    if len(drawn) > max_images:
        drawn = np.random.default_rng(seed).permutation(len(drawn))[:max_images]
    for place, (name, values) in enumerate(attributes.items()):
        axes = figure.add_subplot(rows, columns, place + 1)
        axes.set_title(name, fontsize=11, color=INK, fontweight="bold")
        labelled = drawn[ids[drawn, place] >= 0]
        if len(labelled) >= _LEAST_IMAGES:
            points = project(vectors[labelled, place], method, seed=seed)
            _scatter(axes, points, ids[labelled, place], values)
        axes.set(xticks=[], yticks=[])
        quiet(axes)
    return figure


def project(vectors: NDArray, method: Method = "tsne", *, seed: int = 0) -> NDArray[np.float32]:
    """(n, D) -> (n, 2), by cosine distance."""
    if method == "umap":
        try:
            from umap import UMAP
        except ImportError as error:
            raise ImportError('method="umap" needs umap-learn: pip install umap-learn') from error
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the seed, which makes it slower
            return UMAP(metric="cosine", random_state=seed).fit_transform(vectors)
    if method != "tsne":
        raise ValueError(f"method must be 'tsne' or 'umap', got {method!r}")
    require("analysis", "projections need")
    from sklearn.manifold import TSNE

    perplexity = min(30.0, (len(vectors) - 1) / 3)
    return TSNE(perplexity=perplexity, metric="cosine", init="random", random_state=seed).fit_transform(vectors)


def _scatter(axes: Axes, points: NDArray[np.float32], labels: NDArray[np.int64], values: Sequence[str]) -> None:
    """The most frequent values in colours, with a legend; the others in grey, behind them."""
    frequent = np.argsort(-np.bincount(labels, minlength=len(values)), kind="stable")[:_NAMED_VALUES]
    frequent = frequent[np.isin(frequent, labels)]
    rest = ~np.isin(labels, frequent)
    if rest.any():
        label = f"{len(np.unique(labels[rest]))} more"
        axes.scatter(points[rest, 0], points[rest, 1], s=4, color="#cbd5e1", linewidths=0, label=label)
    for place, value in enumerate(frequent.tolist()):
        own = points[labels == value]
        axes.scatter(own[:, 0], own[:, 1], s=6, color=f"C{place}", linewidths=0, label=values[value])
    compact = {"fontsize": 7, "markerscale": 2.5, "handletextpad": 0.2, "columnspacing": 0.8}
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=3, frameon=False, labelcolor=MUTED, **compact)
