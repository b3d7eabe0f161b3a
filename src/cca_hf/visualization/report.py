"""One run, to look at: `report.html`, a single page that needs nothing beside it, `report.png`, and single queries."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from cca_hf.data.schema import AttributeDataset
from cca_hf.evaluation.retrieval.result import EvaluationResult
from cca_hf.models.modeling_cca import CCAModel

from . import page
from .curves import points_of
from .figures import new_figure
from .neighbours import draw_neighbours, plot_neighbours
from .results import bars_height, draw_results
from .selection import QueryView, view_queries

if TYPE_CHECKING:
    from matplotlib.figure import Figure

EXAMPLES = "examples"  # the folder of single queries, for a model card
_QUERIES_IN_PNG = 2  # and in that folder
# What the Trainer logs under these names is drawn; the first of a line is there, whichever evaluation ran.
_CURVES = {"loss": "Training loss", "eval_map": "mAP on validation", "validation_map": "mAP on validation"}


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

    `examples/1.jpg` is the first query alone, and `examples/1-neighbours.png` what was found for it; then 2.

    The page shows the figures, the nearest pictures of some queries under each attribute beside where the attribute
    looks, and the course of the training. Needs matplotlib (`pip install "cca_hf[plot]"`).

    Args:
        split: where queries and neighbours come from, as in `RetrievalEvaluator`.
        results: name -> result, of the same split; the last one is the model's and is drawn in its colour, those
            before it are what it is compared with.
        queries: how many to draw by chance, or the rows to show.
        neighbours: pictures under each attribute.
        candidates: how many images of the split are encoded once more and searched, at most.
        history: the Trainer's `state.log_history`.

    Raises:
        ImportError: where matplotlib is missing; before any work is done.
        ValueError: results that cannot be compared, or queries outside the split.
    """
    figure = new_figure(12.0, 1.0)
    named = {"model": results} if isinstance(results, EvaluationResult) else dict(results)
    bars = page.bars(named)  # says whether the results can be compared before anything is encoded
    views = view_queries(
        model, dataset, split, queries, neighbours=neighbours, candidates=candidates, batch_size=batch_size, seed=seed
    )
    *_, (name, result) = named.items()
    body = [
        _head(model, dataset, split, title, name),
        page.tiles(result),
        "<h2>Retrieval</h2>",
        '<p class="note">Mean average precision in percent. Chance is what a random ranking scores.</p>',
        bars,
        page.details(f"All measures of {name}", page.measures_table(result)),
        page.details(f"{name}, value by value, the hardest first", page.values_table(result)),
        "<h2>Nearest pictures</h2>",
        _explanation(queries, seed, candidates if _answering(dataset, split) > candidates else None),
        *(page.query_card(view, number) for number, view in enumerate(views, start=1)),
        *_curves(history or ()),
        _foot(result),
    ]
    folder = Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    _draw(figure, views[:_QUERIES_IN_PNG], named).savefig(folder / "report.png", dpi=110)
    _write_examples(views[:_QUERIES_IN_PNG], folder / EXAMPLES)
    path = folder / "report.html"
    path.write_text(page.page(f"{title}: {split}", body), encoding="utf-8")
    return path


def _head(model: CCAModel, dataset: AttributeDataset, split: str, title: str, name: str) -> str:
    backbone = Path(model.config.backbone_name or type(model.backbone).__name__)
    own_folder = backbone.is_absolute() or backbone.exists()  # of no interest to a reader; an id on the Hub is
    source = backbone.name if own_folder else backbone.as_posix()
    parts = [each for each in (split, f"{split}_query", f"{split}_gallery") if each in dataset]
    images = sum(len(dataset[each]) for each in parts)
    return (
        f'<h1>{escape(title)}</h1><p class="lead">One embedding for each attribute of a picture '
        f"({escape(', '.join(dataset.attributes))}), from one network and one pass. {escape(name)} on "
        f"<code>{escape(source)}</code>, measured on {images:,} pictures of the split "
        f"<code>{escape(split)}</code>.</p>"
    )


def _answering(dataset: AttributeDataset, split: str) -> int:
    return len(dataset[split if split in dataset else f"{split}_gallery"])


def _explanation(queries: int | Sequence[int], seed: int, candidates: int | None) -> str:
    how = f"drawn by chance (seed {seed})" if isinstance(queries, int) else "chosen by hand"
    among = "" if candidates is None else f", and looked up among {candidates:,} pictures drawn likewise"
    return (
        f'<p class="note">The queries are {how}{among}. Each row is the same query in the space of another attribute: '
        "first where the attribute looks in the query, then the nearest pictures, framed green where they share the "
        "query's value and red where they do not.</p>"
    )


def _curves(history: Iterable[Mapping[str, object]]) -> list[str]:
    logs = list(history)
    drawn = [page.curve(title, points) for name, title in _CURVES.items() if len(points := points_of(logs, name)) > 1]
    return ["<h2>Training</h2>", f'<div class="curves">{"".join(drawn)}</div>'] if drawn else []


def _foot(result: EvaluationResult) -> str:
    left_out = f" Not evaluated, for want of labels: {', '.join(result.unlabelled)}." if result.unlabelled else ""
    if result.coverage is not None:
        left_out += f" Subset: {result.coverage}."
    return (
        "<footer>Every labelled picture is a query, its own near copies are no answers, the whole list is ranked by "
        f"cosine, and ties count as the expectation over their order.{escape(left_out)} Written by cca_hf.</footer>"
    )


def _draw(figure: "Figure", views: Sequence[QueryView], results: Mapping[str, EvaluationResult]) -> "Figure":
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
