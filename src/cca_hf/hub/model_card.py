"""The model card, written from what a training left in its folder, and from nothing else.

A figure that nobody measured has no place in it; what was measured later (entanglement, a comparison) is there as soon
as its file lies in the folder and the card is written again.
"""

import json
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from transformers import AutoConfig

from cca_hf.evaluation.entanglement.result import EntanglementResult
from cca_hf.evaluation.retrieval.result import EvaluationResult
from cca_hf.evaluation.text_table import percent
from cca_hf.models.configuration_cca import CCAConfig
from cca_hf.models.whole_files import write_text
from cca_hf.training.run_record import FILE_NAME, RunRecord
from cca_hf.visualization.curves import plot_curves
from cca_hf.visualization.report import EXAMPLES
from cca_hf.visualization.results import comparison_rows

TEMPLATE = Path(__file__).with_name("model_card_template.md")
_METHODS = {
    "cca": "conditional cross-attention (CCA)",
    "cca_csn": "a conditional similarity network (CSN)",
    "cca_asen": "an attribute-specific embedding network (ASEN)",
    "cca_separate": "one network per attribute",
}
_MEASURED_AS = "attribute-conditioned image retrieval"
_RARE = 10  # training pictures
_LISTED = 8  # values of an attribute that the card names


def write_model_card(
    folder: str | PathLike[str],
    *,
    model_id: str | None = None,
    baselines: Mapping[str, EvaluationResult] | None = None,
    licence: str | None = None,
) -> Path:
    """Write `README.md` beside a checkpoint, and `training.png` where there is a training's history and matplotlib.

    Args:
        folder: with `config.json` and, where there are such, `run.json`, `test_evaluation.json`, `trainer_state.json`,
            `report.png`, `examples/`, `entanglement.json` and `entanglement.png`; the card leaves out what is missing.
        model_id: where the checkpoint is to be found; default: the folder's name.
        baselines: name -> result on the same split, shown beside the model's.
        licence: identifier of the Hub, such as `apache-2.0`; without one the card names none.

    Raises:
        FileNotFoundError: if the folder holds no checkpoint.
        ValueError: for baselines of other pictures, or where there is nothing to compare them with.
    """
    folder = Path(folder)
    if not (folder / "config.json").exists():
        raise FileNotFoundError(f"{folder} has no config.json: a model card is written beside a checkpoint")
    draw_training(folder, folder / "training.png")
    card = make_model_card(folder, model_id=model_id, baselines=baselines, licence=licence)
    return write_text(str(card), folder / "README.md")


def make_model_card(
    folder: Path, *, model_id: str | None, baselines: Mapping[str, EvaluationResult] | None, licence: str | None
) -> ModelCard:
    """The card of [`write_model_card`], without the pictures."""
    config = AutoConfig.from_pretrained(folder)
    measured = folder / "test_evaluation.json"
    run = RunRecord.load(folder) if (folder / FILE_NAME).exists() else None
    result = EvaluationResult.load_json(measured) if measured.exists() else None
    if baselines and result is None:
        raise ValueError(f"nothing to compare with: {folder} has no test_evaluation.json")
    name = model_id or folder.resolve().name
    backbone = _backbone(config)
    examples = sorted(path.name for path in (folder / EXAMPLES).glob("*.jpg"))
    return ModelCard.from_template(
        _metadata(config, run, result, name, licence, examples),
        template_path=str(TEMPLATE),
        name=name.split("/")[-1],
        model_id=name,
        attributes=list(config.attributes),
        method="a single space (the baseline of CCA)"
        if config.condition_embedding == "none" and config.model_type == "cca"
        else _METHODS[config.model_type],
        backbone=f"[{backbone}](https://huggingface.co/{backbone})" if _on_hub(config) else backbone,
        dataset=None if run is None else _dataset(run),
        example_attributes=json.dumps(list(config.attributes[:2])),
        example_attribute=json.dumps(config.attributes[0]),
        example_count=len(config.attributes[:2]),
        dim=config.embedding_dim or config.hidden_size,
        values=[_values_row(*pair) for pair in run.value_counts.items()]
        if run is not None
        else [_named_values_row(name, config.attribute_values.get(name, [])) for name in config.attributes],
        counted=run is not None,
        measured=None if result is None else _measured(result),
        results=None if result is None else _results(result, dict(baselines or {})),
        subset=None if result is None or result.coverage is None else str(result.coverage),
        entanglement=_entanglement(folder),
        pictures={each: (folder / f"{each}.png").exists() for each in ("report", "entanglement", "training")},
        training=None if run is None else _training(run),
        settings=[] if run is None else [(name, value) for name, value in run.settings.items() if value is not None],
        limits=_limits(run, result),
    )


def _metadata(
    config: CCAConfig,
    run: RunRecord | None,
    result: EvaluationResult | None,
    name: str,
    licence: str | None,
    examples: Sequence[str],
) -> ModelCardData:
    return ModelCardData(
        license=licence,
        library_name="transformers",
        pipeline_tag="image-feature-extraction",
        base_model=config.backbone_name if _on_hub(config) else None,
        datasets=[run.dataset] if run is not None and run.dataset_on_hub else None,
        metrics=None if result is None else ["mean_average_precision"],
        tags=[
            "cca_hf",
            "sentence-transformers",
            "image-retrieval",
            "conditional-embeddings",
            "visual-search",
            *_tags(config),
        ],
        widget=[_example(picture) for picture in examples] or None,
        model_name=name.split("/")[-1],
        eval_results=None if run is None or result is None else _eval_results(run, result),
    )


def _example(picture: str) -> dict[str, Any]:
    """A picture and what the model finds for it, shown where a widget would stand: the Hub runs none for this task."""
    found = f"{EXAMPLES}/{Path(picture).stem}-neighbours.png"
    return {
        "src": f"{EXAMPLES}/{picture}",
        "example_title": f"Query {Path(picture).stem}",
        "output": {"url": found},
    }


def _eval_results(run: RunRecord, result: EvaluationResult) -> list[EvalResult]:
    figures = {"map": "mAP, mean of the attributes", "map_macro": "mAP, mean over values, then attributes"}
    figures |= {f"map_{each.name}": f"mAP, {each.name}" for each in result.attributes}
    metrics = result.metrics()
    return [
        EvalResult(
            task_type="image-feature-extraction",
            task_name=_MEASURED_AS,
            dataset_type=run.dataset,
            dataset_name=run.dataset.split("/")[-1],
            dataset_split="test",
            metric_type=metric,
            metric_name=title,
            metric_value=round(100 * metrics[metric], 2),
        )
        for metric, title in figures.items()
    ]


def _tags(config: CCAConfig) -> list[str]:
    return [config.model_type] if config.model_type == "cca" else ["cca", config.model_type]


def _on_hub(config: CCAConfig) -> bool:
    """Whether the backbone's name is an id and not a folder of somebody's machine."""
    name = config.backbone_name
    return name is not None and not Path(name).exists() and not Path(name).is_absolute() and name.count("/") <= 1


def _backbone(config: CCAConfig) -> str:
    if config.backbone_name is None:
        native: Any = config.backbone_config
        return f"a network of type `{native.model_type}`, from scratch"
    return config.backbone_name if _on_hub(config) else f"`{Path(config.backbone_name).name}`"


def _dataset(run: RunRecord) -> str:
    name = run.dataset
    return f"[{name}](https://huggingface.co/datasets/{name})" if run.dataset_on_hub else f"`{name}`"


def _training(run: RunRecord) -> str:
    splits = ", ".join(f"{count:,} pictures in {split}" for split, count in run.splits.items())
    versions = ", ".join(f"{library} {version}" for library, version in run.versions.items())
    return f"{splits}. {run.hardware}, {_duration(run.seconds)}; {versions}."


def _named_values_row(name: str, values: Sequence[str]) -> dict[str, Any]:
    more = len(values) - _LISTED
    listed = ", ".join(values[:_LISTED]) + (f", and {more} more" if more > 0 else "")
    return {"name": name, "count": len(values), "listed": listed}


def _values_row(name: str, counts: Mapping[str, int]) -> dict[str, Any]:
    often = sorted(counts.items(), key=lambda pair: -pair[1])
    listed = ", ".join(f"{value} ({count:,})" for value, count in often[:_LISTED])
    more = len(often) - _LISTED
    return {"name": name, "count": len(counts), "listed": f"{listed}, and {more} more" if more > 0 else listed}


def _measured(result: EvaluationResult) -> str:
    images = max(each.queries for each in result.attributes)
    return f"Measured once on {images:,} pictures of the test split, which no choice was made by."


def _results(result: EvaluationResult, baselines: dict[str, EvaluationResult]) -> dict[str, Any]:
    rows = comparison_rows({**baselines, "this model": result})
    titles = ["chance", *baselines, "**this model**"]
    return {
        "header": [name for name, _ in rows],
        "rows": [(title, [percent(figures[place]) for _, figures in rows]) for place, title in enumerate(titles)],
    }


def _entanglement(folder: Path) -> str | None:
    path = folder / "entanglement.json"
    if not path.exists():
        return None
    found = EntanglementResult.load_json(path)
    return (
        f"On {found.images:,} test pictures, a linear reader that looks for the other attributes in the embeddings of "
        f"one finds {found.score:.3f} of what the backbone's features tell of them, and "
        f"{found.informativeness:.2f} of what they tell of its own."
    )


def _limits(run: RunRecord | None, result: EvaluationResult | None) -> list[str]:
    limits = [
        "It knows the attributes above and no others, and means by them what the labels of its training pictures "
        "meant. Pictures of another kind get embeddings all the same.",
    ]
    for name, counts in ({} if run is None else run.value_counts).items():
        rare = [value for value, count in counts.items() if 0 < count < _RARE]
        if rare:
            more = f", and {len(rare) - _LISTED} more" if len(rare) > _LISTED else ""
            limits.append(
                f"Rare values of {name}, with less than {_RARE} training pictures: {', '.join(rare[:_LISTED])}{more}."
            )
        unseen = [value for value, count in counts.items() if count == 0]
        if unseen:
            limits.append(f"Values of {name} without a training picture: {', '.join(unseen[:_LISTED])}.")
    for name, pairs in ({} if run is None else run.confusions).items():
        if pairs:
            told = "; ".join(f"{p.value} for {p.taken_for} ({percent(p.share)} % of {p.queries:,})" for p in pairs)
            limits.append(f"Most often confused in {name}, by the nearest test picture: {told}.")
    if result is None:
        return [*limits, "Nothing of it has been measured here."]
    weakest = min(result.attributes, key=lambda each: each.scores["map"] - each.chance["map"])
    limits.append(
        f"Least above chance: {weakest.name}, with a mAP of {percent(weakest.scores['map'])} where chance is "
        f"{percent(weakest.chance['map'])}."
    )
    return limits


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def draw_training(folder: Path, picture: Path) -> None:
    """The curves of a training's output folder; nothing where there is no history, or no matplotlib."""
    state = folder / "trainer_state.json"
    if not state.exists():
        return
    try:
        figure = plot_curves(json.loads(state.read_text(encoding="utf-8"))["log_history"])
    except ImportError:  # matplotlib is an extra: a card without the picture
        return
    if figure is not None:
        figure.savefig(picture, dpi=120)
