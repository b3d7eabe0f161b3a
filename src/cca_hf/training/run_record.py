"""`run.json`: how a model was trained, for the model card and for a later evaluation of the checkpoint."""

import hashlib
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from datasets import Dataset
from transformers.utils import cached_file

from cca_hf.data.schema import IMAGE_COLUMN, AttributeDataset
from cca_hf.evaluation.retrieval.embeddings import Confusion
from cca_hf.models.whole_files import write_json

FILE_NAME = "run.json"
# the arguments of transformers that decide what the weights become
_THEIRS = (
    "num_train_epochs max_steps per_device_train_batch_size gradient_accumulation_steps learning_rate weight_decay "
    "lr_scheduler_type warmup_steps max_grad_norm optim bf16 fp16 seed data_seed"
).split()
_PLACES = ("cache_tokens", "cpu_threads")  # arguments about the machine, not the training


@dataclass(frozen=True)
class RunRecord:
    """The data, the settings and the machine of one training, and the values that the model confuses."""

    dataset: str  # an id on the Hub, or the name of a folder
    dataset_on_hub: bool  # whether `dataset` is an id
    splits: dict[str, int]  # number of images in each split
    value_counts: dict[str, dict[str, int]]  # attribute -> value -> number of training images
    settings: dict[str, Any]  # the training arguments, by the names of their flags
    hardware: str  # the processor or GPU, and the number of processes
    versions: dict[str, str]  # of Python, torch and transformers
    seconds: float = 0.0  # duration of the training alone; 0 until it has finished
    # attribute -> the values that are most often confused with each other on the test split
    confusions: dict[str, list[Confusion]] = field(default_factory=dict)
    # How the data set was loaded, by the names of the flags; and `cut_splits`: the digest of the rows of each split
    # that was cut from the training images, and of the rest of these. Empty in a file of version 0.1.
    data: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        data: AttributeDataset,
        loaded_with: Mapping[str, Any],
        args: transformers.TrainingArguments,
        *,
        unused: Sequence[str] = (),
    ) -> "RunRecord":
        """The record of a training that begins in this process.

        Args:
            loaded_with: the fields of `DataArguments`.
            unused: arguments without an effect, which the record leaves out.
        """
        dataset = loaded_with["dataset"]
        theirs = {each.name for each in fields(transformers.TrainingArguments)}
        own = {each.name for each in fields(args)} - theirs
        settings = args.to_dict()  # plain values
        libraries = {"torch": torch.__version__, "transformers": transformers.__version__}
        cut = {split: rows_digest(data[split]) for split in data.cut_splits}
        return cls(
            dataset=_name(dataset),
            dataset_on_hub=not Path(dataset).exists(),
            splits={split: rows.num_rows for split, rows in data.splits.items()},
            value_counts=count_values(data.attributes, data.labels("train")),
            settings={name: settings[name] for name in (*_THEIRS, *sorted(own - {*_PLACES, *unused}))},
            hardware=describe_hardware(args),
            versions={"python": platform.python_version(), **libraries},
            data={name: value for name, value in loaded_with.items() if name != "dataset"} | {"cut_splits": cut},
        )

    def save(self, folder: str | PathLike[str]) -> Path:
        """Writes `run.json`."""
        return write_json(asdict(self), Path(folder) / FILE_NAME)

    @classmethod
    def load(cls, folder: str | PathLike[str]) -> "RunRecord":
        """Reads the `run.json` of a folder.

        Raises:
            FileNotFoundError: if the folder has none.
        """
        content = json.loads((Path(folder) / FILE_NAME).read_text(encoding="utf-8"))
        confusions = content["confusions"].items()
        content["confusions"] = {name: [Confusion(**each) for each in pairs] for name, pairs in confusions}
        return cls(**content)

    @classmethod
    def of_checkpoint(cls, name: str) -> "RunRecord | None":
        """The record of the training that made a checkpoint, an id on the Hub or a folder; None if it is not known."""
        folder = Path(name)
        if folder.exists():
            places = [folder, folder.resolve().parent] if folder.resolve().name.startswith("checkpoint-") else [folder]
        else:
            file = cached_file(name, FILE_NAME, _raise_exceptions_for_missing_entries=False)
            places = [] if file is None else [Path(file).parent]
        found = [place for place in places if (place / FILE_NAME).is_file()]
        return cls.load(found[0]) if found else None

    def describes(self, dataset: str) -> bool:
        """Whether the training loaded this data set, and the record says how."""
        return bool(self.data) and (self.dataset, self.dataset_on_hub) == (_name(dataset), not Path(dataset).exists())


def count_values(attributes: Mapping[str, Sequence[str]], labels: np.ndarray) -> dict[str, dict[str, int]]:
    """Attribute -> value -> number of images, from labels (images, attributes)."""
    return {
        name: dict(zip(values, np.bincount(column[column >= 0], minlength=len(values)).tolist(), strict=True))
        for (name, values), column in zip(attributes.items(), labels.T, strict=True)
    }


def rows_digest(images: Dataset) -> str:
    """A digest of the images of a split in their order, by their bytes, or by the names of file and folder."""
    digest = hashlib.blake2b(digest_size=16)
    for batch in images.select_columns([IMAGE_COLUMN]).with_format("arrow").iter(batch_size=100):
        for image in batch.column(IMAGE_COLUMN).to_pylist():
            content = image["bytes"] or "/".join(Path(str(image["path"])).parts[-2:]).encode()
            digest.update(hashlib.blake2b(content, digest_size=16).digest())
    return digest.hexdigest()


def _name(dataset: str) -> str:
    """The id, or the name of the folder without its path on this machine."""
    return Path(dataset).resolve().name if Path(dataset).exists() else dataset


def describe_hardware(args: transformers.TrainingArguments) -> str:
    """The processor or GPU that a training runs on, and the number of processes."""
    processes = f"{args.world_size} processes, " if args.world_size > 1 else ""
    if args.device.type == "cuda":
        return f"{processes}{torch.cuda.get_device_name(args.device)}"
    threads = torch.get_num_threads()
    return f"{processes}{args.device.type.upper()} ({processor_name()}, {threads} thread{'s' if threads > 1 else ''})"


def processor_name() -> str:
    """The name of the processor, as the system reports it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        if names:
            return names[0]
    return platform.processor() or platform.machine()
