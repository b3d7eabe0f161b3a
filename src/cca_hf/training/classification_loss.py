"""Losses of classification. A batch has `pixel_values`, and `labels` (batch, classes): probabilities of classes."""

import torch
from torch import nn

from .task import Loss, LossOutput


class SoftCrossEntropy(Loss):
    """The cross-entropy between the probabilities in a batch and the logits of a model.

    The stock losses of transformers take ids of classes. Label smoothing and mixed images need probabilities.
    """

    def forward(self, model: nn.Module, batch: dict[str, torch.Tensor]) -> LossOutput:
        logits = model(pixel_values=batch["pixel_values"]).logits
        with torch.autocast(logits.device.type, enabled=False):
            return LossOutput(nn.functional.cross_entropy(logits.float(), batch["labels"]))


class ModelLoss(Loss):
    """The loss that a model computes itself from the probabilities in a batch, such as that of DCAL's branches."""

    def forward(self, model: nn.Module, batch: dict[str, torch.Tensor]) -> LossOutput:
        return LossOutput(model(pixel_values=batch["pixel_values"], labels=batch["labels"]).loss)
