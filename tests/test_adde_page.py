"""docs/adde.md, run from top to bottom."""

import numpy as np
from PIL import Image
from transformers import ViTConfig, ViTModel

from .pages import run_page

TINY = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}


def test_the_page_runs(tmp_path):
    backbone = tmp_path / "google/vit-base-patch16-224-in21k"
    ViTModel(ViTConfig(**TINY, image_size=16, patch_size=8)).save_pretrained(backbone)
    Image.new("RGB", (20, 20), "red").save(tmp_path / "shoe.jpg")
    *_, prototypes, changes = run_page("docs/adde.md", tmp_path)
    assert prototypes.printed == "['buckle', 'laces']\n"
    names = changes.names
    embeddings, vectors = names["embeddings"], names["vectors"]
    units = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
    assert embeddings.shape == (1, 2, 340)
    np.testing.assert_allclose(names["red"], np.stack([units[0, 2], embeddings[0, 1]])[None], atol=1e-6)
    np.testing.assert_allclose(names["without_closure"][0], [embeddings[0, 0], np.zeros(340)], atol=1e-6)
    np.testing.assert_allclose(names["not_blue"][0, 1], units[1, 1], atol=1e-6)
    assert abs(names["not_blue"][0, 0] @ units[0, 1]) < 1e-6
