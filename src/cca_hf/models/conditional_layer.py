"""The conditional layer of CCA: condition embeddings, and the transformer layer in which they ask an image.

The equations are those of the paper's digest, in our reading of it; see the head of `modeling_cca.py`.
"""

import torch
from torch import nn
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer

from .configuration_cca import CCAConfig
from .cross_attention import CrossAttention


class ConditionEmbedding(nn.Module):
    """The query vector q_c of every condition.

    one_hot: q_c = W onehot(c) + b.   lookup: q_c = ReLU(M[c]).   none: q_c = q, the same for every attribute.
    """

    def __init__(self, config: CCAConfig):
        super().__init__()
        self.kind = config.condition_embedding
        self.num_conditions = max(1, len(config.attributes))
        self.table = nn.Embedding(1 if self.kind == "none" else self.num_conditions, config.hidden_size)
        if self.kind == "one_hot":
            self.bias = nn.Parameter(torch.zeros(config.hidden_size))

    def forward(self) -> torch.Tensor:
        """The table of all conditions, (num_conditions, hidden_size)."""
        if self.kind == "one_hot":
            return self.table.weight + self.bias  # row c of the table is W onehot(c)
        if self.kind == "lookup":
            return self.table.weight.relu()
        return self.table.weight.expand(self.num_conditions, -1)


class ConditionalMLP(nn.Module):
    def __init__(self, config: CCAConfig):
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.activation_fn = ACT2FN[config.hidden_act]
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.activation_fn(self.fc1(hidden_states)))


class ConditionalCrossAttentionLayer(GradientCheckpointingLayer):
    """The transformer layer in which conditions ask an image, named as the ViT layer that it replaces.

    Y_c = CrossAttention(LN(q_c), LN(X));  Z_c = R + Y_c;  Z_c = Z_c + MLP(LN(Z_c))
    """

    def __init__(self, config: CCAConfig):
        super().__init__()
        self.residual = config.residual
        self.layernorm_before = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention = CrossAttention(config)
        self.layernorm_after = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = ConditionalMLP(config)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(
        self, conditions: torch.Tensor, image_tokens: torch.Tensor, output_attentions: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """conditions (batch, k, D), image_tokens (batch, N, D) -> (batch, k, D), weights (batch, heads, k, N)."""
        answers, weights = self.attention(
            self.layernorm_before(conditions), self.layernorm_before(image_tokens), output_attentions
        )
        states = self.dropout(answers)
        if self.residual == "image":
            states = states + image_tokens[:, :1]
        elif self.residual == "condition":
            states = states + conditions
        return states + self.dropout(self.mlp(self.layernorm_after(states))), weights


__all__ = ["ConditionEmbedding", "ConditionalCrossAttentionLayer"]
