"""Retrieval metrics, triplet accuracy and fine order, the evaluators that run them, and their results."""

from cca_hf.evaluation.retrieval.embeddings import Gallery, evaluate_embeddings
from cca_hf.evaluation.retrieval.evaluator import BackboneEvaluator, RetrievalEvaluator
from cca_hf.evaluation.retrieval.fine_order import fine_order
from cca_hf.evaluation.retrieval.metrics import AttributeRetrieval, RetrievalScores, retrieval_metrics
from cca_hf.evaluation.retrieval.result import AttributeResult, EvaluationResult, ValueResult
from cca_hf.evaluation.retrieval.triplets import ConditionAccuracy, TripletEvaluator, TripletResult, triplet_accuracy

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
    "fine_order",
    "retrieval_metrics",
    "triplet_accuracy",
]
