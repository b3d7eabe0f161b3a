"""The parts of the report's page as HTML. Everything is in the page: pictures as data: URIs, style and curves inline.

A content security policy forbids the page to ask anybody for anything.
"""

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from html import escape

from PIL import Image

from cca_hf.evaluation.retrieval.result import MEASURE_NAMES, EvaluationResult
from cca_hf.evaluation.text_table import percent

from .neighbours import Neighbour
from .page_style import STYLE
from .results import comparison_rows
from .selection import QueryView

_THUMBNAIL = 168  # pixels: twice what a desktop shows, so that it stays sharp on fine screens
_QUERY = 380


def page(title: str, body: Iterable[str]) -> str:
    """The whole document."""
    return "\n".join(
        [
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
            "style-src 'unsafe-inline'\">",
            '<link rel="icon" href="data:,">',
            f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>",
            *body,
            "</main>\n</body>\n</html>\n",
        ]
    )


def data_uri(image: Image.Image, size: int) -> str:
    """The picture, no side longer than `size` pixels, as a data: URI."""
    if max(image.size) > size:
        image = image.copy()
        image.thumbnail((size, size), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def tiles(result: EvaluationResult) -> str:
    """The means in large figures."""
    overall, chance = result.overall, result.chance_overall
    shown = [("map", "mAP, mean of the attributes"), ("map_macro", "mAP, mean over values")]
    shown += [(name, name) for name in overall if name == "recall@1"] + [("r_precision", "R-precision")]
    cells = [
        f'<div class="tile card{" main" if name == "map" else ""}"><span>{title}</span>'
        f"<b>{percent(overall[name])}</b><span>chance {percent(chance[name])}</span></div>"
        for name, title in shown
    ]
    return f'<div class="tiles">{"".join(cells)}</div>'


def bars(results: Mapping[str, EvaluationResult]) -> str:
    """mAP of every attribute and their mean, one bar a result, chance as a mark across them."""
    classes = [f"c{place % 3}" for place in range(len(results) - 1)] + ["accent"]
    legend = "".join(
        f'<span><i class="{kind}"></i>{escape(name)}</span>' for name, kind in zip(results, classes, strict=True)
    )
    count = len(next(iter(results.values())).attributes)
    groups = []
    for place, (name, (chance, *figures)) in enumerate(comparison_rows(results)[: count + 1]):
        tracks = "".join(
            f'<div class="track {kind}" role="img" aria-label="{escape(result)}: {percent(figure)} percent">'
            f'<i class="{kind}" style="width:{100 * figure:.2f}%"></i><em>{percent(figure)}</em></div>'
            for result, kind, figure in zip(results, classes, figures, strict=True)
        )
        groups.append(
            f'<div class="group{" mean" if place == count else ""}"><div>{escape(name)}</div>'
            f'<div class="tracks">{tracks}<u style="left:{100 * chance:.2f}%" title="chance {percent(chance)}"></u>'
            "</div></div>"
        )
    return (
        f'<div class="legend">{legend}<span><i class="chance"></i>chance</span></div>'
        f'<div class="bars card">{"".join(groups)}</div>'
    )


def measures_table(result: EvaluationResult) -> str:
    """Every measure of every attribute, chance beside it."""
    names = list(result.attributes[0].scores)
    rows = [(each.name, f"{each.queries:,}", each.scores, each.chance) for each in result.attributes]
    rows.append(("mean", f"{result.queries:,}", result.overall, result.chance_overall))
    body = []
    for place, (name, queries, scores, chance) in enumerate(rows):
        cells = "".join(f"<td>{percent(scores[n])} <small>({percent(chance[n])})</small></td>" for n in names)
        kind = ' class="mean"' if place == len(rows) - 1 else ""
        body.append(f"<tr{kind}><th>{escape(name)}</th><td>{queries}</td>{cells}</tr>")
    head = "".join(f"<th>{escape(MEASURE_NAMES.get(name, name))}</th>" for name in names)
    return _table(f"<th>in % (chance)</th><th>queries</th>{head}", body)


def values_table(result: EvaluationResult) -> str:
    """The values of every attribute, the hardest first."""
    body = [
        f'<tr><th>{escape(attribute.name) if place == 0 else ""}</th><td class="name">{escape(value.name)}</td>'
        f"<td>{value.queries:,}</td><td>{percent(value.map)} <small>({percent(value.chance_map)})</small></td></tr>"
        for attribute in result.attributes
        for place, value in enumerate(sorted(attribute.values, key=lambda each: each.map))
    ]
    return _table('<th>attribute</th><th class="name">value</th><th>queries</th><th>mAP in % (chance)</th>', body)


def details(summary: str, content: str) -> str:
    """Something to unfold."""
    return f"<details><summary>{escape(summary)}</summary>{content}</details>"


def query_card(view: QueryView, number: int) -> str:
    """One query: the picture and its values; for each attribute where it looks, and what it finds."""
    chips = "".join(
        f"<span>{escape(name)} <b>{escape(value if value is not None else 'not labelled')}</b></span>"
        for name, value in view.values.items()
    )
    rows = "".join(_attribute_row(view, name) for name in view.neighbours)
    return (
        f'<article class="query card"><aside><img src="{data_uri(view.image, _QUERY)}" alt="query {number}">'
        f'<div class="chips">{chips}</div></aside><div>{rows}</div></article>'
    )


def curve(title: str, points: Sequence[tuple[float, float]]) -> str:
    """A line through (epoch, figure), with the extremes of both axes written on them."""
    width, height, left, bottom = 420, 170, 44, 20
    (first, *_), (low, *_) = (sorted(column) for column in zip(*points, strict=True))
    last, high = (max(column) for column in zip(*points, strict=True))
    places = [
        (
            left + (width - left) * (epoch - first) / ((last - first) or 1),
            (height - bottom) * (1 - (figure - low) / ((high - low) or 1)),
        )
        for epoch, figure in points
    ]
    path = "M" + "L".join(f"{x:.1f},{y:.1f}" for x, y in places)
    return (
        f'<div class="curve card"><h3>{escape(title)}</h3>'
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}, {points[-1][1]:.4g} at the end">'
        f'<line x1="{left}" y1="0" x2="{width}" y2="0"/>'
        f'<line x1="{left}" y1="{height - bottom}" x2="{width}" y2="{height - bottom}"/>'
        f'<text x="{left - 6}" y="4" text-anchor="end">{high:.3g}</text>'
        f'<text x="{left - 6}" y="{height - bottom + 4}" text-anchor="end">{low:.3g}</text>'
        f'<text x="{left}" y="{height}">epoch {first:.3g}</text>'
        f'<text x="{width}" y="{height}" text-anchor="end">{last:.3g}</text>'
        f'<path d="{path}"/><circle cx="{places[-1][0]:.1f}" cy="{places[-1][1]:.1f}" r="4"/></svg></div>'
    )


def _attribute_row(view: QueryView, name: str) -> str:
    found, value = view.neighbours[name], view.values[name]
    looks = _figure("looks", view.attention[name], f"where {name} looks in the query", "attention") + "".join(
        _neighbour(neighbour, name, place) for place, neighbour in enumerate(found, start=1)
    )
    right = sum(bool(neighbour.relevant) for neighbour in found)
    tally = f"{right} of {len(found)} right" if value is not None else "query not labelled"
    own = f"<span>{escape(value)}</span>" if value is not None else ""
    return (
        f'<section class="row"><header><h3>{escape(name)}</h3>{own}<span>{tally}</span></header>'
        f'<div class="strip">{looks}</div></section>'
    )


def _neighbour(neighbour: Neighbour, attribute: str, place: int) -> str:
    kind, mark, word = {
        None: ("unknown", "", "query not labelled"),
        True: ("right", "\N{CHECK MARK} ", "right"),
        False: ("wrong", "\N{MULTIPLICATION X} ", "wrong"),
    }[neighbour.relevant]
    alt = f"neighbour {place} by {attribute}: {neighbour.value}, {word}, similarity {neighbour.similarity:.2f}"
    assert isinstance(neighbour.image, Image.Image)
    return _figure(kind, neighbour.image, alt, mark + neighbour.value)


def _figure(kind: str, image: Image.Image, alt: str, caption: str) -> str:
    return (
        f'<figure class="{kind}"><img src="{data_uri(image, _THUMBNAIL)}" alt="{escape(alt)}" title="{escape(alt)}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def _table(head: str, rows: Sequence[str]) -> str:
    return (
        f'<div class="scroll card"><table><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'
    )
