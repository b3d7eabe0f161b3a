"""The commands of `cca` for what a checkpoint shows of itself on the Hub."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .options import stdout_kept_clean

if TYPE_CHECKING:
    from cca_hf.evaluation.retrieval.result import EvaluationResult


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
    """Write the model card (README.md) of a checkpoint once more, from what lies in its folder.

    'cca train' has written it. What was measured since is taken in, such as by
    'cca evaluate --entanglement --output_dir FOLDER'.

    \b
    Examples:
      cca card --model out
      cca card --model out --name me/cca-shoes --license apache-2.0
      cca card --model out --compare "one space=out-one-space"
    """
    from cca_hf.hub.model_card import write_model_card

    path = write_model_card(model, model_id=name, baselines=_baselines(compare), licence=licence)
    print(path)


def push(
    model: Annotated[
        Path, typer.Option("--model", metavar="FOLDER", help="Output folder of a training, or a saved checkpoint.")
    ],
    repo: Annotated[str, typer.Option("--repo", metavar="ID", help="Repository on the Hub, such as me/cca-shoes.")],
    private: Annotated[bool, typer.Option("--private", help="Make the repository private.")] = False,
    revision: Annotated[
        str | None,
        typer.Option("--revision", metavar="BRANCH", help="Branch, made where there is none. Default: the main one."),
    ] = None,
    dry_run: Annotated[
        Path | None,
        typer.Option("--dry_run", "--dry-run", metavar="FOLDER", help="Write the files into a new folder instead."),
    ] = None,
    compare: Annotated[
        list[str] | None,
        typer.Option("--compare", metavar="NAME=FOLDER", help="As in 'cca card', for the card. Several times."),
    ] = None,
    licence: Annotated[
        str | None, typer.Option("--license", metavar="ID", help="Licence of the weights, such as apache-2.0.")
    ] = None,
    message: Annotated[
        str, typer.Option("--message", metavar="TEXT", help="Of the commit.")
    ] = "Push the model by cca_hf",
) -> None:
    """Put a checkpoint on the Hub in one commit: weights, code, model card, endpoint.

    The repository holds all of it, or what it held before; after a failure the same command goes on. The token is that
    of 'hf auth login', or HF_TOKEN.

    \b
    Examples:
      cca push --model out --repo me/cca-shoes --private
      cca push --model out --repo me/cca-shoes --dry_run to-look-at
      cca push --model out --repo me/cca-shoes --revision v2 --license apache-2.0
    """
    with stdout_kept_clean():
        from cca_hf.hub.publishing import push_model, stage_model

        baselines = _baselines(compare)
        told = (
            str(stage_model(model, dry_run, repo, licence=licence, baselines=baselines))
            if dry_run is not None
            else push_model(
                model,
                repo,
                private=private or None,
                revision=revision,
                licence=licence,
                baselines=baselines,
                message=message,
            )
        )
    print(told)


def _baselines(compare: list[str] | None) -> "dict[str, EvaluationResult]":
    from cca_hf.evaluation.retrieval.result import EvaluationResult

    baselines = {}
    for each in compare or []:
        title, equals, folder = each.partition("=")
        if not (title and equals and folder):
            raise typer.BadParameter(f"--compare wants NAME=FOLDER, got {each!r}.")
        baselines[title] = EvaluationResult.load_json(Path(folder) / "test_evaluation.json")
    return baselines
