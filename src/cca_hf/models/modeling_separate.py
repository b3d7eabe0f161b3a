"""One network for each attribute: the baseline that conditional embeddings replace.

Every network is a whole `CCAModel` that was trained for one attribute. The joined model has the interface of a single
one, and is as large and as slow as all networks together.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from .backbones import architecture_of
from .configuration_baselines import SeparateConfig
from .configuration_cca import CCAConfig
from .configuration_images import fields_of
from .modeling_cca import CCAModel
from .modeling_conditional import ConditionalPreTrainedModel, ImageFeatures
from .value_prototypes import shape_of_prototypes


class SeparateModel(ConditionalPreTrainedModel):
    """A network for each attribute behind the interface of one model; made by [`SeparateModel.join`]."""

    config_class = SeparateConfig
    config: SeparateConfig
    networks: Any  # a ModuleList of `CCAModel`

    display_name = "one network per attribute"
    method = "one network per attribute"
    pipeline_class = CCAModel.pipeline_class
    sentence_transformers_class = CCAModel.sentence_transformers_class

    def __init__(self, config: SeparateConfig):
        super().__init__(config)
        configs = [config.restricted_to([name]) for name in config.attributes]
        for single in configs:
            # the joined model has them
            single.attribute_map, single.attribute_subspaces, single.value_prototypes = "none", False, False
        self.networks = nn.ModuleList(map(CCAModel, configs))
        self.post_init()
        for network in self.networks:  # transformers collects these from children, and not through a ModuleList
            self._no_split_modules |= network._no_split_modules

    @classmethod
    def join(cls, networks: Sequence[CCAModel]) -> "SeparateModel":
        """Join networks of one attribute each, in this order, with their weights.

        Raises:
            ValueError: if a network has several attributes, two have the same one, or their settings differ.
        """
        names = [name for network in networks for name in network.config.attributes]
        if not names or any(len(n.config.attributes) != 1 for n in networks) or len(set(names)) < len(names):
            given = [network.config.attributes for network in networks]
            raise ValueError(f"every network must have one attribute that no other network has; got {given}")
        first, *others = [network.config for network in networks]
        for config in others:
            differing = [field for field, value in _shared(config).items() if value != _shared(first)[field]]
            if differing:
                raise ValueError(
                    f"the network of {config.attributes[0]!r} differs from that of {names[0]!r} in {differing}"
                )
        values = {name: v for network in networks for name, v in (network.config.attribute_values or {}).items()}
        known: dict[str, list[str]] | None = {}
        for network in networks:
            of_network = network.config.known_values
            known = None if known is None or of_network is None else known | of_network
        shared = _shared(first) | {"backbone_config": first.backbone_config}
        joined = cls(SeparateConfig(**shared, attributes=names, attribute_values=values, known_values=known))
        for place, (copied, network) in enumerate(zip(joined.networks, networks, strict=True)):
            if joined.subspaces is not None and network.subspaces is not None:
                joined.subspaces.set_like(place, network.subspaces)
            weights = network.state_dict()
            of_joined = ("subspaces.", "prototypes.")
            copied.load_state_dict({k: v for k, v in weights.items() if not k.startswith(of_joined)})
        joined._join_prototypes(networks)
        joined.image_processor = networks[0].image_processor
        return joined.to(networks[0].dtype).eval()

    def _join_prototypes(self, networks: Sequence[CCAModel]) -> None:
        """Copy the prototypes of the networks, unless one of them has none."""
        if any(network.prototypes is None for network in networks):
            return
        count, most, dim = shape_of_prototypes(self.config)
        vectors, known = torch.zeros(count, most, dim), torch.zeros(count, most, dtype=torch.bool)
        for place, network in enumerate(networks):
            of_network, are_known = network._prototypes()
            vectors[place, : are_known.shape[1]] = of_network[0].float().cpu()
            known[place, : are_known.shape[1]] = are_known[0].cpu()
        self.set_prototypes(vectors, known)

    def get_input_embeddings(self) -> nn.Module:
        """Those of the first network; the other networks have their own."""
        return self.networks[0].get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.networks[0].set_input_embeddings(value)

    def get_backbone_outputs(self, pixel_values: torch.Tensor, output_hidden_states: bool = False) -> ImageFeatures:
        """The cells and hidden states of the first network, then of the next; the grids of one."""
        outputs = [network.get_backbone_outputs(pixel_values, output_hidden_states) for network in self.networks]
        cells = [part for features in outputs for part in features.cells]
        states = tuple(state for features in outputs for state in features.hidden_states or ())
        return ImageFeatures(cells, outputs[0].grids, states if output_hidden_states else None)

    def project_features(self, backbone_features: Sequence[torch.Tensor]) -> torch.Tensor:
        """(batch, attributes * tokens, hidden_size)"""
        size = len(backbone_features) // len(self.networks)
        parts = [backbone_features[start : start + size] for start in range(0, len(backbone_features), size)]
        pairs = zip(self.networks, parts, strict=True)
        return torch.cat([network.project_features(part) for network, part in pairs], dim=1)

    def _embed_tokens(
        self, image_tokens: torch.Tensor, attribute_ids: torch.Tensor, output_attentions: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The attention weights are over the tokens of the attribute's network, and a copy without gradients."""
        batch = image_tokens.shape[0]  # not len(), which would be a constant in an exported graph
        only = attribute_ids.new_zeros(batch)
        pairs = zip(self.networks, image_tokens.chunk(len(self.networks), dim=1), strict=True)
        outputs = [network._embed_tokens(part, only, output_attentions) for network, part in pairs]
        rows = torch.arange(batch, device=attribute_ids.device)
        rows = rows if attribute_ids.ndim == 1 else rows[:, None]
        embeddings = torch.stack([embedding for embedding, _ in outputs], dim=1)  # (B, A, dim)
        weights = None
        if output_attentions:
            weights = torch.stack([weight for _, weight in outputs], dim=1)[rows, attribute_ids].detach()
        return embeddings[rows, attribute_ids], weights


def _shared(config: CCAConfig) -> dict[str, Any]:
    """The fields of a configuration in which all networks must agree."""
    of_network = {"attributes", "attribute_values", "known_values", "value_prototypes", "backbone_name"}
    names = fields_of(CCAConfig) - of_network
    shared = {name: vars(config)[name] for name in sorted(names)}
    return shared | {"backbone_config": architecture_of(config.backbone_config)}


SeparateModel.register_for_auto_class("AutoModel")
