"""Models with an adapter of PEFT: training, checkpoints, resuming, loading again, and what is refused beforehand."""

import pytest
import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from safetensors.torch import load_file
from transformers.integrations import peft as integration

from cca_hf.models.loading import load_model
from cca_hf.models.modeling_cca import CCAModel
from cca_hf.recipes.attribute_trainer import CCATrainer

from .conftest import EPOCH

LORA = {"r": 2, "target_modules": ["q_proj", "v_proj"], "modules_to_save": ["condition_embedding"]}


@pytest.fixture
def base(make_model, tmp_path):
    """`base()` loads the saved base model."""
    make_model().save_pretrained(tmp_path / "base")
    return lambda: CCAModel.from_pretrained(tmp_path / "base")


def with_peft(model):
    torch.manual_seed(1)
    return get_peft_model(model, LoraConfig(**LORA))


def with_transformers(model):
    torch.manual_seed(1)
    model.add_adapter(LoraConfig(**LORA))
    return model


@pytest.fixture(params=[with_peft, with_transformers])
def add_adapter(request, monkeypatch):
    # transformers 5.24 asks for PEFT 0.22, which was not released when it was
    monkeypatch.setattr(integration, "MIN_PEFT_VERSION", "0.19.1")
    return request.param


def adapter_weights(folder):
    return load_file(folder / "adapter_model.safetensors")


def test_it_trains_resumes_and_loads_again(add_adapter, base, make_args, shapes, tmp_path):
    # the worst map counts as the best here, so that it is not the last one
    settings = {
        "num_train_epochs": 3,
        "greater_is_better": False,
        "save_total_limit": None,
        "head_learning_rate": 3e-2,
    }
    trainer = CCATrainer(add_adapter(base()), make_args(learning_rate=3e-2, **settings), shapes)
    start = {name: weight.clone() for name, weight in trainer.model.state_dict().items()}
    trainer.train()
    learned = {name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad}
    for name, weight in trainer.model.state_dict().items():
        assert name in learned or weight.equal(start[name]), name
    last = tmp_path / "out" / f"checkpoint-{2 * EPOCH}"
    assert {"adapter_model.safetensors", "adapter_config.json", "optimizer.pt"} <= {
        path.name for path in last.iterdir()
    }
    assert not (last / "model.safetensors").exists()

    trainer.save_model(str(tmp_path / "adapter"))
    best = adapter_weights(tmp_path / "out" / f"checkpoint-{EPOCH}")
    saved = adapter_weights(tmp_path / "adapter")
    assert saved.keys() == best.keys() and all(saved[name].equal(best[name]) for name in saved)
    final = adapter_weights(last)
    assert any(not saved[name].equal(final[name]) for name in saved)

    images = shapes["test"]["image"][:8]
    expected = trainer.unwrapped_model().eval().encode(images)
    loaded = PeftModel.from_pretrained(base(), tmp_path / "adapter").eval()
    assert loaded.encode(images) == pytest.approx(expected, abs=1e-5)
    merged = loaded.merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    assert CCAModel.from_pretrained(tmp_path / "merged").encode(images) == pytest.approx(expected, abs=1e-5)
    assert base().encode(images) != pytest.approx(expected, abs=1e-3)

    middle = tmp_path / "out" / f"checkpoint-{EPOCH}"
    again = CCATrainer(add_adapter(base()), make_args(**settings), shapes)
    again.train(resume_from_checkpoint=str(middle))
    resumed = adapter_weights(last)
    assert all(resumed[name].equal(final[name]) for name in final)


def test_checkpoints_with_and_without_an_adapter_are_not_mixed_up(base, make_args, shapes, tmp_path):
    CCATrainer(
        with_peft(base()), make_args(max_steps=1, save_steps=1, save_strategy="steps", eval_strategy="no"), shapes
    ).train()
    checkpoint = str(tmp_path / "out" / "checkpoint-1")
    with pytest.raises(ValueError, match="is not a checkpoint: it has no config.json"):
        CCATrainer(base(), make_args(), shapes).train(checkpoint)
    with pytest.raises(ValueError, match="checkpoint-1 is an adapter without its base model: load both with PEFT"):
        load_model(checkpoint)
    with pytest.raises(ValueError, match="is not a checkpoint of an adapter: it has no adapter_config.json"):
        CCATrainer(with_peft(base()), make_args(), shapes).train(str(tmp_path / "base"))
    other = get_peft_model(base(), LoraConfig(**LORA | {"target_modules": ["q_proj", "v_proj", "o_proj"]}))
    with pytest.raises(ValueError, match=r"checkpoint-1 has no weights for .*o_proj\.lora_A"):
        CCATrainer(other, make_args(), shapes).train(checkpoint)


def test_fitted_subspaces_are_saved_with_the_adapter(make_model, make_args, shapes, tmp_path):
    make_model(attribute_subspaces=True).save_pretrained(tmp_path / "base")
    with pytest.raises(ValueError, match="name 'subspaces' in modules_to_save"):
        CCATrainer(with_peft(CCAModel.from_pretrained(tmp_path / "base")), make_args(attribute_map=None), shapes)
    lora = LoraConfig(**LORA | {"modules_to_save": ["condition_embedding", "subspaces"]})
    model = get_peft_model(CCAModel.from_pretrained(tmp_path / "base"), lora)
    trainer = CCATrainer(
        model, make_args(attribute_map=None, max_steps=2, eval_strategy="no", save_strategy="no"), shapes
    )
    trainer.train()
    trainer.save_model()
    loaded = PeftModel.from_pretrained(CCAModel.from_pretrained(tmp_path / "base"), tmp_path / "out").eval()
    merged = loaded.merge_and_unload()
    ranks = [int(torch.linalg.matrix_rank(each, tol=1e-4)) for each in merged.subspaces.projections]
    assert ranks == [len(values) - 1 for values in shapes.attributes.values()]


def test_what_cannot_work_is_refused_before_training(base, make_model, make_args, shapes):
    def refused(message, model, **changes):
        with pytest.raises(ValueError, match=message):
            CCATrainer(model, make_args(**changes), shapes)

    refused("has no task_type", get_peft_model(base(), LoraConfig(task_type=TaskType.FEATURE_EXTRACTION, **LORA)))
    refused("PeftMixedModel", get_peft_model(base(), LoraConfig(**LORA), mixed=True))
    two = with_peft(base())
    two.add_adapter("other", LoraConfig(**LORA))
    refused("one adapter, called 'default'; this model has 'default', 'other'", two)
    loose = with_peft(base())
    loose.base_model.model.layernorm.requires_grad_(True)
    refused(r"layernorm\.bias learns \(2 weights in all\) and is not saved with the adapter", loose)
    still = with_peft(base()).requires_grad_(False)
    refused("no weight of the adapter learns: load the adapter with is_trainable=True", still)
    refused("freeze_backbone and frozen_levels would freeze the adapter", with_peft(base()), freeze_backbone=True)
    refused("merge the adapter with PeftModel.merge_and_unload", with_peft(base()), push_to_hub=True)


def test_pushing_asks_for_the_merged_model(base, make_args, shapes):
    trainer = CCATrainer(with_peft(base()), make_args(), shapes, publish=lambda *args, **kwargs: "pushed")
    with pytest.raises(ValueError, match="merge the adapter with PeftModel.merge_and_unload"):
        trainer.push_to_hub("me/shoes")


def test_a_base_model_that_was_never_saved_is_reported(make_model, make_args, shapes, caplog):
    CCATrainer(with_peft(make_model()), make_args(), shapes)
    assert "its base model was never saved" in caplog.text
