"""`save_pretrained(push_to_hub=True)` and `push_to_hub`: the whole checkpoint, and no earlier weights."""

PROGRAM = """
import json, sys
import torch
from huggingface_hub import HfApi
from transformers import AutoModel, ViTConfig
from cca_hf import CCAModel
config = ViTConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=32,
                   patch_size=8)
model = CCAModel.from_backbone(config, ["colour"])
model.image_processor.image_mean = [0.1, 0.2, 0.3]
model.save_pretrained("local", push_to_hub=True, repo_id="me/cca", max_shard_size="50KB")
sharded = sorted(HfApi().list_repo_files("me/cca"))
torch.nn.init.constant_(model.layernorm.weight, 3)
model.save_pretrained("local", push_to_hub=True, repo_id="me/cca")
whole = sorted(HfApi().list_repo_files("me/cca"))
torch.nn.init.constant_(model.layernorm.weight, 4)
model.push_to_hub("me/cca", max_shard_size="50KB")
loaded = AutoModel.from_pretrained("me/cca")
print(json.dumps([sharded, whole, loaded.layernorm.weight.tolist(), list(loaded.image_processor.image_mean)]))
"""


def test_everything_is_pushed_and_earlier_weights_are_deleted(run_on_hub):
    sharded, whole, weight, mean = run_on_hub(PROGRAM)
    beside = {
        "config.json",
        "preprocessor_config.json",
        "modules.json",
        "modeling_cca.py",
        "README.md",
        "checksums.json",
    }
    assert beside <= set(sharded) and beside <= set(whole)
    assert "model.safetensors.index.json" in sharded and "model.safetensors" not in sharded
    assert [name for name in whole if "safetensors" in name] == ["model.safetensors"]
    assert weight == [4] * 32 and mean == [0.1, 0.2, 0.3]
