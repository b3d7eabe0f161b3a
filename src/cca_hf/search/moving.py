"""From one engine to the other, batch by batch; a copy that was interrupted is gone on with."""

from os import PathLike, fspath

from tqdm.auto import tqdm  # type: ignore[import-untyped]

from .conditions import AnyOf
from .schema import ITEM_ID
from .store import NoIndexError, VectorStore
from .stores import Settings, create_store, open_store

_ITEMS_AT_ONCE = 2048


def copy_index(
    source: str | PathLike[str],
    target: str | PathLike[str],
    *,
    source_settings: Settings | None = None,
    target_settings: Settings | None = None,
    show_progress: bool = True,
) -> int:
    """Copies an index to another place, of the same or the other engine; the source stays as it is.

    Until the copy is whole, the target says that it is not, and `AttributeIndex.open` refuses it. Called again after
    an interruption, it writes what is missing.

    Returns:
        The number of items in the target.

    Raises:
        NoIndexError: if there is no index to copy.
        FileExistsError: if the target is an index that is not an unfinished copy of this source as it is now.
        IndexLockedError: if another process writes to either.
        RuntimeError: if the source was written to meanwhile.
    """
    giver = open_store(fspath(source), source_settings, writable=True)
    try:
        if giver.note:
            raise ValueError(f"the index at {giver.location} is not whole: {giver.note}")
        taker = _open_target(giver, fspath(target), target_settings)
        try:
            with tqdm(total=giver.count(None), desc="Copying", unit="item", disable=not show_progress) as progress:
                for table in giver.scan(None, list(giver.schema.columns), giver.schema.attributes, _ITEMS_AT_ONCE):
                    there = AnyOf(ITEM_ID, tuple(table.column(ITEM_ID).to_pylist()))
                    done = {item for found in taker.scan(there, (), ()) for item in found.column(ITEM_ID).to_pylist()}
                    missing = [row for row, item in enumerate(there.values) if item not in done]
                    if missing:
                        taker.upsert(table.take(missing))
                    progress.update(len(table))
            copied, wanted = taker.count(None), giver.count(None)
            if copied != wanted:
                raise RuntimeError(
                    f"{giver.location} has {wanted} items and {taker.location} {copied}: the source was written to "
                    "while it was copied; delete the target and copy again"
                )
            taker.optimize()
            taker.set_note("")
            return copied
        finally:
            taker.close()
    finally:
        giver.close()


def _open_target(giver: VectorStore, target: str, settings: Settings | None) -> VectorStore:
    note = f"copying {giver.location}{giver.version} into it was not finished; do it again"
    try:
        taker = open_store(target, settings, writable=True)
    except NoIndexError:
        taker = create_store(target, giver.schema, settings)
    try:
        begun = taker.note == note or (not taker.note and not taker.count(None))
        if not begun or taker.schema != giver.schema:
            raise FileExistsError(
                f"{target} is an index already, and no unfinished copy of {giver.location} as it is now; give another "
                "place, or delete it"
            )
        taker.set_note(note)
    except BaseException:
        taker.close()
        raise
    return taker
