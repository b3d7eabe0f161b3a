"""`cca card` and `cca push`: the model card of a checkpoint, and the checkpoint on the Hub."""

from pathlib import Path
from typing import Any

from . import options
from .options import named_values, option, stdout_kept_clean

COMPARE = option(
    None, "NAME=FOLDER ...", "Output folders of other trainings on the same data, to compare on the card."
)


def card(
    model: Path = options.MODEL_FOLDER,
    name: str | None = option(None, "ID", "Id of the model on the Hub. Default: the name of the folder."),
    compare: list[str] | None = COMPARE,
    licence: str | None = options.LICENCE,
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
    model: Path = options.MODEL_FOLDER,
    repo: str = options.REPO,
    private: bool = options.PRIVATE,
    revision: str | None = options.REVISION,
    dry_run: Path | None = options.DRY_RUN,
    compare: list[str] | None = COMPARE,
    licence: str | None = options.LICENCE,
    message: str = options.message("Push the model by cca_hf"),
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

        card: dict[str, Any] = {"licence": licence, "baselines": _baselines(compare)}
        if dry_run is not None:
            place = str(stage_model(model, dry_run, repo, **card))
        else:
            place = push_model(model, repo, private=private or None, revision=revision, message=message, **card)
    print(place)


def _baselines(compare: list[str] | None) -> dict[str, Any]:
    """Name -> `EvaluationResult`."""
    from cca_hf.evaluation.retrieval.result import EvaluationResult

    folders = named_values("--compare", compare, "NAME=FOLDER")
    return {name: EvaluationResult.load_json(Path(path) / "test_evaluation.json") for name, path in folders.items()}
