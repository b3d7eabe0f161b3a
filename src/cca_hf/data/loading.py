"""`load_attribute_dataset`: any source of labelled pictures, brought into the one schema of `AttributeDataset`."""

import logging
from collections.abc import Mapping, Sequence
from os import PathLike

import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image

from .columns import ColumnPlace, column_places, encode_labels, is_label_feature, missing_message
from .coverage import leave_out_missing, with_images_of
from .schema import IMAGE_COLUMN, AttributeDataset
from .sources import load_source
from .splits import complete_splits, warn_of_shared_groups, with_usual_names
from .summary import DatasetSummary

logger = logging.getLogger(__name__)

_SHOWN_VALUES = 5


def load_attribute_dataset(
    source: str | PathLike[str] | Dataset | DatasetDict,
    attributes: Sequence[str] | Mapping[str, Sequence[str]] | None = None,
    *,
    group_column: str | None = None,
    image_column: str | None = None,
    image_root: str | PathLike[str] | None = None,
    config_name: str | None = None,
    revision: str | None = None,
    make_splits: bool = True,
    split_seed: int = 0,
) -> AttributeDataset:
    """Loads pictures with attribute columns from wherever they are.

    A row whose picture is None, as of a benchmark that is here in part, is left out; `coverage` of the result counts
    them, and every evaluation on it says that it is of a subset.

    Args:
        source: an id on the Hub; a local folder of parquet files, of pictures with `metadata.csv` (`.jsonl`,
            `.parquet`), or of WebDataset tars; what `save_to_disk` wrote; or a built `Dataset` or `DatasetDict`.
        attributes: the attribute columns: `ClassLabel`, strings, integers or booleans; None, -1 and blank strings mean
            "not labelled". Fields of a struct column, such as a WebDataset's `json`, can be named like columns. A
            mapping also fixes the values' names and their order (those of a trained model). Default: every
            `ClassLabel` column.
        group_column: names the groups of near copies, such as an item's number.
        image_column: default `image`, or the only column of pictures.
        image_root: the folder with the pictures of a source that holds annotations alone, in which each lies where its
            column `file_name` says. Default: where they lay when `cca data prepare --annotations-only` ran.
        config_name: the configuration, where a repository on the Hub has several.
        revision: the branch, tag or commit on the Hub.
        make_splits: whether to cut a missing validation or test split, a tenth each, out of the training images.
            Splits that the source has are kept as they are, `test_query` and `test_gallery` of benchmarks included.
        split_seed: seed of those splits.

    Raises:
        ValueError: a column is missing or holds no labels, a split is empty, an attribute has nothing to learn.
        FileNotFoundError: `source` is neither a local folder nor found on the Hub.
    """
    splits = with_usual_names(load_source(source, config_name, revision))
    image_column = _find_image_column(splits, image_column)
    if image_root is not None:
        splits = with_images_of(splits, image_column, image_root)
    splits, coverage = leave_out_missing(splits, image_column)
    names = _attribute_names(splits, attributes, image_column)
    if group_column is not None:
        _check_present("group column", [group_column], splits)
    values = attributes if isinstance(attributes, Mapping) else {}
    splits, found = _to_schema(splits, names, values, image_column, group_column)
    uncut = splits
    if make_splits:
        given = "train" if "train" in splits else next(iter(splits))
        splits = complete_splits(splits, group_column, split_seed)
        if given in coverage:  # what is cut out of a subset is one
            coverage = dict.fromkeys(splits, coverage[given]) | coverage
    if group_column is not None:
        warn_of_shared_groups(splits, group_column)
    cut = tuple(split for split, dataset in splits.items() if dataset is not uncut.get(split))
    data = AttributeDataset(splits, found, group_column, coverage, cut_splits=cut)
    _check_labels(data)
    return data


def _features(splits: DatasetDict) -> Features:
    """The columns that all splits have."""
    first, *others = splits.values()
    shared = set(first.column_names).intersection(*(dataset.column_names for dataset in others))
    return Features({column: feature for column, feature in first.features.items() if column in shared})


def _check_present(kind: str, names: Sequence[str], splits: DatasetDict) -> None:
    for split, dataset in splits.items():
        places = column_places(dataset.features)
        missing = [name for name in names if name not in places]
        if missing:
            raise ValueError(f"in the split {split!r}: {missing_message(kind, missing, places)}")


def _find_image_column(splits: DatasetDict, image_column: str | None) -> str:
    features = _features(splits)
    if image_column is not None:
        if image_column not in features:
            raise ValueError(missing_message("image column", [image_column], features))
        return image_column
    if IMAGE_COLUMN in features:
        return IMAGE_COLUMN
    pictures = [column for column, feature in features.items() if isinstance(feature, Image)]
    if len(pictures) != 1:
        found = f"several columns of pictures ({', '.join(pictures)})" if pictures else "no column of pictures"
        raise ValueError(f"found {found}; name one with image_column. There are: {', '.join(features) or 'none'}")
    return pictures[0]


def _attribute_names(
    splits: DatasetDict, attributes: Sequence[str] | Mapping[str, Sequence[str]] | None, image_column: str
) -> list[str]:
    features = _features(splits)
    places = column_places(features)
    candidates = [
        name for name, place in places.items() if is_label_feature(place.feature(features)) and name[:2] != "__"
    ]
    if attributes is None:
        names = [column for column, feature in features.items() if isinstance(feature, ClassLabel)]
        if not names:
            raise ValueError(
                "no column is a ClassLabel, so name the attributes; these columns could be attributes: "
                f"{', '.join(candidates) or 'none'}"
            )
        return names
    if isinstance(attributes, str):
        raise TypeError(f"attributes must be a list of names; got the string {attributes!r}, write [{attributes!r}]")
    names = list(attributes)
    if not names:
        raise ValueError(f"no attribute is named; these columns could be: {', '.join(candidates) or 'none'}")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"named more than once: {', '.join(twice)}")
    if image_column in names:
        raise ValueError(f"{image_column!r} is the column of pictures; it cannot be an attribute too")
    _check_present("attribute column", names, splits)
    return names


def _to_schema(
    splits: DatasetDict,
    names: list[str],
    values: Mapping[str, Sequence[str]],
    image_column: str,
    group_column: str | None,
) -> tuple[DatasetDict, dict[str, list[str]]]:
    places = {split: column_places(dataset.features) for split, dataset in splits.items()}
    attributes: dict[str, list[str]] = {}
    labels: dict[str, dict[str, np.ndarray]] = {split: {} for split in splits}
    for name in names:
        encoded, attributes[name] = encode_labels(
            name,
            {split: places[split][name].read(dataset) for split, dataset in splits.items()},
            {split: places[split][name].feature(dataset.features) for split, dataset in splits.items()},
            values.get(name),
        )
        for split, column in encoded.items():
            labels[split][name] = column
    result = DatasetDict()
    for split, dataset in splits.items():
        dataset = _with_image_column(dataset, image_column)
        if group_column is not None and group_column not in dataset.column_names:
            group = places[split][group_column].read(dataset).to_pylist()
            dataset = dataset.add_column(group_column, group)
        for name, column in labels[split].items():
            dataset = _with_labels(dataset, name, column, attributes[name])
        others = [column for column in dataset.column_names if column not in (IMAGE_COLUMN, *names)]
        result[split] = dataset.select_columns([IMAGE_COLUMN, *names, *others])
    return result, attributes


def _with_image_column(dataset: Dataset, image_column: str) -> Dataset:
    dataset = dataset.with_format(None)
    if image_column != IMAGE_COLUMN:
        if IMAGE_COLUMN in dataset.column_names:
            raise ValueError(
                f"the pictures are to come from {image_column!r}, but there is a column {IMAGE_COLUMN!r} too; "
                "rename or remove it"
            )
        dataset = dataset.rename_column(image_column, IMAGE_COLUMN)
    return dataset.cast_column(IMAGE_COLUMN, Image(decode=False))


def _with_labels(dataset: Dataset, name: str, labels: np.ndarray, values: list[str]) -> Dataset:
    feature = ClassLabel(names=values)
    if name in dataset.column_names:
        if dataset.features[name] == feature and np.array_equal(_raw(dataset, name), labels):
            return dataset  # add_column would copy the pictures of a dataset that is a selection
        dataset = dataset.remove_columns(name)
    return dataset.add_column(name, labels, feature=feature)


def _raw(dataset: Dataset, name: str) -> np.ndarray:
    return ColumnPlace(name).read(dataset).to_numpy()


def _check_labels(data: AttributeDataset) -> None:
    """An attribute needs two values, and a value with two images, or no triplet and no query exists."""
    summary = data.summary()
    learned_from = ["train"] if "train" in data else list(data.splits)
    for attribute, names in data.attributes.items():
        index = list(data.attributes).index(attribute)
        labels = np.concatenate([data.labels(split)[:, index] for split in learned_from])
        counts = np.bincount(labels[labels >= 0], minlength=len(names))
        where = "the training images" if learned_from == ["train"] else "this data set"
        if (counts > 0).sum() < 2:
            shown = ", ".join(repr(names[value]) for value in np.flatnonzero(counts).tolist()) or "no value at all"
            raise ValueError(f"the attribute {attribute!r} needs at least two values; {where} show {shown}")
        if counts.max() < 2:
            raise ValueError(
                f"each of the {(counts > 0).sum()} values of the attribute {attribute!r} has one image in {where}: "
                "nothing can be learned or retrieved. Is it an identifier, or a free text?"
            )
    _warn_of_single_images(summary)


def _warn_of_single_images(summary: DatasetSummary) -> None:
    told = []
    for split, found in summary.splits.items():
        if split.endswith(("_query", "_gallery")):
            continue  # each is searched for in the other
        for attribute, own in found.attributes.items():
            single = own.single_image_values
            if single:
                shown = ", ".join(single[:_SHOWN_VALUES]) + (", ..." if len(single) > _SHOWN_VALUES else "")
                told.append(f"  {split}, {attribute}: {len(single)} of {own.values} ({shown})")
    if told:
        logger.warning(
            "these values have one image in their split: no pair to learn from, nothing to retrieve leave-one-out\n%s",
            "\n".join(told),
        )
