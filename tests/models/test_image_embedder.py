"""`ImageEmbedder`: one embedding of an image, from any vision model; and `load_encoder`."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    AutoModel,
    BertConfig,
    BertModel,
    CLIPConfig,
    CLIPModel,
    MobileNetV2ImageProcessor,
    ViTConfig,
    ViTForImageClassification,
    ViTForMaskedImageModeling,
    ViTImageProcessor,
    ViTModel,
)

from cca_hf import CCAModel, ImageEmbedder
from cca_hf.models.loading import load_encoder, load_saved
from cca_hf.models.modeling_crossvit import CrossViTConfig, CrossViTForImageClassification, CrossViTModel

from .conftest import TINY, tiny_backbone

CROSSVIT = CrossViTConfig(
    image_size=32, hidden_sizes=[12, 24], num_attention_heads=[2, 2], num_layers=[1, 1], num_blocks=1, num_labels=5
)


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    """Of 32 x 32 pixels, which an image processor for this size does not change."""
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)) for _ in range(3)]


def save(model, folder, side=32):
    model.save_pretrained(folder)
    ViTImageProcessor(size={"height": side, "width": side}).save_pretrained(folder)
    return folder


def pixels_of(images):
    levels = torch.from_numpy(np.stack([np.array(image) for image in images])).permute(0, 3, 1, 2)
    return levels.float() / 255 * 2 - 1


def normalised(features):
    return torch.nn.functional.normalize(features, dim=-1).detach().numpy()


@pytest.mark.parametrize("name", ["crossvit", "vit", "dinov2", "mobilenet_v2", "convnext", "siglip"])
def test_the_pooled_output_of_any_vision_model(name, images, tmp_path):
    torch.manual_seed(0)
    config = CROSSVIT if name == "crossvit" else tiny_backbone(name)
    model = AutoModel.from_config(config).eval()
    embedder = ImageEmbedder.from_pretrained(save(model, tmp_path), "cpu")
    pooled = model(pixels_of(images)).pooler_output
    embeddings = embedder.encode(images, batch_size=2)
    assert embeddings.dtype == np.float32 and embeddings.shape == (3, embedder.get_embedding_dimension())
    np.testing.assert_allclose(embeddings, normalised(pooled.flatten(1)), atol=2e-5)
    np.testing.assert_allclose(embedder.encode(images[0]), embeddings[0], atol=1e-5)  # (dim,)


def test_a_classifier_without_its_head(images, tmp_path):
    """Its checkpoint has no pooler, which would be random: the embedding is the first token."""
    torch.manual_seed(0)
    model = ViTForImageClassification(ViTConfig(**TINY, num_labels=4)).eval()
    embedder = ImageEmbedder.from_pretrained(save(model, tmp_path), "cpu")
    expected = normalised(model.vit(pixels_of(images)).last_hidden_state[:, 0])
    np.testing.assert_allclose(embedder.encode(images), expected, atol=2e-5)


def test_the_vision_model_of_a_model_of_images_and_texts(images, tmp_path):
    torch.manual_seed(0)
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = CLIPConfig(text_config={**small, "vocab_size": 9}, vision_config={**TINY, "num_hidden_layers": 1})
    model = CLIPModel(config).eval()
    embedder = ImageEmbedder.from_pretrained(save(model, tmp_path), "cpu")
    expected = normalised(model.vision_model(pixels_of(images)).pooler_output)
    np.testing.assert_allclose(embedder.encode(images), expected, atol=2e-5)


def test_an_image_processor_that_crops(tmp_path):
    AutoModel.from_config(tiny_backbone("mobilenet_v2")).save_pretrained(tmp_path)
    crop = MobileNetV2ImageProcessor(size={"shortest_edge": 40}, crop_size={"height": 32, "width": 32})
    crop.save_pretrained(tmp_path)
    embedder = ImageEmbedder.from_pretrained(tmp_path, "cpu")
    wide = np.random.default_rng(0).integers(0, 256, (50, 90, 3), dtype=np.uint8)
    pixels = embedder.image_processor(Image.fromarray(wide), return_tensors="pt")["pixel_values"]
    assert pixels.shape == (1, 3, 32, 32)
    expected = normalised(embedder.model(pixels).pooler_output)
    np.testing.assert_allclose(embedder.encode([wide]), expected, atol=1e-5)


def test_training_mode_does_not_change_embeddings(images):
    config = ViTConfig(**TINY, hidden_dropout_prob=0.5)
    model = ViTModel(config, add_pooling_layer=False).train()
    embedder = ImageEmbedder(model, ViTImageProcessor(size={"height": 32, "width": 32}))
    assert (embedder.encode(images) == embedder.encode(images)).all() and model.training


def test_an_attribute_is_an_error(images, tmp_path):
    embedder = ImageEmbedder.from_pretrained(save(CrossViTModel(CROSSVIT), tmp_path), "cpu")
    for words in ({"attribute": "colour"}, {"attributes": ["colour"]}):
        with pytest.raises(ValueError, match="this model has one embedding of an image, and none by attribute: "):
            embedder.encode(images, **words)
    with pytest.raises(TypeError, match="encode has no parameter 'batchsize'. Did you mean 'batch_size'?"):
        embedder.encode(images, batchsize=2)


def test_fingerprints(tmp_path):
    torch.manual_seed(0)
    classifier = CrossViTForImageClassification(CROSSVIT)
    folder = save(classifier, tmp_path / "classifier")
    loaded = ImageEmbedder.from_pretrained(folder, "cpu")
    own = loaded.fingerprint()
    loaded.save_pretrained(tmp_path / "model")
    assert ImageEmbedder.from_pretrained(tmp_path / "model", "cpu").fingerprint() == own
    assert ImageEmbedder(classifier.crossvit, loaded.image_processor).fingerprint() == own
    half = ImageEmbedder.from_pretrained(folder, "cpu", torch.bfloat16)
    half.save_pretrained(tmp_path / "half")
    assert half.fingerprint() != own and ImageEmbedder.from_pretrained(tmp_path / "half").dtype is torch.bfloat16
    assert loaded.shares_space(half.fingerprint()) and not loaded.shares_space("another")
    other = ImageEmbedder(loaded.model, ViTImageProcessor(size={"height": 40, "width": 40}))
    assert not other.shares_space(own)
    with torch.no_grad():
        loaded.model.layernorms[0].bias += 1
    assert not loaded.shares_space(own)


def test_load_encoder_returns_a_model_with_attributes_itself(model, tmp_path):
    model.save_pretrained(tmp_path)
    assert type(load_encoder(tmp_path, "cpu")) is CCAModel
    with pytest.raises(ValueError, match="type 'cca', which gives not one embedding of an image: load it with "):
        ImageEmbedder.from_pretrained(tmp_path)


def test_models_that_embed_no_image(tmp_path):
    small = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    BertModel(BertConfig(**small, vocab_size=9)).save_pretrained(tmp_path / "bert")
    with pytest.raises(ValueError, match="is a checkpoint of type 'bert', which does not embed images: a vision"):
        load_encoder(tmp_path / "bert")
    CrossViTModel(CROSSVIT).save_pretrained(tmp_path / "crossvit")
    with pytest.raises(ValueError, match=r"crossvit has no image processor \(preprocessor_config.json\), which says "):
        load_encoder(tmp_path / "crossvit")
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "config.json").write_text(json.dumps({"model_type": "resnext"}))
    with pytest.raises(ValueError, match="of type 'resnext', which neither cca_hf nor this version of transformers"):
        load_encoder(tmp_path / "odd")
    classifier = ViTForImageClassification(ViTConfig(**TINY))
    with pytest.raises(ValueError, match="its output has neither pooler_output nor last_hidden_state, but logits"):
        ImageEmbedder(classifier, ViTImageProcessor(size={"height": 32, "width": 32}))


def test_load_saved_keeps_the_head(tmp_path):
    save(CrossViTForImageClassification(CROSSVIT), tmp_path / "classifier")
    assert type(load_saved(tmp_path / "classifier")) is CrossViTForImageClassification
    save(CrossViTModel(CROSSVIT), tmp_path / "model")
    assert type(load_saved(tmp_path / "model")) is CrossViTModel
    save(ViTForMaskedImageModeling(ViTConfig(**TINY)), tmp_path / "other")
    with pytest.raises(ValueError, match="the checkpoint is of ViTForMaskedImageModeling; this package publishes mod"):
        load_saved(tmp_path / "other")
