"""A family that exists only here: two files of models/, a loss, an evaluator, a result and a recipe.

It needs no edit in training/, hub/ or cli/.
"""

import importlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import Dataset
from transformers import TrainingArguments

import cca_hf.models
from cca_hf.data.shapes import generate_shapes_dataset
from cca_hf.evaluation.results import Result, ResultCard, load_result
from cca_hf.evaluation.text_table import Table
from cca_hf.hub.model_card import write_model_card
from cca_hf.models.images import ImageReader
from cca_hf.models.loading import load_model
from cca_hf.training.task import Batches, Loss, LossOutput, Task
from cca_hf.training.trainer import TaskTrainer

from .warm_python import WarmPython

SIZE = (16, 32)  # height and width
CLASSES = 4

# The two files of the family. They lie beside copies of the shared files, as in models/.
CONFIGURATION = '''"""Configuration of the toy classifier."""

from huggingface_hub.dataclasses import strict

from .configuration_images import ImageModelConfig


@strict
class ToyConfig(ImageModelConfig):
    model_type = "toy"


ToyConfig.register_for_auto_class()
'''
MODELING = '''"""A linear classifier on the mean token of a backbone."""

from torch import nn
from transformers import AutoModel
from transformers.modeling_outputs import ImageClassifierOutput

from .configuration_toy import ToyConfig
from .modeling_images import ImagePreTrainedModel


class ToyModel(ImagePreTrainedModel):
    config_class = ToyConfig
    display_name = "Toy"
    method = "a linear classifier"

    def __init__(self, config):
        super().__init__(config)
        self.backbone = AutoModel.from_config(config.backbone_config, add_pooling_layer=False)
        self.classifier = nn.Linear(config.backbone_config.hidden_size, config.num_labels)
        self.post_init()

    @classmethod
    def usage_example(cls, model_id, config):
        return f"The model has {config.num_labels} classes: `AutoModel.from_pretrained({model_id!r})`."

    def forward(self, pixel_values):
        tokens = self.backbone(pixel_values, interpolate_pos_encoding=True).last_hidden_state
        return ImageClassifierOutput(logits=self.classifier(tokens.mean(1)))


ToyModel.register_for_auto_class("AutoModel")
'''


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """`cca_hf.models.modeling_toy`, registered as models/__init__.py registers the other families."""
    folder = tmp_path_factory.mktemp("models")
    for path in Path(cca_hf.models.__file__).parent.glob("*.py"):
        shutil.copy(path, folder)
    (folder / "configuration_toy.py").write_text(CONFIGURATION, encoding="utf-8")
    (folder / "modeling_toy.py").write_text(MODELING, encoding="utf-8")
    cca_hf.models.__path__.append(str(folder))
    module = importlib.import_module("cca_hf.models.modeling_toy")
    from transformers import AutoConfig, AutoModel

    AutoConfig.register("toy", module.ToyConfig, exist_ok=True)
    AutoModel.register(module.ToyConfig, module.ToyModel, exist_ok=True)
    yield module
    cca_hf.models.__path__.remove(str(folder))


# ---- What a recipe hands to the Trainer ----


class LabelledImages(Dataset):
    def __init__(self, rows: Any, reader: ImageReader) -> None:
        self.rows, self.reader = rows, reader

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> tuple[torch.Tensor, int]:
        return self.reader.read(self.rows[row]["image"]), self.rows[row]["background"]


@dataclass(frozen=True)
class Accuracy(Result):
    primary_metric: ClassVar[str] = "accuracy"
    accuracy: float

    def metrics(self) -> dict[str, float]:
        return {"accuracy": self.accuracy}

    def as_table(self, decimals: int) -> Table:
        return Table(["accuracy in %"], [[[f"{100 * self.accuracy:.{decimals}f}"]]])

    def card(self) -> ResultCard:
        row = ("accuracy", "Accuracy", 100 * self.accuracy)
        return ResultCard("Accuracy", "image-classification", f"{row[2]:.1f} % are right.", (row,))

    def to_dict(self) -> dict[str, Any]:
        return {"accuracy": self.accuracy}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Self:
        return cls(content["accuracy"])


class CrossEntropy(Loss):
    def forward(self, model: nn.Module, batch: Any) -> LossOutput:
        logits = model(batch["pixel_values"]).logits
        accuracy = (logits.detach().argmax(1) == batch["labels"]).float().mean()
        return LossOutput(nn.functional.cross_entropy(logits, batch["labels"]), {"accuracy": accuracy})


class ClassificationEvaluator:
    primary_metric = "accuracy"
    shown_metrics = ("accuracy",)

    def __init__(self, data: Any, reader: ImageReader) -> None:
        self.data, self.reader = data, reader

    def collator(self, examples: list[tuple[torch.Tensor, int]]) -> dict[str, torch.Tensor]:
        pixel_values = self.reader.scale(torch.stack([image for image, _ in examples]), "cpu", torch.float32)
        return {"pixel_values": pixel_values, "labels": torch.tensor([label for _, label in examples])}

    def images(self, split: Any) -> Dataset:
        return LabelledImages(self.data[split] if isinstance(split, str) else split, self.reader)

    def forward(self, model: nn.Module, batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
        return model(batch["pixel_values"]).logits, batch["labels"]

    def score(self, images: Dataset, predictions: np.ndarray, labels: np.ndarray) -> Accuracy:
        return Accuracy(float((predictions.argmax(1) == labels).mean()))


def make_trainer(model: Any, args: TrainingArguments, data: Any) -> TaskTrainer:
    evaluator = ClassificationEvaluator(data, ImageReader(model.image_processor))
    task = Task(Batches(evaluator.images("train"), evaluator.collator), CrossEntropy(), evaluator)
    return TaskTrainer(model, args, task, eval_dataset="validation", head_learning_rate=3e-3)


def run(model: Any, args: TrainingArguments, data: Any) -> TaskTrainer:
    trainer = make_trainer(model, args, data)
    trainer.train()
    trainer.evaluate("test")
    trainer.save_model()
    trainer.evaluation_result.save_json(Path(args.output_dir) / "test_evaluation.json")
    write_model_card(args.output_dir)
    return trainer


# ---- What comes of it ----


@pytest.fixture(scope="module")
def trained(family: Any, tmp_path_factory: pytest.TempPathFactory) -> TaskTrainer:
    data = generate_shapes_dataset(num_images=224, image_size=32, seed=0)
    torch.manual_seed(0)
    backbone = {"model_type": "vit", "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    backbone |= {"intermediate_size": 64, "patch_size": 8, "image_size": 16}
    num_labels = data["train"].features["background"].num_classes
    config = family.ToyConfig(backbone_config=backbone, image_size=SIZE, num_labels=num_labels)
    args = TrainingArguments(
        str(tmp_path_factory.mktemp("toy") / "out"),
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        learning_rate=1e-3,
        num_train_epochs=4,
        per_device_train_batch_size=16,
        logging_steps=1,
        eval_strategy="epoch",
        save_strategy="epoch",
        load_best_model_at_end=True,
        save_total_limit=1,
    )
    return run(family.ToyModel(config), args, data)


def test_it_trains_and_evaluates(trained: TaskTrainer) -> None:
    logs = [entry for entry in trained.state.log_history if "loss" in entry]
    assert logs[-1]["loss"] < 0.7 * logs[0]["loss"] and 0 <= logs[-1]["accuracy"] <= 1
    assert logs[0]["head_learning_rate"] > logs[0]["learning_rate"]
    evaluations = [entry["eval_accuracy"] for entry in trained.state.log_history if "eval_accuracy" in entry]
    assert trained.state.best_metric == max(evaluations) > 0.5
    test = trained.evaluate("test")["eval_accuracy"]
    assert test > 0.5 and trained.evaluation_result.metrics() == {"accuracy": test}
    assert trained.predict("test").metrics["test_accuracy"] == test


def test_its_result_and_its_card(trained: TaskTrainer) -> None:
    folder = Path(trained.args.output_dir)
    stored = load_result(folder / "test_evaluation.json", Accuracy)
    assert stored == trained.evaluation_result
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert f"{100 * stored.accuracy:.1f} % are right." in card and "a linear classifier" in card
    assert "metrics:\n- accuracy\n" in card and "- toy\n" in card and "## Accuracy" in card
    assert "AutoModel.from_pretrained('out')" in card and "attribute" not in card


def test_it_loads(family: Any, trained: TaskTrainer) -> None:
    folder = trained.args.output_dir
    loaded = load_model(folder, "cpu")
    assert type(loaded) is family.ToyModel and loaded.config.image_size == list(SIZE)
    assert loaded.fingerprint() == trained.model.fingerprint()


PROGRAM = """
import sys
sys.modules["cca_hf"] = None  # importing it raises ImportError
import json, torch
from transformers import AutoModel
model = AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True).eval()
pixel_values = torch.linspace(-1, 1, 3 * 16 * 32).reshape(1, 3, 16, 32)
print(json.dumps([model(pixel_values).logits.tolist(), model.image_processor.size["width"]]))
"""


def test_transformers_alone_loads_it(trained: TaskTrainer, tmp_path: Path, warm_python: WarmPython) -> None:
    environment = {**os.environ, "PYTHONPATH": ""}
    done = warm_python.run("-c", PROGRAM, trained.args.output_dir, cwd=tmp_path, env=environment, check=True)
    logits, width = json.loads(done.stdout.splitlines()[-1])
    pixel_values = torch.linspace(-1, 1, 3 * 16 * 32).reshape(1, 3, 16, 32)
    with torch.no_grad():
        expected = trained.model.eval()(pixel_values).logits
    torch.testing.assert_close(torch.tensor(logits), expected, atol=1e-6, rtol=0)
    assert width == SIZE[1]


def test_only_the_shared_files_travel_with_it(trained: TaskTrainer) -> None:
    saved = {path.stem for path in Path(trained.args.output_dir).glob("*.py")}
    assert {"configuration_toy", "modeling_toy", "modeling_images"} <= saved
    assert not {name for name in saved if "cca" in name or "conditional" in name}


def test_it_resumes(family: Any, trained: TaskTrainer) -> None:
    args = trained.args
    args.num_train_epochs = 5
    resumed = make_trainer(family.ToyModel(trained.model.config), args, trained.evaluator.data)
    assert resumed.train(resume_from_checkpoint=True).global_step == 50
