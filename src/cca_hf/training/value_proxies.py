"""One learned vector for each value of each attribute, which attracts the embeddings of the images of that value.

A triplet compares the images of one batch, which lacks most values of an attribute. A proxy represents its value in
every batch: with x an image's embedding under an attribute, and p_v the attribute's proxies at length 1,

    loss = -log softmax_v(x . p_v / t)[the image's value]

the normalised softmax (Zhai and Wu 2019, https://arxiv.org/abs/1811.12649; proxies: Movshovitz-Attias et al. 2017,
https://arxiv.org/abs/1703.07464), beside the conditional triplet loss. Every process computes the same loss from the
joined batch, so the proxies stay equal on all processes.
"""

from collections.abc import Sequence
from os import PathLike
from typing import Any

import torch
from torch import nn

from .task import OwnWeights

FILE_NAME = "value_proxies.pt"


class ValueProxies(OwnWeights):
    """The proxies of A attributes, and their loss.

    Args:
        num_values: number of values of each attribute.
        dim: width of the embeddings.
        temperature: t, in units of cosine similarity.
        learning_rate: learning rate of the proxies, which must follow the embeddings that they represent.
        seed: seed of the initial vectors, which leaves all other random numbers alone.
    """

    file_name = FILE_NAME
    absent = "value proxies: resume with --proxy_weight 0"
    known: torch.Tensor  # (A, most values), bool
    optimizer: torch.optim.Optimizer

    def __init__(
        self,
        num_values: Sequence[int],
        dim: int,
        *,
        temperature: float = 0.1,
        learning_rate: float = 1e-2,
        seed: int = 0,
    ) -> None:
        super().__init__()
        shape = (len(num_values), max(num_values), dim)
        self.vectors = nn.Parameter(torch.randn(shape, generator=torch.Generator().manual_seed(seed)) / dim**0.5)
        self.register_buffer("known", torch.arange(shape[1]) < torch.tensor(num_values)[:, None])
        self.temperature = temperature
        self.optimizer = torch.optim.Adam([self.vectors], lr=learning_rate)

    def forward(self, embeddings: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The loss of each attribute (A,), 0 without a labelled image; its gradient goes to the embeddings alone.

        While gradients are recorded, the gradient of the proxies is collected for `optimizer_step`.

        Args:
            embeddings: (batch, A, dim), L2-normalised.
            labels: (batch, A), value ids; -1 = not labelled.
        """
        with torch.autocast(embeddings.device.type, enabled=False):
            loss = self._loss(embeddings.float(), labels, self.vectors.detach())
            if torch.is_grad_enabled():
                own_loss = self._loss(embeddings.detach().float(), labels, self.vectors).sum()
                self.collect([self.vectors], torch.autograd.grad(own_loss, self.vectors))
        return loss

    def _loss(self, embeddings: torch.Tensor, labels: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
        proxies = nn.functional.normalize(vectors, dim=-1)
        logits = torch.einsum("bad,avd->abv", embeddings, proxies) / self.temperature
        logits = logits.masked_fill(~self.known[:, None], -torch.inf)
        losses = nn.functional.cross_entropy(
            logits.flatten(0, 1), labels.T.flatten(), ignore_index=-1, reduction="none"
        ).view(labels.T.shape)  # (A, batch)
        return losses.sum(1) / (labels.T >= 0).sum(1).clamp(min=1)

    def _weights(self) -> dict[str, Any]:
        return {"vectors": self.vectors.detach()}

    def _set_weights(self, content: dict[str, Any], folder: str | PathLike[str]) -> None:
        if content["vectors"].shape != self.vectors.shape:
            raise ValueError(
                f"{folder} has proxies of shape {tuple(content['vectors'].shape)}, this training has "
                f"{tuple(self.vectors.shape)}"
            )
        with torch.no_grad():
            self.vectors.copy_(content["vectors"])
