"""The extras of the package, such as `cca_hf[plot]`: looks for their packages without importing them."""

import importlib.util
from collections.abc import Collection

# extra -> the name to import -> the name to install, as in setup.cfg
PACKAGES = {
    "analysis": {"sklearn": "scikit-learn", "scipy": "scipy"},
    "augmentation": {"kornia": "kornia"},
    "onnx": {"onnx": "onnx", "onnxruntime": "onnxruntime", "onnxscript": "onnxscript"},
    "openvino": {"onnx": "onnx", "onnxscript": "onnxscript", "openvino": "openvino"},
    "plot": {"matplotlib": "matplotlib"},
    "qdrant": {"qdrant_client": "qdrant-client"},
    "ray": {"ray": "ray"},
    "search": {"lancedb": "lancedb", "lance": "pylance"},
    "serve": {"prometheus_client": "prometheus-client", "starlette": "starlette", "uvicorn": "uvicorn"},
    "space": {"gradio": "gradio", "lancedb": "lancedb", "lance": "pylance"},
    "text": {"sentence_transformers": "sentence-transformers"},
}


def require(extra: str, what: str, *, without: Collection[str] = ()) -> None:
    """Checks that the packages of an extra are installed.

    The commands call it before they load a model or data, and before they write.

    Args:
        what: begins the message, such as "figures need".
        without: modules of the extra that are not needed here.

    Raises:
        ImportError: if a package is missing; the message has the command that installs it. pip reads the extras of an
            installed `cca_hf` from its metadata: the command needs no `cca_hf` in a package index.
    """
    needed = {module: name for module, name in PACKAGES[extra].items() if module not in without}
    missing = [name for module, name in needed.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise ImportError(f'{what} {", ".join(missing)}: pip install "cca_hf[{extra}]"')
