"""`cca docs`: the pages of the documentation, which are installed with the package."""

import pydoc
from difflib import get_close_matches
from pathlib import Path

import typer

from .options import UsageError


def docs(
    page: str | None = typer.Argument(None, metavar="PAGE", help="Name of a page, such as search. Default: a list."),
) -> None:
    """Print a page of the documentation, or the list of all pages.

    \b
    Examples:
      cca docs
      cca docs search
      cca docs tutorials/train
    """
    pages = find_pages()
    if page is None:
        width = max(map(len, pages))
        for name, file in pages.items():
            print(f"{name:{width}}  {_title(file)}")
        return
    name = page.removeprefix("docs/").removesuffix(".md")
    if name not in pages:
        close = get_close_matches(name, pages, n=1)
        hint = f": did you mean {close[0]}?" if close else "; 'cca docs' lists the pages"
        raise UsageError(f"there is no page {page!r}{hint}")
    pydoc.pager(pages[name].read_text(encoding="utf-8"))


def find_pages() -> dict[str, Path]:
    """The name of each page, such as `tutorials/train`, and its file."""
    package = Path(__file__).resolve().parents[1]
    installed, checkout = package / "docs", package.parents[1] / "docs"  # setup.py copies the pages into a wheel
    folder = installed if installed.is_dir() else checkout
    return {file.relative_to(folder).with_suffix("").as_posix(): file for file in sorted(folder.rglob("*.md"))}


def _title(file: Path) -> str:
    with file.open(encoding="utf-8") as lines:
        return next(lines).removeprefix("#").strip()
