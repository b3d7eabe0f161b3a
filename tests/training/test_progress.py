"""What a training shows: its loss, what an epoch is, and a short table in a notebook."""

import re
import sys
from types import ModuleType, SimpleNamespace

import pytest
from transformers.trainer_callback import TrainerControl, TrainerState

from cca_hf.recipes.attribute_trainer import CCATrainer
from cca_hf.training.trainer import StepTask

from .conftest import EPOCH


def losses(trainer: CCATrainer) -> list[tuple[int, float]]:
    return [(entry["step"], entry["loss"]) for entry in trainer.state.log_history if "loss" in entry]


def test_a_training_of_eight_steps_prints_its_loss(make_model, make_args, shapes, capsys):
    args = make_args(max_steps=8, logging_steps=10, eval_strategy="no", save_strategy="no")
    trainer = CCATrainer(make_model(), args, shapes)
    trainer.train()
    first, *lines = capsys.readouterr().out.splitlines()
    assert first == (
        f"An epoch is {EPOCH} batches of 16 images, {16 * EPOCH} in all. They are drawn from 157 training images, so "
        "that every value of every attribute occurs."
    )
    logged = losses(trainer)
    assert [step for step, _ in logged] == list(range(1, 9))
    for line, (_, loss) in zip(lines, logged, strict=False):
        assert f"'loss': '{loss:.4g}'" in line


@pytest.mark.parametrize(
    ("max_steps", "logging_steps", "strategy", "logged"),
    [
        (12, 500, "steps", [2, 4, 6, 8, 10, 12]),
        (3, 10, "steps", [1, 2, 3]),
        (20, 20, "steps", []),  # the Trainer logs itself
        (8, 10, "epoch", []),
        (8, 10, "no", []),
    ],
)
def test_when_a_short_training_logs(make_args, max_steps, logging_steps, strategy, logged):
    args = make_args(logging_steps=logging_steps, logging_strategy=strategy)
    found = []
    for step in range(1, max_steps + 1):
        state, control = TrainerState(global_step=step, max_steps=max_steps), TrainerControl()
        state.logging_steps = logging_steps
        StepTask(None).on_step_end(args, state, control)
        if control.should_log:
            found.append(step)
    assert found == logged


@pytest.fixture
def displayed(monkeypatch) -> list[str]:
    """What a notebook displays, by a stand-in for IPython under the real callback of transformers."""
    shown: list[str] = []
    ipython, display = ModuleType("IPython"), ModuleType("IPython.display")
    ipython.display, display.HTML = display, str
    display.display = lambda html, display_id=False: shown.append(html) or SimpleNamespace(update=shown.append)
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    notebook = pytest.importorskip("transformers.utils.notebook")
    monkeypatch.setattr(notebook, "disp", display)
    monkeypatch.setattr("transformers.trainer.DEFAULT_PROGRESS_CALLBACK", notebook.NotebookProgressCallback)
    monkeypatch.setattr("cca_hf.training.progress.is_in_notebook", lambda: True)  # transformers keeps its answer
    return shown


def rows(html: str) -> list[list[str]]:
    return [re.findall(r"<t[hd]>(.*?)</t[hd]>", row) for row in html.split("<tr")[1:]]


def test_the_table_of_a_notebook_has_few_columns(make_model, make_args, shapes, displayed):
    trainer = CCATrainer(make_model(), make_args(disable_tqdm=False, num_train_epochs=2), shapes)
    trainer.train()
    header, *lines = rows(displayed[-1])
    metrics = ["map", "map_weighted", "map_macro", "chance_map"]
    assert header == ["Epoch", "loss", *metrics]
    evaluated = [entry for entry in trainer.state.log_history if "eval_map" in entry]
    last_losses = [losses(trainer)[EPOCH - 1][1], losses(trainer)[-1][1]]
    assert lines == [
        [str(epoch), f"{loss:.6f}", *(f"{entry[f'eval_{name}']:.6f}" for name in metrics)]
        for epoch, loss, entry in zip((1, 2), last_losses, evaluated, strict=True)
    ]
    result = trainer.evaluate()
    assert len(rows(displayed[-1])[0]) <= 7 and len(result) > 50
    assert "eval_runtime" in result  # the callback of transformers takes it out of the dictionary that it gets


def test_the_table_of_a_training_without_evaluation(make_model, make_args, shapes, displayed):
    args = make_args(disable_tqdm=False, max_steps=2, eval_strategy="no", save_strategy="no")
    trainer = CCATrainer(make_model(), args, shapes)
    trainer.train()
    assert rows(displayed[-1]) == [["Step", "loss"], *([str(step), f"{loss:.6f}"] for step, loss in losses(trainer))]
