"""Loads WebDataset tars: consecutive members with the same key, the name up to its first dot, are a sample.

`datasets` reads the columns off the first five samples of the first tar. It makes a column of every suffix, and fails
on nulls in these samples. Here all samples count, and one image per sample is one column, whatever its suffix.
"""

import json
import logging
import os
import tarfile
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import pyarrow as pa  # type: ignore[import-untyped]
from datasets import Dataset, DatasetDict, Features, Image, NamedSplit, Value
from datasets.packaged_modules.webdataset.webdataset import base_plus_ext

from .image_files import image_suffixes
from .metadata import array_of, text_of

logger = logging.getLogger(__name__)

_IMAGE = "image"
_JSON = ("json", "jsn")
_INTEGERS = ("cls", "cls2", "index", "inx", "id")
_TEXT = ("txt", "text", "transcript")
_KNOWN = (*_JSON, *_INTEGERS, *_TEXT)


class Member(NamedTuple):
    """A member of a tar: the key of its sample, the name of its column, and what it contains."""

    key: str
    column: str  # what follows the key: `jpg`, `seg.png`
    kind: str  # `image`, or its last suffix: `json`
    path: str  # of the tar
    tar: tarfile.TarFile
    info: tarfile.TarInfo

    def read(self) -> bytes:
        file = self.tar.extractfile(self.info)
        return b"" if file is None else file.read()


def load_webdataset(tars: Mapping[str, Sequence[str]]) -> DatasetDict:
    """The splits (name -> paths of tars), with the same columns.

    Raises:
        ValueError: if a tar is cut off, or a member cannot be read; the message names both.
    """
    columns, features = _columns_of([tar for of_split in tars.values() for tar in of_split])
    loaded = DatasetDict()
    for split, of_split in tars.items():
        state = tuple((os.path.getsize(tar), os.stat(tar).st_mtime_ns) for tar in of_split)
        arguments: dict[str, Any] = {"tars": tuple(of_split), "columns": columns, "features": features, "state": state}
        loaded[split] = Dataset.from_generator(_rows, features, gen_kwargs=arguments, split=NamedSplit(split))
    return loaded


def _columns_of(tars: Sequence[str]) -> tuple[dict[str, str], Features]:
    """Name after the key -> column, and the features of the columns. Images are not read."""
    names: dict[str, list[str]] = {}  # kind -> names after the key
    fields: dict[str, dict[str, list[object]]] = {}  # name -> field of its JSON -> values
    several: set[str] = set()  # kinds of which a sample has several members
    unknown: Counter[str] = Counter()
    for sample in _samples(tars):
        kinds = Counter(member.kind for member in sample)
        several.update(kind for kind, count in kinds.items() if count > 1)
        for member in sample:
            if member.kind not in (_IMAGE, *_KNOWN):
                unknown[f".{member.kind}"] += 1
                continue
            if member.column not in names.setdefault(member.kind, []):
                names[member.kind].append(member.column)
            content = None if member.kind == _IMAGE else _content(member)
            if isinstance(content, dict):
                for field, value in content.items():
                    fields.setdefault(member.column, {}).setdefault(field, []).append(value)
    if unknown:
        shown = ", ".join(f"{suffix}: {count:,}" for suffix, count in unknown.most_common(6))
        logger.warning("members of no known kind passed over in %s: %s", os.path.dirname(tars[0]), shown)
    columns: dict[str, str] = {}
    features = Features()
    for kind, of_kind in names.items():
        one = len(of_kind) > 1 and kind not in several
        for name in of_kind:
            columns[name] = kind if one else name
        for column in dict.fromkeys(columns[name] for name in of_kind):
            found = [values for name in of_kind if columns[name] == column for values in [fields.get(name, {})]]
            features[column] = _feature_of(kind, found)
    return columns, Features({**features, "__key__": Value("string"), "__url__": Value("string")})


def _feature_of(kind: str, found: Sequence[Mapping[str, list[object]]]) -> object:
    if kind == _IMAGE:
        return Image()
    if kind in _INTEGERS:
        return Value("int64")
    if kind in _TEXT:
        return Value("string")
    united: dict[str, list[object]] = {}
    for fields in found:
        for field, values in fields.items():
            united.setdefault(field, []).extend(values)
    schema = pa.schema([(field, array_of(values).type) for field, values in united.items()])
    return dict(Features.from_arrow_schema(schema))


def _rows(
    tars: Sequence[str], columns: Mapping[str, str], features: Features, state: object
) -> Iterator[dict[str, object]]:
    """`state`, the sizes and times of the tars, is an argument only for the cache of `datasets`."""
    for sample in _samples(tars):
        first = sample[0]
        row: dict[str, object] = dict.fromkeys(features)
        for member in sample:
            column = columns.get(member.column)
            if column is not None:
                row[column] = _as_declared(_content(member), features[column])
        yield {**row, "__key__": _readable(first.key), "__url__": first.path}


def _as_declared(content: Any, feature: object) -> object:
    if not isinstance(feature, dict):
        return content
    return {
        field: text_of(value) if value is not None and feature[field] == Value("string") else value
        for field, value in content.items()
    }


# ---- Samples and their members ----


def _samples(tars: Sequence[str]) -> Iterator[list[Member]]:
    for path in tars:
        last = ""
        try:
            with tarfile.open(path) as tar:
                for _, group in groupby(_members(path, tar), key=lambda member: member.key):
                    for sample in _split_at_last_dots(list(group)):
                        last = sample[-1].info.name
                        _check_no_duplicates(path, sample)
                        yield sample
        except (tarfile.TarError, EOFError, zlib.error) as error:
            place = f"after the member {last!r}" if last else "at its first member"
            raise ValueError(f"{path} is damaged or cut off {place}: {error}; copy the file again") from error


def _members(path: str, tar: tarfile.TarFile) -> Iterator[Member]:
    suffixes = image_suffixes()
    for info in tar:
        key, column = base_plus_ext(info.name) if info.isfile() else (None, None)
        if key is None or column is None:
            continue
        suffix = column.rsplit(".", 1)[-1].lower()
        yield Member(key, column, _IMAGE if f".{suffix}" in suffixes else suffix, path, tar, info)


def _split_at_last_dots(group: list[Member]) -> list[list[Member]]:
    """The samples of a key, usually one. `IMG.1.jpg`, `IMG.2.jpg` are two, as their names contain dots."""
    counts = Counter(member.kind for member in group)
    if max(counts.values()) == 1 or not all("." in member.column for member in group):
        return [group]
    moved = []
    for member in group:
        middle, _, column = member.column.rpartition(".")
        moved.append(member._replace(key=f"{member.key}.{middle}", column=column))
    return [list(sample) for _, sample in groupby(moved, key=lambda member: member.key)]


def _check_no_duplicates(path: str, sample: Sequence[Member]) -> None:
    names = [member.column for member in sample]
    twice = next((member for member in sample if names.count(member.column) > 1), None)
    if twice is not None:
        raise ValueError(f"{path} contains the member {_readable(twice.info.name)!r} twice in one sample")


def _content(member: Member) -> Any:
    content = member.read()
    if member.kind == _IMAGE:
        return {"bytes": content, "path": _readable(os.path.basename(member.info.name))}
    place = f"{member.path}: the member {_readable(member.info.name)!r}"
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{place} is not encoded in UTF-8 ({error.reason})") from error
    if member.kind in _TEXT:
        return text
    try:
        parsed = json.loads(text) if member.kind in _JSON else int(text)
    except ValueError as error:
        raise ValueError(f"{place} contains no {'JSON' if member.kind in _JSON else 'integer'}: {error}") from error
    if member.kind in _JSON and not isinstance(parsed, dict):
        raise ValueError(f"{place} must be a JSON object in every sample; got {parsed!r:.80}")
    return parsed


def _readable(name: str) -> str:
    """The name with escapes in place of bytes that are not UTF-8."""
    return name.encode(errors="surrogateescape").decode(errors="backslashreplace")
