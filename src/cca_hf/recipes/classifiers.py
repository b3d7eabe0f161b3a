"""Classifiers of transformers for the classes of a data set: made for a training, and loaded for an evaluation."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import (
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING,
    AutoConfig,
    AutoModelForImageClassification,
    PreTrainedConfig,
    PreTrainedModel,
)

from cca_hf.models.backbones import (
    AutoImageProcessor,
    freeze_statistics,
    image_size_of,
    interpolates_positions,
    load_backbone_processor,
    make_image_processor,
)
from cca_hf.models.configuration_images import height_and_width
from cca_hf.models.images import ImageReader
from cca_hf.models.modeling_dcal import DCALForImageClassification
from cca_hf.models.whole_checkpoints import config_class_of, load_weights

from .backbone_config import read_backbone_config
from .classification_arguments import ClassificationArguments


def make_classifier(args: ClassificationArguments, classes: Sequence[str]) -> PreTrainedModel:
    """A classifier on a pretrained backbone or on one from scratch, with its `image_processor`.

    A classifier that the backbone already has for other classes is replaced. Images are resized to the size of the
    model, or to `image_size`, without cropping.

    Raises:
        ValueError: for a model without a classifier in transformers, without drop path if it is asked for, or with
            position embeddings that cannot be interpolated.
        OSError: if the backbone cannot be loaded.
    """
    hub_kwargs: dict[str, Any] = {"revision": args.backbone_revision, "trust_remote_code": False}
    if args.backbone_config is not None:
        config, processor = read_backbone_config(args.backbone_config), None
    else:
        config = AutoConfig.from_pretrained(args.backbone, **hub_kwargs)
        processor = load_backbone_processor(args.backbone or "", hub_kwargs)
    size = args.height_and_width
    if args.backbone_config is not None and size is not None and "image_size" in config.to_dict():
        config.image_size = size
    if size is None:
        size = image_size_of(config) if processor is None else ImageReader(processor).height_and_width
    if args.drop_path is not None:
        _set_drop_path(config, args)
    if args.dcal:
        model = _make_dcal(args, config, classes)
    else:
        model = _make_stock(args, config, classes)
        if interpolates_positions(model) and height_and_width(size) != height_and_width(image_size_of(config)):
            model = with_image_size(model, *height_and_width(size))
    model.config.problem_type = "single_label_classification"
    model.image_processor = make_image_processor(size, like=processor)
    backbone = backbone_of(model)
    for name, parameter in backbone.named_parameters():
        if name.endswith("mask_token"):  # for masked image modelling; DistributedDataParallel stops at an unused one
            parameter.requires_grad_(False)
    if args.freeze_backbone:
        backbone.register_forward_pre_hook(_into_eval_mode)
    elif args.backbone is not None and args.freeze_batch_norm:
        backbone.register_forward_pre_hook(_freeze_statistics)
    return model


def backbone_of(model: PreTrainedModel) -> nn.Module:
    """The part of a classifier that a pretrained backbone gives; the rest is new."""
    if isinstance(model, DCALForImageClassification):
        return model.dcal.backbone
    if model.base_model is not model:
        return model.base_model
    # models of images and text have a vision tower, whose name is not that of their base model
    return max(model.children(), key=lambda child: sum(parameter.numel() for parameter in child.parameters()))


def is_classifier(name: str) -> bool:
    """Whether a checkpoint is a classifier of images.

    Raises:
        OSError: if the checkpoint exists neither on this machine nor on the Hub.
    """
    config_class_of(name)  # raises for what is no checkpoint
    architectures = PreTrainedConfig.get_config_dict(name)[0].get("architectures") or []
    return any(architecture.endswith("ForImageClassification") for architecture in architectures)


def load_classifier(name: str, device: str | torch.device | None = None) -> PreTrainedModel:
    """Load a classifier with its `image_processor`, in evaluation mode.

    Raises:
        OSError: if the checkpoint exists neither on this machine nor on the Hub.
        ValueError: if the checkpoint lacks weights.
    """
    config_class_of(name)  # raises for what is no checkpoint
    model = load_weights(AutoModelForImageClassification, name, device, dtype="auto")
    model.image_processor = AutoImageProcessor.from_pretrained(name, trust_remote_code=False)
    return model


def with_image_size(model: PreTrainedModel, height: int, width: int) -> PreTrainedModel:
    """A classifier with the same weights for images of another size: its position embeddings are interpolated.

    A model such as ViT interpolates them in each call, if an argument asks for it. A pipeline does not.

    Raises:
        ValueError: for weights of another kind that depend on the image size.
    """
    config = copy.deepcopy(model.config)
    config.image_size = [height, width]
    resized, weights = type(model)(config), model.state_dict()
    kept = dict(model.named_children())
    for name in [name for name, _ in resized.named_children() if name not in kept]:
        setattr(resized, name, None)  # a pooler that the model was loaded without
    for name, table in resized.state_dict().items():
        if table.shape != weights[name].shape:
            weights[name] = _interpolate(weights[name], table.shape, model.config, config, name)
    resized.load_state_dict(weights)
    return resized


def _interpolate(
    table: torch.Tensor, shape: torch.Size, old: PreTrainedConfig, new: PreTrainedConfig, name: str
) -> torch.Tensor:
    """Position embeddings (1, prefix + rows * columns, channels) for another grid, as transformers interpolates."""
    (rows, columns), grid = _grid(old), _grid(new)
    prefix = table.shape[1] - rows * columns if table.ndim == 3 else -1
    if prefix < 0 or (1, prefix + grid[0] * grid[1], table.shape[2]) != tuple(shape):
        raise ValueError(
            f"image_size cannot be {list(height_and_width(new.image_size))}: the weights {name} of this backbone were "
            f"made for {list(height_and_width(old.image_size))}"
        )
    cells = table[:, prefix:].unflatten(1, (rows, columns)).permute(0, 3, 1, 2)
    cells = nn.functional.interpolate(cells, size=grid, mode="bicubic", align_corners=False)
    return torch.cat([table[:, :prefix], cells.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)


def _grid(config: PreTrainedConfig) -> tuple[int, int]:
    """Rows and columns of the patches of an image."""
    (height, width), (patch_height, patch_width) = map(height_and_width, (config.image_size, config.patch_size))
    return height // patch_height, width // patch_width


def _make_stock(args: ClassificationArguments, config: PreTrainedConfig, classes: Sequence[str]) -> PreTrainedModel:
    if type(config) not in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING:
        raise ValueError(
            f"{args.backbone or args.backbone_config} is of type {config.model_type!r}, for which transformers has no "
            "classifier of images"
        )
    config.id2label, config.label2id = _names(classes)
    if args.backbone is None:
        return AutoModelForImageClassification.from_config(config, trust_remote_code=False)
    return AutoModelForImageClassification.from_pretrained(
        args.backbone,
        config=config,
        ignore_mismatched_sizes=True,
        dtype=torch.float32,
        revision=args.backbone_revision,
        trust_remote_code=False,
    )


def _make_dcal(
    args: ClassificationArguments, config: PreTrainedConfig, classes: Sequence[str]
) -> DCALForImageClassification:
    id2label, label2id = _names(classes)
    share = {} if args.local_share is None else {"local_share": args.local_share}
    return DCALForImageClassification.from_backbone(
        config if args.backbone is None else args.backbone,
        revision=args.backbone_revision,
        id2label=id2label,
        label2id=label2id,
        use_local_attention=args.local_attention,
        use_pairwise_attention=args.pairwise_attention,
        **share,
    )


def _names(classes: Sequence[str]) -> tuple[dict[int, str], dict[str, int]]:
    return dict(enumerate(classes)), {name: place for place, name in enumerate(classes)}


def _set_drop_path(config: PreTrainedConfig, args: ClassificationArguments) -> None:
    if args.dcal and args.backbone is not None:
        raise ValueError("--drop_path with --dcal needs --backbone_config: --backbone is taken as it is")
    if "drop_path_rate" not in config.to_dict():
        raise ValueError(
            f"a backbone of type {config.model_type!r} has no drop path; transformers has it for dinov2, swin, beit, "
            "convnext and others, and this package for crossvit"
        )
    config.drop_path_rate = args.drop_path


def _into_eval_mode(module: nn.Module, _: Any) -> None:
    module.eval()


def _freeze_statistics(module: nn.Module, _: Any) -> None:
    freeze_statistics(module)
