"""The configuration that every model with attributes shares."""

from .configuration_cca import CCAConfig as AttributeConfig

__all__ = ["AttributeConfig"]
