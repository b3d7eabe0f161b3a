"""The commands of `cca` for what a checkpoint shows of itself on the Hub."""

from pathlib import Path
from typing import Annotated

import typer


def card(
    model: Annotated[
        Path, typer.Option("--model", metavar="FOLDER", help="Output folder of a training, with its run.json.")
    ],
    name: Annotated[
        str | None,
        typer.Option("--name", metavar="ID", help="Where it will be found. Default: the name of the folder."),
    ] = None,
    compare: Annotated[
        list[str] | None,
        typer.Option(
            "--compare",
            metavar="NAME=FOLDER",
            help="Output folder of another training on the same data, shown beside this one. Several times.",
        ),
    ] = None,
    licence: Annotated[
        str | None, typer.Option("--license", metavar="ID", help="Licence of the weights, such as apache-2.0.")
    ] = None,
) -> None:
    """Write the model card (README.md) of a training once more, from what lies in its folder.

    'cca train' has written it. What was measured since is taken in, such as by
    'cca evaluate --entanglement --output_dir FOLDER'.

    \b
    Examples:
      cca card --model out
      cca card --model out --name me/cca-shoes --license apache-2.0
      cca card --model out --compare "one space=out-one-space"
    """
    from .evaluation.result import EvaluationResult
    from .hub.model_card import write_model_card

    baselines = {}
    for each in compare or []:
        title, equals, folder = each.partition("=")
        if not (title and equals and folder):
            raise typer.BadParameter(f"--compare wants NAME=FOLDER, got {each!r}.")
        baselines[title] = EvaluationResult.load_json(Path(folder) / "test_evaluation.json")
    path = write_model_card(model, model_id=name, baselines=baselines, licence=licence)
    print(path)
