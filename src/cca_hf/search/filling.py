"""A whole source into an index, new or there already, with a progress bar: what `cca index` and `cca embed` do."""

from tqdm.auto import tqdm  # type: ignore[import-untyped]

from .index import AttributeIndex
from .schema import IndexSchema
from .sources import ItemSource
from .store import NoIndexError


def fill_index(store: str, source: ItemSource, *, only_new: bool = False) -> tuple[int, IndexSchema]:
    """Items that are there already are written over, or left alone if `only_new`.

    Returns:
        How many items the index then holds, and in which form.

    Raises:
        ValueError: if the index that is there has other attributes, dimensions, columns, or is of another model.
    """
    with _open_or_create(store, source.schema) as opened:
        _fill(opened, source, only_new=only_new)
        return opened.count(), opened.schema


def _open_or_create(store: str, schema: IndexSchema) -> AttributeIndex:
    try:
        opened = AttributeIndex.open(store, schema.checkpoint, writable=True)
    except NoIndexError:
        return AttributeIndex.create_from_schema(store, schema)
    there = opened.schema
    if schema.attributes != there.attributes or schema.dim != there.dim:
        problem = f"holds {there.dim} dimensions under {', '.join(there.attributes)}"
    elif any(there.columns.get(name) != kind for name, kind in schema.columns.items()):
        known = ", ".join(f"{name} ({kind})" for name, kind in there.columns.items())
        problem = f"holds other columns; choose with --columns among those it has: {known or 'none'}"
    else:
        return opened
    opened.close()
    raise ValueError(f"the index at {store} {problem}")


def _fill(opened: AttributeIndex, source: ItemSource, *, only_new: bool) -> None:
    with tqdm(total=len(source), desc="Indexing", unit="item") as progress:
        for item_ids, columns, embed in source.batches():
            there = opened.ids_among(item_ids) if only_new else set()
            rows = [row for row, item in enumerate(item_ids) if item not in there]
            if rows:
                ids = [item_ids[row] for row in rows]
                opened.add(ids, embeddings=embed(rows), columns=columns.take(rows))
            progress.update(len(item_ids))
        progress.set_description("Building the index")
        opened.optimize()
