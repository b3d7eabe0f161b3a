"""How each parameter learns: rates of backbone and head, frozen parameters, and no weight decay where it does harm."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

_NORMS = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.modules.batchnorm._NormBase)  # the last: of batch and instance


@contextmanager
def frozen(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Excludes parameters from training within the block; afterwards they learn again, if they did before."""
    learning = [parameter for parameter in parameters if parameter.requires_grad]
    for parameter in learning:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)


def undecayed_parameters(model: nn.Module) -> set[str]:
    """Names of biases, conditions and weights of every kind of normalisation (the Trainer knows LayerNorm alone).

    Decay would pull all conditions of a lookup table towards the same vector.
    """
    undecayed = set()
    for name, _ in model.named_parameters():
        *path, last = name.split(".")
        of_condition = not {"condition_embedding", "condition_masks"}.isdisjoint([*path, last])
        if of_condition or last == "bias" or isinstance(model.get_submodule(".".join(path)), _NORMS):
            undecayed.add(name)
    return undecayed


def split_backbone_and_head(optimizer: torch.optim.Optimizer, model: nn.Module, head_learning_rate: float) -> None:
    """Splits each parameter group of a new optimizer: the backbone keeps its rate, the other parameters get another.

    Works on any optimizer that the Trainer builds. The backbone's groups come first, so the Trainer's `learning_rate`
    is the backbone's; a frozen backbone has no group.
    """
    # wrappers of the model may prefix the names
    of_backbone = {parameter for name, parameter in model.named_parameters() if "backbone" in name.split(".")}
    backbone, head = [], []
    for group in optimizer.param_groups:
        backbone.append({**group, "params": [p for p in group["params"] if p in of_backbone]})
        others = [p for p in group["params"] if p not in of_backbone]
        head.append({**group, "params": others, "lr": head_learning_rate})
    optimizer.param_groups = [group for group in backbone + head if group["params"]]
