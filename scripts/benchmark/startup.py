# python scripts/benchmark/startup.py
"""Processor time until something happens, beside `import torch`: help, faults, the first step.

Every command is a process of its own; they run in turns, and the medians are compared. The time is
that of the process and of its children, from its start until it ends. The first training step
leaves at once, and so does the `import torch` that it is compared with: ending Python with torch
loaded takes a third of importing it.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

EXPERIMENT = "# @package _global_\ndefaults:\n  - clip\n  - _self_\nsede: 1\n"
TRAINING = ["+experiment=clip_scratch", "debug=fast", "data.num_workers=0", "data.batch_size=8"]
LEFT = "import torch, left at once"
FIRST_STEP = """
import os, sys
from multimodal.cli import main as cli
train = cli._train
def until_the_first_step(cfg):
    from multimodal.training.modules.base import TrainingModule
    TrainingModule.on_train_batch_end = lambda *_: os._exit(0)
    train(cfg)
cli._train = until_the_first_step
sys.argv[0] = "train"
cli.train()
"""


def commands(folder: Path) -> dict[str, list[str]]:
    """What is compared, by its name in the table."""
    (folder / "experiment").mkdir()
    (folder / "experiment" / "faulty.yaml").write_text(EXPERIMENT)
    train = [sys.executable, "-m", "multimodal.cli"]
    faulty = ["--config-dir", str(folder), "+experiment=faulty"]
    run = f"hydra.run.dir={folder}/run"
    return {
        "import torch": [sys.executable, "-c", "import torch"],
        "--help": [*train, "--help"],
        "a misspelt key": [*train, "+experiment=clip_scratch", "optimizer.ler=1"],
        "a fault found by check": [*train, *faulty, run],
        LEFT: [sys.executable, "-c", "import os, torch; os._exit(0)"],
        "the first training step": [sys.executable, "-c", FIRST_STEP, *TRAINING, run],
    }


def processor_seconds(command: list[str]) -> float:
    """User and system time of a process and its children."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, capture_output=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        compared = commands(Path(folder))
        times: dict[str, list[float]] = {name: [] for name in compared}
        for _ in range(rounds):
            for name, command in compared.items():
                times[name].append(processor_seconds(command))
    ended, left = (statistics.median(times[name]) for name in ("import torch", LEFT))
    print(f"{'until':<28}{'seconds':>8}{'x torch':>9}   of {rounds} rounds")
    for name, measured in times.items():
        median = statistics.median(measured)
        torch = left if name in (LEFT, "the first training step") else ended
        spread = f"{min(measured):.2f} to {max(measured):.2f}"
        print(f"{name:<28}{median:>8.2f}{median / torch:>9.2f}   {spread}")


if __name__ == "__main__":
    main()
