"""A checkpoint that a thread writes is what it was when it was saved, and errors come back."""

import threading
from collections import OrderedDict

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader

from multimodal.inference.checkpoint import store
from multimodal.inference.checkpoint.file import CheckpointError
from multimodal.training import checkpoint_plugin
from multimodal.training.callbacks.checkpoint import Checkpoint
from multimodal.training.checkpoint_plugin import AtomicCheckpointIO, host_copy


@pytest.fixture
def gate(monkeypatch):
    """Writing begins when the test opens it; the threads that write are noted."""
    opened, threads, write = threading.Event(), [], checkpoint_plugin.write_atomically

    def wait_and_write(*arguments):
        threads.append(threading.current_thread().name)
        assert opened.wait(60)
        write(*arguments)

    monkeypatch.setattr(checkpoint_plugin, "write_atomically", wait_and_write)
    opened.threads = threads
    return opened


def test_what_is_written_is_the_state_of_the_save(gate, tmp_path):
    weight = torch.arange(6.0).view(2, 3)
    plugin, path = AtomicCheckpointIO(), tmp_path / "step=00000001.ckpt"
    plugin.in_background = True
    plugin.save_checkpoint({"state_dict": {"w": weight, "same": weight}, "global_step": 1}, path)
    assert plugin.is_writing()
    assert not path.exists()
    weight += 100  # the next step
    gate.set()
    plugin.wait()
    assert not plugin.is_writing()
    content = store.read(path)
    assert torch.equal(content["state_dict"]["w"], torch.arange(6.0).view(2, 3))
    assert gate.threads == ["checkpoint"]


def test_a_second_save_waits_for_the_first(gate, tmp_path):
    plugin = AtomicCheckpointIO()
    plugin.in_background = True
    gate.set()
    for step in range(1, 6):
        content = {"state_dict": {"w": torch.tensor(float(step))}, "global_step": step}
        plugin.save_checkpoint(content, tmp_path / f"step={step:08d}.ckpt")
    plugin.wait()
    for step, path in store.steps(tmp_path).items():
        assert float(store.read(path)["state_dict"]["w"]) == step
    assert len(store.steps(tmp_path)) == 5


def test_an_error_of_the_thread_is_raised_where_the_result_is_asked_for(monkeypatch, tmp_path):
    def fail(*_):
        raise TypeError("cannot be saved")

    monkeypatch.setattr(checkpoint_plugin, "write_atomically", fail)
    plugin = AtomicCheckpointIO()
    plugin.in_background = True
    plugin.save_checkpoint({}, tmp_path / "step=00000001.ckpt")
    with pytest.raises(TypeError, match="cannot be saved"):
        plugin.wait()
    plugin.wait()  # once


def test_a_copy_shares_nothing_but_what_was_shared():
    weight = torch.randn(3, 4)
    state = OrderedDict(w=weight, tied=weight, part=weight[1:], empty=torch.empty(0))
    state._metadata = {"": {"version": 1}}
    content = {"state": state, "list": [weight.t(), 1], "pair": (weight, "x"), "none": None}
    copy = host_copy(content)
    assert type(copy["state"]) is OrderedDict
    assert copy["state"]._metadata == state._metadata
    assert copy["state"]["w"] is copy["state"]["tied"] is copy["pair"][0]
    assert copy["list"][1] == 1
    assert copy["none"] is None
    before = [weight.clone(), weight[1:].clone(), weight.t().clone()]
    weight.zero_()
    for found, expected in zip(
        [copy["state"]["w"], copy["state"]["part"], copy["list"][0]], before, strict=True
    ):
        assert torch.equal(found, expected)


class Line(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 1)

    def training_step(self, batch, batch_idx):
        return self.layer(batch).square().sum()

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.1)


def train(folder, steps, **options):
    torch.manual_seed(0)
    callback = Checkpoint(str(folder), 2, options.pop("keep_last", 2), "", **options)
    trainer = pl.Trainer(
        accelerator="cpu", max_steps=steps, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, callbacks=[callback],
        plugins=[AtomicCheckpointIO()], default_root_dir=str(folder),
    )  # fmt: skip
    trainer.fit(Line(), train_dataloaders=DataLoader(torch.randn(64, 2, 3), batch_size=None))
    return trainer


def test_a_run_keeps_the_same_checkpoints_with_the_same_content(tmp_path):
    found = []
    for asynchronous in (False, True):
        folder = tmp_path / str(asynchronous)
        train(folder, 9, asynchronous=asynchronous)
        steps = store.steps(folder)
        found.append({step: store.read(path) for step, path in steps.items()})
    assert list(found[0]) == list(found[1]) == [8, 9]
    for step in (8, 9):
        plain, threaded = (each[step] for each in found)
        for name, value in plain["state_dict"].items():
            assert torch.equal(value, threaded["state_dict"][name])
        state, other = (each["optimizer_states"][0]["state"] for each in (plain, threaded))
        assert all(torch.equal(state[i]["exp_avg"], other[i]["exp_avg"]) for i in state)


def test_the_older_one_stays_until_the_newer_is_in_its_place(monkeypatch, tmp_path):
    seen, write = [], checkpoint_plugin.write_atomically

    def look_and_write(*arguments):
        seen.append(list(store.steps(tmp_path)))
        write(*arguments)

    monkeypatch.setattr(checkpoint_plugin, "write_atomically", look_and_write)
    train(tmp_path, 6, keep_last=1, asynchronous=True)
    assert seen[0] == []
    assert all(seen[1:])  # while one is written, there is another
    assert list(store.steps(tmp_path)) == [6]


def test_a_disk_that_is_full_at_the_end_is_an_error(monkeypatch, tmp_path, capsys):
    def refuse(content, path):
        raise CheckpointError(f"cannot save {path}: No space left on device")

    monkeypatch.setattr(checkpoint_plugin, "write_atomically", refuse)
    with pytest.raises(CheckpointError, match=r"the last checkpoint \(step 4\) is not saved"):
        train(tmp_path, 4, asynchronous=True)
    said = capsys.readouterr().err
    assert "continuing without this checkpoint" in said
    assert said.count("No space left") == 3  # of steps 2 and 4, and of the last attempt
