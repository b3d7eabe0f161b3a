"""Several values of an attribute on one image: the optional columns `<attribute>_all` and `<attribute>_maybe`.

The column of the attribute holds one value for each image. Two more columns hold lists:
- `<attribute>_all`: every value that the image shows (DeepFashion; 46 % of its candidates show several);
- `<attribute>_maybe`: values that the image may show, because the annotators were not sure (the `m` of FashionAI).

Only the evaluation reads them. Lists are read by name (`List(ClassLabel(names=...))` or lists of strings), so they
stay correct if the attribute's values have another order, that of a trained model.
"""

from typing import Literal, TypeAlias

import datasets
import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.compute as pc  # type: ignore[import-untyped]

from .columns import ColumnPlace, encode_labels

ValueSetKind: TypeAlias = Literal["all", "maybe"]


def read_value_sets(
    dataset: datasets.Dataset, split: str, attribute: str, values: list[str], kind: ValueSetKind
) -> np.ndarray | None:
    """(images, values) booleans, a column for each of `values`; None if the data set has no such lists.

    A column of that name without lists has another meaning, and is ignored.

    Raises:
        ValueError: if a list contains anything but values of the attribute.
    """
    column = f"{attribute}_{kind}"
    feature = dataset.features.get(column)
    if not isinstance(feature, (datasets.List, datasets.LargeList)):
        return None
    sets = np.zeros((dataset.num_rows, len(values)), dtype=bool)
    if dataset.num_rows:
        lists = ColumnPlace(column).read(dataset).combine_chunks()
        items = pa.chunked_array([pc.list_flatten(lists)])
        ids = encode_labels(column, {split: items}, {split: feature.feature}, values)[0][split]
        rows = pc.list_parent_indices(lists).to_numpy()
        sets[rows[ids >= 0], ids[ids >= 0]] = True
    return sets
