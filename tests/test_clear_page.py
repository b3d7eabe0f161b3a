"""docs/clear.md, run from top to bottom."""

import numpy as np
from PIL import Image
from transformers import SwinConfig, SwinModel, ViTConfig, ViTModel

from cca_hf import CCAModel

from .pages import run_page

TINY = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}


def test_the_page_runs(tmp_path):
    vit = ViTConfig(**TINY, image_size=16, patch_size=8)
    ViTModel(vit, add_pooling_layer=False).save_pretrained(tmp_path / "google/vit-base-patch16-224-in21k")
    swin = SwinConfig(image_size=32, embed_dim=8, depths=[1, 1], num_heads=[2, 2], window_size=4)
    SwinModel(swin).save_pretrained(tmp_path / "microsoft/swin-tiny-patch4-window7-224")
    CCAModel.from_backbone(vit, {"colour": ["red", "blue"]}).save_pretrained(tmp_path / "me/cca-shoes")
    for name in ("person.jpg", "shoe.jpg"):
        Image.new("RGB", (20, 40), "red").save(tmp_path / name)
    _, prediction, loss, on_cca, checkpoint, with_pipeline = run_page("docs/clear.md", tmp_path)
    hair, backpack, accessories, probabilities = prediction.printed.splitlines()
    assert hair.split()[1] in ("short", "long", "none") and backpack.split()[1] in ("no", "yes")
    assert accessories.startswith("accessories [") and probabilities.startswith("{'short': 0.")
    assert loss.printed.startswith("tensor(") and "grad_fn" in loss.printed
    assert on_cca.printed.startswith("[{'colour': Prediction(value=")
    assert with_pipeline.printed.startswith("[{'label': 'hair: ")
    names = checkpoint.names
    assert names["model"].config.positive_shares == {"backpack": [0.5], "accessories": [0.5, 0.5, 0.0]}
    assert names["features"].shape == (2, 16 + 16)
    again = CCAModel.from_pretrained(tmp_path / "recogniser")
    expected = CCAModel.from_pretrained(tmp_path / "me/cca-shoes")
    image = tmp_path / "shoe.jpg"
    np.testing.assert_array_equal(again.encode(image), expected.encode(image))
