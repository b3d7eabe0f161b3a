"""Benchmarks that cannot be shipped: their real split files where there are any, and stand-ins for their pictures."""

import itertools
import json
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from transformers import ViTConfig

from cca_hf import CCAModel, CCATrainer, CCATrainingArguments, EvaluationResult, RetrievalEvaluator
from cca_hf.data.schema import AttributeDataset

META = {
    "FashionAI": {
        "skirt_length": 6, "sleeve_length": 9, "coat_length": 8, "pant_length": 6,
        "collar_design": 5, "lapel_design": 5, "neckline_design": 10, "neck_design": 5,
    },
    "DARN": {"clothes color": 3, "sleeve length": 2},
    "DeepFashion": {
        "texture-related": 2, "fabric-related": 2, "shape-related": 2, "part-related": 2, "style-related": 2,
    },
}  # fmt: skip


@pytest.fixture(scope="session")
def asen(shared_data) -> Path:
    """The real split files."""
    folder = shared_data / "asen_splits"
    if not folder.is_dir():
        pytest.skip(f"there are no split files in {folder}")
    return folder


@pytest.fixture(scope="session")
def fashionai_rows(shared_data) -> dict[str, list[str]]:
    """The official label rows that there are, by file."""
    folder = shared_data / "fashionai_labels"
    if not folder.is_dir():
        pytest.skip(f"there are no label rows in {folder}")
    return {
        path.name: [line for line in path.read_text().splitlines() if line] for path in sorted(folder.glob("*.csv"))
    }


@pytest.fixture(scope="session")
def add_pictures() -> Callable[[Path, Iterable[str]], None]:
    """Writes small pictures, no two of them alike, under these names."""
    numbers = itertools.count()

    def add(root: Path, names: Iterable[str]) -> None:
        for name, number in zip(names, numbers, strict=False):
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            colours = np.random.default_rng(number).integers(0, 256, (2, 2, 3), dtype=np.uint8)
            Image.fromarray(colours).resize((24, 20), Image.Resampling.NEAREST).save(path, "JPEG")

    return add


@pytest.fixture
def small_asen(tmp_path) -> Callable[[str, dict[str, bytes | str]], Path]:
    """Writes a folder of split files with these contents."""

    def write(name: str, files: dict[str, bytes | str]) -> Path:
        folder = tmp_path / "asen"
        (folder / name).mkdir(parents=True, exist_ok=True)
        meta = {each: {"ATTRIBUTES": list(own), "ATTRIBUTES_NUM": own} for each, own in META.items()}
        (folder / "meta.json").write_text(json.dumps(meta))
        for file, content in files.items():
            (folder / name / file).write_bytes(content.encode() if isinstance(content, str) else content)
        return folder

    return write


@pytest.fixture
def beside_real_asen(asen, tmp_path) -> Callable[[str, dict[str, str]], Path]:
    """The real split files of one benchmark with these beside them, such as those on training that nobody has."""

    def link(name: str, files: dict[str, str]) -> Path:
        folder = tmp_path / "asen"
        (folder / name).mkdir(parents=True)
        (folder / "meta.json").symlink_to(asen / "meta.json")
        for path in (asen / name).iterdir():
            (folder / name / path.name).symlink_to(path)
        for file, content in files.items():
            (folder / name / file).write_text(content)
        return folder

    return link


@pytest.fixture
def train_a_step_and_evaluate(tmp_path) -> Callable[[AttributeDataset], EvaluationResult]:
    """A tiny ViT: a step of training, then the test split."""

    def run(data: AttributeDataset) -> EvaluationResult:
        backbone = ViTConfig(
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=16,
            image_size=16,
            patch_size=8,
        )
        model = CCAModel.from_backbone(backbone, data.attributes)
        arguments = CCATrainingArguments(
            str(tmp_path / "run"), max_steps=1, per_device_train_batch_size=16, use_cpu=True, report_to="none"
        )
        trainer = CCATrainer(model, arguments, data)
        trainer.train()
        assert trainer.state.global_step == 1 and np.isfinite(trainer.state.log_history[-1]["train_loss"])
        result = RetrievalEvaluator(data, "test", show_progress=False)(model)
        metrics = trainer.evaluate(trainer.images_of("test"), metric_key_prefix="test")
        assert metrics["test_chance_map"] == pytest.approx(result.metrics()["chance_map"])
        assert trainer.evaluation_result is not None and trainer.evaluation_result.coverage == result.coverage
        return result

    return run
