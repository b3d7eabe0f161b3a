"""Attribute-specific embedding network (ASEN): spatial, then channel attention by the attribute.

Ma, Dong, Long, Zhang, He, Xue, Ji: "Fine-Grained Fashion Similarity Learning by Attribute-Specific Embedding Network",
AAAI 2020, https://arxiv.org/abs/2002.02814.

From the paper: the two attentions, in the form of its second published version (the attribute's embedding as key of
the spatial attention). Ours: they attend to CCA's image tokens, which cover all feature levels and are normalised
already, so that the batch normalisation of the paper's projection is left out; the model is trained with CCA's loss.
"""

import torch
from torch import nn
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer

from .configuration_baselines import ASENConfig
from .modeling_cca import CCAModel
from .modeling_conditional import ConditionEmbedding


class AttributeAwareAttention(GradientCheckpointingLayer):
    """Select where an attribute is visible in the image, and which channels describe it.

    spatial:  a = softmax(tanh(Ws c) tanh(Wx X)^T / sqrt(D));  v = a X
    channel:  g = sigmoid(W2 ReLU(W1 [v, ReLU(Wc c)]));        z = v * g
    """

    def __init__(self, config: ASENConfig):
        super().__init__()
        dim = config.hidden_size
        self.spatial_condition = nn.Linear(dim, dim)
        self.spatial_tokens = nn.Linear(dim, dim)
        self.channel_condition = nn.Linear(dim, dim)
        self.channel_squeeze = nn.Linear(2 * dim, dim)
        self.channel_excite = nn.Linear(dim, dim)

    def forward(self, conditions: torch.Tensor, image_tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """conditions (batch, D) or (batch, k, D), image_tokens (batch, N, D) -> states of the shape of `conditions`;
        spatial weights of one head, (batch, 1, N) or (batch, k, 1, N).
        """
        query = self.spatial_condition(conditions).tanh()[..., None, :]  # (B, [k], 1, D)
        keys = self.spatial_tokens(image_tokens).tanh()
        scores = torch.einsum("b...d,bnd->b...n", query, keys) / keys.shape[-1] ** 0.5
        weights = scores.softmax(dim=-1)  # (B, [k], 1, N)
        pooled = torch.einsum("b...n,bnd->b...d", weights, image_tokens).squeeze(-2)  # (B, [k], D)
        joined = torch.cat([pooled, self.channel_condition(conditions).relu()], dim=-1)  # (B, k, 2 D)
        gates = self.channel_excite(self.channel_squeeze(joined).relu()).sigmoid()
        return pooled * gates, weights


class ASENModel(CCAModel):
    """Attribute-aware spatial and channel attention over the tokens of a vision backbone."""

    config_class = ASENConfig
    config: ASENConfig
    _no_split_modules = ["ImageTokens", "ConditionEmbedding", "AttributeAwareAttention"]
    takes_last_layer = False  # it has no transformer layer that could replace the last one

    display_name = "ASEN"
    method = "an attribute-specific embedding network (ASEN)"
    paper_url = "https://arxiv.org/abs/2002.02814"

    def _add_layer(self, config: ASENConfig) -> None:
        self.attention = AttributeAwareAttention(config)
        self.projection = nn.Linear(config.hidden_size, config.embedding_dim or config.hidden_size)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, ConditionEmbedding) and module.kind != "text":
            init.normal_(module.table.weight)  # as in the authors' code: nothing normalises the conditions later

    def _embed_tokens(
        self, image_tokens: torch.Tensor, attribute_ids: torch.Tensor, output_attentions: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        conditions = self.condition_embedding(attribute_ids)  # (B, D) or (B, k, D)
        states, weights = self.attention(conditions, image_tokens)
        return self.projection(states), weights if output_attentions else None


ASENModel.register_for_auto_class("AutoModel")
