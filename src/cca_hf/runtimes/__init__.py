"""Trained models on other engines: exported to one graph for ONNX Runtime or OpenVINO, and used as before."""
