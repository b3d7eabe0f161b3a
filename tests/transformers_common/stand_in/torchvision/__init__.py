"""A stand-in for torchvision, where it is not installed: what transformers' example scripts import of it."""
