"""From rows to tensors: the torch data set, its workers, and the collator against the image processors themselves."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.mobilenet_v2.image_processing_pil_mobilenet_v2 import MobileNetV2ImageProcessorPil
from transformers.models.mobilevit.image_processing_pil_mobilevit import MobileViTImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from cca_hf.data.loading import load_attribute_dataset
from cca_hf.data.sampler import AttributeBatchSampler, SampleKey
from cca_hf.data.torch_dataset import AttributeCollator, AttributeImages, TrainingTransform
from cca_hf.models.encoding import pixel_batches
from cca_hf.models.images import load_image

SQUARE = {"height": 32, "width": 32}


@pytest.fixture
def data(rows, built):
    return load_attribute_dataset(built(rows), ["colour", "size"], make_splits=False)


@pytest.fixture
def images():
    random = np.random.default_rng(0)
    return [Image.fromarray(random.integers(0, 256, (32, 32, 3), dtype=np.uint8)) for _ in range(6)]


def examples_of(images):
    return [{"image": np.array(image), "labels": torch.tensor([index, -1])} for index, image in enumerate(images)]


# ---- The torch data set ----


def test_a_row_is_the_image_as_it_is(data, rows, encode):
    images = AttributeImages(data, "train", TrainingTransform())
    assert len(images) == 30
    example = images[4]
    assert np.array_equal(example["image"], load_image(encode(4, rows[4]["colour"])))
    assert example["labels"].dtype == torch.int64
    assert example["labels"].tolist() == [["blue", "green", "red"].index(rows[4]["colour"]), -1]


def test_a_key_is_augmented_by_its_seed(data):
    transform = TrainingTransform()
    images = AttributeImages(data, "train", transform)
    first = images[SampleKey(3, 123)]["image"]
    expected = transform(images[3]["image"], np.random.default_rng(123))
    assert first.shape != (18, 24, 3) and np.array_equal(first, expected)
    assert np.array_equal(first, images.__getitems__([SampleKey(5, 1), SampleKey(3, 123)])[1]["image"])
    assert not np.array_equal(first, images[SampleKey(3, 124)]["image"])
    assert AttributeImages(data, "train")[SampleKey(3, 123)]["image"].shape == (18, 24, 3)  # nothing to apply


def test_batches_do_not_depend_on_the_workers(data):
    images = AttributeImages(data, "train", TrainingTransform())
    sampler = AttributeBatchSampler(images.labels.numpy(), batch_size=8, images_per_value=2)
    collator = AttributeCollator(ViTImageProcessorPil(size=SQUARE))
    batches = {}
    for workers in (0, 2):
        loader = DataLoader(images, batch_sampler=sampler, collate_fn=collator, num_workers=workers)
        batches[workers] = list(loader)
    assert len(batches[0]) == len(sampler)
    for alone, together in zip(batches[0], batches[2], strict=True):
        assert alone["pixel_values"].shape == (8, 3, 32, 32) and alone["labels"].shape == (8, 2)
        assert torch.equal(alone["pixel_values"], together["pixel_values"])
        assert torch.equal(alone["labels"], together["labels"])


# ---- The collator ----

PAD = {"size": {"max_height": 32, "max_width": 32}, "do_pad": True, "pad_size": SQUARE}
PROCESSORS = [
    ViTImageProcessorPil(size=SQUARE),
    ViTImageProcessorPil(size=SQUARE, image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225]),
    ViTImageProcessorPil(size=SQUARE, do_normalize=False),
    ViTImageProcessorPil(size=SQUARE, do_rescale=False, do_normalize=False),
    ViTImageProcessorPil(**PAD),
    SiglipImageProcessorPil(size=SQUARE),
    CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=SQUARE),
    MobileNetV2ImageProcessorPil(size={"shortest_edge": 36}, crop_size=SQUARE),
    MobileViTImageProcessorPil(size={"shortest_edge": 36}, crop_size=SQUARE),  # swaps red and blue
]


@pytest.mark.parametrize("processor", PROCESSORS, ids=lambda processor: type(processor).__name__)
def test_images_become_what_the_processor_makes_of_them(processor, images):
    """Exactly so where there is nothing to resize: scaling, cropping, padding and channel swaps."""
    batch = AttributeCollator(processor)(examples_of(images))
    expected = processor(images, return_tensors="pt")["pixel_values"]
    assert batch["pixel_values"].dtype == torch.float32 and batch["pixel_values"].shape == (6, 3, 32, 32)
    torch.testing.assert_close(batch["pixel_values"], expected.float(), rtol=1e-6, atol=1e-6)
    assert batch["labels"].tolist() == [[index, -1] for index in range(6)]


@pytest.mark.parametrize("processor", PROCESSORS, ids=lambda processor: type(processor).__name__)
def test_a_batch_has_the_pixel_values_of_encode(processor):
    random = np.random.default_rng(1)
    sizes = [(40, 50), (64, 36), (33, 90)]
    images = [Image.fromarray(random.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in sizes]
    batch = AttributeCollator(processor)(examples_of(images))
    model = SimpleNamespace(image_processor=processor, device=torch.device("cpu"), dtype=torch.float32)
    (used,) = pixel_batches(model, images, batch_size=3)
    assert torch.equal(batch["pixel_values"], used.values)
    assert batch["pixel_values"].shape == (3, 3, 32, 32)


def test_a_processor_that_came_from_disk(tmp_path, images):
    ViTImageProcessorPil(size=SQUARE, image_mean=[0.1, 0.2, 0.3]).save_pretrained(tmp_path)
    processor = ViTImageProcessorPil.from_pretrained(tmp_path)
    batch = AttributeCollator(processor)(examples_of(images))
    expected = processor(images, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(batch["pixel_values"], expected, rtol=1e-6, atol=1e-6)


class Darkening(ViTImageProcessorPil):
    """Does to a pixel what no factor and summand does."""

    def normalize(self, image, *args, **kwargs):
        return super().normalize(np.asarray(image) ** 2, *args, **kwargs)


def test_a_processor_of_another_kind_is_called(images):
    processor = Darkening(size=SQUARE)
    batch = AttributeCollator(processor)(examples_of(images))
    assert torch.equal(batch["pixel_values"], processor(images, return_tensors="pt")["pixel_values"])
