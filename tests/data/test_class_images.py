"""Batches of images with classes: their order, their labels, and the random changes of kornia."""

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image

from cca_hf.data.augmentation import Augmentation
from cca_hf.data.class_images import ClassCollator, ClassImages, ShuffledBatches, TrainingCollator
from cca_hf.data.loading import load_attribute_dataset
from cca_hf.data.sampler import SampleKey
from cca_hf.data.torch_dataset import TrainingTransform
from cca_hf.models.backbones import make_image_processor


@pytest.fixture(scope="module")
def images() -> ClassImages:
    """8 images of 20 x 12 pixels in 3 classes; two of them are not labelled."""
    random = np.random.default_rng(0)
    levels = [random.integers(0, 256, (20, 12, 3), dtype=np.uint8) for _ in range(8)]
    features = Features({"image": Image(), "kind": ClassLabel(names=["a", "b", "c"])})
    rows = Dataset.from_dict({"image": levels, "kind": [0, -1, 1, 2, 0, -1, 1, 2]}, features)
    data = load_attribute_dataset(DatasetDict({"train": rows}), ["kind"], make_splits=False)
    return ClassImages(data, "train", TrainingTransform())


def test_labelled_images_only(images) -> None:
    assert len(images) == 6 and images.rows.tolist() == [0, 2, 3, 4, 6, 7] and images.classes == ["a", "b", "c"]
    assert [images[place]["label"] for place in range(6)] == [0, 1, 2, 0, 1, 2]
    whole, changed = images[1], images[SampleKey(1, 7)]
    assert whole["image"].shape == (20, 12, 3) and whole["seed"] == 0 and changed["seed"] == 7
    assert changed["image"].shape != whole["image"].shape  # a crop
    assert np.array_equal(changed["image"], images[SampleKey(1, 7)]["image"])


def test_an_epoch_contains_each_image_once() -> None:
    sampler = ShuffledBatches(10, batch_size=4, seed=3)
    first = [*sampler]
    assert [len(batch) for batch in first] == [4, 4, 2] == [4] * 2 + [2] and len(sampler) == 3
    assert sorted(key.index for batch in first for key in batch) == [*range(10)]
    assert [*sampler] == first
    sampler.set_epoch(1)
    assert [*sampler] != first
    assert [len(batch) for batch in ShuffledBatches(10, batch_size=4, drop_last=True)] == [4, 4]
    with pytest.raises(ValueError, match="dataloader_drop_last leaves no batch: 3 images are fewer than a batch of 4"):
        ShuffledBatches(3, batch_size=4, drop_last=True)


def test_collators(images) -> None:
    processor = make_image_processor((16, 8))
    examples = [images[place] for place in range(3)]
    plain = ClassCollator(processor)(examples)
    assert plain["pixel_values"].shape == (3, 3, 16, 8) and plain["labels"].tolist() == [0, 1, 2]
    batch = TrainingCollator(processor, 3, label_smoothing=0.3)(examples)
    assert torch.equal(batch["pixel_values"], plain["pixel_values"])
    assert batch["labels"].tolist()[1] == pytest.approx([0.1, 0.8, 0.1])


def coloured(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Images of one value each, and the probabilities of as many classes."""
    return values[:, None, None, None].expand(-1, 3, 30, 20).clone(), torch.eye(len(values))


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_mixed_labels_are_the_shares_of_the_images(kind) -> None:
    """The mean of a mixed image is the mean of the values of its classes, weighted by its label."""
    values = torch.tensor([0.0, 1.0, 2.0, 4.0, 8.0])
    pixel_values, labels = coloured(values)
    augmentation = Augmentation(**{kind: 1.0})
    mixed, soft = augmentation.change_batch(pixel_values, labels, seed=5)
    assert torch.allclose(mixed.mean(dim=(1, 2, 3)), soft @ values, atol=1e-5)
    assert torch.allclose(soft.sum(dim=1), torch.ones(5)) and (soft.max(dim=1).values < 1).any()
    again, _ = augmentation.change_batch(pixel_values, labels, seed=5)
    other, _ = augmentation.change_batch(pixel_values, labels, seed=6)
    assert torch.equal(mixed, again) and not torch.equal(mixed, other)


def test_shares_of_the_batches() -> None:
    pixel_values, labels = coloured(torch.arange(4.0))
    augmentation = Augmentation(mixup=0.5)
    changed = [not torch.equal(augmentation.change_batch(pixel_values, labels, seed)[1], labels) for seed in range(60)]
    assert 15 < sum(changed) < 45


def test_erasing_and_rand_augment_are_functions_of_the_seed(images) -> None:
    state = torch.random.get_rng_state()
    augmentation = Augmentation(rand_augment=15, random_erasing=1.0)
    pixel_values, labels = coloured(torch.ones(4))
    erased, same = augmentation.change_batch(pixel_values, labels, seed=0)
    assert torch.equal(same, labels) and set(erased.unique().tolist()) == {0.0, 1.0}
    levels = torch.from_numpy(images[0]["image"]).permute(2, 0, 1)
    changed = [augmentation.change_image(levels, seed) for seed in range(4)]
    assert all(each.shape == levels.shape and 0 <= each.min() and each.max() <= 255.01 for each in changed)
    assert torch.equal(changed[0], augmentation.change_image(levels, 0)) and not torch.equal(changed[0], changed[1])
    assert torch.equal(torch.random.get_rng_state(), state)  # the generator of the training is untouched


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mixup": 0.7, "cutmix": 0.5}, "mixup and cutmix are shares of the batches: 0.7 and 0.5 are more than 1"),
        ({"rand_augment": 30}, "rand_augment must be above 0 and below 30, got 30"),
        ({"random_erasing": 1.5}, "random_erasing must be between 0 and 1, got 1.5"),
    ],
)
def test_bad_settings(settings, message) -> None:
    with pytest.raises(ValueError, match=message):
        Augmentation(**settings)
