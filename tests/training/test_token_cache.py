"""Features of a frozen backbone on disk: the same training from them, and nothing that is not whole is ever read."""

import json
import multiprocessing
import os
import shutil
import signal
from collections import namedtuple

import numpy as np
import pytest
import torch
from transformers import MobileNetV2Config, ViTImageProcessorPil

from cca_hf import ADDEModel, CCAModel, RetrievalEvaluator
from cca_hf.data.sampler import SampleKey
from cca_hf.data.torch_dataset import TrainingTransform
from cca_hf.models.images import decode_image
from cca_hf.recipes.attribute_trainer import CCATrainer
from cca_hf.training.token_cache import TokenCache

from .conftest import EPOCH

FROZEN = {"freeze_backbone": True, "crop_scale": 1.0, "crop_ratio": 1.0}


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "cache"


@pytest.fixture
def make_cache(make_model, shapes, folder):
    """A cache of 32-bit features for the frozen tiny model."""

    def make(model=None, data=shapes, **options):
        model = make_model() if model is None else model
        return TokenCache(folder, model.freeze_backbone(), data, **{"dtype": "float32", "batch_size": 40} | options)

    return make


@pytest.mark.parametrize(("dtype", "near"), [("float32", 1e-4), ("float16", 2e-3), ("bfloat16", 2e-2)])
def test_training_from_the_cache_is_the_same_training(make_model, make_args, shapes, folder, dtype, near):
    plain = CCATrainer(make_model(), make_args(num_train_epochs=2, **FROZEN), shapes)
    args = make_args(num_train_epochs=2, freeze_backbone=True, cache_tokens=str(folder), cache_dtype=dtype)
    cached = CCATrainer(make_model(), args, shapes)
    losses = []
    for trainer in (plain, cached):
        trainer.train()
        losses.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
    assert len(losses[0]) == 2 * EPOCH and losses[0][-1] < 0.6 * losses[0][0]
    assert losses[1] == pytest.approx(losses[0], rel=near)
    assert cached.evaluate()["eval_map"] == pytest.approx(plain.evaluate()["eval_map"], abs=near)
    for name, weight in cached.model.backbone.state_dict().items():
        assert torch.equal(weight, plain.model.backbone.state_dict()[name])


def test_adde_learns_from_stored_states(make_args, shapes, folder):
    """Its pooled levels: the early part of the backbone is stored, the later part and the networks learn."""
    settings = {"frozen_levels": 2, "max_steps": 3, "crop_scale": 1.0, "crop_ratio": 1.0, "seed": 0}
    losses = []
    for cache in ({}, {"cache_tokens": str(folder), "cache_dtype": "float32"}):
        torch.manual_seed(0)
        backbone = MobileNetV2Config(depth_multiplier=0.1, min_depth=8, image_size=32)
        model = ADDEModel.from_backbone(backbone, shapes.attributes, embedding_dim=16, freeze_batch_norm=True)
        trainer = CCATrainer(model, make_args(**settings, **cache), shapes)
        trainer.train()
        losses.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
    assert len(losses[0]) == 3 and losses[1] == pytest.approx(losses[0], rel=1e-3)


def test_evaluation_from_the_cache_is_that_of_the_pictures(make_model, make_args, shapes, folder):
    args = make_args(freeze_backbone=True, cache_tokens=str(folder), cache_dtype="float32")
    trainer = CCATrainer(make_model(), args, shapes)
    found = trainer.predict(trainer.images_of("test"), metric_key_prefix="test").metrics
    expected = RetrievalEvaluator(shapes, "test")(trainer.model).metrics()
    assert {name: found[f"test_{name}"] for name in expected} == pytest.approx(expected, abs=1e-5)
    assert sorted(path.name for path in folder.glob("*.json")) == ["test.json", "train.json", "validation.json"]


@torch.no_grad()
@pytest.mark.parametrize("pads", [False, True])
def test_both_sides_of_an_image_are_kept(make_model, make_cache, shapes, pads):
    model = make_model()
    if pads:  # on the right and below, also beside the mirror image
        size = {"max_height": 16, "max_width": 24}
        model.image_processor = ViTImageProcessorPil(size=size, do_pad=True, pad_size={"height": 32, "width": 32})
    cache = make_cache(model)
    flip = TrainingTransform(horizontal_flip=0.5, crop_scale=(1, 1), crop_ratio=(1, 1))
    images = cache.images_of("train", flip)
    image = decode_image(shapes["train"][3]["image"])
    seeds = range(20)
    seen = set()
    for seed in seeds:
        shown = flip(image, np.random.default_rng(seed))
        pixel_values = model.image_processor(shown, return_tensors="pt")["pixel_values"]
        batch = cache.collator([images[SampleKey(3, seed)]])
        for kept, feature in zip(batch["backbone_features"], model.get_backbone_features(pixel_values), strict=True):
            torch.testing.assert_close(kept, feature, atol=1e-5, rtol=1e-5)
        seen.add(np.asarray(shown).tobytes())
    assert len(seen) == 2
    assert torch.equal(batch["labels"][0], torch.from_numpy(shapes.labels("train")[3]))
    assert torch.equal(images[3]["features"], images.__getitems__([4, 3])[1]["features"])  # as it is


def test_what_is_there_is_not_computed_again(make_cache, shapes, monkeypatch, capsys):
    make_cache().images_of("train")
    said = capsys.readouterr().out
    assert "157 images x 2 x" in said and "MB" in said
    monkeypatch.setattr(TokenCache, "_blocks", lambda *_: pytest.fail("computed again"))
    make_cache().images_of("train")
    assert capsys.readouterr().out == ""
    # which attributes are learned has no part in it
    make_cache(data=type(shapes)(shapes.splits, {"shape": shapes.attributes["shape"]})).images_of("train")


@pytest.mark.parametrize("what", ["backbone", "image_processor", "pictures", "dtype", "versions", "computed_in"])
def test_features_of_something_else_are_refused(make_model, make_cache, shapes, folder, what):
    make_cache().images_of("train")
    before = (folder / "train.features").read_bytes()
    model, data, options = make_model(), shapes, {}
    match what:
        case "backbone":
            torch.nn.init.ones_(model.backbone.layers[0].attention.k_proj.weight)
        case "image_processor":
            model.image_processor.image_mean = [0.4, 0.5, 0.5]
        case "pictures":
            splits = dict(shapes.splits) | {"train": shapes["train"].select(range(156, -1, -1))}
            data = type(shapes)(type(shapes.splits)(splits), shapes.attributes)
        case "dtype":
            options = {"dtype": "float16"}
        case "versions":
            options = {"flipped": False}
        case "computed_in":
            options = {"autocast": torch.bfloat16}
    with pytest.raises(
        ValueError, match=rf"differ in (\w+, )*{what}(, \w+)*: give another folder, or delete this one"
    ):
        make_cache(model, data, **options).images_of("train")
    assert (folder / "train.features").read_bytes() == before


def test_a_killed_run_leaves_nothing_that_is_taken_for_whole(make_cache, folder, monkeypatch):
    whole = make_cache().images_of("train")[156]["features"]
    shutil.rmtree(folder)

    def die_in_the_middle():
        blocks = TokenCache._blocks

        def three_and_a_half(self, *args):
            for number, block in enumerate(blocks(self, *args)):
                if number == 3:
                    yield block[:-1000]
                    os.kill(os.getpid(), signal.SIGKILL)
                yield block

        TokenCache._blocks = three_and_a_half
        make_cache().images_of("train")

    process = multiprocessing.get_context("fork").Process(target=die_in_the_middle)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert sorted(path.name for path in folder.iterdir()) == ["train.lock", "train.partial", "train.partial.json"]
    row_bytes = 2 * whole.numel() * 4
    rows, torn = divmod((folder / "train.partial").stat().st_size, row_bytes)
    assert 120 < rows < 157 and torn

    computed = []
    blocks = TokenCache._blocks
    monkeypatch.setattr(
        TokenCache,
        "_blocks",
        lambda self, split, done, versions: computed.append(done) or blocks(self, split, done, versions),
    )
    images = make_cache().images_of("train")
    assert computed == [rows]
    assert torch.equal(images[156]["features"], whole)
    assert sorted(path.name for path in folder.iterdir()) == ["train.features", "train.json", "train.lock"]


def test_what_another_run_left_half_done_is_begun_anew(make_cache, folder):
    expected = make_cache().images_of("train")[0]["features"]
    header = json.loads((folder / "train.json").read_text())
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / "train.partial").write_bytes(bytes(10**6))
    (folder / "train.partial.json").write_text(json.dumps(header | {"backbone": "another"}))
    assert torch.equal(make_cache().images_of("train")[0]["features"], expected)


def test_processes_share_one_cache(make_cache, folder):
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=lambda: make_cache().images_of("train")) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert sorted(path.name for path in folder.iterdir()) == ["train.features", "train.json", "train.lock"]


def test_a_disk_that_is_too_small_is_found_out_first(make_cache, folder, monkeypatch):
    usage = namedtuple("usage", "total used free")(10**6, 10**6 - 5000, 5000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(OSError, match=r"needs 0\.\d+ GB more, and .* has 0\.00 GB free"):
        make_cache().images_of("train")
    assert not (folder / "train.partial").exists()


def test_features_too_large_for_half_precision(make_model, make_cache, folder):
    model = make_model()
    model.backbone.embeddings.cls_token.data.fill_(1e6)
    with pytest.raises(ValueError, match=r"features of up to 1e\+06 do not fit into float16: use bfloat16"):
        make_cache(model, dtype="float16").images_of("train")
    make_cache(model, dtype="bfloat16").images_of("train")
    assert (folder / "train.json").exists()


def test_a_backbone_that_learns_has_no_cache(make_model, shapes, folder):
    with pytest.raises(ValueError, match=r"needs a frozen backbone, or .* in this one embeddings\.cls_token learns"):
        TokenCache(folder, make_model(), shapes)
    with_statistics = CCAModel.from_backbone(
        MobileNetV2Config(depth_multiplier=0.35, image_size=32), shapes.attributes, freeze_backbone=True
    )
    with pytest.raises(ValueError, match="needs freeze_batch_norm"):
        TokenCache(folder, with_statistics, shapes)


def test_arguments(make_args, make_model, shapes):
    args = make_args(freeze_backbone=True, cache_tokens="cache")
    assert args.crop_scale == args.crop_ratio == 1  # of whole pictures
    assert make_args(cache_tokens="cache").crop_scale == 0.6  # of stored maps
    with pytest.raises(ValueError, match="frozen_levels must be at least 1 with cache_tokens, or freeze"):
        make_args(cache_tokens="cache", frozen_levels=0)
    with pytest.raises(ValueError, match="colour_jitter must be 0 with cache_tokens"):
        make_args(freeze_backbone=True, cache_tokens="cache", colour_jitter=0.1)
    with pytest.raises(ValueError, match="not for ready triplets"):
        CCATrainer(make_model(), args, shapes, triplets=[1])
