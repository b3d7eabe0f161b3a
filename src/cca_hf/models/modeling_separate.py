"""One network for each attribute: what conditional embeddings want to replace, and the quality they are measured by.

Every network is a whole `CCAModel` of one attribute, trained by itself; here they are joined behind the interface of
one model. It is as large and as slow as all of them together.
"""

import copy
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig

from .backbones import architecture_of
from .configuration_baselines import SeparateConfig
from .configuration_cca import CCAConfig
from .modeling_cca import CCAModel
from .modeling_conditional import CCAPreTrainedModel


class SeparateModel(CCAPreTrainedModel):
    """A network for each attribute, seen as one model; made by [`SeparateModel.join`]."""

    config_class = SeparateConfig
    config: SeparateConfig
    display_name = "one network per attribute"
    method = "one network per attribute"
    paper_url = None
    networks: Any  # of `CCAModel`; what is in a ModuleList has no type

    def __init__(self, config: SeparateConfig):
        super().__init__(config)
        self.networks = nn.ModuleList(CCAModel(_config_of_one(config, name)) for name in config.attributes)
        self.post_init()

    @classmethod
    def join(cls, networks: Sequence[CCAModel]) -> "SeparateModel":
        """The networks of one attribute each, in this order, with the weights that they have.

        Raises:
            ValueError: if one has not exactly one attribute, two have the same one, or they differ otherwise.
        """
        names = [name for network in networks for name in network.config.attributes]
        if not names or any(len(n.config.attributes) != 1 for n in networks) or len(set(names)) < len(names):
            given = [network.config.attributes for network in networks]
            raise ValueError(f"every network must have one attribute, and each another one; got {given}")
        first, *others = [network.config for network in networks]
        for config in others:
            differing = [field for field, value in _shared(config).items() if value != _shared(first)[field]]
            if differing:
                raise ValueError(
                    f"the network of {config.attributes[0]!r} differs from that of {names[0]!r} in {differing}"
                )
        values = {name: v for network in networks for name, v in (network.config.attribute_values or {}).items()}
        shared = _shared(first) | {"backbone_config": first.backbone_config}
        joined = cls(SeparateConfig(**shared, attributes=names, attribute_values=values))
        for place, (own, network) in enumerate(zip(joined.networks, networks, strict=True)):
            weights = network.state_dict()
            if joined.subspaces is not None:
                joined.subspaces.set(
                    place, weights.pop("subspaces.projections")[0], weights.pop("subspaces.offsets")[0]
                )
            own.load_state_dict(weights)
        joined.image_processor = networks[0].image_processor
        return joined.to(networks[0].dtype).eval()

    def get_backbone_features(self, pixel_values: torch.Tensor) -> list[torch.Tensor]:
        """Those of the first network, then of the next."""
        return [feature for network in self.networks for feature in network.get_backbone_features(pixel_values)]

    def project_features(self, backbone_features: Sequence[torch.Tensor]) -> torch.Tensor:
        """(batch, attributes * tokens, hidden_size)"""
        size = len(backbone_features) // len(self.networks)
        parts = [backbone_features[start : start + size] for start in range(0, len(backbone_features), size)]
        own = zip(self.networks, parts, strict=True)
        return torch.cat([network.project_features(part) for network, part in own], dim=1)

    def tokens_and_grids(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, list[tuple[int, int]]]:
        both = [network.tokens_and_grids(pixel_values) for network in self.networks]
        return torch.cat([tokens for tokens, _ in both], dim=1), both[0][1]

    def _ask(
        self, image_tokens: torch.Tensor, attribute_ids: torch.Tensor, output_attentions: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Weights are over the tokens of the network that was asked."""
        only = attribute_ids.new_zeros(len(image_tokens), 1)
        tokens = image_tokens.chunk(len(self.networks), dim=1)
        answers = [n._ask(own, only, output_attentions) for n, own in zip(self.networks, tokens, strict=True)]
        rows = torch.arange(len(image_tokens), device=attribute_ids.device)[:, None]
        embeddings = torch.cat([embedding for embedding, _ in answers], dim=1)[rows, attribute_ids]  # (B, k, dim)
        if not output_attentions:
            return embeddings, None
        weights = torch.cat([weight for _, weight in answers], dim=2).transpose(1, 2)  # (B, A, heads, N)
        return embeddings, weights[rows, attribute_ids].transpose(1, 2)


def _config_of_one(config: SeparateConfig, attribute: str) -> SeparateConfig:
    own = copy.deepcopy(config)
    own.attributes = [attribute]
    own.attribute_subspaces = False  # they lie behind all networks
    values = config.attribute_values or {}
    own.attribute_values = {attribute: values[attribute]} if attribute in values else {}
    return own


def _shared(config: CCAConfig) -> dict[str, Any]:
    """The fields of a configuration in which all networks must agree."""
    names = {field.name for field in fields(CCAConfig)} - {field.name for field in fields(PreTrainedConfig)}
    shared = {name: vars(config)[name] for name in sorted(names - {"attributes", "attribute_values"})}
    return shared | {"backbone_config": architecture_of(config.backbone_config)}


SeparateModel.register_for_auto_class("AutoModel")

__all__ = ["SeparateModel"]
