"""Recognition of attributes on the embeddings of a CCA model: a linear classifier of its values for each attribute.

The rest is as in `attribute_recognition.py`. The embeddings stay those of the CCA model, `model.cca`, if its weights
are frozen; a checkpoint of this model also loads as a [`CCAModel`].
"""

import copy
from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any, Self

import torch
from torch import nn
from transformers import initialization as init

from .attribute_recognition import (
    AttributeRecogniser,
    AttributeRecognitionOutput,
    check_recognisable,
    recognition_loss,
)
from .configuration_cca import CCAConfig
from .modeling_cca import CCAModel
from .modeling_images import ImagePreTrainedModel
from .recognition_pipeline import DESCRIPTION


class LogitsOfAttributes(nn.Module):
    """The logits of each attribute, linear in its embedding, as one batched product."""

    places: torch.Tensor  # (num_logits,): a row of the most logits for each attribute, without the rest of the row

    def __init__(self, counts: Sequence[int], dim: int):
        super().__init__()
        self.counts = list(counts)
        self.scale = dim**0.5  # the numbers of an L2-normalised embedding are about 1 / sqrt(dim)
        self.weight = nn.Parameter(torch.empty(len(self.counts), max(self.counts), dim))
        self.bias = nn.Parameter(torch.empty(sum(self.counts)))
        self.register_buffer("places", self._places(), persistent=False)

    def _places(self) -> torch.Tensor:
        most = max(self.counts)
        return torch.tensor([row * most + place for row, count in enumerate(self.counts) for place in range(count)])

    def init_weights(self) -> None:
        """As PyTorch initialises linear layers."""
        bound = self.weight.shape[-1] ** -0.5
        init.uniform_(self.weight, -bound, bound)
        init.uniform_(self.bias, -bound, bound)
        init.copy_(self.places, self._places())

    def forward(self, embeddings: torch.Tensor) -> torch.Tensor:
        """Embeddings (batch, attributes, dim) -> (batch, num_logits)"""
        scores = torch.einsum("bad,amd->bam", embeddings * self.scale, self.weight)
        return scores.flatten(1)[:, self.places] + self.bias


class CCAForAttributeRecognition(ImagePreTrainedModel, AttributeRecogniser):
    """A [`CCAModel`] with a linear classifier for each attribute: `model.cca` retrieves, and `predict` recognises.

    Example:

    ```python
    >>> from cca_hf.models.modeling_cca_recognition import CCAForAttributeRecognition

    >>> model = CCAForAttributeRecognition.from_pretrained("me/shoes-recognised")
    >>> model.predict("shoe.jpg")[0]["colour"].value
    'red'
    >>> model.cca.encode("shoe.jpg", attribute="colour").shape
    (768,)
    ```
    """

    config_class = CCAConfig
    config: CCAConfig
    base_model_prefix = "cca"
    _no_split_modules = CCAModel._no_split_modules
    modules_without_effect = frozenset({"classifiers"})

    display_name = "CCA + head"
    method = "a linear classifier on conditional cross-attention (CCA)"
    paper_url = CCAModel.paper_url
    sentence_transformers_class = CCAModel.sentence_transformers_class

    def __init__(self, config: CCAConfig):
        super().__init__(config)
        check_recognisable(config)
        self.cca = CCAModel(config)
        counts = [len(config.logit_names(name)) for name in config.attributes]
        self.classifiers = LogitsOfAttributes(counts, self.cca.get_embedding_dimension())
        self.post_init()

    @classmethod
    def usage_example(cls, model_id: str, config: CCAConfig) -> str:
        return CCAModel.usage_example(model_id, config)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, LogitsOfAttributes):
            module.init_weights()

    @classmethod
    def from_cca(
        cls,
        cca: str | PathLike[str] | CCAModel,
        *,
        attribute_values: Mapping[str, Sequence[str]] | None = None,
        attribute_kinds: Mapping[str, str] | None = None,
        **kwargs: Any,
    ) -> Self:
        """A new head on a trained CCA model, whose weights are copied.

        Args:
            cca: a model, a folder, or a model id on the Hub.
            attribute_values: value names by attribute name; by default those of the CCA model.
            attribute_kinds: `"exclusive"` (the default), `"multiple"` or `"binary"`, by attribute name.
            kwargs: `revision`, `token`, ... as in `from_pretrained`, if `cca` is a name.

        Raises:
            ValueError: for a model of another type, an attribute without values, or kinds that do not fit.
        """
        trained = cca if isinstance(cca, CCAModel) else CCAModel.from_pretrained(cca, **kwargs)
        settings = trained.config.to_dict() | {"attribute_kinds": dict(attribute_kinds or {})}
        if attribute_values is not None:
            settings["attribute_values"] = {name: list(values) for name, values in attribute_values.items()}
        config = cls.config_class.from_dict(settings)
        if trained.config._attn_implementation == "eager":  # any other one may not exist for the backbone
            config._attn_implementation = "eager"
        model = cls(config).to(trained.dtype)
        model.cca.load_state_dict(trained.state_dict())
        model.image_processor = copy.deepcopy(trained.image_processor)
        return model.to(trained.device).eval()

    def get_input_embeddings(self) -> nn.Module:
        """Those of the CCA model."""
        return self.cca.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.cca.set_input_embeddings(value)

    def save_pretrained(self, save_directory: str | PathLike[str], *args: Any, **kwargs: Any) -> None:
        """As [`ImagePreTrainedModel.save_pretrained`]; the checkpoint can also be loaded as an `AutoModel`."""
        auto_map = {
            "AutoConfig": "configuration_cca.CCAConfig",
            "AutoModel": "modeling_cca.CCAModel",
            "AutoModelForImageClassification": "modeling_cca_recognition.CCAForAttributeRecognition",
        }
        self.config.auto_map = auto_map
        of_cca = {"impl": "pipeline_cca.CCAPipeline", "pt": ["AutoModel"], "type": "image"}
        pipelines = {"image-feature-extraction": of_cca, "image-classification": dict(DESCRIPTION)}
        self.config.custom_pipelines = pipelines
        super().save_pretrained(save_directory, *args, **kwargs)

    def forward(
        self,
        pixel_values: torch.Tensor,
        labels: torch.Tensor | None = None,
        return_dict: bool | None = None,
    ) -> AttributeRecognitionOutput | tuple[torch.Tensor, ...]:
        """
        Args:
            pixel_values: (batch, channels, height, width), from the image processor.
            labels: (batch, num_logits) of 1, 0, and -1 where an image is not labelled, see [`encode_labels`]; adds the
                loss.
            return_dict: `False` for a plain tuple.

        Raises:
            ValueError: for labels of another shape.
        """
        embeddings = self.cca(pixel_values, return_dict=True).embeddings  # (B, A, dim)
        logits = self.classifiers(embeddings)
        output = AttributeRecognitionOutput(
            loss=None if labels is None else recognition_loss(self.config, logits, labels),
            logits=logits,
            features=embeddings,
        )
        if return_dict is None:
            return_dict = self.config.return_dict
        return output if return_dict else output.to_tuple()


CCAForAttributeRecognition.register_for_auto_class("AutoModelForImageClassification")
