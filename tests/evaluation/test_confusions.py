"""Which values are taken for which, against a plain loop over all pictures."""

from collections import Counter

import numpy as np
import pytest

from cca_hf.evaluation.retrieval.embeddings import Gallery, nearest_confusions

ATTRIBUTES = {"colour": ["red", "green", "blue"], "shape": ["round", "square"]}


@pytest.fixture
def pictures():
    random = np.random.default_rng(0)
    embeddings = random.standard_normal((60, 2, 4)).astype(np.float32)
    embeddings /= np.linalg.norm(embeddings, axis=-1, keepdims=True)
    labels = np.stack([random.integers(-1, 3, 60), random.integers(0, 2, 60)], axis=1)
    groups = random.integers(-1, 20, 60)
    return embeddings, labels, groups


def by_loop(asked, answering, column, itself):
    """(value, taken for) -> pictures"""
    found = Counter()
    for row, (x, label, group) in enumerate(zip(*asked, strict=True)):
        best, taken = -2.0, None
        for other, (y, theirs, their_group) in enumerate(zip(*answering, strict=True)):
            near_copy = group == their_group and group != -1
            if theirs[column] < 0 or near_copy or (itself and other == row):
                continue
            if float(x[column] @ y[column]) > best:
                best, taken = float(x[column] @ y[column]), theirs[column]
        if label[column] >= 0 and taken is not None and taken != label[column]:
            found[(label[column], taken)] += 1
    return found


@pytest.mark.parametrize("itself", [True, False])
def test_against_a_loop(pictures, itself):
    asked = pictures if itself else tuple(part[:25] for part in pictures)
    answering = pictures if itself else tuple(part[25:] for part in pictures)
    gallery = None if itself else Gallery(*answering)
    found = nearest_confusions(asked[0], asked[1], ATTRIBUTES, groups=asked[2], gallery=gallery, most=10)
    for column, (name, values) in enumerate(ATTRIBUTES.items()):
        expected = by_loop(asked, answering, column, itself)
        assert len(found[name]) == len(expected) > 0
        for each in found[name]:
            pair = (values.index(each.value), values.index(each.taken_for))
            assert each.queries == (asked[1][:, column] == pair[0]).sum()
            assert each.share * each.queries == pytest.approx(expected[pair])
        counts = [each.share * each.queries for each in found[name]]
        assert counts == sorted(counts, reverse=True)


def test_an_attribute_without_labels_confuses_nothing(pictures):
    embeddings, labels, _ = pictures
    labels[:, 1] = -1
    assert nearest_confusions(embeddings, labels, ATTRIBUTES)["shape"] == []
    assert len(nearest_confusions(embeddings, labels, ATTRIBUTES, most=2)["colour"]) == 2
