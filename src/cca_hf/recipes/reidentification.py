"""Re-identification: from images with identities and cameras to a trained, evaluated and saved model of embeddings.

The checkpoint is the vision model alone: `AutoModel.from_pretrained`, `ImageEmbedder`, `cca index` and `cca search`
load it.
"""

import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel, set_seed

from cca_hf.data.class_images import ClassImages
from cca_hf.data.identity_images import IdentityCollator
from cca_hf.data.reidentification import ReidentificationData, load_reidentification
from cca_hf.data.sampler import AttributeBatchSampler
from cca_hf.evaluation.reidentification import ReidentificationEvaluator
from cca_hf.evaluation.reidentification_result import ReidentificationResult
from cca_hf.extras import require
from cca_hf.models.backbones import (
    POOLING_MODULES,
    image_size_of,
    interpolates_positions,
    load_backbone_processor,
    make_image_processor,
)
from cca_hf.models.configuration_images import height_and_width, public_name
from cca_hf.models.image_embedder import ImageEmbedder
from cca_hf.models.modeling_dcal import DCALModel
from cca_hf.training.reidentification_loss import (
    Branches,
    IdentityHeads,
    ReidentificationLoss,
    branches_with_pairs,
    branches_without_pairs,
    one_branch,
)
from cca_hf.training.run_record import RunRecord
from cca_hf.training.task import Batches, Task
from cca_hf.training.trainer import TaskTrainer

from .attribute_retrieval import refuse_earlier_run
from .backbone_config import read_backbone_config
from .classifiers import with_image_size
from .reidentification_arguments import DATA, ReidentificationArguments

_PRETRAINED_LEARNING_RATE = 1e-4  # the help of --learning_rate names it
_LOCAL_SHARE = 0.3  # of DCAL's paper, for re-identification
_COLLAPSE_PATIENCE = 100


@dataclass(frozen=True)
class ReidentificationRun:
    """What [`run_training`] returns; `output_dir` contains the same.

    Only the main process has the `result` of the test split. `metrics` is the content of `all_results.json`, and
    `history` the log.
    """

    model: PreTrainedModel
    data: ReidentificationData
    result: ReidentificationResult | None
    metrics: dict[str, float]
    history: list[dict[str, float]]
    output_dir: Path


def run_training(args: ReidentificationArguments) -> ReidentificationRun:
    """Trains a model, selects the best checkpoint on validation, evaluates it once on test, and saves everything.

    `output_dir` gets the model with its image processor; `all_results.json` with `test_map`, `test_cmc@1`, ... and
    their chance levels, as fractions; `test_evaluation.json`; `run.json` with data, settings, hardware and versions.
    Prints the table of the test split. The caller writes the model card.

    Raises:
        ImportError: if random erasing needs kornia, and it is missing.
        ValueError: for bad data, or an `output_dir` with checkpoints of another run, before any work is done.
        UnreadableImageError: names the images that cannot be read, unless they are to be skipped.
    """
    if args.random_erasing:
        require("augmentation", "random erasing (or --random_erasing 0) needs")
    refuse_earlier_run(args)
    set_seed(args.seed)  # for new weights; the Trainer sets the seed itself
    with args.main_process_first(desc="loading the data set"):
        data = load_data(args)
    trainer = make_trainer(make_model(args), args, data)
    test = trainer.images_of("test")  # a missing test split is an error before the training, not after it
    record = describe_run(trainer, data)
    if trainer.args.should_save:
        record.save(trainer.args.output_dir)
    outcome = trainer.train()
    trainer.save_model()
    trainer.save_metrics("train", outcome.metrics)
    metrics = trainer.evaluate(test, metric_key_prefix="test")
    trainer.save_metrics("test", metrics)
    trainer.save_state()
    output_dir, result = Path(trainer.args.output_dir), trainer.evaluation_result
    if result is not None:
        assert isinstance(result, ReidentificationResult)  # that of the evaluator
        result.save_json(output_dir / "test_evaluation.json")
        replace(record, seconds=outcome.metrics["train_runtime"]).save(output_dir)
        print(f"\nRe-identification on the test split ({output_dir})\n{result.table()}")
    trained = trainer.unwrapped_model().eval()
    return ReidentificationRun(
        trained, data, result, {**outcome.metrics, **metrics}, trainer.state.log_history, output_dir
    )


def load_data(args: ReidentificationArguments) -> ReidentificationData:
    """The data set, after every image has been decoded once as a check; see `load_reidentification`."""
    data = load_reidentification(
        args.dataset,
        args.identity_column,
        args.camera_column,
        role_column=args.role_column,
        within_column=args.within_column,
        image_column=args.image_column,
        config_name=args.dataset_config,
        revision=args.dataset_revision,
        split_seed=args.split_seed,
        on_unreadable=args.on_unreadable,
    )
    return replace(data, images=data.images.check_images(args.on_unreadable))


def make_model(args: ReidentificationArguments) -> PreTrainedModel:
    """A model with its `image_processor`, which resizes images to `image_size` without cropping.

    Raises:
        ValueError: for a backbone that gives no embedding of an image, or whose positions cannot be interpolated.
        OSError: if the backbone cannot be loaded.
    """
    size = args.height_and_width
    config: PreTrainedConfig | None = None
    if args.backbone_config is not None:
        config = read_backbone_config(args.backbone_config)
        if "image_size" in config.to_dict():
            config.image_size = size
    if args.dcal:
        processor = None
        if args.backbone is not None:
            processor = load_backbone_processor(args.backbone, {"trust_remote_code": False})
        model: Any = DCALModel.from_backbone(
            args.backbone or config,
            local_share=_LOCAL_SHARE if args.local_share is None else args.local_share,
            use_local_attention=args.local_attention,
            use_pairwise_attention=args.pairwise_attention,
        )
    elif args.backbone is not None:
        embedder = ImageEmbedder.from_pretrained(args.backbone, "cpu", torch.float32)
        model, processor = embedder.model, embedder.image_processor
        if interpolates_positions(model) and height_and_width(image_size_of(model.config)) != tuple(size):
            model = with_image_size(model, *size)
    else:
        model, processor = AutoModel.from_config(config, trust_remote_code=False), None
        if POOLING_MODULES.get(model.config.model_type) == "pooler":
            model.pooler = None  # the embedding is the class token
    model.image_processor = make_image_processor(size, like=processor)
    return model


def make_trainer(model: PreTrainedModel, args: ReidentificationArguments, data: ReidentificationData) -> TaskTrainer:
    """The Trainer of a model that `make_model` has made.

    Raises:
        ValueError: for a setting outside its range, or training images without a pair of one identity.
    """
    args = copy.copy(args)
    if args.learning_rate is None:
        args.learning_rate = args.head_learning_rate if args.backbone is None else _PRETRAINED_LEARNING_RATE
    images = ClassImages(data.images, "train")
    identities, counts = (each.tolist() for each in np.unique(images.labels, return_counts=True))
    sampler = AttributeBatchSampler(
        images.labels[:, None],
        batch_size=args.train_batch_size,
        images_per_value=args.images_per_identity,
        seed=args.seed if args.data_seed is None else args.data_seed,
    )
    alone = sum(count == 1 for count in counts)
    batches = Batches(
        images,
        IdentityCollator(
            model.image_processor,
            horizontal_flip=args.horizontal_flip,
            padding=args.padding,
            random_erasing=args.random_erasing,
        ),
        sampler,
        f"An epoch is {len(sampler):,} batches of {sampler.batch_size:,} images, from {len(images):,} images of "
        f"{len(identities):,} identities."
        + (f" {alone:,} identities with one image are negatives, and no positives." if alone else ""),
    )
    branches, dim, head_of_branch = _branches_of(model)
    heads = IdentityHeads(
        len(identities),
        dim,
        head_of_branch,
        label_smoothing=args.label_smoothing,
        margin=args.margin,
        learning_rate=args.head_learning_rate,
        seed=args.seed,
    )
    loss = ReidentificationLoss(heads, {identity: place for place, identity in enumerate(identities)}, branches)
    names = [name for name, _ in model.named_parameters()]
    new = [name for name in names if isinstance(model, DCALModel) and not name.startswith("backbone.")]
    return TaskTrainer(
        model,
        args,
        Task(batches, loss, ReidentificationEvaluator(data, model.image_processor)),
        eval_dataset=None if args.eval_strategy == "no" else "validation",
        learning_rates=dict.fromkeys(new, args.head_learning_rate),
        # for masked image modelling; DistributedDataParallel stops at an unused parameter
        frozen_parameters=[model.get_parameter(name) for name in names if name.endswith("mask_token")],
        collapse_patience=_COLLAPSE_PATIENCE,
    )


def describe_run(trainer: TaskTrainer, data: ReidentificationData) -> RunRecord:
    """The record of a training, for the model card and for a later evaluation."""
    args = trainer.args
    assert isinstance(args, ReidentificationArguments)  # make_trainer has copied them
    loaded_with = {name: vars(args)[name] for name in ("dataset", *DATA)}
    names = {name: vars(args)[name] for name in ("backbone", "backbone_config")}
    record = RunRecord.of(
        data.images, loaded_with | {"group_column": args.identity_column}, args, unused=("dataset", *DATA, *names)
    )
    # folders of this machine are private
    settings = {
        name: given if given is None or given.lstrip().startswith("{") else public_name(given)
        for name, given in names.items()
    }
    return replace(record, settings=settings | record.settings, value_counts={})


def _branches_of(model: PreTrainedModel) -> tuple[Branches, int, list[int]]:
    """How a model gives the embeddings of its branches, their width, and the head of each branch."""
    if not isinstance(model, DCALModel):
        return one_branch, ImageEmbedder(model, model.image_processor).config.embedding_dim, [0]
    heads = [*range(model.config.num_heads_at_inference)]
    if model.config.use_pairwise_attention:  # it has the head of self-attention
        return branches_with_pairs, model.config.hidden_size, [*heads, 0]
    return branches_without_pairs, model.config.hidden_size, heads
