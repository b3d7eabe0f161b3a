"""From a model and a data set of ready triplets to a TripletResult."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from datasets import Dataset

from cca_hf.data.columns import ColumnPlace, integers, missing_message
from cca_hf.data.schema import IMAGE_COLUMN
from cca_hf.data.triplet_images import distinct_images
from cca_hf.data.triplets import CONDITION_COLUMN, TRIPLET_COLUMNS, to_triplet_dataset
from cca_hf.models.modeling_cca import CCAModel

from .triplet_accuracy import TripletResult, triplet_accuracy


class TripletEvaluator:
    """Embeds each picture of a triplet data set once, under all conditions, and measures the triplet accuracy.

    Args:
        triplets: with the columns `condition`, `anchor`, `positive` (close) and `negative` (far).
        conditions: take the triplets of these only. Default: all.
        pictures: where the triplets hold file names in place of pictures, a data set with the columns `image` and
            `file_name`. Triplets of a picture that is missing there are left out, and counted.

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
            ValueError: a column, a condition or a picture is missing, or there are no triplets.
        """
        triplets = to_triplet_dataset(triplets)
        names = triplets.features[CONDITION_COLUMN].names
        asked = integers(ColumnPlace(CONDITION_COLUMN).read(triplets))
        found = [name for place, name in enumerate(names) if (asked == place).any()]
        if conditions is not None:
            unknown = [name for name in conditions if name not in found]
            if unknown:
                raise ValueError(missing_message("triplets of the condition", unknown, found))
            wanted = np.isin(asked, [names.index(name) for name in conditions])
            triplets, asked = triplets.select(np.flatnonzero(wanted)), asked[wanted]
        self.conditions = found if conditions is None else list(conditions)
        places = {names.index(name): place for place, name in enumerate(self.conditions)}
        self.asked = np.array([places[each] for each in asked.tolist()])
        self.pictures, self.rows = distinct_images(triplets, pictures)
        whole = np.flatnonzero(self.rows.min(axis=1) >= 0)
        self.left_out = len(self.rows) - len(whole)
        if not len(whole):
            raise ValueError(
                f"none of the {self.left_out:,} triplets has its three pictures; the first one's anchor is "
                f"{triplets[0][TRIPLET_COLUMNS[0]]['path']!r}"
            )
        self.asked, self.rows = self.asked[whole], self.rows[whole]
        self.batch_size = batch_size
        self.show_progress = show_progress
        self.num_workers = num_workers

    def __call__(self, model: CCAModel) -> TripletResult:
        """
        Raises:
            ValueError: if the model does not know a condition; the message names the closest attribute.
            UnreadableImageError: for a picture that cannot be read; names it.
        """
        embeddings = model.encode(
            self.pictures[IMAGE_COLUMN],
            self.conditions,
            batch_size=self.batch_size,
            show_progress=self.show_progress,
            num_workers=self.num_workers,
        )
        result = triplet_accuracy(embeddings, self.rows, self.asked, self.conditions)
        return replace(result, left_out=self.left_out)
