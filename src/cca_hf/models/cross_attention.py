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
        implementation = "eager" if output_attentions else self.config._attn_implementation
        weights: torch.Tensor | None
        if implementation in ("eager", "sdpa") and self._absorbing_is_cheaper(query.shape[2]):
            answers, weights = self._attend_without_keys(query, token_states)
        else:
            answers, weights = self._attend_to_keys(query, token_states, implementation)
        answers = self.o_proj(answers.flatten(2))  # (B, Q, heads, head_dim) -> (B, Q, D)
        return answers, weights if output_attentions else None

    def _attend_to_keys(
        self, query: torch.Tensor, token_states: torch.Tensor, implementation: str
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        attend: Callable = eager_attention_forward
        if implementation != "eager":
            attend = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention_forward)
        return attend(
            self,
            query,
            self._split_heads(self.k_proj(token_states)),  # (B, heads, N, head_dim)
            self._split_heads(self.v_proj(token_states)),  # (B, heads, N, head_dim)
            None,
            dropout=self.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
        )

    def _absorbing_is_cheaper(self, num_queries: int) -> bool:
        """Keys and values cost hidden_size products a token and channel, doing without them queries * heads."""
        plain = type(self.k_proj) is type(self.v_proj) is nn.Linear  # not quantised, and without an adapter
        return plain and num_queries * self.num_attention_heads < self.config.hidden_size

    def _attend_without_keys(
        self, query: torch.Tensor, token_states: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As `eager_attention_forward`, with its products in another order: (q Wk') x' for q (x Wk)'.

        Few queries ask many tokens: it is cheaper to take them to the tokens than to make keys and values of those.
        """
        heads = (self.num_attention_heads, self.head_dim)
        # einsum takes each head's weights to all of the batch at once, where matmul copies them for every picture
        asked = torch.einsum("bhqc,hcd->bhqd", query, self.k_proj.weight.unflatten(0, heads))
        scores = torch.matmul(asked.flatten(1, 2), token_states.transpose(1, 2)).unflatten(1, query.shape[1:3])
        if self.k_proj.bias is not None:  # it shifts all scores of a query alike; DDP wants it used
            scores = scores + torch.matmul(query, self.k_proj.bias.unflatten(0, heads)[..., None])
        weights = nn.functional.softmax(scores * self.scaling, dim=-1, dtype=torch.float32).to(query.dtype)
        dropped = nn.functional.dropout(weights, p=self.attention_dropout, training=self.training)
        seen = torch.matmul(dropped.flatten(1, 2), token_states).unflatten(1, query.shape[1:3])  # (B, heads, Q, D)
        answers = torch.einsum("bhqd,hcd->bhqc", seen, self.v_proj.weight.unflatten(0, heads))
        if self.v_proj.bias is not None:
            answers = answers + dropped.sum(-1, keepdim=True) * self.v_proj.bias.unflatten(0, heads)[:, None]
        return answers.transpose(1, 2), weights  # (B, Q, heads, head_dim), (B, heads, Q, N)

    def _split_heads(self, states: torch.Tensor) -> torch.Tensor:
        return states.unflatten(-1, (self.num_attention_heads, self.head_dim)).transpose(1, 2)


__all__ = ["CrossAttention"]
