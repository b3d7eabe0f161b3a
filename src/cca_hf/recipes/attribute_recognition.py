"""Recognition of attributes: from labelled images to a trained, calibrated, evaluated and saved model."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import set_seed

from cca_hf.data.class_images import ShuffledBatches
from cca_hf.data.recognition import RecognitionDataset, check_learnable, load_recognition_dataset
from cca_hf.data.recognition_images import PadAndCrop, RecognitionImages
from cca_hf.data.torch_dataset import AttributeCollator
from cca_hf.evaluation.calibration import choose_thresholds, fit_temperatures
from cca_hf.evaluation.recognition import RecognitionEvaluator
from cca_hf.evaluation.recognition_result import RecognitionResult
from cca_hf.models.attribute_recognition import positive_shares
from cca_hf.models.configuration_images import public_name
from cca_hf.models.images import ImageReader
from cca_hf.training.classification_loss import ModelLoss
from cca_hf.training.run_record import RunRecord
from cca_hf.training.task import Batches, Task
from cca_hf.training.trainer import TaskTrainer

from .attribute_retrieval import refuse_earlier_run
from .recognisers import config_of_cca, make_recogniser, pretrained_parts
from .recognition_arguments import DATA, RecognitionArguments

_SOURCES = ("model", "backbone", "local_backbone", "backbone_config", "local_backbone_config")


@dataclass(frozen=True)
class RecognitionRun:
    """What [`run_training`] returns; `output_dir` contains the same.

    Only the main process has the `result` of the test split. `metrics` is the content of `all_results.json`, and
    `history` the log.
    """

    model: Any
    data: RecognitionDataset
    result: RecognitionResult | None
    metrics: dict[str, float]
    history: list[dict[str, float]]
    output_dir: Path


def run_training(args: RecognitionArguments) -> RecognitionRun:
    """Trains a model, selects and calibrates it on validation, evaluates it once on test, and saves everything.

    `output_dir` gets the model with image processor and code; `all_results.json` with `test_mean_accuracy`, ..., as
    fractions; `test_evaluation.json` with the figures of each attribute; `run.json` with data, settings, hardware and
    versions. Prints the table of the test split. The caller writes the model card.

    Raises:
        ValueError: for bad data, or an `output_dir` with checkpoints of another run, before any work is done.
        UnreadableImageError: names the images that cannot be read, unless they are to be skipped.
    """
    refuse_earlier_run(args)
    set_seed(args.seed)  # for the weights of the new layers; the Trainer sets the seed itself
    with args.main_process_first(desc="loading the data set"):
        data = load_data(args)
    model = make_recogniser(args, data)
    trainer = make_trainer(model, args, data)
    test, validation = (trainer.images_of(split) for split in ("test", "validation"))  # or an error before the work
    record = describe_run(args, data)
    if trainer.args.should_save:
        record.save(trainer.args.output_dir)  # checkpoints can be evaluated before the training ends
    outcome = trainer.train()
    calibrate(trainer, validation, args.max_error)
    trainer.save_model()
    trainer.save_metrics("train", outcome.metrics)
    metrics = trainer.evaluate(test, metric_key_prefix="test")
    trainer.save_metrics("test", metrics)
    trainer.save_state()
    output_dir, result = Path(trainer.args.output_dir), trainer.evaluation_result
    if result is not None:
        assert isinstance(result, RecognitionResult)  # that of the evaluator
        result.save_json(output_dir / "test_evaluation.json")
        replace(record, seconds=outcome.metrics["train_runtime"]).save(output_dir)
        print(f"\nRecognition of the test split ({output_dir})\n{result.table()}")
    trained = trainer.unwrapped_model().eval()
    return RecognitionRun(trained, data, result, {**outcome.metrics, **metrics}, trainer.state.log_history, output_dir)


def load_data(args: RecognitionArguments) -> RecognitionDataset:
    """The data set, after every image has been decoded once as a check.

    Raises:
        ValueError: for attributes that are not those of `--model`, and see `load_recognition_dataset` and
            `check_learnable`.
        UnreadableImageError: names the images that cannot be read, unless they are to be skipped.
    """
    attributes: Any = args.attributes
    if args.model is not None:
        config = config_of_cca(args.model)
        if attributes is not None and {*attributes} != {*config.attributes}:
            raise ValueError(
                f"the attributes of {args.model} are {', '.join(config.attributes)}: leave --attributes out, or train "
                f"a model with {', '.join(attributes)}"
            )
        attributes = config.attribute_values or config.attributes
    data = load_recognition_dataset(
        args.dataset,
        attributes,
        group_column=args.group_column,
        image_column=args.image_column,
        config_name=args.dataset_config,
        revision=args.dataset_revision,
        split_seed=args.split_seed,
        on_unreadable=args.on_unreadable,
    )
    check_learnable(data)
    checked = data.check_images(args.on_unreadable)
    assert isinstance(checked, RecognitionDataset)  # of the same class
    return checked


def make_trainer(model: Any, args: RecognitionArguments, data: RecognitionDataset) -> TaskTrainer:
    """The Trainer of a model that `make_recogniser` has made. It sets `positive_shares` of the configuration."""
    height, width = ImageReader(model.image_processor).height_and_width
    transform = PadAndCrop((args.padding / height, args.padding / width), horizontal_flip=args.horizontal_flip)
    images = RecognitionImages(data, "train", transform)
    model.config.positive_shares = positive_shares(model.config, images.labels)
    batches = Batches(
        images,
        AttributeCollator(model.image_processor),
        ShuffledBatches(
            len(images),
            batch_size=args.per_device_train_batch_size,
            seed=args.seed,
            drop_last=args.dataloader_drop_last,
        ),
        f"An epoch contains the {len(images):,} training images once.",
    )
    pretrained = {parameter for part in pretrained_parts(args, model) for parameter in part.parameters()}
    new = {name for name, parameter in model.named_parameters() if parameter not in pretrained}
    return TaskTrainer(
        model,
        args,
        Task(batches, ModelLoss(), RecognitionEvaluator(data, model.config, model.image_processor)),
        eval_dataset=None if args.eval_strategy == "no" else "validation",
        learning_rates=dict.fromkeys(new, args.head_learning_rate),
        frozen_parameters=pretrained if args.freeze_backbone else (),
    )


def calibrate(trainer: TaskTrainer, validation: Any, max_error: float) -> None:
    """Sets temperatures and thresholds of the model, from the logits of validation images."""
    predicted = trainer.predict(validation, metric_key_prefix="validation")
    logits, labels = (torch.from_numpy(each) for each in (predicted.predictions, predicted.label_ids))
    config = trainer.unwrapped_model().config
    config.thresholds, config.temperatures = None, fit_temperatures(config, logits, labels)
    config.thresholds = choose_thresholds(config, logits, labels, max_error)


def describe_run(args: RecognitionArguments, data: RecognitionDataset) -> RunRecord:
    """The record of a training, for the model card and for a later evaluation."""
    loaded_with = {name: vars(args)[name] for name in ("dataset", *DATA)}
    loaded_with["attributes"] = list(data.attributes)
    record = RunRecord.of(data, loaded_with, args, unused=("dataset", *DATA, *_SOURCES))
    # folders of this machine are private
    sources = {name: vars(args)[name] for name in _SOURCES}
    settings = {
        name: given if given is None or given.lstrip().startswith("{") else public_name(given)
        for name, given in sources.items()
    }
    return replace(record, settings=settings | record.settings, value_counts=data.count_values("train"))
