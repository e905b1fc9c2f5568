"""`NAME: null` takes out what a parent experiment has: a source, a tower, a pair, a set."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

# Blocks of named entries, each of which may be taken out.
BLOCKS = (
    "data.sources", "data.val_sources", "data.transforms", "evaluation.sets", "model.towers",
    "model.joint", "pairs", "tasks",
)  # fmt: skip


def drop_removed(cfg: DictConfig) -> None:
    """Deletes the null entries of `BLOCKS` from a composed configuration."""
    for path in BLOCKS:
        try:
            block: Any = OmegaConf.select(cfg, path)
        except OmegaConfBaseException:
            continue  # `check` says what is wrong with it
        if not isinstance(block, DictConfig):
            continue
        for name in [n for n in block if not OmegaConf.is_missing(block, n) and _is_null(block, n)]:
            with open_dict(block):
                del block[name]


def _is_null(block: DictConfig, name: Any) -> bool:
    return not OmegaConf.is_interpolation(block, name) and block[name] is None


def without_removed(tree: dict[str, Any]) -> dict[str, Any]:
    """The same for plain dicts; ``tree`` is not changed."""
    result = dict(tree)
    for path in BLOCKS:
        *outer, last = path.split(".")
        holder = result
        for name in outer:
            if not isinstance(holder.get(name), dict):
                break
            holder[name] = holder = dict(holder[name])
        else:
            if isinstance(holder.get(last), dict):
                entries = holder[last].items()
                holder[last] = {name: entry for name, entry in entries if entry is not None}
    return result
