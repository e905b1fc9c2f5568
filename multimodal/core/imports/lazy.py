"""Packages whose names are imported when they are first used."""

from __future__ import annotations

import ast
import functools
import importlib
import sys
from collections.abc import Callable
from typing import Any


def lazy(package: str) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` (PEP 562) of a package, of what it imports for type checkers.

    Its `__init__` names everything once, under ``if TYPE_CHECKING``, so that mypy, an editor and
    the running program read the same lines.

    Args:
        package: its ``__name__``.
    """

    @functools.cache
    def offers() -> dict[str, tuple[str, str]]:
        spec = sys.modules[package].__spec__
        assert spec is not None
        source = spec.loader.get_source(package)  # type: ignore[union-attr]
        return {
            alias.asname or alias.name: (str(node.module), alias.name)
            for block in ast.parse(source).body
            if isinstance(block, ast.If)
            for node in block.body
            if isinstance(node, ast.ImportFrom)
            for alias in node.names
        }

    def get(name: str) -> Any:
        if name.startswith("_") or name not in offers():
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module, original = offers()[name]
        value = getattr(importlib.import_module(module), original)
        setattr(sys.modules[package], name, value)
        return value

    def names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *offers()})

    return get, names
