"""The main job: from a data set and a backbone to a trained, evaluated and saved CCA checkpoint."""

import json
import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from numpy.typing import NDArray
from transformers import TrainingArguments, set_seed
from transformers.trainer_utils import speed_metrics

from cca_hf.data.loading import load_attribute_dataset
from cca_hf.data.schema import AttributeDataset
from cca_hf.evaluation.entanglement.evaluator import embed_with_features, entanglement_of_parts, why_not_measured
from cca_hf.evaluation.entanglement.result import EntanglementResult
from cca_hf.evaluation.results import Result
from cca_hf.evaluation.retrieval.embeddings import Confusion, Gallery, evaluate_splits, nearest_confusions
from cca_hf.evaluation.retrieval.evaluator import RetrievalEvaluator
from cca_hf.evaluation.retrieval.result import EvaluationResult
from cca_hf.extras import require
from cca_hf.models.configuration_images import did_you_mean
from cca_hf.models.images import ImageInput
from cca_hf.models.modeling_cca import CCAModel
from cca_hf.training.arguments import CCATrainingArguments
from cca_hf.training.checkpoints import last_checkpoint
from cca_hf.training.run_record import RunRecord

from .attribute_trainer import CCATrainer
from .backbone_config import read_backbone_config
from .command_line import DataArguments, ModelArguments

logger = logging.getLogger(__name__)

_NOT_MEASURED = "The entanglement of the test split is not measured: %s"
_MOST_READ = 1000  # images of the test split for its entanglement, so that the readers take less than a minute


@dataclass(frozen=True)
class TrainingRun:
    """What `run_training` returns; `output_dir` contains the same.

    `result` is the evaluation of the test split, and `entanglement` how much its embeddings reveal about the other
    attributes, if that was measured; only the main process has them. `metrics` is the content of
    `all_results.json`, and `history` the log.
    """

    model: CCAModel
    data: AttributeDataset
    result: EvaluationResult | None
    metrics: dict[str, float]
    history: list[dict[str, float]]
    output_dir: Path
    entanglement: EntanglementResult | None = None
    others: dict[str, Result] = field(default_factory=dict)  # by name: what else a recipe measures


# computes a further result of the test split: of the queries, and of the gallery if there is one
Measure = Callable[[CCAModel, AttributeDataset, list[Gallery]], Result]


def run_training(
    model_args: ModelArguments, data_args: DataArguments, training_args: CCATrainingArguments
) -> TrainingRun:
    """Trains a model, selects the best checkpoint on validation, evaluates it once on test, and saves everything.

    `output_dir` gets the model with image processor, pipeline and code; `all_results.json` with `test_map`,
    `test_map_<attribute>`, ... and their chance levels, as fractions; `test_evaluation.json` with the figures of each
    value; `run.json` with data, settings, hardware and versions; `trainer_state.json`. Prints the table of the test
    split.

    With `measure_entanglement`, `test_entanglement.json` contains the entanglement of at most 1,000 test images, and
    `all_results.json` has `test_entanglement`, `test_entanglement_neighbours`, `test_informativeness`, ... A log line
    gives the reason if it cannot be measured.

    The test split is evaluated as by `cca evaluate`: from the image files, in the precision of the saved checkpoint.

    The caller writes the report and the card, and pushes to the Hub.

    `resume_from_checkpoint="last"` resumes from the last complete checkpoint in `output_dir`, if there is one.

    Raises:
        ValueError: for bad data, or an `output_dir` with checkpoints of another run, before any work is done.
        UnreadableImageError: names the images that cannot be read, unless they are to be skipped.
        TrainingFailedError, CheckpointError: see [`CCATrainer.train`].
    """
    refuse_earlier_run(training_args)
    set_seed(training_args.seed)  # for the weights of the new layer; the Trainer sets the seed itself
    with training_args.main_process_first(desc="loading the data set"):
        data = load_data(data_args)
    model = make_model(model_args, data)
    return train_and_measure(CCATrainer(model, training_args, data), data_args)


def refuse_earlier_run(args: TrainingArguments) -> None:
    """Raises `ValueError` if a training that is not resumed would write into the folder of another one."""
    last = last_checkpoint(args.output_dir)
    if args.resume_from_checkpoint is None and last is not None:
        raise ValueError(
            f"{args.output_dir} contains {last.name} of an earlier run. Resume it with "
            "--resume_from_checkpoint last, or give another --output_dir"
        )


def train_and_measure(
    trainer: CCATrainer,
    data_args: DataArguments,
    *,
    unused: Sequence[str] = (),
    others: Mapping[str, Measure] = MappingProxyType({}),
) -> TrainingRun:
    """Trains, evaluates the test split once, and saves everything; see [`run_training`].

    Args:
        data_args: how the data of the trainer was loaded, for `run.json`.
        unused: training arguments without an effect, which `run.json` leaves out.
        others: further results by name. `test_<name>.json` is written beside the others, and `all_results.json` has
            their metrics as `test_<name>_<metric>`.
    """
    data, args = trainer.data, trainer.args
    # made now: a missing test split is an error before training, not after it
    test = RetrievalEvaluator(data, "test", batch_size=args.per_device_eval_batch_size)
    record = RunRecord.of(data, asdict(data_args), args, unused=unused) if args.should_save else None
    if record is not None:
        record.save(args.output_dir)  # checkpoints can be evaluated before the training ends

    outcome = trainer.train()
    trainer.save_model()
    trainer.save_metrics("train", outcome.metrics)

    trained = trainer.unwrapped_model().eval()
    metrics, measured = measure(
        trained, test, trainer.accelerator, entanglement=args.measure_entanglement, others=others
    )
    trainer.log(dict(metrics))
    trainer.save_metrics("test", metrics)
    trainer.save_state()
    output_dir = Path(args.output_dir)
    if measured is not None and record is not None:
        measured.result.save_json(output_dir / "test_evaluation.json")
        finished = replace(record, seconds=outcome.metrics["train_runtime"], confusions=measured.confusions)
        finished.save(output_dir)
        print(f"\nRetrieval on the test split ({output_dir})\n{measured.result.table()}")
        for name, result in measured.others.items():
            result.save_json(output_dir / f"test_{name}.json")
            print(f"\n{name.capitalize()} on the test split\n{result.table()}")
        if measured.entanglement is not None:
            measured.entanglement.save_json(output_dir / "test_entanglement.json")
            notes = measured.entanglement.as_table(decimals=2).notes
            print("\n".join(["\nEntanglement on the test split", *notes]))
        else:  # those of an earlier training in this folder would be on the model card
            for suffix in (".json", ".png"):
                (output_dir / f"test_entanglement{suffix}").unlink(missing_ok=True)
    return TrainingRun(
        trained,
        data,
        None if measured is None else measured.result,
        {**outcome.metrics, **metrics},
        trainer.state.log_history,
        output_dir,
        None if measured is None else measured.entanglement,
        {} if measured is None else measured.others,
    )


class Measured(NamedTuple):
    """The results of a split."""

    result: EvaluationResult
    confusions: dict[str, list[Confusion]]  # the most frequent ones of each attribute
    entanglement: EntanglementResult | None  # if it is asked for and can be measured
    others: dict[str, Result]


def measure(
    model: CCAModel,
    evaluator: RetrievalEvaluator,
    accelerator: Accelerator,
    *,
    entanglement: bool,
    others: Mapping[str, Measure],
) -> tuple[dict[str, float], Measured | None]:
    """Evaluates a split; each process embeds a part of its images, once.

    Returns:
        The metrics, and on the main process the results.
    """
    start = time.time()
    data, splits = evaluator.dataset, [evaluator.query_split]
    if evaluator.gallery_split is not None:
        splits.append(evaluator.gallery_split)
    if entanglement and (reason := why_not_measured(np.concatenate([data.labels(split) for split in splits]))):
        entanglement = False
        if accelerator.is_main_process:
            logger.warning(_NOT_MEASURED, reason)
    embedded, features = [], []
    for split in splits:
        rows = np.array_split(np.arange(data[split].num_rows), accelerator.num_processes)[accelerator.process_index]
        part = _embed(model, evaluator, data.splits[split].select(rows)["image"], entanglement) if len(rows) else None
        parts = [part for part in gather_object([part]) if part is not None]
        embeddings = np.concatenate([part[0] for part in parts])
        embedded.append(Gallery.of_split(data, split, embeddings, data.labels(split)))
        if entanglement:
            features.append(np.concatenate([part[1] for part in parts]))
    queries, *galleries = embedded
    gallery = galleries[0] if galleries else None
    measured = None
    metrics: list[dict[str, float]] = [{}]
    if accelerator.is_main_process:
        known = model.config.known_values
        result = evaluate_splits(data, queries, gallery, splits, device=model.device, known_values=known)
        confusions = nearest_confusions(
            queries.embeddings, queries.labels, data.attributes, groups=queries.groups, gallery=gallery
        )
        figures = result.intervals() | result.metrics()
        speed = speed_metrics("test", start, num_samples=sum(data[split].num_rows for split in splits))
        entangled = None
        if entanglement:
            vectors = [(side.embeddings, each) for side, each in zip(embedded, features, strict=True)]
            entangled = entanglement_of_parts(data, splits, vectors, max_images=_MOST_READ)
            if math.isnan(entangled.score):
                logger.warning(_NOT_MEASURED, "the features reveal hardly more than the labels, for all attributes")
                entangled = None
            else:
                figures |= {name: value for name, value in entangled.metrics().items() if math.isfinite(value)}
        further = {name: compute(model, data, embedded) for name, compute in others.items()}
        for name, each in further.items():
            metrics_of_it = each.metrics().items()
            figures |= {f"{name}_{metric}": value for metric, value in metrics_of_it if math.isfinite(value)}
        measured = Measured(result, confusions, entangled, further)
        metrics = [{f"test_{name}": value for name, value in figures.items()} | speed]
    broadcast_object_list(metrics)
    return metrics[0], measured


def _embed(
    model: CCAModel, evaluator: RetrievalEvaluator, images: Sequence[ImageInput], with_features: bool
) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
    """Embeddings (N, A, D) and, if asked for, the backbone's features (N, F) of the same pass."""
    if not with_features:
        return evaluator.embed(model, images), None
    return embed_with_features(
        model,
        images,
        list(evaluator.dataset.attributes),
        batch_size=evaluator.batch_size,
        num_workers=evaluator.num_workers,
        show_progress=evaluator.show_progress,
    )


def load_data(data_args: DataArguments) -> AttributeDataset:
    """The data set, after every image has been decoded once as a check."""
    data = load_attribute_dataset(
        data_args.dataset,
        data_args.attributes,
        group_column=data_args.group_column,
        image_column=data_args.image_column,
        config_name=data_args.dataset_config,
        revision=data_args.dataset_revision,
        split_seed=data_args.split_seed,
        on_unreadable=data_args.on_unreadable,
    )
    return data.check_images(data_args.on_unreadable)


def make_model(
    model_args: ModelArguments,
    data: AttributeDataset,
    model_class: type[CCAModel] = CCAModel,
    **config_fields: Any,
) -> CCAModel:
    """A new model (CCA or another family) for the attributes of `data`, on a pretrained backbone or one from scratch.

    Args:
        config_fields: further fields of the configuration of `model_class`.
    """
    optional: dict[str, Any] = config_fields | {
        name: value
        for name in ("embedding_dim", "hidden_size", "feature_levels", "residual")
        if (value := vars(model_args)[name]) is not None
    }
    if model_args.condition_embedding != "one_hot":  # the default, which is not a field of all models
        optional["condition_embedding"] = model_args.condition_embedding
    if model_args.text_encoder is not None:
        texts = attribute_texts(data.attributes, model_args.attribute_sentences)
        vectors = embed_texts(list(texts.values()), model_args.text_encoder)
        optional |= {"text_embeddings": dict(zip(texts, vectors, strict=True))}
        optional |= {"text_encoder": model_args.text_encoder, "attribute_texts": texts}
    size = model_args.image_size
    return model_class.from_backbone(
        model_args.backbone
        if model_args.backbone is not None
        else read_backbone_config(model_args.backbone_config or ""),
        attributes=data.attributes,
        image_size=size[0] if size is not None and len(size) == 1 else size,
        attn_implementation=model_args.attn_implementation,
        revision=model_args.backbone_revision,
        attribute_subspaces=model_args.attribute_subspaces,
        **optional,
    )


def attribute_texts(attributes: Iterable[str], sentences_file: str | None = None) -> dict[str, str]:
    """The text of each attribute: its sentence in a JSON file, or its name with spaces instead of underscores.

    Raises:
        ValueError: if the file is not a JSON object that maps names of attributes to sentences.
    """
    texts = {name: name.replace("_", " ") for name in attributes}
    if sentences_file is None:
        return texts
    sentences = json.loads(Path(sentences_file).read_text(encoding="utf-8"))
    if not isinstance(sentences, dict) or not all(isinstance(text, str) for text in sentences.values()):
        raise ValueError(
            f"{sentences_file} must contain sentences by attribute name: {{{next(iter(texts))!r}: '...'}}"
        )
    for name in sentences:
        if name not in texts:
            hint = did_you_mean(name, list(texts))
            raise ValueError(f"{sentences_file}: unknown attribute {name!r}.{hint} The attributes are {list(texts)}.")
    return texts | sentences


def embed_texts(texts: Sequence[str], text_encoder: str) -> torch.Tensor:
    """(texts, text_embedding_dim), on the CPU.

    Args:
        text_encoder: an id on the Hub or a folder, of a sentence-transformers model, or of a text model of
            transformers, whose token embeddings are then averaged.

    Raises:
        ImportError: without sentence-transformers.
        OSError: if the model cannot be loaded.
    """
    require("text", "text conditions need")
    from sentence_transformers import SentenceTransformer

    encoder = SentenceTransformer(text_encoder, device="cpu", trust_remote_code=False)
    return encoder.encode(list(texts), convert_to_tensor=True, show_progress_bar=False).float().clone()
