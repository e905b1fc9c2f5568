"""Ranks started by torchrun: one folder for all of them, though none was given."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from experiment_helpers import OWN_CONFIGS, ROOT, losses, train_here, write_sensor_shards
from rank_helpers import FAST

from multimodal.cli.jobs.start_time import StartTimeError, share_start_time

JOB = """
import time, sys
from multimodal.cli.main import run
from pathlib import Path
from hydra.core.hydra_config import HydraConfig
import os

time.sleep(1.2 * int(os.environ["RANK"]))  # a second is what the folder's name tells apart

def job(cfg):
    folder = Path(HydraConfig.get().runtime.output_dir)
    (folder / f"rank{os.environ['RANK']}").touch()

if __name__ == "__main__":
    run("train", job)
"""
CONFIG = "hydra:\n  run:\n    dir: runs/${now:%H-%M-%S}\n"


def torchrun(folder, *words, **environment):
    kept = {k: v for k, v in os.environ.items() if k not in ("LOCAL_RANK", "RANK", "WORLD_SIZE")}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    done = subprocess.run(
        [*command, "--nproc-per-node=2", *words], cwd=folder, capture_output=True, text=True,
        env={**kept, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **environment},
        timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]


def test_ranks_that_start_in_different_seconds_share_one_folder(tmp_path):
    (tmp_path / "job.py").write_text(JOB)
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "tiny.yaml").write_text(CONFIG)
    torchrun(tmp_path, "job.py", "--config-dir", "own", "--config-name", "tiny")
    (run,) = (tmp_path / "runs").iterdir()
    assert {"rank0", "rank1"} <= {path.name for path in run.iterdir()}


def test_a_training_under_torchrun_is_one_run(tmp_path):
    shards = write_sensor_shards(tmp_path / "shards")
    words = ["--config-dir", str(OWN_CONFIGS), "+experiment=sensor", "trainer=ddp", *FAST,
             "trainer.accelerator=cpu", "trainer.precision=32-true",
             "trainer.devices=2", "trainer.max_steps=4"]  # fmt: skip
    torchrun(tmp_path, str(ROOT / "scripts" / "train.py"), *words, SENSOR_SHARDS=str(shards))
    (run,) = (tmp_path / "outputs" / "sensor").iterdir()
    assert re.fullmatch(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d", run.name)
    assert sorted(losses(run)) == [1, 2, 3, 4]
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step=00000004.ckpt"]


def test_an_evaluation_under_torchrun_is_that_of_one_process(tmp_path, monkeypatch):
    shards = write_sensor_shards(tmp_path / "shards")
    monkeypatch.setenv("SENSOR_SHARDS", str(shards))
    train_here(tmp_path / "run", "trainer.max_steps=2", "data.eval_batch_size=16")
    path = next((tmp_path / "run" / "checkpoints").iterdir())
    words = [f"checkpoint='{path}'", f"hydra.run.dir={tmp_path / 'again'}"]
    torchrun(tmp_path, str(ROOT / "scripts" / "evaluate.py"), *words, SENSOR_SHARDS=str(shards))
    alone, shared = (tmp_path / name / "metrics.json" for name in ("run", "again"))
    assert shared.read_text() == alone.read_text()


@pytest.mark.quick
def test_ranks_that_cannot_agree_are_rejected(monkeypatch):
    for name in ("TORCHELASTIC_RUN_ID", "SLURM_NTASKS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(StartTimeError, match=r"give one folder to all: hydra\.run\.dir="):
        share_start_time(["+experiment=clip_scratch"])
    share_start_time(["+experiment=clip_scratch", f"hydra.run.dir={Path('x')}"])
