"""Fine-grained classes: DCAL and its parts, CrossViT and MobileNetV2, trained by `cca train classify`, in one table.

    python scripts/benchmark_classification.py --dataset data/cub50 --label_column species \
        --backbone data/mobilenet_v2_imagenet --seeds 0 1 2 --output classification/cub50

All other flags are passed to `cca train classify`, for all methods. The methods:

- MobileNetV2 with pretrained weights: only the classifier is trained (frozen), or all weights (learning)
- a small ViT from scratch, with GLCA, with PWCA, and with both (DCAL)
- a CrossViT from scratch with about as many parameters as this ViT

The models from scratch have the same data, epochs, schedule and augmentation. Two rows need no training: a random
class, and the most frequent class of the training images. The checkpoint of the best epoch on validation is evaluated
once on test.

A finished run (a method with a seed, in OUTPUT/runs) is not repeated. Several processes share the work: start the
command once for each core, with OMP_NUM_THREADS=1. After the last run, the command writes classification.json and
classification.md.
"""

import argparse
import json
import shutil
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import nn
from training_runs import TrainingRuns, mean_and_std

from cca_hf import AttributeDataset
from cca_hf.evaluation.text_table import format_table, percent
from cca_hf.models.whole_files import write_json
from cca_hf.recipes.classification import run_training
from cca_hf.recipes.classification_arguments import ClassificationArguments
from cca_hf.recipes.classification_data import load_classes
from cca_hf.recipes.classifiers import backbone_of
from cca_hf.recipes.command_line import parse_command

VIT: dict[str, Any] = {
    "model_type": "vit",
    "image_size": 64,
    "patch_size": 8,
    "hidden_size": 96,
    "num_hidden_layers": 6,
    "num_attention_heads": 3,
    "intermediate_size": 384,
}
CROSSVIT: dict[str, Any] = {
    "model_type": "crossvit",
    "image_size": 64,
    "patch_sizes": [6, 8],
    "image_scales": [1.0, 1.0],
    "hidden_sizes": [48, 96],
    "num_attention_heads": [3, 3],
    "num_layers": [1, 2],
    "num_blocks": 2,
}


class Method(NamedTuple):
    """A row of the table: the flags of its training beside the common ones."""

    title: str
    flags: tuple[str, ...]
    pretrained: bool = False


def _from_scratch(config: dict[str, Any], *flags: str) -> tuple[str, ...]:
    return ("--backbone_config", json.dumps(config), *flags)


METHODS = {
    "frozen": Method("MobileNetV2, frozen, with a linear classifier", ("--freeze_backbone",), pretrained=True),
    "learning": Method("MobileNetV2, learning", (), pretrained=True),
    "vit": Method("ViT", _from_scratch(VIT)),
    "glca": Method("ViT + GLCA", _from_scratch(VIT, "--dcal", "--no_pairwise_attention")),
    "pwca": Method("ViT + PWCA", _from_scratch(VIT, "--dcal", "--no_local_attention")),
    "dcal": Method("DCAL (both)", _from_scratch(VIT, "--dcal")),
    "crossvit": Method("CrossViT", _from_scratch(CROSSVIT)),
}
FIGURES = {
    "accuracy": "accuracy",
    "top_5_accuracy": "top-5",
    "macro_recall": "mean recall",
    "ece": "calibration error",
}
# flags of the two kinds of models; those of the command line come last and win
FROM_SCRATCH = ("--num_train_epochs", "20", "--per_device_train_batch_size", "32")
PRETRAINED = ("--num_train_epochs", "6", "--per_device_train_batch_size", "32", "--image_size", "128")


class Benchmark:
    """Trains methods with several seeds on one data set and stores the results in a folder.

    Args:
        settings: flags of `cca train classify`, for all methods.
        backbone: the pretrained MobileNetV2.
    """

    def __init__(self, settings: list[str], folder: Path, backbone: str) -> None:
        self.flags, self.folder, self.backbone = settings, folder, backbone
        self.runs = TrainingRuns(folder, settings)

    def run(self, method: str, seed: int) -> None:
        """Trains and evaluates a method with a seed, unless the run is finished or another process works on it."""
        self.runs.run(method, seed, lambda: self._train(method, seed))

    def data(self) -> AttributeDataset:
        return load_classes(self._arguments("--backbone", self.backbone, *self.flags))

    def _arguments(self, *flags: str) -> ClassificationArguments:
        (args,) = parse_command(["classify", *flags])[1]
        return args

    def _train(self, method: str, seed: int) -> dict[str, Any]:
        work = self.folder / "work" / f"{method}-seed{seed}"
        if work.exists():  # left by an interrupted run
            shutil.rmtree(work)
        own = (*PRETRAINED, "--backbone", self.backbone) if METHODS[method].pretrained else FROM_SCRATCH
        common = [*own, *METHODS[method].flags, *self.flags]
        args = self._arguments(*common, "--seed", str(seed), "--output_dir", str(work))
        start = time.perf_counter()
        run = run_training(args)
        seconds = time.perf_counter() - start
        assert run.result is not None  # None only in other processes than the main one
        shutil.rmtree(work)
        parameters = count_parameters(run.model)
        return {
            "metrics": run.result.metrics(),
            "parameters": parameters,
            "trained_parameters": parameters - args.freeze_backbone * count_parameters(backbone_of(run.model)),
            "training_seconds": seconds,
            "epochs": args.num_train_epochs,
        }


def count_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def rows_without_training(data: AttributeDataset) -> dict[str, dict[str, float]]:
    """The figures of a random class, and of the class that has most training images, on the test split."""
    ((_, classes),) = data.attributes.items()
    labels = {split: data.labels(split)[:, 0] for split in ("train", "test")}
    labels = {split: ids[ids >= 0] for split, ids in labels.items()}
    counts = np.bincount(labels["train"], minlength=len(classes))
    frequent = np.argsort(-counts, kind="stable")
    tested = len(np.unique(labels["test"]))
    chance = {"accuracy": 1 / len(classes), "top_5_accuracy": 5 / len(classes), "macro_recall": 1 / len(classes)}
    majority = {
        "accuracy": float(np.mean(labels["test"] == frequent[0])),
        "top_5_accuracy": float(np.mean(np.isin(labels["test"], frequent[:5]))),
        "macro_recall": float(frequent[0] in labels["test"]) / tested,
    }
    return {"chance": chance, "most frequent class": majority}


def table_cells(
    baselines: dict[str, dict[str, float]], methods: dict[str, dict[str, Any]]
) -> tuple[list[str], list[list[str]], list[list[str]]]:
    """The header, the rows without training, and a row for each method."""
    header = ["% on test", *FIGURES.values(), "parameters", "trained", "epochs", "minutes"]
    first = [
        [title, *(percent(figures[name]) if name in figures else "" for name in FIGURES), "", "", "", ""]
        for title, figures in baselines.items()
    ]
    rows = []
    for name, method in methods.items():
        figures = [method["metrics"][figure] for figure in FIGURES]
        several = len(method["seeds"]) > 1
        cells = [percent(each["mean"]) + f" ± {percent(each['std'])}" * several for each in figures]
        sizes = [f"{method[key] / 1e6:.3f} M" for key in ("parameters", "trained_parameters")]
        minutes = f"{method['training_seconds'] / 60:.1f}"
        rows.append([METHODS[name].title, *cells, *sizes, f"{method['epochs']:g}", minutes])
    return header, first, rows


def summarise(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Mean and standard deviation of a method over its seeds."""
    return {
        "seeds": [run["seed"] for run in runs],
        **{key: runs[0][key] for key in ("parameters", "trained_parameters", "epochs")},
        "training_seconds": statistics.mean(run["training_seconds"] for run in runs),
        "metrics": mean_and_std([run["metrics"] for run in runs]),
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="All other flags are passed to cca train classify.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--backbone", required=True, help="the pretrained MobileNetV2: a folder or an id on the Hub")
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS), metavar="METHOD")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--output", type=Path, required=True, help="folder for the runs and the table")
    given, settings = parser.parse_known_args(argv)
    benchmark = Benchmark(settings, given.output, given.backbone)
    methods = [name for name in METHODS if name in given.methods]
    for seed in given.seeds:
        for method in methods:
            if benchmark.runs.load(method, seed) is None:
                benchmark.run(method, seed)
    found = {method: [benchmark.runs.load(method, seed) for seed in given.seeds] for method in methods}
    if unfinished := [method for method, runs in found.items() if None in runs]:
        print(f"\nOther processes work on {', '.join(unfinished)}. When they are done, run this command again.")
        return
    summaries = {method: summarise([run for run in runs if run is not None]) for method, runs in found.items()}
    baselines = rows_without_training(benchmark.data())
    header, first, rows = table_cells(baselines, summaries)
    write_json(
        {"settings": settings, "baselines": baselines, "methods": summaries}, given.output / "classification.json"
    )
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *first, *rows]
    text = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    (given.output / "classification.md").write_text(text, encoding="utf-8")
    print(f"\n{format_table(header, [first, rows])}")


if __name__ == "__main__":
    main()
