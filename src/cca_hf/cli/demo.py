"""`cca demo`: a page in the browser for searching with images, on this machine or as a Space on the Hub."""

from pathlib import Path
from typing import Annotated

from .options import Device, OptionalModel, UsageError, model_of_index, option, stdout_kept_clean, switch


def demo(
    store: Annotated[str | None, option("store", "PLACE", "Index, as in 'cca index'. Default: drawn shapes.")] = None,
    model: OptionalModel = None,
    folder: Annotated[
        Path, option("folder", "FOLDER", "Without --store: folder for the shapes and their model.")
    ] = Path("demo"),
    title: Annotated[str | None, option("title", "TEXT", "Title of the page.")] = None,
    export: Annotated[
        Path | None, option("export", "FOLDER", "Write a repository for a Space instead of opening a page.")
    ] = None,
    host: Annotated[
        str | None,
        option("host", "ADDRESS", "Address to listen on. 0.0.0.0: all networks. Default: this machine only."),
    ] = None,
    port: Annotated[
        int | None, option("port", "NUMBER", "Port to listen on. Default: the first free port from 7860.")
    ] = None,
    open_browser: Annotated[bool, switch("open", "Open the page in a browser.")] = False,
    device: Device = None,
) -> None:
    """Serve a page that shows the images most similar to a chosen or uploaded image, under each attribute.

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
    with stdout_kept_clean():
        from cca_hf.hub.space import Lookup, export_space, launch_space
        from cca_hf.hub.space.page import TITLE
        from cca_hf.hub.space.shapes import index_shapes, train_shapes
        from cca_hf.models.loading import load_model
        from cca_hf.search import AttributeIndex
        from cca_hf.training.process import prepare_process

        if store is None:
            prepare_process()
            cca = load_model(str(train_shapes(folder)), device)
            store = str(index_shapes(folder, cca))
        else:
            cca = load_model(model or model_of_index(store), device)
        with AttributeIndex.open(store, cca) as index:
            lookup, heading = Lookup(cca, index), title or TITLE
            if export is None:
                launch_space(lookup, title=heading, host=host, port=port, open_browser=open_browser)
                return
            written = export_space(lookup, export, title=heading)
    print(written)
    print(f"next: hf upload ACCOUNT/NAME {written} . --repo-type space")
