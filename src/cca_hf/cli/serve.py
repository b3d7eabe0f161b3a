"""`cca serve`: a model behind HTTP, until it is stopped."""

from dataclasses import replace
from typing import Annotated

from .options import Device, Encoder, Precision, load_encoder, option, stdout_kept_clean, switch


def serve(
    model: Encoder,
    host: Annotated[str, option("host", "ADDRESS", "Address to listen on. 0.0.0.0: all networks.")] = "127.0.0.1",
    port: Annotated[int, option("port", "NUMBER", "Port to listen on. 0: any free port.", min=0, max=65535)] = 8000,
    max_batch: Annotated[int, option("max_batch", "NUMBER", "Maximum number of images in one pass.", min=1)] = 32,
    max_waiting: Annotated[
        int,
        option(
            "max_waiting",
            "NUMBER",
            "Maximum number of images that wait for an answer. Above it, the answer is 503.",
            min=1,
        ),
    ] = 256,
    max_body: Annotated[int, option("max_body", "BYTES", "Maximum size of a request.", min=1)] = 20_000_000,
    max_pictures: Annotated[
        int | None,
        option(
            "max_pictures",
            "NUMBER",
            "Maximum number of images in a request. Default: $CCA_MAX_PICTURES, or 32.",
            min=1,
        ),
    ] = None,
    max_bytes: Annotated[
        int | None,
        option("max_bytes", "BYTES", "Maximum size of an image file. Default: $CCA_MAX_BYTES, or 10,000,000.", min=1),
    ] = None,
    max_pixels: Annotated[
        int | None,
        option(
            "max_pixels",
            "NUMBER",
            "Maximum number of pixels in an image. Default: $CCA_MAX_PIXELS, or 25,000,000.",
            min=1,
        ),
    ] = None,
    allow_urls: Annotated[
        bool | None,
        switch(
            "allow_urls",
            "Download images from http URLs in a request, but only from public hosts. Default: $CCA_ALLOW_URLS.",
        ),
    ] = None,
    device: Device = None,
    precision: Precision = "auto",
) -> None:
    """Serve a model over HTTP: it receives images, and returns one embedding per attribute.

    POST / accepts an image, or JSON as the Hub's Inference Endpoints do; GET /health and /metrics are for monitoring.
    Requests that arrive at the same time are encoded together. Needs "cca_hf[serve]"; see docs/serving.md.

    \b
    Examples:
      cca serve --model me/cca-shoes
      cca serve --model shoes-int8 --host 0.0.0.0 --port 80
      curl --data-binary @shoe.jpg -H "Content-Type: image/jpeg" "localhost:8000/?attribute=colour"
    """
    with stdout_kept_clean():
        from cca_hf.hub.handler import Limits
        from cca_hf.hub.server import ServerSettings
        from cca_hf.hub.server import serve as serve_encoder

        limits = Limits.from_environment()
        limits = replace(
            limits,
            max_pictures=max_pictures or limits.max_pictures,
            max_bytes=max_bytes or limits.max_bytes,
            max_pixels=max_pixels or limits.max_pixels,
            allow_urls=limits.allow_urls if allow_urls is None else allow_urls,
        )
        settings = ServerSettings(host, port, max_batch, max_waiting, max_body)
        encoder = load_encoder(model, device, precision)
    serve_encoder(encoder, model, limits, settings)
