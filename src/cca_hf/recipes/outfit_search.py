"""Proposes items that complete an outfit, from an index or from a data set, and writes them as a board."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cca_hf.data.outfit_loading import load_items
from cca_hf.models.modeling_outfit import OutfitModel
from cca_hf.search.images import ImageFinder
from cca_hf.search.index import AttributeIndex
from cca_hf.search.outfits import OUTFIT_ATTRIBUTE, OutfitEncoder, OutfitRows, Proposal, propose, read_outfit_rows
from cca_hf.visualization.outfits import Board, Tile, write_boards


class Completed(NamedTuple):
    """An outfit, and the proposals for its blank."""

    outfit: OutfitRows
    category: str | None
    proposals: list[Proposal]


def complete_from_index(
    store: str,
    model: OutfitModel,
    items: Sequence[str],
    *,
    category: str | None = None,
    category_column: str = "category",
    top: int = 10,
) -> Completed:
    """Proposes items of an index that `cca index` made with this model.

    Args:
        items: ids of the items of the outfit, which are in the index.
        category: of the proposals; default: all categories that the model knows.
        category_column: the column of the index with the categories.
        top: number of proposals.

    Raises:
        ValueError: for an unknown item, category or column, a category without items, or an index of another model.
    """
    with AttributeIndex.open(store, OutfitEncoder(model)) as index:
        if index.schema.attributes != (OUTFIT_ATTRIBUTE,):
            raise ValueError(f"the index at {store} is not for outfits: it has {', '.join(index.schema.attributes)}")
        if category is not None:
            model.config.category_ids(category)
        outfit = read_outfit_rows(index, model, category_column, items, None)
        candidates = read_outfit_rows(index, model, category_column, None, category)
    return Completed(outfit, category, propose(model, outfit, candidates, category, top))


def complete_from_dataset(
    dataset: str,
    model: OutfitModel,
    items: Sequence[str],
    *,
    category: str | None = None,
    id_column: str = "id",
    category_column: str = "category",
    image_column: str | None = None,
    top: int = 10,
) -> Completed:
    """Proposes items of a data set, as `complete_from_index`. It encodes the outfit, and all items of the category."""
    data = load_items(dataset, id_column=id_column, category_column=category_column, image_column=image_column)
    names = np.array([*data.categories, ""])[data.category_ids]
    images = data.items["image"]
    wanted = model.config.categories if category is None else [category]
    model.config.category_ids(wanted)

    def encoded(rows: np.ndarray) -> OutfitRows:
        shown = [images[row] for row in rows.tolist()]
        features = model.features(shown) if shown else np.empty((0, model.config.feature_dim), np.float32)
        return OutfitRows([data.ids[row] for row in rows.tolist()], names[rows].tolist(), features, shown)

    outfit, candidates = encoded(data.rows(items)), encoded(np.flatnonzero(np.isin(names, wanted)))
    return Completed(outfit, category, propose(model, outfit, candidates, category, top))


def write_completed(completed: Completed, path: Path, *, place: str) -> Path:
    """Writes the outfit and its proposals as a board, and returns the path of the page.

    Raises:
        ValueError: if the index does not say where the image of an item is.
        UnreadableImageError: if an image cannot be read; the message names it.
    """
    finder = ImageFinder()

    def tile(item: str, caption: str, image: object) -> Tile:
        if image is None:
            raise ValueError(f"the index does not say where the image of item {item!r} is")
        return Tile(finder.find(image) if isinstance(image, str) else image, item, caption)  # type: ignore[arg-type]

    outfit = completed.outfit
    given = [tile(*row) for row in zip(outfit.ids, outfit.categories, outfit.images, strict=True)]
    proposals = [tile(found.item_id, found.item_id, found.image) for found in completed.proposals]
    board = Board("The outfit", given, proposals, completed.category, "the best first")
    return write_boards([board], path, facts={"items": place})
