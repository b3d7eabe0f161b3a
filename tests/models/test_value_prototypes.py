"""Prototypes of values: stored with a model, sent through its map, and used to change embeddings."""

import numpy as np
import pytest
import torch
from transformers import AutoModel

from cca_hf import ADDEModel, CCAModel
from cca_hf.models.modeling_separate import SeparateModel

from .conftest import ATTRIBUTES

KNOWN = np.array([[True, True, False], [True, False, True], [False, False, False]])


def random_vectors(*shape):
    return np.random.default_rng(0).normal(size=shape)


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


@pytest.fixture(params=["cca", "adde"])
def model(request, vit_config):
    torch.manual_seed(0)
    model_class = {"cca": CCAModel, "adde": ADDEModel}[request.param]
    made = model_class.from_backbone(vit_config, ATTRIBUTES, embedding_dim=8)
    return made.set_prototypes(3 * random_vectors(3, 3, 8), KNOWN)


def test_each_value_has_its_row(model):
    rows = unit(random_vectors(3, 3, 8))
    assert model.has_prototypes
    assert {name: list(model.value_prototypes(name)) for name in ATTRIBUTES} == {
        "colour": ["red", "blue"],
        "shape": ["round", "long"],
        "heel height": [],
    }
    np.testing.assert_allclose(model.value_prototypes("shape")["long"], rows[1, 2], atol=1e-6)
    assert model.value_prototypes("shape")["long"].dtype == np.float32


def test_a_fitted_map_maps_them_too(model):
    """A prototype is compared with embeddings, and so is what the model would return for it."""
    before = model.value_prototypes("colour")["blue"]
    model.set_attribute_map("project")
    projection, offset = torch.rand(8, 8), torch.rand(8)
    model.subspaces.set(0, projection, offset)
    expected = unit(projection.numpy() @ before + offset.numpy())
    np.testing.assert_allclose(model.value_prototypes("colour")["blue"], expected, atol=1e-5)
    changed = model.manipulate(unit(random_vectors(3, 8)), add={"colour": "blue"})
    np.testing.assert_allclose(changed[0], expected, atol=1e-5)
    np.testing.assert_array_equal(changed[1:], unit(random_vectors(3, 8))[1:])


@pytest.mark.parametrize("shape", [(), (4,), (2, 0), (2, 3)])
@pytest.mark.parametrize("kind", [np.float32, np.float64, torch.float32, torch.float16])
def test_changes_by_hand(model, shape, kind):
    embeddings = unit(random_vectors(*shape, 3, 8))
    given = torch.tensor(embeddings, dtype=kind) if isinstance(kind, torch.dtype) else embeddings.astype(kind)
    tolerance = 2e-3 if kind == torch.float16 else 1e-6
    before = given.clone() if isinstance(given, torch.Tensor) else given.copy()
    red, long = model.value_prototypes("colour")["red"], model.value_prototypes("shape")["long"]

    def check(found, expected):
        assert type(found) is type(given) and found.dtype == given.dtype and found.shape == given.shape
        np.testing.assert_allclose(np.asarray(found, dtype=np.float64), expected, atol=tolerance)

    expected = embeddings.copy()
    expected[..., 0, :] = red
    check(model.manipulate(given, add={"colour": "red"}), expected)
    expected[..., 1, :], expected[..., 2, :] = long, 0
    check(model.manipulate(given, add={"colour": "red", "shape": "long"}, remove=["heel height"]), expected)
    expected = embeddings.copy()
    rest = expected[..., 1, :] - (expected[..., 1, :] @ long)[..., None] * long
    expected[..., 1, :] = unit(rest)
    check(model.manipulate(given, remove={"shape": "long"}), expected)
    check(model.manipulate(given), embeddings)
    assert (given == before).all()


def test_another_value_is_removed_from_the_new_one(model):
    red, blue = (model.value_prototypes("colour")[name] for name in ("red", "blue"))
    changed = model.manipulate(np.ones((3, 8)), add={"colour": "red"}, remove={"colour": "blue"})
    np.testing.assert_allclose(changed[0], unit(red - (red @ blue) * blue), atol=1e-6)
    assert not model.manipulate(np.stack([red, red, red]), remove={"colour": "red"})[0].round(5).any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"add": {"color": "red"}}, "unknown attribute 'color'. Did you mean 'colour'"),
        ({"remove": ["color"]}, "unknown attribute 'color'. Did you mean 'colour'"),
        ({"remove": "shapes"}, "unknown attribute 'shapes'. Did you mean 'shape'"),
        (
            {"add": {"colour": "rde"}},
            r"unknown value 'rde' of 'colour'. Did you mean 'red'\? Its values are \['red', 'blue'\]",
        ),
        ({"remove": {"colour": "rde"}}, "unknown value 'rde' of 'colour'. Did you mean 'red'"),
        (
            {"add": {"shape": "square"}},
            r"'square' of 'shape' has no prototype: no training image showed it. The values with a prototype are "
            r"\['round', 'long'\]",
        ),
        ({"add": {"heel height": "flat"}}, "'heel height' has no prototypes of its values"),
        ({"add": {"colour": "red"}, "remove": ["colour"]}, "'colour' is in add, with 'red', and in remove"),
        (
            {"add": {"colour": "red"}, "remove": {"colour": "red"}},
            "the value 'red' of 'colour' is in add and in remove",
        ),
        ({"add": "red"}, "add takes values by attribute name, such as {'colour': 'red'}; got 'red'"),
    ],
)
def test_changes_that_cannot_be_made(model, changes, message):
    with pytest.raises(ValueError, match=message):
        model.manipulate(np.ones((2, 3, 8), dtype=np.float32), **changes)


def test_other_bad_input(model, vit_config):
    with pytest.raises(ValueError, match=r"must be \(..., 3, 8\), under all of .*; got \(2, 1, 8\)"):
        model.manipulate(np.ones((2, 1, 8)), add={"colour": "red"})
    for vectors, known, message in (
        (np.ones((3, 2, 8)), KNOWN, r"need vectors of shape \(3, 3, 8\) .* shape \(3, 3\); got \(3, 2, 8\) and"),
        (np.ones((3, 3, 8)), None, "set_prototypes needs known"),
        (np.ones((3, 3, 8)), np.ones((3, 3)), "known marks value 2 of 'colour', which has 2 values"),
        (np.zeros((3, 3, 8)), KNOWN, "the prototype of 'red' of 'colour' is 0, NaN or infinite"),
        (np.full((3, 3, 8), np.nan), KNOWN, "the prototype of 'red' of 'colour' is 0, NaN or infinite"),
    ):
        with pytest.raises(ValueError, match=message):
            model.set_prototypes(vectors, known)
    assert not model.set_prototypes(None).has_prototypes
    with pytest.raises(ValueError, match="this model has no prototypes of values"):
        model.manipulate(np.ones((3, 8)), add={"colour": "red"})


@torch.no_grad()
def test_saved_with_the_model(model, tmp_path, pictures):
    before = model.fingerprint()
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    for name in ATTRIBUTES:
        expected = model.value_prototypes(name)
        assert list(loaded.value_prototypes(name)) == list(expected)
        for value, vector in loaded.value_prototypes(name).items():
            np.testing.assert_array_equal(vector, expected[value])
    assert loaded.fingerprint() == before == loaded.set_prototypes(None).fingerprint()
    model.set_prototypes(None).save_pretrained(tmp_path)
    assert not AutoModel.from_pretrained(tmp_path).has_prototypes


def test_of_networks_that_are_joined(vit_config, tmp_path):
    networks = [CCAModel.from_backbone(vit_config, {name: values}) for name, values in ATTRIBUTES.items()]
    rows = random_vectors(3, 3, 32)
    for place, (network, values) in enumerate(zip(networks, ATTRIBUTES.values(), strict=True)):
        assert not SeparateModel.join(networks).has_prototypes  # the last network has none yet
        network.set_prototypes(rows[place, None, : len(values)], np.ones((1, len(values))))
    joined = SeparateModel.join(networks)
    joined.save_pretrained(tmp_path)
    for model in (joined, AutoModel.from_pretrained(tmp_path)):
        np.testing.assert_allclose(model.value_prototypes("shape")["long"], unit(rows)[1, 2], atol=1e-6)
        assert list(model.value_prototypes("colour")) == ["red", "blue"]


def test_an_attribute_that_is_added_later_has_none(vit_config, tmp_path):
    texts = {name: np.eye(4)[row] for row, name in enumerate(ATTRIBUTES)}
    options = {"condition_embedding": "text", "text_embeddings": texts, "embedding_dim": 8}
    model = CCAModel.from_backbone(vit_config, ATTRIBUTES, **options).set_prototypes(random_vectors(3, 3, 8), KNOWN)
    model.add_attribute("heel", np.eye(4)[3])
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert loaded.value_prototypes("heel") == {} and list(loaded.value_prototypes("shape")) == ["round", "long"]
    with pytest.raises(ValueError, match="'heel' has no prototypes of its values"):
        loaded.manipulate(np.ones((4, 8)), add={"heel": "flat"})
