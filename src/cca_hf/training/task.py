"""What a recipe gives to the Trainer: batches, a loss and an evaluator.

They are values. The Trainer calls them and asks nothing about the task: ready triplets, kept features and losses of
other libraries are other batches and other losses.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from os import PathLike
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

import torch
from torch import nn
from torch.utils.data import Dataset

from .own_weights import OwnWeights


class Result(Protocol):
    """The figures of an evaluation."""

    def metrics(self) -> dict[str, float]:
        """All figures by name, as fractions."""


@dataclass(frozen=True)
class Batches:
    """The training batches.

    Args:
        dataset: a map-style data set.
        collator: examples -> batch.
        batch_sampler: a batch sampler with `set_epoch`. Default: random batches of `per_device_train_batch_size`.
    """

    dataset: Dataset[Any]
    collator: Callable[[list[Any]], Any]
    batch_sampler: Any = None


class LossOutput(NamedTuple):
    """The loss of a batch.

    Args:
        loss: the mean over the batch, which is minimised.
        logs: figures of the batch by name, detached scalars. The log gets their means; NaN means that the batch has no
            such figure. A figure that could not be computed is infinite.
        collapsed: 1 if all embeddings of the batch are equal, 0 if not, NaN if the batch cannot tell.
    """

    loss: torch.Tensor
    logs: Mapping[str, torch.Tensor] = MappingProxyType({})
    collapsed: torch.Tensor | None = None


class Loss(nn.Module):
    """The loss of a task. Modules with weights of their own inside it learn, are saved and are loaded with it."""

    def forward(self, model: nn.Module, batch: Any) -> LossOutput:
        """The loss of one batch; `model` may be wrapped for several processes."""
        raise NotImplementedError

    def optimizer_step(self) -> None:
        """Updates the loss's own weights; called after each step of the model's optimizer.

        When a gradient scaler skips the model's step, `zero_grad` is called instead.
        """
        for module in self._learning():
            module.optimizer_step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Discards the gradients of the loss's own weights."""
        for module in self._learning():
            module.zero_grad(set_to_none)

    def save(self, folder: str | PathLike[str]) -> None:
        """Writes what the loss has learned into a checkpoint; writes nothing if it has learned nothing."""
        for module in self._learning():
            module.save(folder)

    def load(self, folder: str | PathLike[str]) -> None:
        """Reads what `save` wrote.

        Raises:
            ValueError: if the checkpoint was made with another loss.
        """
        for module in self._learning():
            module.load(folder)

    def _learning(self) -> list[OwnWeights]:
        return [module for module in self.modules() if isinstance(module, OwnWeights)]


class Evaluator(Protocol):
    """Computes the figures of a split.

    `forward` runs batch by batch on every process, `score` once, on the main process, with the tensors of the whole
    split as numpy arrays.
    """

    collator: Callable[[list[Any]], Any]

    @property
    def primary_metric(self) -> str:
        """The metric by which checkpoints are compared, unless the arguments name another."""

    @property
    def shown_metrics(self) -> Iterable[str]:
        """The metrics that a progress bar has room for; the log holds all of them."""

    def images(self, split: Any) -> Dataset[Any]:
        """The images of a split, given by its name or as a `datasets.Dataset`; other data sets stay as they are."""

    def forward(self, model: nn.Module, batch: Any) -> tuple[Any, Any]:
        """Predictions and labels of a batch, as small tensors whose first dimension is the batch."""

    def score(self, images: Dataset[Any], predictions: Any, labels: Any) -> Result:
        """The result for what `images` returned."""


@dataclass(frozen=True)
class Task:
    """What a model is trained on, by which loss, and how it is evaluated."""

    batches: Batches
    loss: Loss
    evaluator: Evaluator | None = None
