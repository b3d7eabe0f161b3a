"""Results of models on the same split, compared with each other and with chance, and the report of a run.

The report is `report.html`, which needs no other file. With matplotlib, `report.png` and examples of queries are
beside it.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from cca_hf.data.schema import AttributeDataset
from cca_hf.evaluation.entanglement.result import READER_NAMES, EntanglementResult
from cca_hf.evaluation.manipulation_result import Leakage, ManipulationResult
from cca_hf.evaluation.retrieval.evaluator import query_and_gallery
from cca_hf.evaluation.retrieval.result import MEASURE_NAMES, EvaluationResult
from cca_hf.evaluation.text_table import format_table, percent
from cca_hf.models.configuration_images import public_name
from cca_hf.models.modeling_cca import CCAModel
from cca_hf.models.whole_files import write_text

from .entanglement import cell_text
from .figures import ACCENT, BASELINES, FAINT, INK, MUTED, Figure, SubFigure, can_draw, new_figure, quiet
from .manipulation import ChangeView
from .neighbours import QueryView, draw_neighbours, plot_neighbours, view_queries
from .page import render

logger = logging.getLogger(__name__)

EXAMPLES = "examples"  # the folder of example queries, for a model card
_QUERIES_IN_PNG = 2  # also the number of example queries
_TILES = {
    "map": "mAP, mean over attributes",
    "map_macro": "mAP, mean over values",
    "recall@1": "recall@1",
    "r_precision": "R-precision",
}
# Names in the Trainer's log; the mAP has one of two.
_CURVES = {
    "loss": "Training loss",
    "eval_map": "mAP on validation",
    "validation_map": "mAP on validation",
    "eval_accuracy": "Accuracy on validation",
}
_PLOTTED = (
    ("loss", "training loss", 1.0),
    ("eval_map", "mAP in %, validation", 100.0),
    ("eval_accuracy", "accuracy in %, validation", 100.0),
)


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
    entanglement: EntanglementResult | None = None,
    manipulation: ManipulationResult | None = None,
    change_views: Sequence[ChangeView] = (),
    title: str | None = None,
    batch_size: int = 64,
    seed: int = 0,
) -> Path:
    """Write `report.html` (self-contained) into `output_dir`, and images of it; returns the path of the page.

    The page shows the metrics, the nearest images of some queries under each attribute with the attention of that
    attribute, the manipulation and the entanglement if they are given, and the training curves. With matplotlib,
    `report.png` shows the first queries, `examples/1.jpg` is the first query, `examples/1-neighbours.png` shows its
    nearest images, and so on.

    Args:
        split, queries, neighbours, candidates: as in `view_queries`.
        results: name -> result, all of the same split. The last one belongs to `model` and gets the accent colour.
        history: the Trainer's `state.log_history`.
        entanglement, manipulation: of `model` and the same split.
        change_views: examples of the manipulation, see `view_changes`.
        title: the heading. Default: the name of the last result.

    Raises:
        ValueError: if the results cannot be compared, or a query is outside the split.
    """
    if isinstance(results, EvaluationResult):
        results = {public_name(model.name_or_path) or model.display_name: results}
    named = dict(results)
    bars = comparison_rows(named)  # raises if the results cannot be compared
    views = view_queries(
        model, dataset, split, queries, neighbours=neighbours, candidates=candidates, batch_size=batch_size, seed=seed
    )
    *_, (name, result) = named.items()
    log = list(history or ())
    query_split, gallery_split = query_and_gallery(dataset, split)
    searched = len(dataset.splits[gallery_split or query_split])
    means = ("mean", result.queries, result.overall, result.chance_overall)
    text = render(
        "report.html",
        title=name if title is None else title,
        split=split,
        name=name,
        attributes=list(dataset.attributes),
        backbone=public_name(model.config.backbone_name or type(model.backbone).__name__),
        images=len(dataset.splits[query_split]),
        gallery=None if gallery_split is None else searched,
        result=result,
        tiles=[(measure, label) for measure, label in _TILES.items() if measure in result.overall],
        kinds=dict(zip(named, [f"c{place % 3}" for place in range(len(named) - 1)] + ["accent"], strict=True)),
        bars=bars[: len(result.attributes) + 1],  # the attributes and their mean
        measures=list(result.attributes[0].scores),
        measure_names=MEASURE_NAMES,
        rows=[*((each.name, each.queries, each.scores, each.chance) for each in result.attributes), means],
        seed=seed if isinstance(queries, int) else None,
        candidates=candidates if searched > candidates else None,
        views=views,
        manipulation=manipulation,
        change_table=None if manipulation is None else manipulation.as_table(1),
        leakage_rows=[]
        if manipulation is None or manipulation.leakage is None
        else _leakage_rows(manipulation.leakage),
        change_views=change_views,
        entanglement=entanglement,
        heat_maps=[] if entanglement is None else [_heat_map(entanglement, reader) for reader in entanglement.readers],
        curves=curves_of(log),
    )
    folder = Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    if can_draw():
        drawn = [view for view in views if any(view.neighbours.values())]
        _draw_examples(drawn[:_QUERIES_IN_PNG], named, folder)
    else:
        logger.warning('without matplotlib, report.png and examples/ are not drawn: pip install "cca_hf[plot]"')
    return write_text(text, folder / "report.html")


def comparison_rows(results: Mapping[str, EvaluationResult], measure: str = "map") -> list[tuple[str, list[float]]]:
    """(name, [chance, result, result, ...]) for each attribute and then for each mean, as fractions.

    Raises:
        ValueError: see [`check_comparable`].
    """
    first = check_comparable(results, measure)
    rows = [
        (each.name, [each.chance[measure], *(result[each.name].scores[measure] for result in results.values())])
        for each in first.attributes
    ]
    means = {"mean": measure}
    if f"{measure}_weighted" in first.overall:
        means["query-weighted"] = f"{measure}_weighted"
    if measure == "map":
        means["macro over values"] = "map_macro"
    overall = [first.chance_overall, *(result.overall for result in results.values())]
    return rows + [(name, [figures[key] for figures in overall]) for name, key in means.items()]


def comparison_table(results: Mapping[str, EvaluationResult], measure: str = "map", decimals: int = 1) -> str:
    """A table for terminals, in percent. Rows: attributes and means. Columns: chance and the results.

    Args:
        results: name -> result, all of the same split.
        measure: `"map"`, `"map_macro"`, `"recall@1"`, ..., `"r_precision"`.
    """
    compared = comparison_rows(results, measure)
    rows = [[name, *(percent(figure, decimals) for figure in figures)] for name, figures in compared]
    first = next(iter(results.values()))
    count = len(first.attributes)
    header = [f"{MEASURE_NAMES.get(measure, measure)} in %", "chance", *results]
    table = format_table(header, [rows[:count], rows[count:]])
    return table if first.coverage is None else f"{table}\nSubset: {first.coverage}."


def plot_results(results: Mapping[str, EvaluationResult], measure: str = "map") -> Figure:
    """Draw bars for each attribute and the mean. The last result has the accent colour, and a line marks chance.

    Save the figure with `figure.savefig("bars.png", dpi=150)`. Needs matplotlib (`pip install "cca_hf[plot]"`).
    """
    figure = new_figure(7.2, bars_height(results))
    draw_results(figure, results, measure)
    return figure


def bars_height(results: Mapping[str, EvaluationResult]) -> float:
    """Height in inches of [`draw_results`]."""
    rows = len(next(iter(results.values())).attributes) + 1
    return 1.2 + rows * (0.22 + 0.17 * len(results))


def draw_results(figure: Figure | SubFigure, results: Mapping[str, EvaluationResult], measure: str = "map") -> None:
    """As `plot_results`, into an existing figure or a part of one."""
    first = check_comparable(results, measure)
    rows = comparison_rows(results, measure)[: len(first.attributes) + 1]
    thickness = 0.8 / len(results)
    axes = figure.add_subplot()
    for place, name in enumerate(results):
        colour = ACCENT if place == len(results) - 1 else BASELINES[place % len(BASELINES)]
        heights = [row - 0.4 + (place + 0.5) * thickness for row in range(len(rows))]
        values = [100 * figures[place + 1] for _, figures in rows]
        axes.barh(heights, values, height=0.86 * thickness, color=colour, label=name)
        for height, value, (_, figures) in zip(heights, values, rows, strict=True):
            beside_chance = value if 100 * figures[0] - value > 8 else max(value, 100 * figures[0])
            emphasis: dict[str, Any] = {"color": INK, "fontweight": "bold"} if colour == ACCENT else {"color": MUTED}
            axes.text(beside_chance + 1, height, percent(value / 100), va="center", fontsize=8, **emphasis)
    for row, (_, figures) in enumerate(rows):
        axes.plot([100 * figures[0]] * 2, [row - 0.42, row + 0.42], color="#dc2626", linewidth=1.6, label="_chance")
    axes.lines[0].set_label("chance")
    axes.axhline(len(first.attributes) - 0.5, color=FAINT, linewidth=1)
    axes.set_yticks(range(len(rows)), [name for name, _ in rows])
    axes.get_yticklabels()[-1].set_fontweight("bold")
    axes.set_ylim(len(rows) - 0.45, -0.55)
    axes.set_xlim(0, 108)
    axes.set_xticks(range(0, 101, 20))
    axes.set_axisbelow(True)
    axes.xaxis.grid(True, color=FAINT, linewidth=0.8)
    cover = first.coverage
    subset = "" if cover is None else f"\nsubset: {cover.found:,} of {cover.listed:,} images"
    axes.set_xlabel(f"{MEASURE_NAMES.get(measure, measure)} in %{subset}", color=MUTED, fontsize=9)
    quiet(axes)
    figure.legend(loc="outside upper center", ncols=len(results) + 1, frameon=False, fontsize=9, labelcolor=INK)


def check_comparable(results: Mapping[str, EvaluationResult], measure: str) -> EvaluationResult:
    """Check that results can be compared, and return the first one.

    Raises:
        ValueError: if the results are not of the same images and attributes, or one of them lacks the measure.
    """
    if not results:
        raise ValueError("no results to compare")
    (first_name, first), *others = results.items()
    for name, result in results.items():
        if measure not in result.attributes[0].scores:
            raise ValueError(f"unknown measure {measure!r}; {name!r} has {list(result.attributes[0].scores)}")
    expected = {each.name: each.queries for each in first.attributes}
    for name, result in others:
        queries = {each.name: each.queries for each in result.attributes}
        if queries != expected:
            raise ValueError(
                f"{first_name!r} and {name!r} cannot be compared: their queries are {expected} and {queries}"
            )
        # Chance depends only on the images: if it is equal, labels, groups and galleries were the same.
        for each in first.attributes:
            if abs(each.chance[measure] - result[each.name].chance[measure]) > 1e-9:
                raise ValueError(
                    f"{first_name!r} and {name!r} cannot be compared: chance of {each.name!r} is "
                    f"{each.chance[measure]:.6f} and {result[each.name].chance[measure]:.6f}"
                )
    return first


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


def curves_of(history: Sequence[Mapping[str, object]]) -> list[dict[str, Any]]:
    """The curves of a training for the template `curves.html`, from the Trainer's `state.log_history`."""
    return [_curve(label, points) for name, label in _CURVES.items() if len(points := points_of(history, name)) > 1]


def _curve(title: str, points: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """The points scaled to the 376 x 150 pixels between the axes of the template, and the extremes of both axes."""
    (first, *_, last), (low, *_, high) = (sorted(column) for column in zip(*points, strict=True))
    places = [
        f"{44 + 376 * (epoch - first) / ((last - first) or 1):.1f},{150 * (1 - (y - low) / ((high - low) or 1)):.1f}"
        for epoch, y in points
    ]
    return {"title": title, "places": places, "epochs": (first, last), "range": (low, high), "last": points[-1][1]}


def _heat_map(result: EntanglementResult, name: str) -> dict[str, Any]:
    """The matrix of a reader as rows of an attribute and its cells: the text, and the colour in percent."""
    reader = result.readers[name]
    shares = np.clip(np.nan_to_num(reader.matrix), 0, 1)
    rows = zip(reader.matrix.tolist(), shares.tolist(), strict=True)
    cells = [[*zip(map(cell_text, row), map(percent, share), strict=True)] for row, share in rows]
    figures = f"entanglement {cell_text(reader.score)}, informativeness {cell_text(reader.informativeness)}"
    return {"title": f"{READER_NAMES[name]}: {figures}", "rows": [*zip(result.attributes, cells, strict=True)]}


def _leakage_rows(leakage: Leakage | None) -> list[tuple[str, str, list[tuple[str, str]]]]:
    """Rows of a changed attribute, its share of new values, and cells: the text, and the colour in percent."""
    if leakage is None:
        return []
    shares = np.clip(np.nan_to_num(leakage.added), 0, 1)
    places = {name: place for place, name in enumerate(leakage.attributes)}
    return [
        (name, share, [*zip(cells, map(percent, np.minimum(4 * shares[places[name]], 1)), strict=True)])
        for name, share, *cells in leakage.as_table(1).sections[0]
    ]


def _draw_examples(views: Sequence[QueryView], results: Mapping[str, EvaluationResult], folder: Path) -> None:
    """`report.png`, and the files of `examples/`."""
    heights = [max(2.6, 1.42 * len(view.neighbours)) for view in views] + [bars_height(results)]
    figure = new_figure(12.0, sum(heights))
    parts = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
    for part, view in zip(parts, views, strict=False):
        draw_neighbours(part, view.image, view.neighbours, view.values, view.attention)
    draw_results(parts[-1], results)
    figure.savefig(folder / "report.png", dpi=110)
    (folder / EXAMPLES).mkdir(exist_ok=True)
    for number, view in enumerate(views, start=1):
        view.image.save(folder / EXAMPLES / f"{number}.jpg", quality=90)
        example = plot_neighbours(view.image, view.neighbours, query_values=view.values, attention=view.attention)
        example.savefig(folder / EXAMPLES / f"{number}-neighbours.png", dpi=110)
