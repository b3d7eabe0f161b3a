"""The image column in all forms that data sets have: the same images, and one report of what is not one image."""

import base64
import io

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Image, List, Value
from PIL import Image as PILImage

from cca_hf import load_attribute_dataset
from cca_hf.data.triplets import to_triplet_dataset
from cca_hf.embedding.catalogue import Catalogue
from cca_hf.models.images import UnreadableImageError, load_image

ROWS = 4


def pixels(row: int) -> np.ndarray:
    return np.random.default_rng(row).integers(0, 256, (12, 10, 3), dtype=np.uint8)


def encoded(row: int, form: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    PILImage.fromarray(pixels(row)).save(buffer, form)
    return buffer.getvalue()


def base64_of(row: int, form: str = "PNG") -> str:
    return base64.b64encode(encoded(row, form)).decode()


def in_dict(row: int) -> dict:
    return {"bytes": encoded(row), "path": None}


FORMS = {
    "Image": ([in_dict(row) for row in range(ROWS)], Image()),
    "dict": ([in_dict(row) for row in range(ROWS)], {"bytes": Value("binary"), "path": Value("string")}),
    "bytes": ([encoded(row) for row in range(ROWS)], Value("binary")),
    "base64": ([base64_of(row, ("PNG", "BMP", "TIFF", "WEBP")[row]) for row in range(ROWS)], Value("string")),
    "base64 in lines": (["\n".join(base64_of(row)[at : at + 76] for at in range(0, 2000, 76)) for row in range(ROWS)],
                        Value("string")),
    "data URL": ([f"data:image/png;base64,{base64_of(row)}" for row in range(ROWS)], Value("large_string")),
    "array": ([pixels(row).tolist() for row in range(ROWS)], List(List(List(Value("uint8"))))),
    "list of one Image": ([[in_dict(row)] for row in range(ROWS)], List(Image())),
    "list of one base64": ([[base64_of(row)] for row in range(ROWS)], List(Value("string"))),
}  # fmt: skip


def labelled(images: list, feature: object) -> Dataset:
    features = Features(image=feature, colour=ClassLabel(names=["red", "blue"]))
    return Dataset.from_dict({"image": images, "colour": [row % 2 for row in range(len(images))]}, features=features)


@pytest.mark.parametrize("form", FORMS)
def test_all_forms_are_the_same_images(form):
    data = labelled(*FORMS[form])
    catalogue = Catalogue.from_dataset(data)
    loaded = load_attribute_dataset(data, make_splits=False).splits["train"]
    assert loaded.features["image"] == Image(decode=False)
    for row in range(ROWS):
        for image in (catalogue.images[row], loaded[row]["image"]):
            tolerance = 0 if "base64" != form or row < 3 else 60  # WebP is lossy
            difference = np.abs(np.asarray(load_image(image)).astype(int) - pixels(row))
            assert np.median(difference) <= tolerance


def test_paths_and_urls_stay_as_they_are(tmp_path):
    (tmp_path / "a.png").write_bytes(encoded(0))
    short = ["Qk", "/9j/a.jpg", "R0lGOD.png", "UklGR-" * 20]  # begin as base64 does
    address = "https://example.org/" + "a" * 5000
    texts = [str(tmp_path / "a.png"), address, *short]
    catalogue = Catalogue.from_dataset(labelled([*texts, " "], Value("string")))
    assert catalogue.paths(0, 7) == [*texts, None]
    np.testing.assert_array_equal(np.asarray(load_image(catalogue.images[0])), pixels(0))


def test_rows_without_an_image_are_left_out_of_a_training_and_are_named_elsewhere():
    for missing, feature in (("", Value("string")), (None, Value("string")), ([], List(Value("string")))):
        images = [base64_of(row) for row in range(5)]
        images = [[image] for image in images] if isinstance(missing, list) else images
        images[3] = missing
        data = labelled(images, feature)
        loaded = load_attribute_dataset(data, make_splits=False)
        assert loaded["train"].num_rows == 4 and loaded.coverage["train"].listed == 5
        with pytest.raises(UnreadableImageError, match="^there is no image in this row$"):
            load_image(Catalogue.from_dataset(data).images[3])


def test_a_list_of_images_is_no_image_and_can_be_skipped():
    data = labelled([[in_dict(row)] * (2 if row == 3 else 1) for row in range(5)], List(Image()))
    loaded = load_attribute_dataset(data, make_splits=False)
    with pytest.raises(UnreadableImageError, match=r"train\[3\]: a list of 2 images cannot be read as an image"):
        loaded.check_images()
    assert loaded.check_images("skip")["train"].num_rows == 4


def test_no_message_holds_the_content_of_an_image():
    cut = base64_of(0)[:300]
    odd = ["A" * 70 + cut, "data:image/png," + "B" * 70, "%" * 5000, cut]
    catalogue = Catalogue.from_dataset(labelled(odd, Value("string")))
    for row in range(len(odd)):
        with pytest.raises(UnreadableImageError) as caught:
            load_image(catalogue.images[row])
        assert len(str(caught.value)) < 200 and odd[row][20:60] not in str(caught.value)


@pytest.mark.parametrize("feature", [Value("int64"), ClassLabel(names=["a"]), {"url": Value("string")}])
def test_other_columns_are_refused(feature):
    data = labelled([{"url": "a"} if isinstance(feature, dict) else 0] * ROWS, feature)
    with pytest.raises(ValueError, match="the column 'image' contains .*, not images. An image is a datasets.Image"):
        Catalogue.from_dataset(data)
    with pytest.raises(ValueError, match="the column 'image' contains"):
        load_attribute_dataset(data, make_splits=False)


def test_triplets_take_the_same_forms():
    columns = {name: [base64_of(place)] for place, name in enumerate(("anchor", "positive", "negative"))}
    triplets = to_triplet_dataset(Dataset.from_dict({"condition": ["colour"], **columns}))
    for place, name in enumerate(columns):
        np.testing.assert_array_equal(np.asarray(load_image(triplets[0][name])), pixels(place))
