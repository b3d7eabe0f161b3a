"""DCI and the information gaps: by loops on small numbers, and on embeddings that are known."""

import math

import numpy as np
import pytest

from cca_hf.evaluation.entanglement.disentanglement import dci, disentanglement, information_gaps

NAMES = ["colour", "shape", "size"]


def test_dci_by_loops():
    random = np.random.default_rng(0)
    importance = random.random((5, 3))
    importance[2] = 0.0  # a unit that serves nothing has no say
    total = importance.sum()

    def purity(shares: list[float], base: int) -> float:
        return 1 + sum(share * math.log(share, base) for share in shares if share > 0)

    pure = sum(
        row.sum() / total * purity([float(each) / row.sum() for each in row], 3) for row in importance if row.sum()
    )
    whole = [purity([float(each) / column.sum() for each in column], 5) for column in importance.T]
    assert dci(importance) == pytest.approx((pure, sum(whole) / 3), abs=1e-12)


@pytest.mark.parametrize(
    ("importance", "expected"),
    [
        (np.eye(3), (1, 1)),
        (np.ones((3, 3)), (0, 0)),
        (np.repeat(np.eye(3), 4, axis=0), (1, 1 - math.log(4) / math.log(12))),  # four dimensions that say the same
    ],
)
def test_dci_of_plain_cases(importance, expected):
    assert dci(importance) == pytest.approx(expected)


def test_information_gaps_by_hand():
    information = np.array([[0.9, 0.1], [0.5, 0.6], [0.0, 0.2]])
    # factors: 0.9 - 0.5 and 0.6 - 0.2; units: 0.8, 0.1 and 0.2
    assert information_gaps(information) == pytest.approx(((0.4 + 0.4) / 2, (0.8 + 0.1 + 0.2) / 3))


def test_planted(plant):
    planted = plant(600, (3, 3, 4), dim=4)
    apart = disentanglement(planted.disentangled, planted.labels, NAMES)
    mixed = disentanglement(planted.entangled, planted.labels, NAMES)
    assert apart.images == 600
    assert apart.subspaces.disentanglement > 0.9 and apart.subspaces.completeness > 0.9
    assert mixed.subspaces.disentanglement < 0.1 and mixed.subspaces.completeness < 0.1
    assert apart.subspaces.mig > 0.95 and apart.subspaces.mig_sup > 0.95
    assert abs(mixed.subspaces.mig) < 0.02 and abs(mixed.subspaces.mig_sup) < 0.02
    # dimensions of one subspace say the same: no gap between the best two, but each serves one factor
    assert apart.dimensions.mig < 0.35 < apart.dimensions.mig_sup
    assert apart.dimensions.disentanglement > 0.9
    for result in (apart, mixed):
        assert result.dimensions.informativeness == result.subspaces.informativeness > 0.98
        assert "MIG-sup" in result.table() and f"{result.subspaces.mig:.2f}" in result.table()


def test_pictures_without_all_labels_are_left_out(plant):
    planted = plant(300, (3, 3, 3), dim=4, missing=0.1)
    result = disentanglement(planted.disentangled, planted.labels, NAMES)
    assert result.images == (planted.labels >= 0).all(axis=1).sum()
    assert set(result.to_dict()) == {"dimensions", "subspaces", "images"}


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match=r"embeddings must have shape \(images, 3, dim\)"):
        disentanglement(np.zeros((10, 4)), np.zeros((10, 3), dtype=int), NAMES)
    with pytest.raises(ValueError, match="none of the 10 images is labelled with all"):
        disentanglement(np.zeros((10, 3, 4)), np.full((10, 3), -1), NAMES)
    with pytest.raises(ValueError, match="labels must be integers .* got float64"):
        disentanglement(np.zeros((10, 3, 4)), np.full((10, 3), np.nan), NAMES)
    with pytest.raises(ValueError, match="10 of 10 embeddings are not finite"):
        disentanglement(np.full((10, 3, 4), np.nan), np.zeros((10, 3), dtype=int), NAMES)
    with pytest.raises(ValueError, match=r"groups must have shape \(10,\), got \(3,\)"):
        disentanglement(np.zeros((10, 3, 4)), np.zeros((10, 3), dtype=int), NAMES, groups=[0, 1, 2])
