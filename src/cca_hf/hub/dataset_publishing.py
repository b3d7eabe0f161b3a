"""A data set of labelled pictures as a repository on the Hub: parquet files and a card, pushed in one commit.

    README.md                               the card: splits, values, how often each is there
    data/<split>-00000-of-00003.parquet     `image`, and a `ClassLabel` for each attribute

Where the pictures may not be passed on, the annotations go alone: `image` is there and empty, and `file_name` says
which picture a row is of, from the folder on that `load_attribute_dataset` is given as `image_root`.
"""

import os
import shutil
from os import PathLike
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from datasets import DatasetDict, Image
from huggingface_hub import DatasetCard, DatasetCardData

from cca_hf.data.columns import ColumnPlace
from cca_hf.data.coverage import FILE_NAME_COLUMN
from cca_hf.data.new_folder import check_new
from cca_hf.data.parquet_files import write_split
from cca_hf.data.schema import IMAGE_COLUMN, AttributeDataset
from cca_hf.models.whole_files import write_text

from .commit import commit_folder

TEMPLATE = Path(__file__).with_name("dataset_card_template.md")
_RARE = 10  # pictures
# the Hub's own steps
_SIZES = {1e3: "n<1K", 1e4: "1K<n<10K", 1e5: "10K<n<100K", 1e6: "100K<n<1M", 1e7: "1M<n<10M", 1e8: "10M<n<100M"}


def push_dataset(
    data: AttributeDataset,
    repo_id: str,
    *,
    with_images: bool = True,
    private: bool | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    licence: str | None = None,
    message: str = "Push the data set by cca_hf",
) -> str:
    """Puts a data set on the Hub, with a card that counts it, in one commit.

    Args:
        repo_id: such as `me/shoes`.
        with_images: `False` pushes the annotations alone.
        private, revision, token, message: see `push_model`.
        licence: identifier of the Hub, such as `cc-by-4.0`; without one the card names none.

    Returns:
        The commit's address.

    Raises:
        PushError: the Hub was not reached, or refused; the repository is as it was.
        UnreadableImageError, ValueError: see [`stage_dataset`].
    """
    with TemporaryDirectory(prefix="cca-push-") as parent:
        staged = stage_dataset(data, Path(parent) / "repository", repo_id, with_images=with_images, licence=licence)
        return commit_folder(
            staged,
            repo_id,
            repo_type="dataset",
            private=private,
            revision=revision,
            token=token,
            message=message,
            replaces=("data/*.parquet",),
        )


def stage_dataset(
    data: AttributeDataset,
    output: str | PathLike[str],
    repo_id: str,
    *,
    with_images: bool = True,
    licence: str | None = None,
) -> Path:
    """Writes what [`push_dataset`] pushes into a new folder: the dry run.

    Raises:
        FileExistsError: if `output` holds something.
        UnreadableImageError: for a picture that cannot be read; names it.
        ValueError: for annotations alone of pictures that have no names of their own.
    """
    output = Path(output)
    check_new(output)
    if with_images:
        data.check_images()
    output.mkdir(parents=True, exist_ok=True)
    try:
        for split, rows in (data.splits if with_images else _without_pictures(data)).items():
            write_split(rows, output / "data", split, with_images=with_images)
        write_text(
            str(make_dataset_card(data, repo_id, with_images=with_images, licence=licence)), output / "README.md"
        )
    except BaseException:
        shutil.rmtree(output)
        raise
    return output


def _without_pictures(data: AttributeDataset) -> DatasetDict:
    splits = DatasetDict()
    names = _picture_names(data)
    for split, dataset in data.splits.items():
        columns = [name for name in (IMAGE_COLUMN, FILE_NAME_COLUMN) if name in dataset.column_names]
        bare = dataset.remove_columns(columns).add_column(FILE_NAME_COLUMN, names[split])
        splits[split] = bare.add_column(IMAGE_COLUMN, [None] * dataset.num_rows, feature=Image(decode=False))
    return splits


def _picture_names(data: AttributeDataset) -> dict[str, list[str]]:
    """split -> the column `file_name`, or where each picture lies below the folder that holds them all."""
    if all(FILE_NAME_COLUMN in dataset.column_names for dataset in data.splits.values()):
        return {
            split: ColumnPlace(FILE_NAME_COLUMN).read(dataset).to_pylist() for split, dataset in data.splits.items()
        }
    paths = {
        split: ColumnPlace(IMAGE_COLUMN, "path").read(dataset).to_pylist() for split, dataset in data.splits.items()
    }
    every = [path for own in paths.values() for path in own]
    unnamed = None in every
    if unnamed or len(set(every)) < len(every):
        raise ValueError(
            f"annotations alone need names of the pictures: {'some have none' if unnamed else 'some share one'}, and "
            f"there is no column {FILE_NAME_COLUMN!r}"
        )
    start = os.path.commonpath([os.path.dirname(path) for path in every])
    return {
        split: [Path(os.path.relpath(path, start or ".")).as_posix() for path in own] for split, own in paths.items()
    }


def make_dataset_card(data: AttributeDataset, repo_id: str, *, with_images: bool, licence: str | None) -> DatasetCard:
    """The card of a data set, counted from its labels."""
    name = repo_id.split("/")[-1]
    summary = data.summary()
    images = sum(split.images for split in summary.splits.values())
    labels = np.concatenate([data.labels(split) for split in data.splits])
    counts = {
        attribute: dict(zip(values, np.bincount(own[own >= 0], minlength=len(values)).tolist(), strict=True))
        for (attribute, values), own in zip(data.attributes.items(), labels.T, strict=True)
    }
    arguments = [f'"{repo_id}"', f"attributes={list(data.attributes)}".replace("'", '"')]
    if data.group_column is not None:
        arguments.append(f'group_column="{data.group_column}"')
    if not with_images:
        arguments.append('image_root="pictures"')
    coverage = data.coverage_of(*data.splits)
    return DatasetCard.from_template(
        DatasetCardData(
            license=licence,
            pretty_name=name,
            task_categories=["image-feature-extraction"],
            size_categories=[next((size for most, size in _SIZES.items() if images < most), "n>100M")],
            tags=["cca_hf", "image-retrieval", "attributes"],
            configs=[
                {
                    "config_name": "default",
                    "data_files": [{"split": split, "path": f"data/{split}-*.parquet"} for split in data.splits],
                }
            ],
        ),
        template_path=str(TEMPLATE),
        name=name,
        repo_id=repo_id,
        pictures=f"{images:,} pictures" if with_images else f"The labels of {images:,} pictures,",
        with_images=with_images,
        attributes=list(data.attributes),
        arguments=arguments,
        group_column=data.group_column,
        splits=[
            [name, f"{split.images:,}"]
            + ([] if split.groups is None else [f"{split.groups:,}"])
            + [f"{own.labelled:,}" for own in split.attributes.values()]
            for name, split in summary.splits.items()
        ],
        values=[[attribute, len(own), _by_frequency(own)] for attribute, own in counts.items()],
        rare=[
            f"{attribute}: {_by_frequency(rare)}"
            for attribute, own in counts.items()
            if (rare := {value: count for value, count in own.items() if count < _RARE})
        ],
        rare_below=_RARE,
        subset=None if coverage is None else str(coverage).partition(";")[0],
    )


def _by_frequency(counts: dict[str, int]) -> str:
    return ", ".join(f"{value} ({count:,})" for value, count in sorted(counts.items(), key=lambda pair: -pair[1]))
