"""The Trainer of all tasks: transformers' Trainer with a [`Task`] in place of data sets, collator and metrics."""

import copy
import logging
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate.utils import broadcast_object_list
from torch import nn
from torch.utils.data import DataLoader, Dataset, RandomSampler
from transformers import PreTrainedModel, TrainingArguments
from transformers.trainer_callback import TrainerCallback, TrainerControl, TrainerState
from transformers.trainer_utils import EvalLoopOutput, IntervalStrategy, TrainOutput

from cca_hf.evaluation.results import Result

from .adapters import ADAPTER_CONFIG, MERGE_FIRST, check_adapter, has_adapter
from .arguments import check_supported
from .averaging import WeightAveraging
from .checkpoints import TrainingFailedError, WholeCheckpointTrainer, last_checkpoint, remove_leftovers
from .distributed import copy_from_first_process
from .monitor import LossMonitor
from .parameters import frozen, set_learning_rates, split_backbone_and_head, undecayed_parameters
from .progress import show_briefly
from .task import LossOutput, Task

if TYPE_CHECKING:
    from peft import PeftModel

logger = logging.getLogger(__name__)


class TaskTrainer(WholeCheckpointTrainer):
    """Trains a model on a task. It works on a copy of `args`, and leaves the model's `requires_grad` as it was.

    If the batches are a pure function of (seed, epoch, step), a run that was killed and resumed on a CPU ends with
    bitwise the same weights as an undisturbed one.

    Args:
        model: any model of transformers with an `image_processor`, also with an adapter of PEFT: a `PeftModel`, or
            after `model.add_adapter(...)`.
        args: `TrainingArguments`; `learning_rate` is the rate of the backbone if there is a `head_learning_rate`.
        task: batches, loss and evaluator, see [`Task`].
        eval_dataset: what `evaluate` evaluates by default: a split's name, a data set, or a dictionary of either.
        head_learning_rate: rate of all parameters outside `backbone`. Default: the same rate.
        learning_rates: rates of single parameters, by name. Default: `learning_rate`.
        frozen_parameters: parameters that do not learn in this training.
        ema_decay: evaluate and save the moving average of the weights, see [`WeightAveraging`]. Default: the weights.
        collapse_patience: see [`LossMonitor`].
        publish: the function that `push_to_hub` calls. `cca_hf.CCATrainer` has `cca_hf.push_model` without it.
        callbacks, optimizers: as in `Trainer`.

    Raises:
        ValueError: if `args` request evaluations and there is no `eval_dataset`, or no evaluator; for an adapter that
            cannot be trained, see [`check_adapter`].
    """

    # the loss of a batch is a mean: the Trainer divides it by the steps of gradient accumulation
    loss_is_scaled_for_ga = False

    def __init__(
        self,
        model: "PreTrainedModel | PeftModel",
        args: TrainingArguments,
        task: Task,
        *,
        eval_dataset: Any = None,
        head_learning_rate: float | None = None,
        learning_rates: Mapping[str, float] | None = None,
        frozen_parameters: Iterable[nn.Parameter] = (),
        ema_decay: float | None = None,
        collapse_patience: int = 0,
        publish: Callable[..., str] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[torch.optim.Optimizer | None, torch.optim.lr_scheduler.LambdaLR | None] = (None, None),
    ) -> None:
        if has_adapter(model):
            if args.push_to_hub:
                raise ValueError(MERGE_FIRST)
            check_adapter(model)
        check_supported(args)
        if args.auto_find_batch_size and task.batches.batch_sampler is not None:
            raise ValueError(
                "auto_find_batch_size cannot change the batches of this task: set per_device_train_batch_size, or "
                "micro_batch_size, which needs less memory for the same batches"
            )
        args, evaluator = copy.copy(args), task.evaluator
        args.remove_unused_columns = False  # the collator selects the columns
        # the Trainer would leave out the last images of an evaluation as well
        self._drop_last_batch, args.dataloader_drop_last = args.dataloader_drop_last, False
        if evaluator is not None and args.metric_for_best_model in (None, "loss", "eval_loss"):
            args.metric_for_best_model, args.greater_is_better = evaluator.primary_metric, True
        self.task = task
        self.loss = task.loss.to(args.device)
        copy_from_first_process(list(self.loss.parameters()))
        self.evaluator = evaluator
        self.head_learning_rate = head_learning_rate
        self.learning_rates = learning_rates
        self.frozen_parameters = list(frozen_parameters)
        self.ema_decay = ema_decay
        self.averaging: WeightAveraging | None = None  # of the training that runs
        self.monitor = LossMonitor(collapse_patience)
        if publish is not None:
            self.publish = publish
        self.evaluation_result: Result | None = None  # the latest result, on the main process
        super().__init__(
            model=model,
            args=args,
            data_collator=task.batches.collator if evaluator is None else evaluator.collator,
            train_dataset=task.batches.dataset,
            eval_dataset=self._images(eval_dataset),
            processing_class=model.image_processor,
            callbacks=callbacks,
            optimizers=optimizers,
        )
        self.model_accepts_loss_kwargs = False
        if ema_decay is not None and (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            raise ValueError("ema_decay needs whole weights on each device: it is not for FSDP and DeepSpeed")
        self.add_callback(StepTask(self))
        show_briefly(self, [] if evaluator is None else evaluator.shown_metrics, task.batches.epoch)

    # ---- Data ----

    def images_of(self, split: str) -> Dataset[Any]:
        """The images of a split as the evaluator reads them."""
        if self.evaluator is None:
            raise ValueError("this trainer has no evaluator: its task was made without one")
        return self.evaluator.images(split)

    def _images(self, given: Any) -> Any:
        if isinstance(given, Mapping):
            return {name: self._images(each) for name, each in given.items()}
        return given if given is None or self.evaluator is None else self.evaluator.images(given)

    def get_train_dataloader(self) -> DataLoader:
        """The batches of the task, a different part on each process."""
        batches = self.task.batches
        order = {"batch_sampler": batches.batch_sampler}
        if batches.batch_sampler is None:
            count = len(batches.dataset)  # type: ignore[arg-type]
            if self._drop_last_batch and count < self._train_batch_size:
                raise ValueError(
                    f"dataloader_drop_last leaves no batch: {count} examples are fewer than a batch of "
                    f"{self._train_batch_size}"
                )
            order = {
                "batch_size": self._train_batch_size,
                "sampler": RandomSampler(batches.dataset),  # type: ignore[arg-type]
                "drop_last": self._drop_last_batch,
            }
        loader = DataLoader(
            batches.dataset,
            collate_fn=batches.collator,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory,
            persistent_workers=self.args.dataloader_persistent_workers,
            prefetch_factor=self.args.dataloader_prefetch_factor,
            **order,
        )
        return self.accelerator.prepare(loader)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        """As `Trainer.get_eval_dataloader`; a name is one of `eval_dataset`, or else a split of the evaluator."""
        if eval_dataset is None or eval_dataset is self.eval_dataset:
            return super().get_eval_dataloader()
        if isinstance(eval_dataset, str) and isinstance(self.eval_dataset, dict) and eval_dataset in self.eval_dataset:
            return super().get_eval_dataloader(eval_dataset)
        return self.get_test_dataloader(eval_dataset)

    def get_test_dataloader(self, test_dataset: Any) -> DataLoader:
        """As `Trainer.get_test_dataloader`; also accepts the name of a split, and so does `predict`."""
        return super().get_test_dataloader(self._images(test_dataset))

    # ---- Training ----

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> TrainOutput:
        """As `Trainer.train`, with `args.resume_from_checkpoint` as the default.

        `"last"` resumes from the last complete checkpoint in `output_dir`, if there is one; `True` requires one.

        Raises:
            TrainingFailedError: the loss is NaN or infinite, or the embeddings have collapsed. Nothing is saved then.
            CheckpointError: a checkpoint could not be written. Earlier checkpoints are untouched.
            ValueError: there is nothing to resume from, or the checkpoint does not fit the model.
        """
        checkpoint = self.args.resume_from_checkpoint if resume_from_checkpoint is None else resume_from_checkpoint
        if checkpoint in (True, "last", "true", "True"):
            last = last_checkpoint(self.args.output_dir)
            if last is None and checkpoint is True:
                raise ValueError(f"nothing to resume from: there is no complete checkpoint in {self.args.output_dir}")
            if last is None:
                logger.warning("no checkpoint in %s yet: training starts at the beginning", self.args.output_dir)
            checkpoint = None if last is None else str(last)
        self.resumed_from = None
        if isinstance(checkpoint, str):
            self.resumed_from = Path(checkpoint)
            self.check_checkpoint(self.resumed_from)
            self.loss.load(checkpoint)
            if self.ema_decay is None and WeightAveraging.is_in(checkpoint):
                raise ValueError(f"{checkpoint} was made with ema_decay: resume it with ema_decay, or start anew")
        if self.args.should_save:
            remove_leftovers(self.args.output_dir)
        self.loss.zero_grad()
        if self.ema_decay is not None:
            self.averaging = WeightAveraging(self.model, self.ema_decay)
        with frozen(self.frozen_parameters):
            outcome = super().train(checkpoint, *args, **kwargs)
        if self.averaging is not None and not (
            self.args.load_best_model_at_end and self.state.best_model_checkpoint is not None
        ):
            self.averaging.apply()
        self.averaging = None
        return outcome

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        if self.averaging is not None:
            self.averaging.load(resume_from_checkpoint)

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        """Evaluates and saves the average of the weights, if there is one."""
        if self.averaging is not None and (self.control.should_evaluate or self.control.should_save):
            with self.averaging.applied():
                super()._maybe_log_save_evaluate(*args, **kwargs)
        else:
            super()._maybe_log_save_evaluate(*args, **kwargs)

    def check_checkpoint(self, checkpoint: Path) -> None:
        """Raises `ValueError` if this training cannot resume from a checkpoint."""
        name = ADAPTER_CONFIG if has_adapter(self.model) else "config.json"
        if not (checkpoint / name).is_file():
            what = "a checkpoint of an adapter" if name == ADAPTER_CONFIG else "a checkpoint"
            raise ValueError(f"{checkpoint} is not {what}: it has no {name}")

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """The Trainer's optimizer, with parameter groups of backbone and head."""
        if self.optimizer is not None:
            return self.optimizer
        with frozen(self.frozen_parameters):
            optimizer = super().create_optimizer(model)
        if self.head_learning_rate is not None:
            split_backbone_and_head(optimizer, self.model if model is None else model, self.head_learning_rate)
        if self.learning_rates:
            set_learning_rates(optimizer, self.model if model is None else model, self.learning_rates)
        return optimizer

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        undecayed = undecayed_parameters(model)
        return [name for name in super().get_decay_parameter_names(model) if name not in undecayed]

    def compute_loss(
        self, model: nn.Module, inputs: Any, return_outputs: bool = False, **kwargs: Any
    ) -> torch.Tensor | tuple[torch.Tensor, LossOutput]:
        output: LossOutput = self.loss(model, inputs)
        try:
            self.monitor.add(output)
        except TrainingFailedError as error:
            raise self._failed(str(error)) from None
        return (output.loss, output) if return_outputs else output.loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the head's learning rate and the figures of the loss to the Trainer's training logs."""
        if "loss" in logs:
            if self.head_learning_rate is not None:
                logs["head_learning_rate"] = self.optimizer.param_groups[-1]["lr"]
            logs.update(self.monitor.drain())
        super().log(logs, start_time)

    def _save_rng_state(self, output_dir: str) -> None:
        """Saves what the loss has learned, and the weights behind an average, beside the random states."""
        super()._save_rng_state(output_dir)
        if self.args.should_save:
            self.loss.save(output_dir)
            if self.averaging is not None:
                self.averaging.save(output_dir)

    def unwrapped_model(self) -> Any:
        """The model without distributed wrappers, compilation and autocast: it computes as the saved one will."""
        return self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False, keep_torch_compile=False)

    # ---- Evaluation ----

    def prediction_step(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> tuple[None, Any, Any]:
        """No loss; the evaluator's predictions and labels."""
        if self.evaluator is None:
            raise ValueError("this trainer has no evaluator: its task was made without one")
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            predictions, labels = self.evaluator.forward(model, inputs)
        return None, predictions, labels

    def evaluation_loop(
        self, dataloader: DataLoader, description: str, *, metric_key_prefix: str = "eval", **kwargs: Any
    ) -> EvalLoopOutput:
        """Evaluates a split; the figures of its result join the metrics: `eval_map`, ..."""
        kwargs |= {"prediction_loss_only": False, "metric_key_prefix": metric_key_prefix}
        output = super().evaluation_loop(dataloader, description, **kwargs)
        metrics: list[dict[str, float]] = [{}]
        if self.is_world_process_zero():
            if isinstance(output.predictions, np.ndarray) and not np.isfinite(output.predictions).all():
                raise self._failed("predictions of the evaluation are NaN or infinite")
            assert self.evaluator is not None  # or prediction_step would have failed
            self.evaluation_result = self.evaluator.score(dataloader.dataset, output.predictions, output.label_ids)
            metrics = [self.evaluation_result.metrics()]
        broadcast_object_list(metrics)
        output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in metrics[0].items()})
        return output


class StepTask(TrainerCallback):
    """Sets the epoch of the batch sampler, updates the weights of the loss, and logs in short trainings too.

    When several processes resume in the middle of an epoch, the Trainer does not reach the batch sampler itself.
    """

    def __init__(self, trainer: TaskTrainer) -> None:
        self.trainer = trainer  # it may replace its accelerator

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self.trainer.find_best_checkpoint()

    def on_epoch_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        batch_sampler = self.trainer.task.batches.batch_sampler
        if batch_sampler is not None:
            batch_sampler.set_epoch(int(state.epoch or 0))

    def on_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        if self.trainer.accelerator.optimizer_step_was_skipped:
            self.trainer.loss.zero_grad()
        else:
            self.trainer.loss.optimizer_step()
            if self.trainer.averaging is not None:
                self.trainer.averaging.update()

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """A training that ends before its first log would show no loss: it logs about five times."""
        is_short = args.logging_strategy == IntervalStrategy.STEPS and state.max_steps < state.logging_steps
        if is_short and state.global_step % max(1, state.max_steps // 5) == 0:
            control.should_log = True
