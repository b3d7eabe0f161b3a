"""Copies an index from one engine or location to another, batch by batch. An interrupted copy can be resumed."""

from contextlib import closing
from os import PathLike, fspath

from tqdm.auto import tqdm  # type: ignore[import-untyped]

from .queries import ids_among
from .schema import ITEM_ID, NoIndexError
from .store import Settings, VectorStore, create_store, open_store

_ITEMS_AT_ONCE = 2048


def copy_index(
    source: str | PathLike[str],
    target: str | PathLike[str],
    *,
    source_settings: Settings | None = None,
    target_settings: Settings | None = None,
    show_progress: bool = True,
) -> int:
    """Copies an index to another location, with the same engine or the other. The source is not changed.

    Until the copy is complete, `AttributeIndex.open` refuses the target. Call again after an interruption to copy the
    remaining items. Returns the number of items in the target.

    Raises:
        NoIndexError: if the source is no index.
        FileExistsError: if the target is an index, but no unfinished copy of the source in its present state.
        IndexLockedError: if another process writes to the source or the target.
        RuntimeError: if the source was changed during the copy.
    """
    with closing(open_store(fspath(source), source_settings, writable=True)) as original:
        if original.note:
            raise ValueError(f"the index at {original.location} is not complete: {original.note}")
        with closing(_open_target(original, fspath(target), target_settings)) as copy:
            with tqdm(total=original.count(None), desc="Copying", unit="item", disable=not show_progress) as progress:
                attributes = original.schema.attributes
                for table in original.scan(None, list(original.schema.columns), attributes, _ITEMS_AT_ONCE):
                    items = table.column(ITEM_ID).to_pylist()
                    done = ids_among(copy, items)
                    missing = [row for row, item in enumerate(items) if item not in done]
                    if missing:
                        copy.upsert(table.take(missing))
                    progress.update(len(table))
            copied, expected = copy.count(None), original.count(None)
            if copied != expected:
                raise RuntimeError(
                    f"{original.location} has {expected} items and {copy.location} {copied}: the source was changed "
                    "during the copy; delete the target and copy again"
                )
            copy.optimize()
            copy.set_note("")
            return copied


def _open_target(original: VectorStore, target: str, settings: Settings | None) -> VectorStore:
    note = f"copying {original.location}{original.version} into it was not finished; do it again"
    try:
        copy = open_store(target, settings, writable=True)
    except NoIndexError:
        copy = create_store(target, original.schema, settings)
    try:
        begun = copy.note == note or (not copy.note and not copy.count(None))
        if not begun or copy.schema != original.schema:
            raise FileExistsError(
                f"{target} is an index already, but no unfinished copy of {original.location} in its present state; "
                "choose another location, or delete it"
            )
        copy.set_note(note)
    except BaseException:
        copy.close()
        raise
    return copy
