"""Multi-head cross-attention: queries attend to the tokens of an image.

It runs on transformers' attention interface, so that `attn_implementation` selects eager, SDPA, flash or flex
attention. Its parameters are named as in transformers' ViT, so that the weights of a pretrained self-attention layer
load into it.
"""

import torch
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS


def _is_its_weights(layer: nn.Module) -> bool:
    """Whether a call of the layer is x W' + b and no more: W may then be read beside the layer.

    Adapters, quantisation and parametrisations replace the layer; hooks of PyTorch, FSDP and DeepSpeed are listed in
    it; accelerate, which offloads weights, replaces its `forward`.
    """
    hooked = layer._forward_hooks or layer._forward_pre_hooks or "forward" in vars(layer)
    return type(layer) is nn.Linear and not hooked


class CrossAttention(nn.Module):
    """softmax(q Wq (x Wk)^T / sqrt(d)) x Wv Wo, for queries q that attend to tokens x.

    Args:
        query_dim: width of the queries.
        num_heads: number of attention heads; must divide `inner_dim`.
        key_dim: width of the tokens; `query_dim` by default.
        inner_dim: width of all heads together; `query_dim` by default.
        output_dim: width of the output; `query_dim` by default.
        bias: whether queries, keys and values have a bias. The output always has one.
        dropout: probability of dropping an attention weight in training.
    """

    is_causal = False  # for transformers' attention interface

    def __init__(
        self,
        query_dim: int,
        num_heads: int,
        *,
        key_dim: int | None = None,
        inner_dim: int | None = None,
        output_dim: int | None = None,
        bias: bool = True,
        dropout: float = 0.0,
    ):
        super().__init__()
        key_dim, inner_dim, output_dim = key_dim or query_dim, inner_dim or query_dim, output_dim or query_dim
        if inner_dim % num_heads:
            raise ValueError(f"num_heads must divide the inner width; got {num_heads} heads and {inner_dim}")
        self.num_heads = num_heads
        self.head_dim = inner_dim // num_heads
        self.scaling = self.head_dim**-0.5
        self.dropout = dropout
        self.q_proj = nn.Linear(query_dim, inner_dim, bias=bias)
        self.k_proj = nn.Linear(key_dim, inner_dim, bias=bias)
        self.v_proj = nn.Linear(key_dim, inner_dim, bias=bias)
        self.o_proj = nn.Linear(inner_dim, output_dim)

    def forward(
        self,
        query_states: torch.Tensor,
        token_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        *,
        attn_implementation: str = "sdpa",
        output_attentions: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """
        Args:
            query_states: (batch, queries, query_dim), or (batch, query_dim) for one query.
            token_states: (batch, tokens, key_dim), projected to keys and values once for all queries.
            attention_mask: broadcastable to (batch, heads, queries, tokens). Booleans are `True` where a query may
                attend to a token; other values are added to the scores. For `"eager"` and `"sdpa"` only.
            attn_implementation: `"eager"`, `"sdpa"`, `"flash_attention_2"`, ...; a model passes that of its config.
            output_attentions: also return the weights. Eager attention computes them, because SDPA and flash
                attention do not return any.

        Returns:
            The attended values (batch, queries, output_dim) or (batch, output_dim). The weights
            (batch, queries, heads, tokens) or (batch, heads, tokens), or `None`; gradients reach them.

        Raises:
            ValueError: for an attention mask under another implementation.
        """
        implementation = "eager" if output_attentions else attn_implementation
        query = self._split_heads(self.q_proj(query_states))  # (B, [Q], heads, head_dim)
        if attention_mask is not None:
            if implementation not in ("eager", "sdpa"):
                raise ValueError(f"attention_mask needs the attention 'eager' or 'sdpa'; got {implementation!r}")
            if attention_mask.dtype == torch.bool:  # not -inf: a fully masked row would become NaN
                attention_mask = (~attention_mask).to(query.dtype) * torch.finfo(query.dtype).min
            attention_mask = attention_mask.to(query.dtype)
        weights: torch.Tensor | None = None
        # per token and channel, keys and values cost `inner_dim` products; without them it is queries * heads
        num_queries = 1 if query_states.ndim == 2 else query_states.shape[1]
        without_keys = num_queries < self.head_dim and _is_its_weights(self.k_proj) and _is_its_weights(self.v_proj)
        if implementation in ("eager", "sdpa") and without_keys:
            attended, weights = self._attend_without_keys(query, token_states, attention_mask)
        else:
            key = self._split_heads(self.k_proj(token_states))  # (B, N, heads, head_dim)
            value = self._split_heads(self.v_proj(token_states))  # (B, N, heads, head_dim)
            if implementation == "eager":
                attended, weights = self._attend_eagerly(query, key, value, attention_mask)
            else:
                states = (query[:, None] if query_states.ndim == 2 else query, key, value)
                by_head = [state.transpose(1, 2) for state in states]  # (B, heads, Q or N, head_dim)
                attend = ALL_ATTENTION_FUNCTIONS[implementation]
                dropout = self.dropout if self.training else 0.0
                attended = attend(self, *by_head, attention_mask, dropout=dropout, scaling=self.scaling)[0]
                attended = attended.reshape(query.shape)
        output = self.o_proj(attended.flatten(-2))  # (B, [Q], heads, head_dim) -> (B, [Q], output_dim)
        return output, weights if output_attentions else None

    def _attend_eagerly(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        weights = self._softmax(torch.einsum("b...hc,bnhc->b...hn", query, key), attention_mask)
        return torch.einsum("b...hn,bnhc->b...hc", self._drop(weights), value), weights

    def _attend_without_keys(
        self, query: torch.Tensor, token_states: torch.Tensor, attention_mask: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As `_attend_eagerly`, with its products in another order: (q Wk') x' for q (x Wk)'.

        With few queries and many tokens it is cheaper to project the queries to the tokens' width than the reverse.
        """
        heads, queries_and_heads = (self.num_heads, self.head_dim), query.shape[1:-1]
        # einsum applies the weights of a head to the whole batch at once; matmul would copy them for every image
        projected = torch.einsum("b...hc,hcd->b...hd", query, self.k_proj.weight.unflatten(0, heads))
        scores = torch.matmul(projected.flatten(1, -2), token_states.transpose(1, 2)).unflatten(1, queries_and_heads)
        if self.k_proj.bias is not None:  # it changes no weight, but DDP needs every parameter to be used
            scores = scores + torch.einsum("b...hc,hc->b...h", query, self.k_proj.bias.unflatten(0, heads))[..., None]
        weights = self._softmax(scores, attention_mask)  # (B, [Q], heads, N)
        dropped = self._drop(weights)
        seen = torch.matmul(dropped.flatten(1, -2), token_states).unflatten(1, queries_and_heads)
        attended = torch.einsum("b...hd,hcd->b...hc", seen, self.v_proj.weight.unflatten(0, heads))
        if self.v_proj.bias is not None:
            attended = attended + dropped.sum(-1, keepdim=True) * self.v_proj.bias.unflatten(0, heads)
        return attended, weights

    def _softmax(self, scores: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
        """Scores (batch, [queries], heads, tokens) -> weights of the same shape."""
        scores = scores * self.scaling
        if attention_mask is not None:
            mask = attention_mask[(None,) * (4 - attention_mask.ndim)].transpose(1, 2)  # (B, Q, heads, N)
            scores = scores + (mask[:, 0] if scores.ndim == 3 else mask)
        return nn.functional.softmax(scores, dim=-1, dtype=torch.float32).to(scores.dtype)

    def _drop(self, weights: torch.Tensor) -> torch.Tensor:
        return nn.functional.dropout(weights, p=self.dropout, training=self.training)

    def _split_heads(self, states: torch.Tensor) -> torch.Tensor:
        return states.unflatten(-1, (self.num_heads, self.head_dim))
