"""Fills missing labels of a data set with the values that a model recognises, beside the given ones."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas
from datasets import ClassLabel, Dataset, DatasetDict, LargeList, List, Value, concatenate_datasets
from transformers.utils.logging import tqdm

from cca_hf.data.columns import ColumnPlace, check_names
from cca_hf.data.coverage import FILE_NAME_COLUMN, rows_with_image
from cca_hf.data.image_column import IMAGE_COLUMN, find_image_column, with_undecoded_images
from cca_hf.data.parquet_files import write_split
from cca_hf.data.recognition import is_labelled
from cca_hf.data.sources import Source, load_source
from cca_hf.evaluation.text_table import Table
from cca_hf.models.attribute_recognition import Prediction
from cca_hf.models.whole_files import check_new, staged

PROPOSED, PROBABILITY = "_proposed", "_probability"
_TABLES = (".csv", ".parquet")
_NAMED = 5
_SPLIT = "split"


@dataclass
class AttributeCounts:
    """How many images of a data set have a label of an attribute, and what a model says about the others."""

    given: int = 0
    proposed: int = 0
    unknown: int = 0


@dataclass(frozen=True)
class LabelledDataset:
    """A data set with proposals.

    Args:
        splits: all columns of the source; the images are in `image`. For each attribute, `<attribute>_proposed` has a
            value or a list of values, or None; `<attribute>_probability` has its probability.
        counts: by attribute, over all splits.
        unknown: names of images with an unknown value, in order.
        unreadable: image -> why it could not be read.
    """

    splits: DatasetDict
    counts: dict[str, AttributeCounts]
    unknown: list[str] = field(default_factory=list)
    unreadable: dict[str, str] = field(default_factory=dict)

    def table(self) -> str:
        """The counts, and the names of the first images with an unknown value, or that cannot be read."""
        rows = [
            [name, f"{each.given:,}", f"{each.proposed:,}", f"{each.unknown:,}"] for name, each in self.counts.items()
        ]
        notes = []
        for title, names in (("an unknown value", self.unknown), ("no readable file", [*self.unreadable])):
            if names:
                more = ", ..." if len(names) > _NAMED else ""
                notes.append(f"{len(names):,} images with {title}: {', '.join(names[:_NAMED])}{more}")
        return Table(["attribute", "labelled", "proposed", "unknown"], [rows], notes).text()

    def save(self, output: Path) -> Path:
        """Writes a CSV file or a parquet file without the images, or a new folder: a data set with the images.

        A table has the column `split` if there are several splits. Its column `file_name` names the images.

        Raises:
            FileExistsError: if `output` exists, and is not an empty folder.
        """
        check_output(output)
        if output.suffix not in _TABLES:
            with staged(output) as folder:
                for split, rows in self.splits.items():
                    write_split(rows, folder / "data", split)
            return output
        table = _as_table(self.splits)
        with staged(output.parent) as folder:
            if output.suffix == ".csv":
                cells = {name: _as_text(table[name][:], feature) for name, feature in table.features.items()}
                pandas.DataFrame(cells).to_csv(folder / output.name, index=False)
            else:
                table.to_parquet(str(folder / output.name))
        return output


def check_output(output: Path) -> None:
    """Raises `FileExistsError` if a file or a folder with files is in the way."""
    if output.suffix in _TABLES and output.exists():
        raise FileExistsError(f"{output} exists already; choose a new file")
    check_new(output)


def label_dataset(
    model: Any,
    source: Source,
    attributes: Sequence[str] | None = None,
    *,
    split: str | None = None,
    image_column: str | None = None,
    config_name: str | None = None,
    on_unreadable: Literal["error", "skip"] = "error",
    label_all: bool = False,
    batch_size: int = 64,
    num_workers: int | None = None,
) -> LabelledDataset:
    """Proposes values for the images that have no label.

    Args:
        model: an [`AttributeRecogniser`].
        source: any source of `load_attribute_dataset`. It need not have columns of the attributes.
        attributes: default: all of the model's.
        split: default: all splits.
        on_unreadable: "skip" makes no proposals for images that cannot be read, and reports these images.
        label_all: also propose values for images that have a label.

    Raises:
        ValueError: for an unknown attribute (the message has the closest name) or split, or a data set that has
            columns of proposals already.
        UnreadableImageError: names an image that cannot be read, unless they are to be skipped.
    """
    names = [model.config.attributes[index] for index in model.config.attribute_ids(attributes)]
    given = load_source(source, config_name, None, image_column=image_column, on_unreadable=on_unreadable)
    if split is not None:
        check_names("split", [split], given)
        given = DatasetDict({split: given[split]})
    column = find_image_column(given, image_column)
    result = LabelledDataset(DatasetDict(), {name: AttributeCounts() for name in names})
    reading: dict[str, Any] = {"batch_size": batch_size, "num_workers": num_workers, "on_unreadable": on_unreadable}
    for name_of_split, rows in given.items():
        _check_columns(rows, name_of_split, names)
        rows = with_undecoded_images(rows.with_format(None), column)
        rows = rows if column == IMAGE_COLUMN else rows.rename_column(column, IMAGE_COLUMN)
        labelled = {name: is_labelled(rows, name) for name in names}
        wanted = np.arange(rows.num_rows)
        if not label_all:
            wanted = np.flatnonzero(~np.all([*labelled.values()], axis=0))
        predicted, unreadable = _predict(model, rows, wanted, names, name_of_split, reading)
        file_names = _names_of_images(rows, name_of_split)
        result.unreadable.update({file_names[row]: reason for row, reason in unreadable.items()})
        unknown: set[int] = set()
        for name in names:
            proposed = {
                row: prediction[name] for row, prediction in predicted.items() if label_all or not labelled[name][row]
            }
            without = {row for row, prediction in proposed.items() if prediction.value is None}
            unknown |= without
            counts = result.counts[name]
            counts.given += int(labelled[name].sum())
            counts.unknown += len(without)
            counts.proposed += len(proposed) - len(without)
            rows = _with_proposals(rows, name, proposed, several=model.config.kind_of(name) == "multiple")
        result.unknown.extend(file_names[row] for row in sorted(unknown))
        result.splits[name_of_split] = rows
    return result


def _check_columns(rows: Dataset, split: str, names: Sequence[str]) -> None:
    taken = {f"{name}{ending}" for name in names for ending in (PROPOSED, PROBABILITY)} & {*rows.column_names}
    if taken:
        raise ValueError(
            f"the split {split!r} already has the column {min(taken)!r}: rename or remove it, so that nothing is lost"
        )


def _predict(
    model: Any, rows: Dataset, wanted: np.ndarray, names: Sequence[str], split: str, reading: Mapping[str, Any]
) -> tuple[dict[int, dict[str, Prediction]], dict[int, str]]:
    """Row -> its predictions, and row -> why its image cannot be read."""
    present = np.intersect1d(wanted, rows_with_image(rows, IMAGE_COLUMN))
    unreadable = dict.fromkeys(np.setdiff1d(wanted, present).tolist(), "the row has no image")
    predicted: dict[int, dict[str, Prediction]] = {}
    images = rows.select_columns([IMAGE_COLUMN]).select(present)[IMAGE_COLUMN]
    with tqdm(total=len(present), desc=f"Recognising {split}", unit=" images") as progress:
        for batch in model.predict_batches(images, names, **reading):
            found = zip(batch.rows, batch.predictions, strict=True)
            predicted |= {int(present[place]): prediction for place, prediction in found}
            unreadable |= {int(present[place]): str(error) for place, error in batch.unreadable.items()}
            progress.update(len(batch.rows) + len(batch.unreadable))
    return predicted, unreadable


def _with_proposals(rows: Dataset, name: str, proposed: Mapping[int, Prediction], *, several: bool) -> Dataset:
    values: list[Any] = [None] * rows.num_rows
    probabilities: list[float | None] = [None] * rows.num_rows
    for row, prediction in proposed.items():
        values[row], probabilities[row] = prediction.value, prediction.probability
    text = Value("string")
    rows = rows.add_column(f"{name}{PROPOSED}", values, feature=List(text) if several else text)
    return rows.add_column(f"{name}{PROBABILITY}", probabilities, feature=Value("float64"))


def _names_of_images(rows: Dataset, split: str) -> list[str]:
    """The column `file_name`, or the name of the file, or the split and the row."""
    if FILE_NAME_COLUMN in rows.column_names:
        names = rows[FILE_NAME_COLUMN][:]
    else:
        paths = ColumnPlace(IMAGE_COLUMN, "path").read(rows).to_pylist()
        names = [None if path is None else Path(path).name for path in paths]
    return [f"{split}[{row}]" if name is None else str(name) for row, name in enumerate(names)]


def _as_table(splits: DatasetDict) -> Dataset:
    """All rows without the images, with the names of the images and, of several splits, those of the splits."""
    tables = []
    for split, rows in splits.items():
        names = _names_of_images(rows, split)
        rows = rows.remove_columns([IMAGE_COLUMN, *({FILE_NAME_COLUMN} & {*rows.column_names})])
        rows = rows.add_column(FILE_NAME_COLUMN, names)
        if len(splits) > 1:
            rows = rows.add_column(_SPLIT, [split] * rows.num_rows)
        others = [name for name in rows.column_names if name != FILE_NAME_COLUMN]
        tables.append(rows.select_columns([FILE_NAME_COLUMN, *others]))
    return concatenate_datasets(tables)


def _as_text(values: Sequence[Any], feature: Any) -> list[Any]:
    """The cells of a CSV file: names of values, and a list as `red|blue`."""
    if isinstance(feature, ClassLabel):
        return [None if value is None or value < 0 else feature.int2str(value) for value in values]
    if isinstance(feature, List | LargeList):
        lists = (None if value is None else _as_text(value, feature.feature) for value in values)
        return [None if each is None else "|".join(map(str, each)) for each in lists]
    return list(values)
