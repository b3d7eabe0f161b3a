"""What a training shows while it runs: the logs of the Trainer without the figures of single attributes and values."""

from collections.abc import Iterable
from typing import Any

from transformers import Trainer
from transformers.trainer_callback import PrinterCallback, ProgressCallback, TrainerCallback, TrainerState
from transformers.utils import is_in_notebook

_ALWAYS_SHOWN = ("epoch", "loss", "grad_norm", "learning_rate", "eval_runtime", "train_runtime")


class Brief(TrainerCallback):
    """Reduces logs to one line: the figures of all attributes would fill a screen.

    Args:
        metrics: the metrics of an evaluation that are shown.
        epoch: a sentence that is printed when the training begins; it says what an epoch is.
    """

    def __init__(self, metrics: Iterable[str] = (), epoch: str = "") -> None:
        super().__init__()
        self.metrics = [f"eval_{name}" for name in metrics]
        self.epoch = epoch

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        if self.epoch and state.is_world_process_zero:
            print(self.epoch)
        super().on_train_begin(args, state, control, **kwargs)

    def on_log(self, *args: Any, logs: dict[str, float], **kwargs: Any) -> None:
        brief = {name: value for name, value in logs.items() if name in _ALWAYS_SHOWN or name in self.metrics}
        if len(brief) > 1:  # more than the epoch
            super().on_log(*args, logs=brief, **kwargs)


class BriefProgress(Brief, ProgressCallback):
    """The Trainer's progress bar with logs of one line."""


class BriefPrinter(Brief, PrinterCallback):
    """The same logs without a progress bar."""


def show_briefly(trainer: Trainer, metrics: Iterable[str], epoch: str) -> None:
    """Replaces the callbacks with which the Trainer shows its progress; the arguments are those of [`Brief`]."""
    if trainer.pop_callback(ProgressCallback) is not None:
        trainer.add_callback(BriefProgress(metrics, epoch))
    if trainer.pop_callback(PrinterCallback) is not None:
        trainer.add_callback(BriefPrinter(metrics, epoch))
    if is_in_notebook():  # it has IPython, which the Trainer's table needs
        from .notebook import BriefTable, NotebookProgressCallback

        if trainer.pop_callback(NotebookProgressCallback) is not None:
            trainer.add_callback(BriefTable(metrics, epoch))
