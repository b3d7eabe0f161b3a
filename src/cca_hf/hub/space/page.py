"""The page of the Space: the query on the left (above on a phone), the results beside it.

Gradio draws the controls, and `rows.html` the results. The page loads nothing from other servers, and its own server
sends no statistics.
"""

import os
from importlib import resources
from os import PathLike
from pathlib import Path
from typing import Any

from PIL import Image

from cca_hf.extras import require
from cca_hf.models.configuration_images import public_name
from cca_hf.models.images import UnreadableImageError, load_image
from cca_hf.visualization.page import templates

from .lookup import Lookup, Query
from .visitors import KEPT_SECONDS, LOST, VisitorGuard, private_upload_folder

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # Gradio reads it at import
try:
    import gradio as gr
    from starlette.middleware import Middleware
except ImportError:
    require("space", "the Space needs")
    raise

TITLE = "Alike in which respect?"
TITLE_WITHOUT_ATTRIBUTES = "Find similar images"
_EXAMPLES = 12
_SHOWN = 1024  # pixels: the longer side of a query from the catalogue
_SESSIONS = 1000  # stored in memory, about 100 kB for each session
_MOST_WAITING = 32  # searches, which take about 10 s together; further ones are refused
_SWEEP_SECONDS = 600  # between two deletions of old files
_CHOSEN_AT_FIRST = 4
_SAME, _ANY, _VALUE = "same", "any", "value "  # choices for the value of an attribute; a value follows the last
_BEGIN = "Choose or upload an image."
MOST_BYTES = 20 * 2**20
MOST_PIXELS = 64_000_000  # photos of phones have up to 50 million; 200 MB once decoded
# Pillow's other formats are rare, and for some Pillow starts other programs.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
_FORMATS = f"{', '.join(FORMATS[:-1])} and {FORMATS[-1]}"
# fonts of the user's system, so that none is loaded
_FONT = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "Liberation Sans", "sans-serif")
_MONO = ("ui-monospace", "monospace")
_FILES = resources.files("cca_hf.hub.space")
_HTML: Any = templates("cca_hf.hub.space").get_template("rows.html").module


def default_title(lookup: Lookup) -> str:
    return TITLE if lookup.has_attributes else TITLE_WITHOUT_ATTRIBUTES


def make_space(lookup: Lookup, *, title: str | None = None) -> gr.Blocks:
    """The page; `launch_space` serves it. The title has a default."""
    title = title or default_title(lookup)
    attributes = lookup.attributes
    offered = lookup.values
    filters = [
        f"{name} != {values[0]!r}"
        for name, values in offered.items()
        if name.isidentifier() and lookup.filters.get(name) == "text"
    ]
    example = next(iter(filters), "item_id != '1'")

    def search(query: Query | None, chosen: list[str], where: str | None, keep: float, *choices: str) -> str:
        """The results, or an error message."""
        if query is None:
            return _HTML.hint(_BEGIN)
        changed = {name: choice for name, choice in zip(offered, choices, strict=True) if choice != _SAME}
        instead = {name: None if choice == _ANY else choice.removeprefix(_VALUE) for name, choice in changed.items()}
        ordered = [name for name in attributes if name in chosen]
        if not ordered and not instead:
            return _HTML.problem("Choose at least one attribute.")
        try:
            only = (where or "").strip() or None
            rows = lookup.find(query, ordered, instead=instead, keep=keep, where=only)
            return _HTML.results(query, rows)
        except ValueError as error:  # an invalid filter, or a value that no item has
            return _HTML.problem(str(error))

    def upload(file: dict[str, Any] | None, *settings: Any) -> tuple[Any, Query | None, str]:
        """The image box, the query, and the results."""
        if file is None:
            return gr.skip(), None, _HTML.hint(_BEGIN)
        name = Path(file["orig_name"] or file["path"] or "").name
        try:
            path = _uploaded(file["path"] or "", image.GRADIO_CACHE)
            query = lookup.make_query(open_upload(path, name), name=name)
        except UnreadableImageError as error:
            return None, None, _HTML.problem(str(error))
        return gr.skip(), query, search(query, *settings)

    def pick_item(item_id: str, *settings: Any) -> tuple[Any, Query | None, str]:
        shown = lookup.image_of(item_id)
        query = lookup.make_query(shown, item_id=item_id)
        shown.thumbnail((_SHOWN, _SHOWN))
        return shown, query, search(query, *settings)

    def pick(event: gr.EventData, *settings: Any) -> tuple[Any, Query | None, str]:
        """As `upload`, for an item of the catalogue."""
        try:
            return pick_item(str(event.item), *settings)
        except (ValueError, OSError) as error:  # the item or its image was deleted in the meantime
            return None, None, _HTML.problem(str(error))

    def begin(*settings: Any) -> tuple[Any, ...]:
        """As `upload`, for the first example, so that the page opens with results; and the examples."""
        shown = lookup.examples(_EXAMPLES, seed=0)
        first = next((found.item_id for found in shown if found.image is not None), None)
        if first is None:  # none of their images is available
            return None, None, _HTML.hint(_BEGIN), _HTML.examples(shown), 0
        return *pick_item(first, *settings), _HTML.examples(shown), 0

    def more_examples(seed: int) -> tuple[str, int]:
        return _HTML.examples(lookup.examples(_EXAMPLES, seed=seed + 1)), seed + 1

    made_by = public_name(lookup.index.schema.checkpoint.name or "")
    on_load = _FILES.joinpath("select.js").read_text(encoding="utf-8")
    # Gradio deletes its files after an hour
    files = (_SWEEP_SECONDS, KEPT_SECONDS)
    with gr.Blocks(title=title, analytics_enabled=False, fill_width=True, delete_cache=files) as page:
        query, seed = gr.State(None), gr.State(0)
        names = attributes if lookup.has_attributes else []
        head = _HTML.head(title, lookup.index.count(), names, made_by)
        gr.HTML(head, apply_default_css=False, elem_id="cca-head")
        with gr.Row():
            with gr.Column(scale=2, min_width=300, elem_id="cca-ask"):
                image = gr.Image(
                    label="Image",
                    sources=["upload", "webcam", "clipboard"],
                    type="filepath",
                    height=260,
                    buttons=[],
                    elem_id="cca-picture",
                )
                examples = gr.HTML(js_on_load=on_load, apply_default_css=False, elem_id="cca-examples")
                more = gr.Button("Show other examples", size="sm", variant="secondary")
                first = attributes[:_CHOSEN_AT_FIRST]
                chosen = gr.CheckboxGroup(
                    attributes,
                    value=first,
                    label="Attributes",
                    visible=lookup.has_attributes,
                    elem_id="cca-attributes",
                )
                more_settings = "But with other values, or a filter" if lookup.has_attributes else "Filter"
                with gr.Accordion(more_settings, open=False):
                    with gr.Row(visible=bool(offered)):
                        changes = [
                            gr.Dropdown(
                                [
                                    ("the same", _SAME),
                                    *((value, _VALUE + value) for value in values),
                                    ("any", _ANY),
                                ],
                                value=_SAME,
                                label=name,
                                min_width=130,
                                elem_classes="cca-change",
                            )
                            for name, values in offered.items()
                        ]
                    keep = gr.Slider(
                        0,
                        1,
                        value=1,
                        step=0.1,
                        label="How much everything else must stay the same",
                        visible=bool(offered),
                        elem_id="cca-keep",
                    )
                    where = gr.Textbox(
                        value="",
                        label="Only items that match this filter",
                        placeholder=example,
                        info=f"Columns: {', '.join(lookup.filters)}",
                        visible=bool(lookup.filters),
                        elem_id="cca-where",
                    )
            with gr.Column(scale=5, min_width=300):
                hint = _HTML.hint(_BEGIN)
                results = gr.HTML(hint, js_on_load=on_load, apply_default_css=False, elem_id="cca-results")

        settings = [chosen, where, keep, *changes]
        outputs = [image, query, results]
        # one at a time, because the model uses all cores; private, because only the page uses this API
        common: dict[str, Any] = {
            "concurrency_id": "lookup",
            "concurrency_limit": 1,
            "api_visibility": "private",
            "show_progress": "minimal",
            "show_progress_on": results,
        }
        page.load(begin, settings, [*outputs, examples, seed], **common)
        sent = image.input(upload, [image, *settings], outputs, preprocess=False, trigger_mode="always_last", **common)
        picked = [shown.select(pick, settings, outputs, **common) for shown in (examples, results)]
        for each in (sent, *picked):
            each.then(None, js=_FILES.joinpath("focus.js").read_text(encoding="utf-8"), api_visibility="private")
        more.click(more_examples, seed, [examples, seed], **common)
        gr.on(
            [chosen.change, where.submit, where.blur, keep.release, *(each.change for each in changes)],
            search,
            [query, *settings],
            results,
            trigger_mode="always_last",  # of several changes in a row, only the last is computed
            **common,
        )
    return page.queue(max_size=_MOST_WAITING, api_open=False)


def _uploaded(path: str, folder: str) -> Path:
    """The file of an upload below Gradio's folder; UnreadableImageError for any other path, with the same message."""
    try:
        file = Path(path).resolve()
        if file.is_relative_to(Path(folder).resolve()) and file.is_file():  # no link that leads out of it, no pipe
            return file
    except (OSError, ValueError):  # a path that no file can have
        pass
    raise UnreadableImageError(LOST)


def open_upload(path: str | PathLike[str], name: str) -> Image.Image:
    """Decodes an upload to an upright RGB image.

    Raises:
        UnreadableImageError: if it is not an image, or too large. The message is for the user: it has `name`, because
            the path is private.
    """
    size = Path(path).stat().st_size
    if size > MOST_BYTES:
        raise UnreadableImageError(f"{name} has {size / 2**20:.0f} MB; the limit is {MOST_BYTES // 2**20} MB.")
    try:
        with Image.open(path, formats=FORMATS) as image:  # reads only the header
            if image.width * image.height > MOST_PIXELS:
                raise Image.DecompressionBombError
            return load_image(image)
    except Image.DecompressionBombError as error:
        limit = f"{MOST_PIXELS // 10**6} million pixels"
        raise UnreadableImageError(f"{name} has more than {limit}. Upload a smaller image.") from error
    except OSError as error:  # UnidentifiedImageError is one
        raise UnreadableImageError(f"{name} is not an image in a supported format: {_FORMATS}.") from error
    except (ValueError, SyntaxError) as error:
        raise UnreadableImageError(f"{name} is damaged or incomplete.") from error


def launch_space(
    lookup: Lookup,
    *,
    title: str | None = None,
    host: str | None = None,
    port: int | None = None,
    open_browser: bool = False,
    wait: bool = True,
) -> str:
    """Serves the page until the process is interrupted.

    Visitors can name no files but their own uploads, which are deleted after an hour; see `visitors.py`.

    Args:
        host: the address to listen on. Default: `GRADIO_SERVER_NAME`, or this machine only.
        port: default: `GRADIO_SERVER_PORT`, or the first free port from 7860.
        wait: whether to return only when the server ends.

    Returns:
        The URL of the page.

    Raises:
        OSError: if the port is taken.
    """
    theme = gr.themes.Default(primary_hue="amber", neutral_hue="stone", font=_FONT, font_mono=_MONO)
    # Gradio's default grey has too little contrast on white
    grey, light = "*neutral_600", "*neutral_500"
    theme.set(body_text_color_subdued=grey, block_info_text_color=grey, input_placeholder_color=light)
    guard: Any = VisitorGuard
    middleware = Middleware(guard, folder=private_upload_folder(), most_bytes=MOST_BYTES)
    if os.environ.get("SPACE_ID"):  # on the Hub, its proxy alone can reach the page, and tells the visitor's address
        os.environ.setdefault("FORWARDED_ALLOW_IPS", "*")
    _, address, _ = make_space(lookup, title=title).launch(
        server_name=host,
        server_port=port,
        inbrowser=open_browser,
        prevent_thread_lock=not wait,
        app_kwargs={"middleware": [middleware]},
        max_file_size=MOST_BYTES,
        state_session_capacity=_SESSIONS,
        ssr_mode=False,
        footer_links=["gradio", "settings"],
        theme=theme,
        css=_FILES.joinpath("space.css").read_text(encoding="utf-8"),
    )
    return address
