"""Losses with weights of their own, which an Adam beside the model's optimizer trains.

The weights (proxies, centres, boundaries) belong to the training and not to the model: no wrapper of the model
(DistributedDataParallel, FSDP, a gradient scaler) has to know them.
"""

from collections.abc import Iterable, Sequence
from os import PathLike

import torch
from torch import nn


class OwnWeights(nn.Module):
    """A module that collects gradients batch by batch, and applies their mean in `optimizer_step`."""

    optimizer: torch.optim.Optimizer | None = None
    _num_batches = 0

    def collect(self, parameters: Iterable[nn.Parameter], gradients: Sequence[torch.Tensor | None]) -> None:
        """Adds the gradients of one batch; None where a parameter took no part in it."""
        for parameter, gradient in zip(parameters, gradients, strict=True):
            if gradient is not None:
                parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
        self._num_batches += 1

    def collected(self) -> list[torch.Tensor]:
        """The gradients that have been collected."""
        return [parameter.grad for parameter in self.parameters() if parameter.grad is not None]

    def optimizer_step(self) -> None:
        """One step by the mean gradient of the batches since the last step, as the Trainer's own for the model."""
        if self.optimizer is None or not self._num_batches:
            return
        for gradient in self.collected():
            gradient /= self._num_batches
        self.optimizer.step()
        self.zero_grad()

    def save(self, folder: str | PathLike[str]) -> None:
        """Writes weights and optimizer into a checkpoint; writes nothing if nothing is learned."""
        raise NotImplementedError

    def load(self, folder: str | PathLike[str]) -> None:
        """Reads what `save` wrote; raises `ValueError` if the checkpoint was made with another loss."""
        raise NotImplementedError

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Discards the gradients that have been collected."""
        super().zero_grad(set_to_none)
        self._num_batches = 0
