"""Configuration of outfit completion: CSA-Net (Lin, Tran, Davis, CVPR 2020, https://arxiv.org/abs/1912.08967)."""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from huggingface_hub.dataclasses import strict
from transformers import CONFIG_MAPPING

from .configuration_images import AttributeConfig, ImageModelConfig, did_you_mean, without_path


@strict
class OutfitConfig(ImageModelConfig):
    r"""Configuration of an [`OutfitModel`]; [`OutfitModel.from_backbone`] fills it from a backbone.

    Args:
        categories: names of the categories of items ("sofa", ...). The id of a category is its index in this list.
        subspaces: what a pair of categories selects. `"masks"`: a mixture of learned masks, as in CSA-Net.
            `"attributes"`: weights of the attributes of a backbone that embeds images by attribute, as in ADDE-O.
        embedding_dim: numbers of a feature vector; for `"attributes"`, of each attribute in it.
        num_subspaces: number of masks, for `"masks"` only.
        pair_hidden_size: width of the network that reads a pair of categories.
        feature_dropout: dropout of the backbone's features while training.

    The other arguments are those of `ImageModelConfig`. `backbone_config` may also be the configuration of a model
    that embeds images by attribute, such as a `CCAConfig`.
    """

    model_type = "outfit"
    replaces_last_layer: ClassVar[bool] = False  # read by `prepare_backbone`
    fields_without_effect: ClassVar[set[str]] = {"feature_dropout"}

    categories: list[str] | tuple[str, ...] = ()
    subspaces: Literal["masks", "attributes"] = "masks"
    embedding_dim: int = 64
    num_subspaces: int = 5
    pair_hidden_size: int = 32
    feature_dropout: float = 0.5

    def __post_init__(self, **kwargs: Any) -> None:
        self.categories = list(self.categories)
        if isinstance(self.backbone_config, dict):
            kind = self.backbone_config.get("model_type", "vit")
            if kind not in CONFIG_MAPPING:
                raise ValueError(
                    f"the backbone of this model is of type {kind!r}, which transformers does not have: "
                    "pip install cca-hf, and write 'import cca_hf.models' before the model is loaded"
                )
        super().__post_init__(**kwargs)
        self.id2label = self.label2id = None  # there are no classes; transformers' default is LABEL_0 and LABEL_1

    def to_diff_dict(self) -> dict[str, Any]:
        settings = super().to_diff_dict()
        for name in ("id2label", "label2id"):
            settings.pop(name, None)
        for name in {"backbone_name", "text_encoder"} & set(settings["backbone_config"]):
            if settings["backbone_config"][name] is not None:
                settings["backbone_config"][name] = without_path(settings["backbone_config"][name])
        return settings

    @property
    def num_attributes(self) -> int | None:
        """The number of attributes by which the backbone embeds an image, or None for a plain backbone."""
        return len(self.backbone_config.attributes) if isinstance(self.backbone_config, AttributeConfig) else None

    @property
    def feature_dim(self) -> int:
        """The length of a feature vector."""
        blocks = (self.num_attributes or 1) if self.subspaces == "attributes" else 1
        return blocks * self.embedding_dim

    def validate_outfit(self) -> None:
        """Part of the strict validation: names are unique, numbers positive, and attributes exist."""
        if len(set(self.categories)) != len(self.categories):
            raise ValueError(f"names of categories must be unique; got {list(self.categories)}")
        for name in ("embedding_dim", "num_subspaces", "pair_hidden_size"):
            if vars(self)[name] < 1:
                raise ValueError(f"{name} must be at least 1; got {vars(self)[name]}")
        if not 0 <= self.feature_dropout < 1:
            raise ValueError(f"feature_dropout must be at least 0 and below 1; got {self.feature_dropout}")
        if self.subspaces == "attributes" and not isinstance(self.backbone_config, AttributeConfig):
            raise ValueError(
                "subspaces='attributes' needs a backbone that embeds images by attribute, such as a trained CCA "
                f"model; this one has a {type(self.backbone_config).__name__}. Use subspaces='masks'"
            )

    def category_ids(self, names: str | Sequence[str]) -> list[int]:
        """The ids of one name or of several names.

        Raises:
            ValueError: for an unknown category; the message names the closest one.
        """
        ids = {name: index for index, name in enumerate(self.categories)}
        names = [names] if isinstance(names, str) else list(names)
        for row, name in enumerate(names):
            if name not in ids:
                hint = did_you_mean(str(name), list(self.categories), cutoff=0.5)
                place = f" in row {row}" if len(names) > 1 else ""
                raise ValueError(f"unknown category {name!r}{place}.{hint} This model knows {self.categories}.")
        return [ids[name] for name in names]


OutfitConfig.register_for_auto_class()
