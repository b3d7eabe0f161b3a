"""`CCATrainer`: a model with attributes, arguments and a data set, made into a task and trained."""

import copy
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.utils.data import Dataset, default_collate
from transformers import EarlyStoppingCallback, TrainerCallback
from transformers.trainer_utils import TrainOutput
from transformers.utils.logging import tqdm

from cca_hf.data.sampler import AttributeBatchSampler
from cca_hf.data.schema import AttributeDataset
from cca_hf.data.torch_dataset import AttributeCollator, AttributeImages, TrainingTransform
from cca_hf.evaluation.change_search import value_centroids
from cca_hf.models.backbones import parameters_of_levels
from cca_hf.models.configuration_images import did_you_mean
from cca_hf.models.modeling_cca import CCAModel
from cca_hf.models.modeling_conditional import AttributeSubspaces
from cca_hf.training.adapters import has_adapter
from cca_hf.training.arguments import FEATURE_MAP_LEARNING_RATE, PRETRAINED_LEARNING_RATE, CCATrainingArguments
from cca_hf.training.attribute_losses import LabelLoss, TripletLoss, ValueProxies
from cca_hf.training.losses import ConditionalSoftTripletLoss, ConditionalTripletLoss
from cca_hf.training.per_attribute_loss import PerAttributeLoss
from cca_hf.training.subspaces import fit_subspaces
from cca_hf.training.task import Batches, Task
from cca_hf.training.token_cache import TokenCache, learns_statistics
from cca_hf.training.trainer import TaskTrainer

from .attribute_evaluator import AttributeEvaluator, Collator, as_attribute_dataset

if TYPE_CHECKING:
    from peft import PeftModel


logger = logging.getLogger(__name__)


class CCATrainer(TaskTrainer):
    """Trains a CCA model on the `train` split of a data set, and evaluates it on `validation`.

    Neither `args` nor the model's `requires_grad` changes: a backbone that is frozen in one training can learn in the
    next. A batch is a pure function of (seed, epoch, step), for any number of workers.

    Args:
        model: its attributes must be those of `data`, in the same order. It may be a `PeftModel`, or have an adapter
            from `model.add_adapter(...)`; checkpoints and `save_model` then contain the adapter alone.
        args: see [`CCATrainingArguments`].
        data: splits `train` and `validation` (or `validation_query` and `validation_gallery`). Without a validation
            split, set `eval_strategy="no"`, or give an `eval_dataset`.
        triplets: ready triplets to train on instead of the labels of `train`: any map-style data set whose batches,
            made by `data_collator`, contain `anchor`, `positive` and `negative` pixel values and `condition` ids.
        data_collator: for `triplets` only; by default their tensors are stacked.
        loss: a loss such as those of other libraries, instead of the one that `args` describe (`loss`, `temperature`,
            `mining`, `margin`, `proxy_weight`); see [`PerAttributeLoss`].
        publish: the function that `push_to_hub` calls. `cca_hf.CCATrainer` has `cca_hf.push_model` without it.
        callbacks, optimizers: as in `Trainer`.
        train_dataset: a `datasets.Dataset` with the model's attributes as columns, instead of the `train` split.
        eval_dataset: what `evaluate` evaluates by default, instead of the `validation` split: a `datasets.Dataset`,
            the name of a split, or a dictionary of either.

    Raises:
        ValueError: if the model's attributes are not those of the data, or options exclude each other.
    """

    def __init__(
        self,
        model: "CCAModel | PeftModel",
        args: CCATrainingArguments,
        data: AttributeDataset | None = None,
        *,
        triplets: Dataset[Any] | None = None,
        data_collator: Callable[[list[Any]], dict[str, torch.Tensor]] | None = None,
        loss: PerAttributeLoss | None = None,
        publish: Callable[..., str] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[torch.optim.Optimizer | None, torch.optim.lr_scheduler.LambdaLR | None] = (None, None),
        train_dataset: datasets.Dataset | None = None,
        eval_dataset: Any = None,
    ) -> None:
        data = _with_train_dataset(model, data, train_dataset)
        if list(model.config.attributes) != list(data.attributes):
            raise ValueError(
                f"the model has the attributes {list(model.config.attributes)}, the data {list(data.attributes)}"
            )
        if data_collator is not None and triplets is None:
            raise ValueError("data_collator is for triplets; images with labels are collated by AttributeCollator")
        if loss is not None and triplets is not None:
            raise ValueError("loss is for images with labels; ready triplets have the triplet loss")
        if args.cache_tokens is not None and triplets is not None:
            raise ValueError("cache_tokens is for images with labels, not for ready triplets")
        if args.micro_batch_size is not None and learns_statistics(model):
            raise ValueError(
                "micro_batch_size needs freeze_batch_norm: the statistics would not be those of the whole batch"
            )
        args = _with_learning_rate(args, model)
        frozen_parameters = self._frozen_parameters(args, model)
        if has_adapter(model):
            _check_adapter(model, frozen_parameters)
        # the images come in this memory format; otherwise every step would convert the weights
        model.to(memory_format=torch.channels_last)
        self.data = data
        # ready triplets do not say which values they show
        self._training_values = data.values_in("train") if triplets is None else None
        self.map_kind = _map_kind(args, model, has_labels=triplets is None)
        if self.map_kind != "none":
            model.config.check_map(self.map_kind, self._training_values or data.values_in("train"))
        if triplets is not None:
            task = _triplet_task(args, data, model, triplets, data_collator)
        else:
            cache = None
            if args.cache_tokens is not None:
                model.to(args.device)
                cache = TokenCache(
                    args.cache_tokens,
                    model,
                    data,
                    dtype=args.cache_dtype,
                    flipped=args.horizontal_flip > 0,
                    autocast=torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else None,
                    batch_size=args.per_device_eval_batch_size,
                    num_workers=args.dataloader_num_workers,
                    frozen_parameters=frozen_parameters,
                )
            task = self._make_task(args, data, model, loss, cache)
        callbacks = list(callbacks or [])
        if has_adapter(model) and model.subspaces is not None:
            callbacks.append(ResetSubspaces())
        if args.early_stopping_patience:
            callbacks.append(EarlyStoppingCallback(args.early_stopping_patience, args.early_stopping_threshold))
        if eval_dataset is None and args.eval_strategy != "no":
            eval_dataset = "validation"
        super().__init__(
            model,
            args,
            task,
            eval_dataset=eval_dataset,
            head_learning_rate=args.head_learning_rate,
            frozen_parameters=frozen_parameters,
            collapse_patience=args.collapse_patience,
            publish=publish,
            callbacks=callbacks,
            optimizers=optimizers,
        )
        if self.args.eval_strategy != "no":
            self._check_metric()

    def _frozen_parameters(self, args: CCATrainingArguments, model: "CCAModel | PeftModel") -> list[nn.Parameter]:
        """What does not learn, such as a classifier, which changes no embedding: the loss reads embeddings alone."""
        return [*frozen_backbone(args, model), *model.parameters_without_effect()]

    def _make_task(
        self,
        args: CCATrainingArguments,
        data: AttributeDataset,
        model: "CCAModel | PeftModel",
        loss: PerAttributeLoss | None,
        cache: TokenCache | None,
    ) -> Task:
        """The task of images with labels, from the files or from a token cache."""
        dim = model.config.embedding_dim or model.config.hidden_size
        between_images = None if loss is None else loss.settle(data.attributes, dim)
        return Task(
            label_batches(args, *training_images(args, data, model, cache)),
            make_loss(args, data.attributes, dim, between_images),
            AttributeEvaluator(data, model.image_processor, model.config, cache),
        )

    def _check_metric(self) -> None:
        """Raises `ValueError` if the evaluations during the training will not have `metric_for_best_model`."""
        evaluator = self.evaluator
        assert isinstance(evaluator, AttributeEvaluator)  # every task of this trainer has one
        images = self.eval_dataset if isinstance(self.eval_dataset, dict) else {"": self.eval_dataset}
        names = [
            f"{name}_{metric}" if name else metric
            for name, each in images.items()
            for metric in evaluator.metric_names(each, self._training_values)
        ]
        metric = self.args.metric_for_best_model.removeprefix("eval_")
        if metric not in names:
            achieved = [name for name in names if "chance_" not in name]
            raise ValueError(
                f"metric_for_best_model {metric!r} is not a metric of the evaluation.{did_you_mean(metric, names)} "
                f"The metrics are {', '.join(achieved)}"
            )

    def check_checkpoint(self, checkpoint: Path) -> None:
        """As `TaskTrainer.check_checkpoint`; also compares the attributes, whose ids are rows of the weights."""
        super().check_checkpoint(checkpoint)
        if not (checkpoint / "config.json").is_file():  # of an adapter
            return
        attributes = json.loads((checkpoint / "config.json").read_text(encoding="utf-8")).get("attributes")
        expected = list(self.model.config.attributes)
        if attributes is not None and list(attributes) != expected:
            raise ValueError(
                f"{checkpoint} was trained with the attributes {attributes}, and this model has {expected}"
            )

    def train(self, *args: Any, **kwargs: Any) -> TrainOutput:
        """As `TaskTrainer.train`. Sets `known_values` of the model's configuration to those of the training images.

        The model learns without an attribute map; `fit_subspaces` follows the last step. The mean embedding of the
        training images of each value becomes its prototype, see `CCAModel.value_prototypes`.
        """
        self.model.config.known_values = self._training_values
        if not has_adapter(self.model):
            model = self.unwrapped_model()
            model.set_attribute_map("none")
            if model.prototypes is not None:  # they belong to the earlier weights
                model.set_prototypes(None)
        outcome = super().train(*args, **kwargs)
        if self.map_kind != "none":
            self.fit_subspaces()
        elif self._can_set_prototypes():
            self._set_prototypes(*self.embed("train"))
        return outcome

    def _can_set_prototypes(self) -> bool:
        """Whether the model can have prototypes of the values of the training images.

        They are rows in the order of the values in the configuration, which must be the order of the data.
        """
        model = self.unwrapped_model()
        if has_adapter(model):
            if model.has_prototypes:
                logger.warning(
                    "an adapter does not save the prototypes of values: those of the model belong to its weights "
                    "without the adapter. After merging the two, model.set_prototypes(None) removes them"
                )
            return False
        return self._training_values is not None and model.config.attribute_values == self.data.attributes

    def _set_prototypes(self, embeddings: NDArray, labels: NDArray[np.int64]) -> None:
        """The prototype of a value becomes the mean embedding of its images; a value without images gets none.

        The value proxies of the loss are not used: they lie apart from the embeddings, see docs/manipulation.md.

        Args:
            embeddings: (images, attributes, dim), without the attribute map.
            labels: (images, attributes), -1 = not labelled.
        """
        means = value_centroids(embeddings, labels, self.data.attributes)
        self.unwrapped_model().set_prototypes(means.vectors, means.known)

    def fit_subspaces(self) -> None:
        """Fits the attribute map to the training split, as the model embeds it now; see `training/subspaces.py`.

        `train` calls it when the model has its final weights. A further call starts over.

        Raises:
            ValueError: if the model is to have no map.
        """
        if self.map_kind == "none":
            raise ValueError("this training fits no attribute map: set attribute_map in the arguments")
        model = self.unwrapped_model()
        if has_adapter(model):
            model.subspaces.reset()
        else:
            model.config.known_values = self.data.values_in("train")
            model.set_attribute_map(self.map_kind)
        held_out = [split for split in self.data.splits if split.startswith("validation")]
        training = self.embed("train")
        fit_subspaces(
            model.subspaces,
            *training,
            held_out=self.embed(*held_out) if held_out else None,
            proxies=self.learned_proxies(),
            temperature=self.args.temperature,
        )
        if self._can_set_prototypes():
            self._set_prototypes(*training)

    def embed(self, *splits: str) -> tuple[NDArray, NDArray[np.int64]]:
        """Embeddings (images, attributes, dim) and labels (images, attributes) of whole splits, on every process.

        They come from the token cache, if there is one.
        """
        embeddings = [self._embed_images(self.images_of(split), split) for split in splits]
        labels = np.concatenate([self.data.labels(split) for split in splits])
        return np.concatenate(embeddings), labels

    def _embed_images(self, images: Dataset[Any], name: str) -> NDArray:
        """Embeddings (images, attributes, dim) on every process; `name` is for the progress bar."""
        wrapped = self._wrap_model(self.model, training=False).eval()
        quiet = self.args.disable_tqdm or not self.is_world_process_zero()
        embeddings = []
        batches = self.get_test_dataloader(images)
        for batch in tqdm(batches, desc=f"Embedding {name}", unit="batch", leave=False, disable=quiet):
            of_process = self.prediction_step(wrapped, batch, False)[1]
            embeddings.append(self.accelerator.gather_for_metrics(of_process).cpu())
        return torch.cat(embeddings).numpy()

    def learned_proxies(self) -> NDArray | None:
        """The value proxies of the checkpoint that was loaded at the end, if the loss has learned them."""
        proxies = self.task.loss.proxies if isinstance(self.task.loss, LabelLoss) else None
        if proxies is None or self.state.global_step == 0:
            return None
        best = self.state.best_model_checkpoint if self.args.load_best_model_at_end else None
        if best is not None and (Path(best) / proxies.file_name).is_file():
            proxies.load(best)
        return proxies.vectors.detach().float().cpu().numpy()

    def _read_checkpoint(self, checkpoint: str) -> nn.Module:
        """The model of a checkpoint; a run of version 0.1 stored an attribute map that was not fitted."""
        model: Any = super()._read_checkpoint(checkpoint)
        return model if self.model.subspaces is not None else model.set_attribute_map("none")


class ResetSubspaces(TrainerCallback):
    """Removes the effect of a fitted map while an adapter learns: it belongs to the earlier weights."""

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        model.subspaces.reset()


def _map_kind(args: CCATrainingArguments, model: "CCAModel | PeftModel", has_labels: bool) -> str:
    """The attribute map that the training fits.

    Raises:
        ValueError: if `args` ask for a map that an adapter does not save.
    """
    present: str = model.config.map_kind
    if has_adapter(model) and args.attribute_map not in (None, present):
        raise ValueError(
            f"an adapter can have only the attribute map of its model, {present!r}; got {args.attribute_map!r}"
        )
    if args.attribute_map is not None:
        return args.attribute_map
    if present != "none":
        return present
    one_space = vars(model.config).get("condition_embedding") == "none"
    return "none" if one_space or has_adapter(model) or not has_labels else "values"


def _with_train_dataset(
    model: CCAModel, data: AttributeDataset | None, train_dataset: datasets.Dataset | None
) -> AttributeDataset:
    if train_dataset is None:
        if data is None:
            raise ValueError("give data, an AttributeDataset, or a train_dataset")
        return data
    known = model.config.attribute_values or {}
    attributes = {name: known.get(name, []) for name in model.config.attributes} if data is None else data.attributes
    group_column = None if data is None else data.group_column
    given = as_attribute_dataset(train_dataset, "train", attributes, group_column)
    if data is None:
        return given
    return replace(data, splits=datasets.DatasetDict({**data.splits, "train": given["train"]}))


def _with_learning_rate(args: CCATrainingArguments, model: CCAModel) -> CCATrainingArguments:
    """A copy of the arguments with the backbone's default learning rate, if they have none."""
    args = copy.copy(args)
    if args.learning_rate is None:
        if model.config.backbone_name is None:
            args.learning_rate = args.head_learning_rate
        else:
            args.learning_rate = FEATURE_MAP_LEARNING_RATE if model.config.feature_levels else PRETRAINED_LEARNING_RATE
    return args


def frozen_backbone(args: CCATrainingArguments, model: "CCAModel | PeftModel") -> list[nn.Parameter]:
    """The backbone, or its levels that `args` freeze: by default all levels of a pretrained backbone."""
    if args.freeze_backbone:
        return list(model.backbone.parameters())
    levels = args.frozen_levels
    if levels is None:
        # the configuration of an adapter decides what learns
        learns = model.config.backbone_name is None or has_adapter(model)
        levels = 0 if learns else len(model.config.feature_levels)
    # in eval mode: the empty image must not change statistics of batch normalisation
    return parameters_of_levels(model.in_eval_mode().backbone, model.config, levels)


def _check_adapter(model: "CCAModel | PeftModel", frozen_parameters: list[nn.Parameter]) -> None:
    """Raises `ValueError` if the adapter would not learn, or does not save all that the training changes."""
    if any(parameter.requires_grad for parameter in frozen_parameters):
        raise ValueError(
            "freeze_backbone and frozen_levels would freeze the adapter, whose configuration decides what learns"
        )
    if learns_statistics(model):
        raise ValueError(
            "an adapter does not save statistics of batch normalisation: make the model with freeze_batch_norm=True"
        )
    if isinstance(model.subspaces, AttributeSubspaces):  # the module itself, not PEFT's wrapper of it
        raise ValueError(
            "the model has an attribute map: name 'subspaces' in modules_to_save of the adapter's configuration. The "
            "map is fitted at the end of the training, and must be saved with the adapter"
        )


def training_images(
    args: CCATrainingArguments, data: AttributeDataset, model: "CCAModel | PeftModel", cache: TokenCache | None
) -> tuple[AttributeImages, Collator]:
    """The images of `train` with their augmentation, from the files or from a token cache, and their collator."""
    transform = TrainingTransform(
        horizontal_flip=args.horizontal_flip,
        crop_scale=(args.crop_scale, 1.0),
        crop_ratio=(1 / args.crop_ratio, args.crop_ratio),
        colour_jitter=args.colour_jitter,
    )
    if cache is None:
        return AttributeImages(data, "train", transform), AttributeCollator(model.image_processor)
    return cache.images_of("train", transform), cache.collator


def label_batches(args: CCATrainingArguments, images: AttributeImages, collator: Collator) -> Batches:
    """Batches of P values times K images of one attribute after the other."""
    batch_sampler = AttributeBatchSampler(
        images.labels.numpy(),
        batch_size=args.train_batch_size,
        images_per_value=args.images_per_value,
        values_per_batch=args.values_per_batch,
        seed=args.seed if args.data_seed is None else args.data_seed,
    )
    batches, size = len(batch_sampler), batch_sampler.batch_size
    epoch = (
        f"An epoch is {batches:,} batches of {size:,} images, {batches * size:,} in all. They are drawn from "
        f"{len(images):,} training images, so that every value of every attribute occurs."
    )
    return Batches(images, collator, batch_sampler, epoch)


def _triplet_task(
    args: CCATrainingArguments,
    data: AttributeDataset,
    model: "CCAModel | PeftModel",
    triplets: Dataset[Any],
    collator: Collator | None,
) -> Task:
    """Ready triplets, in random order; evaluated on the images with labels of `data`."""
    return Task(
        Batches(triplets, collator or default_collate),
        TripletLoss(args.margin, list(data.attributes), args.micro_batch_size),
        AttributeEvaluator(data, model.image_processor, model.config),
    )


def make_loss(
    args: CCATrainingArguments, attributes: Mapping[str, Sequence[str]], dim: int, criterion: nn.Module | None = None
) -> LabelLoss:
    """The loss that `args` describe: between images, plus the loss of the value proxies.

    Args:
        dim: width of the embeddings.
        criterion: a loss between images instead, without value proxies.
    """
    names, micro_batch_size = list(attributes), args.micro_batch_size
    if criterion is not None:
        return LabelLoss(criterion, names, micro_batch_size=micro_batch_size)
    criterion = (
        ConditionalSoftTripletLoss(args.temperature, args.margin)
        if args.loss == "soft_triplet"
        else ConditionalTripletLoss(args.margin, args.mining)
    )
    proxies = None
    if args.proxy_weight > 0:
        proxies = ValueProxies(
            [len(values) for values in attributes.values()],
            dim,
            temperature=args.temperature,
            learning_rate=args.proxy_learning_rate,
            seed=args.seed,
        )
    return LabelLoss(
        criterion, names, proxies=proxies, proxy_weight=args.proxy_weight, micro_batch_size=micro_batch_size
    )
