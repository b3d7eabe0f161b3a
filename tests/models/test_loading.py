"""`load_model`: whole checkpoints of this package, and what it says of others."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel

from cca_hf.models.loading import load_model
from cca_hf.models.modeling_images import ImagePreTrainedModel

from .conftest import MODELS, build


@pytest.mark.parametrize("name", MODELS)
def test_every_model_loads_in_eval_mode(name, vit_config, tmp_path):
    build(name, vit_config).save_pretrained(tmp_path)
    model = load_model(tmp_path, "cpu", torch.bfloat16)
    assert type(model) is MODELS[name] and isinstance(model, ImagePreTrainedModel)
    assert model.dtype is torch.bfloat16 and not any(module.training for module in model.modules())
    assert model.display_name and model.method and tmp_path.name in model.usage_example(tmp_path.name, model.config)


def test_a_backbone_is_no_checkpoint_of_ours(vit_config, tmp_path):
    AutoModel.from_config(vit_config).save_pretrained(tmp_path)
    message = f"type 'vit', which has no attributes: 'cca train --backbone {tmp_path}' trains a CCA model on it, and"
    with pytest.raises(ValueError, match=message):
        load_model(tmp_path)


def test_a_checkpoint_without_some_weights(model, tmp_path):
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["layernorm.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        ValueError, match=r"lacks 1 of the model's weights, such as layernorm\.weight: it is incomplete"
    ):
        load_model(tmp_path)


def test_a_folder_that_does_not_exist(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no checkpoint at .*missing"):
        load_model(tmp_path / "missing")
