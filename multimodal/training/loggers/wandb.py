"""Weights and Biases: resumable run ids, with a fallback to offline mode."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import threading
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from lightning_fabric.loggers.logger import _DummyExperiment, rank_zero_experiment
from pytorch_lightning import loggers
from pytorch_lightning.loggers.logger import Logger
from pytorch_lightning.utilities import rank_zero_only

from multimodal.core.extras import module_of
from multimodal.core.files import write_text

NOTE = "wandb.json"  # in ``save_dir``: the id, the last step and what was logged of it
START_S = 30.0  # in which the library waits for its service to start, before it calls a server


class WandbLogger(loggers.WandbLogger):
    """Lightning's logger, for runs that are killed and resumed on machines that lose the network.

    Where the server cannot be reached, or there is no key, a warning is given and the run is
    written to ``save_dir``, from where `wandb sync` uploads it later. An error while logging ends
    the logging, not the training. So does a service (the library's own process) that does not
    answer, because it hangs or is stopped: training waits `timeout_s` for it, and ends it.

    A resumed run (`resume`) keeps its id, and logs no step twice: the steps between its checkpoint
    and its end, which are recomputed, are already logged.

    Args:
        project: of the runs.
        name: of the run.
        id: of the run; null: of the resumed run, or a new one.
        entity: the team or user; null: the key's own.
        offline: needs neither network nor key.
        save_dir: holds the folder `wandb` and `wandb.json`.
        timeout_s: seconds to wait for the server at the beginning, and at the end for what is not
            uploaded yet; and for the library's service whenever something is logged.
    """

    def __init__(
        self,
        project: str,
        name: str | None = None,
        id: str | None = None,
        entity: str | None = None,
        offline: bool = False,
        save_dir: str = ".",
        timeout_s: float = 60.0,
    ) -> None:
        if timeout_s <= 0:
            raise ValueError(f"logger.wandb.timeout_s={timeout_s} must be above 0")
        settings = dict.fromkeys(("init_timeout", "login_timeout", "finish_timeout"), timeout_s)
        # The service holds rows back before they are in the file, and loses them where this process
        # is killed. It lives long enough to write those of the last half second.
        settings["x_transaction_log_flush_interval"] = 0.5
        module_of("wandb", "wandb", "logger=wandb")
        super().__init__(
            name=name, save_dir=save_dir, project=project, offline=offline, id=id,
            entity=entity, settings=settings, config={},
        )  # fmt: skip
        self._asked = id
        self._note = Path(save_dir) / NOTE
        self._step = -1
        self._step_metrics: set[str] = set()
        self._disabled = False
        self._timeout_s = timeout_s
        self._set_run_id(id or secrets.token_hex(4))

    def _set_run_id(self, run_id: str) -> None:
        self._id = self._wandb_init["id"] = run_id

    @property
    def run_id(self) -> str:
        """The id, which a resumed run keeps."""
        return str(self._wandb_init["id"])

    def describe(self, config: Mapping[str, Any]) -> None:
        """Sets the run's configuration, which must hold no secrets; before anything is logged."""
        self._wandb_init["config"] = dict(config)

    def rename(self, name: str | None) -> None:
        """Sets the run's name, which must hold no secrets; before anything is logged."""
        self._name = self._wandb_init["name"] = name

    def resume(self, run_id: str | None, step: int, note: Path) -> None:
        """Resumes an earlier run.

        Args:
            run_id: by its checkpoint; None if it has none.
            step: of that checkpoint.
            note: the `wandb.json` of the earlier run, which may not be there.
        """
        earlier = json.loads(note.read_text()) if note.exists() else {}
        run_id = self._asked or run_id or earlier.get("id")
        if run_id is None:
            return
        self._set_run_id(run_id)
        self._step = step
        if earlier.get("id") == run_id:
            self._step, self._step_metrics = max(step, earlier["step"]), set(earlier["logged"])

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The run; a dummy on other ranks, and after an error."""
        if self._disabled:
            return _DummyExperiment()
        if self._experiment is None:
            # Its own service, not that of the parent process: there the same id may be in use, and
            # its end could not be awaited.
            os.environ.pop("WANDB_SERVICE", None)
            try:
                # Login and start have a limit each; past both, it is the service that hangs.
                with bounded(2 * self._timeout_s + START_S):
                    return super().experiment
            except Exception as error:  # of many kinds: no network, no key, no answer
                # The service keeps a run whose start has failed, and would reject its id.
                with suppress(Exception), bounded(self._timeout_s):
                    _end_service()
                if self._offline:
                    self._disable(error)
                    return _DummyExperiment()
                print(
                    f"WARNING: Weights and Biases cannot be reached ({_first_line(error)}). "
                    f"Training continues; the run {self.run_id} is written to "
                    f"{Path(self._save_dir or '.') / 'wandb'}: upload it by `wandb sync`",
                    file=sys.stderr,
                )
                self._offline = True
                self._wandb_init["mode"] = "offline"
                return self.experiment
        return self._experiment

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Logs what has not been logged of this step, or of a later one, before."""
        if step is not None:
            if step < self._step:
                return
            known = self._step_metrics if step == self._step else set()
            metrics = {name: value for name, value in metrics.items() if name not in known}
            if not metrics:
                return
            self._step, self._step_metrics = step, known | set(metrics)
        if not isinstance(self.experiment, _DummyExperiment):  # started here, with its own limit
            log = super().log_metrics
            self._guarded(lambda: log(metrics, step))
        if step is not None:
            self._write_note()

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace) -> None:
        """Adds to the run's configuration."""
        if not isinstance(self.experiment, _DummyExperiment):
            log = super().log_hyperparams
            self._guarded(lambda: log(params))

    @rank_zero_only
    def report(self, path: Path, figures: Mapping[str, float]) -> None:
        """Uploads the report, and puts the final figures into the run's summary.

        Images of attention, in folders per set beside the report, become its media.
        """
        run: Any = self.experiment
        if path.exists() and not isinstance(run, _DummyExperiment):
            for folder in sorted(path.parent.glob("attention/*/")):
                files = sorted(str(picture) for picture in folder.glob("*.png"))
                names = [Path(file).stem for file in files]
                key = f"attention/{folder.name}"
                self._guarded(partial(self.log_image, key, files, caption=names))
            self._guarded(lambda: run.save(str(path), base_path=str(path.parent), policy="now"))
            named = {f"held-out/{name}": value for name, value in figures.items()}
            self._guarded(lambda: run.summary.update(named))

    @rank_zero_only
    def finish(self, failed: bool) -> None:
        """Ends the run, so that the next one in this process is a new one.

        Everything logged is then uploaded or in the run's file.
        """
        if self._experiment is not None:
            run: Any = self._experiment
            # The library itself waits `timeout_s` for the server.
            self._guarded(lambda: run.finish(exit_code=int(failed)), 2 * self._timeout_s)
            self._guarded(_end_service)  # `finish` returns before the service has written the file
            self._experiment = None
            self._disabled = True

    def _guarded(self, call: Callable[[], Any], limit: float | None = None) -> None:
        try:
            with bounded(limit or self._timeout_s):
                call()
        except Exception as error:  # the library's, and of the process that it talks to
            self._disable(error)

    def _disable(self, error: Exception) -> None:
        if not self._disabled:
            print(
                f"WARNING: Weights and Biases has failed ({_first_line(error)}). Training "
                "continues without it; metrics.csv has all metrics",
                file=sys.stderr,
            )
        self._disabled = True

    def _write_note(self) -> None:
        content = {"id": self.run_id, "step": self._step, "logged": sorted(self._step_metrics)}
        write_text(self._note, json.dumps(content) + "\n")


def wandb_state(of: Iterable[Logger]) -> dict[str, dict[str, Any]]:
    """The loggers' state for a checkpoint."""
    ids = [logger.run_id for logger in of if isinstance(logger, WandbLogger)]
    return {"wandb": {"id": ids[0]}} if ids else {}


def log_report(of: Iterable[Logger], report: Path, figures: Mapping[str, float]) -> None:
    """Passes the report and its metrics to Weights and Biases; other loggers have the file."""
    for logger in of:
        if isinstance(logger, WandbLogger):
            logger.report(report, figures)


def finish(of: Iterable[Logger], failed: bool) -> None:
    """Ends the runs of Weights and Biases."""
    for logger in of:
        if isinstance(logger, WandbLogger):
            logger.finish(failed)


@contextmanager
def bounded(seconds: float) -> Iterator[None]:
    """Ends the library's service if the block, which waits for it, takes longer.

    The library waits without a limit for a service that does not read. It gets an error at once if
    that process ends, and SIGKILL ends also one that is stopped.

    Raises:
        TimeoutError: if the block has taken longer.
    """
    ended, expired = threading.Event(), threading.Event()
    service = _service()  # the library forgets it before it waits for its end

    def watch() -> None:
        # In ticks: a training that is suspended itself resumes with time left for the service.
        if not any(ended.wait(seconds / 20) for _ in range(20)):
            expired.set()
            if process := service or _service():  # which the block may have started
                process.kill()
                process.wait()

    threading.Thread(target=watch, name="wandb-watch", daemon=True).start()
    message = f"its service has not answered for {seconds:g} s"
    try:
        yield
    except Exception as error:
        if expired.is_set():
            raise TimeoutError(message) from error
        raise
    finally:
        ended.set()
    if expired.is_set():
        raise TimeoutError(message)


def _service() -> subprocess.Popen[bytes] | None:
    from wandb.sdk import wandb_setup

    library: Any = wandb_setup._singleton  # its accessor waits for a start that hangs
    connection = None if library is None else library._connection
    if connection is None or connection._proc is None:
        return None
    process: subprocess.Popen[bytes] = connection._proc._process
    return process


def _end_service() -> None:
    import wandb

    try:
        wandb.teardown()  # returns when the service's process has ended
    except SystemExit as error:  # raised where that process has failed
        raise RuntimeError(f"its service has ended with exit status {error.code}") from error


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
