"""`cca demo`: a page in the browser to search with pictures, here or as a Space of the Hub."""

from pathlib import Path
from typing import Annotated

import typer

from .options import load_model, stdout_kept_clean


def demo(
    store: Annotated[
        str | None,
        typer.Option(
            "--store", metavar="PLACE", help="The index, as 'cca index' was given it. Default: drawn shapes."
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", metavar="ID_OR_FOLDER", help="Checkpoint. Default: where the index's own was."),
    ] = None,
    folder: Annotated[
        Path,
        typer.Option("--folder", metavar="FOLDER", help="Without --store: where the drawn shapes are, or are to be."),
    ] = Path("demo"),
    title: Annotated[str | None, typer.Option("--title", metavar="TEXT", help="What stands above the page.")] = None,
    export: Annotated[
        Path | None,
        typer.Option("--export", metavar="FOLDER", help="Write a repository for a Space, and open nothing."),
    ] = None,
    host: Annotated[
        str | None,
        typer.Option("--host", metavar="ADDRESS", help="Who may look: 0.0.0.0 is everybody. Default: this machine."),
    ] = None,
    port: Annotated[
        int | None, typer.Option("--port", metavar="NUMBER", help="Default: the first free one from 7860.")
    ] = None,
    open_browser: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
    device: Annotated[
        str | None,
        typer.Option("--device", metavar="NAME", help="cpu, cuda, mps, ... Default: the accelerator there is."),
    ] = None,
) -> None:
    """Open a page: choose or upload a picture, see what is like it under each attribute, and where each looks.

    Without an index it shows drawn shapes, with the model of 'make demo'; where that is not there it is trained first,
    in some minutes on two cores.

    \b
    Examples:
      cca demo
      cca demo --store shoes.index --open
      cca demo --store shoes.index --model me/cca-shoes --export shoes-space
    """
    if model is not None and store is None:
        raise typer.BadParameter("--model needs the --store that it made: 'cca index' makes one")
    if export is not None and (host is not None or port is not None or open_browser):
        raise typer.BadParameter("--export writes a folder and opens nothing: --host, --port and --open go without it")
    with stdout_kept_clean():
        from cca_hf.hub.space import Lookup, export_space, launch_space
        from cca_hf.hub.space.page import TITLE
        from cca_hf.hub.space.shapes import index_shapes, train_shapes
        from cca_hf.search import AttributeIndex
        from cca_hf.training.process import prepare_process

        if store is None:
            prepare_process()
            cca = load_model(str(train_shapes(folder)), device)
            store = str(index_shapes(folder, cca))
        else:
            if model is None:
                with AttributeIndex.open(store) as made:
                    model = made.schema.checkpoint.name
                if not model:
                    raise ValueError(f"the index at {store} does not say where its model is: name it with --model")
            cca = load_model(model, device)
        with AttributeIndex.open(store, cca) as index:
            lookup, heading = Lookup(cca, index), title or TITLE
            if export is None:
                launch_space(lookup, title=heading, host=host, port=port, open_browser=open_browser)
                return
            written = export_space(lookup, export, title=heading)
    print(written)
    print(f"next: hf upload ACCOUNT/NAME {written} . --repo-type space")
