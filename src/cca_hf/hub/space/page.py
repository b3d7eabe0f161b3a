"""The Space's page: what is asked on the left, on a phone above; what was found beside it.

Gradio draws the controls, `rows` what was found. The page asks nobody but its own server, which sends no statistics.
"""

import os
from collections.abc import Sequence
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

from cca_hf.models.images import UnreadableImageError

from .lookup import Lookup, Query
from .rows import FOCUS_RESULTS, ON_LOAD, examples_html, found_html, hint_html, problem_html
from .upload import MOST_BYTES, open_upload

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read when it is imported
try:
    import gradio as gr
except ImportError as error:
    raise ImportError('the Space needs Gradio: pip install "cca_hf[space]"') from error

TITLE = "Alike in which respect?"
_EXAMPLES = 12
_SHOWN = 1024  # pixels: the longer side of a catalogue's picture that becomes the query
_SESSIONS = 1000  # whose queries are kept, about 100 kB each
_CHOSEN_AT_FIRST = 4
_BEGIN = "Choose a picture or upload one."
# what the reader's system has: nothing to fetch
_FONT = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "Liberation Sans", "sans-serif")


def make_space(lookup: Lookup, *, title: str = TITLE) -> gr.Blocks:
    """The page, to be served by `launch_space`."""
    attributes = lookup.attributes
    wishes = {f"{name}: {value}": (name, value) for name, values in lookup.values.items() for value in values}

    def look(query: Query | None, chosen: list[str], wished: list[str], where: str | None) -> str:
        """What was found, or why nothing was."""
        if query is None:
            return hint_html(_BEGIN)
        instead = dict(wishes[wish] for wish in wished)
        ordered = [name for name in attributes if name in chosen]
        if not ordered and not instead:
            return problem_html("Choose at least one attribute.")
        try:
            return found_html(query, lookup.find(query, ordered, instead=instead, where=(where or "").strip() or None))
        except ValueError as error:  # a filter that cannot be read, a value that no item has
            return problem_html(str(error))

    def upload(file: dict[str, Any] | None, *asked: Any) -> tuple[Any, Query | None, str]:
        """The picture's box, the query, and what was found."""
        if file is None:
            return gr.skip(), None, hint_html(_BEGIN)
        name = Path(file["orig_name"] or file["path"]).name
        try:
            query = lookup.ask(open_upload(file["path"], name), name=name)
        except UnreadableImageError as error:
            return None, None, problem_html(str(error))
        return gr.skip(), query, look(query, *asked)

    def pick_item(item_id: str, *asked: Any) -> tuple[Any, Query | None, str]:
        shown = lookup.picture_of(item_id)
        query = lookup.ask(shown, item_id=item_id)
        shown.thumbnail((_SHOWN, _SHOWN))
        return shown, query, look(query, *asked)

    def pick(event: gr.EventData, *asked: Any) -> tuple[Any, Query | None, str]:
        """As `upload`, with an item of the catalogue."""
        try:
            return pick_item(str(event.item), *asked)
        except (ValueError, OSError) as error:  # it was deleted meanwhile, or its picture was
            return None, None, problem_html(str(error))

    def begin(*asked: Any) -> tuple[Any, ...]:
        """As `upload`, with the first example, so that there is something to see; and the examples."""
        shown = lookup.examples(_EXAMPLES, seed=0)
        first = next((found.item_id for found in shown if found.picture is not None), None)
        if first is None:  # all their pictures are lost
            return None, None, hint_html(_BEGIN), examples_html(shown), 0
        return *pick_item(first, *asked), examples_html(shown), 0

    def others(seed: int) -> tuple[str, int]:
        return examples_html(lookup.examples(_EXAMPLES, seed=seed + 1)), seed + 1

    with gr.Blocks(title=title, analytics_enabled=False, fill_width=True) as page:
        query, seed = gr.State(None), gr.State(0)
        gr.HTML(_head(lookup, title), apply_default_css=False, elem_id="cca-head")
        with gr.Row():
            with gr.Column(scale=2, min_width=300, elem_id="cca-ask"):
                picture = gr.Image(
                    label="Picture",
                    sources=["upload", "webcam", "clipboard"],
                    type="filepath",
                    height=260,
                    buttons=[],
                    elem_id="cca-picture",
                )
                examples = gr.HTML(js_on_load=ON_LOAD, apply_default_css=False, elem_id="cca-examples")
                more = gr.Button("Show others", size="sm", variant="secondary")
                chosen = gr.CheckboxGroup(
                    attributes, value=attributes[:_CHOSEN_AT_FIRST], label="Alike in", elem_id="cca-attributes"
                )
                with gr.Accordion("This one, but \N{HORIZONTAL ELLIPSIS}", open=False):
                    wished = gr.Dropdown(
                        list(wishes),
                        value=[],
                        multiselect=True,
                        label="with this value in place of its own",
                        visible=bool(wishes),
                        elem_id="cca-instead",
                    )
                    where = gr.Textbox(
                        value="",
                        label="only items that fulfil",
                        placeholder=_example_filter(lookup),
                        info=f"Columns: {', '.join(lookup.filters)}",
                        visible=bool(lookup.filters),
                        elem_id="cca-where",
                    )
            with gr.Column(scale=5, min_width=300):
                results = gr.HTML(
                    hint_html(_BEGIN), js_on_load=ON_LOAD, apply_default_css=False, elem_id="cca-results"
                )

        asked = [chosen, wished, where]
        answer = [picture, query, results]
        # one at a time: the model has all the cores. private: no API but the page
        common: dict[str, Any] = {
            "concurrency_id": "lookup",
            "concurrency_limit": 1,
            "api_visibility": "private",
            "show_progress": "minimal",
            "show_progress_on": results,
        }
        page.load(begin, asked, [*answer, examples, seed], **common)
        sent = picture.input(upload, [picture, *asked], answer, preprocess=False, trigger_mode="always_last", **common)
        picked = [shown.select(pick, asked, answer, **common) for shown in (examples, results)]
        for each in (sent, *picked):
            each.then(None, js=FOCUS_RESULTS, api_visibility="private")
        more.click(others, seed, [examples, seed], **common)
        gr.on(
            [chosen.change, wished.change, where.submit, where.blur],
            look,
            [query, *asked],
            results,
            trigger_mode="always_last",  # of several changes in a row, the last is answered
            **common,
        )
    return page


def launch_space(
    lookup: Lookup,
    *,
    title: str = TITLE,
    host: str | None = None,
    port: int | None = None,
    open_browser: bool = False,
    wait: bool = True,
) -> str:
    """Serves the page until the process is interrupted.

    Args:
        host: an address of this machine. Default: `GRADIO_SERVER_NAME`, or this machine alone.
        port: default: `GRADIO_SERVER_PORT`, or the first free one from 7860.
        wait: whether to return only at the end.

    Returns:
        The page's address.

    Raises:
        OSError: if the port is taken.
    """
    _, address, _ = make_space(lookup, title=title).launch(
        server_name=host,
        server_port=port,
        inbrowser=open_browser,
        prevent_thread_lock=not wait,
        max_file_size=MOST_BYTES,
        state_session_capacity=_SESSIONS,
        ssr_mode=False,
        footer_links=["gradio", "settings"],
        theme=_theme(),
        css=resources.files("cca_hf.hub.space").joinpath("space.css").read_text(encoding="utf-8"),
    )
    return address


def _theme() -> gr.themes.Base:
    theme = gr.themes.Default(
        primary_hue="amber", neutral_hue="stone", font=_FONT, font_mono=("ui-monospace", "monospace")
    )
    # Gradio's own grey is too light on white to be read by everybody
    return theme.set(
        body_text_color_subdued="*neutral_600",
        block_info_text_color="*neutral_600",
        input_placeholder_color="*neutral_500",
    )


def _head(lookup: Lookup, title: str) -> str:
    name = lookup.index.schema.checkpoint.name
    made = f" by <code>{escape(Path(name).name if Path(name).is_absolute() else name)}</code>" if name else ""
    return (
        f"<h1>{escape(title)}</h1><p>One picture, one embedding for each attribute: the nearest of "
        f"{lookup.index.count():,} pictures by {_listed(lookup.attributes)}, and where each of them looks. Embedded"
        f"{made}.</p>"
    )


def _listed(names: Sequence[str]) -> str:
    *first, last = map(escape, names)
    return f"{', '.join(first)} and {last}" if first else last


def _example_filter(lookup: Lookup) -> str:
    """Such as `colour != 'red'`."""
    for name, values in lookup.values.items():
        if name.isidentifier():
            return f"{name} != {values[0]!r}"
    return "item_id != '1'"
