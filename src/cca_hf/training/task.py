"""What a recipe gives to the Trainer: batches, a loss and an evaluator.

The Trainer calls them and knows nothing else about the task. Ready triplets, cached features and losses of other
libraries are other batches and other losses.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple, Protocol

import torch
from torch import nn
from torch.utils.data import Dataset

from cca_hf.evaluation.results import Result


@dataclass(frozen=True)
class Batches:
    """The training batches."""

    dataset: Dataset[Any]  # map-style
    collator: Callable[[list[Any]], Any]  # examples -> batch
    batch_sampler: Any = None  # has `set_epoch`; by default, batches of `per_device_train_batch_size` are random
    epoch: str = ""  # a sentence about what an epoch contains, printed when the training begins


class LossOutput(NamedTuple):
    """The loss of a batch.

    `logs` are figures of the batch by name, detached scalars. The log gets their means. NaN means that the batch has
    no such figure. A figure that could not be computed is infinite.
    """

    loss: torch.Tensor  # the mean over the batch, which is minimised
    logs: Mapping[str, torch.Tensor] = MappingProxyType({})
    collapsed: torch.Tensor | None = None  # 1 if all embeddings are equal, 0 if not, NaN if the batch does not show it


class OwnWeights(nn.Module):
    """A part of a loss that learns: its weights (proxies, centres, boundaries) have an optimizer of their own.

    The weights are not part of the model, so no wrapper of the model (DistributedDataParallel, FSDP, a gradient
    scaler) handles them. The module collects gradients batch by batch and applies their mean in `optimizer_step`.
    """

    file_name: ClassVar[str]  # in a checkpoint
    absent: ClassVar[str]  # completes the error about a checkpoint without that file
    optimizer: torch.optim.Optimizer | None = None
    _num_batches = 0

    def collect(self, parameters: Iterable[nn.Parameter], gradients: Sequence[torch.Tensor | None]) -> None:
        """Adds the gradients of one batch; None for a parameter that the batch did not use."""
        for parameter, gradient in zip(parameters, gradients, strict=True):
            if gradient is not None:
                parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
        self._num_batches += 1

    def collected(self) -> list[torch.Tensor]:
        """The gradients that have been collected."""
        return [parameter.grad for parameter in self.parameters() if parameter.grad is not None]

    def optimizer_step(self) -> None:
        """Updates the weights by the mean gradient of the batches since the last step."""
        if self.optimizer is None or not self._num_batches:
            return
        for gradient in self.collected():
            gradient /= self._num_batches
        self.optimizer.step()
        self.zero_grad()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Discards the gradients that have been collected."""
        super().zero_grad(set_to_none)
        self._num_batches = 0

    def save(self, folder: str | PathLike[str]) -> None:
        """Writes weights and optimizer into a checkpoint; writes nothing if nothing is learned."""
        if self.optimizer is not None:
            content = {**self._weights(), "optimizer": self.optimizer.state_dict()}
            torch.save(content, Path(folder) / self.file_name)

    def load(self, folder: str | PathLike[str]) -> None:
        """Reads what `save` wrote.

        Raises:
            ValueError: if the checkpoint was made with another loss.
        """
        if self.optimizer is None:
            return
        path = Path(folder) / self.file_name
        if not path.exists() and not any(Path(folder).glob("rng_state*.pth")):
            raise ValueError(
                f"{folder} contains the model alone, because it was saved with save_only_model: what the loss has "
                "learned and the state of the optimizer are missing. Start a new training, without save_only_model if "
                "it has to be resumed"
            )
        if not path.exists():
            raise ValueError(f"{folder} was made without {self.absent}, or start anew")
        content = torch.load(path, map_location=next(self.parameters()).device, weights_only=True)
        self._set_weights(content, folder)
        self.optimizer.load_state_dict(content["optimizer"])

    def _weights(self) -> dict[str, Any]:
        raise NotImplementedError

    def _set_weights(self, content: dict[str, Any], folder: str | PathLike[str]) -> None:
        """The reverse of `_weights`; `folder` is for the error."""
        raise NotImplementedError


class Loss(nn.Module):
    """The loss of a task. The [`OwnWeights`] in it are trained, saved and loaded with it."""

    def forward(self, model: nn.Module, batch: Any) -> LossOutput:
        """The loss of one batch; `model` may be wrapped for several processes."""
        raise NotImplementedError

    def optimizer_step(self) -> None:
        """Called after each step of the model's optimizer; if a gradient scaler skips that step, `zero_grad` is."""
        for module in self._learning():
            module.optimizer_step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        for module in self._learning():
            module.zero_grad(set_to_none)

    def save(self, folder: str | PathLike[str]) -> None:
        """As [`OwnWeights.save`]."""
        for module in self._learning():
            module.save(folder)

    def load(self, folder: str | PathLike[str]) -> None:
        """As [`OwnWeights.load`]."""
        for module in self._learning():
            module.load(folder)

    def _learning(self) -> list[OwnWeights]:
        return [module for module in self.modules() if isinstance(module, OwnWeights)]


class Evaluator(Protocol):
    """Computes the figures of a split."""

    collator: Callable[[list[Any]], Any]
    primary_metric: str  # by which checkpoints are compared, unless the arguments name another

    @property
    def shown_metrics(self) -> Iterable[str]:
        """The metrics that a progress bar shows; the log contains all metrics."""

    def images(self, split: Any) -> Dataset[Any]:
        """The images of a split, given by its name or as a `datasets.Dataset`; other data sets stay as they are."""

    def forward(self, model: nn.Module, batch: Any) -> tuple[Any, Any]:
        """On every process: predictions and labels of a batch, small tensors whose first dimension is the batch."""

    def score(self, images: Dataset[Any], predictions: Any, labels: Any) -> Result:
        """On the main process: the result of what `images` returned, from all batches as numpy arrays."""


@dataclass(frozen=True)
class Task:
    """What a model is trained on, by which loss, and how it is evaluated."""

    batches: Batches
    loss: Loss
    evaluator: Evaluator | None = None
