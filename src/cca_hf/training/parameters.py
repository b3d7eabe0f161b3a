"""How each parameter learns: rates of backbone and head, frozen parameters, and no weight decay where it does harm."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn

_NORMS = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.modules.batchnorm._NormBase)  # the last: of batch and instance
_WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module"}  # in the names of a wrapped model


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


def set_learning_rates(optimizer: torch.optim.Optimizer, model: nn.Module, rates: Mapping[str, float]) -> None:
    """Splits each parameter group of a new optimizer by the rates of its parameters.

    Parameters that are not named keep the rate of their group. Their groups come first, so the Trainer's
    `learning_rate` is theirs.

    Args:
        rates: by the names of the parameters without wrappers.
    """
    rate_of: dict[nn.Parameter, float] = {}
    for name, parameter in model.named_parameters():
        plain = ".".join(part for part in name.split(".") if part not in _WRAPPERS)
        if plain in rates:
            rate_of[parameter] = rates[plain]
    groups = []
    for rate in (None, *sorted(set(rate_of.values()), reverse=True)):
        for group in optimizer.param_groups:
            params = [parameter for parameter in group["params"] if rate_of.get(parameter) == rate]
            if params:
                groups.append({**group, "params": params, "lr": group["lr"] if rate is None else rate})
    optimizer.param_groups = groups


def layer_rates(backbone: nn.Module, learning_rate: float, decay: float) -> dict[str, float]:
    """Learning rates that fall from layer to layer, from the last layer of a backbone to its embeddings.

    The layers are the entries of the longest list of modules that is in no other list: the layers of a transformer,
    or the stages of a hierarchical network. What comes after them has the full rate, and is left out.

    Args:
        decay: the rate of a layer over that of the next one.

    Returns:
        Rates by the names of the backbone's parameters.

    Raises:
        ValueError: for a backbone without such a list.
    """
    layers = max(_outermost_lists(backbone), key=len, default=nn.ModuleList())
    if len(layers) < 2:
        raise ValueError(
            f"layer_decay needs a backbone with a list of layers, which {type(backbone).__name__} does not have"
        )
    layer_of = {parameter: place for place, layer in enumerate(layers, start=1) for parameter in layer.parameters()}
    rates, place = {}, 0
    for name, parameter in backbone.named_parameters():
        is_behind = place == len(layers) and parameter not in layer_of
        place = layer_of.get(parameter, place)
        if not is_behind:
            rates[name] = learning_rate * decay ** (len(layers) + 1 - place)
    return rates


def _outermost_lists(module: nn.Module) -> Iterator[nn.ModuleList]:
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            yield child
        else:
            yield from _outermost_lists(child)
