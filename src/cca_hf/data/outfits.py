"""`OutfitDataset`: items with images and categories, and the outfits that they form."""

import difflib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from datasets import Dataset

from .columns import ColumnPlace, integers, missing_message
from .coverage import Coverage
from .split_names import same_split

ID_COLUMN = "id"
CATEGORY_COLUMN = "category"

Outfit = tuple[str, ...]  # the ids of its items


def unknown_item_message(item: str, known: Collection[str]) -> str:
    """The text of an error for an unknown id, with the closest one."""
    close = difflib.get_close_matches(item, known, n=1)
    return f"no item {item!r}" + (f"; did you mean {close[0]!r}?" if close else f" among {len(known):,} items")


@dataclass(frozen=True)
class Question:
    """A fill-in-the-blank question: which of the choices completes the items?"""

    items: Outfit
    choices: tuple[str, ...]
    answer: int  # the place of the right item among the choices


@dataclass(frozen=True)
class LabelledOutfit:
    """Items that were put together by a person, or at random."""

    items: Outfit
    compatible: bool


@dataclass(frozen=True, repr=False)
class OutfitDataset:
    """Items, the outfits that they form in named splits, and the questions about them.

    Args:
        items: one row per item of all splits: `id` (string), `image` (an undecoded `datasets.Image`), `category` (a
            `ClassLabel`, -1: not known), and further columns of the source.
        outfits: split -> outfits, each of two items or more.
        questions: split -> kind of the wrong choices, such as "same_category" -> questions.
        compatibility: split -> outfits with a label.
        attributes: attribute -> names of its values: the `ClassLabel` columns of the items that the user named.
        coverage: number of items with an image, and listed; None if no image is missing.
    """

    items: Dataset
    outfits: Mapping[str, Sequence[Outfit]]
    questions: Mapping[str, Mapping[str, Sequence[Question]]] = field(default_factory=dict)
    compatibility: Mapping[str, Sequence[LabelledOutfit]] = field(default_factory=dict)
    attributes: Mapping[str, list[str]] = field(default_factory=dict)
    coverage: Coverage | None = None

    @property
    def categories(self) -> list[str]:
        """The names of the categories, in the order of their ids."""
        return self.items.features[CATEGORY_COLUMN].names

    @cached_property
    def category_ids(self) -> np.ndarray:
        """(items,) int64 id of the category of each item; -1: not known. Items of outfits have a category."""
        return integers(ColumnPlace(CATEGORY_COLUMN).read(self.items))

    @cached_property
    def ids(self) -> list[str]:
        """The id of each item, in the order of the rows."""
        return ColumnPlace(ID_COLUMN).read(self.items).to_pylist()

    def rows(self, ids: Sequence[str]) -> np.ndarray:
        """(ids,) int64 the rows of these items in `items`.

        Raises:
            ValueError: for an unknown item; the message has the closest id.
        """
        for item in ids:
            if item not in self._row_of:
                raise ValueError(unknown_item_message(item, self._row_of))
        return np.array([self._row_of[item] for item in ids], dtype=np.int64)

    def category_id(self, category: str) -> int:
        """
        Raises:
            ValueError: for an unknown category; the message has the closest name.
        """
        if category not in self.categories:
            raise ValueError(missing_message("category", [category], self.categories))
        return self.categories.index(category)

    def split_outfits(self, split: str) -> Sequence[Outfit]:
        """The outfits of a split; `valid`, `val` and `dev` are other names of `validation`.

        Raises:
            ValueError: for an unknown split; the message has the closest name.
        """
        return self.outfits[self._split(split)]

    def questions_of(self, split: str) -> Mapping[str, Sequence[Question]]:
        """Kind of the wrong choices -> questions of a split; empty without questions; see `split_outfits`."""
        return self.questions.get(self._split(split), {})

    def compatibility_of(self, split: str) -> Sequence[LabelledOutfit]:
        """The outfits with labels of a split; empty without them; see `split_outfits`."""
        return self.compatibility.get(self._split(split), [])

    def item_rows(self, split: str) -> np.ndarray:
        """(items,) int64 the sorted rows of the items in the outfits of a split: its candidates and its negatives."""
        return self.rows(sorted({item for outfit in self.split_outfits(split) for item in outfit}, key=self._place))

    def __repr__(self) -> str:
        lines = [f"OutfitDataset: {self.items.num_rows:,} items in {len(self.categories):,} categories"]
        for split, outfits in self.outfits.items():
            parts = [f"{len(outfits):,} outfits"]
            kinds = self.questions.get(split, {})
            parts += [f"{len(questions):,} questions ({kind})" for kind, questions in kinds.items()]
            if split in self.compatibility:
                parts.append(f"{len(self.compatibility[split]):,} labelled outfits")
            lines.append(f"  {split}: {', '.join(parts)}")
        return "\n".join(lines)

    def _split(self, split: str) -> str:
        """The name by which `outfits` has this split."""
        found = same_split(split, self.outfits)
        if found not in self.outfits:
            raise ValueError(missing_message("split", [split], self.outfits))
        return found

    @cached_property
    def _row_of(self) -> dict[str, int]:
        return {item: row for row, item in enumerate(self.ids)}

    def _place(self, item: str) -> int:
        return self._row_of[item]
