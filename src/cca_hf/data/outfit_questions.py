"""Makes fill-in-the-blank questions and incompatible outfits from the outfits of a split, as Polyvore Outfits does."""

import numpy as np

from .outfits import LabelledOutfit, OutfitDataset, Question

SAME_CATEGORY, RANDOM = "same_category", "random"


def make_questions(data: OutfitDataset, split: str, *, choices: int = 4, seed: int = 0) -> dict[str, list[Question]]:
    """One question for each outfit and kind: a random item is left out, and is to be found among wrong choices.

    The wrong choices are items of other outfits of the split: of the same category ("same_category"), or any
    ("random"). An outfit whose blank has too few of them has no question of that kind.

    Args:
        choices: the right one and the wrong ones together.

    Returns:
        kind -> questions.
    """
    random = np.random.default_rng(seed)
    candidates = data.item_rows(split)
    pools = _pools(data, candidates)
    made: dict[str, list[Question]] = {SAME_CATEGORY: [], RANDOM: []}
    for outfit in data.split_outfits(split):
        rows = data.rows(outfit)
        blank = int(random.integers(len(rows)))
        for kind, pool in ((SAME_CATEGORY, pools[data.category_ids[rows[blank]]]), (RANDOM, candidates)):
            others = np.setdiff1d(pool, rows)
            if len(others) >= choices - 1:
                wrong = random.choice(others, choices - 1, replace=False).tolist()
                given = tuple(item for place, item in enumerate(outfit) if place != blank)
                made[kind].append(Question(given, (outfit[blank], *(data.ids[row] for row in wrong)), answer=0))
    return {kind: questions for kind, questions in made.items() if questions}


def make_compatibility(data: OutfitDataset, split: str, *, seed: int = 0) -> list[LabelledOutfit]:
    """Every outfit of the split, and the outfit with all items replaced by random ones of their categories.

    An item whose category has no other item in the split stays. An outfit of such items only has no counterpart.
    """
    random = np.random.default_rng(seed)
    pools = _pools(data, data.item_rows(split))
    made = []
    for outfit in data.split_outfits(split):
        made.append(LabelledOutfit(tuple(outfit), compatible=True))
        rows = data.rows(outfit)
        replaced: list[int] = []
        for row in rows.tolist():
            others = np.setdiff1d(pools[data.category_ids[row]], [*rows, *replaced])
            replaced.append(int(random.choice(others)) if len(others) else row)
        if replaced != rows.tolist():
            made.append(LabelledOutfit(tuple(data.ids[row] for row in replaced), compatible=False))
    return made


def _pools(data: OutfitDataset, candidates: np.ndarray) -> dict[int, np.ndarray]:
    """Category -> the candidates of it."""
    categories = data.category_ids[candidates]
    return {int(category): candidates[categories == category] for category in np.unique(categories)}
