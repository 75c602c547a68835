"""Names of a package that are loaded from its modules on first use (PEP 562), so that importing it is cheap."""

import sys
from collections.abc import Callable, Mapping
from importlib import import_module


def loaded_on_use(package: str, places: Mapping[str, tuple[str, str]]) -> Callable[[str], object]:
    """The `__getattr__` of a package.

    Args:
        package: Its name.
        places: For each name that it offers, the module below it and what it is called there.

    Returns:
        A function that raises AttributeError for any other name.
    """

    def load(name: str) -> object:
        if name not in places:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module, attribute = places[name]
        value: object = getattr(import_module(f"{package}.{module}"), attribute)
        setattr(sys.modules[package], name, value)
        return value

    return load
