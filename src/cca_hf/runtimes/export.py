"""A trained model as one graph: pixel values in, normalised embeddings under all attributes out.

The graph contains the backbone, the conditions, the conditional layer and the normalisation, for batches of any size.
PyTorch exports it (`torch.onnx.export`), ONNX Runtime quantises it, and OpenVINO converts it.
"""

import ast
import copy
import hashlib
import importlib.util
import logging
from collections.abc import Sequence
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from cca_hf.models.configuration_cca import ConditionConfig
from cca_hf.models.images import ImageReader
from cca_hf.models.modeling_conditional import ConditionalPreTrainedModel
from cca_hf.models.whole_files import staged, write_json

DESCRIPTION = "export.json"  # describes the graph; ExportedModel reads it
GRAPH = {"onnx": "model.onnx", "openvino": "model.xml"}
_LARGEST_IN_ONE_FILE = 1.9 * 2**30  # bytes of weights: a protobuf message ends at 2 GiB

Runtime = Literal["onnx", "openvino"]


def export_model(
    model: ConditionalPreTrainedModel,
    folder: str | PathLike[str],
    runtime: Runtime = "onnx",
    *,
    attributes: Sequence[str] | None = None,
    attribute_input: bool = False,
    int8: bool = False,
) -> Path:
    """Write a model as one graph, with the files that [`ExportedModel`] needs to use it like the model itself.

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

    Returns:
        The folder.

    Raises:
        ValueError: for an unknown runtime or attribute, or `int8` with OpenVINO or a backbone without matrix products.
        ImportError: if a package is missing; the message says what to install.
    """
    if runtime not in GRAPH:
        raise ValueError(f"runtime must be one of {', '.join(map(repr, GRAPH))}; got {runtime!r}")
    if int8 and runtime != "onnx":
        raise ValueError(f"int8 needs the quantiser of ONNX Runtime, that is runtime='onnx'; got {runtime!r}")
    tools = {"onnx": ["onnxruntime"] if int8 else [], "openvino": ["openvino"]}[runtime]
    check_installed(runtime, "onnx", "onnxscript", *tools)
    ids = model.config.attribute_ids(attributes)
    names = [model.config.attributes[index] for index in ids]
    with staged(folder) as staging:
        graph = staging / GRAPH["onnx"]
        embedder = _Embedder(model.in_eval_mode(), ids, attribute_input=attribute_input).eval()
        _write_onnx(embedder, graph)
        if int8:
            _quantise(graph, model)
        if runtime == "openvino":
            _convert_to_openvino(graph)
        _write_config(model, names, staging)
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
        write_json(description, staging / DESCRIPTION)
    return Path(folder)


class _Embedder(nn.Module):
    """The exported module: a model with a fixed list of attributes, or with indices into that list as an input."""

    def __init__(self, model: ConditionalPreTrainedModel, ids: list[int], *, attribute_input: bool):
        super().__init__()
        self.model = model
        self.attribute_input = attribute_input
        self.ids: torch.Tensor
        self.register_buffer("ids", torch.tensor(ids, dtype=torch.long, device=model.device))

    def forward(self, pixel_values: torch.Tensor, attribute_ids: torch.Tensor | None = None) -> torch.Tensor:
        ids = self.ids.expand(pixel_values.shape[0], -1) if attribute_ids is None else self.ids[attribute_ids]
        return self.model(pixel_values, attribute_ids=ids).embeddings


def _write_onnx(embedder: _Embedder, path: Path) -> None:
    model, size = embedder.model, ImageReader(embedder.model.image_processor).height_and_width
    # two images and two attributes, because a dimension of 1 would become a constant
    pixel_values = torch.zeros(2, 3, *size, dtype=model.dtype, device=model.device)
    batch = torch.export.Dim("batch")
    inputs, shapes = {"pixel_values": pixel_values}, {"pixel_values": {0: batch}}
    if embedder.attribute_input:
        inputs["attribute_ids"] = torch.zeros(2, 2, dtype=torch.long, device=model.device)
        shapes["attribute_ids"] = {0: batch, 1: torch.export.Dim("attributes")}
    weights = sum(tensor.numel() * tensor.element_size() for tensor in embedder.state_dict().values())
    # the exporter supports only the plain kernel's memory layout; with others Swin's masked attention fails
    with _quiet_exporter(), sdpa_kernel(SDPBackend.MATH):
        torch.onnx.export(
            embedder,
            kwargs=inputs,
            f=path,
            dynamo=True,
            dynamic_shapes=shapes,
            input_names=list(inputs),
            output_names=["embeddings"],
            external_data=weights > _LARGEST_IN_ONE_FILE,
            verbose=False,
        )


@contextmanager
def _quiet_exporter() -> Any:
    """Silence the warnings about torchvision's operators, which the graph does not need."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _quantise(graph: Path, model: ConditionalPreTrainedModel) -> None:
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    # The layers behind the backbone take a hundredth of the time, and their errors are those of the embeddings.
    nodes = onnx.load(graph, load_external_data=False).graph.node
    products = [node for node in nodes if node.op_type == "MatMul"]
    behind = [node.name for node in products if not _is_in_backbone(node)]
    if len(behind) == len(products):
        backbone: Any = model.config.backbone_config
        raise ValueError(
            "int8 is for a backbone's matrix products, and makes transformers (ViT, DINOv2, Swin, ...) faster; "
            f"{backbone.model_type} has none: export it without int8"
        )
    quantised = graph.with_name("quantised.onnx")
    quantize_dynamic(
        graph,
        quantised,
        op_types_to_quantize=["MatMul"],
        per_channel=True,
        weight_type=QuantType.QInt8,
        nodes_to_exclude=behind,
    )
    for path in graph.parent.glob(f"{graph.name}*"):
        path.unlink()
    quantised.rename(graph)


def _is_in_backbone(node: Any) -> bool:
    """The exporter writes the names of a node's modules into its metadata."""
    modules = {entry.key: entry.value for entry in node.metadata_props}["pkg.torch.onnx.name_scopes"]
    return any("backbone" in module.split(".") for module in ast.literal_eval(modules))


def _convert_to_openvino(graph: Path) -> None:
    import openvino

    openvino.save_model(openvino.convert_model(graph), graph.with_name(GRAPH["openvino"]), compress_to_fp16=False)
    for path in graph.parent.glob(f"{graph.name}*"):
        path.unlink()


def _write_config(model: ConditionalPreTrainedModel, names: list[str], folder: Path) -> None:
    config = copy.deepcopy(model.config)
    config.attributes = names
    values = config.attribute_values or {}
    config.attribute_values = {name: values[name] for name in names if name in values}
    if isinstance(config, ConditionConfig):
        texts = config.attribute_texts or {}
        config.attribute_texts = {name: texts[name] for name in names if name in texts}
    config.save_pretrained(folder)


def _hash_files(folder: Path) -> str:
    """SHA-256 of the graph, its weights, its attributes and the image processor."""
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        digest.update(path.name.encode())
        with path.open("rb") as file:
            hashlib.file_digest(file, lambda: digest)
    return digest.hexdigest()


def check_installed(runtime: Runtime, *packages: str) -> None:
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(f'a graph for {runtime} needs {", ".join(missing)}: pip install "cca_hf[{runtime}]"')
