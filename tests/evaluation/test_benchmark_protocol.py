"""The protocol on the published split files of FashionAI, DARN and DeepFashion, through the whole evaluation code.

The figures are those of a random ranking. A model that gives every picture the same embedding must score them: then
queries, candidates, relevance, ties and all means are as the papers of this family count them.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import ClassLabel, DatasetDict

from cca_hf.data.benchmarks.annotations import to_dataset
from cca_hf.data.benchmarks.asen import EVALUATION_SPLITS, AsenSplits
from cca_hf.data.benchmarks.deepfashion import load_deepfashion
from cca_hf.data.benchmarks.fashionai import load_fashionai
from cca_hf.data.schema import AttributeDataset
from cca_hf.evaluation import EvaluationResult, RetrievalEvaluator
from cca_hf.models.configuration_cca import CCAConfig

# query-weighted mean over all attributes, and where it is published, each attribute in the order of meta.json; percent
RANDOM = {
    ("FashionAI", "test"): (15.79, [17.20, 12.50, 13.35, 17.45, 22.36, 21.62, 11.09, 21.20]),
    ("FashionAI", "validation"): (16.04, None),
    ("DARN", "test"): (31.26, None),
    ("DARN", "validation"): (31.21, None),
    ("DeepFashion", "test"): (3.38, [6.69, 2.69, 3.23, 2.55, 1.97]),
    ("DeepFashion", "validation"): (3.27, None),
}


PARTS = {"validation": "valid", "test": "test"}  # our name of a split -> ASEN's


class ConstantModel:
    """The same embedding for every picture, which it does not look at."""

    device = torch.device("cpu")

    def __init__(self, attributes: dict[str, list[str]]) -> None:
        self.config = CCAConfig(attributes=list(attributes))

    def encode(self, images, attributes, *, batch_size, show_progress, num_workers):
        return np.full((len(images), len(attributes), 2), 0.6, dtype=np.float32)


def evaluate(splits: DatasetDict, attributes: dict[str, list[str]], split: str) -> EvaluationResult:
    data = AttributeDataset(splits, attributes)
    return RetrievalEvaluator(data, split)(ConstantModel(attributes))


def attributes_of(splits: DatasetDict) -> dict[str, list[str]]:
    features = splits["test_query"].features
    return {name: feature.names for name, feature in features.items() if isinstance(feature, ClassLabel)}


@pytest.fixture(scope="module")
def constant(shared_data: Path) -> Callable[[str, str], EvaluationResult]:
    """The result of the constant model on a benchmark's split, by the files of ASEN alone."""
    results: dict[tuple[str, str], EvaluationResult] = {}

    def result_of(name: str, split: str) -> EvaluationResult:
        if (name, split) not in results:
            asen = AsenSplits(shared_data / "asen_splits", name)
            attributes = {each: [str(value) for value in range(count)] for each, count in asen.num_values.items()}
            splits = {
                part: to_dataset(asen.evaluation(part), attributes, shared_data)
                for part in EVALUATION_SPLITS
                if part.startswith(split)
            }
            results[name, split] = evaluate(DatasetDict(splits), attributes, split)
        return results[name, split]

    return result_of


@pytest.mark.parametrize(("name", "split"), RANDOM)
def test_random_ranking_and_constant_embedding(constant, name, split):
    weighted, per_attribute = RANDOM[name, split]
    result = constant(name, split)
    for figures in (result.overall, result.chance_overall):
        assert round(100 * figures["map_weighted"], 2) == weighted
    if per_attribute is not None:
        for figures in ([each.scores for each in result.attributes], [each.chance for each in result.attributes]):
            assert [round(100 * each["map"], 2) for each in figures] == per_attribute
    for each in result.attributes:
        assert each.scores == pytest.approx(each.chance, abs=1e-12)
    assert result.overall["map"] == pytest.approx(np.mean([each.scores["map"] for each in result.attributes]))


@pytest.mark.parametrize(
    ("name", "sizes"), {"FashionAI": (3600, 14400), "DARN": (4293, 17168), "DeepFashion": (5525, 22100)}.items()
)
def test_every_query_meets_the_candidates_of_its_attribute(constant, name, sizes):
    result = constant(name, "test")
    assert result.queries == sizes[0]
    assert sum(each.candidates for each in result.attributes) == sizes[1]  # an image is labelled with one attribute


def expected_precision(candidates: int, relevant: int) -> float:
    """E[AP] of a random order, position by position: relevant there, and how many relevant ones before it."""
    if not relevant:
        return 0.0
    places = np.arange(1, candidates + 1)
    others = (relevant - 1) / max(candidates - 1, 1)
    return float(((1 + (places - 1) * others) / places).mean())


@pytest.fixture(scope="module")
def fashionai(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> DatasetDict:
    """As the loader reads it; of the download, the rows of validation and test are here."""
    folder = tmp_path_factory.mktemp("fashionai")
    for part in ("valid", "test"):
        (folder / part).mkdir()
        (folder / part / "label.csv").symlink_to(shared_data / "fashionai_labels" / f"label_{part}.csv")
    return load_fashionai(folder, shared_data / "asen_splits").splits


@pytest.mark.parametrize("split", PARTS)
def test_maybe_is_neither_relevant_nor_wrong(fashionai, shared_data, split):
    """FashionAI: the letters of the official rows against what comes out of loader and evaluation."""
    attributes = attributes_of(fashionai)
    result = evaluate(fashionai, attributes, split)

    labels, asen, part = shared_data / "fashionai_labels", shared_data / "asen_splits", PARTS[split]
    letters = {}
    for line in (labels / f"label_{part}.csv").read_text().split():
        path, attribute, row = line.split(",")
        letters[Path(path).stem, attribute.removesuffix("_labels")] = row
    names = (asen / "FashionAI" / f"filenames_{part}.txt").read_text().split()
    rows = {kind: np.loadtxt(asen / "FashionAI" / f"{kind}_{part}.txt", dtype=int) for kind in ("query", "candidate")}
    expected, taken_out = {}, 0
    for number, attribute in enumerate(attributes):
        gallery = [
            letters[Path(names[fid]).stem, attribute] for fid, its, _ in rows["candidate"].tolist() if its == number
        ]
        at_value = {value: [row[value] for row in gallery] for value in range(len(attributes[attribute]))}
        expected[attribute] = np.mean(
            [
                expected_precision(len(gallery) - at_value[value].count("m"), at_value[value].count("y"))
                for _, its, value in rows["query"].tolist()
                if its == number
            ]
        )
        taken_out += sum(own.count("m") for own in at_value.values())
    assert taken_out > 900
    for attribute, figure in expected.items():
        assert result[attribute].chance["map_ignore_maybe"] == pytest.approx(figure, abs=1e-12)
        assert result[attribute].scores["map_ignore_maybe"] == pytest.approx(figure, abs=1e-12)
    assert round(100 * result.overall["map_weighted"], 2) == RANDOM["FashionAI", split][0]  # beside it, untouched
    assert round(100 * result.overall["map_ignore_maybe_weighted"], 2) == {"test": 15.91, "validation": 16.18}[split]


@pytest.fixture(scope="module")
def values_shown(shared_data: Path) -> tuple[dict[str, dict[int, set[int]]], dict[int, int]]:
    """From DeepFashion's label_*.txt: split -> fid -> all values of the image, and the types of the values."""
    shown: dict[str, dict[int, set[int]]] = {split: {} for split in PARTS}
    type_of: dict[int, int] = {}
    for split, part in PARTS.items():
        for line in (shared_data / "asen_splits" / "DeepFashion" / f"label_{part}.txt").read_text().splitlines():
            fid, *numbers = map(int, line.split())
            shown[split][fid] = set(numbers[1::2])
            type_of.update(zip(numbers[1::2], numbers[::2], strict=True))
    return shown, type_of


@pytest.fixture(scope="module")
def deepfashion(shared_data: Path, values_shown, tmp_path_factory: pytest.TempPathFactory) -> DatasetDict:
    """As the loader reads it; the download's list of values is not here, but follows from label_*.txt."""
    _, type_of = values_shown
    assert sorted(type_of) == list(range(1000))
    values = "".join(f"value {number}  {type_of[number]}\n" for number in range(1000))
    folder = tmp_path_factory.mktemp("deepfashion")
    (folder / "list_attr_cloth.txt").write_text(f"1000\nattribute_name  attribute_type\n{values}")
    return load_deepfashion(folder, shared_data / "asen_splits").splits


@pytest.mark.parametrize("split", PARTS)
def test_several_values_of_a_picture(deepfashion, values_shown, shared_data, split):
    """DeepFashion: the sets of label_*.txt against what comes out of loader and evaluation."""
    attributes = attributes_of(deepfashion)
    result = evaluate(deepfashion, attributes, split)

    asen, part = shared_data / "asen_splits", PARTS[split]
    shown, type_of = values_shown[0][split], values_shown[1]
    rows = {
        kind: np.loadtxt(asen / "DeepFashion" / f"{kind}_{part}.txt", dtype=int) for kind in ("query", "candidate")
    }
    several = 0
    for number, attribute in enumerate(attributes):
        fids = {kind: [fid for fid, its, _ in own.tolist() if its == number] for kind, own in rows.items()}
        own = {fid: {value for value in values if type_of[value] == number + 1} for fid, values in shown.items()}
        gallery = fids["candidate"]
        values = set().union(*(own[fid] for fid in gallery))
        showing = {value: np.array([value in own[fid] for fid in gallery]) for value in values}
        relevant = [np.any([showing[value] for value in own[fid] & values], axis=0).sum() for fid in fids["query"]]
        figure = np.mean([expected_precision(len(gallery), count) for count in relevant])
        assert result[attribute].chance["map_multi_label"] == pytest.approx(figure, abs=1e-12)
        assert result[attribute].scores["map_multi_label"] == pytest.approx(figure, abs=1e-12)
        several += sum(len(own[fid]) > 1 for fid in gallery)
    assert several / len(rows["candidate"]) == pytest.approx(0.465, abs=0.005)
    assert round(100 * result.overall["map_weighted"], 2) == RANDOM["DeepFashion", split][0]  # beside it, untouched
    assert round(100 * result.overall["map_multi_label_weighted"], 2) == {"test": 9.32, "validation": 9.46}[split]
