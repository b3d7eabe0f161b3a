"""Fully sharded data parallel over real processes: the blocks of `_no_split_modules`, sharded and whole again."""

PROGRAM = """
import os
import torch, torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from transformers import ViTConfig
from cca_hf import CCAModel

torch.set_num_threads(1)
dist.init_process_group("gloo")
mesh = dist.init_device_mesh("cpu", (dist.get_world_size(),))

def build():
    torch.manual_seed(0)
    config = ViTConfig(hidden_size=32, num_hidden_layers=3, num_attention_heads=4, image_size=32, patch_size=8)
    return CCAModel.from_backbone(config, ["colour", "shape"])

whole, sharded = build(), build()
blocks = [m for m in sharded.modules() if type(m).__name__ in sharded._no_split_modules]
assert {type(m).__name__ for m in blocks} >= {"ViTLayer", "ConditionalCrossAttentionLayer"}, blocks
for block in blocks:
    fully_shard(block, mesh=mesh)
fully_shard(sharded, mesh=mesh)
pixel_values = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
ids = torch.tensor([[0, 1]] * 4)
outputs = []
for model in (whole, sharded):
    output = model(pixel_values, attribute_ids=ids).embeddings
    output[..., 0].sum().backward()
    outputs.append(output)
torch.testing.assert_close(outputs[0], outputs[1])
theirs = dict(whole.named_parameters())
for name, parameter in sharded.named_parameters():
    assert isinstance(parameter.grad, DTensor), name
    torch.testing.assert_close(parameter.grad.full_tensor(), theirs[name].grad, msg=name)
print("sharded and whole agree", flush=True)
dist.barrier()
os._exit(0)  # gloo's worker threads now and then abort a process that tears its groups down ("terminate called ...")
"""


def test_sharded_model_gives_the_same_embeddings_and_gradients(warm_python):
    assert warm_python.run_on_ranks(2, "-c", PROGRAM).count("sharded and whole agree") == 2
