"""One embedding of an image, from any vision model of transformers: the model, its image processor and `encode`.

It is an encoder as the models with attributes are, with one space that has no name. Where a file lists the attributes
of a model (a manifest, an index), the list has one empty name, and the column of the embeddings is `embedding`.

This file is not saved with checkpoints.
"""

import copy
import hashlib
import json
from os import PathLike, fspath
from typing import Any, Self

import torch
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import MODEL_MAPPING, AutoConfig, AutoModel, BaseImageProcessor, PreTrainedConfig, PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion
from transformers.utils import ModelOutput

from .backbones import AutoImageProcessor, interpolates_positions, run_backbone
from .configuration_images import AttributeConfig, ImageModelConfig
from .encoding import ImageEncoder
from .images import ImageReader
from .modeling_images import check_weights, copy_in_eval_mode, hash_of_tensor, settings_of, weights_of
from .whole_checkpoints import config_class_of, load_weights

WITHOUT_NAME = ""  # the name of the only space, in the place of an attribute
_ORIGINS = ("auto_map", "custom_pipelines")  # settings that say where the code is


@strict
class OneSpaceConfig(AttributeConfig):
    """The configuration of an [`ImageEmbedder`]: one space without a name, and its width."""

    def attribute_id(self, name: str) -> int:
        """0 for the space; ValueError for the name of an attribute."""
        if name != WITHOUT_NAME:
            raise ValueError(
                f"this model has one embedding of an image, and none by attribute: leave out the attribute {name!r}"
            )
        return 0


class ImageEmbedder(ImageEncoder):
    """A vision model that gives one embedding of an image, such as CrossViT, DCAL, ViT, DINOv2 or MobileNetV2.

    The embedding is the model's `pooler_output`; for a model without one the first token, or the mean of the last
    feature map. `encode(images)` returns (images, dim) float32, L2-normalised; (dim,) for one image that is not in a
    list.

    Args:
        model: a vision model of transformers or of this package, without a head.
        image_processor: makes its pixel values.

    Raises:
        ValueError: if the model has no features of an image, or the image processor makes no pixel values.

    Example:

    ```python
    >>> from cca_hf.models.image_embedder import ImageEmbedder

    >>> embedder = ImageEmbedder.from_pretrained("facebook/dinov2-small")
    >>> embedder.encode(["shoe.jpg", "other.jpg"]).shape
    (2, 384)
    ```
    """

    default_attribute = WITHOUT_NAME

    def __init__(self, model: PreTrainedModel, image_processor: BaseImageProcessor) -> None:
        self.model = model
        self.image_processor = image_processor
        self.dtype = model.dtype
        self._interpolates = interpolates_positions(model)
        self.config = OneSpaceConfig(attributes=[WITHOUT_NAME], embedding_dim=self._measure_dim())
        self.config.name_or_path = model.name_or_path

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | PathLike[str],
        device: str | torch.device | None = None,
        dtype: str | torch.dtype = "auto",
    ) -> "ImageEmbedder":
        """Load a checkpoint and the image processor beside it. A classifier is loaded without its head.

        Args:
            name_or_path: a folder, or a model id on the Hub. For a model of images and text, its vision model is
                loaded.
            device: defaults to the accelerator of this machine, or else the CPU.
            dtype: of the weights; `"auto"` for the one in which they were saved.

        Raises:
            OSError: if the checkpoint exists neither on this machine nor on the Hub.
            ValueError: if the model does not embed images, or has attributes; if the checkpoint lacks weights or an
                image processor, or has weights that are NaN or infinite.
        """
        name = fspath(name_or_path)
        config_class = config_class_of(name)
        if issubclass(config_class, ImageModelConfig):
            raise ValueError(
                f"{name} is a checkpoint of type {config_class.model_type!r}, which gives not one embedding of an "
                "image: load it with load_model"
            )
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
        if "vision_config" in config_class.sub_configs:
            config = config.vision_config
        _check_kind(name, config)
        image_processor = _load_image_processor(name)
        model = load_weights(AutoModel, name, device, config=config, dtype=dtype)
        check_weights([*model.named_parameters(), *model.named_buffers()])
        return cls(model, image_processor)

    @property
    def device(self) -> torch.device:
        return self.model.device

    @torch.inference_mode()
    def _embed(self, pixel_values: torch.Tensor, attribute_ids: torch.Tensor) -> torch.Tensor:
        """(batch, 1, dim)"""
        features = features_of(run_backbone(self.model, pixel_values, self._interpolates))
        return nn.functional.normalize(features.float(), dim=-1)[:, None]

    def fingerprint(self) -> str:
        """A hash to store with embeddings: of the weights, the architecture and the preprocessing.

        As in [`ImagePreTrainedModel.fingerprint`], weights are hashed as they are saved, without their names.
        """
        weights = revert_weight_conversion(self.model, weights_of(self.model))
        described = {
            "weights": sorted(hash_of_tensor(weight) for weight in weights.values()),
            "config": _describe(self.model.config),
            "image_processor": self.image_processor.to_dict(),
        }
        return hashlib.sha256(json.dumps(described, sort_keys=True, default=str).encode()).hexdigest()

    def shares_space(self, fingerprint: str) -> bool:
        if self.has_fingerprint(fingerprint):
            return True
        others = {torch.float32, torch.bfloat16, torch.float16} - {self.dtype}
        converted = (self._with_model(copy.deepcopy(self.model).to(dtype)) for dtype in others)
        return any(other.has_fingerprint(fingerprint) for other in converted)

    def in_precision(self, precision: str) -> Self:
        return self if precision == "auto" else self._with_model(self.model.to(getattr(torch, precision)))

    def in_eval_mode(self) -> Self:
        return self._with_model(copy_in_eval_mode(self.model))

    def on_device(self, device: str | torch.device) -> Self:
        return self._with_model(self.model.to(device))

    def _with_model(self, model: PreTrainedModel) -> Self:
        changed = copy.copy(self)
        changed.model, changed.dtype = model, model.dtype
        return changed

    def _measure_dim(self) -> int:
        """The length of the embedding of a blank image."""
        reader = ImageReader(self.image_processor)
        blank = torch.zeros(1, 3, *reader.height_and_width, dtype=self.dtype, device=self.device)
        return self.in_eval_mode()._embed(blank, torch.zeros(1)).shape[-1]


def _describe(config: PreTrainedConfig) -> dict[str, Any]:
    """The settings that change the computation, and those of the configurations in it."""
    nested = type(config).sub_configs
    settings = {name: text for name, text in settings_of(config).items() if name not in (*_ORIGINS, *nested)}
    return settings | {name: _describe(vars(config)[name]) for name in nested}


def features_of(output: ModelOutput) -> torch.Tensor:
    """(batch, dim), not normalised.

    Raises:
        ValueError: if the output has no features of images.
    """
    pooled, states = output.get("pooler_output"), output.get("last_hidden_state")
    if pooled is not None:
        return pooled.flatten(1)  # (batch, dim, 1, 1) of some convolutional networks
    if states is None:
        raise ValueError(
            "the model gives no embedding of an image: its output has neither pooler_output nor last_hidden_state, "
            f"but {', '.join(output.keys())}"
        )
    return states[:, 0] if states.ndim == 3 else states.mean(dim=(2, 3))


def _check_kind(name: str, config: PreTrainedConfig) -> None:
    """Raise ValueError for a model that does not read images, before its weights are loaded."""
    classes: Any = MODEL_MAPPING[type(config)] if type(config) in MODEL_MAPPING else ()
    for model_class in classes if isinstance(classes, (list, tuple)) else (classes,):
        if model_class.main_input_name == "pixel_values":
            return
    raise ValueError(
        f"{name} is a checkpoint of type {config.model_type!r}, which reads no images: a vision model is needed, such "
        "as a ViT, a DINOv2 or a CrossViT"
    )


def _load_image_processor(name: str) -> BaseImageProcessor:
    try:
        return AutoImageProcessor.from_pretrained(name, trust_remote_code=False)
    except OSError as error:
        raise ValueError(
            f"{name} has no image processor (preprocessor_config.json), which says how images become the model's "
            "input. Save the image processor of the training beside the checkpoint with its save_pretrained; 'cca "
            "convert crossvit' writes the published one of a CrossViT"
        ) from error
