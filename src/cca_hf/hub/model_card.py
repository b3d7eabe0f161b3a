"""The model card, from the files beside a checkpoint: a head, the record of the training, and the results.

Every result file with a `"card"` becomes a section. To add a result that is measured later, put its file into the
folder and write the card again.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from transformers import AutoConfig, PreTrainedConfig

from cca_hf.evaluation.entanglement.result import EntanglementResult
from cca_hf.evaluation.results import ResultCard
from cca_hf.evaluation.retrieval.result import EvaluationResult
from cca_hf.evaluation.text_table import markdown_text
from cca_hf.models.configuration_images import AttributeConfig, ImageModelConfig
from cca_hf.models.whole_files import write_text
from cca_hf.training.run_record import FILE_NAME, RunRecord
from cca_hf.visualization.report import EXAMPLES, check_comparable, plot_curves

from .model_description import ModelDescription, describe_model, link_to

TEMPLATE = Path(__file__).with_name("model_card_template.md")
_TEST_RESULT = "test_evaluation.json"
_NOT_SHOWN = "evaluation.json"  # `cca evaluate` writes it, for any data set and split
_TEST_ENTANGLEMENT = "test_entanglement.json"  # of the training
_ENTANGLEMENT = "entanglement.json"  # of `cca evaluate --entanglement`, which is shown instead
# version 0.1 wrote these without a "card"
_FILES_OF_0_1: dict[str, type[EvaluationResult | EntanglementResult]] = {
    _TEST_RESULT: EvaluationResult,
    _ENTANGLEMENT: EntanglementResult,
}


@dataclass(frozen=True)
class StoredResult:
    """A result file beside a checkpoint, and its section of the card."""

    path: Path
    card: ResultCard

    @property
    def image(self) -> Path | None:
        """The figure of the result: a PNG file with the name of the result file."""
        path = self.path.with_suffix(".png")
        return path if path.exists() else None


def write_model_card(
    folder: str | PathLike[str],
    *,
    model_id: str | None = None,
    baselines: Mapping[str, EvaluationResult] | None = None,
    licence: str | None = None,
    license: str | None = None,
) -> Path:
    """Write `README.md` beside a checkpoint, and `training.png` if the folder has a training history.

    Args:
        folder: contains `config.json`, and optionally `run.json`, result files and their figures
            (`test_evaluation.json`, `test_entanglement.json`, `test_entanglement.png`, ...), `report.png`,
            `examples/` and `trainer_state.json`. The card leaves out what is missing.
        model_id: id of the checkpoint on the Hub. Default: the name of the folder.
        baselines: name -> result of another model on the same test split, for the table of the test result.
        licence, license: identifier of the Hub, such as `apache-2.0`, in either spelling. Default: the card names no
            licence.

    Raises:
        FileNotFoundError: if the folder contains no checkpoint.
        ValueError: for a model that neither embeds nor classifies images; if the baselines cannot be compared with the
            test result, or it is missing; for two licences.
    """
    licence = one_licence(licence, license)
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder} has no config.json: a model card is written beside a checkpoint")
    draw_training(folder, folder / "training.png")
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    name = model_id or folder.resolve().name
    run = RunRecord.load(folder) if (folder / FILE_NAME).is_file() else None
    model = describe_model(config, name, None if run is None else run.settings.get("backbone"))
    results = read_results(folder, baselines)
    # the BibTeX entry of a paper on arXiv, if it is beside this file
    citation = Path(__file__).with_name(f"{(model.paper_url or '').rsplit('/', 1)[-1]}.bib")
    class_counts, has_values = _class_counts(model.classes, run), isinstance(config, ImageModelConfig)
    card = ModelCard.from_template(
        _metadata(config, model, run, results, name, licence, folder),
        template_path=str(TEMPLATE),
        text=markdown_text,
        name=name.split("/")[-1],
        method=model.method,
        paper_url=model.paper_url,
        citation=citation.read_text(encoding="utf-8") if citation.exists() else None,
        backbone=model.backbone,
        dataset=None if run is None else link_to(run.dataset, on_hub=run.dataset_on_hub, kind="datasets/"),
        usage=model.usage,
        classes=model.classes if class_counts is None else _with_counts(class_counts),
        are_counted=class_counts is not None,
        attributes=_attributes(config, run) if has_values else {},
        value_counts=run.value_counts if run is not None and (model.classes or has_values) else {},
        results=results,
        report=(folder / "report.png").exists(),
        curves=(folder / "training.png").exists(),
        run=run,
        duration=None if run is None else _duration(run.seconds),
        has_attributes=isinstance(config, AttributeConfig),
    )
    return write_text(str(card), folder / "README.md")


def read_results(folder: Path, baselines: Mapping[str, EvaluationResult] | None = None) -> list[StoredResult]:
    """The results beside a checkpoint, the one on the test split first; see `write_model_card` for errors."""
    found: list[StoredResult] = []
    files = [path for path in folder.glob("*.json") if path.is_file()]  # a pipe would be waited for
    if folder / _ENTANGLEMENT in files:
        files = [path for path in files if path.name != _TEST_ENTANGLEMENT]
    for path in sorted(files, key=lambda path: (path.name != _TEST_RESULT, path.name)):
        content = json.loads(path.read_text(encoding="utf-8"))
        if path.name == _TEST_RESULT and baselines:
            result = EvaluationResult.from_dict(content)
            check_comparable({"this model": result, **baselines}, "map")
            found.append(StoredResult(path, result.card(baselines)))
        elif path.name != _NOT_SHOWN and "card" in content:
            found.append(StoredResult(path, ResultCard(**content["card"])))
        elif path.name in _FILES_OF_0_1:
            found.append(StoredResult(path, _FILES_OF_0_1[path.name].from_dict(content).card()))
    if baselines and not (folder / _TEST_RESULT).exists():
        raise ValueError(f"nothing to compare with: {folder} has no {_TEST_RESULT}")
    return found


def draw_training(folder: Path, image: Path) -> None:
    """Draw the curves of a training's output folder, if it has a history and matplotlib is installed."""
    state = folder / "trainer_state.json"
    if not state.is_file():
        return
    try:
        figure = plot_curves(json.loads(state.read_text(encoding="utf-8"))["log_history"])
    except ImportError:  # matplotlib is an extra: the card is written without curves
        return
    if figure is not None:
        figure.savefig(image, dpi=120)


def one_licence(licence: str | None, license: str | None) -> str | None:
    """The licence that a call names as `licence` or as `license`.

    Raises:
        ValueError: if it names two.
    """
    if licence is not None and license is not None:
        raise ValueError(f"licence and license mean the same, give one of them; got {licence!r} and {license!r}")
    return licence or license


def _metadata(
    config: PreTrainedConfig,
    model: ModelDescription,
    run: RunRecord | None,
    results: list[StoredResult],
    name: str,
    licence: str | None,
    folder: Path,
) -> ModelCardData:
    tags = ["cca_hf", *(["sentence-transformers"] if (folder / "modules.json").exists() else [])]
    measured = [result.card for result in results if result.card.metrics]
    evaluated = None if run is None else (model.task or "other", run.dataset, run.dataset.split("/")[-1])
    return ModelCardData(
        license=licence,
        library_name="transformers",
        pipeline_tag=model.task,
        base_model=model.base_model,
        datasets=[run.dataset] if run is not None and run.dataset_on_hub else None,
        metrics=[card.metrics[0][0] for card in measured] or None,
        tags=list(dict.fromkeys([*tags, *model.tags, config.model_type])),
        widget=[  # queries and their nearest images; the Hub runs no widget for this task
            {
                "src": f"{EXAMPLES}/{path.name}",
                "example_title": f"Query {path.stem}",
                "output": {"url": f"{EXAMPLES}/{path.stem}-neighbours.png"},
            }
            for path in sorted((folder / EXAMPLES).glob("*.jpg"))
        ]
        or None,
        model_name=name.split("/")[-1],
        eval_results=[
            EvalResult(*evaluated, metric, value, card.task, dataset_split="test", metric_name=title)
            for card in measured
            for metric, title, value in card.metrics
        ]
        if evaluated and measured
        else None,
    )


def _class_counts(classes: Sequence[str], run: RunRecord | None) -> dict[str, int] | None:
    """The number of training images of each class, if the run has them."""
    counted = run.value_counts.values() if run is not None and classes else ()
    return next((counts for counts in counted if set(counts) == set(classes)), None)


def _with_counts(counts: Mapping[str, int]) -> list[str]:
    """The most frequent first."""
    return [f"{value} ({counts[value]:,})" for value in sorted(counts, key=lambda value: -counts[value])]


def _attributes(config: PreTrainedConfig, run: RunRecord | None) -> dict[str, list[str]]:
    """Attribute -> values, with their counts and the most frequent first if the run is known."""
    if run is not None:
        return {name: _with_counts(counts) for name, counts in run.value_counts.items()}
    names = config.attributes if isinstance(config, AttributeConfig) else []
    return {name: (config.attribute_values or {}).get(name, []) for name in names}


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
