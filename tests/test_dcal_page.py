"""docs/dcal.md, run from top to bottom."""

from PIL import Image
from transformers import AutoModel

from cca_hf.models.backbones import make_image_processor

from .models.conftest import tiny_backbone
from .pages import run_page


def test_the_page_runs(tmp_path):
    for name in ("google/vit-base-patch16-224-in21k", "facebook/dinov2-small"):
        folder = tmp_path / name
        AutoModel.from_config(tiny_backbone("dinov2" if "dinov2" in name else "vit")).save_pretrained(folder)
        make_image_processor(32).save_pretrained(folder)
    Image.new("RGB", (80, 60), "red").save(tmp_path / "bird.jpg")
    ran = list(run_page("docs/dcal.md", tmp_path))
    names = ran[-1].names
    assert {each["label"] for each in names["guesses"]} == {"crow", "owl", "wren"}
    assert names["features"].shape == (1, 64) and names["attended"].shape == (1, 4, 4)
