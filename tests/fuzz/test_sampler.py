"""Batches of random label tables: full, without repeated images, with every value, and the same in every run."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from cca_hf.data.sampler import AttributeBatchSampler

LABELS = st.tuples(st.integers(1, 60), st.integers(1, 4)).flatmap(
    lambda shape: arrays(np.int64, shape, elements=st.integers(-1, 2) | st.integers(-1, 50))
)
REFUSED = ("a batch needs two values of", "no attribute has a value with two images", "values_per_batch must be")


@settings(max_examples=300)
@given(
    labels=LABELS,
    batch_size=st.integers(4, 30),
    images_per_value=st.integers(2, 5),
    values_per_batch=st.none() | st.integers(2, 6),
    seed=st.integers(0, 2**32),
    epoch=st.integers(0, 5),
)
def test_any_labels_keep_the_promises(labels, batch_size, images_per_value, values_per_batch, seed, epoch):
    options = {"batch_size": batch_size, "images_per_value": images_per_value, "values_per_batch": values_per_batch}
    try:
        sampler = AttributeBatchSampler(labels, **options, seed=seed)
    except ValueError as error:
        assert str(error).startswith(REFUSED)
        return
    sampler.set_epoch(epoch)
    batches = list(sampler)
    assert len(batches) == len(sampler)
    labelled = (labels >= 0).any(axis=1)
    for batch in batches:
        rows = [key.index for key in batch]
        assert len(set(rows)) == len(rows) == sampler.batch_size == min(batch_size, labelled.sum())
        assert labelled[rows].all()
    for column in labels.T:
        for value in np.unique(column[column >= 0]):
            assert any((column[[key.index for key in batch]] == value).any() for batch in batches)
    again = AttributeBatchSampler(labels, **options, seed=seed)
    again.set_epoch(epoch)
    assert list(again) == batches
