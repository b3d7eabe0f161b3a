"""Small real files: JPEGs of one colour each, and rows of labels that go with them."""

import csv
import io
import json
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset, Features, Value
from datasets import Image as ImageFeature
from PIL import Image

Row = dict[str, Any]
COLOURS = {"red": (220, 30, 30), "green": (30, 200, 60), "blue": (40, 60, 220)}


def encode_picture(row: int, colour: str | None, size: tuple[int, int] = (24, 18)) -> bytes:
    """A JPEG of the row's colour with a stripe, so that every picture is different."""
    pixels = np.full((size[1], size[0], 3), COLOURS.get(colour or "", (128, 128, 128)), dtype=np.uint8)
    pixels[:, row % size[0]] = 255
    pixels[row // size[0] % size[1]] = 0
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def make_rows(number: int, first: int = 0) -> list[Row]:
    """Rows with a colour, a size (missing in every fifth row), a number of buttons and an item shared by two."""
    names = list(COLOURS)
    return [
        {
            "colour": names[row % 3],
            "size": None if row % 5 == 4 else ("small", "large")[row // 3 % 2],
            "buttons": row % 4 * 5,
            "item": f"item-{row // 2}",
        }
        for row in range(first, first + number)
    ]


@pytest.fixture
def rows() -> list[Row]:
    return make_rows(30)


@pytest.fixture
def encode() -> Callable[..., bytes]:
    return encode_picture


@pytest.fixture
def built() -> Callable[..., Dataset]:
    """Builds a `Dataset` of rows; `images` replaces their JPEGs."""

    def build(rows: Sequence[Row], images: Sequence[bytes | None] | None = None) -> Dataset:
        columns = {name: [row[name] for row in rows] for name in rows[0]}
        if images is None:
            images = [encode_picture(index, row.get("colour")) for index, row in enumerate(rows)]
        pictures = [None if image is None else {"bytes": image, "path": None} for image in images]
        kinds = {"buttons": Value("int64")}
        features = Features(image=ImageFeature(), **{name: kinds.get(name, Value("string")) for name in columns})
        return Dataset.from_dict({"image": pictures, **columns}, features=features)

    return build


def write_parquet_folder(folder: Path, splits: dict[str, list[Row]], build: Callable[..., Dataset]) -> Path:
    for split, rows in splits.items():
        path = folder / "data" / f"{split}-00000-of-00001.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        build(rows).to_parquet(path)
    return folder


def write_image_folder(folder: Path, splits: dict[str, list[Row]], kind: str) -> Path:
    """Pictures beside a `metadata.csv`, `.jsonl` or `.parquet` that labels them."""
    for split, rows in splits.items():
        place = folder / split
        place.mkdir(parents=True)
        labelled = []
        for index, row in enumerate(rows):
            (place / f"{index:04d}.jpg").write_bytes(encode_picture(index, row["colour"]))
            labelled.append({"file_name": f"{index:04d}.jpg", **row})
        if kind == "csv":
            with open(place / "metadata.csv", "w", newline="") as file:
                writer = csv.DictWriter(file, labelled[0])
                writer.writeheader()
                writer.writerows(labelled)
        elif kind == "jsonl":
            (place / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in labelled))
        else:
            Dataset.from_list(labelled).to_parquet(place / "metadata.parquet")
    return folder


def write_tar(path: Path, rows: Sequence[Row | None], first: int = 0) -> None:
    """A WebDataset tar of jpg, json and cls members; None leaves a sample without json."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for index, row in enumerate(rows, start=first):
            members = {"jpg": encode_picture(index, (row or {}).get("colour")), "cls": str(index % 2).encode()}
            if row is not None:
                members["json"] = json.dumps(row).encode()
            for extension, content in members.items():
                info = tarfile.TarInfo(f"sample-{index:05d}.{extension}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))


@pytest.fixture
def writers() -> dict[str, Callable[..., Any]]:
    return {"parquet": write_parquet_folder, "images": write_image_folder, "tar": write_tar, "rows": make_rows}
