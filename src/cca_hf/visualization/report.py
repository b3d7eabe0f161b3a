"""The report of a run: `report.html`, which needs no other file, `report.png`, examples of queries, and curves."""

from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from cca_hf.data.schema import AttributeDataset
from cca_hf.evaluation.retrieval.result import MEASURE_NAMES, EvaluationResult
from cca_hf.models.modeling_cca import CCAModel
from cca_hf.models.whole_files import write_text

from .figures import ACCENT, FAINT, MUTED, Figure, new_figure, quiet
from .neighbours import QueryView, draw_neighbours, plot_neighbours, view_queries
from .page import public_name, render
from .results import bars_height, comparison_rows, draw_results

EXAMPLES = "examples"  # the folder of example queries, for a model card
_QUERIES_IN_PNG = 2  # also the number of example queries
_TILES = {
    "map": "mAP, mean over attributes",
    "map_macro": "mAP, mean over values",
    "recall@1": "recall@1",
    "r_precision": "R-precision",
}
# Names in the Trainer's log; the mAP has one of two.
_CURVES = {"loss": "Training loss", "eval_map": "mAP on validation", "validation_map": "mAP on validation"}
_PLOTTED = (("loss", "training loss", 1.0), ("eval_map", "mAP in %, validation", 100.0))


def write_report(
    model: CCAModel,
    dataset: AttributeDataset,
    split: str,
    results: EvaluationResult | Mapping[str, EvaluationResult],
    output_dir: str | PathLike[str],
    *,
    queries: int | Sequence[int] = 6,
    neighbours: int = 7,
    candidates: int = 2000,
    history: Iterable[Mapping[str, object]] | None = None,
    title: str = "Conditional cross-attention",
    batch_size: int = 64,
    seed: int = 0,
) -> Path:
    """Write `report.html` (self-contained) and `report.png` into `output_dir`; returns the path of the page.

    The page shows the metrics, the nearest images of some queries under each attribute with the attention of that
    attribute, and the training curves. `examples/1.jpg` is the first query and `examples/1-neighbours.png` its nearest
    images, and so on. Needs matplotlib (`pip install "cca_hf[plot]"`).

    Args:
        split, queries, neighbours, candidates: as in `view_queries`.
        results: name -> result, all of the same split. The last one belongs to `model` and gets the accent colour.
        history: the Trainer's `state.log_history`.

    Raises:
        ImportError: if matplotlib is missing.
        ValueError: if the results cannot be compared, or a query is outside the split.
    """
    figure = new_figure(12.0, 1.0)  # raises without matplotlib, before anything is encoded
    named = {"model": results} if isinstance(results, EvaluationResult) else dict(results)
    bars = comparison_rows(named)  # raises if the results cannot be compared
    views = view_queries(
        model, dataset, split, queries, neighbours=neighbours, candidates=candidates, batch_size=batch_size, seed=seed
    )
    *_, (name, result) = named.items()
    log = list(history or ())
    parts = [each for each in (split, f"{split}_query", f"{split}_gallery") if each in dataset]
    gallery = len(dataset[split if split in dataset else f"{split}_gallery"])
    means = ("mean", result.queries, result.overall, result.chance_overall)
    text = render(
        "report.html",
        title=title,
        split=split,
        name=name,
        attributes=list(dataset.attributes),
        backbone=public_name(model.config.backbone_name or type(model.backbone).__name__),
        images=sum(len(dataset[each]) for each in parts),
        result=result,
        tiles=[(measure, label) for measure, label in _TILES.items() if measure in result.overall],
        kinds=dict(zip(named, [f"c{place % 3}" for place in range(len(named) - 1)] + ["accent"], strict=True)),
        bars=bars[: len(result.attributes) + 1],  # the attributes and their mean
        measures=list(result.attributes[0].scores),
        measure_names=MEASURE_NAMES,
        rows=[*((each.name, each.queries, each.scores, each.chance) for each in result.attributes), means],
        seed=seed if isinstance(queries, int) else None,
        candidates=candidates if gallery > candidates else None,
        views=views,
        curves=[_curve(label, points) for name, label in _CURVES.items() if len(points := points_of(log, name)) > 1],
    )
    folder = Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    _draw(figure, views[:_QUERIES_IN_PNG], named).savefig(folder / "report.png", dpi=110)
    _write_examples(views[:_QUERIES_IN_PNG], folder / EXAMPLES)
    return write_text(text, folder / "report.html")


def points_of(history: Iterable[Mapping[str, object]], name: str) -> list[tuple[float, float]]:
    """(epoch, value) of all entries that the Trainer logged under a name."""
    pairs = ((entry.get("epoch"), entry.get(name)) for entry in history)
    return [(float(x), float(y)) for x, y in pairs if isinstance(x, int | float) and isinstance(y, int | float)]


def plot_curves(history: Iterable[Mapping[str, object]]) -> Figure | None:
    """Draw loss and mAP from the Trainer's `state.log_history`; None if both have fewer than two points.

    Save the figure with `figure.savefig("training.png", dpi=150)`. Needs matplotlib (`pip install "cca_hf[plot]"`).
    """
    entries = list(history)
    drawn = [(title, scale, points) for name, title, scale in _PLOTTED if len(points := points_of(entries, name)) > 1]
    if not drawn:
        return None
    figure = new_figure(3.8 * len(drawn), 2.4)
    for place, (title, scale, points) in enumerate(drawn, start=1):
        axes = figure.add_subplot(1, len(drawn), place)
        axes.plot([x for x, _ in points], [scale * y for _, y in points], color=ACCENT, linewidth=1.6)
        axes.set_title(title, fontsize=9, color=MUTED, loc="left")
        axes.set_xlabel("epoch", fontsize=9, color=MUTED)
        axes.yaxis.grid(True, color=FAINT, linewidth=0.8)
        axes.set_axisbelow(True)
        quiet(axes)
    return figure


def _curve(title: str, points: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """The points scaled to the 376 x 150 pixels between the axes of the template, and the extremes of both axes."""
    (first, *_, last), (low, *_, high) = (sorted(column) for column in zip(*points, strict=True))
    places = [
        f"{44 + 376 * (epoch - first) / ((last - first) or 1):.1f},{150 * (1 - (y - low) / ((high - low) or 1)):.1f}"
        for epoch, y in points
    ]
    return {"title": title, "places": places, "epochs": (first, last), "range": (low, high), "last": points[-1][1]}


def _draw(figure: Figure, views: Sequence[QueryView], results: Mapping[str, EvaluationResult]) -> Figure:
    heights = [max(2.6, 1.42 * len(view.neighbours)) for view in views] + [bars_height(results)]
    figure.set_size_inches(12.0, sum(heights))
    parts = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
    for part, view in zip(parts, views, strict=False):
        draw_neighbours(part, view.image, view.neighbours, view.values, view.attention)
    draw_results(parts[-1], results)
    return figure


def _write_examples(views: Sequence[QueryView], folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    for number, view in enumerate(views, start=1):
        view.image.save(folder / f"{number}.jpg", quality=90)
        figure = plot_neighbours(view.image, view.neighbours, query_values=view.values, attention=view.attention)
        figure.savefig(folder / f"{number}-neighbours.png", dpi=110)
