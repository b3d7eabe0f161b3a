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


def describe_model(config: PreTrainedConfig, name: str, backbone: str | None = None) -> ModelDescription:
    """Describe the model of a checkpoint, which has `name` on the Hub.

    Args:
        backbone: the model that the training started from, for a model whose configuration does not name it.

    Raises:
        ValueError: for a model that neither embeds nor classifies images.
    """
    model_class = saved_class_of(config)
    if issubclass(model_class, ImagePreTrainedModel):
        return _describe_own(model_class, config, name)
    return _describe_plain(model_class, config, name, backbone)


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


def _describe_plain(
    model_class: type[PreTrainedModel], config: PreTrainedConfig, name: str, backbone: str | None
) -> ModelDescription:
    """A model without attributes: of transformers, or a family of this package with the same interface."""
    has_code = bool(config.to_dict().get("auto_map"))
    on_hub = backbone is not None and "/" in backbone and is_hub_id(backbone)
    classifies = is_classifier(model_class, config)
    kind = "a classifier of images" if classifies else "one embedding of an image"
    task = "image-classification" if classifies else "image-feature-extraction"
    return ModelDescription(
        method=f"{kind}, by `{model_class.__name__}`",
        paper_url=None,
        backbone=None if backbone is None else link_to(public_name(backbone), on_hub=on_hub),
        base_model=backbone if on_hub else None,
        task=task,
        tags=(task,),
        usage=_classify_example(name, has_code) if classifies else _embed_example(name),
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


def _embed_example(name: str) -> str:
    # no code for transformers alone: AutoModel adds a random pooler to a ViT that was saved without one
    return f"""```python
from cca_hf import ImageEmbedder

embedder = ImageEmbedder.from_pretrained({json.dumps(name)})
embeddings = embedder.encode(["image.jpg", "other.jpg"])  # one row for each image, L2-normalised
print(embeddings @ embeddings.T)  # the similarity of each image to each image
```
The package `cca_hf` also makes an index of the embeddings, and searches it (`cca index`, `cca search`).
"""
