"""Between a sweeper and its launcher: a job that fails does not end the others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig, OmegaConf, open_dict

from multimodal.cli.jobs.records import FINISHED, UNFINISHED, SweepError, one_line, read
from multimodal.cli.jobs.sweep_table import DONE, FAILED, KILLED, NOT_RUN, status_of
from multimodal.core.process import lock
from multimodal.core.process.provenance import is_first_rank


@dataclass
class Job:
    """One job of a sweep.

    Attributes:
        words: its overrides.
        folder: where it runs.
        status: as in the sweep's table.
        before: what it had left in its folder before this start.
    """

    words: list[str]
    folder: Path
    status: str = NOT_RUN
    before: tuple[Any, ...] = ()


class CarefulLauncher(Launcher):
    """Runs jobs by another launcher; every one has its turn and its status.

    A job that raises has failed. Where the launcher itself gives up, as when a worker process is
    killed and takes the jobs beside it along, what is left is run once more, one by one.

    Args:
        inner: the launcher of the sweep's configuration, set up.
        hydra_context: with the loader of configurations.
        config: the sweep's.
    """

    def __init__(self, inner: Launcher, hydra_context: Any, config: DictConfig) -> None:
        self.inner = inner
        self.config = config
        self.jobs: dict[int, Job] = {}
        self._loader = hydra_context.config_loader
        self._raises = not str(config.hydra.sweeper._target_).endswith(".BasicSweeper")

    def setup(self, **_: Any) -> None:
        """Nothing: the inner launcher is set up."""

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """The jobs' results; a failed one's raises, unless that would end the sweep."""
        numbers = range(initial_job_idx, initial_job_idx + len(job_overrides))
        for number, words in zip(numbers, job_overrides, strict=True):
            folder = self._folder(number, words)
            self.jobs[number] = Job(list(words), folder, before=_left(folder))
        with _results_of_submitit():
            try:
                returns = list(self.inner.launch(job_overrides, initial_job_idx))
            except Exception as error:
                alone = len(job_overrides) == 1
                returns = [self._settled(number, error, alone) for number in numbers]
        return [self._noted(n, result) for n, result in zip(numbers, returns, strict=True)]

    def settle(self) -> None:
        """Gives those jobs their status that ended, or were cut off, in a launch that was."""
        for job in self.jobs.values():
            if job.status == NOT_RUN:
                left = _left(job.folder)
                changed = left != job.before and bool(left)
                done = (job.folder / FINISHED).exists()
                job.status = status_of(job.folder) if changed or done else NOT_RUN

    def _folder(self, number: int, words: Sequence[str]) -> Path:
        folder = Path(str(self.config.hydra.sweep.dir))
        raw = OmegaConf.to_container(self.config.hydra.sweep, resolve=False)
        words_of_hydra = OmegaConf.to_container(self.config.hydra.overrides.hydra, resolve=False)
        moved = "sweep.subdir" in str(words_of_hydra)
        if isinstance(raw, dict) and raw["subdir"] == "${hydra.job.num}" and not moved:
            return folder / str(number)
        try:
            config = self._loader.load_sweep_config(self.config, list(words))
            with open_dict(config):
                config.hydra.job.num = number
            return folder / str(OmegaConf.select(config, "hydra.sweep.subdir"))
        except Exception:  # the launcher says what is wrong with it
            return folder / str(number)

    def _settled(self, number: int, error: Exception, alone: bool) -> JobReturn:
        """The result of a job whose launcher has given up; runs it where it has none."""
        job = self.jobs[number]
        if (record := read(job.folder / FINISHED)) is not None:
            return _result(job, record["value"])
        left = read(job.folder / UNFINISHED)
        begun = left is not None and _left(job.folder) != job.before
        if begun and left and left["reason"]:
            return _result(job, SweepError(left["reason"]))
        if alone:
            return _result(job, SweepError(f"{KILLED} ({one_line(error)})") if begun else error)
        try:
            (result,) = self.inner.launch([job.words], number)
        except Exception as again:
            return self._settled(number, again, alone=True)
        return result

    def _noted(self, number: int, result: JobReturn) -> JobReturn:
        job = self.jobs[number]
        if result.status == JobStatus.COMPLETED:
            job.status = DONE
            return result
        job.status = FAILED + one_line(result._return_value)
        return result if self._raises else _result(job, None)


def _left(folder: Path) -> tuple[Any, ...]:
    path = folder / UNFINISHED
    return (path.stat().st_mtime_ns, path.stat().st_ino) if path.exists() else ()


def _result(job: Job, value: Any) -> JobReturn:
    result = JobReturn(overrides=job.words)
    failed = isinstance(value, Exception)
    result.status = JobStatus.FAILED if failed else JobStatus.COMPLETED
    result.return_value = value
    return result


@contextmanager
def _results_of_submitit() -> Iterator[None]:
    """Within, a lost job of a cluster is a failed one; its launcher waits for the others."""
    try:
        from submitit.core.core import Job as ClusterJob
    except ImportError:
        yield
        return
    cluster_job: Any = ClusterJob
    original = cluster_job.results

    def results(job: Any) -> list[Any]:
        try:
            return list(original(job))
        except Exception as error:
            return [_result(Job([], Path()), SweepError(f"{KILLED} ({one_line(error)})"))]

    cluster_job.results = results
    try:
        yield
    finally:
        cluster_job.results = original


@contextmanager
def careful_launchers() -> Iterator[list[CarefulLauncher]]:
    """Within, Hydra's sweepers get launchers that are careful; yields those they got.

    A sweep holds its folder until the end.
    """
    original = Plugins.instantiate_launcher
    made: list[CarefulLauncher] = []

    def instantiate(self: Plugins, hydra_context: Any, task_function: Any, config: Any) -> Launcher:
        inner = original(
            self, hydra_context=hydra_context, task_function=task_function, config=config
        )
        if is_first_rank():
            locks.enter_context(lock.held(Path(str(config.hydra.sweep.dir))))
        made.append(CarefulLauncher(inner, hydra_context, config))
        return made[-1]

    Plugins.instantiate_launcher = instantiate  # type: ignore[method-assign]
    try:
        with ExitStack() as locks:
            yield made
    finally:
        Plugins.instantiate_launcher = original  # type: ignore[method-assign]
