"""Infers the columns of a folder of WebDataset tars from all of its samples.

`datasets` infers them from the first five samples of the first tar: it fails if an attribute is null in these, and
drops attributes that appear later. Members other than images are small, so that reading all of them is cheap.
"""

import json
import tarfile
from collections.abc import Iterable, Iterator

import pyarrow as pa  # type: ignore[import-untyped]
from datasets import Features, Image, Value
from datasets.packaged_modules.webdataset.webdataset import WebDataset, base_plus_ext

_JSON = ("json", "jsn")
_INTEGERS = ("cls", "cls2", "index", "inx", "id")
_TEXT = ("txt", "text", "transcript")


def webdataset_features(tars: Iterable[str]) -> Features:
    """The features of all samples: images, text, integers, and the fields of JSON members.

    Members of any other kind are left out.
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
