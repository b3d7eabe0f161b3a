"""The configuration of a backbone that is trained from scratch, as `--backbone_config` names it."""

import json
from pathlib import Path
from typing import Any

from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig

from cca_hf.models.configuration_crossvit import VARIANTS, CrossViTConfig


def read_backbone_config(source: str) -> PreTrainedConfig:
    """Reads JSON, a JSON file, the name of a variant of CrossViT, or a configuration that `AutoConfig` can load.

    Raises:
        ValueError: for a model type that transformers does not know.
    """
    if source in VARIANTS:
        return CrossViTConfig.from_variant(source)
    if source.lstrip().startswith("{"):
        text = source
    elif source.endswith(".json"):
        text = Path(source).read_text(encoding="utf-8")
    else:
        return AutoConfig.from_pretrained(source, trust_remote_code=False)
    fields: dict[str, Any] = json.loads(text)
    if (kind := fields.pop("model_type", None)) not in CONFIG_MAPPING:
        raise ValueError(f"backbone_config needs a model_type that transformers knows, such as vit; got {kind!r}")
    return CONFIG_MAPPING[kind](**fields)
