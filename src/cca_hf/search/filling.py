"""Writes a whole source to a new or existing index, with a progress bar, for `cca index` and `cca embed`."""

from tqdm.auto import tqdm  # type: ignore[import-untyped]

from .index import AttributeIndex
from .schema import IndexSchema, NoIndexError
from .sources import ItemSource


def fill_index(store: str, source: ItemSource, *, only_new: bool = False) -> tuple[int, IndexSchema]:
    """Adds the items of `source`. Items in the index are replaced, or kept if `only_new`.

    Returns:
        The number of items in the index, and its schema.

    Raises:
        ValueError: if the index has other attributes, another width, other columns or another model.
    """
    with _open_or_create(store, source.schema) as index:
        with tqdm(total=len(source), desc="Indexing", unit="item") as progress:
            for item_ids, columns, embed in source.batches():
                stored = index.ids_among(item_ids) if only_new else set()
                rows = [row for row, item in enumerate(item_ids) if item not in stored]
                if rows:
                    ids = [item_ids[row] for row in rows]
                    index.add(ids, embeddings=embed(rows), columns=columns.take(rows))
                progress.update(len(item_ids))
            progress.set_description("Building the index")
            index.optimize()
        return index.count(), index.schema


def _open_or_create(store: str, schema: IndexSchema) -> AttributeIndex:
    try:
        index = AttributeIndex.open(store, schema.checkpoint, writable=True)
    except NoIndexError:
        return AttributeIndex.create_from_schema(store, schema)
    stored = index.schema
    if schema.attributes != stored.attributes or schema.dim != stored.dim:
        problem = f"has {stored.dim} dimensions for {', '.join(stored.attributes)}"
    elif any(stored.columns.get(name) != kind for name, kind in schema.columns.items()):
        known = ", ".join(f"{name} ({kind})" for name, kind in stored.columns.items())
        problem = f"has other columns; choose with --columns among {known or 'none'}"
    else:
        return index
    index.close()
    raise ValueError(f"the index at {store} {problem}")
