"""The base class of all models on an image backbone: initialisation, loading, saving, evaluation mode, fingerprint."""

import copy
import hashlib
import json
import re
from collections.abc import Collection, Iterable
from dataclasses import fields
from functools import cached_property
from itertools import chain
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

import torch
from huggingface_hub import CommitInfo, HfApi
from torch import nn
from transformers import BaseImageProcessor, Pipeline, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.core_model_loading import revert_weight_conversion
from transformers.integrations.accelerate import load_offloaded_parameter

from .backbones import AutoImageProcessor, architecture_of, make_image_processor
from .configuration_images import ImageModelConfig, save_code_of_base, without_path
from .images import ImageReader
from .whole_files import CHECKSUMS, staged, write_checksums, write_json

M = TypeVar("M", bound=PreTrainedModel)
# All files of a checkpoint, by name; `push_to_hub` pushes no other.
CHECKPOINT_FILES = (
    *("config.json", "preprocessor_config.json", "modules.json", "sentence_transformers_cca.json", CHECKSUMS),
    *("model*.safetensors", "model.safetensors.index*.json", "adapter_config.json", "adapter_model*.safetensors"),
    *("*.py", "README.md"),
)


class ImagePreTrainedModel(PreTrainedModel):
    """A model on top of `self.backbone`, a vision backbone of transformers.

    Class attributes:
        display_name: name of the model in tables and plots.
        method: name of the method in a sentence of the model card.
        paper_url: address of the paper.
        modules_without_effect: names of modules that no embedding depends on, such as a classifier.
        pipeline_class: the pipeline that is saved with a checkpoint.
        sentence_transformers_class: "file.Class" of the saved module for sentence-transformers.
    """

    config_class = ImageModelConfig
    config: ImageModelConfig
    base_model_prefix = "model"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    display_name: ClassVar[str]
    method: ClassVar[str]
    paper_url: ClassVar[str | None] = None
    modules_without_effect: ClassVar[frozenset[str]] = frozenset()
    pipeline_class: ClassVar[type[Pipeline] | None] = None
    sentence_transformers_class: ClassVar[str | None] = None

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Initialise linear layers by their fan-in, as PyTorch does. The backbone initialises itself.

        The usual std of 0.02 is 1 / sqrt(3 * 768), for the width of a ViT-B. It is too small for a layer 256 wide: on
        frozen MobileNetV2 features, the mAP after the first epoch was 66.9 with it and 75.2 without.
        """
        super()._init_weights(module)
        if isinstance(module, nn.Linear):
            bound = module.in_features**-0.5
            init.uniform_(module.weight, -bound, bound)
            if module.bias is not None:
                init.uniform_(module.bias, -bound, bound)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls._auto_class = None  # a subclass has to be registered itself before its code is saved with checkpoints

    def get_input_embeddings(self) -> nn.Module:
        """Those of the backbone; raises NotImplementedError if it has none."""
        return self.backbone.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.backbone.set_input_embeddings(value)

    @classmethod
    def usage_example(cls, model_id: str, config: Any) -> str:
        """A snippet of Markdown for the model card that loads the model and applies it to images."""
        raise NotImplementedError

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *model_args: Any, **kwargs: Any) -> Any:
        """As [`PreTrainedModel.from_pretrained`]; also loads the image processor of the checkpoint.

        Raises:
            ValueError: if the checkpoint is of another type, such as a plain backbone; if weights are NaN or infinite;
                if the image processor divides by 0; or if it has code of its own, which runs only with
                `trust_remote_code=True`.
        """
        result = super().from_pretrained(pretrained_model_name_or_path, *model_args, **kwargs)
        if pretrained_model_name_or_path is not None:
            model = result[0] if isinstance(result, tuple) else result
            names = ("revision", "token", "cache_dir", "local_files_only", "subfolder", "force_download")
            hub_kwargs = {name: kwargs[name] for name in names if kwargs.get(name) is not None}
            # None would ask on the terminal
            hub_kwargs["trust_remote_code"] = bool(kwargs.get("trust_remote_code"))
            model.image_processor = AutoImageProcessor.from_pretrained(model.name_or_path, **hub_kwargs)
            ImageReader(model.image_processor)  # raises for settings that make no pixel values
            check_weights(chain(model.named_parameters(), model.named_buffers()))
        return result

    def save_pretrained(
        self, save_directory: str | PathLike[str], is_main_process: bool = True, **kwargs: Any
    ) -> None:
        """As [`PreTrainedModel.save_pretrained`]; also saves the image processor, and the code for pipelines.

        The code that is saved for a subclass is that of its base in this package, unless the subclass is registered
        with `register_for_auto_class` too.

        The checkpoint is written whole or not at all: a full disk leaves an earlier one in `save_directory` unchanged.
        Weight files of the earlier checkpoint are deleted.

        Raises:
            OSError: if the disk is full; the message names the folder.
            ValueError: if weights are NaN or infinite.
        """
        check_weights((kwargs.get("state_dict") or dict(self.named_parameters())).items())
        if self.pipeline_class is not None:
            impl = f"{self.pipeline_class.__module__.rsplit('.', 1)[-1]}.{self.pipeline_class.__name__}"
            description = {"impl": impl, "pt": ["AutoModel"], "type": "image"}
            self.config.custom_pipelines = {"image-feature-extraction": description}
        if not is_main_process:
            return super().save_pretrained(save_directory, is_main_process=False, **kwargs)
        kwargs.setdefault("repo_id", Path(save_directory).name)  # for push_to_hub, whose default is the staging folder
        with staged(save_directory) as folder:
            save_code_of_base(self, folder, self.config)
            self.image_processor.save_pretrained(folder)
            if self.sentence_transformers_class is not None:
                # without it sentence-transformers would take the mean of the backbone's hidden states
                module = {"idx": 0, "name": "0", "path": "", "type": self.sentence_transformers_class}
                write_json([module], folder / "modules.json")
            super().save_pretrained(folder, **kwargs)
            write_checksums(folder)
            written = {path.name for path in folder.iterdir()}
        for pattern in _weights_like(written):
            for path in Path(save_directory).glob(pattern):
                if path.name not in written:
                    path.unlink()
        return None

    def _upload_modified_files(
        self, working_dir: Any, repo_id: str, files_timestamps: Any, commit_message: str | None = None, **settings: Any
    ) -> CommitInfo:
        """Upload all files of the checkpoint, not only those that transformers wrote; delete earlier weight files."""
        remove_path_of_text_encoder(Path(working_dir))
        hub, revision = HfApi(token=settings.pop("token", None)), settings.get("revision")
        if revision is not None and not revision.startswith("refs/pr"):
            hub.create_branch(repo_id, branch=revision, exist_ok=True)
        settings["delete_patterns"] = _weights_like(path.name for path in Path(working_dir).iterdir())
        settings["commit_message"] = commit_message or "Upload model"
        settings |= {"allow_patterns": list(CHECKPOINT_FILES), "ignore_patterns": [".*", "*/*"]}
        return hub.upload_folder(repo_id=repo_id, folder_path=Path(working_dir), **settings)

    @property
    def device(self) -> torch.device:
        """Where inputs go. accelerate moves those of a layer with offloaded weights, which are on the meta device."""
        return next((weights.device for weights in self.parameters() if not weights.is_meta), torch.device("cpu"))

    @cached_property
    def image_processor(self) -> BaseImageProcessor:
        """The checkpoint's image processor, or the default one of a model that was made from a configuration."""
        return make_image_processor(self.config.image_size)

    def in_eval_mode(self) -> Self:
        """As [`copy_in_eval_mode`]."""
        return copy_in_eval_mode(self)

    def fingerprint(self) -> str:
        """A hash to store with embeddings: of the weights, the architecture, the attributes and the preprocessing.

        Versions of transformers name and fuse the weights of a backbone differently, and have other default settings.
        So its weights are hashed as they are saved, without their names, and default settings are left out.
        """
        weights, loaded = [], weights_of(self, without=self.modules_without_effect)
        for name, tensor in loaded.items():
            if "backbone." not in name:
                weights.append(f"{name} {hash_of_tensor(tensor)}")
        for name, tensor in revert_weight_conversion(self, loaded).items():
            place, within_backbone, _ = name.partition("backbone.")
            if within_backbone:
                weights.append(f"{place}backbone {hash_of_tensor(tensor)}")
        native = {name.removesuffix("_config"): vars(self.config)[name] for name in self.config.sub_configs}
        described = {
            "weights": sorted(weights),
            "config": settings_of(self.config),
            **{name: settings_of(config) for name, config in native.items()},
            "image_processor": self.image_processor.to_dict(),
        }
        return hashlib.sha256(json.dumps(described, sort_keys=True, default=str).encode()).hexdigest()


def copy_in_eval_mode(model: M) -> M:
    """The model itself if no part of it is in training mode; otherwise a copy in evaluation mode.

    The copy shares all parameters and buffers, so that other threads may train the model at the same time.
    """
    if not any(module.training for module in model.modules()):
        return model
    configs = [module.config for module in model.modules() if isinstance(module, PreTrainedModel)]
    shared = {id(part): part for part in (*model.parameters(), *model.buffers(), *configs)}
    return copy.deepcopy(model, shared).eval()


def check_weights(weights: Iterable[tuple[str, torch.Tensor]]) -> None:
    """Raise ValueError if weights are NaN or infinite; those of 8 bits, and those not in memory, are not read."""
    for name, tensor in weights:
        if tensor.is_floating_point() and tensor.itemsize > 1 and tensor.numel() and not tensor.is_meta:
            if not all(torch.isfinite(end) for end in tensor.aminmax()):
                raise ValueError(f"weights are NaN or infinite: {name}. The training failed, or the file has changed")


def remove_path_of_text_encoder(folder: Path) -> None:
    """Edits a checkpoint that is about to be published. A local one keeps the path, to load the encoder again."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if config.get("text_encoder") is not None:
        config["text_encoder"] = without_path(config["text_encoder"])
        write_json(config, folder / "config.json")
        (folder / CHECKSUMS).unlink(missing_ok=True)  # of the file as it was
    write_checksums(folder)


def _weights_like(names: Iterable[str]) -> list[str]:
    """Patterns of all weight files, sharded or not, of the same variants as the weight files among `names`."""
    matches = [re.fullmatch(r"model(\.\w+)?(-\d+-of-\d+)?\.safetensors", name) for name in names]
    patterns = []
    for variant in {match[1] or "" for match in matches if match}:
        patterns += [f"model{variant}{shard}.safetensors" for shard in ("", "-?????-of-?????")]
        patterns += [f"model.safetensors.index{variant}.json"]
    return patterns


def weights_of(model: PreTrainedModel, *, without: Collection[str] = ()) -> dict[str, torch.Tensor]:
    """The state dict, with the weights that are offloaded to memory or disk, and without the modules `without`."""
    weights = {name: w for name, w in model.state_dict().items() if name.split(".")[0] not in without}
    return {name: load_offloaded_parameter(model, name) if w.is_meta else w for name, w in weights.items()}


def digest_of_weights(model: PreTrainedModel, *, saved_names: bool = False, without: Collection[str] = ()) -> Any:
    """A SHA-256 digest, not finished, of all parameters and buffers in their order, with their names.

    `saved_names` are those in a checkpoint, which older versions of transformers gave to the modules too.

    Args:
        without: names of weights that are left out.
    """
    digest = hashlib.sha256()
    for name, tensor in weights_of(model).items():
        if name in without:
            continue
        saved = next(iter(revert_weight_conversion(model, {name: tensor}))) if saved_names else name
        digest.update(f"{saved} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(_bytes_of(tensor))
    return digest


def hash_of_tensor(tensor: torch.Tensor) -> str:
    """A hash of the numbers of a tensor, with its type and shape."""
    return f"{tensor.dtype} {tuple(tensor.shape)} {hashlib.sha256(_bytes_of(tensor)).hexdigest()}"


def _bytes_of(tensor: torch.Tensor) -> memoryview:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def settings_of(config: PreTrainedConfig) -> dict[str, str]:
    """As text, the settings that change the computation and differ from their defaults."""
    values, defaults = architecture_of(config), type(config)().to_dict()
    if isinstance(config, ImageModelConfig):
        without_effect = (vars(base).get("fields_without_effect", ()) for base in type(config).__mro__)
        read = {field.name for field in fields(config)}.difference(config.sub_configs, *without_effect)
        values = {name: value for name, value in values.items() if name in read | {"model_type"}}
    texts = {name: json.dumps(value, default=str) for name, value in values.items()}  # equal for a tuple and a list
    return {
        name: text
        for name, text in texts.items()
        if name == "model_type" or text != json.dumps(defaults.get(name), default=str)
    }
