"""Multi-head cross-attention: self-attention whose query comes from somewhere else.

The one attention module of the family. It runs on transformers' attention interface, so eager, SDPA, flash and flex
attention are a matter of `attn_implementation`, and its parameters are named as in transformers' ViT, so that a
pretrained self-attention layer can be poured into it.
"""

from collections.abc import Callable

import torch
from torch import nn
from transformers import PreTrainedConfig
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    weights = torch.matmul(query, key.transpose(2, 3)) * scaling  # (B, heads, Q, N)
    if attention_mask is not None:
        weights = weights + attention_mask
    weights = nn.functional.softmax(weights, dim=-1, dtype=torch.float32).to(query.dtype)
    dropped = nn.functional.dropout(weights, p=dropout, training=module.training)
    return torch.matmul(dropped, value).transpose(1, 2), weights  # (B, Q, heads, head_dim)


class CrossAttention(nn.Module):
    """softmax(q Wq (x Wk)^T / sqrt(d)) x Wv Wo, for q queries that ask n tokens x."""

    def __init__(self, config: PreTrainedConfig):
        super().__init__()
        self.config = config
        self.num_attention_heads = config.num_attention_heads
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.attention_dropout = config.attention_probs_dropout_prob
        self.is_causal = False

        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=config.qkv_bias)
        self.k_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=config.qkv_bias)
        self.v_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=config.qkv_bias)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(
        self, query_states: torch.Tensor, token_states: torch.Tensor, output_attentions: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """
        Args:
            query_states: (batch, queries, hidden_size), who asks.
            token_states: (batch, tokens, hidden_size), who answers; projected to keys and values once for all queries.
            output_attentions: also return the weights, computed by eager attention whatever the implementation, since
                SDPA and flash attention have none to give.

        Returns:
            The answers (batch, queries, hidden_size) and the weights (batch, heads, queries, tokens) or `None`.
        """
        query = self._split_heads(self.q_proj(query_states))  # (B, heads, Q, head_dim)
        key = self._split_heads(self.k_proj(token_states))  # (B, heads, N, head_dim)
        value = self._split_heads(self.v_proj(token_states))  # (B, heads, N, head_dim)

        attend: Callable = eager_attention_forward
        if not output_attentions:
            attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        answers, weights = attend(
            self,
            query,
            key,
            value,
            None,
            dropout=self.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
        )
        answers = self.o_proj(answers.flatten(2))  # (B, Q, heads, head_dim) -> (B, Q, D)
        return answers, weights if output_attentions else None

    def _split_heads(self, states: torch.Tensor) -> torch.Tensor:
        return states.unflatten(-1, (self.num_attention_heads, self.head_dim)).transpose(1, 2)


__all__ = ["CrossAttention"]
