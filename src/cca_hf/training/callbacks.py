"""Callbacks of the Trainer: the epoch of the batch sampler, the step of the loss, and short logs."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from transformers import (
    PrinterCallback,
    ProgressCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

if TYPE_CHECKING:
    from .trainer import TaskTrainer

_ALWAYS_SHOWN = ("epoch", "loss", "grad_norm", "learning_rate", "eval_runtime", "train_runtime")


class SetEpoch(TrainerCallback):
    """Sets the epoch of a batch sampler.

    When several processes resume in the middle of an epoch, the Trainer does not reach the batch sampler itself.
    """

    def __init__(self, batch_sampler: Any) -> None:
        self.batch_sampler = batch_sampler

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.batch_sampler.set_epoch(int(state.epoch or 0))


class StepLoss(TrainerCallback):
    """Updates the weights of the loss after each step of the model's optimizer that was not skipped."""

    def __init__(self, trainer: "TaskTrainer") -> None:
        self.trainer = trainer  # it may replace its accelerator

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.trainer.accelerator.optimizer_step_was_skipped:
            self.trainer.loss.zero_grad()
        else:
            self.trainer.loss.optimizer_step()


class _Brief(TrainerCallback):
    """Reduces logs to one line: the figures of all attributes would fill a screen."""

    def __init__(self, shown: Iterable[str] = ()) -> None:
        super().__init__()
        self.shown = {*_ALWAYS_SHOWN, *shown}

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        brief = {name: value for name, value in (logs or {}).items() if name in self.shown}
        if len(brief) > 1:  # more than the epoch
            super().on_log(args, state, control, logs=brief, **kwargs)


class BriefProgress(_Brief, ProgressCallback):
    """The Trainer's progress bar with logs of one line."""


class BriefPrinter(_Brief, PrinterCallback):
    """The same logs without a progress bar."""
