"""Rates of single parameters, rates that fall from layer to layer, and the average of the weights."""

import pytest
import torch
from torch import nn
from transformers import ViTConfig, ViTForImageClassification

from cca_hf.training.averaging import WeightAveraging
from cca_hf.training.parameters import layer_rates, set_learning_rates

from .conftest import TINY_VIT


def test_rates_fall_towards_the_embeddings() -> None:
    model = ViTForImageClassification(ViTConfig(**TINY_VIT))  # 2 layers
    rates = layer_rates(model.vit, 1.0, 0.5)
    assert {rates[name] for name in rates if name.startswith("embeddings")} == {0.125}
    by_layer = {rate: [name for name in rates if rates[name] == rate] for rate in (0.25, 0.5)}
    assert {len(names) for names in by_layer.values()} == {16}  # parameters of a layer
    assert not any(name.startswith("layernorm") for name in rates)  # behind the layers: the full rate
    with pytest.raises(ValueError, match="layer_decay needs a backbone with a list of layers, which Linear does not"):
        layer_rates(nn.Linear(2, 2), 1.0, 0.5)


def test_groups_of_an_optimizer_are_split() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    decayed, others = [model[0].weight, model[1].weight], [model[0].bias, model[1].bias]
    optimizer = torch.optim.AdamW([{"params": decayed, "weight_decay": 0.1}, {"params": others}], lr=0.5)
    set_learning_rates(optimizer, nn.ModuleDict({"module": model}), {"1.weight": 2.0, "1.bias": 2.0})
    found = [(group["lr"], group["weight_decay"], [*map(id, group["params"])]) for group in optimizer.param_groups]
    assert found == [
        (0.5, 0.1, [id(model[0].weight)]),
        (0.5, 0.01, [id(model[0].bias)]),
        (2.0, 0.1, [id(model[1].weight)]),
        (2.0, 0.01, [id(model[1].bias)]),
    ]


def test_the_average_is_that_of_a_plain_loop(tmp_path) -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    averaging, expected = WeightAveraging(model, 0.8), None
    for _ in range(4):
        with torch.no_grad():
            model.weight += torch.randn(2, 3)
        averaging.update()
        expected = model.weight.clone() if expected is None else 0.8 * expected + 0.2 * model.weight
    weights = model.weight.clone()
    with averaging.applied():
        assert torch.allclose(model.weight, expected)
        averaging.save(tmp_path)
        averaged = {name: weight.clone() for name, weight in model.state_dict().items()}
    assert torch.equal(model.weight, weights)

    resumed = nn.Linear(3, 2)
    resumed.load_state_dict(averaged)
    other = WeightAveraging(resumed, 0.8)
    other.load(tmp_path)
    assert torch.equal(resumed.weight, weights) and WeightAveraging.is_in(tmp_path)
    for each in (model, resumed):
        with torch.no_grad():
            each.weight.add_(1)
    averaging.update()
    other.update()
    other.apply()
    with averaging.applied():
        assert torch.equal(model.weight, resumed.weight)


def test_bad_averages(tmp_path) -> None:
    with pytest.raises(ValueError, match="ema_decay must be above 0 and below 1, got 1"):
        WeightAveraging(nn.Linear(1, 1), 1.0)
    with pytest.raises(ValueError, match="has no average of the weights: it was made without ema_decay"):
        WeightAveraging(nn.Linear(1, 1), 0.5).load(tmp_path)
