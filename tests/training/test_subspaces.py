"""Fitting of subspaces: what is kept, what falls away, and the end of a training that does it."""

import json

import numpy as np
import pytest
import torch

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
    config.attributes, config.embedding_dim, config.attribute_map = ["first", "second"], 12, "project"
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
    config.attributes, config.embedding_dim, config.attribute_map = ["first", "second"], 6, "project"
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
        ModelArguments(backbone_config=vit, attribute_subspaces=True),
        data_args,
        make_args(attribute_map=None, num_train_epochs=1),
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
        trainer = CCATrainer(make_model(attribute_subspaces=True), make_args(attribute_map=None), shapes)
        if before:
            trainer.fit_subspaces()
        trainer.train()
        trained.append({name: weight.clone() for name, weight in trainer.model.state_dict().items()})
        ranks = [int(torch.linalg.matrix_rank(each, tol=1e-4)) for each in trainer.model.subspaces.projections]
        assert ranks == [len(values) - 1 for values in shapes.attributes.values()]
    for name, weight in trained[0].items():
        assert weight.equal(trained[1][name]), name


def test_fitting_again_starts_over(make_model, make_args, shapes, tmp_path):
    trainer = CCATrainer(make_model(attribute_subspaces=True), make_args(attribute_map=None), shapes)
    trainer.fit_subspaces()
    first = trainer.model.subspaces.projections.clone()
    trainer.model.save_pretrained(tmp_path / "cca")  # loaded weights are marked as such, and guarded
    trainer = CCATrainer(CCAModel.from_pretrained(tmp_path / "cca"), make_args(attribute_map=None), shapes)
    trainer.fit_subspaces()
    assert trainer.model.subspaces.projections == pytest.approx(first, abs=1e-5)


def test_a_training_without_a_map_says_so(make_model, make_args, shapes):
    with pytest.raises(ValueError, match="this training fits no attribute map: set attribute_map"):
        CCATrainer(make_model(), make_args(attribute_map="none"), shapes).fit_subspaces()


def test_the_map_that_a_training_fits(make_model, make_args, shapes):
    """By default `values`; a model keeps its kind; one space for all attributes has none."""
    kinds = {
        "values": CCATrainer(make_model(), make_args(attribute_map=None), shapes),
        "retrieval": CCATrainer(make_model(), make_args(attribute_map="retrieval"), shapes),
        "project": CCATrainer(make_model(attribute_subspaces=True), make_args(attribute_map=None), shapes),
        "none": CCATrainer(make_model(condition_embedding="none"), make_args(attribute_map=None), shapes),
    }
    assert {kind: trainer.map_kind for kind, trainer in kinds.items()} == {kind: kind for kind in kinds}
    with pytest.raises(
        ValueError, match=r"the 7 values of 'colour'; this model's have 8\. Set a larger embedding_dim"
    ):
        CCATrainer(make_model(embedding_dim=8), make_args(attribute_map=None), shapes)


def test_a_training_ends_with_the_probabilities_of_the_values(make_model, make_args, shapes, tmp_path):
    trainer = CCATrainer(make_model(), make_args(attribute_map="retrieval", num_train_epochs=2), shapes)
    trainer.train()
    trainer.save_model()
    model = CCAModel.from_pretrained(tmp_path / "out")
    assert model.config.attribute_map == "retrieval" and model.subspaces.is_fitted.all()
    folder = tmp_path / "out" / f"checkpoint-{trainer.state.best_global_step}"
    proxies = torch.load(folder / "value_proxies.pt")["vectors"]
    for place, values in enumerate(shapes.attributes.values()):
        weights = model.subspaces.value_weights[place, : len(values)]
        lengths = weights.norm(dim=1)  # 1 / temperature
        assert lengths == pytest.approx(lengths.mean().item(), rel=1e-5)
        assert 0.02 <= round(1 / lengths[0].item(), 6) <= 0.6  # in float32, 0.6 may have become 0.60000004
        directions = torch.nn.functional.normalize(proxies[place, : len(values)], dim=1)
        assert (weights / lengths[:, None]).numpy() == pytest.approx(directions.numpy(), abs=1e-5)
        counts = np.bincount(shapes.labels("train")[:, place])
        biases = model.subspaces.value_biases[place, : len(values)].numpy()
        assert biases == pytest.approx(-0.5 * np.log(counts / counts.sum()), abs=1e-5)
    embeddings = model.encode(shapes["test"]["image"])
    assert np.linalg.norm(embeddings, axis=-1) == pytest.approx(1, abs=1e-6)
    assert not np.allclose(model.set_attribute_map("none").encode(shapes["test"]["image"]), embeddings, atol=0.1)


def test_probabilities_of_planted_values_are_calibrated_on_the_held_out_images(make_model):
    """Values at right angles, noise that the training images do not have: the temperature comes from the others."""
    random = np.random.default_rng(0)
    config = make_model().config
    known = {"first": ["a", "b", "c"]}
    config.attributes, config.embedding_dim, config.attribute_map, config.known_values = ["first"], 12, "values", known
    labels = random.integers(0, 3, (900, 1))
    vectors = np.eye(12)[labels] + 0.4 * random.standard_normal((900, 1, 12))
    vectors = (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)
    clean = np.eye(12, dtype=np.float32)[labels[:300]]
    subspaces = AttributeSubspaces(config)
    fit_subspaces(subspaces, clean, labels[:300], held_out=(vectors[300:600], labels[300:600]))
    ids = torch.zeros(300, 1, dtype=torch.long)
    embedded = torch.nn.functional.normalize(subspaces(torch.from_numpy(vectors[600:]), ids), dim=-1)[:, 0]
    probabilities = embedded[:, :3] / embedded[:, :3].sum(1, keepdim=True)
    right = probabilities[torch.arange(300), torch.from_numpy(labels[600:, 0])]
    confident = probabilities.max(1).values
    accuracy = (probabilities.argmax(1).numpy() == labels[600:, 0]).mean()
    assert confident.mean().item() == pytest.approx(accuracy, abs=0.05)
    assert -right.log().mean() < 0.5


def test_it_ranks_by_the_probability_of_the_same_value(make_model):
    """Cosines of mapped embeddings are the inner products of the probabilities, except for the signatures."""
    random = np.random.default_rng(0)
    config = make_model().config
    config.attributes, config.embedding_dim, config.attribute_map = ["first"], 512, "values"
    config.known_values = {"first": list("abcd")}
    centres = random.standard_normal((4, 512))
    labels = random.integers(0, 4, (400, 1))
    vectors = centres[labels] + 2 * random.standard_normal((400, 1, 512))
    vectors = (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)
    subspaces = AttributeSubspaces(config)
    fit_subspaces(subspaces, vectors, labels, temperature=0.2)
    with torch.no_grad():
        mapped = subspaces(torch.from_numpy(vectors), torch.zeros(400, 1, dtype=torch.long))[:, 0].numpy()
    mapped /= mapped[:, :4].sum(1, keepdims=True)  # without the normalisation
    values, signatures = mapped[:, :4], mapped[:, 4:]
    between = signatures @ signatures.T
    lengths = 0.16 * (1.1 - (values**2).sum(1))
    assert np.diag(between) == pytest.approx(lengths, abs=1e-5)
    others = between[labels != labels.T]  # images of one value may be close to each other
    assert abs(others).mean() < 0.1 * lengths.mean()
    copies = subspaces(torch.from_numpy(vectors + 1e-4), torch.zeros(400, 1, dtype=torch.long))[:, 0].numpy()
    copies /= copies[:, :4].sum(1, keepdims=True)
    assert (copies[:, 4:] * signatures).sum(1) == pytest.approx(lengths, rel=0.05)


def test_an_image_that_resembles_no_value_stays_nearly_as_it_was(make_model):
    random = np.random.default_rng(0)
    config = make_model().config
    config.attributes, config.embedding_dim, config.attribute_map = ["first"], 64, "retrieval"
    config.known_values = {"first": list("abcd")}
    directions = np.linalg.qr(random.standard_normal((64, 64)))[0]
    labels = random.integers(0, 4, (800, 1))
    noise = 0.05 * random.standard_normal((800, 1, 64))
    known, new = directions[labels] + noise, directions[labels + 10] + noise  # at right angles to all values
    known, new = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (known, new))
    subspaces = AttributeSubspaces(config)
    fit_subspaces(subspaces, known[:400], labels[:400], held_out=(known[400:], labels[400:]))
    ids = torch.zeros(800, 1, dtype=torch.long)
    with torch.no_grad():
        mapped = [
            torch.nn.functional.normalize(subspaces(torch.from_numpy(x).float(), ids), dim=-1) for x in (known, new)
        ]
    shares = [(x * torch.from_numpy(y)).sum(-1)[:, 0] for x, y in zip(mapped, (known, new), strict=True)]
    assert shares[1].min() > 0.5 and abs(shares[0]).median() < 0.3
    order = evaluate_embeddings(mapped[1].numpy(), labels, {"first": list("abcd")}).metrics()["map"]
    assert order > 0.95  # probabilities alone would be at chance


def test_each_attribute_has_its_temperature(make_model):
    """Without a held-out image of a known value it is the given one, not that of the attribute before."""
    random = np.random.default_rng(0)
    config = make_model().config
    config.attributes, config.embedding_dim, config.attribute_map = ["first", "second"], 12, "retrieval"
    config.known_values = {"first": ["a", "b"], "second": ["a", "b"]}
    vectors, labels = random.standard_normal((60, 2, 12)), random.integers(0, 2, (60, 2))
    held_out = labels.copy()
    held_out[:, 1] = -1
    subspaces = AttributeSubspaces(config)
    fit_subspaces(subspaces, vectors, labels, held_out=(vectors, held_out), temperature=0.123)
    lengths = subspaces.value_weights.norm(dim=-1)
    assert lengths[1].numpy() == pytest.approx(1 / 0.123, rel=1e-5)
    assert lengths[0, 0].item() != pytest.approx(1 / 0.123, rel=1e-2)
