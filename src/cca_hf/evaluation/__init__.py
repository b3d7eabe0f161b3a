"""Retrieval metrics, triplet accuracy and fine order, the evaluators that run them, and their results.

A name is imported at its first use: the tables of `text_table.py` need none of the evaluators, which import torch.
"""

from typing import TYPE_CHECKING

from cca_hf.lazy_names import import_at_first_use

if TYPE_CHECKING:  # the same names once more, for type checkers and editors; a test compares the two lists
    from .retrieval.embeddings import Gallery as Gallery
    from .retrieval.embeddings import evaluate_embeddings as evaluate_embeddings
    from .retrieval.evaluator import BackboneEvaluator as BackboneEvaluator
    from .retrieval.evaluator import RetrievalEvaluator as RetrievalEvaluator
    from .retrieval.fine_order import fine_order as fine_order
    from .retrieval.metrics import AttributeRetrieval as AttributeRetrieval
    from .retrieval.metrics import RetrievalScores as RetrievalScores
    from .retrieval.metrics import retrieval_metrics as retrieval_metrics
    from .retrieval.result import AttributeResult as AttributeResult
    from .retrieval.result import EvaluationResult as EvaluationResult
    from .retrieval.result import ValueResult as ValueResult
    from .retrieval.triplets import ConditionAccuracy as ConditionAccuracy
    from .retrieval.triplets import TripletEvaluator as TripletEvaluator
    from .retrieval.triplets import TripletResult as TripletResult
    from .retrieval.triplets import triplet_accuracy as triplet_accuracy

_MODULE_OF_NAME = {
    "AttributeResult": "retrieval.result",
    "AttributeRetrieval": "retrieval.metrics",
    "BackboneEvaluator": "retrieval.evaluator",
    "ConditionAccuracy": "retrieval.triplets",
    "EvaluationResult": "retrieval.result",
    "Gallery": "retrieval.embeddings",
    "RetrievalEvaluator": "retrieval.evaluator",
    "RetrievalScores": "retrieval.metrics",
    "TripletEvaluator": "retrieval.triplets",
    "TripletResult": "retrieval.triplets",
    "ValueResult": "retrieval.result",
    "evaluate_embeddings": "retrieval.embeddings",
    "fine_order": "retrieval.fine_order",
    "retrieval_metrics": "retrieval.metrics",
    "triplet_accuracy": "retrieval.triplets",
}

__all__ = list(_MODULE_OF_NAME)
__getattr__, __dir__ = import_at_first_use(__name__, _MODULE_OF_NAME)
