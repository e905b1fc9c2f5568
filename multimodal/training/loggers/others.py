"""TensorBoard and MLflow, each by Lightning's own logger."""

from __future__ import annotations

import os
import sys
from argparse import Namespace
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lightning_fabric.loggers.logger import _DummyExperiment, rank_zero_experiment
from pytorch_lightning import loggers
from pytorch_lightning.utilities import rank_zero_only

from multimodal.core.extras import module_of
from multimodal.core.files import write_text
from multimodal.training.loggers.logged import LoggedSteps


class TensorBoardLogger(loggers.TensorBoardLogger):
    """Event files in ``folder``, for `tensorboard --logdir outputs`.

    A resumed run logs no step twice (`LoggedSteps`).

    Args:
        folder: of the event files; a resumed run adds another file to it.
    """

    def __init__(self, folder: str) -> None:
        module_of("tensorboard", "tensorboard", "logger=tensorboard")
        super().__init__(save_dir=folder, name="", version="", default_hp_metric=False)
        self._logged = LoggedSteps(Path(folder) / "logged.json")

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Logs what has not been logged of this step, or of a later one, before."""
        if new := self._logged.new(metrics, step):
            super().log_metrics(new, step)
            self.experiment.flush()  # a killed run has it, too
            self._logged.note(new, step)

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **named: Any) -> None:
        """Nothing: `.hydra/config.yaml` in the run's folder holds them all."""

    @rank_zero_only
    def save(self) -> None:
        """Writes the metrics; no file of hyperparameters."""
        self.experiment.flush()


class MLflowLogger(loggers.MLFlowLogger):
    """A run of MLflow: in a local folder, or at a server.

    An error while logging (a server that is not there) ends the logging, not the training. Names
    of metrics are as MLflow takes them: `val.emoji.image_to_text_r_at_1`. A resumed run is the same
    one, and logs no step twice (`LoggedSteps`).

    Args:
        experiment: that the run belongs to.
        name: of the run.
        tracking_uri: of the server, or ``file:FOLDER``; null: the environment's
            `MLFLOW_TRACKING_URI`, else the folder `mlruns` where the program was started.
        id: of the run; null: of the resumed run, or a new one.
        folder: of this run; `mlflow.txt` in it keeps the id, `mlflow.json` what is logged.
    """

    def __init__(
        self,
        experiment: str,
        name: str | None = None,
        tracking_uri: str | None = None,
        id: str | None = None,
        folder: str = ".",
    ) -> None:
        # MLflow asks whoever wants plain files to say so, and tries a server for minutes.
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
        module_of("mlflow", "mlflow", "logger=mlflow")
        self._note = Path(folder) / "mlflow.txt"
        if id is None and self._note.is_file():
            id = self._note.read_text(encoding="utf-8").strip() or None
        local = f"file:{Path('mlruns').absolute()}"
        uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or local
        self._failed = False
        self._logged = LoggedSteps(Path(folder) / "mlflow.json", id or "")
        super().__init__(experiment_name=experiment, run_name=name, tracking_uri=uri, run_id=id)

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """MLflow's client; a dummy on other ranks, and after an error."""
        if not self._failed:
            try:
                return super().experiment
            except Exception as error:
                self._fail(error)
        return _DummyExperiment()

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Logs the metrics of a step not logged yet, and keeps the run's id with the first."""
        new = self._logged.new({_name(name): value for name, value in metrics.items()}, step)
        if not new:
            return
        log = super().log_metrics
        self._guarded(lambda: log(new, step))
        if self._failed:
            return
        if not self._note.is_file():
            write_text(self._note, f"{self.run_id}\n")
        self._logged.run = str(self.run_id)
        self._logged.note(new, step)

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace) -> None:
        """Nothing: `.hydra/config.yaml` in the run's folder holds them all."""

    @rank_zero_only
    def finalize(self, status: str = "success") -> None:
        """Ends the run."""
        finalize = super().finalize
        self._guarded(lambda: finalize(status))

    def _guarded(self, call: Callable[[], Any]) -> None:
        if self._failed:
            return
        try:
            call()
        except Exception as error:  # of many kinds: no server, no answer, no space
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        self._failed = True
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        print(
            f"WARNING: MLflow has failed ({reason}). Training continues without it; "
            "metrics.csv has all metrics",
            file=sys.stderr,
        )


def _name(metric: str) -> str:
    """As MLflow takes it; a slash would be a folder, where `train/loss` is a file already."""
    return metric.replace("@", "_at_").replace("/", ".")
