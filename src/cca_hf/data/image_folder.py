"""Loads a folder of images: with metadata that labels them, or with one folder for each value.

The layouts and the splits are those of `imagefolder` of `datasets`. In addition, links are followed, HEIC is read,
one metadata file may label the images of several splits, and what is passed over is counted.
"""

import logging
import os
import posixpath
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import pyarrow as pa  # type: ignore[import-untyped]
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, List, NamedSplit
from datasets.data_files import NON_WORDS_CHARS, SPLIT_KEYWORDS

from .image_files import NO_HEIF, FoundFiles, find_files, passed_over_text, warn_of_passed_over
from .metadata import is_file_name, read_metadata

logger = logging.getLogger(__name__)

_IMAGE = "image"
_LABEL = "label"
_TRAIN = "train"
_OUTSIDE = "outside of the folders of the splits"
_UNLISTED = "that no metadata file lists"
# A folder with as many files of one of these kinds as images, or more, is a data set of this kind.
_DATA_FILES = {".parquet", ".arrow", ".tar", ".lance", ".zip", ".jsonl"}
_BESIDE_IMAGES = {".csv", ".tsv", ".json"}  # there may be one for each image
_ROWS_AT_ONCE = 1000
_SHOWN_TABLES = 3
_SEPARATOR = f"[{NON_WORDS_CHARS.replace('-', '')}-]"
SplitRule: TypeAlias = Callable[[str], str | None]  # path of an image -> its split; None for an image of no split


def find_image_folder(folder: Path) -> FoundFiles | None:
    """The files of a folder of images; None if the folder is a data set of another kind."""
    found = find_files(folder)
    images = max(len(found.images) + len(found.passed_over.get(NO_HEIF, ())), int(bool(found.metadata)))
    data_files = max(found.suffixes[suffix] for suffix in _DATA_FILES)
    beside = max(found.suffixes[suffix] for suffix in _BESIDE_IMAGES)
    return found if images > data_files and images >= beside else None


def load_image_folder(folder: Path, found: FoundFiles) -> DatasetDict:
    """The splits of a folder of images.

    Raises:
        ValueError: if a metadata file cannot be read, names an image outside of the folder, or leaves out a split.
    """
    if not (found.images or found.metadata):
        raise ValueError(f"no image in {folder} can be read: {passed_over_text(found)}")
    split_of = _split_rule(found)
    if found.metadata:
        tables = _labels_of_metadata(
            folder, found, split_of, read_metadata([folder / path for path in found.metadata])
        )
    elif (table := _table_beside(folder, found)) is not None:
        tables = _labels_of_metadata(folder, found, split_of, [table])
    else:
        tables = _labels_of_folders(folder, found, split_of)
    if not tables:
        raise ValueError(f"the metadata files in {folder} contain no rows")
    warn_of_passed_over(folder, found)
    names = [str(split) for split in SPLIT_KEYWORDS if str(split) in tables]
    return DatasetDict({split: _dataset(folder, tables[split], split) for split in names})


def _dataset(folder: Path, table: pa.Table, split: str) -> Dataset:
    """The rows with images in place of paths. `datasets` caches it, as it does for `imagefolder`."""
    features = Features.from_arrow_schema(table.schema)
    renamed, images = dict[str, object](), []
    for name, feature in features.items():
        if _holds_paths(table, name):
            several = isinstance(feature, List)
            column = name.removesuffix("file_names" if several else "file_name").removesuffix("_")
            column = column or (f"{_IMAGE}s" if several else _IMAGE)
            images.append(column)
            renamed[column] = List(Image()) if several else Image()
        else:
            renamed[name] = feature
    table = table.rename_columns(list(renamed)).combine_chunks()
    # a tuple, since datasets would call the function once for each entry of a list
    arguments: dict[str, Any] = {"table": table, "images": tuple(images), "folder": str(folder)}
    return Dataset.from_generator(_rows, Features(renamed), gen_kwargs=arguments, split=NamedSplit(split))


def _rows(table: pa.Table, images: Sequence[str], folder: str) -> Iterator[dict[str, object]]:
    for batch in table.to_batches(_ROWS_AT_ONCE):
        for row in batch.to_pylist():
            for column in images:
                row[column] = _absolute(folder, row[column])
            yield row


def _absolute(folder: str, path: Any) -> Any:
    if isinstance(path, list):
        return [_absolute(folder, one) for one in path]
    return None if path is None else os.path.join(folder, path)


# ---- Splits ----


def _split_rule(found: FoundFiles) -> SplitRule:
    """Splits by the names of folders, or else by the names of files, or else one split."""
    if any(_split_of_folders(path) for path in (*found.images, *found.metadata)):
        return _split_of_folders
    named = sum(split_of_file(path) is not None for path in found.images)
    return split_of_file if named and 2 * named >= len(found.images) else lambda path: _TRAIN


def _split_of_folders(path: str) -> str | None:
    for name in path.split("/")[:-1]:
        split = _split_called(name, end=f"({_SEPARATOR}.*)?")
        if split is not None:
            return split
    return None


def split_of_file(path: str) -> str | None:
    """The split that a file is named after, such as `test` of `shoes-test.csv`."""
    return _split_called(posixpath.basename(path), end=f"{_SEPARATOR}.*")


def _split_called(name: str, end: str) -> str | None:
    """The split whose keyword is a word of the name: `train`, `my_train`, `test-2`."""
    for split, keywords in SPLIT_KEYWORDS.items():
        if re.fullmatch(f"(.*{_SEPARATOR})?({'|'.join(keywords)}){end}", name):
            return str(split)
    return None


# ---- Labels ----


def _labels_of_folders(folder: Path, found: FoundFiles, split_of: SplitRule) -> dict[str, pa.Table]:
    """Split -> paths and, if all images are at one depth in several folders, the names of their folders as labels."""
    paths: dict[str, list[str]] = {}
    for path in found.images:
        split = split_of(path)
        if split is None:
            found.pass_over(_OUTSIDE, path)
        else:
            paths.setdefault(split, []).append(path)
    used = [path for of_split in paths.values() for path in of_split]
    names = sorted({_folder_name(folder, path) for path in used})
    labelled = len(names) > 1 and len({path.count("/") for path in used}) == 1
    tables = {}
    for split, of_split in paths.items():
        table = pa.table({"file_name": pa.array(of_split, pa.string())})
        if labelled:
            labels = pa.array([names.index(_folder_name(folder, path)) for path in of_split], pa.int64())
            schema = Features({_LABEL: ClassLabel(names=names)}).arrow_schema
            table = table.append_column(schema.field(_LABEL), labels).replace_schema_metadata(schema.metadata)
        tables[split] = table
    return tables


def _folder_name(folder: Path, path: str) -> str:
    return posixpath.basename(posixpath.dirname(path)) or folder.name


def _table_beside(folder: Path, found: FoundFiles) -> pa.Table | None:
    """The only table in the folder, whatever its name, if it lists images of the folder. It becomes the metadata.

    Its paths are relative to the table. A name without a folder may also stand for the only image of that name.
    """
    if len(found.tables) > 1:
        logger.warning(
            "none of the tables in %s is used (%s): call the one that labels the images metadata.csv, or give it as "
            "the data set",
            folder,
            ", ".join(found.tables[:_SHOWN_TABLES]) + (", ..." if len(found.tables) > _SHOWN_TABLES else ""),
        )
    if len(found.tables) != 1:
        return None
    (name,) = found.tables
    try:
        (table,) = read_metadata([folder / name])
    except (ValueError, ImportError) as error:
        logger.warning("%s does not label the images beside it: %s", folder / name, error)
        return None
    paths = _first_paths(table)
    if not paths:
        logger.warning("%s does not label the images beside it: it has no rows", folder / name)
        return None
    places = _places_of(folder, paths, found.images)
    if 2 * sum(place is not None for place in places) < sum(path is not None for path in paths):
        logger.warning(
            "%s does not label the images beside it: most of its paths, such as %r, are no images in this folder",
            folder / name,
            next(path for path, place in zip(paths, places, strict=True) if path is not None and place is None),
        )
        return None
    column = next(column for column in table.column_names if _holds_paths(table, column))
    if not pa.types.is_list(table.schema.field(column).type):
        known = [path if place is None else place for path, place in zip(paths, places, strict=True)]
        table = table.set_column(table.column_names.index(column), column, pa.array(known, pa.string()))
    found.metadata = [name]
    found.suffixes -= Counter([posixpath.splitext(name)[1].lower()])
    return table


def _places_of(folder: Path, paths: Sequence[str | None], images: Sequence[str]) -> list[str | None]:
    """For each path the image in the folder that it means; None if there is none.

    The path is relative to the folder, or absolute. The name of an image in a subfolder is enough, if no other image
    has this name.
    """
    places = dict[str, str | None]()
    for image in images:
        name = posixpath.basename(image)
        places[name] = None if name in places else image
    places.update({image: image for image in images})
    found = list[str | None]()
    for path in paths:
        plain = "" if path is None else posixpath.normpath(path.strip().replace("\\", "/"))
        found.append(places.get(plain.removeprefix(f"{folder}/")))
    return found


def _labels_of_metadata(
    folder: Path, found: FoundFiles, split_of: SplitRule, tables: Sequence[pa.Table]
) -> dict[str, pa.Table]:
    """Split -> the rows of the metadata files, with paths of images relative to `folder`.

    The rows of a file in the folder of a split belong to this split; other rows belong to the split of their image.
    """
    parts: dict[str, list[tuple[Path, pa.Table]]] = {}
    listed: set[str] = set()
    files = [folder / path for path in found.metadata]
    for place, file, table in zip(found.metadata, files, tables, strict=True):
        table = _with_paths_from(folder, file, table)
        paths = _first_paths(table)
        listed.update(path for path in paths if path is not None)
        own = _split_of_folders(place) if split_of is _split_of_folders else None
        splits = [own if own is not None else split_of(path or "") for path in paths]
        found.pass_over(_OUTSIDE, *(path or str(file) for path, split in zip(paths, splits, strict=True) if not split))
        for split in dict.fromkeys(splits):
            if split is not None:
                parts.setdefault(split, []).append((file, table.filter([split == other for other in splits])))
    unlisted = [path for path in found.images if path not in listed]
    found.pass_over(_UNLISTED, *unlisted)
    for path in unlisted:
        split = split_of(path)
        if split is not None and split not in parts:
            raise ValueError(
                f"{folder}: the metadata files list no image of the split {split!r}, such as {path}; add "
                f"{posixpath.join(posixpath.dirname(path), 'metadata.csv')}, or remove these images"
            )
    return {split: _joined(of_split) for split, of_split in parts.items()}


def _joined(parts: Sequence[tuple[Path, pa.Table]]) -> pa.Table:
    (first, table), *others = parts
    features = Features.from_arrow_schema(table.schema)
    for file, other in others:
        for name, feature in Features.from_arrow_schema(other.schema).items():
            known = features.setdefault(name, feature)
            if known != feature and isinstance(known, ClassLabel):
                raise ValueError(f"the column {name!r} has other values in {file} than in {first}")
    return pa.concat_tables([table for _, table in parts], promote_options="default")


def _holds_paths(table: pa.Table, name: str) -> bool:
    kind = table.schema.field(name).type
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return name.endswith("file_names") and is_file_name(name)
    texts = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    return texts and name.endswith("file_name") and is_file_name(name)


def _first_paths(table: pa.Table) -> list[str | None]:
    column = next(name for name in table.column_names if _holds_paths(table, name))
    return [(path[0] if path else None) if isinstance(path, list) else path for path in table[column].to_pylist()]


def _with_paths_from(folder: Path, file: Path, table: pa.Table) -> pa.Table:
    """The table with paths relative to `folder` instead of to the file."""
    start = file.parent.relative_to(folder).as_posix()

    def moved(path: Any) -> Any:
        if isinstance(path, list):
            return [moved(one) for one in path]
        if not path:
            return None
        joined = posixpath.normpath(posixpath.join(start, path.replace("\\", "/")))
        if "://" in path or posixpath.isabs(joined) or joined.split("/")[0] == "..":
            raise ValueError(f"{file}: {path!r} is no path inside of the data set; write it relative to this file")
        return joined

    for place, name in enumerate(table.column_names):
        if _holds_paths(table, name):
            kind = table.schema.field(name).type
            moved_paths = pa.array([moved(path) for path in table[name].to_pylist()], kind)
            table = table.set_column(place, name, moved_paths)
    return table
