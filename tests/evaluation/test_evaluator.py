"""The evaluators: the right attributes, splits, groups and sets of a data set reach the metrics."""

from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, List, Value
from PIL import Image as PILImage
from transformers import ViTConfig

from cca_hf.data.schema import AttributeDataset
from cca_hf.evaluation import BackboneEvaluator, RetrievalEvaluator, evaluate_embeddings
from cca_hf.evaluation.entanglement.evaluator import embed_with_features
from cca_hf.models.configuration_cca import CCAConfig
from cca_hf.models.images import load_image
from cca_hf.models.modeling_cca import CCAModel

ATTRIBUTES = {"colour": ["red", "green", "blue"], "shape": ["circle", "square"]}
PURE = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}


@dataclass
class PixelModel:
    """Stands in for a model that solves colour and knows nothing of shape: the mean pixel, or a constant."""

    config: CCAConfig
    asked: list[list[str]] = field(default_factory=list)
    device: torch.device = torch.device("cpu")

    def encode(self, images, attributes, *, batch_size, show_progress, num_workers):
        self.asked.append(attributes)
        colour = np.stack([np.asarray(load_image(each), dtype=float).mean(axis=(0, 1)) for each in images])
        of = {"colour": colour, "shape": np.ones_like(colour)}
        return np.stack([of[name] for name in attributes], axis=1)


def pictures(count: int, seed: int) -> Dataset:
    generator = np.random.default_rng(seed)
    colours, shapes = generator.integers(0, 3, count), generator.integers(0, 2, count)
    features = Features(
        image=Image(),
        colour=ClassLabel(names=ATTRIBUTES["colour"]),
        shape=ClassLabel(names=ATTRIBUTES["shape"]),
        item=Value("string"),
    )
    rows = {
        "image": [PILImage.new("RGB", (32, 32), PURE[ATTRIBUTES["colour"][colour]]) for colour in colours],
        "colour": colours.tolist(),
        "shape": shapes.tolist(),
        "item": [f"item {index // 2}" for index in range(count)],
    }
    return Dataset.from_dict(rows, features=features).cast_column("image", Image(decode=False))


@pytest.fixture
def dataset() -> AttributeDataset:
    splits = {"test": pictures(24, 1), "validation_query": pictures(6, 2), "validation_gallery": pictures(18, 3)}
    return AttributeDataset(DatasetDict(splits), ATTRIBUTES)


@pytest.fixture
def pixel_model() -> PixelModel:
    return PixelModel(CCAConfig(attributes=["shape", "size", "colour"], attribute_values=dict(ATTRIBUTES)))


def test_evaluator_asks_for_the_attributes_of_the_data_set(dataset, pixel_model):
    result = RetrievalEvaluator(dataset)(pixel_model)
    assert pixel_model.asked == [["colour", "shape"]]  # by name, whatever the order in the model
    metrics = result.metrics()
    assert metrics["map_colour"] == 1.0
    assert metrics["map_shape"] == pytest.approx(metrics["chance_map_shape"])
    assert metrics[RetrievalEvaluator.primary_metric] == pytest.approx((1 + metrics["map_shape"]) / 2)
    assert result["colour"].candidates == 23


def test_evaluator_takes_query_and_gallery_splits(dataset, pixel_model):
    result = RetrievalEvaluator(dataset, "validation")(pixel_model)
    assert (result["colour"].queries, result["colour"].candidates) == (6, 18)
    assert result["colour"].scores["map"] == 1.0


def test_evaluator_excludes_the_group_of_the_query(dataset, pixel_model):
    grouped = AttributeDataset(dataset.splits, ATTRIBUTES, group_column="item")
    assert RetrievalEvaluator(grouped)(pixel_model)["colour"].candidates == 22


def with_lists(dataset: Dataset, column: str, every: int) -> Dataset:
    """With a column of lists: "blue" on every so many images."""
    lists = [["blue"] if row % every == 0 else [] for row in range(len(dataset))]
    return dataset.add_column(column, lists, feature=List(Value("string")))


def test_evaluator_reads_the_sets_of_the_split(dataset, pixel_model):
    splits = dataset.splits
    splits["validation_gallery"] = with_lists(splits["validation_gallery"], "colour_maybe", 2)
    splits["test"] = with_lists(splits["test"], "colour_all", 3)
    data = AttributeDataset(splits, ATTRIBUTES)

    metrics = RetrievalEvaluator(data, "validation")(pixel_model).metrics()
    maybe = data.value_sets("validation_gallery", "maybe")["colour"]
    assert maybe[:, 2].sum() == 9
    asked, answering = data.labels("validation_query")[:, 0], data.labels("validation_gallery")[:, 0]
    left = [18 - (maybe[:, label] & (answering != label)).sum() for label in asked]
    relevant = [(answering == label).sum() for label in asked]
    harmonic = [sum(1 / rank for rank in range(1, size + 1)) for size in left]
    chance = [
        (h + (r - 1) / (n - 1) * (n - h)) / n for h, n, r in zip(harmonic, left, relevant, strict=True)
    ]  # fmt: skip
    assert metrics["chance_map_ignore_maybe_colour"] == pytest.approx(np.mean(chance))
    assert "map_multi_label" not in metrics

    metrics = RetrievalEvaluator(data)(pixel_model).metrics()  # leave-one-out
    shown = data.value_sets("test", "all")["colour"]
    embeddings = RetrievalEvaluator(data).embed(pixel_model, data["test"]["image"])
    expected = evaluate_embeddings(embeddings, data.labels("test"), ATTRIBUTES, all_values={"colour": shown})
    assert metrics == expected.metrics()
    assert metrics["map_multi_label_colour"] < metrics["map_colour"] == 1.0  # the colour alone is all the model sees


def test_unknown_and_empty_splits(dataset):
    with pytest.raises(KeyError, match="tset"):
        RetrievalEvaluator(dataset, "tset")
    empty = AttributeDataset(DatasetDict(test=dataset["test"].select([])), ATTRIBUTES)
    with pytest.raises(ValueError, match="'test' is empty"):
        RetrievalEvaluator(empty)


def test_model_and_data_set_must_agree(dataset, caplog):
    with pytest.raises(ValueError, match="'color'"):
        RetrievalEvaluator(dataset)(PixelModel(CCAConfig(attributes=["color", "shape"])))
    values = {"colour": ["cyan", "magenta"], "shape": ["circle"]}
    with pytest.raises(
        ValueError, match="no value of 'colour' in common: .*'cyan', 'magenta', .*'red', 'green', 'blue'"
    ):
        RetrievalEvaluator(dataset)(PixelModel(CCAConfig(attributes=list(values), attribute_values=values)))
    values = {"colour": ["red", "green", "blue", "grey"], "shape": ["circle"]}
    RetrievalEvaluator(dataset)(PixelModel(CCAConfig(attributes=list(values), attribute_values=values)))
    assert "'shape' has values that the model was not trained on: 'square'" in caplog.text
    assert "'colour'" not in caplog.text


def tiny_vit(**fields) -> CCAModel:
    torch.manual_seed(0)
    backbone = ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, image_size=32, patch_size=8
    )
    return CCAModel.from_backbone(backbone, ATTRIBUTES, **fields)


def test_evaluators_run_the_real_model(dataset):
    model = tiny_vit().train()
    result = RetrievalEvaluator(dataset, batch_size=5)(model)
    embeddings = model.encode(dataset["test"]["image"], ["colour", "shape"])
    expected = evaluate_embeddings(embeddings, dataset.labels("test"), ATTRIBUTES)
    assert result.metrics() == pytest.approx(expected.metrics(), abs=1e-5)

    baseline = BackboneEvaluator(dataset, batch_size=5)
    embeddings = baseline.embed(model, dataset["test"]["image"])
    with torch.inference_mode():
        images = [load_image(image) for image in dataset["test"]["image"]]
        pixel_values = model.image_processor(images, return_tensors="pt")["pixel_values"]
        tokens = model.eval().get_image_tokens(pixel_values)
    np.testing.assert_allclose(embeddings, tokens.mean(1).numpy(), atol=1e-5)
    # one embedding for both attributes: what separates the colours cannot know of shapes
    metrics = baseline(model.train()).metrics()
    assert metrics["map_colour"] == pytest.approx(1.0)
    assert metrics["map_shape"] < 0.8
    assert model.training


def test_evaluators_leave_the_modes_of_the_model_as_they_are(dataset):
    """A backbone that is held in eval mode stays there, and dropout of a model in training has no say."""
    model = tiny_vit(hidden_dropout_prob=0.5).train()
    model.backbone.eval()
    modes = [module.training for module in model.modules()]
    images = dataset["test"]["image"]
    twice = [embed_with_features(model, images, ["colour", "shape"])[0] for _ in range(2)]
    np.testing.assert_array_equal(*twice)
    BackboneEvaluator(dataset).embed(model, images)
    assert [module.training for module in model.modules()] == modes
    np.testing.assert_allclose(twice[0], model.eval().encode(images, ["colour", "shape"]), atol=1e-5)
