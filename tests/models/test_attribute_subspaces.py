"""Subspaces of a model: they change nothing until they are set, and then each attribute on its own."""

import numpy as np
import pytest
import torch

from cca_hf.models.modeling_cca import CCAModel
from cca_hf.models.modeling_separate import SeparateModel

from .conftest import ATTRIBUTES, MODELS, build, tiny_backbone

PIXELS = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
IDS = torch.arange(3).expand(4, -1)


def embed(model, ids=IDS, pixels=PIXELS):
    with torch.inference_mode():
        return model(pixels, ids).embeddings.float().numpy()


def fitted(model):
    """A model whose attributes have random subspaces of two dimensions with random offsets."""
    generator = torch.Generator().manual_seed(1)
    for place in range(len(model.config.attributes)):
        basis = torch.linalg.qr(torch.randn(32, 2, generator=generator))[0]
        model.subspaces.set(place, basis @ basis.T, 0.1 * torch.randn(32, generator=generator))
    return model


@pytest.mark.parametrize("name", MODELS)
def test_they_change_nothing_until_they_are_set(name):
    plain, with_subspaces = (build(name, tiny_backbone("vit"), attribute_subspaces=asked) for asked in (False, True))
    assert embed(with_subspaces) == pytest.approx(embed(plain), abs=1e-6)
    assert plain.subspaces is None


@pytest.mark.parametrize("name", MODELS)
def test_the_formula_by_a_loop(name):
    plain = torch.from_numpy(embed(build(name, tiny_backbone("vit")))).double()
    model = fitted(build(name, tiny_backbone("vit"), attribute_subspaces=True))
    found = embed(model)
    for picture in range(4):
        for attribute in range(3):
            kept = model.subspaces.projections[attribute].double() @ plain[picture, attribute]
            kept += model.subspaces.offsets[attribute].double()
            assert found[picture, attribute] == pytest.approx((kept / kept.norm()).numpy(), abs=1e-5)


def test_attributes_in_any_order():
    model = fitted(build("cca", tiny_backbone("vit"), attribute_subspaces=True))
    every = embed(model)
    mixed = torch.tensor([[2, 0], [1, 1], [0, 2], [2, 1]])
    rows = np.arange(4)
    assert embed(model, mixed) == pytest.approx(every[rows[:, None], mixed.numpy()], abs=1e-6)
    assert embed(model, mixed[:, 1]) == pytest.approx(every[rows, mixed[:, 1].numpy()], abs=1e-6)


def test_a_checkpoint_holds_them(tmp_path):
    model = fitted(build("cca", tiny_backbone("vit"), attribute_subspaces=True))
    model.save_pretrained(tmp_path)
    again = CCAModel.from_pretrained(tmp_path)
    assert again.config.attribute_subspaces
    assert again.subspaces.projections.equal(model.subspaces.projections)
    assert np.array_equal(embed(again), embed(model))
    half = CCAModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert embed(half, pixels=PIXELS.bfloat16()) == pytest.approx(embed(model), abs=0.15)


def test_a_checkpoint_without_them_gets_such_as_change_nothing(tmp_path):
    """Asked for afterwards: what the file lacks must not be left to chance."""
    plain = build("cca", tiny_backbone("vit"))
    plain.save_pretrained(tmp_path)
    asked = CCAModel.from_pretrained(tmp_path, attribute_subspaces=True)
    assert embed(asked) == pytest.approx(embed(plain), abs=1e-6)


def test_joined_networks_keep_theirs():
    networks = [
        fitted(CCAModel.from_backbone(tiny_backbone("vit"), {name: values}, attribute_subspaces=True)).eval()
        for name, values in ATTRIBUTES.items()
    ]
    joined = SeparateModel.join(networks)
    found = embed(joined)
    for place, network in enumerate(networks):
        assert found[:, place] == pytest.approx(embed(network, torch.zeros(4, dtype=torch.long)), abs=1e-6)


def test_an_attribute_more_is_left_as_it_is():
    random = np.random.default_rng(0)
    texts = {name: random.standard_normal(8) for name in ATTRIBUTES}
    models = [
        CCAModel.from_backbone(
            tiny_backbone("vit"),
            ATTRIBUTES,
            condition_embedding="text",
            text_embeddings=texts,
            attribute_subspaces=asked,
        ).eval()
        for asked in (False, True)
    ]
    models[1].load_state_dict(models[0].state_dict(), strict=False)
    fitted(models[1])
    added = random.standard_normal(8)
    plain, model = (each.add_attribute("closure", added) for each in models)
    last = torch.full((4,), 3)
    assert embed(model, last) == pytest.approx(embed(plain, last), abs=1e-6)
    assert len(model.subspaces.offsets) == 4


def with_values(model, generator=None):
    """A model whose attributes have random probabilities of 2, 3 and 2 values."""
    generator = torch.Generator().manual_seed(2)
    model.subspaces.frequencies.copy_(3 * torch.randn(16, 32, generator=generator))
    for place, values in enumerate(ATTRIBUTES.values()):
        weights = 5 * torch.randn(len(values), 32, generator=generator)
        model.subspaces.set_values(place, weights, torch.randn(len(values), generator=generator), threshold=1.5)
    return model


@pytest.mark.parametrize("name", [name for name in MODELS if name != "separate"])
@pytest.mark.parametrize("kind", ["values", "retrieval"])
def test_the_formula_of_the_probabilities_by_a_loop(name, kind):
    plain = torch.from_numpy(embed(build(name, tiny_backbone("vit")))).double()
    options = {"attribute_map": kind, "known_values": ATTRIBUTES}
    unfitted = build(name, tiny_backbone("vit"), **options)
    assert embed(unfitted) == pytest.approx(plain.numpy(), abs=1e-6)
    model = with_values(build(name, tiny_backbone("vit"), **options))
    found, maps = embed(model), model.subspaces.double()
    for image in range(4):
        for attribute, values in enumerate(ATTRIBUTES.values()):
            e, count = plain[image, attribute], len(values)
            scores = maps.value_weights[attribute, :count] @ e
            p = (scores + maps.value_biases[attribute, :count]).softmax(0)
            angles = maps.frequencies @ (e if kind == "retrieval" else torch.cat([p, torch.zeros(32 - count)]))
            start = count + count % 2
            signature = torch.zeros(32, dtype=torch.float64)
            signature[0::2], signature[1::2] = angles.cos(), angles.sin()
            signature[:start] = 0
            described = 0.4 * (1.1 - p.square().sum()).sqrt() * signature / signature.norm()
            described[:count] = p
            unlike = torch.zeros(())
            if kind == "retrieval":
                unlike = 0.6 / (1 + (50 * (scores.logsumexp(0) - 1.5)).exp())
            expected = (1 - unlike).sqrt() * described / described.norm() + unlike.sqrt() * e
            assert found[image, attribute] == pytest.approx((expected / expected.norm()).numpy(), abs=1e-5)


def test_a_checkpoint_and_a_precision_keep_the_probabilities(tmp_path):
    model = with_values(build("cca", tiny_backbone("vit"), attribute_map="values", known_values=ATTRIBUTES))
    model.save_pretrained(tmp_path)
    again = CCAModel.from_pretrained(tmp_path)
    assert np.array_equal(embed(again), embed(model))
    assert again.fingerprint() == model.fingerprint()
    assert again.set_attribute_map("none").fingerprint() != model.fingerprint()
    half = CCAModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    cosines = (embed(half, pixels=PIXELS.bfloat16()) * embed(model)).sum(-1)
    assert cosines.min() > 0.95


def test_joined_networks_keep_their_probabilities():
    networks = []
    for place, (name, values) in enumerate(ATTRIBUTES.items()):
        options = {"attribute_map": "values", "known_values": {name: values}}
        network = CCAModel.from_backbone(tiny_backbone("vit"), {name: values}, **options).eval()
        donor = with_values(build("cca", tiny_backbone("vit"), attribute_map="values", known_values=ATTRIBUTES))
        count = len(values)
        network.subspaces.frequencies.copy_(donor.subspaces.frequencies)
        network.subspaces.set_values(0, donor.subspaces.value_weights[place, :count], torch.zeros(count), 1.5)
        networks.append(network)
    joined = SeparateModel.join(networks)
    for place, network in enumerate(networks):
        alone = embed(network, torch.zeros(4, dtype=torch.long))
        assert embed(joined)[:, place] == pytest.approx(alone, abs=1e-6)


def test_an_attribute_more_has_no_probabilities():
    texts = {name: np.random.default_rng(0).standard_normal(8) for name in ATTRIBUTES}
    options = {"condition_embedding": "text", "text_embeddings": texts}
    mapped = {"attribute_map": "values", "known_values": ATTRIBUTES}
    model = CCAModel.from_backbone(tiny_backbone("vit"), ATTRIBUTES, **options, **mapped).eval()
    plain = CCAModel.from_backbone(tiny_backbone("vit"), ATTRIBUTES, **options).eval()
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("subspaces.")})
    with_values(model)
    for each in (model, plain):
        each.add_attribute("closure", np.ones(8))
    last = torch.full((4,), 3)
    assert embed(model, last) == pytest.approx(embed(plain, last), abs=1e-6)


def test_a_map_that_does_not_exist_or_does_not_fit():
    model = build("cca", tiny_backbone("vit"), embedding_dim=4, known_values={"shape": list("abcd")})
    with pytest.raises(
        ValueError, match=r"needs embeddings of 6 numbers for the 4 values of 'shape'; this model's have 4"
    ):
        model.set_attribute_map("values")
    with pytest.raises(ValueError, match="unknown attribute_map 'vaules'. Did you mean 'values'"):
        model.set_attribute_map("vaules")
    assert model.config.attribute_map == "none" and model.subspaces is None


@pytest.mark.parametrize("kind", ["values", "retrieval"])
def test_gradients_pass_through_a_map(kind):
    model = with_values(build("cca", tiny_backbone("vit"), attribute_map=kind, known_values=ATTRIBUTES))
    for threshold in (1e3, -1e3):  # all images below it, and all above
        model.subspaces.thresholds.fill_(threshold)
        model.zero_grad()
        model(PIXELS, IDS).embeddings[..., :2].sum().backward()
        gradient = model.layernorm.weight.grad
        assert torch.isfinite(gradient).all() and gradient.abs().max() > 0
