"""A trainer changes neither its arguments nor what its model learns later."""

import copy

import pytest
import torch
from transformers import ViTConfig, ViTModel

from cca_hf.models.images import load_image
from cca_hf.models.modeling_cca import CCAModel
from cca_hf.recipes.attribute_trainer import CCATrainer

from .conftest import TINY_VIT

SHORT = {"max_steps": 1, "warmup_steps": 0, "eval_strategy": "no", "save_strategy": "no"}


@pytest.fixture
def pretrained(shapes, tmp_path) -> CCAModel:
    ViTModel(ViTConfig(**TINY_VIT)).save_pretrained(tmp_path / "vit")
    return CCAModel.from_backbone(tmp_path / "vit", shapes.attributes)


def test_arguments_serve_two_trainers(make_model, make_args, shapes, pretrained):
    args = make_args(**SHORT)
    before = copy.deepcopy(args.to_dict())
    from_scratch = CCATrainer(make_model(), args, shapes)
    from_scratch.train()
    assert from_scratch.args.learning_rate == args.head_learning_rate == 1e-3
    assert CCATrainer(pretrained, args, shapes).args.learning_rate == 1e-4
    assert args.to_dict() == before and args.learning_rate is None


def test_a_backbone_that_was_frozen_learns_in_the_next_training(make_model, make_args, shapes):
    model = make_model()
    learning = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    backbone = {name: weight.clone() for name, weight in model.backbone.state_dict().items()}
    CCATrainer(model, make_args(freeze_backbone=True, **SHORT), shapes).train()
    assert all(weight.equal(backbone[name]) for name, weight in model.backbone.state_dict().items())
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == learning
    CCATrainer(model, make_args(**SHORT), shapes).train()
    assert not any(weight.equal(backbone[name]) for name, weight in model.backbone.named_parameters())


def test_what_a_user_has_frozen_stays_frozen(make_model, make_args, shapes):
    model = make_model().freeze_backbone()
    before = {name: weight.clone() for name, weight in model.backbone.state_dict().items()}
    CCATrainer(model, make_args(**SHORT), shapes).train()
    assert not any(parameter.requires_grad for parameter in model.backbone.parameters())
    assert all(weight.equal(before[name]) for name, weight in model.backbone.state_dict().items())


def test_an_interrupted_training_leaves_nothing_frozen(make_model, make_args, shapes, monkeypatch):
    model = make_model()
    trainer = CCATrainer(model, make_args(freeze_backbone=True, **SHORT), shapes)

    def stop(*_, **__):
        assert not any(parameter.requires_grad for parameter in model.backbone.parameters())
        raise KeyboardInterrupt

    monkeypatch.setattr(trainer, "compute_loss", stop)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_model_in_training_mode_stays_there_for_the_token_cache(make_model, make_args, shapes, tmp_path):
    model = make_model(hidden_dropout_prob=0.5).train()
    args = make_args(freeze_backbone=True, cache_tokens=str(tmp_path / "cache"), cache_dtype="float32", **SHORT)
    trainer = CCATrainer(model, args, shapes)
    assert all(module.training for module in model.modules())
    example = trainer.task.batches.dataset[0]["features"]
    with torch.no_grad():
        pixel_values = model.image_processor(load_image(shapes["train"][0]["image"]), return_tensors="pt")
        features = model.eval().get_backbone_features(pixel_values["pixel_values"])
    torch.testing.assert_close(example, torch.cat([f.flatten() for f in features]), atol=1e-5, rtol=1e-5)
