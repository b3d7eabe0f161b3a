"""A saved checkpoint in sentence-transformers: the vectors of `encode`, its own tools, and what it refuses."""

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer, util

from cca_hf import CCAModel

try:
    from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator, TripletEvaluator
except ImportError:  # before version 6
    from sentence_transformers.evaluation import InformationRetrievalEvaluator, TripletEvaluator


@pytest.fixture
def checkpoint(model, tmp_path):
    model.save_pretrained(tmp_path / "cca-tiny")
    return tmp_path / "cca-tiny"


@pytest.fixture
def sentence_model(checkpoint):
    return SentenceTransformer(str(checkpoint), trust_remote_code=True, device="cpu")


def test_the_vectors_of_encode(sentence_model, model, pictures, tmp_path):
    for place, picture in enumerate(pictures):
        picture.save(tmp_path / f"{place}.png")
    paths = [str(tmp_path / f"{place}.png") for place in range(len(pictures))]
    arrays = [np.asarray(picture) for picture in pictures]
    for name in model.config.attributes:
        expected = model.encode(pictures, name)[:, 0]
        for given in (pictures, paths, arrays):
            found = sentence_model.encode(given, attribute=name, batch_size=2)
            np.testing.assert_allclose(found, expected, atol=1e-6)
        for words in ({"attribute": name}, {"attributes": name}, {"attributes": [name]}):
            np.testing.assert_allclose(sentence_model.encode(pictures[0], **words), expected[0], atol=1e-6)
    assert not np.allclose(
        sentence_model.encode(pictures, attribute="colour"), sentence_model.encode(pictures, attribute="shape")
    )


def test_unsupported_arguments_are_refused(sentence_model, checkpoint, pictures):
    with pytest.raises(
        ValueError, match=r"'atribute'.*valid additional keyword arguments are: \['attributes?', 'attr"
    ):
        sentence_model.encode(pictures, atribute="colour")
    with pytest.raises(ValueError, match="unknown attribute 'color'. Did you mean 'colour'"):
        sentence_model.encode(pictures, attribute="color")
    with pytest.raises(ValueError, match="either attribute or attributes, and not both"):
        sentence_model.encode(pictures, attribute="colour", attributes="shape")
    for several in ({}, {"attribute": ["colour", "shape"]}, {"attributes": ["colour", "shape"]}):
        with pytest.raises(ValueError, match=r"name one attribute, such as encode\(images, attribute='colour'\)"):
            sentence_model.encode(pictures, **several)
    with pytest.raises(ValueError, match="Did you mean 'colour'"):
        SentenceTransformer(str(checkpoint), trust_remote_code=True, model_kwargs={"attribute": "color"})
    with pytest.raises(ValueError, match="takes only model_kwargs; got config_kwargs"):
        SentenceTransformer(str(checkpoint), trust_remote_code=True, config_kwargs={"embedding_dim": 3})
    with pytest.raises(ValueError, match="runs on backend='torch'"):
        SentenceTransformer(str(checkpoint), trust_remote_code=True, backend="onnx")


def test_settings_of_texts(sentence_model, pictures):
    with pytest.raises(ValueError, match="knows no prompt"):
        sentence_model[0].preprocess(pictures, prompt="photo of a ")
    with pytest.raises(ValueError, match="knows no max_length"):
        sentence_model[0].preprocess(pictures, max_length=8)


def test_inputs_as_mappings(sentence_model, model, pictures):
    """As sentence-transformers and mteb pass an image to a model of several modalities."""
    expected = model.encode(pictures, "colour")[:, 0]
    module = sentence_model[0]  # `encode` takes dicts from version 6 on, and passes them to `preprocess`
    features = module.preprocess([{"image": picture} for picture in pictures])
    found = module(features, attribute="colour")["sentence_embedding"].detach().numpy()
    np.testing.assert_allclose(found, expected, atol=1e-6)
    with pytest.raises(ValueError, match="knows no 'text' beside 'image'"):
        module.preprocess([{"image": pictures[0], "text": "a shoe"}])


def test_similarity_and_search(sentence_model, model, pictures):
    embeddings = sentence_model.encode(pictures, attribute="shape", convert_to_tensor=True)
    similar = sentence_model.similarity(embeddings, embeddings).numpy()
    expected = model.encode(pictures, "shape")[:, 0]
    np.testing.assert_allclose(similar, expected @ expected.T, atol=1e-5)
    hits = util.semantic_search(embeddings, embeddings, top_k=2)
    assert [own[0]["corpus_id"] for own in hits] == list(range(len(pictures)))
    assert [own[1]["corpus_id"] for own in hits] == (similar - 9 * np.eye(len(pictures))).argmax(axis=1).tolist()


def test_its_evaluators(checkpoint, model, pictures):
    """They call `encode` without an attribute: it is named on loading."""
    sentence_model = SentenceTransformer(
        str(checkpoint), trust_remote_code=True, device="cpu", model_kwargs={"attribute": "shape"}
    )
    own = model.encode(pictures, "shape")[:, 0]
    similar = own @ own.T - 9 * np.eye(len(pictures))
    nearest, farthest = similar.argmax(axis=1), (similar + 99 * np.eye(len(pictures))).argmin(axis=1)
    right = TripletEvaluator(pictures, [pictures[row] for row in nearest], [pictures[row] for row in farthest])
    wrong = TripletEvaluator(pictures, [pictures[row] for row in farthest], [pictures[row] for row in nearest])
    assert (right(sentence_model)["cosine_accuracy"], wrong(sentence_model)["cosine_accuracy"]) == (1.0, 0.0)
    corpus = {str(row): picture for row, picture in enumerate(pictures)}
    queries = {f"q{row}": picture for row, picture in enumerate(pictures)}
    found = InformationRetrievalEvaluator(queries, corpus, {f"q{row}": {str(row)} for row in range(len(pictures))})
    assert found(sentence_model)["cosine_accuracy@1"] == 1.0
    np.testing.assert_allclose(sentence_model.encode(pictures), own, atol=1e-6)
    with pytest.raises(AssertionError):  # an attribute that a call names goes before it
        np.testing.assert_allclose(sentence_model.encode(pictures, attribute="colour"), own, atol=1e-3)


def test_saved_by_sentence_transformers(sentence_model, model, pictures, tmp_path):
    """It is a whole checkpoint again, for both."""
    sentence_model.save_pretrained(str(tmp_path / "again"))
    expected = model.encode(pictures, "colour")[:, 0]
    again = SentenceTransformer(str(tmp_path / "again"), trust_remote_code=True, device="cpu")
    np.testing.assert_allclose(again.encode(pictures, attribute="colour"), expected, atol=1e-6)
    loaded = CCAModel.from_pretrained(tmp_path / "again")
    np.testing.assert_allclose(loaded.encode(pictures, "colour")[:, 0], expected, atol=1e-6)
    assert again[0].get_embedding_dimension() == len(expected[0])


def test_the_attribute_that_was_set_is_saved(checkpoint, model, pictures, tmp_path):
    expected = {name: model.encode(pictures, name)[:, 0] for name in model.config.attributes}
    options = {"trust_remote_code": True, "device": "cpu"}
    first = SentenceTransformer(str(checkpoint), model_kwargs={"attribute": "shape"}, **options)
    first.save_pretrained(str(tmp_path / "again"))
    again = SentenceTransformer(str(tmp_path / "again"), **options)
    np.testing.assert_allclose(again.encode(pictures), expected["shape"], atol=1e-6)
    np.testing.assert_allclose(again.encode(pictures, attribute="colour"), expected["colour"], atol=1e-6)
    other = SentenceTransformer(str(tmp_path / "again"), model_kwargs={"attribute": "heel height"}, **options)
    np.testing.assert_allclose(other.encode(pictures), expected["heel height"], atol=1e-6)
