"""The flags of training: their names, their help and what a user may have meant by another name.

They are read from the source code of the argument dataclasses. Importing these takes seconds, because they import
torch; a misspelt flag and `--help` must not wait for that.
"""

import ast
import importlib.util
import shutil
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any

_GROUPS = {
    "Loss": ("loss", "temperature", "mining", "margin", "proxy_weight", "proxy_learning_rate"),
    "Batches": (
        "per_device_train_batch_size",
        "images_per_value",
        "values_per_batch",
        "micro_batch_size",
        "horizontal_flip",
        "crop_scale",
        "crop_ratio",
        "colour_jitter",
        "cache_tokens",
        "cache_dtype",
    ),
    "Schedule": ("output_dir", "resume_from_checkpoint", "num_train_epochs", "max_steps", "seed"),
}
# Names from other tools and abbreviations -> the flags that mean the same.
_MEANT = {
    "batch_size": "per_device_train_batch_size",
    "train_batch_size": "per_device_train_batch_size",
    "eval_batch_size": "per_device_eval_batch_size",
    "lr": "learning_rate",
    "head_lr": "head_learning_rate",
    "epochs": "num_train_epochs",
    "num_epochs": "num_train_epochs",
    "steps": "max_steps",
    "workers": "dataloader_num_workers",
    "num_workers": "dataloader_num_workers",
    "optimizer": "optim",
    "scheduler": "lr_scheduler_type",
    "warmup": "warmup_steps",
    "patience": "early_stopping_patience",
    "accumulation": "gradient_accumulation_steps",
    "model": "backbone",
    "model_name_or_path": "backbone",
    "data": "dataset",
    "dataset_name": "dataset",
    "config_name": "dataset_config",
    "out": "output_dir",
    "output": "output_dir",
    "resume": "resume_from_checkpoint",
    "device": "use_cpu",
    "cpu": "use_cpu",
    "threads": "cpu_threads",
    "push": "push_to_hub",
    "repo": "hub_model_id",
    "private": "hub_private_repo",
}


@dataclass(frozen=True)
class Flag:
    """One field of an argument dataclass; `kind` is its annotation, `default` the code of its default, if any."""

    name: str
    kind: str
    default: str | None
    help: str

    @property
    def names(self) -> list[str]:
        """The flag, and its opposite if it is on by default."""
        return [self.name, f"no_{self.name}"] if self.kind == "bool" and self.default == "True" else [self.name]


@cache
def training_flags() -> dict[str, list[Flag]]:
    """Title -> the flags of a group, each flag once; the arguments that transformers alone defines come last."""
    here = Path(__file__).parent
    transformers = importlib.util.find_spec("transformers")  # does not import it
    if transformers is None or transformers.origin is None:
        raise ImportError("training needs transformers: pip install transformers")
    own = _fields(here.parent / "training" / "arguments.py", "CCATrainingArguments")
    theirs = _fields(Path(transformers.origin).with_name("training_args.py"), "TrainingArguments")
    rest = theirs | own
    groups = {
        "Data": list(_fields(here / "command_line.py", "DataArguments").values()),
        "Model": list(_fields(here / "command_line.py", "ModelArguments").values()),
    } | {title: [rest.pop(name) for name in names] for title, names in _GROUPS.items()}
    groups["Hub"] = [rest.pop(name) for name in [*rest] if name.startswith("hub_") or name == "push_to_hub"]
    groups["Schedule"] += [rest.pop(name) for name in own if name in rest]
    return groups | {"Other arguments of transformers": list(rest.values())}


def flag_names() -> set[str]:
    """The names of all flags, without dashes."""
    return {name for flags in training_flags().values() for flag in flags for name in flag.names}


def meant_by(name: str) -> str | None:
    """The flag that a user most likely meant by an unknown name; both without dashes."""
    close = get_close_matches(name, [*flag_names(), *_MEANT], n=1)
    return _MEANT.get(close[0], close[0]) if close else None


def help_text(*, everything: bool) -> str:
    """The groups of flags with their help; without `everything`, only the names of transformers' other arguments."""
    width = min(shutil.get_terminal_size((100, 24)).columns, 100)
    *groups, (last, others) = training_flags().items()
    parts = [f"{title}:\n" + "\n".join(_describe(flags, width)) for title, flags in groups]
    if everything:
        return "\n\n".join([*parts, f"{last}:\n" + "\n".join(_describe(others, width))])
    names = textwrap.fill(
        " ".join(f"--{flag.name}" for flag in others), width, initial_indent="  ", subsequent_indent="  ",
        break_on_hyphens=False,
    )  # fmt: skip
    return "\n\n".join([*parts, f"{last}, which --help_all describes:\n{names}"])


def _describe(flags: list[Flag], width: int) -> Iterator[str]:
    for flag in flags:
        text = flag.help if flag.help.endswith((".", "?")) else f"{flag.help}."
        if flag.default is None:
            text += " Required."
        elif flag.default != "None" and "Default:" not in text:
            text += f" Default: {flag.default}."
        yield f"  --{flag.name} {_metavar(flag.kind)}".rstrip()
        yield textwrap.fill(text, width, initial_indent=" " * 6, subsequent_indent=" " * 6)


def _metavar(kind: str) -> str:
    if kind.startswith("Literal"):
        return kind.partition("[")[2].partition("]")[0].replace("'", "").replace(", ", "|")
    values = kind.removesuffix(" | None")
    several = values.startswith("list[")
    name = {"int": "NUMBER", "float": "NUMBER", "bool": "[true|false]"}.get(
        values.removeprefix("list[").removesuffix("]"), "TEXT"
    )
    return f"{name} ..." if several else name


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
