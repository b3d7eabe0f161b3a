"""Cards, pushes, the server and the Space of models without attributes: classifiers, and one embedding of an image."""

import asyncio
import base64
import json
import re
import shutil
from dataclasses import asdict

import httpx
import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image
from transformers import AutoModel, ViTConfig, ViTForImageClassification, ViTImageProcessor, ViTModel, pipeline

from cca_hf import ImageEmbedder
from cca_hf.evaluation.results import ResultCard
from cca_hf.hub.handler import Limits
from cca_hf.hub.integrity import check_folder
from cca_hf.hub.model_card import write_model_card
from cca_hf.hub.publishing import stage_model
from cca_hf.hub.server import EmbeddingServer, ServerSettings
from cca_hf.models.modeling_crossvit import CrossViTConfig, CrossViTForImageClassification
from cca_hf.training.run_record import RunRecord

from .conftest import VIT
from .served import picture_file

CLASSES = {0: "boot", 1: "sandal", 2: "shoe"}
RESULT = ResultCard("Results", "image-classification", "top-1 is 66.7", (("accuracy", "top-1", 66.7),))


def save(model, folder):
    model.save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """The output folder of a training of CrossViT."""
    torch.manual_seed(0)
    shape = {"hidden_sizes": [12, 24], "num_attention_heads": [2, 2], "num_layers": [1, 1], "num_blocks": 1}
    names = {"id2label": CLASSES, "label2id": {name: number for number, name in CLASSES.items()}}
    model = CrossViTForImageClassification(CrossViTConfig(image_size=32, **shape, **names))
    folder = save(model, tmp_path_factory.mktemp("run") / "shoe-kinds")
    counts = {"label": {"boot": 5, "sandal": 40, "shoe": 20}}
    versions = {"python": "3.11", "torch": "2", "transformers": "5"}
    settings = {"backbone": "timm/crossvit_tiny_240.in1k", "seed": 1}
    RunRecord("me/shoes", True, {"train": 65, "test": 9}, counts, settings, "CPU", versions, 3.0).save(folder)
    (folder / "test_evaluation.json").write_text(json.dumps({"top_1": 0.667, "card": asdict(RESULT)}))
    (folder / "optimizer.pt").write_text("stays")
    return folder


@pytest.fixture(scope="module")
def embedding_model(tmp_path_factory):
    torch.manual_seed(0)
    model = ViTModel(ViTConfig(**{**VIT, "model_type": "vit"}), add_pooling_layer=False)
    return save(model, tmp_path_factory.mktemp("run") / "persons")


@pytest.fixture(scope="module")
def embedder(embedding_model):
    return ImageEmbedder.from_pretrained(embedding_model, "cpu")


def snippets(card):
    return re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)


def test_the_card_of_a_classifier(classifier):
    text = write_model_card(classifier, model_id="me/shoe-kinds").read_text(encoding="utf-8")
    card = ModelCard(text)
    assert card.data.pipeline_tag == "image-classification" and card.data.datasets == ["me/shoes"]
    assert card.data.tags == ["cca_hf", "image-classification", "crossvit"]
    (result,) = card.data.eval_results
    assert (result.metric_type, result.metric_value, result.dataset_name) == ("accuracy", 66.7, "shoes")
    assert "- **Method**: a classifier of images, by `CrossViTForImageClassification`\n" in text
    assert "most frequent first: sandal (40), shoe (20), boot (5)." in text
    assert "Rare values of label, with fewer than 10 training images: boot." in text and "top-1 is 66.7" in text
    assert card.data.base_model == "timm/crossvit_tiny_240.in1k"
    assert "](https://huggingface.co/timm/crossvit_tiny_240.in1k)" in text
    for wrong in ("## Attributes", "attribute", "None"):
        assert wrong not in text
    (code,) = snippets(text)
    assert 'pipeline("image-classification", model="me/shoe-kinds", trust_remote_code=True)' in code


def test_a_classifier_is_staged(classifier, tmp_path):
    staged = stage_model(classifier, tmp_path / "staged", "me/shoe-kinds")
    names = {path.name for path in staged.iterdir()}
    code = {"modeling_crossvit.py", "configuration_crossvit.py", "configuration_images.py", "conversion_crossvit.py"}
    code |= {"cross_attention.py"}
    checkpoint = {"config.json", "model.safetensors", "preprocessor_config.json", "checksums.json"}
    assert names == checkpoint | code | {"README.md", "run.json", "test_evaluation.json"}
    assert {file.state for file in check_folder(staged)} <= {"ok", "no checksum"}
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))
    before, after = (pipeline("image-classification", model=str(folder))(image) for folder in (classifier, staged))
    assert before == after and {each["label"] for each in after} == set(CLASSES.values())


def test_the_card_of_a_model_of_embeddings_runs(embedding_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = write_model_card(embedding_model, model_id="me/persons").read_text(encoding="utf-8")
    card = ModelCard(text)
    assert card.data.pipeline_tag == "image-feature-extraction" and card.data.tags[-1] == "vit"
    assert "one embedding of an image, by `ViTModel`" in text and "## Attributes" not in text
    shutil.copytree(embedding_model, tmp_path / "me" / "persons")
    for name in ("image.jpg", "other.jpg"):
        Image.new("RGB", (40, 30), "red").save(tmp_path / name)
    names: dict = {}
    (code,) = snippets(text)
    exec(code, names)
    assert names["embeddings"].shape == (2, 32)


def test_paths_of_this_machine_stay(classifier, tmp_path):
    ViTForImageClassification(ViTConfig(**VIT)).save_pretrained(tmp_path / "bare")
    with pytest.raises(ValueError, match=r"bare has no image processor \(preprocessor_config.json\)"):
        stage_model(tmp_path / "bare", tmp_path / "staged", "me/x")
    model = AutoModel.from_pretrained(classifier)
    ImageEmbedder(model, ViTImageProcessor(size={"height": 32, "width": 32})).save_pretrained(tmp_path / "saved")
    assert str(tmp_path.parent) not in (tmp_path / "saved" / "config.json").read_text()
    assert {file.state for file in check_folder(tmp_path / "saved")} == {"ok"}


def test_the_server_answers_with_numbers(embedder):
    first, second = picture_file(0), picture_file(1)
    expected = embedder.encode([first, second])
    image = {"Content-Type": "image/jpeg"}

    async def ask():
        app = EmbeddingServer(embedder, "persons", Limits(), ServerSettings()).app()
        transport = httpx.ASGITransport(app)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://x", timeout=300) as client,
        ):
            inputs = [base64.b64encode(each).decode() for each in (first, second)]
            return [
                await client.get("/"),
                await client.post("/", content=first, headers=image),
                await client.post("/", json={"inputs": inputs}),
                await client.post("/?attribute=colour", content=first, headers=image),
                await client.post("/?add=colour=red", content=first, headers=image),
            ]

    told, one, both, *wrong = asyncio.run(ask())
    assert told.json()["attributes"] == [] and told.json()["values"] == {} and told.json()["dim"] == 32
    np.testing.assert_allclose(one.json(), expected[0], atol=1e-6)
    np.testing.assert_allclose(both.json(), expected, atol=1e-6)
    message = "this model has one embedding of an image, and no attributes: leave out 'attribute', 'add' and 'remove'"
    for answer in wrong:
        assert answer.status_code == 400
        assert answer.json() == {"error": message, "error_type": "unknown_attribute"}
