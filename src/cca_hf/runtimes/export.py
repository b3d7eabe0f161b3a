"""A trained model as one graph: pixel values in, normalised embeddings under all attributes out.

The graph contains the backbone, the conditions, the conditional layer and the normalisation, for batches of any size.
PyTorch exports it (`torch.onnx.export`), ONNX Runtime quantises it, and OpenVINO converts it. The exported model has
the model's `encode`, which the evaluators accept too.
"""

import ast
import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from huggingface_hub import snapshot_download
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import AutoConfig, BaseImageProcessor

from cca_hf.extras import require
from cca_hf.models import loading
from cca_hf.models.backbones import AutoImageProcessor
from cca_hf.models.configuration_images import AttributeConfig
from cca_hf.models.encoding import ImageEncoder
from cca_hf.models.images import ImageReader
from cca_hf.models.modeling_conditional import ConditionalModelOutput, ConditionalPreTrainedModel
from cca_hf.models.whole_files import staged, write_checksums, write_json

_DESCRIPTION = "export.json"  # describes the graph; ExportedModel reads it
_GRAPH = {"onnx": "model.onnx", "openvino": "model.xml"}
_PATTERNS = ["*.json", "*.onnx*", "model.xml", "model.bin"]
_LARGEST_IN_ONE_FILE = 1.9 * 2**30  # bytes of weights: a protobuf message ends at 2 GiB

Runtime = Literal["onnx", "openvino"]
# arrays by the names of the graph's inputs -> (batch, k, dim)
RunGraph = Callable[[dict[str, np.ndarray]], np.ndarray]


def export_model(
    model: ConditionalPreTrainedModel,
    folder: str | PathLike[str],
    runtime: Runtime = "onnx",
    *,
    attributes: Sequence[str] | None = None,
    attribute_input: bool = False,
    int8: bool = False,
) -> Path:
    """Write a model as one graph, with the files that [`ExportedModel`] needs to use it, and return the folder.

    Args:
        model: any CCA model, or a baseline of the same interface.
        folder: where `model.onnx`, or `model.xml` and `model.bin`, are written, with `config.json`,
            `preprocessor_config.json` and `export.json`.
        runtime: `"onnx"` for ONNX Runtime, `"openvino"` for OpenVINO.
        attributes: the attributes of the graph, in this order; all by default.
        attribute_input: whether the graph has a second input `attribute_ids`, (batch, k) indices into `attributes`,
            and returns (batch, k, dim). Without it, the graph returns (batch, attributes, dim).
        int8: for `"onnx"`, whether the backbone's matrix products use 8-bit integers, with a scale per output channel
            of the weights. This takes half the time on a CPU with VNNI and a quarter of the disk.

    Raises:
        ValueError: for an unknown runtime or attribute, or `int8` with OpenVINO or a backbone without matrix products.
        ImportError: if a package is missing; the message says what to install.
    """
    if runtime not in _GRAPH:
        raise ValueError(f"runtime must be one of {', '.join(map(repr, _GRAPH))}; got {runtime!r}")
    if int8 and runtime != "onnx":
        raise ValueError(f"int8 needs the quantiser of ONNX Runtime, that is runtime='onnx'; got {runtime!r}")
    if int8 and not _has_products(model):
        backbone: Any = model.config.backbone_config
        raise ValueError(
            "int8 is for a backbone's matrix products, and makes transformers (ViT, DINOv2, Swin, ...) faster; "
            f"{backbone.model_type} has none: export it without int8"
        )
    require(runtime, f"a graph for {runtime} needs", without=() if int8 else ["onnxruntime"])
    ids = model.config.attribute_ids(attributes)
    names = [model.config.attributes[index] for index in ids]
    with staged(folder) as staging:
        graph = staging / _GRAPH["onnx"]
        embedder = _Embedder(model.in_eval_mode(), ids).eval()
        _write_onnx(embedder, graph, attribute_input)
        if int8:
            _quantise(graph)
        if runtime == "openvino":
            _convert_to_openvino(graph)
        config = model.config.restricted_to(names)
        config.value_prototypes = False  # the graph has only what embeds images
        config.save_pretrained(staging)
        model.image_processor.save_pretrained(staging)
        description = {
            "runtime": runtime,
            "attributes": names,
            "attribute_input": attribute_input,
            "int8": int8,
            "made_from": model.fingerprint(),
            "fingerprint": _hash_files(staging),
            "torch": torch.__version__,
        }
        write_json(description, staging / _DESCRIPTION)
        write_checksums(staging)
    return Path(folder)


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
            hub_kwargs: dict[str, Any] = {"revision": revision, "token": token, "cache_dir": cache_dir}
            hub_kwargs |= {"local_files_only": local_files_only, "allow_patterns": _PATTERNS}
            path = Path(snapshot_download(str(folder), **hub_kwargs))
        if not is_exported(path):
            raise FileNotFoundError(f"{folder} contains no exported model: {_DESCRIPTION} is missing")
        description = json.loads((path / _DESCRIPTION).read_text(encoding="utf-8"))
        config: AttributeConfig = AutoConfig.from_pretrained(path, trust_remote_code=False)
        open_graph = _open_onnx if description["runtime"] == "onnx" else _open_openvino
        run = open_graph(path / _GRAPH[description["runtime"]], num_threads)
        image_processor = AutoImageProcessor.from_pretrained(path, trust_remote_code=False)
        return cls(config, image_processor, description, run)

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

    def checkpoint_fingerprint(self) -> str:
        return self.description["made_from"]

    def shares_space(self, fingerprint: str) -> bool:
        return fingerprint in (self.description["fingerprint"], self.description["made_from"])


def is_exported(folder: str | PathLike[str]) -> bool:
    """Whether a local folder contains an exported model."""
    return (Path(folder) / _DESCRIPTION).is_file()


def load_encoder(name: str, device: str | None = None, precision: str = "auto") -> ImageEncoder:
    """Load a checkpoint of any vision model, or a folder that [`export_model`] wrote.

    Raises:
        ValueError: for an exported model on another device than the CPU, or in another precision than its own.
    """
    if not is_exported(name):
        model: ImageEncoder = loading.load_encoder(name, device, precision)
        return model
    if device not in (None, "cpu") or precision not in ("auto", "float32"):
        raise ValueError(f"{name} is an exported model: it runs on the CPU, in the precision that it was exported in")
    return ExportedModel.from_pretrained(name)


class _Embedder(nn.Module):
    """The exported module: a model with a fixed list of attributes, or with indices into that list as an input."""

    def __init__(self, model: ConditionalPreTrainedModel, ids: list[int]):
        super().__init__()
        self.model = model
        self.ids: torch.Tensor
        self.register_buffer("ids", torch.tensor(ids, dtype=torch.long, device=model.device))

    def forward(self, pixel_values: torch.Tensor, attribute_ids: torch.Tensor | None = None) -> torch.Tensor:
        ids = self.ids.expand(pixel_values.shape[0], -1) if attribute_ids is None else self.ids[attribute_ids]
        return self.model(pixel_values, attribute_ids=ids).embeddings


def _write_onnx(embedder: _Embedder, path: Path, attribute_input: bool) -> None:
    model, size = embedder.model, ImageReader(embedder.model.image_processor).height_and_width
    # two images and two attributes, because a dimension of 1 would become a constant
    pixel_values = torch.zeros(2, 3, *size, dtype=model.dtype, device=model.device)
    batch = torch.export.Dim("batch")
    inputs, shapes = {"pixel_values": pixel_values}, {"pixel_values": {0: batch}}
    if attribute_input:
        inputs["attribute_ids"] = torch.zeros(2, 2, dtype=torch.long, device=model.device)
        shapes["attribute_ids"] = {0: batch, 1: torch.export.Dim("attributes")}
    weights = sum(tensor.nbytes for tensor in embedder.state_dict().values())
    form: dict[str, Any] = {"dynamic_shapes": shapes, "input_names": list(inputs), "output_names": ["embeddings"]}
    form["external_data"] = weights > _LARGEST_IN_ONE_FILE
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)  # no warnings about torchvision's operators, which the graph does not need
    try:
        # the exporter supports only the plain kernel's memory layout; with others Swin's masked attention fails
        with sdpa_kernel(SDPBackend.MATH):
            torch.onnx.export(embedder, kwargs=inputs, f=path, dynamo=True, verbose=False, **form)
    finally:
        logger.setLevel(level)


def _has_products(model: ConditionalPreTrainedModel) -> bool:
    """Whether a layer of the backbone is a matrix product."""
    layers = model.named_modules()
    return any(isinstance(layer, nn.Linear) and "backbone" in name.split(".") for name, layer in layers)


def _quantise(graph: Path) -> None:
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    # The layers behind the backbone take a hundredth of the time, and their errors are those of the embeddings.
    nodes = onnx.load(graph, load_external_data=False).graph.node
    behind = [node.name for node in nodes if node.op_type == "MatMul" and not _is_in_backbone(node)]
    quantised = graph.with_name("quantised.onnx")
    form = {"op_types_to_quantize": ["MatMul"], "per_channel": True, "weight_type": QuantType.QInt8}
    quantize_dynamic(graph, quantised, nodes_to_exclude=behind, **form)
    for path in graph.parent.glob(f"{graph.name}*"):
        path.unlink()
    quantised.rename(graph)


def _is_in_backbone(node: Any) -> bool:
    """The exporter writes the names of a node's modules into its metadata."""
    modules = {entry.key: entry.value for entry in node.metadata_props}["pkg.torch.onnx.name_scopes"]
    return any("backbone" in module.split(".") for module in ast.literal_eval(modules))


def _convert_to_openvino(graph: Path) -> None:
    import openvino

    openvino.save_model(openvino.convert_model(graph), graph.with_name(_GRAPH["openvino"]), compress_to_fp16=False)
    for path in graph.parent.glob(f"{graph.name}*"):
        path.unlink()


def _hash_files(folder: Path) -> str:
    """SHA-256 of the graph, its weights, its attributes and the image processor."""
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        digest.update(path.name.encode())
        with path.open("rb") as file:
            hashlib.file_digest(file, lambda: digest)
    return digest.hexdigest()


def _open_onnx(graph: Path, num_threads: int | None) -> RunGraph:
    require("onnx", "a graph for onnx needs", without=["onnx", "onnxscript"])
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads or 0  # 0: the runtime chooses
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    return lambda inputs: session.run(["embeddings"], inputs)[0]


def _open_openvino(graph: Path, num_threads: int | None) -> RunGraph:
    require("openvino", "a graph for openvino needs", without=["onnx", "onnxscript"])
    import openvino

    # by default OpenVINO computes in bfloat16 where the processor supports it
    settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32"}
    if num_threads is not None:
        settings["INFERENCE_NUM_THREADS"] = num_threads
    compiled = openvino.Core().compile_model(graph, "CPU", settings)
    return lambda inputs: compiled(inputs)["embeddings"]
