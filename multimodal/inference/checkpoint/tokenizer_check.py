"""Compares the fingerprints of the tokenizers that towers were trained with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from multimodal.config import ConfigError, ConfigProblem, build
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


def check_vocab_size(model: EmbeddingModel, tokenizers: Mapping[str, TextTokenizer]) -> None:
    """Checks that every id of a tokenizer has a row in its tower's embedding table.

    Raises:
        ConfigError: if one has not; a batch would only raise an IndexError.
    """
    problems = []
    for name, tokenizer in tokenizers.items():
        if name not in model.towers:
            continue
        rows = getattr(model.tower(name).encoder, "vocab_size", None)
        if rows is not None and tokenizer.vocab_size > rows:
            problems.append(
                ConfigProblem(
                    f"data.transforms.{name}.tokenizer",
                    f"gives {tokenizer.vocab_size} ids, but the tower was built for {rows}: "
                    "restore the tokenizer that it was trained with, or for a new run set "
                    f"model.towers.{name}.encoder.vocab_size={tokenizer.vocab_size}",
                )
            )
    if problems:
        raise ConfigError(problems)


def tokenizers_of(cfg: DictConfig) -> dict[str, TextTokenizer]:
    """Builds the tokenizers alone of a configuration's transforms.

    A missing one (a file, a package) is left out: its user reports the error.
    """
    tokenizers: dict[str, TextTokenizer] = {}
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
        tokenizers[str(name)] = made
    return tokenizers


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what it was raised from: what a constructor raises is wrapped twice."""
    while error is not None:
        yield error
        error = error.__cause__


def tokenizer_mismatches(
    checkpoint: Mapping[str, Any], present: Mapping[str, str], path: str | Path
) -> list[str]:
    """A message for every tokenizer that differs from the checkpoint's.

    Args:
        checkpoint: its content; older ones, and imported ones, have no fingerprints.
        present: modality -> fingerprint of the tokenizer at hand.
        path: of the checkpoint.
    """
    saved = checkpoint.get("origin", {}).get("tokenizers", {})
    return [
        f"data.transforms.{name}.tokenizer is not the one that {path} was trained with "
        f"(fingerprint {saved[name]} in the checkpoint, {now} now): its ids map to different "
        "tokens. Restore the original tokenizer, set its path, or retrain"
        for name, now in present.items()
        if saved.get(name, now) != now
    ]


def check_same_tokenizers(
    checkpoint: Mapping[str, Any], present: Mapping[str, str], path: str | Path
) -> None:
    """Rejects a checkpoint that was trained with another tokenizer.

    Raises:
        CheckpointError: if a fingerprint differs.
    """
    if problems := tokenizer_mismatches(checkpoint, present, path):
        raise CheckpointError("\n".join(problems))
