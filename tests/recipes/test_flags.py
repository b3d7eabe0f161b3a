"""The flags of training as the source code says them: the real ones, in groups, once, in well under a second."""

import dataclasses
import subprocess
import sys

import pytest
from transformers import HfArgumentParser, TrainingArguments

from cca_hf.recipes.command_line import (
    _MEANT,
    DataArguments,
    ModelArguments,
    flag_names,
    help_text,
    meant_by,
    parse_arguments,
    training_flags,
)
from cca_hf.training.arguments import CCATrainingArguments

NEEDED = ["--dataset", "me/shoes", "--backbone", "some/vit"]


def test_they_are_the_flags_of_the_parser():
    parser = HfArgumentParser([ModelArguments, DataArguments, CCATrainingArguments], add_help=False)
    assert flag_names() == {action.option_strings[0].removeprefix("--") for action in parser._actions}


def test_each_has_the_help_and_the_default_of_its_field():
    fields = {field.name: field for each in (ModelArguments, DataArguments, CCATrainingArguments)
              for field in dataclasses.fields(each)}  # fmt: skip
    flags = [flag for flags in training_flags().values() for flag in flags]
    assert len(flags) == len({flag.name for flag in flags}) == len(fields)
    for flag in flags:
        field = fields[flag.name]
        assert flag.help == field.metadata["help"]
        assert (flag.default is None) == (
            field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        )
        if isinstance(field.default, bool | int | float):
            assert eval(flag.default) == field.default


@pytest.mark.parametrize("everything", [False, True])
def test_the_help_names_each_flag_once_in_groups(everything):
    text = help_text(everything=everything)
    named = [word for word in text.split() if word.startswith("--")]
    heads = [line.split()[0] for line in text.splitlines() if line.startswith("  --")]
    assert len(set(heads)) == len(heads)
    flags = {f"--{flag.name}" for flags in training_flags().values() for flag in flags}
    assert flags <= set(named) and "--output-dir" not in named
    titles = [line.split(":")[0].split(",")[0] for line in text.splitlines() if line[:1].isalpha()]
    assert titles == [*training_flags()]
    assert titles[:4] == ["Data", "Model", "Loss", "Batches"] and titles[-2] == "Hub" and "transformers" in titles[-1]
    own = {field.name for field in dataclasses.fields(TrainingArguments)}
    assert {flag.name for flag in [*training_flags().values()][-1]} < own


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("batch_size", "per_device_train_batch_size"),
        ("batchsize", "per_device_train_batch_size"),
        ("lr", "learning_rate"),
        ("epochs", "num_train_epochs"),
        ("atributes", "attributes"),
        ("bakbone", "backbone"),
        ("weight_deacy", "weight_decay"),
        ("qqqqqq", None),
    ],
)
def test_what_a_user_meant(typed, meant):
    assert meant_by(typed) == meant


def test_the_table_of_meanings_names_flags():
    assert set(_MEANT.values()) <= flag_names() and not set(_MEANT) & flag_names()


@pytest.mark.parametrize(
    ("program", "words"),
    [
        (["-m", "cca_hf.cli.main", "train"], ["--batch-size", "8"]),
        (["{repository}/scripts/train.py"], ["--batch_size=8"]),
    ],
)
def test_a_wrong_name_is_answered_without_torch(program, words, repository, monkeypatch):
    """The setting that torch reads when it is imported is there before."""
    monkeypatch.delenv("OMP_WAIT_POLICY")
    start = "import atexit, os, runpy, sys; heavy = {'torch', 'transformers'}; module = sys.argv[1] == '-m'; "
    start += "atexit.register(lambda: print(os.environ['OMP_WAIT_POLICY'], *heavy & set(sys.modules))); "
    start += "sys.argv = sys.argv[2:] if module else sys.argv[1:]; "
    start += "(runpy.run_module if module else runpy.run_path)(sys.argv[0], run_name='__main__')"
    command = [each.format(repository=repository) for each in program]
    done = subprocess.run([sys.executable, "-c", start, *command, *NEEDED, *words], capture_output=True, text=True)
    typed = words[0].partition("=")[0]
    assert done.returncode == 2 and done.stdout == "PASSIVE\n"
    (line,) = done.stderr.splitlines()
    assert f"error: unknown argument {typed}: did you mean --per_device_train_batch_size?" in line


def test_dashes_are_underscores():
    words = ["--dataset", "d", "--backbone-config", "vit.json", "--output-dir=out", "--no-load-best-model-at-end"]
    words += ["--feature-levels", "-2", "-1", "--lr-scheduler-kwargs", '{"a-b": -1}', "--learning-rate", "-0.0"]
    model_args, _, args = parse_arguments(words)
    assert (model_args.backbone_config, args.output_dir, args.load_best_model_at_end) == ("vit.json", "out", False)
    assert model_args.feature_levels == [-2, -1] and args.lr_scheduler_kwargs == {"a-b": -1}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["settings.txt"], "'settings.txt' is no flag and no settings file (.json, .yaml, .yml)"),
        (["-x"], "unknown argument -x"),
        ([*NEEDED, "--attributes", "--output_dir", "out"], "--attributes: expected at least one argument"),
        ([*NEEDED, "--output_dir", "out", "--margin", "wide"], "argument --margin: invalid float value: 'wide'"),
    ],
)
def test_errors_are_one_line(words, message, capsys):
    with pytest.raises(SystemExit) as stop:
        parse_arguments(words)
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_settings_files_that_cannot_be_read(tmp_path, capsys):
    for name in ("broken.json", "broken.yaml"):
        (tmp_path / name).write_text('{"dataset": [')
        with pytest.raises(SystemExit):
            parse_arguments([str(tmp_path / name)])
        assert f"{name} cannot be read: " in capsys.readouterr().err


def test_all_flags_on_request(capsys):
    with pytest.raises(SystemExit) as stop:
        parse_arguments(["--help-all"])
    assert stop.value.code == 0
    assert "  --adam_beta1 NUMBER\n" in capsys.readouterr().out
