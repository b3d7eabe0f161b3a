"""Watches the loss: means for the logs, and an error when training has gone wrong."""

import math
from collections import Counter

import torch

from .checkpoints import TrainingFailedError
from .task import LossOutput


class LossMonitor:
    """Collects what the loss reports. After `collapse_patience` steps (0: never) with equal embeddings, it raises."""

    def __init__(self, collapse_patience: int = 0) -> None:
        self.collapse_patience = collapse_patience
        self._collapsed_steps = 0
        self._sums: Counter[str] = Counter()
        self._counts: Counter[str] = Counter()

    def add(self, output: LossOutput) -> None:
        """Adds one batch. Waits for the device once.

        Raises:
            TrainingFailedError: if the loss is not finite, or the embeddings have been equal for too long.
        """
        tensors = [output.loss.detach(), *output.logs.values()]
        if output.collapsed is not None:
            tensors.append(output.collapsed)
        loss, *figures = torch.stack([tensor.float() for tensor in tensors]).tolist()
        named = dict(zip(output.logs, figures, strict=False))
        if not math.isfinite(loss):
            bad = ", ".join(name for name, figure in named.items() if math.isinf(figure))
            raise TrainingFailedError(
                f"the loss is {loss} (not finite: {bad or 'the loss alone'}). Try lower learning rates, and bf16 or "
                "full precision instead of fp16"
            )
        for name, figure in named.items():
            if not math.isnan(figure):
                self._sums[name] += figure
                self._counts[name] += 1
        if output.collapsed is None or math.isnan(figures[-1]):
            return
        self._collapsed_steps = self._collapsed_steps + 1 if figures[-1] else 0
        if self.collapse_patience and self._collapsed_steps >= self.collapse_patience:
            raise TrainingFailedError(
                f"the embeddings have collapsed: for {self._collapsed_steps} steps all images have had the same "
                "embedding. Try lower learning rates, a longer warmup, the loss soft_triplet, or other mining"
            )

    def drain(self) -> dict[str, float]:
        """The mean of each figure since the last call, over the batches that have it."""
        logs = {name: total / self._counts[name] for name, total in self._sums.items()}
        self._sums.clear()
        self._counts.clear()
        return logs
