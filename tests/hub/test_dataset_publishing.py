"""A data set on the Hub: what is loaded from there is what was pushed, and its card counts it."""

import ast

import numpy as np
import pytest
from datasets import Dataset, DatasetDict, Image
from huggingface_hub import DatasetCard
from PIL import Image as Picture

from cca_hf import load_attribute_dataset
from cca_hf.hub.dataset_publishing import stage_dataset

from ..rendered import render

LOAD = """
import json, sys
import numpy as np
from cca_hf import load_attribute_dataset
from cca_hf.cli.main import main
from cca_hf.models.images import load_image

pushed = main(["data", "push", "--dataset", sys.argv[1], "--repo", "me/shoes", "--group_column", "item", "--private"])
data = load_attribute_dataset("me/shoes", group_column="item")
told = {
    "pushed": pushed,
    "attributes": data.attributes,
    "labels": {split: data.labels(split).tolist() for split in data.splits},
    "items": {split: list(data[split]["item"]) for split in data.splits},
    "sums": {
        split: [int(np.asarray(load_image(each)).sum()) for each in data[split]["image"]] for split in data.splits
    },
}
print(json.dumps(told))
"""


@pytest.fixture
def folder(tmp_path):
    """Pictures with a metadata.csv, in splits whose files have the same names."""
    random = np.random.default_rng(0)
    for split, number in (("train", 12), ("validation", 4), ("test", 4)):
        place = tmp_path / "shoes" / split
        place.mkdir(parents=True)
        rows = ["file_name,colour,heel,item"]
        for row in range(number):
            Picture.fromarray(random.integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(place / f"{row}.png")
            rows.append(f"{row}.png,{['red', 'blue', 'red'][row % 3]},{['flat', 'high', ''][row % 3]},{row // 2}")
        (place / "metadata.csv").write_text("\n".join(rows))
    return tmp_path / "shoes"


@pytest.fixture
def data(folder):
    return load_attribute_dataset(folder, ["colour", "heel"], group_column="item", make_splits=False)


def test_it_comes_back_from_the_hub(hub, run_on_hub, data, folder, tmp_path):
    """Pushed as what a folder of parquet files with ClassLabel columns is: without naming the attributes."""
    data.splits.cast_column("image", Image()).save_to_disk(tmp_path / "labelled")
    found = run_on_hub(LOAD, tmp_path / "labelled")
    assert found["pushed"] == 0 and found["attributes"] == data.attributes == {
        "colour": ["blue", "red"],
        "heel": ["flat", "high"],
    }
    for split in ("train", "validation", "test"):
        assert found["labels"][split] == data.labels(split).tolist()
        assert found["items"][split] == list(data[split]["item"])
        sums = [int(np.asarray(Picture.open(folder / split / f"{row}.png")).sum()) for row in range(len(data[split]))]
        assert found["sums"][split] == sums
    repository = hub.repositories["datasets/me/shoes"]
    assert repository.private and len(repository.commits) == 2
    files = {f"data/{split}-00000-of-00001.parquet" for split in ("train", "validation", "test")}
    assert set(repository.at("main").files) == files | {"README.md", ".gitattributes"}
    assert all(str(tmp_path).encode() not in content for content in repository.at("main").files.values())


def test_the_files_say_what_they_hold(data, tmp_path):
    stage_dataset(data, tmp_path / "staged", "me/shoes")
    found = Dataset.from_parquet(str(tmp_path / "staged" / "data" / "train-00000-of-00001.parquet"))
    assert found.features["image"] == Image() and found.features["colour"].names == ["blue", "red"]
    assert found[0]["image"].size == (30, 20)


def test_its_card_counts(data, tmp_path):
    card = DatasetCard.load(stage_dataset(data, tmp_path / "staged", "me/shoes", license="cc-by-4.0") / "README.md")
    metadata = card.data.to_dict()
    with pytest.raises(
        ValueError, match="licence and license mean the same, give one of them; got 'mit' and 'mpl-2.0'"
    ):
        stage_dataset(data, tmp_path / "twice", "me/shoes", licence="mit", license="mpl-2.0")
    assert metadata["license"] == "cc-by-4.0" and metadata["size_categories"] == ["n<1K"]
    assert metadata["configs"][0]["data_files"] == [
        {"split": split, "path": f"data/{split}-*.parquet"} for split in ("train", "validation", "test")
    ]
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in card.text.splitlines() if line.startswith("|")
    ]
    assert ["split", "images", "groups", "colour", "heel"] in rows
    assert ["train", "12", "6", "12", "8"] in rows and ["test", "4", "2", "4", "3"] in rows
    assert ["colour", "2", "red (14), blue (6)"] in rows and ["heel", "2", "flat (8), high (6)"] in rows
    assert "- colour: blue (6)" in card.text and "- heel: flat (8), high (6)" in card.text
    assert 'load_attribute_dataset("me/shoes", attributes=["colour", "heel"], group_column="item")' in card.text
    assert "Annotations only" not in card.text


def test_words_of_others_stay_words_on_its_card(tmp_path):
    odd = ["a|b\nc", "*x* [y](z) ![](.env) <b> `q` ~~s~~ https://evil.example", 'it\'s "6"']
    seen = [" ".join(words.split()) for words in odd]
    columns = {"image": [Picture.new("RGB", (4, 4))] * 6, odd[0]: odd * 2, odd[2]: odd * 2, odd[1]: odd * 2}
    rows = Dataset.from_dict(columns).cast_column("image", Image())
    data = load_attribute_dataset(
        DatasetDict({"train": rows}), [odd[0], odd[2]], group_column=odd[1], make_splits=False
    )
    staged = stage_dataset(data, tmp_path / "staged", "me/shoes")
    text = DatasetCard.load(staged / "README.md").text
    splits, values = render(text).tables
    assert splits[0] == ["split", "images", "groups", seen[0], seen[2]] and splits[1] == ["train", "6", "3", "6", "6"]
    assert [row[0] for row in values[1:]] == [seen[0], seen[2]] and {len(row) for row in values} == {3}
    assert {cell for row in values[1:] for cell in row[2:]} == {", ".join(f"{words} (2)" for words in sorted(seen))}
    assert set(render(text).marks) == {"em_open", "em_close", "link_open", "link_close", "code_inline"}  # of the card
    called = ast.parse(text.split("```python\n")[1].split("```")[0]).body[1].value
    assert [ast.literal_eval(each.value) for each in called.keywords] == [[odd[0], odd[2]], odd[1]]


def test_annotations_alone(data, folder, tmp_path, monkeypatch):
    staged = stage_dataset(data, tmp_path / "staged", "me/shoes", with_images=False)
    assert sum(path.stat().st_size for path in staged.rglob("*")) < 20_000
    with pytest.raises(ValueError, match="none of the 12 images of the split 'train' exists"):
        load_attribute_dataset(staged)
    # the snippet of its card, where the repository and the pictures are folders of those names
    monkeypatch.chdir(tmp_path)
    (tmp_path / "me").mkdir()
    staged.rename("me/shoes")
    folder.rename("images")
    text = (tmp_path / "me" / "shoes" / "README.md").read_text()
    names: dict = {}
    exec(text.split("```python\n")[1].split("```")[0], names)
    for split in ("train", "validation", "test"):
        assert names["data"].labels(split).tolist() == data.labels(split).tolist()
        paths = [picture["path"] for picture in names["data"].splits[split]["image"]]
        assert paths == [str(tmp_path / "images" / split / f"{row}.png") for row in range(len(paths))]


def test_annotations_of_pictures_without_names(tmp_path):
    drawn = [Picture.new("RGB", (4, 4), colour) for colour in ("red", "blue", "red", "blue")]
    rows = Dataset.from_dict({"image": drawn, "colour": ["red", "blue", "red", "blue"]}).cast_column("image", Image())
    data = load_attribute_dataset(DatasetDict({"train": rows}), ["colour"], make_splits=False)
    with pytest.raises(
        ValueError, match="annotations without images need a file name for each image: some images have no file name"
    ):
        stage_dataset(data, tmp_path / "staged", "me/x", with_images=False)
    assert not (tmp_path / "staged").exists()


def test_an_unreadable_picture_is_named_before_anything_is_written(data, folder, tmp_path):
    (folder / "train" / "3.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"3\.png"):
        stage_dataset(data, tmp_path / "staged", "me/x")
    assert not (tmp_path / "staged").exists()
