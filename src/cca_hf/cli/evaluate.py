"""`cca evaluate`: the retrieval quality of a checkpoint on a data set."""

import json
import math
from pathlib import Path

from . import options
from .options import UsageError, option, stdout_kept_clean, switch


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
        None, "FOLDER", "Folder for evaluation.json, evaluation.png and the files of --report and --entanglement."
    ),
    report: bool = switch(
        "report", "Also write report.html, report.png and examples/ with nearest images and attention maps."
    ),
    entanglement: bool = switch(
        "entanglement", "Also measure how much each attribute's embeddings reveal about the other attributes."
    ),
    as_json: bool = options.JSON,
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

        results = evaluate_checkpoint(
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
    if as_json:
        metrics = {name: figure for result in results for name, figure in result.metrics().items()}
        print(json.dumps({name: None if math.isnan(each) else each for name, each in metrics.items()}, indent=2))
    else:
        print("\n\n".join(result.table() for result in results))
