"""Tests of every model: CCA on all backbones, and the baselines on a transformer and a convolutional network."""

import numpy as np
import pytest
import torch

from cca_hf import CCAModel

from .conftest import BACKBONES, MODELS, build, tiny_backbone

IDS = torch.tensor([[0, 1, 2], [2, 2, 0]])


BASELINES = [(name, backbone) for name in MODELS if name != "cca" for backbone in ("vit", "mobilenet_v2")]


@pytest.fixture(params=[("cca", backbone) for backbone in BACKBONES] + BASELINES, ids="-".join)
def any_model(request):
    name, backbone = request.param
    return build(name, tiny_backbone(backbone))


@pytest.fixture
def pixel_values(any_model):
    torch.manual_seed(1)
    size = any_model.config.image_size
    return torch.randn(2, 3, size, size)


@torch.no_grad()
def test_shapes_norms_and_both_forms_of_the_condition(any_model, pixel_values):
    embeddings = any_model(pixel_values, attribute_ids=IDS).embeddings
    assert embeddings.shape == (2, 3, any_model.config.hidden_size)
    torch.testing.assert_close(embeddings.norm(dim=-1), torch.ones(2, 3))
    for column in range(3):
        single = any_model(pixel_values, attribute_ids=IDS[:, column]).embeddings
        assert single.shape == (2, any_model.config.hidden_size)
        torch.testing.assert_close(single, embeddings[:, column], atol=1e-5, rtol=0)
    # same picture, same condition: same vector; another condition: another vector
    torch.testing.assert_close(embeddings[1, 0], embeddings[1, 1])
    assert (embeddings[0, 0] - embeddings[0, 1]).abs().max() > 1e-5


@torch.no_grad()
def test_embedding_does_not_depend_on_the_rest_of_the_batch(any_model, pixel_values):
    together = any_model(pixel_values, attribute_ids=IDS).embeddings
    alone = any_model(pixel_values[1:], attribute_ids=IDS[1:]).embeddings
    torch.testing.assert_close(together[1:], alone, atol=1e-5, rtol=0)


@torch.no_grad()
def test_features_of_the_backbone_can_be_kept(any_model, pixel_values):
    features = any_model.get_backbone_features(pixel_values)
    expected = any_model(pixel_values, attribute_ids=IDS).embeddings
    assert torch.equal(any_model(backbone_features=features, attribute_ids=IDS).embeddings, expected)
    half = [feature.half() for feature in features]
    torch.testing.assert_close(
        any_model(backbone_features=half, attribute_ids=IDS).embeddings, expected, atol=2e-3, rtol=0
    )
    for both_or_none in ({}, {"pixel_values": pixel_values, "backbone_features": features}):
        with pytest.raises(ValueError, match="either pixel_values or backbone_features"):
            any_model(**both_or_none, attribute_ids=IDS)


@torch.no_grad()
def test_tokens_can_be_kept_and_asked_again(any_model, pixel_values):
    tokens = any_model.get_image_tokens(pixel_values)
    assert tokens.shape[0] == 2 and tokens.shape[2] == any_model.config.hidden_size
    torch.testing.assert_close(
        any_model.condition_tokens(tokens, IDS).embeddings, any_model(pixel_values, attribute_ids=IDS).embeddings
    )


@torch.no_grad()
def test_save_and_load(any_model, pixel_values, tmp_path):
    any_model.save_pretrained(tmp_path)
    loaded, info = type(any_model).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    expected = any_model(pixel_values, attribute_ids=IDS).embeddings
    assert torch.equal(loaded(pixel_values, attribute_ids=IDS).embeddings, expected)
    assert loaded.config.attribute_values == any_model.config.attribute_values
    assert loaded.image_processor.to_dict() == any_model.image_processor.to_dict()


def test_gradient_reaches_every_trainable_parameter(any_model, pixel_values):
    any_model.train()
    any_model(pixel_values, attribute_ids=IDS).embeddings[..., 0].sum().backward()
    without = [name for name, p in any_model.named_parameters() if p.requires_grad and p.grad is None]
    assert not without


def test_frozen_backbone_trains_the_layer_alone(backbone_config, attributes):
    model = CCAModel.from_backbone(backbone_config, attributes, freeze_backbone=True)
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trainable and not any(name.startswith("backbone.") for name in trainable)


@torch.no_grad()
def test_other_image_sizes(any_model, pixel_values):
    larger = torch.nn.functional.interpolate(pixel_values, scale_factor=2)
    assert any_model(larger, attribute_ids=IDS).embeddings.shape == (2, 3, any_model.config.hidden_size)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_half_precision(any_model, pixel_values, dtype):
    expected = any_model(pixel_values, attribute_ids=IDS).embeddings
    half = any_model.to(dtype)(pixel_values.to(dtype), attribute_ids=IDS).embeddings
    assert half.dtype == dtype
    assert torch.nn.functional.cosine_similarity(half.float(), expected, dim=-1).min() > 0.98


def test_gradient_checkpointing_changes_nothing(any_model, pixel_values):
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            any_model.gradient_checkpointing_enable()
        any_model.train()
        any_model.zero_grad()
        torch.manual_seed(2)  # Swin and ConvNeXt drop paths
        any_model(pixel_values, attribute_ids=IDS).embeddings[..., 0].sum().backward()
        gradients.append([p.grad.clone() for p in any_model.parameters() if p.grad is not None])
    torch.testing.assert_close(gradients[0], gradients[1])


@pytest.mark.parametrize(
    "any_model",
    [
        *(("cca", backbone) for backbone in ("vit", "swin", "mobilenet_v2")),
        *((name, "vit") for name in MODELS if name != "cca"),
    ],
    ids="-".join,
    indirect=True,
)
def test_compiles_without_graph_breaks(any_model, pixel_values):
    """A backbone takes many seconds: one replaces its last layer, one gives states of a transformer, one of maps."""
    torch._dynamo.reset()
    with (
        torch.no_grad()
    ):  # transformers hooks Swin and ConvNeXt for their hidden states at the first forward, under a lock
        any_model(pixel_values, attribute_ids=IDS)
    compiled = torch.compile(any_model, backend="eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(
            compiled(pixel_values, attribute_ids=IDS).embeddings,
            any_model(pixel_values, attribute_ids=IDS).embeddings,
            atol=1e-5,
            rtol=0,
        )


def test_attention_maps(any_model, pictures):
    maps = any_model.attention_maps(pictures[:2])
    assert maps.shape[:3] == (2, 3, any_model.config.num_attention_heads) and maps.dtype == np.float32
    assert (maps >= 0).all()
    mass = maps.sum((-1, -2))
    assert (mass <= 1 + 1e-5).all() and (mass > 0.5).all()


@torch.no_grad()
def test_attention_weights_sum_to_one_whatever_the_implementation(any_model, pixel_values):
    output = any_model(pixel_values, attribute_ids=IDS, output_attentions=True)
    networks = len(IDS[0]) if any_model.config.model_type == "cca_separate" else 1
    tokens = any_model.get_image_tokens(pixel_values).shape[1] // networks
    assert output.attentions.shape == (2, 3, any_model.config.num_attention_heads, tokens)
    torch.testing.assert_close(output.attentions.sum(-1), torch.ones(output.attentions.shape[:-1]))
    plain = any_model(pixel_values, attribute_ids=IDS).embeddings
    torch.testing.assert_close(output.embeddings, plain, atol=1e-5, rtol=0)


def test_hidden_states_and_attentions_are_part_of_the_computation(any_model, pixel_values):
    """As in transformers: by argument and by configuration, and gradients reach them."""
    native = any_model.networks[0].backbone if any_model.config.model_type == "cca_separate" else any_model.backbone
    channels_last = pixel_values.contiguous(memory_format=torch.channels_last)
    states = native(channels_last, output_hidden_states=True).hidden_states
    any_model.config.output_hidden_states = True
    for ids in (IDS, IDS[:, 0]):
        plain = any_model(pixel_values, ids, output_hidden_states=False)
        assert plain.keys() == {"embeddings"}
        output = any_model(pixel_values, ids, output_attentions=True)
        torch.testing.assert_close(output.embeddings, plain.embeddings, atol=1e-5, rtol=0)
        as_tuple = any_model(pixel_values, ids, output_attentions=True, return_dict=False)
        assert len(as_tuple) == 3 and torch.equal(as_tuple[2], output.attentions)
        for state, expected in zip(output.hidden_states, states, strict=False):
            torch.testing.assert_close(state, expected)
        networks = 3 if any_model.config.model_type == "cca_separate" else 1
        assert len(output.hidden_states) == networks * len(states)
        wanted = [output.hidden_states[0]] + ([] if networks > 1 else [output.attentions])
        gradients = torch.autograd.grad(output.embeddings[..., 0].sum(), wanted)
        assert all(gradient.abs().max() > 0 for gradient in gradients)
    assert output.attentions.requires_grad == (networks == 1)  # a joined model returns a copy
    with pytest.raises(ValueError, match="hidden states need pixel_values"):
        any_model(backbone_features=any_model.get_backbone_features(pixel_values), attribute_ids=IDS)


def test_input_embeddings_are_those_of_the_backbone():
    model = build("cca", tiny_backbone("vit"))
    assert model.get_input_embeddings() is model.backbone.embeddings.patch_embeddings
    joined = build("separate", tiny_backbone("vit"))
    model.enable_input_require_grads()
    assert joined.get_input_embeddings() is joined.networks[0].backbone.embeddings.patch_embeddings
    with pytest.raises(NotImplementedError, match="MobileNetV2Model"):  # as transformers' own
        build("csn", tiny_backbone("mobilenet_v2")).get_input_embeddings()


def test_config_round_trip(any_model, tmp_path):
    any_model.config.save_pretrained(tmp_path)
    loaded = type(any_model.config).from_pretrained(tmp_path)
    assert loaded.to_dict() == {**any_model.config.to_dict(), "auto_map": loaded.to_dict()["auto_map"]}
