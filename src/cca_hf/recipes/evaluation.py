"""Evaluation of a trained checkpoint on a data set, with the splits and the columns of its training."""

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import DatasetDict

from cca_hf.data.change_queries import holds_changes, read_changes
from cca_hf.data.columns import column_places
from cca_hf.data.loading import HELD_OUT, load_attribute_dataset, with_usual_names
from cca_hf.data.schema import AttributeDataset
from cca_hf.data.sources import load_source
from cca_hf.data.split_names import same_split
from cca_hf.data.triplets import holds_triplets, load_triplets
from cca_hf.evaluation.entanglement.evaluator import (
    DEFAULT_READERS,
    check_enough_labels,
    check_readers,
    measure_entanglement,
)
from cca_hf.evaluation.manipulation import MAX_QUERIES, ManipulationEvaluator
from cca_hf.evaluation.manipulation_result import ManipulationResult
from cca_hf.evaluation.results import Result
from cca_hf.evaluation.retrieval.evaluator import RetrievalEvaluator, query_and_gallery
from cca_hf.evaluation.retrieval.triplets import TripletEvaluator
from cca_hf.models.configuration_images import public_name
from cca_hf.models.modeling_cca import CCAModel
from cca_hf.training.run_record import RunRecord, rows_digest
from cca_hf.visualization.entanglement import plot_entanglement
from cca_hf.visualization.figures import can_draw
from cca_hf.visualization.manipulation import ChangeView, view_changes
from cca_hf.visualization.report import plot_results, write_report

logger = logging.getLogger(__name__)


def evaluate_checkpoint(
    model: CCAModel,
    checkpoint: str,
    dataset: str,
    attributes: Sequence[str] | None = None,
    split: str = "test",
    *,
    group_column: str | None = None,
    split_seed: int | None = None,
    config_name: str | None = None,
    output_dir: Path | None = None,
    report: bool = False,
    entanglement: bool = False,
    readers: Sequence[str] = DEFAULT_READERS,
    manipulation: bool = False,
    num_changes: Sequence[int] = (1, 2, 3),
    max_queries: int | None = MAX_QUERIES,
    keep: float = 1.0,
    batch_size: int = 64,
    num_workers: int | None = None,
) -> list[Result]:
    """Measures retrieval, or the triplet accuracy if the data set consists of ready triplets.

    Args:
        model: the loaded checkpoint.
        checkpoint: the id or folder it was loaded from, see [`RunRecord.of_checkpoint`].
        dataset: an id on the Hub or a folder.
        attributes: default: all of the model's, or all conditions of the triplets.
        group_column, split_seed, config_name: default: those of the training, see [`load_evaluation_data`].
        output_dir: where to write `evaluation.json` and, with matplotlib, `evaluation.png`.
        report: also write `report.html` there and, with matplotlib, `report.png` and `examples/`.
        entanglement: also measure the entanglement, and write `entanglement.json` and, with matplotlib,
            `entanglement.png` there.
        readers: of the entanglement, see [`measure_entanglement`].
        manipulation: also search for changed images, and write `manipulation.json` there. The queries are those of the
            data set if `config_name` is a configuration of changes, or else all that the split can answer.
        num_changes, max_queries, keep: of the manipulation, see [`ManipulationEvaluator`].

    Raises:
        KeyError, ValueError: for a split, attribute or column that does not exist, and see [`load_evaluation_data`]
            and, with `entanglement`, [`check_enough_labels`].
        ImportError: if the entanglement needs scikit-learn, and it is missing.
    """
    check_readers(readers)
    draws = output_dir is not None and can_draw()
    if output_dir is not None and not draws and not report:  # the report says it itself
        logger.warning('no figures will be drawn, because matplotlib is missing: pip install "cca_hf[plot]"')
    reading: dict[str, Any] = {"batch_size": batch_size, "num_workers": num_workers}
    source = _load_source(dataset, config_name, _recorded(checkpoint, dataset))
    if holds_triplets(source):
        if report or entanglement or manipulation or group_column is not None or split_seed is not None:
            raise ValueError(
                f"{dataset} contains ready triplets: --report, --entanglement, --manipulation, --group_column "
                "and --split_seed are not for them"
            )
        triplets, images = load_triplets(dataset, split, config_name)
        accuracy = TripletEvaluator(triplets, attributes, pictures=images, **reading)(model)
        if output_dir is not None:
            accuracy.save_json(output_dir / "evaluation.json")
        return [accuracy]

    has_queries = holds_changes(source)
    if has_queries and not manipulation:
        raise ValueError(f"the configuration {config_name!r} of {dataset} contains changes: add --manipulation")
    if has_queries:
        config_name = None  # the images
    cutting: dict[str, Any] = {"group_column": group_column, "split_seed": split_seed, "config_name": config_name}
    data = load_evaluation_data(dataset, attributes or model.config.attributes, split, checkpoint, **cutting)
    split = same_split(split, data.splits)
    if entanglement:
        check_enough_labels(data, split)
    changer = None
    if manipulation:
        changes = read_changes(source, data, *query_and_gallery(data, split)) if has_queries else None
        settings: dict[str, Any] = {"num_changes": num_changes, "max_queries": max_queries, "keep": keep, **reading}
        changer = ManipulationEvaluator(data, split, changes=changes, **settings)
    result = RetrievalEvaluator(data, split, **reading)(model)
    results: list[Result] = [result]
    if output_dir is not None:
        result.save_json(output_dir / "evaluation.json")
        if draws:
            plot_results({"model": result}).savefig(output_dir / "evaluation.png", dpi=150)
    measured = measure_entanglement(model, data, split, readers=readers, **reading) if entanglement else None
    if measured is not None:
        results.append(measured)
        if output_dir is not None:
            measured.save_json(output_dir / "entanglement.json")
            if draws:
                plot_entanglement(measured).savefig(output_dir / "entanglement.png", dpi=150)
    changed: ManipulationResult | None = None
    change_views: list[ChangeView] = []
    if changer is not None:
        inputs = changer.encode(model)
        changed = changer.score(inputs, device=model.device)
        results.append(changed)
        if output_dir is not None:
            changed.save_json(output_dir / "manipulation.json")
            change_views = view_changes(changer, inputs) if report else []
    if output_dir is not None and report:
        named = {report_name(model): result}
        title = report_title(checkpoint, dataset)
        shown: dict[str, Any] = {"entanglement": measured, "manipulation": changed, "change_views": change_views}
        write_report(model, data, split, named, output_dir, title=title, batch_size=batch_size, **shown)
    return results


def load_evaluation_data(
    dataset: str,
    attributes: Sequence[str] | Mapping[str, Sequence[str]],
    split: str,
    checkpoint: str,
    *,
    group_column: str | None = None,
    split_seed: int | None = None,
    config_name: str | None = None,
    load: Callable[..., AttributeDataset] = load_attribute_dataset,
) -> AttributeDataset:
    """Loads a data set so that no image of a held-out split is one that the checkpoint was trained on.

    If the checkpoint was trained on this data set, its training's configuration, revision, columns and split seed are
    used, as `run.json` records them. A split that the training cut is cut again, and compared with the recorded
    digest of its rows. A split that the data set has itself is used as it is.

    Args:
        load: loads the source; see `load_attribute_dataset`, whose arguments it gets.

    Raises:
        ValueError: if the split has to be cut and its images may have been trained on: the training of the checkpoint
            is not known, an argument contradicts it, or the data set has changed since.
        KeyError: if the split does not exist; the message names those that do.
    """
    recorded = _recorded(checkpoint, dataset)
    given = {"group_column": group_column, "split_seed": split_seed, "dataset_config": config_name}
    given = {name: value for name, value in given.items() if value is not None}
    source = with_usual_names(_load_source(dataset, config_name, recorded))
    split = same_split(split, source)
    columns = {column for rows in source.values() for column in column_places(rows.features)}
    cut = recorded.get("cut_splits", {})
    must_cut = split in HELD_OUT and split not in source and f"{split}_query" not in source
    if split in cut:
        for name, value in given.items():
            if value != recorded[name]:
                raise ValueError(
                    f"{checkpoint} was trained with {_flag(name, recorded[name])}, which decides which images its "
                    f"{split!r} split contains; with {_flag(name, value)} the split would contain training images. "
                    "Leave the flag out"
                )
    elif must_cut and not given.keys() & {"group_column", "split_seed"} and ("train" in source or len(source) == 1):
        raise ValueError(
            f"{dataset} has no {split!r} split, and the checkpoint {checkpoint} does not record how its training "
            f"split this data set: a {split!r} split that is cut now may contain images that the model was trained "
            "on. If the model was trained on this data set, repeat the --split_seed (0 unless it was given) and the "
            "--group_column of that training. If not, --split_seed 0 cuts a split"
        )
    settings = {**recorded, **given}
    groups = settings.get("group_column")
    data = load(
        source,
        attributes,
        group_column=groups if groups in columns or "group_column" in given else None,
        image_column=recorded.get("image_column"),
        make_splits=must_cut or split in cut,
        split_seed=settings.get("split_seed") or 0,
    )
    if split in cut:
        if recorded["on_unreadable"] == "skip":
            data = data.check_images("skip")
        if rows_digest(data[split]) != cut[split]:
            raise ValueError(
                f"{dataset} has changed since {checkpoint} was trained on it: the {split!r} split that is cut now "
                f"differs from the one of the training, and may contain images that the model was trained on"
            )
    return data


def _recorded(checkpoint: str, dataset: str) -> dict[str, Any]:
    """How the training of the checkpoint loaded the data set; empty if that is not known."""
    record = RunRecord.of_checkpoint(checkpoint)
    return record.data if record is not None and record.describes(dataset) else {}


def _load_source(dataset: str, config_name: str | None, recorded: dict[str, Any]) -> DatasetDict:
    return load_source(
        dataset,
        config_name or recorded.get("dataset_config"),
        recorded.get("dataset_revision"),
        image_column=recorded.get("image_column"),
        on_unreadable=recorded.get("on_unreadable", "error"),
    )


def _flag(name: str, value: object) -> str:
    flag = {"dataset_config": "config_name"}.get(name, name)
    return f"no --{flag}" if value is None else f"--{flag} {value}"


def report_name(model: CCAModel) -> str:
    """The name of a model in a report."""
    name = model.display_name
    return "one space" if name == "CCA" and model.config.condition_embedding == "none" else name


def report_title(checkpoint: str | Path, dataset: str) -> str:
    """The names of a checkpoint and of a data set, without the folders that contain them."""
    model, data = (public_name(str(each)) or Path(each).resolve().name for each in (checkpoint, dataset))
    return f"{model} on {data}"
