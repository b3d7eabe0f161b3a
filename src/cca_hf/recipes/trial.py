"""A first result in minutes, without tuning (`cca try`): on a user's own images, or on drawn shapes.

On own images, a small pretrained backbone stays frozen. Its features are computed once, and the conditional layer
learns on them for a fixed number of steps. A large data set is sampled. Shapes are learned from scratch, so that they
need no network.
"""

import tempfile
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from datasets import DatasetDict
from transformers import set_seed

from cca_hf.data.loading import load_attribute_dataset
from cca_hf.data.schema import AttributeDataset
from cca_hf.data.torch_dataset import AttributeImages, QueriesAndGallery
from cca_hf.evaluation.retrieval.evaluator import RetrievalEvaluator, query_and_gallery
from cca_hf.evaluation.retrieval.result import EvaluationResult
from cca_hf.evaluation.text_table import format_table
from cca_hf.models.modeling_cca import CCAModel
from cca_hf.training.arguments import CCATrainingArguments
from cca_hf.training.run_record import RunRecord, count_values
from cca_hf.visualization.report import write_report

from .attribute_retrieval import make_model
from .attribute_trainer import CCATrainer
from .command_line import DataArguments, ModelArguments
from .evaluation import report_name, report_title
from .shapes import draw_shapes, train_on_shapes

BACKBONE = "google/mobilenet_v2_1.0_224"
SHAPES, SHAPE_EPOCHS = 1500, 6
# A small model learns these three in half a minute; pattern and shape take `make demo` some minutes.
SHAPE_ATTRIBUTES = ("colour", "size", "background")
STEPS = 120
# So many images of a larger split are drawn at random.
MOST_IMAGES = {"train": 1000, "validation": 100, "test": 100}
_FEW_IMAGES = 16  # for batches with four images of a value
_FEW_QUERIES = 100
_SHOWN_VALUES = 4


class Trial(NamedTuple):
    """What a trial returns; the folder of the page also has the checkpoint and `test_evaluation.json`."""

    model: CCAModel
    data: AttributeDataset  # with the splits that were evaluated: test, or test_query and test_gallery
    result: EvaluationResult
    page: Path


def load_images(data_args: DataArguments) -> AttributeDataset:
    """The images of a user, in the splits `train`, `validation` and `test`.

    Raises:
        ValueError: if there are no training images; see also [`load_attribute_dataset`].
    """
    data = load_attribute_dataset(
        data_args.dataset,
        data_args.attributes,
        group_column=data_args.group_column,
        split_seed=data_args.split_seed,
    )
    if "train" not in data:
        raise ValueError(
            f"{data_args.dataset} has no training images: its only split is called {', '.join(data.splits)}; "
            "call it train"
        )
    return data


def describe(data: AttributeDataset) -> str:
    """A table of the attributes: the most frequent values, and the numbers of values and of missing labels."""
    labels = np.concatenate([data.labels(split) for split in data.splits])
    rows = []
    for (name, values), column in zip(data.attributes.items(), labels.T, strict=True):
        counts = Counter(column[column >= 0].tolist())
        frequent = [values[value] for value, _ in counts.most_common(_SHOWN_VALUES)]
        more = ", ..." if len(counts) > _SHOWN_VALUES else ""
        missing = len(column) - counts.total()
        rows.append([f"{name}: {', '.join(frequent)}{more}", f"{len(counts):,}", f"{missing:,}"])
    table = format_table(["attribute", "values", "no label"], [rows])
    text = f"{len(labels):,} images ({_sizes(data)})\n{table}"
    used = sample(data)
    return text if _sizes(used) == _sizes(data) else f"{text}\nDrawn at random for this trial: {_sizes(used)}."


def explain(trial: Trial) -> str:
    """What was compared with what, and a warning if the figures are those of few images."""
    splits = trial.data.splits
    query_split, gallery_split = query_and_gallery(trial.data, "test")
    queries = splits[query_split].num_rows
    gallery = queries - 1 if gallery_split is None else splits[gallery_split].num_rows
    few = " Figures of so few queries are uncertain." if queries < _FEW_QUERIES else ""
    return f"Queries: {queries:,} (the test images). Other images that each is compared with: {gallery:,}.{few}"


def _sizes(data: AttributeDataset) -> str:
    return ", ".join(f"{rows.num_rows:,} {split}" for split, rows in data.splits.items())


def sample(data: AttributeDataset) -> AttributeDataset:
    """At most `MOST_IMAGES` of each split, drawn at random with a fixed seed; splits of other names are left out."""
    splits = DatasetDict()
    for split, images in data.splits.items():
        most = MOST_IMAGES.get(split.partition("_")[0])
        if most is not None:
            random = np.random.default_rng(0)
            drawn = random.choice(images.num_rows, min(most, images.num_rows), replace=False)
            splits[split] = images.select(np.sort(drawn))
    return replace(data, splits=splits)


def try_images(data: AttributeDataset, data_args: DataArguments, backbone: str, output_dir: Path) -> Trial:
    """Trains on a frozen backbone, evaluates, and writes checkpoint and page.

    The test images are the queries, and the training images their gallery: a tenth of a small data set would be too
    few to be compared with each other. Queries and galleries of the data set itself are used as they are.

    Args:
        data: of [`load_images`]; unreadable images are skipped.
        data_args: how `data` was loaded, for a later evaluation of the checkpoint.
        backbone: an id on the Hub or a folder.

    Raises:
        OSError: if the backbone cannot be loaded; the message says what to do without a connection.
        ValueError: if the labels give no triplet.
    """
    used = sample(data).check_images("skip")
    labels = used.labels("train")
    images = int((labels >= 0).any(axis=1).sum())
    with tempfile.TemporaryDirectory(prefix="cca-try-", ignore_cleanup_errors=True) as cache:
        args = CCATrainingArguments(
            output_dir=str(output_dir),
            max_steps=STEPS,
            per_device_train_batch_size=min(64, images),
            images_per_value=4 if images >= _FEW_IMAGES else 2,
            freeze_backbone=True,
            cache_tokens=cache,
            eval_strategy="steps",
            eval_steps=STEPS // 5,
            save_strategy="no",
            load_best_model_at_end=False,
            logging_steps=STEPS // 15,
            report_to="none",
        )
        set_seed(args.seed)  # for the weights of the new layer
        model = _make_model(backbone, used)
        trainer = CCATrainer(model, args, used)
        if "validation" in used:
            queries, gallery = trainer.images_of("validation"), trainer.images_of("train")
            assert isinstance(queries, AttributeImages) and isinstance(gallery, AttributeImages)
            trainer.eval_dataset = QueriesAndGallery(queries, gallery)
        outcome = trainer.train()
        trainer.save_model()
    counts = count_values(used.attributes, labels)
    sizes = {split: rows.num_rows for split, rows in used.splits.items()}
    record = replace(RunRecord.of(data, asdict(data_args), trainer.args), splits=sizes, value_counts=counts)
    replace(record, seconds=outcome.metrics["train_runtime"]).save(output_dir)

    if "test" in used:
        used = replace(used, splits=DatasetDict(test_query=used["test"], test_gallery=used["train"]))
    trained = trainer.unwrapped_model().eval()
    result = RetrievalEvaluator(used, "test")(trained)
    result.save_json(output_dir / "test_evaluation.json")
    title = report_title(output_dir, data_args.dataset)
    return _trial(trained, used, result, output_dir, trainer.state.log_history, title)


def try_shapes(output_dir: Path) -> Trial:
    """Draws shapes, trains the model of `make demo` on them, evaluates, and writes checkpoint and page."""
    shapes = output_dir / "shapes"
    draw_shapes(shapes, num_images=SHAPES)
    run = train_on_shapes(
        shapes, output_dir, attributes=SHAPE_ATTRIBUTES, epochs=SHAPE_EPOCHS, measure_entanglement=False
    )
    assert run.result is not None  # there is one process
    return _trial(run.model, run.data, run.result, output_dir, run.history, "Drawn shapes")


def _make_model(backbone: str, data: AttributeDataset) -> CCAModel:
    try:
        return make_model(ModelArguments(backbone=backbone), data)
    except OSError as error:
        if Path(backbone).exists():
            raise
        raise OSError(
            f"the backbone {backbone} could not be loaded from the Hub: {error} Without a connection to the Hub, copy "
            "a vision model to this machine, and give its folder: --backbone FOLDER"
        ) from error


def _trial(
    model: CCAModel,
    data: AttributeDataset,
    result: EvaluationResult,
    output_dir: Path,
    history: list[dict[str, float]],
    title: str,
) -> Trial:
    page = write_report(model, data, "test", {report_name(model): result}, output_dir, history=history, title=title)
    return Trial(model, data, result, page)
