"""The Space as a repository: a folder with the index and all files that are not on the Hub yet."""

import importlib.metadata
import io
import sys
from collections.abc import Iterator
from dataclasses import replace
from os import PathLike
from pathlib import Path

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
from datasets import Dataset, Features
from datasets import Image as ImageFeature
from huggingface_hub import SpaceCard, SpaceCardData, try_to_load_from_cache
from PIL import Image

from cca_hf.models.images import load_image
from cca_hf.models.whole_files import check_new, staged
from cca_hf.search import AttributeIndex, CheckpointId
from cca_hf.search.images import IMAGE_REFERENCE, ImageFinder, is_elsewhere, reference
from cca_hf.search.mixtures import vectors_of
from cca_hf.search.schema import ITEM_ID

from .lookup import Lookup
from .page import TITLE

_INDEX, _MODEL, _PICTURES, _SPLIT = "catalogue.index", "model", "pictures", "train"
_LONGEST_SIDE = 512  # pixels of the images that are copied
_APP = '''"""Search images by attribute. Written by `cca demo --export`."""

import os
from pathlib import Path

from transformers import AutoModel

from cca_hf import AttributeIndex
from cca_hf.hub.space import Lookup, launch_space

os.chdir(Path(__file__).parent)  # the paths in the index are relative to this folder
model = AutoModel.from_pretrained({model!r}{revision}).eval()
index = AttributeIndex.open({index!r}, model)
launch_space(Lookup(model, index), title={title!r})
'''
_TEXT = """# {title}

Choose or upload an image. For each attribute ({attributes}), the page shows the nearest images and the attention of
the model on the query. The catalogue has {count:,} images, with embeddings by {model}. The method is
[conditional cross-attention](https://arxiv.org/abs/2307.13254), in the implementation of `cca_hf`: one embedding of an
image for each attribute.
"""


def export_space(lookup: Lookup, folder: str | PathLike[str], *, title: str = TITLE) -> Path:
    """Writes `app.py`, `requirements.txt`, `README.md` with the Space's metadata, and a copy of the index.

    A checkpoint on the Hub is referred to by its id and local revision; any other is saved to `model`. Images with a
    URL, or in a data set on the Hub, are referred to as well; other images are copied to `pictures` at a smaller size.
    If writing fails, the folder stays empty.

    Raises:
        FileExistsError: if the folder is not empty.
        UnreadableImageError: if an image cannot be read; names it.
    """
    target = Path(folder)
    check_new(target)
    model_name = lookup.model.config.name_or_path
    model_id = model_name if model_name and not Path(model_name).exists() else None
    with staged(target) as staging:
        if model_id is None:
            lookup.model.save_pretrained(staging / _MODEL)
        _copy_index(lookup.index, staging, model_id or _MODEL)
        # the commit in the local cache: a later one computes other embeddings, which the index would refuse
        config = None if model_id is None else try_to_load_from_cache(model_id, "config.json")
        revision = f", revision={Path(config).parent.name!r}" if isinstance(config, str) else ""
        app = _APP.format(model=model_id or _MODEL, revision=revision, index=_INDEX, title=title)
        (staging / "app.py").write_text(app, encoding="utf-8")
        (staging / "requirements.txt").write_text("cca_hf[space]\n", encoding="utf-8")
        (staging / "README.md").write_text(str(_card(lookup, title, model_id)), encoding="utf-8")
    return target


def _copy_index(index: AttributeIndex, folder: Path, model_name: str) -> None:
    made_by = CheckpointId(model_name, index.schema.checkpoint.fingerprint)
    with AttributeIndex.create_from_schema(folder / _INDEX, replace(index.schema, checkpoint=made_by)) as copy:
        for items in _with_images(index, folder / _PICTURES):
            vectors = [vectors_of(items, index.schema.vector_column(name)) for name in index.schema.attributes]
            item_ids = items.column(ITEM_ID).to_pylist()
            copy.add(item_ids, embeddings=np.stack(vectors, axis=1), columns=items.select(list(index.schema.columns)))
        copy.optimize()


def _with_images(index: AttributeIndex, folder: Path) -> Iterator[pa.Table]:
    """The items of the index; local images are copied to parquet files, and the items refer to these."""
    finder, rows = ImageFinder(), 0
    for place, items in enumerate(index.tables(embeddings=True)):
        texts, copies = items.column(IMAGE_REFERENCE).to_pylist(), []
        for row, text in enumerate(texts):
            if text is not None and not is_elsewhere(text):
                copies.append({"bytes": _small(load_image(finder.find(text))), "path": None})
                texts[row] = reference(_PICTURES, _SPLIT, rows)
                rows += 1
        if copies:
            folder.mkdir(exist_ok=True)
            images = Dataset.from_dict({"image": copies}, features=Features(image=ImageFeature()))
            images.to_parquet(folder / f"{_SPLIT}-{place:05}.parquet")
        yield items.set_column(
            items.column_names.index(IMAGE_REFERENCE), IMAGE_REFERENCE, pa.array(texts, pa.string())
        )


def _small(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    if max(image.size) > _LONGEST_SIDE:
        image.thumbnail((_LONGEST_SIDE, _LONGEST_SIDE), Image.Resampling.LANCZOS)
    image.save(buffer, "JPEG", quality=92, subsampling=0)
    return buffer.getvalue()


def _card(lookup: Lookup, title: str, model_id: str | None) -> SpaceCard:
    data = SpaceCardData(
        title=title,
        emoji="\N{LEFT-POINTING MAGNIFYING GLASS}",
        colorFrom="yellow",
        colorTo="purple",
        sdk="gradio",
        sdk_version=importlib.metadata.version("gradio"),
        python_version=f"{sys.version_info.major}.{sys.version_info.minor}",
        app_file="app.py",
        models=[model_id] if model_id else None,
        tags=["image-feature-extraction", "image-retrieval", "conditional-cross-attention"],
        short_description="Visual search by attribute",
    )
    text = _TEXT.format(
        title=title,
        attributes=", ".join(lookup.attributes),
        count=lookup.index.count(),
        model=f"[{model_id}](https://huggingface.co/{model_id})" if model_id else "the checkpoint in `model`",
    )
    return SpaceCard(f"---\n{data.to_yaml()}\n---\n\n{text}")
