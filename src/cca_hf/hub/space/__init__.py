"""The Space: a page that searches by image and shows the results of each attribute; see docs/space.md."""

from .export import export_space
from .lookup import Lookup
from .page import launch_space, make_space

__all__ = ["Lookup", "export_space", "launch_space", "make_space"]
