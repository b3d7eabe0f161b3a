"""From whatever a vision backbone returns to one sequence of image tokens of the conditional layer's width.

Transformers return tokens (batch, tokens, channels), with or without CLS before them; convolutional networks return
feature maps (batch, channels, height, width). The conditional layer wants one sequence whose first token sums up the
picture.
"""

import torch
from torch import nn
from transformers import PreTrainedConfig


class ImageTokens(nn.Module):
    """Feature maps of one or several levels, projected to `hidden_size` and laid in one row behind a summary token.

    Where a plain transformer already has the right width and a CLS token, this is the identity.
    """

    def __init__(self, config: PreTrainedConfig):
        super().__init__()
        self.num_prefix_tokens = config.num_prefix_tokens
        self.feature_grid = config.feature_grid
        levels = len(config.feature_channels)
        self.is_identity = levels == 1 and config.feature_channels[0] == config.hidden_size
        if not self.is_identity:
            self.projections = nn.ModuleList(nn.Linear(c, config.hidden_size) for c in config.feature_channels)
            self.layernorms = nn.ModuleList(
                nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps) for _ in range(levels)
            )
            self.level_embeddings = nn.Embedding(levels, config.hidden_size)

    def forward(self, features: list[torch.Tensor]) -> tuple[torch.Tensor, list[tuple[int, int]]]:
        """
        Args:
            features: the maps of `feature_levels` and, last, the backbone's output; each (batch, tokens, channels) or
                (batch, channels, height, width).

        Returns:
            Tokens (batch, 1 + ..., hidden_size), the first of which is the summary, and the (height, width) of the
            grids behind the prefix tokens, in order. The output's tokens come first, then the levels'.
        """
        rows, grids = [], []
        for level in range(len(features) - 1, -1, -1):
            is_output = level == len(features) - 1
            tokens, grid = self._flatten(features[level], pool=not is_output)
            if not self.is_identity:
                tokens = self.layernorms[level](self.projections[level](tokens)) + self.level_embeddings.weight[level]
            if is_output and self.num_prefix_tokens == 0:
                rows.append(tokens.mean(dim=1, keepdim=True))
            rows.append(tokens)
            grids.append(grid)
        return torch.cat(rows, dim=1) if len(rows) > 1 else rows[0], grids

    def _flatten(self, feature: torch.Tensor, *, pool: bool) -> tuple[torch.Tensor, tuple[int, int]]:
        if feature.ndim == 3:
            side = int((feature.shape[1] - self.num_prefix_tokens) ** 0.5)
            if not pool or self.num_prefix_tokens or side <= self.feature_grid:
                return feature, (side, side)
            feature = feature.transpose(1, 2).unflatten(2, (side, side))  # (B, N, C) -> (B, C, h, w)
        height, width = feature.shape[-2:]
        if pool and max(height, width) > self.feature_grid:
            height, width = min(height, self.feature_grid), min(width, self.feature_grid)
            feature = nn.functional.adaptive_avg_pool2d(feature, (height, width))
        return feature.flatten(2).transpose(1, 2), (height, width)  # (B, C, h, w) -> (B, h w, C)


__all__ = ["ImageTokens"]
