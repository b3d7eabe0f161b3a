"""Changes of values against plain loops, with and without missing labels, and their random samples."""

from itertools import product

import numpy as np
import pytest

from cca_hf.data.value_changes import Changes, draw_targets, enumerate_changes

# colour, sleeve, pattern
LABELS = np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 0, 0], [2, 1, 1], [0, -1, 0], [1, -1, 0]])


def rows_of(changes: Changes) -> list[tuple[int, tuple[int, ...], tuple[bool, ...]]]:
    return [
        (row, tuple(target), tuple(changed))
        for row, target, changed in zip(
            changes.reference.tolist(), changes.target_labels.tolist(), changes.changed.tolist(), strict=True
        )
    ]


def by_loops(labels: np.ndarray, gallery: np.ndarray, num_changes: int) -> list:
    """Every (reference, target labels, changed attributes), one after the other."""
    found = set()
    for row, candidate in product(range(len(labels)), gallery.tolist()):
        own = labels[row].tolist()
        compared = [place for place, label in enumerate(own) if label >= 0]
        if any(candidate[place] < 0 for place in compared):
            continue
        changed = tuple(place in compared and own[place] != candidate[place] for place in range(len(own)))
        if sum(changed) == num_changes:
            target = tuple(label if place in compared else -1 for place, label in enumerate(candidate))
            found.add((row, target, changed))
    return sorted(found)


def test_changes_of_a_few_images():
    changes = enumerate_changes(LABELS)
    first = (True, False, False)
    assert rows_of(changes) == [
        (0, (1, 0, 0), first),
        (1, (0, 0, 0), first),
        (1, (1, 1, 0), (False, True, False)),
        (2, (1, 0, 0), (False, True, False)),
        (3, (1, 0, 0), first),
        (5, (1, -1, 0), first),  # the sleeve is not known: it takes no part
        (6, (0, -1, 0), first),
    ]
    assert changes.num_changes.tolist() == [1] * 7 and changes.compared[5].tolist() == [True, False, True]


@pytest.mark.parametrize("num_changes", [1, 2, 3])
@pytest.mark.parametrize("missing", [0.0, 0.2])
@pytest.mark.parametrize("apart", [False, True])
def test_against_loops(num_changes, missing, apart):
    random = np.random.default_rng(num_changes)
    labels, others = (np.where(random.random((40, 4)) < missing, -1, random.integers(3, size=(40, 4))) for _ in "ab")
    expected = by_loops(labels, others if apart else labels, num_changes)
    changes = enumerate_changes(labels, others if apart else None, num_changes)
    assert rows_of(changes) == expected and len(expected) > 40


def test_a_sample_has_different_changes_that_are_all_equally_likely():
    labels = np.random.default_rng(0).integers(3, size=(30, 4))
    every = rows_of(enumerate_changes(labels, num_changes=2))
    counts = dict.fromkeys(every, 0)
    for seed in range(300):
        sample = rows_of(enumerate_changes(labels, num_changes=2, max_queries=20, seed=seed))
        assert len(set(sample)) == 20 and sample == sorted(sample)
        for each in sample:
            counts[each] += 1
    expected = 300 * 20 / len(every)
    deviation = np.array(list(counts.values())) - expected
    # Poisson: the variance is the mean
    assert abs(deviation).max() < 5 * expected**0.5 and 0.7 < (deviation**2).mean() / expected < 1.3
    again = enumerate_changes(labels, num_changes=2, max_queries=20, seed=7)
    assert rows_of(again) == rows_of(enumerate_changes(labels, num_changes=2, max_queries=20, seed=7))


def test_a_sample_of_more_than_there_are_is_all():
    assert rows_of(enumerate_changes(LABELS, max_queries=50)) == rows_of(enumerate_changes(LABELS))


def test_no_change():
    none = enumerate_changes(np.array([[0, 0], [0, 0]]), max_queries=5)
    assert len(none) == 0 and none.changed.shape == none.target_labels.shape == (0, 2)
    assert len(enumerate_changes(np.empty((0, 2), dtype=int))) == 0


def test_targets_that_are_drawn():
    changes = enumerate_changes(LABELS)
    random = np.random.default_rng(0)
    drawn = np.array([draw_targets(changes, LABELS, random) for _ in range(50)])
    # images 0 and 3 have the same labels; 1 and 2 have the target labels of image 5 too, whose sleeve is not known
    assert [set(column) for column in drawn.T.tolist()] == [{1}, {0, 3}, {2}, {1}, {1}, {1, 2, 6}, {0, 3, 5}]
    assert draw_targets(changes, LABELS[4:5], random).tolist() == [-1] * 7


def test_twenty_thousand_images_with_twelve_attributes():
    values = [16, 17, 19, 14, 10, 15, 2, 11, 16, 7, 9, 15]  # Shopping100k
    random = np.random.default_rng(0)
    kinds = random.integers(values, size=(150, 12))  # so that label vectors are near others
    labels = kinds[random.integers(150, size=20_000)]
    place = random.integers(12, size=20_000)
    labels[np.arange(20_000), place] = random.integers(values, size=(20_000, 12))[np.arange(20_000), place]
    changes = enumerate_changes(labels)
    assert len(changes) > 200_000
    old = labels[changes.reference]
    assert ((old != changes.target_labels) == changes.changed).all() and (changes.num_changes == 1).all()
    targets = draw_targets(changes, labels, random)
    assert (labels[targets] == changes.target_labels).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([0, 1],), r"labels must have shape \(images, attributes\), got \(2,\)"),
        (([[0.5]],), r"labels must be integers \(-1 = not labelled\), got float64"),
        (([[-2]],), "labels must be -1 .* or at least 0, got -2"),
        (([[0, 1]], [[0]]), "labels have 2 attributes, and gallery_labels have 1"),
        (([[0, 1]], None, 3), "num_changes must be an integer from 1 to 2, the attributes; got 3"),
        (([[0, 1]], None, 1, 0), "max_queries must be None or an integer of at least 1, got 0"),
    ],
)
def test_bad_input(arguments, message):
    with pytest.raises(ValueError, match=message):
        enumerate_changes(*arguments)
