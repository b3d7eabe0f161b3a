"""What every model that embeds pictures under conditions has in common: loading, saving, checks, `encode`.

A model fills in `get_backbone_features`, `project_features`, `tokens_and_grids` and `_ask`. `CCAModel` is the one that
all is about; the baselines that it is compared with (CSN, ASEN, one network per attribute) are the others.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn
from transformers import BaseImageProcessor, PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput

from .attribute_subspaces import AttributeSubspaces
from .checkpoints import load_image_processor, name_pipeline, name_sentence_transformers_module, staged
from .conditional_layer import ConditionEmbedding
from .configuration_cca import CCAConfig
from .encoding import ImageEncoder, compute_attention_maps
from .fingerprint import fingerprint_of
from .images import ImageInput
from .micro_batches import embed_in_micro_batches


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


class CCAPreTrainedModel(ImageEncoder, PreTrainedModel):
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

    display_name: ClassVar[str] = "CCA"
    method: ClassVar[str] = "conditional cross-attention (CCA)"
    paper_url: ClassVar[str | None] = "https://arxiv.org/abs/2307.13254"

    @classmethod
    def usage_example(cls, model_id: str, config: CCAConfig) -> str:
        """Snippets of Markdown for the model card that load the model and apply it to images."""
        names = list(config.attributes[:2])
        dim = config.embedding_dim or config.hidden_size
        return f"""```python
from transformers import AutoModel

model = AutoModel.from_pretrained("{model_id}", trust_remote_code=True)
embeddings = model.encode(["image.jpg", "other.jpg"], attributes={json.dumps(names)})
print(embeddings.shape)  # (2, {len(names)}, {dim}): images, attributes, dimensions; L2-normalised
print(embeddings[0] @ embeddings[1].T)  # on the diagonal: the similarity of the two images under each attribute
```
This needs only `pip install transformers pillow`. `pip install cca_hf` adds an index and a search by attribute
(`cca index`, `cca search`), exports and evaluation. With `pip install sentence-transformers`:
```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("{model_id}", trust_remote_code=True)
embeddings = model.encode(["image.jpg", "other.jpg"], attribute={json.dumps(config.attributes[0])})
print(model.similarity(embeddings, embeddings))  # under that attribute
```"""

    def __init__(self, config: CCAConfig):
        super().__init__(config)
        self._image_processor: BaseImageProcessor | None = None
        self._hub_kwargs: dict[str, Any] = {}
        self.subspaces = AttributeSubspaces(config) if config.attribute_subspaces else None

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
        elif isinstance(module, ConditionEmbedding | AttributeSubspaces):
            module.init_weights()

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
        """As [`PreTrainedModel.save_pretrained`]; saves the image processor and the code files as well, for pipelines
        and sentence-transformers too.

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
            name_sentence_transformers_module(folder)
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

    def get_image_tokens(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """First half of the forward pass: everything that does not depend on the condition.

        Args:
            pixel_values: (batch, channels, height, width), as the image processor makes them.

        Returns:
            Image tokens X, (batch, tokens, hidden_size), the first being the summary of the picture. For a ViT these
            are its hidden states before the last layer. They can be kept, and asked again with [`condition_tokens`].
        """
        return self.project_features(self.get_backbone_features(pixel_values))

    def get_backbone_features(self, pixel_values: torch.Tensor) -> list[torch.Tensor]:
        """The part of [`get_image_tokens`] that no parameter outside the backbone has a hand in.

        With a frozen backbone this is the same for a picture at every step, and may be computed once and kept.

        Returns:
            Rows of cells (batch, cells, channels), the backbone's output first, then earlier levels.
        """
        raise NotImplementedError

    def project_features(self, backbone_features: Sequence[torch.Tensor]) -> torch.Tensor:
        """The learned rest of [`get_image_tokens`]: (batch, tokens, hidden_size), from [`get_backbone_features`]."""
        raise NotImplementedError

    def tokens_and_grids(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, list[tuple[int, int]]]:
        """As [`get_image_tokens`], with the (height, width) of each grid that the tokens come from."""
        raise NotImplementedError

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
        single = attribute_ids.ndim == 1
        ids = attribute_ids[:, None] if single else attribute_ids
        embeddings, weights = self._ask(image_tokens, ids, output_attentions)  # (B, k, dim), (B, heads, k, N)
        if self.subspaces is not None:
            with torch.autocast(embeddings.device.type, enabled=False):
                embeddings = self.subspaces(embeddings, ids)
        # under autocast the model's dtype is float32: the similarities of a loss need all of it
        embeddings = nn.functional.normalize(embeddings.float(), dim=-1).to(self.dtype)
        if weights is not None:
            weights = weights.transpose(1, 2)  # (B, heads, k, N) -> (B, k, heads, N)
        if single:
            embeddings = embeddings[:, 0]
            weights = None if weights is None else weights[:, 0]
        return CCAModelOutput(embeddings=embeddings, attentions=weights)

    def _ask(
        self, image_tokens: torch.Tensor, attribute_ids: torch.Tensor, output_attentions: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Under ids (batch, k): embeddings (batch, k, dim) before normalisation, weights (batch, heads, k, tokens)."""
        raise NotImplementedError

    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        attribute_ids: torch.Tensor | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        backbone_features: Sequence[torch.Tensor] | None = None,
        micro_batch_size: int | None = None,
    ) -> CCAModelOutput | tuple[torch.Tensor, ...]:
        """Embeds pictures under conditions, all conditions of a picture from one pass of the backbone.

        Args:
            pixel_values: (batch, channels, height, width), as the image processor makes them.
            attribute_ids: (batch,) for one condition a picture, (batch, k) for k of them; integers, see
                [`CCAConfig.attribute_id`]. Mandatory: there is no unconditional embedding.
            output_attentions: also return the weights of the conditional layer.
            return_dict: `False` for a plain tuple.
            backbone_features: in place of `pixel_values`, what [`get_backbone_features`] returned for them.
            micro_batch_size: where gradients are recorded, keep the activations of so many pictures at once, and
                compute them again in the backward pass: the same gradients from less memory, see `micro_batches.py`.

        Raises:
            ValueError: if the condition is missing, has another shape or lies outside the attributes, unless there
                are either pictures or features, or for attentions in micro-batches.
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
        if micro_batch_size is None or not torch.is_grad_enabled():
            output = self._answer(pixel_values, attribute_ids, backbone_features, output_attentions)
        elif output_attentions:
            raise ValueError("micro_batch_size is for training on embeddings: it gives no attentions")
        else:
            output = CCAModelOutput(
                embeddings=embed_in_micro_batches(
                    lambda *rows: self._answer(*rows).to_tuple()[0],
                    micro_batch_size,
                    pixel_values,
                    attribute_ids,
                    backbone_features,
                )
            )
        return output if return_dict else output.to_tuple()

    def _answer(
        self,
        pixel_values: torch.Tensor | None,
        attribute_ids: torch.Tensor,
        backbone_features: Sequence[torch.Tensor] | None,
        output_attentions: bool = False,
    ) -> CCAModelOutput:
        if pixel_values is not None and backbone_features is None:
            backbone_features = self.get_backbone_features(pixel_values)
        elif pixel_values is None and backbone_features is not None:  # they may have been kept in half precision
            backbone_features = [feature.to(self.dtype) for feature in backbone_features]
        else:
            raise ValueError("give either pixel_values or backbone_features, and not both")
        return self.condition_tokens(self.project_features(backbone_features), attribute_ids, output_attentions)

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

    def fingerprint(self) -> str:
        """A hash to keep beside embeddings: of the weights, the attributes and how pictures are read."""
        return fingerprint_of(self, self.config, self.image_processor)

    @torch.inference_mode()
    def _embed(self, pixel_values: torch.Tensor, attribute_ids: torch.Tensor) -> torch.Tensor:
        """For [`encode`]: in eval mode, whatever mode the model is in."""
        training = self.training
        if training:
            self.eval()
        try:
            return self(pixel_values, attribute_ids=attribute_ids.expand(len(pixel_values), -1)).embeddings
        finally:
            if training:
                self.train()

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


__all__ = ["CCAModelOutput", "CCAPreTrainedModel"]
