"""Two real processes per job, started through the command line as a user would."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import setup_globals
from omegaconf import OmegaConf

from multimodal.training.strategies import ddp_launch

ROOT = Path(__file__).parents[2]

JOB = """
import json, os, sys
from pathlib import Path
from multimodal.cli.main import run

def job(cfg):
    import torch
    import pytorch_lightning as pl
    from hydra.core.hydra_config import HydraConfig
    from torch.utils.data import DataLoader

    before = sorted({"LOCAL_RANK", "MASTER_PORT", "WORLD_SIZE"} & set(os.environ))

    class Tiny(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(1, 1)
        def training_step(self, batch, index):
            return self.layer(batch).sum()
        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

    trainer = pl.Trainer(accelerator="cpu", devices=2, strategy="ddp", max_steps=1, logger=False,
                         enable_checkpointing=False, enable_progress_bar=False,
                         enable_model_summary=False)
    trainer.fit(Tiny(), DataLoader(torch.ones(4, 1)))
    told = {"value": cfg.value, "text": cfg.text, "world": trainer.world_size, "before": before,
            "output": HydraConfig.get().runtime.output_dir}
    folder = Path(HydraConfig.get().runtime.output_dir)
    (folder / f"told{trainer.global_rank}.json").write_text(json.dumps(told))

if __name__ == "__main__":
    run("train", job)
"""
CONFIG = """
value: 0
text: ""
hydra:
  run:
    dir: runs/one
  sweep:
    dir: runs
    subdir: ${hydra.job.num}
"""


def launch(folder: Path, *words: str) -> None:
    (folder / "job.py").write_text(JOB)
    configs = folder / "own configs"
    configs.mkdir()
    (configs / "tiny.yaml").write_text(CONFIG)
    command = [sys.executable, "job.py", "--config-dir", str(configs), "--config-name", "tiny"]
    environment = {
        **{k: v for k, v in os.environ.items() if k not in ("LOCAL_RANK", "WORLD_SIZE")},
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run(
        [*command, *words], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]


def seen(folder: Path, rank: int) -> dict:
    return json.loads((folder / f"told{rank}.json").read_text())


def test_every_job_of_a_sweep_has_its_ranks_in_its_one_folder(tmp_path):
    launch(tmp_path, "-m", "value=1,2", "text='a, b=c'")
    there = sorted(p.name for p in (tmp_path / "runs").iterdir())
    assert there == ["0", "1", "multirun.yaml", "sweep.csv"]
    for job in (0, 1):
        for rank in (0, 1):
            report = seen(tmp_path / "runs" / str(job), rank)
            assert report["value"] == job + 1
            assert report["text"] == "a, b=c"
            assert report["world"] == 2
            assert Path(report["output"]) == tmp_path / "runs" / str(job)
        # Nothing of the job before is left in the environment of this one.
        assert seen(tmp_path / "runs" / str(job), 0)["before"] == []
        assert (tmp_path / "runs" / str(job) / ".hydra" / "overrides.yaml").exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["job.py", "own configs", "runs"]


def test_a_single_run_has_one_folder(tmp_path):
    launch(tmp_path, "value=3", "hydra.run.dir='runs/a b'")
    assert [p.name for p in (tmp_path / "runs").iterdir()] == ["a b"]
    assert [seen(tmp_path / "runs" / "a b", rank)["value"] for rank in (0, 1)] == [3, 3]


@pytest.fixture
def job_of_a_sweep():
    setup_globals()
    hydra = {
        "job": {"config_name": "train", "name": "train", "num": 4, "id": "???"},
        "runtime": {
            "output_dir": "/runs/it's 4",
            "cwd": "/start",
            "config_sources": [
                {"path": "hydra.conf", "schema": "pkg", "provider": "hydra"},
                {"path": "/main", "schema": "file", "provider": "main"},
                {"path": "/own", "schema": "file", "provider": "command-line"},
            ],
        },
        "overrides": {
            "task": ["+experiment=clip_scratch", "seed=1"],
            "hydra": ["hydra.mode=MULTIRUN", "hydra/launcher=joblib", "hydra.verbose=true"],
        },
    }
    HydraConfig.instance().cfg = OmegaConf.create({"hydra": hydra})
    yield
    HydraConfig.instance().cfg = None


@pytest.mark.quick
@pytest.mark.usefixtures("job_of_a_sweep")
def test_the_command_is_this_job_and_no_sweep():
    command, folder = ddp_launch.command_of_rank(["python", "train.py"], 1)
    assert folder == "/start"
    assert command == [
        *["python", "train.py", "--config-name", "train"],
        *["--config-path", "/main", "--config-dir", "/own"],
        *["+experiment=clip_scratch", "seed=1", "hydra.verbose=true", "hydra.job.num=4"],
        *[r"hydra.run.dir='/runs/it\'s 4'", "hydra.job.name=train_rank1"],
        *["hydra.output_subdir=null", "hydra.mode=RUN"],
    ]


@pytest.mark.quick
def test_what_a_job_sets_in_the_environment_goes_with_it(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    original = ddp_launch.lightning._hydra_subprocess_cmd

    def failing_job():
        with ddp_launch.exactly_this_job(["python"]):
            assert ddp_launch.lightning._hydra_subprocess_cmd is not original
            os.environ["LOCAL_RANK"] = "0"
            os.environ["OMP_NUM_THREADS"] = "1"
            raise RuntimeError("the job fails")

    with pytest.raises(RuntimeError, match="the job fails"):
        failing_job()
    assert "LOCAL_RANK" not in os.environ
    assert os.environ["OMP_NUM_THREADS"] == "2"
    assert ddp_launch.lightning._hydra_subprocess_cmd is original
