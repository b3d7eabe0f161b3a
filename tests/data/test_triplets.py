"""Ready triplets in their own schema."""

import pytest
from datasets import ClassLabel, Dataset, Features, Image, Value

from cca_hf.data.triplets import to_triplet_dataset
from cca_hf.models.images import load_image


def triplets(encode, conditions, kind=None):
    columns = {
        name: [{"bytes": encode(3 * row + place, "red"), "path": None} for row in range(len(conditions))]
        for place, name in enumerate(("anchor", "positive", "negative"))
    }
    features = {name: Image() for name in columns}
    return Dataset.from_dict(
        {"condition": conditions, **columns}, features=Features(condition=kind or Value("string"), **features)
    )


def test_conditions_become_ids_and_pictures_stay_undecoded(encode):
    dataset = to_triplet_dataset(triplets(encode, ["heel", "closure", "heel"]))
    assert dataset.features["condition"] == ClassLabel(names=["closure", "heel"])
    assert list(dataset["condition"]) == [1, 0, 1]
    assert dataset.features["anchor"] == Image(decode=False)
    assert load_image(dataset[1]["negative"]).tobytes() == load_image(encode(5, "red")).tobytes()


def test_the_models_attributes_fix_the_order(encode):
    source = triplets(encode, ["heel", "closure", "heel"])
    assert list(to_triplet_dataset(source, ["heel", "material", "closure"])["condition"]) == [0, 2, 0]
    with pytest.raises(ValueError, match=r"'heel' \(did you mean 'heels'\?\)"):
        to_triplet_dataset(source, ["heels", "closure"])
    kept = to_triplet_dataset(triplets(encode, [1, 0], ClassLabel(names=["x", "y"])))
    assert list(kept["condition"]) == [1, 0] and kept.features["condition"].names == ["x", "y"]


def test_what_is_refused(encode):
    source = triplets(encode, ["heel", None])
    with pytest.raises(ValueError, match="1 of 2 triplets have no condition"):
        to_triplet_dataset(source)
    with pytest.raises(ValueError, match=r"no column 'negative'; there are: anchor, condition, positive"):
        to_triplet_dataset(source.remove_columns("negative"))
    with pytest.raises(ValueError, match="there are no triplets"):
        to_triplet_dataset(source.select([]))
