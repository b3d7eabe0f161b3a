"""Which parameters learn how: backbone and head at rates of their own, and no weight decay where it does harm."""

import torch
from torch import nn

from cca_hf.models.modeling_cca import CCAModel

from .arguments import FEATURE_MAP_LEARNING_RATE, PRETRAINED_LEARNING_RATE, CCATrainingArguments

_NORMS = (
    nn.LayerNorm,
    nn.RMSNorm,
    nn.GroupNorm,
    nn.modules.batchnorm._BatchNorm,
    nn.modules.instancenorm._InstanceNorm,
)


def learns_statistics(model: CCAModel) -> bool:
    """Whether training changes the backbone's statistics of batch normalisation."""
    norms = (module for module in model.backbone.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm))
    return not model.config.freeze_batch_norm and any(norms)


def settle_backbone(model: CCAModel, args: CCATrainingArguments) -> None:
    """Freezes what `args` say of the backbone, or what suits it, and settles its learning rate in `args`.

    Raises:
        ValueError: for micro-batches where the backbone learns statistics of batch normalisation.
    """
    if args.micro_batch_size is not None and learns_statistics(model):
        raise ValueError(
            "micro_batch_size needs freeze_batch_norm: the statistics would not be those of the whole batch"
        )
    from_scratch = model.config.backbone_name is None
    if args.learning_rate is None:
        pretrained = FEATURE_MAP_LEARNING_RATE if model.config.feature_levels else PRETRAINED_LEARNING_RATE
        args.learning_rate = args.head_learning_rate if from_scratch else pretrained
    if args.freeze_backbone:
        model.freeze_backbone()
    elif args.frozen_levels is not None:
        model.freeze_backbone(args.frozen_levels)
    elif not from_scratch:
        model.freeze_backbone(len(model.config.feature_levels))
    model.to(memory_format=torch.channels_last)  # as the pictures come; else each step would turn the weights around


def is_of_backbone(name: str) -> bool:
    """Whether a parameter belongs to the backbone, by its name, however deeply it has been wrapped."""
    return "backbone" in name.split(".")


def undecayed_parameters(model: nn.Module) -> set[str]:
    """Names of normalisation weights of any kind (the Trainer knows LayerNorm's alone), biases and conditions.

    Decay would pull all conditions of a lookup table towards one and the same.
    """
    of_norms = {
        f"{module_name}.{name}" if module_name else name
        for module_name, module in model.named_modules()
        if isinstance(module, _NORMS)
        for name, _ in module.named_parameters(recurse=False)
    }
    by_name = {
        name
        for name, _ in model.named_parameters()
        if not {"condition_embedding", "condition_masks"}.isdisjoint(name.split(".")) or name.split(".")[-1] == "bias"
    }
    return of_norms | by_name


def split_backbone_and_head(optimizer: torch.optim.Optimizer, model: nn.Module, head_learning_rate: float) -> None:
    """Splits each parameter group of a fresh optimiser: the backbone's keep their rate, the others get their own.

    Works on whatever optimiser the Trainer has built. The backbone's groups come first, so that the Trainer's
    `learning_rate` is the backbone's; a frozen backbone has none.
    """
    names = {parameter: name for name, parameter in model.named_parameters()}
    backbone, head = [], []
    for group in optimizer.param_groups:
        of_backbone = [p for p in group["params"] if is_of_backbone(names[p])]
        of_head = [p for p in group["params"] if not is_of_backbone(names[p])]
        if of_backbone:
            backbone.append({**group, "params": of_backbone})
        if of_head:
            head.append({**group, "params": of_head, "lr": head_learning_rate})
    optimizer.param_groups = backbone + head
