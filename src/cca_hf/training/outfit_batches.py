"""What an [`OutfitModel`] reads of items, images or stored features of a frozen backbone; and batches of questions."""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from datasets import Dataset as Items
from torch.utils.data import Dataset
from transformers.utils.logging import tqdm

from cca_hf.data.outfit_sampler import OutfitKey
from cca_hf.data.schema import IMAGE_COLUMN
from cca_hf.models.encoding import pixel_batches
from cca_hf.models.images import ImageReader
from cca_hf.models.modeling_outfit import OutfitModel


class ItemInputs(Protocol):
    """The inputs of the model for rows of the items, by name."""

    def __call__(self, rows: Sequence[int]) -> dict[str, torch.Tensor]: ...


class ItemImages:
    """The pixel values of items, decoded at each use."""

    def __init__(self, items: Items, reader: ImageReader) -> None:
        self.images = items.select_columns([IMAGE_COLUMN])
        self.reader = reader

    def __call__(self, rows: Sequence[int]) -> dict[str, torch.Tensor]:
        resized = torch.stack([self.reader.read(image) for image in self.images[list(rows)][IMAGE_COLUMN]])
        return {"pixel_values": self.reader.scale(resized, torch.device("cpu"), torch.float32)}


class StoredFeatures:
    """The result of `OutfitModel.get_backbone_features` for all items, computed once: the backbone is frozen."""

    def __init__(self, features: torch.Tensor) -> None:
        self.features = features

    @classmethod
    @torch.inference_mode()
    def of(
        cls, model: OutfitModel, items: Items, *, batch_size: int = 32, show_progress: bool = True
    ) -> "StoredFeatures":
        """Runs the backbone on all items.

        Raises:
            UnreadableImageError: if an image cannot be read; the message names its row.
        """
        model = model.in_eval_mode()
        features = torch.empty(items.num_rows, model.config.feature_channels[-1])
        with tqdm(total=items.num_rows, desc="Features", unit="image", disable=not show_progress) as progress:
            for batch in pixel_batches(model, items[IMAGE_COLUMN], batch_size):
                features[batch.rows] = model.get_backbone_features(batch.values)[: len(batch.rows)].float().cpu()
                progress.update(len(batch.rows))
        return cls(features)

    def __call__(self, rows: Sequence[int]) -> dict[str, torch.Tensor]:
        return {"backbone_features": self.features[list(rows)]}


class OutfitQuestions(Dataset[OutfitKey]):
    """The questions of an [`OutfitBatchSampler`] are their keys; `OutfitCollator` reads the images of a batch."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, key: OutfitKey) -> OutfitKey:
        return key


class OutfitCollator:
    """Questions -> a batch of [`OutfitRankingLoss`], which contains an image once.

    Args:
        inputs: reads items.
        category_ids: (items,)
    """

    def __init__(self, inputs: ItemInputs, category_ids: np.ndarray) -> None:
        self.inputs = inputs
        self.category_ids = category_ids

    def __call__(self, keys: Sequence[OutfitKey]) -> dict[str, Any]:
        rows = sorted({row for key in keys for row in (*key.items, *key.candidates)})
        place = {row: index for index, row in enumerate(rows)}
        return {
            **self.inputs(rows),
            "categories": torch.from_numpy(self.category_ids[rows]),
            "outfits": _padded([[place[row] for row in key.items] for key in keys]),
            "candidates": _padded([[place[row] for row in key.candidates] for key in keys]),
        }


def _padded(lists: Sequence[Sequence[int]]) -> torch.Tensor:
    """(lists, longest), filled up with -1."""
    padded = torch.full((len(lists), max(map(len, lists))), -1)
    for index, numbers in enumerate(lists):
        padded[index, : len(numbers)] = torch.tensor(numbers, dtype=torch.long)
    return padded
