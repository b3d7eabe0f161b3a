"""CSN, ASEN and one network per attribute: their formulas by hand, and what tells them apart."""

import math

import pytest
import torch
from transformers import AutoModel

from cca_hf import CCAModel
from cca_hf.models.modeling_asen import ASENModel, AttributeAwareAttention
from cca_hf.models.modeling_csn import CSNModel
from cca_hf.models.modeling_separate import SeparateModel

from .conftest import ATTRIBUTES, MODELS, build

IDS = torch.tensor([[0, 2], [1, 1]])


@pytest.fixture
def pixel_values():
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_csn_masks_one_embedding(vit_config, pixel_values):
    model = build("csn", vit_config, embedding_dim=8)
    masks = model.condition_masks.weight
    assert masks.shape == (3, 8) and (masks < 0).any()
    tokens = model.get_image_tokens(pixel_values)
    query = model.condition_embedding.table.weight.expand(2, 1, -1)
    states, _ = model.conditional_layer(query, tokens)
    embedding = model.projection(model.layernorm(states))[:, 0]
    found = model(pixel_values, attribute_ids=IDS).embeddings
    for picture in range(2):
        for place, condition in enumerate(IDS[picture]):
            masked = [float(x) * max(float(m), 0.0) for x, m in zip(embedding[picture], masks[condition], strict=True)]
            length = math.sqrt(sum(x * x for x in masked))
            assert found[picture, place].tolist() == pytest.approx([x / length for x in masked], abs=1e-6)


def test_csn_draws_its_masks_around_one(vit_config):
    masks = build("csn", vit_config, embedding_dim=4096).condition_masks.weight
    assert masks.mean().item() == pytest.approx(0.9, abs=0.03) and masks.std().item() == pytest.approx(0.7, abs=0.03)


@torch.no_grad()
def test_asen_attends_to_places_and_to_channels(vit_config):
    config = build("asen", vit_config).config
    config.hidden_size = dim = 4
    torch.manual_seed(0)
    attention = AttributeAwareAttention(config)
    tokens, conditions = torch.randn(1, 3, dim), torch.randn(1, 2, dim)
    found, weights = attention(conditions, tokens)

    def linear(layer, vector):
        return [
            sum(w * x for w, x in zip(row, vector, strict=True)) + b
            for row, b in zip(layer.weight.tolist(), layer.bias.tolist(), strict=True)
        ]

    for place, condition in enumerate(conditions[0].tolist()):
        asked = [math.tanh(x) for x in linear(attention.spatial_condition, condition)]
        scores = []
        for token in tokens[0].tolist():
            key = [math.tanh(x) for x in linear(attention.spatial_tokens, token)]
            scores.append(math.exp(sum(a * k for a, k in zip(asked, key, strict=True)) / math.sqrt(dim)))
        shares = [score / sum(scores) for score in scores]
        assert weights[0, place, 0].tolist() == pytest.approx(shares, abs=1e-6)  # of the one head
        pooled = [sum(s * t[c] for s, t in zip(shares, tokens[0].tolist(), strict=True)) for c in range(dim)]
        told = [max(x, 0.0) for x in linear(attention.channel_condition, condition)]
        squeezed = [max(x, 0.0) for x in linear(attention.channel_squeeze, pooled + told)]
        gates = [1 / (1 + math.exp(-x)) for x in linear(attention.channel_excite, squeezed)]
        expected = [value * gate for value, gate in zip(pooled, gates, strict=True)]
        assert found[0, place].tolist() == pytest.approx(expected, abs=1e-6)


def test_asen_stands_on_top_of_the_whole_transformer(vit_config):
    model = build("asen", vit_config)
    assert len(model.backbone.layers) == vit_config.num_hidden_layers
    assert len(build("cca", vit_config).backbone.layers) == vit_config.num_hidden_layers - 1
    assert model.condition_embedding.table.weight.std().item() == pytest.approx(1, abs=0.25)


@torch.no_grad()
def test_networks_of_one_attribute_each_joined_and_saved(vit_config, pixel_values, tmp_path):
    networks = [CCAModel.from_backbone(vit_config, {name: values}) for name, values in ATTRIBUTES.items()]
    joined = SeparateModel.join(networks)
    assert joined.config.attributes == list(ATTRIBUTES) and joined.config.attribute_values == ATTRIBUTES
    assert joined.config.known_values is None
    for network in networks:
        network.config.known_values = {name: values[:1] for name, values in network.config.attribute_values.items()}
    joined = SeparateModel.join(networks)
    assert joined.config.known_values == {name: values[:1] for name, values in ATTRIBUTES.items()}
    sizes = [sum(p.numel() for p in network.parameters()) for network in networks]
    assert sum(p.numel() for p in joined.parameters()) == sum(sizes)
    joined.save_pretrained(tmp_path)
    alone = torch.zeros(2, 1, dtype=torch.long)
    for model in (joined, SeparateModel.from_pretrained(tmp_path)):
        found = model(pixel_values, attribute_ids=torch.tensor([[2, 0], [2, 0]])).embeddings
        for place, network in ((0, networks[2]), (1, networks[0])):
            expected = network(pixel_values, attribute_ids=alone).embeddings[:, 0]
            torch.testing.assert_close(found[:, place], expected)


@pytest.mark.parametrize(
    ("attributes", "options", "message"),
    [
        ([["colour"], ["shape", "size"]], [{}, {}], "every network must have one attribute"),
        ([["colour"], ["colour"]], [{}, {}], "one attribute that no other network has"),
        (
            [["colour"], ["shape"]],
            [{}, {"embedding_dim": 8}],
            r"'shape' differs from that of 'colour' in \['embedding_dim'\]",
        ),
        ([], [], "every network must have one attribute"),
    ],
)
def test_networks_that_do_not_fit_together(vit_config, attributes, options, message):
    networks = [CCAModel.from_backbone(vit_config, a, **o) for a, o in zip(attributes, options, strict=True)]
    with pytest.raises(ValueError, match=message):
        SeparateModel.join(networks)


@pytest.mark.parametrize("name", MODELS)
def test_auto_model_knows_it(name, vit_config, tmp_path):
    build(name, vit_config).save_pretrained(tmp_path)
    assert type(AutoModel.from_pretrained(tmp_path)) is MODELS[name]


@pytest.mark.parametrize("model_class", [CSNModel, ASENModel])
def test_pretrained_weights_are_poured_in(model_class, vit_config, tmp_path):
    AutoModel.from_config(vit_config).save_pretrained(tmp_path)
    model = model_class.from_backbone(tmp_path, ATTRIBUTES)
    native = AutoModel.from_pretrained(tmp_path)
    last = len(native.layers) - 1
    mine = model.backbone.layers[last] if model_class is ASENModel else model.conditional_layer
    assert torch.equal(mine.attention.k_proj.weight, native.layers[last].attention.k_proj.weight)
