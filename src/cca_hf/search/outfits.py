"""An index for outfits: one vector x for each item, and the distance of a pair of categories at the time of a search.

CSA-Net indexes each item once for each pair of categories. Here an item has one row with its features x, because the
distance from an outfit is a quadratic form of x (`OutfitModel.distances`). A search reads the candidates of the
category, and multiplies each by two vectors.
"""

from collections.abc import Sequence
from typing import NamedTuple, Self

import numpy as np
import torch

from cca_hf.data.columns import missing_message
from cca_hf.models.configuration_images import AttributeConfig
from cca_hf.models.encoding import ImageEncoder
from cca_hf.models.modeling_outfit import OutfitModel

from .conditions import AnyOf
from .images import IMAGE_REFERENCE
from .index import AttributeIndex
from .schema import ITEM_ID, vectors_of

OUTFIT_ATTRIBUTE = "outfit"  # the only attribute of the index


class OutfitEncoder(ImageEncoder):
    """The features x of an `OutfitModel` as embeddings by one attribute, so that an index can store them."""

    def __init__(self, model: OutfitModel) -> None:
        self.model = model
        self.config = AttributeConfig(attributes=[OUTFIT_ATTRIBUTE], embedding_dim=model.config.feature_dim)
        self.config.name_or_path = model.config.name_or_path
        self.image_processor = model.image_processor
        self.dtype = model.dtype

    @property
    def device(self) -> torch.device:
        return self.model.device

    def fingerprint(self) -> str:
        return self.model.fingerprint()

    def in_precision(self, precision: str) -> Self:
        return self if precision == "auto" else type(self)(self.model.to(getattr(torch, precision)))

    def in_eval_mode(self) -> Self:
        return type(self)(self.model.in_eval_mode())

    @torch.inference_mode()
    def _embed(self, pixel_values: torch.Tensor, attribute_ids: torch.Tensor) -> torch.Tensor:
        """(batch, 1, dim)"""
        return self.model(pixel_values=pixel_values).features[:, None]


def as_encoder(model: ImageEncoder | OutfitModel) -> ImageEncoder:
    """What an index of this model stores: embeddings by attribute, or features for outfits."""
    return OutfitEncoder(model) if isinstance(model, OutfitModel) else model


class Proposal(NamedTuple):
    """An item that completes an outfit."""

    item_id: str
    distance: float  # from the outfit; smaller is better
    category: str
    image: object  # a reference in an index, or the image itself


class OutfitRows(NamedTuple):
    """Items with their features, as an index or a data set has them."""

    ids: list[str]
    categories: list[str]
    features: np.ndarray  # (items, dim)
    images: Sequence[object]


def propose(
    model: OutfitModel, outfit: OutfitRows, candidates: OutfitRows, category: str | None, top: int
) -> list[Proposal]:
    """The candidates of a category that are nearest to the outfit, without its own items.

    Raises:
        ValueError: for a category that the model does not know, or that has no candidate.
    """
    if category is not None:
        model.config.category_ids(category)
    given = set(outfit.ids)
    rows = [
        row
        for row, (item, kind) in enumerate(zip(candidates.ids, candidates.categories, strict=True))
        if item not in given and kind in ((category,) if category is not None else model.config.categories)
    ]
    if not rows:
        wanted = "a category that the model knows" if category is None else f"the category {category!r}"
        raise ValueError(f"there is no item of {wanted} beside those of the outfit")
    found = model.complete(
        outfit.features,
        outfit.categories,
        candidates.features[rows],
        [candidates.categories[row] for row in rows],
        top_k=top,
    )
    places = [(rows[place], distance) for place, distance in found]
    return [
        Proposal(candidates.ids[row], distance, candidates.categories[row], candidates.images[row])
        for row, distance in places
    ]


def read_outfit_rows(
    index: AttributeIndex, model: OutfitModel, category_column: str, items: Sequence[str] | None, category: str | None
) -> OutfitRows:
    """The rows of some items of an index, in their order; or those of a category, or all.

    Raises:
        ValueError: for an item that the index does not have, or an index without the column of categories.
    """
    if category_column not in index.schema.columns:
        raise ValueError(
            f"the index has {missing_message('column', [category_column], index.schema.columns)}; the column of the "
            "categories is named with --category_column"
        )
    where = None
    if items is not None:
        index.get(items)  # raises for an unknown item
        where = AnyOf(ITEM_ID, tuple(items))
    elif category is not None:
        where = AnyOf(category_column, (category,))
    blocks = model.config.feature_dim // model.config.embedding_dim  # each has length 1, the stored vector as a whole
    ids, categories, images = [], [], []
    parts = [np.empty((0, model.config.feature_dim), np.float32)]
    for table in index.tables(where=where, embeddings=True):
        ids += table.column(ITEM_ID).to_pylist()
        categories += table.column(category_column).to_pylist()
        images += (
            table.column(IMAGE_REFERENCE).to_pylist() if IMAGE_REFERENCE in table.column_names else [None] * len(table)
        )
        parts.append(vectors_of(table, index.schema.vector_column(OUTFIT_ATTRIBUTE)) * blocks**0.5)
    found = OutfitRows(ids, categories, np.concatenate(parts), images)
    if items is None:
        return found
    order = [ids.index(item) for item in items]
    return OutfitRows(
        list(items), [categories[row] for row in order], found.features[order], [images[row] for row in order]
    )
