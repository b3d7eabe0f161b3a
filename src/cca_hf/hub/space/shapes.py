"""The Space for whoever has neither data nor a checkpoint: drawn shapes, as `make demo` leaves them."""

from pathlib import Path

from ...models.modeling_cca import CCAModel
from ...search import AttributeIndex, NoIndexError
from ...search.sources import PictureSource
from ...training.shapes_run import draw_shapes, train_on_shapes

_SPLIT = "test"


def train_shapes(folder: Path) -> Path:
    """Draws and trains in `folder` what is not there yet, minutes on two cores; returns the checkpoint's folder."""
    checkpoint, shapes = folder / "cca", folder / "shapes"
    if not (checkpoint / "model.safetensors").is_file():
        if not (shapes / f"{_SPLIT}.parquet").is_file():
            draw_shapes(shapes)
        train_on_shapes(shapes, checkpoint)
    return checkpoint


def index_shapes(folder: Path, model: CCAModel) -> Path:
    """Indexes the drawn test pictures, unless this very model has done so; returns where."""
    store = folder / f"space-{model.fingerprint()[:12]}.index"
    checkpoint = str((folder / "cca").resolve())
    source = PictureSource.from_dataset(str(folder / "shapes"), model, checkpoint, split=_SPLIT)
    try:
        index = AttributeIndex.open(store, model, writable=True)
    except NoIndexError:
        index = AttributeIndex.create_from_schema(store, source.schema)
    with index:
        if index.count() < len(source):  # a new one, or one that was interrupted: what is there is written over
            for item_ids, columns, embed in source.batches():
                index.add(item_ids, embeddings=embed(range(len(item_ids))), columns=columns)
            index.optimize()
    return store
