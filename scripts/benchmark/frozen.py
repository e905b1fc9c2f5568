# python scripts/benchmark/frozen.py
"""Training samples per second of the sample ImageBind with and without the frozen towers' cache.

Both train in this process, in turns, on one thread and without workers, and the steps' processor
time is compared. The cache is filled before. The towers have random weights: time does not depend
on them.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from hydra import compose, initialize_config_dir

from multimodal.config import config_dir
from multimodal.training.build import build_data, build_module, build_trainer

COMMON = (
    "+experiment=imagebind",
    "anchor=null",
    "~logger",
    "~evaluation",
    "callbacks.checkpoint=null",
    "callbacks.progress=null",
    "trainer.limit_val_batches=0",
    "data.num_workers=0",
)


class Clock(pl.Callback):
    """Processor time and samples of the steps after the first few."""

    def __init__(self, first: int) -> None:
        self.first = first
        self.samples = 0
        self.start = self.seconds = 0.0

    def on_train_batch_end(self, trainer: pl.Trainer, *arguments: Any) -> None:
        """Counts one step."""
        batch = arguments[2]
        if trainer.global_step == self.first:
            self.start = time.process_time()
        elif trainer.global_step > self.first:
            self.samples += len(batch)
            self.seconds = time.process_time() - self.start


def rate(folder: Path, cached: bool, steps: int, extra: list[str]) -> float:
    """Samples per second of processor time."""
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
    trainer = build_trainer(cfg, folder)
    clock = Clock(min(20, steps // 4))
    trainer.callbacks.append(clock)  # type: ignore[attr-defined]
    trainer.fit(module, data)
    return clock.samples / clock.seconds


def main() -> None:
    """Measures, prints the ratio and writes ``frozen.json``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path("outputs/benchmark"))
    parser.add_argument("overrides", nargs="*", help="as for scripts/train.py")
    args = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, list[float]] = {"plain": [], "cached": []}
    with tempfile.TemporaryDirectory() as folder:
        rate(Path(folder), True, 4, args.overrides)
        for _ in range(args.rounds):
            for name, values in found.items():
                cached = name == "cached"
                values.append(rate(Path(folder), cached, args.steps, args.overrides))
    result = {name: statistics.median(values) for name, values in found.items()}
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / "frozen.json").write_text(json.dumps(result) + "\n")
    print(
        f"{result['plain']:.0f} samples/s, {result['cached']:.0f} with the frozen towers' cache: "
        f"{result['cached'] / result['plain']:.2f}x"
    )


if __name__ == "__main__":
    main()
