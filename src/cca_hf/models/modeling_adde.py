"""Attribute-driven disentangled embeddings (ADDE): one embedding per attribute, and the memory of the values.

Hou, Vig, Donoser, Bazzani: "Learning Attribute-Driven Disentangled Representations for Interactive Fashion Retrieval",
ICCV 2021.

From the paper: a two-layer network for each attribute on the pooled output of the backbone, a classifier for each
attribute, and the memory M (A dim, J), whose column of a value is its prototype in the block of the attribute. Ours:
any backbone, whose `feature_levels` are pooled too; all networks in one batched product; CCA's conditional layer in
place of the networks (`encoder="cross_attention"`); the memory holds prototypes of normalised embeddings.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Never, Self

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer

from .backbones import FeatureCells, describe_backbone
from .configuration_adde import ADDEConfig
from .configuration_cca import ConditionalLayerConfig, ConditionConfig
from .configuration_images import AttributeConfig, fields_of
from .modeling_cca import CCAModel
from .modeling_conditional import ConditionalModelOutput, Vector, of_attribute
from .value_prototypes import check_prototypes


@dataclass
class ADDEOutput(ConditionalModelOutput):
    """
    Args:
        logits: (batch, most values) or (batch, k, most values), of the values of each attribute asked for; -inf beyond
            the values of an attribute. Float32.
        prototypes: (values of all attributes, attributes, dim), the memory: what each value adds to an embedding. The
            values are in the order of the attributes; their prototypes are the blocks of their attributes.
    """

    logits: torch.Tensor | None = None
    prototypes: torch.Tensor | None = None


class PooledTokens(FeatureCells):
    """The pooled output of a backbone as one image token: the first prefix token of a transformer, or a mean.

    Several levels are pooled alone, brought to mean 0 and variance 1 and concatenated.
    """

    def forward(self, flattened: list[torch.Tensor]) -> torch.Tensor:
        """The result of `flatten` -> (batch, 1, hidden_size)"""
        pooled = [cells[:, 0] if self.num_prefix_tokens else cells.mean(dim=1) for cells in flattened]
        if len(pooled) > 1:
            pooled = [nn.functional.layer_norm(level, level.shape[-1:]) for level in pooled]
        return torch.cat(pooled, dim=-1)[:, None]


class AttributeNetworks(GradientCheckpointingLayer):
    """A network for each attribute a: r_a = V_a ReLU(W_a f + b_a) + c_a."""

    def __init__(self, num_attributes: int, input_dim: int, dim: int):
        super().__init__()
        self.hidden_weight = nn.Parameter(torch.empty(num_attributes, input_dim, dim))
        self.hidden_bias = nn.Parameter(torch.empty(num_attributes, 1, dim))
        self.output_weight = nn.Parameter(torch.empty(num_attributes, dim, dim))
        self.output_bias = nn.Parameter(torch.empty(num_attributes, 1, dim))

    def init_weights(self) -> None:
        """As PyTorch initialises linear layers."""
        for weight, bias in ((self.hidden_weight, self.hidden_bias), (self.output_weight, self.output_bias)):
            bound = weight.shape[1] ** -0.5
            init.uniform_(weight, -bound, bound)
            init.uniform_(bias, -bound, bound)

    def forward(self, features: torch.Tensor, attribute_ids: torch.Tensor) -> torch.Tensor:
        """Features (batch, input_dim), ids (batch,) or (batch, k) -> (batch, dim) or (batch, k, dim)."""
        if attribute_ids.ndim == 2 and attribute_ids.stride(0) == 0:  # expanded: the same attributes for all images
            return self._run(features, attribute_ids[0]).transpose(0, 1)
        # all attributes, because copying the weights of a network for each row would need far more memory
        every = torch.arange(len(self.hidden_weight), device=attribute_ids.device)
        embeddings = self._run(features, every).transpose(0, 1)  # (B, A, dim)
        index = attribute_ids[..., None].expand(*attribute_ids.shape, embeddings.shape[-1])
        if attribute_ids.ndim == 1:
            return embeddings.gather(1, index[:, None]).squeeze(1)
        return embeddings.gather(1, index)

    def _run(self, features: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """Features (batch, input_dim), ids (k,) -> (k, batch, dim)"""
        weights = self.hidden_weight, self.hidden_bias, self.output_weight, self.output_bias
        hidden_weight, hidden_bias, output_weight, output_bias = (weight.index_select(0, ids) for weight in weights)
        inputs = features.expand(ids.shape[0], -1, -1)
        hidden = torch.baddbmm(hidden_bias, inputs, hidden_weight).relu()
        return torch.baddbmm(output_bias, hidden, output_weight)


class AttributeClassifiers(nn.Module):
    """A linear classifier of its values for each attribute."""

    is_value: torch.Tensor  # (A, most values), bool

    def __init__(self, num_values: Sequence[int], dim: int):
        super().__init__()
        self.num_values = list(num_values)
        self.weight = nn.Parameter(torch.empty(len(num_values), max(num_values), dim))
        self.bias = nn.Parameter(torch.empty(len(num_values), max(num_values)))
        self.register_buffer("is_value", self._are_values(), persistent=False)

    def _are_values(self) -> torch.Tensor:
        return torch.arange(max(self.num_values)) < torch.tensor(self.num_values)[:, None]

    def init_weights(self) -> None:
        """As PyTorch initialises linear layers."""
        bound = self.weight.shape[-1] ** -0.5
        init.uniform_(self.weight, -bound, bound)
        init.uniform_(self.bias, -bound, bound)
        init.copy_(self.is_value, self._are_values())

    def forward(self, embeddings: torch.Tensor, attribute_ids: torch.Tensor) -> torch.Tensor:
        """Embeddings (batch, dim) or (batch, k, dim) and their ids -> (batch, most values) or (batch, k, most values)

        In float32, also under autocast.
        """
        with torch.autocast(embeddings.device.type, enabled=False):
            scores = of_attribute(self.weight, embeddings.float(), attribute_ids)
            scores = scores + self.bias.float()[attribute_ids]
        return scores.masked_fill(~self.is_value[attribute_ids], -torch.inf)


class ValueMemory(nn.Module):
    """The memory M (A dim, J) of the J values of A attributes. It is 0 until a training sets it.

    Its block (a, j) is the rows of attribute a in the column of value j. A column is what its value adds to the
    concatenated embeddings of an image. The training draws all blocks of other attributes to 0.
    """

    def __init__(self, num_values: Sequence[int], dim: int):
        super().__init__()
        self.dim = dim
        self.attribute_of_value = [place for place, count in enumerate(num_values) for _ in range(count)]
        self.weight = nn.Parameter(torch.zeros(len(num_values) * dim, sum(num_values)))

    def init_weights(self) -> None:
        """As a training starts: no value has a prototype."""
        init.zeros_(self.weight)

    def forward(self) -> torch.Tensor:
        """(J, A, dim): a row for each value. With gradients, and also where the weights are offloaded."""
        return self.weight.T.unflatten(1, (-1, self.dim))

    def blocks(self) -> torch.Tensor:
        """(J, dim): the prototypes, from the block of each value's own attribute."""
        prototypes = self()
        return prototypes[self._are_own(prototypes)]

    def block_mass(self) -> torch.Tensor:
        """|D o M|_1 with D the blocks of each value's own attribute, a scalar."""
        return self.blocks().abs().sum()

    def off_block_mass(self) -> torch.Tensor:
        """|(1 - D) o M|_1, a scalar: the loss of the memory, which the training draws to 0."""
        prototypes = self()
        return prototypes[~self._are_own(prototypes)].abs().sum()

    def _are_own(self, prototypes: torch.Tensor) -> torch.Tensor:
        """(J, A) bool: whether a block is that of the value's own attribute."""
        owners = torch.tensor(self.attribute_of_value, device=prototypes.device)
        return torch.arange(prototypes.shape[1], device=prototypes.device) == owners[:, None]

    @torch.no_grad()
    def set_blocks(self, blocks: torch.Tensor) -> None:
        """Set the prototypes (J, dim), and everything outside their blocks to 0."""
        self.weight.zero_()
        for value, place in enumerate(self.attribute_of_value):
            self.weight[place * self.dim : (place + 1) * self.dim, value] = blocks[value].to(self.weight)


class ADDEModel(CCAModel):
    """Attribute-driven disentangled embeddings: a network for each attribute, and a prototype for each value.

    Example:

    ```python
    >>> from cca_hf import ADDEModel

    >>> attributes = {"colour": ["red", "blue"], "shape": ["round", "long"]}
    >>> model = ADDEModel.from_backbone("google/vit-base-patch16-224-in21k", attributes)
    >>> model.encode(["shoe.jpg"]).shape
    (1, 2, 340)
    ```
    """

    config_class = ADDEConfig
    config: ADDEConfig
    _no_split_modules = [*CCAModel._no_split_modules, "AttributeNetworks"]
    modules_without_effect: ClassVar[frozenset[str]] = CCAModel.modules_without_effect | {"classifiers", "memory"}

    display_name = "ADDE"
    method = "attribute-driven disentangled embeddings (ADDE)"
    paper_url = (
        "https://openaccess.thecvf.com/content/ICCV2021/papers/Hou_Learning_Attribute-Driven_Disentangled_"
        "Representations_for_Interactive_Fashion_Retrieval_ICCV_2021_paper.pdf"
    )

    @classmethod
    def usage_example(cls, model_id: str, config: AttributeConfig) -> str:
        name, values = next(iter((config.attribute_values or {}).items()))
        return (
            super().usage_example(model_id, config)
            + f"""
An embedding can be changed, such as to the one of the same product with another value:
```python
changed = model.manipulate(model.encode("image.jpg"), add={json.dumps({name: values[0]})})
```
"""
        )

    @classmethod
    def _describe_backbone(
        cls, native: PreTrainedModel, image_size: int | Sequence[int], config_fields: Mapping[str, Any]
    ) -> dict[str, Any]:
        if config_fields.get("encoder", cls.config_class.encoder) != "mlp":
            return super()._describe_backbone(native, image_size, config_fields)
        of_layer = (fields_of(ConditionConfig) | fields_of(ConditionalLayerConfig)) - fields_of(AttributeConfig)
        defaults = {field.name: field.default for field in fields(cls.config_class)}
        unused = sorted(name for name in of_layer.intersection(config_fields) if config_fields[name] != defaults[name])
        if unused:
            raise ValueError(f"encoder='mlp' has no conditional layer: {unused} need encoder='cross_attention'")
        described = describe_backbone(native, image_size, config_fields, takes_last_layer=False)
        read = {name: value for name, value in described.items() if name not in of_layer}
        return read | {"hidden_size": sum(described["feature_channels"])}

    def _add_head(self, config: ADDEConfig) -> None:
        if not config.attributes:
            raise ValueError("an ADDE model needs attributes with values: its configuration has none")
        dim = config.embedding_dim or config.hidden_size
        if config.encoder == "mlp":
            self.image_tokens = PooledTokens(config)
            self.attribute_networks = AttributeNetworks(len(config.attributes), config.hidden_size, dim)
        else:
            super()._add_head(config)
        num_values = [len((config.attribute_values or {})[name]) for name in config.attributes]
        self.classifiers = AttributeClassifiers(num_values, dim)
        self.memory = ValueMemory(num_values, dim)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, AttributeNetworks | AttributeClassifiers | ValueMemory):
            module.init_weights()

    def add_attribute(self, name: str, text_embedding: Vector) -> Never:
        """An ADDE model learns the values of its attributes, so it takes no attribute without training.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            f"{name!r} cannot be added without training: ADDE learns a classifier and prototypes of the values of "
            "each attribute. A CCAModel with condition_embedding='text' takes further attributes"
        )

    @property
    def has_attention(self) -> bool:
        return self.config.encoder == "cross_attention"

    @property
    def has_prototypes(self) -> bool:
        return bool(self.memory.blocks().any())

    def set_prototypes(
        self, vectors: torch.Tensor | np.ndarray | None, known: torch.Tensor | np.ndarray | None = None
    ) -> Self:
        """As [`ConditionalPreTrainedModel.set_prototypes`]: sets the blocks of the memory, and all else of it to 0."""
        if vectors is None:
            self.memory.weight.detach().zero_()
            return self
        vectors, known = check_prototypes(self.config, vectors, known)
        units = nn.functional.normalize(vectors.float(), dim=-1) * known[..., None]
        self.memory.set_blocks(units[self.classifiers.is_value.to(units.device)])
        return self

    def _prototypes(self) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.has_prototypes:
            raise ValueError("this model has no prototypes of values yet: its memory is 0 before a training sets it")
        blocks = self.memory.blocks().float()
        is_value = self.classifiers.is_value.to(blocks.device)
        vectors = blocks.new_zeros(*is_value.shape, blocks.shape[-1])
        vectors[is_value] = blocks
        return vectors, vectors.any(dim=-1)

    def _embed_tokens(
        self, image_tokens: torch.Tensor, attribute_ids: torch.Tensor, output_attentions: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        if self.config.encoder == "cross_attention":
            return super()._embed_tokens(image_tokens, attribute_ids, output_attentions)
        if output_attentions:
            raise ValueError(
                "this model has no attention on the image: encoder='mlp' reads the pooled output of the backbone. "
                "Attention maps need encoder='cross_attention'"
            )
        return self.attribute_networks(image_tokens[:, 0], attribute_ids), None

    def _make_output(
        self, embeddings: torch.Tensor, attentions: torch.Tensor | None, attribute_ids: torch.Tensor
    ) -> ADDEOutput:
        output = super()._make_output(embeddings, attentions, attribute_ids)
        logits = self.classifiers(embeddings, attribute_ids)
        return ADDEOutput(output.embeddings, attentions=attentions, logits=logits, prototypes=self.memory())

    def _join(self, outputs: Sequence[Any]) -> ADDEOutput:
        joined = super()._join(outputs)
        logits = torch.cat([output.logits for output in outputs])
        return ADDEOutput(joined.embeddings, logits=logits, prototypes=outputs[0].prototypes)


ADDEModel.register_for_auto_class("AutoModel")
