"""CrossViT as plain functions of a state dict with timm's names, written from the paper's equations.

As in timm, attention computes all weights. `benchmark_crossvit.py` and the tests compare the model with it.
"""

from collections.abc import Mapping

import torch
from torch.nn.functional import conv2d, gelu, interpolate, layer_norm, linear, relu

Weights = Mapping[str, torch.Tensor]


def logits_of(weights: Weights, images: torch.Tensor, *, sizes: tuple[int, int], num_heads: int) -> torch.Tensor:
    """The mean of the two classifiers for square images (batch, 3, side, side)."""
    x = [embed(weights, images, branch, sizes[branch]) for branch in (0, 1)]
    for block in range(1 + max(int(name.split(".")[1]) for name in weights if name.startswith("blocks."))):
        x = run_block(weights, x, f"blocks.{block}", num_heads)
    x = [norm(weights, f"norm.{branch}", x[branch]) for branch in (0, 1)]
    return sum(apply(weights, f"head.{branch}", x[branch][:, 0]) for branch in (0, 1)) / 2


def embed(weights: Weights, images: torch.Tensor, branch: int, size: int) -> torch.Tensor:
    if images.shape[-1] != size:
        images = interpolate(images, (size, size), mode="bicubic", align_corners=False)
    name = f"patch_embed.{branch}.proj"
    if f"{name}.weight" in weights:
        patch = weights[f"{name}.weight"].shape[-1]
        x = conv2d(images, weights[f"{name}.weight"], weights[f"{name}.bias"], stride=patch)
    else:
        steps = [(4, 3), (3, 0), (1, 1)] if branch == 0 else [(4, 3), (2, 1), (2, 1)]
        x = images
        for place, (stride, padding) in zip((0, 2, 4), steps, strict=True):
            x = conv2d(x, weights[f"{name}.{place}.weight"], weights[f"{name}.{place}.bias"], stride, padding)
            x = relu(x) if place < 4 else x
    x = x.flatten(2).transpose(1, 2)
    x = torch.cat([weights[f"cls_token_{branch}"].expand(len(x), -1, -1), x], dim=1)
    return x + weights[f"pos_embed_{branch}"]


def run_block(weights: Weights, x: list[torch.Tensor], name: str, num_heads: int) -> list[torch.Tensor]:
    x = list(x)
    for i in (0, 1):
        layer = 0
        while f"{name}.blocks.{i}.{layer}.norm1.weight" in weights:
            place = f"{name}.blocks.{i}.{layer}"
            y = norm(weights, f"{place}.norm1", x[i])
            q, k, v = apply(weights, f"{place}.attn.qkv", y).chunk(3, dim=-1)
            x[i] = x[i] + apply(weights, f"{place}.attn.proj", attend(q, k, v, num_heads))
            y = gelu(apply(weights, f"{place}.mlp.fc1", norm(weights, f"{place}.norm2", x[i])))
            x[i] = x[i] + apply(weights, f"{place}.mlp.fc2", y)
            layer += 1
    fused = []
    for i, j in ((0, 1), (1, 0)):
        p = project(weights, f"{name}.projs.{i}", x[i][:, :1])
        y = norm(weights, f"{name}.fusion.{i}.norm1", torch.cat([p, x[j][:, 1:]], dim=1))
        q, k, v = (apply(weights, f"{name}.fusion.{i}.attn.w{letter}", y) for letter in "qkv")
        c = p + apply(weights, f"{name}.fusion.{i}.attn.proj", attend(q[:, :1], k, v, num_heads))
        fused.append(torch.cat([project(weights, f"{name}.revert_projs.{i}", c), x[i][:, 1:]], dim=1))
    return fused


def project(weights: Weights, name: str, x: torch.Tensor) -> torch.Tensor:
    return apply(weights, f"{name}.2", gelu(norm(weights, f"{name}.0", x)))


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, num_heads: int) -> torch.Tensor:
    q, k, v = (each.unflatten(-1, (num_heads, -1)).transpose(1, 2) for each in (q, k, v))
    weights = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(dim=-1)
    return (weights @ v).transpose(1, 2).flatten(2)


def norm(weights: Weights, name: str, x: torch.Tensor) -> torch.Tensor:
    return layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], eps=1e-6)


def apply(weights: Weights, name: str, x: torch.Tensor) -> torch.Tensor:
    return linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])
