"""What a later reader asks of a run, beside its figures: `run.json`, from which the model card is written."""

import json
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from cca_hf.data.schema import AttributeDataset
from cca_hf.evaluation.retrieval.confusions import Confusion
from cca_hf.models.whole_files import write_json

from .arguments import CCATrainingArguments

FILE_NAME = "run.json"
# of transformers' arguments, those that say how the weights came about
_THEIRS = (
    "num_train_epochs",
    "max_steps",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "learning_rate",
    "weight_decay",
    "lr_scheduler_type",
    "warmup_steps",
    "max_grad_norm",
    "optim",
    "bf16",
    "fp16",
    "seed",
    "data_seed",
)
_PLACES = ("cache_tokens", "cpu_threads")  # ours, of the machine and not of the recipe


@dataclass(frozen=True)
class RunRecord:
    """One training: on what, how, where, and what it confuses.

    Args:
        dataset: id on the Hub, or the name of a folder.
        dataset_on_hub: whether it is an id.
        splits: images of each split.
        value_counts: attribute -> value -> images of the training split.
        settings: the recipe, by the names of the flags.
        hardware: what it ran on.
        versions: of Python, torch, transformers.
        seconds: of the training alone.
        confusions: attribute -> which values are most often taken for which, on the test split.
    """

    dataset: str
    dataset_on_hub: bool
    splits: dict[str, int]
    value_counts: dict[str, dict[str, int]]
    settings: dict[str, Any]
    hardware: str
    versions: dict[str, str]
    seconds: float
    confusions: dict[str, list[Confusion]] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        data: AttributeDataset,
        dataset: str,
        args: CCATrainingArguments,
        seconds: float,
        confusions: Mapping[str, list[Confusion]],
    ) -> "RunRecord":
        """Of a training that has just ended in this process; `dataset` is what `load_attribute_dataset` was given."""
        folder = Path(dataset).exists()
        labels = data.labels("train")
        counts = {
            name: dict(zip(values, np.bincount(column[column >= 0], minlength=len(values)).tolist(), strict=True))
            for (name, values), column in zip(data.attributes.items(), labels.T, strict=True)
        }
        own = {each.name for each in fields(CCATrainingArguments)} - {
            each.name for each in fields(transformers.TrainingArguments)
        }
        settings = args.to_dict()  # plain values
        return cls(
            dataset=Path(dataset).resolve().name if folder else dataset,
            dataset_on_hub=not folder,
            splits={split: dataset.num_rows for split, dataset in data.splits.items()},
            value_counts=counts,
            settings={name: settings[name] for name in (*_THEIRS, *sorted(own - {*_PLACES}))},
            hardware=_hardware(args),
            versions={
                "python": platform.python_version(),
                "torch": torch.__version__,
                "transformers": transformers.__version__,
            },
            seconds=seconds,
            confusions=dict(confusions),
        )

    def save(self, folder: str | PathLike[str]) -> Path:
        """As `run.json`."""
        return write_json(asdict(self), Path(folder) / FILE_NAME)

    @classmethod
    def load(cls, folder: str | PathLike[str]) -> "RunRecord":
        """The inverse of `save`.

        Raises:
            FileNotFoundError: if there is none.
        """
        content = json.loads((Path(folder) / FILE_NAME).read_text(encoding="utf-8"))
        content["confusions"] = {
            name: [Confusion(**each) for each in pairs] for name, pairs in content["confusions"].items()
        }
        return cls(**content)


def _hardware(args: CCATrainingArguments) -> str:
    processes = f"{args.world_size} processes, " if args.world_size > 1 else ""
    if args.device.type == "cuda":
        return f"{processes}{torch.cuda.get_device_name(args.device)}"
    threads = torch.get_num_threads()
    return f"{processes}{args.device.type.upper()} ({processor_name()}, {threads} thread{'s' if threads > 1 else ''})"


def processor_name() -> str:
    """What the machine calls its processor; nothing says it on all systems."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        if names:
            return names[0]
    return platform.processor() or platform.machine()
