"""What a model card says about a model itself: its method, backbone and task, and the code that uses it."""

import json
from dataclasses import dataclass
from urllib.parse import quote

from transformers import PreTrainedConfig, PreTrainedModel

from cca_hf.evaluation.text_table import markdown_text
from cca_hf.models.configuration_cca import CCAConfig
from cca_hf.models.configuration_images import AttributeConfig, ImageModelConfig, is_hub_id, public_name
from cca_hf.models.modeling_images import ImagePreTrainedModel
from cca_hf.models.whole_checkpoints import is_classifier, saved_class_of

_ATTRIBUTE_TAGS = ("image-retrieval", "conditional-embeddings", "visual-search", "cca")
_BACKBONE = "backbone_config"  # the field of a configuration that contains that of a backbone


@dataclass(frozen=True)
class ModelDescription:
    """A model in the words of its card.

    Args:
        method: after "Method: ".
        backbone: after "Backbone: "; None for a model without one.
        base_model: the id of the backbone, if it is on the Hub.
        task: the pipeline of transformers; None leaves the choice to the Hub.
        usage: Markdown with code.
        classes: the names of the classes of a classifier.
    """

    method: str
    paper_url: str | None
    backbone: str | None
    base_model: str | None
    task: str | None
    tags: tuple[str, ...]
    usage: str
    classes: tuple[str, ...] = ()


def describe_model(config: PreTrainedConfig, name: str) -> ModelDescription:
    """Describe the model of a checkpoint, which has `name` on the Hub.

    Raises:
        ValueError: for a model that neither embeds nor classifies images.
    """
    model_class = saved_class_of(config)
    if issubclass(model_class, ImagePreTrainedModel):
        return _describe_own(model_class, config, name)
    return _describe_plain(model_class, config, name)


def _describe_own(model_class: type[ImagePreTrainedModel], config: PreTrainedConfig, name: str) -> ModelDescription:
    one_space = type(config) is CCAConfig and config.condition_embedding == "none"
    pipelines = config.to_dict().get("custom_pipelines")
    backbone = config.backbone_name
    return ModelDescription(
        method="a single space for all attributes (the baseline of CCA)" if one_space else model_class.method,
        paper_url=model_class.paper_url,
        backbone=_backbone(config),
        base_model=backbone if backbone and is_hub_id(backbone) else None,
        task=next(iter(pipelines)) if pipelines else None,
        tags=_ATTRIBUTE_TAGS if isinstance(config, AttributeConfig) else (),
        usage=model_class.usage_example(name, config),
    )


def _describe_plain(model_class: type[PreTrainedModel], config: PreTrainedConfig, name: str) -> ModelDescription:
    """A model without attributes: of transformers, or a family of this package with the same interface."""
    has_code = bool(config.to_dict().get("auto_map"))
    backbone = vars(config)[_BACKBONE] if _BACKBONE in type(config).sub_configs else None
    origin = None if backbone is None else backbone.name_or_path
    described = None
    if backbone is not None:
        described = link_to(public_name(origin), on_hub=is_hub_id(origin)) if origin else f"`{backbone.model_type}`"
    classifies = is_classifier(model_class, config)
    kind = "a classifier of images" if classifies else "one embedding of an image"
    task = "image-classification" if classifies else "image-feature-extraction"
    return ModelDescription(
        method=f"{kind}, by `{model_class.__name__}`",
        paper_url=None,
        backbone=described,
        base_model=origin if origin and is_hub_id(origin) else None,
        task=task,
        tags=(task,),
        usage=_classify_example(name, has_code) if classifies else _embed_example(name, has_code),
        classes=tuple(map(str, config.id2label.values())) if classifies else (),
    )


def _backbone(config: ImageModelConfig) -> str:
    if config.backbone_name is None:
        return f"a network of type `{config.backbone_config.model_type}`, trained from scratch"
    return link_to(public_name(config.backbone_name), on_hub=is_hub_id(config.backbone_name))


def link_to(name: str, *, on_hub: bool, kind: str = "") -> str:
    """A name in Markdown, with a link if it is an id on the Hub; `kind` is "datasets/" for a data set."""
    return f"[{markdown_text(name)}](https://huggingface.co/{kind}{quote(name)})" if on_hub else markdown_text(name)


def _classify_example(name: str, has_code: bool) -> str:
    code = ", trust_remote_code=True" if has_code else ""
    return f"""```python
from transformers import pipeline

classify = pipeline("image-classification", model={json.dumps(name)}{code})
print(classify("image.jpg"))  # the most probable classes, with their probabilities
```
"""


def _embed_example(name: str, has_code: bool) -> str:
    code = ", trust_remote_code=True" if has_code else ""
    return f"""```python
from cca_hf import ImageEmbedder

embedder = ImageEmbedder.from_pretrained({json.dumps(name)})
embeddings = embedder.encode(["image.jpg", "other.jpg"])  # one row for each image, L2-normalised
print(embeddings @ embeddings.T)  # the similarity of each image to each image
```
The package `cca_hf` also makes an index of the embeddings, and searches it (`cca index`, `cca search`). With
transformers alone:
```python
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel

image_processor = AutoImageProcessor.from_pretrained({json.dumps(name)})
model = AutoModel.from_pretrained({json.dumps(name)}{code}).eval()
pixels = image_processor(Image.open("image.jpg").convert("RGB"), return_tensors="pt")
with torch.inference_mode():
    features = model(**pixels).pooler_output
```
"""
