"""Configurations that every family shares: a model on an image backbone, and one that embeds images by attribute."""

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from difflib import get_close_matches
from inspect import signature
from os import PathLike
from pathlib import Path, PureWindowsPath
from typing import Any, ClassVar, Self

from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig
from transformers.dynamic_module_utils import custom_object_save

# Keywords of `PreTrainedConfig` that are not fields.
_COMMON_KEYWORDS = {"attn_implementation", "auto_map", "custom_pipelines", "experts_implementation", "model_type"}
_COMMON_KEYWORDS |= {"name_or_path", "num_labels", "output_attentions", "quantization_config", "torch_dtype"}

ATTRIBUTE_MAPS = ("none", "values", "retrieval", "project")
ATTRIBUTE_KINDS = ("exclusive", "multiple", "binary")

# Limits far above those of any published vision model (ViT-22B has 48 layers, 24,576 wide).
_LARGEST_NUMBERS = {"image_size": 16_384, "rope_theta": 10**9}
_LARGEST_NUMBER = 100_000
_MOST_LAYERS = 1_000
_MOST_WEIGHTS = 10**11


@strict
class ImageModelConfig(PreTrainedConfig):
    r"""Configuration of a model on top of a vision backbone. It contains the native configuration of the backbone.

    Args:
        backbone_config: native configuration of the backbone, or its dict with `model_type`; the default is a ViT,
            whose fields may then be given here.
        backbone_name: model id or path of the backbone, for the model card.
        num_prefix_tokens: tokens before the grid of image tokens (CLS, distillation, registers). The first one
            summarises the image; without a prefix the mean of the tokens does.
        feature_levels: indices into the backbone's `hidden_states` of feature maps that are used in addition to the
            last one. Early maps contain more of the colour, for example.
        feature_channels: channels of these maps and, last, of the backbone's output.
        feature_grid: earlier maps with more than this many cells a side are averaged down to it.
        hidden_size: width of the image tokens behind the backbone.
        layer_norm_eps: epsilon of the layer normalisations behind the backbone.
        initializer_range: standard deviation of new embedding tables.
        freeze_batch_norm: training does not change the running statistics of the backbone's batch normalisation;
            `from_backbone` sets it for a pretrained backbone.
        image_size: side of the square images in pixels that the model was made for, or their (height, width).
            Position embeddings are interpolated for other sizes.
    """

    sub_configs: ClassVar[dict] = {"backbone_config": AutoConfig}
    # Fields of this class that change no embedding: names, and settings of training.
    fields_without_effect: ClassVar[set[str]] = {"backbone_name", "freeze_batch_norm", "initializer_range"}

    backbone_config: dict | PreTrainedConfig | None = None
    backbone_name: str | None = None
    num_prefix_tokens: int = 1
    feature_levels: list[int] | tuple[int, ...] = ()
    feature_channels: list[int] | tuple[int, ...] = ()
    feature_grid: int = 7
    hidden_size: int = 768
    layer_norm_eps: float = 1e-12
    initializer_range: float = 0.02
    freeze_batch_norm: bool = True
    image_size: int | list[int] | tuple[int, int] = 224

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls._auto_class = None  # a subclass has to be registered itself before its code is saved with checkpoints

    def save_pretrained(self, save_directory: str | PathLike[str], *args: Any, **kwargs: Any) -> None:
        Path(save_directory).mkdir(parents=True, exist_ok=True)
        save_code_of_base(self, save_directory, self)
        super().save_pretrained(save_directory, *args, **kwargs)

    def __post_init__(self, **kwargs: Any) -> None:
        if self.transformers_version is None:  # not read from a file, which may have fields of another version
            self.refuse_unknown_fields(kwargs, with_backbone=self.backbone_config is None)
        if self.backbone_config is None:
            self.backbone_config = self._default_backbone(kwargs)
        elif isinstance(self.backbone_config, dict):
            self.backbone_config = backbone_config_from(self.backbone_config)
        if not self.feature_channels:
            self.feature_channels = [self.hidden_size]
        check_sizes(self.backbone_config)
        check_sizes(self)
        super().__post_init__(**kwargs)

    def _default_backbone(self, kwargs: dict[str, Any]) -> PreTrainedConfig:
        """A ViT with the fields that it shares with this configuration and those in `kwargs`, which are removed."""
        names = fields_of(CONFIG_MAPPING["vit"])
        shared = {name: vars(self)[name] for name in names & fields_of(type(self))}
        return CONFIG_MAPPING["vit"](**shared | {name: kwargs.pop(name) for name in names & set(kwargs)})

    @classmethod
    def refuse_unknown_fields(cls, names: Iterable[str], *, with_backbone: bool = False) -> None:
        """Raise `TypeError` for the first of `names` that is neither a field nor a common keyword of transformers.

        `with_backbone` also allows the fields of the default backbone, a ViT.
        """
        known = fields_of(cls) | (fields_of(CONFIG_MAPPING["vit"]) if with_backbone else set())
        for name in sorted(set(names) - known - _COMMON_KEYWORDS - {field.name for field in fields(PreTrainedConfig)}):
            if not name.startswith("_"):
                raise TypeError(
                    f"{cls.__name__} has no field {name!r}.{did_you_mean(name, sorted(known))} "
                    f"Its fields are {sorted(fields_of(cls))}; fields of the backbone belong in backbone_config."
                )

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As [`PreTrainedConfig.from_dict`].

        Raises:
            ValueError: for the configuration of another type of model.
        """
        model_type = config_dict.get("model_type", cls.model_type)
        if model_type != cls.model_type:
            name = cls.__name__.removesuffix("Config") + "Model"
            raise ValueError(
                f"this is a checkpoint of type {model_type!r}, and {name} loads checkpoints of type "
                f"{cls.model_type!r}. AutoModel.from_pretrained loads a checkpoint of any type; "
                f"{name}.from_backbone makes a new model on a pretrained vision backbone."
            )
        return super().from_dict(config_dict, **kwargs)

    def to_diff_dict(self) -> dict[str, Any]:
        """As [`PreTrainedConfig.to_diff_dict`], which is what a file contains: without paths of this machine."""
        settings = super().to_diff_dict()
        for name in self.sub_configs:
            settings[name] = _without_labels(without_folders(settings[name]))
        if self.backbone_name is not None:
            settings["backbone_name"] = without_path(self.backbone_name)
        return settings

    @property
    def image_height_and_width(self) -> tuple[int, int]:
        """Height and width in pixels of the images that the model was made for."""
        return height_and_width(self.image_size)

    def validate_image_size(self) -> None:
        """Part of the strict validation: a positive number, or two."""
        height_and_width(self.image_size)

    def validate_feature_levels(self) -> None:
        """Part of the strict validation: the channels of every map are given."""
        if len(self.feature_channels) != len(self.feature_levels) + 1:
            raise ValueError(
                f"feature_channels needs one number for each of the {len(self.feature_levels)} feature_levels and "
                f"one for the backbone's output; got {list(self.feature_channels)}"
            )


@strict
class NamedAttributesConfig(ImageModelConfig):
    r"""Configuration of a model that knows attributes of images and their values by name.

    Args:
        attributes: names of the attributes ("colour", ...). The id of an attribute is its index in this list.
        attribute_values: value names by attribute name, in the order of the data set's label ids. Optional.
    """

    fields_without_effect: ClassVar[set[str]] = {"attribute_values"}

    attributes: list[str] | tuple[str, ...] = ()
    attribute_values: dict[str, list[str]] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        self.attributes = list(self.attributes)
        self.attribute_values = dict(self.attribute_values or {})
        super().__post_init__(**kwargs)
        self.id2label = self.label2id = None  # there are no classes; transformers' default is LABEL_0 and LABEL_1

    def to_diff_dict(self) -> dict[str, Any]:
        return _without_labels(super().to_diff_dict())

    def validate_attributes(self) -> None:
        """Part of the strict validation: names are unique, and values belong to attributes that exist."""
        if len(set(self.attributes)) != len(self.attributes):
            raise ValueError(f"attribute names must be unique; got {list(self.attributes)}")
        self._check_names_in("attribute_values", self.attribute_values)

    def _check_names_in(self, field: str, words: dict[str, Any] | None) -> None:
        unknown = sorted(set(words or {}) - set(self.attributes))
        if unknown:
            raise ValueError(f"{field} names {unknown}, which are not among the attributes {self.attributes}")

    def attribute_id(self, name: str) -> int:
        """The id of an attribute, its index in `attributes`.

        Raises:
            ValueError: if the attribute does not exist; the message names the closest one and lists all.
        """
        if name in self.attributes:
            return self.attributes.index(name)
        hint = did_you_mean(str(name), self.attributes, cutoff=0.5)
        raise ValueError(f"unknown attribute {name!r}.{hint} This model knows {self.attributes}.")

    def attribute_ids(self, names: str | Sequence[str] | None = None) -> list[int]:
        """The ids of one name, of several names, or of all attributes (`None`).

        Raises:
            ValueError: for an unknown name (see `attribute_id`), or no name.
        """
        if names is None:
            return list(range(len(self.attributes)))
        ids = [self.attribute_id(name) for name in as_names(names)]
        if not ids:
            raise ValueError("attributes is empty: name at least one, or leave it out for all")
        return ids

    def values_of(self, attribute: str) -> list[str]:
        """The names of the values of one attribute; empty if they are not known."""
        return (self.attribute_values or {}).get(attribute, [])

    def restricted_to(self, attributes: Sequence[str]) -> Self:
        """A copy with some of the attributes only, in this order."""
        copied, values = copy.deepcopy(self), self.attribute_values or {}
        copied.attributes = list(attributes)
        copied.attribute_values = {name: values[name] for name in attributes if name in values}
        return copied


@strict
class RecognitionConfig(NamedAttributesConfig):
    r"""The fields that a model needs to recognise the values of attributes. All are by attribute name, and optional.

    Args:
        attribute_kinds: `"exclusive"`: an image has one of the values (the default). `"multiple"`: it has any number
            of them. `"binary"`: it has the second of two values, or the first.
        positive_shares: for all attributes that are not exclusive, the share of training images that have each value,
            or the second value of a binary attribute. They weigh the loss; without them all images weigh the same.
        temperatures: the logits of an attribute are divided by this number, so that its probabilities are calibrated;
            by default 1.
        thresholds: `predict` returns no value if its probability is lower; by default 0.5 for an attribute with
            several values, and 0 for the others.
    """

    fields_without_effect: ClassVar[set[str]] = {"attribute_kinds", "positive_shares", "temperatures", "thresholds"}

    attribute_kinds: dict[str, str] | None = None
    positive_shares: dict[str, list[float | int]] | None = None
    temperatures: dict[str, float | int] | None = None
    thresholds: dict[str, float | int] | None = None

    def kind_of(self, attribute: str) -> str:
        """`"exclusive"`, `"multiple"` or `"binary"`."""
        return (self.attribute_kinds or {}).get(attribute, "exclusive")

    def temperature_of(self, attribute: str) -> float:
        """The number that divides the logits of an attribute."""
        return (self.temperatures or {}).get(attribute, 1.0)

    def threshold_of(self, attribute: str) -> float:
        """The probability below which the value of an attribute is unknown."""
        return (self.thresholds or {}).get(attribute, 0.5 if self.kind_of(attribute) == "multiple" else 0.0)

    def logit_names(self, attribute: str) -> list[str]:
        """The values that have a logit: all values of an attribute, or the second value of a binary one."""
        values = self.values_of(attribute)
        return values[1:] if self.kind_of(attribute) == "binary" else values

    @property
    def logit_slices(self) -> dict[str, slice]:
        """Attribute name -> the place of its logits among those of all attributes, in the order of `attributes`."""
        slices, start = {}, 0
        for name in self.attributes:
            stop = start + len(self.logit_names(name))
            slices[name] = slice(start, stop)
            start = stop
        return slices

    @property
    def num_logits(self) -> int:
        """The number of logits of all attributes."""
        return sum(len(self.logit_names(name)) for name in self.attributes)

    def validate_recognition(self) -> None:
        """Part of the strict validation: kinds exist and fit the values, and the numbers are possible."""
        for field in ("attribute_kinds", "positive_shares", "temperatures", "thresholds"):
            self._check_names_in(field, vars(self)[field])
        for name, kind in (self.attribute_kinds or {}).items():
            if kind not in ATTRIBUTE_KINDS:
                hint = did_you_mean(kind, ATTRIBUTE_KINDS)
                kinds = ", ".join(ATTRIBUTE_KINDS)
                raise ValueError(f"unknown kind {kind!r} of {name!r} in attribute_kinds.{hint} The kinds are {kinds}")
            if kind == "binary" and len(self.values_of(name)) not in (0, 2):
                raise ValueError(f"a binary attribute has 2 values; {name!r} has {self.values_of(name)}")
        for name in self.attributes if self.positive_shares is not None else ():
            expected = 0 if self.kind_of(name) == "exclusive" else len(self.logit_names(name))
            shares = (self.positive_shares or {}).get(name, [])
            if len(shares) != expected or not all(0 <= share <= 1 for share in shares):
                raise ValueError(
                    f"positive_shares of {name!r}, which is {self.kind_of(name)}, must be {expected} numbers from 0 "
                    f"to 1; got {shares}"
                )
        for name, temperature in (self.temperatures or {}).items():
            if not 0 < temperature < float("inf"):
                raise ValueError(f"the temperature of {name!r} must be a positive number; got {temperature}")
        for name, threshold in (self.thresholds or {}).items():
            if not 0 <= threshold <= 1:
                raise ValueError(f"the threshold of {name!r} must be a number from 0 to 1; got {threshold}")

    def restricted_to(self, attributes: Sequence[str]) -> Self:
        copied = super().restricted_to(attributes)
        for field in ("attribute_kinds", "positive_shares", "temperatures", "thresholds"):
            by_name = vars(self)[field]
            if by_name is not None:
                setattr(copied, field, {name: by_name[name] for name in attributes if name in by_name})
        return copied


@strict
class AttributeConfig(NamedAttributesConfig):
    r"""Configuration of a model that embeds an image by attribute.

    Args:
        known_values: the values that at least one training image had, by attribute name. The training sets them.
            `None` if they are not known: before a training, and in checkpoints of version 0.1.
        embedding_dim: width of the embedding; `None` for `hidden_size`.
        attribute_map: the last step of the model, fitted at the end of the training; see [`AttributeSubspaces`].
            `"values"` turns an embedding into the probabilities of the attribute's values, which removes the other
            attributes from it; `"retrieval"` adds the image's place among similar images; `"project"` keeps the
            subspace that separates the values; `"none"`.
        attribute_subspaces: the name in version 0.1 of `attribute_map="project"`.
        value_prototypes: the checkpoint contains prototypes of the values; see [`CCAModel.set_prototypes`], which sets
            this field.
    """

    fields_without_effect: ClassVar[set[str]] = {"known_values", "value_prototypes"}

    known_values: dict[str, list[str]] | None = None
    embedding_dim: int | None = None
    attribute_map: str = "none"
    attribute_subspaces: bool = False
    value_prototypes: bool = False

    def validate_known_values(self) -> None:
        """Part of the strict validation: known values belong to attributes that exist."""
        self._check_names_in("known_values", self.known_values)

    @property
    def map_kind(self) -> str:
        """`attribute_map`, or what `attribute_subspaces` means."""
        return "project" if self.attribute_subspaces and self.attribute_map == "none" else self.attribute_map

    def validate_attribute_map(self) -> None:
        """Part of the strict validation: see `check_map`."""
        self.check_map(self.attribute_map, self.known_values or {})

    def check_map(self, kind: str, values: Mapping[str, Sequence[str]]) -> None:
        """Raise ValueError if the map does not exist, or the probabilities of values take too much of an embedding."""
        if kind not in ATTRIBUTE_MAPS:
            hint = did_you_mean(kind, ATTRIBUTE_MAPS)
            raise ValueError(f"unknown attribute_map {kind!r}.{hint} The maps are {', '.join(ATTRIBUTE_MAPS)}")
        width = self.embedding_dim or vars(self).get("hidden_size")
        for name, names in values.items():
            if kind in ("values", "retrieval") and width is not None and len(names) > width * 3 // 4:
                raise ValueError(
                    f"attribute_map={kind!r} needs embeddings of {-(-len(names) * 4 // 3)} numbers for the "
                    f"{len(names)} values of {name!r}; this model's have {width}. Set a larger embedding_dim, or "
                    "attribute_map='project' or 'none'"
                )

    def restricted_to(self, attributes: Sequence[str]) -> Self:
        copied = super().restricted_to(attributes)
        if self.known_values is not None:
            copied.known_values = {name: self.known_values[name] for name in attributes if name in self.known_values}
        return copied


def backbone_config_from(settings: Mapping[str, Any]) -> PreTrainedConfig:
    """The native configuration of a backbone from its fields and its `model_type`, by default a ViT's.

    Raises:
        ValueError: for a type of model that transformers does not know.
    """
    backbone = dict(settings)
    model_type = backbone.pop("model_type", "vit")
    if model_type not in CONFIG_MAPPING:
        raise ValueError(
            f"the backbone is of type {model_type!r}, which this version of transformers does not know. A "
            "backbone of this package needs 'import cca_hf.models'"
        )
    return CONFIG_MAPPING[model_type](**backbone)


def check_sizes(config: PreTrainedConfig) -> None:
    """Refuse absurd sizes, as in a damaged configuration, which would take all memory of the machine.

    Raises:
        ValueError: for a number above the limit of its field, or widths and layers that are too many together.
    """
    widest = layers = 1
    for name, value in vars(config).items():
        numbers = [n for n in (value if isinstance(value, (list, tuple)) else [value]) if type(n) in (int, float)]
        limit = _MOST_LAYERS if "layers" in name or name == "depths" else _LARGEST_NUMBERS.get(name, _LARGEST_NUMBER)
        for number in numbers:
            if not abs(number) <= limit:  # NaN too
                raise ValueError(f"{name} of a {config.model_type!r} model must be at most {limit:,}; got {number}")
        if limit == _MOST_LAYERS:
            layers = max(layers, sum(map(int, numbers)))
        elif name != "image_size":
            widest = max(widest, *(abs(number) for number in numbers if type(number) is int), 1)
    if layers * widest**2 > _MOST_WEIGHTS:
        raise ValueError(f"a {config.model_type!r} model with {layers:,} layers up to {widest:,} wide is too large")


def save_code_of_base(saved: Any, folder: str | PathLike[str], config: PreTrainedConfig) -> None:
    """For a configuration or model of a class that is not registered, save the code of its nearest registered base.

    transformers would save the module of the class itself, which may import files that cannot travel.
    """
    registered: Any = next((base for base in type(saved).__mro__ if vars(base).get("_auto_class") is not None), None)
    if registered is not None and registered is not type(saved):
        custom_object_save(registered.__new__(registered), folder, config=config)


def height_and_width(size: int | Sequence[int]) -> tuple[int, int]:
    """An image size as (height, width).

    Raises:
        ValueError: if it is neither a positive number nor two of them.
    """
    sides = [size, size] if isinstance(size, int) else list(size)
    if len(sides) != 2 or min(sides) < 1:
        raise ValueError(f"image_size must be a positive number or (height, width); got {size}")
    return sides[0], sides[1]


def is_hub_id(name: str) -> bool:
    """Whether a name of a model is an id on the Hub, not a folder of this or another machine."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return not Path(name).exists()


def public_name(name: str) -> str:
    """An id on the Hub as it is, and only the last part of a path, because paths are private."""
    return name if is_hub_id(name) else PureWindowsPath(name).name  # which also knows the slashes of other systems


def without_path(name: str) -> str:
    """As [`public_name`], but "./vit" for a folder, which nobody takes for an id on the Hub."""
    return name if is_hub_id(name) else f"./{public_name(name)}"


def without_folders(settings: dict[str, Any]) -> dict[str, Any]:
    """A native configuration, and those in it, without the folders that they were loaded from."""
    return {
        name: without_folders(value) if isinstance(value, dict) else value
        for name, value in settings.items()
        if name != "_name_or_path" or is_hub_id(value)
    }


def _without_labels(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings without the names of classes: a backbone has no classifier, and neither has a model of embeddings."""
    return {name: value for name, value in settings.items() if name not in ("id2label", "label2id")}


def fields_of(config_class: type[PreTrainedConfig]) -> set[str]:
    """The fields that a configuration adds to those of every `PreTrainedConfig`."""
    return {field.name for field in fields(config_class)} - {field.name for field in fields(PreTrainedConfig)}


def one_of(
    attribute: str | Sequence[str] | None, attributes: str | Sequence[str] | None
) -> str | Sequence[str] | None:
    """The names that a call was given as `attribute` or as `attributes`.

    Raises:
        ValueError: if it was given both.
    """
    if attribute is not None and attributes is not None:
        raise ValueError(f"give either attribute or attributes, and not both; got {attribute!r} and {attributes!r}")
    return attributes if attribute is None else attribute


def as_names(names: str | Sequence[str]) -> list[str]:
    """One name or several as a list."""
    return [names] if isinstance(names, str) else list(names)


def refuse_unknown(function: Callable[..., Any], unknown: Iterable[str], hints: Mapping[str, str]) -> None:
    """Raise `TypeError` for a keyword that a function does not have.

    Args:
        hints: what to write instead, by keyword; without a hint, the message names the closest parameter.
    """
    for name in unknown:
        parameters = signature(function).parameters.values()
        known = [each.name for each in parameters if each.kind is not each.VAR_KEYWORD]
        hint = f" {hints[name]}." if name in hints else did_you_mean(name, known)
        raise TypeError(f"{function.__name__} has no parameter {name!r}.{hint} Its parameters are {', '.join(known)}")


def output_settings(config: PreTrainedConfig, *given: bool | None) -> tuple[bool, bool, bool]:
    """Attentions, hidden states and the kind of output, as given or else as in the configuration."""
    defaults = (config.output_attentions, config.output_hidden_states, config.return_dict)
    attentions, states, return_dict = (
        bool(default) if value is None else value for value, default in zip(given, defaults, strict=True)
    )
    return attentions, states, return_dict


def did_you_mean(name: str, known: list[str] | tuple[str, ...], cutoff: float = 0.6) -> str:
    """` Did you mean 'colour'?`, or an empty string if no known name is close."""
    closest = get_close_matches(name, known, n=1, cutoff=cutoff)
    return f" Did you mean {closest[0]!r}?" if closest else ""
