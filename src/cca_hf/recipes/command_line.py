"""The flags of `scripts/train.py` and `cca train`: as flags, or in one JSON or YAML file, or both."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

import yaml  # type: ignore[import-untyped]
from transformers import HfArgumentParser

from cca_hf.training.arguments import CCATrainingArguments


@dataclass
class ModelArguments:
    """What is trained. Fields left at None take what suits the backbone, see `CCAConfig`."""

    backbone: str | None = field(
        default=None, metadata={"help": "Pretrained vision backbone: an id on the Hub or a local folder."}
    )
    backbone_config: str | None = field(
        default=None,
        metadata={
            "help": "Instead of --backbone, train one from scratch: its configuration, with a model_type such as vit, "
            "as JSON, as a JSON file, or as an id on the Hub or a folder."
        },
    )
    backbone_revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of the backbone."})
    condition_embedding: Literal["one_hot", "lookup", "text", "none"] = field(
        default="one_hot",
        metadata={
            "help": "How an attribute becomes a query; text: by what it is called, see --text_encoder; none: one "
            "space for all attributes, the baseline."
        },
    )
    text_encoder: str | None = field(
        default=None,
        metadata={"help": "Text model that embeds the attributes' names: an id on the Hub or a folder."},
    )
    attribute_sentences: str | None = field(
        default=None,
        metadata={"help": "JSON file of sentences by attribute name, to be embedded in the place of the names."},
    )
    residual: Literal["image", "condition", "none"] | None = field(
        default=None, metadata={"help": "What the attended values are added to. Default: what suits the backbone."}
    )
    embedding_dim: int | None = field(default=None, metadata={"help": "Width of the embeddings."})
    attribute_subspaces: bool = field(
        default=False,
        metadata={
            "help": "When training has ended, project each attribute's embeddings on what tells its own values apart; "
            "it takes the other attributes out of them."
        },
    )
    hidden_size: int | None = field(
        default=None, metadata={"help": "Width of the conditional layer where it stands on top of the backbone."}
    )
    feature_levels: list[int] | None = field(
        default=None, metadata={"help": "Hidden states of the backbone that are asked beside its output."}
    )
    image_size: list[int] | None = field(
        default=None,
        metadata={"help": "Size of the images in pixels: one number for squares, or height and width."},
    )
    attn_implementation: str | None = field(
        default=None, metadata={"help": "eager, sdpa, flash_attention_2, flex_attention."}
    )

    def __post_init__(self) -> None:
        if (self.backbone is None) == (self.backbone_config is None):
            raise ValueError("give either --backbone (pretrained) or --backbone_config (from scratch), and not both")
        if (self.condition_embedding == "text") != (self.text_encoder is not None):
            raise ValueError("--condition_embedding text and --text_encoder go together")
        if self.attribute_sentences is not None and self.text_encoder is None:
            raise ValueError("--attribute_sentences needs --condition_embedding text and --text_encoder")
        if isinstance(self.image_size, int):  # from Python
            self.image_size = [self.image_size]
        if self.image_size is not None and (len(self.image_size) not in (1, 2) or min(self.image_size) < 1):
            raise ValueError(f"--image_size must be a positive number, or height and width; got {self.image_size}")


@dataclass
class DataArguments:
    """What it is trained on."""

    dataset: str = field(metadata={"help": "An id on the Hub or a local folder; see load_attribute_dataset."})
    attributes: list[str] | None = field(
        default=None, metadata={"help": "The attribute columns. Default: all ClassLabel columns."}
    )
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of a data set on the Hub."})
    dataset_revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of the data set."})
    image_column: str | None = field(default=None, metadata={"help": "Default: image, or the only one there is."})
    group_column: str | None = field(
        default=None, metadata={"help": "Column that near copies share: an item's number. They are no neighbours."}
    )
    split_seed: int = field(default=0, metadata={"help": "Of the splits that are made where the source has none."})
    on_unreadable: Literal["error", "skip"] = field(
        default="error", metadata={"help": "Stop at unreadable images before training, or go on without them."}
    )


def parse_arguments(argv: Sequence[str] | None = None) -> tuple[ModelArguments, DataArguments, CCATrainingArguments]:
    """Reads flags; a first argument ending in `.json`, `.yaml` or `.yml` is a file of the same names.

    Flags after the file win over it. Ends the process with a message, as `argparse` does, on `--help`, an unknown name
    (naming the closest) or a value that is not allowed.

    Args:
        argv: without the program's name; default `sys.argv[1:]`.
    """
    # transformers types its first argument as dataclass *types*
    parser = HfArgumentParser([ModelArguments, DataArguments, CCATrainingArguments], allow_abbrev=False)
    given = list(_program_arguments() if argv is None else argv)
    known = [option for action in parser._actions for option in action.option_strings]
    if given and Path(given[0]).suffix in (".json", ".yaml", ".yml"):
        try:
            given = flags_of_file(Path(given[0])) + given[1:]
        except (OSError, ValueError) as error:
            parser.error(str(error))
    for flag in given:
        name = flag.split("=")[0]
        if flag.startswith("--") and name not in known:
            closest = get_close_matches(name, known, n=1)
            parser.error(f"unknown argument {name}" + (f": did you mean {closest[0]}?" if closest else ""))
    try:
        model_args, data_args, training_args = parser.parse_args_into_dataclasses(given, look_for_args_file=False)
    except ValueError as error:
        parser.error(str(error))
    return model_args, data_args, training_args


def _program_arguments() -> list[str]:
    import sys

    return sys.argv[1:]


def flags_of_file(path: Path) -> list[str]:
    """A JSON or YAML file as flags, so that it is checked like them. None means: not given.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it does not hold names and values.
    """
    text = path.read_text(encoding="utf-8")
    content = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold names and values, got {type(content).__name__}")
    flags: list[str] = []
    for name, value in content.items():
        if value is not None:
            values = value if isinstance(value, list) else [value]
            flags += [f"--{name}", *(_as_text(each) for each in values)]
    return flags


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
