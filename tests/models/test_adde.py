"""ADDE: its networks, classifiers and memory by hand, and what works as in CCA."""

import numpy as np
import pytest
import torch
from transformers import AutoModel

from cca_hf import ADDEModel
from cca_hf.models.configuration_adde import ADDEConfig

from .conftest import ATTRIBUTES, TINY, tiny_backbone

ENCODERS = ["mlp", "cross_attention"]
IDS = torch.tensor([[0, 2], [1, 1]])


def build(backbone="vit", **options):
    torch.manual_seed(0)
    return ADDEModel.from_backbone(tiny_backbone(backbone), ATTRIBUTES, **{"embedding_dim": 8} | options)


def pixels_for(model, batch=2):
    side = model.config.image_size
    return torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(1))


def network(model, attribute, features):
    """Features (batch, input_dim) -> (batch, dim): one network, written plainly."""
    parts = model.attribute_networks
    hidden = (features @ parts.hidden_weight[attribute] + parts.hidden_bias[attribute]).clamp(min=0)
    return hidden @ parts.output_weight[attribute] + parts.output_bias[attribute]


@torch.no_grad()
@pytest.mark.parametrize("backbone", ["vit", "mobilenet_v2"])
def test_networks_by_a_loop_over_attributes(backbone):
    model = build(backbone)
    pixel_values = pixels_for(model)
    outputs = model.backbone(pixel_values, output_hidden_states=True)
    if backbone == "vit":
        assert len(model.backbone.layers) == TINY["num_hidden_layers"]  # no layer is replaced
        features = outputs.last_hidden_state[:, 0]
    else:
        maps = [outputs.hidden_states[level] for level in model.config.feature_levels[::-1]]
        sides = [min(7, each.shape[-1]) for each in maps]
        maps = [torch.nn.functional.adaptive_avg_pool2d(each, side) for each, side in zip(maps, sides, strict=True)]
        pooled = [each.mean(dim=(2, 3)) for each in (outputs.last_hidden_state, *maps)]
        centred = [each - each.mean(1, keepdim=True) for each in pooled]
        scaled = [each / (each.square().mean(1, keepdim=True) + 1e-5).sqrt() for each in centred]
        features = torch.cat(scaled, dim=1)
    assert features.shape[1] == model.config.hidden_size
    expected = torch.stack([network(model, attribute, features) for attribute in range(3)], dim=1)
    unit = expected / expected.norm(dim=2, keepdim=True)
    rows = torch.arange(2)
    for ids, wanted in (
        (None, unit),
        (torch.tensor([2, 0]).expand(2, -1), unit[:, [2, 0]]),
        (IDS, unit[rows[:, None], IDS]),
        (IDS[:, 0], unit[rows, IDS[:, 0]]),
    ):
        torch.testing.assert_close(model(pixel_values, ids).embeddings, wanted, atol=1e-6, rtol=0)
    alone = model(pixel_values[:1], IDS[:1, 1])
    torch.testing.assert_close(alone.embeddings, unit[:1, 2], atol=1e-6, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("encoder", ENCODERS)
def test_logits_by_hand(encoder):
    model = build(encoder=encoder)
    pixel_values = pixels_for(model)
    embeddings, _ = model._embed_tokens(model.get_image_tokens(pixel_values), IDS, False)
    logits = model(pixel_values, IDS).logits
    assert logits.shape == (2, 2, 3) and logits.dtype == torch.float32
    for image in range(2):
        for place, attribute in enumerate(IDS[image].tolist()):
            count = len(list(ATTRIBUTES.values())[attribute])
            for value in range(3):
                weight, bias = model.classifiers.weight[attribute, value], model.classifiers.bias[attribute, value]
                expected = float(weight @ embeddings[image, place] + bias) if value < count else float("-inf")
                assert logits[image, place, value].item() == pytest.approx(expected, abs=1e-6)


def test_the_memory_and_its_blocks():
    model = build(embedding_dim=2)
    assert model.memory.weight.shape == (6, 7) and not model.memory.weight.any()
    assert not model.has_prototypes
    with torch.no_grad():
        model.memory.weight.copy_(torch.arange(42.0).view(6, 7) - 20)
    prototypes = model(pixels_for(model)).prototypes
    assert prototypes.shape == (7, 3, 2)
    owners = [0, 0, 1, 1, 1, 2, 2]  # the attribute of each value
    block = off = 0.0
    for value in range(7):
        for attribute in range(3):
            for number in range(2):
                weight = model.memory.weight[2 * attribute + number, value].item()
                assert prototypes[value, attribute, number].item() == weight
                block += abs(weight) * (attribute == owners[value])
                off += abs(weight) * (attribute != owners[value])
    assert model.memory.block_mass().item() == block and model.memory.off_block_mass().item() == off
    vectors = np.arange(1.0, 19.0).reshape(3, 3, 2)
    known = np.array([[True, True, False], [True, False, True], [True, True, False]])
    model.set_prototypes(vectors, known)
    assert model.memory.off_block_mass() == 0 and model.has_prototypes
    for attribute, (name, values) in enumerate(ATTRIBUTES.items()):
        found = model.value_prototypes(name)
        assert list(found) == [value for value, has in zip(values, known[attribute], strict=False) if has]
        for value, vector in found.items():
            row = vectors[attribute, values.index(value)]
            np.testing.assert_allclose(vector, row / np.linalg.norm(row), atol=1e-6)
    assert not model.set_prototypes(None).memory.weight.any()


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("backbone", ["vit", "swin", "mobilenet_v2"])
def test_every_parameter_gets_a_gradient(encoder, backbone):
    """Distributed training stops at parameters without one. In micro-batches, gradients are the same."""
    model = build(backbone, encoder=encoder)
    pixel_values = pixels_for(model, 3)
    gradients = []
    for micro_batch_size in (None, 2):
        model.zero_grad()
        output = model(pixel_values, micro_batch_size=micro_batch_size)
        logits = output.logits.masked_fill(output.logits.isinf(), 0)
        assert output.logits.shape == (3, 3, 3) and output.prototypes.shape == (7, 3, 8)
        (output.embeddings[..., 0].sum() + logits.square().sum() + output.prototypes.sum()).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.requires_grad})
    assert not [name for name, gradient in gradients[0].items() if gradient is None]
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-4, rtol=1e-3, msg=name)


@torch.no_grad()
@pytest.mark.parametrize("encoder", ENCODERS)
def test_saved_loaded_and_compared(encoder, tmp_path, pictures):
    """Memory and classifiers are saved, but change no embedding, and so not the fingerprint."""
    model = build(encoder=encoder, attribute_map="project").eval()
    fingerprint, embeddings = model.fingerprint(), model.encode(pictures)
    model.set_prototypes(torch.ones(3, 3, 8), torch.tensor([[1, 1, 0], [1, 1, 1], [1, 0, 0]]))
    torch.nn.init.ones_(model.classifiers.weight)
    assert model.fingerprint() == fingerprint
    model.save_pretrained(tmp_path)
    loaded, report = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert type(loaded) is ADDEModel and not report["missing_keys"] and not report["unexpected_keys"]
    assert loaded.fingerprint() == fingerprint and loaded.config.encoder == encoder
    np.testing.assert_array_equal(loaded.encode(pictures), embeddings)
    pixel_values = pixels_for(model)
    for name, expected in model(pixel_values).items():
        torch.testing.assert_close(loaded(pixel_values)[name], expected)
    assert list(loaded.value_prototypes("heel height")) == ["flat"]
    torch.nn.init.ones_(model.memory.weight)
    assert model.fingerprint() == fingerprint
    torch.nn.init.ones_(model.attribute_networks.output_bias if encoder == "mlp" else model.projection.weight)
    assert model.fingerprint() != fingerprint


@torch.no_grad()
def test_the_whole_pretrained_backbone_is_loaded(vit_config, tmp_path):
    native = AutoModel.from_config(vit_config)
    native.save_pretrained(tmp_path)
    model = ADDEModel.from_backbone(tmp_path, ATTRIBUTES, freeze_backbone=True)
    pixel_values = pixels_for(model)
    expected = native.eval()(pixel_values).last_hidden_state[:, :1]
    torch.testing.assert_close(model.get_image_tokens(pixel_values), expected)
    assert model.get_embedding_dimension() == 340
    layer = ADDEModel.from_backbone(tmp_path, ATTRIBUTES, encoder="cross_attention").conditional_layer
    assert torch.equal(layer.attention.k_proj.weight, native.layers[-1].attention.k_proj.weight)


@torch.no_grad()
@pytest.mark.parametrize("encoder", ENCODERS)
def test_features_of_the_frozen_part(encoder):
    model = build("mobilenet_v2", encoder=encoder).eval()
    pixel_values = pixels_for(model)
    expected = model(pixel_values)
    for features in (model.get_backbone_features(pixel_values), model.get_early_features(pixel_values, 3)):
        output = model(backbone_features=features)
        torch.testing.assert_close(output.embeddings, expected.embeddings, atol=1e-5, rtol=0)
        torch.testing.assert_close(output.logits, expected.logits, atol=1e-5, rtol=0)


@torch.no_grad()
def test_weights_offloaded_to_disk(tmp_path):
    model = build("mobilenet_v2").eval()
    model.set_prototypes(torch.ones(3, 3, 8), model.classifiers.is_value)
    model.save_pretrained(tmp_path / "model")
    device_map = {name: "cpu" if name == "backbone" else "disk" for name, _ in model.named_children()}
    loaded = AutoModel.from_pretrained(tmp_path / "model", device_map=device_map, offload_folder=tmp_path / "weights")
    assert loaded.memory.weight.is_meta
    pixel_values = pixels_for(model)
    for name, expected in model(pixel_values, IDS).items():
        torch.testing.assert_close(loaded(pixel_values, IDS)[name], expected)
    assert loaded.fingerprint() == model.fingerprint()
    np.testing.assert_array_equal(loaded.value_prototypes("shape")["long"], model.value_prototypes("shape")["long"])


def test_attention_needs_attention(pictures):
    maps = build(encoder="cross_attention").attention_maps(pictures[0], "colour")
    assert maps.shape == (1, 1, 4, 4, 4)
    model = build()
    assert not model.has_attention
    with pytest.raises(ValueError, match="no attention on the image: encoder='mlp' reads the pooled output"):
        model.attention_maps(pictures[0])


def test_in_bfloat16():
    model = build().to(torch.bfloat16)
    output = model(pixels_for(model).to(torch.bfloat16))
    assert output.embeddings.dtype == torch.bfloat16 and output.logits.dtype == torch.float32


def test_settings_that_do_not_fit(vit_config):
    with pytest.raises(Exception, match=r"of each attribute, and \['shape'\] have no values: give attributes as"):
        ADDEModel.from_backbone(vit_config, {"colour": ["red"], "shape": []})
    with pytest.raises(Exception, match=r"\['colour'\] have no values"):
        ADDEModel.from_backbone(vit_config, ["colour"])
    with pytest.raises(ValueError, match="needs attributes with values: its configuration has none"):
        ADDEModel(ADDEConfig(**TINY))
    with pytest.raises(ValueError, match=r"no conditional layer: \['residual'\] need encoder='cross_attention'"):
        ADDEModel.from_backbone(vit_config, ATTRIBUTES, residual="none")
    with pytest.raises(Exception, match=r"the sum of feature_channels \[32\]; got 16"):
        ADDEConfig(**TINY | {"feature_channels": [32], "hidden_size": 16})
    with pytest.raises(Exception, match="encoder.*mlp.*cross_attention"):
        ADDEModel.from_backbone(vit_config, ATTRIBUTES, encoder="mpl")
    with pytest.raises(ValueError, match="'heel' cannot be added without training: ADDE learns a classifier"):
        build().add_attribute("heel", np.ones(3))


def test_restricted_to_some_attributes():
    config = build().config.restricted_to(["shape"])
    assert (config.attributes, config.attribute_values) == (["shape"], {"shape": ATTRIBUTES["shape"]})


def test_the_snippet_of_its_card_runs(tmp_path, pictures, monkeypatch):
    model = build()
    model.set_prototypes(torch.ones(3, 3, 8), model.classifiers.is_value)
    model.save_pretrained(tmp_path / "model")
    pictures[0].save(tmp_path / "image.jpg")
    monkeypatch.chdir(tmp_path)
    snippet = ADDEModel.usage_example("model", model.config).rsplit("```python\n", 1)[1].removesuffix("```\n")
    names = {"model": model}
    exec(snippet, names)
    np.testing.assert_allclose(names["changed"][0, 0], np.full(8, 8**-0.5), atol=1e-6)
