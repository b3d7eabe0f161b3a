"""An exported model with the model's `encode`, which the evaluators accept too."""

import json
from collections.abc import Callable
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import snapshot_download
from transformers import AutoConfig, BaseImageProcessor

# transformers 5.17 has the same class at its top level only where torchvision is installed
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from cca_hf.models.configuration_images import AttributeConfig
from cca_hf.models.encoding import ImageEncoder
from cca_hf.models.modeling_conditional import ConditionalModelOutput

from .export import DESCRIPTION, GRAPH, check_installed

# arrays by the names of the graph's inputs -> (batch, k, dim)
RunGraph = Callable[[dict[str, np.ndarray]], np.ndarray]


class ExportedModel(ImageEncoder):
    """A model written by [`export_model`], which ONNX Runtime or OpenVINO runs on the CPU.

    Example:

    ```python
    >>> from cca_hf import CCAModel, ExportedModel, export_model

    >>> export_model(CCAModel.from_pretrained("me/cca-shoes"), "shoes-int8", int8=True)
    >>> ExportedModel.from_pretrained("shoes-int8").encode(["shoe.jpg"], attributes="colour").shape
    (1, 1, 768)
    ```
    """

    device = torch.device("cpu")
    dtype = torch.float32

    def __init__(
        self, config: AttributeConfig, image_processor: BaseImageProcessor, description: dict[str, Any], run: RunGraph
    ):
        self.config = config
        self.image_processor = image_processor
        self.description = description
        self._run = run

    @classmethod
    def from_pretrained(
        cls,
        folder: str | PathLike[str],
        *,
        num_threads: int | None = None,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
    ) -> "ExportedModel":
        """
        Args:
            folder: a local folder that `export_model` has written, or a model id on the Hub.
            num_threads: number of threads of the runtime, which chooses it by default.
            revision, token, cache_dir, local_files_only: as in `from_pretrained` of transformers.

        Raises:
            FileNotFoundError: if the folder contains no exported model.
            ImportError: if the runtime is missing; the message says what to install.
        """
        path = Path(folder)
        if not path.is_dir():
            path = Path(
                snapshot_download(
                    str(folder),
                    revision=revision,
                    token=token,
                    cache_dir=cache_dir,
                    local_files_only=local_files_only,
                    allow_patterns=["*.json", "*.onnx*", "model.xml", "model.bin"],
                )
            )
        if not is_exported(path):
            raise FileNotFoundError(f"{folder} contains no exported model: {DESCRIPTION} is missing")
        description = json.loads((path / DESCRIPTION).read_text(encoding="utf-8"))
        config: AttributeConfig = AutoConfig.from_pretrained(path)
        open_graph = {"onnx": _open_onnx, "openvino": _open_openvino}[description["runtime"]]
        run = open_graph(path / GRAPH[description["runtime"]], num_threads)
        return cls(config, AutoImageProcessor.from_pretrained(path), description, run)

    def __call__(self, pixel_values: torch.Tensor, attribute_ids: torch.Tensor) -> ConditionalModelOutput:
        """As the forward pass of a model: ids (batch,) or (batch, k) -> embeddings (batch, dim) or (batch, k, dim)."""
        ids = attribute_ids[:, None] if attribute_ids.ndim == 1 else attribute_ids
        inputs = {"pixel_values": pixel_values.float().contiguous().numpy()}
        if self.description["attribute_input"]:
            embeddings = torch.from_numpy(self._run({**inputs, "attribute_ids": ids.contiguous().numpy()}))
        else:
            embeddings = torch.from_numpy(self._run(inputs))[torch.arange(len(ids))[:, None], ids]
        return ConditionalModelOutput(embeddings=embeddings[:, 0] if attribute_ids.ndim == 1 else embeddings)

    def fingerprint(self) -> str:
        """A hash of the graph, its attributes and the image processor."""
        return self.description["fingerprint"]


def is_exported(folder: str | PathLike[str]) -> bool:
    """Whether a local folder contains an exported model."""
    return (Path(folder) / DESCRIPTION).is_file()


def _open_onnx(graph: Path, num_threads: int | None) -> RunGraph:
    check_installed("onnx", "onnxruntime")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    if num_threads is not None:
        options.intra_op_num_threads = num_threads
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    return lambda inputs: session.run(["embeddings"], inputs)[0]


def _open_openvino(graph: Path, num_threads: int | None) -> RunGraph:
    check_installed("openvino", "openvino")
    import openvino

    # by default OpenVINO computes in bfloat16 where the processor supports it
    settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32"}
    if num_threads is not None:
        settings["INFERENCE_NUM_THREADS"] = num_threads
    compiled = openvino.Core().compile_model(graph, "CPU", settings)
    return lambda inputs: compiled(inputs)["embeddings"]
