"""The tasks and flags of `cca train` and `scripts/train.py`: on the command line, in a JSON or YAML file, or both.

Names and help of the flags are read from the source code of the argument dataclasses. Importing transformers' takes
seconds, because it imports torch; a misspelt flag and `--help` must not wait for that.
"""

import ast
import importlib
import importlib.util
import json
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, dataclass, field
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from textwrap import fill, indent
from typing import TYPE_CHECKING, Any, Literal, NoReturn

import yaml  # type: ignore[import-untyped]

from cca_hf.extras import require

if TYPE_CHECKING:  # torch and transformers are imported when the flags are known to be right
    from cca_hf.training.arguments import CCATrainingArguments

_OWN_ARGUMENTS = "cca_hf.training.arguments:CCATrainingArguments"


@dataclass(frozen=True)
class TrainingTask:
    """A task of `cca train`, described without an import of its recipe.

    Args:
        recipe: the module that has `run_training(model_args, data_args, training_args)`, or `run_training(args)` for
            a task with its own data.
        help: what is trained, for `cca train --help`.
        arguments: module and class of the training arguments, a dataclass built on [`CCATrainingArguments`].
        title: of the group of flags that only these arguments have.
        unused: flags of [`CCATrainingArguments`], or of `TrainingArguments`, that the task does not have.
        has_own_data: whether `arguments`, then built on `TrainingArguments`, describe the data and the model too.
    """

    recipe: str
    help: str
    arguments: str = _OWN_ARGUMENTS
    title: str = ""
    unused: tuple[str, ...] = ()
    has_own_data: bool = False


RETRIEVAL = "retrieve"  # the task without a word
TASKS = {
    RETRIEVAL: TrainingTask(
        "cca_hf.recipes.attribute_retrieval", "One embedding for each attribute. It is also the task without a word."
    ),
    "manipulate": TrainingTask(
        "cca_hf.recipes.attribute_manipulation",
        "ADDE: embeddings whose values can be changed, and a prototype of each value.",
        "cca_hf.recipes.manipulation_trainer:ManipulationArguments",
        "Manipulation",
        unused=("proxy_weight", "proxy_learning_rate"),
    ),
    "outfits": TrainingTask(
        "cca_hf.recipes.outfit_completion",
        "CSA-Net: which item completes an outfit, such as the furniture of a room.",
        "cca_hf.recipes.outfit_completion:OutfitArguments",
        "Outfits",
        has_own_data=True,
    ),
    "classify": TrainingTask(
        "cca_hf.recipes.classification",
        "A classifier: the class of an image, on any vision model of transformers, CrossViT or DCAL.",
        "cca_hf.recipes.classification_arguments:ClassificationArguments",
        "Classification",
        unused=("label_smoothing_factor",),
        has_own_data=True,
    ),
    "recognise": TrainingTask(
        "cca_hf.recipes.attribute_recognition",
        "CLEAR: the values of attributes in an image, with probabilities, to label a catalogue.",
        "cca_hf.recipes.recognition_arguments:RecognitionArguments",
        "Recognition",
        has_own_data=True,
    ),
    "reidentify": TrainingTask(
        "cca_hf.recipes.reidentification",
        "Re-identification: the same person or car in images of other cameras, on any vision model or DCAL.",
        "cca_hf.recipes.reidentification_arguments:ReidentificationArguments",
        "Re-identification",
        unused=("label_smoothing_factor",),
        has_own_data=True,
    ),
}

_SETTINGS_FILES = (".json", ".yaml", ".yml")
_NUMBER = re.compile(r"-\.?\d")
_GROUPS = {
    "Loss": "loss temperature mining margin proxy_weight proxy_learning_rate",
    "Batches": "per_device_train_batch_size images_per_value values_per_batch micro_batch_size horizontal_flip "
    "crop_scale crop_ratio colour_jitter cache_tokens cache_dtype",
    "Schedule": "output_dir resume_from_checkpoint num_train_epochs max_steps seed",
}
# Names from other tools and abbreviations, and the flags that mean the same.
_SYNONYMS = {
    "per_device_train_batch_size": "batch_size train_batch_size",
    "per_device_eval_batch_size": "eval_batch_size",
    "learning_rate": "lr",
    "head_learning_rate": "head_lr",
    "num_train_epochs": "epochs num_epochs",
    "max_steps": "steps",
    "dataloader_num_workers": "workers num_workers",
    "optim": "optimizer",
    "lr_scheduler_type": "scheduler",
    "warmup_steps": "warmup",
    "early_stopping_patience": "patience",
    "gradient_accumulation_steps": "accumulation",
    "backbone": "model model_name_or_path",
    "dataset": "data dataset_name",
    "dataset_config": "config_name",
    "output_dir": "out output",
    "resume_from_checkpoint": "resume",
    "use_cpu": "device cpu",
    "cpu_threads": "threads",
    "push_to_hub": "push",
    "hub_model_id": "repo",
    "hub_private_repo": "private",
}
_MEANT = {name: flag for flag, names in _SYNONYMS.items() for name in names.split()}


class CommandLineError(ValueError):
    """Flags or a settings file that cannot be understood."""


def flag(default: Any, text: str) -> Any:
    """A field of an argument dataclass, with its help."""
    return field(default=default, metadata={"help": text})


@dataclass
class ModelArguments:
    """The model to train. A field that is None has the default for the backbone, see `CCAConfig`."""

    backbone: str | None = flag(None, "Pretrained vision model: an id on the Hub or a local folder.")
    backbone_config: str | None = flag(
        None,
        "Configuration of a backbone to train from scratch, instead of --backbone: JSON with a "
        "model_type such as vit, a JSON file, an id on the Hub or a folder.",
    )
    backbone_revision: str | None = flag(None, "Branch, tag or commit of the backbone.")
    condition_embedding: Literal["one_hot", "lookup", "text", "none"] = flag(
        "one_hot",
        "How the query of the attention is computed from an attribute. text: from its name, with "
        "--text_encoder. none: one space for all attributes (the baseline).",
    )
    text_encoder: str | None = flag(
        None, "Text model that encodes the names of the attributes: an id on the Hub or a folder."
    )
    attribute_sentences: str | None = flag(None, "JSON file with sentences by attribute, which replace the names.")
    residual: Literal["image", "condition", "none"] | None = flag(
        None,
        "Vector that is added to the output of the attention. Default: image if the backbone has a CLS "
        "token, else condition.",
    )
    embedding_dim: int | None = flag(None, "Width of the embeddings.")
    attribute_subspaces: bool = flag(
        False,
        "The name in version 0.1 of --attribute_map project.",
    )
    hidden_size: int | None = flag(None, "Width of the conditional layer on top of the backbone.")
    feature_levels: list[int] | None = flag(
        None, "Earlier hidden states of the backbone that the layer also attends to."
    )
    image_size: list[int] | None = flag(
        None, "Size of the images in pixels: one number for squares, or height and width."
    )
    attn_implementation: str | None = flag(
        None, "Implementation of the attention: eager, sdpa, flash_attention_2 or flex_attention."
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
    """The data set to train on."""

    dataset: str = flag(MISSING, "An id on the Hub, a folder, or a table (CSV, TSV, Excel, JSON lines, parquet).")
    attributes: list[str] | None = flag(
        None, "The attribute columns. Default: all ClassLabel columns, or else those whose values repeat."
    )
    dataset_config: str | None = flag(None, "Configuration of a data set on the Hub.")
    dataset_revision: str | None = flag(None, "Branch, tag or commit of the data set.")
    image_column: str | None = flag(None, "Column with the images. Default: image, or the only column of images.")
    group_column: str | None = flag(
        None,
        "Column with one value for all images of an item, such as an item number. The images of an item "
        "are in one split, and do not count as neighbours of each other.",
    )
    split_seed: int = flag(0, "Seed for cutting the splits that the data set does not have.")
    on_unreadable: Literal["error", "skip"] = flag(
        "error", "Whether an image that cannot be read is an error before the training, or is skipped."
    )


def parse_arguments(argv: Sequence[str] | None = None) -> "tuple[ModelArguments, DataArguments, CCATrainingArguments]":
    """[`read_arguments`] of `argv`, or of `sys.argv`: an error is printed, and the process ends with code 2."""
    return parse_command(argv)[1]


def parse_command(
    argv: Sequence[str] | None = None,
) -> tuple[TrainingTask, tuple[Any, ...]]:
    """As [`parse_arguments`], with the task; for `read_command`."""
    try:
        return read_command(sys.argv[1:] if argv is None else argv)
    except CommandLineError as error:
        print(f"{Path(sys.argv[0]).name}: error: {error}", file=sys.stderr)
        raise SystemExit(2) from error


def read_arguments(words: Sequence[str]) -> "tuple[ModelArguments, DataArguments, CCATrainingArguments]":
    """The arguments of [`read_command`]."""
    return read_command(words)[1]


def read_command(
    words: Sequence[str],
) -> tuple[TrainingTask, tuple[Any, ...]]:
    """Reads a task and its flags; dashes in a flag count as underscores.

    The first word may be a task, which is also given as `--task`. The next word, if it ends in `.json`, `.yaml` or
    `.yml`, is a settings file of the same names; the flags after it override it. `--help` and `--help_all` print the
    flags of the task and end the process.

    Raises:
        CommandLineError: an unknown task or flag (the message names the one that may be meant), a flag that is
            missing, or a value that is not allowed.
    """
    name, given = _split_task(words)
    task = TASKS[name]
    if {"--help", "-h", "--help_all", "--help-all"} & {*given}:
        print(help_text(everything="--help_all" in given or "--help-all" in given, task=name))
        raise SystemExit(0)
    given = [_checked(word, name) if word.startswith("-") and not _NUMBER.match(word) else word for word in given]
    if any(word.partition("=")[0] == "--text_encoder" for word in given):
        require("text", "text conditions need")

    from transformers import HfArgumentParser

    class Parser(HfArgumentParser):
        def error(self, message: str) -> NoReturn:  # argparse would print a hundred lines of usage before it
            raise CommandLineError(message)

    module, _, class_name = task.arguments.partition(":")
    arguments_class = vars(importlib.import_module(module))[class_name]
    classes = [arguments_class] if task.has_own_data else [ModelArguments, DataArguments, arguments_class]
    parser = Parser(classes, allow_abbrev=False, add_help=False)
    for action in parser._actions:  # messages name a flag once, not a second time with dashes
        action.option_strings = action.option_strings[:1]
    try:
        return task, parser.parse_args_into_dataclasses(given, look_for_args_file=False)
    except ValueError as error:
        raise CommandLineError(str(error)) from error


def _split_task(words: Sequence[str]) -> tuple[str, list[str]]:
    """The name of the task, and the flags: those of a settings file come first."""
    given = list(words)
    name = RETRIEVAL
    if given and given[0] in TASKS:
        name = given.pop(0)
    if given and not given[0].startswith("-"):
        file = Path(given.pop(0))
        if file.suffix not in _SETTINGS_FILES:
            files = ", ".join(_SETTINGS_FILES)
            raise CommandLineError(
                f"{str(file)!r} is no flag and no settings file ({files}), and no task.{_nearest_task(str(file))}"
            )
        try:
            given = flags_of_file(file) + given
        except (OSError, ValueError) as error:
            raise CommandLineError(str(error)) from error
    flags: list[str] = []
    rest = iter(given)
    for word in rest:
        flag, equals, value = word.partition("=")
        if flag != "--task":
            flags.append(word)
            continue
        name = value if equals else next(rest, "")
        if name not in TASKS:
            raise CommandLineError(f"unknown task {name!r}.{_nearest_task(name)}")
    return name, flags


def _nearest_task(name: str) -> str:
    closest = get_close_matches(name, TASKS, n=1)
    return (f" Did you mean {closest[0]!r}?" if closest else "") + f" The tasks are {', '.join(TASKS)}"


def _checked(word: str, task: str) -> str:
    flag, equals, value = word.partition("=")
    name = flag.lstrip("-").replace("-", "_")
    if not flag.startswith("--") or name not in flag_names(task):
        meant = meant_by(name, task)
        raise CommandLineError(f"unknown argument {flag}" + (f": did you mean --{meant}?" if meant else ""))
    return f"--{name}{equals}{value}"


def flags_of_file(path: Path) -> list[str]:
    """The names and values of a JSON or YAML file as flags, which are then checked like flags. A null is left out.

    Raises:
        OSError: if the file cannot be read.
        ValueError: if the file does not contain names and values.
    """
    text = path.read_text(encoding="utf-8")
    try:
        content = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (json.JSONDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must contain names and values, got {type(content).__name__}")
    flags: list[str] = []
    for name, value in content.items():
        if value is not None:
            values = value if isinstance(value, list) else [value]
            flags += [f"--{name}", *(each if isinstance(each, str) else json.dumps(each) for each in values)]
    return flags


@dataclass(frozen=True)
class Flag:
    """One field of an argument dataclass; `kind` is its annotation, `default` the code of its default, if any."""

    name: str
    kind: str
    default: str | None
    help: str


@cache
def training_flags(task: str = RETRIEVAL) -> dict[str, list[Flag]]:
    """Title -> the flags of a group, each flag once; the arguments that transformers alone defines come last."""
    here = Path(__file__)
    transformers = importlib.util.find_spec("transformers")  # does not import it
    if transformers is None or transformers.origin is None:
        raise ImportError("training needs transformers: pip install transformers")
    own = {} if TASKS[task].has_own_data else _fields_of_class(_OWN_ARGUMENTS)
    rest = _fields(Path(transformers.origin).with_name("training_args.py"), "TrainingArguments") | own
    of_task = _fields_of_class(TASKS[task].arguments)
    new = [flag for name, flag in of_task.items() if name not in rest]
    rest |= {name: flag for name, flag in of_task.items() if name in rest}
    for name in TASKS[task].unused:
        del rest[name]
    shared = () if TASKS[task].has_own_data else ("Data", "Model")
    groups = {title: list(_fields(here, f"{title}Arguments").values()) for title in shared}
    groups |= {TASKS[task].title: new} if new else {}
    groups |= {title: [rest.pop(name) for name in names.split() if name in rest] for title, names in _GROUPS.items()}
    groups["Hub"] = [rest.pop(name) for name in [*rest] if name.startswith("hub_") or name == "push_to_hub"]
    groups["Schedule"] += [rest.pop(name) for name in own if name in rest]
    groups = {title: flags for title, flags in groups.items() if flags}
    return groups | {"Other arguments of transformers": list(rest.values())}


def flag_names(task: str = RETRIEVAL) -> set[str]:
    """The names of all flags, without dashes; a flag that is on by default has an opposite."""
    flags = [flag for group in training_flags(task).values() for flag in group]
    opposites = {f"no_{flag.name}" for flag in flags if flag.kind == "bool" and flag.default == "True"}
    return {flag.name for flag in flags} | opposites


def meant_by(name: str, task: str = RETRIEVAL) -> str | None:
    """The flag that a user most likely meant by an unknown name; both without dashes."""
    close = get_close_matches(name, [*flag_names(task), *_MEANT], n=1)
    return _MEANT.get(close[0], close[0]) if close else None


def help_text(*, everything: bool, task: str = RETRIEVAL) -> str:
    """The groups of flags with their help; without `everything`, only the names of transformers' other arguments."""
    width = min(shutil.get_terminal_size((100, 24)).columns, 100)
    *groups, (last, others) = training_flags(task).items()
    parts = [f"{title}:\n" + "\n".join(_describe(flags, width)) for title, flags in groups]
    if everything:
        return "\n\n".join([*parts, f"{last}:\n" + "\n".join(_describe(others, width))])
    names = fill(" ".join(f"--{flag.name}" for flag in others), width - 2, break_on_hyphens=False)
    return "\n\n".join([*parts, f"{last}, which --help_all describes:\n{indent(names, '  ')}"])


def _describe(flags: list[Flag], width: int) -> Iterator[str]:
    for flag in flags:
        text = flag.help if flag.help.endswith((".", "?")) else f"{flag.help}."
        if flag.default is None:
            text += " Required."
        elif flag.default != "None" and "Default:" not in text:
            text += f" Default: {flag.default}."
        yield f"  --{flag.name} {_metavar(flag.kind)}".rstrip()
        yield indent(fill(text, width - 6), " " * 6)


def _metavar(kind: str) -> str:
    if kind.startswith("Literal"):
        return kind.partition("[")[2].partition("]")[0].replace("'", "").replace(", ", "|")
    values = kind.removesuffix(" | None")
    several = values.startswith("list[")
    value = values.removeprefix("list[").removesuffix("]")
    name = {"int": "NUMBER", "float": "NUMBER", "bool": "[true|false]"}.get(value, "TEXT")
    return f"{name} ..." if several else name


def _fields_of_class(name: str) -> dict[str, Flag]:
    """[`_fields`] of a class of this package, given as `module:class`."""
    module, _, class_name = name.partition(":")
    return _fields(Path(__file__).parents[2].joinpath(*module.split(".")).with_suffix(".py"), class_name)


def _fields(file: Path, class_name: str) -> dict[str, Flag]:
    """The fields that the body of a dataclass defines, by `field` or by `flag`."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    (body,) = (node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == class_name)
    flags = {}
    for node in body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            given: dict[Any, ast.expr] = {}
            if isinstance(node.value, ast.Call):
                given |= zip(("default", "help"), node.value.args, strict=False)
                given |= {each.arg: each.value for each in node.value.keywords}
            if isinstance(metadata := given.get("metadata"), ast.Dict):
                names = [ast.literal_eval(key) for key in metadata.keys if key is not None]
                given |= zip(names, metadata.values, strict=True)
            default = given.get("default", given.get("default_factory"))
            code = None if default is None else ast.unparse(default).strip("'")
            text = ast.literal_eval(given["help"]) if "help" in given else ""
            kind, code = ast.unparse(node.annotation), None if code == "MISSING" else code
            flags[node.target.id] = Flag(node.target.id, kind, code, text)
    return flags
