"""A data set of 128 x 64 images from files to training, evaluation, attention maps, an ONNX graph and embeddings."""

import csv

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    CLIPImageProcessorPil,
    ConvNextConfig,
    MobileNetV2Config,
    SwinConfig,
    ViTConfig,
    ViTImageProcessorPil,
)

from cca_hf import CCAModel, RetrievalEvaluator
from cca_hf.data.loading import load_attribute_dataset
from cca_hf.embedding.catalogue import Catalogue
from cca_hf.embedding.job import embed_catalogue
from cca_hf.models.encoding import pixel_batches
from cca_hf.recipes.attribute_retrieval import make_model
from cca_hf.recipes.attribute_trainer import CCATrainer
from cca_hf.recipes.command_line import ModelArguments, parse_arguments
from cca_hf.runtimes.export import ExportedModel, export_model

SIZE = (128, 64)
SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
BACKBONES = {
    "vit": ViTConfig(**SHAPE, image_size=64, patch_size=16),
    "swin": SwinConfig(image_size=64, patch_size=8, embed_dim=16, depths=[1, 1], num_heads=[2, 2], window_size=4),
    "convnext": ConvNextConfig(hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1]),
    "mobilenet_v2": MobileNetV2Config(depth_multiplier=0.35),
}
GRIDS = {"vit": (8, 4), "swin": (8, 4), "convnext": (7, 4), "mobilenet_v2": (7, 4)}
PADS = ViTImageProcessorPil(
    size={"max_height": 128, "max_width": 64}, do_pad=True, pad_size={"height": 128, "width": 64}
)
CROPS = CLIPImageProcessorPil(size={"shortest_edge": 64}, crop_size={"height": 128, "width": 64})

EXPORTED = ("vit", "convnext")  # an export takes many seconds


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    """Images of people-like shape and several sizes: JPEG files of a colour above and a colour below."""
    folder = tmp_path_factory.mktemp("people")
    generator = np.random.default_rng(0)
    colours = {"red": (220, 40, 40), "green": (40, 200, 60), "blue": (50, 60, 220)}
    for split, number in (("train", 48), ("validation", 12), ("test", 24)):
        (folder / split).mkdir()
        rows = []
        for index in range(number):
            upper, lower = list(colours)[index % 3], list(colours)[index // 3 % 3]
            height, width = int(generator.integers(110, 180)), int(generator.integers(50, 90))
            image = generator.integers(0, 60, (height, width, 3)).astype(np.uint8)
            image[10 : height // 2, 10:-10] = colours[upper]
            image[height // 2 : -10, 10:-10] = colours[lower]
            Image.fromarray(image).save(folder / split / f"{index:03d}.jpg")
            rows.append({"file_name": f"{index:03d}.jpg", "upper": upper, "lower": lower})
        with open(folder / split / "metadata.csv", "w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    return folder


@pytest.fixture(scope="module")
def data(people):
    return load_attribute_dataset(people, ["upper", "lower"])


@pytest.mark.parametrize("name", BACKBONES)
def test_from_files_to_figures(name, data, people, make_args, tmp_path):
    pytest.importorskip("onnxruntime", reason="the extra [onnx] is not installed")
    torch.manual_seed(0)
    model = CCAModel.from_backbone(BACKBONES[name], data.attributes, image_size=SIZE)
    trainer = CCATrainer(model, make_args(max_steps=3, learning_rate=1e-3), data)
    batch = next(iter(trainer.get_train_dataloader()))
    assert batch["pixel_values"].shape == (16, 3, *SIZE)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 3 and np.isfinite(losses).all()
    metrics = trainer.predict(trainer.images_of("test"), metric_key_prefix="test").metrics
    model.eval()
    expected = RetrievalEvaluator(data, "test")(model).metrics()
    assert {key: metrics[f"test_{key}"] for key in expected} == pytest.approx(expected, abs=1e-6)

    files = sorted((people / "test").glob("*.jpg"))
    maps = model.attention_maps(files[:2], "lower")
    assert maps.shape == (2, 1, model.config.num_attention_heads, *GRIDS[name])
    if name not in EXPORTED:
        return
    embeddings = model.encode(files)
    exported = ExportedModel.from_pretrained(export_model(model, tmp_path / "onnx"), num_threads=1)
    np.testing.assert_allclose(exported.encode(files), embeddings, atol=1e-5)
    catalogue = Catalogue.from_folder(people / "test")
    assert embed_catalogue(exported, catalogue, tmp_path / "shards", show_progress=False).complete


@pytest.mark.parametrize("processor", [PADS, CROPS], ids=["pads", "crops"])
@pytest.mark.parametrize("cached", [False, True])
def test_padding_and_cropping_in_training_evaluation_and_cache(processor, cached, data, make_args, tmp_path):
    torch.manual_seed(0)
    model = CCAModel.from_backbone(BACKBONES["vit"], data.attributes, image_size=SIZE)
    model.image_processor = processor
    cache = {"freeze_backbone": True, "cache_tokens": str(tmp_path / "cache"), "cache_dtype": "float32"}
    trainer = CCATrainer(model, make_args(max_steps=2, **(cache if cached else {})), data)
    trainer.train()
    metrics = trainer.predict(trainer.images_of("test"), metric_key_prefix="test").metrics
    expected = RetrievalEvaluator(data, "test")(model.eval()).metrics()
    assert {key: metrics[f"test_{key}"] for key in expected} == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("processor", [None, PADS, CROPS], ids=["squashes", "pads", "crops"])
def test_the_trainer_evaluates_the_pixels_of_encode(processor, data, make_args):
    model = CCAModel.from_backbone(BACKBONES["vit"], data.attributes, image_size=SIZE)
    if processor is not None:
        model.image_processor = processor
    trainer = CCATrainer(model, make_args(per_device_eval_batch_size=24), data)
    (batch,) = trainer.get_test_dataloader(trainer.images_of("test"))
    (used,) = pixel_batches(model, data["test"]["image"], batch_size=24)
    assert torch.equal(batch["pixel_values"], used.values)


def test_the_flag(data, tmp_path):
    config = '{"model_type": "vit", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}'
    required = ["--backbone_config", config, "--dataset", "x", "--output_dir", str(tmp_path)]
    for given, expected in ((["128", "64"], [128, 64]), (["64"], 64)):
        model_args = parse_arguments([*required, "--image_size", *given])[0]
        assert make_model(model_args, data).config.image_size == expected
    (tmp_path / "args.yaml").write_text("image_size: [128, 64]\n")
    assert parse_arguments([str(tmp_path / "args.yaml"), *required])[0].image_size == [128, 64]
    for wrong in ([1, 2, 3], [0]):
        with pytest.raises(ValueError, match="--image_size must be a positive number, or height and width; got"):
            ModelArguments(backbone="x", image_size=wrong)
