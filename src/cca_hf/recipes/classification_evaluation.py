"""Evaluation of a trained classifier on a data set, with the splits and the label column of its training."""

from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel

from cca_hf.data.class_images import ClassImages
from cca_hf.data.sources import load_source
from cca_hf.data.split_names import same_split
from cca_hf.evaluation.classification import evaluate_classification
from cca_hf.evaluation.classification_result import ClassificationResult
from cca_hf.models.encoding import pixel_batches
from cca_hf.training.run_record import RunRecord
from cca_hf.visualization.classification import write_classification_report

from .classification_data import find_label_column
from .evaluation import load_evaluation_data, report_title


def evaluate_classifier(
    model: PreTrainedModel,
    checkpoint: str,
    dataset: str,
    split: str = "test",
    *,
    label_column: str | None = None,
    group_column: str | None = None,
    split_seed: int | None = None,
    config_name: str | None = None,
    output_dir: Path | None = None,
    report: bool = False,
    batch_size: int = 64,
    num_workers: int | None = None,
) -> ClassificationResult:
    """Measures accuracy, confusions and calibration of a classifier.

    Args:
        model: the loaded checkpoint, with an `image_processor`.
        checkpoint: the id or folder it was loaded from, see [`RunRecord.of_checkpoint`].
        dataset: an id on the Hub or a folder. Its classes are compared with those of the model by their names.
        label_column: default: that of the training, if the checkpoint was trained on this data set; or else see
            `find_label_column`.
        group_column, split_seed, config_name: default: those of the training, see `load_evaluation_data`.
        output_dir: where to write `evaluation.json`.
        report: also write `report.html` there.

    Raises:
        KeyError, ValueError: for a split, a column or a class that does not exist, and see `load_evaluation_data`.
    """
    column = label_column or _recorded_column(checkpoint, dataset)
    if column is None:
        column = find_label_column(load_source(dataset, config_name, None), None, {group_column})
    data = load_evaluation_data(
        dataset,
        {column: [*model.config.id2label.values()]},
        split,
        checkpoint,
        group_column=group_column,
        split_seed=split_seed,
        config_name=config_name,
    )
    split = same_split(split, data.splits)
    images = ClassImages(data, split)
    encoded = data.splits[split].select(images.rows)["image"]
    logits = []
    with torch.inference_mode():
        for batch in pixel_batches(model, encoded, batch_size, num_workers):
            of_batch = model(pixel_values=batch.values).logits[: len(batch.rows)]
            logits.append(of_batch.float().cpu().numpy())
    scores = np.concatenate(logits)
    result = evaluate_classification(scores, images.labels, images.classes, split=split, groups=images.groups)
    if output_dir is not None:
        result.save_json(output_dir / "evaluation.json")
        if report:
            title, page = report_title(checkpoint, dataset), output_dir / "report.html"
            write_classification_report(result, data, scores.argmax(axis=1), page, title=title, model=model)
    return result


def _recorded_column(checkpoint: str, dataset: str) -> str | None:
    """The label column of the training, if the checkpoint was trained on this data set."""
    record = RunRecord.of_checkpoint(checkpoint)
    return record.data.get("label_column") if record is not None and record.describes(dataset) else None
