"""The commands of `cca` that go on until they are stopped: a model for others to ask."""

from dataclasses import replace
from typing import Annotated, Any

import typer

from .options import Precision, load_encoder, stdout_kept_clean


def serve(
    model: Annotated[
        str,
        typer.Option("--model", metavar="ID_OR_FOLDER", help="Checkpoint on the Hub or in a folder, exported or not."),
    ],
    host: Annotated[
        str, typer.Option("--host", metavar="ADDRESS", help="To listen on; 0.0.0.0 for all of this machine's.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", metavar="NUMBER", min=0, max=65535, help="0: any free one.")] = 8000,
    max_batch: Annotated[
        int, typer.Option("--max_batch", metavar="NUMBER", min=1, help="Pictures a pass, at most.")
    ] = 32,
    max_waiting: Annotated[
        int,
        typer.Option(
            "--max_waiting", metavar="NUMBER", min=1, help="Pictures taken in and not answered yet; beyond, 503."
        ),
    ] = 256,
    max_body: Annotated[
        int, typer.Option("--max_body", metavar="BYTES", min=1, help="Of a request, at most.")
    ] = 20_000_000,
    max_pictures: Annotated[
        int | None,
        typer.Option(
            "--max_pictures", metavar="NUMBER", min=1, help="In a request. Default: $CCA_MAX_PICTURES, or 32."
        ),
    ] = None,
    max_bytes: Annotated[
        int | None,
        typer.Option(
            "--max_bytes", metavar="BYTES", min=1, help="Of a picture's file. Default: $CCA_MAX_BYTES, or 10,000,000."
        ),
    ] = None,
    max_pixels: Annotated[
        int | None,
        typer.Option(
            "--max_pixels", metavar="NUMBER", min=1, help="Of a picture. Default: $CCA_MAX_PIXELS, or 25,000,000."
        ),
    ] = None,
    allow_urls: Annotated[
        bool | None,
        typer.Option(
            "--allow_urls",
            help="Fetch pictures that are named by http addresses, from public hosts only. Default: $CCA_ALLOW_URLS, "
            "or not.",
        ),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option("--device", metavar="NAME", help="cpu, cuda, mps, ... Default: the accelerator there is."),
    ] = None,
    precision: Annotated[
        Precision, typer.Option("--precision", help="The model computes in it. auto: as it was saved.")
    ] = Precision.AUTO,
) -> None:
    """Serve a model over HTTP: pictures in, one embedding for each attribute out.

    POST / takes a picture, or JSON as the Hub's Inference Endpoints do; GET /health and /metrics are for those who
    watch. Requests that come at the same time are embedded together. Needs "cca_hf[serve]"; see docs/serving.md.

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

        given: dict[str, Any] = {
            "max_pictures": max_pictures,
            "max_bytes": max_bytes,
            "max_pixels": max_pixels,
            "allow_urls": allow_urls,
        }
        limits = replace(
            Limits.from_environment(), **{name: value for name, value in given.items() if value is not None}
        )
        settings = ServerSettings(host, port, max_batch, max_waiting, max_body)
        encoder = load_encoder(model, device, precision.value)
    serve_encoder(encoder, model, limits, settings)
