"""Weights and Biases: a run keeps its identity when it goes on, and does without it in need."""

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
    """Lightning's logger, for runs that are killed and go on, on machines that lose the network.

    Where the server cannot be reached, or there is no key, a warning is given and the run is
    written to ``save_dir``, from where `wandb sync` uploads it later. An error while logging ends
    the logging, not the training. So does a service (the library's own process) that does not
    answer, because it hangs or is stopped: training waits `timeout_s` for it, and ends it.

    A run that goes on (`go_on`) has the same id, and no step is logged twice: those between its
    checkpoint and its end, which it computes once more, are there already.

    Args:
        project: of the runs.
        name: of the run.
        id: of the run; null: of the run that is gone on with, or a new one.
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
        self._of_step: set[str] = set()
        self._lost = False
        self._timeout_s = timeout_s
        self._be(id or secrets.token_hex(4))

    def _be(self, run_id: str) -> None:
        self._id = self._wandb_init["id"] = run_id

    @property
    def run_id(self) -> str:
        """What a resumed run has to keep."""
        return str(self._wandb_init["id"])

    def describe(self, config: Mapping[str, Any]) -> None:
        """Sets the run's configuration, which must hold no secrets; before anything is logged."""
        self._wandb_init["config"] = dict(config)

    def rename(self, name: str | None) -> None:
        """Sets the run's name, which must hold no secrets; before anything is logged."""
        self._name = self._wandb_init["name"] = name

    def go_on(self, run_id: str | None, step: int, note: Path) -> None:
        """Goes on with an earlier run.

        Args:
            run_id: by its checkpoint; None if it has none.
            step: of that checkpoint.
            note: the `wandb.json` of the earlier run, which may not be there.
        """
        told = json.loads(note.read_text()) if note.exists() else {}
        run_id = self._asked or run_id or told.get("id")
        if run_id is None:
            return
        self._be(run_id)
        self._step = step
        if told.get("id") == run_id:
            self._step, self._of_step = max(step, told["step"]), set(told["logged"])

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The run; a dummy on other ranks, and after an error."""
        if self._lost:
            return _DummyExperiment()
        if self._experiment is None:
            # A service of its own, not that of the process which has started this one: there the
            # same id may be in use, and its end could not be waited for.
            os.environ.pop("WANDB_SERVICE", None)
            try:
                # Login and start have a limit each; past both, it is the service that hangs.
                with bounded(2 * self._timeout_s + START_S):
                    return super().experiment
            except Exception as error:  # of many kinds: no network, no key, no answer
                # The service goes on to hold a run whose start has failed, and would refuse its id.
                with suppress(Exception), bounded(self._timeout_s):
                    _end_service()
                if self._offline:
                    self._lose(error)
                    return _DummyExperiment()
                print(
                    f"WARNING: Weights and Biases cannot be reached ({_first_line(error)}). "
                    f"Training goes on; the run {self.run_id} is written to "
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
            known = self._of_step if step == self._step else set()
            metrics = {name: value for name, value in metrics.items() if name not in known}
            if not metrics:
                return
            self._step, self._of_step = step, known | set(metrics)
        if not isinstance(self.experiment, _DummyExperiment):  # started here, with its own limit
            log = super().log_metrics
            self._dare(lambda: log(metrics, step))
        if step is not None:
            self._write_note()

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace) -> None:
        """Adds to the run's configuration."""
        if not isinstance(self.experiment, _DummyExperiment):
            log = super().log_hyperparams
            self._dare(lambda: log(params))

    @rank_zero_only
    def report(self, path: Path, figures: Mapping[str, float]) -> None:
        """Uploads the report, and puts the final figures into the run's summary.

        Pictures of attention, which lie in folders per set beside the report, become its media.
        """
        run: Any = self.experiment
        if path.exists() and not isinstance(run, _DummyExperiment):
            for folder in sorted(path.parent.glob("attention/*/")):
                files = sorted(str(picture) for picture in folder.glob("*.png"))
                names = [Path(file).stem for file in files]
                key = f"attention/{folder.name}"
                self._dare(partial(self.log_image, key, files, caption=names))
            self._dare(lambda: run.save(str(path), base_path=str(path.parent), policy="now"))
            named = {f"held-out/{name}": value for name, value in figures.items()}
            self._dare(lambda: run.summary.update(named))

    @rank_zero_only
    def finish(self, failed: bool) -> None:
        """Ends the run, so that the next one in this process is another.

        What was logged is then uploaded or in the run's file.
        """
        if self._experiment is not None:
            run: Any = self._experiment
            # The library itself waits `timeout_s` for the server.
            self._dare(lambda: run.finish(exit_code=int(failed)), 2 * self._timeout_s)
            self._dare(_end_service)  # `finish` returns before the service has written the file
            self._experiment = None
            self._lost = True

    def _dare(self, call: Callable[[], Any], limit: float | None = None) -> None:
        try:
            with bounded(limit or self._timeout_s):
                call()
        except Exception as error:  # the library's, and of the process that it talks to
            self._lose(error)

    def _lose(self, error: Exception) -> None:
        if not self._lost:
            print(
                f"WARNING: Weights and Biases has failed ({_first_line(error)}). Training goes on "
                "without it; metrics.csv has all",
                file=sys.stderr,
            )
        self._lost = True

    def _write_note(self) -> None:
        content = {"id": self.run_id, "step": self._step, "logged": sorted(self._of_step)}
        write_text(self._note, json.dumps(content) + "\n")


def wandb_state(of: Iterable[Logger]) -> dict[str, dict[str, Any]]:
    """What a checkpoint keeps of these loggers."""
    ids = [logger.run_id for logger in of if isinstance(logger, WandbLogger)]
    return {"wandb": {"id": ids[0]}} if ids else {}


def log_report(of: Iterable[Logger], report: Path, figures: Mapping[str, float]) -> None:
    """Hands the report and its figures to Weights and Biases; other loggers have the file."""
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
        TimeoutError: If the block has taken longer.
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
