"""Changed images and what a search finds for them: the query, the change, and the nearest images with their values."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cca_hf.data.schema import AttributeDataset
from cca_hf.data.value_changes import Changes
from cca_hf.evaluation.change_search import ChangeSearch, LabelledEmbeddings
from cca_hf.evaluation.manipulation import ManipulationEvaluator, ManipulationInputs
from cca_hf.models.images import load_image

NEAREST = 10


@dataclass(frozen=True)
class ShownValue:
    """The value of an image found, under one attribute."""

    attribute: str
    value: str
    matches: bool
    changed: bool


@dataclass(frozen=True)
class FoundImage:
    """One of the nearest images of a changed query, with its values under the attributes that are compared."""

    image: Image.Image
    values: tuple[ShownValue, ...]

    @property
    def exact(self) -> bool:
        """Whether all values are the wanted ones."""
        return all(each.matches for each in self.values)


@dataclass(frozen=True)
class ChangeView:
    """A query, what changes, and the nearest images, the nearest first."""

    index: int  # row in the split of the references
    image: Image.Image
    changes: tuple[tuple[str, str, str], ...]  # attribute, old value, new value
    kept: tuple[tuple[str, str], ...]  # attribute, value
    found: tuple[FoundImage, ...]
    possible: int  # images of the gallery with exactly the wanted values


def choose_changes(changes: Changes, count: int, seed: int = 0) -> list[int]:
    """`count` random rows: the attributes take turns, and the last row changes several attributes."""
    order = np.random.default_rng(seed).permutation(len(changes))
    several = order[changes.num_changes[order] > 1][:1].tolist()
    queues = [
        [row for row in order.tolist() if changes.changed[row, place] and changes.num_changes[row] == 1]
        for place in range(changes.changed.shape[1])
    ]
    chosen: list[int] = []
    shown = {int(changes.reference[row]) for row in several}
    while len(chosen) < count - len(several) and any(queues):
        for queue in queues:
            row = next((row for row in queue if changes.reference[row] not in shown), queue[0] if queue else None)
            if row is not None and len(chosen) < count - len(several):
                queue.remove(row)
                chosen.append(row)
                shown.add(int(changes.reference[row]))
    return chosen + several


def view_changes(
    evaluator: ManipulationEvaluator, inputs: ManipulationInputs, count: int = 6, seed: int = 0
) -> list[ChangeView]:
    """The nearest images of some changes of an evaluation, drawn at random.

    Args:
        inputs: what `evaluator.encode(model)` returned.
    """
    changes = evaluator.changes.select(choose_changes(evaluator.changes, count, seed))
    queries = LabelledEmbeddings.of(inputs.queries)
    gallery = None if inputs.gallery is None else LabelledEmbeddings.of(inputs.gallery)
    search = ChangeSearch(queries.embeddings, queries.labels, inputs.values, gallery=gallery, keep=evaluator.keep)
    nearest = search.nearest(changes, NEAREST)
    data, split = evaluator.dataset, evaluator.query_split
    gallery_split = evaluator.gallery_split or split
    return [
        _view(data, split, gallery_split, changes.select([place]), nearest[place], search)
        for place in range(len(changes))
    ]


def _view(
    data: AttributeDataset, split: str, gallery_split: str, change: Changes, nearest: NDArray, search: ChangeSearch
) -> ChangeView:
    """The view of one change."""
    row = int(change.reference[0])
    labels, targets = search.labels[row].tolist(), change.target_labels[0].tolist()
    compared = [
        (place, name, values, bool(change.changed[0, place]))
        for place, (name, values) in enumerate(data.attributes.items())
        if targets[place] >= 0
    ]
    found = []
    for other in nearest[nearest >= 0].tolist():
        theirs = search.gallery_labels[other]
        values = tuple(
            ShownValue(name, names[theirs[place]], bool(theirs[place] == targets[place]), changed)
            for place, name, names, changed in compared
        )
        found.append(FoundImage(load_image(data.splits[gallery_split][other]["image"]), values))
    equal = (search.gallery_labels == change.target_labels) | ~change.compared
    return ChangeView(
        index=row,
        image=load_image(data.splits[split][row]["image"]),
        changes=tuple(
            (name, names[labels[place]] if labels[place] >= 0 else "not labelled", names[targets[place]])
            for place, name, names, changed in compared
            if changed
        ),
        kept=tuple((name, names[targets[place]]) for place, name, names, changed in compared if not changed),
        found=tuple(found),
        possible=int(equal.all(axis=1).sum()),
    )
