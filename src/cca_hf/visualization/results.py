"""Compare results of several models on the same split and their chance level, as a table and as bars."""

from collections.abc import Mapping
from typing import Any

from cca_hf.evaluation.retrieval.result import MEASURE_NAMES, EvaluationResult
from cca_hf.evaluation.text_table import format_table, percent

from .figures import ACCENT, BASELINES, FAINT, INK, MUTED, Figure, SubFigure, new_figure, quiet


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
    for name, key in means.items():
        rows.append((name, [first.chance_overall[key], *(result.overall[key] for result in results.values())]))
    return rows


def comparison_table(results: Mapping[str, EvaluationResult], measure: str = "map", decimals: int = 1) -> str:
    """A table for terminals, in percent. Rows: attributes and means. Columns: chance and the results.

    Args:
        results: name -> result, all of the same split.
        measure: `"map"`, `"map_macro"`, `"recall@1"`, ..., `"r_precision"`.
    """
    rows = [
        [name, *(percent(figure, decimals) for figure in figures)]
        for name, figures in comparison_rows(results, measure)
    ]
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
