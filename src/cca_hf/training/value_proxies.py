"""One learned vector for each value of each attribute, which the embeddings of that value's pictures are drawn to.

A triplet compares the pictures of one batch, in which most values of an attribute are missing. A proxy stands for its
value in every batch: with x a picture's embedding under an attribute, and p_v the attribute's proxies at length 1,

    loss = -log softmax_v(x . p_v / t)[the picture's value]

the normalised softmax (Zhai and Wu 2019, https://arxiv.org/abs/1811.12649; proxies: Movshovitz-Attias et al. 2017,
https://arxiv.org/abs/1703.07464), beside the conditional triplet loss. The proxies are a part of the training and not
of the model. They learn by an optimiser of their own from the joined batch of all processes, the same on each of them:
no wrapper of the model (DistributedDataParallel, FSDP, a gradient scaler) has to know of them.
"""

from collections.abc import Sequence
from os import PathLike
from pathlib import Path

import torch
from torch import nn

FILE_NAME = "value_proxies.pt"


class ValueProxies(nn.Module):
    """The proxies of A attributes, and their loss.

    Args:
        num_values: of each attribute.
        dim: of the embeddings.
        temperature: t, in cosine.
        learning_rate: of the proxies' own Adam. They have to follow what they are the middle of.
        seed: of their first places, drawn apart from all other random numbers.
    """

    known: torch.Tensor  # (A, most values), bool

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
        """The loss of each attribute (A,), 0 where no picture is labelled; its gradient is the embeddings' alone.

        While gradients are recorded, the proxies take a step of their own by the same loss.

        Args:
            embeddings: (batch, A, dim), L2-normalised.
            labels: (batch, A), value ids; -1 = not labelled.
        """
        with torch.autocast(embeddings.device.type, enabled=False):
            loss = self._loss(embeddings.float(), labels, self.vectors.detach())
            if torch.is_grad_enabled():
                self.vectors.grad = torch.autograd.grad(
                    self._loss(embeddings.detach().float(), labels, self.vectors).sum(), self.vectors
                )[0]
                self.optimizer.step()
        return loss

    def _loss(self, embeddings: torch.Tensor, labels: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
        proxies = nn.functional.normalize(vectors, dim=-1)
        logits = torch.einsum("bad,avd->abv", embeddings, proxies) / self.temperature
        logits = logits.masked_fill(~self.known[:, None], -torch.inf)
        of_pictures = nn.functional.cross_entropy(
            logits.flatten(0, 1), labels.T.flatten(), ignore_index=-1, reduction="none"
        ).view(labels.T.shape)
        return of_pictures.sum(1) / (labels.T >= 0).sum(1).clamp(min=1)

    def save(self, folder: str | PathLike[str]) -> None:
        """Proxies and optimiser, into a checkpoint."""
        content = {"vectors": self.vectors.detach(), "optimizer": self.optimizer.state_dict()}
        torch.save(content, Path(folder) / FILE_NAME)

    def load(self, folder: str | PathLike[str]) -> None:
        """The same, to go on from a checkpoint.

        Raises:
            ValueError: if the checkpoint was made without proxies, or with others.
        """
        path = Path(folder) / FILE_NAME
        if not path.exists():
            raise ValueError(f"{folder} was made without value proxies: go on with --proxy_weight 0, or start anew")
        content = torch.load(path, map_location=self.vectors.device, weights_only=True)
        if content["vectors"].shape != self.vectors.shape:
            raise ValueError(
                f"{folder} has proxies of shape {tuple(content['vectors'].shape)}, this training has "
                f"{tuple(self.vectors.shape)}"
            )
        with torch.no_grad():
            self.vectors.copy_(content["vectors"])
        self.optimizer.load_state_dict(content["optimizer"])
