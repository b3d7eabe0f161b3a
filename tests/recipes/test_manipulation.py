"""`cca train manipulate`: the task and its flags, and what a training writes."""

import json

import pytest

from cca_hf.cli.main import main
from cca_hf.data.shapes import generate_shapes_dataset
from cca_hf.evaluation.manipulation import ManipulationEvaluator
from cca_hf.evaluation.manipulation_result import ManipulationResult
from cca_hf.models.modeling_adde import ADDEModel
from cca_hf.recipes.command_line import (
    TASKS,
    CommandLineError,
    flag_names,
    help_text,
    parse_arguments,
    read_command,
    training_flags,
)
from cca_hf.recipes.evaluation import load_evaluation_data
from cca_hf.recipes.manipulation_trainer import ManipulationArguments
from cca_hf.training.arguments import CCATrainingArguments

VIT = {"model_type": "vit", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
VIT |= {"intermediate_size": 64, "image_size": 32, "patch_size": 8}
NEEDED = ["--dataset", "me/shoes", "--backbone", "some/vit", "--output_dir", "out"]


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "shapes"
    folder.mkdir()
    for split, dataset in generate_shapes_dataset(num_images=224, image_size=32, seed=0).items():
        dataset.to_parquet(folder / f"{split}-00000-of-00001.parquet")
    return folder


@pytest.fixture(scope="module")
def out(shapes, tmp_path_factory):
    """The folder of a short training by the command."""
    out = tmp_path_factory.mktemp("training") / "out"
    words = ["train", "manipulate", "--dataset", str(shapes), "--attributes", "size", "background", "--use_cpu"]
    words += ["--backbone_config", json.dumps(VIT), "--max_steps", "2", "--per_device_train_batch_size", "16"]
    words += ["--images_per_value", "2", "--bf16", "false", "--output_dir", str(out), "--report_to", "none"]
    words += ["--embedding_dim", "24", "--consistency", "triplet", "--cpu_threads", "1"]
    assert main(words) == 0
    return out


def test_it_writes_model_figures_report_and_card(out, shapes):
    model = ADDEModel.from_pretrained(out)
    assert model.config.encoder == "mlp" and model.has_prototypes and model.config.attribute_map == "values"
    results = json.loads((out / "all_results.json").read_text())
    manipulation = ManipulationResult.load_json(out / "test_manipulation.json")
    data = load_evaluation_data(str(shapes), ["size", "background"], "test", str(out))
    expected = ManipulationEvaluator(data, "test")(model).metrics()
    for name, figure in manipulation.metrics().items():
        assert figure == pytest.approx(expected[name], abs=1e-6, nan_ok=True)
        if figure == figure:  # not NaN
            assert results[f"test_manipulation_{name}"] == figure
    assert 0 < results["test_map"] <= 1
    card = (out / "README.md").read_text()
    assert "## Attribute manipulation" in card and "## Retrieval" in card and "model.manipulate(" in card
    assert (out / "report.html").is_file() and (out / "encoder" / "model.safetensors").is_file()
    run = json.loads((out / "run.json").read_text())
    assert run["settings"]["compositional_weight"] == 0.2 and run["settings"]["consistency"] == "triplet"
    assert not {"proxy_weight", "proxy_learning_rate"} & run["settings"].keys()
    assert run["seconds"] == pytest.approx(results["train_runtime"])


def test_another_training_does_not_write_into_the_folder(out, shapes, capsys):
    words = ["train", "manipulate", "--dataset", str(shapes), "--backbone_config", json.dumps(VIT), "--use_cpu"]
    assert main([*words, "--output_dir", str(out)]) == 1
    assert (
        "contains checkpoint-2 of an earlier run. Resume it with --resume_from_checkpoint last"
        in capsys.readouterr().err
    )


def test_the_flags_are_those_of_the_arguments():
    _, (_, _, args) = read_command(["manipulate", *NEEDED, "--mining", "all", "--use_cpu", "--bf16", "false"])
    assert isinstance(args, ManipulationArguments)
    assert (args.mining, args.margin, args.metric_for_best_model) == ("all", 0.5, "ndcg")
    fields = ManipulationArguments.__dataclass_fields__
    flags = {flag.name: flag for flags in training_flags("manipulate").values() for flag in flags}
    assert set(fields) - flags.keys() == set(TASKS["manipulate"].unused)
    for name in ManipulationArguments.__annotations__:
        assert flags[name].help == fields[name].metadata["help"]
        assert flags[name].default.strip("'") == str(fields[name].default)
    assert [flag.name for flag in training_flags("manipulate")["Manipulation"]][0] == "encoder"
    assert {flag.name for flag in training_flags("manipulate")["Loss"]} == {"loss", "temperature", "margin", "mining"}
    assert "proxy_weight" not in flag_names("manipulate") and "encoder" not in flag_names()


@pytest.mark.parametrize(
    "words", [["manipulate", *NEEDED], ["--task", "manipulate", *NEEDED], [*NEEDED, "--task=manipulate"]]
)
def test_the_task_is_a_word_or_a_flag(words):
    assert read_command([*words, "--use_cpu"])[0] is TASKS["manipulate"]


def test_the_task_in_a_settings_file(tmp_path):
    file = tmp_path / "settings.yaml"
    file.write_text("task: manipulate\ndataset: d\nbackbone: b\nencoder: cross_attention\nuse_cpu: true\n")
    args = parse_arguments([str(file)])[2]
    assert isinstance(args, ManipulationArguments) and args.encoder == "cross_attention"
    assert type(parse_arguments([*NEEDED, "--use_cpu"])[2]) is CCATrainingArguments


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["manipulat", *NEEDED], "'manipulat' is no flag and no settings file .* Did you mean 'manipulate'?"),
        (["--task", "manipulation", *NEEDED], "unknown task 'manipulation'. Did you mean 'manipulate'?"),
        (["--task", "qqq", *NEEDED], "unknown task 'qqq'. The tasks are retrieve, manipulate"),
        (["manipulate", *NEEDED, "--proxy_weight", "1"], "unknown argument --proxy_weight"),
        (["manipulate", *NEEDED, "--encoder", "lstm"], "argument --encoder: invalid choice: 'lstm'"),
        ([*NEEDED, "--encoder", "mlp"], "unknown argument --encoder"),
    ],
)
def test_wrong_words(words, message):
    with pytest.raises(CommandLineError, match=message):
        read_command(words)


def test_the_help_of_a_task(capsys):
    assert main(["train", "manipulate", "--help"]) == 0
    text = capsys.readouterr().out
    assert "--compositional_weight NUMBER" in text and "--proxy_weight" not in text
    assert main(["train", "--help"]) == 0
    text = capsys.readouterr().out
    assert "\nTasks:\n" in text and "  manipulate " in text and "--proxy_weight" in text and "--encoder" not in text
    assert help_text(everything=False, task="manipulate").count("  --margin NUMBER") == 1
