"""Losses made for one embedding space, those of pytorch-metric-learning above all, in each attribute's own space.

    from pytorch_metric_learning import losses, miners

    loss = PerAttributeLoss(losses.MultiSimilarityLoss(), miner=miners.MultiSimilarityMiner())
    trainer = CCATrainer(model, args, data, loss=loss)

That library is not imported here: all that is asked of a loss and a miner is how they are called. What a loss has
learned (proxies, centres, boundaries) belongs to the training and not to the model, as in `value_proxies.py`.
"""

import copy
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path

import torch
from torch import nn

from .distributed import average_over_processes, copy_from_first_process
from .losses import ConditionalLossOutput, at_least_fp32, cosine_similarities, with_figures
from .mining import count_active, pair_masks

FILE_NAME = "attribute_losses.pt"
_MARGIN = 0.2  # of the triplets that `active_share` counts: the triplet loss's, so that its figures compare


class PerAttributeLoss(nn.Module):
    """Any loss between labelled embeddings, for each attribute by itself; the mean over the attributes.

    Of an attribute the loss sees the images that are labelled there, of the joined batch of all processes. One without
    a triplet in a batch (two images of a value, one of another) takes no part in that batch.

    Args:
        loss: called as `loss(embeddings, values)` with `(n, dim)` and `(n,)`, the miner's find as a third where there
            is one; returns one number. One that learns or remembers something has to be one for each attribute, in a
            mapping: `{name: ProxyAnchorLoss(len(values), dim) for name, values in data.attributes.items()}`.
        miner: called as `miner(embeddings, values)`; the same for all attributes.
        learning_rate: of what the losses themselves learn. An Adam of their own takes a step whenever the loss is
            computed, by the gradient of that very loss; the Trainer's schedule does not touch it.

    Raises:
        TypeError: if a loss is no `torch.nn.Module`.
        ValueError: for a learning rate below 0.
    """

    def __init__(
        self,
        loss: nn.Module | Mapping[str, nn.Module],
        *,
        miner: nn.Module | None = None,
        learning_rate: float = 1e-2,
    ) -> None:
        super().__init__()
        for each in loss.values() if isinstance(loss, Mapping) else [loss]:
            if not isinstance(each, nn.Module):
                raise TypeError(f"a loss is a torch.nn.Module, or a mapping of them by attribute; got {each!r}")
        if not learning_rate >= 0:
            raise ValueError(f"learning_rate must be at least 0, got {learning_rate}")
        self._given: dict[str, nn.Module] | list[nn.Module] = dict(loss) if isinstance(loss, Mapping) else [loss]
        self.losses = nn.ModuleList()  # in the order of the attributes, when they are known
        self.miner = miner
        self.learning_rate = learning_rate
        self.optimizer: torch.optim.Optimizer | None = None

    def settle(
        self, attributes: Mapping[str, Sequence[str]], dim: int, device: torch.device | str = "cpu"
    ) -> "PerAttributeLoss":
        """Gives each attribute its loss, tries all of them on a few numbers, and moves them. `CCATrainer` does it.

        Args:
            attributes: the values of each, by name.
            dim: of the embeddings.

        Raises:
            ValueError: names that are not those of the attributes; a loss that has learned or remembers something,
                for more than one attribute; one that does not take its attribute's values, or embeddings of `dim`.
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
                f"{name} holds something of its own (weights, a memory), so that each attribute needs one for itself: "
                f"give a mapping, {{name: {name}(...) for name in data.attributes}}"
            )
        for (name, values), loss in zip(attributes.items(), losses, strict=True):
            self._try(name, len(values), dim, loss)
        self.losses = nn.ModuleList(losses)
        self.to(device)
        parameters = self._learned()
        copy_from_first_process(parameters)
        if parameters:
            self.optimizer = torch.optim.Adam(parameters, lr=self.learning_rate)
        return self

    def _try(self, name: str, num_values: int, dim: int, loss: nn.Module) -> None:
        """On a copy, with the first and the last value: a wrong number of them must not come out an hour later."""
        values = torch.tensor([0, 0, num_values - 1, num_values - 1])
        embeddings = nn.functional.normalize(torch.randn(4, dim, generator=torch.Generator().manual_seed(0)), dim=-1)
        with torch.random.fork_rng(devices=[]):
            try:
                found = self._call(copy.deepcopy(loss), embeddings, values)
            except Exception as error:  # whatever a loss of whatever origin raises
                raise ValueError(
                    f"the loss of {name!r}, {type(loss).__name__}, does not take embeddings of {dim} numbers with "
                    f"{num_values} values: {type(error).__name__}: {error}"
                ) from error
        if not isinstance(found, torch.Tensor) or found.numel() != 1:
            raise ValueError(f"the loss of {name!r}, {type(loss).__name__}, must return one number; it gave {found!r}")

    def _call(self, loss: nn.Module, embeddings: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        if self.miner is None:
            return loss(embeddings, values)
        return loss(embeddings, values, self.miner(embeddings, values))

    def _learned(self) -> list[nn.Parameter]:
        return [parameter for parameter in self.losses.parameters() if parameter.requires_grad]

    def forward(self, embeddings: torch.Tensor, labels: torch.Tensor) -> ConditionalLossOutput:
        """As [`ConditionalTripletLoss.forward`]. While gradients are recorded, the losses' own weights take a step."""
        with torch.autocast(embeddings.device.type, enabled=False):
            embeddings = at_least_fp32(embeddings)
            similarities = cosine_similarities(embeddings.detach(), labels)
            positives, negatives = pair_masks(labels)
            counts = count_active(similarities, positives, negatives, _MARGIN)
            attribute_loss = self._of_attributes(embeddings, labels, (counts.looked_at > 0).tolist())
            if self.optimizer is not None and embeddings.requires_grad and torch.is_grad_enabled():
                attribute_loss = self._learn(self.optimizer, embeddings, attribute_loss)
        return with_figures(attribute_loss, similarities, positives, negatives, counts)

    def _of_attributes(self, embeddings: torch.Tensor, labels: torch.Tensor, present: list[bool]) -> torch.Tensor:
        """`(attributes,)`, 0 for those that take no part."""
        found = []
        for attribute_id, loss in enumerate(self.losses):
            labelled = labels[:, attribute_id] >= 0
            if not present[attribute_id]:
                found.append(embeddings[:0].sum())  # 0 with a gradient, of 0
                continue
            of_attribute = embeddings[labelled, attribute_id], labels[labelled, attribute_id]
            found.append(self._call(loss, *of_attribute).reshape(()))
        return torch.stack(found)

    def _learn(
        self, optimizer: torch.optim.Optimizer, embeddings: torch.Tensor, attribute_loss: torch.Tensor
    ) -> torch.Tensor:
        """The weights' step; returns the same losses, linear in the embeddings, with the same gradient there.

        The graph of the loss holds the weights as they were, so it is used up before they change. It is not computed a
        second time: a loss may draw random triplets, or remember what it has seen.
        """
        parameters = self._learned()
        gradient, *of_parameters = torch.autograd.grad(
            attribute_loss.sum(), [embeddings, *parameters], allow_unused=True
        )
        for parameter, found in zip(parameters, of_parameters, strict=True):
            parameter.grad = found  # None where an attribute took no part: the optimiser leaves its weights alone
        average_over_processes([found for found in of_parameters if found is not None])
        optimizer.step()
        linear = (embeddings * gradient).sum((0, 2))  # (A,): no attribute's loss depends on another's embeddings
        return attribute_loss.detach() + linear - linear.detach()

    def save(self, folder: str | PathLike[str]) -> None:
        """What the losses have learned, and their optimiser, into a checkpoint; nothing where nothing is learned."""
        if self.optimizer is not None:
            content = {"losses": self.losses.state_dict(), "optimizer": self.optimizer.state_dict()}
            torch.save(content, Path(folder) / FILE_NAME)

    def load(self, folder: str | PathLike[str]) -> None:
        """The same, to go on from a checkpoint. A memory of earlier batches (`CrossBatchMemory`) begins anew.

        Raises:
            ValueError: if the checkpoint was made with other losses.
        """
        if self.optimizer is None:
            return
        path = Path(folder) / FILE_NAME
        if not path.exists():
            raise ValueError(f"{folder} was made without losses that learn: go on with its own loss, or start anew")
        content = torch.load(path, map_location=self._learned()[0].device, weights_only=True)
        try:
            self.losses.load_state_dict(content["losses"])
        except RuntimeError as error:
            raise ValueError(f"{folder} was made with other losses: {error}") from error
        self.optimizer.load_state_dict(content["optimizer"])
