"""Flip and crop, reproducibly; and no change of colour unless asked."""

import numpy as np
import pytest
from PIL import Image
from transformers import ViTImageProcessorPil

from cca_hf.data.torch_dataset import TrainingTransform
from cca_hf.models.images import ImageReader


def gradient(width=80, height=60):
    """Red grows to the right, green downwards, blue is constant: the colour of a pixel gives its place."""
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    pixels[..., 0] = np.linspace(0, 255, width)[None, :]
    pixels[..., 1] = np.linspace(0, 255, height)[:, None]
    pixels[..., 2] = 100
    return pixels


def apply(seed=0, image=None, size=(32, 48), **options):
    """What a model is given: the transformed image, resized."""
    cropped = TrainingTransform(**options)(gradient() if image is None else image, np.random.default_rng(seed))
    return resize(cropped, size)


def resize(image, size):
    reader = ImageReader(ViTImageProcessorPil(size={"height": size[0], "width": size[1]}))
    return reader.resize(image).permute(1, 2, 0).numpy()


def test_the_same_seed_gives_the_same_image():
    assert np.array_equal(apply(3, colour_jitter=0.3), apply(3, colour_jitter=0.3))
    images = {apply(seed, image=gradient(400, 300)).tobytes() for seed in range(20)}
    assert len(images) == 20


def test_the_size_is_height_then_width_and_the_given_image_is_left_alone():
    image = gradient()
    before = image.tobytes()
    assert apply(image=image, size=(32, 48), colour_jitter=0.5).shape == (32, 48, 3)
    assert image.tobytes() == before
    boxes = [TrainingTransform().draw((60, 80), np.random.default_rng(seed))[0] for seed in range(50)]
    assert all(0 <= left < right <= 80 and 0 <= top < bottom <= 60 for left, top, right, bottom in boxes)
    assert max(right - left for left, _, right, _ in boxes) > 62  # more than it could be high


def test_without_crop_and_flip_it_is_a_plain_resize():
    transform = TrainingTransform(horizontal_flip=0, crop_scale=(1, 1))
    assert np.array_equal(transform(gradient(), np.random.default_rng(0)), gradient())
    result = apply(horizontal_flip=0, crop_scale=(1, 1))
    by_pil = np.asarray(Image.fromarray(gradient()).resize((48, 32), Image.Resampling.BILINEAR))
    assert np.abs(result.astype(int) - by_pil).max() <= 1


def test_flip_comes_as_often_as_asked():
    plain = TrainingTransform(horizontal_flip=0, crop_scale=(1, 1))(gradient(), np.random.default_rng(0))
    flip = TrainingTransform(horizontal_flip=1, crop_scale=(1, 1))
    assert np.array_equal(flip(gradient(), np.random.default_rng(0)), plain[:, ::-1])
    flip = TrainingTransform(horizontal_flip=0.25, crop_scale=(1, 1))
    flipped = [not np.array_equal(flip(gradient(), np.random.default_rng(seed)), plain) for seed in range(400)]
    assert 0.18 < np.mean(flipped) < 0.32


def test_crops_have_the_scale_and_ratio_asked_for():
    """Read off the gradient, whose full range is 1 in each direction."""
    scales, ratios, lefts = [], [], []
    for seed in range(300):
        result = apply(seed, image=gradient(400, 300), size=(64, 64), horizontal_flip=0, crop_scale=(0.3, 0.8))
        # the outermost pixels' centres are 63 of 64 steps apart
        width = (float(result[32, -1, 0]) - float(result[32, 0, 0])) / 255 * 64 / 63
        height = (float(result[-1, 32, 1]) - float(result[0, 32, 1])) / 255 * 64 / 63
        scales.append(width * height)
        ratios.append(width / height)
        lefts.append(float(result[32, 0, 0]) / 255 / max(1 - width, 1e-3))
    assert 0.28 < min(scales) < 0.34 and 0.76 < max(scales) < 0.82
    assert 0.73 < min(ratios) < 0.80 and 1.25 < max(ratios) < 1.36
    assert 0.4 < np.mean(ratios) / 2 < 0.6
    assert np.min(lefts) < 0.1 and np.max(lefts) > 0.85  # anywhere in the image


def test_a_crop_keeps_the_shape_of_a_tall_image():
    """171 x 267 is squashed to a square at evaluation: so are its crops."""
    transform = TrainingTransform(horizontal_flip=0, crop_scale=(0.49, 0.49), crop_ratio=(1, 1))
    assert transform(gradient(171, 267), np.random.default_rng(0)).shape == (187, 120, 3)
    result = resize(transform(gradient(171, 267), np.random.default_rng(0)), (64, 64))
    width = (float(result[32, -1, 0]) - float(result[32, 0, 0])) / 255 * 64 / 63
    height = (float(result[-1, 32, 1]) - float(result[0, 32, 1])) / 255 * 64 / 63
    assert width == pytest.approx(0.7, abs=0.02) and height == pytest.approx(0.7, abs=0.02)


def test_colours_stay_unless_asked():
    """An image of one colour comes out in exactly this colour, however it is cropped and flipped."""
    image = np.full((70, 50, 3), (201, 34, 98), dtype=np.uint8)
    for seed in range(30):
        assert (apply(seed, image=image) == (201, 34, 98)).all()
    changed = [apply(seed, image=image, colour_jitter=0.2) for seed in range(30)]
    assert len({result[0, 0].tobytes() for result in changed}) > 25
    assert all(abs(result[0, 0].astype(int) - (201, 34, 98)).max() < 110 for result in changed)


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (2, 300)])
def test_tiny_images_have_a_crop(size):
    for seed in range(50):
        cropped = TrainingTransform(crop_scale=(0.05, 1))(gradient(*size), np.random.default_rng(seed))
        assert min(cropped.shape[:2]) >= 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"horizontal_flip": 1.5}, "must be a probability; got 1.5"),
        ({"crop_scale": (0.0, 1.0)}, r"a range within \(0, 1\]; got \(0.0, 1.0\)"),
        ({"crop_scale": (0.9, 0.5)}, "crop_scale"),
        ({"crop_scale": (0.5, 1.2)}, "crop_scale"),
        ({"crop_ratio": (1.1, 1.3)}, "must be a range around 1; got"),
        ({"colour_jitter": 1.0}, r"must be in \[0, 1\); got 1.0"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(ValueError, match=message):
        TrainingTransform(**options)
