"""The losses of models with attributes, for images with labels and for ready triplets.

Both compute the loss over the joined batch of all processes.
"""

from collections.abc import Sequence
from os import PathLike
from typing import Any

import torch
from torch import nn

from .distributed import gather_with_gradient
from .losses import ConditionalLossOutput, explicit_triplet_loss
from .task import Loss, LossOutput, OwnWeights

# Cosines this near to 1, and no nearer for positives than for negatives: all images have the same embedding.
_EQUAL = 1e-3
_NO_NEARER = 1e-4


class ValueProxies(OwnWeights):
    """One learned vector for each value of A attributes, which attracts the embeddings of the images of that value.

    A triplet compares the images of one batch, which lacks most values of an attribute. A proxy represents its value
    in every batch: with x an image's embedding under an attribute, and p_v the attribute's proxies at length 1,

        loss = -log softmax_v(x . p_v / t)[the image's value]

    the normalised softmax (Zhai and Wu 2019, https://arxiv.org/abs/1811.12649; proxies: Movshovitz-Attias et al. 2017,
    https://arxiv.org/abs/1703.07464), beside the conditional triplet loss. Every process computes the same loss from
    the joined batch, so the proxies stay equal on all processes.

    Args:
        num_values: number of values of each attribute.
        dim: width of the embeddings.
        temperature: t, in units of cosine similarity.
        learning_rate: learning rate of the proxies, which must follow the embeddings that they represent.
        seed: seed of the initial vectors, which leaves all other random numbers alone.
    """

    file_name = "value_proxies.pt"
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
        targets = labels.T.flatten()
        losses = nn.functional.cross_entropy(logits.flatten(0, 1), targets, ignore_index=-1, reduction="none")
        losses = losses.view(labels.T.shape)  # (A, batch)
        return losses.sum(1) / (labels.T >= 0).sum(1).clamp(min=1)

    def _weights(self) -> dict[str, Any]:
        return {"vectors": self.vectors.detach()}

    def _set_weights(self, content: dict[str, Any], folder: str | PathLike[str]) -> None:
        stored, expected = tuple(content["vectors"].shape), tuple(self.vectors.shape)
        if stored != expected:
            raise ValueError(f"{folder} has proxies of shape {stored}, this training has {expected}")
        with torch.no_grad():
            self.vectors.copy_(content["vectors"])


class LabelLoss(Loss):
    """The loss of images with labels, each embedded under every attribute.

    A batch contains `labels` (batch, attributes), and the inputs of the model by name.

    Args:
        criterion: embeddings (batch, attributes, dim) and labels -> loss, such as [`ConditionalTripletLoss`].
        attributes: names of the attributes, for the logs.
        proxies: a second loss, which counts `proxy_weight` times.
        micro_batch_size: see `CCAModel.forward`.
    """

    def __init__(
        self,
        criterion: nn.Module,
        attributes: Sequence[str],
        *,
        proxies: ValueProxies | None = None,
        proxy_weight: float = 1.0,
        micro_batch_size: int | None = None,
    ) -> None:
        super().__init__()
        self.criterion = criterion
        self.attributes = list(attributes)
        self.proxies = proxies
        self.proxy_weight = proxy_weight
        self.micro_batch_size = micro_batch_size

    def forward(self, model: nn.Module, batch: dict[str, Any]) -> LossOutput:
        embeddings, labels = embed_under_all(model, batch, self.micro_batch_size)
        output = self.compare(gather_with_gradient(embeddings), gather_with_gradient(labels))
        return name_figures(output, self.attributes)

    def compare(self, embeddings: torch.Tensor, labels: torch.Tensor) -> ConditionalLossOutput:
        """As [`ConditionalTripletLoss.forward`], with both losses in `loss` and `attribute_loss`."""
        output: ConditionalLossOutput = self.criterion(embeddings, labels)
        if self.proxies is None:
            return output
        proxy_loss = self.proxy_weight * self.proxies(embeddings, labels)  # (A,)
        return output._replace(
            loss=output.loss + proxy_loss.sum() / (labels >= 0).any(0).sum().clamp(min=1),
            attribute_loss=output.attribute_loss + proxy_loss.detach(),
        )


class TripletLoss(Loss):
    """The loss of ready triplets, each embedded under its condition.

    A batch contains pixel values `anchor`, `positive` and `negative`, and `condition` (batch,), the ids of attributes.
    """

    def __init__(self, margin: float, attributes: Sequence[str], micro_batch_size: int | None = None) -> None:
        super().__init__()
        self.margin = margin
        self.attributes = list(attributes)
        self.micro_batch_size = micro_batch_size

    def forward(self, model: nn.Module, batch: dict[str, torch.Tensor]) -> LossOutput:
        images = torch.cat([batch["anchor"], batch["positive"], batch["negative"]])  # (3B, C, H, W)
        condition = batch["condition"]
        output = model(pixel_values=images, attribute_ids=condition.repeat(3), micro_batch_size=self.micro_batch_size)
        anchor, positive, negative = (gather_with_gradient(part) for part in output.embeddings.chunk(3))  # (B, D)
        ids, count = gather_with_gradient(condition), len(self.attributes)
        loss = explicit_triplet_loss(anchor, positive, negative, self.margin, attribute_ids=ids, num_attributes=count)
        return name_figures(loss, self.attributes)


def embed_under_all(
    model: nn.Module, batch: dict[str, Any], micro_batch_size: int | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Embeddings of a batch under every attribute, (batch, attributes, dim), and its labels (batch, attributes)."""
    inputs = dict(batch)
    labels = inputs.pop("labels")
    every = torch.arange(labels.shape[1], device=labels.device).expand(len(labels), -1)
    return model(**inputs, attribute_ids=every, micro_batch_size=micro_batch_size).embeddings, labels


@torch.no_grad()
def name_figures(output: ConditionalLossOutput, attributes: Sequence[str]) -> LossOutput:
    """Names the figures of each attribute: NaN for an attribute without a triplet, infinite if its loss is NaN."""
    present = output.has_triplets
    figures = {
        "loss": output.attribute_loss.where(~output.attribute_loss.isnan(), torch.inf),
        "active": output.active_share,
        "positive_similarity": output.positive_similarity,
        "negative_similarity": output.negative_similarity,
    }
    logs = {
        f"{name}_{attribute}": value
        for name, values in figures.items()
        for attribute, value in zip(attributes, values.where(present, torch.nan).unbind(), strict=True)
    }
    positive, negative = output.positive_similarity, output.negative_similarity
    equal = (negative > 1 - _EQUAL) & (positive - negative < _NO_NEARER) | ~present
    return LossOutput(output.loss, logs, equal.all().float().where(present.any(), torch.nan))
