"""The Trainer's table in a notebook. Without this it has a column for each figure of the evaluation, often over 50."""

from typing import Any

from transformers.trainer_callback import TrainerState
from transformers.trainer_utils import IntervalStrategy
from transformers.utils.notebook import NotebookProgressCallback, NotebookTrainingTracker

from .progress import Brief


class BriefTable(Brief, NotebookProgressCallback):
    """The table with the epoch or the step, the loss, and a few metrics under the names that they have everywhere."""

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        super().on_train_begin(args, state, control, **kwargs)
        columns = {self.first_column: self.first_column, "Training Loss": "loss"}
        if args.eval_strategy != IntervalStrategy.NO:
            columns |= {_title(metric): metric.removeprefix("eval_") for metric in self.metrics}
        self.training_tracker = _Tracker(state.max_steps, columns)

    def on_evaluate(self, *args: Any, metrics: dict[str, float] | None = None, **kwargs: Any) -> None:
        brief = {name: value for name, value in (metrics or {}).items() if name in self.metrics}
        super().on_evaluate(*args, metrics=brief, **kwargs)


class _Tracker(NotebookTrainingTracker):
    """A table with the given columns: their name in the Trainer -> the name that is shown."""

    def __init__(self, num_steps: int, columns: dict[str, str]) -> None:
        super().__init__(num_steps, list(columns.values()))
        self.columns = columns

    def write_line(self, values: dict[str, Any]) -> None:
        super().write_line({name: values.get(column, "No log") for column, name in self.columns.items()})


def _title(metric: str) -> str:
    """The column of a metric in the Trainer's table: "Map Macro" for `eval_map_macro`."""
    return " ".join(word.capitalize() for word in metric.split("_")[1:])
