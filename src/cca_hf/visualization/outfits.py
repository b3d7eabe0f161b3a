"""Outfits as boards: the given items, the blank, the proposals, and the right answer in green where it is known."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cca_hf.data.outfits import OutfitDataset
from cca_hf.evaluation.outfits import Distance
from cca_hf.models.images import ImageInput
from cca_hf.models.whole_files import write_text

from .page import render


@dataclass(frozen=True)
class Tile:
    """An item on a board."""

    image: ImageInput
    name: str  # said of the image, such as its id
    caption: str  # the line below it
    right: bool = False  # whether it is the item that completed the outfit


@dataclass(frozen=True)
class Board:
    """An outfit with a blank, and the proposals for it, the best first."""

    name: str
    given: Sequence[Tile]
    proposals: Sequence[Tile]
    category: str | None = None  # of the blank
    note: str = ""  # a line beside the title of the proposals
    answer: bool = False  # whether the right item is known


def boards_of_questions(
    data: OutfitDataset, split: str, distance: Distance, *, count: int = 6, top: int = 10, seed: int = 0
) -> list[Board]:
    """Random fill-in-the-blank questions of a split, with the nearest items of the category of the right one.

    The candidates are those of recall in `evaluate_outfits`.

    Args:
        count: number of questions; each is about another outfit, if there are enough.
        top: number of proposals.

    Raises:
        ValueError: for an unknown split, or one without questions.
    """
    questions = [question for of_kind in data.questions_of(split).values() for question in of_kind]
    if not questions:
        raise ValueError(f"the split {split!r} has no fill-in-the-blank questions")
    order = np.random.default_rng(seed).permutation(len(questions)).tolist()
    whole = [frozenset((*question.items, question.choices[question.answer])) for question in questions]
    firsts = {whole[place]: place for place in reversed(order)}  # one question for each outfit
    chosen = [place for place in order if firsts[whole[place]] == place][:count]
    images, candidates = data.items["image"], data.item_rows(split)
    boards = []
    for place in chosen:
        question = questions[place]
        given = data.rows(question.items)
        (answer,) = data.rows([question.choices[question.answer]]).tolist()
        category = data.category_ids[answer]
        pool = candidates[(data.category_ids[candidates] == category) & ~np.isin(candidates, given)]
        distances = np.asarray(distance(given, pool))
        ranked = pool[np.argsort(distances, kind="stable")].tolist()
        tiles = [Tile(images[row], data.ids[row], _caption(data, row)) for row in given.tolist()]
        proposals = [
            Tile(images[row], data.ids[row], str(rank), right=row == answer)
            for rank, row in enumerate(ranked[:top], start=1)
        ]
        name = data.categories[category]
        note = f"the right item is in place {ranked.index(answer) + 1} of {len(ranked):,} of the category {name}"
        boards.append(Board(f"Outfit {len(boards) + 1}", tiles, proposals, name, note, answer=True))
    return boards


def _caption(data: OutfitDataset, row: int) -> str:
    return data.categories[data.category_ids[row]]


def write_boards(
    boards: Sequence[Board],
    path: str | Path,
    *,
    title: str = "What completes the outfit",
    facts: Mapping[str, str] = {},
) -> Path:
    """Writes a page with the boards, and returns its path. It needs no other file.

    Args:
        facts: what the page says below its title, by name.

    Raises:
        UnreadableImageError: if an image cannot be read; the message names it.
    """
    return write_text(render("outfit_boards.html", boards=boards, title=title, facts=facts), path)
