"""The Space for users without data or checkpoint: generated shapes, as `make demo` writes them."""

from pathlib import Path

from cca_hf.models.modeling_cca import CCAModel
from cca_hf.recipes.shapes import draw_shapes, train_on_shapes
from cca_hf.search.sources import ImageSource, fill_index

_SPLIT = "test"


def train_shapes(folder: Path) -> Path:
    """Generates shapes in `folder` and trains on them if that is not done yet; returns the folder of the checkpoint.

    It takes some minutes on two cores.
    """
    checkpoint, shapes = folder / "cca", folder / "shapes"
    if not (checkpoint / "model.safetensors").is_file():
        if not (shapes / f"{_SPLIT}.parquet").is_file():
            draw_shapes(shapes)
        train_on_shapes(shapes, checkpoint)
    return checkpoint


def index_shapes(folder: Path, model: CCAModel) -> Path:
    """Adds the test images to the index of this model unless it contains them; returns the path of the index."""
    store = folder / f"space-{model.fingerprint()[:12]}.index"
    checkpoint = str((folder / "cca").resolve())
    source = ImageSource.from_dataset(str(folder / "shapes"), model, checkpoint, split=_SPLIT)
    fill_index(str(store), source, only_new=True)
    return store
