"""A saved checkpoint in a Python that has transformers and not cca_hf."""

import json
import os

import numpy as np
import pytest

from .conftest import build, tiny_backbone

PROGRAM = """
import sys
sys.modules["cca_hf"] = None  # importing it raises ImportError
import json, os, numpy as np, torch
from PIL import Image
from transformers import AutoConfig, AutoModel, pipeline
from transformers.models.auto.image_processing_auto import AutoImageProcessor

def load_and_save_again(first, second, picture):
    result = {}
    for turn, (path, again) in enumerate([(first, second), (second, None)]):
        model = AutoModel.from_pretrained(path, trust_remote_code=True).eval()
        config = AutoConfig.from_pretrained(path, trust_remote_code=True)
        processor = AutoImageProcessor.from_pretrained(path)
        pixel_values = processor(Image.open(picture), return_tensors="pt")["pixel_values"]
        ids = torch.tensor([config.attribute_ids()])
        with torch.no_grad():
            result[f"forward {turn}"] = model(pixel_values, attribute_ids=ids).embeddings[0].tolist()
        result[f"encode {turn}"] = model.encode([picture])[0].tolist()
        extract = pipeline("image-feature-extraction", model=path, trust_remote_code=True)
        result[f"pipeline {turn}"] = list(extract(picture, attribute=list(config.attributes)).values())
        if again:
            model.save_pretrained(again)
    try:
        import cca_hf
    except ImportError:
        return result

for folder in sys.argv[1:]:  # a process for each checkpoint, which has only imported the libraries
    child = os.fork()
    if child == 0:
        result = load_and_save_again(*(os.path.join(folder, name) for name in ("first", "second", "picture.png")))
        with open(os.path.join(folder, "result.json"), "w") as file:
            json.dump(result, file)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0, folder
"""
KINDS = [("cca", "vit"), ("cca", "mobilenet_v2"), ("csn", "vit"), ("asen", "vit"), ("separate", "vit")]
KINDS += [("adde", "mobilenet_v2")]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory, pictures, warm_python):
    """The embeddings of each kind of model, and a folder with the checkpoint, saved again without the package."""
    folder, expected = tmp_path_factory.mktemp("remote"), {}
    for kind in KINDS:
        model = build(kind[0], tiny_backbone(kind[1]), embedding_dim=16)
        place = folder / "-".join(kind)
        model.save_pretrained(place / "first")
        side = model.config.image_size  # resizing may differ by a level from the image processor's, see test_pixels
        pictures[0].resize((side, side)).save(place / "picture.png")
        expected[kind] = model.encode([place / "picture.png"])[0], place
    environment = {**os.environ, "PYTHONPATH": ""}
    places = [place for _, place in expected.values()]
    warm_python.run("-c", PROGRAM, *places, cwd=folder, env=environment, check=True)
    return expected


@pytest.mark.parametrize("kind", KINDS, ids="-".join)
def test_loads_and_saves_again_without_the_package(kind, loaded):
    expected, folder = loaded[kind]
    result = json.loads((folder / "result.json").read_text())
    assert len(result) == 6
    for way, embeddings in result.items():
        np.testing.assert_allclose(embeddings, expected, atol=1e-6, err_msg=way)
    files = sorted(path.name for path in (folder / "first").iterdir())
    assert files == sorted(path.name for path in (folder / "second").iterdir())
    assert {"model.safetensors", "config.json", "preprocessor_config.json", "pipeline_cca.py"} <= set(files)
