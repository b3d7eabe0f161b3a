"""The command `cca`: what it prints where, its exit codes, and one clear line for everything that can go wrong."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from datasets import Dataset, Image
from PIL import Image as PILImage
from safetensors.torch import load_file, save_file
from transformers import ViTConfig

from cca_hf.cli.main import main
from cca_hf.data.loading import load_attribute_dataset
from cca_hf.data.triplets import TRIPLET_COLUMNS, load_triplets
from cca_hf.evaluation import EvaluationResult, RetrievalEvaluator, TripletEvaluator, TripletResult
from cca_hf.evaluation.entanglement.evaluator import measure_entanglement
from cca_hf.evaluation.entanglement.result import EntanglementResult
from cca_hf.models.modeling_cca import CCAModel
from cca_hf.models.modeling_csn import CSNModel

VALUES = {"colour": ["blue", "red"], "shape": ["round", "square"]}
TINY_VIT = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 8,
}


@pytest.fixture(scope="module")
def shoes(tmp_path_factory) -> Path:
    """A folder of parquet files with text columns."""
    return write_shoes(tmp_path_factory.mktemp("data") / "shoes", train=24, validation=12, test=12)


def write_shoes(folder: Path, **counts: int) -> Path:
    """`counts`: the number of images of each split."""
    folder.mkdir()
    for split, count in counts.items():
        shades = [120 + 5 * (index % 27) for index in range(count)]
        colours = [VALUES["colour"][index % 2] for index in range(count)]
        pixels = [
            (30, 30, shade) if each == "blue" else (shade, 30, 30) for each, shade in zip(colours, shades, strict=True)
        ]
        rows = {
            "image": [PILImage.new("RGB", (32, 32), pixel) for pixel in pixels],
            "colour": colours,
            "shape": [VALUES["shape"][index // 2 % 2] for index in range(count)],
            "item": [f"item {index // 3}" for index in range(count)],
        }
        dataset = Dataset.from_dict(rows).cast_column("image", Image())
        dataset.to_parquet(folder / f"{split}-00000-of-00001.parquet")
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints") / "cca"
    torch.manual_seed(0)
    CCAModel.from_backbone(ViTConfig(**TINY_VIT), VALUES).save_pretrained(folder)
    return folder


def run(*words: object) -> int:
    return main([str(word) for word in words])


def test_evaluate_prints_the_table_of_the_evaluator(shoes, checkpoint, capsys):
    assert run("evaluate", "--model", checkpoint, "--dataset", shoes) == 0
    printed = capsys.readouterr().out
    data = load_attribute_dataset(shoes, list(VALUES))
    expected = RetrievalEvaluator(data)(CCAModel.from_pretrained(checkpoint))
    assert printed == expected.table() + "\n"


def test_evaluate_reports_values_that_training_did_not_have(shoes, checkpoint, tmp_path, capsys):
    """The checkpoint names the values that it knows. That of the other tests does not, as those of version 0.1."""
    model = CCAModel.from_pretrained(checkpoint)
    model.config.known_values = {"colour": VALUES["colour"], "shape": VALUES["shape"][:1]}
    model.save_pretrained(tmp_path / "cca")
    words = ["evaluate", "--model", tmp_path / "cca", "--dataset", shoes, "--output_dir", tmp_path / "out"]
    assert run(*words) == 0
    printed = capsys.readouterr().out
    result = EvaluationResult.load_json(tmp_path / "out" / "evaluation.json")
    metrics = result.metrics()
    assert printed == result.table() + "\n"
    known, new = ({value.name: value for value in result["shape"].values}[name] for name in VALUES["shape"])
    assert metrics["map_new"] == metrics["map_new_shape"] == pytest.approx(new.map)
    assert metrics["map_known"] == pytest.approx((metrics["map_colour"] + known.map) / 2)
    assert f"mAP of new values: {100 * new.map:.1f} ({100 * new.chance_map:.1f}); {new.queries} queries" in printed


def test_evaluate_takes_the_baselines_too(shoes, tmp_path, capsys):
    csn = CSNModel.from_backbone(ViTConfig(**TINY_VIT), VALUES)
    csn.save_pretrained(tmp_path / "csn")
    assert run("evaluate", "--model", tmp_path / "csn", "--dataset", shoes) == 0
    data = load_attribute_dataset(shoes, list(VALUES))
    assert capsys.readouterr().out == RetrievalEvaluator(data)(csn).table() + "\n"


def test_evaluate_computes_in_the_saved_dtype(shoes, checkpoint, tmp_path, capsys):
    CCAModel.from_pretrained(checkpoint).to(torch.bfloat16).save_pretrained(tmp_path / "cca")
    assert run("evaluate", "--model", tmp_path / "cca", "--dataset", shoes, "--json") == 0
    model = CCAModel.from_pretrained(tmp_path / "cca", dtype="auto")
    assert model.dtype == torch.bfloat16
    expected = RetrievalEvaluator(load_attribute_dataset(shoes, list(VALUES)))(model)
    metrics = expected.intervals() | expected.metrics()
    assert json.loads(capsys.readouterr().out) == pytest.approx(metrics, abs=1e-6)


def test_json_is_all_that_goes_to_standard_output(shoes, checkpoint, warm_torch):
    """In a process of its own: nothing that a library prints may spoil the pipe."""
    words = ["evaluate", "--model", checkpoint, "--dataset", shoes, "--json", "--attributes", "shape", "colour"]
    words += ["--split", "validation", "--group_column", "item"]
    done = warm_torch.run("-m", "cca_hf.cli.main", *words, check=True)
    metrics = json.loads(done.stdout)
    assert {"map", "map_weighted", "map_macro", "map_shape", "map_colour", "chance_map", "recall@10"} < set(metrics)
    assert 0 < metrics["chance_map"] < metrics["map"] <= 1
    data = load_attribute_dataset(shoes, list(VALUES), group_column="item")
    expected = RetrievalEvaluator(data, "validation")(CCAModel.from_pretrained(checkpoint))
    assert metrics == pytest.approx(expected.intervals() | expected.metrics())


def test_output_dir_gets_figures_and_report(shoes, checkpoint, tmp_path, capsys):
    out = tmp_path / "new" / "results"
    assert run("evaluate", "--model", checkpoint, "--dataset", shoes, "--output_dir", out, "--report", "--json") == 0
    metrics = json.loads(capsys.readouterr().out)
    result = EvaluationResult.load_json(out / "evaluation.json")
    assert result.intervals() | result.metrics() == metrics and "map_interval_low_colour" in metrics
    written = {"evaluation.json", "evaluation.png", "report.html", "report.png", "examples"}
    assert {path.name for path in out.iterdir()} == written
    PILImage.open(out / "evaluation.png").load()
    assert f"<h1>{checkpoint.name} on shoes</h1>" in (out / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    """As `cca data prepare` leaves it: pictures in one configuration, triplets that name them in another."""
    folder = tmp_path_factory.mktemp("data") / "prepared"
    names = [f"Boots/{number}.png" for number in range(6)]
    pictures = [PILImage.new("RGB", (32, 32), (40 * number, 30, 30)) for number in range(6)]
    rows = {"anchor": [0, 1, 2, 3], "positive": [1, 0, 3, 2], "negative": [4, 5, 5, 5]}
    named = {column: [names[number] for number in own] for column, own in rows.items()}
    triplets = Dataset.from_dict({"condition": ["colour", "shape", "colour", "colour"], **named})
    columns = {"image": [*pictures[:5], None], "file_name": names}  # one is missing
    for path, dataset in (
        ("data/train", Dataset.from_dict(columns).cast_column("image", Image())),
        ("triplets/test", triplets),
    ):
        (folder / path).parent.mkdir(parents=True)
        dataset.to_parquet(folder / f"{path}-00000-of-00001.parquet")
    files = "data_files: [{split: %s, path: %s}]"
    (folder / "README.md").write_text(
        "---\nconfigs:\n"
        f"- config_name: default\n  {files % ('train', 'data/train-*.parquet')}\n"
        f"- config_name: triplets\n  {files % ('test', 'triplets/test-*.parquet')}\n---\n"
    )
    return folder


def test_triplets_of_a_prepared_benchmark(prepared, checkpoint, tmp_path, capsys):
    words = ["evaluate", "--model", checkpoint, "--dataset", prepared, "--config_name", "triplets"]
    assert run(*words, "--output_dir", tmp_path / "out") == 0
    printed = capsys.readouterr().out
    result = TripletResult.load_json(tmp_path / "out" / "evaluation.json")
    assert printed == result.table() + "\n"
    triplets, pictures = load_triplets(prepared, "test", "triplets")
    assert result == TripletEvaluator(triplets, pictures=pictures)(CCAModel.from_pretrained(checkpoint))
    # three of the four triplets need the picture that is missing
    assert (result.total.triplets, result.left_out) == (1, 3) and "A subset: 3 of 4" in printed


def test_triplets_that_hold_their_pictures(checkpoint, tmp_path, capsys):
    shades = [PILImage.new("RGB", (32, 32), (50 * number, 30, 30)) for number in range(5)]
    columns = {name: [shades[(row + place) % 5] for row in range(8)] for place, name in enumerate(TRIPLET_COLUMNS)}
    dataset = Dataset.from_dict({"condition": ["colour", "shape"] * 4, **columns})
    for column in TRIPLET_COLUMNS:
        dataset = dataset.cast_column(column, Image())
    (tmp_path / "data").mkdir()
    dataset.to_parquet(tmp_path / "data" / "val-00000-of-00001.parquet")
    words = ["evaluate", "--model", checkpoint, "--dataset", tmp_path / "data", "--split", "valid", "--json"]
    assert run(*words, "--attributes", "shape") == 0
    metrics = json.loads(capsys.readouterr().out)
    expected = TripletEvaluator(dataset, ["shape"])(CCAModel.from_pretrained(checkpoint))
    assert expected.total.triplets == 4
    assert metrics == expected.metrics()
    assert run(*words) == 0
    assert set(json.loads(capsys.readouterr().out)) > {"triplet_accuracy_colour", "triplet_accuracy_shape"}


def test_train_writes_model_results_and_report(shoes, tmp_path, capsys):
    out = tmp_path / "out"
    words = ["train", "--dataset", shoes, "--attributes", "colour", "shape", "--output_dir", out, "--use_cpu"]
    words += ["--backbone_config", json.dumps({"model_type": "vit", **TINY_VIT}), "--max_steps", 2]
    words += ["--per_device_train_batch_size", 8, "--report_to", "none"]
    assert run(*words) == 0
    printed = capsys.readouterr().out
    assert "colour" in printed and f"report: {out / 'report.html'}" in printed
    results = json.loads((out / "all_results.json").read_text())
    assert {"test_map", "test_chance_map", "test_map_colour"} < set(results)
    assert (out / "report.html").is_file() and (out / "report.png").is_file()
    assert CCAModel.from_pretrained(out).config.attributes == ["colour", "shape"]


COMMANDS = ["train", "evaluate", "label", "embed", "export", "index", "index move", "search", "card", "push"]
COMMANDS += ["data prepare", "data download", "data push", "convert crossvit", "serve", "demo", "docs", "complete"]


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_each_command(command, capsys):
    """Each flag once, with underscores; an example; plain words."""
    assert run(*command.split(), "--help") == 0
    text = capsys.readouterr().out
    flags = [line.split()[0].rstrip(":") for line in text.splitlines() if line.startswith("  --")]
    assert flags and len(set(flags)) == len(flags) and not [flag for flag in flags if "-" in flag[2:]]
    assert f"  cca {command} " in text and "Example" in text
    if command != "train":  # its texts stand in the dataclasses
        assert "picture" not in text.lower().replace("max_pictures", "")


@pytest.mark.parametrize("flags", [["--output-dir", "--num-workers"], ["--output_dir", "--num_workers"]])
def test_dashes_and_underscores_are_the_same(flags, shoes, checkpoint, tmp_path, capsys):
    words = [word for pair in zip(flags, [tmp_path / "out", 0], strict=True) for word in pair]
    assert run("evaluate", "--model", checkpoint, "--dataset", shoes, *words, "--json") == 0
    metrics = json.loads(capsys.readouterr().out)
    result = EvaluationResult.load_json(tmp_path / "out" / "evaluation.json")
    assert result.intervals() | result.metrics() == metrics
    assert run("embed", "--model", checkpoint, "--dataset", shoes, f"{flags[0]}={tmp_path}", "--id-columm", "a") == 2
    assert "--id_column" in capsys.readouterr().err


@pytest.mark.parametrize("command", [[], ["evaluate"], ["train"]])
def test_help_shows_what_to_type(command, capsys):
    assert run(*command, "--help") == 0
    text = capsys.readouterr().out
    assert "cca train" in text or "cca evaluate" in text or "cca COMMAND --help" in text
    if command:
        assert "Examples:" in text and f"  cca {command[0]} --" in text


def test_help_needs_no_torch():
    """The package's heavy dependencies take seconds to import; a question about flags must not wait for them."""
    script = "import sys; from cca_hf.cli.main import main\n"
    script += "for command in ('evaluate', 'index', 'index move', 'search'): main([*command.split(), '--help'])\n"
    script += "print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"


def test_all_flags_of_training(capsys):
    with pytest.raises(SystemExit) as ended:
        run("train", "--help_all")
    assert ended.value.code == 0
    assert "--num_train_epochs" in capsys.readouterr().out


MODEL, DATA = "{checkpoint}", "{shoes}"
NEEDS_VALUE = "Invalid value for '--attributes': the option needs a value. See 'cca evaluate --help'"
TRIPLETS = ["--dataset", "{prepared}", "--config_name", "triplets"]


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["evalute"], 2, "cca: error: No such command 'evalute'"),
        (["evaluate"], 2, "cca evaluate: error: Missing option '--model'"),
        (["evaluate", "--modle", "x"], 2, "--modle"),
        (["evaluate", "--model", MODEL, "--dataset", DATA, "--attributes", "--split", "test"], 2, NEEDS_VALUE),
        (["evaluate", "--model", MODEL, *TRIPLETS, "--attributes", "--split", "test"], 2, NEEDS_VALUE),
        (["evaluate", "--model", MODEL, "--dataset", DATA, "--attributes"], 2, NEEDS_VALUE),
        (["evaluate", "--model", "--dataset", DATA], 2, "'--model': the option needs a value"),
        (["evaluate", "--model", MODEL, "--dataset", DATA, "shape"], 2, "unexpected extra argument"),
        (["evaluate", "--model", "{broken}", "--dataset", DATA], 1, "header"),
        (["card", "--model", "x", "--compare", "one"], 2, "--compare takes NAME=FOLDER; got 'one'"),
        (["train", "--lr", "1"], 2, "cca train: error: unknown argument --lr: did you mean --learning_rate?"),
        (["train", "shoes"], 2, "'shoes' is no flag and no settings file"),
        (["evaluate", "--model", MODEL, "--dataset", "{unsplit}"], 1, "has no 'test' split, and the checkpoint"),
        (["evaluate", "--model", "a", "--dataset", "b", "--batch_size", "0"], 2, "Invalid value for '--batch_size'"),
        (["evaluate", "--model", "a", "--dataset", "b", "--report"], 2, "--report needs --output_dir"),
        (["train", "--datset", "x"], 2, "cca train: error: unknown argument --datset: did you mean --dataset?"),
        (["train", "--dataset", "x"], 2, "give either --backbone"),
        (["train", "--dataset", "x", "--backbone", "y", "--output_dir", "z", "--margin", "wide"], 2, "'wide'"),
        (["evaluate", "--model", "/no/such", "--dataset", DATA], 1, "there is no checkpoint at /no/such"),
        (["evaluate", "--model", "me/none", "--dataset", DATA], 1, "'me/none' is not a folder here"),
        (["evaluate", "--model", "{vit}", "--dataset", DATA], 1, "vit has no image processor"),
        (["evaluate", "--model", MODEL, "--dataset", "/no/such"], 1, "/no/such"),
        (["evaluate", "--model", MODEL, "--dataset", DATA, "--split", "tset"], 1, "tset"),
        (["evaluate", "--model", MODEL, "--dataset", DATA, "--attributes", "color"], 1, "'colour'"),
        (["evaluate", "--model", MODEL, "--dataset", DATA, "--attributes", "item"], 1, "unknown attribute 'item'"),
        (["evaluate", "--model", MODEL, "--dataset", DATA, "--device", "gpu"], 1, "gpu"),
        (["evaluate", "--model", MODEL, *TRIPLETS, "--split", "tset"], 1, "no split 'tset' (did you mean 'test'?)"),
        (["evaluate", "--model", MODEL, *TRIPLETS, "--group_column", "item"], 1, "contains ready triplets: --report"),
        (["evaluate", "--model", MODEL, *TRIPLETS, "--attributes", "color"], 1, "(did you mean 'colour'?)"),
        (["train", "--dataset", "/no/such", "--backbone", "y", "--output_dir", "{tmp}"], 1, "/no/such"),
    ],
)  # fmt: skip
def test_errors_are_one_line(words, code, message, shoes, prepared, checkpoint, tmp_path, capfd):
    ViTConfig(**TINY_VIT).save_pretrained(tmp_path / "vit")
    places = {"{checkpoint}": checkpoint, "{shoes}": shoes, "{vit}": tmp_path / "vit", "{tmp}": tmp_path / "out"}
    places["{prepared}"] = prepared
    places["{broken}"] = shutil.copytree(checkpoint, tmp_path / "broken")
    (tmp_path / "broken" / "model.safetensors").write_bytes(b"no weights")
    places["{unsplit}"] = tmp_path / "unsplit"
    places["{unsplit}"].mkdir()
    shutil.copy(shoes / "train-00000-of-00001.parquet", places["{unsplit}"] / "train.parquet")
    assert run(*(places.get(word, word) for word in words)) == code
    printed, said = capfd.readouterr()
    assert printed == ""
    errors = [line for line in said.splitlines() if "error:" in line]
    assert len(errors) == 1 and errors[0].startswith("cca") and message in errors[0]
    assert "Traceback" not in said


def test_a_checkpoint_with_missing_weights_is_not_measured(shoes, checkpoint, tmp_path, capsys):
    """transformers would fill them with random numbers and only warn."""
    folder = tmp_path / "cca"
    shutil.copytree(checkpoint, folder)
    weights = load_file(folder / "model.safetensors")
    lost = next(name for name in weights if name.startswith("condition_embedding"))
    save_file(
        {name: weight for name, weight in weights.items() if name != lost},
        folder / "model.safetensors",
        {"format": "pt"},
    )
    assert run("evaluate", "--model", folder, "--dataset", shoes) == 1
    assert f"lacks 1 of the model's weights, such as {lost}" in capsys.readouterr().err


def test_an_error_of_another_kind_is_one_line_too(monkeypatch, capsys):
    def overflow(*arguments, **options):
        raise OverflowError("too large")

    monkeypatch.setattr("cca_hf.recipes.index_search.search_index", overflow)
    assert run("search", "--store", "x", "--item", 1) == 1
    line = "cca: error: OverflowError: too large (CCA_TRACEBACK=1 shows where it comes from)"
    assert capsys.readouterr().err.splitlines() == [line]
    monkeypatch.setenv("CCA_TRACEBACK", "1")
    with pytest.raises(OverflowError):
        run("search", "--store", "x", "--item", 1)


def test_traceback_on_request(monkeypatch):
    monkeypatch.setenv("CCA_TRACEBACK", "1")
    with pytest.raises(FileNotFoundError):
        run("evaluate", "--model", "/no/such", "--dataset", "x")


def test_a_closed_pipe_is_no_error(shoes, checkpoint, tmp_path, warm_python):
    words = ["-m", "cca_hf.cli.main", "evaluate", "--model", checkpoint, "--dataset", shoes, "--json"]
    read, write = os.pipe()
    os.close(read)
    with open(write, "w") as closed, open(tmp_path / "errors.txt", "w") as errors:
        process = warm_python.start(*words, stdout=closed, stderr=errors)
    assert process.wait() == 1
    assert "Traceback" not in (tmp_path / "errors.txt").read_text()


def test_too_few_images_have_no_entanglement(shoes, checkpoint, tmp_path, capsys):
    words = ["evaluate", "--model", checkpoint, "--dataset", shoes, "--split", "train", "--entanglement"]
    assert run(*words, "--output_dir", tmp_path) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert line == (
        "cca: error: the entanglement of the split 'train' cannot be measured: it needs 200 images that are labelled "
        "with two attributes, with at least 10 of a value, and there are 24"
    )
    assert not any(tmp_path.iterdir())


def test_entanglement_is_measured_on_request(checkpoint, tmp_path, capsys):
    shoes = write_shoes(tmp_path / "many", train=200, validation=12, test=12)
    words = ["evaluate", "--model", checkpoint, "--dataset", shoes, "--split", "train", "--entanglement"]
    assert run(*words, "--output_dir", tmp_path) == 0
    printed = capsys.readouterr().out
    result = EntanglementResult.load_json(tmp_path / "entanglement.json")
    assert result.attributes == ("colour", "shape") and result.images == 200
    assert printed.endswith(f"\n\n{result.table()}\n")
    PILImage.open(tmp_path / "entanglement.png").load()
    assert run(*words, "--json") == 0
    metrics = json.loads(capsys.readouterr().out)
    assert {"map", "entanglement", "informativeness", "entanglement_neighbours"} < set(metrics)
    expected = measure_entanglement(
        CCAModel.from_pretrained(checkpoint), load_attribute_dataset(shoes, [*VALUES]), "train"
    )
    assert result.to_dict() == expected.to_dict()
    assert run(*words, "--readers", "linear", "--json") == 0
    assert {"entanglement", "entanglement_neighbours"} & {*json.loads(capsys.readouterr().out)} == {"entanglement"}
    assert run(*words, "--readers", "linear", "mpl") == 1
    assert "unknown reader 'mpl'. Did you mean 'mlp'?" in capsys.readouterr().err
    assert run(*words[:-1], "--readers", "mlp") == 2
    assert "--readers needs --entanglement" in capsys.readouterr().err
