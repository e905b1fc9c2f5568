# python scripts/benchmark/overhead.py
"""What the loop costs: milliseconds a step of a run beyond a bare loop over the same batches.

The bare loop calls the module's own step, backward, clipping, optimizer and schedule, and nothing
else. `run` is what `multimodal train` does, with all default callbacks, the progress bar, a row of
metrics.csv every 50 steps and a checkpoint every 500; below it are runs that lack one of them. The
model is small (vectors through two layers, a learned scale), so that its own time does not hide the
loop's. Each is a process of its own and they take turns, a whole run a turn. The time is that of
the training thread on its processor, so that waiting for a disk is not in it: the second table has
the seconds that the thread waits for a checkpoint.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from hydra import compose, initialize_config_dir
from measuring import Step, in_turns, table
from torch import nn

from multimodal.config import config_dir
from multimodal.core.batch import Batch

RUN = (
    "+experiment=clip_scratch",
    "embed_dim=64",
    "~evaluation",
    "data.val_sources=null",
    "trainer.log_every_n_steps=50",
    "callbacks.checkpoint.every_n_train_steps=500",
)
LACKS = {
    "run": (),
    "without checkpoints": ("callbacks.checkpoint.every_n_train_steps=null",),
    "without metrics.csv": ("trainer.log_every_n_steps=0",),
    "without the bar": ("~callbacks.progress",),
    "without callbacks": tuple(
        f"~callbacks.{name}"
        for name in ("nonfinite", "spikes", "stop", "summary", "progress", "data_wait")
    ),
}


class Batches:
    """The same few batches, again and again."""

    def __init__(self, size: int) -> None:
        generator = torch.Generator().manual_seed(0)
        rows = torch.arange(size)
        self.batches = [
            Batch(
                {name: torch.randn(size, 32, generator=generator) for name in ("image", "text")},
                {},
                rows,
                rows,
                torch.zeros_like(rows),
                "vectors",
                keys=[f"sample-{row}" for row in rows.tolist()],
            )
            for _ in range(8)
        ]

    def __len__(self) -> int:
        return 10**9

    def __iter__(self) -> Iterator[Batch]:
        while True:
            yield from self.batches


def configured(overrides: tuple[str, ...], steps: int) -> Any:
    """The configuration of a run."""
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        return compose("train", [*RUN, f"trainer.max_steps={steps}", *overrides])


def module_of(cfg: Any, width: int) -> pl.LightningModule:
    """The objective of the configuration on two small towers."""
    from multimodal.models.encoders.features import FeatureEncoder
    from multimodal.models.heads import LinearHead
    from multimodal.models.towers import EmbeddingModel, Tower
    from multimodal.training.build import build_module

    torch.manual_seed(0)
    module = build_module(cfg)
    head = partial(LinearHead, embed_dim=64)
    towers = {name: Tower(FeatureEncoder(32, width, width), head) for name in ("image", "text")}
    module.model = EmbeddingModel(towers)
    return module


def bare(steps: int, size: int, width: int) -> Step:
    """The loop that anyone would write."""
    cfg = configured((), steps)

    def run(number: int) -> dict[str, float]:
        module = module_of(cfg, width)
        optimizer, schedule = module.make_optimizer()
        parameters = list(module.parameters())
        batches = iter(Batches(size))
        module.train()
        module._trainer = None
        for step in range(steps + 1):
            if step == steps // 10:
                began = time.thread_time()
            optimizer.zero_grad(set_to_none=True)
            module.training_step(next(batches), step).backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
        return {"step": (time.thread_time() - began) / (steps - steps // 10)}

    return run


class Timed(pl.Callback):
    """Seconds of the training thread from a tenth of the run to its end, and of every save."""

    def __init__(self, steps: int) -> None:
        self.first, self.last = steps // 10, steps
        self.began = self.seconds = 0.0
        self.saves: list[float] = []

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        """The first step that counts begins."""
        if trainer.global_step == self.first:
            self.began = time.thread_time()

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """The last one is done."""
        if trainer.global_step == self.last:
            self.seconds = (time.thread_time() - self.began) / (self.last - self.first)


def run(overrides: tuple[str, ...], steps: int, size: int, width: int) -> Step:
    """What `multimodal train` does after its start."""
    from multimodal.cli.jobs.cpu import keep_freed_memory
    from multimodal.config.portable import portable_yaml
    from multimodal.core.process.quiet import quieten_libraries
    from multimodal.training.build import build_trainer
    from multimodal.training.callbacks.checkpoint import Checkpoint

    quieten_libraries()
    keep_freed_memory()

    def one(number: int) -> dict[str, float]:
        with tempfile.TemporaryDirectory() as folder:
            cfg = configured(overrides, steps)
            cfg.logger.csv.folder = folder
            module, timed = module_of(cfg, width), Timed(steps)
            trainer = build_trainer(cfg, Path(folder), portable_yaml(cfg))
            save = Checkpoint.save

            def timed_save(self: Checkpoint, *given: Any, **named: Any) -> bool:
                began = time.perf_counter()
                result = save(self, *given, **named)
                timed.saves.append(time.perf_counter() - began)
                return result

            trainer.callbacks.append(timed)  # type: ignore[attr-defined]
            Checkpoint.save = timed_save  # type: ignore[method-assign]
            with contextlib.redirect_stderr(Terminal()):
                trainer.fit(module, train_dataloaders=Batches(size))
            Checkpoint.save = save  # type: ignore[method-assign]
            waits = {"save": statistics.median(timed.saves)} if timed.saves else {}
            return {"step": timed.seconds} | waits

    return one


def saves(parameters: int, rounds: int) -> None:
    """Prints what training waits for a checkpoint of AdamW's three numbers for each parameter."""
    from multimodal.cli.jobs.cpu import keep_freed_memory
    from multimodal.training.checkpoint_plugin import AtomicCheckpointIO

    keep_freed_memory()
    names = [f"layer{number}" for number in range(parameters // 10**6)]
    state = {name: [torch.randn(10**6) for _ in range(3)] for name in names}
    waited: dict[bool, list[float]] = {False: [], True: []}
    with tempfile.TemporaryDirectory() as folder:
        plugin, path = AtomicCheckpointIO(), Path(folder) / "step=00000001.ckpt"
        for number in range(rounds + 1):
            for in_background in (False, True)[:: -1 if number % 2 else 1]:
                plugin.wait()
                plugin.in_background = in_background
                began = time.perf_counter()
                plugin.save_checkpoint({"state_dict": state, "global_step": number}, path)
                if number:  # the first fills the heap
                    waited[in_background].append(time.perf_counter() - began)
        plugin.wait()
    at_once, threaded = (statistics.median(times) for times in waited.values())
    share = statistics.median(b / a for a, b in zip(*waited.values(), strict=True))
    print(
        f"a checkpoint of {parameters / 1e6:.0f} M parameters: training waits {1e3 * at_once:.0f} "
        f"ms, with callbacks.checkpoint.asynchronous=true {1e3 * threaded:.0f} ms ({share:.3f})"
    )


class Terminal(io.StringIO):
    """Takes a progress bar as a terminal does."""

    def isatty(self) -> bool:
        """It is one."""
        return True


def main() -> None:
    """Prints a row for the bare loop and for every run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="*", default=list(LACKS))
    parser.add_argument("--parameters", type=int, default=5_000_000, help="of the checkpoint")
    args = parser.parse_args()
    saves(args.parameters, args.rounds)
    if not args.only:
        return
    sides: dict[str, Callable[..., Step]] = {"bare loop": bare}
    sides |= {name: partial(run, LACKS[name]) for name in args.only}
    given = {"steps": args.steps, "size": args.batch, "width": args.width}
    measured = in_turns(sides, args.rounds, warm_up=0, **given)
    base = measured["bare loop"]["step"]
    rows = [["", "ms a step", "beyond the bare loop", "quartiles", "ms waited for a save"]]
    for name, parts in measured.items():
        more = [1e3 * (a - b) for a, b in zip(parts["step"], base, strict=True)]
        low, middle, high = statistics.quantiles(more, n=4, method="inclusive")
        waits = f"{1e3 * statistics.median(parts['save']):.1f}" if "save" in parts else ""
        step = f"{1e3 * statistics.median(parts['step']):.2f}"
        rows.append([name, step, f"{middle:.2f}", f"{low:.2f} to {high:.2f}", waits])
    print(table(rows))


if __name__ == "__main__":
    main()
