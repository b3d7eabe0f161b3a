"""cca_hf: one embedding per attribute from one network and one pass, by conditional cross-attention.

Importing the package imports neither torch nor transformers: the public names below are looked up when they are first
used, and CCA joins transformers' auto classes when those are first imported. So `cca --help` answers at once, and
`AutoModel.from_pretrained(checkpoint)` works after `import cca_hf`, whichever of the two is imported first.
"""

import importlib
import importlib.abc
import importlib.machinery
import importlib.metadata
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the same names once more, for type checkers and editors; a test compares the two lists
    from .data.loading import load_attribute_dataset as load_attribute_dataset
    from .data.sampler import AttributeBatchSampler as AttributeBatchSampler
    from .data.schema import AttributeDataset as AttributeDataset
    from .data.shapes import generate_shapes_dataset as generate_shapes_dataset
    from .evaluation.retrieval.embeddings import evaluate_embeddings as evaluate_embeddings
    from .evaluation.retrieval.evaluator import RetrievalEvaluator as RetrievalEvaluator
    from .evaluation.retrieval.metrics import retrieval_metrics as retrieval_metrics
    from .evaluation.retrieval.result import EvaluationResult as EvaluationResult
    from .hub.publishing import push_model as push_model
    from .models.configuration_cca import CCAConfig as CCAConfig
    from .models.images import UnreadableImageError as UnreadableImageError
    from .models.modeling_cca import CCAModel as CCAModel
    from .models.pipeline_cca import CCAPipeline as CCAPipeline
    from .recipes.attribute_trainer import CCATrainer as CCATrainer
    from .runtimes.export import export_model as export_model
    from .runtimes.exported import ExportedModel as ExportedModel
    from .search.index import AttributeIndex as AttributeIndex
    from .training.arguments import CCATrainingArguments as CCATrainingArguments
    from .training.losses import ConditionalTripletLoss as ConditionalTripletLoss
    from .training.per_attribute_loss import PerAttributeLoss as PerAttributeLoss
    from .visualization.attention import plot_attention as plot_attention
    from .visualization.neighbours import plot_neighbours as plot_neighbours
    from .visualization.report import write_report as write_report

_MODULE_OF_NAME = {
    "AttributeBatchSampler": "data.sampler",
    "AttributeDataset": "data.schema",
    "AttributeIndex": "search.index",
    "CCAConfig": "models.configuration_cca",
    "CCAModel": "models.modeling_cca",
    "CCAPipeline": "models.pipeline_cca",
    "CCATrainer": "recipes.attribute_trainer",
    "CCATrainingArguments": "training.arguments",
    "ConditionalTripletLoss": "training.losses",
    "EvaluationResult": "evaluation.retrieval.result",
    "ExportedModel": "runtimes.exported",
    "PerAttributeLoss": "training.per_attribute_loss",
    "RetrievalEvaluator": "evaluation.retrieval.evaluator",
    "UnreadableImageError": "models.images",
    "evaluate_embeddings": "evaluation.retrieval.embeddings",
    "export_model": "runtimes.export",
    "generate_shapes_dataset": "data.shapes",
    "load_attribute_dataset": "data.loading",
    "plot_attention": "visualization.attention",
    "plot_neighbours": "visualization.neighbours",
    "push_model": "hub.publishing",
    "retrieval_metrics": "evaluation.retrieval.metrics",
    "write_report": "visualization.report",
}

__all__ = list(_MODULE_OF_NAME)


def __getattr__(name: str) -> object:
    if name == "__version__":
        return importlib.metadata.version(__name__)
    if name not in _MODULE_OF_NAME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = vars(importlib.import_module(f"{__name__}.{_MODULE_OF_NAME[name]}"))[name]
    globals()[name] = value  # the next access does not come here
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__, "__version__"])


_CONFIGS = {
    "CCAConfig": "models.configuration_cca",
    "CSNConfig": "models.configuration_baselines",
    "ASENConfig": "models.configuration_baselines",
    "SeparateConfig": "models.configuration_baselines",
}
_MODELS = {
    "CCAModel": "models.modeling_cca",
    "CSNModel": "models.modeling_csn",
    "ASENModel": "models.modeling_asen",
    "SeparateModel": "models.modeling_separate",
}


def _register_configs() -> None:
    from transformers.models.auto.configuration_auto import AutoConfig

    for name, module in _CONFIGS.items():
        found = vars(importlib.import_module(f"{__name__}.{module}"))
        if name not in found:  # its import is what brought us here: we are called again at its end
            return
        AutoConfig.register(found[name].model_type, found[name], exist_ok=True)


def _register_models() -> None:
    from transformers.models.auto.modeling_auto import AutoModel

    layers = sys.modules.get("transformers.modeling_layers")
    if layers is not None and "GradientCheckpointingLayer" not in vars(layers):  # it is what imported modeling_auto
        return
    for name, module in _MODELS.items():
        found = vars(importlib.import_module(f"{__name__}.{module}"))
        if name not in found:
            return
        AutoModel.register(found[name].config_class, found[name], exist_ok=True)


_REGISTER_AFTER = {
    "transformers.models.auto.configuration_auto": _register_configs,
    "transformers.models.auto.modeling_auto": _register_models,
    "transformers.modeling_layers": _register_models,
    **{f"{__name__}.{module}": _register_configs for module in _CONFIGS.values()},
    **{f"{__name__}.{module}": _register_models for module in _MODELS.values()},
}


_OWN = f"{__name__}.models."
_half_imported: list[str] = []
_waiting: dict[Callable[[], None], None] = {}


class _RegisterOnImport(importlib.abc.MetaPathFinder):
    """Lets a module of `_REGISTER_AFTER` be imported as ever, and registers CCA straight afterwards."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname not in _REGISTER_AFTER and not fullname.startswith(_OWN):
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and isinstance(spec.loader, importlib.machinery.SourceFileLoader):
            spec.loader = _RegisteringLoader(spec.loader.name, spec.loader.path)
        return spec


class _RegisteringLoader(importlib.machinery.SourceFileLoader):
    """Runs the module's file, then the registration that waits for it.

    Any module of `models` may be what imports transformers' first. Its own import is not done then, and registering,
    which imports the others, would find it half there: so it waits for the outermost of them.
    """

    def exec_module(self, module: ModuleType) -> None:
        own = module.__name__.startswith(_OWN)
        if own:
            _half_imported.append(module.__name__)
        try:
            super().exec_module(module)
        finally:
            if own:
                _half_imported.remove(module.__name__)
        if module.__name__ in _REGISTER_AFTER:
            _waiting[_REGISTER_AFTER[module.__name__]] = None
        while _waiting and not _half_imported:
            _waiting.popitem()[0]()


sys.meta_path.insert(0, _RegisterOnImport())
for _module, _register in _REGISTER_AFTER.items():
    if _module in sys.modules:  # transformers came first
        _register()
