"""The tokenizers that towers were trained with: kept as fingerprints, and held against others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from multimodal.config import ConfigError, Fault, build
from multimodal.data.tokenizers.bpe import BPETokenizer, TextTokenizer, fingerprint
from multimodal.inference.checkpoint.file import CheckpointError
from multimodal.models.towers import EmbeddingModel


def fingerprints(tokenizers: Mapping[str, TextTokenizer]) -> dict[str, str]:
    """Modality -> fingerprint of its tokenizer."""
    return {name: fingerprint(tokenizer) for name, tokenizer in tokenizers.items()}


def tokenizers_in(transforms: Mapping[str, Any]) -> dict[str, TextTokenizer]:
    """Modality -> tokenizer, of those transforms that have one."""
    return {
        name: transform.tokenizer
        for name, transform in transforms.items()
        if hasattr(transform, "tokenizer")
    }


def require_rows(model: EmbeddingModel, tokenizers: Mapping[str, TextTokenizer]) -> None:
    """Every id that a tokenizer gives has a row in its tower's table.

    Raises:
        ConfigError: naming both numbers; a batch would only raise an IndexError.
    """
    faults = []
    for name, tokenizer in tokenizers.items():
        if name not in model.towers:
            continue
        rows = getattr(model.tower(name).encoder, "vocab_size", None)
        if rows is not None and tokenizer.vocab_size > rows:
            faults.append(
                Fault(
                    f"data.transforms.{name}.tokenizer",
                    f"gives {tokenizer.vocab_size} ids, but the tower was built for {rows}: bring "
                    "back the tokenizer that it was trained with, or for a new run set "
                    f"model.towers.{name}.encoder.vocab_size={tokenizer.vocab_size}",
                )
            )
    if faults:
        raise ConfigError(faults)


def tokenizers_of(cfg: DictConfig) -> dict[str, TextTokenizer]:
    """Builds the tokenizers alone of a configuration's transforms.

    One that is not there (a file, a package) is left out: whoever needs it will be told.
    """
    found: dict[str, TextTokenizer] = {}
    for name, node in cfg.data.transforms.items():
        block = None if node is None else node.get("tokenizer")
        if block is None:
            continue
        try:
            if isinstance(block, str):
                made = BPETokenizer(block)
            else:
                made = build(cfg, "data", "transforms", str(name), "tokenizer")
        except Exception as error:
            if any(isinstance(each, FileNotFoundError | ImportError) for each in _causes(error)):
                continue
            raise
        found[str(name)] = made
    return found


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what it was raised from: what a constructor raises is wrapped twice."""
    while error is not None:
        yield error
        error = error.__cause__


def other_tokenizers(
    checkpoint: Mapping[str, Any], present: Mapping[str, str], path: str | Path
) -> list[str]:
    """What to say of every tokenizer that is not the one in a checkpoint.

    Args:
        checkpoint: its content; older ones, and imported ones, have no fingerprints.
        present: modality -> fingerprint of the tokenizer at hand.
        path: of the checkpoint.
    """
    saved = checkpoint.get("origin", {}).get("tokenizers", {})
    return [
        f"data.transforms.{name}.tokenizer is not the one that {path} was trained with "
        f"(fingerprint {saved[name]} there, {now} here): its ids mean other words. Bring the old "
        f"tokenizer back, or name where it lies, or train anew"
        for name, now in present.items()
        if saved.get(name, now) != now
    ]


def require_same_tokenizers(
    checkpoint: Mapping[str, Any], present: Mapping[str, str], path: str | Path
) -> None:
    """Refuses a checkpoint whose texts were cut into other tokens.

    Raises:
        CheckpointError: if a fingerprint differs.
    """
    if faults := other_tokenizers(checkpoint, present, path):
        raise CheckpointError("\n".join(faults))
