"""How good is CCA? Trains CCA and its baselines with the same backbone, data, budget and loss, and writes one table.

    python scripts/benchmark_quality.py --config configs/fashion_products.yaml --seeds 0 1 2 --output quality

Every flag of scripts/train.py is accepted, and overrides the file. Without a file:

    python scripts/benchmark_quality.py --dataset me/shoes --attributes colour closure \
        --backbone google/vit-base-patch16-224-in21k --methods csn asen cca-lookup --seeds 0 1 2 --output quality

On other data than the training's, for example the later years, or a fifth of the article types (`data/shifts.py`):

    python scripts/benchmark_quality.py --config configs/fashion_products.yaml --cache_tokens cache/later \
        --methods cca-one-hot --protocol later --column year --last 2011 --output quality/later
    python scripts/benchmark_quality.py --config configs/fashion_products.yaml --cache_tokens cache/new \
        --methods cca-one-hot --protocol new-values --attribute article_type --share 0.2 --output quality/new

The table then shows the mAP of known and of new values too. A protocol needs its own folder of stored features.

A finished run (a method with a seed, in OUTPUT/runs) is not repeated, and an interrupted run continues from its last
checkpoint. Several processes can share the work: each takes a run that no other process works on. After the last run,
the command measures the time per image and writes quality.json, quality.md and quality.png.
"""

import argparse
import json
import platform
import shutil
import statistics
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from training_runs import TrainingRuns, mean_and_std
from transformers import set_seed

from cca_hf import AttributeDataset, CCAModel, CCATrainer, EvaluationResult
from cca_hf.data.shifts import leave_values_out, split_by_threshold
from cca_hf.evaluation.retrieval.evaluator import BackboneEvaluator
from cca_hf.evaluation.text_table import format_table, percent
from cca_hf.models.modeling_asen import ASENModel
from cca_hf.models.modeling_conditional import CCAPreTrainedModel
from cca_hf.models.modeling_csn import CSNModel
from cca_hf.models.modeling_separate import SeparateModel
from cca_hf.models.whole_files import write_json
from cca_hf.recipes.attribute_retrieval import load_data, make_model
from cca_hf.recipes.command_line import flags_of_file, parse_arguments
from cca_hf.training.checkpoints import last_checkpoint

TIMED_BATCH = 8
TIMED_ROUNDS = 9


class Method(NamedTuple):
    """A method: the flags of its training, and for one network per attribute whether the networks share one budget."""

    title: str
    flags: tuple[str, ...] = ()
    model_class: type[CCAModel] = CCAModel
    one_per_attribute: bool = False
    share_budget: bool = False


# the baselines as they were published, without our attribute map
AS_TRAINED = ("--attribute_map", "none")

METHODS = {
    "frozen": Method("backbone, frozen"),
    "one-space": Method("one space for all", ("--condition_embedding", "none")),
    "csn": Method("CSN", ("--condition_embedding", "none", *AS_TRAINED), CSNModel),
    "asen": Method("ASEN", ("--condition_embedding", "one_hot", *AS_TRAINED), ASENModel),
    "separate": Method(
        "one network per attribute, the budget for all", AS_TRAINED, one_per_attribute=True, share_budget=True
    ),
    "separate-each": Method("one network per attribute, the budget for each", AS_TRAINED, one_per_attribute=True),
    "cca-one-hot": Method("CCA, one-hot", ("--condition_embedding", "one_hot")),
    "cca-lookup": Method("CCA, lookup", ("--condition_embedding", "lookup")),
    "cca-text": Method("CCA, text", ("--condition_embedding", "text")),
    "cca-residual-image": Method("CCA, one-hot, residual image", ("--residual", "image")),
    "cca-residual-condition": Method("CCA, one-hot, residual condition", ("--residual", "condition")),
    "cca-residual-none": Method("CCA, one-hot, no residual", ("--residual", "none")),
    "cca-as-trained": Method("CCA, one-hot, as trained", AS_TRAINED),
    "cca-retrieval": Method("CCA, one-hot, map for retrieval", ("--attribute_map", "retrieval")),
    "cca-subspaces": Method("CCA, one-hot, attribute subspaces", ("--attribute_map", "project")),
}


# a function of the data set and of the values of these flags
PROTOCOLS: dict[str, tuple[Callable[..., AttributeDataset], tuple[str, str]]] = {
    "later": (split_by_threshold, ("column", "last")),
    "new-values": (leave_values_out, ("attribute", "share")),
}


class Benchmark:
    """Runs methods with several seeds on one data set and stores the results in a folder.

    Args:
        settings: flags of scripts/train.py, for all methods.
        text_encoder: name or path of the text encoder of `cca-text`.
        save_models: save the trained models in `folder/models`.
        protocol: `protocol` and its flags, by name; empty for the splits of the data set itself.
    """

    def __init__(
        self, settings: list[str], folder: Path, text_encoder: str | None, save_models: bool, protocol: dict[str, Any]
    ) -> None:
        self.training_flags = settings
        self.settings = [*settings, *(word for name, value in protocol.items() for word in (f"--{name}", str(value)))]
        self.folder = folder
        self.runs = TrainingRuns(folder, self.settings)
        self.text_encoder = text_encoder
        self.save_models = save_models
        self.data: AttributeDataset = load_data(parse_arguments(settings)[1])
        if protocol:
            split, flags = PROTOCOLS[protocol["protocol"]]
            self.data = split(self.data, *(protocol[name] for name in flags))
            print(self.data.summary())

    def methods(self, names: list[str]) -> list[str]:
        """The selected methods in the order of the table; "all" leaves out methods that equal another one."""
        if names != ["all"]:
            return [name for name in METHODS if name in names]
        residual = self.new_model("cca-one-hot", 0).config.residual
        duplicates = {f"cca-residual-{residual}"} | ({"cca-text"} if self.text_encoder is None else set())
        return [name for name in METHODS if name not in duplicates]

    def run(self, method: str, seed: int) -> None:
        """Trains and evaluates a method with a seed, unless the run is finished or another process works on it."""
        self.runs.run(
            method, seed, lambda: self._measure_frozen() if method == "frozen" else self._train(method, seed)
        )

    def new_model(self, method: str, seed: int, data: AttributeDataset | None = None) -> CCAModel:
        model_args = self._arguments(method, seed, self.folder)[0]
        set_seed(seed)
        return make_model(model_args, data or self.data, METHODS[method].model_class)

    def whole_model(self, method: str) -> CCAPreTrainedModel:
        """The complete model that would be served, untrained, to count its parameters and measure its time."""
        if not METHODS[method].one_per_attribute:
            return self.new_model(method, 0)
        return SeparateModel.join([self.new_model(method, 0, self._only(name)) for name in self.data.attributes])

    def _arguments(self, method: str, seed: int, folder: Path) -> Any:
        flags = [*METHODS[method].flags, "--seed", str(seed), "--output_dir", str(folder)]
        if method == "cca-text":
            flags += ["--text_encoder", str(self.text_encoder)]
        return parse_arguments([*self.training_flags, *flags])

    def _only(self, attribute: str) -> AttributeDataset:
        return AttributeDataset(self.data.splits, {attribute: self.data.attributes[attribute]}, self.data.group_column)

    def _measure_frozen(self) -> dict[str, Any]:
        model = self.new_model("frozen", 0)
        model.config.known_values = self.data.values_in("train")  # as those of the trained models
        model_and_result = model.backbone, BackboneEvaluator(self.data, "test")(model)
        return _figures(*model_and_result, trained=0, seconds=0.0)

    def _train(self, method: str, seed: int) -> dict[str, Any]:
        work = self.folder / "work" / f"{method}-seed{seed}"
        if METHODS[method].one_per_attribute:
            parts = [self._train_one(method, seed, work / name, self._only(name)) for name in self.data.attributes]
            model: CCAPreTrainedModel = SeparateModel.join([part.model for part in parts])
            result = EvaluationResult(tuple(part.result.attributes[0] for part in parts))
        else:
            parts = [self._train_one(method, seed, work, self.data)]
            model, result = parts[0].model, parts[0].result
        if self.save_models:
            model.save_pretrained(self.folder / "models" / f"{method}-seed{seed}")
        shutil.rmtree(work)
        return _figures(model, result, trained=sum(p.trained for p in parts), seconds=sum(p.seconds for p in parts))

    def _train_one(self, method: str, seed: int, work: Path, data: AttributeDataset) -> "Trained":
        done = work / "done.json"
        if done.exists():  # one of several networks, trained before an interruption
            stored = json.loads(done.read_text())
            result = EvaluationResult.from_dict(stored["result"])
            return Trained(CCAModel.from_pretrained(work), result, stored["trained"], stored["seconds"])
        training_args = self._arguments(method, seed, work)[2]
        if METHODS[method].share_budget:
            training_args.num_train_epochs /= len(self.data.attributes)
        model = self.new_model(method, seed, data)
        if (
            training_args.cache_tokens
            and not model.takes_last_layer
            and model.config.backbone_config.model_type == "vit"
        ):
            training_args.cache_tokens += "-whole"  # the other methods replace the last layer of the backbone
        trainer = CCATrainer(model, training_args, data)
        checkpoint = last_checkpoint(work)
        start = time.perf_counter()
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        seconds = time.perf_counter() - start
        trainer.predict(trainer.images_of("test"), metric_key_prefix="test")
        trainer.save_model()
        result = trainer.evaluation_result
        assert result is not None  # None only in other processes than the main one
        trained = sum(p.numel() for group in trainer.optimizer.param_groups for p in group["params"])
        write_json({"result": result.to_dict(), "trained": trained, "seconds": seconds}, done)
        return Trained(trainer.model, result, trained, seconds)


class Trained(NamedTuple):
    model: CCAModel
    result: EvaluationResult
    trained: int
    seconds: float


def _figures(model: torch.nn.Module, result: EvaluationResult, *, trained: int, seconds: float) -> dict[str, Any]:
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "trained_parameters": trained,
        "training_seconds": seconds,
        "metrics": result.metrics(),
    }


@torch.inference_mode()
def milliseconds_per_image(models: dict[str, CCAPreTrainedModel]) -> dict[str, float]:
    """Median time for an image under all attributes; the models run in turns, after one turn to warm up."""
    work: dict[str, Callable[[], object]] = {}
    for name, model in models.items():
        size = model.config.image_size
        pixel_values = torch.zeros(TIMED_BATCH, 3, size, size)
        every = torch.arange(len(model.config.attributes)).expand(TIMED_BATCH, -1)
        model.eval()
        if name == "frozen":
            work[name] = lambda model=model, x=pixel_values: model.get_backbone_features(x)
        else:
            work[name] = lambda model=model, x=pixel_values, ids=every: model(x, attribute_ids=ids)
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for turn in range(TIMED_ROUNDS + 1):
        for name, run in work.items():
            start = time.perf_counter()
            run()
            if turn > 0:
                seconds[name].append(time.perf_counter() - start)
    return {name: 1000 * statistics.median(each) / TIMED_BATCH for name, each in seconds.items()}


def summarise(runs: list[dict[str, Any]], milliseconds: float) -> dict[str, Any]:
    """Mean and standard deviation of one method over its seeds."""
    first = runs[0]
    return {
        "seeds": [run["seed"] for run in runs],
        "parameters": first["parameters"],
        "trained_parameters": first["trained_parameters"],
        "ms_per_image": milliseconds,
        "training_seconds": statistics.mean(run["training_seconds"] for run in runs),
        "metrics": mean_and_std([run["metrics"] for run in runs]),
    }


def table_cells(methods: dict[str, dict[str, Any]], attributes: list[str]) -> tuple[list[str], list[list[str]]]:
    """The header, a row with the chance level, and a row for each method."""
    reported = set.intersection(*(set(method["metrics"]) for method in methods.values()))
    apart = [kind for kind in ("known", "new") if f"map_{kind}" in reported]
    columns = ["map", *(f"map_{name}" for name in (*apart, "macro", *attributes))]
    header = ["mAP in %", "mean", *apart, "macro", *attributes, "parameters", "trained", "ms per image"]
    chance = next(iter(methods.values()))["metrics"]
    rows = [["chance", *(percent(chance[f"chance_{column}"]["mean"]) for column in columns), "", "", ""]]
    for name, method in methods.items():
        figures = [method["metrics"][column] for column in columns]
        cells = [
            f"{percent(each['mean'])} ± {percent(each['std'])}" if len(method["seeds"]) > 1 else percent(each["mean"])
            for each in figures
        ]
        sizes = [f"{method[key] / 1e6:.2f} M" for key in ("parameters", "trained_parameters")]
        rows.append([METHODS[name].title, *cells, *sizes, f"{method['ms_per_image']:.1f}"])
    return header, rows


def write_tables(folder: Path, methods: dict[str, dict[str, Any]], settings: list[str], attributes: list[str]) -> None:
    machine = {"machine": platform.processor() or platform.machine(), "threads": torch.get_num_threads()}
    content = {"settings": settings, "torch": torch.__version__, **machine, "methods": methods}
    write_json(content, folder / "quality.json")
    header, rows = table_cells(methods, attributes)
    print(f"\n{format_table(header, [rows])}")
    lines = [header, ["---"] * len(header), *rows]
    (folder / "quality.md").write_text("".join(f"| {' | '.join(line)} |\n" for line in lines), encoding="utf-8")
    try:
        draw(folder / "quality.png", methods)
    except ImportError as error:
        print(f"no quality.png: {error}")


def draw(path: Path, methods: dict[str, dict[str, Any]]) -> None:
    """Draws the mean mAP of each method, its standard deviation over the seeds, and the chance level."""
    from cca_hf.visualization.figures import ACCENT, BASELINES, FAINT, INK, MUTED, new_figure, quiet

    figure = new_figure(7.5, 0.9 + 0.36 * len(methods))
    axes = figure.add_subplot()
    for row, (name, method) in enumerate(methods.items()):
        figures = method["metrics"]["map"]
        colour = ACCENT if name.startswith("cca") else BASELINES[1]
        axes.barh(row, 100 * figures["mean"], xerr=100 * figures["std"], height=0.66, color=colour, ecolor=INK)
        axes.text(100 * (figures["mean"] + figures["std"]) + 1, row, percent(figures["mean"]), va="center", fontsize=9)
    chance = next(iter(methods.values()))["metrics"]["chance_map"]["mean"]
    axes.axvline(100 * chance, color="#dc2626", linewidth=1.4)
    axes.text(100 * chance, -0.62, "chance", color="#dc2626", fontsize=8, ha="center")
    axes.set_yticks(range(len(methods)), [METHODS[name].title for name in methods])
    axes.set_ylim(len(methods) - 0.5, -0.8)
    axes.set_xlim(0, 108)
    axes.set_axisbelow(True)
    axes.xaxis.grid(True, color=FAINT, linewidth=0.8)
    axes.set_xlabel("mAP in %, mean of the attributes, test split", color=MUTED, fontsize=9)
    quiet(axes)
    figure.savefig(path, dpi=150)


def protocol_of(own: argparse.Namespace, parser: argparse.ArgumentParser) -> dict[str, Any]:
    """`protocol` and its flags, by name; empty without a protocol."""
    names = [name for _, flags in PROTOCOLS.values() for name in flags]
    given = {name: vars(own)[name] for name in names if vars(own)[name] is not None}
    if own.protocol is None:
        if given:
            parser.error(f"{_flags(given)} needs --protocol")
        return {}
    _, needed = PROTOCOLS[own.protocol]
    if tuple(given) != needed:
        parser.error(f"--protocol {own.protocol} takes {_flags(needed)}; got {_flags(given) or 'neither'}")
    return {"protocol": own.protocol, **given}


def _flags(names: Iterable[str]) -> str:
    return " and ".join(f"--{name}" for name in names)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="All other flags are passed to scripts/train.py.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--config", type=Path, help="JSON or YAML file with flags of scripts/train.py")
    parser.add_argument("--methods", nargs="+", choices=["all", *METHODS], default=["all"], metavar="METHOD")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--output", type=Path, required=True, help="folder for the runs and the table")
    parser.add_argument("--text_encoder", help="text encoder of cca-text; without it, 'all' leaves cca-text out")
    parser.add_argument("--save_models", action="store_true", help="save the trained models in OUTPUT/models")
    parser.add_argument("--protocol", choices=PROTOCOLS, help="test on other data than the training's")
    parser.add_argument("--column", help="later: train on the images up to a value of this column, test on the others")
    parser.add_argument("--last", help="later: the largest value of the training")
    parser.add_argument("--attribute", help="new-values: leave out values of this attribute in the training")
    parser.add_argument("--share", type=float, help="new-values: the share of its values, for example 0.2")
    own, settings = parser.parse_known_args(argv)
    if "cca-text" in own.methods and own.text_encoder is None:
        parser.error("cca-text needs --text_encoder")
    protocol = protocol_of(own, parser)

    if own.config is not None:
        settings = [*flags_of_file(own.config), *settings]
    benchmark = Benchmark(settings, own.output, own.text_encoder, own.save_models, protocol)
    methods = benchmark.methods(own.methods)
    wanted = [(name, seed) for name in methods for seed in (own.seeds[:1] if name == "frozen" else own.seeds)]
    for name, seed in wanted:
        if benchmark.runs.load(name, seed) is None:
            benchmark.run(name, seed)
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in methods}
    missing = []
    for name, seed in wanted:
        run = benchmark.runs.load(name, seed)
        if run is None:
            missing.append(f"{name} with seed {seed}")
        else:
            runs[name].append(run)
    if missing:
        print(f"\nOther processes work on {', '.join(missing)}. When they are done, run this command again.")
        return
    milliseconds = milliseconds_per_image({name: benchmark.whole_model(name) for name in methods})
    summaries = {name: summarise(runs[name], milliseconds[name]) for name in methods}
    write_tables(own.output, summaries, benchmark.settings, list(benchmark.data.attributes))


if __name__ == "__main__":
    main()
