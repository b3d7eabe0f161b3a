"""The model card, written from what a training left in its folder, and from nothing else.

A figure that nobody measured has no place in it; what was measured later (entanglement, a comparison) is there as soon
as its file lies in the folder and the card is written again.
"""

import json
from collections.abc import Iterable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from transformers import AutoConfig

from ..evaluation.entanglement_result import EntanglementResult
from ..evaluation.json_file import write_text
from ..evaluation.report import comparison_rows
from ..evaluation.result import EvaluationResult
from ..evaluation.text_table import percent
from ..models.configuration_cca import CCAConfig
from ..training.run_record import RunRecord
from ..visualization.curves import plot_curves

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
    """Write `README.md` into the output folder of a training, and `training.png` beside it where matplotlib is.

    Args:
        folder: with `config.json`, `run.json`, `test_evaluation.json` and, where there are such, `trainer_state.json`,
            `report.png`, `entanglement.json` and `entanglement.png`.
        model_id: where the checkpoint is to be found; default: the folder's name.
        baselines: name -> result on the same split, shown beside the model's.
        licence: identifier of the Hub, such as `apache-2.0`; without one the card names none.

    Raises:
        FileNotFoundError: if the folder is not that of a finished training.
        ValueError: for baselines of other pictures.
    """
    folder = Path(folder)
    for name in ("config.json", "run.json", "test_evaluation.json"):
        if not (folder / name).exists():
            raise FileNotFoundError(
                f"{folder} has no {name}: a model card is written from the output folder of cca train"
            )
    state = folder / "trainer_state.json"
    if state.exists():
        _draw_curves(json.loads(state.read_text(encoding="utf-8"))["log_history"], folder / "training.png")
    card = make_model_card(folder, model_id=model_id, baselines=baselines, licence=licence)
    return write_text(str(card), folder / "README.md")


def make_model_card(
    folder: Path, *, model_id: str | None, baselines: Mapping[str, EvaluationResult] | None, licence: str | None
) -> ModelCard:
    """The card of [`write_model_card`], without the pictures."""
    config = AutoConfig.from_pretrained(folder)
    run, result = RunRecord.load(folder), EvaluationResult.load_json(folder / "test_evaluation.json")
    name = model_id or folder.resolve().name
    backbone = _backbone(config)
    dim = config.embedding_dim or config.hidden_size
    return ModelCard.from_template(
        _metadata(config, run, result, name, licence),
        template_path=str(TEMPLATE),
        name=name.split("/")[-1],
        model_id=name,
        attributes=list(config.attributes),
        method="a single space (the baseline of CCA)"
        if config.condition_embedding == "none" and config.model_type == "cca"
        else _METHODS[config.model_type],
        backbone=f"[{backbone}](https://huggingface.co/{backbone})" if _on_hub(config) else backbone,
        dataset=f"[{run.dataset}](https://huggingface.co/datasets/{run.dataset})"
        if run.dataset_on_hub
        else f"`{run.dataset}`",
        example_attributes=json.dumps(list(config.attributes[:2])),
        example_count=len(config.attributes[:2]),
        dim=dim,
        values=[_values_row(*pair) for pair in run.value_counts.items()],
        measured=_measured(result),
        results=_results(result, dict(baselines or {})),
        subset=None if result.coverage is None else str(result.coverage),
        entanglement=_entanglement(folder),
        pictures={each: (folder / f"{each}.png").exists() for each in ("report", "entanglement", "training")},
        splits=", ".join(f"{count:,} pictures in {split}" for split, count in run.splits.items()),
        hardware=run.hardware,
        duration=_duration(run.seconds),
        versions=", ".join(f"{library} {version}" for library, version in run.versions.items()),
        settings=[(name, value) for name, value in run.settings.items() if value is not None],
        limits=_limits(run, result),
    )


def _metadata(
    config: CCAConfig, run: RunRecord, result: EvaluationResult, name: str, licence: str | None
) -> ModelCardData:
    figures = {"map": "mAP, mean of the attributes", "map_macro": "mAP, mean over values, then attributes"}
    figures |= {f"map_{each.name}": f"mAP, {each.name}" for each in result.attributes}
    metrics = result.metrics()
    return ModelCardData(
        license=licence,
        library_name="transformers",
        pipeline_tag="image-feature-extraction",
        base_model=config.backbone_name if _on_hub(config) else None,
        datasets=[run.dataset] if run.dataset_on_hub else None,
        metrics=["mean_average_precision"],
        tags=["cca_hf", "image-retrieval", "conditional-embeddings", "visual-search", *_tags(config)],
        model_name=name.split("/")[-1],
        eval_results=[
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
        ],
    )


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


def _limits(run: RunRecord, result: EvaluationResult) -> list[str]:
    limits = [
        "It knows the attributes above and no others, and means by them what the labels of its training pictures "
        "meant. Pictures of another kind get embeddings all the same.",
    ]
    for name, counts in run.value_counts.items():
        rare = [value for value, count in counts.items() if 0 < count < _RARE]
        if rare:
            more = f", and {len(rare) - _LISTED} more" if len(rare) > _LISTED else ""
            limits.append(
                f"Rare values of {name}, with less than {_RARE} training pictures: {', '.join(rare[:_LISTED])}{more}."
            )
        unseen = [value for value, count in counts.items() if count == 0]
        if unseen:
            limits.append(f"Values of {name} without a training picture: {', '.join(unseen[:_LISTED])}.")
    for name, pairs in run.confusions.items():
        if pairs:
            told = "; ".join(f"{p.value} for {p.taken_for} ({percent(p.share)} % of {p.queries:,})" for p in pairs)
            limits.append(f"Most often confused in {name}, by the nearest test picture: {told}.")
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


def _draw_curves(history: Iterable[Mapping[str, object]], path: Path) -> None:
    try:
        figure = plot_curves(history)
    except ImportError:  # matplotlib is an extra: a card without the picture
        return
    if figure is not None:
        figure.savefig(path, dpi=120)
