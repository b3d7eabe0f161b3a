"""Trained models on other engines: exported to one graph for ONNX Runtime or OpenVINO, with the same interface."""
