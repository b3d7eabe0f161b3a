"""A backbone whose later part learns, from stored hidden states: the same training as from the images."""

import pytest
import torch
from transformers import AutoModel, ConvNextConfig, MobileNetV2Config, SwinConfig

from cca_hf import CCAModel
from cca_hf.data.sampler import SampleKey
from cca_hf.data.torch_dataset import TrainingTransform
from cca_hf.recipes.attribute_trainer import CCATrainer
from cca_hf.training.token_cache import TokenCache

BACKBONES = {
    "MobileNetV2": MobileNetV2Config(depth_multiplier=0.35, image_size=64),
    "ConvNeXt": ConvNextConfig(hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1], image_size=64),
    "Swin": SwinConfig(
        embed_dim=8, depths=[1, 1, 2, 1], num_heads=[1, 1, 2, 2], window_size=2, image_size=64, drop_path_rate=0.0
    ),
}
# the weights behind a number of feature levels
LATER = {
    ("MobileNetV2", 3): (*(f"layer.{number}." for number in range(12, 16)), "conv_1x1."),
    ("ConvNeXt", 2): ("encoder.stages.2.", "encoder.stages.3."),
    ("Swin", 3): ("encoder.layers.2.", "encoder.layers.3.", "layernorm."),
}
# with Adam, a step also depends on the sign of gradients that are 0 but for rounding
PLAIN = {"crop_scale": 1.0, "crop_ratio": 1.0, "optim": "sgd", "learning_rate": 1e-2, "head_learning_rate": 1e-2}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A folder of each backbone with random weights, and statistics of random images."""
    found = {}
    for name, config in BACKBONES.items():
        torch.manual_seed(0)
        backbone = AutoModel.from_config(config).train()
        with torch.no_grad():
            backbone(torch.randn(8, 3, 64, 64))
        found[name] = tmp_path_factory.mktemp(name)
        backbone.save_pretrained(found[name])
    return found


@pytest.fixture
def make(folders, shapes):
    """A CCA model on a pretrained backbone, with the same new weights each time."""

    def make(name="MobileNetV2", image_size=64, **config_fields):
        torch.manual_seed(0)
        fields = config_fields | {"image_size": image_size, "hidden_size": 32}
        return CCAModel.from_backbone(folders[name], shapes.attributes, **fields)

    return make


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "cache"


@pytest.fixture
def make_cache(make, shapes, folder):
    """A cache of 32-bit states, for a model whose first feature levels are frozen."""

    def make_cache(model=None, num_levels=3, **options):
        model = (make() if model is None else model).freeze_backbone(num_levels)
        return TokenCache(folder, model, shapes, dtype="float32", **options)

    return make_cache


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("MobileNetV2", {}),
        ("ConvNeXt", {"frozen_levels": 2, "micro_batch_size": 8}),
        ("Swin", {"gradient_checkpointing": True}),
    ],
)
def test_the_same_steps_as_from_the_images(make, make_args, shapes, folder, name, options):
    args = make_args(max_steps=2, **PLAIN, **options)
    stored = make_args(max_steps=2, cache_tokens=str(folder), cache_dtype="float32", **PLAIN, **options)
    trainers = [CCATrainer(make(name), given, shapes) for given in (args, stored)]
    before = make(name).state_dict()
    metrics = []
    for trainer in trainers:
        trainer.train()
        metrics.append([entry["eval_map"] for entry in trainer.state.log_history if "eval_map" in entry])
    assert metrics[1] == pytest.approx(metrics[0], abs=1e-6) and len(metrics[0]) == 1
    expected, weights = (trainer.model.state_dict() for trainer in trainers)
    for key, weight in weights.items():
        torch.testing.assert_close(weight, expected[key], atol=1e-5, rtol=1e-4)
    num_levels = options.get("frozen_levels", 3)
    learned = [
        key
        for key, weight in trainers[1].model.backbone.named_parameters()
        if not weight.equal(before[f"backbone.{key}"])
    ]
    assert learned and all(key.startswith(LATER[name, num_levels]) for key in learned)
    assert {key.split(".")[0] for key in learned} == {key.split(".")[0] for key in LATER[name, num_levels]}


def test_the_later_part_gets_the_gradients_of_the_images(make):
    model = make().freeze_backbone(3)
    images, ids = torch.randn(2, 3, 64, 64), torch.tensor([0, 1])
    (model(images, attribute_ids=ids).embeddings[0] @ torch.ones(32)).backward()
    expected = {key: weight.grad for key, weight in model.named_parameters() if weight.grad is not None}
    model.zero_grad()
    features = model.get_early_features(images, 3)
    assert [tuple(feature.shape) for feature in features] == [(2, 32, 4, 4), (2, 16, 32), (2, 49, 16), (2, 49, 8)]
    features[0].requires_grad_()
    (model(backbone_features=features, attribute_ids=ids).embeddings[0] @ torch.ones(32)).backward()
    found = {key: weight.grad for key, weight in model.named_parameters() if weight.grad is not None}
    assert found.keys() == expected.keys()
    for key, gradient in found.items():
        torch.testing.assert_close(gradient, expected[key], atol=1e-6, rtol=1e-4)
    assert features[0].grad[0].any() and not features[0].grad[1].any()  # each image has its own state
    with pytest.raises(ValueError, match=r"is \(32, 3, 4\) for images of 48 x 64 pixels; got \(31, 3, 4\)"):
        model(backbone_features=[features[0][:, :31, :3], *features[1:]], attribute_ids=ids)
    assert not model.backbone.layer[11]._forward_hooks  # also after an error


def test_a_resumed_run_reads_what_it_stored(make, make_args, shapes, folder, monkeypatch):
    args = make_args(max_steps=4, save_steps=2, save_strategy="steps", eval_strategy="no", cache_tokens=str(folder))
    whole = CCATrainer(make("ConvNeXt"), args, shapes)
    whole.train()
    monkeypatch.setattr(TokenCache, "_blocks", lambda *_: pytest.fail("computed again"))
    checkpoint = f"{args.output_dir}/checkpoint-2"
    learned = CCAModel.from_pretrained(checkpoint)
    weight = learned.backbone.encoder.stages[3].layers[0].dwconv.weight
    assert not weight.equal(make("ConvNeXt").backbone.encoder.stages[3].layers[0].dwconv.weight)
    for start in (make("ConvNeXt"), learned):
        resumed = CCATrainer(start, args, shapes)
        resumed.train(resume_from_checkpoint=checkpoint)
        for key, weight in resumed.model.state_dict().items():
            assert weight.equal(whole.model.state_dict()[key]), key


@torch.no_grad()
@pytest.mark.parametrize(
    ("different", "what"),
    [("an early weight", "backbone"), ("two levels", "frozen_levels"), ("all frozen", "backbone")],
)
def test_states_of_another_early_part_are_refused(make, make_cache, shapes, folder, different, what):
    make_cache().images_of("validation")
    learned, model = make(), make()
    learned.backbone.conv_1x1.convolution.weight.mul_(2)
    make_cache(learned).images_of("validation")  # the later part may differ
    num_levels = 2 if different == "two levels" else 3
    if different == "an early weight":
        model.backbone.layer[0].conv_3x3.convolution.weight.mul_(2)
    if different == "all frozen":
        model.freeze_backbone()
    with pytest.raises(ValueError, match=rf"another run, which differ in (\w+, )*{what}(, \w+)*: give another folder"):
        make_cache(model, num_levels).images_of("validation")


def test_the_size_that_is_printed(make_cache, folder, capsys):
    make_cache().images_of("train")
    image_bytes = 4 * (4 * 4 * 32 + 4 * 4 * 32 + 49 * 16 + 49 * 8)  # the state, and the cells of three levels
    assert image_bytes == 8800
    assert "157 images x 2 x 9 kB = 3 MB" in capsys.readouterr().out
    assert (folder / "train.features").stat().st_size == 157 * 2 * image_bytes


PLACES = [(0, 0), (0, 1), (1, 0), (1, 1)]


def window(maps, top, left, cell):
    """(batch, channels, 4 * cell, 4 * cell) without its first or last rows and columns, `cell` of each."""
    rows, columns = (slice(start * cell, (start + 3) * cell) for start in (top, left))
    return maps[:, :, rows, columns]


def test_half_of_the_batches_are_windows_of_the_maps(make, shapes, folder):
    model = make(image_size=128, feature_grid=4).freeze_backbone(3)
    cache = TokenCache(folder, model, shapes, dtype="float32", flipped=False)
    transform = TrainingTransform(horizontal_flip=0.0, crop_scale=(9 / 16, 1.0))
    images = cache.images_of("train", transform)

    def batch(seed):
        features = cache.collator(images.__getitems__([SampleKey(3, seed), SampleKey(4, 0)]))["backbone_features"]
        return [features[0], *(part.transpose(1, 2) for part in features[1:])]

    state, *cells = cache.collator(images.__getitems__([3, 4]))["backbone_features"]
    assert [tuple(part.shape) for part in (state, *cells)] == [(2, 32, 8, 8), (2, 16, 32), (2, 16, 16), (2, 16, 8)]
    maps = [part.transpose(1, 2).unflatten(2, (4, 4)) for part in cells]
    seen = []
    for seed in range(60):
        found = batch(seed)
        place = next((place for place in PLACES if found[0].equal(window(state, *place, 2))), None)
        seen.append(place)
        expected = [state, *maps]
        if place is not None:
            expected = [window(state, *place, 2), *(window(part, *place, 1) for part in maps)]
        assert found[0].equal(expected[0])
        for part, whole in zip(found[1:], expected[1:], strict=True):
            assert part.equal(whole.flatten(2))
    assert 20 < seen.count(None) < 40 and set(seen) == {None, *PLACES}
    transform.crop_scale = (0.6, 1.0)  # a window of 9 of 16 cells is too small
    assert all(batch(seed)[0].shape[2] == 8 for seed in range(20))


def test_training_on_windows(make, make_args, shapes, folder, monkeypatch):
    sizes = []
    run = CCAModel._run_later_part

    def record_size(self, state, *cells):
        sizes.append(state.shape[2])
        return run(self, state, *cells)

    monkeypatch.setattr(CCAModel, "_run_later_part", record_size)
    args = make_args(max_steps=8, crop_scale=0.5, cache_tokens=str(folder))
    CCATrainer(make("ConvNeXt", image_size=128, feature_grid=4), args, shapes).train()
    checked, steps, afterwards = sizes[0], sizes[1:9], sizes[9:]
    assert checked == 8 and set(steps) == {6, 8}
    assert afterwards and set(afterwards) == {8}  # nothing else sees windows


def test_a_later_part_that_needs_more_than_the_state(make, make_cache):
    model, kept = make(), {}
    backbone = model.backbone
    backbone.layer[2].register_forward_hook(lambda _, __, output: kept.update(mean=output.mean((2, 3), keepdim=True)))
    backbone.conv_1x1.register_forward_hook(lambda _, __, output: output + kept["mean"][:, :1])
    message = "the later part of MobileNetV2Model cannot be run by itself: use --freeze_backbone, or no --cache_tokens"
    with pytest.raises(ValueError, match=message):
        make_cache(model)


def test_a_state_that_no_module_returns(make, make_cache, monkeypatch):
    model = make()
    forward = model.backbone.forward

    def forward_with_copies(*args, **kwargs):
        outputs = forward(*args, **kwargs)
        outputs.hidden_states = tuple(state.clone() for state in outputs.hidden_states or ())
        return outputs

    monkeypatch.setattr(model.backbone, "forward", forward_with_copies)
    with pytest.raises(ValueError, match="the later part of MobileNetV2Model cannot be run by itself"):
        make_cache(model)
