"""What the trainer does at moments that the Trainer announces."""

from typing import Any

from transformers import (
    PrinterCallback,
    ProgressCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from cca_hf.data.sampler import AttributeBatchSampler

_SHOWN = {
    "epoch",
    "loss",
    "grad_norm",
    "learning_rate",
    "eval_map",
    "eval_map_weighted",
    "eval_map_macro",
    "eval_chance_map",
    "eval_runtime",
    "train_runtime",
}


class TellSamplerTheEpoch(TrainerCallback):
    """On several processes, in the middle of an epoch, a resumed Trainer does not reach the batch sampler itself."""

    def __init__(self) -> None:
        self.sampler: AttributeBatchSampler | None = None

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.sampler is not None:
            self.sampler.set_epoch(int(state.epoch or 0))


class BriefProgress(ProgressCallback):
    """The Trainer's progress bar, whose logs take a line: the figures of every attribute would fill a screen."""

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if brief := _brief(logs):
            super().on_log(args, state, control, logs=brief, **kwargs)


class BriefPrinter(PrinterCallback):
    """The same without a progress bar."""

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if brief := _brief(logs):
            super().on_log(args, state, control, logs=brief, **kwargs)


def _brief(logs: dict[str, float] | None) -> dict[str, float]:
    """What concerns all attributes; nothing if that is the epoch alone."""
    brief = {name: value for name, value in (logs or {}).items() if name in _SHOWN}
    return brief if len(brief) > 1 else {}
