"""Every picture is decoded once, and the broken ones are named."""

import io
import logging
from dataclasses import replace

import numpy as np
import pytest
from datasets import DatasetDict
from datasets import Image as ImageFeature
from PIL import Image

from cca_hf.data.loading import load_attribute_dataset
from cca_hf.data.torch_dataset import AttributeImages
from cca_hf.models.images import UnreadableImageError


@pytest.fixture
def folder(tmp_path, writers):
    """An image folder in which a JPEG is cut short, one is a text, and one is empty."""
    folder = writers["images"](
        tmp_path / "shoes", {"train": writers["rows"](30), "test": writers["rows"](12)}, "jsonl"
    )
    noise = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    whole = encode(Image.fromarray(noise), "JPEG")
    (folder / "train" / "0003.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "train" / "0017.jpg").write_text("404 not found")
    (folder / "test" / "0005.jpg").write_bytes(b"")
    return folder


def load(folder):
    return load_attribute_dataset(folder, ["colour"], make_splits=False)


def test_unreadable_images_are_counted_and_named(folder):
    with pytest.raises(UnreadableImageError) as error:
        load(folder).check_images()
    text = str(error.value)
    assert "3 unreadable image(s) (2 in train, 1 in test)" in text
    assert "train[3]: " in text and "0003.jpg" in text and "truncated" in text
    assert "train[17]: " in text and "0017.jpg" in text
    assert "test[5]: " in text and "0005.jpg" in text
    assert "on_unreadable='skip'" in text


def test_they_are_left_out_only_if_asked(folder, caplog):
    data = load(folder)
    with caplog.at_level(logging.WARNING):
        checked = data.check_images(on_unreadable="skip")
    assert "left out 3 unreadable image(s) (2 in train, 1 in test)" in caplog.text
    kept = [row for row in range(30) if row not in (3, 17)]
    assert checked.labels("train").tolist() == data.labels("train")[kept].tolist()
    assert list(checked["train"]["item"]) == [data["train"][row]["item"] for row in kept]
    assert (len(checked["train"]), len(checked["test"]), len(data["train"])) == (28, 11, 30)
    assert checked.check_images() is checked
    for split in ("train", "test"):
        images = AttributeImages(checked, split)
        assert all(images[row]["image"].shape[2] == 3 for row in range(len(images)))


def test_only_the_first_few_are_named(rows, built):
    data = load_attribute_dataset(built(rows, [b"broken"] * 20 + [None] * 8 + [jpeg(), jpeg()]), ["colour"])
    with pytest.raises(UnreadableImageError) as error:
        data.check_images()
    assert str(error.value).count("]: ") == 5 and "... and " in str(error.value)


def test_a_row_without_an_image(rows, built):
    data = load_attribute_dataset(built(rows[:10], [jpeg()] * 10), ["colour"], make_splits=False)
    pictures = [{"bytes": jpeg(), "path": None}] * 9 + [None]  # loading would have left the last one out
    without = data["train"].remove_columns("image").add_column("image", pictures, feature=ImageFeature(decode=False))
    data = replace(data, splits=DatasetDict(train=without))
    with pytest.raises(UnreadableImageError, match=r"train\[9\]: there is no image in this row"):
        data.check_images()
    with pytest.raises(UnreadableImageError, match=r"train\[9\]: "):
        AttributeImages(data, "train")[9]


def test_a_split_without_any_readable_image(rows, built):
    source = DatasetDict(train=built(rows), test=built(rows[:3], [b"broken"] * 3))
    data = load_attribute_dataset(source, ["colour"], make_splits=False)
    with pytest.raises(UnreadableImageError, match="no image of the split 'test' can be read"):
        data.check_images(on_unreadable="skip")


def test_the_outcome_is_kept(folder, monkeypatch):
    """Loaded again from disk, the pictures are not decoded again."""
    with pytest.raises(UnreadableImageError):
        load(folder).check_images()
    monkeypatch.setattr("cca_hf.data.schema.load_image", lambda image: pytest.fail("decoded again"))
    with pytest.raises(UnreadableImageError, match="3 unreadable"):
        load(folder).check_images()


def test_any_kind_of_picture_is_readable(rows, built):
    """Grey, palette, CMYK, 16 bit, transparent: upright RGB for training as everywhere."""
    colour = Image.new("RGB", (20, 10), (200, 30, 40))
    kinds = [colour.convert(mode) for mode in ("L", "P", "RGBA")]
    kinds.append(Image.fromarray(np.full((10, 20), 40_000, dtype=np.uint16)))
    encoded = [encode(image, "PNG") for image in kinds] + [encode(colour.convert("CMYK"), "JPEG")]
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side
    encoded.append(encode(colour, "JPEG", exif=exif))
    data = load_attribute_dataset(built(rows[:6], encoded), ["colour"], make_splits=False).check_images()
    examples = AttributeImages(data, "train").__getitems__(range(6))
    assert [example["image"].shape for example in examples] == [(10, 20, 3)] * 5 + [(20, 10, 3)]


def test_another_choice_than_error_and_skip(rows, built):
    with pytest.raises(ValueError, match="must be 'error' or 'skip', got 'ignore'"):
        load_attribute_dataset(built(rows), ["colour"]).check_images(on_unreadable="ignore")


def encode(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def jpeg():
    return encode(Image.new("RGB", (8, 8), "red"), "JPEG")


def test_a_file_that_broke_after_the_first_check_is_noticed(tmp_path, writers):
    folder = writers["images"](tmp_path / "shoes", {"train": writers["rows"](12)}, "csv")
    load(folder).check_images()
    whole = (folder / "train" / "0004.jpg").read_bytes()
    (folder / "train" / "0004.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "train" / "0007.jpg").unlink()
    with pytest.raises(UnreadableImageError, match=r"2 unreadable image\(s\) \(2 in train\)") as error:
        load(folder).check_images()
    assert "train[4]: " in str(error.value) and "0007.jpg" in str(error.value)
    (folder / "train" / "0004.jpg").write_bytes(whole)
    with pytest.raises(UnreadableImageError, match="1 unreadable"):
        load(folder).check_images()


def test_images_of_urls_are_checked_every_time(image_server, rows, built, monkeypatch):
    """The bytes come from a server, which fails in every way that a server can."""
    monkeypatch.setenv("CCA_TRUST_DATA", "1")  # it is on the loopback interface
    url, answers = image_server
    answers |= {f"/{row}.jpg": jpeg() for row in range(10)}
    source = built(rows[:10], [jpeg()] * 10).remove_columns("image")
    source = source.add_column("image", [f"{url}/{row}.jpg" for row in range(10)]).cast_column("image", ImageFeature())
    data = load_attribute_dataset(source, ["colour"], make_splits=False).check_images()
    answers |= {"/3.jpg": "hang up", "/5.jpg": "not found"}
    with pytest.raises(UnreadableImageError) as error:
        data.check_images()
    assert "2 unreadable image(s)" in str(error.value)
    assert f"train[3]: {url}/3.jpg cannot be read as an image: " in str(error.value)
    assert f"train[5]: {url}/5.jpg cannot be read as an image: " in str(error.value)
    assert len(data.check_images(on_unreadable="skip")["train"]) == 8
    with pytest.raises(UnreadableImageError, match=rf"train\[3\]: {url}/3.jpg"):
        AttributeImages(data, "train")[3]
