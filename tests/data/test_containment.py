"""Data names files of its own folder, as images; others only if the user allows it."""

import json
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, Features, Image, List, Value
from datasets.exceptions import DatasetGenerationError

from cca_hf.data.loading import load_attribute_dataset
from cca_hf.embedding.catalogue import Catalogue


@pytest.fixture
def folders(tmp_path):
    """A data set with two images, and beside it an image that is none of its own."""
    from PIL import Image as PILImage

    (tmp_path / "shoes" / "train").mkdir(parents=True)
    (tmp_path / "private").mkdir()
    for place in ("shoes/train/0.png", "shoes/train/1.png", "shoes/train/2.png", "shoes/train/3.png", "private/x.png"):
        PILImage.new("RGB", (8, 8)).save(tmp_path / place)
    return tmp_path


def write(folder, images, feature):
    """As `datasets` would, which reads the images to store them."""
    schema = Features(image=feature, colour=Value("string")).arrow_schema
    if isinstance(feature, Image):
        images = [image if isinstance(image, dict) else {"bytes": None, "path": image} for image in images]
    pq.write_table(pa.table([images, ["red", "red", "blue", "blue"]], schema=schema), folder / "train.parquet")


def load(folder):
    return load_attribute_dataset(folder, ["colour"], make_splits=False)


@pytest.mark.parametrize("feature", [Image(decode=False), Value("string")], ids=["image", "text"])
@pytest.mark.parametrize("name", ["{root}/private/x.png", "{root}/shoes/../private/x.png", "../private/x.png"])
def test_a_path_out_of_the_folder(folders, name, feature, monkeypatch):
    monkeypatch.chdir(folders / "shoes")
    data, path = folders / "shoes" / "data", name.format(root=folders)
    data.mkdir()
    inside = [str(folders / "shoes" / "data" / f"{row}.png") for row in range(3)]
    write(data, [*inside, path], feature)
    with pytest.raises(ValueError) as error:
        load(data)
    told = f"the column 'image' of the split 'train' names the file {path!r}, which is not in {data}. If you trust the"
    assert str(error.value).startswith(told)
    monkeypatch.setenv("CCA_TRUST_DATA", "1")
    assert load(data).splits["train"][3]["image"]["path"] == path


@pytest.mark.parametrize(
    ("feature", "cell"),
    [
        (Value("string"), lambda path: path),
        (List(Value("string")), lambda path: [path]),
        ({"path": Value("string")}, lambda path: {"path": path}),
        ({"bytes": Value("binary"), "path": Value("string")}, lambda path: {"bytes": None, "path": path}),
    ],
    ids=["text", "list", "path", "bytes and path"],
)
def test_any_column_that_holds_the_images(folders, feature, cell):
    path, inside = str(folders / "private" / "x.png"), str(folders / "shoes" / "data" / "0.png")
    schema = Features(photo=feature, colour=Value("string")).arrow_schema
    cells = [cell(inside), cell(inside), cell(inside), cell(path)]
    (folders / "shoes" / "data").mkdir()
    table = pa.table([cells, ["red", "red", "blue", "blue"]], schema=schema)
    pq.write_table(table, folders / "shoes" / "data" / "train.parquet")
    with pytest.raises(ValueError, match=f"the column 'photo' of the split 'train' names the file '{path}'"):
        load_attribute_dataset(folders / "shoes" / "data", ["colour"], image_column="photo", make_splits=False)
    with pytest.raises(ValueError, match=f"the column 'photo' of the split 'train' names the file '{path}'"):
        Catalogue.from_dataset(folders / "shoes" / "data", image_column="photo")


def test_what_is_in_the_folder(folders):
    """Also through a link that the user has made, by a name that does not exist, and by a name that is only a name."""
    shoes = folders / "shoes"
    os.symlink(folders / "private", shoes / "linked")
    names = ["train/0.png", "linked/x.png", "train/../train/1.png", "train/none.png"]
    paths = [str(shoes / name) for name in names]
    (shoes / "data").mkdir()
    write(shoes / "data", paths, Image())
    (shoes / "README.md").write_text('---\nconfigs: [{config_name: default, data_files: "data/*.parquet"}]\n---\n')
    assert [row["image"]["path"] for row in load(shoes).splits["train"]] == paths
    content = (folders / "private" / "x.png").read_bytes()
    write(shoes / "data", [{"bytes": content, "path": str(folders / "private" / "x.png")}] * 4, Image())
    assert load(shoes)["train"].num_rows == 4


def test_metadata_that_leads_out(folders):
    rows = [{"file_name": f"{row}.png", "colour": colour} for row, colour in enumerate(("red", "red", "blue", "blue"))]
    rows[3]["file_name"] = "../../private/x.png"
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folders / "shoes" / "train" / "metadata.jsonl").write_text(text)
    with pytest.raises((ValueError, DatasetGenerationError)) as error:
        load(folders / "shoes")
    assert "private" in f"{error.value} {error.value.__cause__}"


def test_a_dataset_of_the_users_own_program(folders):
    paths = [str(folders / "private" / "x.png")] * 4
    dataset = Dataset.from_dict({"image": paths, "colour": ["red", "red", "blue", "blue"]})
    assert load(dataset.cast_column("image", Image())).check_images()["train"].num_rows == 4
