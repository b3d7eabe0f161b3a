"""Adds generated pages to the documentation site and adapts the Markdown of docs/*.md; `mkdocs.yml` names this file.

The README is the first page. `api/<room>.md` documents the public names of a room with their docstrings, and
`commands.md` has the `--help` of every command of `cca`, so neither text is written twice. On GitHub, pages refer to
each other by file name, such as `docs/speed.md`; this module turns the names into links with the title of the page.
The notebooks of `notebooks/` become files of the site.
"""

import dataclasses
import json
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from typer.core import TyperGroup
from typer.main import get_command

import cca_hf

ROOT = Path(__file__).resolve().parent.parent
ROOMS = {
    "models": "Models",
    "data": "Data",
    "training": "Training",
    "recipes": "Recipes",
    "evaluation": "Evaluation",
    "search": "Search",
    "runtimes": "Other runtimes",
    "visualization": "Visualization",
    "hub": "Publishing",
}
_FENCE = re.compile(r"^ *```")
_LIST_ITEM = re.compile(r"^ *([-*]|\d+\.) ")
_FILE_NAME = re.compile(r"`docs/([\w/]+\.md)`")
_NOTEBOOK = re.compile(r"\]\(\.\./((?:\.\./)*notebooks/)")
_WORKER_SCRIPT = """\
// A browser starts no worker from a file. On a page that is a file, a worker gets the text of the theme's worker.
if (location.protocol === "file:") {
  const source = new Blob([%s]);
  window.Worker = class extends Worker {
    constructor() {
      super(URL.createObjectURL(source));
    }
  };
}
"""


def public_names() -> dict[str, list[str]]:
    """The names of `cca_hf.__all__` by room, in the order of `ROOMS`."""
    rooms: dict[str, list[str]] = {room: [] for room in ROOMS}
    for name, module in cca_hf._MODULE_OF_NAME.items():
        rooms[module.split(".")[0]].append(name)
    return {room: names for room, names in rooms.items() if names}


# ---- Generated pages ----


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Adds the generated pages to the navigation."""
    reference: list[dict[str, str]] = [{"Commands": "commands.md"}]
    config.nav.append({"Reference": reference + [{ROOMS[room]: f"api/{room}.md"} for room in public_names()]})
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the generated pages and the notebooks."""
    generated = {"index.md": (ROOT / "README.md").read_text(encoding="utf-8"), "commands.md": commands_page()}
    generated |= {f"api/{room}.md": api_page(room, names) for room, names in public_names().items()}
    for path, content in generated.items():
        files.append(File.generated(config, path, content=content))
    for notebook in sorted((ROOT / "notebooks").glob("*.ipynb")):
        files.append(File.generated(config, f"notebooks/{notebook.name}", abs_src_path=str(notebook)))
    return files


def api_page(room: str, names: list[str]) -> str:
    """Directives for mkdocstrings; the training arguments become a table, since their help is in the fields."""
    parts = [f"# {ROOMS[room]}"]
    for name in names:
        if name == "CCATrainingArguments":
            parts += [
                f"::: cca_hf.{name}\n    options:\n      members: false\n      show_signature: false",
                settings(),
            ]
        else:
            parts.append(f"::: cca_hf.{name}")
    return "\n\n".join(parts) + "\n"


def settings() -> str:
    """The fields that `CCATrainingArguments` adds to `TrainingArguments`, as a table."""
    from cca_hf import CCATrainingArguments

    rows = ["| setting | default | |", "|---|---|---|"]
    fields = {field.name: field for field in dataclasses.fields(CCATrainingArguments)}
    for name in CCATrainingArguments.__annotations__:
        text = fields[name].metadata["help"].replace("|", "\\|")
        rows.append(f"| `{name}` | `{fields[name].default!r}` | {text} |")
    return "\n".join(rows)


def commands_page() -> str:
    """The help of every command."""
    from cca_hf.cli.main import app

    parts = ["# Commands", "The output of `--help` for `cca` and each of its commands."]
    for name, text in _helps(get_command(app), "cca"):
        parts.append(f"## {name}\n\n```text\n{text}\n```")
    return "\n\n".join(parts) + "\n"


def _helps(command: Any, name: str) -> Iterator[tuple[str, str]]:
    with command.context_class(command, info_name=name, terminal_width=100, max_content_width=100) as context:
        yield name, command.get_help(context).strip()
    if isinstance(command, TyperGroup):
        for child_name, child in command.commands.items():
            yield from _helps(child, f"{name} {child_name}")


# ---- Markdown of the repository to Markdown of the site ----


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turns file names into links, and adds the empty lines that Python's Markdown needs and GitHub's does not."""
    here = posixpath.dirname(page.file.src_uri)

    def link(found: re.Match[str]) -> str:
        target = files.get_file_from_path(found[1])
        if target is None:
            raise ValueError(f"{page.file.src_uri} names docs/{found[1]}, which does not exist")
        title = re.search(r"^# (.+?)(:|$)", target.content_string, re.MULTILINE)
        assert title is not None, f"docs/{found[1]} has no title"
        return f"[{title[1]}]({posixpath.relpath(found[1], here or '.')})"

    lines: list[str] = []
    in_code = in_list = False
    for line in markdown.splitlines():
        fence, item = bool(_FENCE.match(line)), bool(_LIST_ITEM.match(line))
        before = lines[-1] if lines else ""
        if not in_code:
            starts = (item and not in_list) or fence or (line.startswith("|") and not before.startswith("|"))
            if before and starts:
                lines.append("")
            in_list = item or (in_list and (not line or line.startswith(" ") or bool(before)))
            if not fence:
                line = _FILE_NAME.sub(link, line)
                line = _NOTEBOOK.sub(r"](\1", line)
                if page.file.src_uri == "index.md":
                    line = line.replace("](docs/", "](")
        elif fence and not line.startswith(" "):
            in_list = False
        lines.append(line)
        if fence:
            in_code = not in_code
            if not in_code:
                lines.append("")
    return "\n".join(lines) + "\n"


# ---- Search in a page that is a file ----


def on_post_build(config: MkDocsConfig) -> None:
    """Writes the script with which the search of a page that is a file starts its worker.

    The plugin `offline` does the rest: it writes the index as a script, because such a page may not fetch it. It
    expects a script of this name, `iframe-worker.js`, in `extra.polyfills`.
    """
    scripts = Path(config.site_dir, "assets", "javascripts")
    (worker,) = (scripts / "workers").glob("search.*.js")
    script = _WORKER_SCRIPT % json.dumps(worker.read_text(encoding="utf-8"))
    (scripts / "iframe-worker.js").write_text(script, encoding="utf-8")


# ---- Docstrings ----


class References(griffe.Extension):
    """Turns names in brackets into links, as in the docstrings of transformers: [`CCATrainer.train`]."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rewrites the docstring of an object."""
        if obj.docstring is not None:
            obj.docstring.value = re.sub(r"\[`([\w.]+)`\](?![\[(])", self._link, obj.docstring.value)

    @staticmethod
    def _link(found: re.Match[str]) -> str:
        public = found[1].split(".")[0] in cca_hf.__all__
        return f"[`{found[1]}`][cca_hf.{found[1]}]" if public else f"`{found[1]}`"
