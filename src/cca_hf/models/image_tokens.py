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

    def flatten(self, features: list[torch.Tensor]) -> tuple[list[torch.Tensor], list[tuple[int, int]]]:
        """The half without parameters: maps as rows of cells, earlier levels averaged down to `feature_grid`.

        Args:
            features: the maps of `feature_levels` and, last, the backbone's output; each (batch, tokens, channels) or
                (batch, channels, height, width).

        Returns:
            Rows (batch, cells, channels) of the output first and then of the levels, from the last to the first; and
            the (height, width) of their grids behind the prefix tokens.
        """
        *levels, output = features
        flat = [self._flatten(output, pool=False), *(self._flatten(level, pool=True) for level in reversed(levels))]
        return [rows for rows, _ in flat], [grid for _, grid in flat]

    def forward(self, flattened: list[torch.Tensor]) -> torch.Tensor:
        """The learned half: what `flatten` returns, projected and laid in one row.

        Returns:
            Tokens (batch, 1 + ..., hidden_size), the first of which is the summary.
        """
        rows = []
        for place, tokens in enumerate(flattened):
            level = len(flattened) - 1 - place
            if not self.is_identity:
                tokens = self.layernorms[level](self.projections[level](tokens)) + self.level_embeddings.weight[level]
            if place == 0 and self.num_prefix_tokens == 0:
                rows.append(tokens.mean(dim=1, keepdim=True))
            rows.append(tokens)
        return torch.cat(rows, dim=1) if len(rows) > 1 else rows[0]

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
