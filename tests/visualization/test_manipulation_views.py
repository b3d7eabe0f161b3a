"""Changed queries as they are shown: which are chosen, and the section of the report."""

import numpy as np
import pytest

from cca_hf.data.value_changes import Changes, enumerate_changes
from cca_hf.evaluation.manipulation import ManipulationEvaluator
from cca_hf.evaluation.retrieval.evaluator import RetrievalEvaluator
from cca_hf.visualization import write_report
from cca_hf.visualization.manipulation import choose_changes, view_changes


@pytest.fixture(scope="module")
def evaluator(dataset) -> ManipulationEvaluator:
    return ManipulationEvaluator(dataset, "test", num_changes=(1, 2))


def test_the_attributes_take_turns_and_the_last_change_is_of_several():
    labels = np.random.default_rng(0).integers(2, size=(40, 3))
    changes = Changes.concatenate([enumerate_changes(labels, num_changes=number) for number in (1, 2)])
    chosen = changes.select(choose_changes(changes, 7))
    assert chosen.changed[:6].argmax(axis=1).tolist() == [0, 1, 2, 0, 1, 2]
    assert chosen.num_changes.tolist() == [1] * 6 + [2] and len(set(chosen.reference.tolist())) == 7
    assert choose_changes(enumerate_changes(labels, max_queries=2), 7) == choose_changes(
        enumerate_changes(labels, max_queries=2), 2
    )


def test_views_and_the_section_of_the_report(evaluator, model, dataset, tmp_path):
    inputs = evaluator.encode(model)
    result = evaluator.score(inputs)
    views = view_changes(evaluator, inputs, 3)
    assert len(views) == 3 and all(len(view.found) == 10 for view in views)
    labels, values = dataset.labels("test"), dataset.attributes
    for view in views:
        for name, old, new in view.changes:
            place = list(values).index(name)
            assert values[name][labels[view.index, place]] == old != new
        wanted = dict(view.kept) | {name: new for name, _, new in view.changes}
        for found in view.found:
            assert found.exact == all(each.value == wanted[each.attribute] for each in found.values)
    retrieval = RetrievalEvaluator(dataset, "test")(model)
    settings = {"queries": 1, "neighbours": 2, "manipulation": result, "change_views": views}
    page = write_report(model, dataset, "test", retrieval, tmp_path, **settings).read_text()
    assert "<h2>Changed attributes</h2>" in page and "What else changed" in page
    assert page.count('alt="changed query') == 3 and page.count("after the change:") == 30
    assert "<b>blue</b>" not in page  # the names of values are escaped
    for name, part in result.by_attribute.items():
        assert f"<th>{name}</th><td>{part.queries:,}</td>" in page


def test_queries_and_a_gallery(model, dataset):
    evaluator = ManipulationEvaluator(dataset, "benchmark")
    result = evaluator(model)
    assert (evaluator.query_split, evaluator.gallery_split, result.images) == (
        "benchmark_query",
        "benchmark_gallery",
        25,
    )
    assert result.values_from == "centroids of the gallery" and set(result.by_changes) <= {1, 2}


def test_the_prototypes_of_the_model_come_first(evaluator, model, dataset):
    prototypes = np.random.default_rng(0).normal(size=(2, 3, model.get_embedding_dimension()))
    known = np.array([[True, True, False], [True, True, False]])
    try:
        model.set_prototypes(prototypes, known)
        inputs = evaluator.encode(model)
        learned = model.value_prototypes("colour")
    finally:
        model.set_prototypes(None)
    assert (
        inputs.values.source
        == "prototypes of the model, and centroids of the gallery for 1 values without a prototype"
    )
    np.testing.assert_allclose(inputs.values.vectors[0, 0], learned["red"], atol=1e-6)
    assert inputs.values.known.tolist() == [[True, True, True], [True, True, False]]


def test_a_split_without_queries(dataset):
    with pytest.raises(ValueError, match=r"num_changes must be numbers from 1 to 2, the attributes; got \[3\]"):
        ManipulationEvaluator(dataset, "test", num_changes=[3])
    alone = dataset.splits["test"].select([0])
    few = type(dataset)(type(dataset.splits)({"test": alone}), dataset.attributes)
    with pytest.raises(
        ValueError, match=r"there is no query in the split 'test': .* are labelled with all of colour, shape"
    ):
        ManipulationEvaluator(few, "test")
