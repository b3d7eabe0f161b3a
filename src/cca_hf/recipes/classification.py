"""Classification: from a data set with classes and a backbone to a trained, evaluated and saved classifier.

The classifier is a model of transformers, which `pipeline("image-classification", model=output_dir)` loads.
"""

import copy
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from transformers import PreTrainedModel, set_seed

from cca_hf.data.augmentation import Augmentation
from cca_hf.data.class_images import ClassImages, ShuffledBatches, TrainingCollator
from cca_hf.data.schema import AttributeDataset
from cca_hf.data.torch_dataset import TrainingTransform
from cca_hf.evaluation.classification import ClassificationEvaluator
from cca_hf.evaluation.classification_result import ClassificationResult
from cca_hf.extras import require
from cca_hf.models.configuration_images import public_name
from cca_hf.models.modeling_dcal import DCALForImageClassification
from cca_hf.training.classification_loss import ModelLoss, SoftCrossEntropy
from cca_hf.training.parameters import layer_rates
from cca_hf.training.run_record import RunRecord
from cca_hf.training.task import Batches, Loss, Task
from cca_hf.training.trainer import TaskTrainer
from cca_hf.visualization.classification import write_classification_report

from .attribute_retrieval import refuse_earlier_run
from .classification_arguments import DATA, ClassificationArguments
from .classification_data import load_classes
from .classifiers import backbone_of, make_classifier
from .evaluation import report_title

_PRETRAINED_LEARNING_RATE = 1e-4  # the help of --learning_rate names it


@dataclass(frozen=True)
class ClassificationRun:
    """What [`run_training`] returns; `output_dir` contains the same.

    Only the main process has the `result` of the test split. `metrics` is the content of `all_results.json`, and
    `history` the log.
    """

    model: PreTrainedModel
    data: AttributeDataset
    result: ClassificationResult | None
    metrics: dict[str, float]
    history: list[dict[str, float]]
    output_dir: Path


def run_training(args: ClassificationArguments) -> ClassificationRun:
    """Trains a model, selects the best checkpoint on validation, evaluates it once on test, and saves everything.

    `output_dir` gets the model with its image processor; `report.html`; `all_results.json` with `test_accuracy`, ...,
    as fractions; `test_evaluation.json` with the figures of each class; `run.json` with data, settings, hardware and
    versions. Prints the table of the test split. The caller writes the model card.

    Raises:
        ImportError: if the augmentation needs kornia, and it is missing.
        ValueError: for bad data, or an `output_dir` with checkpoints of another run, before any work is done.
        UnreadableImageError: names the images that cannot be read, unless they are to be skipped.
    """
    if args.needs_kornia:
        require("augmentation", "mixup, cutmix, rand-augment and random erasing need")
    refuse_earlier_run(args)
    set_seed(args.seed)  # for the weights of the new layers; the Trainer sets the seed itself
    with args.main_process_first(desc="loading the data set"):
        data = load_classes(args)
    model = make_classifier(args, next(iter(data.attributes.values())))
    trainer = make_trainer(model, args, data)
    test = trainer.images_of("test")  # a missing test split is an error before the training, not after it
    assert isinstance(test, ClassImages)  # that of the evaluator
    record = describe_run(trainer, data)
    if trainer.args.should_save:
        record.save(trainer.args.output_dir)  # checkpoints can be evaluated before the training ends
    outcome = trainer.train()
    trainer.save_model()
    trainer.save_metrics("train", outcome.metrics)
    predicted = trainer.predict(test, metric_key_prefix="test")
    metrics = predicted.metrics or {}
    trainer.log(dict(metrics))
    trainer.save_metrics("test", metrics)
    trainer.save_state()
    output_dir, result = Path(trainer.args.output_dir), trainer.evaluation_result
    trained = trainer.unwrapped_model().eval()
    if result is not None:
        assert isinstance(result, ClassificationResult)  # that of the evaluator
        result.save_json(output_dir / "test_evaluation.json")
        replace(record, seconds=outcome.metrics["train_runtime"]).save(output_dir)
        print(f"\nClassification of the test split ({output_dir})\n{result.table()}")
        page = write_classification_report(
            result,
            data,
            np.asarray(predicted.predictions).argmax(axis=1),
            output_dir / "report.html",
            title=report_title(output_dir, args.dataset),
            model=trained,
            history=trainer.state.log_history,
        )
        print(f"report: {page}")
    return ClassificationRun(
        trained, data, result, {**outcome.metrics, **metrics}, trainer.state.log_history, output_dir
    )


def make_trainer(model: PreTrainedModel, args: ClassificationArguments, data: AttributeDataset) -> TaskTrainer:
    """The Trainer of a classifier that `make_classifier` has made for the classes of the data.

    Raises:
        ValueError: if the classes of the model are not those of the data, or for a setting outside its range.
    """
    ((column, classes),) = data.attributes.items()
    if [*model.config.id2label.values()] != classes:
        raise ValueError(f"the model has the classes {[*model.config.id2label.values()]}, the data {classes}")
    args = copy.copy(args)
    if args.learning_rate is None:
        args.learning_rate = args.head_learning_rate if args.backbone is None else _PRETRAINED_LEARNING_RATE
    transform = TrainingTransform(
        horizontal_flip=args.horizontal_flip,
        crop_scale=(args.crop_scale, 1.0),
        crop_ratio=(1 / args.crop_ratio, args.crop_ratio),
        colour_jitter=args.colour_jitter,
    )
    images = ClassImages(data, "train", transform)
    augmentation = None
    if args.needs_kornia:
        augmentation = Augmentation(
            rand_augment=args.rand_augment,
            random_erasing=args.random_erasing,
            mixup=args.mixup,
            cutmix=args.cutmix,
        )
    batches = Batches(
        images,
        TrainingCollator(
            model.image_processor,
            len(classes),
            label_smoothing=args.label_smoothing,
            augmentation=augmentation,
        ),
        ShuffledBatches(
            len(images),
            batch_size=args.per_device_train_batch_size,
            seed=args.seed,
            drop_last=args.dataloader_drop_last,
        ),
        f"An epoch contains the {len(images):,} training images of {len(classes)} classes ({column}) once.",
    )
    # the loss of DCAL is that of its branches
    loss: Loss = ModelLoss() if isinstance(model, DCALForImageClassification) else SoftCrossEntropy()
    return TaskTrainer(
        model,
        args,
        Task(batches, loss, ClassificationEvaluator(data, model.image_processor)),
        eval_dataset=None if args.eval_strategy == "no" else "validation",
        learning_rates=learning_rates(model, args),
        frozen_parameters=backbone_of(model).parameters() if args.freeze_backbone else (),
        ema_decay=args.ema_decay,
    )


def learning_rates(model: PreTrainedModel, args: ClassificationArguments) -> dict[str, float]:
    """The rates of parameters that do not have `learning_rate`: new layers, and with `layer_decay` earlier layers."""
    backbone = backbone_of(model)
    (prefix,) = (name for name, module in model.named_modules() if module is backbone)
    names = {name for name, _ in model.named_parameters()}
    rates = {name: args.head_learning_rate for name in names if not name.startswith(f"{prefix}.")}
    if args.layer_decay is not None:
        assert args.learning_rate is not None  # make_trainer has set it
        of_layers = layer_rates(backbone, args.learning_rate, args.layer_decay)
        rates |= {f"{prefix}.{name}": rate for name, rate in of_layers.items()}
    return rates


def describe_run(trainer: TaskTrainer, data: AttributeDataset) -> RunRecord:
    """The record of a training, for the model card and for a later evaluation."""
    args = trainer.args
    assert isinstance(args, ClassificationArguments)  # make_trainer has copied them
    loaded_with = {name: vars(args)[name] for name in ("dataset", *DATA)} | {
        "label_column": next(iter(data.attributes))
    }
    names = {name: vars(args)[name] for name in ("backbone", "backbone_config")}
    record = RunRecord.of(data, loaded_with, args, unused=("dataset", *DATA, *names))
    # folders of this machine are private
    settings = {
        name: given if given is None or given.lstrip().startswith("{") else public_name(given)
        for name, given in names.items()
    }
    # the card of a model with attributes counts their values; that of a classifier has a table of its classes
    return replace(record, settings=settings | record.settings, value_counts={})
