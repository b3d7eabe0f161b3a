"""Conditional cross-attention (CCA): one network, one pass, one embedding space per attribute.

Song, Hwang, Yoon, Choi, Gu: "Conditional Cross Attention Network for Multi-Space Embedding without Entanglement in
Only a SINGLE Network", ICCV 2023, https://arxiv.org/abs/2307.13254.

The paper's: the self-attention of a ViT's last layer becomes cross-attention with the condition; one-hot and lookup
conditions. Our reading: the condition is the query and the image gives keys and values (the reverse gives a constant);
one query row per condition, not one per token (equal rows, O(N) cost); the choices of residual. Ours: other backbones,
with the layer on top and, for feature maps, earlier maps asked as well; all conditions of an image answered in one
pass.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn
from transformers import AutoModel, BaseImageProcessor, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput

from .backbones import extract_features, interpolates_positions, parameters_of_levels, prepare_backbone
from .checkpoints import build_from_backbone, load_image_processor, name_pipeline, staged
from .conditional_layer import ConditionalCrossAttentionLayer, ConditionEmbedding
from .configuration_cca import CCAConfig
from .encoding import compute_attention_maps, encode_images
from .image_tokens import ImageTokens
from .images import ImageInput


@dataclass
class CCAModelOutput(ModelOutput):
    """
    Args:
        embeddings: (batch, dim) for `attribute_ids` of shape (batch,), (batch, k, dim) for (batch, k); L2-normalised.
        attentions: (batch, heads, tokens) or (batch, k, heads, tokens), the weights of the conditional layer, when
            asked for with `output_attentions=True`.
    """

    embeddings: torch.Tensor | None = None
    attentions: torch.Tensor | None = None


class CCAPreTrainedModel(PreTrainedModel):
    config_class = CCAConfig
    config: CCAConfig
    base_model_prefix = "cca"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False
    _no_split_modules = ["ConditionalCrossAttentionLayer"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Linear layers by their fan-in, as PyTorch's own; the backbone initialises itself.

        The usual std of 0.02 is 1 / sqrt(3 * 768), made for the width of a ViT-B. In a layer 256 wide it is too small:
        measured on frozen MobileNetV2 features, the first epoch ended at a mAP of 66.9 with it and of 75.2 without.
        """
        super()._init_weights(module)
        if isinstance(module, nn.Linear):
            bound = module.in_features**-0.5
            init.uniform_(module.weight, -bound, bound)
            if module.bias is not None:
                init.uniform_(module.bias, -bound, bound)
        elif isinstance(module, ConditionEmbedding):
            module.init_weights()


class CCAModel(CCAPreTrainedModel):
    """A vision backbone under one conditional cross-attention layer: an embedding of a picture for each attribute.

    Example:

    ```python
    >>> from cca_hf import CCAModel

    >>> model = CCAModel.from_backbone("google/vit-base-patch16-224-in21k", attributes=["colour", "shape"])
    >>> model.encode(["shoe.jpg"], attributes=["colour"]).shape
    (1, 1, 768)
    ```
    """

    def __init__(self, config: CCAConfig):
        super().__init__(config)
        self.backbone = prepare_backbone(AutoModel.from_config(config.backbone_config), config)
        self.interpolates_positions = interpolates_positions(self.backbone)
        self.image_tokens = ImageTokens(config)
        self.condition_embedding = ConditionEmbedding(config)
        self.conditional_layer = ConditionalCrossAttentionLayer(config)
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.projection = (
            nn.Identity()
            if config.embedding_dim is None
            else nn.Linear(config.hidden_size, config.embedding_dim, bias=False)
        )
        self._image_processor: BaseImageProcessor | None = None
        self._hub_kwargs: dict[str, Any] = {}
        self.post_init()

    @classmethod
    def from_backbone(
        cls,
        backbone: str | PathLike[str] | PreTrainedConfig,
        attributes: Sequence[str] | Mapping[str, Sequence[str]],
        *,
        text_embeddings: Mapping[str, torch.Tensor | np.ndarray | Sequence[float]] | None = None,
        freeze_backbone: bool = False,
        image_size: int | None = None,
        attn_implementation: str | None = None,
        dtype: torch.dtype = torch.float32,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | PathLike[str] | None = None,
        local_files_only: bool = False,
        **config_fields: Any,
    ) -> "CCAModel":
        """A new CCA model on a pretrained vision backbone.

        Of a ViT the last layer is replaced, and the conditional layer starts from its weights. On any other backbone
        (DeiT, DINOv2, SigLIP, Swin, ConvNeXt, MobileNetV2, ...) the layer stands on top; where the backbone makes
        feature maps that shrink on the way, earlier maps are asked as well, see `CCAConfig.feature_levels`.

        Args:
            backbone: a model id on the Hub, a folder, or a configuration, which then gets random weights.
            attributes: names of the attributes, or value names by attribute name (as `AttributeDataset.attributes`).
            text_embeddings: for `condition_embedding="text"`, a text encoder's embedding of each attribute, by name.
            freeze_backbone: train the conditional layer alone.
            image_size: height and width in pixels of the pictures; defaults to the backbone's own, or 224.
            attn_implementation: `"eager"`, `"sdpa"`, `"flash_attention_2"`, ... as in `from_pretrained`.
            dtype: of the weights.
            revision, token, cache_dir, local_files_only: as in `from_pretrained`.
            config_fields: any other field of [`CCAConfig`], such as `condition_embedding` or `embedding_dim`.

        Raises:
            TypeError: for a field that `CCAConfig` does not have.
            ValueError: for a backbone that gives neither tokens nor a feature map, or unfit `text_embeddings`.
        """
        return build_from_backbone(
            cls,
            backbone,
            attributes,
            text_embeddings=text_embeddings,
            freeze_backbone=freeze_backbone,
            image_size=image_size,
            attn_implementation=attn_implementation,
            dtype=dtype,
            hub_kwargs={
                "revision": revision,
                "token": token,
                "cache_dir": cache_dir,
                "local_files_only": local_files_only,
            },
            config_fields=config_fields,
        )

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *model_args: Any, **kwargs: Any) -> Any:
        """As [`PreTrainedModel.from_pretrained`]; remembers revision and credentials for the image processor."""
        result = super().from_pretrained(pretrained_model_name_or_path, *model_args, **kwargs)
        model = result[0] if isinstance(result, tuple) else result
        names = ("revision", "token", "cache_dir", "local_files_only", "subfolder", "force_download")
        model._hub_kwargs = {name: kwargs[name] for name in names if kwargs.get(name) is not None}
        return result

    def save_pretrained(
        self, save_directory: str | PathLike[str], is_main_process: bool = True, **kwargs: Any
    ) -> None:
        """As [`PreTrainedModel.save_pretrained`]; saves the image processor, the pipeline and the code files as well.

        Everything is written beside the target first and moved in when it is whole, so that a full disk leaves an
        earlier checkpoint in `save_directory` as it was.

        Raises:
            OSError: if the disk is full; the message says where.
        """
        name_pipeline(self.config)
        if not is_main_process:
            return super().save_pretrained(save_directory, is_main_process=False, **kwargs)
        kwargs.setdefault(
            "repo_id", Path(save_directory).name
        )  # for push_to_hub, which would take the staging folder's
        with staged(save_directory) as folder:
            self.image_processor.save_pretrained(folder)
            super().save_pretrained(folder, **kwargs)
        return None

    @property
    def image_processor(self) -> BaseImageProcessor:
        """The checkpoint's image processor, loaded at its first use."""
        if self._image_processor is None:
            self._image_processor = load_image_processor(self.config, self.name_or_path, self._hub_kwargs)
        return self._image_processor

    @image_processor.setter
    def image_processor(self, image_processor: BaseImageProcessor) -> None:
        self._image_processor = image_processor

    def add_attribute(self, name: str, text_embedding: torch.Tensor | np.ndarray | Sequence[float]) -> "CCAModel":
        """Lets a model with text conditions be asked, untrained, for one attribute more: the last of its attributes.

        Args:
            name: what it is asked by from now on; saved with the model.
            text_embedding: (text_embedding_dim,), from the encoder that `config.text_encoder` names.

        Raises:
            ValueError: the name is taken, the model's conditions are learned, or the embedding is not of their kind.
        """
        if name in self.config.attributes:
            raise ValueError(f"{name!r} is an attribute of this model already: {self.config.attributes}")
        self.condition_embedding.append_text(name, text_embedding)
        self.config.attributes.append(name)
        return self

    def freeze_backbone(self, num_levels: int | None = None) -> "CCAModel":
        """Excludes the backbone from training, or its early part.

        Args:
            num_levels: freeze only what the first `num_levels` maps of `config.feature_levels` are made by; what comes
                behind the last of them goes on learning. `None` freezes all of the backbone.

        Raises:
            ValueError: if the model asks fewer levels than that.
        """
        if num_levels is None:
            self.backbone.requires_grad_(False)
            return self
        training = self.training
        self.eval()  # or the empty picture that is looked at would go into the statistics of batch normalisation
        for parameter in parameters_of_levels(self.backbone, self.config, num_levels):
            parameter.requires_grad_(False)
        return self.train(training)

    def train(self, mode: bool = True) -> "CCAModel":
        super().train(mode)
        if self.config.freeze_batch_norm:
            for module in self.backbone.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self

    def get_image_tokens(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """First half of the forward pass: everything that does not depend on the condition.

        Args:
            pixel_values: (batch, channels, height, width), as the image processor makes them.

        Returns:
            Image tokens X, (batch, tokens, hidden_size), the first being the summary of the picture. For a ViT these
            are its hidden states before the last layer. They can be kept, and asked again with [`condition_tokens`].
        """
        return self.tokens_and_grids(pixel_values)[0]

    def tokens_and_grids(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, list[tuple[int, int]]]:
        """As [`get_image_tokens`], with the (height, width) of each grid that the tokens come from."""
        levels = self.config.feature_levels
        # convolutions run up to 2.4 times faster on a CPU with channels last; a ViT's patch embedding does not care
        pixel_values = pixel_values.contiguous(memory_format=torch.channels_last)
        return self.image_tokens(extract_features(self.backbone, pixel_values, levels, self.interpolates_positions))

    def condition_tokens(
        self, image_tokens: torch.Tensor, attribute_ids: torch.Tensor, output_attentions: bool = False
    ) -> CCAModelOutput:
        """Second half of the forward pass: asks image tokens under conditions.

        Args:
            image_tokens: (batch, tokens, hidden_size), from [`get_image_tokens`].
            attribute_ids: (batch,) or (batch, k), integers.
            output_attentions: also return the attention weights.

        Raises:
            ValueError: if the ids have another shape or lie outside the attributes.
        """
        self._check_attribute_ids(attribute_ids, image_tokens.shape[0])
        conditions = self.condition_embedding()[attribute_ids]  # (B, D) or (B, k, D)
        single = attribute_ids.ndim == 1
        states, weights = self.conditional_layer(
            conditions[:, None] if single else conditions, image_tokens, output_attentions
        )
        embeddings = self.projection(self.layernorm(states))  # (B, k, dim)
        # under autocast the model's dtype is float32: the similarities of a loss need all of it
        embeddings = nn.functional.normalize(embeddings.float(), dim=-1).to(self.dtype)
        if weights is not None:
            weights = weights.transpose(1, 2)  # (B, heads, k, N) -> (B, k, heads, N)
        if single:
            embeddings = embeddings[:, 0]
            weights = None if weights is None else weights[:, 0]
        return CCAModelOutput(embeddings=embeddings, attentions=weights)

    def forward(
        self,
        pixel_values: torch.Tensor,
        attribute_ids: torch.Tensor | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
    ) -> CCAModelOutput | tuple[torch.Tensor, ...]:
        """Embeds pictures under conditions, all conditions of a picture from one pass of the backbone.

        Args:
            pixel_values: (batch, channels, height, width), as the image processor makes them.
            attribute_ids: (batch,) for one condition a picture, (batch, k) for k of them; integers, see
                [`CCAConfig.attribute_id`]. Mandatory: there is no unconditional embedding.
            output_attentions: also return the weights of the conditional layer.
            return_dict: `False` for a plain tuple.

        Raises:
            ValueError: if the condition is missing, has another shape or lies outside the attributes.
        """
        if attribute_ids is None:
            raise ValueError(
                "attribute_ids is missing: CCA embeds a picture with respect to an attribute. Pass ids of shape "
                f"(batch,) or (batch, k); this model's attributes are {dict(enumerate(self.config.attributes))}."
            )
        if output_attentions is None:
            output_attentions = bool(self.config.output_attentions)
        if return_dict is None:
            return_dict = self.config.return_dict
        output = self.condition_tokens(self.get_image_tokens(pixel_values), attribute_ids, output_attentions)
        return output if return_dict else output.to_tuple()

    def _check_attribute_ids(self, attribute_ids: torch.Tensor, batch_size: int) -> None:
        if attribute_ids.ndim not in (1, 2) or attribute_ids.shape[0] != batch_size:
            raise ValueError(
                f"attribute_ids must be of shape (batch,) or (batch, k) with batch = {batch_size}; "
                f"got {tuple(attribute_ids.shape)}"
            )
        # reading values would break a compiled graph and make a GPU wait; there the lookup itself fails
        if torch.compiler.is_compiling() or attribute_ids.device.type != "cpu" or not attribute_ids.numel():
            return
        allowed = max(1, len(self.config.attributes))
        if int(attribute_ids.min()) < 0 or int(attribute_ids.max()) >= allowed:
            raise ValueError(
                f"attribute_ids must lie in 0..{allowed - 1}, the ids of {self.config.attributes}; "
                f"got {int(attribute_ids.min())}..{int(attribute_ids.max())}"
            )

    def encode(
        self,
        images: ImageInput | Sequence[ImageInput],
        attributes: str | Sequence[str] | None = None,
        *,
        batch_size: int = 32,
        show_progress: bool | None = None,
        output: Literal["numpy", "torch"] = "numpy",
        num_workers: int = 0,
    ) -> np.ndarray | torch.Tensor:
        """Embeds pictures under attributes given by name.

        Args:
            images: pictures, or one: paths, URLs, bytes, PIL images, arrays, or the image column of a `Dataset`.
            attributes: names of attributes, or one; defaults to all of them, in the order of `config.attributes`.
            batch_size: pictures a pass.
            show_progress: a progress bar; by default where there is more than one batch.
            output: `"numpy"` or `"torch"` (on the CPU).
            num_workers: processes that decode the pictures; 0 decodes in this one.

        Returns:
            (images, attributes, dim) float32, L2-normalised.

        Raises:
            ValueError: for an unknown attribute (names the closest) or `output`.
            UnreadableImageError: for a picture that cannot be read; names it.
        """
        return encode_images(
            self,
            images,
            attributes,
            batch_size=batch_size,
            show_progress=show_progress,
            output=output,
            num_workers=num_workers,
        )

    def attention_maps(
        self,
        images: ImageInput | Sequence[ImageInput],
        attributes: str | Sequence[str] | None = None,
        *,
        batch_size: int = 32,
    ) -> np.ndarray:
        """Where each attribute looks.

        Returns:
            (images, attributes, heads, height, width) float32 on the finest grid of image tokens. Each map sums to the
            share of attention that falls on the grid; the rest rests on CLS or other tokens without a place.
        """
        return compute_attention_maps(self, images, attributes, batch_size=batch_size)


CCAModel.register_for_auto_class("AutoModel")

__all__ = ["CCAModel", "CCAModelOutput", "CCAPreTrainedModel"]
