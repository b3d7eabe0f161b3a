"""`load_attribute_dataset`: loads labelled images from any source into the schema of `AttributeDataset`.

Missing splits are cut from the training images: seeded, with all images of a group in one split.
"""

import logging
from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Literal

import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict, Features

from .columns import ColumnPlace, check_names, column_places, encode_labels, group_codes, is_label_feature
from .coverage import leave_out_missing, with_images_of
from .default_attributes import default_attributes
from .image_column import IMAGE_COLUMN, find_image_column, with_undecoded_images
from .schema import AttributeDataset
from .sources import Source, load_source
from .split_names import usual_split_name

logger = logging.getLogger(__name__)

# a source has such a split under this name, or as `<name>_query` and `<name>_gallery`
HELD_OUT = ("validation", "test")
_SHARE = 0.1
_SHOWN_VALUES = 5
_CHOOSE = "Choose the attributes with attributes=[...] or --attributes"


def load_attribute_dataset(
    source: Source,
    attributes: Sequence[str] | Mapping[str, Sequence[str]] | None = None,
    *,
    group_column: str | None = None,
    image_column: str | None = None,
    image_root: str | PathLike[str] | None = None,
    config_name: str | None = None,
    revision: str | None = None,
    make_splits: bool = True,
    split_seed: int = 0,
    on_unreadable: Literal["error", "skip"] = "error",
    check_labels: bool = True,
) -> AttributeDataset:
    """Loads images with attribute columns.

    Rows without an image, as in an incomplete copy of a benchmark, are left out. `coverage` of the result counts
    them, and every evaluation reports it.

    Args:
        source: an id on the Hub; a local folder of parquet files, of images with a table (CSV, TSV, Excel, JSON lines,
            parquet) or with one folder for each value, or of WebDataset tars; a table file; the output of
            `save_to_disk`; a `Dataset` or `DatasetDict`; a DataFrame of pandas or polars; or a list of dicts. The page
            docs/your_own_data.md has a table of all of them.
        attributes: the attribute columns: `ClassLabel`, strings, integers or booleans; None, -1 and blank strings mean
            "not labelled". A value is the same in all types: 1, 1.0 and "1", or True and "true". Fields of a struct
            column, such as the `json` of a WebDataset, can be named like columns. A mapping also sets the names of the
            values and their order, as in a trained model. Default: all `ClassLabel` columns, or else
            the columns whose values repeat; a message names them.
        group_column: column with the groups of near copies, such as an item number.
        image_column: default: `image`, or the only image column; in a table, the column whose cells name images.
        image_root: folder of the images, if the source contains annotations only; the column `file_name` contains
            their paths in it. Default: the paths in the image column, which must lie in the folder of the data set
            or of the table unless `CCA_TRUST_DATA=1` is set; see docs/your_own_data.md.
        config_name: the configuration, if a repository on the Hub has several.
        revision: branch, tag or commit on the Hub.
        make_splits: whether to cut a missing validation or test split, each a tenth, from the training images. Splits
            of the source are kept, including `test_query` and `test_gallery` of benchmarks.
        split_seed: seed of these splits.
        on_unreadable: "skip" leaves out the rows of a table whose image file is missing, instead of an error.
            `AttributeDataset.check_images` tells whether the images can be decoded.
        check_labels: whether each attribute must have two values, and one of them two images, as retrieval needs.

    Raises:
        ValueError: if a column is missing or contains no labels, a split is empty, or an attribute cannot be learned.
        FileNotFoundError: if `source` is neither a local folder nor on the Hub.
    """
    loaded = load_source(
        source,
        config_name,
        revision,
        image_column=image_column,
        reads_images=image_root is None,
        on_unreadable=on_unreadable,
    )
    splits = with_usual_names(loaded)
    image_column = find_image_column(splits, image_column)
    if image_root is not None:
        splits = with_images_of(splits, image_column, image_root)
    splits = DatasetDict({split: with_undecoded_images(rows, image_column) for split, rows in splits.items()})
    splits, coverage = leave_out_missing(splits, image_column)
    names = _attribute_names(splits, attributes, image_column, group_column)
    if group_column is not None:
        _check_present("group column", [group_column], splits)
    values = attributes if isinstance(attributes, Mapping) else {}
    splits, found = _to_schema(splits, names, values, image_column, group_column)
    uncut, given = splits, "train" if "train" in splits else next(iter(splits))
    if make_splits:
        splits = _complete_splits(splits, group_column, split_seed)
    if group_column is not None:
        _warn_of_shared_groups(splits, group_column)
    cut = tuple(split for split, dataset in splits.items() if dataset is not uncut.get(split))
    if given in coverage:  # a part of an incomplete split is incomplete
        coverage = dict.fromkeys(cut, coverage[given]) | coverage
    data = AttributeDataset(splits, found, group_column, coverage, cut_splits=cut)
    if check_labels:
        _check_labels(data)
    return data


def _features(splits: DatasetDict) -> Features:
    """The columns that are in all splits."""
    first, *others = splits.values()
    shared = set(first.column_names).intersection(*(dataset.column_names for dataset in others))
    return Features({column: feature for column, feature in first.features.items() if column in shared})


def _check_present(kind: str, names: Sequence[str], splits: DatasetDict) -> None:
    for split, dataset in splits.items():
        check_names(kind, names, column_places(dataset.features), f"in the split {split!r}: ")


def _attribute_names(
    splits: DatasetDict,
    attributes: Sequence[str] | Mapping[str, Sequence[str]] | None,
    image_column: str,
    group_column: str | None,
) -> list[str]:
    features = _features(splits)
    places = column_places(features)
    if isinstance(attributes, str):
        raise TypeError(f"attributes must be a list of names; got the string {attributes!r}, write [{attributes!r}]")
    labels = [column for column, feature in features.items() if isinstance(feature, ClassLabel)]
    names = labels if attributes is None else list(attributes)
    if attributes is None and not labels:
        names, choice = default_attributes(splits, features, {image_column, group_column} - {None})
        if names:
            logger.warning("no attributes were named, so %s. %s", choice, _CHOOSE)
    if not names:
        problem = "no column is a ClassLabel, so name the attributes" if attributes is None else "attributes is empty"
        candidates = [
            name for name, place in places.items() if is_label_feature(place.feature(features)) and name[:2] != "__"
        ]
        raise ValueError(f"{problem}; these columns could be attributes: {', '.join(candidates) or 'none'}. {_CHOOSE}")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"attributes contains more than once: {', '.join(twice)}")
    if image_column in names:
        raise ValueError(f"{image_column!r} is the image column; it cannot be an attribute too")
    _check_present("attribute column", names, splits)
    return names


def _to_schema(
    splits: DatasetDict, names: list[str], values: Mapping[str, Sequence[str]], image_column: str, groups: str | None
) -> tuple[DatasetDict, dict[str, list[str]]]:
    places = {split: column_places(dataset.features) for split, dataset in splits.items()}
    result = DatasetDict()
    for split, dataset in splits.items():
        dataset = dataset.with_format(None)
        if image_column != IMAGE_COLUMN:
            if IMAGE_COLUMN in dataset.column_names:
                raise ValueError(
                    f"image_column is {image_column!r}, but the source also has a column {IMAGE_COLUMN!r}; rename or "
                    "remove it"
                )
            dataset = dataset.rename_column(image_column, IMAGE_COLUMN)
        if groups is not None and groups not in dataset.column_names:
            dataset = dataset.add_column(groups, places[split][groups].read(dataset).to_pylist())
        result[split] = dataset
    attributes: dict[str, list[str]] = {}
    for name in names:
        labels, attributes[name] = encode_labels(
            name,
            {split: places[split][name].read(dataset) for split, dataset in splits.items()},
            {split: places[split][name].feature(dataset.features) for split, dataset in splits.items()},
            values.get(name),
        )
        for split, column in labels.items():
            result[split] = _with_labels(result[split], name, column, attributes[name])
    for split, dataset in result.items():
        others = [column for column in dataset.column_names if column not in (IMAGE_COLUMN, *names)]
        result[split] = dataset.select_columns([IMAGE_COLUMN, *names, *others])
    return result, attributes


def _with_labels(dataset: Dataset, name: str, labels: np.ndarray, values: list[str]) -> Dataset:
    feature = ClassLabel(names=values)
    if name in dataset.column_names:
        if dataset.features[name] == feature and np.array_equal(ColumnPlace(name).read(dataset).to_numpy(), labels):
            return dataset  # add_column would copy the images of a selection
        dataset = dataset.remove_columns(name)
    return dataset.add_column(name, labels, feature=feature)


def _check_labels(data: AttributeDataset) -> None:
    """An attribute needs two values, and a value with two images, or it has no triplet and no query."""
    where, splits = ("the training images", ["train"]) if "train" in data else ("this data set", list(data.splits))
    all_labels = np.concatenate([data.labels(split) for split in splits])
    for (attribute, names), labels in zip(data.attributes.items(), all_labels.T, strict=True):
        counts = np.bincount(labels[labels >= 0], minlength=len(names))
        if (counts > 0).sum() < 2:
            shown = ", ".join(repr(names[value]) for value in np.flatnonzero(counts).tolist()) or "no value at all"
            raise ValueError(
                f"the attribute {attribute!r} needs at least two values; in {where} it has {shown}. {_CHOOSE}"
            )
        if counts.max() < 2:
            raise ValueError(
                f"all {(counts > 0).sum()} values of the attribute {attribute!r} have one image in {where}: "
                f"nothing can be learned or retrieved. Is it an identifier or free text? {_CHOOSE}"
            )
    lines = []
    for split, of_split in data.summary().splits.items():
        if split.endswith(("_query", "_gallery")):
            continue  # queries are compared with the gallery, not with each other
        for attribute, found in of_split.attributes.items():
            if single := found.single_image_values:
                shown = ", ".join(single[:_SHOWN_VALUES]) + (", ..." if len(single) > _SHOWN_VALUES else "")
                lines.append(f"  {split}, {attribute}: {len(single)} of {found.values} ({shown})")
    if lines:
        logger.warning(
            "these values have one image in their split, and so no pair to learn from or to retrieve:\n%s",
            "\n".join(lines),
        )


def with_usual_names(splits: DatasetDict) -> DatasetDict:
    """Renames `val`, `valid` and `dev` to `validation`, and checks that queries and galleries come in pairs."""
    named = DatasetDict()
    for split, dataset in splits.items():
        usual = usual_split_name(split)
        named[split if usual in splits else usual] = dataset
    for held_out in HELD_OUT:
        pair = (f"{held_out}_query", f"{held_out}_gallery")
        present = [split for split in pair if split in named]
        if len(present) == 1:
            (absent,) = set(pair) - set(present)
            raise ValueError(f"the split {present[0]!r} needs a split {absent!r}; the splits are {', '.join(named)}")
    for split, dataset in named.items():
        if dataset.num_rows == 0:
            raise ValueError(f"the split {split!r} is empty; remove it from the source, or fill it")
    return named


def _complete_splits(splits: DatasetDict, group_column: str | None, seed: int) -> DatasetDict:
    """Cuts a missing validation or test split, each a tenth of the images, from the training images.

    A single split counts as training images, unless its name is validation or test. A source without training images
    is for evaluation, and is not changed. An image without a group is a group by itself.
    """
    missing = [held_out for held_out in HELD_OUT if held_out not in splits and f"{held_out}_query" not in splits]
    source = "train" if "train" in splits else next(iter(splits))
    if not missing or (source != "train" and (len(splits) > 1 or source in HELD_OUT)):
        return splits
    parts = _cut(splits[source], len(missing), group_column, seed)
    made = {"train": parts[0], **dict(zip(missing, parts[1:], strict=True))}
    shown = ", ".join(f"{name} ({part.num_rows:,} images)" for name, part in made.items())
    text = "the source has no %s split: made %s from %r (seed %d, groups kept together)"
    logger.warning(text, " or ".join(missing), shown, source, seed)
    others = {split: dataset for split, dataset in splits.items() if split != source}
    order = ("train", *HELD_OUT, *others)
    return DatasetDict(sorted({**made, **others}.items(), key=lambda item: order.index(item[0])))


def _warn_of_shared_groups(splits: DatasetDict, group_column: str) -> None:
    """Warns of near copies of training images in other splits: they make results look better than they are."""
    if "train" not in splits:
        return
    groups = group_codes(splits, group_column)
    for split, split_groups in groups.items():
        shared = int((np.isin(split_groups, groups["train"]) & (split_groups >= 0)).sum())
        if split != "train" and shared:
            text = "%d of %d images of the split %r share their %r with training images"
            logger.warning(text, shared, len(split_groups), split, group_column)


def _cut(dataset: Dataset, held_out: int, group_column: str | None, seed: int) -> list[Dataset]:
    """The remaining training images, then `held_out` parts, all in the order of the source."""
    rows = dataset.num_rows
    groups = np.arange(rows)
    if group_column is not None:
        codes = group_codes({"source": dataset}, group_column)["source"]
        groups = np.where(codes >= 0, codes, -1 - groups)
    _, groups = np.unique(groups, return_inverse=True)
    sizes = np.bincount(groups)
    if len(sizes) <= held_out:
        raise ValueError(
            f"{rows} image(s) in {len(sizes)} group(s) cannot be cut into {held_out + 1} splits; add images, or add "
            "splits to the source"
        )
    part_of_group = np.zeros(len(sizes), dtype=np.int64)
    left = np.random.default_rng(seed).permutation(len(sizes))
    wanted = round(_SHARE * rows)
    for part in range(1, held_out + 1):
        small_enough = left[sizes[left] <= wanted]
        chosen = small_enough[np.cumsum(sizes[small_enough]) <= wanted]
        chosen = chosen[: len(left) - 1 - (held_out - part)]  # the following parts need groups too
        if not len(chosen):  # few images, or only large groups
            chosen = left[[np.argmin(sizes[left])]]
        part_of_group[chosen] = part
        left = left[part_of_group[left] == 0]
    return [dataset.select(np.flatnonzero(part_of_group[groups] == part)) for part in range(held_out + 1)]
