"""Retrieval metrics and triplet accuracy, the evaluators that run them, and the tables that show them."""

from .embeddings import Gallery, evaluate_embeddings
from .evaluator import BackboneEvaluator, RetrievalEvaluator
from .result import AttributeResult, EvaluationResult, ValueResult
from .retrieval import AttributeRetrieval, RetrievalScores, retrieval_metrics
from .triplet_accuracy import ConditionAccuracy, TripletResult, triplet_accuracy
from .triplet_evaluator import TripletEvaluator

__all__ = [
    "AttributeResult",
    "AttributeRetrieval",
    "BackboneEvaluator",
    "ConditionAccuracy",
    "EvaluationResult",
    "Gallery",
    "RetrievalEvaluator",
    "RetrievalScores",
    "TripletEvaluator",
    "TripletResult",
    "ValueResult",
    "evaluate_embeddings",
    "retrieval_metrics",
    "triplet_accuracy",
]
