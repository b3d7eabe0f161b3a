"""Runs that are killed or run out of disk, in real processes: nothing is lost, and the outcome stays the same."""

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from cca_hf.models.modeling_cca import CCAModel
from cca_hf.recipes.attribute_trainer import CCATrainer
from cca_hf.training.checkpoints import last_checkpoint, remove_leftovers

from .conftest import EPOCH, child_environment
from .processes.interrupted import run


def test_kill_and_resume_end_with_bitwise_the_same_weights(shapes_folder, tmp_path, repository, warm_python):
    """Killed within an epoch, resumed, killed while writing a checkpoint, resumed: as if nothing had happened."""
    undisturbed = run(shapes_folder, tmp_path / "undisturbed")
    assert undisturbed.state.global_step == 20  # of 30: stopped early, so the count has to survive the kills too

    output = tmp_path / "out"
    script = repository / "tests" / "training" / "processes" / "interrupted.py"
    command = [script, shapes_folder, output]
    environment = child_environment(repository)
    errors = tmp_path / "errors.txt"
    with open(errors, "w") as stderr:
        child = warm_python.start(*command, env=environment, stderr=stderr)
        for line in child.stdout:
            if line.strip() == "step 14":
                child.send_signal(signal.SIGKILL)
                break
    assert child.wait() == -signal.SIGKILL, errors.read_text()
    assert last_checkpoint(output) == output / "checkpoint-12"

    killed = warm_python.run(*command, "--resume", "--die-while-saving", "16", env=environment)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert (output / ".incomplete" / "checkpoint-16" / "optimizer.pt").exists()
    names = {path.name for path in output.iterdir() if path.name.startswith("checkpoint")}
    assert "checkpoint-12" in names and "checkpoint-16" not in names
    assert "step 13\n" in killed.stdout and "step 12\n" not in killed.stdout

    done = warm_python.run(*command, "--resume", env=environment)
    assert done.returncode == 0, done.stderr
    assert "step 13\n" in done.stdout and "step 12\n" not in done.stdout and "step 21\n" not in done.stdout
    assert not (output / ".incomplete").exists()

    undisturbed.save_model(str(tmp_path / "final"))
    expected, actual = (load_file(folder / "final" / "model.safetensors") for folder in (tmp_path, output))
    assert expected.keys() == actual.keys()
    assert all(expected[name].equal(actual[name]) for name in expected)
    logged = json.loads((output / "checkpoint-20" / "trainer_state.json").read_text())["log_history"]
    for ours, theirs in zip(logged, undisturbed.state.log_history, strict=False):
        assert ours["step"] == theirs["step"]
        for name in ("loss", "grad_norm", "eval_map", "learning_rate"):
            assert ours.get(name) == theirs.get(name)


SAVE_AGAIN = """
import resource, signal, sys
from pathlib import Path
from cca_hf.models.modeling_cca import CCAModel
from cca_hf.training.checkpoints import CheckpointError
sys.path.insert(0, {folder!r})
import interrupted

def look(when):
    for path in Path({output!r}).glob("checkpoint-*"):
        CCAModel.from_pretrained(path)
        print(when, path.name)
    print(when, "leftovers", [path.name for path in Path({output!r}).glob(".*")])

class Fill(interrupted.PrintSteps):
    def on_step_end(self, args, state, control, **kwargs):
        super().on_step_end(args, state, control)
        if state.global_step == 7:
            {fill}

interrupted.PrintSteps = Fill
try:
    interrupted.run(Path({data!r}), Path({output!r}))
except CheckpointError as error:
    print("CheckpointError:", error)
{free}
look("afterwards")
"""


def save_on_a_full_disk(folder, data, output, *, fill, free, run_python):
    script = SAVE_AGAIN.format(folder=str(folder), data=str(data), output=str(output), fill=fill, free=free)
    lines = run_python("-c", script).stdout.splitlines()
    (error,) = [line for line in lines if line.startswith("CheckpointError")]
    assert "could not write checkpoint-8" in error and "Nothing was overwritten; checkpoint-4 is complete" in error
    assert lines[-2:] == ["afterwards checkpoint-4", "afterwards leftovers []"]
    return error


def test_a_file_that_cannot_be_written_leaves_the_earlier_checkpoint(run_python, shapes_folder, tmp_path, repository):
    """Every write beyond 20,000 bytes fails: the weights of the second checkpoint do not fit."""
    error = save_on_a_full_disk(
        repository / "tests" / "training" / "processes",
        shapes_folder,
        tmp_path / "out",
        fill="resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))",
        free="resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))",
        run_python=run_python,
    )
    assert "File too large" in error


def test_a_full_disk_leaves_the_earlier_checkpoint(run_python, shapes_folder, mount_disk, repository):
    """On a file system that is full in the middle of the optimizer of the second checkpoint."""
    disk = mount_disk(8)
    fill = (
        f"import os; free = os.statvfs({str(disk)!r}); "
        f"open({str(disk)!r} + '/ballast', 'wb').write(bytes(free.f_bavail * free.f_frsize - 300_000))"
    )
    error = save_on_a_full_disk(
        repository / "tests" / "training" / "processes",
        shapes_folder,
        disk / "out",
        fill=fill,
        free=f"Path({str(disk / 'ballast')!r}).unlink()",
        run_python=run_python,
    )
    assert "the disk is full" in error


@pytest.mark.parametrize("renames", [1, 2])
def test_a_kill_while_a_checkpoint_is_replaced_loses_neither(
    renames, make_model, make_args, shapes, tmp_path, monkeypatch
):
    """A run that goes the same way again replaces its checkpoints: killed before or after the second rename."""
    args = make_args(eval_strategy="no")
    CCATrainer(make_model(), args, shapes).train()
    checkpoint = tmp_path / "out" / f"checkpoint-{EPOCH}"
    (checkpoint / "the first").touch()
    rename, done = Path.rename, []

    def rename_and_die(self, target):
        if len(done) == renames:
            raise SystemExit
        done.append(target)
        return rename(self, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", rename_and_die)
        patched.setattr(shutil, "rmtree", _die_after(renames, done, shutil.rmtree))
        with pytest.raises(SystemExit):
            CCATrainer(make_model(), args, shapes).train()
    assert last_checkpoint(tmp_path / "out") == checkpoint
    assert (checkpoint / "the first").exists() == (renames == 1)
    remove_leftovers(tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == [checkpoint.name]
    assert CCAModel.from_pretrained(checkpoint).config.attributes == list(shapes.attributes)


def _die_after(renames, done, function):
    def called(*args, **kwargs):
        if len(done) == renames == 2:
            raise SystemExit
        return function(*args, **kwargs)

    return called


def test_a_full_disk_leaves_an_earlier_final_model(make_model, make_args, shapes, tmp_path, monkeypatch):
    trainer = CCATrainer(make_model(), make_args(), shapes)
    trainer.save_model(str(tmp_path / "model"))
    before = {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()}
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter.add_(1.0)

    def no_room(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", no_room)  # the last file that save_model writes
    with pytest.raises(OSError, match="No space left"):
        trainer.save_model(str(tmp_path / "model"))
    assert {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()} == before
    assert os.listdir(tmp_path) == ["model"] or "out" in os.listdir(tmp_path)
