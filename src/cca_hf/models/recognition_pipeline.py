"""`pipeline("image-classification", ...)` for a model that recognises attributes."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import BatchFeature, Pipeline

from .attribute_recognition import predictions_of, value_probabilities
from .images import ImageInput, ImageReader


class AttributeRecognitionPipeline(Pipeline):
    """Recognise the values of attributes in an image, or in a list of images.

    Args of a call:
        inputs: a path, URL, PIL image or array, or a list of these.
        attributes: one name or several; all attributes by default.
        batch_size, num_workers: as in every pipeline.

    Returns:
        A list of dictionaries with `label` (such as "hair: long"), `score`, `attribute` and `value`, in the order of
        the attributes; for a list of images, a list of these. Unknown values are left out.

    Raises:
        ValueError: for an unknown attribute; the message names the closest one.
        TypeError: for an unknown parameter.

    Example:

    ```python
    >>> from transformers import pipeline

    >>> recognise = pipeline("image-classification", model="me/clear-persons", trust_remote_code=True)
    >>> recognise("person.jpg", attributes="hair")
    [{'label': 'hair: long', 'score': 0.93, 'attribute': 'hair', 'value': 'long'}]
    ```
    """

    _load_processor = False
    _load_image_processor = True
    _load_feature_extractor = False
    _load_tokenizer = False

    def _sanitize_parameters(
        self, attributes: str | Sequence[str] | None = None, **unknown: Any
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        if unknown:
            names = ", ".join(map(repr, unknown))
            raise TypeError(f"this pipeline has no parameter {names}. Its parameter is `attributes`")
        config = self.model.config
        return {}, {}, {"names": [config.attributes[index] for index in config.attribute_ids(attributes)]}

    def preprocess(self, image: ImageInput) -> BatchFeature:
        reader = ImageReader(self.image_processor)  # as `predict`, for the same probabilities
        return BatchFeature({"pixel_values": reader.scale(reader.read(image)[None], torch.device("cpu"), self.dtype)})

    def _forward(self, model_inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {"logits": self.model(model_inputs["pixel_values"]).logits}

    def postprocess(self, model_outputs: dict[str, torch.Tensor], names: Sequence[str]) -> list[dict[str, Any]]:
        config = self.model.config
        (predictions,) = predictions_of(config, value_probabilities(config, model_outputs["logits"]), names)
        found: list[dict[str, Any]] = []
        for name, prediction in predictions.items():
            values = prediction.value if isinstance(prediction.value, list) else [prediction.value]
            found += [
                {
                    "label": f"{name}: {value}",
                    "score": prediction.probabilities[value],
                    "attribute": name,
                    "value": value,
                }
                for value in values
                if value is not None
            ]
        return found


# for the configuration of a model
DESCRIPTION = {
    "impl": "recognition_pipeline.AttributeRecognitionPipeline",
    "pt": ["AutoModelForImageClassification"],
    "type": "image",
}
