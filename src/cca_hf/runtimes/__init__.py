"""Trained models as graphs for ONNX Runtime or OpenVINO, with the interface of the model."""
