"""Key maps from foreign tensors to ours, and the diff of unmatched ones."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from multimodal.core.errors import UserError


class TensorSource(NamedTuple):
    """The foreign tensors that one of ours is made of, in the order that ``change`` takes them."""

    names: tuple[str, ...]
    change: Callable[..., Tensor] = lambda tensor: tensor


KeyMap = dict[str, TensorSource]
"""Our key, within a tower -> where it comes from."""


def same(ours: str, theirs: str) -> KeyMap:
    """One tensor under another name."""
    return {ours: TensorSource((theirs,))}


def affine(ours: str, theirs: str) -> KeyMap:
    """Weight and bias of a linear map, a convolution or a norm."""
    return {f"{ours}.{part}": TensorSource((f"{theirs}.{part}",)) for part in ("weight", "bias")}


def changed(ours: str, theirs: str, change: Callable[[Tensor], Tensor]) -> KeyMap:
    """One tensor in another shape."""
    return {ours: TensorSource((theirs,), change)}


def joined(ours: str, theirs: Sequence[str]) -> KeyMap:
    """Weights and biases of several linear maps as one, stacked in this order."""
    return {
        f"{ours}.{part}": TensorSource(tuple(f"{name}.{part}" for name in theirs), _stack)
        for part in ("weight", "bias")
    }


def _stack(*parts: Tensor) -> Tensor:
    return torch.cat(parts)


def flat(tensor: Tensor) -> Tensor:
    """``[1, 1, W]`` to ``[W]``."""
    return tensor.flatten()


def rows(tensor: Tensor) -> Tensor:
    """``[1, N, W]`` to ``[N, W]``."""
    return tensor.flatten(0, -2)


def transposed(tensor: Tensor) -> Tensor:
    """A matrix that multiplies from the right, as a ``Linear`` holds it."""
    return tensor.T


@dataclass
class Diff:
    """Unmatched tensors of both sides, under their own names.

    Attributes:
        missing: our tensors without a source, each with the foreign names looked for.
        unexpected: foreign tensors that are not used.
        mismatched: both names and shapes.
        allowed: those of all three that the caller has named.
    """

    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    mismatched: list[str] = field(default_factory=list)
    allowed: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.missing or self.unexpected or self.mismatched)

    def __str__(self) -> str:
        lines = []
        for title, entries in (
            ("missing keys", self.missing),
            ("unexpected keys", self.unexpected),
            ("mismatched shapes", self.mismatched),
        ):
            if entries:
                lines.append(f"{len(entries)} {title}:")
                lines += [f"  {entry}" for entry in entries[:20]]
                lines += [f"  ... and {len(entries) - 20} more"] * (len(entries) > 20)
        return "\n".join(lines)


class WeightsError(UserError, ValueError):
    """Foreign weights that do not fit, or cannot be read."""


def translate(
    own: Mapping[str, Tensor], key_map: KeyMap, state: Mapping[str, Tensor], where: str
) -> tuple[dict[str, Tensor], set[str], list[tuple[str, tuple[str, ...]]]]:
    """Our tensors from theirs, where available.

    Args:
        own: the state dict to fill.
        key_map: where its keys come from.
        state: the foreign tensors.
        where: put before our keys in what is returned of them.

    Returns:
        our key -> tensor; the foreign names used; our keys without a match, with the names looked
        for.
    """
    filled: dict[str, Tensor] = {}
    used: set[str] = set()
    absent: list[tuple[str, tuple[str, ...]]] = []
    for key in own:
        source = key_map.get(key)
        names = source.names if source else ()
        if source is None or not all(name in state for name in names):
            absent.append((f"{where}.{key}", names))
            continue
        used.update(names)
        filled[key] = source.change(*(state[name] for name in names))
    return filled, used, absent


def require_finite(state: Mapping[str, Tensor], names: Iterable[str], where: str) -> None:
    """Refuses weights that are not numbers.

    Args:
        state: the tensors.
        names: of those that are used.
        where: they come from.

    Raises:
        WeightsError: naming every tensor with NaN or infinite numbers, and how many it has.
    """
    problems = []
    for name in sorted(names):
        tensor = state[name]
        count = int((~torch.isfinite(tensor)).sum()) if tensor.is_floating_point() else 0
        if count:
            shape = list(tensor.shape)
            problems.append(f"  {name} {shape}: {count} of {tensor.numel()} numbers are NaN or inf")
    if problems:
        more = [f"  ... and {len(problems) - 20} more"] if len(problems) > 20 else []
        heading = f"{where}: weights that are not finite, as a training that diverged leaves them:"
        raise WeightsError("\n".join([heading, *problems[:20], *more]))


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are equal bit by bit; NaN equals itself."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    one, other = (t.detach().cpu().contiguous().flatten().view(torch.uint8) for t in (a, b))
    return torch.equal(one, other)


def is_allowed(name: str, patterns: Iterable[str]) -> bool:
    """Whether a name is one of, or matches one of, those that may be left over."""
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
