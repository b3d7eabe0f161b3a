"""`cca serve`: a model behind HTTP, until it is stopped."""

from dataclasses import replace
from typing import Annotated

import typer

from .options import Device, Encoder, Precision, PrecisionOption, load_encoder, stdout_kept_clean


def serve(
    model: Encoder,
    host: Annotated[
        str, typer.Option("--host", metavar="ADDRESS", help="Address to listen on; 0.0.0.0 is every network.")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option("--port", metavar="NUMBER", min=0, max=65535, help="Port to listen on; 0 is any free one.")
    ] = 8000,
    max_batch: Annotated[
        int, typer.Option("--max_batch", metavar="NUMBER", min=1, help="Most images in one pass of the model.")
    ] = 32,
    max_waiting: Annotated[
        int,
        typer.Option(
            "--max_waiting",
            metavar="NUMBER",
            min=1,
            help="Most images that are received and not answered yet; beyond this, the answer is 503.",
        ),
    ] = 256,
    max_body: Annotated[int, typer.Option("--max_body", metavar="BYTES", min=1, help="Largest request.")] = 20_000_000,
    max_pictures: Annotated[
        int | None,
        typer.Option(
            "--max_pictures",
            metavar="NUMBER",
            min=1,
            help="Most images in a request. Default: $CCA_MAX_PICTURES, or 32.",
        ),
    ] = None,
    max_bytes: Annotated[
        int | None,
        typer.Option(
            "--max_bytes", metavar="BYTES", min=1, help="Largest image file. Default: $CCA_MAX_BYTES, or 10,000,000."
        ),
    ] = None,
    max_pixels: Annotated[
        int | None,
        typer.Option(
            "--max_pixels",
            metavar="NUMBER",
            min=1,
            help="Most pixels in an image. Default: $CCA_MAX_PIXELS, or 25,000,000.",
        ),
    ] = None,
    allow_urls: Annotated[
        bool | None,
        typer.Option(
            "--allow_urls",
            help="Download images that a request names by http addresses, from public hosts only. Default: "
            "$CCA_ALLOW_URLS, or not.",
        ),
    ] = None,
    device: Device = None,
    precision: PrecisionOption = Precision.AUTO,
) -> None:
    """Serve a model over HTTP: images in, one embedding per attribute out.

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
        encoder = load_encoder(model, device, precision.value)
    serve_encoder(encoder, model, limits, settings)
