"""Public names of a package, each imported from its module when it is first asked for.

    __getattr__, __all__ = exports(__name__, {"storage": "Catalog Roles", "splits": "assign_splits"})

So `import catalens` and `catalens --help` load nothing, and one name of a package does not load the others.
"""

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def exports(package: str, homes: Mapping[str, str]) -> tuple[Callable[[str], Any], list[str]]:
    """Make a package's `__getattr__` and `__all__` of its public names by module; `name=other` renames one."""
    found = {public.partition("=")[0]: (module, public) for module, some in homes.items() for public in some.split()}

    def get(name: str) -> Any:
        if name not in found:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module, public = found[name]
        value = getattr(import_module(f"{package}.{module}"), public.partition("=")[2] or name)
        setattr(sys.modules[package], name, value)
        return value

    return get, sorted(found)
