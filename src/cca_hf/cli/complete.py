"""`cca complete`: the items that complete an outfit."""

import json
from pathlib import Path

from . import options
from .options import UsageError, option, printable, stdout_kept_clean


def complete(
    items: list[str] = option(..., "ID ...", "The items of the outfit."),
    category: str | None = option(None, "NAME", "Category of the item to find. Default: all categories."),
    store: str | None = option(None, "PLACE", "Index that 'cca index' made with the model."),
    dataset: str | None = options.OPTIONAL_DATASET,
    model: str | None = option(
        None, "ID_OR_FOLDER", "Checkpoint of 'cca train outfits'. Default: the checkpoint that made the index."
    ),
    id_column: str = option("id", "NAME", "Column of the data set with the ids of the items."),
    category_column: str = option("category", "NAME", "Column with the categories of the items."),
    image_column: str | None = options.IMAGE_COLUMN,
    top: int = option(10, "NUMBER", "Number of items to propose.", names=("--top", "--top_k"), min=1),
    html: Path | None = option(None, "FILE", "Write a page with the outfit and the proposals."),
    as_json: bool = options.JSON,
    device: str | None = options.DEVICE,
) -> None:
    """Find the items that go best with the items of an outfit.

    With --store, the items are those of an index, whose images are not read again. With --dataset, the images of all
    items of the category are encoded first.

    \b
    Examples:
      cca complete --model out --dataset me/rooms --items 403.089.03 702.972.34 --category lamp --html board.html
      cca index --model out --dataset me/rooms --split train --id_column id --store rooms.index
      cca complete --store rooms.index --items 403.089.03 702.972.34 --category lamp
    """
    if (store is None) == (dataset is None):
        raise UsageError("give either --store, an index, or --dataset")
    if dataset is not None and model is None:
        raise UsageError("--dataset needs the --model that encodes its images")
    if store is not None:
        options.check_engine(store)
    with stdout_kept_clean():
        from cca_hf.models.loading import load_model
        from cca_hf.models.modeling_outfit import OutfitModel
        from cca_hf.recipes.outfit_search import complete_from_dataset, complete_from_index, write_completed

        name = model or options.model_of_index(store or "")
        loaded = load_model(name, device)
        if not isinstance(loaded, OutfitModel):
            raise ValueError(
                f"{name} is a model of {loaded.display_name}, not of outfits: 'cca train outfits' makes one"
            )
        if store is not None:
            found = complete_from_index(
                store, loaded, items, category=category, category_column=category_column, top=top
            )
        else:
            found = complete_from_dataset(
                dataset or "",
                loaded,
                items,
                category=category,
                id_column=id_column,
                category_column=category_column,
                image_column=image_column,
                top=top,
            )
        page = None if html is None else write_completed(found, html, place=store or dataset or "")
        from cca_hf.evaluation.text_table import format_table
    if as_json:
        rows = [
            {"item": each.item_id, "category": each.category, "distance": each.distance} for each in found.proposals
        ]
        print(printable(json.dumps(rows, indent=2, ensure_ascii=False)))
        return
    table = [[each.item_id, each.category, f"{each.distance:.3f}"] for each in found.proposals]
    print(printable(format_table(["item", "category", "distance"], [table])))
    if page is not None:
        print(f"page: {page}")
