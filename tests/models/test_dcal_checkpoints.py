"""Everything that a checkpoint of DCAL must do, with the package and without it."""

import json
import os

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModel, AutoModelForImageClassification, ViTForImageClassification, pipeline

from cca_hf.models.backbones import make_image_processor
from cca_hf.models.modeling_dcal import DCALForImageClassification, DCALModel

from .conftest import PASSES_SETTINGS, tiny_backbone

NEW = {
    *(f"local_layer.{name}.{part}" for name in ("layernorm_before", "layernorm_after") for part in ("weight", "bias")),
    *(f"local_layer.attention.{name}_proj.{part}" for name in "qkvo" for part in ("weight", "bias")),
    *(f"local_layer.mlp.{name}.{part}" for name in ("fc1", "fc2") for part in ("weight", "bias")),
    *(f"local_layer.layernorm.{part}" for part in ("weight", "bias")),
}


@pytest.fixture(scope="module")
def model() -> DCALForImageClassification:
    torch.manual_seed(0)
    names = dict(enumerate("abc"))
    label2id = {name: place for place, name in names.items()}
    return DCALForImageClassification.from_backbone(tiny_backbone("vit"), id2label=names, label2id=label2id)


@pytest.fixture(scope="module")
def checkpoint(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("dcal")
    model.save_pretrained(folder)
    make_image_processor(32).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def image() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8))


@pytest.mark.parametrize("kind", ["vit", "deit", pytest.param("dinov2", marks=PASSES_SETTINGS)])
def test_from_backbone_keeps_the_pretrained_weights(kind, tmp_path):
    """The new weights are exactly those of GLCA and the classifiers."""
    native = AutoModel.from_config(tiny_backbone(kind))
    native.config.id2label = dict(enumerate("xyz"))
    native.save_pretrained(tmp_path / "native")
    kept = native.state_dict()
    model = DCALModel.from_backbone(tmp_path / "native", local_share=0.3)
    assert model.config.local_share == 0.3 and not model.training
    weights = model.state_dict()
    assert {name for name in weights if not name.startswith("backbone.")} == NEW
    for name, weight in model.backbone.state_dict().items():
        assert torch.equal(weight, kept[name]), name
    unused = {name for name in kept if f"backbone.{name}" not in weights}
    assert unused == (set() if kind == "dinov2" else {"pooler.dense.weight", "pooler.dense.bias"})
    classifier = DCALForImageClassification.from_backbone(tmp_path / "native", num_labels=7)
    new = {name for name in classifier.state_dict() if not name.startswith("dcal.backbone.")}
    heads = {f"classifiers.{head}.{part}" for head in (0, 1) for part in ("weight", "bias")}
    assert new == {f"dcal.{name}" for name in NEW} | heads | {"loss_weights"}
    classifier.save_pretrained(tmp_path / "dcal")
    settings = (tmp_path / "dcal" / "config.json").read_text()
    assert str(tmp_path) not in settings and '"x"' not in settings  # neither folders nor classes of the backbone
    assert classifier.config.num_labels == 7 and not classifier.loss_weights.any()


def test_a_classifier_is_a_backbone_too(tmp_path):
    ViTForImageClassification(tiny_backbone("vit")).save_pretrained(tmp_path)
    kept = AutoModel.from_pretrained(tmp_path, add_pooling_layer=False).state_dict()
    model = DCALModel.from_backbone(tmp_path)
    assert all(torch.equal(weight, kept[name]) for name, weight in model.backbone.state_dict().items())


def test_a_checkpoint_is_loaded_by_the_auto_classes(model, checkpoint):
    images = torch.randn(1, 3, 32, 32)
    classifier = AutoModelForImageClassification.from_pretrained(checkpoint, attn_implementation="eager")
    features, report = AutoModel.from_pretrained(checkpoint, output_loading_info=True)
    assert type(classifier) is DCALForImageClassification and type(features) is DCALModel
    assert not report["missing_keys"] and classifier.config._attn_implementation == "eager"
    with torch.inference_mode():
        torch.testing.assert_close(classifier(images).logits, model(images).logits, rtol=0, atol=1e-5)
        assert torch.equal(features(images).pooler_output, model.dcal(images).pooler_output)
    again, report = AutoModelForImageClassification.from_pretrained(
        checkpoint, num_labels=5, ignore_mismatched_sizes=True, output_loading_info=True
    )
    assert {key for key, *_ in report["mismatched_keys"]} == {
        f"classifiers.{head}.{part}" for head in (0, 1) for part in ("weight", "bias")
    }
    assert again(images).logits.shape == (1, 5)


def test_a_model_without_a_classifier_becomes_a_classifier(model, tmp_path):
    model.dcal.save_pretrained(tmp_path)
    classifier, report = AutoModelForImageClassification.from_pretrained(
        tmp_path, num_labels=4, output_loading_info=True
    )
    heads = {f"classifiers.{head}.{part}" for head in (0, 1) for part in ("weight", "bias")}
    assert report["missing_keys"] == heads | {"loss_weights"} and not classifier.loss_weights.any()
    assert torch.equal(classifier.dcal.local_layer.mlp.fc1.weight, model.dcal.local_layer.mlp.fc1.weight)


def test_a_checkpoint_carries_its_code(checkpoint):
    code = {path.name for path in checkpoint.glob("*.py")}
    assert code == {
        "attention_dcal.py",
        "backbones.py",
        "configuration_dcal.py",
        "configuration_images.py",
        "cross_attention.py",
        "modeling_dcal.py",
    }


PROGRAM = """
import sys
sys.modules["cca_hf"] = None  # importing it raises ImportError
import json, torch
from transformers import AutoModel, AutoModelForImageClassification, pipeline
folder, image = sys.argv[1:]
images = torch.linspace(-1, 1, 3 * 64 * 32).reshape(1, 3, 64, 32)
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


def test_plain_transformers_loads_and_saves_a_checkpoint(model, checkpoint, image, tmp_path, warm_torch):
    image.save(tmp_path / "image.png")
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "PYTHONPATH": ""}
    words = ["-c", PROGRAM, checkpoint, tmp_path / "image.png"]
    process = warm_torch.run(*words, cwd=tmp_path, env=environment, check=True)
    result = json.loads(process.stdout.splitlines()[-1])
    images = torch.linspace(-1, 1, 3 * 64 * 32).reshape(1, 3, 64, 32)
    with torch.inference_mode():
        logits, pooled = model(images).logits[0], model.dcal(images).pooler_output[0]
    for turn in ("first", "second"):
        torch.testing.assert_close(torch.tensor(result[turn]), logits, rtol=0, atol=1e-6)
    torch.testing.assert_close(torch.tensor(result["pooled"]), pooled, rtol=0, atol=1e-6)
    here = pipeline("image-classification", model=str(checkpoint), top_k=2)(image)
    assert [each["label"] for each in result["pipeline"]] == [each["label"] for each in here]
    processed = make_image_processor(32)(image, return_tensors="pt")["pixel_values"]
    with torch.inference_mode():
        branches = model(processed).branch_logits
    best = (branches[0].softmax(dim=1) + branches[1].softmax(dim=1))[0].div(2).topk(2)
    assert [each["label"] for each in here] == [model.config.id2label[place] for place in best.indices.tolist()]
    assert [each["score"] for each in here] == pytest.approx(best.values.tolist(), abs=1e-5)
