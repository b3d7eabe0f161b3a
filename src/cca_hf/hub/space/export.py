"""The Space as a repository: a folder with the index and all files that are not on the Hub yet."""

import importlib.metadata
import io
import shutil
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

from cca_hf.evaluation.text_table import markdown_text
from cca_hf.models.configuration_images import is_hub_id
from cca_hf.models.images import load_image
from cca_hf.models.whole_files import check_new, staged
from cca_hf.search import AttributeIndex, CheckpointId
from cca_hf.search.images import IMAGE_REFERENCE, ImageFinder, is_elsewhere, reference
from cca_hf.search.schema import ITEM_ID, vectors_of

from .lookup import Lookup
from .page import default_title

_INDEX, _MODEL, _PICTURES, _SPLIT = "catalogue.index", "model", "pictures", "train"
_LONGEST_SIDE = 512  # pixels of the images that are copied
_PACKAGE = Path(__file__).resolve().parents[2]


def export_space(lookup: Lookup, folder: str | PathLike[str], *, title: str | None = None) -> Path:
    """Writes `app.py`, `requirements.txt`, `README.md` with the Space's metadata, and copies of the index and of this
    package: no package index needs to have it, and the Space runs the code that was tried here.

    A checkpoint on the Hub is referred to by its id and local revision; any other is saved to `model`. Images with a
    URL, or in a data set on the Hub, are referred to as well; other images are copied to `pictures` at a smaller size.
    If writing fails, the folder stays empty.

    Raises:
        FileExistsError: if the folder is not empty.
        UnreadableImageError: if an image cannot be read; names it.
    """
    target = Path(folder)
    check_new(target)
    title = title or default_title(lookup)
    model_name = lookup.model.config.name_or_path
    model_id = model_name if is_hub_id(model_name) else None
    with staged(target) as staging:
        if model_id is None:
            lookup.model.save_pretrained(staging / _MODEL)
        _copy_index(lookup.index, staging, model_id or _MODEL)
        # the commit in the local cache: a later one computes other embeddings, which the index would refuse
        config = None if model_id is None else try_to_load_from_cache(model_id, "config.json")
        revision = f", revision={Path(config).parent.name!r}" if isinstance(config, str) else ""
        template = Path(__file__).with_name("app_template.txt").read_text(encoding="utf-8")
        app = template.format(model=model_id or _MODEL, revision=revision, index=_INDEX, title=title)
        (staging / "app.py").write_text(app, encoding="utf-8")
        (staging / "requirements.txt").write_text("".join(f"{each}\n" for each in _requirements()), encoding="utf-8")
        shutil.copytree(_PACKAGE, staging / _PACKAGE.name, ignore=shutil.ignore_patterns("__pycache__", "docs"))
        (staging / "README.md").write_text(f"{_card(lookup, title, model_id)}\n", encoding="utf-8")
    return target


def _requirements() -> list[str]:
    """The dependencies of the package, of its index and of its page, as its metadata declares them."""
    declared = [text.partition(";") for text in importlib.metadata.requires("cca_hf") or ()]
    wanted = ("", ' extra == "search"', ' extra == "space"')
    return [name.strip() for name, _, marker in declared if marker in wanted and not name.startswith("cca_hf")]


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
        place_of_references = items.column_names.index(IMAGE_REFERENCE)
        yield items.set_column(place_of_references, IMAGE_REFERENCE, pa.array(texts, pa.string()))


def _small(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    if max(image.size) > _LONGEST_SIDE:
        image.thumbnail((_LONGEST_SIDE, _LONGEST_SIDE), Image.Resampling.LANCZOS)
    image.save(buffer, "JPEG", quality=92, subsampling=0)
    return buffer.getvalue()


def _card(lookup: Lookup, title: str, model_id: str | None) -> SpaceCard:
    methods = ["conditional-cross-attention"] if lookup.has_attributes else []
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
        tags=["image-feature-extraction", "image-retrieval", *methods],
        short_description="Visual search by attribute" if lookup.has_attributes else "Visual search",
    )
    model = f"[{model_id}](https://huggingface.co/{model_id})" if model_id else "the checkpoint in `model`"
    template = str(Path(__file__).with_name("card_template.md"))
    names = ", ".join(map(markdown_text, lookup.attributes)) if lookup.has_attributes else None
    count = lookup.index.count()
    return SpaceCard.from_template(
        data, template, title=markdown_text(title), attributes=names, count=count, model=model
    )
