"""Signals: one rank is signalled, all ranks stop with one checkpoint and the signal's exit code."""

import re
import signal
import time
from pathlib import Path

import pytest
from experiment_helpers import losses, write_sensor_shards
from rank_helpers import Ranks, callback

from multimodal.inference.checkpoint import store

LONG = ("trainer.max_steps=100000", "callbacks.checkpoint.every_n_train_steps=null")
LIMIT = 60.0  # seconds from the signal to the last end: hard, also where the machine is busy


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return write_sensor_shards(tmp_path_factory.mktemp("shards"))


def stop(run, rank, number, limit=LIMIT):
    start = time.monotonic()
    run.signal(rank, number)
    codes = run.codes(limit)
    return codes, time.monotonic() - start


def pending(pid, number):
    """Whether a signal has been sent and not received: a second one would be the same."""
    status = Path(f"/proc/{pid}/status").read_text()
    (mask,) = re.findall(r"^ShdPnd:\s*(\w+)$", status, re.MULTILINE)
    return bool(int(mask, 16) >> (number - 1) & 1)


def one_checkpoint(folder):
    (step,) = store.steps(folder / "checkpoints")
    content = store.read(folder / "checkpoints" / f"step={step:08d}.ckpt")
    assert content["global_step"] == step
    assert not list((folder / "checkpoints").glob(".*"))
    return content


def test_sigterm_to_rank_1_during_training_and_a_resume(shards, tmp_path):
    slow = callback("SlowSteps", folder=str(tmp_path), seconds=0.05)
    with Ranks([*LONG, slow], tmp_path, shards) as run:
        run.wait_for("step_1")
        codes, _ = stop(run, 1, signal.SIGTERM)
        assert codes == [143, 143], run.output()
        assert "SIGTERM: stopping after step" in run.outputs[0].read_text()
    step = one_checkpoint(tmp_path)["global_step"]
    assert sorted(losses(tmp_path)) == list(range(1, step + 1))
    with Ranks(
        [*LONG[1:], f"trainer.max_steps={step + 2}", "resume=auto"], tmp_path, shards
    ) as run:
        assert run.codes(180) == [0, 0], run.output()
    assert sorted(losses(tmp_path)) == list(range(1, step + 3))


def test_sigterm_to_rank_1_during_validation_breaks_it_off(shards, tmp_path):
    slow = callback("SlowValidation", folder=str(tmp_path), seconds=1)
    words = ["trainer.val_check_interval=3", "data.eval_batch_size=1", *LONG, slow]  # 24 batches
    with Ranks(words, tmp_path, shards) as run:
        run.wait_for("validation_1")
        codes, _ = stop(run, 1, signal.SIGTERM)
        assert codes == [143, 143], run.output()
    content = one_checkpoint(tmp_path)
    assert content["global_step"] == 3
    (state,) = [s for s in content["callbacks"].values() if "validation_due" in s]
    assert state["validation_due"]


def test_sigterm_to_rank_1_during_a_save_saves_once(shards, tmp_path):
    slow = callback("SlowSave", folder=str(tmp_path), seconds=10)
    words = [LONG[0], "callbacks.checkpoint.every_n_train_steps=3", slow]
    with Ranks(words, tmp_path, shards) as run:
        run.wait_for("saving")
        codes, seconds = stop(run, 1, signal.SIGTERM)
        assert codes == [143, 143], run.output()
    assert one_checkpoint(tmp_path)["global_step"] == 3
    assert seconds > 1, "the save was over before the signal"


@pytest.mark.quick
@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, 130), pytest.param(signal.SIGUSR1, 143, marks=pytest.mark.slow)],
)
def test_one_process_inside_an_accumulation(shards, tmp_path, number, code):
    slow = callback("SlowSteps", folder=str(tmp_path), seconds=0.3)
    words = [*LONG, slow, "trainer.accumulate_grad_batches=4"]
    with Ranks(words, tmp_path, shards, world_size=1) as run:
        run.wait_for("step_0")
        codes, _ = stop(run, 0, number)
        assert codes == [code], run.output()
    content = one_checkpoint(tmp_path)
    position = content["loops"]["fit_loop"]["state_dict"]["combined_loader"][0]
    batches = position["epoch"] * 5 + position["position"]  # 160 samples in batches of 32
    assert content["global_step"] >= 3
    # An epoch of 5 batches is two optimizer steps: 4 batches, and the last one.
    steps = {0: 0, 4: 1}[batches % 5] + 2 * (batches // 5)
    assert steps == content["global_step"]


def test_a_second_signal_ends_at_once_with_the_checkpoint_before(shards, tmp_path):
    slow = callback("SlowSteps", folder=str(tmp_path), seconds=1000, since=2)
    first = ["trainer.max_steps=2", "callbacks.checkpoint.every_n_train_steps=2"]
    with Ranks(first, tmp_path, shards, world_size=1) as run:
        assert run.codes(180) == [0], run.output()
    words = [*LONG, slow, "resume=auto", "callbacks.stop.grace_s=null"]
    with Ranks(words, tmp_path, shards, world_size=1) as run:
        run.wait_for("step_0")
        run.signal(0, signal.SIGTERM)
        run.wait_until(lambda: not pending(run.processes[0].pid, signal.SIGTERM))
        codes, _ = stop(run, 0, signal.SIGTERM)  # it would finish its step of a quarter of an hour
        assert codes == [143]
        assert "a second signal" in run.output()
    assert one_checkpoint(tmp_path)["global_step"] == 2
