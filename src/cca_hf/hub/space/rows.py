"""What was found, as HTML: a card for each attribute, each picture in it a button that asks with that picture."""

from collections.abc import Sequence
from html import escape

from .lookup import Found, Query, Row

# In `gr.HTML`: the buttons tell the page which item was chosen.
ON_LOAD = """
element.addEventListener("click", (event) => {
  const button = event.target.closest("button[data-item]");
  if (button) trigger("select", { item: button.dataset.item });
});
"""
# After a new picture, whoever uses a keyboard, a screen reader or a phone goes on where the answer is.
FOCUS_RESULTS = """() => {
  const answer = document.querySelector("#cca-found, #cca-results .cca-problem");
  if (answer) answer.focus();
}"""


def examples_html(examples: Sequence[Found]) -> str:
    """Pictures to begin with."""
    buttons = "".join(_button(found, "") for found in examples)
    return f'<h2 class="cca-label">or take one of the catalogue</h2><div class="cca-examples">{buttons}</div>'


def found_html(query: Query, rows: Sequence[Row]) -> str:
    """The rows of one query."""
    cards = "".join(_card(row, query) for row in rows)
    return f'<h2 id="cca-found" tabindex="-1">Nearest to {escape(query.name)}</h2>{cards}'


def hint_html(text: str) -> str:
    """What to do next."""
    return f'<p class="cca-hint">{escape(text)}</p>'


def problem_html(text: str) -> str:
    """Why there is nothing to show; read out by screen readers as soon as it is there."""
    return f'<p class="cca-problem" role="alert" tabindex="-1">{escape(text)}</p>'


def _card(row: Row, query: Query) -> str:
    value = f" <span>{escape(row.value)}</span>" if row.value else ""
    attention = ""
    if row.attention is not None:
        alt = f"where {row.title} looks in {query.name}: what is attended glows"
        attention = (
            f'<figure class="cca-attention"><img src="{row.attention}" alt="{escape(alt)}">'
            f"<figcaption>where {escape(row.title)} looks</figcaption></figure>"
        )
    pictures = "".join(
        f"<li>{_button(found, _caption(found, row.title if row.attention else ''))}</li>" for found in row.found
    )
    found = f'<ol class="cca-strip">{pictures}</ol>' if pictures else '<p class="cca-hint">Nothing was found.</p>'
    kind = "" if attention else " cca-mixed"
    return (
        f'<section class="cca-card{kind}" aria-label="by {escape(row.title)}">'
        f"<h3>{escape(row.title)}{value}</h3>{attention}{found}</section>"
    )


def _caption(found: Found, attribute: str) -> str:
    mark = '<span class="cca-alike" title="as the query\'s">\N{CHECK MARK}</span> ' if found.alike else ""
    value = f"<b>{mark}{escape(found.value)}</b>" if found.value and attribute else ""
    return f"{value}<i>{found.similarity:.2f}</i>"


def _button(found: Found, caption: str) -> str:
    words = f"{found.words}, similarity {found.similarity:.2f}" if caption else found.words
    picture = (
        f'<img src="{found.picture}" alt="{escape(words)}">'
        if found.picture is not None
        else f'<span class="cca-lost" role="img" aria-label="{escape(words)}">the picture is lost</span>'
    )
    label = f"<span>{caption}</span>" if caption else ""
    return (
        f'<button type="button" class="cca-picture" data-item="{escape(found.item_id)}" title="{escape(words)}">'
        f"{picture}{label}</button>"
    )
