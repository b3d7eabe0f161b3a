"""Tables as text for terminals and logs, and as HTML for notebooks."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape


@dataclass(frozen=True)
class Table:
    """Rows in sections, with a rule between two sections, and lines of text below the table."""

    header: Sequence[str]
    sections: Sequence[Sequence[Sequence[str]]]
    notes: Sequence[str] = ()

    def text(self) -> str:
        return "\n".join([format_table(self.header, self.sections), *self.notes])

    def html(self) -> str:
        bodies = [f"<tbody>{''.join(map(_html_row, section))}</tbody>" for section in self.sections]
        head = "".join(f"<th>{escape(cell)}</th>" for cell in self.header)
        notes = [f"<p>{escape(note)}</p>" for note in self.notes]
        return "\n".join([f"<table><thead><tr>{head}</tr></thead>", *bodies, "</table>", *notes])


def percent(fraction: float, decimals: int = 1) -> str:
    """0.6102 -> "61.0"."""
    return f"{100 * fraction:.{decimals}f}"


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """A markdown table; the first row is the header."""
    header, *body = (f"| {' | '.join(row)} |" for row in rows)
    return "\n".join([header, f"|{'---|' * len(rows[0])}", *body])


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


def _html_row(cells: Sequence[str]) -> str:
    first, *others = map(escape, cells)
    return f"<tr><th>{first}</th>{''.join(f'<td>{cell}</td>' for cell in others)}</tr>"
