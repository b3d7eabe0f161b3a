"""Outfit completion: which item goes with the items of an outfit?

CSA-Net: Lin, Tran, Davis, "Fashion Outfit Complementary Item Retrieval", CVPR 2020, https://arxiv.org/abs/1912.08967.
ADDE-O: Hou, Vig, Donoser, Bazzani, ICCV 2021, replaces the image features by embeddings of attributes.

From CSA-Net: f = x o v(a, b), where x is the feature vector of an image and v(a, b) = sum_k w_k m_k depends on a pair
of categories: a, that of an item of the outfit, and b, that of the item to find. m_k are learned masks, and w is the
softmax of a two-layer network on the one-hots of a and b. The outfit and the candidate are compared under the same
pair, d = |f_item - f_candidate|^2, and D(O, s) is the mean of d over the items of the outfit.
Ours: x is a linear layer on standardised features of the backbone, L2-normalised; f is not normalised, so that a pair
of categories that often occur together can have small distances; squared distances; with `subspaces="attributes"` the
network weighs attributes, v = sqrt(w_a) on the block of attribute a, and a linear layer for each attribute precedes
(ADDE-O was not released).
"""

import copy
import json
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from os import PathLike, fspath
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from torch import nn
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput

from .backbones import (
    describe_backbone,
    freeze_statistics,
    image_size_of,
    interpolates_positions,
    load_backbone_processor,
    load_native,
    make_image_processor,
    prepare_backbone,
    run_backbone,
)
from .configuration_images import AttributeConfig, ImageModelConfig, fields_of
from .configuration_outfit import OutfitConfig
from .encoding import as_sequence, pixel_batches
from .images import ImageInput
from .modeling_images import ImagePreTrainedModel

Images = ImageInput | Sequence[ImageInput] | np.ndarray | torch.Tensor


@dataclass
class OutfitModelOutput(ModelOutput):
    """
    Args:
        features: (batch, dim), the feature vectors x; L2-normalised.
        pair_weights: (categories, categories, dim), v(a, b) for a category a of the outfit and b of the candidate.
    """

    features: torch.Tensor | None = None
    pair_weights: torch.Tensor | None = None


class Completion(NamedTuple):
    """A candidate that completes an outfit: its row among the candidates, and its distance D from the outfit."""

    index: int  # type: ignore[assignment]  # hides a method of tuple, which no caller needs
    distance: float


def pair_distances(
    items: np.ndarray,
    item_ids: np.ndarray,
    candidates: np.ndarray,
    candidate_ids: np.ndarray,
    pair_weights: np.ndarray,
) -> np.ndarray:
    """The mean over the items of |v x_item - v x_candidate|^2.

    It is a quadratic form of x, computed once for each category of candidates. So a candidate costs as much as one
    vector, for any size of the outfit.

    Args:
        items, candidates: (n, dim) and (m, dim), the feature vectors x.
        item_ids, candidate_ids: (n,) and (m,), their categories.
        pair_weights: (categories, categories, dim), v of the category of an item and of a candidate.

    Returns:
        (m,); rounding may make a distance of 0 negative.
    """
    distances = np.empty(len(candidates), np.result_type(candidates, pair_weights))
    for target in np.unique(candidate_ids):
        rows = np.flatnonzero(candidate_ids == target)
        squared = pair_weights[item_ids, target] ** 2  # (n, dim)
        # mean of v^2 (x_i - x)^2 = mean of v^2 x_i^2 - 2 (mean of v^2 x_i) x + (mean of v^2) x^2
        constant = (squared * items**2).mean(axis=0).sum()
        x = candidates[rows]
        distances[rows] = constant - 2 * x @ (squared * items).mean(axis=0) + x**2 @ squared.mean(axis=0)
    return distances


class PairWeights(nn.Module):
    """v(a, b) of all pairs of categories."""

    def __init__(self, config: OutfitConfig):
        super().__init__()
        categories, hidden = max(1, len(config.categories)), config.pair_hidden_size
        self.num_categories, self.block_size = categories, config.embedding_dim
        # the first layer of a network on [onehot(a), onehot(b)], in two parts
        self.outfit_category = nn.Linear(categories, hidden)
        self.target_category = nn.Linear(categories, hidden, bias=False)
        by_attribute = config.subspaces == "attributes"
        self.mixture = nn.Linear(hidden, (config.num_attributes or 1) if by_attribute else config.num_subspaces)
        self.masks = None if by_attribute else nn.Parameter(torch.ones(config.num_subspaces, config.embedding_dim))

    def forward(self) -> torch.Tensor:
        """(categories, categories, dim)"""
        one_hot = torch.eye(self.num_categories, device=self.mixture.weight.device, dtype=self.mixture.weight.dtype)
        hidden = self.outfit_category(one_hot)[:, None] + self.target_category(one_hot)[None]  # (C, C, hidden)
        weights = self.mixture(hidden.relu()).softmax(dim=-1)
        if self.masks is None:
            return weights.sqrt().repeat_interleave(self.block_size, dim=-1)
        return weights @ self.masks


class OutfitModel(ImagePreTrainedModel):
    """A vision backbone, or a model with attributes, and subspaces for pairs of categories: completes outfits.

    Example:

    ```python
    >>> from cca_hf.models.modeling_outfit import OutfitModel

    >>> model = OutfitModel.from_pretrained("me/rooms")
    >>> room, kinds = ["sofa.jpg", "lamp.jpg"], ["sofa", "lamp"]
    >>> shop, shop_kinds = ["rug-1.jpg", "rug-2.jpg", "shelf.jpg"], ["rug", "rug", "shelf"]
    >>> model.complete(room, kinds, shop, shop_kinds, category="rug")
    [Completion(index=1, distance=0.41), Completion(index=0, distance=0.67)]
    ```
    """

    config_class = OutfitConfig
    config: OutfitConfig

    display_name = "CSA-Net"
    method = "subspaces for pairs of categories (CSA-Net)"
    paper_url = "https://arxiv.org/abs/1912.08967"

    def __init__(self, config: OutfitConfig):
        super().__init__(config)
        backbone = AutoModel.from_config(config.backbone_config, trust_remote_code=False)
        # a model with attributes has a complete forward pass; a plain backbone loses its pooling
        self.backbone = prepare_backbone(backbone, config) if config.num_attributes is None else backbone
        self.interpolates_positions = interpolates_positions(self.backbone)
        channels = config.feature_channels[-1]
        # without it the mean of the features, which all images share, dominates x, and the training ends in x = const
        self.standardise = nn.BatchNorm1d(channels, affine=False)
        self.dropout = nn.Dropout(config.feature_dropout)
        if config.subspaces == "attributes":
            count = config.num_attributes or 1
            self.projection: nn.Module = BlockLinear(count, channels // count, config.embedding_dim)
        else:
            self.projection = nn.Linear(channels, config.embedding_dim)
        self.pair_weights = PairWeights(config)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, BlockLinear):
            bound = module.weight.shape[1] ** -0.5
            init.uniform_(module.weight, -bound, bound)
        elif isinstance(module, PairWeights) and module.masks is not None:
            init.normal_(module.masks, mean=1.0, std=0.3)

    @classmethod
    def usage_example(cls, model_id: str, config: OutfitConfig) -> str:
        first, last = json.dumps(config.categories[0]), json.dumps(config.categories[-1])
        needed = "torch transformers pillow" if config.num_attributes is None else "cca-hf"
        first_line = "" if config.num_attributes is None else "import cca_hf.models\n"
        return f"""```python
{first_line}from transformers import AutoModel

model = AutoModel.from_pretrained({json.dumps(model_id)}, trust_remote_code={config.num_attributes is None})
catalogue = model.features(["1.jpg", "2.jpg", "3.jpg"])  # (3, {config.feature_dim}): compute and store once
found = model.complete(["a.jpg"], [{first}], catalogue, [{last}] * 3, category={last})
print(found)  # rows of the catalogue, the best first, with their distance from the outfit
```
This code needs `pip install {needed}`. The outfit may have any number of items.
"""

    @classmethod
    def from_backbone(
        cls,
        backbone: str | PathLike[str] | PreTrainedConfig | PreTrainedModel,
        categories: Sequence[str],
        *,
        freeze_backbone: bool = False,
        image_size: int | Sequence[int] | None = None,
        dtype: torch.dtype = torch.float32,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | PathLike[str] | None = None,
        local_files_only: bool = False,
        **config_fields: Any,
    ) -> Self:
        """A new model on a pretrained vision backbone, or on a trained model that embeds images by attribute.

        Args:
            backbone: a model id on the Hub, a folder, a model, or a configuration for random weights.
            categories: names of the categories of items.
            freeze_backbone: train only the layers on top of the backbone.
            image_size: side of the images in pixels, or (height, width); defaults to the backbone's own, or 224.
            dtype: of the weights.
            revision, token, cache_dir, local_files_only: as in `from_pretrained`.
            config_fields: any other field of the configuration, such as `subspaces` or `embedding_dim`.

        Raises:
            TypeError: for a field that the configuration does not have.
            ValueError: for a backbone that does not fit, no category, or `subspaces="attributes"` on a plain backbone.
        """
        cls.config_class.refuse_unknown_fields(config_fields)
        if isinstance(categories, str) or not categories:
            raise ValueError(f"categories must be a list with at least one name; got {categories!r}")
        hub_kwargs: dict[str, Any] = {"revision": revision, "token": token, "cache_dir": cache_dir}
        hub_kwargs |= {"local_files_only": local_files_only, "trust_remote_code": False}
        if isinstance(backbone, PreTrainedModel):
            native, name = backbone, backbone.name_or_path or None
        else:
            native = load_native(backbone, dtype, hub_kwargs)
            name = None if isinstance(backbone, PreTrainedConfig) else fspath(backbone)
        has_attributes = isinstance(native.config, AttributeConfig)
        if isinstance(native.config, ImageModelConfig) and not has_attributes:
            raise ValueError(f"a model of type {native.config.model_type!r} is no backbone of an OutfitModel")
        size = image_size or image_size_of(native.config)
        if has_attributes:
            width = native.config.embedding_dim or native.config.hidden_size
            described = {"backbone_config": copy.deepcopy(native.config), "num_prefix_tokens": 0}
            described["feature_channels"] = [len(native.config.attributes) * width]
        else:
            described = describe_backbone(native, size, {"feature_levels": []}, takes_last_layer=False)
        described |= {"backbone_name": name, "freeze_batch_norm": name is not None, "categories": list(categories)}
        described["image_size"] = size if isinstance(size, int) else list(size)
        names = fields_of(cls.config_class)
        fields = {field: value for field, value in described.items() if field in names}
        model = cls(cls.config_class(**fields | config_fields))
        weights = native.state_dict()
        model.backbone.load_state_dict({key: weights[key] for key in model.backbone.state_dict()})
        like = native.image_processor if has_attributes else None
        if like is None and name is not None:
            like = load_backbone_processor(name, hub_kwargs)
        model.image_processor = make_image_processor(size, like)
        if freeze_backbone:
            model.backbone.requires_grad_(False)
        return model.to(dtype).eval()  # as from_pretrained

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        if self.config.freeze_batch_norm:
            freeze_statistics(self.backbone)
        return self

    def fingerprint(self) -> str:
        own = super().fingerprint()
        if not isinstance(self.backbone, ImagePreTrainedModel):
            return own
        return sha256(f"{own} {self.backbone.fingerprint()}".encode()).hexdigest()  # with the backbone's own backbone

    def get_backbone_features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Compute the part of the forward pass that depends only on parameters of the backbone.

        Returns:
            (batch, channels): the summary token of a backbone with one, otherwise the mean of its output; or the
            embeddings of all attributes, concatenated.
        """
        if self.config.num_attributes is not None:
            return self.backbone(pixel_values).embeddings.flatten(1)
        # convolutions run up to 2.4 times faster on a CPU with channels last
        pixel_values = pixel_values.contiguous(memory_format=torch.channels_last)
        output = run_backbone(self.backbone, pixel_values, self.interpolates_positions).last_hidden_state
        if output.ndim == 4:
            return output.mean(dim=(2, 3))
        return output[:, 0] if self.config.num_prefix_tokens else output.mean(dim=1)

    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        backbone_features: torch.Tensor | None = None,
        return_dict: bool | None = None,
    ) -> OutfitModelOutput | tuple[torch.Tensor, ...]:
        """Compute the feature vectors of images, and the weights of all pairs of categories.

        Args:
            pixel_values: (batch, channels, height, width), from the image processor.
            backbone_features: the result of [`get_backbone_features`] in place of `pixel_values`.
            return_dict: `False` for a plain tuple.

        Raises:
            ValueError: if both images and features are given, or neither.
        """
        if (pixel_values is None) == (backbone_features is None):
            raise ValueError("give either pixel_values or backbone_features, and not both")
        if pixel_values is not None:
            backbone_features = self.get_backbone_features(pixel_values)
        assert backbone_features is not None  # for the type checker
        projected = self.projection(self.dropout(self.standardise(backbone_features.to(self.dtype))))
        blocks = projected.unflatten(-1, (-1, self.config.embedding_dim))
        features = nn.functional.normalize(blocks.float(), dim=-1).flatten(-2).to(self.dtype)
        output = OutfitModelOutput(features=features, pair_weights=self.pair_weights())
        if return_dict is None:
            return_dict = self.config.return_dict
        return output if return_dict else output.to_tuple()

    @torch.inference_mode()
    def features(self, images: ImageInput | Sequence[ImageInput], *, batch_size: int = 32) -> np.ndarray:
        """Compute the feature vectors x of images, which can be stored: all other methods accept them as images.

        Args:
            images: one image or several, as for `CCAModel.encode`.
            batch_size: images per forward pass.

        Returns:
            (images, dim) float32.

        Raises:
            UnreadableImageError: if an image cannot be read; the message names its row and its source.
        """
        sequence, model = as_sequence(images), self.in_eval_mode()
        features = np.zeros((len(sequence), self.config.feature_dim), np.float32)
        for batch in pixel_batches(model, sequence, batch_size):
            values = model(pixel_values=batch.values).features[: len(batch.rows)]
            features[batch.rows] = values.float().cpu().numpy()
        return features

    def encode(
        self,
        images: Images,
        categories: str | Sequence[str],
        target_categories: str | Sequence[str],
        *,
        batch_size: int = 32,
    ) -> np.ndarray:
        """Embed images under pairs of categories: f = x o v(a, b).

        An item of an outfit and a candidate have the distance |f - f'|^2 when both are embedded under the same pair.

        Args:
            images: images, or their [`features`], an array (images, dim).
            categories: a, the category of the outfit's item; one name for all images, or one for each image.
            target_categories: b, the category of the candidate; likewise.

        Returns:
            (images, dim) float32, not normalised.

        Raises:
            ValueError: for an unknown category (the message names the closest one), or a wrong number of names.
        """
        features = self._features_of(images, batch_size)
        outfit_ids = self._category_ids(categories, len(features), "categories")
        target_ids = self._category_ids(target_categories, len(features), "target_categories")
        return features * self.all_pair_weights()[outfit_ids, target_ids]

    def distances(
        self,
        outfit: Images,
        outfit_categories: str | Sequence[str],
        candidates: Images,
        candidate_categories: str | Sequence[str],
    ) -> np.ndarray:
        """Compute D(O, s), the mean squared distance of each candidate from the items of an outfit.

        Stored features are enough, see [`pair_distances`].

        Args:
            outfit, candidates: images, or their [`features`].
            outfit_categories, candidate_categories: one name for all, or one for each image.

        Returns:
            (candidates,) float32; smaller is better.

        Raises:
            ValueError: for an outfit without items, an unknown category, or a wrong number of names.
        """
        items, others = self._features_of(outfit), self._features_of(candidates)
        item_ids = self._category_ids(outfit_categories, len(items), "outfit_categories")
        target_ids = self._category_ids(candidate_categories, len(others), "candidate_categories")
        if len(items) == 0:
            raise ValueError("the outfit has no items: completing it needs at least one")
        return pair_distances(items, item_ids, others, target_ids, self.all_pair_weights()).clip(min=0)

    def complete(
        self,
        outfit: Images,
        outfit_categories: str | Sequence[str],
        candidates: Images,
        candidate_categories: str | Sequence[str],
        *,
        category: str | None = None,
        top_k: int = 10,
    ) -> list[Completion]:
        """Rank candidates by how well they complete an outfit.

        Args:
            outfit, candidates: images, or their [`features`].
            outfit_categories, candidate_categories: one name for all, or one for each image.
            category: rank only the candidates of this category; by default all candidates.
            top_k: number of candidates to return, or all if there are fewer.

        Returns:
            The candidates with the smallest distance from the outfit, in this order.

        Raises:
            ValueError: for an outfit without items, an unknown category, one without candidates, a wrong number of
                names, or a `top_k` below 1.
        """
        if top_k < 1:
            raise ValueError(f"top_k must be at least 1; got {top_k}")
        others = self._features_of(candidates)
        target_ids = self._category_ids(candidate_categories, len(others), "candidate_categories")
        rows = np.arange(len(others))
        if category is not None:
            rows = np.flatnonzero(target_ids == self.config.category_ids(category)[0])
            if len(rows) == 0:
                present = sorted({self.config.categories[index] for index in target_ids})
                raise ValueError(f"no candidate is of the category {category!r}; the candidates are of {present}")
        names = [self.config.categories[index] for index in target_ids[rows]]
        distances = self.distances(outfit, outfit_categories, others[rows], names)
        best = np.argsort(distances, kind="stable")[:top_k]
        return [Completion(int(rows[place]), float(distances[place])) for place in best]

    @torch.inference_mode()
    def all_pair_weights(self) -> np.ndarray:
        """v(a, b) of all pairs, (categories of the outfit's item, categories of the candidate, dim) float32."""
        return self.pair_weights().float().cpu().numpy()

    def _features_of(self, images: Images, batch_size: int = 32) -> np.ndarray:
        """Features as they are given, or those of images."""
        if isinstance(images, np.ndarray | torch.Tensor) and images.ndim == 2:
            features = np.asarray(images.cpu() if isinstance(images, torch.Tensor) else images, np.float32)
            if features.shape[1] != self.config.feature_dim:
                raise ValueError(
                    f"features of this model have {self.config.feature_dim} numbers; got {features.shape[1]}"
                )
            return features
        return self.features(images, batch_size=batch_size)  # type: ignore[arg-type]

    def _category_ids(self, names: str | Sequence[str], count: int, parameter: str) -> np.ndarray:
        """(count,) ids of one name for all, or of a name for each.

        Raises:
            ValueError: for an unknown name, or another number of names.
        """
        if isinstance(names, str):
            names = [names] * count
        if len(names) != count:
            raise ValueError(f"{parameter} must be one name, or one for each of the {count} images; got {len(names)}")
        return np.array(self.config.category_ids(names), dtype=np.int64)


class BlockLinear(nn.Module):
    """A linear layer without bias for each block of the input, as one batched product."""

    def __init__(self, num_blocks: int, in_features: int, out_features: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_blocks, in_features, out_features))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """(batch, blocks * in_features) -> (batch, blocks * out_features)"""
        blocks = inputs.unflatten(-1, (len(self.weight), -1))
        return torch.einsum("bad,ade->bae", blocks, self.weight).flatten(-2)


OutfitModel.register_for_auto_class("AutoModel")

__all__ = ["Completion", "OutfitModel", "OutfitModelOutput"]
