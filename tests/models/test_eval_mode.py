"""A model that may be training is evaluated as a copy in evaluation mode, so that its own mode never changes."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np

from cca_hf import CCAModel

from .conftest import tiny_backbone


def test_threads_encode_in_eval_mode_while_the_model_trains(vit_config, pictures):
    """16 threads get the vectors of the model without dropout, and no mode changes."""
    vit_config.hidden_dropout_prob = 0.5
    model = CCAModel.from_backbone(vit_config, ["colour", "shape"])
    expected = model.encode(pictures)
    model.train()
    model.backbone.eval()
    modes = [module.training for module in model.modules()]
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda _: model.encode(pictures, batch_size=2, num_workers=0), range(16)))
    for embeddings in found:
        np.testing.assert_allclose(embeddings, expected, atol=1e-6)
    assert [module.training for module in model.modules()] == modes


def test_encode_copies_a_model_in_training_once(vit_config, pictures, monkeypatch):
    model = CCAModel.from_backbone(vit_config, ["colour"]).train()
    calls = []
    in_eval_mode = CCAModel.in_eval_mode
    monkeypatch.setattr(CCAModel, "in_eval_mode", lambda self: calls.append(self) or in_eval_mode(self))
    model.encode(pictures, batch_size=1)
    assert len(pictures) > 1 and calls == [model]


def test_in_eval_mode_shares_parameters_and_buffers():
    model = CCAModel.from_backbone(tiny_backbone("mobilenet_v2"), ["colour"])
    assert model.in_eval_mode() is model
    model.train()
    copied = model.in_eval_mode()
    assert copied is not model and not any(module.training for module in copied.modules())
    for tensors in ("named_parameters", "named_buffers"):
        ours, theirs = dict(getattr(model, tensors)()), dict(getattr(copied, tensors)())
        assert ours.keys() == theirs.keys() and all(ours[name] is theirs[name] for name in ours)
    assert copied.config is model.config and model.training
