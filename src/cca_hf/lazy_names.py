"""Public names of a package that are imported at their first use."""

import importlib
import sys
from collections.abc import Callable, Mapping


def import_at_first_use(package: str, module_of_name: Mapping[str, str]) -> tuple[Callable, Callable]:
    """The functions `__getattr__` and `__dir__` of a package.

    Args:
        package: its `__name__`.
        module_of_name: the module below the package that has a public name.
    """
    namespace = vars(sys.modules[package])

    def get(name: str) -> object:
        if name not in module_of_name:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value: object = vars(importlib.import_module(f"{package}.{module_of_name[name]}"))[name]
        namespace[name] = value  # the next access does not call this function
        return value

    return get, lambda: sorted({*namespace, *module_of_name})
