"""`cca evaluate`: the retrieval quality of a checkpoint on a data set."""

import json
from pathlib import Path
from typing import Annotated

from .options import (
    Attributes,
    BatchSize,
    Dataset,
    Device,
    GroupColumn,
    Json,
    Model,
    NumWorkers,
    UsageError,
    option,
    stdout_kept_clean,
    switch,
)


def evaluate(
    model: Model,
    dataset: Dataset,
    attributes: Attributes = None,
    split: Annotated[
        str,
        option(
            "split",
            "NAME",
            "Split to evaluate. Each image is a query against all others, or NAME_query against NAME_gallery.",
        ),
    ] = "test",
    group_column: GroupColumn = None,
    split_seed: Annotated[
        int | None,
        option(
            "split_seed",
            "NUMBER",
            "Seed to cut a split that the data set does not have. Default: the seed of the training.",
        ),
    ] = None,
    config_name: Annotated[
        str | None, option("config_name", "NAME", "Configuration of the data set, such as triplets.")
    ] = None,
    batch_size: BatchSize = 64,
    num_workers: NumWorkers = None,
    device: Device = None,
    output_dir: Annotated[
        Path | None,
        option(
            "output_dir",
            "FOLDER",
            "Folder for evaluation.json, evaluation.png and the files of --report and --entanglement.",
        ),
    ] = None,
    report: Annotated[
        bool,
        switch("report", "Also write report.html, report.png and examples/ with nearest images and attention maps."),
    ] = False,
    entanglement: Annotated[
        bool,
        switch(
            "entanglement",
            "Also measure how much each attribute's embeddings reveal about the other attributes.",
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Measure the retrieval quality of a model: mAP, recall@k and R-precision, with their chance levels.

    If the model was trained on the data set, the splits and the group column of the training are used (run.json). If
    the data set has ready triplets (condition, anchor, positive, negative), the triplet accuracy is measured. The
    table shows percentages, and the JSON output shows fractions.

    \b
    Examples:
      cca evaluate --model me/cca-shoes --dataset me/shoes
      cca evaluate --model out --dataset shoes/ --attributes colour closure --output_dir results --report
      cca evaluate --model out --dataset me/shoes --split validation --json | jq .map
      cca evaluate --model out --dataset me/zappos50k --config_name triplets
      cca evaluate --model out --dataset me/shoes --entanglement
    """
    if report and output_dir is None:
        raise UsageError("--report needs --output_dir")
    with stdout_kept_clean():
        from cca_hf.models.loading import load_model
        from cca_hf.recipes.evaluation import evaluate_checkpoint

        evaluation = evaluate_checkpoint(
            load_model(model, device),
            model,
            dataset,
            attributes,
            split,
            group_column=group_column,
            split_seed=split_seed,
            config_name=config_name,
            output_dir=output_dir,
            report=report,
            entanglement=entanglement,
            batch_size=batch_size,
            num_workers=num_workers,
        )
    print(json.dumps(evaluation.metrics(), indent=2) if as_json else evaluation.table())
