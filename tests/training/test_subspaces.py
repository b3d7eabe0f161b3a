"""Fitting of subspaces: what is kept, what falls away, and the end of a training that does it."""

import json

import numpy as np
import pytest
import torch
from transformers import ViTConfig

from cca_hf import evaluate_embeddings
from cca_hf.evaluation.entanglement.evaluator import entanglement
from cca_hf.models.modeling_cca import CCAModel
from cca_hf.models.modeling_conditional import AttributeSubspaces
from cca_hf.recipes.attribute_retrieval import DataArguments, ModelArguments, run_training
from cca_hf.recipes.attribute_trainer import CCATrainer
from cca_hf.training.subspaces import discriminant_projection, fit_subspaces

from .conftest import TINY_VIT


@pytest.fixture
def entangled():
    """Own values far apart, the other attribute's beside them: (800, 2, 12) unit vectors, and their labels."""
    random = np.random.default_rng(0)
    labels = random.integers(0, 3, (800, 2))
    own, other = random.standard_normal((2, 3, 12)), random.standard_normal((2, 3, 12))
    vectors = np.stack([own[a][labels[:, a]] + 0.4 * other[a][labels[:, 1 - a]] for a in range(2)], axis=1)
    vectors += 0.05 * random.standard_normal(vectors.shape)
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32), labels


def test_it_is_a_projection_that_keeps_the_means_apart(entangled):
    vectors, labels = entangled[0][:, 0], entangled[1][:, 0]
    projection, offset = discriminant_projection(vectors, labels)
    assert np.linalg.matrix_rank(projection, tol=1e-6) == 2
    assert projection @ projection == pytest.approx(projection, abs=1e-6)
    means = np.stack([vectors[labels == value].mean(axis=0) for value in range(3)])
    centre = means.mean(axis=0)
    assert (means - centre) @ projection.T == pytest.approx(means - centre, abs=1e-5)
    aside = projection @ centre + offset  # where the centre comes to lie
    assert (means - centre) @ aside == pytest.approx(0, abs=1e-6)
    length = np.sqrt((((vectors - centre) @ projection.T) ** 2).sum(axis=1).mean())
    assert np.linalg.norm(aside) == pytest.approx(0.1 * length, rel=1e-3)


def test_two_values_keep_an_order():
    """How clearly a picture shows its value stays in its embedding, though one direction is all that is kept."""
    random = np.random.default_rng(0)
    labels = np.repeat([0, 1], 200)
    clear = random.uniform(-0.3, 1, 400)  # below 0: on the wrong side
    vectors = np.stack([np.where(labels, clear, -clear), *random.standard_normal((5, 400))], axis=1).astype(np.float32)
    projection, offset = discriminant_projection(vectors, labels)
    kept = vectors @ projection.T + offset
    kept /= np.linalg.norm(kept, axis=1, keepdims=True)
    result = evaluate_embeddings(kept[:, None], labels[:, None], {"side": ["left", "right"]})
    without = np.sign(kept @ (projection @ (vectors[labels == 1].mean(0) - vectors[labels == 0].mean(0))))
    coarse = evaluate_embeddings(without[:, None, None], labels[:, None], {"side": ["left", "right"]})
    assert result.metrics()["map"] > coarse.metrics()["map"] + 0.02


def test_values_scatter_less_than_under_an_orthogonal_projection(entangled):
    """The metric is what takes the other attribute out: plain geometry would keep its part along the means."""
    vectors, labels = entangled[0][:, 0].astype(float), entangled[1][:, 0]
    projection, _ = discriminant_projection(vectors, labels)
    means = np.stack([vectors[labels == value].mean(axis=0) for value in range(3)])
    centre = means.mean(axis=0)
    basis = np.linalg.svd((means - centre).T, full_matrices=False)[0][:, :2]
    around = vectors - means[labels]
    assert (around @ projection.T).var() < 0.5 * (around @ basis @ basis.T).var()


def test_it_takes_the_other_attribute_out(entangled, make_model):
    vectors, labels = entangled
    config = make_model().config
    config.attributes, config.embedding_dim = ["first", "second"], 12
    subspaces = AttributeSubspaces(config)
    fit_subspaces(subspaces, vectors[:500], labels[:500])
    ids = torch.tensor([[0, 1]]).expand(300, -1)
    kept = torch.nn.functional.normalize(subspaces(torch.from_numpy(vectors[500:]), ids), dim=-1)
    features = np.eye(3)[labels[500:]].reshape(300, -1)
    before = entanglement(vectors[500:], labels[500:], ["first", "second"], features)
    after = entanglement(kept, labels[500:], ["first", "second"], features)
    assert before.score > 0.9
    assert after.score < 0.5  # not 0: on a sphere the other attribute shifts each value in another direction
    assert after.informativeness > 0.97


def test_unlabelled_pictures_and_lone_values(make_model, caplog):
    random = np.random.default_rng(0)
    config = make_model().config
    config.attributes, config.embedding_dim = ["first", "second"], 6
    vectors, labels = random.standard_normal((60, 2, 6)), random.integers(0, 3, (60, 2))
    labels[:20, 0], labels[:, 1] = -1, 2
    subspaces = AttributeSubspaces(config)
    fit_subspaces(subspaces, vectors, labels)
    projection, offset = discriminant_projection(vectors[20:, 0], labels[20:, 0])
    assert subspaces.projections[0].numpy() == pytest.approx(projection, abs=1e-6)
    assert subspaces.offsets[0].numpy() == pytest.approx(offset, abs=1e-6)
    assert subspaces.projections[1].equal(torch.eye(6)) and not subspaces.offsets[1].any()
    assert "Attribute 1 has fewer than two values" in caplog.text


def test_the_recipe_fits_and_saves_them(make_args, shapes_folder, tmp_path):
    vit = json.dumps({"model_type": "vit", **TINY_VIT})
    data_args = DataArguments(str(shapes_folder), ["shape", "colour"])
    run = run_training(
        ModelArguments(backbone_config=vit, attribute_subspaces=True), data_args, make_args(num_train_epochs=1)
    )
    saved = CCAModel.from_pretrained(tmp_path / "out")
    ranks = [int(np.linalg.matrix_rank(each.numpy(), tol=1e-4)) for each in saved.subspaces.projections]
    assert ranks == [5, 6]  # of 6 shapes and 7 colours
    embeddings = saved.encode(run.data["test"]["image"])
    assert np.linalg.matrix_rank(embeddings[:, 0] @ saved.subspaces.projections[0].numpy().T, tol=1e-4) <= 5
    assert run.metrics["test_map"] == run.result.metrics()["map"]


def test_training_alone_fits_them(make_model, make_args, shapes):
    """Also if they were fitted before: their maps belong to the earlier weights, and the training ignores them."""
    trained = []
    for before in (False, True):
        trainer = CCATrainer(make_model(attribute_subspaces=True), make_args(), shapes)
        if before:
            trainer.fit_subspaces()
        trainer.train()
        trained.append({name: weight.clone() for name, weight in trainer.model.state_dict().items()})
        ranks = [int(torch.linalg.matrix_rank(each, tol=1e-4)) for each in trainer.model.subspaces.projections]
        assert ranks == [len(values) - 1 for values in shapes.attributes.values()]
    for name, weight in trained[0].items():
        assert weight.equal(trained[1][name]), name


def test_fitting_again_starts_over(make_model, make_args, shapes, tmp_path):
    trainer = CCATrainer(make_model(attribute_subspaces=True), make_args(), shapes)
    trainer.fit_subspaces()
    first = trainer.model.subspaces.projections.clone()
    trainer.model.save_pretrained(tmp_path / "cca")  # loaded weights are marked as such, and guarded
    trainer = CCATrainer(CCAModel.from_pretrained(tmp_path / "cca"), make_args(), shapes)
    trainer.fit_subspaces()
    assert trainer.model.subspaces.projections == pytest.approx(first, abs=1e-5)


def test_a_model_without_them_says_so(make_args, shapes):
    model = CCAModel.from_backbone(ViTConfig(**TINY_VIT), shapes.attributes)
    with pytest.raises(ValueError, match="attribute_subspaces=True"):
        CCATrainer(model, make_args(), shapes).fit_subspaces()
