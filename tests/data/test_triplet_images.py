"""Each picture of a triplet data set once, whether its rows hold bytes or the names of files."""

import numpy as np
import pytest
from datasets import Dataset, Features, Image, Value
from PIL import Image as PILImage

from cca_hf.data.triplets import distinct_images, to_triplet_dataset
from cca_hf.models.images import load_image

ROWS = [(0, 1, 2), (1, 0, 3), (2, 2, 0), (4, 1, 0)]
COLUMNS = ("anchor", "positive", "negative")


def triplets(pictures, rows=ROWS) -> Dataset:
    columns = {name: [pictures[row[place]] for row in rows] for place, name in enumerate(COLUMNS)}
    features = Features(condition=Value("string"), **{name: Image() for name in COLUMNS})
    return to_triplet_dataset(Dataset.from_dict({"condition": ["heel"] * len(rows), **columns}, features=features))


def assert_each_once(dataset: Dataset, shades, rows=ROWS) -> None:
    pictures, found = distinct_images(dataset)
    assert pictures.column_names == ["image"] and len(pictures) == 5
    assert found.shape == (len(rows), 3) and found.dtype == np.int64
    assert sorted(np.unique(found).tolist()) == list(range(5))
    seen = [np.asarray(load_image(image))[0, 0].tolist() for image in pictures["image"]]
    assert [[seen[place] for place in row] for row in found.tolist()] == [
        [shades[each] for each in row] for row in rows
    ]


def test_bytes_and_paths(encode, tmp_path):
    shades = [[40 * shade, 10, 10] for shade in range(5)]
    files = []
    for number, shade in enumerate(shades):
        files.append(tmp_path / f"{number}.png")
        PILImage.new("RGB", (4, 4), tuple(shade)).save(files[-1])
    assert_each_once(triplets([{"path": str(file), "bytes": None} for file in files]), shades)
    # the same picture under two names is one picture, if its bytes are there to tell
    as_bytes = [{"path": f"{number}-{file.name}", "bytes": file.read_bytes()} for number, file in enumerate(files)]
    assert_each_once(triplets(as_bytes), shades)
    renamed = triplets(as_bytes + [as_bytes[1] | {"path": "other.png"}], [*ROWS, (5, 0, 1)])
    assert_each_once(renamed, shades, [*ROWS, (1, 0, 1)])


def test_a_selection_keeps_its_rows(encode):
    pictures = [{"bytes": encode(number, "red"), "path": None} for number in range(5)]
    dataset = triplets(pictures, ROWS * 600)  # more than one batch of Arrow rows
    order = np.random.default_rng(0).permutation(len(dataset))
    _, rows = distinct_images(dataset)
    chosen, shuffled = distinct_images(dataset.select(order))
    assert len(chosen) == 5
    # the numbers may differ, the partition may not
    assert len({(a, b) for a, b in zip(rows[order].ravel().tolist(), shuffled.ravel().tolist(), strict=True)}) == 5


def test_a_missing_picture_is_named(encode):
    pictures = [{"bytes": encode(number, "red"), "path": None} for number in range(4)] + [None]
    with pytest.raises(ValueError, match="the triplet of row 3 has no anchor"):
        distinct_images(triplets(pictures))
