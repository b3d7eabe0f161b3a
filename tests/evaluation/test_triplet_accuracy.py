"""triplet_accuracy against plain loops, with ties; and the evaluator that embeds each picture once."""

import json
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image, Value
from PIL import Image as PILImage

from cca_hf.evaluation import TripletEvaluator, TripletResult, triplet_accuracy
from cca_hf.models.configuration_cca import CCAConfig
from cca_hf.models.images import load_image

NAMES = ["closure", "heel", "gender"]


def loops(embeddings, triplets, conditions) -> dict[str, tuple[int, int, int]]:
    """name -> (triplets, correct, ties)."""
    found = {name: [0, 0, 0] for name in NAMES}
    for (anchor, close, far), condition in zip(triplets, conditions, strict=True):
        vectors = [
            np.asarray(embeddings[each] if embeddings.ndim == 2 else embeddings[each, condition], dtype=float)
            for each in (anchor, close, far)
        ]
        anchor, close, far = (vector / np.linalg.norm(vector) for vector in vectors)
        counts = found[NAMES[condition]]
        counts[0] += 1
        if np.array_equal(close, far):
            counts[2] += 1
        elif sum(a * b for a, b in zip(anchor, close, strict=True)) > sum(
            a * b for a, b in zip(anchor, far, strict=True)
        ):
            counts[1] += 1
    return {name: tuple(counts) for name, counts in found.items()}


@pytest.fixture
def drawn():
    """The last 10 of 30 images are copies, so that some triplets are ties."""
    generator = np.random.default_rng(0)
    embeddings = generator.normal(size=(20, 3, 6)).astype(np.float32)
    embeddings = np.concatenate([embeddings, embeddings[:10]])
    triplets = np.concatenate([generator.integers(0, 30, (200, 3)), [[5, 1, 21], [5, 21, 1], [7, 2, 2]]])
    return embeddings, triplets, generator.choice(3, p=[0.6, 0.3, 0.1], size=203)


@pytest.mark.parametrize("chunk_size", [None, 1, 7, 1000])
@pytest.mark.parametrize("one_space", [False, True])
def test_equals_plain_loops(drawn, one_space, chunk_size):
    embeddings, triplets, conditions = drawn
    if one_space:
        embeddings = embeddings[:, 0]
    result = triplet_accuracy(embeddings, triplets, conditions, NAMES, chunk_size=chunk_size)
    expected = loops(embeddings, triplets, conditions)
    assert {each.name: (each.triplets, each.correct, each.ties) for each in result.conditions} == expected
    assert sum(each.ties for each in result.conditions) >= 3
    # overall is the micro average: over triplets, not over conditions, which are of unequal size here
    metrics = result.metrics()
    assert metrics["triplet_accuracy"] == sum(counts[1] for counts in expected.values()) / 203
    macro = np.mean([counts[1] / counts[0] for counts in expected.values()])
    assert metrics["triplet_accuracy_macro"] == pytest.approx(macro)
    assert abs(macro - metrics["triplet_accuracy"]) > 1e-3
    assert metrics["triplet_ties"] == sum(counts[2] for counts in expected.values()) / 203
    assert metrics["triplet_accuracy_heel"] == expected["heel"][1] / expected["heel"][0]


def test_ties_are_wrong_whatever_the_sizes():
    """One vector for everything, at dimensions where sums in another order round differently."""
    generator = np.random.default_rng(1)
    for dim in (1, 2, 67, 131, 768):
        embeddings = np.repeat(generator.normal(size=(1, dim)).astype(np.float32), 40, axis=0)
        triplets = generator.integers(0, 40, (500, 3))
        result = triplet_accuracy(embeddings, triplets, np.zeros(500, int), ["all"])
        assert (result.total.correct, result.total.ties) == (0, 500)


def test_random_embeddings_score_a_half():
    generator = np.random.default_rng(2)
    triplets = np.stack([generator.permutation(3000) for _ in range(3)], axis=1)
    result = triplet_accuracy(generator.normal(size=(3000, 8)), triplets, np.zeros(3000, int), ["all"])
    assert result.total.accuracy == pytest.approx(0.5, abs=0.03)  # more than three standard deviations


def test_lengths_do_not_matter_and_zero_vectors_tie():
    embeddings = np.array([[1, 0], [100, 90], [0.1, 0.0], [0, 0]], dtype=np.float32)
    result = triplet_accuracy(embeddings, [[0, 2, 1], [0, 1, 2], [3, 1, 2]], [0, 0, 0], ["heel"])
    assert (result["heel"].correct, result["heel"].ties) == (1, 1)


def test_the_size_of_zappos50k():
    """160,000 triplets of 50,025 pictures under four conditions, as they are tested; in chunks of little memory."""
    generator = np.random.default_rng(3)
    embeddings = generator.standard_normal((50_025, 4, 16), dtype=np.float32)
    triplets, conditions = generator.integers(0, 50_025, (160_000, 3)), generator.integers(0, 4, 160_000)
    result = triplet_accuracy(embeddings, triplets, conditions, ["class", "closure", "gender", "heel"])
    anchor, close, far = (embeddings[column, conditions].astype(float) for column in triplets.T)
    right = (anchor * close).sum(1) / np.linalg.norm(close, axis=1)
    wrong = (anchor * far).sum(1) / np.linalg.norm(far, axis=1)
    assert result.total.triplets == 160_000
    assert result.total.correct == (right > wrong).sum()


def test_torch_and_half_precision(drawn):
    embeddings, triplets, conditions = (torch.from_numpy(np.asarray(each)) for each in drawn)
    result = triplet_accuracy(embeddings.bfloat16(), triplets, conditions, NAMES)
    assert result == triplet_accuracy(embeddings.bfloat16().float().numpy(), *drawn[1:], NAMES)


def test_json_and_table(drawn, tmp_path):
    result = triplet_accuracy(*drawn, [*NAMES[:2], "gender"])
    path = result.save_json(tmp_path / "new" / "evaluation.json")
    assert TripletResult.load_json(path) == result
    assert json.loads(path.read_text())["metrics"] == result.metrics()
    lines = result.table(decimals=2).splitlines()
    heel = next(line for line in lines if line.startswith("heel")).split()
    expected = [f"{result['heel'].triplets}", f"{100 * result['heel'].accuracy:.2f}", f"{result['heel'].ties}"]
    assert heel[1:] == expected
    total = next(line for line in lines if line.startswith("all triplets")).split()
    assert total[2:4] == ["203", f"{100 * result.total.accuracy:.2f}"]
    with pytest.raises(KeyError, match="no condition 'heels'"):
        result["heels"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"embeddings": np.ones((4, 2, 5))}, r"\(images, 1, dim\), the conditions being heel, or \(images, dim\)"),
        ({"embeddings": [[1.0, 2], [np.nan, 0], [1, 1], [1, 1]]}, "1 of 4 embeddings are not finite, the first is 1"),
        ({"triplets": [[0, 1]]}, r"shape \(triplets, 3\)"),
        ({"triplets": np.empty((0, 3), int)}, r"got \(0, 3\)"),
        ({"triplets": [[0, 1, 4]]}, "triplets must be integers from 0 to 3; got int64 from 0 to 4"),
        ({"triplets": [[0, 1, 2.5]]}, "got float64"),
        ({"conditions": [1]}, "conditions must be integers from 0 to 0"),
        ({"conditions": [0, 0]}, r"shape \(1,\), one for each triplet"),
        ({"names": ["macro"]}, "named 'macro'"),
        ({"embeddings": None}, "embeddings must be real numbers, got object"),
        ({"triplets": [[0, 1, None]]}, "triplets must be integers from 0 to 3; got object"),
        ({"conditions": [np.nan]}, "conditions must be integers from 0 to 0; got float64"),
    ],
)
def test_bad_input_says_what_was_given(change, message):
    given = {"embeddings": np.ones((4, 2)), "triplets": [[0, 1, 2]], "conditions": [0], "names": ["heel"]}
    with pytest.raises(ValueError, match=message):
        triplet_accuracy(
            **{key: np.asarray(value) if key != "names" else value for key, value in (given | change).items()}
        )


@pytest.mark.parametrize("chunk_size", [-1, 0, 1.5])
def test_a_bad_chunk_size(chunk_size):
    with pytest.raises(ValueError, match=f"chunk_size must be an integer of at least 1, got {chunk_size}"):
        triplet_accuracy(np.ones((4, 2)), [[0, 1, 2]], [0], ["heel"], chunk_size=chunk_size)


# -- evaluator --------------------------------------------------------------------------------------------------------


@dataclass
class PixelModel:
    """Stands in for a model: under "red" the red channel is what counts, under any other condition nothing does."""

    config: CCAConfig = field(default_factory=lambda: CCAConfig(attributes=["heel", "red", "green"]))
    asked: list[tuple[list[str], int]] = field(default_factory=list)

    def encode(self, images, attributes, *, batch_size, show_progress, num_workers):
        known = [self.config.attributes[self.config.attribute_id(name)] for name in attributes]
        self.asked.append((known, len(images)))
        red = np.stack([np.asarray(load_image(each), dtype=float)[0, 0, 0] / 255 for each in images])
        angle = np.stack([np.cos(red), np.sin(red)], axis=1)
        return np.stack([angle if name == "red" else np.ones_like(angle) for name in attributes], axis=1)


# condition, and which of six shades of red; "red" is always answered right, the others see no difference
ROWS = [("red", 0, 1, 5), ("red", 3, 2, 0), ("heel", 1, 0, 5), ("green", 2, 3, 3), ("red", 5, 4, 1)]
COLUMNS = ("anchor", "positive", "negative")


def of_rows(pictures: list[str], feature: Image | Value) -> Dataset:
    columns = {name: [pictures[row[place]] for row in ROWS] for place, name in enumerate(COLUMNS, start=1)}
    features = Features(condition=Value("string"), **dict.fromkeys(COLUMNS, feature))
    return Dataset.from_dict({"condition": [row[0] for row in ROWS], **columns}, features=features)


@pytest.fixture
def files(tmp_path) -> list[str]:
    paths = [str(tmp_path / f"{shade}.png") for shade in range(6)]
    for shade, path in enumerate(paths):
        PILImage.new("RGB", (8, 8), (40 * shade, 0, 0)).save(path)
    return paths


@pytest.fixture
def triplets(files) -> Dataset:
    return of_rows(files, Image())


def test_evaluator_embeds_each_picture_once(triplets):
    model = PixelModel()
    result = TripletEvaluator(triplets)(model)
    assert model.asked == [(["green", "heel", "red"], 6)]  # not 15
    assert {each.name: (each.triplets, each.correct, each.ties) for each in result.conditions} == {
        "red": (3, 3, 0), "heel": (1, 0, 1), "green": (1, 0, 1),
    }  # fmt: skip
    assert result.metrics()[TripletEvaluator.primary_metric] == 3 / 5


def test_evaluator_takes_some_conditions(triplets):
    model = PixelModel()
    result = TripletEvaluator(triplets, ["red", "heel"])(model)
    assert [each.name for each in result.conditions] == ["red", "heel"]
    assert result.total.triplets == 4 and model.asked[0][0] == ["red", "heel"]
    with pytest.raises(ValueError, match=r"no triplets of the condition 'heal' \(did you mean 'heel'\?\)"):
        TripletEvaluator(triplets, ["heal"])


def test_conditions_without_a_triplet_are_not_asked(triplets):
    names = ["size", "red", "heel", "green"]
    labelled = triplets.cast_column("condition", ClassLabel(names=names))
    result = TripletEvaluator(labelled)(PixelModel())  # the model does not know "size"
    assert [each.name for each in result.conditions] == ["red", "heel", "green"]


def test_the_model_must_know_the_conditions(triplets):
    model = PixelModel(CCAConfig(attributes=["red", "heels", "green"]))
    with pytest.raises(ValueError, match="unknown attribute 'heel'.*'heels'"):
        TripletEvaluator(triplets)(model)


def test_triplets_that_name_their_pictures(files, triplets):
    """As `cca data prepare` writes them: file names here, the pictures elsewhere, of which some are missing."""
    names = [f"Boots/{shade}.png" for shade in range(6)]
    named = of_rows(names, Value("string"))
    features = Features(image=Image(), file_name=Value("string"))
    order = [4, 2, 0, 5, 1, 3]
    columns = {"image": [files[shade] for shade in order], "file_name": [names[shade] for shade in order]}
    model = PixelModel()
    whole = TripletEvaluator(named, pictures=Dataset.from_dict(columns, features=features))(model)
    assert whole == TripletEvaluator(triplets)(PixelModel())
    assert model.asked[0][1] == 6 and whole.left_out == 0

    columns["image"][order.index(0)] = None  # listed, but not there: in the first three triplets
    partly = Dataset.from_dict(columns, features=features)
    for pictures in (partly, partly.filter(lambda row: row["image"] is not None)):
        result = TripletEvaluator(named, pictures=pictures)(PixelModel())
        assert (result.total.triplets, result.left_out) == (2, 3)
        assert (result["red"].correct, result["green"].ties) == (1, 1)
        assert "A subset: 3 of 5 triplets were left out" in result.table()
    with pytest.raises(ValueError, match="none of the 5 triplets has its three images.*'Boots/0.png'"):
        TripletEvaluator(named, pictures=partly.select([1]))
