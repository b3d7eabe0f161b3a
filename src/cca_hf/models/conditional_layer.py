"""The conditional layer of CCA: condition embeddings, and the transformer layer in which they ask an image.

The equations are those of the paper's digest, in our reading of it; see the head of `modeling_cca.py`.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import nn
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer

from .configuration_cca import CCAConfig
from .cross_attention import CrossAttention


class ConditionEmbedding(nn.Module):
    """The query vector q_c of every condition.

    one_hot: q_c = W onehot(c) + b.   lookup: q_c = ReLU(M[c]).   none: q_c = q, the same for every attribute.
    text: q_c = P t_c, where t_c is a frozen text encoder's embedding of what the attribute is called, at length 1. The
    t_c are stored, so that the text encoder is needed for further attributes alone.
    """

    texts: torch.Tensor  # (num_conditions, text_embedding_dim)

    def __init__(self, config: CCAConfig):
        super().__init__()
        self.kind = config.condition_embedding
        self.num_conditions = max(1, len(config.attributes))
        if config.text_embedding_dim is not None:  # that is, kind == "text"
            self.register_buffer("texts", torch.zeros(self.num_conditions, config.text_embedding_dim))
            self.projection = nn.Linear(config.text_embedding_dim, config.hidden_size, bias=False)
        else:
            self.table = nn.Embedding(1 if self.kind == "none" else self.num_conditions, config.hidden_size)
        if self.kind == "one_hot":
            self.bias = nn.Parameter(torch.zeros(config.hidden_size))

    def init_weights(self) -> None:
        """What is neither a linear layer nor an embedding."""
        if self.kind == "one_hot":
            init.zeros_(self.bias)
        elif self.kind == "text":
            init.zeros_(self.texts)

    def forward(self) -> torch.Tensor:
        """The table of all conditions, (num_conditions, hidden_size)."""
        if self.kind == "text":
            return self.projection(self.texts)
        if self.kind == "one_hot":
            return self.table.weight + self.bias  # row c of the table is W onehot(c)
        if self.kind == "lookup":
            return self.table.weight.relu()
        return self.table.weight.expand(self.num_conditions, -1)

    def append_text(self, name: str, text_embedding: torch.Tensor | np.ndarray | Sequence[float]) -> None:
        """One condition more.

        Raises:
            ValueError: if the conditions are not texts, or for an embedding of another shape, 0 or not finite.
        """
        if self.kind != "text":
            raise ValueError(
                f"a condition for {name!r} can be made of text in a model with condition_embedding='text' alone; "
                f"this one has {self.kind!r}, whose conditions are learned"
            )
        row = stack_texts([name], {name: text_embedding})
        if row.shape[1] != self.texts.shape[1]:
            raise ValueError(
                f"the text embedding of {name!r} has {row.shape[1]} numbers, this model's have {self.texts.shape[1]}"
            )
        self.texts = torch.cat([self.texts, row.to(self.texts)])
        self.num_conditions = len(self.texts)


def stack_texts(
    names: Sequence[str], text_embeddings: Mapping[str, torch.Tensor | np.ndarray | Sequence[float]]
) -> torch.Tensor:
    """Vectors by name -> (names, text_embedding_dim), at length 1.

    Raises:
        ValueError: if the names are not those of the mapping, or for vectors of other shapes, 0 or not finite.
    """
    if set(names) != set(text_embeddings):
        raise ValueError(f"text_embeddings must be of the attributes {list(names)}; got {list(text_embeddings)}")
    rows = [torch.as_tensor(text_embeddings[name], dtype=torch.float32, device="cpu") for name in names]
    for name, row in zip(names, rows, strict=True):
        if row.ndim != 1 or row.shape != rows[0].shape:
            raise ValueError(
                f"text_embeddings must be vectors of one length; got {tuple(row.shape)} for {name!r}, and "
                f"{tuple(rows[0].shape)} for {names[0]!r}"
            )
        if not torch.isfinite(row).all() or not row.any():
            raise ValueError(f"the text embedding of {name!r} is 0, NaN or infinite")
    return nn.functional.normalize(torch.stack(rows), dim=1)


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
        self.config = config  # for the attention implementation, which may change
        self.residual = config.residual
        self.layernorm_before = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention = CrossAttention(
            config.hidden_size,
            config.num_attention_heads,
            bias=config.qkv_bias,
            dropout=config.attention_probs_dropout_prob,
        )
        self.layernorm_after = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = ConditionalMLP(config)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(
        self, conditions: torch.Tensor, image_tokens: torch.Tensor, output_attentions: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """conditions (batch, k, D), image_tokens (batch, N, D) -> (batch, k, D), weights (batch, heads, k, N)."""
        answers, weights = self.attention(
            self.layernorm_before(conditions),
            self.layernorm_before(image_tokens),
            attn_implementation=self.config._attn_implementation,
            output_attentions=output_attentions,
        )
        states = self.dropout(answers)
        if self.residual == "image":
            states = states + image_tokens[:, :1]
        elif self.residual == "condition":
            states = states + conditions
        return states + self.dropout(self.mlp(self.layernorm_after(states))), weights


__all__ = ["ConditionEmbedding", "ConditionalCrossAttentionLayer", "stack_texts"]
