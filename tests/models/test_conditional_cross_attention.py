"""The layer against its equations, against the ViT layer that it replaces, and the work that it may do only once."""

import math

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModel, ViTForImageClassification, ViTModel

from cca_hf import CCAModel

IDS = torch.tensor([[0, 1, 2], [2, 1, 0]])


@pytest.fixture
def vit_checkpoint(vit_config, tmp_path):
    torch.manual_seed(3)
    vit = ViTModel(vit_config)
    for parameter in vit.parameters():  # layer norms too: fresh ones would hide a swapped or forgotten one
        torch.nn.init.normal_(parameter, std=0.2)
    vit.save_pretrained(tmp_path / "vit")
    return tmp_path / "vit"


@pytest.fixture
def pixel_values():
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_tokens_are_the_hidden_states_before_the_last_layer(vit_checkpoint, attributes, pixel_values):
    vit = ViTModel.from_pretrained(vit_checkpoint).eval()
    model = CCAModel.from_backbone(vit_checkpoint, attributes).eval()
    # in the memory format of `get_backbone_features`: another one takes another kernel, with other last bits
    same_format = pixel_values.contiguous(memory_format=torch.channels_last)
    hidden_states = vit(same_format, output_hidden_states=True).hidden_states
    assert torch.equal(model.get_image_tokens(pixel_values), hidden_states[2])


@pytest.mark.parametrize("head", [False, True])
def test_only_new_parameters_are_not_the_checkpoints(vit_checkpoint, attributes, head, tmp_path):
    vit = ViTModel.from_pretrained(vit_checkpoint, add_pooling_layer=False)
    if head:  # the checkpoint of a classifier has a prefix and a head
        classifier = ViTForImageClassification(vit.config)
        classifier.vit.load_state_dict(vit.state_dict())
        vit_checkpoint = tmp_path / "classifier"
        classifier.save_pretrained(vit_checkpoint)
    model = CCAModel.from_backbone(vit_checkpoint, attributes, embedding_dim=8)
    theirs = vit.state_dict()
    new = set()
    for name, value in model.state_dict().items():
        source = name.removeprefix("backbone.").replace("conditional_layer.", "layers.2.")
        if source in theirs:
            assert torch.equal(value, theirs.pop(source)), name
        else:
            new.add(name)
    assert new == {"condition_embedding.table.weight", "condition_embedding.bias", "projection.weight"}
    assert not theirs, "parameters of the checkpoint without a place in the model"


@torch.no_grad()
def test_asked_by_its_own_cls_token_the_layer_answers_as_the_vit(vit_checkpoint, attributes, pixel_values):
    vit = ViTModel.from_pretrained(vit_checkpoint).eval()
    model = CCAModel.from_backbone(vit_checkpoint, attributes).eval()
    tokens = model.get_image_tokens(pixel_values)
    states, _ = model.conditional_layer(tokens[:, :1], tokens)
    torch.testing.assert_close(model.layernorm(states)[:, 0], vit(pixel_values).last_hidden_state[:, 0])


@pytest.mark.parametrize("condition", ["one_hot", "lookup", "text", "none"])
@pytest.mark.parametrize("residual", ["image", "condition", "none"])
@torch.no_grad()
def test_equations_by_plain_loops(vit_config, attributes, pixel_values, condition, residual):
    torch.manual_seed(0)
    texts = {name: torch.randn(12, dtype=torch.double) for name in attributes}
    model = (
        CCAModel.from_backbone(
            vit_config,
            attributes,
            condition_embedding=condition,
            text_embeddings=texts if condition == "text" else None,
            residual=residual,
            embedding_dim=8,
        )
        .double()
        .eval()
    )
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    layer, heads, width = model.conditional_layer, 4, 8
    tokens = model.get_image_tokens(pixel_values.double())
    table = {
        "one_hot": lambda c: (
            torch.eye(3, dtype=torch.double)[c] @ model.condition_embedding.table.weight
            + model.condition_embedding.bias
        ),
        "lookup": lambda c: model.condition_embedding.table.weight[c].clamp(min=0),
        "text": lambda c: (
            model.condition_embedding.projection.weight @ (list(texts.values())[c] / list(texts.values())[c].norm())
        ),
        "none": lambda c: model.condition_embedding.table.weight[0],
    }[condition]
    for image in range(2):
        x = layer.layernorm_before(tokens[image])
        for place, attribute in enumerate(IDS[image].tolist()):
            q_c = table(attribute)
            query = layer.attention.q_proj(layer.layernorm_before(q_c))
            key, value = layer.attention.k_proj(x), layer.attention.v_proj(x)
            answer = []
            for head in range(heads):
                part = slice(head * width, (head + 1) * width)
                scores = torch.stack([query[part] @ key[n, part] for n in range(len(x))]) / math.sqrt(width)
                weights = scores.exp() / scores.exp().sum()
                answer.append(sum(weights[n] * value[n, part] for n in range(len(x))))
            y_c = layer.attention.o_proj(torch.cat(answer))
            z_c = {"image": tokens[image, 0], "condition": q_c, "none": torch.zeros(32)}[residual] + y_c
            z_c = z_c + layer.mlp(layer.layernorm_after(z_c))
            e_c = model.projection(model.layernorm(z_c))
            expected = e_c / e_c.norm()
            got = model(pixel_values.double(), attribute_ids=IDS).embeddings[image, place]
            torch.testing.assert_close(got, expected, atol=1e-6, rtol=0)


@torch.no_grad()
def test_copies_of_the_condition_give_equal_rows(model, pixel_values):
    """One query row a condition is the same model as one per token."""
    many = model(pixel_values, attribute_ids=torch.ones(2, 17, dtype=torch.long)).embeddings
    one = model(pixel_values, attribute_ids=torch.ones(2, dtype=torch.long)).embeddings
    torch.testing.assert_close(many, one[:, None].expand_as(many), atol=1e-6, rtol=0)


def test_backbone_keys_and_values_are_computed_once_at_most_for_all_attributes(model, pixel_values):
    calls = {"backbone": 0, "k_proj": 0, "v_proj": 0}

    def count(name):
        def hook(*_):
            calls[name] += 1

        return hook

    model.backbone.register_forward_hook(count("backbone"))
    model.conditional_layer.attention.k_proj.register_forward_hook(count("k_proj"))
    model.conditional_layer.attention.v_proj.register_forward_hook(count("v_proj"))
    model(pixel_values, attribute_ids=IDS)
    assert calls == {"backbone": 1, "k_proj": 1, "v_proj": 1}  # without the hooks none, for so few attributes
    model(pixel_values, attribute_ids=IDS.repeat(1, 20))
    assert calls == {"backbone": 2, "k_proj": 2, "v_proj": 2}


@torch.no_grad()
def test_eager_and_sdpa_agree(vit_checkpoint, attributes, pixel_values):
    outputs = []
    for implementation in ("eager", "sdpa"):
        torch.manual_seed(0)
        model = CCAModel.from_backbone(vit_checkpoint, attributes, attn_implementation=implementation).eval()
        assert model.config._attn_implementation == implementation
        assert model.backbone.config._attn_implementation == implementation
        outputs.append(model(pixel_values, attribute_ids=IDS).embeddings)
    torch.testing.assert_close(outputs[0], outputs[1], atol=1e-5, rtol=0)


@torch.no_grad()
def test_one_space_for_everything_is_one_space(vit_config, attributes, pixel_values):
    model = CCAModel.from_backbone(vit_config, attributes, condition_embedding="none").eval()
    embeddings = model(pixel_values, attribute_ids=IDS).embeddings
    torch.testing.assert_close(embeddings[:, 0], embeddings[:, 1])
    torch.testing.assert_close(embeddings[:, 0], embeddings[:, 2])


def test_vision_tower_of_a_model_of_images_and_text(tmp_path, attributes, pixel_values):
    """SigLIP's checkpoints hold both towers; the vision tower's weights must arrive."""
    from transformers import SiglipModel

    tower = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    config = CONFIG_MAPPING["siglip"](
        text_config={**tower, "vocab_size": 50}, vision_config={**tower, "image_size": 32, "patch_size": 8}
    )
    siglip = SiglipModel(config)
    siglip.save_pretrained(tmp_path)
    model = CCAModel.from_backbone(tmp_path, attributes)
    theirs = siglip.vision_model.state_dict()
    for name, value in model.backbone.state_dict().items():
        assert torch.equal(value, theirs[name.removeprefix("vision_model.")]), name


def test_conditions_by_name(model, pixel_values):
    every = model(pixel_values, attribute_ids=torch.arange(3).expand(2, -1)).embeddings
    for names, expected in (
        ({}, every),
        ({"attribute": "shape"}, every[:, 1]),
        ({"attribute": ["shape"]}, every[:, [1]]),
        ({"attributes": "shape"}, every[:, [1]]),
        ({"attributes": ["heel height", "colour"]}, every[:, [2, 0]]),
    ):
        torch.testing.assert_close(model(pixel_values, **names).embeddings, expected)
        torch.testing.assert_close(model(pixel_values, **names).pooler_output, expected)
    features = model.get_backbone_features(pixel_values)
    torch.testing.assert_close(model(backbone_features=features).embeddings, every)
    cut = model(pixel_values, micro_batch_size=1).embeddings  # with gradients, so in parts
    torch.testing.assert_close(cut, every)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(pixel_values, attribute="shape").embeddings, every[:, 1])


def test_a_model_without_attributes_has_one_condition(vit_config, pixel_values):
    model = CCAModel.from_backbone(vit_config, [], condition_embedding="none")
    assert model(pixel_values).embeddings.shape == (2, 1, 32)


def test_wrong_condition(model, pixel_values):
    with pytest.raises(ValueError, match="unknown attribute 'color'. Did you mean 'colour'"):
        model(pixel_values, attribute="color")
    with pytest.raises(ValueError, match="either attribute or attributes, and not both; got 'colour' and 'shape'"):
        model(pixel_values, attribute="colour", attributes="shape")
    with pytest.raises(ValueError, match="either attribute_ids, or names as attribute or attributes, and not both"):
        model(pixel_values, torch.tensor([0, 1]), attributes="shape")
    with pytest.raises(ValueError, match=r"must lie in 0\.\.2.*got 0\.\.3"):
        model(pixel_values, attribute_ids=torch.tensor([0, 3]))
    with pytest.raises(ValueError, match=r"shape \(batch,\) or \(batch, k\) with batch = 2; got \(3,\)"):
        model(pixel_values, attribute_ids=torch.tensor([0, 1, 2]))


def test_unknown_argument_of_from_backbone(vit_config, attributes):
    with pytest.raises(TypeError, match="'residul'. Did you mean 'residual'"):
        CCAModel.from_backbone(vit_config, attributes, residul="none")


def test_batch_norm_stays_in_eval_where_it_was_pretrained(attributes, tmp_path):
    config = CONFIG_MAPPING["mobilenet_v2"](depth_multiplier=0.35, image_size=64)
    AutoModel.from_config(config).save_pretrained(tmp_path)
    frozen = CCAModel.from_backbone(tmp_path, attributes).train()
    assert frozen.training and not any(
        m.training for m in frozen.backbone.modules() if isinstance(m, torch.nn.BatchNorm2d)
    )
    free = CCAModel.from_backbone(config, attributes).train()
    assert all(m.training for m in free.backbone.modules() if isinstance(m, torch.nn.BatchNorm2d))


def test_early_levels_can_be_frozen_alone(attributes):
    config = CONFIG_MAPPING["mobilenet_v2"](depth_multiplier=0.35, image_size=64)
    model = CCAModel.from_backbone(config, attributes)
    assert model.config.feature_levels == [1, 4, 11]
    statistics = {name: buffer.clone() for name, buffer in model.named_buffers()}
    model.train().freeze_backbone(num_levels=2)
    assert model.training
    assert all(torch.equal(buffer, statistics[name]) for name, buffer in model.named_buffers())
    blocks = {
        name.split(".")[1] for name, p in model.backbone.named_parameters() if "layer." in name and p.requires_grad
    }
    assert blocks == {str(block) for block in range(5, 16)}
    assert not any(p.requires_grad for p in model.backbone.conv_stem.parameters())
    assert all(p.requires_grad for p in model.backbone.conv_1x1.parameters())
    assert all(p.requires_grad for name, p in model.named_parameters() if not name.startswith("backbone."))
    with pytest.raises(ValueError, match="has 3 feature levels before the backbone's output; got 4"):
        model.freeze_backbone(num_levels=4)
