"""Plain tables for terminals and logs: ASCII rules, first column to the left, figures to the right."""

from collections.abc import Sequence


def percent(fraction: float, decimals: int = 1) -> str:
    """0.6102 -> "61.0"."""
    return f"{100 * fraction:.{decimals}f}"


def format_table(header: Sequence[str], sections: Sequence[Sequence[Sequence[str]]]) -> str:
    """One table of equal columns; a rule stands under the header and between the sections of rows."""
    rows = [row for section in sections for row in section]
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
    rule = "  ".join("-" * width for width in widths)
    lines = [_line(header, widths)]
    for section in sections:
        if section:
            lines += [rule, *(_line(row, widths) for row in section)]
    return "\n".join(lines)


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    first, *others = (
        cell.ljust(width) if column == 0 else cell.rjust(width)
        for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
    )
    return "  ".join([first, *others]).rstrip()
