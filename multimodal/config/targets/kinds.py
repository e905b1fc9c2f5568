"""What may stand where: at each place of a configuration, the kinds of classes that belong there.

A root's place has its kind in `PLACES`; a nested block fills a parameter of its class,
and that parameter's annotation is its kind. Nothing is instantiated, and nothing of a class is
called, in order to be judged.
"""

from __future__ import annotations

import collections.abc
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from types import NoneType
from typing import Any, get_args, get_origin

from multimodal.config.annotations import alternatives, hints_of, signature_of
from multimodal.config.targets.resolving import inside, is_own, resolve

# The kind at each place: an instance, or, with PARTIAL before it, what the partial makes.
PARTIAL = "partial "
_SOURCE = "multimodal.data.Source"
_CALLBACK = "pytorch_lightning.callbacks.Callback"
PLACES = {
    "model": "multimodal.models.EmbeddingModel",
    "fusion": f"{PARTIAL}torch.nn.Module",
    "tasks.*": f"{PARTIAL}multimodal.models.Task",
    "loss": "multimodal.objectives.Loss",
    "negatives": "multimodal.objectives.Negatives",
    "candidates": "multimodal.objectives.Candidates",
    "similarity": "multimodal.objectives.Similarity",
    "self_distillation": "multimodal.objectives.SelfDistillation",
    "pairs.*.loss": "multimodal.objectives.Loss",
    "pairs.*.negatives": "multimodal.objectives.Negatives",
    "pairs.*.candidates": "multimodal.objectives.Candidates",
    "data": "multimodal.data.MultimodalDataModule",
    "data.limits": "multimodal.data.Limits",
    "data.sources.*": _SOURCE,
    "data.val_sources.*": _SOURCE,
    "data.transforms.*": "multimodal.data.Transform",
    "data.transforms.*.tokenizer": "multimodal.data.TextTokenizer",
    "optimizer": f"{PARTIAL}torch.optim.Optimizer",
    "scheduler": f"{PARTIAL}torch.optim.lr_scheduler.LRScheduler",
    "trainer.strategy": "pytorch_lightning.strategies.Strategy",
    "trainer.profiler": "pytorch_lightning.profilers.Profiler",
    "callbacks.*": _CALLBACK,
    "logger.*": "pytorch_lightning.loggers.Logger",
    "evaluation.sets.*.source": _SOURCE,
    "evaluation.sets.*.probes.*.train": _SOURCE,
    "evaluation.sets.*.probes.*.validation": _SOURCE,
    "evaluation.sets.*.evaluators.*": "multimodal.evaluation.evaluators.base.Evaluator",
}
# Of the many classes that are an nn.Module, those that are a part of a network.
MODULES = (
    "multimodal.models.encoders",
    "multimodal.models.layers",
    "multimodal.models.heads",
    "multimodal.models.fusion",
    "torch.nn.modules",
)


@dataclass(frozen=True)
class Kind:
    """A base class or a protocol; with ``partial``, of what a `_partial_` block makes."""

    base: type
    partial: bool = False

    def __str__(self) -> str:
        made = f"{self.base.__module__}.{self.base.__qualname__}"
        return f"a `_partial_: true` block of a {made}" if self.partial else f"a {made}"


def kinds_at(path: Sequence[str]) -> list[Kind]:
    """The kinds at a place of the root; none where nothing is built."""
    for pattern, dotted in PLACES.items():
        parts = pattern.split(".")
        if len(parts) == len(path) and all(
            part in ("*", key) for part, key in zip(parts, path, strict=True)
        ):
            name = dotted.removeprefix(PARTIAL)
            return [Kind(resolve(name, (name.split(".")[0],)), dotted.startswith(PARTIAL))]
    return []


def kinds_of(annotation: Any) -> list[Kind]:
    """The kinds that a parameter's annotation asks for; none if it takes plain values alone."""
    kinds: list[Kind] = []
    for member in alternatives(annotation):
        origin = get_origin(member) or member
        if origin is collections.abc.Callable and len(get_args(member)) == 2:
            made = get_args(member)[1]
            kinds += [Kind(kind.base, partial=True) for kind in kinds_of(made)]
        elif isinstance(origin, type) and _is_kind(origin):
            kinds.append(Kind(origin))
    return kinds


def _is_kind(origin: type) -> bool:
    plain = (bool, int, float, complex, str, bytes, object, NoneType, type)
    package = origin.__module__.split(".")[0]
    return origin not in plain and package not in ("builtins", "typing", "collections", "enum")


def items_of(annotation: Any, key: int | None = None) -> Any:
    """The annotation of what a list or mapping of ``annotation`` holds; None if it does not say."""
    for member in alternatives(annotation):
        origin, arguments = get_origin(member), get_args(member)
        if not isinstance(origin, type) or not arguments:
            continue
        if key is None and issubclass(origin, collections.abc.Mapping) and len(arguments) == 2:
            return arguments[1]
        if key is not None and issubclass(origin, collections.abc.Iterable):
            fixed = origin is tuple and arguments[-1] is not Ellipsis
            if not fixed or key < len(arguments):
                return arguments[key if fixed else 0]
    return None


def parameters_of(built: Any) -> tuple[dict[str, Any], list[Any]]:
    """The annotations of a class's parameters by name, and of the positional ones in order."""
    try:
        parameters = signature_of(built).parameters.values()
    except (TypeError, ValueError):
        return {}, []
    hints = hints_of(built)
    by_name = {each.name: hints.get(each.name, Any) for each in parameters}
    in_order: list[Any] = []
    for each in parameters:
        if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD):
            in_order.append(by_name[each.name])
        elif each.kind is each.VAR_POSITIONAL:
            in_order += [by_name[each.name]] * 64
    return by_name, in_order


def fits(target: type, kinds: Sequence[Kind], packages: Sequence[str]) -> Kind | None:
    """The first of ``kinds`` that a class is of; None if it is of none."""
    return next((kind for kind in kinds if _is_of(target, kind.base, packages)), None)


def _is_of(target: type, base: type, packages: Sequence[str]) -> bool:
    own = is_own(target, packages)
    if _is_protocol(base):
        return (own or inside(target.__module__, ["multimodal"])) and _has_members(target, base)
    if not issubclass(target, base):
        return False
    if f"{base.__module__}.{base.__qualname__}" == "torch.nn.modules.module.Module":
        lightning = any(inside(each.__module__, ["pytorch_lightning"]) for each in target.__mro__)
        return not lightning and (own or inside(target.__module__, MODULES))
    return True


def _is_protocol(base: type) -> bool:
    return bool(getattr(base, "_is_protocol", False))


def _has_members(target: type, protocol: type) -> bool:
    """Whether a class has the methods, properties and class attributes of a protocol."""
    annotated = getattr(protocol, "__annotations__", {})
    wanted = [name for name, hint in annotated.items() if "ClassVar" in str(hint)]
    wanted += [
        name
        for name, member in vars(protocol).items()
        if (inspect.isfunction(member) or isinstance(member, property))
        and (not name.startswith("_") or name == "__call__")
    ]
    fields: set[str] = set().union(
        *(getattr(each, "__annotations__", {}) for each in target.__mro__)
    )
    return all(hasattr(target, name) or name in fields for name in wanted)
