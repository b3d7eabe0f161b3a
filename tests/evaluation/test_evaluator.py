"""evaluate_embeddings and the evaluators: the right columns, splits, groups and names reach the metrics."""

import json
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value
from PIL import Image as PILImage
from transformers import ViTConfig

from cca_hf.data.schema import AttributeDataset
from cca_hf.evaluation import (
    BackboneEvaluator,
    EvaluationResult,
    Gallery,
    RetrievalEvaluator,
    evaluate_embeddings,
    retrieval_metrics,
)
from cca_hf.models.configuration_cca import CCAConfig
from cca_hf.models.images import load_image
from cca_hf.models.modeling_cca import CCAModel

ATTRIBUTES = {"colour": ["red", "green", "blue"], "shape": ["circle", "square"]}
PURE = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}


@pytest.fixture
def arrays():
    generator = np.random.default_rng(0)
    labels = np.stack([generator.integers(-1, 3, 50), generator.integers(0, 2, 50)], axis=1)
    return generator.normal(size=(50, 2, 6)), labels, generator.integers(-1, 12, 50)


def test_every_figure_comes_from_its_column(arrays):
    embeddings, labels, groups = arrays
    metrics = evaluate_embeddings(embeddings, labels, ATTRIBUTES, groups=groups).metrics()
    single = [retrieval_metrics(embeddings[:, column], labels[:, column], query_groups=groups) for column in (0, 1)]
    sizes = [len(each.queries) for each in single]
    assert sizes[0] < sizes[1] == 50
    for name, each in zip(ATTRIBUTES, single, strict=True):
        assert metrics[f"map_{name}"] == pytest.approx(each.map)
        assert metrics[f"chance_map_{name}"] == pytest.approx(each.chance_map)
        assert metrics[f"map_macro_{name}"] == pytest.approx(each.map_macro)
        assert metrics[f"recall@5_{name}"] == pytest.approx(each.scores.recall[5].mean())
        assert metrics[f"chance_r_precision_{name}"] == pytest.approx(each.chance.r_precision.mean())
    assert metrics["map"] == pytest.approx((single[0].map + single[1].map) / 2)
    assert metrics["map_weighted"] == pytest.approx(np.average([each.map for each in single], weights=sizes))
    assert metrics["chance_map_weighted"] == pytest.approx(
        np.average([each.chance_map for each in single], weights=sizes)
    )
    assert metrics["map_macro"] == pytest.approx((single[0].map_macro + single[1].map_macro) / 2)
    assert metrics["map_macro"] != pytest.approx(metrics["map"], abs=1e-6)
    assert {f"{chance}{name}" for chance in ("", "chance_") for name in ("recall@1", "recall@5", "recall@10")} < set(
        metrics
    )
    assert all(0 <= value <= 1 and type(value) is float for value in metrics.values())


def test_one_space_and_torch_and_gallery(arrays):
    embeddings, labels, groups = arrays
    shared = embeddings[:, 0]
    repeated = np.stack([shared, shared], axis=1)
    assert (
        evaluate_embeddings(torch.from_numpy(shared), torch.from_numpy(labels), ATTRIBUTES).metrics()
        == evaluate_embeddings(repeated, labels, ATTRIBUTES).metrics()
    )
    result = evaluate_embeddings(
        embeddings[:20],
        labels[:20],
        ATTRIBUTES,
        groups=groups[:20],
        gallery=(embeddings[20:], labels[20:], groups[20:]),
    )
    direct = retrieval_metrics(
        embeddings[:20, 1], labels[:20, 1], embeddings[20:, 1], labels[20:, 1],
        query_groups=groups[:20], gallery_groups=groups[20:],
    )  # fmt: skip
    assert result["shape"].scores["map"] == pytest.approx(direct.map)
    assert result["shape"].candidates == pytest.approx(direct.num_candidates.mean())


def test_an_attribute_that_nobody_labelled_is_left_out_and_named(arrays, caplog):
    embeddings, labels, _ = arrays
    labels[:, 0] = -1
    result = evaluate_embeddings(embeddings, labels, ATTRIBUTES)
    assert result.unlabelled == ("colour",)
    assert result.metrics()["map"] == result.metrics()["map_shape"]
    assert "colour" in caplog.text and "colour" in result.table()
    labels[:] = -1
    with pytest.raises(ValueError, match="none of the 50 queries has a label of colour, shape"):
        evaluate_embeddings(embeddings, labels, ATTRIBUTES)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"embeddings": np.ones((50, 3, 4))}, r"\(images, 2, dim\), the attributes being colour, shape"),
        ({"labels": np.zeros((50, 3), int)}, r"labels must have shape .* \(50, 2\), got \(50, 3\)"),
        ({"labels": np.full((50, 2), 2)}, "labels of 'shape' go up to 2, but it has 2 values"),
        ({"attributes": {"weighted": ["a"], "macro_x": ["b"]}}, "named 'weighted', 'macro_x'"),
        ({"attributes": {}}, "no attributes given"),
        ({"gallery": Gallery(np.ones((4, 2, 6)), np.zeros((3, 2), int))}, "gallery labels must have shape"),
        ({"groups": [1, 2]}, r"query groups must have shape \(50,\)"),
    ],
)
def test_bad_input_says_what_was_given(arrays, change, message):
    given = {"embeddings": arrays[0], "labels": arrays[1], "attributes": ATTRIBUTES}
    with pytest.raises(ValueError, match=message):
        evaluate_embeddings(**(given | change))


def test_json_keeps_everything(arrays, tmp_path):
    embeddings, labels, groups = arrays
    result = evaluate_embeddings(embeddings, labels, ATTRIBUTES, groups=groups)
    path = result.save_json(tmp_path / "new" / "result.json")
    assert EvaluationResult.load_json(path) == result
    assert json.loads(path.read_text())["metrics"] == result.metrics()
    assert [each.name for each in path.parent.iterdir()] == ["result.json"]


def test_table_shows_percent_and_chance(arrays):
    embeddings, labels, _ = arrays
    labels[0, 0], labels[1:, 0] = 2, np.where(labels[1:, 0] == 2, 1, labels[1:, 0])
    result = evaluate_embeddings(embeddings, labels, ATTRIBUTES)
    lines = result.table().splitlines()
    colour = next(line for line in lines if line.startswith("colour  "))
    scores, chance = result["colour"].scores["map"], result["colour"].chance["map"]
    assert f"{100 * scores:.1f} ({100 * chance:.1f})" in colour
    assert str(result["colour"].queries) in colour
    assert "colour: 1 queries with nothing to find count as 0." in lines
    assert len({len(line) for line in lines[:5]}) == 1
    assert f"{100 * scores:.2f} ({100 * chance:.2f})" in result.table(decimals=2)


def test_value_results_name_the_values(arrays):
    embeddings, labels, _ = arrays
    result = evaluate_embeddings(embeddings, labels, ATTRIBUTES)
    assert [each.name for each in result["colour"].values] == ["red", "green", "blue"]
    assert sum(each.queries for each in result["colour"].values) == result["colour"].queries
    assert np.mean([each.map for each in result["colour"].values]) == pytest.approx(
        result["colour"].scores["map_macro"]
    )
    with pytest.raises(KeyError, match="no attribute 'color'"):
        result["color"]


# -- evaluators -------------------------------------------------------------------------------------------------------


@dataclass
class PixelModel:
    """Stands in for a model that solves colour and knows nothing of shape: the mean pixel, or a constant."""

    config: CCAConfig
    asked: list[list[str]] = field(default_factory=list)

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
