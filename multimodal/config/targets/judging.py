"""Does every `_target_` stand where its kind belongs? Names first, then the classes; no call."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from multimodal.config.problems import ConfigProblem
from multimodal.config.targets.kinds import Kind, fits, items_of, kinds_at, kinds_of, parameters_of
from multimodal.config.targets.known import is_known
from multimodal.config.targets.resolving import TargetError, inside, is_own, refused_name, resolve
from multimodal.config.tree import join, nodes

HYDRA_KEYS = ("_target_", "_partial_", "_recursive_", "_convert_", "_args_")
_ANYTHING = Kind(object)  # a parameter of the user's own class that says nothing of its kind


def foreign_targets(tree: Any, packages: Sequence[str], where: str = "") -> Iterator[ConfigProblem]:
    """Refuses, before importing anything, a `_target_` that is not a public name of a package."""
    for place, node in nodes(tree, where):
        if "_target_" in node and (reason := refused_name(node["_target_"], packages)):
            yield ConfigProblem(join(place, "_target_"), reason)


def misplaced(
    tree: Any, packages: tuple[str, ...], strict: bool, path: Sequence[str] = ()
) -> Iterator[ConfigProblem]:
    """Refuses targets not of the kind of their place, without calling or instantiating any.

    Args:
        tree: plain dicts and lists; its targets have passed `foreign_targets`.
        packages: that targets may come from; those beyond ours are the user's own.
        strict: as for what comes from a file: classes only, each of its place's kind. Otherwise the
            user's own functions and classes may stand anywhere.
        path: of ``tree`` in the configuration.
    """
    where = ""
    for key in path:
        where = join(where, key)
    yield from _Judge(packages, strict).region(tree, where, tuple(path))


@dataclass(frozen=True)
class _Judge:
    packages: tuple[str, ...]
    strict: bool

    def region(self, value: Any, where: str, path: tuple[str, ...]) -> Iterator[ConfigProblem]:
        """What lies outside of blocks: kinds are those of the place."""
        if isinstance(value, dict):
            if "_target_" in value and not (self.strict and is_known(path, value)):
                yield from self.block(value, where, path, kinds_at(path))
                return
            for key, child in value.items():
                yield from self.region(child, join(where, str(key)), (*path, str(key)))
        elif isinstance(value, list):
            for index, child in enumerate(value):
                yield from self.region(child, f"{where}[{index}]", (*path, str(index)))

    def block(
        self, node: dict[str, Any], where: str, path: tuple[str, ...], kinds: Sequence[Kind]
    ) -> Iterator[ConfigProblem]:
        """One block and its nested blocks."""
        target = node["_target_"]
        try:
            built = resolve(target, self.packages)
        except TargetError as error:
            if self.strict:  # otherwise `invalid_arguments` says so
                yield ConfigProblem(join(where, "_target_"), str(error))
            return
        if reason := self._unfit(built, kinds, node):
            yield ConfigProblem(join(where, "_target_"), f"given '{target}', {reason}")
            return
        by_name, in_order = parameters_of(built)
        for key, child in node.items():
            if key == "_args_" and isinstance(child, list):
                for index, item in enumerate(child):
                    annotation = in_order[index] if index < len(in_order) else Any
                    place = f"{join(where, key)}[{index}]"
                    yield from self.filled(item, place, (*path, key), annotation, built)
            elif key not in HYDRA_KEYS:
                annotation = by_name.get(key, Any)
                yield from self.filled(
                    child, join(where, str(key)), (*path, str(key)), annotation, built
                )

    def filled(
        self, value: Any, where: str, path: tuple[str, ...], annotation: Any, owner: Any
    ) -> Iterator[ConfigProblem]:
        """What fills a parameter of ``owner``: its kinds are those of the annotation."""
        if isinstance(value, dict) and "_target_" in value:
            kinds = kinds_of(annotation) or kinds_at(path)
            yield from self.block(value, where, path, kinds or self._unannotated(owner))
        elif isinstance(value, dict):
            for key, child in value.items():
                inner = items_of(annotation)
                yield from self.filled(
                    child, join(where, str(key)), (*path, str(key)), inner, owner
                )
        elif isinstance(value, list):
            for index, child in enumerate(value):
                inner = items_of(annotation, index)
                place = f"{where}[{index}]"
                yield from self.filled(child, place, (*path, str(index)), inner, owner)

    def _unannotated(self, owner: Any) -> list[Kind]:
        """The user's own classes need not say what they take; torch's layers take layers."""
        if is_own(owner, self.packages):
            return [_ANYTHING]
        module = kinds_at(("fusion",))[0].base
        return [Kind(module)] if inside(str(owner.__module__), ["torch.nn.modules"]) else []

    def _unfit(self, built: Any, kinds: Sequence[Kind], node: dict[str, Any]) -> str | None:
        """Why a target may not stand at a place of ``kinds``; None if it may."""
        own = is_own(built, self.packages)
        if not self.strict and (own or inspect.isfunction(built) or not kinds):
            return None
        if not inspect.isclass(built) or "." in built.__qualname__:
            return "which is not a class of a module: what comes from a file may name only classes"
        if not kinds:
            return "but nothing is built here"
        if _ANYTHING in kinds:
            module = kinds_at(("fusion",))
            return None if own or fits(built, module, self.packages) else "a class of another kind"
        kind = fits(built, kinds, self.packages)
        expected = " or ".join(str(each) for each in kinds)
        if kind is None:
            return f"which is of another kind: expected {expected}"
        partial = node.get("_partial_", False)
        if self.strict and partial is not kind.partial:
            return f"`_partial_: {str(partial).lower()}`, expected {expected}"
        return None
