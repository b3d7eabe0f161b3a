"""Evaluation of a trained model of embeddings by re-identification, with the columns and splits of its training."""

from pathlib import Path

import numpy as np
from datasets import concatenate_datasets

from cca_hf.data.image_column import IMAGE_COLUMN
from cca_hf.data.reidentification import ReidentificationData, SearchImages
from cca_hf.evaluation.reidentification import score_search
from cca_hf.evaluation.reidentification_result import ReidentificationResult
from cca_hf.models.image_embedder import ImageEmbedder
from cca_hf.training.run_record import RunRecord

from .evaluation import load_evaluation_data

_COLUMNS = ("identity_column", "camera_column", "role_column", "within_column")


def evaluate_reidentifier(
    embedder: ImageEmbedder,
    checkpoint: str,
    dataset: str,
    split: str = "test",
    *,
    identity_column: str | None = None,
    camera_column: str | None = None,
    role_column: str | None = None,
    within_column: str | None = None,
    group_column: str | None = None,
    split_seed: int | None = None,
    config_name: str | None = None,
    output_dir: Path | None = None,
    batch_size: int = 64,
    num_workers: int | None = None,
) -> ReidentificationResult:
    """Measures mAP, CMC and mINP.

    Args:
        embedder: the loaded checkpoint.
        checkpoint: the id or folder it was loaded from, see [`RunRecord.of_checkpoint`].
        dataset: an id on the Hub or a folder.
        identity_column, camera_column, role_column, within_column: see [`ReidentificationData`]. Default: those of the
            training, also for another data set.
        group_column, split_seed, config_name: default: those of the training, see `load_evaluation_data`.
        output_dir: where to write `evaluation.json`.

    Raises:
        KeyError, ValueError: for a split or column that does not exist or is not known, and see
            `load_evaluation_data` and `evaluate_reidentification`.
    """
    record = RunRecord.of_checkpoint(checkpoint)
    given = (identity_column, camera_column, role_column, within_column)
    columns = {} if record is None else {name: record.data.get(name) for name in _COLUMNS}
    columns |= {name: value for name, value in zip(_COLUMNS, given, strict=True) if value is not None}
    identity, camera = columns.get("identity_column"), columns.get("camera_column")
    if identity is None or camera is None:
        raise ValueError(
            f"{checkpoint} has no attributes, and was not trained by 'cca train reidentify': its embeddings are "
            "measured by a search for identities. Give --attribute, the column of the identities, and --camera_column"
        )
    loaded = load_evaluation_data(
        dataset,
        [identity],
        split,
        checkpoint,
        group_column=group_column,
        split_seed=split_seed,
        config_name=config_name,
    )
    data = ReidentificationData(loaded, camera, columns.get("role_column"), columns.get("within_column"))
    images = SearchImages(data, split)
    rows = [loaded.splits[name].select_columns([IMAGE_COLUMN]).select(of) for name, of in images.search.rows.items()]
    encoded = concatenate_datasets(rows)[IMAGE_COLUMN]
    embeddings = embedder.encode(encoded, batch_size=batch_size, num_workers=num_workers)
    result = score_search(images, np.asarray(embeddings))
    if output_dir is not None:
        result.save_json(output_dir / "evaluation.json")
    return result
