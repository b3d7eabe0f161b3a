"""A family that exists only here: a config, a model without attributes and a recipe, on the package as it is."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import Dataset
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageClassification,
    PreTrainedConfig,
    PreTrainedModel,
    TrainingArguments,
    ViTImageProcessor,
)
from transformers.modeling_outputs import ImageClassifierOutput

from cca_hf.data.shapes import generate_shapes_dataset
from cca_hf.models.images import load_image
from cca_hf.training.task import Batches, Loss, LossOutput, Task
from cca_hf.training.trainer import TaskTrainer

SIZE = 32


class ToyConfig(PreTrainedConfig):
    model_type = "toy_classifier"

    def __init__(self, hidden_size: int = 16, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.hidden_size = hidden_size


class ToyModel(PreTrainedModel):
    """Mean colour in, class out."""

    config_class = ToyConfig
    main_input_name = "pixel_values"

    def __init__(self, config: ToyConfig) -> None:
        super().__init__(config)
        self.backbone = nn.Sequential(nn.AvgPool2d(8), nn.Flatten(), nn.Linear(48, config.hidden_size), nn.ReLU())
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.image_processor = ViTImageProcessor(size={"height": SIZE, "width": SIZE})
        self.post_init()

    def forward(self, pixel_values: torch.Tensor) -> ImageClassifierOutput:
        return ImageClassifierOutput(logits=self.classifier(self.backbone(pixel_values)))


AutoConfig.register(ToyConfig.model_type, ToyConfig)
AutoModelForImageClassification.register(ToyConfig, ToyModel)


# ---- The recipe ----


class Labelled(Dataset):
    def __init__(self, split: Any, column: str) -> None:
        self.split, self.column = split, column

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, row: int) -> dict[str, Any]:
        return {"image": load_image(self.split[row]["image"]), "label": self.split[row][self.column]}


class Accuracy:
    def __init__(self, right: np.ndarray) -> None:
        self.right = right

    def metrics(self) -> dict[str, float]:
        return {"accuracy": float(self.right.mean())}


class CrossEntropy(Loss):
    def forward(self, model: nn.Module, batch: Any) -> LossOutput:
        logits = model(batch["pixel_values"]).logits
        accuracy = (logits.detach().argmax(1) == batch["labels"]).float().mean()
        return LossOutput(nn.functional.cross_entropy(logits, batch["labels"]), {"accuracy": accuracy})


class ClassificationEvaluator:
    primary_metric = "accuracy"
    shown_metrics = ("accuracy",)

    def __init__(self, data: Any, column: str, collator: Any) -> None:
        self.data, self.column, self.collator = data, column, collator

    def images(self, split: Any) -> Dataset:
        return Labelled(self.data[split] if isinstance(split, str) else split, self.column)

    def forward(self, model: nn.Module, batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
        return model(batch["pixel_values"]).logits, batch["labels"]

    def score(self, images: Dataset, predictions: np.ndarray, labels: np.ndarray) -> Accuracy:
        return Accuracy(predictions.argmax(1) == labels)


def make_trainer(model: ToyModel, args: TrainingArguments, data: Any, column: str) -> TaskTrainer:
    def collate(examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        pixels = model.image_processor([example["image"] for example in examples], return_tensors="pt")
        return {**pixels, "labels": torch.tensor([example["label"] for example in examples])}

    evaluator = ClassificationEvaluator(data, column, collate)
    task = Task(Batches(evaluator.images("train"), collate), CrossEntropy(), evaluator)
    return TaskTrainer(model, args, task, eval_dataset="validation", head_learning_rate=3e-2)


# ---- What the package makes of it ----


@pytest.fixture
def trained(tmp_path: Path) -> TaskTrainer:
    data = generate_shapes_dataset(num_images=224, image_size=SIZE, seed=0)
    torch.manual_seed(0)
    model = ToyModel(ToyConfig(num_labels=data["train"].features["background"].num_classes))
    args = TrainingArguments(
        str(tmp_path / "out"),
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        learning_rate=1e-2,
        num_train_epochs=3,
        per_device_train_batch_size=16,
        logging_steps=1,
        eval_strategy="epoch",
        save_strategy="epoch",
        load_best_model_at_end=True,
        save_total_limit=1,
    )
    trainer = make_trainer(model, args, data, "background")
    trainer.train()
    return trainer


def test_it_trains_and_evaluates(trained: TaskTrainer) -> None:
    logs = [entry for entry in trained.state.log_history if "loss" in entry]
    assert logs[-1]["loss"] < 0.7 * logs[0]["loss"] and 0 <= logs[-1]["accuracy"] <= 1
    assert logs[0]["head_learning_rate"] > logs[0]["learning_rate"]
    evaluations = [entry["eval_accuracy"] for entry in trained.state.log_history if "eval_accuracy" in entry]
    assert trained.state.best_metric == max(evaluations) > 0.5
    test = trained.evaluate("test")["eval_accuracy"]
    assert test > 0.5 and trained.evaluation_result.metrics() == {"accuracy": test}
    assert trained.predict("test").metrics["test_accuracy"] == test


def test_transformers_alone_loads_it(trained: TaskTrainer, tmp_path: Path) -> None:
    trained.save_model(str(tmp_path / "saved"))
    pixel_values = torch.zeros(1, 3, SIZE, SIZE)
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path / "saved")
    torch.testing.assert_close(loaded(pixel_values).logits, trained.model.eval()(pixel_values).logits)
    assert AutoImageProcessor.from_pretrained(tmp_path / "saved").size["height"] == SIZE


def test_it_resumes(trained: TaskTrainer, tmp_path: Path) -> None:
    args = trained.args
    args.num_train_epochs = 4
    model = ToyModel(trained.model.config)
    resumed = make_trainer(model, args, trained.evaluator.data, "background")
    assert resumed.train(resume_from_checkpoint=True).global_step == 40
