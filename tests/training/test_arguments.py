"""The flags, files and defaults of training."""

import json

import pytest
from transformers import SchedulerType
from transformers.trainer_utils import HubStrategy, IntervalStrategy, SaveStrategy

from cca_hf.recipes.command_line import parse_arguments
from cca_hf.training.arguments import CCATrainingArguments

NEEDED = ["--dataset", "me/shoes", "--backbone", "some/vit", "--output_dir", "out"]


def test_defaults_train_evaluate_and_keep_the_best():
    model_args, data_args, args = parse_arguments(NEEDED)
    assert (model_args.backbone, data_args.dataset, args.output_dir) == ("some/vit", "me/shoes", "out")
    assert data_args.attributes is None and model_args.condition_embedding == "one_hot"
    assert args.eval_strategy == args.save_strategy == "epoch"
    assert args.load_best_model_at_end and args.metric_for_best_model == "map" and args.greater_is_better
    assert not args.remove_unused_columns and args.report_to == []
    assert args.learning_rate is None  # CCATrainer settles it


def test_flags():
    _, data_args, args = parse_arguments(
        [*NEEDED, "--attributes", "colour", "heel_height", "--mining", "hardest", "--bf16", "--margin", "0.3"]
        + ["--head_learning_rate", "2e-3", "--no_load_best_model_at_end", "--use_cpu"]
    )
    assert data_args.attributes == ["colour", "heel_height"]
    assert (args.mining, args.bf16, args.margin, args.head_learning_rate) == ("hardest", True, 0.3, 2e-3)
    assert not args.load_best_model_at_end


@pytest.mark.parametrize("suffix", [".json", ".yaml"])
def test_a_file_of_the_same_names_and_flags_that_win(tmp_path, suffix):
    content = {
        "dataset": "me/shoes",
        "backbone_config": {"model_type": "vit", "hidden_size": 32},
        "attributes": ["colour", "heel height"],
        "output_dir": "out",
        "num_train_epochs": 3,
        "learning_rate": 1e-4,
        "bf16": False,
        "group_column": None,
        "lr_scheduler_kwargs": {"num_cycles": 0.4},
    }
    text = json.dumps(content)
    if suffix == ".yaml":
        yaml = pytest.importorskip("yaml")
        text = yaml.safe_dump(content)
    file = tmp_path / f"settings{suffix}"
    file.write_text(text)
    model_args, data_args, args = parse_arguments([str(file), "--num_train_epochs", "5", "--attributes", "closure"])
    assert json.loads(model_args.backbone_config) == content["backbone_config"]
    assert data_args.attributes == ["closure"] and data_args.group_column is None
    assert (args.num_train_epochs, args.learning_rate, args.bf16) == (5, 1e-4, False)
    assert args.lr_scheduler_kwargs == {"num_cycles": 0.4}


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([*NEEDED, "--atributes", "colour"], "unknown argument --atributes: did you mean --attributes?"),
        ([*NEEDED, "--condition_embedding", "onehot"], "invalid choice: 'onehot'"),
        ([*NEEDED, "--margin", "-1"], "margin must be above 0, got -1"),
        ([*NEEDED, "--images_per_value", "1"], "images_per_value must be at least 2, got 1"),
        ([*NEEDED, "--crop_scale", "1.5"], "crop_scale must be above 0 and at most 1, got 1.5"),
        ([*NEEDED, "--temperature", "0"], "temperature must be above 0, got 0"),
        ([*NEEDED, "--backbone_config", "{}"], "either --backbone (pretrained) or --backbone_config"),
        ([*NEEDED, "--batch_eval_metrics", "true"], "batch_eval_metrics must be False, got True: the metrics of"),
        ([*NEEDED, "--eval_do_concat_batches", "false"], "eval_do_concat_batches must be True, got False"),
        ([*NEEDED, "--dataloader_in_order", "false"], "dataloader_in_order must be True, got False: groups and sets"),
        ([*NEEDED, "--include_for_metrics", "inputs"], "include_for_metrics must be [], got ['inputs']"),
        ([*NEEDED, "--train_sampling_strategy", "group_by_length"], "train_sampling_strategy must be random, got"),
        ([*NEEDED, "--label_smoothing_factor", "0.1"], "label_smoothing_factor must be 0.0, got 0.1"),
        ([*NEEDED, "--neftune_noise_alpha", "5"], "neftune_noise_alpha must be None, got 5.0"),
        (NEEDED[2:], "--dataset"),
        (["absent.json"], "absent.json"),
    ],
)
def test_what_is_wrong_is_said(argv, message, capsys):
    with pytest.raises(SystemExit) as stop:
        parse_arguments(argv)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_a_wrong_name_in_a_file_is_said(tmp_path, capsys):
    file = tmp_path / "settings.json"
    file.write_text('{"dataset": "me/shoes", "bakbone": "vit"}')
    with pytest.raises(SystemExit):
        parse_arguments([str(file)])
    assert "unknown argument --bakbone: did you mean --backbone?" in capsys.readouterr().err
    file.write_text("[1, 2]")
    with pytest.raises(SystemExit):
        parse_arguments([str(file)])
    assert "must contain names and values, got list" in capsys.readouterr().err


def test_without_evaluation_there_is_no_best_checkpoint():
    args = CCATrainingArguments("out", eval_strategy="no")
    assert not args.load_best_model_at_end
    with pytest.raises(ValueError, match="early_stopping_patience needs an evaluation"):
        CCATrainingArguments("out", eval_strategy="no", early_stopping_patience=3)


@pytest.mark.parametrize("no", ["no", IntervalStrategy.NO])
def test_no_evaluation_as_a_string_or_as_transformers_own(no):
    args = CCATrainingArguments("out", eval_strategy=no, save_strategy=SaveStrategy.EPOCH)
    assert args.eval_strategy is IntervalStrategy.NO and not args.load_best_model_at_end
    with pytest.raises(ValueError, match="early_stopping_patience needs an evaluation"):
        CCATrainingArguments("out", eval_strategy=no, early_stopping_patience=3)


def test_other_enums_of_transformers():
    args = CCATrainingArguments(
        "out",
        eval_strategy=IntervalStrategy.STEPS,
        save_strategy=SaveStrategy.STEPS,
        hub_strategy=HubStrategy.END,
        lr_scheduler_type=SchedulerType.LINEAR,
    )
    assert args.load_best_model_at_end and args.lr_scheduler_type is SchedulerType.LINEAR
