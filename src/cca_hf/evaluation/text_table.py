"""Tables as text for terminals and logs, and as HTML for notebooks."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

# Characters with a meaning anywhere; an underscore at the edge of a word; what makes a link of an address; and what
# begins a list or a heading at the start of a line, or ends a heading.
_MARKS = re.compile(
    r"[\\`*\[\]<>|~&@]|(?<![^\W_])_|_(?![^\W_])|:(?=//)|(?<=\bwww)\.|^[-+#](?=[\s#]|$)|^\d(?=\d*[.)](?:\s|$))|#$",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Table:
    """Rows in sections, with a rule between two sections, and lines of text below the table.

    `styles` is the CSS of some cells in a notebook, by section, row and column.
    """

    header: Sequence[str]
    sections: Sequence[Sequence[Sequence[str]]]
    notes: Sequence[str] = ()
    styles: Mapping[tuple[int, int, int], str] = field(default_factory=dict)

    def text(self) -> str:
        return "\n".join([format_table(self.header, self.sections), *self.notes])

    def html(self) -> str:
        from cca_hf.data.html_table import html_table  # loads torch, which `cca search` does without

        return html_table(self.header, self.sections, self.notes, styles=self.styles)


def percent(fraction: float, decimals: int = 1) -> str:
    """0.6102 -> "61.0"."""
    return f"{100 * fraction:.{decimals}f}"


def markdown_table(rows: Sequence[Sequence[str]], *, bold_title: int | None = None) -> str:
    """A markdown table; the first row is the header. The cells are texts, see [`markdown_text`].

    `bold_title` is the row whose first cell is bold.
    """
    cells = [[markdown_text(cell) for cell in row] for row in rows]
    if bold_title is not None:
        cells[bold_title][0] = f"**{cells[bold_title][0]}**"
    header, *body = (f"| {' | '.join(row)} |" for row in cells)
    return "\n".join([header, f"|{'---|' * len(rows[0])}", *body])


def markdown_text(words: object) -> str:
    """Words of others for a line or a table in Markdown: they become no mark, tag, link, image, cell or line.

    Characters with a meaning in Markdown become HTML entities, because a backslash is not understood everywhere.
    """
    return _MARKS.sub(lambda mark: f"&#{ord(mark[0])};", " ".join(str(words).split()))


def format_table(header: Sequence[str], sections: Sequence[Sequence[Sequence[str]]]) -> str:
    """A table of aligned columns, with a rule under the header and between the sections of rows."""
    rows = [row for section in sections for row in section]
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
    rule = "  ".join("-" * width for width in widths)
    lines = [_line(header, widths)]
    for section in sections:
        if section:
            lines += [rule, *(_line(row, widths) for row in section)]
    return "\n".join(lines)


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    others = (cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True))
    return "  ".join([cells[0].ljust(widths[0]), *others]).rstrip()
