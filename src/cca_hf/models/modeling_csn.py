"""Conditional similarity network (CSN): one embedding of the image, and a learned mask of it for each condition.

Veit, Belongie, Karaletsos: "Conditional Similarity Networks", CVPR 2017, https://arxiv.org/abs/1603.07810.

From the paper: e_c = f(x) * ReLU(M[c]), with masks M drawn from N(0.9, 0.7). Ours: f is CCA's layer with one learned
query, so that the two methods differ only in where the condition enters. Masked embeddings are normalised and trained
with CCA's loss, without the two regularising terms of the paper.
"""

import torch
from torch import nn
from transformers import initialization as init

from .configuration_baselines import CSNConfig
from .modeling_cca import CCAModel
from .modeling_conditional import ConditionEmbedding


class CSNModel(CCAModel):
    """One embedding of an image, masked for each attribute."""

    config_class = CSNConfig
    config: CSNConfig

    display_name = "CSN"
    method = "a conditional similarity network (CSN)"
    paper_url = "https://arxiv.org/abs/1603.07810"

    def _add_head(self, config: CSNConfig) -> None:
        self.condition_embedding = ConditionEmbedding("none", len(config.attributes), config.hidden_size)
        self._add_layer(config)
        dim = config.embedding_dim or config.hidden_size
        self.condition_masks = nn.Embedding(max(1, len(config.attributes)), dim)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module is self.condition_masks:
            init.normal_(module.weight, mean=0.9, std=0.7)

    def _embed_tokens(
        self, image_tokens: torch.Tensor, attribute_ids: torch.Tensor, output_attentions: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        # the query is the same for all attributes; attentions are returned for each of them, with their own gradients
        one_query = attribute_ids.ndim == 2 and not output_attentions
        queries = attribute_ids[:, :1] if one_query else attribute_ids
        embedding, weights = super()._embed_tokens(image_tokens, queries, output_attentions)
        masks = self.condition_masks(attribute_ids).relu()
        return embedding * masks.to(embedding.device), weights  # a device map may separate the two


CSNModel.register_for_auto_class("AutoModel")
