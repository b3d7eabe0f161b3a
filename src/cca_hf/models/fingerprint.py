"""Which model made these embeddings: a hash to keep beside them, so that those of two models are never mixed."""

import hashlib
import json

import torch
from torch import nn
from transformers import BaseImageProcessor, PreTrainedConfig


def fingerprint_of(model: nn.Module, config: PreTrainedConfig, image_processor: BaseImageProcessor) -> str:
    """SHA-256 of the weights in their precision, of the attributes in their order, and of how pictures are read."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    described = {"attributes": config.attributes, "image_processor": image_processor.to_dict()}
    digest.update(json.dumps(described, sort_keys=True, default=str).encode())
    return digest.hexdigest()


__all__ = ["fingerprint_of"]
