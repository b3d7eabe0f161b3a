"""Samples triplets from labels or measures: (triplets, 3) rows of anchor, far and close, the order of CSN's files.

Images without a label or measure are not sampled.
"""

import numpy as np


def sample_by_value(labels: np.ndarray, number: int, generator: np.random.Generator) -> np.ndarray:
    """The close image has the value of the anchor, the far image another value.

    Args:
        labels: (images,) value ids, -1 = not labelled.
    """
    order = np.argsort(labels, kind="stable")
    order = order[np.searchsorted(labels[order], 0) :]  # labelled images only; images of one value form a run
    values, first, count = np.unique(labels[order], return_index=True, return_counts=True)
    able = np.flatnonzero(np.repeat(count, count) >= 2)
    if len(values) < 2 or not len(able):
        raise ValueError(f"triplets need two values, one of them with two images; there are {len(values)} value(s)")
    anchor = generator.choice(able, size=number)
    run = np.searchsorted(first, anchor, side="right") - 1
    start, size = first[run], count[run]
    # another image of the run: places from the anchor on are shifted by one
    close = start + generator.integers(0, size - 1)
    close += close >= anchor
    # an image outside the run: places from its start on are shifted by its size
    far = generator.integers(0, len(order) - size)
    far += np.where(far >= start, size, 0)
    return order[np.stack([anchor, far, close], axis=1)]


def sample_by_distance(measures: np.ndarray, number: int, generator: np.random.Generator) -> np.ndarray:
    """The close image has a measure nearer to the anchor's than the far image. Ties are not sampled.

    Args:
        measures: (images,), NaN = not measured.
    """
    measured = np.flatnonzero(np.isfinite(measures))
    if len(measured) < 3 or len(np.unique(measures[measured])) < 2:
        raise ValueError(f"triplets need three images of two measures; {len(measured)} image(s) are measured")
    drawn = np.empty((0, 3), dtype=np.int64)
    while len(drawn) < number:
        images = measured[generator.integers(0, len(measured), size=(2 * number, 3))]
        anchor, one, other = images.T
        to_one, to_other = np.abs(measures[one] - measures[anchor]), np.abs(measures[other] - measures[anchor])
        far = np.where(to_one > to_other, one, other)
        close = np.where(to_one > to_other, other, one)
        usable = (to_one != to_other) & (anchor != one) & (anchor != other)
        drawn = np.concatenate([drawn, np.stack([anchor, far, close], axis=1)[usable]])
    return drawn[:number]
