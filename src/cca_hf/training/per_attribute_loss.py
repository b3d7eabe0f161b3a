"""Losses made for one embedding space, such as those of pytorch-metric-learning, applied to each attribute's space.

    from pytorch_metric_learning import losses, miners

    loss = PerAttributeLoss(losses.MultiSimilarityLoss(), miner=miners.MultiSimilarityMiner())
    trainer = CCATrainer(model, args, data, loss=loss)

The library is not imported here: a loss and a miner only have to be called as its losses and miners are.
"""

import copy
from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any

import torch
from torch import nn

from .distributed import average_over_processes
from .losses import ConditionalLossOutput, at_least_fp32, cosine_similarities, count_active, pair_masks, with_figures
from .task import OwnWeights

_MARGIN = 0.2  # for the triplets that `active_share` counts; the triplet loss has the same, so the figures compare


class PerAttributeLoss(OwnWeights):
    """Any loss between labelled embeddings, applied to each attribute separately; the mean over the attributes.

    For an attribute, the loss gets the images of the joined batch of all processes that have a label for it. An
    attribute without a triplet in the batch (two images of one value and one of another) is left out of that batch.

    Args:
        loss: called as `loss(embeddings, values)` with `(n, dim)` and `(n,)`, and with the miner's output as a third
            argument if there is a miner; returns one number. A loss that learns or remembers something must be given
            per attribute, in a mapping:
            `{name: ProxyAnchorLoss(len(values), dim) for name, values in data.attributes.items()}`.
        miner: called as `miner(embeddings, values)`; the same for all attributes.
        learning_rate: learning rate of the weights of the losses themselves. A separate Adam updates them, without
            the Trainer's schedule.

    Raises:
        TypeError: if a loss is no `torch.nn.Module`.
        ValueError: for a learning rate below 0.
    """

    file_name = "attribute_losses.pt"
    absent = "losses that learn: resume with the loss of that training"

    def __init__(
        self, loss: nn.Module | Mapping[str, nn.Module], *, miner: nn.Module | None = None, learning_rate: float = 1e-2
    ) -> None:
        super().__init__()
        self._given: dict[str, nn.Module] | list[nn.Module] = dict(loss) if isinstance(loss, Mapping) else [loss]
        for each in self._given.values() if isinstance(self._given, dict) else self._given:
            if not isinstance(each, nn.Module):
                raise TypeError(f"a loss is a torch.nn.Module, or a mapping of them by attribute; got {each!r}")
        if not learning_rate >= 0:
            raise ValueError(f"learning_rate must be at least 0, got {learning_rate}")
        self.losses = nn.ModuleList()  # in the order of the attributes, filled by `settle`
        self.miner = miner
        self.learning_rate = learning_rate

    def settle(
        self, attributes: Mapping[str, Sequence[str]], dim: int, device: torch.device | str = "cpu"
    ) -> "PerAttributeLoss":
        """Assigns a loss to each attribute, and tries it on a few numbers. `CCATrainer` calls this.

        Args:
            attributes: the values of each attribute, by name.
            dim: width of the embeddings.
            device: where the losses move.

        Raises:
            ValueError: if the names are not those of the attributes, if a loss that learns or remembers something is
                shared between attributes, or if a loss does not accept its attribute's values or embeddings of `dim`.
        """
        if isinstance(self._given, list):
            losses = self._given * len(attributes)
        elif self._given.keys() != attributes.keys():
            raise ValueError(f"losses are given for {list(self._given)}, the data has {list(attributes)}")
        else:
            losses = [self._given[name] for name in attributes]
        for shared in (loss for place, loss in enumerate(losses) if loss.state_dict() and loss in losses[:place]):
            name = type(shared).__name__
            raise ValueError(
                f"{name} has weights or a memory, which attributes cannot share: give a mapping, "
                f"{{name: {name}(...) for name in data.attributes}}"
            )
        for (name, values), loss in zip(attributes.items(), losses, strict=True):
            self._try(name, len(values), dim, loss)
        self.losses = nn.ModuleList(losses)
        self.to(device)
        parameters = self._learned()
        if parameters:
            self.optimizer = torch.optim.Adam(parameters, lr=self.learning_rate)
        return self

    def _try(self, name: str, num_values: int, dim: int, loss: nn.Module) -> None:
        """Calls a copy with the first and the last value: a wrong number of values must not stop a run much later."""
        values = torch.tensor([0, 0, num_values - 1, num_values - 1])
        embeddings = nn.functional.normalize(torch.randn(4, dim, generator=torch.Generator().manual_seed(0)), dim=-1)
        with torch.random.fork_rng(devices=[]):
            try:
                found = self._call(copy.deepcopy(loss), embeddings, values)
            except Exception as error:  # losses of other libraries raise errors of any type
                raise ValueError(
                    f"the loss of {name!r}, {type(loss).__name__}, does not accept embeddings of {dim} numbers with "
                    f"{num_values} values: {type(error).__name__}: {error}"
                ) from error
        if not isinstance(found, torch.Tensor) or found.numel() != 1:
            raise ValueError(
                f"the loss of {name!r}, {type(loss).__name__}, must return one number; it returned {found!r}"
            )

    def _call(self, loss: nn.Module, embeddings: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        if self.miner is None:
            return loss(embeddings, values)
        return loss(embeddings, values, self.miner(embeddings, values))

    def _learned(self) -> list[nn.Parameter]:
        return [parameter for parameter in self.losses.parameters() if parameter.requires_grad]

    def forward(self, embeddings: torch.Tensor, labels: torch.Tensor) -> ConditionalLossOutput:
        """As [`ConditionalTripletLoss.forward`]. While gradients are recorded, those of the losses are collected."""
        with torch.autocast(embeddings.device.type, enabled=False):
            embeddings = at_least_fp32(embeddings)
            similarities = cosine_similarities(embeddings.detach(), labels)
            positives, negatives = pair_masks(labels)
            counts = count_active(similarities, positives, negatives, _MARGIN)
            attribute_loss = self._of_attributes(embeddings, labels, (counts.looked_at > 0).tolist())
            if self.optimizer is not None and embeddings.requires_grad and torch.is_grad_enabled():
                attribute_loss = self._collect_gradients(embeddings, attribute_loss)
        return with_figures(attribute_loss, similarities, positives, negatives, counts)

    def _of_attributes(self, embeddings: torch.Tensor, labels: torch.Tensor, present: list[bool]) -> torch.Tensor:
        """`(attributes,)`, 0 for attributes that are left out."""
        losses = []
        for attribute_id, loss in enumerate(self.losses):
            labelled = labels[:, attribute_id] >= 0
            if present[attribute_id]:
                of_attribute = embeddings[labelled, attribute_id], labels[labelled, attribute_id]
                losses.append(self._call(loss, *of_attribute).reshape(()))
            else:
                losses.append(embeddings[:0].sum())  # 0 with a gradient, of 0
        return torch.stack(losses)

    def _collect_gradients(self, embeddings: torch.Tensor, attribute_loss: torch.Tensor) -> torch.Tensor:
        """Returns the same losses, linear in the embeddings, with the same gradient there.

        No loss is computed twice, because it may draw random triplets, or remember what it has seen.
        """
        parameters = self._learned()
        inputs = [embeddings, *parameters]
        gradient, *of_parameters = torch.autograd.grad(attribute_loss.sum(), inputs, allow_unused=True)
        self.collect(parameters, of_parameters)
        linear = (embeddings * gradient).sum((0, 2))  # (A,): no attribute's loss depends on another's embeddings
        return attribute_loss.detach() + linear - linear.detach()

    def optimizer_step(self) -> None:
        """Updates the weights of the losses by the mean gradient over batches and processes."""
        average_over_processes(self.collected())
        super().optimizer_step()

    def _weights(self) -> dict[str, Any]:
        """A memory of earlier batches (`CrossBatchMemory`) is not saved: it starts empty."""
        return {"losses": self.losses.state_dict()}

    def _set_weights(self, content: dict[str, Any], folder: str | PathLike[str]) -> None:
        try:
            self.losses.load_state_dict(content["losses"])
        except RuntimeError as error:
            raise ValueError(f"{folder} was made with other losses: {error}") from error
