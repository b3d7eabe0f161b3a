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
