"""`abandoned_loaders.py FOLDER REPEATS KIND...`: processes that end while their loaders iterate.

Each is forked from this one, which has imported everything, and goes through the whole end of
Python. A JSON object per process: the seconds from the request to the end, the exit status (None
where it had to be killed), standard error, and the workers that are left.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import select
import signal
import sys
import tempfile
import time
import warnings
from multiprocessing.process import BaseProcess
from multiprocessing.util import Finalize
from pathlib import Path

from data_helpers import number_samples, write_source

from multimodal.data.datamodule import MultimodalDataModule
from multimodal.data.loading.evaluation_loader import EvaluationLoader
from multimodal.data.loading.workers import end_workers
from multimodal.data.settings import EvaluationData, LoaderSettings
from multimodal.data.source import Source
from multimodal.data.streaming.datamodule import StreamDataModule
from multimodal.data.streaming.source import StreamSource
from multimodal.data.transforms.array import ArrayTransform

KINDS = ("training", "restarted", "validation", "streaming", "embedding")
FIELDS = {"x": {"member": "x.npy"}}
LIMIT = 60.0
kept = []  # somebody always holds an iterator when a process fails


def iterators(kind, folder):
    """Loaders of a kind, as a run has them."""
    transforms = {"x": ArrayTransform([1])}
    source = Source(str(folder / "numbers.json"), FIELDS)
    if kind == "embedding":
        return iter(EvaluationLoader(source, EvaluationData(transforms, 4, LoaderSettings(2))))
    if kind == "streaming":
        urls = sorted(str(path) for path in folder.glob("*.tar"))
        return iter(
            StreamDataModule(
                {"n": StreamSource(urls, FIELDS)}, transforms, 4, 50, 0, 20, num_workers=2
            ).train_dataloader()
        )
    data = MultimodalDataModule(
        {"numbers": source}, transforms, batch_size=4, seed=0, val_sources={"numbers": source},
        eval_batch_size=4, num_workers=2,
    )  # fmt: skip
    if kind == "validation":
        return iter(data.val_dataloader()[0])
    loader = data.train_dataloader()
    if kind == "restarted":
        before = len(multiprocessing.active_children())
        next(iter(loader))
        end_workers(loader._batches)
        assert len(multiprocessing.active_children()) == before
    return iter(loader)


def one_death_at_a_time():
    """From now on the SIGCHLD of a killed process comes before the next one is killed."""
    original = BaseProcess.kill

    def kill(process):
        original(process)
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)

    BaseProcess.kill = kill


def forget_names():
    """As Python empties modules at its end, in an order that depends on what is installed."""
    for name in ("loading.worker_processes", "loading.workers", "streaming.datamodule"):
        names = vars(sys.modules[f"multimodal.data.{name}"])
        names.update({each: None for each in names if not each.startswith("__")})


def abandon(kinds, folder, ready):
    Finalize(None, forget_names, exitpriority=-200)  # behind all that is registered
    for kind in kinds:
        iterator = iterators(kind, folder)
        kept.append((iterator, next(iterator), next(iterator)))
    children = multiprocessing.active_children()
    assert len(children) == 2 * len(kinds)
    for child in children:
        child.terminate()  # as a machine that signals the whole group: training goes on
    one_death_at_a_time()
    pids = [child.pid for child in children]
    os.write(ready, json.dumps(pids).encode() + b"\n")


def ended(pid, seconds):
    """The exit status of a child, or None if it does not end."""
    with open(os.pidfd_open(pid), "rb") as handle:
        if not select.select([handle], [], [], seconds)[0]:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return None
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def exists(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def main():
    folder, repeats, kinds = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
    warnings.simplefilter("ignore")  # more workers than cores
    logging.disable()  # what a stream does not promise
    shards = [number_samples(40, 40 * number) for number in range(4)]
    write_source(folder, {"train": shards}, "numbers")
    for _ in range(repeats):
        reader, writer = os.pipe()
        errors = tempfile.TemporaryFile()  # noqa: SIM115
        pid = os.fork()
        if not pid:
            os.dup2(errors.fileno(), 2)
            abandon(kinds, folder, writer)
            break  # to the end of Python
        os.close(writer)
        with open(reader) as file:
            workers = json.loads(file.readline() or "null")
        start = time.monotonic()
        status = ended(pid, LIMIT)
        line = {
            "seconds": time.monotonic() - start,
            "status": status,
            "left": [worker for worker in workers or () if exists(worker)],
        }
        errors.seek(0)
        print(json.dumps(line | {"stderr": errors.read().decode()}), flush=True)
        errors.close()


if __name__ == "__main__":
    main()
