"""How a CCA model comes from a backbone's checkpoint, and what stands beside its weights in its own.

`build_from_backbone` looks at one empty picture to learn what the backbone returns, writes that into the
configuration, and pours the pretrained weights in; a ViT's last layer goes into the conditional layer in its place.
"""

import copy
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from difflib import get_close_matches
from os import PathLike, fspath
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModel,
    PreTrainedConfig,
    PreTrainedModel,
)

from .backbones import (
    describe_backbone,
    image_size_of,
    load_backbone_processor,
    make_image_processor,
    native_config,
)
from .conditional_layer import stack_texts
from .configuration_cca import CCAConfig
from .pipeline_cca import CCAPipeline

if TYPE_CHECKING:  # never run; transformers copies the files whose import it can read, and this one must travel too
    from .sentence_transformers_cca import CCAInputModule as CCAInputModule


def build_from_backbone(
    model_class: Any,
    backbone: str | PathLike[str] | PreTrainedConfig,
    attributes: Sequence[str] | Mapping[str, Sequence[str]],
    *,
    text_embeddings: Mapping[str, Any] | None,
    freeze_backbone: bool,
    image_size: int | Sequence[int] | None,
    attn_implementation: str | None,
    dtype: torch.dtype,
    hub_kwargs: dict[str, Any],
    config_fields: dict[str, Any],
) -> Any:
    """See `CCAModel.from_backbone`."""
    _check_config_fields(config_fields)
    if isinstance(attributes, str):
        raise TypeError(f"attributes must be a list of names or a mapping from names to values; got {attributes!r}")
    if (config_fields.get("condition_embedding") == "text") != (text_embeddings is not None):
        raise ValueError("condition_embedding='text' and text_embeddings, a vector for each attribute, go together")
    texts = None if text_embeddings is None else stack_texts(list(attributes), text_embeddings)
    if isinstance(backbone, PreTrainedConfig):
        name, native = None, AutoModel.from_config(native_config(copy.deepcopy(backbone)))
        image_processor = None
    else:
        name = fspath(backbone)
        backbone_config = native_config(AutoConfig.from_pretrained(name, **hub_kwargs))
        native = AutoModel.from_pretrained(name, config=backbone_config, dtype=dtype, **hub_kwargs)
        image_processor = load_backbone_processor(name, hub_kwargs)

    size = image_size or image_size_of(native.config)
    described = describe_backbone(native, size, config_fields, takes_last_layer=model_class.takes_last_layer)
    config = model_class.config_class(
        attributes=list(attributes),
        attribute_values={key: list(values) for key, values in attributes.items()}
        if isinstance(attributes, Mapping)
        else {},
        backbone_name=name,
        image_size=size if isinstance(size, int) else list(size),
        text_embedding_dim=None if texts is None else texts.shape[1],
        # statistics of a pretrained backbone are kept; one from scratch has none yet
        **{"freeze_batch_norm": name is not None, **described, **config_fields},
    )
    config._attn_implementation = attn_implementation
    model = model_class(config)
    if name is not None:
        _pour(native, model)
    if texts is not None:
        model.condition_embedding.texts.copy_(texts)
    model = model.to(dtype)
    model.image_processor = make_image_processor(size, image_processor)
    model.eval()  # as from_pretrained
    return model.freeze_backbone() if freeze_backbone else model


def _check_config_fields(config_fields: dict[str, Any]) -> None:
    allowed = sorted({field.name for field in fields(CCAConfig)} - {field.name for field in fields(PreTrainedConfig)})
    for name in config_fields:
        if name not in allowed:
            closest = get_close_matches(name, allowed, n=1)
            hint = f" Did you mean {closest[0]!r}?" if closest else ""
            raise TypeError(f"from_backbone got an unknown argument {name!r}.{hint} Fields of CCAConfig: {allowed}.")


@torch.no_grad()
def _pour(native: PreTrainedModel, model: PreTrainedModel) -> None:
    """Pretrained weights into a new model: all of the backbone, and a replaced last layer into the conditional one."""
    weights = native.state_dict()
    wanted = model.backbone.state_dict()
    model.backbone.load_state_dict({name: weights[name] for name in wanted})
    if model.config.replaces_last_layer:
        model.conditional_layer.load_state_dict(native.layers[-1].state_dict())
        model.layernorm.load_state_dict(native.layernorm.state_dict())


def name_pipeline(config: PreTrainedConfig) -> None:
    """Lets `pipeline("image-feature-extraction", trust_remote_code=True, ...)` find its class beside the weights."""
    config.custom_pipelines = {
        "image-feature-extraction": {
            "impl": f"{CCAPipeline.__module__.rsplit('.', 1)[-1]}.{CCAPipeline.__name__}",
            "pt": ["AutoModel"],
            "type": "image",
        }
    }


def name_sentence_transformers_module(directory: Path) -> None:
    """Lets `SentenceTransformer(directory, trust_remote_code=True)` find its class beside the weights.

    Without it sentence-transformers would take the mean of the hidden states, under no condition.
    """
    module = {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers_cca.CCAInputModule"}
    (directory / "modules.json").write_text(json.dumps([module], indent=2) + "\n", encoding="utf-8")


@contextmanager
def staged(directory: str | PathLike[str]) -> Iterator[Path]:
    """A folder inside `directory` whose files move there together once all of them are written.

    Raises:
        OSError: if writing fails; `directory` is then as it was, and the message says so.
    """
    target = Path(directory)
    if target.is_file():
        raise OSError(f"cannot save to {target}: it is a file, and must be a folder")
    target.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=target, prefix=".saving-", ignore_cleanup_errors=True) as folder:
        try:
            yield Path(folder)
        except (OSError, SafetensorError) as error:
            raise OSError(f"saving to {target} failed, what was there before is untouched: {error}") from error
        for path in sorted(Path(folder).iterdir()):
            path.replace(target / path.name)


__all__ = [
    "build_from_backbone",
    "name_pipeline",
    "name_sentence_transformers_module",
    "staged",
]
