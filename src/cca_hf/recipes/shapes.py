"""Trains a small CCA from scratch on drawn shapes, without data or network (`cca try`, `make demo`, `cca demo`)."""

from collections.abc import Sequence
from pathlib import Path

from cca_hf.data.shapes import SHAPE_ATTRIBUTES, generate_shapes_dataset
from cca_hf.training.arguments import CCATrainingArguments

from .attribute_retrieval import TrainingRun, run_training
from .command_line import DataArguments, ModelArguments

NUM_IMAGES = 3000
EPOCHS = 10
IMAGE_SIZE, HIDDEN_SIZE = 64, 128
# ResNet's basic blocks: small enough for two cores, and quick to learn shapes from scratch.
BACKBONE = """{"model_type": "resnet", "layer_type": "basic", "embedding_size": 32,
                "hidden_sizes": [32, 64, 128], "depths": [2, 2, 2]}"""


def draw_shapes(folder: Path, *, num_images: int = NUM_IMAGES, seed: int = 0) -> None:
    """Writes the shapes as parquet files, a format that users have as well."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, dataset in generate_shapes_dataset(num_images, image_size=IMAGE_SIZE, seed=seed).items():
        dataset.to_parquet(folder / f"{split}.parquet")


def train_on_shapes(
    shapes: Path,
    output_dir: Path,
    *,
    attributes: Sequence[str] = tuple(SHAPE_ATTRIBUTES),
    epochs: float = EPOCHS,
    seed: int = 0,
    one_space: bool = False,
    measure_entanglement: bool = True,
) -> TrainingRun:
    """Trains on the shapes of `draw_shapes`, as `scripts/train.py` does; `one_space`: one space for all attributes."""
    return run_training(
        ModelArguments(
            backbone_config=BACKBONE,
            condition_embedding="none" if one_space else "one_hot",
            image_size=[IMAGE_SIZE],
            hidden_size=HIDDEN_SIZE,
        ),
        DataArguments(dataset=str(shapes), attributes=list(attributes)),
        CCATrainingArguments(
            output_dir=str(output_dir),
            num_train_epochs=epochs,
            per_device_train_batch_size=24,  # from scratch, many small steps learn more in the same time
            learning_rate=2e-3,
            crop_scale=0.9,  # size is an attribute, which a tighter crop would change
            bf16=False,  # so that all machines give the same figures
            eval_strategy="steps",  # to be seen; the last weights are those that are kept
            eval_steps=0.25,
            save_strategy="no",
            load_best_model_at_end=False,
            logging_steps=0.05,
            measure_entanglement=measure_entanglement,
            report_to="none",
            seed=seed,
        ),
    )
