"""`cca label`: fills missing labels of a data set with the values that a model recognises."""

from pathlib import Path

from . import options
from .options import option, stdout_kept_clean, switch


def label(
    model: str = options.MODEL,
    dataset: str = options.DATASET,
    output: Path = option(
        ..., "PATH", "A new .csv or .parquet file without the images, or a new folder: a data set with the images."
    ),
    attributes: list[str] | None = options.ATTRIBUTES,
    split: str | None = option(None, "NAME", "Split to label. Default: all splits."),
    label_all: bool = switch("all", "Also propose values for images that have a label, to check the labels."),
    image_column: str | None = options.IMAGE_COLUMN,
    config_name: str | None = option(None, "NAME", "Configuration of the data set."),
    on_unreadable: options.OnUnreadable = options.ON_UNREADABLE,
    batch_size: int = options.batch_size(64),
    num_workers: int | None = options.NUM_WORKERS,
    device: str | None = options.DEVICE,
) -> None:
    """Propose values for the images of a data set that have no label.

    The model is one of 'cca train recognise'. Given labels do not change: the column NAME_proposed has the value that
    the model recognises, and NAME_probability its probability. A value is empty if it is unknown, because its
    probability is below the threshold of the model. The data set need not have the columns of the attributes.

    \b
    Examples:
      cca label --model out --dataset shoes/ --output labelled.csv
      cca label --model me/clear-shoes --dataset me/shoes --attributes colour --output labelled
      cca label --model out --dataset shoes.csv --all --output check.parquet
    """
    with stdout_kept_clean():
        from cca_hf.models.loading import load_recogniser
        from cca_hf.recipes.labelling import check_output, label_dataset

        check_output(output)
        labelled = label_dataset(
            load_recogniser(model, device),
            dataset,
            attributes,
            split=split,
            image_column=image_column,
            config_name=config_name,
            on_unreadable=on_unreadable,
            label_all=label_all,
            batch_size=batch_size,
            num_workers=num_workers,
        )
        labelled.save(output)
    print(options.printable(labelled.table()))
    print(f"written: {output}")
