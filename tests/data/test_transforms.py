"""Flip and crop, reproducibly; and no change of colour unless asked."""

import numpy as np
import pytest
from PIL import Image

from cca_hf.data.transforms import TrainingTransform


def gradient(width=80, height=60):
    """Red grows to the right, green downwards, blue is constant: a pixel tells where it was."""
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    pixels[..., 0] = np.linspace(0, 255, width)[None, :]
    pixels[..., 1] = np.linspace(0, 255, height)[:, None]
    pixels[..., 2] = 100
    return Image.fromarray(pixels)


def apply(seed=0, image=None, size=(32, 48), **options):
    transform = TrainingTransform(size, **options)
    return np.asarray(transform(image or gradient(), np.random.default_rng(seed)))


def test_the_same_seed_gives_the_same_picture():
    assert np.array_equal(apply(3, colour_jitter=0.3), apply(3, colour_jitter=0.3))
    pictures = {apply(seed).tobytes() for seed in range(20)}
    assert len(pictures) == 20


def test_the_size_is_height_then_width_and_the_given_picture_is_left_alone():
    image = gradient()
    before = image.tobytes()
    assert apply(image=image, size=(32, 48), colour_jitter=0.5).shape == (32, 48, 3)
    assert image.tobytes() == before


def test_without_crop_and_flip_it_is_a_plain_resize():
    result = apply(horizontal_flip=0, crop_scale=(1, 1))
    assert np.array_equal(result, np.asarray(gradient().resize((48, 32), Image.Resampling.BILINEAR)))
    result = apply(horizontal_flip=0, crop_scale=(1, 1), resample=Image.Resampling.BICUBIC)
    assert np.array_equal(result, np.asarray(gradient().resize((48, 32), Image.Resampling.BICUBIC)))


def test_flip_comes_as_often_as_asked():
    plain = apply(horizontal_flip=0, crop_scale=(1, 1))
    assert np.array_equal(apply(horizontal_flip=1, crop_scale=(1, 1)), plain[:, ::-1])
    flipped = [not np.array_equal(apply(seed, horizontal_flip=0.25, crop_scale=(1, 1)), plain) for seed in range(400)]
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
    assert np.min(lefts) < 0.1 and np.max(lefts) > 0.85  # anywhere in the picture


def test_a_crop_keeps_the_shape_of_a_tall_picture():
    """171 x 267 is squashed to a square at evaluation: so are its crops."""
    result = apply(
        image=gradient(171, 267), size=(64, 64), horizontal_flip=0, crop_scale=(0.49, 0.49), crop_ratio=(1, 1)
    )
    width = (float(result[32, -1, 0]) - float(result[32, 0, 0])) / 255 * 64 / 63
    height = (float(result[-1, 32, 1]) - float(result[0, 32, 1])) / 255 * 64 / 63
    assert width == pytest.approx(0.7, abs=0.02) and height == pytest.approx(0.7, abs=0.02)


def test_colours_stay_unless_asked():
    """A picture of one colour comes out in exactly this colour, however it is cropped and flipped."""
    image = Image.new("RGB", (50, 70), (201, 34, 98))
    for seed in range(30):
        assert (apply(seed, image=image) == (201, 34, 98)).all()
    changed = [apply(seed, image=image, colour_jitter=0.2) for seed in range(30)]
    assert len({picture[0, 0].tobytes() for picture in changed}) > 25
    assert all(abs(picture[0, 0].astype(int) - (201, 34, 98)).max() < 110 for picture in changed)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"horizontal_flip": 1.5}, "must be a probability; got 1.5"),
        ({"crop_scale": (0.0, 1.0)}, r"a range within \(0, 1\]; got \(0.0, 1.0\)"),
        ({"crop_scale": (0.9, 0.5)}, "crop_scale"),
        ({"crop_scale": (0.5, 1.2)}, "crop_scale"),
        ({"crop_ratio": (1.1, 1.3)}, "must be a range around 1; got"),
        ({"colour_jitter": 1.0}, r"must lie in \[0, 1\); got 1.0"),
        ({"size": (0, 10)}, r"\(height, width\) in pixels"),
    ],
)
def test_what_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        TrainingTransform(options.pop("size", (32, 32)), **options)
