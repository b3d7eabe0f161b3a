"""Re-identification of persons: DCAL and its parts against a small ViT, and MobileNetV2, in one table.

    python scripts/benchmark_reidentification.py --dataset data/peta --identity_column person \
        --role_column reid_role --within_column subset --backbone data/mobilenet_v2_imagenet \
        --seeds 0 1 2 --output reidentification/peta

All other flags are passed to `cca train reidentify`, for all methods. The methods:

- MobileNetV2 with pretrained weights: as it is (frozen), or trained (learning)
- a small ViT from scratch, with GLCA, with PWCA, and with both (DCAL)

The models from scratch have the same data, epochs, schedule and augmentation; PWCA doubles the time of a step. The
first row is a random ranking. The checkpoint of the best epoch on validation is evaluated once on test.

A finished run (a method with a seed, in OUTPUT/runs) is not repeated. Several processes share the work: start the
command once for each core, with OMP_NUM_THREADS=1. After the last run, the command writes reidentification.json and
reidentification.md.
"""

import argparse
import json
import shutil
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from training_runs import TrainingRuns, mean_and_std

from cca_hf.evaluation.reidentification_result import title_of
from cca_hf.evaluation.text_table import format_table, percent
from cca_hf.models.whole_files import write_json
from cca_hf.recipes.command_line import parse_command
from cca_hf.recipes.reidentification import load_data, make_model, make_trainer, run_training
from cca_hf.recipes.reidentification_arguments import ReidentificationArguments

VIT: dict[str, Any] = {
    "model_type": "vit",
    "patch_size": 16,
    "hidden_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 3,
    "intermediate_size": 384,
}


class Method(NamedTuple):
    """A row of the table: the flags of its training beside the common ones."""

    title: str
    flags: tuple[str, ...] = ()
    pretrained: bool = False
    learns: bool = True


METHODS = {
    "frozen": Method("MobileNetV2, frozen", pretrained=True, learns=False),
    "learning": Method("MobileNetV2, learning", pretrained=True),
    "vit": Method("ViT"),
    "glca": Method("ViT + GLCA", ("--dcal", "--no_pairwise_attention")),
    "pwca": Method("ViT + PWCA", ("--dcal", "--no_local_attention")),
    "dcal": Method("DCAL (both)", ("--dcal",)),
}
FIGURES = ("map", "cmc@1", "cmc@5", "cmc@10", "minp")
# flags of all methods, and of the two kinds; those of the command line come last and win
COMMON = ("--image_size", "128", "64", "--padding", "5", "--min_images_per_identity", "2")
FROM_SCRATCH = ("--num_train_epochs", "10")
PRETRAINED = ("--num_train_epochs", "2")


class Benchmark:
    """Trains methods with several seeds on one data set and stores the results in a folder.

    Args:
        settings: flags of `cca train reidentify`, for all methods.
        backbone: the pretrained MobileNetV2.
        config: JSON of the ViT that is trained from scratch.
    """

    def __init__(self, settings: list[str], folder: Path, backbone: str, config: str) -> None:
        self.flags, self.folder, self.backbone, self.config = settings, folder, backbone, config
        self.runs = TrainingRuns(folder, [*settings, config])

    def run(self, method: str, seed: int) -> None:
        """Trains and evaluates a method with a seed, unless the run is finished or another process works on it."""
        self.runs.run(method, seed, lambda: self._measure(method, seed))

    def _measure(self, name: str, seed: int) -> dict[str, Any]:
        method, work = METHODS[name], self.folder / "work" / f"{name}-seed{seed}"
        if work.exists():  # left by an interrupted run
            shutil.rmtree(work)
        kind = ("--backbone", self.backbone) if method.pretrained else ("--backbone_config", self.config)
        flags = [*COMMON, *(PRETRAINED if method.pretrained else FROM_SCRATCH), *kind, *method.flags, *self.flags]
        (args,) = parse_command(["reidentify", *flags, "--seed", str(seed), "--output_dir", str(work)])[1]
        start = time.perf_counter()
        if method.learns:
            run = run_training(args)
            assert run.result is not None  # None only in other processes than the main one
            model, figures, validation = run.model, run.result.metrics(), _best(run.history)
        else:
            model, (figures, validation) = _evaluate(args)
        seconds = time.perf_counter() - start
        shutil.rmtree(work, ignore_errors=True)
        return {
            "metrics": figures,
            "validation_map": validation,
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "seconds": seconds,
            "epochs": args.num_train_epochs if method.learns else 0,
        }


def _evaluate(args: ReidentificationArguments) -> tuple[Any, tuple[dict[str, float], float]]:
    """A model that is not trained: its figures on test, and its mAP on validation."""
    data, model = load_data(args), make_model(args)
    trainer = make_trainer(model, args, data)
    validation = trainer.evaluate("validation")["eval_map"]
    trainer.evaluate("test")
    assert trainer.evaluation_result is not None
    return model, (trainer.evaluation_result.metrics(), validation)


def _best(history: Sequence[dict[str, float]]) -> float:
    return max(entry["eval_map"] for entry in history if "eval_map" in entry)


def table_cells(methods: dict[str, dict[str, Any]]) -> tuple[list[str], list[str], list[list[str]]]:
    """The header, the row of a random ranking, and a row for each method."""
    header = [
        "% on test",
        *(title_of(name) for name in FIGURES),
        "mAP on validation",
        "parameters",
        "epochs",
        "minutes",
    ]
    first = next(iter(methods.values()))["metrics"]
    chance = ["random ranking", *(percent(first[f"chance_{name}"]["mean"]) for name in FIGURES), "", "", "", ""]
    rows = []
    for name, method in methods.items():
        several = len(method["seeds"]) > 1
        figures = [*(method["metrics"][figure] for figure in FIGURES), method["validation_map"]]
        cells = [percent(each["mean"]) + f" ± {percent(each['std'])}" * several for each in figures]
        minutes, size = f"{method['seconds'] / 60:.1f}", f"{method['parameters'] / 1e6:.2f} M"
        rows.append([METHODS[name].title, *cells, size, f"{method['epochs']:g}", minutes])
    return header, chance, rows


def summarise(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Mean and standard deviation of a method over its seeds."""
    return {
        "seeds": [run["seed"] for run in runs],
        **{key: runs[0][key] for key in ("parameters", "epochs")},
        "seconds": statistics.mean(run["seconds"] for run in runs),
        "metrics": mean_and_std([run["metrics"] for run in runs]),
        "validation_map": mean_and_std([{"map": run["validation_map"]} for run in runs])["map"],
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="All other flags are passed to cca train reidentify.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--backbone", required=True, help="the pretrained MobileNetV2: a folder or an id on the Hub")
    parser.add_argument("--backbone_config", default=json.dumps(VIT), help="JSON of the ViT. Default: a small one")
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS), metavar="METHOD")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--output", type=Path, required=True, help="folder for the runs and the table")
    given, settings = parser.parse_known_args(argv)
    benchmark = Benchmark(settings, given.output, given.backbone, given.backbone_config)
    methods = [name for name in METHODS if name in given.methods]
    # without a training, all seeds are equal
    seeds = {name: given.seeds if METHODS[name].learns else given.seeds[:1] for name in methods}
    for seed in given.seeds:
        for method in methods:
            if seed in seeds[method]:
                benchmark.run(method, seed)
    found = {method: [benchmark.runs.load(method, seed) for seed in seeds[method]] for method in methods}
    if unfinished := [method for method, runs in found.items() if None in runs]:
        print(f"\nOther processes work on {', '.join(unfinished)}. When they are done, run this command again.")
        return
    summaries = {method: summarise([run for run in runs if run is not None]) for method, runs in found.items()}
    header, chance, rows = table_cells(summaries)
    write_json({"settings": benchmark.runs.settings, "methods": summaries}, given.output / "reidentification.json")
    lines = [header, ["---", *["---:"] * (len(header) - 1)], chance, *rows]
    text = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    (given.output / "reidentification.md").write_text(text, encoding="utf-8")
    print(f"\n{format_table(header, [[chance], rows])}")


if __name__ == "__main__":
    main()
