"""The Space for whoever has neither data nor a checkpoint: drawn shapes, as `make demo` leaves them."""

from pathlib import Path

from cca_hf.models.modeling_cca import CCAModel
from cca_hf.recipes.shapes import draw_shapes, train_on_shapes
from cca_hf.search.filling import fill_index
from cca_hf.search.sources import ImageSource

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
    """Indexes those of the drawn test pictures that this very model has not yet; returns where."""
    store = folder / f"space-{model.fingerprint()[:12]}.index"
    checkpoint = str((folder / "cca").resolve())
    source = ImageSource.from_dataset(str(folder / "shapes"), model, checkpoint, split=_SPLIT)
    fill_index(str(store), source, only_new=True)
    return store
