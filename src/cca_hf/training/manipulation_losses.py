"""The losses of attribute-driven disentangled embeddings (ADDE), for embeddings whose values can be changed.

Hou, Vig, Donoser, Bazzani: "Learning Attribute-Driven Disentangled Representations for Interactive Fashion Retrieval",
ICCV 2021. With r_a the normalised embedding of an image under attribute a, r = [r_1 .. r_A] and M the memory, whose
column of a value contains its prototype:

    classification   cross-entropy of the classifier of each attribute
    local            triplets of each attribute: positives have the anchor's value, negatives another one. Ours: in a
                     smooth form, see `ConditionalSoftTripletLoss`
    global           triplets of r: positives have all labels of the anchor, negatives do not
    compositional    triplets of r' = r + M i, a changed reference: positives have exactly the target labels
    consistency      r and r' are near M y, the prototypes of their labels: L1 distance or triplets
    memory           |(1 - D) o M|_1, with D the blocks of the values' own attributes; mean over the values

Triplets compare squared distances, which are 2 - 2 cos for normalised vectors. Ours: embeddings, also r', are
normalised block by block, and a distance of r is the mean over the attributes with which both images are labelled.
Missing labels therefore take no part. Every loss is computed over the joined batch of all processes.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import nn

from .attribute_losses import name_figures
from .distributed import gather_with_gradient
from .losses import (
    ConditionalLossOutput,
    ConditionalSoftTripletLoss,
    Mining,
    at_least_fp32,
    cosine_similarities,
    pair_masks,
    triplet_losses,
    with_figures,
)
from .task import Loss, LossOutput

Consistency = Literal["l1", "triplet"]
MOST_CHANGES = 2  # attributes in which the two images of a compositional triplet may differ


@dataclass(frozen=True)
class ManipulationWeights:
    """The weight of each loss; a loss with weight 0 is not computed."""

    classification: float = 0.0
    local: float = 0.0
    whole: float = 0.0
    compositional: float = 0.0
    consistency: float = 0.0
    memory: float = 0.0


class ManipulationBatch(NamedTuple):
    """What the losses compare, of the joined batch: B images, A attributes with J values in all."""

    embeddings: torch.Tensor  # (B, A, dim), L2-normalised
    logits: torch.Tensor  # (B, A, most values), -inf beyond the values of an attribute
    prototypes: torch.Tensor  # (J, A, dim), the values in the order of the attributes
    labels: torch.Tensor  # (B, A), -1 = not labelled


class ManipulationLoss(Loss):
    """The weighted sum of the losses of ADDE.

    A batch contains `labels` (batch, attributes), and the inputs of the model by name. The images 2k and 2k + 1 are a
    pair for the compositional loss, in both directions, if they differ in one attribute or two; see
    [`ChangeBatchSampler`].

    Args:
        attributes: the values of each attribute, by name.
        margin: the squared distance of a negative must exceed that of the positive by this.
        mining: as in [`ConditionalTripletLoss`].
        temperature: the local loss is [`ConditionalSoftTripletLoss`] with this temperature; `None` for triplets with
            the margin, as in the paper.
        micro_batch_size: see `CCAModel.forward`.
    """

    first: torch.Tensor
    own: torch.Tensor

    def __init__(
        self,
        attributes: Mapping[str, Sequence[str]],
        weights: ManipulationWeights,
        *,
        margin: float = 0.5,
        mining: Mining = "semihard",
        temperature: float | None = None,
        consistency: Consistency = "l1",
        micro_batch_size: int | None = None,
    ) -> None:
        super().__init__()
        self.attributes = list(attributes)
        num_values = torch.tensor([len(values) for values in attributes.values()])
        self.total = int(num_values.sum())  # J
        of_value = torch.repeat_interleave(num_values)
        self.register_buffer("first", num_values.cumsum(0) - num_values)  # (A,), the place of the first value in M
        self.register_buffer("own", of_value[:, None] == torch.arange(len(num_values)))  # (J, A)
        self.weights = weights
        self.margin = margin
        self.mining: Mining = mining
        self.soft_triplets = None if temperature is None else ConditionalSoftTripletLoss(temperature, margin / 2)
        self.consistency: Consistency = consistency
        self.micro_batch_size = micro_batch_size
        self._terms: dict[str, Callable[[ManipulationBatch], LossOutput]] = {
            "classification": self.classification,
            "local": self.local,
            "whole": self.whole,
            "compositional": self.compositional,
            "consistency": self.l1_consistency if consistency == "l1" else self.triplet_consistency,
            "memory": self.memory,
        }

    def extra_repr(self) -> str:
        return f"{self.weights}, margin={self.margin}, mining={self.mining!r}, consistency={self.consistency!r}"

    def forward(self, model: nn.Module, batch: dict[str, Any]) -> LossOutput:
        inputs = dict(batch)
        labels = inputs.pop("labels")
        every = torch.arange(labels.shape[1], device=labels.device).expand(len(labels), -1)
        output = model(**inputs, attribute_ids=every, micro_batch_size=self.micro_batch_size)
        embeddings, logits, labels = (
            gather_with_gradient(part) for part in (output.embeddings, output.logits, labels)
        )
        return self.compare(ManipulationBatch(embeddings, logits, output.prototypes, labels))

    def compare(self, batch: ManipulationBatch) -> LossOutput:
        """The weighted sum, in at least float32; the logs have the figures of each loss."""
        embeddings, logits, prototypes = (at_least_fp32(part) for part in batch[:3])
        batch = ManipulationBatch(embeddings, logits, prototypes, batch.labels)
        total, collapsed = embeddings.new_zeros(()), None
        logs: dict[str, torch.Tensor] = {}
        with torch.autocast(batch.embeddings.device.type, enabled=False):
            for name, term in self._terms.items():
                weight = vars(self.weights)[name]
                if weight > 0:
                    output = term(batch)
                    total = total + weight * output.loss
                    logs.update(output.logs)
                    collapsed = output.collapsed if collapsed is None else collapsed
        return LossOutput(total, logs, collapsed)

    # ---- The losses ----

    def classification(self, batch: ManipulationBatch) -> LossOutput:
        """The mean over the labelled images of each attribute, then over the attributes that have some."""
        logits, labels = batch.logits.transpose(1, 2), batch.labels  # the values come second in cross_entropy
        losses = nn.functional.cross_entropy(logits, labels, ignore_index=-1, reduction="none")  # (B, A)
        counts = (labels >= 0).sum(0)
        attribute_loss = losses.sum(0) / counts.clamp(min=1)
        return _named("classification", attribute_loss.sum() / (counts > 0).sum().clamp(min=1))

    def local(self, batch: ManipulationBatch) -> LossOutput:
        """The mean over the active triplets of each attribute, then over the attributes that have triplets."""
        if self.soft_triplets is not None:
            return name_figures(self.soft_triplets(batch.embeddings, batch.labels), self.attributes)
        similarities = cosine_similarities(batch.embeddings, batch.labels)
        return name_figures(self._triplets(similarities, *pair_masks(batch.labels)), self.attributes)

    def whole(self, batch: ManipulationBatch) -> LossOutput:
        """The global loss: the mean over the active triplets of whole vectors."""
        similarities, same, different = compare_whole(batch.embeddings, batch.labels, batch.embeddings, batch.labels)
        itself = torch.eye(len(same), dtype=torch.bool, device=same.device)
        return name_figures(self._triplets(similarities[None], (same & ~itself)[None], different[None]), ["whole"])

    def compositional(self, batch: ManipulationBatch) -> LossOutput:
        """The mean over the active triplets whose anchor is a changed reference."""
        changed, target_labels, attribute_changes = self.change(batch)
        similarities, same, different = compare_whole(changed, target_labels, batch.embeddings, batch.labels)
        # a value that is to change must be known of the target
        unknown = (attribute_changes[:, None] & (batch.labels < 0)).any(2)
        return name_figures(
            self._triplets(similarities[None], (same & ~unknown)[None], different[None]), ["compositional"]
        )

    def l1_consistency(self, batch: ManipulationBatch) -> LossOutput:
        """The L1 distance of r and M y, and of r' and M y', divided by dim ** 0.5: the mean over labelled blocks.

        The numbers of a block with length 1 are as small as dim ** -0.5, so the quotient does not depend on dim.
        """
        vectors, labels, expected = self._with_changed(batch)
        differences = (vectors - expected).abs().sum(-1) / vectors.shape[-1] ** 0.5  # (2B, A)
        labelled = labels >= 0
        return _named("consistency", torch.where(labelled, differences, 0).sum() / labelled.sum().clamp(min=1))

    def triplet_consistency(self, batch: ManipulationBatch) -> LossOutput:
        """Triplets with M y as anchor: positives are r and r' of the same labels, negatives those of others."""
        vectors, labels, expected = self._with_changed(batch)
        anchors = nn.functional.normalize(expected, dim=-1)
        similarities, same, different = compare_whole(anchors, labels, vectors, labels)
        return name_figures(self._triplets(similarities[None], same[None], different[None]), ["consistency"])

    def memory(self, batch: ManipulationBatch) -> LossOutput:
        """|(1 - D) o M|_1 / J: zero if a value adds nothing to the blocks of other attributes."""
        mass = batch.prototypes.abs().sum(-1)  # (J, A)
        return _named("memory", torch.where(self.own, 0, mass).sum() / self.total)

    # ---- Their parts ----

    def change(self, batch: ManipulationBatch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Changes each image into the other one of its pair.

        Returns:
            r' = r + M i (B, A, dim), normalised block by block; its labels (B, A), all -1 if the two images differ in
            no attribute or in more than two; and the attributes that change, (B, A).
        """
        labels = batch.labels
        partner = labels.view(-1, 2, labels.shape[1]).flip(1).view(labels.shape)
        changes = (labels >= 0) & (partner >= 0) & (labels != partner)
        count = changes.sum(1, keepdim=True)
        possible = (count >= 1) & (count <= MOST_CHANGES)
        new, old = (self.indicators(torch.where(changes, each, -1)) for each in (partner, labels))
        indicator = (new - old).to(batch.prototypes.dtype)
        moved = batch.embeddings + torch.einsum("bj,jad->bad", indicator, batch.prototypes)
        target_labels = torch.where(possible, torch.where(changes, partner, labels), -1)
        return nn.functional.normalize(moved, dim=-1), target_labels, changes & possible

    def indicators(self, labels: torch.Tensor) -> torch.Tensor:
        """(B, A) value ids, -1 for none -> (B, J) int64, 1 for each value."""
        places = torch.where(labels >= 0, labels + self.first, self.total)
        return labels.new_zeros(len(labels), self.total + 1).scatter_(1, places, 1)[:, : self.total]

    def _with_changed(self, batch: ManipulationBatch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """r and r' (2B, A, dim), their labels (2B, A), and the prototypes of these, M y (2B, A, dim)."""
        changed, target_labels, _ = self.change(batch)
        labels = torch.cat([batch.labels, target_labels])
        indicators = self.indicators(labels).to(batch.prototypes.dtype)
        expected = torch.einsum("bj,jad->bad", indicators, batch.prototypes)
        return torch.cat([batch.embeddings, changed]), labels, expected

    def _triplets(
        self, similarities: torch.Tensor, positives: torch.Tensor, negatives: torch.Tensor
    ) -> ConditionalLossOutput:
        """Triplets of squared distances, which are 2 - 2 cos."""
        losses, counts = triplet_losses(similarities, positives, negatives, self.margin / 2, self.mining)
        return with_figures(2 * losses, similarities, positives, negatives, counts)


def compare_whole(
    rows: torch.Tensor, row_labels: torch.Tensor, columns: torch.Tensor, column_labels: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Compares whole vectors on the attributes with which both sides are labelled.

    Args:
        rows, columns: (R, A, dim) and (C, A, dim), normalised block by block.
        row_labels, column_labels: (R, A) and (C, A), -1 = not labelled.

    Returns:
        (R, C) each: the mean cosine; whether all these labels are equal; whether some differ. Two sides without a
        common attribute are neither equal nor different.
    """
    row_labels, column_labels = row_labels.T[:, :, None], column_labels.T[:, None]  # (A, R, 1), (A, 1, C)
    both = (row_labels >= 0) & (column_labels >= 0)
    different = (both & (row_labels != column_labels)).any(0)
    count = both.sum(0)
    cosines = rows.transpose(0, 1) @ columns.permute(1, 2, 0)  # (A, R, C)
    similarities = torch.where(both, cosines, 0).sum(0) / count.clamp(min=1)
    return similarities, (count > 0) & ~different, different


def _named(name: str, loss: torch.Tensor) -> LossOutput:
    """A loss with itself in the logs, where infinite means that it could not be computed."""
    figure = loss.detach()
    return LossOutput(loss, {f"loss_{name}": figure.where(~figure.isnan(), torch.inf)})
