"""`ImageReader` against the image processor that it stands for, on files of every kind."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessorPil, ViTImageProcessorPil

from cca_hf import UnreadableImageError
from cca_hf.models import images
from cca_hf.models.images import ImageReader, decode_plain_jpeg, load_image

ODD = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}


def photograph(height: int, width: int) -> Image.Image:
    """Smooth shapes with some grain, as a camera makes them."""
    generator = np.random.default_rng(height * width)
    coarse = Image.fromarray(generator.integers(0, 256, (5, 5, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(float)
    return Image.fromarray((smooth + generator.normal(0, 6, smooth.shape)).clip(0, 255).astype(np.uint8))


def encoded(picture: Image.Image, kind: str = "JPEG", **options) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def read(processor, *images) -> torch.Tensor:
    reader = ImageReader(processor)
    return reader.scale(torch.stack([reader.read(image) for image in images]), torch.device("cpu"), torch.float32)


@pytest.mark.parametrize("resample", [Image.Resampling.BILINEAR, Image.Resampling.BICUBIC])
@pytest.mark.parametrize("size", [(500, 500), (300, 700), (420, 160), (20, 30), (24, 32)])
def test_within_a_level_of_the_image_processor(size, resample):
    processor = ViTImageProcessorPil(size={"height": 24, "width": 32}, resample=resample, **ODD)
    picture = photograph(*size)
    expected = processor(picture, return_tensors="pt")["pixel_values"]
    levels = (read(processor, picture) - expected) * 255 * torch.tensor(ODD["image_std"]).reshape(3, 1, 1)
    enlarged = min(size) < 24
    assert levels.abs().max() < (2.01 if enlarged and resample == Image.Resampling.BICUBIC else 1.01)
    assert levels.abs().mean() < 0.15
    if size == (24, 32):  # nothing to resize
        np.testing.assert_allclose(levels, 0, atol=1e-4)


@pytest.mark.parametrize("steps", [{"do_rescale": False}, {"do_normalize": False}, ODD])
def test_scaling_is_the_image_processors(steps):
    processor = ViTImageProcessorPil(size={"height": 16, "width": 16}, **steps)
    every_level = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16)).convert("RGB")
    expected = processor(every_level, return_tensors="pt")["pixel_values"].float()
    np.testing.assert_allclose(read(processor, every_level), expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(
    "processor",
    [
        CLIPImageProcessorPil(size={"shortest_edge": 24}, crop_size={"height": 24, "width": 24}),
        ViTImageProcessorPil(size={"height": 24, "width": 24}, resample=Image.Resampling.NEAREST),
        ViTImageProcessorPil(do_resize=False),
    ],
)
def test_an_image_processor_that_does_other_things_is_called(processor):
    picture = photograph(40, 60)
    expected = processor(picture, return_tensors="pt")["pixel_values"]
    np.testing.assert_array_equal(read(processor, picture), expected)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0, "quality": 97}, {"optimize": True}])
def test_plain_jpegs_are_decoded_to_the_same_bytes(options, tmp_path):
    pytest.importorskip("simplejpeg")
    data = encoded(photograph(70, 90), **options)
    (tmp_path / "a.jpg").write_bytes(data)
    for given in (data, tmp_path / "a.jpg", str(tmp_path / "a.jpg"), {"bytes": data, "path": None}):
        np.testing.assert_array_equal(decode_plain_jpeg(given), np.asarray(load_image(data)))
    grey = encoded(photograph(70, 90).convert("L"))
    np.testing.assert_array_equal(decode_plain_jpeg(grey), np.asarray(load_image(grey)))


def turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(photograph(70, 90), exif=exif)


def turned_by_xmp() -> bytes:
    return encoded(photograph(70, 90), xmp=b'<x:xmpmeta xmlns:x="adobe:ns:meta/" tiff:Orientation="6"></x:xmpmeta>')


@pytest.mark.parametrize(
    "data",
    [turned(), turned_by_xmp(), encoded(photograph(70, 90).convert("CMYK")), encoded(photograph(70, 90), "PNG")],
    ids=["EXIF", "XMP", "CMYK", "PNG"],
)
def test_others_are_left_to_pillow(data):
    assert decode_plain_jpeg(data) is None
    processor = ViTImageProcessorPil(size={"height": 24, "width": 24})
    np.testing.assert_array_equal(read(processor, data), read(processor, load_image(data)))


def test_broken_and_huge_pictures_get_pillows_error(tmp_path, monkeypatch):
    reader = ImageReader(ViTImageProcessorPil())
    data = encoded(photograph(200, 200))
    (tmp_path / "half.jpg").write_bytes(data[: len(data) // 2])
    with pytest.raises(UnreadableImageError, match="half.jpg' cannot be read as an image: .*truncated"):
        reader.read(tmp_path / "half.jpg")
    with pytest.raises(UnreadableImageError, match="none.jpg' cannot be read"):
        reader.read(tmp_path / "none.jpg")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(UnreadableImageError, match="bomb"):
        reader.read(data)


def test_nothing_changes_without_the_extra(monkeypatch):
    pytest.importorskip("simplejpeg")
    processor = ViTImageProcessorPil(size={"height": 24, "width": 24})
    data = encoded(photograph(70, 90))
    expected = read(processor, data)
    monkeypatch.setattr(images, "simplejpeg", None)
    assert decode_plain_jpeg(data) is None
    np.testing.assert_array_equal(read(processor, data), expected)
