"""Publish a data set of labelled images on the Hub: parquet files and a card, pushed in one commit.

If the images may not be redistributed, the annotations can be pushed alone. `image` is then empty, and `file_name` is
the path of the image below the folder that `load_attribute_dataset` gets as `image_root`.
"""

import json
import os
from os import PathLike
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from datasets import DatasetDict, Image
from huggingface_hub import DatasetCard, DatasetCardData

from cca_hf.data.columns import ColumnPlace
from cca_hf.data.coverage import FILE_NAME_COLUMN
from cca_hf.data.parquet_files import write_split
from cca_hf.data.schema import IMAGE_COLUMN, AttributeDataset
from cca_hf.evaluation.text_table import markdown_text
from cca_hf.models.whole_files import check_new, staged, write_text
from cca_hf.training.run_record import count_values

from .model_card import one_licence
from .publishing import commit_folder

TEMPLATE = Path(__file__).with_name("dataset_card_template.md")
# size categories of the Hub
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
    license: str | None = None,
) -> str:
    """Push a data set to the Hub with its card, in one commit, and return the URL of the commit.

    Args:
        repo_id: such as `me/shoes`.
        with_images: `False` pushes the annotations without the images.
        private, revision, token, message: see `push_model`.
        licence, license: identifier of the Hub, such as `cc-by-4.0`, in either spelling. Default: the card names no
            licence.

    Raises:
        PushError: if the Hub cannot be reached or refuses the push; the repository is then unchanged.
        UnreadableImageError, ValueError: see [`stage_dataset`].
    """
    licence = one_licence(licence, license)
    with TemporaryDirectory(prefix="cca-push-") as parent:
        folder = stage_dataset(data, Path(parent) / "repository", repo_id, with_images=with_images, licence=licence)
        return commit_folder(folder, repo_id, "dataset", private, revision, token, message, ["data/*.parquet"])


def stage_dataset(
    data: AttributeDataset,
    output: str | PathLike[str],
    repo_id: str,
    *,
    with_images: bool = True,
    licence: str | None = None,
    license: str | None = None,
) -> Path:
    """Write the files that [`push_dataset`] pushes into a new folder: the dry run.

    Raises:
        FileExistsError: if `output` is not empty.
        UnreadableImageError: if an image cannot be read; names it.
        ValueError: for annotations without images, if the images have no unique file names.
    """
    licence = one_licence(licence, license)
    output = Path(output)
    check_new(output)
    if with_images:
        data.check_images()
    splits = data.splits if with_images else _without_images(data)
    card = make_dataset_card(data, repo_id, with_images=with_images, licence=licence)
    with staged(output) as folder:
        for split, rows in splits.items():
            write_split(rows, folder / "data", split, with_images=with_images)
        write_text(str(card), folder / "README.md")
    return output


def _without_images(data: AttributeDataset) -> DatasetDict:
    splits = DatasetDict()
    names = _file_names(data)
    for split, dataset in data.splits.items():
        columns = [name for name in (IMAGE_COLUMN, FILE_NAME_COLUMN) if name in dataset.column_names]
        bare = dataset.remove_columns(columns).add_column(FILE_NAME_COLUMN, names[split])
        splits[split] = bare.add_column(IMAGE_COLUMN, [None] * dataset.num_rows, feature=Image(decode=False))
    return splits


def _file_names(data: AttributeDataset) -> dict[str, list[str]]:
    """split -> the column `file_name`, or the paths of the images below their common folder."""
    named = all(FILE_NAME_COLUMN in dataset.column_names for dataset in data.splits.values())
    column = ColumnPlace(FILE_NAME_COLUMN) if named else ColumnPlace(IMAGE_COLUMN, "path")
    names = {split: column.read(dataset).to_pylist() for split, dataset in data.splits.items()}
    if named:
        return names
    every = [path for paths in names.values() for path in paths]
    if None in every or len(set(every)) < len(every):
        problem = "some images have no file name" if None in every else "some images have the same file name"
        raise ValueError(
            f"annotations without images need a file name for each image: {problem}, and the data set has no column "
            f"{FILE_NAME_COLUMN!r}"
        )
    start = os.path.commonpath([os.path.dirname(path) for path in every])
    return {
        split: [Path(os.path.relpath(path, start or ".")).as_posix() for path in paths]
        for split, paths in names.items()
    }


def make_dataset_card(data: AttributeDataset, repo_id: str, *, with_images: bool, licence: str | None) -> DatasetCard:
    """The card of a data set, with counts of its labels."""
    name = repo_id.split("/")[-1]
    summary = data.summary()
    images = sum(split.images for split in summary.splits.values())
    counts = count_values(data.attributes, np.concatenate([data.labels(split) for split in data.splits]))
    names = json.dumps(list(data.attributes), ensure_ascii=False)
    arguments = [json.dumps(repo_id), f"attributes={names}"]
    if data.group_column is not None:
        arguments.append(f"group_column={json.dumps(data.group_column, ensure_ascii=False)}")
    if not with_images:
        arguments.append('image_root="images"')
    coverage = data.coverage_of(*data.splits)
    files = [{"split": split, "path": f"data/{split}-*.parquet"} for split in data.splits]
    return DatasetCard.from_template(
        DatasetCardData(
            license=licence,
            pretty_name=name,
            task_categories=["image-feature-extraction"],
            size_categories=[next((size for most, size in _SIZES.items() if images < most), "n>100M")],
            tags=["cca_hf", "image-retrieval", "attributes"],
            configs=[{"config_name": "default", "data_files": files}],
        ),
        template_path=str(TEMPLATE),
        text=markdown_text,
        name=name,
        repo_id=repo_id,
        images=f"{images:,} images" if with_images else f"The labels of {images:,} images",
        with_images=with_images,
        attributes=list(data.attributes),
        arguments=arguments,
        group_column=data.group_column,
        splits=summary.splits,
        counts=counts,
        subset=None if coverage is None else str(coverage).partition(";")[0],
    )
