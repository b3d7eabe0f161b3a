"""The pipeline saved beside the weights: a condition by name, and no keyword swallowed."""

import pytest
import torch
from transformers import pipeline

from cca_hf import CCAPipeline


@pytest.fixture
def extract(model, tmp_path):
    model.save_pretrained(tmp_path)
    return pipeline("image-feature-extraction", model=str(tmp_path), trust_remote_code=True)


def test_one_attribute_a_list_and_all(extract, model, pictures):
    expected = model.encode(pictures[0])[0]
    vector = extract(pictures[0], attribute="shape")
    assert isinstance(vector, list) and vector == pytest.approx(expected[1].tolist(), abs=1e-5)
    for word in ("attribute", "attributes"):
        vectors = extract(pictures[0], **{word: ["heel height", "colour"]})
        assert list(vectors) == ["heel height", "colour"]
        assert vectors["colour"] == pytest.approx(expected[0].tolist(), abs=1e-5)
    assert extract(pictures[0], attributes="shape") == {"shape": pytest.approx(vector, abs=1e-6)}
    assert list(extract(pictures[0])) == ["colour", "shape", "heel height"]


def test_lists_of_pictures_in_batches(extract, model, pictures):
    expected = model.encode(pictures, "colour")[:, 0]
    rows = extract(pictures, attribute="colour", batch_size=2)
    assert [len(row) for row in rows] == [32] * 5
    assert rows[4] == pytest.approx(expected[4].tolist(), abs=1e-5)


def test_tensors(extract, pictures):
    vector = extract(pictures[0], attribute="colour", return_tensors=True)
    assert isinstance(vector, torch.Tensor) and vector.shape == (32,)


def test_unknown_names_are_refused(extract, pictures):
    with pytest.raises(TypeError, match=r"no parameter 'atribute'. It knows `attribute` \(one of \['colour', 'shape'"):
        extract(pictures[0], atribute="colour")
    with pytest.raises(ValueError, match="Did you mean 'colour'"):
        extract(pictures[0], attribute="colours")
    with pytest.raises(ValueError, match="either attribute or attributes, and not both"):
        extract(pictures[0], attribute="colour", attributes="shape")
    with pytest.raises(ValueError, match="attributes is empty: name at least one, or leave it out for all"):
        extract(pictures[0], attribute=[])


def test_without_remote_code(model, pictures, tmp_path):
    model.save_pretrained(tmp_path)
    extract = CCAPipeline(model=model, image_processor=model.image_processor)
    assert len(extract(pictures[0], attribute="colour")) == 32
