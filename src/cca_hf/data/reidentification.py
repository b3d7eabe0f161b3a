"""Images with an identity and a camera: which images of a split are queries, and which ones they search.

Queries and gallery come from the first of these that a split has:

1. two splits, `test_query` and `test_gallery`;
2. a column of roles with `query` and `gallery`; an image without a role is not used;
3. the cameras: the images of an identity's first camera, by name, are queries, and those of its other cameras are the
   gallery. Images of an identity that only one camera has taken are distractors in the gallery.

The identity is the only attribute of the data set. Identities of the test split need no training image.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from datasets import ClassLabel, Dataset
from torch.utils.data import ConcatDataset, Subset

from .columns import check_names, column_places
from .loading import load_attribute_dataset, with_usual_names
from .schema import AttributeDataset
from .sources import Source, load_source
from .split_names import same_split, usual_split_name
from .torch_dataset import AttributeExample, AttributeImages
from .values import same_value, value_name

QUERY, GALLERY = "query", "gallery"
_DIGITS = re.compile(r"(\d+)")


@dataclass(frozen=True)
class Search:
    """The images of a split that are queries or are searched; all arrays are (images,), in one order.

    Args:
        split: its name.
        rows: the rows of these images, by the name of a split of the data set.
        identities: ids.
        cameras: ids; -1 = unknown.
        parts: ids of the parts that are searched separately; all 0 without a column of parts.
        is_query: the others are the gallery.
    """

    split: str
    rows: dict[str, np.ndarray]
    identities: np.ndarray
    cameras: np.ndarray
    parts: np.ndarray
    is_query: np.ndarray


@dataclass(frozen=True)
class ReidentificationData:
    """A data set whose only attribute is the identity, and the columns of a search.

    Args:
        camera_column: names the camera of an image; None, -1 and blank strings mean that it is unknown.
        role_column: contains `query` and `gallery`.
        within_column: a query searches only images with its value in this column, such as the place of a recording.
    """

    images: AttributeDataset
    camera_column: str
    role_column: str | None = None
    within_column: str | None = None

    def search(self, split: str) -> Search:
        """The queries and the gallery of a split.

        Raises:
            KeyError: for an unknown split.
            ValueError: for an unknown role, or a split in which no identity has two cameras; names the split.
        """
        split = usual_split_name(split)
        names: tuple[str, ...] = (f"{split}_query", f"{split}_gallery")
        if names[0] not in self.images.splits:
            self.images[split]  # raises for an unknown split
            names = (same_split(split, self.images.splits),)
        identities = np.concatenate([self.images.labels(name)[:, 0] for name in names])
        cameras, camera_names = self._codes(self.camera_column, names)
        parts = np.zeros(len(identities), np.int64)
        if self.within_column is not None:
            parts = self._codes(self.within_column, names)[0]
        sizes = [self.images.splits[name].num_rows for name in names]
        if len(names) == 2:
            is_query, is_used = np.arange(len(identities)) < sizes[0], np.ones(len(identities), bool)
        else:
            is_query, is_used = self._roles(names[0], identities, cameras, camera_names)
        is_used &= (identities >= 0) & np.isin(parts, parts[is_query & is_used])
        return Search(
            split,
            {
                name: np.flatnonzero(used)
                for name, used in zip(names, np.split(is_used, np.cumsum(sizes)[:-1]), strict=True)
            },
            *(array[is_used] for array in (identities, cameras, parts, is_query)),
        )

    def _roles(
        self, split: str, identities: np.ndarray, cameras: np.ndarray, camera_names: Sequence[str]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Whether each image of a split is a query, and whether it is used."""
        if self.role_column is not None:
            roles, names = self._codes(self.role_column, (split,))
            unknown = [name for name in names if name not in (QUERY, GALLERY)]
            if unknown:
                raise ValueError(
                    f"the roles in the column {self.role_column!r} are query and gallery; the split {split!r} has "
                    f"{', '.join(map(repr, unknown[:5]))}"
                )
            if names:
                return roles == (names.index(QUERY) if QUERY in names else -2), roles >= 0
        known = np.flatnonzero((identities >= 0) & (cameras >= 0))
        first = np.full(identities.max(initial=-1) + 1, len(camera_names))
        last = np.full_like(first, -1)
        np.minimum.at(first, identities[known], cameras[known])
        np.maximum.at(last, identities[known], cameras[known])
        is_query = np.zeros(len(identities), bool)
        is_query[known] = (cameras[known] == first[identities[known]]) & (first < last)[identities[known]]
        if not is_query.any():
            raise ValueError(
                f"no identity of the split {split!r} was taken by two cameras (columns "
                f"{next(iter(self.images.attributes))!r} and {self.camera_column!r}): nothing can be searched"
            )
        return is_query, np.ones(len(identities), bool)

    def _codes(self, column: str, splits: Sequence[str]) -> tuple[np.ndarray, list[str]]:
        """Codes of all images of the splits, -1 for none, and the names, in an order in which 2 is before 10."""
        texts = [text for split in splits for text in _texts(self.images.splits[split], column)]
        names = sorted({text for text in texts if text is not None}, key=_natural)
        code_of = {name: code for code, name in enumerate(names)}
        return np.array([-1 if text is None else code_of[text] for text in texts], np.int64), names


class SearchImages(ConcatDataset[AttributeExample]):
    """The images of a search, in the order of its arrays."""

    def __init__(self, data: ReidentificationData, split: str) -> None:
        self.search = data.search(split)
        super().__init__(
            [Subset(AttributeImages(data.images, name), rows.tolist()) for name, rows in self.search.rows.items()]
        )


def load_reidentification(
    source: Source,
    identity_column: str,
    camera_column: str,
    *,
    role_column: str | None = None,
    within_column: str | None = None,
    image_column: str | None = None,
    config_name: str | None = None,
    revision: str | None = None,
    split_seed: int = 0,
    on_unreadable: str = "error",
) -> ReidentificationData:
    """Loads images with identities and cameras. A missing validation or test split is cut by identities.

    Args:
        source, image_column, config_name, revision, split_seed, on_unreadable: as in `load_attribute_dataset`.
        identity_column, camera_column, role_column, within_column: see [`ReidentificationData`].

    Raises:
        ValueError: if a column does not exist, with the closest name; and see `load_attribute_dataset`.
    """
    skip_or_error = "skip" if on_unreadable == "skip" else "error"
    splits = with_usual_names(
        load_source(source, config_name, revision, image_column=image_column, on_unreadable=skip_or_error)
    )
    columns = {"identity": identity_column, "camera": camera_column, "role": role_column, "within": within_column}
    available = {name for rows in splits.values() for name in column_places(rows.features)}
    for kind, name in columns.items():
        if name is not None:
            check_names(f"{kind} column", [name], available)
    data = load_attribute_dataset(
        splits,
        [identity_column],
        group_column=identity_column,
        image_column=image_column,
        split_seed=split_seed,
        on_unreadable=skip_or_error,
    )
    return ReidentificationData(data, camera_column, role_column, within_column)


def _texts(rows: Dataset, column: str) -> list[str | None]:
    """The value of each row as a text; None for a missing value, or if the split lacks the column."""
    places = column_places(rows.features)
    if column not in places:
        return [None] * rows.num_rows
    feature, values = places[column].feature(rows.features), places[column].read(rows).to_pylist()
    if isinstance(feature, ClassLabel):
        return [None if value is None or value < 0 else feature.names[value] for value in values]
    texts = [None if value is None else value_name(value).strip() for value in values]
    return [None if not text or same_value(text) == -1 else text for text in texts]


def _natural(name: str) -> list[str | int]:
    """Sorts numbers in names by size."""
    return [int(part) if part.isdecimal() else part for part in _DIGITS.split(name)]
