"""Loads labelled images from the Hub, from a local folder, or from an object in memory."""

import json
import tarfile
from collections.abc import Iterable, Iterator
from os import PathLike
from pathlib import Path

import datasets
import pyarrow as pa  # type: ignore[import-untyped]
from datasets import Dataset, DatasetDict, Features, Image, Value
from datasets.packaged_modules.webdataset.webdataset import WebDataset, base_plus_ext

from .containment import check_named_files

_JSON = ("json", "jsn")
_INTEGERS = ("cls", "cls2", "index", "inx", "id")
_TEXT = ("txt", "text", "transcript")


def load_source(
    source: str | PathLike[str] | Dataset | DatasetDict,
    config_name: str | None,
    revision: str | None,
    *,
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
        check_named_files(splits, folder if folder.is_dir() else None, ["image"])
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
        features = _webdataset_features(tar for tars in builder.config.data_files.values() for tar in tars)
    return datasets.load_dataset(str(path), config_name, features=features)


def _split_name(dataset: Dataset) -> str:
    """The split that the data set was loaded as; `train` for parts and sums of splits, or without a split."""
    name = str(dataset.split)
    return name if dataset.split is not None and name.isidentifier() else "train"


def _webdataset_features(tars: Iterable[str]) -> Features:
    """The features of all samples: images, text, integers, and the fields of JSON members. Other members are left out.

    `datasets` infers them from the first five samples of the first tar: it fails if an attribute is null in these, and
    drops attributes that appear later. Members other than images are small, so reading all of them is cheap.
    """
    features = Features()
    fields: dict[str, dict[str, list[object]]] = {}
    for member, tar, info in _members(tars):
        extension = member.rsplit(".", 1)[-1].lower()
        if extension in WebDataset.IMAGE_EXTENSIONS:
            features[member] = Image()
        elif extension in _INTEGERS:
            features[member] = Value("int64")
        elif extension in _TEXT:
            features[member] = Value("string")
        elif extension in _JSON:
            file = tar.extractfile(info)  # images are not read
            content = json.loads(b"" if file is None else file.read())
            if not isinstance(content, dict):
                raise ValueError(f"the member {member!r} must be a JSON object in every sample; got {content!r:.80}")
            for field, value in content.items():
                fields.setdefault(member, {}).setdefault(field, []).append(value)
    for member, columns in fields.items():
        features[member] = {field: _feature(values) for field, values in columns.items()}
    return Features({**features, "__key__": Value("string"), "__url__": Value("string")})


def _members(tars: Iterable[str]) -> Iterator[tuple[str, tarfile.TarFile, tarfile.TarInfo]]:
    for path in tars:
        with tarfile.open(path) as tar:
            for info in tar:
                member = base_plus_ext(info.name)[1] if info.isfile() else None
                if member is not None:
                    yield member, tar, info


def _feature(values: list[object]) -> object:
    try:
        kind = pa.array(values).type
    except (pa.ArrowInvalid, pa.ArrowTypeError):  # numbers in one sample, strings in another
        kind = pa.string()
    return Features.from_arrow_schema(pa.schema({"value": kind}))["value"]
