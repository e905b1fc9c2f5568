from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys

import pytest
import pytorch_lightning as pl
import torch
from data_helpers import number_samples, write_source

from multimodal.data import workers
from multimodal.data.datamodule import MultimodalDataModule
from multimodal.data.source import Source
from multimodal.data.transforms.array import ArrayTransform


@pytest.mark.parametrize(
    ("cores", "devices", "local", "expected"),
    [(1, 0, "1", 0), (8, 0, "1", 7), (8, 2, "1", 3), (8, 0, "4", 1), (2, 4, "4", 0)],
)
def test_workers_are_the_cores_less_those_that_train(monkeypatch, cores, devices, local, expected):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cores)), raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: devices)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", local)
    assert workers.workers_of_machine() == expected


# A run that fails in the middle of an epoch: somebody still holds the iterator.
ABANDONED = """
import multiprocessing
from torch.utils.data import Dataset
from multimodal.data.settings import LoaderSettings
from multimodal.data.workers import Steps, end_workers, make_loader

class Numbers(Dataset):
    def __getitem__(self, step):
        return step

loader = make_loader(Numbers(), Steps(range(100)), LoaderSettings(2), persistent=True)
iterator = iter(loader)
assert [next(iterator), next(iterator)] == [0, 1]  # of one worker and the other
children = multiprocessing.active_children()
assert len(children) == 2
for child in children:
    child.terminate()  # as a machine that signals the whole group
    child.join(0.5)
    assert child.is_alive()
if {close}:
    end_workers(loader)
    assert not multiprocessing.active_children()
    iterator = iter(loader)
print(*(child.pid for child in multiprocessing.active_children()))
multiprocessing.iterator = iterator  # outlives every other module
"""


@pytest.mark.parametrize("close", [False, True])
def test_a_process_ends_with_its_workers(close):
    done = subprocess.run(
        [sys.executable, "-c", ABANDONED.format(close=close)],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    pids = [int(pid) for pid in done.stdout.split()]
    assert len(pids) == 2, done.stderr
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_no_worker_outlives_training(tmp_path):
    write_source(tmp_path, {"train": [number_samples(40)]}, "numbers")
    source = Source(str(tmp_path / "numbers.json"), {"x": {"member": "x.npy"}})
    data = MultimodalDataModule(
        {"numbers": source}, {"x": ArrayTransform([1])}, batch_size=4, num_workers=1, seed=0
    )

    class Module(pl.LightningModule):
        def training_step(self, batch, index):
            assert multiprocessing.active_children()
            return self.weight(batch.inputs["x"]).sum()

        def configure_model(self):
            self.weight = torch.nn.Linear(1, 1)

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

    trainer = pl.Trainer(
        max_steps=3, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False,
    )  # fmt: skip
    trainer.fit(Module(), datamodule=data)
    assert trainer.global_step == 3
    assert not multiprocessing.active_children()
