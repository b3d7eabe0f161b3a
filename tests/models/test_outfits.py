"""`OutfitModel`: its formulas by plain loops, its methods, and its checkpoints."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from PIL import Image
from transformers import PreTrainedConfig, ViTConfig
from transformers.dynamic_module_utils import get_class_from_dynamic_module

from cca_hf.models.configuration_outfit import OutfitConfig
from cca_hf.models.loading import load_model
from cca_hf.models.modeling_cca import CCAModel
from cca_hf.models.modeling_outfit import OutfitModel

CATEGORIES = ["sofa", "lamp", "rug"]


def make(backbone, **fields) -> OutfitModel:
    torch.manual_seed(0)
    return OutfitModel.from_backbone(backbone, CATEGORIES, **fields)


@pytest.fixture(scope="module")
def vit() -> OutfitModel:
    """CSA-Net's form on a tiny ViT."""
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    return make(ViTConfig(image_size=32, patch_size=8, **small), embedding_dim=6, num_subspaces=2, pair_hidden_size=4)


@pytest.fixture
def on_attributes(model: CCAModel) -> OutfitModel:
    """Weights of the three attributes of a tiny CCA model."""
    return make(model, subspaces="attributes", embedding_dim=4)


def two_layer_network(model: OutfitModel, own: int, target: int) -> np.ndarray:
    """The softmax of a network on the one-hots of two categories, as one row."""
    parts = {name: value.double().numpy() for name, value in model.pair_weights.state_dict().items()}
    row = np.zeros(2 * len(CATEGORIES))
    row[[own, len(CATEGORIES) + target]] = 1
    first = np.concatenate([parts["outfit_category.weight"], parts["target_category.weight"]], axis=1)
    hidden = np.maximum(first @ row + parts["outfit_category.bias"], 0)
    scores = np.exp(parts["mixture.weight"] @ hidden + parts["mixture.bias"])
    return scores / scores.sum()


def test_masks_of_a_pair(vit: OutfitModel, pictures: list[Image.Image]) -> None:
    x, masks = vit.features(pictures), vit.pair_weights.masks.detach().numpy()
    np.testing.assert_allclose(np.linalg.norm(x, axis=1), 1, atol=1e-6)
    own, target = ["sofa", "lamp", "rug", "rug", "sofa"], ["rug", "sofa", "rug", "lamp", "lamp"]
    embeddings = vit.encode(pictures, own, target)
    for row, names in enumerate(zip(own, target, strict=True)):
        weights = two_layer_network(vit, *(CATEGORIES.index(name) for name in names))
        expected = x[row] * sum(weight * mask for weight, mask in zip(weights, masks, strict=True))
        np.testing.assert_allclose(embeddings[row], expected, atol=1e-6)


def test_weights_of_attributes(on_attributes: OutfitModel, pictures: list[Image.Image]) -> None:
    """The squared distance is the mean of those of the attributes, by the weights of the pair."""
    x = on_attributes.features(pictures).reshape(5, 3, 4)
    scale = 1 / np.sqrt(1 + on_attributes.standardise.eps)  # no statistics yet: mean 0 and variance 1
    projected = [
        scale * on_attributes.backbone.encode(pictures)[:, place] @ weight
        for place, weight in enumerate(on_attributes.projection.weight.detach().numpy())
    ]
    for place, block in enumerate(projected):
        unit = block / np.linalg.norm(block, axis=1, keepdims=True)
        np.testing.assert_allclose(x[:, place], unit, atol=1e-5)
    embeddings = on_attributes.encode(pictures, "lamp", "rug")
    weights = two_layer_network(on_attributes, 1, 2)
    expected = sum(weight * ((x[0, a] - x[1, a]) ** 2).sum() for a, weight in enumerate(weights))
    assert abs(((embeddings[0] - embeddings[1]) ** 2).sum() - expected) < 1e-5


def test_distance_of_a_candidate(vit: OutfitModel, pictures: list[Image.Image]) -> None:
    """Both are embedded under the same pair, and the mean is over the items of the outfit."""
    x, own, targets = vit.features(pictures), ["sofa", "lamp", "sofa"], ["rug", "lamp"]
    distances = vit.distances(x[:3], own, x[3:], targets)
    for row, target in enumerate(targets):
        parts = [
            ((vit.encode(x[[item]], name, target) - vit.encode(x[[3 + row]], name, target)) ** 2).sum()
            for item, name in enumerate(own)
        ]
        assert abs(distances[row] - np.mean(parts)) < 1e-6


def test_complete(vit: OutfitModel, pictures: list[Image.Image]) -> None:
    kinds = ["rug", "sofa", "rug", "rug"]
    distances = vit.distances(pictures[:1], "lamp", pictures[1:], kinds)
    rugs = sorted((0, 2, 3), key=lambda row: distances[row])
    found = vit.complete(pictures[:1], "lamp", pictures[1:], kinds, category="rug", top_k=2)
    assert [each.index for each in found] == rugs[:2]
    np.testing.assert_allclose([each.distance for each in found], distances[rugs[:2]], rtol=1e-5)
    stored = vit.complete(vit.features(pictures[:1]), "lamp", vit.features(pictures[1:]), kinds)
    assert [each.index for each in stored] == sorted(range(4), key=lambda row: distances[row])


def test_wrong_calls(vit: OutfitModel) -> None:
    x = np.ones((2, 6), np.float32)
    with pytest.raises(ValueError, match=r"unknown category 'sofaa' in row 1. Did you mean 'sofa'\?"):
        vit.complete(x, ["lamp", "sofaa"], x, "rug")
    with pytest.raises(ValueError, match="the outfit has no items: completing it needs at least one"):
        vit.complete(x[:0], [], x, "rug")
    with pytest.raises(ValueError, match=r"no candidate is of the category 'sofa'; the candidates are of \['rug'\]"):
        vit.complete(x, "lamp", x, "rug", category="sofa")
    with pytest.raises(ValueError, match="outfit_categories must be one name, or one for each of the 2 images; got 3"):
        vit.complete(x, CATEGORIES, x, "rug")
    with pytest.raises(ValueError, match="features of this model have 6 numbers; got 5"):
        vit.encode(x[:, :5], "lamp", "rug")
    with pytest.raises(ValueError, match="top_k must be at least 1; got 0"):
        vit.complete(x, "lamp", x, "rug", top_k=0)
    with pytest.raises(ValueError, match="give either pixel_values or backbone_features"):
        vit()


def test_wrong_configurations(vit_config: ViTConfig) -> None:
    with pytest.raises(StrictDataclassError, match="subspaces='attributes' needs a backbone that embeds images by"):
        make(vit_config, subspaces="attributes")
    with pytest.raises(ValueError, match="pip install cca-hf, and write 'import cca_hf.models'"):
        OutfitConfig(backbone_config={"model_type": "unheard_of"})
    with pytest.raises(StrictDataclassError, match="names of categories must be unique"):
        OutfitModel.from_backbone(vit_config, ["rug", "rug"])
    with pytest.raises(ValueError, match="a model of type 'outfit' is no backbone of an OutfitModel"):
        make(OutfitConfig(categories=CATEGORIES))
    with pytest.raises(TypeError, match="has no field 'embeding_dim'. Did you mean 'embedding_dim'"):
        make(vit_config, embeding_dim=3)


def test_any_backbone(backbone_config: PreTrainedConfig, pictures: list[Image.Image]) -> None:
    """The summary token where there is one, otherwise the mean of the output; its width is in the configuration."""
    model = make(backbone_config)
    assert model.features(pictures).shape == (5, 64) and model.config.feature_levels == []


@pytest.mark.parametrize("fields", [{}, {"subspaces": "attributes"}])
def test_checkpoint_of_a_model_with_attributes(
    model: CCAModel, fields: dict, pictures: list[Image.Image], tmp_path: Path
) -> None:
    model.config.backbone_name = "/home/me/secret/vit"
    outfits = make(model, **fields)
    outfits.save_pretrained(tmp_path)
    loaded = load_model(tmp_path, "cpu")
    assert type(loaded) is OutfitModel and type(loaded.backbone) is CCAModel
    np.testing.assert_array_equal(loaded.features(pictures), outfits.features(pictures))
    assert loaded.fingerprint() == outfits.fingerprint()
    assert loaded.image_processor.to_dict() == outfits.image_processor.to_dict()
    assert "secret" not in (tmp_path / "config.json").read_text(encoding="utf-8")
    loaded.backbone.config.backbone_config.layer_norm_eps = 0.5
    assert loaded.fingerprint() != outfits.fingerprint()


def test_checkpoint_with_its_code(vit: OutfitModel, pictures: list[Image.Image], tmp_path: Path) -> None:
    """The saved code alone computes the same; it has nothing of CCA."""
    vit.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert config["categories"] == CATEGORIES and "id2label" not in config
    assert not [path.name for path in tmp_path.glob("*.py") if "cca" in path.name or "conditional" in path.name]
    remote_class = get_class_from_dynamic_module("modeling_outfit.OutfitModel", str(tmp_path))
    assert remote_class.__module__.startswith("transformers_modules")
    remote = remote_class.from_pretrained(tmp_path)
    arguments = (pictures[:2], ["sofa", "lamp"], pictures[2:], "rug")
    assert remote.complete(*arguments) == vit.complete(*arguments)


def test_training_starts_with_a_pretrained_backbone(
    vit_config: ViTConfig, pictures: list[Image.Image], tmp_path: Path
) -> None:
    """The weights and the image processor of a folder are used, and a frozen backbone does not learn."""
    trained = CCAModel.from_backbone(vit_config, ["colour"])
    trained.save_pretrained(tmp_path)
    model = make(tmp_path, freeze_backbone=True)
    pixels = torch.randn(2, 3, 32, 32)
    expected = trained(pixels).embeddings.flatten(1)
    torch.testing.assert_close(model.get_backbone_features(pixels), expected, atol=1e-6, rtol=0)
    assert not any(parameter.requires_grad for parameter in model.backbone.parameters())
    assert all(parameter.requires_grad for parameter in model.pair_weights.parameters())
