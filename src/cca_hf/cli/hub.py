"""`cca card` and `cca push`: the model card of a checkpoint, and the checkpoint on the Hub."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from .options import (
    DryRun,
    Licence,
    Message,
    ModelFolder,
    Private,
    Repo,
    Revision,
    named_values,
    option,
    stdout_kept_clean,
)

if TYPE_CHECKING:
    from cca_hf.evaluation.retrieval.result import EvaluationResult

Compare = Annotated[
    list[str] | None,
    option(
        "compare",
        "NAME=FOLDER ...",
        "Output folders of other trainings on the same data, to compare with this one on the card.",
    ),
]


def card(
    model: ModelFolder,
    name: Annotated[
        str | None, option("name", "ID", "Id of the model on the Hub. Default: the name of the folder.")
    ] = None,
    compare: Compare = None,
    licence: Licence = None,
) -> None:
    """Write the model card (README.md) of a checkpoint again, from the files in its folder.

    'cca train' has written a card. This command adds what was measured since, such as the results of
    'cca evaluate --entanglement --output_dir FOLDER'.

    \b
    Examples:
      cca card --model out
      cca card --model out --name me/cca-shoes --license apache-2.0
      cca card --model out --compare "one space=out-one-space"
    """
    with stdout_kept_clean():
        from cca_hf.hub.model_card import write_model_card

        path = write_model_card(model, model_id=name, baselines=_baselines(compare), licence=licence)
    print(path)


def push(
    model: ModelFolder,
    repo: Repo,
    private: Private = False,
    revision: Revision = None,
    dry_run: DryRun = None,
    compare: Compare = None,
    licence: Licence = None,
    message: Message = "Push the model by cca_hf",
) -> None:
    """Push a checkpoint to the Hub in one commit: weights, code, model card, endpoint handler.

    If the push fails, the repository does not change, and you can run the command again. The token comes from
    'hf auth login' or HF_TOKEN.

    \b
    Examples:
      cca push --model out --repo me/cca-shoes --private
      cca push --model out --repo me/cca-shoes --dry_run to-look-at
      cca push --model out --repo me/cca-shoes --revision v2 --license apache-2.0
    """
    with stdout_kept_clean():
        from cca_hf.hub.publishing import push_model, stage_model

        baselines = _baselines(compare)
        if dry_run is not None:
            place = str(stage_model(model, dry_run, repo, licence=licence, baselines=baselines))
        else:
            place = push_model(
                model,
                repo,
                private=private or None,
                revision=revision,
                licence=licence,
                baselines=baselines,
                message=message,
            )
    print(place)


def _baselines(compare: list[str] | None) -> "dict[str, EvaluationResult]":
    from cca_hf.evaluation.retrieval.result import EvaluationResult

    folders = named_values("--compare", compare, "NAME=FOLDER")
    return {
        name: EvaluationResult.load_json(Path(folder) / "test_evaluation.json") for name, folder in folders.items()
    }
