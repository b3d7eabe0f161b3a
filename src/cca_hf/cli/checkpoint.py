"""`cca evaluate`, `cca card`, `cca push`, `cca check`: a checkpoint is measured, described, published and verified."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from cca_hf.extras import require

from . import options
from .options import UsageError, named_values, option, stdout_kept_clean, switch

if TYPE_CHECKING:
    from cca_hf.evaluation.results import Result

COMPARE = option(
    None, "NAME=FOLDER ...", "Output folders of other trainings on the same data, to compare on the card."
)


def evaluate(
    model: str = options.MODEL,
    dataset: str = options.DATASET,
    attributes: list[str] | None = options.ATTRIBUTES,
    split: str = option(
        "test", "NAME", "Split to evaluate. Each image is compared with all others, or NAME_query with NAME_gallery."
    ),
    group_column: str | None = options.GROUP_COLUMN,
    split_seed: int | None = option(
        None, "NUMBER", "Seed to cut a split that the data set lacks. Default: the seed of the training."
    ),
    config_name: str | None = option(None, "NAME", "Configuration of the data set, such as triplets."),
    batch_size: int = options.batch_size(64),
    num_workers: int | None = options.NUM_WORKERS,
    device: str | None = options.DEVICE,
    output_dir: Path | None = option(
        None,
        "FOLDER",
        "Folder for evaluation.json and evaluation.png, and the files of the following switches.",
    ),
    report: bool = switch(
        "report", "Also write report.html, report.png and examples/ with nearest images and attention maps."
    ),
    entanglement: bool = switch(
        "entanglement", "Also measure how much each attribute's embeddings reveal about the other attributes."
    ),
    readers: list[str] | None = option(
        None,
        "NAME ...",
        "Readers of --entanglement: linear, neighbours, mlp. The last one also finds what is not linear, and takes "
        "minutes. Default: linear neighbours.",
    ),
    manipulation: bool = switch(
        "manipulation", "Also search for changed images, such as this image but red, and measure what else changes."
    ),
    num_changes: list[int] | None = option(
        None, "NUMBER ...", "Attributes that --manipulation changes at once. Default: 1 2 3.", min=1
    ),
    max_queries: int | None = option(
        None, "NUMBER", "Most queries of --manipulation for each number of changes. Default: 10000.", min=1
    ),
    keep: float | None = option(
        None, "WEIGHT", "Weight of the attributes that --manipulation does not change. Default: 1.", min=0.0
    ),
    camera_column: str | None = option(
        None, "NAME", "Re-identification: column with the cameras. Default: that of the training."
    ),
    role_column: str | None = option(
        None, "NAME", "Re-identification: column with query or gallery. Default: that of the training."
    ),
    within_column: str | None = option(
        None, "NAME", "Re-identification: a query searches images with its value in this column. Default: as trained."
    ),
    as_json: bool = options.JSON,
) -> None:
    """Measure the retrieval quality of a model: mAP, recall@k and R-precision, with their chance levels.

    If the model was trained on the data set, the splits and the group column of the training are used (run.json). If
    the data set has ready triplets (condition, anchor, positive, negative), the triplet accuracy is measured. The
    table shows percentages, and the JSON output shows fractions. If queries have values that no training image had,
    the mAP of known and of new values is shown too.

    For a classifier, the accuracy, the recall of the classes, the confusions and the calibration are measured. For a
    model of 'cca train recognise', mA, F1, the calibration and the share of unknown values are measured; the data set
    may be another one than that of the training. For a model with one embedding of an image, a search for identities
    in other cameras is measured; --attribute is the column of the identities.

    \b
    Examples:
      cca evaluate --model me/cca-shoes --dataset me/shoes
      cca evaluate --model out --dataset shoes/ --attributes colour closure --output_dir results --report
      cca evaluate --model out --dataset me/shoes --split validation --json | jq .map
      cca evaluate --model out --dataset me/zappos50k --config_name triplets
      cca evaluate --model out --dataset me/shoes --entanglement --readers linear neighbours mlp
      cca evaluate --model out --dataset me/shoes --manipulation --num_changes 1 2
      cca evaluate --model out --dataset me/shopping100k --manipulation --config_name changes
    """
    if report and output_dir is None:
        raise UsageError("--report needs --output_dir")
    if readers is not None and not entanglement:
        raise UsageError("--readers needs --entanglement")
    only_manipulation = {"--num_changes": num_changes, "--max_queries": max_queries, "--keep": keep}
    for name, value in only_manipulation.items():
        if value is not None and not manipulation:
            raise UsageError(f"{name} needs --manipulation")
    if report:
        require("plot", "figures need")
    if entanglement:
        require("analysis", "entanglement needs")
    with stdout_kept_clean():
        from cca_hf.evaluation.entanglement.evaluator import DEFAULT_READERS
        from cca_hf.evaluation.manipulation import MAX_QUERIES
        from cca_hf.models.image_embedder import ImageEmbedder
        from cca_hf.models.loading import is_recogniser, load_encoder, load_recogniser
        from cca_hf.recipes.classification_evaluation import evaluate_classifier
        from cca_hf.recipes.classifiers import is_checkpoint_of_classifier, load_classifier
        from cca_hf.recipes.evaluation import evaluate_checkpoint
        from cca_hf.recipes.recognition_evaluation import evaluate_recogniser
        from cca_hf.recipes.reidentification_evaluation import evaluate_reidentifier

        settings: dict[str, Any] = {"group_column": group_column, "split_seed": split_seed, "config_name": config_name}
        settings |= {"output_dir": output_dir, "report": report}
        settings |= {"batch_size": batch_size, "num_workers": num_workers}
        results: Sequence[Result]
        if is_recogniser(model):
            if entanglement or manipulation or report:
                raise UsageError(
                    f"{model} recognises values: --entanglement, --manipulation and --report are for embeddings"
                )
            recogniser = load_recogniser(model, device)
            del settings["report"]
            results = [evaluate_recogniser(recogniser, model, dataset, attributes, split, **settings)]
        elif is_checkpoint_of_classifier(model):
            if entanglement or manipulation or len(attributes or ()) > 1:
                raise UsageError(
                    f"{model} is a classifier: it needs no --entanglement and --manipulation, and --attribute is its "
                    "label column"
                )
            column = attributes[0] if attributes else None
            classifier = load_classifier(model, device)
            results = [evaluate_classifier(classifier, model, dataset, split, label_column=column, **settings)]
        elif isinstance(loaded := load_encoder(model, device), ImageEmbedder):
            if entanglement or manipulation or report or len(attributes or ()) > 1:
                raise UsageError(
                    f"{model} has one embedding of an image: --entanglement, --manipulation and --report are not for "
                    "it, and --attribute is the column of the identities"
                )
            del settings["report"]
            settings |= {"identity_column": attributes[0] if attributes else None, "camera_column": camera_column}
            settings |= {"role_column": role_column, "within_column": within_column}
            results = [evaluate_reidentifier(loaded, model, dataset, split, **settings)]
        else:
            results = evaluate_checkpoint(
                loaded,
                model,
                dataset,
                attributes,
                split,
                entanglement=entanglement,
                readers=readers or DEFAULT_READERS,
                manipulation=manipulation,
                num_changes=num_changes or (1, 2, 3),
                max_queries=max_queries or MAX_QUERIES,
                keep=1.0 if keep is None else keep,
                **settings,
            )
    if as_json:
        metrics: dict[str, float] = {}
        for result in results:
            metrics |= result.intervals() | result.metrics()
        print(json.dumps({name: None if math.isnan(each) else each for name, each in metrics.items()}, indent=2))
    else:
        print(options.printable("\n\n".join(result.table() for result in results)))


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

    It can be a model with attributes, a classifier, or a model without a head. The last two have no endpoint handler,
    because the pipelines of transformers run them.

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


def check(
    folder: Path = typer.Argument(..., metavar="FOLDER", help="Checkpoint, output of 'cca embed', or index."),
) -> None:
    """Compare the files of a checkpoint, of embeddings or of an index with their checksums.

    A line for each file says ok, changed, missing, not finite (weights), or no checksum (version 0.1 wrote none). The
    exit code is 1 if a file is changed, missing or not finite. No other process may write to the folder meanwhile.

    \b
    Examples:
      cca check out
      cca check shoes.index
    """
    from cca_hf.hub.integrity import check_folder

    unusable, count = 0, 0
    for file in check_folder(folder):
        print(f"{file.state:11}  {file.name}")
        unusable, count = unusable + (not file.usable), count + 1
    if unusable:
        raise ValueError(f"{unusable} of {count} files in {folder} are not the ones that were written")


def _baselines(compare: list[str] | None) -> dict[str, Any]:
    """Name -> `EvaluationResult`."""
    from cca_hf.evaluation.retrieval.result import EvaluationResult

    folders = named_values("--compare", compare, "NAME=FOLDER")
    return {name: EvaluationResult.load_json(Path(path) / "test_evaluation.json") for name, path in folders.items()}
