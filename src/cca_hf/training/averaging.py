"""The moving average of a model's weights while it trains: what is evaluated and saved in place of the weights."""

from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

_FILE = "weights_before_averaging.pt"  # in a checkpoint, whose model file contains the average


class WeightAveraging:
    """Averages the weights after each step of the optimizer; buffers are those of the model.

    Args:
        model: its average begins with the weights after the first step.
        decay: the average of a step is `decay` times that of the step before, plus `1 - decay` times the weights.

    Raises:
        ValueError: for a decay outside its range.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        if not 0 < decay < 1:
            raise ValueError(f"ema_decay must be above 0 and below 1, got {decay}")
        self.model = model
        self.average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay))

    def update(self) -> None:
        """Adds the weights of the model to the average."""
        self.average.update_parameters(self.model)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Gives the model its average within the block."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    def apply(self) -> None:
        """Gives the model its average for good."""
        with torch.no_grad():
            for weights, average in self._pairs():
                weights.copy_(average)

    def save(self, folder: str | PathLike[str]) -> None:
        """Writes the weights into a checkpoint, within `applied`: the file of the model contains the average."""
        weights = {name: weights for name, weights in self.average.module.named_parameters()}
        torch.save({"weights": weights, "n_averaged": self.average.n_averaged}, Path(folder) / _FILE)

    def load(self, folder: str | PathLike[str]) -> None:
        """Reads what `save` wrote, after the model has been loaded from the same checkpoint.

        Raises:
            ValueError: if the checkpoint was made without an average.
        """
        path = Path(folder) / _FILE
        if not path.is_file():
            raise ValueError(
                f"{folder} has no average of the weights: it was made without ema_decay, or with save_only_model"
            )
        content = torch.load(path, map_location=self.average.n_averaged.device, weights_only=True)
        with torch.no_grad():
            for name, average in self.average.module.named_parameters():
                average.copy_(content["weights"][name])
        self.average.n_averaged.copy_(content["n_averaged"])
        self._exchange()

    @staticmethod
    def is_in(folder: str | PathLike[str]) -> bool:
        """Whether a checkpoint was made with an average."""
        return (Path(folder) / _FILE).is_file()

    @torch.no_grad()
    def _exchange(self) -> None:
        for weights, average in self._pairs():
            kept = weights.clone()
            weights.copy_(average)
            average.copy_(kept)

    def _pairs(self) -> Iterator[tuple[nn.Parameter, nn.Parameter]]:
        return zip(self.model.parameters(), self.average.module.parameters(), strict=True)
