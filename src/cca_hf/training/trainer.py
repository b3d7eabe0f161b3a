"""`CCATrainer`: transformers' Trainer for conditional embeddings.

What it adds: batches for the triplets of all attributes, the conditional loss over the joined batch of all processes,
rates of backbone and head, evaluation by retrieval, figures of each attribute. Checkpoints: see `checkpoints.py`.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from accelerate.utils import broadcast_object_list
from torch import nn
from torch.utils.data import DataLoader, Dataset, RandomSampler, Subset, default_collate
from transformers import BaseImageProcessor, EarlyStoppingCallback, PrinterCallback, ProgressCallback, TrainerCallback
from transformers.trainer_utils import EvalLoopOutput, PredictionOutput, TrainOutput
from transformers.utils.logging import tqdm

from cca_hf.data.collator import AttributeCollator
from cca_hf.data.sampler import AttributeBatchSampler
from cca_hf.data.schema import AttributeDataset
from cca_hf.data.torch_dataset import AttributeImages, QueriesAndGallery
from cca_hf.data.transforms import TrainingTransform
from cca_hf.evaluation.retrieval.confusions import Confusion, nearest_confusions
from cca_hf.evaluation.retrieval.embeddings import Gallery, evaluate_splits
from cca_hf.evaluation.retrieval.result import EvaluationResult
from cca_hf.models.modeling_cca import CCAModel

from .arguments import CCATrainingArguments
from .callbacks import BriefPrinter, BriefProgress, TellSamplerTheEpoch
from .checkpoints import (
    TrainingFailedError,
    WholeCheckpointTrainer,
    check_same_attributes,
    last_checkpoint,
    remove_leftovers,
)
from .distributed import gather_with_gradient
from .losses import ConditionalLossOutput, explicit_triplet_loss
from .memory import keep_freed_memory
from .monitor import LossMonitor
from .objective import Objective
from .parameters import settle_backbone, split_backbone_and_head, undecayed_parameters
from .per_attribute_loss import PerAttributeLoss
from .subspaces import fit_subspaces
from .token_cache import make_token_cache


class CCATrainer(WholeCheckpointTrainer):
    """Trains a CCA model on the `train` split of a data set, and measures it on `validation`.

    A batch is a pure function of (seed, epoch, step), whatever the number of workers: a run that was killed and
    resumed on a CPU ends with bitwise the same weights as an undisturbed one.

    Args:
        model: its attributes have to be those of `data`, in the same order.
        args: see [`CCATrainingArguments`].
        data: splits `train` and `validation` (or `validation_query` and `validation_gallery`), without which it has
            to be `eval_strategy="no"`.
        triplets: ready triplets to train on instead of the labels of `train`: any map-style data set whose batches,
            made by `data_collator`, hold `anchor`, `positive` and `negative` pixel values and `condition` ids.
        data_collator: for `triplets` only; by default their tensors are stacked.
        loss: of another library or your own, in the place of all that `args` say of the loss (`loss`, `temperature`,
            `mining`, `margin`, `proxy_weight`); see [`PerAttributeLoss`].
        publish: what `push_to_hub` calls: `cca_hf.push_model`.
        callbacks, optimizers: as in `Trainer`.

    Raises:
        ValueError: if the model's attributes are not those of the data.
    """

    # the loss of a batch is a mean: the Trainer divides it by the steps of gradient accumulation
    loss_is_scaled_for_ga = False

    def __init__(
        self,
        model: CCAModel,
        args: CCATrainingArguments,
        data: AttributeDataset,
        *,
        triplets: Dataset[Any] | None = None,
        data_collator: Callable[[list[Any]], dict[str, torch.Tensor]] | None = None,
        loss: PerAttributeLoss | None = None,
        publish: Callable[..., str] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[torch.optim.Optimizer | None, torch.optim.lr_scheduler.LambdaLR | None] = (None, None),
    ) -> None:
        if list(model.config.attributes) != list(data.attributes):
            raise ValueError(
                f"the model has the attributes {list(model.config.attributes)}, the data {list(data.attributes)}"
            )
        if data_collator is not None and triplets is None:
            raise ValueError("data_collator is for triplets; labelled pictures have a collator of their own")
        if loss is not None and triplets is not None:
            raise ValueError("loss is for labelled pictures; ready triplets have the triplet loss")
        if args.cache_tokens is not None and triplets is not None:
            raise ValueError("cache_tokens is for labelled pictures, not for ready triplets")
        settle_backbone(model, args)
        self.publish = publish
        self.data = data
        self.token_cache = make_token_cache(args, model, data)
        dim = model.config.embedding_dim or model.config.hidden_size
        self.loss: Objective | PerAttributeLoss
        if loss is None:
            self.loss = Objective(args, [len(values) for values in data.attributes.values()], dim).to(args.device)
        else:
            self.loss = loss.settle(data.attributes, dim, args.device)
        self.monitor = LossMonitor(list(data.attributes), args.collapse_patience)
        self.evaluation_result: EvaluationResult | None = None  # the latest one, on the main process
        processor = model.image_processor
        collator: Callable[[list[Any]], Any] = AttributeCollator(processor, resized=False)
        train_dataset: Dataset[Any]
        if triplets is None:
            train_dataset = self._images("train", training_transform(args, processor))
            self._train_collator: Callable[[list[Any]], Any] = AttributeCollator(processor, resized=True)
            if self.token_cache is not None:
                self._train_collator = collator = self.token_cache.collator
        else:
            train_dataset = triplets
            self._train_collator = data_collator or default_collate
        super().__init__(
            model=model,
            args=args,
            data_collator=collator,  # of evaluation; see get_train_dataloader
            train_dataset=train_dataset,
            eval_dataset=None if args.eval_strategy == "no" else self.images_of("validation"),
            processing_class=processor,
            callbacks=callbacks,
            optimizers=optimizers,
        )
        self.model_accepts_loss_kwargs = False
        self._tell_sampler_the_epoch = TellSamplerTheEpoch()
        self.add_callback(self._tell_sampler_the_epoch)
        for theirs, brief in ((ProgressCallback, BriefProgress), (PrinterCallback, BriefPrinter)):
            if self.pop_callback(theirs) is not None:  # a notebook has another one
                self.add_callback(brief)
        if args.early_stopping_patience:
            self.add_callback(EarlyStoppingCallback(args.early_stopping_patience, args.early_stopping_threshold))

    # ---- Data ----

    def images_of(self, split: str) -> AttributeImages | QueriesAndGallery:
        """A split, for `evaluate` and `predict`; `"test"` may stand for `test_query` and `test_gallery`."""
        if split not in self.data and f"{split}_query" in self.data:
            return QueriesAndGallery(self._images(f"{split}_query"), self._images(f"{split}_gallery"))
        return self._images(split)

    def _images(self, split: str, transform: TrainingTransform | None = None) -> AttributeImages:
        if self.token_cache is not None:
            return self.token_cache.images_of(split, transform)
        return AttributeImages(self.data, split, transform)

    def get_train_dataloader(self) -> DataLoader:
        """Batches of `AttributeBatchSampler`, each process its own; or of the ready triplets, in random order."""
        loading = {
            "collate_fn": self._train_collator,
            "num_workers": self.args.dataloader_num_workers,
            "pin_memory": self.args.dataloader_pin_memory,
            "persistent_workers": self.args.dataloader_persistent_workers,
            "prefetch_factor": self.args.dataloader_prefetch_factor,
        }
        if isinstance(self.train_dataset, AttributeImages):
            batches = AttributeBatchSampler(
                self.train_dataset.labels.numpy(),
                batch_size=self._train_batch_size,
                images_per_value=self.args.images_per_value,
                values_per_batch=self.args.values_per_batch,
                seed=self.args.seed if self.args.data_seed is None else self.args.data_seed,
            )
            self._tell_sampler_the_epoch.sampler = batches
            loader = DataLoader(self.train_dataset, batch_sampler=batches, **loading)
        else:
            order = RandomSampler(self.train_dataset)
            loader = DataLoader(self.train_dataset, batch_size=self._train_batch_size, sampler=order, **loading)
        return self.accelerator.prepare(loader)

    # ---- Training ----

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> TrainOutput:
        """As `Trainer.train`; `True` resumes from the last complete checkpoint.

        Raises:
            TrainingFailedError: the loss is NaN or infinite, or the embeddings have collapsed. Nothing is saved then.
            CheckpointError: a checkpoint could not be written. Earlier ones are untouched.
            ValueError: there is nothing to resume from, or it has other attributes.
        """
        if resume_from_checkpoint is True:
            last = last_checkpoint(self.args.output_dir)
            if last is None:
                raise ValueError(f"nothing to resume from: there is no complete checkpoint in {self.args.output_dir}")
            resume_from_checkpoint = str(last)
        if resume_from_checkpoint:
            check_same_attributes(resume_from_checkpoint, self.model.config)
            self.loss.load(resume_from_checkpoint)
        if self.args.should_save:
            remove_leftovers(self.args.output_dir)
        if self.args.device.type == "cpu":
            keep_freed_memory()
        return super().train(resume_from_checkpoint, trial, ignore_keys_for_eval)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """The Trainer's optimiser, with groups of backbone and head."""
        if self.optimizer is not None:
            return self.optimizer
        optimizer = super().create_optimizer(model)
        split_backbone_and_head(optimizer, self.model if model is None else model, self.args.head_learning_rate)
        return optimizer

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Names of the parameters that decay."""
        undecayed = undecayed_parameters(model)
        return [name for name in super().get_decay_parameter_names(model) if name not in undecayed]

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, ConditionalLossOutput]:
        """The conditional loss of the joined batch of all processes, the same on each of them."""
        loss_of = self._loss_of_triplets if "condition" in inputs else self._loss_of_labels
        output = loss_of(model, inputs)
        try:
            self.monitor.add(output)
        except TrainingFailedError as error:
            raise self._failed(str(error)) from None
        return (output.loss, output) if return_outputs else output.loss

    def _loss_of_labels(self, model: nn.Module, inputs: dict[str, torch.Tensor]) -> ConditionalLossOutput:
        embeddings = self._embed_under_all(model, inputs)  # (B, A, D)
        return self.loss(gather_with_gradient(embeddings), gather_with_gradient(inputs["labels"]))

    def _loss_of_triplets(self, model: nn.Module, inputs: dict[str, torch.Tensor]) -> ConditionalLossOutput:
        images = torch.cat([inputs["anchor"], inputs["positive"], inputs["negative"]])  # (3B, C, H, W)
        condition = inputs["condition"]
        embeddings = self._embed(model, pixel_values=images, attribute_ids=condition.repeat(3))  # (3B, D)
        anchor, positive, negative = (gather_with_gradient(part) for part in embeddings.chunk(3))
        return explicit_triplet_loss(
            anchor,
            positive,
            negative,
            self.args.margin,
            attribute_ids=gather_with_gradient(condition),
            num_attributes=len(self.data.attributes),
        )

    def _embed_under_all(self, model: nn.Module, inputs: dict[str, Any]) -> torch.Tensor:
        labels = inputs["labels"]
        every = torch.arange(len(self.data.attributes), device=labels.device).expand(len(labels), -1)
        pictures = {name: value for name, value in inputs.items() if name != "labels"}  # or features of them
        return self._embed(model, **pictures, attribute_ids=every)

    def _embed(self, model: nn.Module, **inputs: Any) -> torch.Tensor:
        return model(**inputs, micro_batch_size=self.args.micro_batch_size).embeddings

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """As the Trainer counts them where there are pictures; of kept features it knows nothing."""
        return super().floating_point_ops(inputs) if "pixel_values" in inputs else 0

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the head's learning rate and the figures of each attribute to the Trainer's training logs."""
        if "loss" in logs:
            logs["head_learning_rate"] = self.optimizer.param_groups[-1]["lr"]
            logs.update(self.monitor.drain())
        super().log(logs, start_time)

    def _save_rng_state(self, output_dir: str) -> None:
        """Saves what the loss has learned beside the random states."""
        super()._save_rng_state(output_dir)
        if self.args.should_save:
            self.loss.save(output_dir)

    def _embed_training_images(self, rows: np.ndarray) -> np.ndarray:
        """(rows, attributes, dim) float32, of the pictures as they are; the same on all processes."""
        loader = self.get_test_dataloader(Subset(self._images("train"), rows.tolist()))
        model = self._wrap_model(self.model, training=False).eval()
        quiet = self.args.disable_tqdm or not self.is_world_process_zero()
        embeddings = [
            self.accelerator.gather_for_metrics(self.prediction_step(model, batch, False)[1]).cpu()
            for batch in tqdm(loader, desc="Embedding the training pictures", unit="batch", leave=False, disable=quiet)
        ]
        return torch.cat(embeddings).numpy()

    def fit_subspaces(self) -> None:
        """Fits `model.subspaces` to the training split, as the model embeds it now; see `subspaces.py`.

        For the end of training, with the weights that are kept. Fitting again starts over.

        Raises:
            ValueError: if the model was not made with `attribute_subspaces=True`.
        """
        model = self.accelerator.unwrap_model(self.model)
        if model.subspaces is None:
            raise ValueError("this model has no subspaces to fit: make it with attribute_subspaces=True")
        model.subspaces.reset()
        labels = self.data.labels("train")
        embeddings = self._embed_training_images(np.arange(len(labels)))
        fit_subspaces(model.subspaces, embeddings, labels)

    # ---- Evaluation ----

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, torch.Tensor],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[None, torch.Tensor, torch.Tensor]:
        """No loss; embeddings under all attributes `(batch, attributes, dim)`, and labels `(batch, attributes)`."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            embeddings = self._embed_under_all(model, inputs)
        return None, embeddings.float(), inputs["labels"]

    def evaluation_loop(
        self,
        dataloader: DataLoader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Embeds a split and adds the figures of its retrieval, as fractions, to the metrics: `eval_map`, ..."""
        output = super().evaluation_loop(dataloader, description, False, ignore_keys, metric_key_prefix)
        metrics: list[dict[str, float]] = [{}]
        if self.is_world_process_zero():
            self.evaluation_result = self._evaluate_retrieval(dataloader.dataset, output.predictions, output.label_ids)
            metrics = [self.evaluation_result.metrics()]
        broadcast_object_list(metrics)
        output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in metrics[0].items()})
        return output

    def _evaluate_retrieval(
        self, images: Dataset[Any], embeddings: np.ndarray, labels: np.ndarray
    ) -> EvaluationResult:
        if not np.isfinite(embeddings).all():
            raise self._failed("embeddings of the evaluation are NaN or infinite")
        asked, gallery, splits = self._asked_and_answering(images, embeddings, labels)
        return evaluate_splits(self.data, asked, gallery, splits, self.args.device)

    def confusions_of(self, images: Dataset[Any], predicted: PredictionOutput) -> dict[str, list[Confusion]]:
        """Which values are taken for which, by what `predict` returned for `images`."""
        asked, gallery, _ = self._asked_and_answering(images, predicted.predictions, predicted.label_ids)
        return nearest_confusions(
            asked.embeddings, asked.labels, self.data.attributes, groups=asked.groups, gallery=gallery
        )

    def _asked_and_answering(
        self, images: Dataset[Any], embeddings: np.ndarray, labels: np.ndarray
    ) -> tuple[Gallery, Gallery | None, list[str]]:
        """Queries, their gallery unless it is themselves, and the splits, with what the data set says of them."""
        gallery, splits = None, []
        if isinstance(images, QueriesAndGallery):
            start = len(images.queries)
            splits = [images.gallery.split]
            gallery = Gallery.of_split(self.data, images.gallery.split, embeddings[start:], labels[start:])
            images, embeddings, labels = images.queries, embeddings[:start], labels[:start]
        if not isinstance(images, AttributeImages):
            raise TypeError(
                f"retrieval is evaluated on AttributeImages or QueriesAndGallery, got {type(images).__name__}"
            )
        return Gallery.of_split(self.data, images.split, embeddings, labels), gallery, [images.split, *splits]


def training_transform(args: CCATrainingArguments, image_processor: BaseImageProcessor) -> TrainingTransform:
    """The augmentation that `args` describe, to the size of the processor's pictures."""
    return TrainingTransform(
        (image_processor.size["height"], image_processor.size["width"]),
        horizontal_flip=args.horizontal_flip,
        crop_scale=(args.crop_scale, 1.0),
        crop_ratio=(1 / args.crop_ratio, args.crop_ratio),
        colour_jitter=args.colour_jitter,
        resample=image_processor.resample,
    )
