"""Batches with references and images that differ from them in one attribute or two."""

import numpy as np
import pytest

from cca_hf.data.change_sampler import ChangeBatchSampler


def draw_labels(images: int = 300, missing: float = 0.0) -> np.ndarray:
    random = np.random.default_rng(0)
    labels = np.stack([random.integers(count, size=images) for count in (3, 2, 4)], axis=1)
    labels[random.random(labels.shape) < missing] = -1
    return labels


def rows_of(batch) -> np.ndarray:
    return np.array([key.index for key in batch])


def differences(labels: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """(pairs,) the number of labels in which the images 2k and 2k + 1 differ."""
    return (labels[rows[::2]] != labels[rows[1::2]]).sum(1)


@pytest.mark.parametrize("missing", [0.0, 0.2])
def test_half_of_a_batch_are_pairs_that_differ_in_one_attribute_or_two(missing):
    labels = draw_labels(missing=missing)
    sampler = ChangeBatchSampler(labels, batch_size=34, seed=1)
    assert sampler.batch_size == 32 and len(sampler) == 10
    batches = [rows_of(batch) for batch in sampler]
    assert [len(batch) for batch in batches] == [32] * 10
    found = np.concatenate([differences(labels, batch[:16]) for batch in batches])
    if not missing:
        assert set(found) == {1, 2} and (found == 2).mean() == 0.25
    for batch in batches:
        known = (labels[batch[:16:2]] >= 0) & (labels[batch[1:16:2]] >= 0)
        changed = (labels[batch[:16:2]] != labels[batch[1:16:2]]) & (labels[batch[:16:2]] >= 0)
        assert (changed <= known).all() and np.isin(changed.sum(1), (1, 2)).all()
        first, twins = batch[:16], batch[16:]
        assert (labels[twins] == labels[first]).all(1).mean() > 0.9 and (twins != first).all()


def test_an_epoch_is_a_function_of_seed_and_epoch():
    labels = draw_labels()
    sampler, other = (ChangeBatchSampler(labels, batch_size=32, seed=5) for _ in range(2))
    assert list(sampler) == list(sampler) == list(other)
    sampler.set_epoch(1)
    assert list(sampler) != list(other)
    other.set_epoch(1)
    assert list(sampler) == list(other)
    assert list(sampler) != list(ChangeBatchSampler(labels, batch_size=32, seed=6))


def test_images_without_twin_or_target_are_drawn_too():
    """The last image differs from all others in both attributes: it is no reference, and comes as a random image."""
    labels = np.array([[0, 0], [0, 1], [1, 0], [1, 1], [2, 2]])
    sampler = ChangeBatchSampler(labels, batch_size=4)
    drawn = []
    for epoch in range(40):
        sampler.set_epoch(epoch)
        for batch in sampler:
            rows = rows_of(batch)
            assert differences(labels, rows[:2])[0] in (1, 2) and 4 not in rows[:2]
            drawn += rows[2:].tolist()
    assert set(drawn) == {0, 1, 2, 3, 4}


@pytest.mark.parametrize(
    ("labels", "size", "message"),
    [
        (
            [[0, 0], [1, 1]],
            4,
            "no two training images differ in exactly one attribute, so no change of a value can be",
        ),
        ([[0, 0], [0, 1]], 3, "a batch needs at least 4 images; got batch_size 3"),
    ],
)
def test_what_cannot_be_drawn_is_an_error(labels, size, message):
    with pytest.raises(ValueError, match=message):
        ChangeBatchSampler(np.array(labels), batch_size=size)


def test_one_attribute_has_no_second_change():
    labels = np.array([[0], [1], [0], [1]])
    for batch in ChangeBatchSampler(labels, batch_size=4):
        assert differences(labels, rows_of(batch)[:2])[0] == 1
