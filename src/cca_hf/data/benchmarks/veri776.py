"""VeRi-776: vehicles in the images of 20 cameras, in files whose names are the labels.

    VeRi/image_train/0001_c001_00016450_0.jpg     vehicle 0001, camera 1
    VeRi/image_query/0002_c002_00030600_0.jpg
    VeRi/image_test/0002_c002_00030605_1.jpg

The three folders are the splits `train`, `test_query` and `test_gallery`. The columns are `identity` and `camera`.
Colours and types of the vehicles (train_label.xml) are not read.

Paper: Liu, Liu, Mei, Ma, A Deep Learning-Based Approach to Progressive Vehicle Re-identification for Urban
Surveillance, ECCV 2016.
"""

from os import PathLike

from .annotations import Benchmark
from .cameras import load_folders

SOURCE = "VeRi-776, whose authors give it to researchers: https://github.com/JDAI-CV/VeRidataset"
_FOLDERS = {"train": "image_train", "test_query": "image_query", "test_gallery": "image_test"}


def load_veri776(root: str | PathLike[str]) -> Benchmark:
    """Reads the three folders; see `load_folders` for arguments and errors."""
    return load_folders(root, "VeRi-776", SOURCE, _FOLDERS)
