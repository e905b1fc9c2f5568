# python scripts/benchmark/frozen.py
"""Training samples per second of the sample ImageBind with and without the frozen towers' cache.

Both train in this process, in turns, on one thread and without workers, and the steps' processor
time is compared. The cache is filled before. The towers have random weights: time does not depend
on them. One more run without the cache measures the cost of each modality: to decode, transform and
collate, and to embed. What of it belongs to frozen towers is all that the cache can save.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from hydra import compose, initialize_config_dir

from multimodal.config import config_dir, portable_yaml
from multimodal.data.datamodule import MultimodalDataModule
from multimodal.models.towers import EmbeddingModel
from multimodal.training.build import build_data, build_module, build_trainer

COMMON = (
    "+experiment=imagebind_scratch",
    "anchor=null",
    "~logger",
    "~evaluation",
    "callbacks.checkpoint=null",
    "callbacks.progress=null",
    "trainer.limit_val_batches=0",
    "data.num_workers=0",
)


class Clock(pl.Callback):
    """Processor time and samples of the steps after the first few, and the parts of it if watched.

    Attributes:
        parts: (what is done, modality) -> seconds of processor time, forward passes only.
    """

    def __init__(self, first: int) -> None:
        self.first = first
        self.parts: Counter[tuple[str, str]] = Counter()
        self.frozen: list[str] = []
        self.samples = 0
        self.start = self.seconds = 0.0

    def on_train_batch_end(self, trainer: pl.Trainer, *arguments: Any) -> None:
        """Counts one step."""
        batch = arguments[2]
        if trainer.global_step == self.first:
            self.parts.clear()
            self.start = time.process_time()
        elif trainer.global_step > self.first:
            self.samples += len(batch)
            self.seconds = time.process_time() - self.start

    def timed(self, what: str, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """``call``, with its time kept."""

        def run(*arguments: Any, **options: Any) -> Any:
            start = time.process_time()
            try:
                return call(*arguments, **options)
            finally:
                self.parts[what, name] += time.process_time() - start

        return run

    def watch(self, model: EmbeddingModel, data: MultimodalDataModule) -> None:
        """Keeps the time of every modality's decoding, transform and tower."""
        for name, transform in data.transforms.items():
            prepare = getattr(transform, "prepare", transform)
            transform.prepare = self.timed("transform", name, prepare)  # type: ignore[attr-defined]
            transform.collate = self.timed("transform", name, transform.collate)  # type: ignore[method-assign]
        for source in data.sources.values():
            value = source._value
            source._value = lambda name, *rest, value=value: self.timed("decode", name, value)(  # type: ignore
                name, *rest
            )
        embed = model.embed
        model.embed = lambda name, *rest, **options: self.timed("embed", name, embed)(  # type: ignore
            name, *rest, **options
        )


def train(folder: Path, cached: bool, steps: int, extra: list[str], watched: bool = False) -> Clock:
    """Trains for some steps, with a clock; if ``watched``, one that knows the parts."""
    words = [
        *COMMON,
        f"trainer.max_steps={steps}",
        f"data.cache_frozen={str(cached).lower()}",
        f"cache_frozen.folder={folder}",
        f"cache_frozen.views={1 if cached else 'null'}",
        *extra,
    ]
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        cfg = compose("train", words)
    pl.seed_everything(0, verbose=False)
    module, data = build_module(cfg), build_data(cfg)
    trainer = build_trainer(cfg, folder, portable_yaml(cfg))
    clock = Clock(min(20, steps // 4))
    trainer.callbacks.append(clock)  # type: ignore[attr-defined]
    if watched:
        clock.watch(module.model, data)
        clock.frozen = [name for name in module.model.towers if module.model.tower(name).frozen]
    trainer.fit(module, data)
    return clock


def breakdown(clock: Clock) -> dict[str, Any]:
    """Seconds by part and modality, and the most that a cache of the frozen ones could gain."""
    saved = sum(seconds for (_, name), seconds in clock.parts.items() if name in clock.frozen)
    return {
        "seconds": clock.seconds,
        "frozen": clock.frozen,
        "parts": {f"{what} {name}": s for (what, name), s in clock.parts.most_common()},
        "frozen_seconds": saved,
        "at_best": clock.seconds / (clock.seconds - saved),
    }


def main() -> None:
    """Measures, prints the ratio and writes ``frozen.json``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path("outputs/benchmark"))
    parser.add_argument("overrides", nargs="*", help="as for scripts/train.py")
    args = parser.parse_args()
    torch.set_num_threads(1)
    times: dict[str, list[float]] = {"plain": [], "cached": []}
    with tempfile.TemporaryDirectory() as folder:
        train(Path(folder), True, 4, args.overrides)
        for _ in range(args.rounds):
            for name, values in times.items():
                clock = train(Path(folder), name == "cached", args.steps, args.overrides)
                values.append(clock.samples / clock.seconds)
        parts = breakdown(train(Path(folder), False, args.steps, args.overrides, watched=True))
    result: dict[str, Any] = {name: statistics.median(values) for name, values in times.items()}
    result["breakdown"] = parts
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / "frozen.json").write_text(json.dumps(result) + "\n")
    print(
        f"{result['plain']:.0f} samples/s, {result['cached']:.0f} with the frozen towers' cache: "
        f"{result['cached'] / result['plain']:.2f}x"
    )
    print(
        f"of {parts['seconds']:.1f} s without it, {parts['frozen_seconds']:.1f} s are decoding, "
        f"transforms and embeddings of frozen modalities ({', '.join(parts['frozen'])}): without "
        f"these at best {parts['at_best']:.2f}x"
    )
    print("seconds:", ", ".join(f"{name} {s:.1f}" for name, s in parts["parts"].items()))


if __name__ == "__main__":
    main()
