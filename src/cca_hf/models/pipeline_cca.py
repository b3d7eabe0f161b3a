"""`pipeline("image-feature-extraction", ...)` under conditions given by name; it accepts no unknown keyword."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import BatchFeature, Pipeline

from .configuration_images import one_of
from .images import ImageInput, ImageReader


class CCAPipeline(Pipeline):
    """Embed an image, or a list of images, under attributes given by name.

    Args of a call:
        inputs: a path, URL, PIL image or array, or a list of these.
        attribute: one name gives one vector, a list of floats; a list of names gives a dict of vectors by name; the
            default is a dict of all attributes. For a list of images, the result is a list of these.
        attributes: one name or a list of names gives a dict of vectors by name.
        return_tensors: tensors instead of lists of floats.
        batch_size, num_workers: as in every pipeline.

    Raises:
        ValueError: for an unknown attribute, or both `attribute` and `attributes`.
        TypeError: for an unknown parameter.

    Example:

    ```python
    >>> from transformers import pipeline

    >>> extract = pipeline("image-feature-extraction", model="me/cca-shoes", trust_remote_code=True)
    >>> vector = extract("shoe.jpg", attribute="colour")  # list of floats, L2-normalised
    >>> vectors = extract("shoe.jpg", attributes=["colour", "closure"])  # {"colour": [...], "closure": [...]}
    ```
    """

    _load_processor = False
    _load_image_processor = True
    _load_feature_extractor = False
    _load_tokenizer = False

    def _sanitize_parameters(
        self,
        attribute: str | Sequence[str] | None = None,
        attributes: str | Sequence[str] | None = None,
        return_tensors: bool | None = None,
        **unknown: Any,
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        if unknown:
            raise TypeError(
                f"this pipeline has no parameter {', '.join(map(repr, unknown))}. It knows `attribute` (one of "
                f"{self.model.config.attributes}, or a list of them), `attributes` and `return_tensors`."
            )
        forward: dict[str, Any] = {}
        postprocess: dict[str, Any] = {}
        names = one_of(attribute, attributes)
        if names is not None:
            forward["attribute_ids"] = self.model.config.attribute_ids(names)
            postprocess["names"] = [names] if isinstance(names, str) else list(names)
            postprocess["alone"] = isinstance(attribute, str)
        if return_tensors is not None:
            postprocess["return_tensors"] = return_tensors
        return {}, forward, postprocess

    def preprocess(self, image: ImageInput) -> BatchFeature:
        reader = ImageReader(self.image_processor)  # as `encode`, for the same embeddings
        pixel_values = reader.scale(reader.read(image)[None], torch.device("cpu"), self.dtype)
        return BatchFeature({"pixel_values": pixel_values})

    def _forward(
        self, model_inputs: dict[str, torch.Tensor], attribute_ids: list[int] | None = None
    ) -> dict[str, torch.Tensor]:
        pixel_values = model_inputs["pixel_values"]
        ids = self.model.config.attribute_ids() if attribute_ids is None else attribute_ids
        conditions = torch.tensor(ids, device=pixel_values.device).expand(len(pixel_values), -1)
        return {"embeddings": self.model(pixel_values, attribute_ids=conditions).embeddings}

    def postprocess(
        self,
        model_outputs: dict[str, torch.Tensor],
        names: list[str] | None = None,
        alone: bool = False,
        return_tensors: bool = False,
    ) -> Any:
        vectors = model_outputs["embeddings"][0].float()  # (k, dim)
        rows = list(vectors) if return_tensors else vectors.tolist()
        if alone:
            return rows[0]
        return dict(zip(names or self.model.config.attributes, rows, strict=True))
