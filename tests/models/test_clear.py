"""CLEAR against plain functions of its weights, and everything that a checkpoint must do."""

import importlib
import json
import math

import numpy as np
import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from torch.nn import functional
from transformers import (
    AutoModel,
    AutoModelForImageClassification,
    ConvNextConfig,
    ConvNextV2Config,
    Dinov2WithRegistersConfig,
    SiglipVisionConfig,
    SwinConfig,
    SwinModel,
    Swinv2Config,
    ViTConfig,
    ViTImageProcessor,
    ViTModel,
)

from cca_hf.hub.model_card import write_model_card
from cca_hf.models.attribute_recognition import encode_labels
from cca_hf.models.configuration_clear import CLEARConfig
from cca_hf.models.loading import load_model, load_recogniser
from cca_hf.models.modeling_clear import ChannelAttention, CLEARForAttributeRecognition, CLEARModel, CrossFusion

from .conftest import TINY

ATTRIBUTES = {"hair": ["short", "long", "none"], "backpack": ["no", "yes"], "worn": ["hat", "bag"]}
KINDS = {"backpack": "binary", "worn": "multiple"}
SIZE = (64, 32)  # height and width
SWIN = {"image_size": 64, "patch_size": 4, "embed_dim": 8, "depths": [1, 2, 1], "num_heads": [2, 2, 2]}
CONVNEXT = {"hidden_sizes": [8, 16, 24], "depths": [1, 1, 1], "num_stages": 3, "image_size": 64}
LOCAL_BACKBONES = {
    "swin": SwinConfig(**SWIN, window_size=4),
    "swinv2": Swinv2Config(**SWIN, window_size=4),
    "convnext": ConvNextConfig(**CONVNEXT),
    "convnextv2": ConvNextV2Config(**CONVNEXT),
}


def make(local: str = "swin", model_class=CLEARForAttributeRecognition, **fields):
    torch.manual_seed(0)
    settings = {"image_size": SIZE, "attribute_kinds": KINDS} | fields
    return model_class.from_backbones(ViTConfig(**TINY), LOCAL_BACKBONES[local], ATTRIBUTES, **settings)


def randomised(model):
    """All weights are drawn anew, so that none is 0 or 1 and hides a mistake."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            torch.nn.init.normal_(weight, mean=float(name.endswith("weight") and weight.ndim == 1), std=0.3)
    return model.eval()


@pytest.fixture(scope="module")
def model() -> CLEARForAttributeRecognition:
    return randomised(make(positive_shares={"backpack": [0.3], "worn": [0.2, 0.4]}))


@pytest.fixture(scope="module")
def checkpoint(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("clear")
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def pixels() -> torch.Tensor:
    return torch.randn(2, 3, *SIZE, generator=torch.Generator().manual_seed(1))


# ---- The numbers ----


def plain_filter(channel: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """One channel (height, width) behind its filter (size, size), with zeros around the map."""
    size = weight.shape[0]
    padded = functional.pad(channel, [size // 2] * 4)
    result = torch.full_like(channel, bias.item())
    for row in range(channel.shape[0]):
        for column in range(channel.shape[1]):
            result[row, column] += (padded[row : row + size, column : column + size] * weight).sum()
    return result


def plain_channel_attention(layer: ChannelAttention, x: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """x + A v for the map x (channels, cells) of one image."""
    mean, variance = x.mean(dim=0), x.var(dim=0, unbiased=False)
    normed = (x - mean) / (variance + layer.layernorm.eps).sqrt()
    normed = normed * layer.layernorm.weight[:, None] + layer.layernorm.bias[:, None]
    projected = []
    for projection in (layer.q_proj, layer.k_proj, layer.v_proj):
        if projection.weight.ndim == 2:
            projected.append(projection.weight @ normed + projection.bias[:, None])
            continue
        maps = zip(normed.reshape(-1, *grid), projection.weight[:, 0], projection.bias, strict=True)
        projected.append(torch.stack([plain_filter(*each).flatten() for each in maps]))
    query, key, value = projected
    return x + torch.softmax(query @ key.T / math.sqrt(x.shape[1]), dim=1) @ value


@pytest.mark.parametrize("grid", [(6, 4), (5, 7)])
@pytest.mark.parametrize("fields", [{}, {"channel_kernel_size": 5}, {"channel_projection": "linear"}])
def test_channel_attention_equals_a_plain_function(fields, grid):
    layer = randomised(ChannelAttention(CLEARConfig(layer_norm_eps=1e-6, **fields), 3)).double()
    states = torch.randn(2, grid[0] * grid[1], 3, dtype=torch.float64)
    with torch.inference_mode():
        found = layer(states, grid)
        expected = torch.stack([plain_channel_attention(layer, image.T, grid).T for image in states])
    assert (found - states).abs().mean() > 0.1
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def plain_fusion(layer: CrossFusion, summary: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """s + CA(LN(s), LN([s, P x])) for one image, head by head: summary (width,), others (tokens, other width)."""
    if isinstance(layer.projection, torch.nn.Linear):
        others = others @ layer.projection.weight.T + layer.projection.bias
    tokens = torch.cat([summary[None], others])
    tokens = functional.layer_norm(tokens, tokens.shape[1:], layer.layernorm.weight, layer.layernorm.bias, 1e-6)
    attention, heads = layer.attention, []
    width = attention.head_dim
    for head in range(attention.num_heads):
        rows = slice(head * width, (head + 1) * width)
        query, key, value = (
            states @ projection.weight[rows].T + projection.bias[rows]
            for states, projection in (
                (tokens[0], attention.q_proj),
                (tokens, attention.k_proj),
                (tokens, attention.v_proj),
            )
        )
        heads.append(torch.softmax(key @ query / math.sqrt(width), dim=0) @ value)
    return summary + torch.cat(heads) @ attention.o_proj.weight.T + attention.o_proj.bias


@pytest.mark.parametrize("widths", [(16, 24), (16, 16)])
def test_fusion_equals_a_plain_function(widths):
    config = CLEARConfig(layer_norm_eps=1e-6, fusion_heads=4)
    config._attn_implementation = "sdpa"
    layer = randomised(CrossFusion(config, *widths)).double()
    assert isinstance(layer.projection, torch.nn.Linear) == (widths[0] != widths[1])
    summary, others = torch.randn(2, widths[0], dtype=torch.float64), torch.randn(2, 9, widths[1], dtype=torch.float64)
    with torch.inference_mode():
        found, weights = layer(summary, others, True)
        expected = torch.stack([plain_fusion(layer, *image) for image in zip(summary, others, strict=True)])
        torch.testing.assert_close(layer(summary, others)[0], expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 4, 1, dtype=torch.float64))
    assert weights.shape == (2, 4, 1, 10)


def test_logits_are_linear_in_both_fused_summaries(model, pixels):
    clear, classifier = model.clear, model.classifier
    labels = encode_labels(model.config, {"hair": ["long", None], "backpack": ["yes", "no"], "worn": [["hat"], []]})
    with torch.inference_mode():
        output = model(pixels, labels=labels, output_attentions=True)
        whole = clear.backbone(pixels, interpolate_pos_encoding=True).last_hidden_state
        local = clear(pixels).local_states
        g = [plain_fusion(clear.global_fusion, *image) for image in zip(whole[:, 0], local, strict=True)]
        means, patches = local.mean(dim=1), whole[:, 1:]
        m = [plain_fusion(clear.local_fusion, *image) for image in zip(means, patches, strict=True)]
        features = torch.cat([torch.stack(g), torch.stack(m)], dim=1)
        expected = features @ classifier.weight.T + classifier.bias
    torch.testing.assert_close(output.features, features, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(output.logits, expected, rtol=1e-4, atol=1e-4)
    assert output.logits.shape == (2, 6) and 0 < output.loss.item() < math.inf
    shapes = [tuple(weights.shape) for weights in output.cross_attentions]
    assert shapes == [(2, 8, 1, 1 + 4 * 2), (2, 8, 1, 1 + 8 * 4)]


@pytest.mark.parametrize("size", [SIZE, (72, 40)])
@pytest.mark.parametrize("local", LOCAL_BACKBONES)
def test_the_local_branch_starts_as_its_backbone(local, size):
    """All stages run in order, on images of another size too, and channel-aware attention changes nothing yet."""
    model = make(local, CLEARModel)
    images = torch.randn(1, 3, *size)
    with torch.inference_mode():
        states = model(images).local_states
        native = model.local_backbone
        if local.startswith("convnext"):
            expected = native.layernorm(native(images).last_hidden_state.flatten(2).transpose(1, 2))
        else:
            arguments = {"always_partition": True} if local == "swin" else {}
            expected = native(images, **arguments).last_hidden_state
        torch.testing.assert_close(states, expected, rtol=1e-5, atol=1e-5)
        randomised(model.channel_attentions[-1])
        changed = model(images).local_states
    assert (changed - states).abs().mean() > 1e-3
    channels = [attention.layernorm.weight.shape[0] for attention in model.channel_attentions]
    assert channels == ([8, 16, 32] if local.startswith("swin") else [8, 8, 16])
    assert model.config.local_size == (32 if local.startswith("swin") else 24)


@pytest.mark.parametrize(
    ("fields", "dim", "absent"),
    [
        ({}, 64, []),
        ({"use_fusion": False}, 64, ["fusion"]),
        ({"use_channel_attention": False}, 64, ["channel"]),
        ({"use_local": False}, 32, ["local", "channel", "fusion"]),
        ({"use_global": False}, 32, ["clear.backbone", "fusion"]),
    ],
)
def test_switches(fields, dim, absent, pixels):
    model = make(**fields).train()
    names = [name for name, _ in model.named_parameters()]
    assert not [name for name in names if any(part in name for part in absent)]
    output = model(pixels)
    assert output.features.shape == (2, dim) == (2, model.config.feature_dim)
    output.logits.square().sum().backward()
    assert not [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert model.get_input_embeddings() is not None
    if "fusion" in absent:
        with pytest.raises(ValueError, match="this model has no fusion, and so no attentions"):
            model(pixels, output_attentions=True)


@pytest.mark.parametrize(
    ("backbone", "prefix"),
    [
        (Dinov2WithRegistersConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, patch_size=14), 5),
        (SiglipVisionConfig(**TINY), 0),
    ],
)
def test_vision_transformers_with_registers_and_without_a_class_token(backbone, prefix):
    model = CLEARModel.from_backbones(backbone, LOCAL_BACKBONES["swin"], image_size=(56, 28))
    patches = 4 * 2 if prefix else 7 * 3
    with torch.inference_mode():
        output = model(torch.randn(1, 3, 56, 28), output_attentions=True)
    assert model.config.num_prefix_tokens == prefix
    assert output.global_states.shape == (1, prefix + patches, 32)
    assert output.cross_attentions[1].shape == (1, 8, 1, 1 + patches)


def test_eager_equals_sdpa(model, pixels):
    with torch.inference_mode():
        expected = model(pixels).logits
        model.set_attn_implementation("eager")
        assert model.clear.backbone.config._attn_implementation == "eager"
        found = model(pixels).logits
        model.set_attn_implementation("sdpa")
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_gradient_checkpointing_gives_the_same_gradients(model, pixels):
    labels = torch.tensor([[0, 1, 0, 1, 0, 1.0], [-1, -1, -1, 0, 1, 1]])
    gradients = []
    for checkpointing in (False, True):
        again = CLEARForAttributeRecognition(model.config).train()
        again.load_state_dict(model.state_dict())
        if checkpointing:
            again.gradient_checkpointing_enable()
        torch.manual_seed(0)  # Swin drops layers at random
        again(pixels, labels=labels).loss.backward()
        gradients.append([parameter.grad for parameter in again.parameters()])
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, checkpointed, rtol=1e-4, atol=1e-6)


# ---- Pretrained backbones ----


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """Folders of a ViT and a Swin that were trained with different normalisations."""
    folder = tmp_path_factory.mktemp("backbones")
    torch.manual_seed(0)
    randomised(ViTModel(ViTConfig(**TINY))).save_pretrained(folder / "vit")
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder / "vit")
    randomised(SwinModel(LOCAL_BACKBONES["swin"])).save_pretrained(folder / "swin")
    settings = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.25, 0.3]}
    ViTImageProcessor(size={"height": 64, "width": 64}, **settings).save_pretrained(folder / "swin")
    return folder


def test_the_weights_of_both_backbones_are_kept(pretrained):
    model = CLEARModel.from_backbones(pretrained / "vit", pretrained / "swin", ATTRIBUTES, image_size=SIZE)
    native = {"backbone.": ViTModel.from_pretrained(pretrained / "vit", add_pooling_layer=False)}
    native["local_backbone."] = SwinModel.from_pretrained(pretrained / "swin")
    weights, found = model.state_dict(), set()
    for prefix, backbone in native.items():
        for name, weight in backbone.state_dict().items():
            assert torch.equal(weights[prefix + name], weight), name
            found.add(prefix + name)
    of_layer = {"layernorm", "q_proj", "k_proj", "v_proj"}
    new = {f"channel_attentions.{stage}.{part}" for stage in range(3) for part in of_layer}
    for fusion in ("global_fusion", "local_fusion"):
        new |= {f"{fusion}.layernorm", *(f"{fusion}.attention.{part}_proj" for part in "qkvo")}
    assert set(weights) - found == {f"{name}.{kind}" for name in new for kind in ("weight", "bias")}
    assert model.image_processor.size == {"height": 64, "width": 32}
    assert (model.config.backbone_name, model.config.image_size) == (str(pretrained / "vit"), [64, 32])


def test_each_branch_gets_the_normalisation_of_its_backbone(pretrained, pictures):
    model = CLEARModel.from_backbones(pretrained / "vit", pretrained / "swin", image_size=SIZE)
    swin, settings = SwinModel.from_pretrained(pretrained / "swin"), {"height": 64, "width": 32}
    of_swin = ViTImageProcessor.from_pretrained(pretrained / "swin", size=settings)(pictures, return_tensors="pt")
    of_model = model.image_processor(pictures, return_tensors="pt")
    with torch.inference_mode():
        expected = swin(of_swin["pixel_values"], always_partition=True).last_hidden_state
        found = model(of_model["pixel_values"]).local_states
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
    same = CLEARModel.from_backbones(pretrained / "vit", LOCAL_BACKBONES["swin"])
    assert same.config.local_pixel_scale is None


# ---- Checkpoints ----


def test_a_checkpoint_is_loaded_by_the_auto_classes(model, checkpoint, pixels):
    with torch.inference_mode():
        expected = model(pixels)
        recogniser = AutoModelForImageClassification.from_pretrained(checkpoint)
        assert type(recogniser) is CLEARForAttributeRecognition and type(load_recogniser(checkpoint)) is type(
            recogniser
        )
        torch.testing.assert_close(recogniser(pixels).logits, expected.logits)
        for features in (AutoModel.from_pretrained(checkpoint), load_model(checkpoint)):
            assert type(features) is CLEARModel
            torch.testing.assert_close(features(pixels).pooler_output, expected.features)
    assert recogniser.config.to_dict() == AutoModel.from_pretrained(checkpoint).config.to_dict()
    assert recogniser.config.logit_slices == model.config.logit_slices and recogniser.config.id2label is None


def test_what_the_fingerprint_depends_on(model, checkpoint):
    again = load_recogniser(checkpoint)
    assert again.fingerprint() == model.fingerprint()
    with torch.no_grad():
        again.classifier.weight += 1
    again.config.thresholds = {"hair": 0.5}
    assert again.fingerprint() == model.fingerprint()
    again.config.local_backbone_config.layer_norm_eps = 1e-3
    changed = again.fingerprint()
    with torch.no_grad():
        next(again.clear.local_backbone.parameters()).add_(1)
    assert len({model.fingerprint(), changed, again.fingerprint()}) == 3


def test_few_files_travel(checkpoint):
    assert len(list(checkpoint.glob("*.py"))) == 13
    settings = json.loads((checkpoint / "config.json").read_text())
    assert settings["auto_map"] == {
        "AutoConfig": "configuration_clear.CLEARConfig",
        "AutoModel": "modeling_clear.CLEARModel",
        "AutoModelForImageClassification": "modeling_clear.CLEARForAttributeRecognition",
    }
    assert "label" not in json.dumps([settings["backbone_config"], settings["local_backbone_config"]])


PROGRAM = """
import sys
sys.modules["cca_hf"] = None  # importing it raises ImportError
import importlib
import json
from transformers import AutoModel, AutoModelForImageClassification, pipeline
folder, image = sys.argv[1:]
result = {}
for turn in ("first", "second"):
    model = AutoModelForImageClassification.from_pretrained(folder, trust_remote_code=True)
    predicted = model.predict(image)[0]
    result[turn] = {name: [each.value, each.probabilities] for name, each in predicted.items()}
    if turn == "first":
        recognise = pipeline("image-classification", model=folder, trust_remote_code=True)
        result["pipeline"] = [recognise(image), *recognise([image], attributes=["hair"])]
        result["base"] = type(AutoModel.from_pretrained(folder, trust_remote_code=True)).__name__
        folder += "-again"
        model.save_pretrained(folder)
with open(image + ".json", "w") as file:
    json.dump(result, file)
"""


def test_plain_transformers_loads_and_saves_a_checkpoint(model, checkpoint, pictures, tmp_path, warm_python):
    image = tmp_path / "image.png"
    pictures[0].resize(SIZE[::-1]).save(image)
    warm_python.run("-c", PROGRAM, str(checkpoint), str(image), cwd=tmp_path, check=True)
    result, expected = json.loads((tmp_path / "image.png.json").read_text()), model.predict(image)[0]
    assert result["base"] == "CLEARModel"
    every, hair = result["pipeline"]
    (value,) = [each["value"] for each in hair]
    assert value == expected["hair"].value and hair[0]["label"] == f"hair: {value}" and hair[0] in every
    assert hair[0]["score"] == pytest.approx(expected["hair"].probability, abs=1e-5)
    assert [each["value"] for each in every if each["attribute"] == "worn"] == expected["worn"].value
    for turn in ("first", "second"):
        for name, prediction in expected.items():
            value, probabilities = result[turn][name]
            assert value == prediction.value and probabilities == pytest.approx(prediction.probabilities, abs=1e-5)


def test_the_card_describes_the_use_and_the_limits(checkpoint):
    card = write_model_card(checkpoint, model_id="me/clear-persons").read_text()
    assert 'AutoModelForImageClassification.from_pretrained("me/clear-persons", trust_remote_code=True)' in card
    assert "| hair | short, long, none |" in card and "### Images of people" in card
    assert "one embedding" not in card


# ---- Bad input ----


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"use_global": False, "use_local": False}, "the model needs at least one branch"),
        ({"fusion_heads": 7}, "fusion_heads must divide the widths of both branches, 768 and 768; got 7"),
        ({"channel_kernel_size": 4}, "channel_kernel_size must be an odd number; got 4"),
        ({"local_pixel_scale": [1.0, 1.0, 1.0]}, "local_pixel_scale and local_pixel_shift go together"),
        ({"local_backbone_config": {"model_type": "vit"}}, "swin, swinv2, convnext, convnextv2; got 'vit'"),
    ],
)
def test_fields_that_do_not_fit(fields, message):
    with pytest.raises(StrictDataclassError) as raised:
        CLEARConfig(**fields)
    assert message in str(raised.value)


def test_backbones_and_attributes_that_do_not_fit():
    swin, vit = LOCAL_BACKBONES["swin"], ViTConfig(**TINY)
    with pytest.raises(ValueError, match="the global branch needs a vision transformer.*of type 'convnext'"):
        CLEARModel.from_backbones(LOCAL_BACKBONES["convnext"], swin)
    with pytest.raises(ValueError, match="recognition needs attributes with values"):
        CLEARForAttributeRecognition.from_backbones(vit, swin)
    with pytest.raises(ValueError, match="recognition needs at least 2 values of 'hair', which is exclusive; it has"):
        CLEARForAttributeRecognition.from_backbones(vit, swin, ["hair"])
    with pytest.raises(TypeError, match="CLEARConfig has no field 'use_fussion'. Did you mean 'use_fusion'?"):
        CLEARModel.from_backbones(vit, swin, use_fussion=False)


def test_predictions_do_not_depend_on_the_mode_and_the_threads(model, pictures):
    """A model in training mode predicts as in evaluation mode, and stays in training mode."""
    expected = model.predict(pictures)
    assert [list(each) for each in expected] == [list(ATTRIBUTES)] * 5
    model.train()
    found = model.predict(pictures, num_workers=0)
    assert model.training
    model.eval()
    for one, other in zip(found, expected, strict=True):
        for name in ATTRIBUTES:
            assert one[name].probabilities == pytest.approx(other[name].probabilities, abs=1e-6)
    np.testing.assert_allclose(sum(expected[0]["hair"].probabilities.values()), 1, atol=1e-6)


def test_the_benchmark_of_the_channel_attention(repository, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(repository / "scripts")
    script = importlib.import_module("benchmark_clear")
    words = ["--depths", "1", "1", "--embed_dim", "12", "--batch_size", "1", "--rounds", "1", "--threads", "1"]
    monkeypatch.setattr("sys.argv", ["benchmark_clear.py", *words, "--output", str(tmp_path)])
    script.main()
    (file,) = tmp_path.glob("speed_*.json")
    figures = json.loads(file.read_text())
    for section in ("clear_forward", "clear_training"):
        assert 0.1 < figures[section]["with_over_without"] < 100
        assert figures[section]["setting"]["projection"] == "depthwise"
