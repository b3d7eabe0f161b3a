"""Modules whose weights are elsewhere or not all there is: offloaded, with an adapter, or with a hook."""

import copy

import numpy as np
import pytest
import torch
from accelerate import cpu_offload
from accelerate.hooks import remove_hook_from_submodules
from transformers import AutoModel

from cca_hf.models.cross_attention import CrossAttention

from .conftest import ATTRIBUTES, build, tiny_backbone

IDS = torch.tensor([[0, 1, 2], [2, 2, 0]])
KINDS = [("cca", "vit", "text"), ("cca", "mobilenet_v2", "lookup"), ("csn", "swin", None)]
KINDS += [("asen", "vit", "one_hot"), ("separate", "vit", "none")]


@pytest.fixture(scope="module", params=KINDS, ids=lambda kind: "-".join(filter(None, kind)))
def any_model(request):
    name, backbone, condition = request.param
    options = {} if condition is None else {"condition_embedding": condition}
    if condition == "text":
        options["text_embeddings"] = {attribute: np.eye(3)[row] for row, attribute in enumerate(ATTRIBUTES)}
    return build(name, tiny_backbone(backbone), attribute_subspaces=True, embedding_dim=8, **options)


@pytest.fixture(scope="module")
def pixel_values(any_model):
    size = any_model.config.image_size
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_weights_offloaded_to_memory(any_model, pixel_values, pictures):
    expected = any_model(pixel_values, IDS, output_attentions=True)
    encoded, fingerprint = any_model.encode(pictures[0]), any_model.fingerprint()
    weights = {name: tensor.clone() for name, tensor in any_model.state_dict().items()}
    cpu_offload(any_model, execution_device=torch.device("cpu"), offload_buffers=True)
    try:
        assert all(parameter.is_meta for parameter in any_model.parameters())
        output = any_model(pixel_values, IDS, output_attentions=True)
        torch.testing.assert_close(output.embeddings, expected.embeddings)
        torch.testing.assert_close(output.attentions, expected.attentions)
        np.testing.assert_allclose(any_model.encode(pictures[0]), encoded, atol=1e-5)
        assert any_model.fingerprint() == fingerprint
    finally:
        remove_hook_from_submodules(any_model)
        any_model.load_state_dict(weights, assign=True)


@torch.no_grad()
def test_weights_offloaded_to_disk_by_a_device_map(any_model, pixel_values, pictures, tmp_path):
    any_model.save_pretrained(tmp_path / "model")
    children = dict(any_model.named_children())
    if "networks" in children:  # accelerate offloads no model as a whole
        networks = children.pop("networks")
        children |= {f"networks.{place}": network for place, network in enumerate(networks)}
    device_map = {name: "cpu" if name in ("backbone", "networks.0") else "disk" for name in children}
    loaded = AutoModel.from_pretrained(tmp_path / "model", device_map=device_map, offload_folder=tmp_path / "weights")
    assert any(parameter.is_meta for parameter in loaded.parameters())
    for ids in (IDS, IDS[:, 0]):
        expected = any_model(pixel_values, ids, output_attentions=True)
        output = loaded(pixel_values, ids, output_attentions=True)
        torch.testing.assert_close(output.embeddings, expected.embeddings)
        torch.testing.assert_close(output.attentions, expected.attentions)
    np.testing.assert_allclose(loaded.attention_maps(pictures[0]), any_model.attention_maps(pictures[0]), atol=1e-5)
    assert loaded.fingerprint() == any_model.fingerprint()
    loaded.save_pretrained(tmp_path / "again")
    again = AutoModel.from_pretrained(tmp_path / "again")
    torch.testing.assert_close(again(pixel_values, IDS).embeddings, any_model(pixel_values, IDS).embeddings)


def test_every_adapter_gets_a_gradient(any_model, pixel_values):
    """LoRA on all linear layers and embedding tables, those of the backbone too."""
    peft = pytest.importorskip("peft", reason="peft is not installed")
    kinds = (torch.nn.Linear, torch.nn.Embedding)
    names = [name for name, module in any_model.named_modules() if isinstance(module, kinds)]
    config = peft.LoraConfig(r=2, target_modules=names, init_lora_weights=False)
    adapted = peft.get_peft_model(copy.deepcopy(any_model), config)
    embeddings = adapted(pixel_values, attribute_ids=IDS).embeddings
    embeddings[..., 0].sum().backward()
    adapters = {name: p for name, p in adapted.named_parameters() if p.requires_grad}
    assert len(adapters) >= 2 * len(names)  # a name may be the end of another one
    without = [name for name, p in adapters.items() if p.grad is None or not p.grad.any()]
    assert not without
    with torch.no_grad():
        merged = adapted.merge_and_unload()(pixel_values, attribute_ids=IDS).embeddings
        assert (merged - any_model(pixel_values, attribute_ids=IDS).embeddings).abs().max() > 1e-3
    torch.testing.assert_close(merged, embeddings, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["k_proj", "v_proj"])
def test_a_hook_on_keys_or_values_sees_them(name):
    attention = CrossAttention(32, 4)
    queries, tokens = torch.randn(2, 3, 32), torch.randn(2, 5, 32)
    expected = attention(queries, tokens)[0]
    seen = []
    layer = attention.get_submodule(name)
    handle = layer.register_forward_hook(lambda _, inputs, output: seen.append((*inputs, output)))
    torch.testing.assert_close(attention(queries, tokens)[0], expected)
    assert torch.equal(seen[0][0], tokens) and torch.equal(seen[0][1], layer(tokens))
    handle.remove()
    handle = layer.register_forward_pre_hook(lambda _, inputs: (2 * inputs[0],))
    assert (attention(queries, tokens)[0] - expected).abs().max() > 1e-3
