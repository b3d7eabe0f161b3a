"""The main job: from a data set and a backbone to a trained, measured, saved CCA checkpoint."""

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig, set_seed

from cca_hf.data.loading import load_attribute_dataset
from cca_hf.data.schema import AttributeDataset
from cca_hf.evaluation.retrieval.result import EvaluationResult
from cca_hf.models.modeling_cca import CCAModel
from cca_hf.training.arguments import CCATrainingArguments
from cca_hf.training.checkpoints import last_checkpoint
from cca_hf.training.run_record import RunRecord
from cca_hf.training.threads import settle_threads
from cca_hf.training.trainer import CCATrainer

from .command_line import DataArguments, ModelArguments
from .command_line import parse_arguments as parse_arguments
from .text_conditions import attribute_texts, embed_texts

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingRun:
    """What `run_training` leaves in memory; the same stands in `output_dir`.

    `result` is the evaluation on the test split, on the main process alone. `metrics` is `all_results.json`, and
    `history` what was logged on the way.
    """

    model: CCAModel
    data: AttributeDataset
    result: EvaluationResult | None
    metrics: dict[str, float]
    history: list[dict[str, float]]
    output_dir: Path


def run_training(
    model_args: ModelArguments, data_args: DataArguments, training_args: CCATrainingArguments
) -> TrainingRun:
    """Trains, takes the checkpoint that is best on validation, evaluates it once on test, and saves all of it.

    `output_dir` gets the model with image processor, pipeline and code; `all_results.json` with `test_map`,
    `test_map_<attribute>`, ... and their chance levels, as fractions; `test_evaluation.json` with the figures of each
    value; `run.json` with what it was trained on, how and where; `trainer_state.json`. Prints what the data set holds,
    and the table of the test split.

    What `push_to_hub` asks for is left to the caller, for when report and card are written too.

    `resume_from_checkpoint="last"` goes on from the last complete checkpoint in `output_dir`, if there is one.

    Raises:
        ValueError: bad data, or an `output_dir` that holds another run's checkpoints. Before any work is done.
        UnreadableImageError: naming the images, unless they are to be skipped.
        TrainingFailedError, CheckpointError: see [`CCATrainer.train`].
    """
    checkpoint = _checkpoint_to_resume(training_args)
    if training_args.device.type == "cpu":
        settle_threads(training_args.cpu_threads)
    set_seed(training_args.seed)  # the new layer's weights; the Trainer seeds itself
    with training_args.main_process_first(desc="loading the data set"):
        data = load_data(data_args)
    model = make_model(model_args, data)
    trainer = CCATrainer(model, training_args, data)
    test_images = trainer.images_of("test")  # its absence is an error now, not after training

    outcome = trainer.train(resume_from_checkpoint=checkpoint)
    if model.config.attribute_subspaces:
        trainer.fit_subspaces()
    trainer.save_model()
    trainer.save_metrics("train", outcome.metrics)

    predicted = trainer.predict(test_images, metric_key_prefix="test")
    metrics = predicted.metrics
    trainer.log(dict(metrics))
    trainer.save_metrics("test", metrics)
    trainer.save_state()
    result = trainer.evaluation_result
    output_dir = Path(training_args.output_dir)
    if result is not None:
        result.save_json(output_dir / "test_evaluation.json")
        confusions = trainer.confusions_of(test_images, predicted)
        seconds = outcome.metrics["train_runtime"]
        RunRecord.of(data, data_args.dataset, training_args, seconds, confusions).save(output_dir)
        print(f"\nRetrieval on the test split ({output_dir})\n{result.table()}")
    return TrainingRun(
        model=trainer.accelerator.unwrap_model(trainer.model),
        data=data,
        result=result,
        metrics={**outcome.metrics, **metrics},
        history=trainer.state.log_history,
        output_dir=output_dir,
    )


def load_data(data_args: DataArguments) -> AttributeDataset:
    """The data set, every image of it decoded once to see that it can be."""
    data = load_attribute_dataset(
        data_args.dataset,
        data_args.attributes,
        group_column=data_args.group_column,
        image_column=data_args.image_column,
        config_name=data_args.dataset_config,
        revision=data_args.dataset_revision,
        split_seed=data_args.split_seed,
    )
    return data.check_images(data_args.on_unreadable)


def make_model(model_args: ModelArguments, data: AttributeDataset, model_class: type[CCAModel] = CCAModel) -> CCAModel:
    """A new model (CCA, or a baseline) for the attributes of `data`, on a pretrained backbone or one from scratch."""
    optional: dict[str, Any] = {
        name: value
        for name in ("embedding_dim", "hidden_size", "feature_levels", "residual")
        if (value := vars(model_args)[name]) is not None
    }
    if model_args.text_encoder is not None:
        texts = attribute_texts(data.attributes, model_args.attribute_sentences)
        vectors = embed_texts(list(texts.values()), model_args.text_encoder)
        optional |= {"text_embeddings": dict(zip(texts, vectors, strict=True))}
        optional |= {"text_encoder": model_args.text_encoder, "attribute_texts": texts}
    size = model_args.image_size
    return model_class.from_backbone(
        model_args.backbone if model_args.backbone is not None else _read_config(model_args.backbone_config or ""),
        attributes=data.attributes,
        image_size=size[0] if size is not None and len(size) == 1 else size,
        attn_implementation=model_args.attn_implementation,
        revision=model_args.backbone_revision,
        condition_embedding=model_args.condition_embedding,
        attribute_subspaces=model_args.attribute_subspaces,
        **optional,
    )


def _read_config(source: str) -> PreTrainedConfig:
    """JSON, a JSON file, or whatever `AutoConfig` finds."""
    if source.lstrip().startswith("{"):
        text = source
    elif source.endswith(".json"):
        text = Path(source).read_text(encoding="utf-8")
    else:
        return AutoConfig.from_pretrained(source)
    fields: dict[str, Any] = json.loads(text)
    model_type = fields.pop("model_type", None)
    if model_type not in CONFIG_MAPPING:
        raise ValueError(
            f"backbone_config needs a model_type that transformers knows, such as vit; got {model_type!r}"
        )
    return CONFIG_MAPPING[model_type](**fields)


def _checkpoint_to_resume(args: CCATrainingArguments) -> str | None:
    """Where to go on from; None for the beginning."""
    last = last_checkpoint(args.output_dir)
    if args.resume_from_checkpoint in ("last", "true", "True"):
        if last is None:
            logger.warning("no checkpoint in %s yet: training starts at the beginning", args.output_dir)
        return None if last is None else str(last)
    if args.resume_from_checkpoint is None and last is not None:
        raise ValueError(
            f"{args.output_dir} holds {last.name} of an earlier run. Go on with it by --resume_from_checkpoint last, "
            "or give another --output_dir"
        )
    return args.resume_from_checkpoint
