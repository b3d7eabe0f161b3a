"""MSMT17: persons in the images of 15 cameras, with lists of files.

    MSMT17_V1/list_train.txt      0000/0000_000_01_0303morning_0015_0.jpg 0      person 0, camera 01
    MSMT17_V1/list_val.txt        further images of the training persons
    MSMT17_V1/list_query.txt, list_gallery.txt
    MSMT17_V1/train/0000/0000_000_01_0303morning_0015_0.jpg
    MSMT17_V1/test/0000/0000_000_01_0303morning_0008_0.jpg

The folders of the second version are `mask_train_v2` and `mask_test_v2`. The splits are `train` (with list_val.txt),
`test_query` and `test_gallery`. The columns are `identity` and `camera`. Training and test persons are numbered
separately, so a test person is called test_0000.

Paper: Wei, Zhang, Gao, Tian, Person Transfer GAN to Bridge Domain Gap for Person Re-identification, CVPR 2018.
"""

from collections.abc import Iterator
from os import PathLike
from pathlib import Path

from .annotations import Benchmark, existing, find_file, read_lines
from .cameras import Sighting, make_benchmark

SOURCE = "MSMT17, whose authors give it to researchers: https://www.pkuvmc.com/dataset.html"
# split -> its lists, and the folders of the two versions
_LISTS = {
    "train": (("list_train.txt", "list_val.txt"), ("train", "mask_train_v2")),
    "test_query": (("list_query.txt",), ("test", "mask_test_v2")),
    "test_gallery": (("list_gallery.txt",), ("test", "mask_test_v2")),
}


def load_msmt17(root: str | PathLike[str]) -> Benchmark:
    """Reads the lists of MSMT17.

    Args:
        root: the folder with `list_train.txt`, or a folder that contains it.

    Raises:
        FileNotFoundError: if a list or the folder of its images is missing; names its origin.
        ValueError: for a line of another form; names the file and the line.
    """
    root = Path(root)
    found = find_file(root, "list_train.txt")
    if not found:
        raise FileNotFoundError(f"there is no list_train.txt in {root} or its subfolders; it comes with {SOURCE}")
    base = found[0].parent
    splits: dict[str, list[Sighting]] = {}
    for split, (lists, folders) in _LISTS.items():
        present = [folder for folder in folders if (base / folder).is_dir()]
        if not present:
            raise FileNotFoundError(f"there is no folder {' or '.join(folders)} in {base}; it comes with {SOURCE}")
        folder = (base / present[0]).relative_to(root).as_posix()
        prefix = "" if split == "train" else "test_"
        splits[split] = [each for name in lists for each in _read(base / name, folder, prefix)]
    return make_benchmark("MSMT17", SOURCE, root, splits)


def _read(path: Path, folder: str, prefix: str) -> Iterator[Sighting]:
    for number, line in enumerate(read_lines(existing(path, SOURCE)), start=1):
        name, _, identity = line.partition(" ")
        parts = name.rpartition("/")[2].split("_")
        if len(parts) < 3 or not parts[2].isdecimal() or not identity.strip().isdecimal():
            raise ValueError(
                f"{path}, line {number}: expected '0000/0000_000_01_0303morning_0015_0.jpg 0', <person>_<number>_"
                f"<camera>_... and the person; got {line!r:.100}"
            )
        yield Sighting(f"{folder}/{name}", f"{prefix}{int(identity):04}", int(parts[2]))
