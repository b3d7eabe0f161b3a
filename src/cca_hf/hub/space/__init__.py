"""The Space: a page to choose or upload a picture and see what is like it under each attribute; see docs/space.md."""

from .export import export_space
from .lookup import Lookup
from .page import launch_space, make_space

__all__ = ["Lookup", "export_space", "launch_space", "make_space"]
