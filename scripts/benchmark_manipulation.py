"""Compares how well CCA, ADDE and one space change values ("this one, but red"), with the same backbone and budget.

    python scripts/benchmark_manipulation.py --config configs/fashion_products.yaml --seeds 0 1 2 \
        --output manipulation/fashion_products

Every flag of scripts/train.py is accepted, and overrides the file:

    python scripts/benchmark_manipulation.py --config configs/set_cards.yaml --dataset data/set_cards \
        --backbone data/mobilenet_v2_imagenet --cache_tokens cache/set_cards --seeds 0 1 2 \
        --output manipulation/set_cards

The two stages of ADDE share the epochs. The methods:

- CCA with the centroids of the training images as values, and CCA with the value proxies that its loss learned jointly
- ADDE with one network per attribute, and with CCA's conditional layer, both with their learned prototypes
- one space for all attributes, with r - c_old + c_new of centroids c

The attributes that stay have the weight of those that change (keep = 1). `--split validation` is for choosing
settings. A finished training (a model with a seed, in OUTPUT/runs) is not repeated, and an interrupted one continues
from its last checkpoint. Several processes can share the work. After the last training, the command writes
manipulation.json and manipulation.md.
"""

import argparse
import shutil
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from training_runs import TrainingRuns, mean_and_std
from transformers import set_seed

from cca_hf import AttributeDataset, CCAModel, CCATrainer
from cca_hf.data.value_changes import Changes, enumerate_changes
from cca_hf.evaluation.change_search import ValueVectors, value_centroids, value_vectors
from cca_hf.evaluation.manipulation import evaluate_manipulation
from cca_hf.evaluation.text_table import format_table, percent
from cca_hf.models.modeling_adde import ADDEModel
from cca_hf.models.whole_files import write_json
from cca_hf.recipes.attribute_retrieval import load_data, make_model
from cca_hf.recipes.command_line import flags_of_file, parse_arguments
from cca_hf.recipes.manipulation_trainer import ADDETrainer, ManipulationArguments
from cca_hf.training.checkpoints import last_checkpoint

# model -> its flags
MODELS: dict[str, tuple[str, ...]] = {
    "cca": (),
    "adde-mlp": ("--task", "manipulate", "--encoder", "mlp"),
    "adde-cross-attention": ("--task", "manipulate", "--encoder", "cross_attention"),
    "one-space": ("--condition_embedding", "none"),
}
# method -> its model and its title; the methods of CCA share a training
METHODS = {
    "cca-centroids": ("cca", "CCA, centroids"),
    "cca-proxies": ("cca", "CCA, learned proxies"),
    "adde-mlp": ("adde-mlp", "ADDE, networks"),
    "adde-cross-attention": ("adde-cross-attention", "ADDE, cross-attention"),
    "one-space": ("one-space", "one space, offset of centroids"),
}
NUM_CHANGES = (1, 2)
FIGURES = {"top_10": "top-10", "top_30": "top-30", "ndcg": "NDCG@30", "ndcg_target": "target", "ndcg_others": "others"}
MAX_QUERIES = 10_000  # for each number of changes


class Benchmark:
    """Trains models with several seeds on one data set and stores the results in a folder.

    Args:
        settings: flags of scripts/train.py, for all models.
        split: where the changes are measured.
    """

    def __init__(self, settings: list[str], folder: Path, split: str) -> None:
        self.flags, self.settings = settings, [*settings, "--split", split]
        self.folder, self.split = folder, split
        self.runs = TrainingRuns(folder, self.settings)
        self.data: AttributeDataset = load_data(parse_arguments(settings)[1])
        self.labels = self.data.labels(split)
        numbers = [number for number in NUM_CHANGES if number <= len(self.data.attributes)]
        parts = [enumerate_changes(self.labels, num_changes=number, max_queries=MAX_QUERIES) for number in numbers]
        self.changes = Changes.concatenate(parts)
        print(f"{len(self.changes):,} changes in {len(self.labels):,} images of {split}", flush=True)

    def run(self, model: str, seed: int) -> None:
        """Trains and evaluates a model with a seed, unless that is done or another process works on it."""
        self.runs.run(model, seed, lambda: self._train(model, seed))

    def _train(self, model_name: str, seed: int) -> dict[str, Any]:
        work = self.folder / "work" / f"{model_name}-seed{seed}"
        flags = [*MODELS[model_name], *self.flags, "--seed", str(seed), "--output_dir", str(work)]
        model_args, _, args = parse_arguments(flags)
        set_seed(seed)
        if isinstance(args, ManipulationArguments):
            args.num_train_epochs = args.encoder_epochs = args.num_train_epochs / 2
            adde = make_model(model_args, self.data, ADDEModel, encoder=args.encoder)
            assert isinstance(adde, ADDEModel)
            if args.cache_tokens and args.encoder == "mlp" and adde.config.backbone_config.model_type == "vit":
                args.cache_tokens += "-whole"  # the other models replace the last layer of the backbone
            trainer: CCATrainer = ADDETrainer(adde, args, self.data)
        else:
            trainer = CCATrainer(make_model(model_args, self.data), args, self.data)
        start = time.perf_counter()
        begun = any(last_checkpoint(folder) is not None for folder in (work, work / "encoder"))
        trainer.train(resume_from_checkpoint="last" if begun else None)
        seconds = time.perf_counter() - start
        methods = [name for name, (of_model, _) in METHODS.items() if of_model == model_name]
        results = self._measure(trainer, methods)
        shutil.rmtree(work)
        return {"methods": results, "training_seconds": seconds}

    def _measure(self, trainer: CCATrainer, methods: list[str]) -> dict[str, dict[str, float]]:
        model: CCAModel = trainer.unwrapped_model()
        training, embeddings = trainer.embed("train"), trainer.embed(self.split)[0]
        results = {}
        for method in methods:
            if method == "one-space":  # all blocks are the same
                training, embeddings = (training[0][:, 0], training[1]), embeddings[:, 0]
            attributes = self.data.attributes
            if method in ("cca-centroids", "one-space"):
                values = value_centroids(*training, attributes)
            else:
                if method == "cca-proxies":
                    model.set_prototypes(trainer.learned_proxies(), self._prototypes(model))
                values = value_vectors(model, *training, attributes)
            result = evaluate_manipulation(
                embeddings,
                self.labels,
                attributes,
                self.changes,
                *self._completed(values, embeddings),
                k=(10, 30),
            )
            results[method] = result.metrics()
        if "one-space" not in methods:  # the model has the prototypes of the last method
            results[methods[-1]]["prototype_cosine"] = self._agreement(trainer)
        if isinstance(model, ADDEModel):
            mass = (model.memory.off_block_mass() / model.memory.block_mass()).item()
            results[methods[-1]]["off_block_mass"] = mass
        return results

    def _completed(self, values: ValueVectors, embeddings: NDArray) -> tuple[NDArray, NDArray[np.bool_]]:
        """With centroids of the searched images for values without training images, in all methods alike."""
        others = value_centroids(embeddings, self.labels, self.data.attributes)
        return np.where(values.known[..., None], values.vectors, others.vectors), values.known | others.known

    def _prototypes(self, model: CCAModel) -> NDArray[np.bool_]:
        """(A, most values) whether a value has a prototype."""
        known = np.zeros((len(self.data.attributes), max(map(len, self.data.attributes.values()))), dtype=bool)
        for place, (name, values) in enumerate(self.data.attributes.items()):
            known[place, : len(values)] = np.isin(values, list(model.value_prototypes(name)))
        return known

    def _agreement(self, trainer: CCATrainer) -> float:
        """The mean cosine of the prototypes with the class means of the images, over the values that these show.

        Both are as the training leaves them: it removes the attribute map.
        """
        model: CCAModel = trainer.unwrapped_model()
        model.set_attribute_map("none")
        embeddings = trainer.embed(self.split)[0]
        means = value_centroids(embeddings, self.labels, self.data.attributes)
        values = value_vectors(model, embeddings, self.labels, self.data.attributes)
        both = self._prototypes(model) & means.known
        return float((values.vectors[both] * means.vectors[both]).sum(-1).mean())


def table_cells(methods: dict[str, dict[str, dict[str, float]]]) -> tuple[list[str], list[list[str]]]:
    """The header, a row with the chance level, and a row for each method."""
    first = next(iter(methods.values()))
    columns = {
        f"{name}_{number}_change{'s' * (number > 1)}": f"{title}, {number}"
        for number in NUM_CHANGES
        for name, title in FIGURES.items()
    }
    columns = {name: title for name, title in columns.items() if name in first}
    header = ["% (number of changes)", *columns.values(), "off-block mass", "cosine"]
    rows = [["chance", *(percent(first[f"chance_{name}"]["mean"]) for name in columns), "", ""]]
    for method, figures in methods.items():
        cells = [_with_spread(figures[name], 100, 1) for name in columns]
        cells.append(_with_spread(figures["off_block_mass"], 100, 2) if "off_block_mass" in figures else "")
        cells.append(_with_spread(figures["prototype_cosine"], 1, 2) if "prototype_cosine" in figures else "")
        rows.append([METHODS[method][1], *cells])
    return header, rows


def _with_spread(figure: dict[str, float], scale: float, decimals: int) -> str:
    text = f"{scale * figure['mean']:.{decimals}f}"
    return f"{text} ± {scale * figure['std']:.{decimals}f}" if figure["std"] else text


def main(argv: Iterable[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="All other flags are passed to scripts/train.py.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--config", type=Path, help="JSON or YAML file with flags of scripts/train.py")
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS), metavar="METHOD")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--split", default="test")
    parser.add_argument("--output", type=Path, required=True, help="folder for the results")
    given, flags = parser.parse_known_args(None if argv is None else list(argv))
    settings = [*([] if given.config is None else flags_of_file(given.config)), *flags]
    benchmark = Benchmark(settings, given.output, given.split)
    models = dict.fromkeys(METHODS[method][0] for method in METHODS if method in given.methods)
    for seed in given.seeds:
        for model in models:
            benchmark.run(model, seed)
    runs = {model: [benchmark.runs.load(model, seed) for seed in given.seeds] for model in models}
    unfinished = [model for model, of_model in runs.items() if None in of_model]
    if unfinished:
        print(f"not finished yet: {', '.join(unfinished)}. Run the command again for the table")
        return
    methods = {
        method: mean_and_std([run["methods"][method] for run in runs[model] if run is not None])
        for method, (model, _) in METHODS.items()
        if method in given.methods
    }
    seconds = {model: [run["training_seconds"] for run in of_model if run] for model, of_model in runs.items()}
    content = {"settings": benchmark.settings, "seeds": given.seeds, "training_seconds": seconds, "methods": methods}
    write_json(content, given.output / "manipulation.json")
    header, rows = table_cells(methods)
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    (given.output / "manipulation.md").write_text("\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n")
    print(format_table(header, [rows[:1], rows[1:]]))


if __name__ == "__main__":
    main()
