"""Models with an adapter of PEFT, from `peft.get_peft_model` or `model.add_adapter`: what learns, is saved and loaded.

A checkpoint then contains the adapter alone, as in transformers' Trainer: `adapter_model.safetensors` and
`adapter_config.json`.
"""

import logging
from typing import Any

from torch import nn
from transformers import PreTrainedModel
from transformers.utils import is_peft_available

logger = logging.getLogger(__name__)

MERGE_FIRST = (
    "a model with an adapter cannot be pushed: merge the adapter with PeftModel.merge_and_unload(), save the merged "
    "model with save_pretrained, and push its folder with cca_hf.push_model"
)
ADAPTER_CONFIG = "adapter_config.json"
_NAME = "default"  # of the adapter in both libraries; PEFT saves an adapter of another name in a subfolder
_PREFIX = "base_model.model."  # of all weights in a file, which only a PeftModel has


def has_adapter(model: nn.Module) -> bool:
    """Whether the model is a `PeftModel`, or has an adapter that `add_adapter` or `load_adapter` added."""
    if isinstance(model, PreTrainedModel):
        return model._hf_peft_config_loaded
    if not is_peft_available():
        return False
    from peft import PeftMixedModel, PeftModel

    return isinstance(model, PeftModel | PeftMixedModel)


def check_adapter(model: Any) -> None:
    """Checks that the adapter can learn, and that a checkpoint contains all that learns.

    Raises:
        ValueError: if the training, or loading its checkpoints, would fail.
    """
    from peft import get_peft_model_state_dict

    if not isinstance(model, PreTrainedModel):
        _check_wrapper(model)
    names = list(model.peft_config)
    if names != [_NAME]:
        raise ValueError(f"a training has one adapter, called {_NAME!r}; this model has {', '.join(map(repr, names))}")
    learning = _learning(model)
    if not learning:
        raise ValueError("no weight of the adapter learns: load the adapter with is_trainable=True")
    lost = sorted(learning & _set_weights(model, get_peft_model_state_dict(model)))
    if lost:
        raise ValueError(
            f"{lost[0]} learns ({len(lost)} weights in all) and is not saved with the adapter: name its module in "
            "modules_to_save of the adapter's configuration"
        )
    if not model.name_or_path:
        logger.warning(
            "checkpoints contain the adapter alone, and its base model was never saved: save the base model with "
            "save_pretrained, load it with from_pretrained, and add the adapter then"
        )


def load_adapter(model: Any, checkpoint: str) -> None:
    """Sets the weights of the model's adapter to those of a checkpoint.

    Raises:
        ValueError: if the checkpoint lacks a weight that learns.
    """
    from peft import load_peft_weights

    weights = load_peft_weights(checkpoint, device="cpu")
    if isinstance(model, PreTrainedModel):
        weights = {name.removeprefix(_PREFIX): weight for name, weight in weights.items()}
    missing = sorted(_learning(model) & _set_weights(model, weights))
    if missing:
        raise ValueError(f"{checkpoint} has no weights for {', '.join(missing)}")


def _check_wrapper(model: Any) -> None:
    from peft import PeftModel

    if type(model) is not PeftModel:
        raise ValueError(
            f"the adapter is a {type(model).__name__}, which does not take images: call get_peft_model without mixed, "
            "and with a configuration that has no task_type"
        )


def _learning(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def _set_weights(model: Any, weights: dict[str, Any]) -> set[str]:
    """Returns the names of parameters and buffers of the whole model that the weights do not contain."""
    from peft import set_peft_model_state_dict

    return {*set_peft_model_state_dict(model, weights).missing_keys}
