"""Retrieval metrics, the evaluator that runs them, and the tables that show them."""

from .embeddings import Gallery, evaluate_embeddings
from .evaluator import BackboneEvaluator, RetrievalEvaluator
from .result import AttributeResult, EvaluationResult, ValueResult
from .retrieval import AttributeRetrieval, RetrievalScores, retrieval_metrics

__all__ = [
    "AttributeResult",
    "AttributeRetrieval",
    "BackboneEvaluator",
    "EvaluationResult",
    "Gallery",
    "RetrievalEvaluator",
    "RetrievalScores",
    "ValueResult",
    "evaluate_embeddings",
    "retrieval_metrics",
]
