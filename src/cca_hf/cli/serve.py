"""`cca serve` and `cca demo`: a model behind HTTP, and an index as a page in the browser or a Space on the Hub."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from cca_hf.extras import require

from . import options
from .options import UsageError, check_engine, load_encoder, model_of_index, option, stdout_kept_clean, switch


def serve(
    model: str = options.ENCODER,
    host: str = option(
        "127.0.0.1", "ADDRESS", "Address to listen on. With 0.0.0.0, all networks can reach the server."
    ),
    port: int = option(8000, "NUMBER", "Port to listen on. With 0, any free port is used.", min=0, max=65535),
    max_batch: int = option(32, "NUMBER", "Maximum number of images in one pass.", min=1),
    max_waiting: int = option(
        256,
        "NUMBER",
        "Maximum number of images that wait for an answer. Further requests are answered with 503.",
        min=1,
    ),
    max_body: int = option(20_000_000, "BYTES", "Maximum size of a request.", min=1),
    max_pictures: int | None = option(
        None, "NUMBER", "Maximum number of images in a request. Default: $CCA_MAX_PICTURES, or 32.", min=1
    ),
    max_bytes: int | None = option(
        None, "BYTES", "Maximum size of an image file. Default: $CCA_MAX_BYTES, or 10,000,000.", min=1
    ),
    max_pixels: int | None = option(
        None, "NUMBER", "Maximum number of pixels in an image. Default: $CCA_MAX_PIXELS, or 25,000,000.", min=1
    ),
    allow_urls: bool | None = switch(
        "allow_urls", "Download images from http addresses of public hosts. Default: $CCA_ALLOW_URLS.", None
    ),
    device: str | None = options.DEVICE,
    precision: options.Precision = options.PRECISION,
) -> None:
    """Serve a model over HTTP: it receives images, and returns one embedding per attribute.

    A model without attributes, such as a classifier or facebook/dinov2-small, returns one embedding.

    POST / accepts an image, or JSON as the Hub's Inference Endpoints do; GET /health and /metrics are for monitoring.
    Requests that arrive at the same time are encoded together. 'cca docs serving' describes the requests
    and the limits.

    \b
    Examples:
      cca serve --model me/cca-shoes
      cca serve --model shoes-int8 --host 0.0.0.0 --port 80
      curl --data-binary @shoe.jpg -H "Content-Type: image/jpeg" "localhost:8000/?attribute=colour"
    """
    require("serve", "serving needs")
    with stdout_kept_clean():
        from cca_hf.hub.handler import Limits
        from cca_hf.hub.server import ServerSettings
        from cca_hf.hub.server import serve as serve_encoder

        given: dict[str, Any] = {"max_pictures": max_pictures, "max_bytes": max_bytes, "max_pixels": max_pixels}
        given = {name: value for name, value in {**given, "allow_urls": allow_urls}.items() if value is not None}
        limits = replace(Limits.from_environment(), **given)
        settings = ServerSettings(host, port, max_batch, max_waiting, max_body)
        encoder = load_encoder(model, device, precision)
    serve_encoder(encoder, model, limits, settings)


def demo(
    store: str | None = option(None, "PLACE", "Index, as in 'cca index'. Default: drawn shapes."),
    model: str | None = options.MODEL_OF_INDEX,
    folder: Path = option(Path("demo"), "FOLDER", "Without --store: folder for the shapes and their model."),
    title: str | None = option(None, "TEXT", "Title of the page."),
    export: Path | None = option(None, "FOLDER", "Write a repository for a Space instead of opening a page."),
    host: str | None = option(
        None,
        "ADDRESS",
        "Address to listen on. With 0.0.0.0, all networks can reach the page. Default: this machine only.",
    ),
    port: int | None = option(None, "NUMBER", "Port to listen on. Default: the first free port from 7860."),
    open_browser: bool = switch("open", "Open the page in a browser."),
    device: str | None = options.DEVICE,
) -> None:
    """Serve a page that shows the images most similar to a chosen or uploaded image, under each attribute.

    The index can also be that of a model without attributes.

    Without an index, the page shows drawn shapes and the model of 'make demo'. If this model does not exist yet, it is
    trained first, which takes some minutes on two cores.

    \b
    Examples:
      cca demo
      cca demo --store shoes.index --open
      cca demo --store shoes.index --model me/cca-shoes --export shoes-space
    """
    if model is not None and store is None:
        raise UsageError("--model needs the --store that it made: 'cca index' makes one")
    if export is not None and (host is not None or port is not None or open_browser):
        raise UsageError("--export writes a folder and opens no page: leave out --host, --port and --open")
    require("space", "the Space needs")
    if store is not None:
        check_engine(store)
    with stdout_kept_clean():
        from cca_hf.hub.space import Lookup, export_space, launch_space
        from cca_hf.hub.space.shapes import index_shapes, train_shapes
        from cca_hf.models import loading
        from cca_hf.search import AttributeIndex
        from cca_hf.training.process import prepare_process

        if store is None:
            prepare_process()
            encoder = loading.load_encoder(str(train_shapes(folder)), device)
            store = str(index_shapes(folder, encoder))
        else:
            encoder = loading.load_encoder(model or model_of_index(store), device)
        with AttributeIndex.open(store, encoder) as index:
            lookup = Lookup(encoder, index)
            if export is None:
                launch_space(lookup, title=title, host=host, port=port, open_browser=open_browser)
                return
            written = export_space(lookup, export, title=title)
    print(written)
    print(f"next: hf upload ACCOUNT/NAME {written} . --repo-type space")
