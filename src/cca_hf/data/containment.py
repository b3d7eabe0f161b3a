"""Files that data may name: those in its own folder, and in the caches of Hugging Face.

A data set from elsewhere could name any file of this machine as an image, which would then be trained on, or pushed.
Links in the folder are followed, because the user has made them; names that lead out of it by `..`, or absolute names
of other places, are refused. `CCA_TRUST_DATA=1` allows them; so does a `Dataset` that the user's own program made.
"""

import os
from collections.abc import Sequence
from pathlib import Path

import datasets
import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.compute as pc  # type: ignore[import-untyped]
from datasets import Dataset, Image
from huggingface_hub import constants

from cca_hf.models.images import TRUST_DATA, trusts_data

from .image_column import LONGEST_PATH


def check_named_files(splits: dict[str, Dataset], folder: Path | None, image_column: str) -> None:
    """Checks the paths in all columns of type `datasets.Image`, and in the `image_column`, whatever its type.

    Args:
        folder: of the data set; None for a data set from the Hub.

    Raises:
        ValueError: if a path leads to an existing file in another place.
    """
    if trusts_data():
        return
    places = [datasets.config.HF_CACHE_HOME, datasets.config.HF_DATASETS_CACHE, constants.HF_HUB_CACHE]
    if folder is not None:
        places += [os.path.abspath(folder), folder.resolve()]
    roots = [os.path.join(place, "") for place in map(str, places)]
    for split, dataset in splits.items():
        for column, feature in dataset.features.items():
            if not isinstance(feature, Image) and column != image_column:
                continue
            for path in _other_paths(dataset.data.column(column), roots):
                if os.path.lexists(path) and not is_inside(path, roots):
                    raise ValueError(
                        f"the column {column!r} of the split {split!r} names the file {path[:200]!r}, which is not in "
                        f"{folder or 'the data set'}. If you trust the data, set {TRUST_DATA}=1, or name the folder "
                        "of the images as image_root"
                    )


def is_inside(path: str, roots: Sequence[str]) -> bool:
    """Whether a path, as it is written, lies in one of the folders, which end with a slash."""
    return os.path.abspath(path).startswith(tuple(roots))


def _other_paths(images: pa.ChunkedArray, roots: Sequence[str]) -> list[str]:
    """The distinct paths that are read and do not begin with one of the folders. Reads no image."""
    paths = _paths(images)
    paths = pc.drop_null(paths)
    elsewhere = pc.less(pc.binary_length(paths), LONGEST_PATH)
    elsewhere = pc.and_(elsewhere, pc.invert(pc.match_substring_regex(paths, r"^(https?://|data:)")))
    paths = pc.filter(paths, elsewhere)
    inside = pa.chunked_array([[False] * len(chunk) for chunk in paths.chunks], pa.bool_())
    for root in roots:
        inside = pc.or_(inside, pc.starts_with(paths, root))
    inside = pc.and_not(inside, pc.match_substring(paths, ".."))
    return list(pc.unique(pc.filter(paths, pc.invert(inside))).to_pylist())


def _paths(images: pa.ChunkedArray) -> pa.ChunkedArray:
    """The texts in a column of texts, of `{"bytes", "path"}`, or of lists of these; without paths beside bytes."""
    while pa.types.is_list(images.type) or pa.types.is_large_list(images.type):
        images = pc.list_flatten(images)
    if pa.types.is_struct(images.type):
        fields = {field.name for field in images.type}
        paths = pc.struct_field(images, "path") if "path" in fields else pa.chunked_array([], pa.string())
        images = pc.filter(paths, pc.struct_field(images, "bytes").is_null()) if "bytes" in fields else paths
    is_text = pa.types.is_string(images.type) or pa.types.is_large_string(images.type)
    return images if is_text else pa.chunked_array([], pa.string())
