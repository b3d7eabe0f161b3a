"""A split as its user sees it: `data["train"][0]["image"]` is a PIL image.

The package itself uses `AttributeDataset.splits`, whose images are encoded: the readers of the models decode them, in
threads and with faster decoders than PIL's.
"""

from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import PIL.Image
from datasets import Column, Dataset, Image

from cca_hf.models.encoding import as_sequence
from cca_hf.models.images import ImageInput, load_image

from .image_column import IMAGE_COLUMN

_decoded: WeakKeyDictionary[Dataset, Dataset] = WeakKeyDictionary()


class DecodedImage(Image):
    """Decodes an image on access as the models do: upright, RGB, and with the checks of files and addresses.

    `datasets` writes it into files as a plain `Image`.
    """

    def decode_example(self, value: Any, token_per_repo_id: dict[str, Any] | None = None) -> PIL.Image.Image:
        """
        Raises:
            UnreadableImageError: if the image cannot be read; names it.
        """
        return load_image(value)


def with_decoded_images(dataset: Dataset) -> Dataset:
    """The same rows with decoded images; the same object for each call with the same data set."""
    if not isinstance(dataset.features.get(IMAGE_COLUMN), Image):
        return dataset
    if dataset not in _decoded:
        _decoded[dataset] = dataset.cast_column(IMAGE_COLUMN, DecodedImage(mode="RGB"))
    return _decoded[dataset]


def with_encoded_images(dataset: Dataset) -> Dataset:
    """The same rows with encoded images; the data set itself if it has these."""
    feature = dataset.features.get(IMAGE_COLUMN)
    if not isinstance(feature, Image) or not feature.decode:
        return dataset
    return dataset.cast_column(IMAGE_COLUMN, Image(decode=False))


@as_sequence.register
def _(images: Column) -> Sequence[ImageInput]:
    """`encode(data["test"]["image"])` reads the encoded images."""
    source, name = images.source, images.column_name
    if not isinstance(source, Dataset) or not isinstance(images.features, DecodedImage) or source.format["type"]:
        return images
    return source.cast_column(name, Image(decode=False))[name]
