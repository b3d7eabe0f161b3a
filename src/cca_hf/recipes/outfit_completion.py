"""Outfit completion: from items, outfits and a backbone to a trained, evaluated and saved [`OutfitModel`]."""

import platform
from collections.abc import Callable, Iterable, Sequence
from dataclasses import MISSING, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import transformers
from torch import nn
from torch.utils.data import Dataset
from transformers import TrainingArguments, set_seed

from cca_hf.data.outfit_loading import load_outfits
from cca_hf.data.outfit_sampler import OutfitBatchSampler
from cca_hf.data.outfits import OutfitDataset
from cca_hf.evaluation.outfit_result import OutfitResult
from cca_hf.evaluation.outfits import evaluate_outfits, pair_distance
from cca_hf.models.configuration_images import public_name
from cca_hf.models.images import ImageReader
from cca_hf.models.modeling_outfit import OutfitModel
from cca_hf.training.outfit_batches import ItemImages, ItemInputs, OutfitCollator, OutfitQuestions, StoredFeatures
from cca_hf.training.outfit_loss import OutfitRankingLoss
from cca_hf.training.run_record import RunRecord, describe_hardware
from cca_hf.training.task import Batches, Task
from cca_hf.training.trainer import TaskTrainer

from .attribute_retrieval import refuse_earlier_run
from .command_line import flag

# the arguments that decide what the weights become, beside those of this recipe
_RECORDED = (
    "num_train_epochs max_steps per_device_train_batch_size gradient_accumulation_steps learning_rate weight_decay "
    "lr_scheduler_type warmup_steps max_grad_norm optim bf16 fp16 seed"
).split()
_OWN = (
    "subspaces embedding_dim num_subspaces feature_dropout freeze_backbone margin num_negatives num_random_negatives "
    "head_learning_rate"
).split()


@dataclass(kw_only=True)
class OutfitArguments(TrainingArguments):
    """The data, the model and the training of outfit completion; further arguments are those of transformers.

    Raises:
        ValueError: for a setting outside its range.
    """

    items: str = flag(MISSING, "The items: an id on the Hub, a folder, or a table with images and categories.")
    outfits: str = flag(MISSING, "The outfits: a folder with a file for each split, a table, or a JSON file.")
    id_column: str = flag("id", "Column of the items with their ids.")
    category_column: str = flag("category", "Column of the items with their categories.")
    backbone: str = flag(
        MISSING, "Vision model, or a trained model with attributes: an id on the Hub or a local folder."
    )
    subspaces: Literal["masks", "attributes"] = flag(
        "masks",
        "What a pair of categories selects. masks: a mixture of learned masks (CSA-Net). attributes: weights of the "
        "attributes of --backbone, a model with attributes.",
    )
    embedding_dim: int = flag(64, "Numbers of a feature vector, or of each attribute in it.")
    num_subspaces: int = flag(5, "Number of masks.")
    feature_dropout: float = flag(0.5, "Dropout of the backbone's features.")
    freeze_backbone: bool = flag(
        True, "Train only the layers on top of the backbone, on features that are computed once."
    )
    margin: float = flag(0.3, "The distance of the hardest negative must exceed that of the right item by it.")
    num_negatives: int = flag(5, "Negatives of a question that have the category of the right item.")
    num_random_negatives: int = flag(5, "Negatives of a question of any category.")
    head_learning_rate: float = flag(5e-4, "Learning rate of all parameters outside the backbone.")

    # arguments of transformers with another default
    output_dir: str | None = flag("trainer_output", "Folder for checkpoints, model and model card.")
    per_device_train_batch_size: int = flag(96, "Questions per batch on each device.")
    per_device_eval_batch_size: int = flag(64, "Images per evaluation batch on each device.")
    num_train_epochs: float = flag(20.0, "Number of epochs. An epoch asks for each item of each outfit once.")
    learning_rate: float = flag(5e-5, "Learning rate of the backbone.")
    weight_decay: float = flag(0.0, "Weight decay, except for biases and normalisation.")
    logging_steps: float = flag(10, "Steps between logs.")
    eval_strategy: str = flag("epoch", "When to evaluate: no, steps or epoch.")
    save_strategy: str = flag("epoch", "When to save: no, steps, epoch or best.")
    save_total_limit: int | None = flag(2, "Number of checkpoints to keep. The best one is always kept.")
    load_best_model_at_end: bool = flag(True, "Load the best checkpoint at the end.")
    dataloader_pin_memory: bool | None = flag(None, "Put batches into page-locked memory. Default: on with a GPU.")
    report_to: str | None = flag("none", "Where to log, such as tensorboard.")

    def __post_init__(self) -> None:
        if not self.margin > 0:
            raise ValueError(f"margin must be above 0, got {self.margin}")
        if self.eval_strategy == "no":
            self.load_best_model_at_end = False  # without a metric no checkpoint is the best
        if self.dataloader_pin_memory is None:
            self.dataloader_pin_memory = torch.cuda.is_available()
        super().__post_init__()


class _ItemRows(Dataset[int]):
    """The rows of the items that the evaluation of a split compares."""

    def __init__(self, data: OutfitDataset, split: str) -> None:
        self.split = split
        questions = [question for kind in data.questions_of(split).values() for question in kind]
        rows = [data.item_rows(split), *(data.rows(question.choices) for question in questions)]
        rows += [data.rows((*question.items,)) for question in questions]
        rows += [data.rows(outfit.items) for outfit in data.compatibility_of(split)]
        self.rows = np.unique(np.concatenate(rows)).tolist()

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> int:
        return self.rows[index]


class OutfitEvaluator:
    """Fill-in-the-blank accuracy, compatibility AUC and recall of an [`OutfitModel`], see `evaluate_outfits`."""

    primary_metric: str = OutfitResult.primary_metric
    shown_metrics: Iterable[str] = (OutfitResult.primary_metric, "compatibility_auc")

    def __init__(self, data: OutfitDataset, inputs: ItemInputs) -> None:
        self.data = data
        self.inputs = inputs
        self.collator: Callable[[list[int]], dict[str, torch.Tensor]] = self._collate
        self._pair_weights: torch.Tensor | None = None  # those of the latest forward pass

    def images(self, split: Any) -> Dataset[Any]:
        return _ItemRows(self.data, split) if isinstance(split, str) else split

    def _collate(self, rows: Sequence[int]) -> dict[str, torch.Tensor]:
        return {**self.inputs(rows), "rows": torch.tensor(rows)}

    def forward(self, model: nn.Module, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        output = model(**{name: values for name, values in batch.items() if name != "rows"})
        self._pair_weights = output.pair_weights
        return output.features, batch["rows"]

    def score(self, images: Any, predictions: np.ndarray, labels: np.ndarray) -> OutfitResult:
        features = np.zeros((self.data.items.num_rows, predictions.shape[1]), np.float32)
        features[labels] = predictions
        assert self._pair_weights is not None  # `forward` has run
        weights = self._pair_weights.float().cpu().numpy()
        return evaluate_outfits(self.data, images.split, pair_distance(features, self.data.category_ids, weights))


@dataclass(frozen=True)
class OutfitRun:
    """What [`run_training`] returns; `output_dir` contains the same.

    Only the main process has the `result` of the test split. `metrics` is the content of `all_results.json`.
    """

    model: OutfitModel
    data: OutfitDataset
    result: OutfitResult | None
    metrics: dict[str, float]
    history: list[dict[str, float]]
    output_dir: Path


def make_trainer(
    model: OutfitModel, args: OutfitArguments, data: OutfitDataset, features: StoredFeatures | None = None
) -> TaskTrainer:
    """The Trainer of outfit completion.

    Args:
        features: those of the items, for a frozen backbone; by default they are computed now.

    Raises:
        ValueError: if the model does not have the categories of the data, or for outfits that cannot be learned.
    """
    if list(model.config.categories) != data.categories:
        raise ValueError(f"the model has the categories {model.config.categories}, the data {data.categories}")
    inputs: ItemInputs
    if args.freeze_backbone:
        shows = not args.disable_tqdm and args.process_index == 0
        model.to(args.device)
        inputs = features or StoredFeatures.of(
            model, data.items, batch_size=args.per_device_eval_batch_size, show_progress=shows
        )
    else:
        inputs = ItemImages(data.items, ImageReader(model.image_processor))
    outfits = [data.rows(outfit).tolist() for outfit in data.split_outfits("train")]
    sampler = OutfitBatchSampler(
        outfits,
        data.category_ids,
        batch_size=args.per_device_train_batch_size,
        num_negatives=args.num_negatives,
        num_random_negatives=args.num_random_negatives,
        seed=args.seed,
    )
    count = sum(map(len, outfits))
    batches = Batches(
        OutfitQuestions(count),
        OutfitCollator(inputs, data.category_ids),
        sampler,
        f"An epoch asks for each of the {count:,} items of {len(outfits):,} outfits.",
    )
    return TaskTrainer(
        model,
        args,
        Task(batches, OutfitRankingLoss(args.margin), OutfitEvaluator(data, inputs)),
        eval_dataset=None if args.eval_strategy == "no" else "validation",
        head_learning_rate=args.head_learning_rate,
        frozen_parameters=model.backbone.parameters() if args.freeze_backbone else (),
    )


def run_training(args: OutfitArguments) -> OutfitRun:
    """Trains a model, selects the best checkpoint on validation, evaluates it once on test, and saves everything.

    `output_dir` gets the model with image processor and code; `all_results.json` with `test_fill_in_the_blank`, ...,
    as fractions; `test_evaluation.json` with the intervals; `run.json` with data, settings, hardware and versions.
    Prints the table of the test split. The caller writes the model card.

    Raises:
        ValueError: for bad data, or an `output_dir` with checkpoints of another run, before any work is done.
        UnreadableImageError: names the image that cannot be read.
    """
    refuse_earlier_run(args)
    set_seed(args.seed)  # for the weights of the new layers; the Trainer sets the seed itself
    with args.main_process_first(desc="loading the data set"):
        data = load_outfits(args.items, args.outfits, id_column=args.id_column, category_column=args.category_column)
    model = OutfitModel.from_backbone(
        args.backbone,
        data.categories,
        subspaces=args.subspaces,
        embedding_dim=args.embedding_dim,
        num_subspaces=args.num_subspaces,
        feature_dropout=args.feature_dropout,
    )
    trainer = make_trainer(model, args, data)
    test = trainer.images_of("test")  # a missing test split is an error before the training, not after it
    outcome = trainer.train()
    trainer.save_model()
    trainer.save_metrics("train", outcome.metrics)
    metrics = trainer.evaluate(test, metric_key_prefix="test")
    trainer.save_metrics("test", metrics)
    trainer.save_state()
    output_dir, result = Path(trainer.args.output_dir), trainer.evaluation_result
    if result is not None:
        assert isinstance(result, OutfitResult)  # that of the evaluator
        result.save_json(output_dir / "test_evaluation.json")
        record = replace(describe_run(args, data), seconds=outcome.metrics["train_runtime"])
        record.save(output_dir)
        print(f"\nOutfit completion on the test split ({output_dir})\n{result.table()}")
    metrics = {**outcome.metrics, **metrics}
    model = trainer.unwrapped_model().eval()
    return OutfitRun(model, data, result, metrics, trainer.state.log_history, output_dir)


def describe_run(args: OutfitArguments, data: OutfitDataset) -> RunRecord:
    """The record of a training, for the model card. Its splits count the items that are in outfits."""
    settings = args.to_dict()  # plain values
    return RunRecord(
        dataset=public_name(args.items),
        dataset_on_hub=not Path(args.items).exists(),
        splits={split: len(data.item_rows(split)) for split in data.outfits},
        value_counts={},
        settings={name: settings[name] for name in (*_RECORDED, *_OWN)},
        hardware=describe_hardware(args),
        versions={
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        data={
            "outfits": public_name(args.outfits),
            "id_column": args.id_column,
            "category_column": args.category_column,
        },
    )
