"""Evaluation of a trained recogniser on a data set, also on another one than that of its training."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cca_hf.data.recognition import RecognitionDataset, load_recognition_dataset
from cca_hf.data.schema import IMAGE_COLUMN
from cca_hf.data.split_names import same_split
from cca_hf.evaluation.recognition import evaluate_recognition
from cca_hf.evaluation.recognition_result import RecognitionResult
from cca_hf.models.encoding import pixel_batches

from .evaluation import load_evaluation_data


def evaluate_recogniser(
    model: Any,
    checkpoint: str,
    dataset: str,
    attributes: Sequence[str] | None = None,
    split: str = "test",
    *,
    group_column: str | None = None,
    split_seed: int | None = None,
    config_name: str | None = None,
    output_dir: Path | None = None,
    batch_size: int = 64,
    num_workers: int | None = None,
) -> RecognitionResult:
    """Measures mA, instance metrics, calibration and the share of unknown values.

    Args:
        model: the loaded checkpoint, an [`AttributeRecogniser`].
        checkpoint: the id or folder it was loaded from, see [`RunRecord.of_checkpoint`].
        dataset: an id on the Hub or a folder. Its values are compared with those of the model by their names.
        attributes: default: all of the model's. Another data set may have some of them only.
        group_column, split_seed, config_name: default: those of the training, see `load_evaluation_data`.
        output_dir: where to write `evaluation.json`.

    Raises:
        KeyError, ValueError: for a split, an attribute or a value that does not exist, and see `load_evaluation_data`.
    """
    names = [model.config.attributes[index] for index in model.config.attribute_ids(attributes)]
    kinds = {name: model.config.kind_of(name) for name in names}

    def load(source: Any, values: Any, **settings: Any) -> RecognitionDataset:
        return load_recognition_dataset(source, values, kinds=kinds, **settings)

    data = load_evaluation_data(
        dataset,
        {name: model.config.values_of(name) for name in names},
        split,
        checkpoint,
        group_column=group_column,
        split_seed=split_seed,
        config_name=config_name,
        load=load,
    )
    assert isinstance(data, RecognitionDataset)  # that of `load`
    split = same_split(split, data.splits)
    logits = logits_of(model, data.splits[split][IMAGE_COLUMN], batch_size, num_workers)
    slices = model.config.logit_slices
    chosen = np.concatenate([logits[:, slices[name]] for name in names], axis=1)
    config = model.config.restricted_to(names)
    result = evaluate_recognition(config, chosen, data.targets(split), split=split, groups=data.groups(split))
    if output_dir is not None:
        result.save_json(output_dir / "evaluation.json")
    return result


def logits_of(model: Any, images: Sequence[Any], batch_size: int = 64, num_workers: int | None = None) -> np.ndarray:
    """(images, num_logits) float32.

    Raises:
        UnreadableImageError: if an image cannot be read; the message names its row.
    """
    model, found = model.in_eval_mode(), []
    with torch.inference_mode():
        for batch in pixel_batches(model, images, batch_size, num_workers):
            found.append(model(batch.values).logits[: len(batch.rows)].float().cpu().numpy())
    return np.concatenate(found)
