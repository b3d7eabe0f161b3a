"""The documentation site builds without warnings, documents every public name, and loads nothing from other hosts."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import cca_hf

from .pages import ROOT
from .test_architecture import MAY_USE

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *(ROOT / "docs").rglob("*.md")]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of `make docs`, where broken links and pages outside the navigation are errors."""
    for package in ("material", "mkdocstrings"):
        pytest.importorskip(package, reason='the site is built by pip install "cca_hf[docs]"')
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    folder = tmp_path_factory.mktemp("site")
    build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(folder)))
    return folder


def ids(page: Path) -> set[str]:
    return set(re.findall(r'id="([^"]+)"', page.read_text(encoding="utf-8")))


def test_every_public_name_is_documented(site: Path) -> None:
    shown = set().union(*(ids(page) for page in (site / "api").glob("*.html")))
    assert {f"cca_hf.{name}" for name in cca_hf.__all__} <= shown
    assert {"cca_hf.CCAModel.encode", "cca_hf.CCAModel.from_backbone", "cca_hf.AttributeIndex.search"} <= shown
    settings = (site / "api" / "training.html").read_text(encoding="utf-8")
    assert "<code>micro_batch_size</code>" in settings and "per_device_train_batch_size" in settings


def test_every_command_is_shown(site: Path) -> None:
    text = (site / "commands.html").read_text(encoding="utf-8")
    for command in ("cca train", "cca search", "cca index move", "cca data prepare"):
        assert f"Usage: {command} " in text


def test_file_names_of_pages_become_links(site: Path) -> None:
    home = (site / "index.html").read_text(encoding="utf-8")
    assert 'href="benchmarks.html">Benchmarks</a>' in home and 'src="assets/neighbours.png"' in home
    for page in site.rglob("*.html"):
        text = re.sub(r"<pre>.*?</pre>", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
        assert not re.findall(r"<code>docs/[\w/]+\.md</code>", text), f"{page.name} names a page without a link"
        # lists and tables that GitHub recognises and Python's Markdown does not
        assert not re.findall(r"<p>[^<]*\n(?:- |\| )", text), (
            f"{page.name} has a list or a table that is shown as text"
        )


PHONE = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True}
# the parts of the text that end to the right of the window and cannot be scrolled into it
CUT_OFF = """() => {
  const scrolls = element => ["auto", "scroll"].includes(getComputedStyle(element).overflowX);
  const reached = element => !element.matches(".md-content") && (scrolls(element) || reached(element.parentElement));
  return [...document.querySelectorAll(".md-content *")]
    .filter(element => element.getBoundingClientRect().right > 391 && !reached(element))
    .map(element => element.outerHTML.slice(0, 200));
}"""


@contextmanager
def opened(browser, page: Path, **options: object) -> Iterator:
    """A page that is opened as a file; it may neither fetch anything from a host nor report an error."""
    context = browser.new_context(reduced_motion="reduce", **options)
    context.set_default_timeout(60_000)
    tab, complaints = context.new_page(), []
    tab.on("request", lambda request: complaints.append(request.url) if request.url.startswith("http") else None)
    tab.on("pageerror", lambda error: complaints.append(str(error)))
    tab.goto(page.as_uri())
    yield tab
    context.close()
    assert not complaints


@pytest.mark.parametrize("device", [{"viewport": {"width": 1280, "height": 900}}, PHONE], ids=["desktop", "phone"])
def test_search_works_in_a_file(site: Path, browser, device: dict[str, object]) -> None:
    with opened(browser, site / "index.html", **device) as tab:
        if device is PHONE:
            tab.locator("label.md-header__button[for=__search]").click()
        tab.locator("[data-md-component=search-query]").press_sequentially("gallery")
        tab.locator("a.md-search-result__link[href*=glossary]", has_text="Query and gallery").click()
        tab.wait_for_url("**/glossary.html*#query-and-gallery")
        heading = tab.locator("#query-and-gallery")
        heading.wait_for()
        assert heading.evaluate("heading => heading.getBoundingClientRect().top") < 844


def test_pages_fit_on_a_phone(site: Path, browser) -> None:
    """No page is wider than 390 pixels; wide tables and code scroll within themselves."""
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 30
    with opened(browser, pages[0], **PHONE) as tab:
        for page in pages:
            tab.goto(page.as_uri())
            assert tab.evaluate("document.documentElement.scrollWidth") <= 390, page.name
            assert not tab.evaluate(CUT_OFF), page.name


def test_nothing_is_loaded_from_other_hosts(site: Path) -> None:
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        fetched = re.findall(r'<(?:link|script|img|iframe)[^>]*(?:href|src)="?(https?://[^" >]*)', text)
        assert not fetched, f"{page.name} loads {fetched}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_named_on_a_page_exist(page: Path) -> None:
    """Python files in the repository or in the package; `x.py` and `..._x.py` stand for the files of a new family."""
    named = re.findall(r"`((?:[a-z_]+/)+\w+\.py)`", page.read_text(encoding="utf-8"))
    missing = [name for name in named if not ((ROOT / name).is_file() or (ROOT / "src/cca_hf" / name).is_file())]
    assert not [name for name in missing if not re.search(r"[/_]x\.py$", name)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_words_of_a_page(page: Path) -> None:
    """The language rule of CONTRIBUTING.md, as far as a pattern can check it, outside of code and of its examples."""
    text = re.sub(r"```.*?```|`[^`]*`", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    if page.name == "CONTRIBUTING.md":
        text = text.partition("## Language")[0] + text.partition("## Tests")[2]
    assert not re.findall(r"\bpictures?\b", text, re.IGNORECASE), "write image"
    assert not re.findall(r"(?:^|[.:;] |- )Of [a-z]", text, re.MULTILINE), "no sentence starts with Of"


def test_design_page_lists_the_imports_between_rooms() -> None:
    """The table of docs/design.md and `MAY_USE` of tests/test_architecture.py agree."""
    page = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    table = page.partition("| room | may import |\n")[2].partition("\n\n")[0]
    rows = [line.strip("| ").split(" |") for line in table.splitlines()[1:]]
    listed = {room.strip(" `"): set(re.findall(r"`(\w+)`", "".join(rest))) for room, *rest in rows}
    assert listed.pop("cli") == set(), "the row of cli reads: all other rooms"
    assert listed == {room: used for room, used in MAY_USE.items() if room != "cli"}
