"""Images of 128 x 64 pixels on every kind of backbone: shapes, grids, attention maps, `encode`, saving and loading."""

import numpy as np
import pytest
import torch
from huggingface_hub.errors import StrictDataclassClassValidationError
from PIL import Image
from transformers import (
    CLIPImageProcessorPil,
    ConvNextConfig,
    DeiTConfig,
    Dinov2WithRegistersConfig,
    MobileNetV2Config,
    SwinConfig,
    ViTConfig,
    ViTImageProcessorPil,
)

from cca_hf import CCAConfig, CCAModel
from cca_hf.models.backbones import ImageTokens, describe_backbone

from .conftest import ATTRIBUTES

SIZE = (128, 64)
SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
SWIN = {"patch_size": 4, "embed_dim": 16, "depths": [1, 1, 1], "num_heads": [2, 2, 2]}
# backbone, its grid under 128 x 64 pixels and its finest one, and the tokens before it
BACKBONES = {
    "vit": (ViTConfig(**SHAPE, intermediate_size=64, image_size=224, patch_size=16), (8, 4), (8, 4), 1),
    "tall vit": (ViTConfig(**SHAPE, intermediate_size=64, image_size=SIZE, patch_size=16), (8, 4), (8, 4), 1),
    "deit": (DeiTConfig(**SHAPE, intermediate_size=64, image_size=64, patch_size=8), (16, 8), (16, 8), 2),
    "registers": (
        Dinov2WithRegistersConfig(**SHAPE, mlp_ratio=2, image_size=56, patch_size=14, num_register_tokens=4),
        (9, 4),
        (9, 4),
        5,
    ),
    "swin": (SwinConfig(**SWIN, image_size=64, window_size=4), (8, 4), (8, 4), 0),
    "swin of large windows": (SwinConfig(**SWIN, image_size=224, window_size=7), (8, 4), (8, 4), 0),
    "convnext": (ConvNextConfig(hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1]), (4, 2), (7, 4), 0),
    "mobilenet_v2": (MobileNetV2Config(depth_multiplier=0.35), (4, 2), (7, 4), 0),
}


@pytest.fixture(params=BACKBONES)
def tall(request):
    """A model for 128 x 64 pixels, its grids and the number of its prefix tokens."""
    backbone, grid, finest, prefix = BACKBONES[request.param]
    torch.manual_seed(0)
    return CCAModel.from_backbone(backbone, ATTRIBUTES, image_size=SIZE).eval(), grid, finest, prefix


@pytest.fixture
def tall_files(tmp_path):
    generator = np.random.default_rng(0)
    for number, size in enumerate([(128, 64), (200, 90), (60, 50)]):
        image = Image.fromarray(generator.integers(0, 256, (*size, 3), dtype=np.uint8))
        image.save(tmp_path / f"{number}.{'jpg' if number else 'png'}")
    return sorted(tmp_path.iterdir())


@torch.no_grad()
def test_grids_and_attention_maps(tall, tall_files):
    model, grid, finest, prefix = tall
    assert model.config.num_prefix_tokens == prefix
    tokens, grids = model.tokens_and_grids(torch.randn(2, 3, *SIZE))
    assert grids[0] == grid and max(grids) == finest
    assert tokens.shape[1] == max(1, prefix) + sum(height * width for height, width in grids)
    maps = model.attention_maps(tall_files)
    assert maps.shape == (3, 3, model.config.num_attention_heads, *finest)
    assert (maps.sum((-1, -2)) > 0.4).all() and (maps.sum((-1, -2)) < 1 + 1e-5).all()


def test_encode_save_and_load(tall, tall_files, tmp_path):
    model, *_ = tall
    assert model.config.image_size == [128, 64] and model.config.image_height_and_width == SIZE
    assert dict(model.image_processor.size) == {"height": 128, "width": 64}
    embeddings = model.encode(tall_files)
    assert embeddings.shape == (3, 3, model.config.hidden_size) and np.isfinite(embeddings).all()
    model.save_pretrained(tmp_path / "saved")
    loaded = CCAModel.from_pretrained(tmp_path / "saved")
    assert loaded.config.image_height_and_width == SIZE
    np.testing.assert_allclose(loaded.encode(tall_files), embeddings, atol=1e-6)


def test_every_level_can_be_frozen(tall):
    model, *_ = tall
    learning = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    model.freeze_backbone(len(model.config.feature_levels))
    frozen = learning - {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert bool(frozen) == bool(model.config.feature_levels)
    assert all(name.startswith("backbone.") for name in frozen)


@torch.no_grad()
def test_attention_falls_where_the_token_lies():
    """The map of a tall image is not turned over: the one patch that differs is found at its place."""
    torch.manual_seed(0)
    model = CCAModel.from_backbone(BACKBONES["vit"][0], ATTRIBUTES, image_size=SIZE).eval()
    model.backbone.layers = torch.nn.ModuleList()  # so that a token depends on its patch alone
    model.conditional_layer.attention.q_proj.weight.mul_(50)
    model.backbone.embeddings.position_embeddings.zero_()
    plain = np.zeros((*SIZE, 3), dtype=np.uint8)
    marked = plain.copy()
    marked[5 * 16 : 6 * 16, 2 * 16 : 3 * 16] = 255
    before, after = model.attention_maps([plain, marked], "colour")[:, 0, 0]
    change = np.abs(after / before - np.median(after / before))
    assert np.unravel_index(change.argmax(), change.shape) == (5, 2)


@pytest.mark.parametrize("size", [(100, 60), (60, 100), (97, 33), (130, 130)])
@torch.no_grad()
def test_sizes_that_patches_do_not_divide(size):
    for name in ("vit", "deit", "swin", "registers"):
        backbone, _, _, prefix = BACKBONES[name]
        model = CCAModel.from_backbone(backbone, ATTRIBUTES, image_size=size).eval()
        assert model.config.num_prefix_tokens == prefix
        grids = model.tokens_and_grids(torch.randn(1, 3, *size))[1]
        if name == "swin":
            assert grids[0] == (-(-size[0] // 16), -(-size[1] // 16))
        else:
            assert grids == [(size[0] // backbone.patch_size, size[1] // backbone.patch_size)]


def test_earlier_levels_keep_their_shape():
    config = CCAConfig(
        hidden_size=4, num_attention_heads=1, feature_levels=[0], feature_channels=[1, 4], num_prefix_tokens=0
    )
    tokens = ImageTokens(config)
    fine = torch.arange(32 * 16, dtype=torch.float32).reshape(1, 1, 32, 16)
    flattened, grids = tokens.flatten([fine, torch.zeros(1, 4, 4, 2)], (128, 64))
    assert grids == [(4, 2), (7, 4)]
    expected = torch.nn.functional.adaptive_avg_pool2d(fine, (7, 4)).flatten(2).transpose(1, 2)
    torch.testing.assert_close(flattened[1], expected)
    assert tokens.flatten([fine.mT, torch.zeros(1, 4, 2, 4)], (64, 128))[1] == [(2, 4), (4, 7)]


@pytest.mark.parametrize("size", [0, (128, 0), [1, 2, 3], -5])
def test_sizes_that_are_refused(size):
    with pytest.raises(StrictDataclassClassValidationError, match="image_size must be a positive number or"):
        CCAConfig(image_size=size)
    with pytest.raises(ValueError, match="image_size must be a positive number or"):
        describe_backbone(CCAModel.from_backbone(BACKBONES["vit"][0], ["a"]).backbone, size, {}, takes_last_layer=True)


PROCESSORS = {
    "pads": ViTImageProcessorPil(
        size={"max_height": 128, "max_width": 64}, do_pad=True, pad_size={"height": 128, "width": 64}
    ),
    "crops": CLIPImageProcessorPil(size={"shortest_edge": 64}, crop_size={"height": 128, "width": 64}),
}


@pytest.mark.parametrize("name", PROCESSORS)
def test_padding_and_cropping_are_a_choice_of_the_image_processor(name, tall_files, tmp_path):
    torch.manual_seed(0)
    model = CCAModel.from_backbone(BACKBONES["vit"][0], ATTRIBUTES, image_size=SIZE).eval()
    squashed = model.encode(tall_files)
    model.image_processor = PROCESSORS[name]
    embeddings = model.encode(tall_files)
    images = [Image.open(path).convert("RGB") for path in tall_files]
    pixel_values = torch.stack([PROCESSORS[name](image, return_tensors="pt")["pixel_values"][0] for image in images])
    assert pixel_values.shape == (3, 3, *SIZE)
    with torch.no_grad():
        expected = model(pixel_values, attribute_ids=torch.arange(3).expand(3, 3)).embeddings
    np.testing.assert_allclose(embeddings, expected, atol=1e-5)
    assert np.abs(embeddings[1:] - squashed[1:]).max() > 1e-3
    model.save_pretrained(tmp_path / "saved")
    np.testing.assert_allclose(CCAModel.from_pretrained(tmp_path / "saved").encode(tall_files), embeddings, atol=1e-6)
