"""Exported models against the models that they were made from: the same answers, in the same places."""

import importlib.util
import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import ResNetConfig, ViTConfig

from cca_hf import ADDEModel, CCAModel, CCAPipeline
from cca_hf.embedding.catalogue import Catalogue
from cca_hf.embedding.job import embed_catalogue
from cca_hf.models.modeling_asen import ASENModel
from cca_hf.models.modeling_conditional import ConditionalPreTrainedModel
from cca_hf.models.modeling_csn import CSNModel
from cca_hf.models.modeling_separate import SeparateModel
from cca_hf.runtimes.export import ExportedModel, _Embedder, export_model, is_exported

ATTRIBUTES = {"colour": ["red", "blue"], "shape": ["round", "long"], "heel height": ["flat", "high"]}

pytest.importorskip("onnxruntime", reason="the extra [onnx] is not installed")
onnx = pytest.importorskip("onnx", reason="the extra [onnx] is not installed")


@pytest.fixture(scope="module")
def vit() -> CCAModel:
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    return CCAModel.from_backbone(ViTConfig(**shape, image_size=32, patch_size=8), ATTRIBUTES, embedding_dim=16)


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    generator = np.random.default_rng(0)
    return [Image.fromarray(generator.integers(0, 256, (40, 30, 3), dtype=np.uint8)) for _ in range(5)]


@pytest.fixture(scope="module")
def exported(vit, tmp_path_factory) -> ExportedModel:
    vit.train()
    folder = export_model(vit, tmp_path_factory.mktemp("onnx"))
    assert vit.training
    vit.eval()
    return ExportedModel.from_pretrained(folder, num_threads=1)


def test_the_same_answers(vit, exported, images):
    want = vit.encode(images)
    for batch_size in (1, 2, 5):
        np.testing.assert_allclose(exported.encode(images, batch_size=batch_size), want, atol=1e-5)
    np.testing.assert_allclose(exported.encode(images, ["heel height", "colour"]), want[:, [2, 0]], atol=1e-5)
    assert exported.config.attributes == list(ATTRIBUTES) and exported.config.attribute_values == ATTRIBUTES
    with pytest.raises(ValueError, match=r"unknown attribute 'color'\. Did you mean 'colour'"):
        exported.encode(images, "color")


def make(kind: str) -> ConditionalPreTrainedModel:
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    vit, options = ViTConfig(**shape, image_size=16, patch_size=8), {"attribute_subspaces": True}
    if kind == "separate":
        return SeparateModel.join([CCAModel.from_backbone(vit, [name], **options) for name in ATTRIBUTES])
    if kind == "text":
        options["condition_embedding"] = "text"
        options["text_embeddings"] = {name: np.eye(3)[row] for row, name in enumerate(ATTRIBUTES)}
    model_class = {"csn": CSNModel, "asen": ASENModel, "adde": ADDEModel}.get(kind, CCAModel)
    return model_class.from_backbone(vit, ATTRIBUTES, **options)


@pytest.mark.parametrize("kind", ["text", "csn", "asen"])
def test_the_size_of_a_batch_is_no_constant_in_a_graph(kind):
    """In the graph that `export_model` translates: traced with two images, run with others."""
    model, images = make(kind).eval(), torch.randn(5, 3, 16, 16)
    sizes = {"pixel_values": {0: torch.export.Dim("batch")}}
    traced = {"pixel_values": images[:2]}
    graph = torch.export.export(_Embedder(model, [2, 0]), (), traced, dynamic_shapes=sizes).module()
    with torch.no_grad():
        for batch in (1, 2, 5):
            expected = model(images[:batch], torch.tensor([[2, 0]] * batch)).embeddings
            torch.testing.assert_close(graph(pixel_values=images[:batch]), expected)


def test_a_joined_model_takes_batches_of_any_size(images, tmp_path):
    model = make("separate")
    exported = ExportedModel.from_pretrained(export_model(model, tmp_path), num_threads=1)
    want = model.encode(images)
    for batch_size in (1, 2, 5):
        np.testing.assert_allclose(exported.encode(images, batch_size=batch_size), want, atol=1e-5)


def test_a_graph_of_adde_has_only_what_embeds_images(images, tmp_path):
    """With attributes as an input, whose networks are selected in the graph."""
    model = make("adde")
    model.set_prototypes(torch.ones(3, 2, 340), torch.ones(3, 2))
    folder = export_model(model, tmp_path, attribute_input=True)
    exported = ExportedModel.from_pretrained(folder, num_threads=1)
    want = model.encode(images)
    for batch_size in (1, 5):
        np.testing.assert_allclose(exported.encode(images, batch_size=batch_size), want, atol=1e-5)
    np.testing.assert_allclose(exported.encode(images, ["heel height", "colour"]), want[:, [2, 0]], atol=1e-5)
    assert exported.shares_space(model.fingerprint()) and not exported.has_prototypes
    with pytest.raises(ValueError, match="ExportedModel has no prototypes of values"):
        exported.value_prototypes("colour")
    sizes = {tuple(weight.dims) for weight in onnx.load(folder / "model.onnx").graph.initializer}
    assert tuple(model.attribute_networks.hidden_weight.shape) in sizes
    assert sizes.isdisjoint({tuple(model.memory.weight.shape), tuple(model.classifiers.weight.shape)})


def test_in_the_pipeline(vit, exported, images):
    extract = CCAPipeline(model=exported, image_processor=exported.image_processor)
    want = vit.encode(images)
    np.testing.assert_allclose(extract(images[0], attribute="shape"), want[0, 1], atol=1e-5)
    for got, row in zip(extract(images, batch_size=2), want, strict=True):
        np.testing.assert_allclose(list(got.values()), row, atol=1e-5)


def test_in_a_catalogue(vit, exported, images, tmp_path):
    for number, image in enumerate(images):
        image.save(tmp_path / f"{number}.png")
    catalogue = Catalogue.from_folder(tmp_path)
    assert embed_catalogue(exported, catalogue, tmp_path / "out", show_progress=False).complete
    with pytest.raises(ValueError, match="differs in model"):
        embed_catalogue(vit, catalogue, tmp_path / "out", show_progress=False)


def test_attributes_as_an_input(vit, images, tmp_path):
    folder = export_model(vit, tmp_path, attributes=["shape", "colour"], attribute_input=True)
    exported = ExportedModel.from_pretrained(folder, num_threads=1)
    want = vit.encode(images, ["shape", "colour"])
    np.testing.assert_allclose(exported.encode(images), want, atol=1e-5)
    np.testing.assert_allclose(exported.encode(images[:1], "colour"), want[:1, 1:], atol=1e-5)
    pixel_values = vit.image_processor([p.resize((32, 32)) for p in images], return_tensors="pt")["pixel_values"]
    own = torch.tensor([[0], [1], [1], [0], [1]])  # another for each image; of the graph's attributes
    with torch.no_grad():
        expected = vit(pixel_values, attribute_ids=1 - own).embeddings
    np.testing.assert_allclose(exported(pixel_values, own).embeddings, expected, atol=1e-5)
    np.testing.assert_allclose(exported(pixel_values, own[:, 0]).embeddings, expected[:, 0], atol=1e-5)


def test_int8(vit, images, tmp_path):
    """The backbone's matrix products alone become integers, per channel."""
    import onnx

    folder = export_model(vit, tmp_path, int8=True)
    graph = onnx.load(folder / "model.onnx").graph
    kinds = [node.op_type for node in graph.node]
    layers = vit.backbone.config.num_hidden_layers
    assert kinds.count("MatMulInteger") == 6 * layers  # queries, keys, values, output, and two of the MLP
    assert kinds.count("MatMul") > 2 * layers  # attention's own, and those of the conditional layer
    weights = {tensor.name: tensor for tensor in graph.initializer}
    scales = [node.input[1] for node in graph.node if node.op_type == "Mul" and node.input[1] in weights]
    assert any(weights[name].dims and weights[name].dims[0] > 1 for name in scales), "one scale a channel"
    written = {path.name for path in folder.iterdir() if path.suffix != ".py"}  # config.json names its code
    assert written == {"model.onnx", "config.json", "preprocessor_config.json", "export.json", "checksums.json"}
    got, want = ExportedModel.from_pretrained(folder, num_threads=1).encode(images), vit.encode(images)
    assert 0.999 < (got * want).sum(axis=-1).min() < 1 - 1e-7
    np.testing.assert_allclose(np.linalg.norm(got, axis=-1), 1, atol=1e-5)


def test_int8_of_convolutions_is_refused(tmp_path):
    small = ResNetConfig(layer_type="basic", embedding_size=8, hidden_sizes=[8], depths=[1])
    model = CCAModel.from_backbone(small, ATTRIBUTES, image_size=32).eval()
    with pytest.raises(ValueError, match="resnet has none"):
        export_model(model, tmp_path / "out", int8=True)
    assert not (tmp_path / "out").exists()


def test_openvino(vit, images, tmp_path):
    pytest.importorskip("openvino", reason="the extra [openvino] is not installed")
    folder = export_model(vit, tmp_path, "openvino")
    assert {"model.xml", "model.bin"} <= {path.name for path in folder.iterdir()}
    assert not list(folder.glob("*.onnx*"))
    exported = ExportedModel.from_pretrained(folder, num_threads=1)
    np.testing.assert_allclose(exported.encode(images, batch_size=2), vit.encode(images), atol=1e-5)


def test_refusals(vit, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="'onnx', 'openvino'; got 'tensorrt'"):
        export_model(vit, tmp_path, "tensorrt")
    with pytest.raises(ValueError, match="that is runtime='onnx'; got 'openvino'"):
        export_model(vit, tmp_path, "openvino", int8=True)
    with pytest.raises(ValueError, match="Did you mean 'colour'"):
        export_model(vit, tmp_path, attributes=["color"])
    with pytest.raises(FileNotFoundError, match="contains no exported model"):
        ExportedModel.from_pretrained(tmp_path)
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxscript" else find_spec(name))
    with pytest.raises(ImportError, match=r'needs onnxscript: pip install "cca_hf\[onnx\]"'):
        export_model(vit, tmp_path)
    assert not is_exported(tmp_path) and not list(tmp_path.iterdir())


def test_the_files_beside_the_graph(vit, exported):
    description = exported.description
    assert json.loads(json.dumps(description)) == description
    assert description["made_from"] == vit.fingerprint() != exported.fingerprint()
    assert description["attributes"] == list(ATTRIBUTES) and not description["int8"]
