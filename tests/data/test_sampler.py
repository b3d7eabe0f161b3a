"""What every batch and every epoch promise, counted on the batches themselves."""

import logging
import time

import numpy as np
import pytest
import torch
from accelerate import skip_first_batches
from torch.utils.data import DataLoader

from cca_hf.data.sampler import AttributeBatchSampler, SampleKey


def make_labels(images=400, seed=0):
    """Four attributes: two values of very different size; a long tail with values of one image; gaps; balanced."""
    random = np.random.default_rng(seed)
    lopsided = np.where(random.random(images) < 0.9, 0, 1)
    tail = np.minimum(random.zipf(1.6, images) - 1, 24)
    gaps = np.where(random.random(images) < 0.6, -1, random.integers(0, 7, images))
    balanced = random.permutation(np.arange(images) % 12)
    return np.stack([lopsided, tail, gaps, balanced], axis=1)


def rows_of(batches):
    return [[key.index for key in batch] for batch in batches]


@pytest.mark.parametrize("batch_size", [8, 32, 50])
@pytest.mark.parametrize("images_per_value", [2, 4])
def test_every_batch_is_full_and_has_no_image_twice(batch_size, images_per_value):
    labels = make_labels()
    sampler = AttributeBatchSampler(labels, batch_size=batch_size, images_per_value=images_per_value)
    batches = list(sampler)
    assert len(batches) == len(sampler) >= 400 / batch_size
    for batch in batches:
        assert len(batch) == len({key.index for key in batch}) == batch_size
        assert all(isinstance(key, SampleKey) and 0 <= key.index < 400 and 0 <= key.seed < 2**63 for key in batch)


@pytest.mark.parametrize("batch_size", [8, 32])
@pytest.mark.parametrize("epoch", [0, 1, 7])
def test_every_value_of_every_attribute_is_reached_with_a_positive(batch_size, epoch):
    labels = make_labels()
    sampler = AttributeBatchSampler(labels, batch_size=batch_size, images_per_value=4)
    sampler.set_epoch(epoch)
    best: dict[tuple[int, int], int] = {}
    for rows in rows_of(sampler):
        for attribute in range(labels.shape[1]):
            for value, count in zip(*np.unique(labels[rows, attribute], return_counts=True), strict=True):
                best[attribute, int(value)] = max(best.get((attribute, int(value)), 0), int(count))
    for attribute in range(labels.shape[1]):
        for value, images in zip(*np.unique(labels[:, attribute], return_counts=True), strict=True):
            if value >= 0:
                assert best[attribute, int(value)] >= min(2, images), (attribute, value)


def test_values_with_one_image_are_dealt_out_evenly():
    images = 300
    labels = np.stack([np.arange(images) % 3, np.where(np.arange(images) < 60, np.arange(images) + 1, 0)], axis=1)
    sampler = AttributeBatchSampler(labels, batch_size=20, images_per_value=2)
    reached = [sum(row < 60 for row in rows) for rows in rows_of(sampler)]
    assert len({row for rows in rows_of(sampler) for row in rows if row < 60}) == 60
    assert max(reached) < 15  # of 20: no batch is filled with them


@pytest.mark.parametrize(("batch_size", "batches", "pairs"), [(8, 50, 2), (4, 100, 1)])
def test_more_single_images_than_places(batch_size, batches, pairs):
    """The epoch grows until each finds a place, a quarter of each batch, and the batches still make pairs."""
    labels = np.concatenate([np.repeat([0, 1], 10), np.arange(2, 102)])[:, None]
    drawn = rows_of(AttributeBatchSampler(labels, batch_size=batch_size, images_per_value=2))
    assert len(drawn) == batches
    assert {row for rows in drawn for row in rows} == set(range(120))
    for rows in drawn:
        assert (np.bincount(labels[rows, 0]) >= 2).sum() >= pairs


def test_a_batch_is_p_values_of_k_images_of_its_attribute():
    """One attribute of 12 values, 30 images each: 8 values with 4 images in each batch, and nothing else."""
    labels = np.repeat(np.arange(12), 30)[:, None]
    for rows in rows_of(AttributeBatchSampler(labels, batch_size=32, images_per_value=4)):
        counts = np.bincount(labels[rows, 0], minlength=12)
        assert sorted(counts.tolist()) == [0] * 4 + [4] * 8


def test_fewer_values_than_p_share_the_places():
    labels = np.repeat(np.arange(5), 40)[:, None]
    for rows in rows_of(AttributeBatchSampler(labels, batch_size=32, images_per_value=4)):
        assert sorted(np.bincount(labels[rows, 0]).tolist()) == [6, 6, 6, 7, 7]


def test_one_value_with_pairs_leaves_half_for_its_negatives():
    labels = np.stack([[0] * 10 + list(range(1, 91)), [0] * 100], axis=1)
    sampler = AttributeBatchSampler(labels, batch_size=8, images_per_value=2)
    drawn = np.array([(labels[rows, 0] == 0).sum() for rows in rows_of(sampler)])
    assert drawn.min() >= 2 and drawn.mean() < 4.5


def test_small_values_give_all_they_have_and_the_rest_is_filled():
    labels = np.array([0] * 3 + [1] * 50)[:, None]
    for rows in rows_of(AttributeBatchSampler(labels, batch_size=16, images_per_value=4)):
        assert np.bincount(labels[rows, 0]).tolist() == [3, 13]


def test_images_without_a_label_take_no_part_in_the_attribute_drawn():
    """Each batch holds images of its attribute alone, as there are enough of them, and none without a label."""
    labels = np.full((200, 2), -1)
    labels[:80, 0] = np.arange(80) % 8
    labels[80:160, 1] = np.arange(80) % 8
    sampler = AttributeBatchSampler(labels, batch_size=16, images_per_value=2)
    assert max(row for rows in rows_of(sampler) for row in rows) < 160  # without any label: never
    for rows in rows_of(sampler):
        assert len({int(row >= 80) for row in rows}) == 1  # each batch is of one attribute


def test_attributes_get_equal_shares():
    labels = np.full((400, 4), -1)
    for attribute in range(4):
        labels[100 * attribute : 100 * (attribute + 1), attribute] = np.arange(100) % 5
    drawn = [rows[0] // 100 for rows in rows_of(AttributeBatchSampler(labels, batch_size=10, images_per_value=2))]
    assert np.bincount(drawn, minlength=4).tolist() == [10, 10, 10, 10]
    assert drawn != sorted(drawn)


def test_no_image_is_drawn_again_before_the_others_of_its_value():
    """40 images a value, each value drawn with 4 of them 25 times: every image 2 or 3 times in an epoch."""
    labels = np.full((600, 2), -1)
    labels[:240, 0] = np.repeat(np.arange(6), 40)
    labels[240:, 1] = 0  # one value alone: no batch is built for it, but the epoch has 600 / 12 batches
    batches = rows_of(AttributeBatchSampler(labels, batch_size=12, images_per_value=4))
    assert len(batches) == 50
    seen = np.bincount(np.concatenate(batches), minlength=240)
    assert set(seen.tolist()) == {2, 3}
    for value in range(6):
        drawn = [row for rows in batches for row in rows if row // 40 == value]
        for start in range(0, len(drawn) - 40, 40):
            assert len(set(drawn[start : start + 40])) == 40
    # and in another company the second time
    groups = [frozenset(row for row in rows if row // 40 == value) for rows in batches for value in range(6)]
    groups = [group for group in groups if group]
    assert len(set(groups)) == len(groups)


def test_fillers_reach_every_labelled_image():
    """Attribute 0 is labelled on 4 images; the other places of its batches go to the others, in rounds."""
    labels = np.full((40, 2), -1)
    labels[:4, 0] = [0, 0, 1, 1]
    labels[4:, 1] = 0
    batches = rows_of(AttributeBatchSampler(labels, batch_size=16, images_per_value=2))
    assert len(batches) == 3 and all(set(range(4)) <= set(rows) for rows in batches)
    assert np.bincount(np.concatenate(batches), minlength=40)[4:].tolist() == [1] * 36


def test_an_epoch_is_a_function_of_seed_and_epoch():
    labels = make_labels()

    def epoch(seed, number):
        sampler = AttributeBatchSampler(labels, batch_size=32, images_per_value=4, seed=seed)
        sampler.set_epoch(number)
        return list(sampler)

    assert epoch(0, 3) == epoch(0, 3)
    sampler = AttributeBatchSampler(labels, batch_size=32, images_per_value=4)
    sampler.set_epoch(5)
    list(sampler)
    sampler.set_epoch(3)
    assert list(sampler) == list(sampler) == epoch(0, 3)  # whatever came before
    others = [epoch(0, 4), epoch(1, 3), epoch(3, 0)]
    assert all(rows_of(other) != rows_of(epoch(0, 3)) for other in others)
    assert len({key.seed for batch in epoch(0, 3) for key in batch}) == sum(map(len, epoch(0, 3)))


def test_resuming_in_the_middle_gives_exactly_the_rest():
    sampler = AttributeBatchSampler(make_labels(), batch_size=32, images_per_value=4)
    loader = DataLoader(Keys(400), batch_sampler=sampler, collate_fn=torch.stack)
    sampler.set_epoch(2)
    whole = [batch.tolist() for batch in loader]
    for done in (0, 1, 5, len(whole) - 1):
        assert [batch.tolist() for batch in skip_first_batches(loader, done)] == whole[done:]


def test_fewer_images_than_a_batch(caplog):
    labels = np.array([[0], [0], [1], [1], [1], [-1]])
    with caplog.at_level(logging.WARNING):
        sampler = AttributeBatchSampler(labels, batch_size=64, images_per_value=2)
    assert "batch_size 64 is more than the 5 labelled images: using 5" in caplog.text
    assert sampler.batch_size == 5 and [sorted(rows) for rows in rows_of(sampler)] == [[0, 1, 2, 3, 4]]


def test_the_smallest_set_there_is():
    sampler = AttributeBatchSampler(np.array([[0], [0], [1], [1]]), batch_size=4, images_per_value=2)
    assert [sorted(rows) for rows in rows_of(sampler)] == [[0, 1, 2, 3]]


@pytest.mark.parametrize("seed", range(20))
def test_any_labels_keep_the_promises(seed):
    """Random shapes and gaps: full batches, no image twice, every value that has a positive is reached with one."""
    random = np.random.default_rng(seed)
    images, attributes = int(random.integers(12, 150)), int(random.integers(1, 5))
    labels = np.stack(
        [np.minimum(random.geometric(random.uniform(0.05, 0.6), images), 30) for _ in range(attributes)], axis=1
    )
    labels[random.random(labels.shape) < random.uniform(0, 0.5)] = -1
    images_per_value = int(random.integers(2, 4))
    batch_size = int(random.integers(2 * images_per_value, 24))
    sampler = AttributeBatchSampler(labels, batch_size=batch_size, images_per_value=images_per_value, seed=seed)
    batches = rows_of(sampler)
    assert len(batches) == len(sampler)
    for rows in batches:
        assert len(set(rows)) == len(rows) == sampler.batch_size
    for attribute in range(attributes):
        values, counts = np.unique(labels[labels[:, attribute] >= 0, attribute], return_counts=True)
        for value, count in zip(values, counts, strict=True):
            together = max(int((labels[rows, attribute] == value).sum()) for rows in batches)
            assert together >= (min(count, 2) if len(values) > 1 else 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 6}, "a batch needs two values of 4 images each; got batch_size 6"),
        ({"images_per_value": 1}, "images_per_value must be at least 2"),
        ({"seed": -1}, "seed must not be negative"),
        ({"labels": np.zeros((20, 2))}, "labels must be integers"),
        ({"labels": np.zeros(20, dtype=int)}, "labels must be integers"),
        ({"labels": np.zeros((20, 2), dtype=int)}, "no attribute has a value with two images and another"),
        ({"labels": np.arange(20)[:, None]}, "no attribute has a value with two images and another"),
    ],
)
def test_what_is_refused(options, message):
    options = {"labels": make_labels(), "batch_size": 32, "images_per_value": 4, **options}
    with pytest.raises(ValueError, match=message):
        AttributeBatchSampler(options.pop("labels"), **options)


def test_an_epoch_of_many_images_takes_seconds():
    """A million images take about 4 s of one core."""
    random = np.random.default_rng(0)
    sizes = (75, 30, 6, 44, 5, 4, 7, 1000)
    labels = np.stack([np.minimum(random.zipf(1.3, 200_000) - 1, size - 1) for size in sizes], axis=1)
    start = time.process_time()
    sampler = AttributeBatchSampler(labels, batch_size=64, images_per_value=4)
    drawn = sum(len(batch) for batch in sampler)
    assert drawn == 64 * len(sampler) >= 200_000
    assert time.process_time() - start < 10


class Keys(torch.utils.data.Dataset):
    """Gives the key back that it was asked for."""

    def __init__(self, length):
        self.length = length

    def __len__(self):
        return self.length

    def __getitem__(self, key):
        return torch.tensor(key)
