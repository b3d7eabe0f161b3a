"""The attributes of a data set whose author names none: the columns whose values repeat.

An attribute is worth learning if several images share each of its values. Identifiers, names, descriptions and prices
have too many values. The choice is a first guess, and is logged.
"""

import re
from collections import Counter
from collections.abc import Collection

import pyarrow as pa  # type: ignore[import-untyped]
from datasets import DatasetDict, Features, LargeList, List, Value

from .columns import column_places, is_label_feature, several_values
from .values import same_value, value_name

_FEW_VALUES = 10
_IMAGES_OF_A_VALUE = 10  # on average, if there are more values than that
_LONGEST_NAME = 60  # characters of a value, on average
_SHOWN_COLUMNS = 12
# the last word of the name of a column
_IDENTIFIERS = frozenset("id sku ean gtin upc asin isbn uuid guid item number no nr code key index unnamed".split())
# any word of the name of a column of numbers
_QUANTITIES = frozenset("price cost msrp amount stock quantity qty weight".split())
_NUMBER = re.compile(r"-?\d+([.,]\d+)*")
# 19.90, 19,90 EUR, $5
_PRICE = re.compile(r"([$€£¥]|[A-Z]{3}\s)\s*\d+([.,]\d+)*|\d+([.,]\d+)*\s*([$€£¥]|[A-Z]{3})|\d+([.,]\d+)+")


def default_attributes(
    splits: DatasetDict, features: Features, left_out: Collection[str | None]
) -> tuple[list[str], str]:
    """The columns whose values repeat, and a text that names them, and the other columns with the reasons.

    Args:
        features: the columns that are in all splits.
        left_out: columns of another use, such as the images.
    """
    attributes, taken, others = [], [], []
    for name, place in column_places(features).items():
        feature = place.feature(features)
        if name in left_out or place.column in left_out or name.startswith("__") or isinstance(feature, dict):
            continue
        counts: Counter[str] = Counter()
        if is_label_feature(feature):
            for dataset in splits.values():
                counts += _counts(column_places(dataset.features)[name].read(dataset))
        reason = _reason_against(name, feature, counts)
        if reason is None:
            attributes.append(name)
            taken.append(f"{name} ({len(counts)} values)")
        else:
            others.append(f"{name} ({reason})")
    text = f"the columns whose values repeat are used: {', '.join(taken)}"
    if others:
        more = ", ..." if len(others) > _SHOWN_COLUMNS else ""
        text += f"; not used: {', '.join(others[:_SHOWN_COLUMNS])}{more}"
    return attributes, text


def _counts(column: pa.ChunkedArray) -> Counter[str]:
    """Name of a value -> number of images; without the images that are not labelled."""
    counts: Counter[str] = Counter()
    for entry in column.value_counts().to_pylist():
        value = entry["values"]
        if value is None or value != value or same_value(value) == -1 or not str(value).strip():
            continue
        counts[value_name(value)] += entry["counts"]
    return counts


def _reason_against(name: str, feature: object, counts: Counter[str]) -> str | None:
    """Why a column with these values is no attribute; None if it is one."""
    if not is_label_feature(feature):
        return _kind(feature)
    images = counts.total()
    if len(counts) < 2:
        return f"one value, {next(iter(counts))!r}" if counts else "empty"
    words = [word for word in re.split(r"[^a-z]+", re.sub(r"([a-z])([A-Z])", r"\1 \2", name).lower()) if word]
    if words and (words[-1] in _IDENTIFIERS or words[0] == "id"):
        return "called like an identifier"
    if _QUANTITIES.intersection(words) and _most(_NUMBER, counts):
        return "called like a quantity"
    if _most(_PRICE, counts) or (_is_float(feature) and not all(isinstance(same_value(each), int) for each in counts)):
        return "prices or fractions"
    if (cell := several_values(counts)) is not None:
        return f"several values in a cell, such as {cell!r}"
    if sum(map(len, counts)) > _LONGEST_NAME * len(counts):
        return "free text"
    if len(counts) > max(_FEW_VALUES, images // _IMAGES_OF_A_VALUE) or 2 * len(counts) > images:
        return f"{len(counts):,} values for {images:,} images"
    return None


def _most(pattern: re.Pattern[str], texts: Collection[str]) -> bool:
    return 2 * sum(pattern.fullmatch(text.strip()) is not None for text in texts) > len(texts)


def _is_float(feature: object) -> bool:
    return isinstance(feature, Value) and feature.dtype.startswith("float")


def _kind(feature: object) -> str:
    if isinstance(feature, (List, LargeList)):
        return "lists"
    return f"of type {feature.dtype}" if isinstance(feature, Value) else type(feature).__name__
