"""Foreign names without what trainers and wrappers put around them."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from multimodal.core.suggest import did_you_mean
from multimodal.models.pretrained.keys import WeightsError

WRAPPERS = ("module", "_orig_mod")  # of DDP and torch.compile, around the model or parts of it
State = Mapping[str, Tensor]


def without_wrappers(state: State) -> dict[str, Tensor]:
    """The tensors by their names without `WRAPPERS`, wherever those stand in a name.

    Raises:
        WeightsError: if two tensors would have one name then.
    """
    return _renamed(state, lambda name: ".".join(p for p in name.split(".") if p not in WRAPPERS))


def bare(state: State, prefix: str | None, known: Callable[[State], bool]) -> dict[str, Tensor]:
    """The tensors by the names that their project gives them.

    Args:
        state: by any names.
        prefix: what stands before every name; the tensors without it are left out. None: what
            most names share is taken off, until the names are known or nothing is shared.
        known: whether names are those of a project.

    Raises:
        WeightsError: if no name begins with ``prefix``, or two tensors would have one name.
    """
    if prefix:
        return _behind(state, prefix)
    names = without_wrappers(state)
    while not known(names) and (shared := _shared(names)):
        names = _renamed(names, functools.partial(_removed, shared))
    return names


def beginnings(state: State) -> list[str]:
    """What the names begin with, the most frequent first."""
    return [first for first, _ in _firsts(state).most_common()]


def prefix_hint(missing: Sequence[str], unexpected: Sequence[str]) -> str | None:
    """The ``prefix`` behind which tensors that are missed are there."""
    prefixes = Counter(
        name.removesuffix(wanted)
        for wanted in missing
        for name in unexpected
        if name.endswith(f".{wanted}")
    )
    return prefixes.most_common(1)[0][0] if prefixes else None


def _behind(state: State, prefix: str) -> dict[str, Tensor]:
    for given in (state, without_wrappers(state)):
        start = prefix if prefix.endswith(".") else f"{prefix}."
        tensors = {
            n.removeprefix(start): tensor for n, tensor in given.items() if n.startswith(start)
        }
        if tensors:
            return without_wrappers(tensors)
    guess = did_you_mean(start, beginnings(state))
    raise WeightsError(f"prefix={prefix}: no tensor's name begins with it; {guess}")


def _firsts(state: State) -> Counter[str]:
    return Counter(f"{name.partition('.')[0]}." for name in state if "." in name)


def _shared(state: State) -> str | None:
    """The first component that more than half of the names have."""
    first, count = next(iter(_firsts(state).most_common(1)), ("", 0))
    return first if 2 * count > len(state) else None


def _removed(prefix: str, name: str) -> str:
    return name.removeprefix(prefix)


def _renamed(state: State, rename: Callable[[str], str]) -> dict[str, Tensor]:
    renamed: dict[str, Tensor] = {}
    origin: dict[str, str] = {}
    for name, tensor in state.items():
        new = rename(name)
        if new in renamed:
            raise WeightsError(
                f"{origin[new]} and {name} are both {new} without what stands before them: give "
                "prefix=..., which of them is meant"
            )
        renamed[new], origin[new] = tensor, name
    return renamed
