"""Where the pictures come from: folders of files and data sets, with ids, in an order that stays."""

import io

import datasets
import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from cca_hf.embedding.catalogue import Catalogue


def picture(number: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(number).integers(0, 256, (20, 16, 3), dtype=np.uint8))


def encoded(number: int) -> bytes:
    buffer = io.BytesIO()
    picture(number).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def shop():
    return datasets.Dataset.from_dict(
        {
            "photo": [{"bytes": encoded(number), "path": None} for number in range(6)],
            "sku": [f"s{number}" for number in range(6)],
            "price": [1.5, 2, 3, 4, 5, 6],
            "colour": [0, 1, 1, 0, 0, 1],
        },
        features=datasets.Features(
            photo=datasets.Image(),
            sku=datasets.Value("string"),
            price=datasets.Value("float64"),
            colour=datasets.ClassLabel(names=["red", "blue"]),
        ),
    )


def test_folder(tmp_path):
    for name in ("b/2.png", "a/10.jpg", "a/9.JPG", "top.webp"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        picture(0).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no picture")
    catalogue = Catalogue.from_folder(tmp_path)
    assert catalogue.ids.to_pylist() == ["a/10.jpg", "a/9.JPG", "b/2.png", "top.webp"]
    assert [image["path"] for image in catalogue.images] == [
        str(tmp_path / name) for name in catalogue.ids.to_pylist()
    ]
    first = catalogue.fingerprint()
    assert Catalogue.from_folder(tmp_path).fingerprint() == first != catalogue.fingerprint(0, 3)
    picture(0).resize((50, 50)).save(tmp_path / "top.webp")
    assert Catalogue.from_folder(tmp_path).fingerprint() != first
    assert Catalogue.from_folder(tmp_path).fingerprint(0, 3) == catalogue.fingerprint(0, 3)
    with pytest.raises(FileNotFoundError, match="there is no folder .*nowhere"):
        Catalogue.from_folder(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="there is no image in .*empty; known suffixes are .*jpg"):
        Catalogue.from_folder(tmp_path / "empty")


def test_folder_as_people_have_it(tmp_path, caplog):
    """Files that Pillow cannot decode ended the run, and linked folders were passed over without a word."""
    shop, elsewhere = tmp_path / "shop", tmp_path / "elsewhere"
    for place in (shop / "a", shop / "__MACOSX", elsewhere):
        place.mkdir(parents=True)
    for path in (shop / "a" / "1.png", shop / "a" / "._1.png", shop / "__MACOSX" / "1.png", elsewhere / "2.png"):
        picture(0).save(path)
    for name in ("a.pdf", "b.h5", "c.mpg", "d.eps"):
        (shop / name).write_bytes(b"no image")
    (shop / "linked").symlink_to(elsewhere)
    catalogue = Catalogue.from_folder(shop)
    assert catalogue.ids.to_pylist() == ["a/1.png", "linked/2.png"]
    assert "1 hidden (a/._1.png)" in caplog.text and "4 of no image format that can be read" in caplog.text


def test_dataset(shop, tmp_path):
    catalogue = Catalogue.from_dataset(shop, image_column="photo", id_column="sku", columns=["price", "colour", "sku"])
    assert len(catalogue) == 6
    rows = catalogue.rows(1, 3)
    assert rows.to_pydict() == {"item_id": ["s1", "s2"], "price": [2, 3], "colour": [1, 1], "sku": ["s1", "s2"]}
    assert catalogue.features["colour"].names == ["red", "blue"] and list(catalogue.features) == rows.column_names
    assert catalogue.images[4]["bytes"] == encoded(4)
    numbered = Catalogue.from_dataset(shop, image_column="photo")
    assert numbered.rows(2, 4).to_pydict() == {"item_id": [2, 3]}
    shop.to_parquet(tmp_path / "train.parquet")
    again = Catalogue.from_dataset(tmp_path, image_column="photo", id_column="sku")
    assert again.fingerprint() == catalogue.fingerprint() != numbered.fingerprint()


def test_lance(shop, tmp_path):
    lance = pytest.importorskip("lance", reason='a data set in Lance needs pylance: pip install "cca_hf[lance]"')
    rows = pa.table({"photo": [encoded(number) for number in range(6)], "sku": shop["sku"][:]})
    lance.write_dataset(rows, tmp_path / "shop" / "train.lance")
    catalogue = Catalogue.from_dataset(tmp_path / "shop", image_column="photo", id_column="sku")
    want = Catalogue.from_dataset(shop, image_column="photo", id_column="sku")
    assert [image["bytes"] for image in catalogue.images] == [image["bytes"] for image in want.images]
    assert catalogue.fingerprint() == want.fingerprint()


def test_refusals(shop):
    splits = datasets.DatasetDict(train=shop, test=shop)
    with pytest.raises(ValueError, match="several splits; choose one of train, test"):
        Catalogue.from_dataset(splits, image_column="photo")
    assert len(Catalogue.from_dataset(splits, split="test", image_column="photo")) == 6
    with pytest.raises(ValueError, match="'tset'.*'test'"):
        Catalogue.from_dataset(splits, split="tset", image_column="photo")
    with pytest.raises(ValueError, match="no image column 'image'"):
        Catalogue.from_dataset(shop, image_column="image")
    with pytest.raises(ValueError, match=r"found no image column; .* Columns: sku, price, colour"):
        Catalogue.from_dataset(shop.remove_columns("photo"))
    with pytest.raises(ValueError, match="ids must be unique; 'colour' contains 0 more than once"):
        Catalogue.from_dataset(shop, image_column="photo", id_column="colour")
    with pytest.raises(ValueError, match="'photo' cannot be kept"):
        Catalogue.from_dataset(shop, image_column="photo", columns=["photo"])
