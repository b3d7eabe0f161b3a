"""DARN: nine attributes of clothes from online shops. The labels are in ASEN's split files only.

The images are a list of URLs, "<folder>/<name> <url>", many of them dead: `download.py` saves the remaining images as
`pic/<folder>/<name>.jpg`. The names of the values were not published with the splits: their numbers are used as names.

Paper: Huang et al., Cross-domain Image Retrieval with a Dual Attribute-aware Ranking Network, ICCV 2015.
"""

from os import PathLike
from pathlib import Path

from .annotations import Benchmark, to_splits
from .asen import EVALUATION_SPLITS, AsenSplits

URLS = "the list of URLs darn_url.txt, linked from https://github.com/Maryeon/asenpp"
SOURCE = f"{URLS}; 'cca data download darn' downloads the images"


def load_darn(root: str | PathLike[str], asen_splits: str | PathLike[str] | None) -> Benchmark:
    """Reads ASEN's splits of DARN. DARN has no other splits.

    Args:
        root: the folder that contains `pic/`.
        asen_splits: the folder with ASEN's `meta.json`.
    """
    if asen_splits is None:
        raise ValueError("the labels of DARN are in ASEN's split files: give their folder as asen_splits")
    asen = AsenSplits(asen_splits, "DARN")
    # "clothes color" -> "clothes_color": easier to type in a command
    attributes = {name.replace(" ", "_"): [str(value) for value in range(n)] for name, n in asen.num_values.items()}
    splits = {split: asen.evaluation(split) for split in EVALUATION_SPLITS}
    remarks = ["The names of the values are numbers: DARN's own names were not published with the splits."]
    training = asen.training()
    if training is None:
        remarks.append("There are no training images: filenames_train.txt or label_train.txt is missing.")
    else:
        splits = {"train": training, **splits}
    return Benchmark("DARN", SOURCE, to_splits(splits, attributes, Path(root)), remarks)
