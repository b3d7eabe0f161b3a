"""Embeddings of any length are stored and searched as unit vectors."""

import numpy as np
import pytest

from cca_hf.search.queries import targets_of
from cca_hf.search.schema import item_table, vectors_of

from .conftest import ATTRIBUTES


@pytest.mark.parametrize("power", [120, 65, -75, -100])
def test_only_the_direction_counts(few, power):
    schema, long = few.schema, few.embeddings * np.float32(2.0**power)  # the squares do not fit into float32
    assert np.isfinite(long).all() and long.any(axis=2).all()
    table = item_table(schema, few.item_ids, long, few.columns)
    targets = targets_of(schema, long, ATTRIBUTES, is_mixture=False)
    for place, name in enumerate(ATTRIBUTES):
        expected = pytest.approx(few.embeddings[:, place], rel=1e-6, abs=1e-7)
        stored = table.column(schema.vector_column(name)).combine_chunks().flatten().to_numpy()
        assert stored.reshape(40, -1) == expected and stored.dtype == np.float32
        assert vectors_of(table, schema.vector_column(name)) == expected
        assert targets[name] == expected and targets[name].dtype == np.float32
