"""Loads labelled images from the Hub, from a local folder or table, or from an object in memory."""

import glob
import hashlib
import os
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

import datasets
import pandas
import pyarrow as pa  # type: ignore[import-untyped]
from datasets import Dataset, DatasetDict
from datasets.data_files import EmptyDatasetError
from datasets.exceptions import DataFilesNotFoundError
from datasets.packaged_modules import _PACKAGED_DATASETS_MODULES
from huggingface_hub import DatasetCard

from .containment import check_named_files
from .image_column import IMAGE_COLUMN
from .image_files import TABLE_SUFFIXES, find_files, passed_over_text
from .image_folder import find_image_folder, load_image_folder, split_of_file
from .tables import TableImages, load_frame, load_rows, load_table
from .webdataset import load_webdataset


@runtime_checkable
class ArrowTable(Protocol):
    """A table that Arrow can read, such as a DataFrame of polars: the Arrow PyCapsule interface."""

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object: ...


Source: TypeAlias = (
    str | PathLike[str] | Dataset | DatasetDict | pandas.DataFrame | ArrowTable | Sequence[Mapping[str, Any]]
)


def load_source(
    source: Source,
    config_name: str | None,
    revision: str | None,
    *,
    image_column: str | None = None,
    reads_images: bool = True,
    on_unreadable: Literal["error", "skip"] = "error",
) -> DatasetDict:
    """The splits of a source; see `load_attribute_dataset`.

    Args:
        reads_images: whether the images will be read from where the data says.
        on_unreadable: "skip" makes a row of a table whose image file is missing a row without an image.

    Raises:
        ValueError: if the data names files outside its folder as images; see `containment.py`.
    """
    images = TableImages(image_column, reads_images, on_unreadable)
    if isinstance(source, str | PathLike):
        path = Path(source).expanduser()
        splits = _load_place(source, path, config_name, revision, images)
        if reads_images:
            folder = path.parent if path.is_file() else path
            check_named_files(splits, folder if folder.is_dir() else None, image_column or IMAGE_COLUMN)
        return splits
    if isinstance(source, DatasetDict):
        return DatasetDict(source)
    if isinstance(source, Dataset):
        return DatasetDict({_split_name(source): source})
    return DatasetDict({"train": _load_object(source, images)})


def _load_object(source: object, images: TableImages) -> Dataset:
    if isinstance(source, list | tuple):
        return load_rows(source, images)
    if isinstance(source, pandas.DataFrame):
        return load_frame(source, images)
    if isinstance(source, ArrowTable):
        return load_frame(pa.table(source), images)
    raise TypeError(
        "a source is a Hub id, a local folder or table, a DataFrame, a list of dicts, a Dataset or a DatasetDict "
        f"(not a streamed one); got {type(source).__name__}"
    )


def _load_place(
    source: str | PathLike[str], path: Path, config_name: str | None, revision: str | None, images: TableImages
) -> DatasetDict:
    if path.is_file():
        rows = load_table(path, images)
        return DatasetDict({split_of_file(path.name) or "train": rows})
    if path.is_dir():
        return _load_folder(path.resolve(), config_name)
    if path.suffix.lower() in TABLE_SUFFIXES:
        raise FileNotFoundError(f"there is no file {str(path)!r}")
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
    cache_dir = _cache_of(path) if _declares_configurations(path) else None
    if cache_dir is None:
        found = find_image_folder(path)
        if found is not None:
            return load_image_folder(path, found)
    if glob.has_magic(str(path)):  # `datasets` would read [1] as a pattern, and load another folder
        raise ValueError(f"the path of a data set cannot contain '*', '?' or '['; rename {str(path)!r}")
    try:
        builder = datasets.load_dataset_builder(str(path), config_name, cache_dir=cache_dir)
    except (EmptyDatasetError, DataFilesNotFoundError) as error:
        passed_over = passed_over_text(find_files(path)) or "it is empty"
        raise ValueError(
            f"{path} contains no images and no table: {passed_over}. Give the folder that contains the images, or a "
            "table that names them"
        ) from error
    if builder.name == "webdataset":
        return load_webdataset({str(split): list(tars) for split, tars in builder.config.data_files.items()})
    # words such as NA are values, as in metadata.csv
    settings = {"keep_default_na": False, "na_values": [""]} if builder.name == "csv" else {}
    return datasets.load_dataset(str(path), config_name, cache_dir=cache_dir, **settings)


def _declares_configurations(path: Path) -> bool:
    """Whether a data set says itself which of its files it consists of, as on the Hub."""
    if (path / ".huggingface.yaml").exists():
        return True
    card = path / "README.md"
    return card.is_file() and bool({"configs", "dataset_info"} & DatasetCard.load(card).data.to_dict().keys())


def _cache_of(path: Path) -> str:
    """A place in the cache of `datasets` for this state of a folder.

    `datasets` has one place for all folders of a name whose cards are equal, and would load the wrong files.
    """
    digest = hashlib.sha256(os.fsencode(path))
    for file in sorted(path.rglob("*")):
        if file.is_file():
            status = file.stat()
            digest.update(b"\0".join([os.fsencode(file), b"%d %d" % (status.st_size, status.st_mtime_ns)]))
    return os.path.join(datasets.config.HF_DATASETS_CACHE, f"folder-{digest.hexdigest()[:16]}")


def _split_name(dataset: Dataset) -> str:
    """The split that the data set was loaded as; `train` for parts and sums of splits, or without a split."""
    name = str(dataset.split)
    return name if dataset.split is not None and name.isidentifier() else "train"
