"""What a model confuses: by plain loops, on disk, and in the batches that are drawn by it."""

import numpy as np
import pytest
import torch
from accelerate import skip_first_batches
from torch.utils.data import DataLoader

from cca_hf.data.hard_negatives import HardNegatives, find_hard_negatives
from cca_hf.data.sampler import AttributeBatchSampler

from .test_sampler import Keys, make_labels, rows_of


def make_embeddings(labels, dim=16, seed=0):
    """Under each attribute, values lie about random directions; (images, attributes, dim), L2-normalised."""
    random = np.random.default_rng(seed)
    centres = random.normal(size=(labels.shape[1], labels.max() + 1, dim))
    embeddings = centres[np.arange(labels.shape[1]), labels] + random.normal(size=(*labels.shape, dim))
    return (embeddings / np.linalg.norm(embeddings, axis=2, keepdims=True)).astype(np.float32)


def find(labels, *, most=6, epoch=3, rows=None, seed=0):
    rows = np.arange(len(labels)) if rows is None else rows
    embeddings = make_embeddings(labels, seed=seed)[rows]
    num_values = [column.max() + 1 for column in labels.T]
    return find_hard_negatives(embeddings, labels[rows], rows, num_values=num_values, most=most, epoch=epoch)


def test_by_plain_loops():
    """Of every second image, so that values without an image, and rows that are not places, are among it."""
    labels = make_labels(120)
    rows = np.arange(1, 120, 2)
    embeddings = make_embeddings(labels).astype(np.float64)
    found = find(labels, rows=rows)
    absent = 0
    for attribute in range(labels.shape[1]):
        of_value = {
            value: [row for row in rows if labels[row, attribute] == value]
            for value in range(labels[:, attribute].max() + 1)
        }
        centroids = {}
        for value, members in of_value.items():
            total = sum((embeddings[row, attribute] for row in members), np.zeros(16))
            if members:
                centroids[value] = total / np.linalg.norm(total)
        for one in of_value:
            for other in of_value:
                likeness = found.values[attribute][one, other]
                if one in centroids and other in centroids:
                    assert abs(likeness - centroids[one] @ centroids[other]) < 1e-6
                else:
                    assert likeness == -np.inf
            if one not in centroids:
                absent += 1
                assert (found.images[attribute][one] == -1).all()
                continue
            others = [row for row in rows if labels[row, attribute] not in (-1, one)]
            others.sort(key=lambda row: -embeddings[row, attribute] @ centroids[one])  # noqa: B023
            expected = (others + [-1] * 6)[:6]
            assert found.images[attribute][one].tolist() == expected
    assert absent > 0


def test_an_attribute_of_one_value_has_none():
    found = find(np.stack([np.zeros(9, dtype=int), np.arange(9) % 3], axis=1))
    assert (found.images[0] == -1).all() and (found.images[1] >= 0).all()


@pytest.mark.parametrize("kept", ["values", "images", "both"])
def test_on_disk(tmp_path, kept):
    assert HardNegatives.load(tmp_path) is None
    labels = np.stack([np.arange(60) % (2 + a) for a in range(11)], axis=1)  # more than ten: not in the order of names
    found = find(labels, epoch=7)
    written = HardNegatives(7, None if kept == "images" else found.values, None if kept == "values" else found.images)
    written.save(tmp_path)
    loaded = HardNegatives.load(tmp_path)
    assert loaded.epoch == 7
    for kind in ("values", "images"):
        before, after = vars(written)[kind], vars(loaded)[kind]
        assert (before is None) == (after is None)
        assert before is None or all(map(np.array_equal, before, after))


def chain(values):
    """Value v is the more like w, the nearer the two numbers are."""
    distance = np.abs(np.arange(values)[:, None] - np.arange(values)).astype(np.float32)
    return 1 - distance / values


def test_a_batch_takes_values_that_are_alike_and_a_round_every_value():
    labels = np.repeat(np.arange(24), 20)[:, None]
    sampler = AttributeBatchSampler(labels, batch_size=16, images_per_value=4)  # 4 values a batch, 6 batches a round

    def spread():
        return np.mean([np.ptp(labels[rows, 0]) for rows in rows_of(sampler)])

    random = spread()
    sampler.hard_negatives = HardNegatives(1, (chain(24),), None)
    drawn = [set(labels[rows, 0].tolist()) for rows in rows_of(sampler)]
    assert all(len(values) == 4 for values in drawn)
    for start in range(0, len(drawn) - 5, 6):
        assert set.union(*drawn[start : start + 6]) == set(range(24))
    # the first of each round finds its nearest three; the last takes what is left
    for start in range(0, len(drawn) - 5, 6):
        assert max(drawn[start]) - min(drawn[start]) <= 6
    assert spread() < random / 2
    assert len(set(map(frozenset, drawn))) > 6  # and rounds differ: each begins somewhere else


def test_places_that_are_left_go_to_images_that_lie_near():
    """Two values are drawn with 4 images each: half of the other 24 places to the 20 that lie near one of them."""
    labels = np.repeat(np.arange(10), 50)[:, None]
    near = np.full((10, 12), -1)
    for value in range(10):
        near[value, :10] = 50 * ((value + 1) % 10) + np.arange(10)  # ten images of the next value
    options = {"batch_size": 32, "images_per_value": 4, "values_per_batch": 2}
    sampler = AttributeBatchSampler(labels, **options)
    plain = rows_of(sampler)
    sampler.hard_negatives = HardNegatives(1, None, (near,))
    drawn = rows_of(sampler)
    assert len(drawn) == len(plain)
    for rows in drawn:
        assert len(set(rows)) == len(rows) == 32
        first, second = labels[rows[0], 0], labels[rows[4], 0]
        allowed = set(near[[first, second]].ravel().tolist()) - {-1} - set(rows[:8])
        assert set(rows[8:20]) <= allowed and len(allowed) >= 12
    seen = np.bincount(np.concatenate(drawn), minlength=500).reshape(10, 50)
    assert seen[:, :10].mean() > 2 * seen[:, 10:].mean()


@pytest.mark.parametrize("seed", range(20))
def test_any_labels_keep_the_promises(seed):
    """As without: full batches, no image twice, every value that has a positive is reached with one."""
    random = np.random.default_rng(seed)
    images, attributes = int(random.integers(12, 150)), int(random.integers(1, 5))
    labels = np.stack(
        [np.minimum(random.geometric(random.uniform(0.05, 0.6), images), 30) for _ in range(attributes)], axis=1
    )
    labels[random.random(labels.shape) < random.uniform(0, 0.5)] = -1
    images_per_value = int(random.integers(2, 4))
    batch_size = int(random.integers(2 * images_per_value, 24))
    sampler = AttributeBatchSampler(
        labels, batch_size=batch_size, images_per_value=images_per_value, values_per_batch=3, seed=seed
    )
    looked_at = np.sort(random.choice(images, images // 2, replace=False))  # values without a centroid among them
    sampler.hard_negatives = find(labels, rows=looked_at, seed=seed)
    batches = rows_of(sampler)
    assert len(batches) == len(sampler)
    for rows in batches:
        assert len(set(rows)) == len(rows) == sampler.batch_size
    for attribute in range(attributes):
        values, counts = np.unique(labels[labels[:, attribute] >= 0, attribute], return_counts=True)
        for value, count in zip(values, counts, strict=True):
            together = max(int((labels[rows, attribute] == value).sum()) for rows in batches)
            assert together >= (min(count, 2) if len(values) > 1 else 0)


def test_an_epoch_is_a_function_of_seed_epoch_and_what_was_found():
    labels = make_labels()

    def epoch(found):
        sampler = AttributeBatchSampler(labels, batch_size=32, images_per_value=4, values_per_batch=4)
        sampler.set_epoch(3)
        sampler.hard_negatives = found
        return list(sampler)

    assert epoch(find(labels)) == epoch(find(labels))
    assert len({str(epoch(found)) for found in (None, find(labels), find(labels, seed=1))}) == 3


def test_resuming_in_the_middle_gives_exactly_the_rest(tmp_path):
    labels = make_labels()
    find(labels).save(tmp_path)
    rest = []
    for done, found in ((0, find(labels)), (5, HardNegatives.load(tmp_path))):
        sampler = AttributeBatchSampler(labels, batch_size=32, images_per_value=4, values_per_batch=4)
        sampler.hard_negatives = found
        loader = DataLoader(Keys(400), batch_sampler=sampler, collate_fn=torch.stack)
        sampler.set_epoch(2)
        rest.append([batch.tolist() for batch in skip_first_batches(loader, done)])
    assert rest[0][5:] == rest[1] != []
