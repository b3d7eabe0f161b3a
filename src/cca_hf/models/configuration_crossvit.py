"""Configuration of CrossViT, Chen, Fan, Panda, ICCV 2021, https://arxiv.org/abs/2103.14899."""

from dataclasses import fields
from math import ceil
from typing import Any, Self

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from .configuration_images import check_sizes, did_you_mean, height_and_width

_SMALL = {"hidden_sizes": [192, 384], "num_attention_heads": [6, 6]}
_DEPTH_9 = {"hidden_sizes": [128, 256], "num_attention_heads": [4, 4], "num_layers": [1, 3], "mlp_ratio": 3}
_DEPTH_15 = _SMALL | {"num_layers": [1, 5], "mlp_ratio": 3}
_DEPTH_18 = {"hidden_sizes": [224, 448], "num_attention_heads": [7, 7], "num_layers": [1, 6], "mlp_ratio": 3}
_DAGGER = {"multi_conv": True}
_LARGE = _DAGGER | {"image_size": 408, "image_scales": [1.0, 384 / 408]}

# What a published variant has other than the defaults; the names are those of timm.
VARIANTS: dict[str, dict[str, Any]] = {
    "crossvit_tiny_240": {"hidden_sizes": [96, 192], "num_attention_heads": [3, 3]},
    "crossvit_small_240": _SMALL,
    "crossvit_base_240": {"hidden_sizes": [384, 768], "num_attention_heads": [12, 12]},
    "crossvit_9_240": _DEPTH_9,
    "crossvit_15_240": _DEPTH_15,
    "crossvit_18_240": _DEPTH_18,
    "crossvit_9_dagger_240": _DEPTH_9 | _DAGGER,
    "crossvit_15_dagger_240": _DEPTH_15 | _DAGGER,
    "crossvit_18_dagger_240": _DEPTH_18 | _DAGGER,
    "crossvit_15_dagger_408": _DEPTH_15 | _LARGE,
    "crossvit_18_dagger_408": _DEPTH_18 | _LARGE,
}


@strict
class CrossViTConfig(PreTrainedConfig):
    r"""Configuration of a [`CrossViTModel`]; the defaults are those of `crossvit_small_240`.

    A field with two numbers has one for each branch: first the branch of small patches, which sees the image, and then
    the branch of large patches, which sees the image at `image_scales[1]` of its size.

    Args:
        image_size: side of the square images in pixels that the position embeddings are made for, or their
            (height, width). For images of other sizes they are interpolated.
        num_channels: channels of an image.
        hidden_sizes, patch_sizes, image_scales, num_attention_heads: of the two branches.
        num_layers: transformer layers of the two branches in a block.
        num_blocks: blocks; at the end of a block, the class tokens of the two branches attend to the other branch.
        mlp_ratio: width of the feed-forward part over `hidden_sizes`.
        multi_conv: patches are embedded by three convolutions (the variants with a dagger), and not by one. It needs
            the patch sizes 12 and 16.
        hidden_act, qkv_bias, layer_norm_eps: shape of a layer.
        hidden_dropout_prob, attention_probs_dropout_prob: dropout while training.
        drop_path_rate: probability in training that an image skips the last layer. It rises linearly from 0.
        initializer_range: standard deviation of new weights.
    """

    model_type = "crossvit"

    image_size: int | list[int] | tuple[int, int] = 240
    num_channels: int = 3
    hidden_sizes: list[int] | tuple[int, ...] = (192, 384)
    patch_sizes: list[int] | tuple[int, ...] = (12, 16)
    image_scales: list[float] | tuple[float, ...] = (1.0, 224 / 240)
    num_attention_heads: list[int] | tuple[int, ...] = (6, 6)
    num_layers: list[int] | tuple[int, ...] = (1, 4)
    num_blocks: int = 3
    mlp_ratio: float | int = 4
    multi_conv: bool = False
    hidden_act: str = "gelu"
    qkv_bias: bool = True
    layer_norm_eps: float = 1e-6
    hidden_dropout_prob: float | int = 0.0
    attention_probs_dropout_prob: float | int = 0.0
    drop_path_rate: float | int = 0.0
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs: Any) -> None:
        check_sizes(self)
        super().__post_init__(**kwargs)

    @classmethod
    def from_variant(cls, name: str, **config_fields: Any) -> Self:
        """The configuration of a published variant, with 1,000 classes unless `num_labels` or `id2label` is given.

        Args:
            name: as in timm, such as `"crossvit_15_dagger_240"`.
            config_fields: fields to change, such as `drop_path_rate`.

        Raises:
            ValueError: for an unknown name; the message lists all.
            TypeError: for a field that does not exist.
        """
        if name not in VARIANTS:
            names = list(VARIANTS)
            raise ValueError(f"unknown variant {name!r}.{did_you_mean(name, names)} The variants are {names}")
        known = {"num_labels", "attn_implementation", *(field.name for field in fields(cls))}
        for field in sorted(set(config_fields) - known):
            raise TypeError(f"{cls.__name__} has no field {field!r}.{did_you_mean(field, sorted(known))}")
        classes = {} if {"num_labels", "id2label"} & set(config_fields) else {"num_labels": 1000}
        return cls(**VARIANTS[name] | classes | config_fields)

    @property
    def image_height_and_width(self) -> tuple[int, int]:
        """Height and width in pixels of the images that the position embeddings are made for."""
        return height_and_width(self.image_size)

    @property
    def smallest_side(self) -> int:
        """Height and width in pixels of the smallest image: one patch of each branch."""
        return max(ceil(patch / scale) for patch, scale in zip(self.patch_sizes, self.image_scales, strict=True))

    def size_in_branch(self, branch: int, height: int, width: int) -> tuple[int, int]:
        """Height and width in pixels of an image when it enters a branch."""
        scale = self.image_scales[branch]
        return round_down(height * scale), round_down(width * scale)

    def validate_branches(self) -> None:
        """Part of the strict validation: every field of branches has two numbers, which fit together."""
        for name in ("hidden_sizes", "patch_sizes", "image_scales", "num_attention_heads", "num_layers"):
            numbers = vars(self)[name]
            if len(numbers) != 2 or min(numbers) <= 0:
                raise ValueError(f"{name} needs a positive number for each of the 2 branches; got {list(numbers)}")
        for width, heads in zip(self.hidden_sizes, self.num_attention_heads, strict=True):
            if width % heads:
                raise ValueError(
                    f"hidden_sizes must be multiples of num_attention_heads; got {list(self.hidden_sizes)} and "
                    f"{list(self.num_attention_heads)}"
                )
        if self.multi_conv and (tuple(self.patch_sizes) != (12, 16) or any(width % 4 for width in self.hidden_sizes)):
            raise ValueError(
                "multi_conv needs patch_sizes [12, 16] and hidden_sizes that are multiples of 4; got "
                f"{list(self.patch_sizes)} and {list(self.hidden_sizes)}"
            )

    def validate_image_size(self) -> None:
        """Part of the strict validation: the image has a patch in each branch."""
        if min(self.image_height_and_width) < self.smallest_side:
            raise ValueError(
                f"image_size must be at least {self.smallest_side}, which is a patch of each branch; "
                f"got {self.image_size}"
            )


def round_down(number: float) -> int:
    """The integer below a number; one that floating point has put just below an integer is that integer."""
    return int(number + 1e-6)


CrossViTConfig.register_for_auto_class()
