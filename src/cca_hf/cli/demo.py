"""`cca demo`: a page in the browser for searching with images, on this machine or as a Space on the Hub."""

from pathlib import Path

from . import options
from .options import UsageError, model_of_index, option, stdout_kept_clean, switch


def demo(
    store: str | None = option(None, "store", "PLACE", "Index, as in 'cca index'. Default: drawn shapes."),
    model: str | None = options.MODEL_OF_INDEX,
    folder: Path = option(Path("demo"), "folder", "FOLDER", "Without --store: folder for the shapes and their model."),
    title: str | None = option(None, "title", "TEXT", "Title of the page."),
    export: Path | None = option(
        None, "export", "FOLDER", "Write a repository for a Space instead of opening a page."
    ),
    host: str | None = option(
        None, "host", "ADDRESS", "Address to listen on. 0.0.0.0: all networks. Default: this machine only."
    ),
    port: int | None = option(None, "port", "NUMBER", "Port to listen on. Default: the first free port from 7860."),
    open_browser: bool = switch("open", "Open the page in a browser."),
    device: str | None = options.DEVICE,
) -> None:
    """Serve a page that shows the images most similar to a chosen or uploaded image, under each attribute.

    Without an index, the page shows drawn shapes and the model of 'make demo'. If this model does not exist yet, it is
    trained first, which takes some minutes on two cores.

    
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
