"""The command `cca`. Results go to standard output, everything else to standard error.

Exit codes: 0 done, 1 the work failed, 2 the command was not understood. A failure is one line; `CCA_TRACEBACK=1` in
the environment shows where it came from.
"""

import contextlib
import importlib.metadata
import io
import json
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from .data import app as data_commands
from .demo import demo
from .embed import embed, export
from .hub import card, push
from .index import app as index_commands
from .options import NAMES, SpreadLists, load_model, stdout_kept_clean
from .search import search
from .serve import serve

if TYPE_CHECKING:  # torch and transformers are imported by the commands that need them: `cca --help` answers at once
    from cca_hf.evaluation.entanglement.result import EntanglementResult
    from cca_hf.evaluation.retrieval.result import EvaluationResult
    from cca_hf.evaluation.retrieval.triplet_accuracy import TripletResult
    from cca_hf.models.modeling_cca import CCAModel

# Newer versions of typer carry a click of their own; this is the right class in either. Any: `except` cannot be typed.
_UsageError: Any = typer.BadParameter.__base__
_EXPECTED = (
    ValueError,
    KeyError,
    OSError,
    ImportError,
    RuntimeError,
)  # what bad input raises; others are our mistakes

app = typer.Typer(
    name="cca",
    help="One embedding per attribute of a picture: train, measure, look, embed and search.",
    epilog="'cca COMMAND --help' shows examples.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.add_typer(data_commands)

app.command(cls=SpreadLists)(embed)
app.command(cls=SpreadLists)(export)
app.add_typer(index_commands)
app.command(cls=SpreadLists)(search)
app.command()(card)
app.command()(push)
app.command()(serve)
app.command()(demo)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code; `arguments` default to the process's own."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        return int(app(given or ["--help"], prog_name="cca", standalone_mode=False) or 0)
    except (typer.Abort, KeyboardInterrupt):
        return _fail("cca", "interrupted", 130)
    except BrokenPipeError:  # `cca ... | head`: nobody reads on
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except _CommandLineError as error:
        return _fail(f"cca {error.command}", str(error), 2)
    except _UsageError as error:
        path = "cca" if error.ctx is None else error.ctx.command_path
        return _fail(path, f"{_sentence(error.format_message())} See '{path} --help'.", 2)
    except _EXPECTED as error:
        if os.environ.get("CCA_TRACEBACK"):
            raise
        return _fail("cca", str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error), 1)


class _CommandLineError(Exception):
    """A command line that another parser did not understand."""

    def __init__(self, command: str, message: str) -> None:
        super().__init__(message)
        self.command = command


class _PassedOn(TyperCommand):
    """Leaves all words but `--help` to the parser of the recipe."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if "--help" in args:
            return super().parse_args(ctx, ["--help"])
        ctx.args = list(args)
        return ctx.args


def _print_version(asked: bool) -> None:
    if asked:
        print(importlib.metadata.version("cca_hf"))
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    pass


@app.command(cls=SpreadLists)
def evaluate(
    model: Annotated[
        str, typer.Option("--model", metavar="ID_OR_FOLDER", help="Checkpoint: an id on the Hub or a folder.")
    ],
    dataset: Annotated[
        str, typer.Option("--dataset", metavar="ID_OR_FOLDER", help="Data set: an id on the Hub or a folder.")
    ],
    attributes: Annotated[
        list[str] | None,
        typer.Option(
            "--attributes",
            metavar="NAME ...",
            help="Attribute columns, one or more words. Default: all of the model's.",
        ),
    ] = None,
    split: Annotated[
        str,
        typer.Option(
            "--split", metavar="NAME", help="NAME is asked leave-one-out, or NAME_query against NAME_gallery."
        ),
    ] = "test",
    group_column: Annotated[
        str | None,
        typer.Option("--group_column", metavar="NAME", help="Column that near copies share: they are no neighbours."),
    ] = None,
    config_name: Annotated[
        str | None,
        typer.Option("--config_name", metavar="NAME", help="Configuration, where the data set has several: triplets."),
    ] = None,
    batch_size: Annotated[int, typer.Option("--batch_size", metavar="NUMBER", min=1, help="Pictures a pass.")] = 64,
    num_workers: Annotated[
        int | None, typer.Option("--num_workers", metavar="NUMBER", min=0, help="Threads that read the pictures.")
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(
            "--device", metavar="NAME", help="cpu, cuda, cuda:1, mps, ... Default: the accelerator there is."
        ),
    ] = None,
    output_dir: Annotated[
        Path | None,
        typer.Option(
            "--output_dir", metavar="FOLDER", help="Write evaluation.json and evaluation.png into this folder."
        ),
    ] = None,
    report: Annotated[
        bool,
        typer.Option(
            "--report", help="Write report.html, report.png and examples/ too: what is found, and where it looks."
        ),
    ] = False,
    entanglement: Annotated[
        bool,
        typer.Option(
            "--entanglement",
            help="Measure too how much of the other attributes each attribute's embeddings tell; with --output_dir "
            "entanglement.json and entanglement.png.",
        ),
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the metrics as JSON (fractions) in place of the table (percent).")
    ] = False,
) -> None:
    """Measure the retrieval quality of a model: mAP, recall@k and R-precision, with the chance level beside each.

    A validation or test split that the data set lacks is made as in training. Of a data set of ready triplets
    (condition, anchor, positive, negative) the triplet accuracy is measured.

    \b
    Examples:
      cca evaluate --model me/cca-shoes --dataset me/shoes
      cca evaluate --model out --dataset shoes/ --attributes colour closure --output_dir results --report
      cca evaluate --model out --dataset me/shoes --split validation --json | jq .map
      cca evaluate --model out --dataset me/zappos50k --config_name triplets
      cca evaluate --model out --dataset me/shoes --entanglement
    """
    if report and output_dir is None:
        raise typer.BadParameter("--report needs --output_dir")
    with stdout_kept_clean():
        from cca_hf.data.loading import load_attribute_dataset
        from cca_hf.data.sources import load_source
        from cca_hf.data.triplet_images import load_triplets
        from cca_hf.data.triplets import holds_triplets
        from cca_hf.evaluation.retrieval.evaluator import RetrievalEvaluator
        from cca_hf.evaluation.retrieval.triplet_evaluator import TripletEvaluator

        if output_dir is not None:
            _check_figures(needed=report)
        cca = load_model(model, device)
        source = load_source(dataset, config_name, None)
        result: EvaluationResult | TripletResult
        metrics: dict[str, float | None] = {}
        tables: list[str] = []
        if holds_triplets(source):
            if report or entanglement or group_column is not None:
                raise ValueError(
                    f"{dataset} holds ready triplets: there is no --report, --entanglement or --group_column for them"
                )
            triplets, pictures = load_triplets(dataset, split, config_name)
            result = TripletEvaluator(
                triplets, attributes, pictures=pictures, batch_size=batch_size, num_workers=num_workers
            )(cca)
            if output_dir is not None:
                result.save_json(output_dir / "evaluation.json")
        else:
            data = load_attribute_dataset(
                source,
                attributes or cca.config.attributes,
                group_column=group_column,
                make_splits=split in ("validation", "test"),
            )
            result = RetrievalEvaluator(data, split, batch_size=batch_size, num_workers=num_workers)(cca)
            if output_dir is not None:
                _save(result, output_dir)
            if report and output_dir is not None:
                from cca_hf.visualization.report import write_report

                write_report(cca, data, split, {_name(cca): result}, output_dir, batch_size=batch_size)
            if entanglement:
                from cca_hf.evaluation.entanglement.evaluator import measure_entanglement

                found = measure_entanglement(cca, data, split, batch_size=batch_size, num_workers=num_workers)
                metrics |= {name: None if math.isnan(figure) else figure for name, figure in found.metrics().items()}
                tables.append(found.table())
                if output_dir is not None:
                    _save_entanglement(found, output_dir)
        metrics, tables = {**result.metrics(), **metrics}, [result.table(), *tables]
    print(json.dumps(metrics, indent=2) if as_json else "\n\n".join(tables))


@app.command(cls=_PassedOn)
def train(context: typer.Context) -> None:
    """Train a model, keep the checkpoint that is best on validation, measure it once on test, write a report.

    The flags are those of scripts/train.py; 'cca train --help_all' lists all of them. The most used:

    \b
      --dataset ID_OR_FOLDER          what to learn from
      --attributes NAME NAME ...      its attribute columns (default: all ClassLabel columns)
      --backbone ID_OR_FOLDER         pretrained vision model under the conditional layer
      --group_column NAME             column that near copies share
      --output_dir FOLDER             where everything goes
      --num_train_epochs NUMBER       how long
      --resume_from_checkpoint last   go on with an interrupted run
      --push_to_hub --hub_model_id ID when it is done, onto the Hub, see 'cca push'

    \b
    Examples:
      cca train --dataset me/shoes --attributes colour closure \\
          --backbone google/vit-base-patch16-224-in21k --output_dir out
      cca train settings.yaml --num_train_epochs 30 --resume_from_checkpoint last

    Several GPUs: accelerate launch scripts/train.py with the same flags.
    """
    from cca_hf.recipes.attribute_retrieval import run_training
    from cca_hf.training.process import prepare_process

    model_args, data_args, training_args = _parse_training(context.args)
    prepare_process(training_args.device, training_args.cpu_threads)
    figures = _check_figures(needed=False)
    run = run_training(model_args, data_args, training_args)
    if run.result is not None and figures:  # the main process alone has the result
        from cca_hf.visualization.report import write_report

        page = write_report(
            run.model, run.data, "test", {_name(run.model): run.result}, run.output_dir, history=run.history
        )
        print(f"report: {page}")
    if run.result is not None:
        from cca_hf.hub.model_card import write_model_card

        print(f"model card: {write_model_card(run.output_dir)}")
        if training_args.push_to_hub:
            from cca_hf.hub.publishing import push_run

            print(f"pushed: {push_run(training_args)}")


def _parse_training(words: list[str]) -> tuple[Any, Any, Any]:
    """The recipe's own parser, with its one line of error instead of a hundred of usage before it."""
    from cca_hf.recipes.attribute_retrieval import parse_arguments

    if "--help_all" in words:
        parse_arguments(["--help"])
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return parse_arguments(words)
    except SystemExit as error:
        if error.code != 2:
            raise
        message = said.getvalue().rpartition("error: ")[2]
        said = io.StringIO()
        raise _CommandLineError("train", f"{_sentence(message)} See 'cca train --help'.") from error
    finally:
        sys.stderr.write(said.getvalue())


def _name(model: "CCAModel") -> str:
    name = NAMES[model.config.model_type]
    return "one space" if name == "CCA" and model.config.condition_embedding == "none" else name


def _save(result: "EvaluationResult", folder: Path) -> None:
    result.save_json(folder / "evaluation.json")
    if _check_figures(needed=False):
        from cca_hf.visualization.results import plot_results

        plot_results({"model": result}).savefig(folder / "evaluation.png", dpi=150)


def _save_entanglement(result: "EntanglementResult", folder: Path) -> None:
    result.save_json(folder / "entanglement.json")
    if _check_figures(needed=False):
        from cca_hf.visualization.entanglement import plot_entanglement

        plot_entanglement(result).savefig(folder / "entanglement.png", dpi=150)


def _check_figures(*, needed: bool) -> bool:
    """Whether figures can be drawn; said before the work, not after it."""
    from cca_hf.visualization.figures import new_figure

    try:
        new_figure(1, 1)
    except ImportError as error:
        if needed:
            raise
        print(f"cca: no figures will be written: {error}", file=sys.stderr)
        return False
    return True


def _sentence(message: str) -> str:
    """With a stop at its end."""
    return message.strip() if message.strip()[-1:] in (".", "?", ")") else f"{message.strip()}."


def _fail(source: str, message: str, code: int) -> int:
    print(f"{source}: error: {' '.join(message.split())}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
