"""What labelled pictures are trained by: a conditional loss between pictures, and value proxies beside it."""

from collections.abc import Sequence
from os import PathLike

import torch
from torch import nn

from .arguments import CCATrainingArguments
from .losses import ConditionalLossOutput, ConditionalSoftTripletLoss, ConditionalTripletLoss
from .value_proxies import ValueProxies


class Objective(nn.Module):
    """The loss that `args` describe: of pairs of pictures, and `args.proxy_weight` times that of the proxies.

    Args:
        num_values: of each attribute.
        dim: of the embeddings.
    """

    def __init__(self, args: CCATrainingArguments, num_values: Sequence[int], dim: int) -> None:
        super().__init__()
        self.of_pairs: nn.Module
        if args.loss == "soft_triplet":
            self.of_pairs = ConditionalSoftTripletLoss(args.temperature, args.margin)
        else:
            self.of_pairs = ConditionalTripletLoss(args.margin, args.mining)
        self.proxy_weight = args.proxy_weight
        self.proxies: ValueProxies | None = None
        if args.proxy_weight > 0:
            self.proxies = ValueProxies(
                num_values,
                dim,
                temperature=args.temperature,
                learning_rate=args.proxy_learning_rate,
                seed=args.seed,
            )

    def forward(self, embeddings: torch.Tensor, labels: torch.Tensor) -> ConditionalLossOutput:
        """As [`ConditionalTripletLoss.forward`], with both losses in `loss` and `attribute_loss`."""
        output: ConditionalLossOutput = self.of_pairs(embeddings, labels)
        if self.proxies is None:
            return output
        of_values = self.proxy_weight * self.proxies(embeddings, labels)  # (A,)
        return output._replace(
            loss=output.loss + of_values.sum() / (labels >= 0).any(0).sum().clamp(min=1),
            attribute_loss=output.attribute_loss + of_values.detach(),
        )

    def save(self, folder: str | PathLike[str]) -> None:
        """What has been learned beside the model, into a checkpoint."""
        if self.proxies is not None:
            self.proxies.save(folder)

    def load(self, folder: str | PathLike[str]) -> None:
        """The same, to go on from a checkpoint.

        Raises:
            ValueError: see [`ValueProxies.load`].
        """
        if self.proxies is not None:
            self.proxies.load(folder)
