"""Polyvore Outfits: items of clothing, and the outfits that users of Polyvore put together, in two divisions.

    polyvore_item_metadata.json              item -> {"semantic_category", "category_id", "title", ...}
    categories.csv                           "<category_id>,<fine category>,<semantic category>", no header
    images/<item>.jpg
    disjoint/, nondisjoint/                  no item is in two splits; items may be in several splits
      {train,valid,test}.json                [{"set_id": "7", "items": [{"item_id": "123", "index": 1}]}]
      fill_in_blank_{train,valid,test}.json  [{"question": ["7_1"], "blank_position": 2, "answers": ["7_2", "9_1"]}]
      compatibility_{train,valid,test}.txt   "<1 or 0> 7_1 9_1 ...", 1: an outfit of a user

`7_1` is the item with the index 1 in the set 7 of the same split. The right answer is the one in the set of the
question. The items become one data set with the columns `id`, `category` (the 11 semantic ones), `fine_category` and
`title`; the outfits and questions become the JSON files that `load_outfits` reads.

Paper: Vasileva et al., Learning Type-Aware Embeddings for Fashion Compatibility, ECCV 2018.
"""

import csv
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict

from cca_hf.data.outfit_loading import COMPATIBILITY_FOLDER, ITEMS_COLUMN, OUTFIT_COLUMN, QUESTIONS_FOLDER, read_json
from cca_hf.data.outfits import CATEGORY_COLUMN, ID_COLUMN, unknown_item_message

from .annotations import Annotations, Benchmark, existing, to_dataset

SOURCE = "Polyvore Outfits, https://github.com/mvasil/fashion-compatibility"
ITEMS_SPLIT = "items"
FINE_CATEGORY = "fine_category"
DIVISIONS = ("disjoint", "nondisjoint")
_SPLIT_OF_PART = {"train": "train", "valid": "validation", "test": "test"}
_METADATA = "polyvore_item_metadata.json"


def load_polyvore(root: str | PathLike[str]) -> Benchmark:
    """Reads the items and the outfits of both divisions, or of the one that is there.

    Args:
        root: the folder with `polyvore_item_metadata.json`, `images/`, `disjoint/` and `nondisjoint/`.

    Raises:
        FileNotFoundError: if a file is missing; names its origin.
        ValueError: for a file that is not complete, an unknown item, or a question without its right answer; names the
            file and the place.
    """
    root = Path(root)
    metadata = _object(existing(root / _METADATA, SOURCE))
    items = _items(root, metadata)
    files: dict[str, Any] = {}
    remarks = []
    for division in DIVISIONS:
        if (root / division).is_dir():
            outfits = _division(root / division, metadata)
            files |= {f"{division}/{name}": content for name, content in outfits.items()}
            counts = (f"{len(outfits[f'{split}.json']):,} {split}" for split in _SPLIT_OF_PART.values())
            remarks.append(
                f"Outfits, {division}: {', '.join(counts)}. Read by load_outfits(<this folder>, {division}/)."
            )
    if not files:
        raise FileNotFoundError(f"{root} contains neither disjoint/ nor nondisjoint/; they come with {SOURCE}")
    return Benchmark("Polyvore Outfits", SOURCE, DatasetDict({ITEMS_SPLIT: items}), remarks, files=files)


def _items(root: Path, metadata: Mapping[str, Any]) -> Dataset:
    fine_names = _fine_names(root / "categories.csv")
    ids = list(metadata)
    for item in ids:
        if not isinstance(metadata[item], dict):
            raise ValueError(f"{root / _METADATA}, item {item}: expected an object, got {metadata[item]!r:.80}")
    coarse = [str(metadata[item].get("semantic_category") or "") for item in ids]
    numbers = [str(metadata[item].get("category_id") or "") for item in ids]
    fine = [fine_names.get(number, number) for number in numbers]
    values = {CATEGORY_COLUMN: sorted(set(coarse) - {""}), FINE_CATEGORY: sorted(set(fine) - {""})}
    places = [{value: place for place, value in enumerate(names)} for names in values.values()]
    pairs = [
        [(column, places[column][value]) for column, value in enumerate(labels) if value]
        for labels in zip(coarse, fine, strict=True)
    ]
    dataset = to_dataset(Annotations([f"images/{item}.jpg" for item in ids], pairs), values, root)
    titles = [str(metadata[item].get("title") or metadata[item].get("url_name") or "") for item in ids]
    return dataset.add_column(ID_COLUMN, ids).add_column("title", titles)


def _fine_names(path: Path) -> dict[str, str]:
    """category_id -> name; a name that several have is followed by the id. Empty without the file."""
    if not path.is_file():
        return {}
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = [row for row in csv.reader(file) if row]
    for number, row in enumerate(rows, start=1):
        if len(row) < 3:
            raise ValueError(
                f"{path}, row {number}: expected '<id>,<fine category>,<category>', got {','.join(row)!r}"
            )
    counts = Counter(row[1].strip() for row in rows)
    return {
        row[0].strip(): row[1].strip() if counts[row[1].strip()] == 1 else f"{row[1].strip()} ({row[0].strip()})"
        for row in rows
    }


def _division(folder: Path, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The contents of the files that `load_outfits` reads, by their names."""
    files: dict[str, Any] = {}
    for part, split in _SPLIT_OF_PART.items():
        outfits, items = _outfits(existing(folder / f"{part}.json", SOURCE), metadata)
        files[f"{split}.json"] = outfits
        if (questions := folder / f"fill_in_blank_{part}.json").is_file():
            files[f"{QUESTIONS_FOLDER}/{split}.json"] = list(_questions(questions, items))
        if (labelled := folder / f"compatibility_{part}.txt").is_file():
            files[f"{COMPATIBILITY_FOLDER}/{split}.json"] = list(_labelled(labelled, items))
    return files


def _outfits(file: Path, metadata: Mapping[str, Any]) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """The outfits of a split, and the items by `<set>_<index>`."""
    outfits, items = [], {}
    for number, row in enumerate(_list(file)):
        place = f"{file}, outfit {number}"
        try:
            name = str(row["set_id"])
            members = {f"{name}_{member['index']}": str(member["item_id"]) for member in row["items"]}
        except (KeyError, TypeError) as error:
            raise ValueError(f"{place}: expected set_id, and items with item_id and index; got {row!r:.80}") from error
        for item in members.values():
            if item not in metadata:
                raise ValueError(f"{place}: {unknown_item_message(item, metadata)}")
        items |= members
        outfits.append({OUTFIT_COLUMN: name, ITEMS_COLUMN: list(members.values())})
    return outfits, items


def _questions(file: Path, items: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    """The questions with the ids of items. A wrong choice that is the right item, or is given twice, is left out."""
    for number, row in enumerate(_list(file)):
        place = f"{file}, question {number}"
        try:
            question, answers = list(row["question"]), list(row["answers"])
            of_set = question[0].rpartition("_")[0]
            blank = f"{of_set}_{row['blank_position']}"
        except (AttributeError, KeyError, TypeError, IndexError) as error:
            raise ValueError(f"{place}: expected question, blank_position and answers; got {row!r:.80}") from error
        in_set = [answer for answer in answers if answer.rpartition("_")[0] == of_set]
        right = blank if blank in in_set else in_set[0] if len(in_set) == 1 else None
        if right is None:
            raise ValueError(f"{place}: no single answer is of the set {of_set} of the question")
        given, choices = _known(question, items, place), _known([right, *answers], items, place)
        wrong = list(dict.fromkeys(choice for choice in choices if choice != choices[0]))
        yield {"question": given, "answer": choices[0], "wrong_same_category": wrong}


def _labelled(file: Path, items: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        label, *names = line.split()
        place = f"{file}, line {number}"
        if label not in ("0", "1") or len(names) < 2:
            raise ValueError(f"{place}: expected '<0 or 1> <set>_<index> <set>_<index> ...', got {line!r:.80}")
        yield {ITEMS_COLUMN: _known(names, items, place), "compatible": label == "1"}


def _known(names: Sequence[str], items: Mapping[str, str], place: str) -> list[str]:
    for name in names:
        if name not in items:
            raise ValueError(f"{place}: {unknown_item_message(name, items)}")
    return [items[name] for name in names]


def _list(file: Path) -> list[Any]:
    content = read_json(file)
    if not isinstance(content, list):
        raise ValueError(f"{file}: expected a list, got {content!r:.80}")
    return content


def _object(file: Path) -> dict[str, Any]:
    content = read_json(file)
    if not isinstance(content, dict):
        raise ValueError(f"{file}: expected an object, got {content!r:.80}")
    return content
