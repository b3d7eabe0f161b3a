"""`ADDETrainer`: the three stages of attribute-driven disentangled embeddings (ADDE) as one training.

1. The encoder learns classification and triplets. Its checkpoints and its result are in the folder `encoder`.
2. The memory gets the prototype of each value: the mean embedding of its training images. Nothing is trained.
3. Encoder and memory learn together, on references and images that differ from them in one value or two.
"""

import copy
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch import nn
from torch.utils.data import Dataset, Subset
from transformers import TrainerCallback, set_seed
from transformers.trainer_utils import TrainOutput

from cca_hf.data.change_sampler import ChangeBatchSampler
from cca_hf.data.schema import AttributeDataset
from cca_hf.data.torch_dataset import AttributeImages
from cca_hf.data.value_changes import Changes, enumerate_changes
from cca_hf.evaluation.arrays import to_numpy
from cca_hf.evaluation.change_search import ValueVectors, value_centroids, value_vectors
from cca_hf.evaluation.manipulation import evaluate_manipulation
from cca_hf.evaluation.manipulation_result import ManipulationResult
from cca_hf.evaluation.retrieval.embeddings import Gallery
from cca_hf.models.modeling_adde import ADDEModel
from cca_hf.training.arguments import CCATrainingArguments
from cca_hf.training.checkpoints import last_checkpoint
from cca_hf.training.manipulation_losses import ManipulationLoss, ManipulationWeights
from cca_hf.training.task import Batches, Task
from cca_hf.training.token_cache import TokenCache

from .attribute_evaluator import AttributeEvaluator, Collator, parts_of, sides_of
from .attribute_trainer import CCATrainer, frozen_backbone, label_batches, training_images
from .command_line import TASKS, flag

logger = logging.getLogger(__name__)

ENCODER = "encoder"  # the folder of the first stage, in the output folder
_FINISHED = "trainer_state.json"  # in it, when the stage is complete
_CHANGES = (1, 2)  # attributes that change at once, in the evaluations during the training
_MOST_QUERIES = 2000  # for each of them


@dataclass
class ManipulationArguments(CCATrainingArguments):
    """The arguments of the training of ADDE; those of transformers and of the batches apply to both stages.

    Raises:
        ValueError: for a setting outside its range, or one that this training does not have.
    """

    encoder: Literal["mlp", "cross_attention"] = flag(
        "mlp",
        "What turns the features of an image into its embeddings. mlp: a network with two layers for each attribute, "
        "as in the paper. cross_attention: the conditional layer of CCA.",
    )
    classification_weight: float = flag(1.0, "Weight of the cross-entropy of the classifiers, in both stages.")
    local_weight: float = flag(1.0, "Weight of the triplets of each attribute, in both stages.")
    global_weight: float = flag(0.2, "Weight of the triplets of whole embeddings, in both stages.")
    compositional_weight: float = flag(0.2, "Weight of the triplets of changed embeddings, in the last stage.")
    consistency_weight: float = flag(
        1.0, "Weight of the loss that keeps embeddings near the prototypes of their values, in the last stage."
    )
    memory_weight: float = flag(
        0.4, "Weight of the loss that keeps a prototype out of the blocks of other attributes, in the last stage."
    )
    consistency: Literal["l1", "triplet"] = flag(
        "l1",
        "How embeddings are kept near their prototypes. l1: by the absolute difference. triplet: nearer than the "
        "embeddings of other labels.",
    )
    encoder_epochs: float = flag(8.0, "Number of epochs of the first stage.")
    images_per_prototype: int = flag(
        100, "Number of training images whose mean is the first prototype of a value, between the stages."
    )

    # Arguments of other trainings with another default
    margin: float = flag(
        0.5, "The squared distance of a negative must exceed that of the positive by this margin, at unit length."
    )
    mining: Literal["all", "semihard", "hardest"] = flag(
        "semihard",
        "Triplets that the losses use. all: triplets with a non-zero loss. semihard: triplets with a non-zero loss "
        "whose negative is farther away than the positive. hardest: for each anchor, the hardest positive and the "
        "hardest negative.",
    )
    num_train_epochs: float = flag(
        8.0, "Number of epochs of the last stage. An epoch has about as many images as the training split."
    )
    max_steps: int = flag(
        -1, "Number of training steps of each stage. Above 0, it replaces --encoder_epochs and --num_train_epochs."
    )
    metric_for_best_model: str | None = flag(
        "ndcg",
        "Metric of the changed embeddings that selects the best checkpoint of the last stage, such as ndcg_target. "
        "The best one of the first stage has the highest map.",
    )

    def __post_init__(self) -> None:
        for name in TASKS["manipulate"].unused:
            if vars(self)[name] != CCATrainingArguments.__dataclass_fields__[name].default:
                raise ValueError(f"{name} is not for the training of manipulation: its losses are those of ADDE")
        for name in ("classification", "local", "global", "compositional", "consistency", "memory"):
            if vars(self)[f"{name}_weight"] < 0:
                raise ValueError(f"{name}_weight must be at least 0, got {vars(self)[f'{name}_weight']}")
        if not self.global_weight + self.compositional_weight > 0:
            raise ValueError("global_weight and compositional_weight are both 0: no embedding would be learned")
        if self.encoder_epochs < 0 or self.images_per_prototype < 1:
            raise ValueError(
                "encoder_epochs must be at least 0, and images_per_prototype at least 1; got "
                f"{self.encoder_epochs} and {self.images_per_prototype}"
            )
        super().__post_init__()

    def first_stage(self) -> "ManipulationArguments":
        """Those of the first stage: another folder and number of epochs, and selection by the mAP of retrieval."""
        first = copy.copy(self)
        first.output_dir = str(Path(self.output_dir) / ENCODER)
        first.num_train_epochs = self.encoder_epochs
        first.metric_for_best_model, first.greater_is_better = "map", True
        first.attribute_map = "none"  # the map is fitted at the end
        return first


def _make_loss(
    args: ManipulationArguments, attributes: Mapping[str, Sequence[str]], **weights: float
) -> ManipulationLoss:
    return ManipulationLoss(
        attributes,
        ManipulationWeights(
            classification=args.classification_weight,
            local=args.local_weight,
            whole=args.global_weight,
            **weights,
        ),
        margin=args.margin,
        mining=args.mining,
        temperature=args.temperature if args.loss == "soft_triplet" else None,
        consistency=args.consistency,
        micro_batch_size=args.micro_batch_size,
    )


class MemoryTrainer(CCATrainer):
    """A training of ADDE, whose prototypes are in its memory: the end of a training does not replace them."""

    def _can_set_prototypes(self) -> bool:
        return False


class EncoderTrainer(MemoryTrainer):
    """The first stage: the encoder and the classifiers. No loss reads the memory."""

    def _frozen_parameters(self, args: Any, model: Any) -> list[nn.Parameter]:
        return [*frozen_backbone(args, model), *model.memory.parameters()]

    def _make_task(self, args: Any, data: AttributeDataset, model: Any, loss: Any, cache: TokenCache | None) -> Task:
        return Task(
            label_batches(args, *training_images(args, data, model, cache)),
            _make_loss(args, data.attributes),
            AttributeEvaluator(data, model.image_processor, model.config, cache),
        )


class ChangeEvaluator(AttributeEvaluator):
    """Searches with changed embeddings, as [`ManipulationEvaluator`]; for the evaluations during a training.

    `model` is the one that is trained: its prototypes are those of the evaluations.
    """

    primary_metric = "ndcg"
    shown_metrics = ("ndcg", "ndcg_target", "ndcg_others", "chance_ndcg")

    def __init__(self, data: AttributeDataset, model: ADDEModel, cache: TokenCache | None = None) -> None:
        super().__init__(data, model.image_processor, model.config, cache)
        self.model = model

    def score(self, images: Dataset[Any], predictions: Any, labels: Any) -> ManipulationResult:  # type: ignore[override]
        queries, gallery = sides_of(images, predictions, labels)
        searched = queries if gallery is None else gallery
        values = value_vectors(
            self.model, to_numpy(searched.embeddings), to_numpy(searched.labels), self.data.attributes
        )
        return self._search(queries, gallery, values)

    def metric_names(self, images: Dataset[Any], known_values: Any = None) -> list[str]:
        """The names of the metrics that `score` computes for these images; no image is read.

        Raises:
            ValueError: if the images have no possible change.
        """
        labels = np.concatenate([part.labels.numpy() for part in parts_of(images)])
        queries, gallery = sides_of(images, np.ones((*labels.shape, 1), dtype=np.float32), labels)
        searched = queries if gallery is None else gallery
        values = value_centroids(to_numpy(searched.embeddings), to_numpy(searched.labels), self.data.attributes)
        return list(self._search(queries, gallery, values).metrics())

    def _search(self, queries: Gallery, gallery: Gallery | None, values: ValueVectors) -> ManipulationResult:
        attributes = self.data.attributes
        gallery_labels = None if gallery is None else gallery.labels
        changes = Changes.concatenate(
            [
                enumerate_changes(queries.labels, gallery_labels, number, _MOST_QUERIES)
                for number in _CHANGES
                if number <= len(attributes)
            ]
        )
        return evaluate_manipulation(
            queries.embeddings,
            queries.labels,
            attributes,
            changes,
            values.vectors,
            values.known,
            values_from=values.source,
            gallery=gallery,
            device=self.model.device,
        )


class ADDETrainer(MemoryTrainer):
    """Trains an ADDE model in three stages, and evaluates changed embeddings on `validation`.

    A batch is a pure function of (seed, epoch, step). A killed training that is resumed on a CPU ends with bitwise the
    same weights as an undisturbed one, in whichever stage it was killed.

    Args:
        model: its attributes and values must be those of `data`, in the same order.
        args: see [`ManipulationArguments`].
        data: as for [`CCATrainer`].
        callbacks: as in `Trainer`, for both stages.

    Raises:
        ValueError: as [`CCATrainer`]; if no two training images differ in exactly one attribute, or if the validation
            images have no possible change.
    """

    model: ADDEModel
    args: ManipulationArguments

    def __init__(
        self,
        model: ADDEModel,
        args: ManipulationArguments,
        data: AttributeDataset,
        *,
        callbacks: list[TrainerCallback] | None = None,
        **others: Any,
    ) -> None:
        super().__init__(model, args, data, callbacks=callbacks, **others)
        # as given: a trainer changes its copy
        self._first = EncoderTrainer(model, args.first_stage(), data, callbacks=callbacks)

    def _frozen_parameters(self, args: Any, model: Any) -> list[nn.Parameter]:
        return frozen_backbone(args, model)

    def _make_task(self, args: Any, data: AttributeDataset, model: Any, loss: Any, cache: TokenCache | None) -> Task:
        images, collator = training_images(args, data, model, cache)
        weights = {name: vars(args)[f"{name}_weight"] for name in ("compositional", "consistency", "memory")}
        return Task(
            change_batches(args, images, collator),
            _make_loss(args, data.attributes, **weights),
            ChangeEvaluator(data, model, cache),
        )

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> TrainOutput:
        """The three stages. `metrics["train_runtime"]` is the time of the first and the last together.

        Args:
            resume_from_checkpoint: as in `TaskTrainer.train`. `"last"` and `True` look into both folders: a stage that
                is complete is not repeated. A checkpoint in the folder `encoder` continues the first stage.
        """
        given = self.args.resume_from_checkpoint if resume_from_checkpoint is None else resume_from_checkpoint
        last = given in (True, "last", "true", "True")
        checkpoint: Any = None
        if last:
            checkpoint = last_checkpoint(self.args.output_dir)
        elif isinstance(given, str) and Path(given).absolute().parent != Path(self._first.args.output_dir).absolute():
            checkpoint = given
        if checkpoint is None:
            self._train_encoder(given, use_finished=last)
            self.set_prototypes()
            set_seed(self.args.seed)  # also if the first stage was complete
        outcome = super().train(False if checkpoint is None else str(checkpoint), *args, **kwargs)
        of_first = Path(self._first.args.output_dir) / "all_results.json"
        if of_first.is_file():
            outcome.metrics["train_runtime"] += json.loads(of_first.read_text(encoding="utf-8"))["train_runtime"]
        return outcome

    def _train_encoder(self, checkpoint: str | bool | None, *, use_finished: bool) -> None:
        """The first stage, or its result if it is complete and may be used."""
        first, folder = self._first, Path(self._first.args.output_dir)
        finished = folder / _FINISHED
        if use_finished and finished.is_file():
            logger.info("the first stage is complete: its encoder is loaded from %s", folder)
            self._load_weights(str(folder))
            return
        if first.args.should_save:
            finished.unlink(missing_ok=True)
        outcome = first.train(resume_from_checkpoint=checkpoint or False)
        first.unwrapped_model()  # takes the mixed precision of this trainer off the model
        first.save_model()
        first.save_metrics("train", outcome.metrics)
        first.save_state()
        first.accelerator.wait_for_everyone()

    def set_prototypes(self) -> None:
        """The second stage: the prototype of each value is the mean embedding of some of its training images.

        A value without training images gets none.
        """
        labels, random = self.data.labels("train"), np.random.default_rng(self.args.seed)
        members: dict[tuple[int, int], NDArray[np.int64]] = {}
        for attribute_id, column in enumerate(labels.T):
            for value in np.unique(column[column >= 0]).tolist():
                rows = np.flatnonzero(column == value)
                count = min(len(rows), self.args.images_per_prototype)
                members[attribute_id, value] = np.sort(random.choice(rows, count, replace=False))
        used = np.unique(np.concatenate(list(members.values())))
        images = Subset(self.images_of("train"), used.tolist())
        embeddings = self._embed_images(images, "images of the prototypes")
        most = max(len(values) for values in self.data.attributes.values())
        vectors = np.zeros((labels.shape[1], most, embeddings.shape[-1]), dtype=np.float32)
        known = np.zeros(vectors.shape[:2], dtype=bool)
        for (attribute_id, value), rows in members.items():
            vectors[attribute_id, value] = embeddings[np.searchsorted(used, rows), attribute_id].mean(axis=0)
            known[attribute_id, value] = True
        self.unwrapped_model().set_prototypes(vectors, known)


def change_batches(args: ManipulationArguments, images: AttributeImages, collator: Collator) -> Batches:
    """Batches of references and images that differ from them in one attribute or two."""
    batch_sampler = ChangeBatchSampler(
        images.labels.numpy(),
        batch_size=args.train_batch_size,
        seed=args.seed if args.data_seed is None else args.data_seed,
    )
    epoch = (
        f"An epoch is {len(batch_sampler):,} batches of {batch_sampler.batch_size:,} images, a quarter of them with "
        "an image that differs in one attribute or two."
    )
    return Batches(images, collator, batch_sampler, epoch)
