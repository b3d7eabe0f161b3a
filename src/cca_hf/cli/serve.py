"""`cca serve`: a model behind HTTP, until it is stopped."""

from dataclasses import replace
from typing import Any

from . import options
from .options import load_encoder, option, stdout_kept_clean, switch


def serve(
    model: str = options.ENCODER,
    host: str = option("127.0.0.1", "host", "ADDRESS", "Address to listen on. 0.0.0.0: all networks."),
    port: int = option(8000, "port", "NUMBER", "Port to listen on. 0: any free port.", min=0, max=65535),
    max_batch: int = option(32, "max_batch", "NUMBER", "Maximum number of images in one pass.", min=1),
    max_waiting: int = option(
        256,
        "max_waiting",
        "NUMBER",
        "Maximum number of images that wait for an answer. Above it, the answer is 503.",
        min=1,
    ),
    max_body: int = option(20_000_000, "max_body", "BYTES", "Maximum size of a request.", min=1),
    max_pictures: int | None = option(
        None,
        "max_pictures",
        "NUMBER",
        "Maximum number of images in a request. Default: $CCA_MAX_PICTURES, or 32.",
        min=1,
    ),
    max_bytes: int | None = option(
        None, "max_bytes", "BYTES", "Maximum size of an image file. Default: $CCA_MAX_BYTES, or 10,000,000.", min=1
    ),
    max_pixels: int | None = option(
        None,
        "max_pixels",
        "NUMBER",
        "Maximum number of pixels in an image. Default: $CCA_MAX_PIXELS, or 25,000,000.",
        min=1,
    ),
    allow_urls: bool | None = switch(
        "allow_urls", "Download images from http addresses of public hosts. Default: $CCA_ALLOW_URLS.", None
    ),
    device: str | None = options.DEVICE,
    precision: options.Precision = options.PRECISION,
) -> None:
    """Serve a model over HTTP: it receives images, and returns one embedding per attribute.

    POST / accepts an image, or JSON as the Hub's Inference Endpoints do; GET /health and /metrics are for monitoring.
    Requests that arrive at the same time are encoded together. Needs "cca_hf[serve]"; see docs/serving.md.

    
    Examples:
      cca serve --model me/cca-shoes
      cca serve --model shoes-int8 --host 0.0.0.0 --port 80
      curl --data-binary @shoe.jpg -H "Content-Type: image/jpeg" "localhost:8000/?attribute=colour"
    """
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
