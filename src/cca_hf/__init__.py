"""cca_hf: one embedding per attribute from one network and one pass, by conditional cross-attention.

Importing the package imports neither torch nor transformers: a public name is imported at its first use, so that
`cca --help` answers at once. `AutoModel.from_pretrained(checkpoint)` knows the models after `import cca_hf.models` or
the use of any public name, such as `from cca_hf import CCAModel`.
"""

import importlib
import importlib.metadata
from typing import TYPE_CHECKING

from .lazy_names import import_at_first_use

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
    from .hub.trainer import CCATrainer as CCATrainer
    from .models.configuration_cca import CCAConfig as CCAConfig
    from .models.image_embedder import ImageEmbedder as ImageEmbedder
    from .models.images import UnreadableImageError as UnreadableImageError
    from .models.modeling_adde import ADDEModel as ADDEModel
    from .models.modeling_cca import CCAModel as CCAModel
    from .models.pipeline_cca import CCAPipeline as CCAPipeline
    from .runtimes.export import ExportedModel as ExportedModel
    from .runtimes.export import export_model as export_model
    from .search.index import AttributeIndex as AttributeIndex
    from .training.arguments import CCATrainingArguments as CCATrainingArguments
    from .training.losses import ConditionalTripletLoss as ConditionalTripletLoss
    from .training.per_attribute_loss import PerAttributeLoss as PerAttributeLoss
    from .visualization.attention import plot_attention as plot_attention
    from .visualization.neighbours import plot_neighbours as plot_neighbours
    from .visualization.report import write_report as write_report

_MODULE_OF_NAME = {
    "ADDEModel": "models.modeling_adde",
    "AttributeBatchSampler": "data.sampler",
    "AttributeDataset": "data.schema",
    "AttributeIndex": "search.index",
    "CCAConfig": "models.configuration_cca",
    "CCAModel": "models.modeling_cca",
    "CCAPipeline": "models.pipeline_cca",
    "CCATrainer": "hub.trainer",
    "CCATrainingArguments": "training.arguments",
    "ConditionalTripletLoss": "training.losses",
    "EvaluationResult": "evaluation.retrieval.result",
    "ExportedModel": "runtimes.export",
    "ImageEmbedder": "models.image_embedder",
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


_import_name, _list_names = import_at_first_use(__name__, _MODULE_OF_NAME)


def __getattr__(name: str) -> object:
    if name == "__version__":
        return importlib.metadata.version(__name__)
    if name in _MODULE_OF_NAME:
        importlib.import_module(f"{__name__}.models")  # registers the models with transformers' auto classes
    return _import_name(name)


def __dir__() -> list[str]:
    return sorted([*_list_names(), "__version__"])
