"""What DCAL changes in the self-attention of a backbone of transformers, whose layers stay as they are.

The layers take their attention function from transformers' attention interface, under the name `DCAL_ATTENTION`. This
function computes the attention of an [`AttentionPass`], which is a keyword of the backbone's call. The model keeps
nothing of a call: several threads can use it at a time, and gradient checkpointing computes the same again.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import torch
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.vit.modeling_vit import eager_attention_forward

DCAL_ATTENTION = "dcal"

# Attention weights that are computed at a time: as many as fit into a CPU's cache, and more on an accelerator.
_WEIGHTS_ON_CPU, _WEIGHTS_ON_DEVICE = 2**18, 2**26

Attended = tuple[torch.Tensor, torch.Tensor | None]  # (batch, tokens, heads, head_dim), and the weights if eager


@dataclass(eq=False)
class AttentionPass:
    """The self-attention of one forward pass, with what GLCA and PWCA need.

    Args:
        implementation: `"sdpa"`, `"eager"`, `"flash_attention_2"`, ...
        rollout_layers: number of layers of the backbone if the roll-out is needed, otherwise 0.
        partners: (images,), the row of each image's partner, for PWCA. The batch then has two rows for each image: one
            of self-attention, and `images` rows later one of pair-wise attention.
        num_calls: layers that were computed.
        mean_weights: (images, tokens, tokens), the weights of the layers so far, averaged over the heads; of the last
            layer, the row of the class token alone.
    """

    implementation: str = "sdpa"
    rollout_layers: int = 0
    partners: torch.Tensor | None = None
    num_calls: int = 0
    mean_weights: list[torch.Tensor] = field(default_factory=list)

    def attend(
        self, module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, settings: dict[str, Any]
    ) -> Attended:
        """(batch, heads, tokens, head_dim) -> the attended values, and the weights of self-attention if eager."""
        self.num_calls += 1
        if self.partners is None:
            return self._attend_to_itself(module, query, key, value, settings)
        images = self.partners.shape[0]
        output, weights = self._attend_to_itself(module, query[:images], key[:images], value[:images], settings)
        # one softmax over the tokens of both images; those of the partner come from its row of self-attention
        keys = torch.cat([key[images:], key[self.partners]], dim=2)
        values = torch.cat([value[images:], value[self.partners]], dim=2)
        pairs, _ = self._function(module, query[images:], keys, values, None, **settings)
        return torch.cat([output, pairs]), weights

    def roll_out(self) -> torch.Tensor:
        """The row of the class token in S'_L ... S'_1, where S' = (S + I) / 2: a vector times L matrices.

        It frees the weights, and none are kept when gradient checkpointing computes the layers again.

        Returns:
            (images, tokens); a row sums to 1.
        """
        last, earlier = self.mean_weights[-1], self.mean_weights[:-1]
        row = last[:, 0] / 2
        row[:, 0] += 0.5
        with torch.autocast(row.device.type, enabled=False):  # which would round the products to 16 bits
            for weights in reversed(earlier):
                row = (row + torch.bmm(row[:, None], weights)[:, 0]) / 2
        self.mean_weights, self.rollout_layers = [], 0
        return row

    @property
    def _function(self) -> Callable[..., Attended]:
        return ALL_ATTENTION_FUNCTIONS.get_interface(self.implementation, eager_attention_forward)

    def _attend_to_itself(
        self, module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, settings: dict[str, Any]
    ) -> Attended:
        """Self-attention; keeps the weights for the roll-out."""
        if len(self.mean_weights) == self.rollout_layers:
            return self._function(module, query, key, value, None, **settings)
        is_last = len(self.mean_weights) + 1 == self.rollout_layers
        learns = torch.is_grad_enabled() and (query.requires_grad or key.requires_grad or value.requires_grad)
        if self.implementation == "sdpa" and not learns and not is_last:
            output, mean = attend_and_average(query, key, value, settings["scaling"])
            self.mean_weights.append(mean)
            return output, None
        output, weights = self._function(module, query, key, value, None, **settings)
        with torch.no_grad():
            queries = query[:, :, :1] if is_last else query
            self.mean_weights.append(average_weights(queries, key, settings["scaling"]))
        return output, weights


def attend_and_average(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention together with the mean of its weights over the heads, which SDPA does not return.

    This costs less than SDPA and the weights after it, and more than SDPA: `scripts/benchmark_dcal.py` measures it.

    Returns:
        The attended values (batch, tokens, heads, head_dim), and weights (batch, tokens, tokens).
    """
    output, value = torch.empty_like(query, memory_format=torch.contiguous_format), value.contiguous()
    return output.transpose(1, 2), _average_weights(query, key, scaling, value, output)


def average_weights(query: torch.Tensor, key: torch.Tensor, scaling: float) -> torch.Tensor:
    """The mean of the attention weights over the heads: (batch, queries, tokens) in at least float32."""
    return _average_weights(query, key, scaling)


def _average_weights(
    query: torch.Tensor,
    key: torch.Tensor,
    scaling: float,
    value: torch.Tensor | None = None,
    output: torch.Tensor | None = None,
) -> torch.Tensor:
    """As `average_weights`; with values, it also fills `output` (batch, heads, queries, head_dim).

    It computes some rows at a time, so that their weights and mean stay in the cache.
    """
    (batch, heads, queries, _), tokens = query.shape, key.shape[2]
    at_a_time = _WEIGHTS_ON_CPU if query.device.type == "cpu" else _WEIGHTS_ON_DEVICE
    image_step, row_step = max(1, at_a_time // (queries * tokens)), max(1, at_a_time // tokens)
    precise = torch.promote_types(query.dtype, torch.float32)
    scaled, keys = (query * scaling).contiguous(), key.contiguous().transpose(2, 3)
    mean = query.new_empty(batch, queries, tokens, dtype=precise)
    for first_image, first_row in product(range(0, batch, image_step), range(0, queries, row_step)):
        images, rows = slice(first_image, first_image + image_step), slice(first_row, first_row + row_step)
        block = mean[images, rows]
        scores, weights = block.new_empty(block.shape, dtype=query.dtype), torch.empty_like(block)
        for head in range(heads):
            torch.matmul(scaled[images, head, rows], keys[images, head], out=scores)
            torch.softmax(scores, dim=-1, dtype=precise, out=weights)
            if value is not None and output is not None:
                output[images, head, rows] = weights.to(value.dtype) @ value[images, head]
            if head == 0:
                torch.mul(weights, 1 / heads, out=block)
            else:
                block.add_(weights, alpha=1 / heads)
    return mean


def attend(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    attention_pass: AttentionPass | None = None,
    **settings: Any,
) -> Attended:
    """The attention function that the layers of the backbone call; without an `AttentionPass`, it is SDPA.

    Raises:
        ValueError: for a mask or a bias, which plain vision transformers do not have.
    """
    if attention_mask is not None or settings.get("position_bias") is not None:
        raise ValueError("the attention of this backbone has a mask or a bias: it is no plain vision transformer")
    return (attention_pass or AttentionPass()).attend(module, query, key, value, settings)


ALL_ATTENTION_FUNCTIONS.register(DCAL_ATTENTION, attend)
