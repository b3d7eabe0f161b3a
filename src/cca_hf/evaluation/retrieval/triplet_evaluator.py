"""Evaluate a model on a data set of triplets."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from datasets import Dataset

from cca_hf.data.columns import ColumnPlace, integers, missing_message
from cca_hf.data.schema import IMAGE_COLUMN
from cca_hf.data.triplets import CONDITION_COLUMN, TRIPLET_COLUMNS, distinct_images, to_triplet_dataset
from cca_hf.models.modeling_cca import CCAModel

from .triplet_accuracy import TripletResult, triplet_accuracy


class TripletEvaluator:
    """Embeds each image of a triplet data set once, under all conditions, and measures the triplet accuracy.

    Args:
        triplets: with the columns `condition`, `anchor`, `positive` (close) and `negative` (far).
        conditions: use only triplets of these conditions. Default: all.
        pictures: if the triplets contain file names instead of images, a data set with the columns `image` and
            `file_name`. Triplets with an image that is missing there are left out and counted.

    Example:

    ```python
    >>> result = TripletEvaluator(load_dataset("me/shoe-triplets", split="test"))(model)
    >>> print(result.table())
    ```
    """

    primary_metric = "triplet_accuracy"

    def __init__(
        self,
        triplets: Dataset,
        conditions: Sequence[str] | None = None,
        *,
        pictures: Dataset | None = None,
        batch_size: int = 64,
        show_progress: bool | None = None,
        num_workers: int | None = None,
    ) -> None:
        """
        Raises:
            ValueError: if a column, a condition or an image is missing, or no triplet is left.
        """
        triplets = to_triplet_dataset(triplets)
        names = triplets.features[CONDITION_COLUMN].names
        ids = integers(ColumnPlace(CONDITION_COLUMN).read(triplets))
        present = [name for place, name in enumerate(names) if (ids == place).any()]
        if conditions is not None:
            unknown = [name for name in conditions if name not in present]
            if unknown:
                raise ValueError(missing_message("triplets of the condition", unknown, present))
            selected = np.isin(ids, [names.index(name) for name in conditions])
            triplets, ids = triplets.select(np.flatnonzero(selected)), ids[selected]
        self.conditions = present if conditions is None else list(conditions)
        places = {names.index(name): place for place, name in enumerate(self.conditions)}
        self.condition_ids = np.array([places[condition] for condition in ids.tolist()])
        self.images, self.rows = distinct_images(triplets, pictures)
        whole = np.flatnonzero(self.rows.min(axis=1) >= 0)
        self.left_out = len(self.rows) - len(whole)
        if not len(whole):
            raise ValueError(
                f"none of the {self.left_out:,} triplets has its three images; the anchor of the first is "
                f"{triplets[0][TRIPLET_COLUMNS[0]]['path']!r}"
            )
        self.condition_ids, self.rows = self.condition_ids[whole], self.rows[whole]
        self.batch_size = batch_size
        self.show_progress = show_progress
        self.num_workers = num_workers

    def __call__(self, model: CCAModel) -> TripletResult:
        """
        Raises:
            ValueError: if the model does not know a condition; the message names the closest attribute.
            UnreadableImageError: if an image cannot be read; the message names it.
        """
        embeddings = model.encode(
            self.images[IMAGE_COLUMN],
            self.conditions,
            batch_size=self.batch_size,
            show_progress=self.show_progress,
            num_workers=self.num_workers,
        )
        result = triplet_accuracy(embeddings, self.rows, self.condition_ids, self.conditions)
        return replace(result, left_out=self.left_out)
