"""Settings objects for constructors whose keywords stay flat in a YAML.

A dataclass bundles parameters that travel together; `flattened` lets a constructor take its fields
as its own keywords. Users type ``data.prefetch=4``, the code passes one object on, and the check of
a configuration reads every field in the constructor's signature.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import typing
from collections.abc import Callable
from typing import Any

Constructor = Callable[..., None]


def flattened(**settings: type) -> Callable[[Constructor], Constructor]:
    """Lets a constructor take the fields of its settings objects as keywords.

    The object itself is taken too; a field beside it is refused.

    Args:
        settings: parameter of the constructor -> the dataclass that it holds. The parameter has no
            default: without any field it is the dataclass's own defaults.

    Raises:
        TypeError: if given a call that gives both an object and one of its fields.
    """
    fields = {name: _fields(kind) for name, kind in settings.items()}

    def decorate(init: Constructor) -> Constructor:
        @functools.wraps(init)
        def constructor(self: Any, *args: Any, **given: Any) -> None:
            for name, kind in settings.items():
                own = {field: given.pop(field) for field in fields[name] if field in given}
                if name not in given:
                    given[name] = kind(**own)
                elif own:
                    raise TypeError(f"give either {name}= or {', '.join(own)}, not both")
            init(self, *args, **given)

        signature = inspect.signature(init)
        kept = [p for p in signature.parameters.values() if p.name not in settings]
        added = [parameter for own in fields.values() for parameter in own.values()]
        constructor.__signature__ = signature.replace(  # type: ignore[attr-defined]
            parameters=[*kept, *added]
        )
        hints = {name: each for name, each in init.__annotations__.items() if name not in settings}
        for kind in settings.values():
            hints |= typing.get_type_hints(kind)
        constructor.__annotations__ = hints
        return constructor

    return decorate


def _fields(kind: type) -> dict[str, inspect.Parameter]:
    """Field -> its keyword."""
    parameters = {}
    for field in dataclasses.fields(kind):
        default = field.default
        if default is dataclasses.MISSING:
            factory = field.default_factory
            default = inspect.Parameter.empty if factory is dataclasses.MISSING else factory()
        parameters[field.name] = inspect.Parameter(
            field.name, inspect.Parameter.KEYWORD_ONLY, default=default
        )
    return parameters
