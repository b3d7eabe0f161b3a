"""Text embeddings of the attributes' names, the conditions of `condition_embedding="text"`.

A trained model does not need this file: it stores the embeddings of its attributes. To add an attribute, see
[`CCAModel.add_attribute`].
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

from cca_hf.models.configuration_images import did_you_mean


def attribute_texts(attributes: Iterable[str], sentences_file: str | None = None) -> dict[str, str]:
    """The text of each attribute: its sentence in a JSON file, or its name with spaces instead of underscores.

    Raises:
        ValueError: if the file is not a JSON object that maps names of attributes to sentences.
    """
    texts = {name: name.replace("_", " ") for name in attributes}
    if sentences_file is None:
        return texts
    sentences = json.loads(Path(sentences_file).read_text(encoding="utf-8"))
    if not isinstance(sentences, dict) or not all(isinstance(text, str) for text in sentences.values()):
        raise ValueError(
            f"{sentences_file} must contain sentences by attribute name: {{{next(iter(texts))!r}: '...'}}"
        )
    for name in sentences:
        if name not in texts:
            hint = did_you_mean(name, list(texts))
            raise ValueError(f"{sentences_file}: unknown attribute {name!r}.{hint} The attributes are {list(texts)}.")
    return texts | sentences


def embed_texts(texts: Sequence[str], text_encoder: str) -> torch.Tensor:
    """(texts, text_embedding_dim), on the CPU.

    Args:
        text_encoder: an id on the Hub or a folder, of a sentence-transformers model, or of a text model of
            transformers, whose token embeddings are then averaged.

    Raises:
        ImportError: without sentence-transformers.
        OSError: if the model cannot be loaded.
    """
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise ImportError('text conditions need sentence-transformers: pip install "cca_hf[text]"') from error
    encoder = SentenceTransformer(text_encoder, device="cpu")
    return encoder.encode(list(texts), convert_to_tensor=True, show_progress_bar=False).float().clone()
