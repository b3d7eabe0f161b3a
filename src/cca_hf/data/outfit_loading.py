"""`load_outfits`: reads items and outfits from the forms in which a user has them; see docs/outfits.md.

A folder of outfits has this form, which `cca data prepare polyvore` writes:

    train.json, validation.json, test.json    lists of {"outfit_id": "a7", "items": ["12", "9"]}; or tables
    fill_in_the_blank/test.json               [{"question": ["12"], "answer": "9", "wrong_same_category": ["3", "8"]}]
    compatibility/test.json                   [{"items": ["12", "9"], "compatible": true}]
"""

import json
import logging
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import pandas
import pyarrow as pa  # type: ignore[import-untyped]
from datasets import ClassLabel, Dataset, DatasetDict, concatenate_datasets

from .columns import ColumnPlace, check_names, encode_labels
from .coverage import Coverage, leave_out_missing, with_images_of
from .image_column import IMAGE_COLUMN, find_image_column, with_undecoded_images
from .image_files import TABLE_SUFFIXES
from .image_folder import split_of_file
from .metadata import columns_of_frame, columns_of_rows, read_tables, shown_columns, table_of
from .outfit_questions import make_compatibility, make_questions
from .outfits import (
    CATEGORY_COLUMN,
    ID_COLUMN,
    LabelledOutfit,
    Outfit,
    OutfitDataset,
    Question,
    unknown_item_message,
)
from .sources import Source, load_source
from .split_names import usual_split_name
from .values import value_name

logger = logging.getLogger(__name__)

OutfitSource: TypeAlias = (
    str | PathLike[str] | pandas.DataFrame | Sequence[Mapping[str, Any]] | Mapping[str, Sequence[Sequence[str]]]
)
QUESTIONS_FOLDER, COMPATIBILITY_FOLDER = "fill_in_the_blank", "compatibility"
OUTFIT_COLUMN, ITEM_COLUMN, ITEMS_COLUMN, SPLIT_COLUMN = "outfit_id", "item_id", "items", "split"
_WRONG = "wrong_"  # the prefix of the kinds of wrong choices
_SHARE = 0.1  # of the outfits, for validation and for test


class _Listed(NamedTuple):
    """Outfits of one file or object, by their names."""

    place: str
    outfits: dict[str, Outfit]


def load_outfits(
    items: Source,
    outfits: OutfitSource,
    *,
    id_column: str = ID_COLUMN,
    category_column: str = CATEGORY_COLUMN,
    attributes: Sequence[str] = (),
    image_column: str | None = None,
    image_root: str | PathLike[str] | None = None,
    on_unreadable: Literal["error", "skip"] = "error",
    seed: int = 0,
) -> OutfitDataset:
    """Loads items, the outfits that they form, and the questions about them.

    Items without an image or a category leave their outfits, and questions about them are left out; `coverage` of the
    result counts the images. Outfits that have fewer than two items are left out.

    Args:
        items: any source of `load_attribute_dataset`; all its splits together.
        outfits: a table (CSV, TSV, Excel, JSON lines, parquet, a DataFrame, a list of dicts) with the columns
            `outfit_id` and `item_id`, a row for each item, or `items`, a row for each outfit, and optionally `split`;
            a JSON file with a list of outfits or with such lists by split; a mapping split -> lists of ids; or a
            folder with one of these files for each split, and optionally with questions. Outfits without splits are
            divided at random: a tenth for validation and a tenth for test.
        id_column, category_column: columns of the items.
        attributes: columns of the items with further labels.
        seed: of the random splits, and of the questions and labelled outfits of the splits that have none.

    Raises:
        ValueError: for a missing column, an id that is given twice, an outfit of an unknown item (names the file, the
            outfit and the closest id), or a file that is not complete.
        FileNotFoundError: if a source does not exist.
    """
    splits = load_source(
        items,
        None,
        None,
        image_column=image_column,
        reads_images=image_root is None,
        on_unreadable=on_unreadable,
    )
    rows, coverage, known = _items(splits, id_column, category_column, attributes, image_column, image_root)
    names = {name: rows.features[name].names for name in attributes}
    data = OutfitDataset(rows, {}, attributes=names, coverage=coverage)
    folder = _folder_of(outfits)
    listed = _by_split(outfits, seed)
    there = {item for item, category in zip(data.ids, data.category_ids.tolist(), strict=True) if category >= 0}
    data = replace(data, outfits={split: _complete(part, known, there) for split, part in listed.items()})
    kinds = {split: _questions(folder, split, known, there) for split in listed}
    labelled = {split: _labelled(folder, split, known, there) for split in listed}
    for split in listed:
        if split != "train":
            kinds[split] = kinds[split] or make_questions(data, split, seed=seed)
            labelled[split] = labelled[split] or make_compatibility(data, split, seed=seed)
    return replace(
        data,
        questions={split: found for split, found in kinds.items() if found},
        compatibility={split: found for split, found in labelled.items() if found},
    )


# ---- Items ----


def load_items(
    items: Source,
    *,
    id_column: str = ID_COLUMN,
    category_column: str = CATEGORY_COLUMN,
    image_column: str | None = None,
) -> OutfitDataset:
    """The items alone, as candidates of a completion; see `load_outfits`."""
    splits = load_source(items, None, None, image_column=image_column)
    rows, coverage, _ = _items(splits, id_column, category_column, (), image_column, None)
    return OutfitDataset(rows, {}, coverage=coverage)


def _items(
    splits: DatasetDict,
    id_column: str,
    category_column: str,
    attributes: Sequence[str],
    image_column: str | None,
    image_root: str | PathLike[str] | None,
) -> tuple[Dataset, Coverage | None, set[str]]:
    """The items that have an image, their coverage, and the ids of all items."""
    rows = concatenate_datasets(list(splits.values())) if len(splits) > 1 else next(iter(splits.values()))
    check_names("column", [id_column, category_column, *attributes], rows.column_names, "the items: ")
    together = DatasetDict({"items": rows})
    image_column = find_image_column(together, image_column)
    if image_root is not None:
        together = with_images_of(together, image_column, image_root)
    rows = with_undecoded_images(together["items"], image_column)
    for given, wanted in ((image_column, IMAGE_COLUMN), (id_column, ID_COLUMN), (category_column, CATEGORY_COLUMN)):
        if given != wanted and wanted in rows.column_names:
            raise ValueError(f"the items have a column {wanted!r} beside {given!r}; rename or remove it")
    ids = [value_name(item) for item in ColumnPlace(id_column).read(rows).to_pylist()]
    _check_ids(ids)
    labels = {}
    for name in (category_column, *attributes):
        column, feature = ColumnPlace(name).read(rows), rows.features[name]
        labels[name] = encode_labels(name, {"items": column}, {"items": feature})
    rows = rows.remove_columns([id_column, *labels]).rename_columns(
        {image_column: IMAGE_COLUMN} if image_column != IMAGE_COLUMN else {}
    )
    rows = rows.add_column(ID_COLUMN, ids)
    for name, (codes, values) in labels.items():
        name = CATEGORY_COLUMN if name == category_column else name
        rows = rows.add_column(name, codes["items"], feature=ClassLabel(names=values))
    present, coverage = leave_out_missing(DatasetDict({"items": rows}), IMAGE_COLUMN)
    return present["items"], coverage.get("items"), set(ids)


def _check_ids(ids: Sequence[str]) -> None:
    first: dict[str, int] = {}
    for row, item in enumerate(ids):
        if item in ("None", ""):
            raise ValueError(f"the items: row {row} has no id")
        if item in first:
            raise ValueError(f"the items: the id {item!r} is in the rows {first[item]} and {row}")
        first[item] = row


# ---- Outfits ----


def _folder_of(outfits: OutfitSource) -> Path | None:
    if isinstance(outfits, str | PathLike) and (folder := Path(outfits).expanduser()).is_dir():
        return folder
    return None


def _by_split(source: OutfitSource, seed: int) -> dict[str, _Listed]:
    folder = _folder_of(source)
    if folder is not None:
        return _of_folder(folder)
    if isinstance(source, str | PathLike):
        file = Path(source).expanduser()
        if not file.is_file():
            raise FileNotFoundError(f"there is no file or folder {str(file)!r} with outfits")
        place, content = str(file), _read(file)
    else:
        place, content = "the outfits", source
    if isinstance(content, pandas.DataFrame):
        content = table_of(columns_of_frame(content))
    elif _are_objects(content):
        content = table_of(columns_of_rows(content))
    if isinstance(content, Mapping):
        return {usual_split_name(split): _Listed(place, _of_json(rows, place)) for split, rows in content.items()}
    if isinstance(content, pa.Table) and SPLIT_COLUMN in content.column_names:
        parts = content.column(SPLIT_COLUMN).to_pylist()
        return {
            usual_split_name(str(split)): _Listed(place, _of_table(_part(content, parts, split), place))
            for split in dict.fromkeys(parts)
        }
    found = _of_table(content, place) if isinstance(content, pa.Table) else _of_json(content, place)
    return {split: _Listed(place, part) for split, part in _divided(found, seed).items()}


def _of_folder(folder: Path) -> dict[str, _Listed]:
    """The files whose names are those of splits, in the folder or in its `data`."""
    suffixes = (*TABLE_SUFFIXES, ".json")
    files = [file for place in (folder, folder / "data") if place.is_dir() for file in sorted(place.iterdir())]
    splits: dict[str, _Listed] = {}
    for file in files:
        split = split_of_file(file.name)
        if file.suffix.lower() not in suffixes or split is None:
            continue
        content = _read(file)
        found = _of_table(content, str(file)) if isinstance(content, pa.Table) else _of_json(content, str(file))
        before = splits.get(split, _Listed(str(file), {})).outfits
        splits[split] = _Listed(str(file), before | found)
    if not splits:
        raise FileNotFoundError(
            f"{folder} contains no outfits: give it a file for each split, such as train.json ({', '.join(suffixes)})"
        )
    order = ("train", "validation", "test")
    return dict(sorted(splits.items(), key=lambda pair: order.index(pair[0]) if pair[0] in order else len(order)))


def _read(file: Path) -> Any:
    """A table, or the content of a JSON file.

    Raises:
        ValueError: if the file has another format, or cannot be read.
    """
    if file.suffix.lower() == ".json":
        return read_json(file)
    if file.suffix.lower() not in TABLE_SUFFIXES:
        raise ValueError(f"{file} is neither a table ({', '.join(TABLE_SUFFIXES)}) nor JSON")
    (table,) = read_tables([file])
    return table


def read_json(file: Path) -> Any:
    """The content of a JSON file.

    Raises:
        ValueError: if the file is not complete; names the file and the place.
    """
    try:
        return json.loads(file.read_text(encoding="utf-8-sig"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is not complete JSON: {error}") from error


def _part(table: pa.Table, parts: Sequence[object], split: object) -> pa.Table:
    return table.filter(pa.array([part == split for part in parts]))


def _of_table(table: pa.Table, place: str) -> dict[str, Outfit]:
    """`outfit_id` and `item_id`, a row for each item; or `items`, a row for each outfit."""
    names = table.column_names
    if ITEMS_COLUMN in names:
        ids = table.column(OUTFIT_COLUMN).to_pylist() if OUTFIT_COLUMN in names else range(table.num_rows)
        return _named(zip(ids, table.column(ITEMS_COLUMN).to_pylist(), strict=True), place)
    if OUTFIT_COLUMN not in names or ITEM_COLUMN not in names:
        raise ValueError(
            f"{place}: outfits need the columns {OUTFIT_COLUMN!r} and {ITEM_COLUMN!r}, a row for each item, or "
            f"{ITEMS_COLUMN!r}, a list for each outfit; the columns are {shown_columns(names)}"
        )
    grouped: dict[str, list[str]] = {}
    pairs = zip(table.column(OUTFIT_COLUMN).to_pylist(), table.column(ITEM_COLUMN).to_pylist(), strict=True)
    for row, (outfit, item) in enumerate(pairs):
        if outfit is None or item is None:
            raise ValueError(f"{place}, row {row}: {OUTFIT_COLUMN!r} or {ITEM_COLUMN!r} is empty")
        grouped.setdefault(value_name(outfit), []).append(value_name(item))
    return _named(grouped.items(), place)


def _of_json(content: Any, place: str) -> dict[str, Outfit]:
    """A list of lists of ids, or of objects as in a table."""
    if not isinstance(content, Sequence) or isinstance(content, str):
        raise ValueError(f"{place}: expected a list of outfits, got {content!r:.80}")
    if _are_objects(content):
        return _of_table(table_of(columns_of_rows(content)), place)
    return _named(enumerate(content), place)


def _are_objects(content: Any) -> bool:
    return isinstance(content, Sequence) and len(content) > 0 and all(isinstance(row, Mapping) for row in content)


def _named(outfits: Iterable[tuple[object, object]], place: str) -> dict[str, Outfit]:
    named = {}
    for name, items in outfits:
        if not isinstance(items, Sequence) or isinstance(items, str):
            raise ValueError(f"{place}, outfit {name}: expected a list of ids, got {items!r:.80}")
        named[value_name(name)] = tuple(dict.fromkeys(map(value_name, items)))
    return named


def _divided(outfits: dict[str, Outfit], seed: int) -> dict[str, dict[str, Outfit]]:
    count = round(_SHARE * len(outfits))
    if count == 0:
        raise ValueError(
            f"{len(outfits)} outfit(s) cannot be divided into training, validation and test; give the splits"
        )
    names = np.random.default_rng(seed).permutation(list(outfits)).tolist()
    parts = {"train": names[2 * count :], "validation": names[:count], "test": names[count : 2 * count]}
    chosen = {split: set(part) for split, part in parts.items()}
    return {split: {name: outfits[name] for name in outfits if name in part} for split, part in chosen.items()}


def _complete(listed: _Listed, known: set[str], there: set[str]) -> list[Outfit]:
    """The outfits with the items that are `there`; those of fewer than two items are left out."""
    complete = []
    for name, outfit in listed.outfits.items():
        _check_known(outfit, known, f"{listed.place}, outfit {name}")
        kept = tuple(item for item in outfit if item in there)
        if len(kept) > 1:
            complete.append(kept)
    if len(complete) < len(listed.outfits):
        text = "%s: left out %d of %d outfits, which have fewer than two items with an image and a category"
        logger.warning(text, listed.place, len(listed.outfits) - len(complete), len(listed.outfits))
    if not complete:
        raise ValueError(f"{listed.place}: no outfit has two items")
    return complete


def _check_known(items: Iterable[str], known: set[str], place: str) -> None:
    for item in items:
        if item not in known:
            raise ValueError(f"{place}: {unknown_item_message(item, known)}")


# ---- Questions ----


def _questions(folder: Path | None, split: str, known: set[str], there: Container[str]) -> dict[str, list[Question]]:
    """Kind of the wrong choices -> questions, of the file of the split; only those about items that are `there`."""
    kinds: dict[str, list[Question]] = {}
    for place, row in _entries(folder, QUESTIONS_FOLDER, split):
        for kind in (name for name in row if name.startswith(_WRONG) and row[name]):
            items, choices = _ids(row, "question", place), (*_ids(row, "answer", place), *_ids(row, kind, place))
            _check_known((*items, *choices), known, place)
            if len(set(choices)) < len(choices):
                raise ValueError(f"{place}: a choice is given twice")
            if all(item in there for item in (*items, *choices)):
                kinds.setdefault(kind.removeprefix(_WRONG), []).append(Question(items, choices, answer=0))
    return kinds


def _labelled(folder: Path | None, split: str, known: set[str], there: Container[str]) -> list[LabelledOutfit]:
    labelled = []
    for place, row in _entries(folder, COMPATIBILITY_FOLDER, split):
        items, label = _ids(row, ITEMS_COLUMN, place), row.get("compatible")
        if label not in (0, 1):
            raise ValueError(f"{place}: 'compatible' must be true or false; got {label!r}")
        _check_known(items, known, place)
        if len(items) > 1 and all(item in there for item in items):
            labelled.append(LabelledOutfit(items, bool(label)))
    return labelled


def _entries(folder: Path | None, name: str, split: str) -> Iterable[tuple[str, Mapping[str, Any]]]:
    """The objects of `<name>/<split>.json`, with their places."""
    place = None if folder is None else folder / name
    if place is None or not place.is_dir():
        return
    for file in sorted(place.glob("*.json")):
        if split_of_file(file.name) != split:
            continue
        content = read_json(file)
        if not isinstance(content, list):
            raise ValueError(f"{file}: expected a list, got {content!r:.80}")
        for number, row in enumerate(content):
            if not isinstance(row, Mapping):
                raise ValueError(f"{file}, entry {number}: expected an object, got {row!r:.80}")
            yield f"{file}, entry {number}", row


def _ids(row: Mapping[str, Any], name: str, place: str) -> tuple[str, ...]:
    found = row.get(name)
    if found is None:
        raise ValueError(f"{place}: {name!r} is missing")
    return tuple(map(value_name, found)) if isinstance(found, list) else (value_name(found),)
