"""Loads labelled images from the Hub, from a local folder, or from an object in memory."""

from os import PathLike
from pathlib import Path

import datasets
from datasets import Dataset, DatasetDict

from .webdataset import webdataset_features


def load_source(
    source: str | PathLike[str] | Dataset | DatasetDict, config_name: str | None, revision: str | None
) -> DatasetDict:
    if isinstance(source, DatasetDict):
        return DatasetDict(source)
    if isinstance(source, Dataset):
        return DatasetDict({_split_name(source): source})
    if not isinstance(source, (str, PathLike)):
        raise TypeError(
            "a source is a Hub id, a local folder, a Dataset or a DatasetDict (not a streamed one); "
            f"got {type(source).__name__}"
        )
    path = Path(source).expanduser()
    if path.is_file():
        raise ValueError(f"{str(path)!r} is a file; give the folder that contains the data set")
    if not path.is_dir():
        try:
            return datasets.load_dataset(str(source), config_name, revision=revision)
        except (FileNotFoundError, ConnectionError) as error:
            raise FileNotFoundError(
                f"{str(source)!r} is no local folder, and could not be loaded from the Hub: {error}"
            ) from error
    if (path / "dataset_dict.json").exists() or (path / "state.json").exists():
        loaded = datasets.load_from_disk(str(path))
        return loaded if isinstance(loaded, DatasetDict) else DatasetDict({_split_name(loaded): loaded})
    builder = datasets.load_dataset_builder(str(path), config_name)
    features = None
    if builder.name == "webdataset":
        features = webdataset_features(tar for tars in builder.config.data_files.values() for tar in tars)
    return datasets.load_dataset(str(path), config_name, features=features)


def _split_name(dataset: Dataset) -> str:
    """The split that the data set was loaded as; `train` for parts and sums of splits, or without a split."""
    name = str(dataset.split)
    return name if dataset.split is not None and name.isidentifier() else "train"
