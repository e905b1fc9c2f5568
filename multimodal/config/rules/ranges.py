"""Rules about numbers with the same meaning everywhere: sizes, counts and shares."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from multimodal.config.problems import ConfigProblem
from multimodal.config.tree import block, join, nodes

Tree = dict[str, Any]

COUNTS = frozenset({
    "accumulate_grad_batches", "batch_size", "block_shards", "context_length",
    "embed_dim", "epoch_steps", "eval_batch_size", "image_size", "in_channels", "in_features",
    "max_tokens", "micro_batch_size", "num_frames", "num_heads", "num_mel_bins", "num_nodes",
    "patch_size", "prefetch", "sample_rate", "size", "stride", "vocab_size", "width",
})  # fmt: skip
AT_LEAST_0 = frozenset({
    "cache_mb", "gradient_clip_val", "log_every_n_steps", "num_layers", "num_workers",
    "warmup_steps",
})  # fmt: skip
ABOVE_0 = frozenset({"mlp_ratio", "remote_cache_gb", "repeat", "worker_timeout_s"})
SHARES = frozenset({"drop_path", "dropout", "max_bad_fraction", "modality_dropout"})
OURS = ("multimodal.", "pytorch_lightning.")
BATCHES = frozenset({
    "limit_test_batches", "limit_train_batches", "limit_val_batches", "overfit_batches",
    "val_check_interval",
})  # fmt: skip
SEEDS = 2**32  # numpy's generators know no others


def numbers_in_range(tree: Tree) -> Iterator[ConfigProblem]:
    """Sizes and counts are at least 1, shares between 0 and 1, in the blocks that we know."""
    for where, node in nodes(tree):
        if not str(node.get("_target_", OURS[0])).startswith(OURS):
            continue
        for key, value in node.items():
            for place, number in _numbers(value, join(where, str(key))):
                if expected := _expected(str(key), number):
                    yield ConfigProblem(place, f"given {number!r}, expected {expected}")
    seed = tree.get("seed")
    if type(seed) is int and not 0 <= seed < SEEDS:
        yield ConfigProblem("seed", f"given {seed}, expected a number from 0 to {SEEDS - 1}")


def shares_of_batches(tree: Tree) -> Iterator[ConfigProblem]:
    """A whole number of the trainer's limits counts batches, one with a point is a share of them.

    Lightning says so of another key, and only when the data are there.
    """
    for key, value in block(tree, "trainer").items():
        least = 1 if key == "val_check_interval" else 0
        if key in BATCHES and isinstance(value, int | float) and not isinstance(value, bool):
            whole = isinstance(value, int)
            if not (value >= least if whole else 0 <= value <= 1):
                yield ConfigProblem(
                    f"trainer.{key}",
                    f"given {value!r}, expected a whole number of batches from {least}, or a share "
                    "of an epoch from 0.0 to 1.0",
                )


def _numbers(value: Any, where: str) -> Iterator[tuple[str, float]]:
    if isinstance(value, list):
        for index, item in enumerate(value):
            yield from _numbers(item, f"{where}[{index}]")
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield where, value


def _expected(key: str, number: float) -> str | None:
    """What ``number`` should have been; None if it is in range. NaN is in no range."""
    if key in COUNTS and not number >= 1:
        return "at least 1"
    if key in AT_LEAST_0 and not number >= 0:
        return "at least 0"
    if key in ABOVE_0 and not number > 0:
        return "a number above 0"
    if key in SHARES and not 0 <= number <= 1:
        return "a number from 0 to 1"
    if key in ("max_steps", "max_epochs") and not number >= -1:
        return "at least 0, or -1 for no limit"
    return None
