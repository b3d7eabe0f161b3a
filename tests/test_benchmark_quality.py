"""Runs `scripts/benchmark_quality.py` on drawn shapes: one table of all methods, and no run is repeated."""

import importlib.util
import json
import re
import statistics
from pathlib import Path

import pytest
import yaml
from filelock import FileLock
from transformers import AutoModel, ViTConfig

from cca_hf import generate_shapes_dataset

VIT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}


@pytest.fixture(scope="module")
def script(repository):
    spec = importlib.util.spec_from_file_location("benchmark_quality", repository / "scripts" / "benchmark_quality.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.TIMED_ROUNDS = 1
    return module


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Path:
    """A settings file: drawn shapes, a tiny backbone that counts as pretrained, and one epoch on cached features."""
    folder = tmp_path_factory.mktemp("benchmark")
    (folder / "shapes").mkdir()
    for split, dataset in generate_shapes_dataset(num_images=120, image_size=32, seed=0).items():
        dataset.to_parquet(folder / "shapes" / f"{split}-00000-of-00001.parquet")
    AutoModel.from_config(ViTConfig(image_size=32, patch_size=8, **VIT)).save_pretrained(folder / "vit")
    settings = {
        "dataset": str(folder / "shapes"),
        "attributes": ["shape", "colour"],
        "backbone": str(folder / "vit"),
        "freeze_backbone": True,
        "cache_tokens": str(folder / "cache"),
        "num_train_epochs": 1,
        "per_device_train_batch_size": 16,
        "images_per_value": 2,
        "bf16": False,
        "use_cpu": True,
        "disable_tqdm": True,
    }
    (folder / "settings.yaml").write_text(yaml.safe_dump(settings))
    return folder / "settings.yaml"


def words(config: Path, output: Path, *more: str) -> list[str]:
    return ["--config", str(config), "--output", str(output), *more]


def test_all_methods_in_one_table(script, config, tmp_path, capsys):
    script.main(words(config, tmp_path, "--methods", "all", "--seeds", "0"))
    printed = capsys.readouterr().out
    content = json.loads((tmp_path / "quality.json").read_text())
    methods = content["methods"]
    # cca-text needs a text encoder, and the default residual of a ViT is the image
    assert list(methods) == [n for n in script.METHODS if n not in ("cca-text", "cca-residual-image")]
    lines = (tmp_path / "quality.md").read_text().splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:]] == [
        "chance",
        *(script.METHODS[n].title for n in methods),
    ]
    for method in methods.values():
        assert 0 < method["metrics"]["map"]["mean"] < 1 and method["metrics"]["map"]["std"] == 0
        assert method["ms_per_image"] > 0
    for name in ("csn", "asen", "separate", "separate-each"):
        assert f"\n{script.METHODS[name].title} " in printed
    assert (tmp_path / "quality.png").stat().st_size > 1000

    size = {name: method["parameters"] for name, method in methods.items()}
    trained = {name: method["trained_parameters"] for name, method in methods.items()}
    assert size["separate"] == 2 * (size["cca-one-hot"] - 32)  # each without one row of the condition table
    assert trained["separate"] == 2 * (trained["cca-one-hot"] - 32)
    assert trained["frozen"] == 0 and size["frozen"] == size["cca-lookup"] - trained["cca-lookup"]
    assert size["csn"] == size["one-space"] + 2 * 32 < size["cca-one-hot"] + 2 * 32
    assert not list((tmp_path / "work").iterdir()) and not (tmp_path / "models").exists()


def test_mean_and_spread_and_no_run_twice(script, config, tmp_path, monkeypatch, capsys):
    given = words(config, tmp_path, "--methods", "csn", "--save_models", "--seeds")
    script.main([*given, "3"])
    first = json.loads((tmp_path / "runs" / "csn-seed3.json").read_text())
    script.main([*given, "3", "4"])
    assert json.loads((tmp_path / "runs" / "csn-seed3.json").read_text()) == first
    second = json.loads((tmp_path / "runs" / "csn-seed4.json").read_text())
    assert second["metrics"]["map"] != first["metrics"]["map"]
    both = [run["metrics"]["map"] for run in (first, second)]
    summary = json.loads((tmp_path / "quality.json").read_text())["methods"]["csn"]["metrics"]["map"]
    assert summary == pytest.approx({"mean": statistics.mean(both), "std": statistics.stdev(both)})
    assert f"{100 * summary['mean']:.1f} ± {100 * summary['std']:.1f}" in capsys.readouterr().out
    assert type(AutoModel.from_pretrained(tmp_path / "models" / "csn-seed4")).__name__ == "CSNModel"

    monkeypatch.setattr(script.CCATrainer, "train", lambda *_, **__: pytest.fail("trained again"))
    script.main([*given, "3", "4"])
    with pytest.raises(ValueError, match=r"csn-seed3\.json was made with the settings .*Give another --output"):
        script.main([*given, "3", "--num_train_epochs", "2"])


def test_one_network_per_attribute_goes_on_where_it_was_killed(script, config, tmp_path, monkeypatch):
    train = script.CCATrainer.train
    trained: list[list[str]] = []

    def die_at_the_second(trainer, **options):
        trained.append(list(trainer.model.config.attributes))
        if len(trained) == 2:
            raise KeyboardInterrupt
        return train(trainer, **options)

    monkeypatch.setattr(script.CCATrainer, "train", die_at_the_second)
    given = words(config, tmp_path, "--methods", "separate", "--seeds", "0", "--save_models")
    with pytest.raises(KeyboardInterrupt):
        script.main(given)
    assert not list((tmp_path / "runs").glob("*.json"))
    script.main(given)
    assert trained == [["shape"], ["colour"], ["colour"]]
    run = json.loads((tmp_path / "runs" / "separate-seed0.json").read_text())
    assert {"map_shape", "map_colour"} <= set(run["metrics"])
    joined = AutoModel.from_pretrained(tmp_path / "models" / "separate-seed0")
    assert sum(p.numel() for p in joined.parameters()) == run["parameters"]


def test_one_budget_for_all_networks_or_for_each(script, config, tmp_path, monkeypatch):
    epochs: list[float] = []
    train = script.CCATrainer.train

    def look(trainer, **options):
        epochs.append(trainer.args.num_train_epochs)
        return train(trainer, **options)

    monkeypatch.setattr(script.CCATrainer, "train", look)
    script.main(words(config, tmp_path, "--methods", "separate", "separate-each", "cca-one-hot", "--seeds", "0"))
    shared, each, one = epochs[:2], epochs[2:4], epochs[4]
    assert each == [one, one] and shared == [one / 2, one / 2]  # two attributes


def test_new_values_are_reported_apart(script, config, tmp_path, capsys):
    protocol = ["--protocol", "new-values", "--attribute", "colour", "--share", "0.3"]
    cache = ["--cache_tokens", str(tmp_path / "cache")]
    given = words(config, tmp_path, *cache, "--methods", "frozen", "cca-one-hot", "--seeds", "0")
    script.main([*given, *protocol])
    methods = json.loads((tmp_path / "quality.json").read_text())["methods"]
    header, _, chance, *rows = (tmp_path / "quality.md").read_text().splitlines()
    assert header.startswith("| mAP in % | mean | known | new | macro | shape | colour |")
    for row, method in zip(rows, methods.values(), strict=True):
        figures = {name: f"{100 * figure['mean']:.1f}" for name, figure in method["metrics"].items()}
        cells = [figures[name] for name in ("map", "map_known", "map_new", "map_macro")]
        assert row.split(" | ")[1:5] == cells
        assert chance.split(" | ")[2:4] == [figures["chance_map_known"], figures["chance_map_new"]]
        # 2 of the 7 colours: the attribute's mAP lies between those of its known and new values
        low, high = sorted(method["metrics"][f"map_{kind}_colour"]["mean"] for kind in ("known", "new"))
        assert low < method["metrics"]["map_colour"]["mean"] < high
        assert "map_new_shape" not in method["metrics"]
    assert re.search(r"^colour +7 +5\b", capsys.readouterr().out, re.MULTILINE)  # values in all, and in training
    with pytest.raises(ValueError, match="was made with the settings .* --protocol new-values --attribute colour"):
        script.main(given)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--column", "year"], "--column needs --protocol"),
        (["--protocol", "later", "--last", "3"], "--protocol later takes --column and --last; got --last"),
        (["--protocol", "new-values"], "--protocol new-values takes --attribute and --share; got neither"),
    ],
)
def test_the_flags_of_a_protocol_go_together(script, config, tmp_path, capsys, flags, message):
    with pytest.raises(SystemExit):
        script.main(words(config, tmp_path, *flags))
    assert message in capsys.readouterr().err


def test_what_another_process_is_at_is_left_to_it(script, config, tmp_path, capsys):
    (tmp_path / "runs").mkdir()
    with FileLock(tmp_path / "runs" / "csn-seed0.lock"):
        script.main(words(config, tmp_path, "--methods", "csn", "asen", "--seeds", "0"))
    printed = capsys.readouterr().out
    assert "csn, seed 0: another process works on this run" in printed and "csn with seed 0" in printed
    assert [path.name for path in (tmp_path / "runs").glob("*.json")] == ["asen-seed0.json"]
    assert not (tmp_path / "quality.json").exists()


def test_text_conditions_need_a_text_encoder(script, config, tmp_path, capsys):
    with pytest.raises(SystemExit):
        script.main(words(config, tmp_path, "--methods", "cca-text"))
    assert "cca-text needs --text_encoder" in capsys.readouterr().err


@pytest.mark.parametrize("name", [path.stem for path in (Path(__file__).parent.parent / "configs").glob("*.yaml")])
def test_the_files_of_settings_are_understood(repository, name):
    from cca_hf.recipes.command_line import parse_arguments

    model_args, data_args, training_args = parse_arguments([str(repository / "configs" / f"{name}.yaml")])
    assert data_args.attributes and model_args.backbone
    assert training_args.num_train_epochs > 1
