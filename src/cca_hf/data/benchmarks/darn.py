"""DARN: nine attributes of clothes from online shops, labelled by ASEN's split files alone.

The pictures are a list of addresses, "<folder>/<name> <url>", of which many are dead by now: `download.py` saves those
that are left as `pic/<folder>/<name>.jpg`. The names of the values were never published with the splits: they are
called by their numbers.

Paper: Huang et al., Cross-domain Image Retrieval with a Dual Attribute-aware Ranking Network, ICCV 2015.
"""

from os import PathLike
from pathlib import Path

from datasets import DatasetDict

from .annotations import Benchmark, to_dataset
from .asen import EVALUATION_SPLITS, AsenSplits

URLS = "the list of addresses darn_url.txt, linked from https://github.com/Maryeon/asenpp"
SOURCE = f"{URLS}; 'cca data download darn' fetches them"


def load_darn(root: str | PathLike[str], asen_splits: str | PathLike[str] | None) -> Benchmark:
    """Reads ASEN's splits of DARN, the only ones there are.

    Args:
        root: the folder that holds `pic/`.
        asen_splits: the folder with ASEN's `meta.json`.

    Raises:
        FileNotFoundError: naming the file that is missing, and where it comes from.
        ValueError: naming a line that is not as it should be, or without `asen_splits`.
    """
    if asen_splits is None:
        raise ValueError("DARN has no labels but those in ASEN's split files: name their folder (asen_splits)")
    asen = AsenSplits(asen_splits, "DARN")
    # "clothes color" -> "clothes_color": a column that can be typed
    attributes = {name.replace(" ", "_"): [str(value) for value in range(n)] for name, n in asen.num_values.items()}
    splits = {split: asen.evaluation(split) for split in EVALUATION_SPLITS}
    remarks = ["The values have numbers for names: DARN's own were not published with the splits."]
    if asen.has_training_images():
        splits = {"train": asen.annotations("label_train.txt", "train"), **splits}
    else:
        remarks.append("There are no training images: filenames_train.txt or label_train.txt is missing.")
    return Benchmark(
        "DARN",
        SOURCE,
        DatasetDict({split: to_dataset(rows, attributes, Path(root)) for split, rows in splits.items()}),
        remarks,
    )
