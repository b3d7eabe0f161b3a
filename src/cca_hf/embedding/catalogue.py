"""The images to embed and their ids: a folder of files, or a split of any data set that `datasets` reads."""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.compute as pc  # type: ignore[import-untyped]
from datasets import Dataset, DatasetDict, Features, Image

from cca_hf.data.columns import column_places, missing_message
from cca_hf.data.image_column import IMAGE_COLUMN, find_image_column, with_undecoded_images
from cca_hf.data.image_files import find_files, image_suffixes, passed_over_text, warn_of_passed_over
from cca_hf.data.schema import find_split
from cca_hf.data.sources import load_source

ITEM_ID = "item_id"
_ROWS_AT_ONCE = 1024


@dataclass(frozen=True)
class Catalogue:
    """Images in a fixed order; made by `from_folder` or `from_dataset`.

    Args:
        dataset: the column `image`, undecoded, and the columns to keep with the embeddings.
        ids: unique ids of the images.
    """

    dataset: Dataset
    ids: pa.Array

    @classmethod
    def from_folder(cls, folder: str | PathLike[str]) -> "Catalogue":
        """All images in a folder and its subfolders, recognised by suffix. Ids are paths relative to the folder.

        Links are followed, hidden files are left out, and a warning counts the files that are no images.

        Raises:
            FileNotFoundError: if the folder does not exist, or contains no image.
        """
        root = Path(folder)
        if not root.is_dir():
            raise FileNotFoundError(f"there is no folder {root}")
        found = find_files(root)
        names = found.images
        if not names:
            passed_over = passed_over_text(found) or f"known suffixes are {' '.join(sorted(image_suffixes()))}"
            raise FileNotFoundError(f"there is no image in {root}; {passed_over}")
        warn_of_passed_over(root, found)
        paths = [str(root / name) for name in names]
        dataset = Dataset.from_dict({IMAGE_COLUMN: paths}, features=Features({IMAGE_COLUMN: Image(decode=False)}))
        return cls(dataset, pa.array(names))

    @classmethod
    def from_dataset(
        cls,
        source: str | PathLike[str] | Dataset | DatasetDict,
        *,
        split: str | None = None,
        image_column: str | None = None,
        id_column: str | None = None,
        columns: Sequence[str] = (),
        config_name: str | None = None,
        revision: str | None = None,
    ) -> "Catalogue":
        """A split of a data set.

        Args:
            source: as in `load_attribute_dataset`.
            split: may be left out if the data set has one split.
            image_column: default: `image`, or the only image column. For its forms see `data/image_column.py`.
            id_column: a column of unique ids. Default: the numbers of the rows.
            columns: columns to keep with the embeddings. Fields of a struct column, such as the `json` of a
                WebDataset, can be named like columns, as in `load_attribute_dataset`.

        Raises:
            ValueError: if a split or column is missing, ids are not unique, or the image column contains no images.
        """
        splits = load_source(source, config_name, revision, image_column=image_column)
        if split is None and len(splits) > 1:
            raise ValueError(f"the data set has several splits; choose one of {', '.join(splits)}")
        found = find_split(split, splits) if split else next(iter(splits))
        if found not in splits:
            raise ValueError(missing_message("split", [found], splits))
        dataset = splits[found].with_format(None)
        image_column = find_image_column({found: dataset}, image_column)
        places = column_places(dataset.features)
        missing = [name for name in [*([id_column] if id_column else []), *columns] if name not in places]
        if missing:
            raise ValueError(missing_message("column", missing, places))
        taken = [name for name in columns if name in (image_column, IMAGE_COLUMN, ITEM_ID)]
        if taken:
            raise ValueError(f"the column {taken[0]!r} cannot be kept: the output uses this name itself")
        if id_column is None:
            ids = pa.array(range(dataset.num_rows))
        else:
            ids = places[id_column].read(dataset).combine_chunks()
        if ids.null_count or pc.count_distinct(ids).as_py() != len(ids):
            counts = ids.value_counts().to_pylist()
            repeated = next(entry["values"] for entry in counts if entry["counts"] > 1 or entry["values"] is None)
            raise ValueError(f"ids must be unique; {id_column!r} contains {repeated!r} more than once")
        kept = dataset.select_columns([image_column, *(name for name in columns if places[name].field is None)])
        for name in columns:
            if places[name].field is not None:
                values = places[name].read(dataset).to_pylist()
                kept = kept.add_column(name, values, feature=places[name].feature(dataset.features))
        if image_column != IMAGE_COLUMN:
            kept = kept.rename_column(image_column, IMAGE_COLUMN)
        return cls(with_undecoded_images(kept, IMAGE_COLUMN).select_columns([IMAGE_COLUMN, *columns]), ids)

    def __len__(self) -> int:
        return self.dataset.num_rows

    @property
    def images(self) -> Sequence[dict]:
        """The undecoded images, read from disk one by one; None for a row without an image."""
        return self.dataset.select_columns([IMAGE_COLUMN])[IMAGE_COLUMN]

    @property
    def features(self) -> Features:
        """The features of the columns that `rows` returns."""
        ids = Features.from_arrow_schema(pa.schema([(ITEM_ID, self.ids.type)]))
        return Features({**ids, **{name: self.dataset.features[name] for name in self._kept}})

    def paths(self, start: int, stop: int) -> list[str | None]:
        """The path or URL of each image; None for an image whose bytes are in the data set, or that is missing."""
        images = self.dataset.select_columns([IMAGE_COLUMN]).with_format("arrow")[start:stop][IMAGE_COLUMN]
        has_bytes = pc.is_valid(pc.struct_field(images, "bytes"))
        return pc.if_else(has_bytes, None, pc.struct_field(images, "path")).to_pylist()

    def rows(self, start: int, stop: int) -> pa.Table:
        """The ids and the kept columns."""
        columns = {ITEM_ID: self.ids[start:stop]}
        if self._kept:
            kept = self.dataset.select_columns(self._kept).with_format("arrow")[start:stop]
            columns |= {name: kept[name] for name in self._kept}
        return pa.table(columns)

    def fingerprint(self, start: int = 0, stop: int | None = None) -> str:
        """A hash of the ids and of the sizes of the images in bytes."""
        digest = hashlib.sha256()
        last = len(self) if stop is None else stop
        table = self.dataset.select_columns([IMAGE_COLUMN]).with_format("arrow")
        for first in range(start, last, _ROWS_AT_ONCE):
            end = min(first + _ROWS_AT_ONCE, last)
            images = table[first:end][IMAGE_COLUMN]
            sizes = pc.binary_length(pc.struct_field(images, "bytes")).to_pylist()
            paths = pc.struct_field(images, "path").to_pylist()
            for item, size, path in zip(self.ids[first:end].to_pylist(), sizes, paths, strict=True):
                digest.update(f"{item!r} {_size_of_file(path) if size is None else size}\n".encode())
        return digest.hexdigest()

    @property
    def _kept(self) -> list[str]:
        return [name for name in self.dataset.column_names if name != IMAGE_COLUMN]


def _size_of_file(path: str | None) -> int:
    try:
        return os.stat(path).st_size if path is not None else -1
    except OSError:
        return -1
