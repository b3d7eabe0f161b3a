"""The data set of a classification: images with one label column, and what a classifier needs of its classes."""

import logging

import numpy as np
from datasets import DatasetDict, Features

from cca_hf.data.columns import check_names, column_places, encode_labels, is_label_feature
from cca_hf.data.default_attributes import default_attributes
from cca_hf.data.loading import load_attribute_dataset, with_usual_names
from cca_hf.data.schema import AttributeDataset
from cca_hf.data.sources import load_source

from .classification_arguments import ClassificationArguments

logger = logging.getLogger(__name__)

_DEFAULT = "label"
_SHOWN = 5


def load_classes(args: ClassificationArguments) -> AttributeDataset:
    """The data set with its label column as the only attribute, after every image has been decoded once as a check.

    Raises:
        ValueError: if the label column does not exist or is not clear, if the training images have fewer than two
            classes, if a split has a class that they lack, or see `load_attribute_dataset`.
        UnreadableImageError: names the images that cannot be read, unless they are to be skipped.
    """
    splits = with_usual_names(
        load_source(
            args.dataset,
            args.dataset_config,
            args.dataset_revision,
            image_column=args.image_column,
            on_unreadable=args.on_unreadable,
        )
    )
    column = find_label_column(splits, args.label_column, {args.image_column, args.group_column})
    places = {name: column_places(rows.features)[column] for name, rows in splits.items()}
    labels, classes = encode_labels(
        column,
        {name: places[name].read(rows) for name, rows in splits.items()},
        {name: places[name].feature(rows.features) for name, rows in splits.items()},
    )
    train = "train" if "train" in splits else next(iter(splits))
    _check_classes(column, classes, labels[train])
    data = load_attribute_dataset(
        splits,
        {column: classes},
        group_column=args.group_column,
        image_column=args.image_column,
        split_seed=args.split_seed,
    )
    _check_splits(data)
    return data.check_images(args.on_unreadable)


def find_label_column(splits: DatasetDict, name: str | None, others: set[str | None]) -> str:
    """The column with the classes: the one that is named, or `label`, or the only one that can be it.

    Args:
        others: columns of another use.

    Raises:
        ValueError: if it does not exist, or several columns can be it; the message names them.
    """
    if name is not None:
        for split, rows in splits.items():
            check_names("label column", [name], column_places(rows.features), f"in the split {split!r}: ")
        return name
    features = _shared(splits)
    if _DEFAULT in features and is_label_feature(features[_DEFAULT]):
        return _DEFAULT
    candidates, _ = default_attributes(splits, features, others)
    if len(candidates) != 1:
        found = (
            f"several columns can be it: {', '.join(candidates)}" if candidates else f"the columns are {[*features]}"
        )
        raise ValueError(
            f"which column has the classes? There is no column {_DEFAULT!r}; {found}. Give --label_column"
        )
    return candidates[0]


def _shared(splits: DatasetDict) -> Features:
    """The columns that are in all splits."""
    first, *others = splits.values()
    return Features(
        {name: kind for name, kind in first.features.items() if all(name in each.features for each in others)}
    )


def _check_classes(column: str, classes: list[str], labels: np.ndarray) -> None:
    counts = np.bincount(labels[labels >= 0], minlength=len(classes))
    present = np.flatnonzero(counts).tolist()
    if len(present) < 2:
        found = f"one class, {classes[present[0]]!r}" if present else "no class"
        raise ValueError(
            f"a classifier needs two classes, and the training images have {found} in the column {column!r}. Give "
            "another --label_column"
        )
    if counts.max() < 2:
        raise ValueError(
            f"all {len(present)} classes in the column {column!r} have one training image: a classifier cannot be "
            "tested. Is it an identifier or free text? Give another --label_column"
        )


def _check_splits(data: AttributeDataset) -> None:
    """A class that no training image has cannot be predicted."""
    ((column, classes),) = data.attributes.items()
    known = np.unique(data.labels("train"))
    for split in data.splits:
        labels = data.labels(split)[:, 0]
        new = np.setdiff1d(labels[labels >= 0], known)
        if not len(new):
            continue
        more = f" and {len(new) - _SHOWN} more" if len(new) > _SHOWN else ""
        named = ", ".join(repr(classes[place]) for place in new[:_SHOWN]) + more
        count = int(np.isin(labels, new).sum())
        if split not in data.cut_splits:
            raise ValueError(
                f"{count} images of the split {split!r} are of classes that no training image has in the column "
                f"{column!r}: {named}. Move some of them into the training split, or leave them out"
            )
        logger.warning(
            "all images of these classes are in the split %r, which was cut from the training images, so the model "
            "cannot learn them: %s. Add images of them, or make the splits yourself",
            split,
            named,
        )
