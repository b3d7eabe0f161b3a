"""The documentation's site: it builds without a warning, shows every public name, and fetches nothing."""

import re
from pathlib import Path

import pytest

import cca_hf

from .pages import ROOT


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `make docs` makes; a broken link, or a page that is not in the navigation, is an error there."""
    for package in ("material", "mkdocstrings"):
        pytest.importorskip(package, reason='the site is built by pip install "cca_hf[docs]"')
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    folder = tmp_path_factory.mktemp("site")
    build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(folder)))
    return folder


def ids(page: Path) -> set[str]:
    return set(re.findall(r'id="([^"]+)"', page.read_text(encoding="utf-8")))


def test_every_public_name_has_its_place(site: Path) -> None:
    shown = set().union(*(ids(page) for page in (site / "api").glob("*.html")))
    assert {f"cca_hf.{name}" for name in cca_hf.__all__} <= shown
    assert {"cca_hf.CCAModel.encode", "cca_hf.CCAModel.from_backbone", "cca_hf.AttributeIndex.search"} <= shown
    settings = (site / "api" / "training.html").read_text(encoding="utf-8")
    assert "<code>collapse_patience</code>" in settings and "per_device_train_batch_size" in settings


def test_every_command_is_shown(site: Path) -> None:
    text = (site / "commands.html").read_text(encoding="utf-8")
    for command in ("cca train", "cca search", "cca index move", "cca data prepare"):
        assert f"Usage: {command} " in text


def test_pages_name_each_other_by_links(site: Path) -> None:
    home = (site / "index.html").read_text(encoding="utf-8")
    assert 'href="benchmarks.html">Benchmarks</a>' in home and 'src="assets/neighbours.png"' in home
    for page in site.rglob("*.html"):
        text = re.sub(r"<pre>.*?</pre>", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
        assert not re.findall(r"<code>docs/[\w/]+\.md</code>", text), f"{page.name} names a file that is no link"
        # what GitHub takes for a list or a table and Python's Markdown does not
        assert not re.findall(r"<p>[^<]*\n(?:- |\| )", text), f"{page.name} has a list or a table that is none"


def test_nothing_is_fetched(site: Path) -> None:
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        fetched = re.findall(r'<(?:link|script|img|iframe)[^>]*(?:href|src)="?(https?://[^" >]*)', text)
        assert not fetched, f"{page.name} fetches {fetched}"
