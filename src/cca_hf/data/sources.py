"""Loads labelled images from the Hub, from a local folder, or from an object in memory."""

import glob
from os import PathLike
from pathlib import Path

import datasets
from datasets import Dataset, DatasetDict
from datasets.packaged_modules import _PACKAGED_DATASETS_MODULES
from huggingface_hub import DatasetCard

from .containment import check_named_files
from .image_column import IMAGE_COLUMN
from .image_folder import find_image_folder, load_image_folder
from .webdataset import load_webdataset


def load_source(
    source: str | PathLike[str] | Dataset | DatasetDict,
    config_name: str | None,
    revision: str | None,
    *,
    image_column: str | None = None,
    reads_images: bool = True,
) -> DatasetDict:
    """The splits of a source; see `load_attribute_dataset`.

    Args:
        reads_images: whether the images will be read from where the data says.

    Raises:
        ValueError: if the data names files outside its folder as images; see `containment.py`.
    """
    splits = _load(source, config_name, revision)
    if reads_images and not isinstance(source, Dataset | DatasetDict):
        folder = Path(source).expanduser()
        check_named_files(splits, folder if folder.is_dir() else None, image_column or IMAGE_COLUMN)
    return splits


def _load(
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
    if path.is_dir():
        return _load_folder(path.resolve(), config_name)
    return _load_from_hub(str(source), config_name, revision)


def _load_from_hub(source: str, config_name: str | None, revision: str | None) -> DatasetDict:
    if source in _PACKAGED_DATASETS_MODULES:  # `datasets` would read every file below the working directory
        raise FileNotFoundError(f"{source!r} is no local folder, and no id on the Hub, but a format of datasets")
    try:
        return datasets.load_dataset(source, config_name, revision=revision)
    except (FileNotFoundError, ConnectionError) as error:
        raise FileNotFoundError(
            f"{source!r} is no local folder, and could not be loaded from the Hub: {error}"
        ) from error


def _load_folder(path: Path, config_name: str | None) -> DatasetDict:
    """Loads an absolute path: `datasets` reads a name such as `parquet` as a format, not as a folder."""
    if (path / "dataset_dict.json").exists() or (path / "state.json").exists():
        loaded = datasets.load_from_disk(str(path))
        return loaded if isinstance(loaded, DatasetDict) else DatasetDict({_split_name(loaded): loaded})
    if not _declares_configurations(path):
        found = find_image_folder(path)
        if found is not None:
            return load_image_folder(path, found)
    if glob.has_magic(str(path)):  # `datasets` would read [1] as a pattern, and load another folder
        raise ValueError(f"the path of a data set cannot contain '*', '?' or '['; rename {str(path)!r}")
    builder = datasets.load_dataset_builder(str(path), config_name)
    if builder.name == "webdataset":
        return load_webdataset({str(split): list(tars) for split, tars in builder.config.data_files.items()})
    # words such as NA are values, as in metadata.csv
    settings = {"keep_default_na": False, "na_values": [""]} if builder.name == "csv" else {}
    return datasets.load_dataset(str(path), config_name, **settings)


def _declares_configurations(path: Path) -> bool:
    """Whether a data set says itself which of its files it consists of, as on the Hub."""
    if (path / ".huggingface.yaml").exists():
        return True
    card = path / "README.md"
    return card.is_file() and bool({"configs", "dataset_info"} & DatasetCard.load(card).data.to_dict().keys())


def _split_name(dataset: Dataset) -> str:
    """The split that the data set was loaded as; `train` for parts and sums of splits, or without a split."""
    name = str(dataset.split)
    return name if dataset.split is not None and name.isidentifier() else "train"
