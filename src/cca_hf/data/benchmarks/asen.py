"""Reads the split files of ASEN, which all later papers on FashionAI, DARN and DeepFashion use.

    meta.json                                  {"FashionAI": {"ATTRIBUTES": [...], "ATTRIBUTES_NUM": {name: n}}, ...}
    <name>/filenames_{train,valid,test}.txt    one image path a line
    <name>/label_train.txt                     "fid attribute value [attribute value ...]"
    <name>/{query,candidate}_{valid,test}.txt  "fid attribute value"

`fid` is the 0-based line of the file names; attribute and value are 0-based ids. Some files end their lines with CR
LF, some lack the last newline.

The labels of DARN (nine attributes of clothes from online shops) are in these files only. Its images are a list of
URLs, "<folder>/<name> <url>", many of them dead; `download.py` saves the other images as `pic/<folder>/<name>.jpg`.

Papers: Ma et al., Fine-Grained Fashion Similarity Learning by Attribute-Specific Embedding Network, AAAI 2020; Huang
et al., Cross-domain Image Retrieval with a Dual Attribute-aware Ranking Network, ICCV 2015.
"""

import json
from os import PathLike
from pathlib import Path

from .annotations import Annotations, Benchmark, Pairs, existing, read_lines, to_splits

SOURCE = "ASEN's split files: data.zip, linked from https://github.com/Maryeon/asenpp"
DARN_URLS = "the list of URLs darn_url.txt, linked from https://github.com/Maryeon/asenpp"
DARN_SOURCE = f"{DARN_URLS}; 'cca data download darn' downloads the images"

# our split -> (file with its rows, part whose file names they refer to)
EVALUATION_SPLITS = {
    "validation_query": ("query_valid.txt", "valid"),
    "validation_gallery": ("candidate_valid.txt", "valid"),
    "test_query": ("query_test.txt", "test"),
    "test_gallery": ("candidate_test.txt", "test"),
}


class AsenSplits:
    """The split files of the benchmark `name`, in a folder with `meta.json`."""

    def __init__(self, folder: str | PathLike[str], name: str) -> None:
        self.folder = Path(folder) / name
        meta_file = existing(Path(folder) / "meta.json", SOURCE)
        meta = json.loads(meta_file.read_text(encoding="utf-8"))
        if name not in meta:
            raise ValueError(f"{meta_file} describes {', '.join(meta)}, not {name}")
        # attribute -> number of values, in the order of the ids
        numbers = meta[name]["ATTRIBUTES_NUM"]
        self.num_values = {attribute: int(numbers[attribute]) for attribute in meta[name]["ATTRIBUTES"]}

    def file_names(self, part: str) -> list[str]:
        """The images of `train`, `valid` or `test`, by fid."""
        return read_lines(existing(self.folder / f"filenames_{part}.txt", SOURCE))

    def rows(self, file: str, part: str) -> dict[int, Pairs]:
        """fid -> labels, in the order of the file. An image may have several lines."""
        path, num_images = self.folder / file, len(self.file_names(part))
        rows: dict[int, Pairs] = {}
        for number, fid, pairs in self._parsed(path):
            if fid >= num_images:
                raise ValueError(
                    f"{path}, line {number}: image {fid}, but filenames_{part}.txt has {num_images} names (from 0)"
                )
            rows.setdefault(fid, []).extend(pairs)
        return rows

    def evaluation(self, split: str) -> Annotations:
        """The rows of `validation_query`, `validation_gallery`, `test_query` or `test_gallery`."""
        return self._annotations(*EVALUATION_SPLITS[split])

    def training(self) -> Annotations | None:
        """The training images; None without their names, which some copies of the published files lack."""
        if not all((self.folder / file).is_file() for file in ("filenames_train.txt", "label_train.txt")):
            return None
        return self._annotations("label_train.txt", "train")

    def training_pairs(self) -> list[Pairs] | None:
        """The training labels, with or without known file names; None if the file is missing."""
        path = self.folder / "label_train.txt"
        return [pairs for _, _, pairs in self._parsed(path)] if path.is_file() else None

    def _annotations(self, file: str, part: str) -> Annotations:
        names, rows = self.file_names(part), self.rows(file, part)
        return Annotations([names[fid] for fid in rows], list(rows.values()))

    def _parsed(self, path: Path) -> list[tuple[int, int, Pairs]]:
        """(line, fid, pairs), checked."""
        counts = list(self.num_values.values())
        parsed = []
        for number, line in enumerate(read_lines(existing(path, SOURCE)), start=1):
            if not line:
                continue
            try:
                fid, *numbers = map(int, line.split())
            except ValueError:
                fid, numbers = -1, []
            pairs = list(zip(numbers[::2], numbers[1::2], strict=False))
            known = all(0 <= a < len(counts) and 0 <= value < counts[a] for a, value in pairs)
            if fid < 0 or not pairs or len(numbers) % 2 or not known:
                raise ValueError(
                    f"{path}, line {number}: expected 'fid attribute value' with attributes 0 to {len(counts) - 1}, "
                    f"which have {', '.join(map(str, counts))} values; got {line!r}"
                )
            parsed.append((number, fid, pairs))
        return parsed


def load_darn(root: str | PathLike[str], asen_splits: str | PathLike[str] | None) -> Benchmark:
    """Reads ASEN's splits of DARN, with numbers as names of the values: DARN's own names were not published with them.

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
    return Benchmark("DARN", DARN_SOURCE, to_splits(splits, attributes, Path(root)), remarks)
