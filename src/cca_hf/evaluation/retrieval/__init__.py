"""Retrieval metrics, their exact computation and the evaluators that run them."""
