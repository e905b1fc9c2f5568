"""Whether a value of a configuration fits an annotation; only certain mismatches are reported."""

from __future__ import annotations

import collections.abc
import dataclasses
import enum
import functools
import inspect
import os
import types
import typing
from collections.abc import Hashable, Iterator
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from multimodal.config.problems import ConfigProblem, did_you_mean, nearest
from multimodal.config.tree import UNKNOWN, join
from multimodal.core.bounds import broken


class Target:
    """Annotation of a block that Hydra builds: it has a `_target_`."""


_SCALARS = {bool: "true or false", int: "an integer", float: "a number", str: "a string"}
_SEQUENCES = (
    list, tuple, set, frozenset, collections.abc.Sequence, collections.abc.Iterable,
    collections.abc.Collection, collections.abc.Set,
)  # fmt: skip
_MAPPINGS = (dict, collections.abc.Mapping, collections.abc.MutableMapping)
# A plain value is never an instance of these packages' classes; of others it may be made into one.
_OBJECTS_OF = ("multimodal", "torch", "pytorch_lightning")


def hints_of(built: Any) -> dict[str, Any]:
    """The annotations of what a class or function takes; empty where they cannot be known here."""
    try:
        return _hints(built) if isinstance(built, Hashable) else _hints.__wrapped__(built)
    except Exception:  # for example names under TYPE_CHECKING: then the constructor validates
        return {}


@functools.lru_cache(maxsize=4096)  # a tower's classes are asked for block by block
def _hints(built: Any) -> dict[str, Any]:
    if dataclasses.is_dataclass(built):  # each field's are names of the module that it is from
        return typing.get_type_hints(built, include_extras=True)
    init = inspect.getattr_static(built, "__init__") if inspect.isclass(built) else built
    return typing.get_type_hints(init, include_extras=True)


def signature_of(built: Any) -> inspect.Signature:
    """What may be passed to a class or function.

    Raises:
        TypeError, ValueError: of builtins that do not say.
    """
    cached = isinstance(built, Hashable)
    return _signature(built) if cached else inspect.signature(built)


_signature = functools.lru_cache(maxsize=4096)(inspect.signature)


def mismatches(value: Any, annotation: Any, where: str) -> Iterator[ConfigProblem]:
    """The mismatches of ``value`` with ``annotation``, each at its own path.

    Dataclasses are schemas of plain blocks: no unknown key, every key without a default there.
    """
    choices = [choice for choice in alternatives(annotation) if choice is not type(None)]
    if len(choices) == 1:
        only, origin = choices[0], get_origin(choices[0]) or choices[0]
        if isinstance(value, dict) and "_target_" not in value:
            if dataclasses.is_dataclass(only) and isinstance(only, type):
                yield from _against_schema(value, only, where)
                return
            if origin in _MAPPINGS and len(get_args(only)) == 2:
                for key, item in value.items():
                    yield from mismatches(item, get_args(only)[1], join(where, key))
                return
        if isinstance(value, list) and origin in _SEQUENCES and _items(only, len(value)):
            for index, item in enumerate(value):
                yield from mismatches(item, _items(only, len(value))[index], f"{where}[{index}]")
            return
    if bounds := broken(value, annotation):
        yield ConfigProblem(where, f"given {value}, expected a number {bounds}")
    elif _fits(value, annotation) is False:
        expected = f"{describe(annotation)}{_hint(value, annotation)}"
        yield ConfigProblem(where, f"given {_shown(value)}, expected {expected}")


def _against_schema(value: dict[str, Any], schema: type, where: str) -> Iterator[ConfigProblem]:
    hints = _hints(schema)
    fields = {field.name: field for field in dataclasses.fields(schema)}
    for key, item in value.items():
        if key in fields:
            yield from mismatches(item, hints[key], join(where, key))
        else:
            yield ConfigProblem(join(where, key), f"no such key here; {did_you_mean(key, fields)}")
    for name, field in fields.items():
        if name not in value and field.default is field.default_factory is dataclasses.MISSING:
            yield ConfigProblem(where, f"lacks '{name}', expected {describe(hints[name])}")


def alternatives(annotation: Any) -> list[Any]:
    """The alternatives of a union; otherwise the annotation alone."""
    if get_origin(annotation) is Annotated:
        return alternatives(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return [member for part in get_args(annotation) for member in alternatives(part)]
    return [type(None) if annotation is None else annotation]


def _items(annotation: Any, length: int) -> list[Any]:
    """One annotation per item of a sequence, empty where it does not say or the length is wrong."""
    arguments = get_args(annotation)
    if not arguments or arguments == ((),):
        return []
    if get_origin(annotation) is tuple and arguments[-1] is not Ellipsis:
        return list(arguments) if len(arguments) == length else []
    return [arguments[0]] * length


def _fits(value: Any, annotation: Any) -> bool | None:
    """True, False, or None if only the constructor can decide."""
    if value is UNKNOWN:
        return None
    members = alternatives(annotation)
    verdicts = [_fits_one(value, member) for member in members]
    if True in verdicts:
        return True
    known = any(m in _SCALARS or get_origin(m) is Literal for m in members)
    if None in verdicts and not (known and isinstance(value, bool | int | float | str)):
        return None
    return False


def _fits_one(value: Any, annotation: Any) -> bool | None:
    origin = get_origin(annotation) or annotation
    if annotation is Any or annotation is object or not isinstance(origin, type):
        choices = get_args(annotation) if origin is Literal else ()
        return any(c == value and type(c) is type(value) for c in choices) if choices else None
    if isinstance(value, dict) and "_target_" in value:
        return False if origin in _SCALARS or issubclass(origin, enum.Enum) else None
    if origin is type(None) or value is None:
        return value is None and origin is type(None)
    if origin in _SCALARS:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return number if origin is float else type(value) is origin
    if issubclass(origin, enum.Enum):
        return any(value in (member.name, member.value) for member in origin)
    if origin in _SEQUENCES:
        if not isinstance(value, list):
            return False
        if not get_args(annotation):
            return True
        items = _items(annotation, len(value))
        return len(items) == len(value) and all(
            _fits(item, kind) is not False for item, kind in zip(value, items, strict=True)
        )
    if origin in _MAPPINGS or dataclasses.is_dataclass(origin):
        return isinstance(value, dict)
    if issubclass(origin, os.PathLike):
        return isinstance(value, str)
    if origin in (Target, collections.abc.Callable):
        return False
    return False if origin.__module__.split(".")[0] in _OBJECTS_OF else None


def describe(annotation: Any) -> str:
    """``annotation`` in words: "an integer or null"."""
    return " or ".join(_describe_one(member) for member in alternatives(annotation))


def _describe_one(annotation: Any) -> str:
    origin = get_origin(annotation) or annotation
    if annotation is type(None):
        return "null"
    if origin in _SCALARS:
        return _SCALARS[origin]
    if origin is Literal:
        return "one of " + ", ".join(repr(choice) for choice in get_args(annotation))
    if isinstance(origin, type) and issubclass(origin, enum.Enum):
        return "one of " + ", ".join(repr(member.name) for member in origin)
    if origin in _SEQUENCES:
        inner = ", ".join(describe(a) for a in get_args(annotation) if a is not Ellipsis)
        return f"a list ({inner})" if inner else "a list"
    if origin in _MAPPINGS or dataclasses.is_dataclass(origin):
        return "a block of keys"
    if isinstance(origin, type) and issubclass(origin, os.PathLike):
        return "a path"
    kind = "" if origin is Target else f" ({getattr(origin, '__name__', origin)})"
    return f"a block with a `_target_`{kind}"


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return f"a block with the keys {', '.join(value)}" if value else "an empty block"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return repr(value)


def _hint(value: Any, annotation: Any) -> str:
    if isinstance(value, float) and value.is_integer() and int in alternatives(annotation):
        return f"; write {int(value)}"
    choices: list[str] = []
    for member in alternatives(annotation):
        if get_origin(member) is Literal:
            choices += [str(choice) for choice in get_args(member)]
        elif isinstance(member, type) and issubclass(member, enum.Enum):
            choices += list(member.__members__)
    close = nearest(value, choices) if isinstance(value, str) else []
    return f"; did you mean '{close[0]}'?" if close else ""
