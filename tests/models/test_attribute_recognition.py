"""Recognition of attributes: labels, the loss and predictions by plain loops, and the head on CCA's embeddings."""

import math

import numpy as np
import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoModelForImageClassification, ViTConfig

from cca_hf.hub.model_card import write_model_card
from cca_hf.models.attribute_recognition import (
    Prediction,
    encode_labels,
    positive_shares,
    predictions_of,
    recognition_loss,
    value_probabilities,
)
from cca_hf.models.configuration_images import RecognitionConfig
from cca_hf.models.loading import load_model, load_recogniser
from cca_hf.models.modeling_cca import CCAModel
from cca_hf.models.modeling_cca_recognition import CCAForAttributeRecognition

from .conftest import ATTRIBUTES, TINY

VALUES = {"hair": ["short", "long", "none"], "backpack": ["no", "yes"], "worn": ["hat", "bag", "scarf"]}
KINDS = {"backpack": "binary", "worn": "multiple"}


def make_config(**fields) -> RecognitionConfig:
    return RecognitionConfig(attributes=list(VALUES), attribute_values=VALUES, attribute_kinds=KINDS, **fields)


@pytest.fixture(scope="module")
def config() -> RecognitionConfig:
    shares = {"backpack": [0.25], "worn": [0.5, 0.1, 0.9]}
    return make_config(positive_shares=shares, temperatures={"hair": 2, "worn": 0.5})


# ---- Labels ----


def test_places_of_the_logits(config):
    assert config.logit_slices == {"hair": slice(0, 3), "backpack": slice(3, 4), "worn": slice(4, 7)}
    assert config.num_logits == 7 and config.logit_names("backpack") == ["yes"]
    assert config.restricted_to(["worn", "hair"]).logit_slices == {"worn": slice(0, 3), "hair": slice(3, 6)}
    assert config.restricted_to(["worn"]).positive_shares == {"worn": [0.5, 0.1, 0.9]}


def test_labels_by_id_and_by_name(config):
    names = {
        "hair": ["long", None, "short", "none"],
        "backpack": ["no", "yes", None, "yes"],
        "worn": [["bag", "hat"], [], None, "scarf"],
    }
    ids = {"hair": np.array([1, -1, 0, 2]), "backpack": [False, True, -1, 1], "worn": [[1, 0], (), -1, 2]}
    expected = [
        [0, 1, 0, 0, 1, 1, 0],
        [-1, -1, -1, 1, 0, 0, 0],
        [1, 0, 0, -1, -1, -1, -1],
        [0, 0, 1, 1, 0, 0, 1],
    ]
    for labels in (names, ids):
        targets = encode_labels(config, labels)
        assert targets.dtype == torch.float32 and targets.tolist() == expected
    only_hair = encode_labels(config, {"hair": torch.tensor([1, -1])})
    assert only_hair.tolist() == [[0, 1, 0, -1, -1, -1, -1], [-1] * 7]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({"hare": ["long"]}, "unknown attribute 'hare'. Did you mean 'hair'?"),
        ({"hair": ["long", "shrt"]}, "unknown value 'shrt' of 'hair' in row 1. Did you mean 'short'?"),
        ({"worn": [["hat"], ["hat", "beg"]]}, "unknown value 'beg' of 'worn' in row 1. Did you mean 'bag'?"),
        ({"hair": [0, 3]}, "the ids of 'hair' lie in 0..2, or are -1; row 1 has 3"),
        ({"hair": [["long", "short"]]}, "'hair' has one value for an image; row 0 has ['long', 'short']"),
        ({"hair": [0], "backpack": [0, 1]}, "their numbers are {'hair': 1, 'backpack': 2}"),
    ],
)
def test_wrong_labels(config, labels, message):
    with pytest.raises(ValueError) as raised:
        encode_labels(config, labels)
    assert message in str(raised.value)


def test_shares_of_the_labelled_images(config):
    labels = {"backpack": [1, 0, 0, None, 1], "worn": [["hat"], ["hat", "bag"], None, [], []]}
    shares = positive_shares(config, encode_labels(config, labels))
    assert shares == {"backpack": [0.5], "worn": [0.5, 0.25, 0.0]}
    assert positive_shares(config, torch.full((2, 7), -1.0)) == {"backpack": [0.5], "worn": [0.5, 0.5, 0.5]}


# ---- The loss ----


def plain_loss(config: RecognitionConfig, logits: list[list[float]], labels: list[list[float]]) -> float:
    """The loss as in the docstring, one image and one logit after the other."""
    total = 0.0
    for name, part in config.logit_slices.items():
        if config.kind_of(name) == "exclusive":
            found = []
            for scores, wanted in zip(logits, labels, strict=True):
                scores, wanted = scores[part], wanted[part]
                if wanted[0] >= 0:
                    found.append(math.log(sum(map(math.exp, scores))) - scores[wanted.index(1)])
            total += sum(found) / len(found) if found else 0
            continue
        for place, column in enumerate(range(part.start, part.stop)):
            found = []
            for scores, wanted in zip(logits, labels, strict=True):
                probability, y = 1 / (1 + math.exp(-scores[column])), wanted[column]
                if y >= 0:
                    p = config.positive_shares[name][place] if config.positive_shares else None
                    weight = 1 if p is None else math.exp(y * (1 - p) + (1 - y) * p)
                    found.append(-weight * (math.log(probability) if y else math.log(1 - probability)))
            total += sum(found) / len(found) if found else 0
    return total / len(config.attributes)


def random_labels(config: RecognitionConfig, images: int) -> torch.Tensor:
    generator = np.random.default_rng(0)
    hair, backpack = generator.integers(-1, 3, images), generator.integers(-1, 2, images)
    worn = [None if row % 4 == 0 else list(np.flatnonzero(generator.random(3) < 0.5)) for row in range(images)]
    return encode_labels(config, {"hair": hair, "backpack": backpack, "worn": worn})


@pytest.mark.parametrize("weighted", [True, False])
def test_the_loss_equals_a_plain_loop(config, weighted):
    if not weighted:
        config = make_config()
    labels = random_labels(config, 20)
    logits = torch.randn(20, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 3
    found = recognition_loss(config, logits, labels).item()
    assert abs(found - plain_loss(config, logits.tolist(), labels.tolist())) < 1e-9 and found > 0.5
    half = recognition_loss(config, logits.half(), labels)
    assert half.dtype == torch.float32 and abs(half.item() - found) < 0.01


def test_images_without_a_label_get_no_gradient(config):
    labels = random_labels(config, 20)
    logits = torch.randn(20, 7, generator=torch.Generator().manual_seed(0)).requires_grad_()
    recognition_loss(config, logits, labels).backward()
    missing = labels == -1
    assert 0.2 < missing.float().mean() < 0.5
    assert not logits.grad[missing].any() and logits.grad[~missing].all()


def test_the_loss_of_an_attribute_without_labels_is_0(config):
    labels = random_labels(config, 20)
    logits = torch.randn(20, 7, dtype=torch.float64, requires_grad=True)
    total, without = recognition_loss(config, logits, labels).item(), 0.0
    for part in config.logit_slices.values():
        others = labels.clone()
        others[:, part] = -1
        without += total - recognition_loss(config, logits, others).item()
    assert without == pytest.approx(total, abs=1e-12)
    nothing = recognition_loss(config, logits, torch.full_like(labels, -1))
    nothing.backward()
    assert nothing.item() == 0 and not logits.grad.any()


def test_labels_of_another_shape(config):
    with pytest.raises(ValueError, match=r"shape \(batch, 7\).*got \(2, 7\) and \(2, 3\)"):
        recognition_loss(config, torch.zeros(2, 7), torch.zeros(2, 3))


# ---- Predictions ----


def test_probabilities_of_logits_that_minimise_the_loss_are_the_shares(config):
    """One logit for all images: its probability must be the share of positives, whatever the weights are."""
    labels = encode_labels(config, {"backpack": [1] * 3 + [0] * 17, "worn": [["hat"]] * 8 + [["scarf"]] * 12})
    logits = torch.zeros(7, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([logits], max_iter=200, line_search_fn="strong_wolfe", tolerance_change=1e-12)

    def closure() -> torch.Tensor:
        optimiser.zero_grad()
        loss = recognition_loss(config, logits.expand(20, -1), labels)
        loss.backward()
        return loss

    optimiser.step(closure)
    calibrated = make_config(positive_shares=config.positive_shares)
    found = value_probabilities(calibrated, logits[None].detach())[0]
    assert found[[3, 4, 6]].tolist() == pytest.approx([3 / 20, 8 / 20, 12 / 20], abs=1e-4)
    assert abs(logits[3].sigmoid().item() - 3 / 20) > 0.05  # without the correction


def test_probabilities_with_temperatures(config):
    logits = [1.0, -2.0, 0.5, 0.3, 2.0, -1.0, 0.0]
    found = value_probabilities(config, torch.tensor([logits]))[0].tolist()
    powers = [math.exp(score / 2) for score in logits[:3]]
    assert found[:3] == pytest.approx([power / sum(powers) for power in powers])
    shifted = [0.3 - 0.5, (2 - 0) / 0.5, (-1 - 0.8) / 0.5, (0 + 0.8) / 0.5]
    assert found[3:] == pytest.approx([1 / (1 + math.exp(-score)) for score in shifted], abs=1e-6)


def test_values_and_unknown_ones():
    config = make_config(thresholds={"hair": 0.6, "backpack": 0.8, "worn": 0.7})
    probabilities = torch.tensor(
        [
            [0.7, 0.2, 0.1, 0.1, 0.9, 0.75, 0.2],
            [0.5, 0.2, 0.3, 0.6, 0.6, 0.1, 0.2],
            [0.1, 0.2, 0.7, 0.9, 0.3, 0.1, 0.2],
        ],
        dtype=torch.float64,
    )
    first, second, third = predictions_of(config, probabilities)
    assert first["hair"] == Prediction("short", 0.7, {"short": 0.7, "long": 0.2, "none": 0.1})
    assert first["backpack"] == Prediction("no", 0.9, {"no": 0.9, "yes": 0.1})
    assert (first["worn"].value, first["worn"].probability) == (["hat", "bag"], 0.75)
    assert [second[name].value for name in VALUES] == [None, None, None]
    assert [second[name].probability for name in VALUES] == [0.5, 0.6, 0.6]
    assert third["worn"] == Prediction([], 0.3, {"hat": 0.3, "bag": 0.1, "scarf": 0.2})
    assert [third[name].value for name in ("hair", "backpack")] == ["none", "yes"]
    by_default = predictions_of(make_config(), probabilities, ["worn", "hair"])[1]
    assert list(by_default) == ["worn", "hair"]
    assert by_default["hair"].value == "short" and by_default["worn"].value == ["hat"]


# ---- Configurations ----


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"attribute_kinds": {"hair": "exclusiv"}},
            "unknown kind 'exclusiv' of 'hair' in attribute_kinds. Did you",
        ),
        ({"attribute_kinds": {"hair": "binary"}}, "a binary attribute has 2 values; 'hair' has ['short', 'long', 'n"),
        (
            {"attribute_kinds": {"hare": "binary"}},
            "attribute_kinds names ['hare'], which are not among the",
        ),
        ({"positive_shares": {"hair": [0.1, 0.2, 0.3]}}, "which is exclusive, must be 0 numbers from 0 to 1"),
        (
            {"attribute_kinds": KINDS, "positive_shares": {"worn": [0.1] * 3}},
            "positive_shares of 'backpack', which is",
        ),
        ({"temperatures": {"hair": 0}}, "the temperature of 'hair' must be a positive number; got 0"),
        ({"thresholds": {"hair": 1.5}}, "the threshold of 'hair' must be a number from 0 to 1; got 1.5"),
    ],
)
def test_fields_that_do_not_fit(fields, message):
    with pytest.raises(StrictDataclassError) as raised:
        RecognitionConfig(attributes=list(VALUES), attribute_values=VALUES, **fields)
    assert message in str(raised.value)


# ---- The head on CCA ----


@pytest.fixture(scope="module")
def cca() -> CCAModel:
    torch.manual_seed(0)
    return CCAModel.from_backbone(ViTConfig(**TINY), ATTRIBUTES, embedding_dim=12)


@pytest.fixture(scope="module")
def recogniser(cca) -> CCAForAttributeRecognition:
    torch.manual_seed(0)
    return CCAForAttributeRecognition.from_cca(cca, attribute_kinds={"colour": "binary", "shape": "multiple"})


@pytest.fixture(scope="module")
def checkpoint(recogniser, tmp_path_factory):
    folder = tmp_path_factory.mktemp("recogniser")
    recogniser.save_pretrained(folder)
    return folder


def test_the_logits_are_linear_in_the_embedding_of_their_attribute(recogniser, cca, pictures):
    embeddings = cca.encode(pictures)
    np.testing.assert_array_equal(recogniser.cca.encode(pictures), embeddings)
    pixels = recogniser.image_processor(pictures, return_tensors="pt")["pixel_values"]
    with torch.inference_mode():
        output = recogniser(pixels)
    embeddings = cca(pixels).embeddings.detach().numpy()
    weight, bias = (getattr(recogniser.classifiers, name).detach().numpy() for name in ("weight", "bias"))
    expected = [
        [
            12**0.5 * embeddings[image, attribute] @ weight[attribute, place] + bias[column]
            for column, (attribute, place) in enumerate([(0, 0), (1, 0), (1, 1), (1, 2), (2, 0), (2, 1)])
        ]
        for image in range(5)
    ]
    np.testing.assert_allclose(output.logits.numpy(), expected, atol=1e-5)
    assert output.loss is None and output.features.shape == (5, 3, 12)


def test_it_learns_from_the_labels_that_exist(recogniser, pictures):
    model = CCAForAttributeRecognition.from_cca(recogniser.cca, attribute_kinds=recogniser.config.attribute_kinds)
    labels = encode_labels(
        model.config, {"colour": ["red", "blue", None], "shape": [["long"], None, ["round", "long"]]}
    )
    pixels = model.image_processor(pictures[:3], return_tensors="pt")["pixel_values"]
    optimiser = torch.optim.Adam(model.classifiers.parameters(), lr=0.1)
    for _ in range(20):
        optimiser.zero_grad()
        loss = model(pixels, labels=labels).loss
        loss.backward()
        optimiser.step()
    assert loss.item() < 0.1
    predicted = model.predict(pictures[:3])
    assert [each["colour"].value for each in predicted[:2]] == ["red", "blue"]
    assert [predicted[row]["shape"].value for row in (0, 2)] == [["long"], ["round", "long"]]
    assert model.predict(pictures[0], "colour") == [{"colour": predicted[0]["colour"]}]


def test_a_checkpoint_retrieves_and_recognises(recogniser, cca, checkpoint, pictures, tmp_path):
    expected = recogniser.predict(pictures)
    for again in (load_recogniser(checkpoint), AutoModelForImageClassification.from_pretrained(checkpoint)):
        assert type(again) is CCAForAttributeRecognition and again.predict(pictures) == expected
    retriever = load_model(checkpoint)
    assert type(retriever) is CCAModel and retriever.fingerprint() == cca.fingerprint()
    np.testing.assert_array_equal(retriever.encode(pictures), cca.encode(pictures))
    head, report = CCAForAttributeRecognition.from_pretrained(checkpoint, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    card = write_model_card(checkpoint).read_text()
    assert "model.predict(" in card and "model.encode(" in card


def test_a_checkpoint_without_a_head(cca, tmp_path):
    cca.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is a checkpoint of CCAModel, which does not recognise values: 'cca train"):
        load_recogniser(tmp_path)
    plain = CCAModel.from_backbone(ViTConfig(**TINY), ["colour"])
    with pytest.raises(ValueError, match="recognition needs at least 2 values of 'colour', which is exclusive"):
        CCAForAttributeRecognition.from_cca(plain)
    with_values = CCAForAttributeRecognition.from_cca(plain, attribute_values={"colour": ["red", "blue"]})
    assert with_values.config.num_logits == 2
    with pytest.raises(ValueError, match="recognition needs attributes with values"):
        CCAForAttributeRecognition(CCAModel.config_class(**TINY))


def test_batches_skip_images_that_cannot_be_read(recogniser, pictures, tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    images = [pictures[0], tmp_path / "broken.jpg", pictures[1]]
    first, second = recogniser.predict_batches(images, batch_size=2, on_unreadable="skip")
    assert (first.rows, second.rows) == ([0], [2]) and list(first.unreadable) == [1]
    found = [*first.predictions, *second.predictions]
    expected = recogniser.predict([pictures[0], pictures[1]])
    for one, other in zip(found, expected, strict=True):
        assert one["shape"].probabilities == pytest.approx(other["shape"].probabilities)
    with pytest.raises(ValueError, match="unknown attribute 'color'. Did you mean 'colour'?"):
        recogniser.predict(pictures, "color")
