"""What an attribute's embedding keeps: the subspace that its own values span, and nothing beside it.

A trained layer answers with more than it was asked for: what other attributes leave in an embedding costs the loss
nothing once its own values lie apart, and a simple reader finds all of it. So the last step of a model with
`attribute_subspaces` is one linear map for each attribute,

    e_c = normalise(P_c e + b_c),        e the normalised embedding before it

with P_c a projection on the differences between the means of the attribute's values, and b_c their centre's place. It
is not learned by gradient but fitted in closed form when training has ended (`training/subspaces.py`); until then it
changes nothing. Ours.
"""

import torch
from torch import nn
from transformers import PreTrainedConfig
from transformers import initialization as init


class AttributeSubspaces(nn.Module):
    """P_c (A, dim, dim) and b_c (A, dim): the identity and 0 until they are set."""

    projections: torch.Tensor
    offsets: torch.Tensor

    def __init__(self, config: PreTrainedConfig):
        super().__init__()
        count, dim = max(1, len(config.attributes)), config.embedding_dim or config.hidden_size
        self.register_buffer("projections", torch.eye(dim).repeat(count, 1, 1))
        self.register_buffer("offsets", torch.zeros(count, dim))

    @torch.no_grad()
    def init_weights(self) -> None:
        """Of what a checkpoint does not hold; what has been loaded stays."""
        init.copy_(self.projections, torch.eye(self.projections.shape[-1]).expand_as(self.projections))
        init.zeros_(self.offsets)

    @torch.no_grad()
    def reset(self) -> None:
        """Back to changing nothing."""
        self.projections.copy_(torch.eye(self.projections.shape[-1]).expand_as(self.projections))
        self.offsets.zero_()

    @torch.no_grad()
    def set(self, attribute_id: int, projection: torch.Tensor, offset: torch.Tensor) -> None:
        """`projection` (dim, dim) and `offset` (dim,) of one attribute."""
        self.projections[attribute_id].copy_(projection)
        self.offsets[attribute_id].copy_(offset)

    def append(self) -> None:
        """One attribute more, whose embeddings are left as they are."""
        self.projections = torch.cat([self.projections, torch.eye(len(self.offsets[0])).to(self.projections)[None]])
        self.offsets = torch.cat([self.offsets, torch.zeros_like(self.offsets[:1])])

    def forward(self, embeddings: torch.Tensor, attribute_ids: torch.Tensor) -> torch.Tensor:
        """(batch, k, dim) under ids (batch, k) -> (batch, k, dim), not normalised; in float32."""
        unit = nn.functional.normalize(embeddings.float(), dim=-1)
        # under every attribute, since gathering a matrix for each row would cost far more memory
        every = torch.einsum("bkd,aed->bkae", unit, self.projections.float())
        chosen = attribute_ids[..., None, None].expand(-1, -1, 1, every.shape[-1])
        return every.gather(2, chosen)[:, :, 0] + self.offsets.float()[attribute_ids]


__all__ = ["AttributeSubspaces"]
