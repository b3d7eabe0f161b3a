"""From pictures and names to arrays: decoding, batching and the progress bar around the model's two halves."""

from collections.abc import Sequence
from os import PathLike
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from transformers import BaseImageProcessor, PreTrainedModel
from transformers.utils import logging

from .images import ImageInput, load_image


class _Pictures(Dataset):
    """Decodes pictures where the `DataLoader` asks for them, that is in its workers."""

    def __init__(self, images: Sequence[ImageInput], image_processor: BaseImageProcessor):
        self.images = images
        self.image_processor = image_processor

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.image_processor(load_image(self.images[index]), return_tensors="pt")["pixel_values"][0]


def encode_images(
    model: PreTrainedModel,
    images: ImageInput | Sequence[ImageInput],
    attributes: str | Sequence[str] | None,
    *,
    batch_size: int,
    show_progress: bool | None,
    output: Literal["numpy", "torch"],
    num_workers: int,
) -> np.ndarray | torch.Tensor:
    """See `CCAModel.encode`."""
    if output not in ("numpy", "torch"):
        raise ValueError(f"output must be 'numpy' or 'torch'; got {output!r}")
    attribute_ids = torch.tensor(model.config.attribute_ids(_names(attributes)), dtype=torch.long)
    rows = []
    for pixel_values in _batches(model, _as_sequence(images), batch_size, show_progress, num_workers):
        conditions = attribute_ids.to(pixel_values.device).expand(len(pixel_values), -1)
        rows.append(_infer(model, pixel_values, conditions).float().cpu())
    dim = model.config.embedding_dim or model.config.hidden_size
    embeddings = torch.cat(rows) if rows else torch.empty(0, len(attribute_ids), dim)
    return embeddings.numpy() if output == "numpy" else embeddings


def compute_attention_maps(
    model: PreTrainedModel,
    images: ImageInput | Sequence[ImageInput],
    attributes: str | Sequence[str] | None,
    *,
    batch_size: int,
) -> np.ndarray:
    """See `CCAModel.attention_maps`."""
    attribute_ids = torch.tensor(model.config.attribute_ids(_names(attributes)), dtype=torch.long)
    maps = []
    for pixel_values in _batches(model, _as_sequence(images), batch_size, False, 0):
        conditions = attribute_ids.to(pixel_values.device).expand(len(pixel_values), -1)
        maps.append(_attend(model, pixel_values, conditions).cpu().numpy())
    if not maps:
        raise ValueError("no pictures to attend to: images is empty")
    return np.concatenate(maps)


@torch.inference_mode()
def _infer(model: PreTrainedModel, pixel_values: torch.Tensor, attribute_ids: torch.Tensor) -> torch.Tensor:
    training = model.training
    model.eval()
    try:
        return model(pixel_values, attribute_ids=attribute_ids).embeddings
    finally:
        model.train(training)


@torch.inference_mode()
def _attend(model: PreTrainedModel, pixel_values: torch.Tensor, attribute_ids: torch.Tensor) -> torch.Tensor:
    training = model.training
    model.eval()
    try:
        tokens, grids = model.tokens_and_grids(pixel_values)
        weights = model.condition_tokens(tokens, attribute_ids, output_attentions=True).attentions
    finally:
        model.train(training)
    if weights is None:
        raise RuntimeError("the conditional layer returned no attention weights")
    # the rows of tokens are: summary or prefix, the output's grid, then the grids of earlier levels (see ImageTokens)
    place = max(1, model.config.num_prefix_tokens)
    height, width = max(grids)
    total = torch.zeros(*weights.shape[:3], height, width, dtype=torch.float32, device=weights.device)
    for level, (rows, columns) in enumerate(grids):
        if level > 0:
            place += model.config.num_prefix_tokens
        cells = weights[..., place : place + rows * columns].float().unflatten(-1, (rows, columns))
        place += rows * columns
        total += _spread(cells, height, width)
    return total


def _spread(cells: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """(..., rows, columns) onto a finer grid: what a coarse cell holds, its finer ones share; the sum stays."""
    rows, columns = cells.shape[-2:]
    row = torch.arange(height, device=cells.device) * rows // height  # of each finer row, the coarse one it lies in
    column = torch.arange(width, device=cells.device) * columns // width
    sharing = torch.bincount(row, minlength=rows)[:, None] * torch.bincount(column, minlength=columns)
    return (cells / sharing)[..., row[:, None], column]


def _batches(
    model: PreTrainedModel,
    images: Sequence[ImageInput],
    batch_size: int,
    show_progress: bool | None,
    num_workers: int,
) -> Any:
    loader = DataLoader(_Pictures(images, model.image_processor), batch_size=batch_size, num_workers=num_workers)
    if show_progress is None:
        show_progress = len(loader) > 1
    for batch in logging.tqdm(loader, desc="Encoding", unit="batch", disable=not show_progress):
        yield batch.to(model.device, model.dtype)


def _as_sequence(images: ImageInput | Sequence[ImageInput]) -> Sequence[ImageInput]:
    """One picture is a list of one; a column of a data set is taken as it is, and read picture by picture."""
    if isinstance(images, (str, PathLike, bytes, dict, Image.Image)):
        return [images]
    if isinstance(images, np.ndarray):
        return list(images) if images.ndim == 4 else [images]
    return images


def _names(attributes: str | Sequence[str] | None) -> list[str] | None:
    if attributes is None:
        return None
    names = [attributes] if isinstance(attributes, str) else list(attributes)
    if not names:
        raise ValueError("attributes is empty: name at least one, or leave it out for all")
    return names


__all__ = ["compute_attention_maps", "encode_images"]
