"""Conditions made of text: stored in the checkpoint, asked by name, and one more added without training."""

import json
import os

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from cca_hf import CCAModel

WIDTH = 12


def text_embedding(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=WIDTH)


@pytest.fixture
def make_text_model(vit_config, attributes):
    def make(**options) -> CCAModel:
        torch.manual_seed(0)
        texts = {name: text_embedding(number) for number, name in enumerate(attributes)}
        settings = {"condition_embedding": "text", "text_embeddings": texts, "text_encoder": "me/words"}
        return CCAModel.from_backbone(vit_config, attributes, **(settings | options)).eval()

    return make


@pytest.fixture
def text_model(make_text_model) -> CCAModel:
    return make_text_model()


def test_the_order_of_the_attributes_counts_and_not_that_of_the_texts(make_text_model, attributes, pictures):
    texts = {name: text_embedding(number) for number, name in enumerate(attributes)}
    backwards = make_text_model(text_embeddings=dict(reversed(texts.items())))
    expected = make_text_model(text_embeddings=texts).encode(pictures)
    np.testing.assert_allclose(backwards.encode(pictures), expected, atol=1e-6)
    np.testing.assert_allclose(  # nor does their length, or what they come as
        make_text_model(text_embeddings={name: (7 * text).tolist() for name, text in texts.items()}).encode(pictures),
        expected,
        atol=1e-6,
    )
    assert np.abs(expected[:, 0] - expected[:, 1]).max() > 1e-3


def test_the_texts_are_saved_and_not_trained(text_model, tmp_path):
    before = text_model.condition_embedding.texts.clone()
    text_model.train()
    optimizer = torch.optim.SGD(text_model.parameters(), lr=0.1)
    (1 - text_model(torch.randn(2, 3, 32, 32), torch.tensor([[0, 1], [1, 2]])).embeddings).square().sum().backward()
    assert text_model.condition_embedding.projection.weight.grad.abs().max() > 0
    optimizer.step()
    assert text_model.condition_embedding.texts.equal(before) and not before.requires_grad

    text_model.save_pretrained(tmp_path)
    assert load_file(tmp_path / "model.safetensors")["condition_embedding.texts"].equal(before)
    loaded, report = CCAModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert loaded.condition_embedding.texts.equal(before)
    assert loaded.config.text_encoder == "me/words" and loaded.config.text_embedding_dim == WIDTH


def test_a_checkpoint_that_lost_its_texts_says_so(text_model, tmp_path):
    """Missing texts are 0, and not uninitialised memory."""
    text_model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["condition_embedding.texts"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    loaded, report = CCAModel.from_pretrained(tmp_path, output_loading_info=True)
    assert report["missing_keys"] == {"condition_embedding.texts"}
    assert not loaded.condition_embedding.texts.any()


def test_an_attribute_is_added_by_its_text(text_model, pictures, tmp_path):
    with pytest.raises(ValueError, match="unknown attribute 'pattern'"):
        text_model.encode(pictures, attributes="pattern")
    before = text_model.encode(pictures)
    assert text_model.add_attribute("pattern", text_embedding(1)) is text_model  # as shape: the texts are all there is
    after = text_model.encode(pictures)
    np.testing.assert_allclose(after[:, :3], before, atol=1e-6)
    np.testing.assert_allclose(text_model.encode(pictures, attributes="pattern")[:, 0], before[:, 1], atol=1e-6)
    text_model.add_attribute("season", torch.from_numpy(text_embedding(9)))
    assert np.abs(text_model.encode(pictures, attributes="season")[:, 0] - before[:, 1]).max() > 1e-3

    text_model.save_pretrained(tmp_path)
    loaded = CCAModel.from_pretrained(tmp_path)
    assert loaded.config.attributes == ["colour", "shape", "heel height", "pattern", "season"]
    np.testing.assert_allclose(loaded.encode(pictures), text_model.encode(pictures), atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_an_added_attribute_has_the_models_dtype(make_text_model, dtype):
    model = make_text_model(dtype=dtype).add_attribute("pattern", text_embedding(5))
    assert model.condition_embedding.texts.dtype == dtype
    assert model.condition_embedding().shape == (4, 32) and model.condition_embedding().dtype == dtype


@pytest.mark.parametrize(
    ("name", "vector", "message"),
    [
        ("shape", text_embedding(0), "'shape' is an attribute of this model already"),
        ("pattern", text_embedding(0)[:5], "the text embedding of 'pattern' has 5 numbers, this model's have 12"),
        ("pattern", text_embedding(0)[None], r"must be vectors of one length; got \(1, 12\)"),
        ("pattern", np.zeros(WIDTH), "the text embedding of 'pattern' is 0, NaN or infinite"),
        ("pattern", np.full(WIDTH, np.nan), "the text embedding of 'pattern' is 0, NaN or infinite"),
    ],
)
def test_refused_attributes_leave_the_model_as_it_was(text_model, name, vector, message):
    with pytest.raises(ValueError, match=message):
        text_model.add_attribute(name, vector)
    assert len(text_model.config.attributes) == len(text_model.condition_embedding.texts) == 3


def test_learned_conditions_have_no_room_for_one_more(model):
    with pytest.raises(
        ValueError, match="'pattern' can be made from text only in a model with condition_embedding='text'"
    ):
        model.add_attribute("pattern", text_embedding(0))
    assert model.config.attributes == ["colour", "shape", "heel height"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"text_embeddings": None}, "go together"),
        ({"condition_embedding": "lookup"}, "go together"),
        ({"text_embeddings": {"colour": text_embedding(0)}}, r"must be of the attributes \['colour', 'shape', "),
        (
            {"text_embeddings": {"colour": [1.0], "shape": [1.0, 2.0], "heel height": [1.0]}},
            r"of one length; got \(2,\) for 'shape', and \(1,\) for 'colour'",
        ),
        ({"attribute_texts": {"pattern": "its pattern"}}, r"attribute_texts names \['pattern'\]"),
    ],
)
def test_unfit_texts(make_text_model, options, message):
    with pytest.raises(Exception, match=message):
        make_text_model(**options)


PROGRAM = """
import sys
sys.modules["cca_hf"] = sys.modules["sentence_transformers"] = None  # importing them raises ImportError
import json, numpy as np
from transformers import AutoModel, pipeline

first, second, picture = sys.argv[1:]
model = AutoModel.from_pretrained(first, trust_remote_code=True)
result = {"known": model.encode(picture)[0].tolist()}
model.add_attribute("season", np.random.default_rng(9).normal(size=12))
model.save_pretrained(second)
again = pipeline("image-feature-extraction", model=second, trust_remote_code=True)
print(json.dumps(result | {"all": list(again(picture).values()), "names": again.model.config.attributes}))
"""


def test_without_the_package_and_without_a_text_model(text_model, pictures, tmp_path, warm_python):
    text_model.save_pretrained(tmp_path / "first")
    pictures[0].save(tmp_path / "picture.png")
    environment = {**os.environ, "PYTHONPATH": ""}
    words = ["-c", PROGRAM, tmp_path / "first", tmp_path / "second", tmp_path / "picture.png"]
    process = warm_python.run(*words, cwd=tmp_path, env=environment, check=True)
    result = json.loads(process.stdout.splitlines()[-1])
    np.testing.assert_allclose(result["known"], text_model.encode(pictures[0])[0], atol=1e-6)
    text_model.add_attribute("season", text_embedding(9))
    assert result["names"] == text_model.config.attributes
    np.testing.assert_allclose(result["all"], text_model.encode(pictures[0])[0], atol=1e-6)
