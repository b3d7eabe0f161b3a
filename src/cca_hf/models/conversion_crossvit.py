"""Weights of CrossViT as timm and the authors (https://github.com/IBM/CrossViT) write them, and their image processor.

The weights only change their names, and one matrix of queries, keys and values becomes three. So a conversion to this
package and back gives the same bits.
"""

import json
import pickle
from collections.abc import Iterator, Mapping, Sequence
from math import isqrt
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from transformers.utils import is_torchvision_available

from .configuration_crossvit import CrossViTConfig
from .configuration_images import did_you_mean, is_hub_id

if is_torchvision_available():
    from transformers import CLIPImageProcessor
else:  # CLIPImageProcessor would work too, but with a warning
    from transformers import CLIPImageProcessorPil as CLIPImageProcessor

Weights = dict[str, torch.Tensor]

LAYOUTS = ("timm", "ibm")
HEAD_DIM = 32  # of the first branch, in all published variants
_CROP = 0.875  # side of the evaluated centre over the side of the resized image, for images below 384 pixels
_WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")
_NAMES_OF_STATE = ("model", "state_dict")  # in files that training scripts write
_PAIRS = ("pos_embed", "cls_token")  # parameters with an underscore in timm and a dot in the authors' code


def make_image_processor(config: CrossViTConfig) -> CLIPImageProcessor:
    """The image processor of the published evaluation: the centre of the image, resized with bicubic interpolation.

    240 pixels are cut from an image whose shorter side has 274; from 384 pixels on, nothing is cut from the shorter
    side.
    """
    height, width = config.image_height_and_width
    side = max(height, width)
    return CLIPImageProcessor(
        size={"shortest_edge": side if side >= 384 else int(side / _CROP)},
        crop_size={"height": height, "width": width},
        image_mean=list(IMAGENET_DEFAULT_MEAN),
        image_std=list(IMAGENET_DEFAULT_STD),
    )


# ---- Files ----


def read_weights(source: str | PathLike[str]) -> tuple[Weights, list[str] | None]:
    """Read the weights of a file, of a folder, or of a model on the Hub.

    Returns:
        The weights, with timm's names, and the names of the classes if the config.json beside them has any.

    Raises:
        FileNotFoundError: if the folder has no weights.
        ValueError: if the file is damaged or truncated, or has something else than tensors.
    """
    path = Path(source)
    if path.suffix not in _SUFFIXES and is_hub_id(fspath(source)):
        path = _download(fspath(source))
    if path.is_dir():
        found = [path / name for name in _WEIGHT_FILES if (path / name).is_file()]
        if not found:
            raise FileNotFoundError(f"{path} has no weights: neither {' nor '.join(_WEIGHT_FILES)}")
        path = found[0]
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    weights = _load(path)
    for name in _PAIRS:
        for branch in (0, 1):
            if f"{name}.{branch}" in weights:
                weights[f"{name}_{branch}"] = weights.pop(f"{name}.{branch}")
    description = path.parent / "config.json"
    names = json.loads(description.read_text(encoding="utf-8")).get("label_names") if description.is_file() else None
    return weights, names


def write_weights(weights: Weights, path: Path) -> None:
    """Write weights to a file: `.safetensors`, or `.pth`, `.pt` or `.bin` for a file of PyTorch.

    Raises:
        ValueError: for another name.
    """
    if path.suffix not in _SUFFIXES:
        raise ValueError(f"the name of a file of weights ends in one of {', '.join(_SUFFIXES)}; got {path.name}")
    if path.suffix == ".safetensors":
        save_file(weights, path, metadata={"format": "pt"})
    else:
        torch.save(weights, path)


def _download(repo_id: str) -> Path:
    """The path of the downloaded weights, with the config.json beside them."""
    hf_hub_download(repo_id, "config.json")
    try:
        return Path(hf_hub_download(repo_id, _WEIGHT_FILES[0]))
    except EntryNotFoundError:
        return Path(hf_hub_download(repo_id, _WEIGHT_FILES[1]))


def _load(path: Path) -> Weights:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} is damaged, or contains other objects than weights, which are not read because they may run code"
        ) from error
    except (SafetensorError, RuntimeError, EOFError) as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise ValueError(f"{path} is truncated or damaged: {reason}") from error
    for name in _NAMES_OF_STATE:
        if isinstance(content, dict) and isinstance(content.get(name), dict):
            content = content[name]
    if not isinstance(content, dict) or not all(isinstance(weight, torch.Tensor) for weight in content.values()):
        raise ValueError(f"{path} has no state dict: names with tensors, by themselves or as one of {_NAMES_OF_STATE}")
    return dict(content)


# ---- Configuration ----


def config_of(
    weights: Mapping[str, torch.Tensor], *, id2label: Sequence[str] | Mapping[int, str] | None = None
) -> CrossViTConfig:
    """The configuration of a model with these weights, from their names and shapes.

    The shapes leave the number of heads open. All published variants have heads of 32 numbers in the first branch.

    Raises:
        ValueError: if these are not the weights of a CrossViT for square images, or the names do not fit.
    """
    try:
        widths = [weights[f"pos_embed_{branch}"].shape[2] for branch in (0, 1)]
        sides = [isqrt(weights[f"pos_embed_{branch}"].shape[1] - 1) for branch in (0, 1)]
        tokens = [weights[f"pos_embed_{branch}"].shape[1] - 1 for branch in (0, 1)]
        inner = weights["blocks.0.blocks.0.0.mlp.fc1.weight"].shape[0]
        multi_conv = "patch_embed.0.proj.0.weight" in weights
        first = "proj.0" if multi_conv else "proj"
        shapes = [weights[f"patch_embed.{branch}.{first}.weight"].shape for branch in (0, 1)]
    except (KeyError, IndexError) as error:
        raise ValueError(
            f"these are not the weights of a CrossViT: {error} is missing or has another shape"
        ) from error
    if [side**2 for side in sides] != tokens or widths[0] % HEAD_DIM:
        raise ValueError(
            f"the position embeddings have {tokens} patches and {widths} channels: pass the configuration of a model "
            f"for images that are not square, or whose first branch is not a multiple of {HEAD_DIM} wide"
        )
    patches = [12, 16] if multi_conv else [shape[-1] for shape in shapes]
    size, scaled = (side * patch for side, patch in zip(sides, patches, strict=True))
    places = [name.split(".") for name in weights if name.startswith("blocks.") and name.endswith(".norm1.weight")]
    layers = [len({p[4] for p in places if p[2:4] == ["blocks", str(branch)]}) for branch in (0, 1)]
    return CrossViTConfig(
        image_size=size,
        num_channels=shapes[0][1],
        hidden_sizes=widths,
        patch_sizes=patches,
        image_scales=[1.0, scaled / size],
        num_attention_heads=[widths[0] // HEAD_DIM] * 2,
        num_layers=layers,
        num_blocks=len({place[1] for place in places}),
        mlp_ratio=_whole(inner / widths[0]),
        multi_conv=multi_conv,
        qkv_bias="blocks.0.blocks.0.0.attn.qkv.bias" in weights,
        **_labels(weights, id2label),
    )


def _whole(number: float) -> float | int:
    return int(number) if number == int(number) else number


def _labels(
    weights: Mapping[str, torch.Tensor], id2label: Sequence[str] | Mapping[int, str] | None
) -> dict[str, dict[Any, Any]]:
    """The fields `id2label` and `label2id`; nothing for weights without a classifier."""
    if "head.0.weight" not in weights:
        return {}
    count = weights["head.0.weight"].shape[0]
    if id2label is None:
        id2label = [str(number) for number in range(count)]
    names = dict(id2label) if isinstance(id2label, Mapping) else dict(enumerate(id2label))
    if set(names) != set(range(count)):
        raise ValueError(f"the classifier has {count:,} classes, and {len(names):,} names were given")
    return {"id2label": names, "label2id": {name: number for number, name in names.items()}}


# ---- Names ----


def from_timm_names(weights: Weights, config: CrossViTConfig, *, with_classifiers: bool) -> Weights:
    """Weights with timm's names -> with those of [`CrossViTModel`], and `classifiers.0`, `classifiers.1`.

    Raises:
        ValueError: if weights are missing, or if there are others.
    """
    rest, own = dict(weights), {}
    heads = {name: rest.pop(name) for name in list(rest) if name.startswith("head.")}
    if with_classifiers and not heads:
        raise ValueError("these weights have no classifier: load them with CrossViTModel.from_timm")
    rest |= heads if with_classifiers else {}
    try:
        for ours, theirs in _names(config, with_classifiers):
            own[ours] = rest.pop(theirs)
        for ours, theirs in _names_of_joined(config):
            for letter, part in zip("qkv", rest.pop(theirs).chunk(3), strict=True):
                own[ours.format(letter)] = part.clone()  # a part of a larger tensor would save all of it
    except KeyError as error:
        raise ValueError(f"the weights of a CrossViT lack {error}: the file is incomplete") from error
    if rest:
        raise ValueError(f"these are not the weights of a CrossViT: unknown {sorted(rest)[0]!r}")
    return own


def to_timm_names(own: Weights, config: CrossViTConfig, layout: str = "timm") -> Weights:
    """The reverse of [`from_timm_names`].

    Args:
        layout: `"timm"`, or `"ibm"` for the authors' code.

    Raises:
        ValueError: for another layout.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"unknown layout {layout!r}.{did_you_mean(layout, LAYOUTS)} It is one of {LAYOUTS}")
    weights = {theirs: own[ours] for ours, theirs in _names(config, "classifiers.0.weight" in own)}
    for ours, theirs in _names_of_joined(config):
        weights[theirs] = torch.cat([own[ours.format(letter)] for letter in "qkv"])
    if layout == "ibm":
        for name in _PAIRS:
            for branch in (0, 1):
                weights[f"{name}.{branch}"] = weights.pop(f"{name}_{branch}")
    return weights


def _names(config: CrossViTConfig, with_classifiers: bool) -> Iterator[tuple[str, str]]:
    """(name here, name in timm) of every weight but those of queries, keys and values in one matrix."""
    for branch in (0, 1):
        yield f"embeddings.{branch}.position_embeddings", f"pos_embed_{branch}"
        yield f"embeddings.{branch}.cls_token", f"cls_token_{branch}"
        for block in range(config.num_blocks):
            ours, theirs = f"blocks.{block}.fusions.{branch}.attention", f"blocks.{block}.fusion.{branch}.attn"
            for letter in "qkv":
                for kind in _kinds(config):
                    yield f"{ours}.{letter}_proj.{kind}", f"{theirs}.w{letter}.{kind}"
    for ours, theirs in _names_of_modules(config, with_classifiers):
        for kind in ("weight", "bias"):
            yield f"{ours}.{kind}", f"{theirs}.{kind}"


def _kinds(config: CrossViTConfig) -> tuple[str, ...]:
    """The parameters of queries, keys and values."""
    return ("weight", "bias") if config.qkv_bias else ("weight",)


def _names_of_modules(config: CrossViTConfig, with_classifiers: bool) -> Iterator[tuple[str, str]]:
    for branch in (0, 1):
        for place in (".0", ".2", ".4") if config.multi_conv else ("",):
            yield f"embeddings.{branch}.patch_embeddings{place}", f"patch_embed.{branch}.proj{place}"
        yield f"layernorms.{branch}", f"norm.{branch}"
        if with_classifiers:
            yield f"classifiers.{branch}", f"head.{branch}"
        for block in range(config.num_blocks):
            for layer in range(config.num_layers[branch]):
                ours, theirs = f"blocks.{block}.branches.{branch}.{layer}", f"blocks.{block}.blocks.{branch}.{layer}"
                yield f"{ours}.layernorm_before", f"{theirs}.norm1"
                yield f"{ours}.attention.o_proj", f"{theirs}.attn.proj"
                yield f"{ours}.layernorm_after", f"{theirs}.norm2"
                yield f"{ours}.mlp.fc1", f"{theirs}.mlp.fc1"
                yield f"{ours}.mlp.fc2", f"{theirs}.mlp.fc2"
            ours, theirs = f"blocks.{block}.fusions.{branch}", f"blocks.{block}"
            for direction, name in (("projection", "projs"), ("reverse_projection", "revert_projs")):
                yield f"{ours}.{direction}.layernorm", f"{theirs}.{name}.{branch}.0"
                yield f"{ours}.{direction}.dense", f"{theirs}.{name}.{branch}.2"
            yield f"{ours}.layernorm", f"{theirs}.fusion.{branch}.norm1"
            yield f"{ours}.attention.o_proj", f"{theirs}.fusion.{branch}.attn.proj"


def _names_of_joined(config: CrossViTConfig) -> Iterator[tuple[str, str]]:
    """(name here, with a place for the letter, name in timm) of the joined matrices of self-attention."""
    for branch in (0, 1):
        for block in range(config.num_blocks):
            for layer in range(config.num_layers[branch]):
                for kind in _kinds(config):
                    ours = f"blocks.{block}.branches.{branch}.{layer}.attention.{{}}_proj.{kind}"
                    yield ours, f"blocks.{block}.blocks.{branch}.{layer}.attn.qkv.{kind}"
