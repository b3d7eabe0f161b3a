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
from os import PathLike
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import AutoModel, PreTrainedConfig

from .backbones import ImageTokens, extract_features, interpolates_positions, parameters_of_levels, prepare_backbone
from .checkpoints import build_from_backbone
from .conditional_layer import ConditionalCrossAttentionLayer, ConditionEmbedding
from .configuration_cca import CCAConfig
from .modeling_conditional import CCAModelOutput, CCAPreTrainedModel


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

    takes_last_layer = True  # of a ViT, whose last layer the conditional one replaces

    def __init__(self, config: CCAConfig):
        super().__init__(config)
        self.backbone = prepare_backbone(AutoModel.from_config(config.backbone_config), config)
        self.interpolates_positions = interpolates_positions(self.backbone)
        self.image_tokens = ImageTokens(config)
        self._add_head(config)
        self.post_init()

    def _add_head(self, config: CCAConfig) -> None:
        """The modules behind the image tokens. A model that asks them otherwise replaces this and `_ask`."""
        self.condition_embedding = ConditionEmbedding(config)
        self.conditional_layer = ConditionalCrossAttentionLayer(config)
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.projection = (
            nn.Identity()
            if config.embedding_dim is None
            else nn.Linear(config.hidden_size, config.embedding_dim, bias=False)
        )

    @classmethod
    def from_backbone(
        cls,
        backbone: str | PathLike[str] | PreTrainedConfig,
        attributes: Sequence[str] | Mapping[str, Sequence[str]],
        *,
        text_embeddings: Mapping[str, torch.Tensor | np.ndarray | Sequence[float]] | None = None,
        freeze_backbone: bool = False,
        image_size: int | Sequence[int] | None = None,
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
            image_size: side of the square images in pixels, or their (height, width); defaults to the backbone's
                image size, or 224.
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
        if self.subspaces is not None:
            self.subspaces.append()
        self.config.attributes = [*self.config.attributes, name]
        return self

    def get_backbone_features(self, pixel_values: torch.Tensor) -> list[torch.Tensor]:
        return self._features_and_grids(pixel_values)[0]

    def project_features(self, backbone_features: Sequence[torch.Tensor]) -> torch.Tensor:
        return self.image_tokens(list(backbone_features))

    def tokens_and_grids(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, list[tuple[int, int]]]:
        features, grids = self._features_and_grids(pixel_values)
        return self.project_features(features), grids

    def _features_and_grids(self, pixel_values: torch.Tensor) -> tuple[list[torch.Tensor], list[tuple[int, int]]]:
        levels = self.config.feature_levels
        # convolutions run up to 2.4 times faster on a CPU with channels last; a ViT's patch embedding does not care
        pixel_values = pixel_values.contiguous(memory_format=torch.channels_last)
        features = extract_features(self.backbone, pixel_values, levels, self.interpolates_positions)
        height, width = pixel_values.shape[-2:]
        return self.image_tokens.flatten(features, (height, width))

    def _ask(
        self, image_tokens: torch.Tensor, attribute_ids: torch.Tensor, output_attentions: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        conditions = self.condition_embedding()[attribute_ids]  # (B, k, D)
        states, weights = self.conditional_layer(conditions, image_tokens, output_attentions)
        return self.projection(self.layernorm(states)), weights


CCAModel.register_for_auto_class("AutoModel")

__all__ = ["CCAModel", "CCAModelOutput", "CCAPreTrainedModel"]
