"""Watches the loss: averages for the logs, and an error where training has gone wrong."""

from collections.abc import Sequence

import numpy as np
import torch

from .checkpoints import TrainingFailedError
from .losses import ConditionalLossOutput

# Cosines this near to 1, and no nearer for positives than for negatives: all pictures get one embedding.
_EQUAL = 1e-3
_NO_NEARER = 1e-4

_LOGGED = {
    "loss": "attribute_loss",
    "active": "active_share",
    "positive_similarity": "positive_similarity",
    "negative_similarity": "negative_similarity",
}


class LossMonitor:
    """Collects what the loss says of each attribute, step by step.

    Args:
        attributes: their names, in the order of their ids.
        collapse_patience: steps in a row with all embeddings equal before `add` raises; 0 for never.
    """

    def __init__(self, attributes: Sequence[str], collapse_patience: int) -> None:
        self.attributes = list(attributes)
        self.collapse_patience = collapse_patience
        self._collapsed_steps = 0
        self._reset()

    def _reset(self) -> None:
        self._sums = np.zeros((len(_LOGGED), len(self.attributes)))
        self._counts = np.zeros(len(self.attributes))

    def add(self, output: ConditionalLossOutput) -> None:
        """Takes in one batch. Waits for the device once.

        Raises:
            TrainingFailedError: if the loss is not finite, or the embeddings have been equal for too long.
        """
        figures = output._asdict()
        rows = [figures[name] for name in _LOGGED.values()]
        loss = output.loss.detach().expand_as(output.attribute_loss)
        stacked = torch.stack([*rows, output.has_triplets, loss]).double().cpu().numpy()
        values, present, total = stacked[: len(_LOGGED)], stacked[-2] > 0, stacked[-1][0]
        if not np.isfinite(total):
            bad = [name for name, each in zip(self.attributes, values[0], strict=True) if not np.isfinite(each)]
            raise TrainingFailedError(
                f"the loss is {total} (attributes: {', '.join(bad) or 'none alone'}). Try lower learning rates, and "
                "bf16 or full precision instead of fp16"
            )
        self._sums += np.where(present, values, 0.0)
        self._counts += present
        self._look_for_collapse(values[2][present], values[3][present])

    def _look_for_collapse(self, positive: np.ndarray, negative: np.ndarray) -> None:
        if not len(positive):
            return
        equal = bool((negative > 1 - _EQUAL).all() and (positive - negative < _NO_NEARER).all())
        self._collapsed_steps = self._collapsed_steps + 1 if equal else 0
        if self.collapse_patience and self._collapsed_steps >= self.collapse_patience:
            raise TrainingFailedError(
                f"the embeddings have collapsed: for {self._collapsed_steps} steps all pictures have had the same one "
                f"(cosine of different values {negative.mean():.5f}). Try lower learning rates, a longer warmup, or "
                "the loss soft_triplet, or mining all or semihard"
            )

    def drain(self) -> dict[str, float]:
        """Means since the last call, by name: `loss_colour`, `active_colour`, `positive_similarity_colour`, ..."""
        logs = {
            f"{name}_{attribute}": float(self._sums[row, column] / self._counts[column])
            for column, attribute in enumerate(self.attributes)
            if self._counts[column]
            for row, name in enumerate(_LOGGED)
        }
        self._reset()
        return logs
