"""CrossViT against plain functions of its weights, the table of variants, and everything that a checkpoint must do."""

import importlib.util
import json
import os

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import AttentionInterface, AutoModel, AutoModelForImageClassification, pipeline
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from cca_hf import CCAModel
from cca_hf.models.backbones import _token_grid
from cca_hf.models.configuration_crossvit import VARIANTS, CrossViTConfig
from cca_hf.models.conversion_crossvit import config_of, make_image_processor
from cca_hf.models.modeling_crossvit import CrossViTForImageClassification, CrossViTModel

PARAMETERS = {
    "crossvit_tiny_240": 7_014_800,
    "crossvit_small_240": 26_856_272,
    "crossvit_base_240": 105_025_232,
    "crossvit_9_240": 8_553_296,
    "crossvit_15_240": 27_528_464,
    "crossvit_18_240": 43_271_408,
    "crossvit_9_dagger_240": 8_776_592,
    "crossvit_15_dagger_240": 28_209_008,
    "crossvit_18_dagger_240": 44_266_976,
    "crossvit_15_dagger_408": 28_500_080,
    "crossvit_18_dagger_408": 44_606_560,
}


def shrunken(name: str) -> CrossViTConfig:
    """A variant with all its layers and heads, but 4 and 8 numbers in a head, and images of half the size."""
    heads, side = VARIANTS[name].get("num_attention_heads", [6, 6]), VARIANTS[name].get("image_size", 240)
    return CrossViTConfig.from_variant(
        name, hidden_sizes=[4 * heads[0], 8 * heads[1]], image_size=side // 2, num_labels=5
    )


def tiny(**fields) -> CrossViTConfig:
    """Two blocks for images of 48 x 48 pixels: 16 patches in the first branch, and 4 in the second."""
    shape = {"image_size": 48, "hidden_sizes": [16, 24], "num_attention_heads": [2, 2], "num_layers": [1, 2]}
    return CrossViTConfig(**shape | {"num_blocks": 2, "num_labels": 5} | fields)


def randomised(model):
    """All weights are drawn anew, so that none is 0 or 1 and hides a mistake."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            torch.nn.init.normal_(weight, mean=float(name.endswith("weight") and weight.ndim == 1), std=0.1)
    return model.eval()


@pytest.fixture(scope="module")
def model() -> CrossViTForImageClassification:
    return randomised(CrossViTForImageClassification(tiny(id2label=dict(enumerate("abcde")))))


@pytest.fixture(scope="module")
def checkpoint(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("crossvit")
    model.save_pretrained(folder)
    make_image_processor(model.config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def image() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8))


# ---- The numbers ----


@pytest.fixture(scope="module")
def logits_of(repository):
    """The forward pass of plain functions, which the benchmark uses too."""
    spec = importlib.util.spec_from_file_location("plain_crossvit", repository / "scripts" / "plain_crossvit.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.logits_of


@pytest.mark.parametrize("name", VARIANTS)
def test_logits_equal_plain_functions_of_the_weights(name, logits_of):
    config = shrunken(name)
    model = randomised(CrossViTForImageClassification(config)).double()
    side = config.image_size
    images = torch.randn(1, 3, side, side, dtype=torch.float64)
    sizes = config.size_in_branch(0, side, side)[0], config.size_in_branch(1, side, side)[0]
    assert sizes == ((120, 112) if side == 120 else (204, 192))
    with torch.inference_mode():
        logits = model(images).logits
        weights = model.to_timm()
        expected = logits_of(weights, images, sizes=sizes, num_heads=config.num_attention_heads[0])
    assert logits.shape == (1, 5) and logits.std() > 0.05
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-6)


def test_float32_at_full_size_is_as_exact_as_plain_functions(logits_of):
    """Two orders of the same float32 operations differ by less than either differs from float64."""
    torch.manual_seed(0)
    model = CrossViTForImageClassification(CrossViTConfig.from_variant("crossvit_tiny_240")).eval()
    images, settings = torch.randn(1, 3, 240, 240), {"sizes": (240, 224), "num_heads": 3}
    with torch.inference_mode():
        ours, weights = model(images).logits, model.to_timm()
        plain = logits_of(weights, images, **settings)
        exact = logits_of({name: weight.double() for name, weight in weights.items()}, images.double(), **settings)
    errors = [((logits - exact).norm() / exact.norm()).item() for logits in (ours, plain)]
    assert max(errors) < 1e-5 and (ours - plain).norm() < (plain - exact).norm()


@pytest.fixture(scope="module")
def timm():
    return pytest.importorskip("timm", reason="timm is not installed; it needs torchvision")


@pytest.mark.parametrize("name", VARIANTS)
def test_logits_equal_those_of_timm(name, timm, tmp_path):
    theirs = timm.create_model(name, num_classes=5).double().eval()
    save_file(theirs.state_dict(), tmp_path / "timm.safetensors")
    ours = CrossViTForImageClassification.from_timm(tmp_path / "timm.safetensors")
    side = ours.config.image_size
    images = torch.randn(1, 3, side, side, dtype=torch.float64)
    with torch.inference_mode():
        torch.testing.assert_close(ours(images).logits, theirs(images), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("name", "expected"), PARAMETERS.items())
def test_the_table_of_variants(name, expected):
    """The parameters to the last one, the tokens, and the variant that is recognised by the shapes of the weights."""
    config = CrossViTConfig.from_variant(name)
    with torch.device("meta"):
        model = CrossViTForImageClassification(config)
    assert sum(parameter.numel() for parameter in model.parameters()) == expected
    recognised = config_of(model.to_timm(), id2label=config.id2label).to_dict()
    for field, value in config.to_dict().items():
        assert recognised[field] == (list(value) if isinstance(value, tuple) else value), field
    tokens = [embeddings.position_embeddings.shape[1] for embeddings in model.crossvit.embeddings]
    assert tokens == ([401, 197] if name.endswith("240") else [1157, 577])


@pytest.mark.parametrize("size", [(48, 48), (100, 40)])
def test_eager_equals_sdpa_and_returns_the_attentions(model, size):
    images = torch.randn(2, 3, *size)
    with torch.inference_mode():
        expected = model(images)
        model.set_attn_implementation("eager")
        outputs = model(images)
        model.set_attn_implementation("sdpa")
        inner = model.crossvit(images, output_attentions=True, output_hidden_states=True)
    torch.testing.assert_close(outputs.logits, expected.logits, rtol=0, atol=1e-5)
    patches = (size[0] // 12) * (size[1] // 12), (size[0] * 14 // 15 // 16) * (size[1] * 14 // 15 // 16)
    first, second = 1 + patches[0], 1 + patches[1]
    block = [(2, 2, first, first), (2, 2, second, second), (2, 2, second, second)]
    assert [tuple(weights.shape) for weights in inner.attentions] == block * 2
    assert [tuple(weights.shape) for weights in inner.cross_attentions] == [(2, 2, 1, second), (2, 2, 1, first)] * 2
    for weights in (*inner.attentions, *inner.cross_attentions):
        torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))
    states = [tuple(tokens.shape) for tokens in inner.hidden_states]
    assert states == [(2, first, 16), (2, second, 24)] * 3
    assert inner.hidden_states[-2] is inner.branch_states[0] and inner.last_hidden_state is inner.branch_states[1]
    classes = torch.cat([tokens[:, 0] for tokens in inner.branch_states], dim=1)
    torch.testing.assert_close(inner.pooler_output, classes, rtol=0, atol=0)


def test_another_attention_computes_all_layers(model):
    """Flash attention needs a GPU. What is registered with transformers gets the same calls."""
    shapes = []

    def attend(module, query, key, value, attention_mask, **settings):
        shapes.append((*query.shape[1:3], key.shape[2]))
        return ALL_ATTENTION_FUNCTIONS["sdpa"](module, query, key, value, attention_mask, **settings)

    AttentionInterface.register("recorded", attend)
    images = torch.randn(2, 3, 48, 48)
    with torch.inference_mode():
        expected = model(images).logits
        assert not shapes
        model.set_attn_implementation("recorded")
        logits = model(images).logits
        model.set_attn_implementation("sdpa")
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5)
    small, large = (2, 17, 17), (2, 5, 5)  # heads, queries, tokens
    assert shapes == [small, large, large, (2, 1, 5), (2, 1, 17)] * 2


def test_the_weights_of_a_fusion_are_those_of_the_class_token_over_the_other_branch(model):
    """A patch of the second branch that gets all attention of the first class token determines its new value."""
    fusion = model.crossvit.blocks[0].fusions[0]
    own, other = torch.randn(1, 17, 16), torch.randn(1, 5, 24)
    changed = other.clone()
    changed[:, 0] += 1  # the class token of the other branch takes no part
    with torch.inference_mode():
        states, weights = fusion(own, other, True)
        assert torch.equal(fusion(own, changed, True)[0], states)
        changed[:, 3] += 1
        assert not torch.equal(fusion(own, changed, True)[0][:, 0], states[:, 0])
    assert torch.equal(states[:, 1:], own[:, 1:]) and weights.shape == (1, 2, 1, 5)


def test_positions_are_interpolated_to_a_rectangle(model):
    """A table that is linear in the row is sampled at the places of the new rows."""
    embeddings = model.crossvit.embeddings[0]
    kept = embeddings.position_embeddings.detach().clone()
    rows = torch.arange(4.0)[:, None].expand(4, 4).reshape(1, 16, 1)
    with torch.inference_mode():
        embeddings.position_embeddings[:, 1:] = rows
        table = embeddings._positions((8, 3))[:, 1:].unflatten(1, (8, 3))
        embeddings.position_embeddings.copy_(kept)
    assert embeddings._positions((4, 4)) is embeddings.position_embeddings
    # the middle rows are at 1.25 and 1.75 of the table; PyTorch's cubic kernel is Keys' with a = -0.75
    near = [1.25 * d**3 - 2.25 * d**2 + 1 for d in (0.25, 0.75)]  # of rows 1 and 2
    far = [-0.75 * (d**3 - 5 * d**2 + 8 * d - 4) for d in (1.25, 1.75)]  # of rows 0 and 3
    first, second = near[0] + 2 * near[1] + 3 * far[1], near[1] + 2 * near[0] + 3 * far[0]
    torch.testing.assert_close(table[0, 3:5, :, 0], torch.tensor([[first], [second]]).expand(2, 3))


def test_drop_path_rises_over_the_layers_and_branches_share_the_rates():
    model = CrossViTModel(tiny(drop_path_rate=0.3))
    layers = [[[layer.drop_path.rate for layer in branch] for branch in block.branches] for block in model.blocks]
    expected = [[[0.0], [0.0, 0.1]], [[0.2], [0.2, 0.3]]]
    for block, rates in zip(layers, expected, strict=True):
        for branch, wanted in zip(block, rates, strict=True):
            assert branch == pytest.approx(wanted)
    assert [block.fusions[0].drop_path.rate for block in model.blocks] == pytest.approx([0.1, 0.3])
    torch.manual_seed(0)
    kept = model.blocks[1].fusions[0].drop_path.train()(torch.ones(1000, 2, 2))
    assert kept.unique().tolist() == pytest.approx([0, 1 / 0.7]) and 0.9 < kept.mean() < 1.1
    assert torch.equal(kept[:, 0, 0], kept[:, 1, 1])  # an image is dropped as a whole


def test_gradient_checkpointing_gives_the_same_gradients(model):
    images, labels = torch.randn(2, 3, 48, 48), torch.tensor([1, 3])
    gradients = []
    for checkpointing in (False, True):
        again = CrossViTForImageClassification(model.config).train()
        again.load_state_dict(model.state_dict())
        if checkpointing:
            again.gradient_checkpointing_enable()
        loss = again(images, labels=labels).loss
        loss.backward()
        gradients.append([parameter.grad for parameter in again.parameters()])
    assert loss.item() == pytest.approx(torch.nn.functional.cross_entropy(again(images).logits, labels).item())
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, checkpointed, rtol=1e-5, atol=1e-7)


# ---- Checkpoints ----


def test_a_checkpoint_is_loaded_by_the_auto_classes(model, checkpoint):
    images = torch.randn(1, 3, 48, 48)
    classifier = AutoModelForImageClassification.from_pretrained(checkpoint)
    features, report = AutoModel.from_pretrained(checkpoint, output_loading_info=True)
    assert type(classifier) is CrossViTForImageClassification and type(features) is CrossViTModel
    assert not report["missing_keys"]
    with torch.inference_mode():
        torch.testing.assert_close(classifier(images).logits, model(images).logits)
        torch.testing.assert_close(features(images).pooler_output, model.crossvit(images).pooler_output)


def test_both_heads_are_replaced(model, checkpoint):
    again, report = CrossViTForImageClassification.from_pretrained(
        checkpoint, num_labels=3, ignore_mismatched_sizes=True, output_loading_info=True
    )
    replaced = {f"classifiers.{branch}.{kind}" for branch in (0, 1) for kind in ("weight", "bias")}
    assert {key[0] for key in report["mismatched_keys"]} == replaced and not report["missing_keys"]
    assert [tuple(head.weight.shape) for head in again.classifiers] == [(3, 16), (3, 24)]
    kept, expected = again.crossvit.state_dict(), model.crossvit.state_dict()
    assert all(torch.equal(kept[name], expected[name]) for name in expected)


def test_few_files_travel(checkpoint):
    code = {path.name for path in checkpoint.glob("*.py")}
    assert code == {
        "configuration_crossvit.py",
        "configuration_images.py",
        "conversion_crossvit.py",
        "cross_attention.py",
        "modeling_crossvit.py",
    }
    assert len(list(checkpoint.iterdir())) <= 8


PROGRAM = """
import sys
sys.modules["cca_hf"] = None  # importing it raises ImportError
import json, torch
from transformers import AutoModel, AutoModelForImageClassification, pipeline
folder, image = sys.argv[1:]
images = torch.linspace(-1, 1, 3 * 48 * 48).reshape(1, 3, 48, 48)
result = {}
for turn in ("first", "second"):
    model = AutoModelForImageClassification.from_pretrained(folder, trust_remote_code=True).eval()
    with torch.no_grad():
        result[turn] = model(images).logits[0].tolist()
    if turn == "first":
        features = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
        with torch.no_grad():
            result["pooled"] = features(images).pooler_output[0].tolist()
        classify = pipeline("image-classification", model=folder, trust_remote_code=True, top_k=2)
        result["pipeline"] = classify(image)
        folder += "-again"
        model.save_pretrained(folder)
print(json.dumps(result))
"""


def test_plain_transformers_loads_and_saves_a_checkpoint(model, checkpoint, image, tmp_path, warm_python):
    image.save(tmp_path / "image.png")
    environment = {**os.environ, "PYTHONPATH": ""}
    words = ["-c", PROGRAM, checkpoint, tmp_path / "image.png"]
    process = warm_python.run(*words, cwd=tmp_path, env=environment, check=True)
    result = json.loads(process.stdout.splitlines()[-1])
    images = torch.linspace(-1, 1, 3 * 48 * 48).reshape(1, 3, 48, 48)
    with torch.inference_mode():
        logits, pooled = model(images).logits[0], model.crossvit(images).pooler_output[0]
    for turn in ("first", "second"):
        torch.testing.assert_close(torch.tensor(result[turn]), logits, rtol=0, atol=1e-6)
    torch.testing.assert_close(torch.tensor(result["pooled"]), pooled, rtol=0, atol=1e-6)
    here = pipeline("image-classification", model=str(checkpoint), top_k=2)(image)
    assert [each["label"] for each in result["pipeline"]] == [each["label"] for each in here]
    processed = make_image_processor(model.config)(image, return_tensors="pt")["pixel_values"]
    with torch.inference_mode():
        best = model(processed).logits[0].softmax(0).topk(2)
    assert [each["label"] for each in here] == [model.config.id2label[place] for place in best.indices.tolist()]
    assert [each["score"] for each in here] == pytest.approx(best.values.tolist(), abs=1e-5)


# ---- Under CCA ----


@pytest.mark.parametrize("branch", [0, 1])
def test_the_grid_follows_from_the_number_of_tokens(branch):
    """Also behind a class token, for every image with two rows and columns of patches."""
    config = CrossViTConfig()
    patch = config.patch_sizes[branch]
    for height in range(36, 300, 7):
        for width in range(36, 300, 11):
            rows, columns = (side // patch for side in config.size_in_branch(branch, height, width))
            for prefix in (0, 1):
                assert _token_grid(rows * columns + prefix, (height, width), None) == (rows, columns)


def test_conditions_attend_to_the_tokens_of_both_branches(checkpoint, image):
    cca = CCAModel.from_backbone(checkpoint, ["colour", "shape"], image_size=(96, 36))
    patches = [(8, 3), (5, 2)]  # of 12 pixels; of 16 pixels in 14 / 15 of the image
    assert cca.config.num_prefix_tokens == 1 and cca.config.feature_channels == [16, 24]
    images = torch.randn(2, 3, 96, 36)
    with torch.inference_mode():
        tokens, grids = cca.tokens_and_grids(images)
        expected = cca.backbone(images).branch_states
        cells = cca.get_backbone_features(images)
    assert tokens.shape == (2, 1 + 5 * 2 + 1 + 8 * 3, cca.config.hidden_size) and grids == patches[::-1]
    for cell, tokens_of_branch in zip(cells, expected[::-1], strict=True):
        torch.testing.assert_close(cell, tokens_of_branch)
    assert cca.attention_maps(image).shape == (1, 2, cca.config.num_attention_heads, 8, 3)
    cca.train()(images).embeddings.square().sum().backward()
    unused = [name for name, parameter in cca.named_parameters() if parameter.grad is None]
    assert not unused


def test_cca_on_crossvit_is_saved_and_loaded(checkpoint, image, tmp_path):
    cca = CCAModel.from_backbone(checkpoint, ["colour"])
    cca.save_pretrained(tmp_path / "cca")
    again = CCAModel.from_pretrained(tmp_path / "cca")
    assert again.fingerprint() == cca.fingerprint()
    assert np.array_equal(again.encode([image]), cca.encode([image]))


# ---- Bad input ----


def test_an_image_smaller_than_a_patch(model):
    assert model.config.smallest_side == 18
    assert model(torch.zeros(1, 3, 18, 18)).logits.shape == (1, 5)
    with pytest.raises(ValueError, match="images of 17 x 48 pixels are smaller than a patch: this model needs at"):
        model(torch.zeros(1, 3, 17, 48))
    with pytest.raises(Exception, match="image_size must be at least 18"):
        tiny(image_size=17)


def test_one_class():
    with pytest.raises(ValueError, match="a classifier needs at least 2 classes; got num_labels=1"):
        CrossViTForImageClassification(tiny(num_labels=1))
    model = CrossViTForImageClassification(tiny(num_labels=1, problem_type="regression"))
    assert model(torch.zeros(2, 3, 48, 48), labels=torch.zeros(2)).loss.item() < 1


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hidden_sizes": [16]}, "hidden_sizes needs a positive number for each of the 2 branches; got [16]"),
        ({"num_attention_heads": [3, 2]}, "hidden_sizes must be multiples of num_attention_heads; got [16, 24]"),
        ({"multi_conv": True, "patch_sizes": [8, 16]}, "multi_conv needs patch_sizes [12, 16]"),
    ],
)
def test_branches_that_do_not_fit(fields, message):
    with pytest.raises(Exception) as raised:
        tiny(**fields)
    assert message in str(raised.value)


def test_an_unknown_variant_or_field():
    with pytest.raises(ValueError, match="unknown variant 'crossvit_15_240_dagger'. Did you mean 'crossvit_15_dagger"):
        CrossViTConfig.from_variant("crossvit_15_240_dagger")
    with pytest.raises(TypeError, match="CrossViTConfig has no field 'drop_path'. Did you mean 'drop_path_rate'"):
        CrossViTConfig.from_variant("crossvit_15_240", drop_path=0.1)
