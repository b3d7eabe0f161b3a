"""Configuration of DCAL, Zhu, Ke, Li, Liu, Tian, Shan, CVPR 2022, https://arxiv.org/abs/2205.02151."""

from dataclasses import fields
from typing import Any, ClassVar, Literal

from huggingface_hub.dataclasses import strict
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig

from .configuration_images import check_sizes, did_you_mean, height_and_width

Branch = Literal["self", "local", "pairwise"]

# What a backbone's configuration has to say, and how it says it if the backbone is a plain transformer.
_NUMBERS_OF_A_TRANSFORMER = ("hidden_size", "num_hidden_layers", "num_attention_heads")


@strict
class DCALConfig(PreTrainedConfig):
    r"""Configuration of a [`DCALModel`]; [`DCALModel.from_backbone`] fills it from a backbone.

    Args:
        backbone_config: native configuration of a plain vision transformer (ViT, DeiT, DINOv2, ...), or its dict with
            `model_type`; a ViT-B by default.
        use_local_attention: adds the block of global-local cross-attention (GLCA), in which the class token and the
            most attended patches attend to all tokens.
        local_share: share of the patches that are queries of this block. The paper takes 0.1 for fine-grained
            classes and 0.3 for re-identification.
        use_pairwise_attention: adds pair-wise cross-attention (PWCA) in training. It has no parameters.
        initializer_range: standard deviation of new weights behind the backbone.
    """

    model_type = "dcal"
    sub_configs: ClassVar[dict] = {"backbone_config": AutoConfig}
    replaces_last_layer: ClassVar[bool] = False  # read by `prepare_backbone`
    # an evaluation of transformers' Trainer sees the logits alone
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["branch_logits", "rollout", "hidden_states", "attentions"]

    backbone_config: dict | PreTrainedConfig | None = None
    use_local_attention: bool = True
    local_share: float | int = 0.1
    use_pairwise_attention: bool = True
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs: Any) -> None:
        if not isinstance(self.backbone_config, PreTrainedConfig):
            settings = dict(self.backbone_config or {})
            model_type = settings.pop("model_type", "vit")
            if model_type not in CONFIG_MAPPING:
                raise ValueError(
                    f"the backbone is of type {model_type!r}, which this version of transformers does not know"
                )
            self.backbone_config = CONFIG_MAPPING[model_type](**settings)
        check_sizes(self.backbone_config)
        super().__post_init__(**kwargs)

    @classmethod
    def refuse_unknown_fields(cls, names: dict[str, Any]) -> None:
        """Raise `TypeError` for the first of `names` that is neither a field nor a common keyword of transformers."""
        known = {"num_labels", "attn_implementation", *(field.name for field in fields(cls))} - {"backbone_config"}
        for name in sorted(set(names) - known):
            raise TypeError(f"{cls.__name__} has no field {name!r}.{did_you_mean(name, sorted(known))}")

    def validate_local_share(self) -> None:
        """Part of the strict validation: a share of the patches."""
        if not 0 < self.local_share <= 1:
            raise ValueError(f"local_share must be above 0 and at most 1; got {self.local_share}")

    def validate_backbone(self) -> None:
        """Part of the strict validation: the backbone is a transformer whose layers are all of the same shape."""
        settings = self._backbone_settings
        for name in _NUMBERS_OF_A_TRANSFORMER:
            if not isinstance(settings.get(name), int):
                raise ValueError(
                    f"DCAL needs a plain vision transformer, such as ViT, DeiT or DINOv2; the configuration of "
                    f"{settings.get('model_type')!r} has no number {name}"
                )

    @property
    def branches(self) -> tuple[Branch, ...]:
        """The branches whose losses are learned together: `"self"`, `"local"` and `"pairwise"`, or some of them."""
        chosen: dict[Branch, bool] = {"self": True, "local": self.use_local_attention}
        chosen["pairwise"] = self.use_pairwise_attention
        return tuple(name for name, is_used in chosen.items() if is_used)

    @property
    def num_heads_at_inference(self) -> int:
        """Class tokens side by side in `pooler_output`, and classifiers: PWCA has none of its own."""
        return 1 + self.use_local_attention

    @property
    def hidden_size(self) -> int:
        """Width of the tokens."""
        return self._backbone_settings["hidden_size"]

    @property
    def patch_height_and_width(self) -> tuple[int, int]:
        """Height and width of a patch in pixels."""
        return height_and_width(self._backbone_settings["patch_size"])

    @property
    def local_layer_settings(self) -> dict[str, Any]:
        """The shape of the GLCA block, which is that of the backbone's layers."""
        settings = self._backbone_settings
        return {
            "num_heads": settings["num_attention_heads"],
            "intermediate_size": settings.get("intermediate_size")
            or int(settings.get("mlp_ratio", 4) * settings["hidden_size"]),
            "hidden_act": settings.get("hidden_act", "gelu"),
            "qkv_bias": settings.get("qkv_bias", True),
            "layer_norm_eps": settings.get("layer_norm_eps", 1e-6),
            "dropout": settings.get("hidden_dropout_prob", 0.0),
            "attention_dropout": settings.get("attention_probs_dropout_prob", 0.0),
        }

    @property
    def _backbone_settings(self) -> dict[str, Any]:
        assert isinstance(self.backbone_config, PreTrainedConfig)  # for the type checker: the field may be a dict
        return self.backbone_config.to_dict()


DCALConfig.register_for_auto_class()
