"""A saved checkpoint in a Python that has transformers and not cca_hf."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from .conftest import build, tiny_backbone

PROGRAM = """
import sys
sys.modules["cca_hf"] = None  # importing it raises ImportError
import json, numpy as np, torch
from PIL import Image
from transformers import AutoConfig, AutoModel, pipeline
from transformers.models.auto.image_processing_auto import AutoImageProcessor

first, second, picture = sys.argv[1:]
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
    print(json.dumps(result))
"""


@pytest.mark.parametrize(
    ("name", "backbone"),
    [("cca", "vit"), ("cca", "mobilenet_v2"), ("csn", "vit"), ("asen", "vit"), ("separate", "vit")],
)
def test_loads_and_saves_again_without_the_package(name, backbone, pictures, tmp_path):
    model = build(name, tiny_backbone(backbone), embedding_dim=16)
    model.save_pretrained(tmp_path / "first")
    side = model.config.image_size  # resizing may differ by a level from the image processor's, see test_pixels
    pictures[0].resize((side, side)).save(tmp_path / "picture.png")
    process = subprocess.run(
        [sys.executable, "-c", PROGRAM, tmp_path / "first", tmp_path / "second", tmp_path / "picture.png"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "HF_HOME": str(tmp_path / "home"), "PYTHONPATH": ""},
    )
    assert process.returncode == 0, process.stderr
    expected = model.encode([tmp_path / "picture.png"])[0]
    result = json.loads(process.stdout.splitlines()[-1])
    assert len(result) == 6
    for way, embeddings in result.items():
        np.testing.assert_allclose(embeddings, expected, atol=1e-6, err_msg=way)
    files = sorted(path.name for path in (tmp_path / "first").iterdir())
    assert files == sorted(path.name for path in (tmp_path / "second").iterdir())
    assert {"model.safetensors", "config.json", "preprocessor_config.json", "pipeline_cca.py"} <= set(files)
