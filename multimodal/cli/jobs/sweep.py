"""Sweeps: finished jobs are skipped, and a table is written at the end."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, open_dict

from multimodal.cli.jobs.launching import CarefulLauncher, careful_launchers
from multimodal.cli.jobs.records import SweepError
from multimodal.cli.jobs.sweep_table import DONE, NOT_RUN, show_table, table_rows, write_table
from multimodal.core.extras import module_of
from multimodal.core.process import lock
from multimodal.core.process.exits import errors_end_the_program
from multimodal.core.process.provenance import is_first_rank
from multimodal.core.process.secrets import redact_files, redact_records, secrets_in


class SweepRecord(Callback):
    """Hydra's callback before a sweep: alone in its folder, and on with a study."""

    def on_multirun_start(self, config: DictConfig, **_: object) -> None:
        """Lets a continued Optuna study run the missing trials, in new folders."""
        words = OmegaConf.to_container(config.hydra.overrides, resolve=False)
        if secrets := [secret for _, secret in secrets_in(words)]:
            redact_records(secrets)  # Hydra logs every job's words
        sweeper = config.hydra.sweeper
        folder = Path(config.hydra.sweep.dir)
        with errors_end_the_program():  # of a callback Hydra makes warnings
            if is_first_rank():
                lock.refuse_if_held(folder)
            folder.mkdir(parents=True, exist_ok=True)
        if sweeper.get("storage") is None or sweeper.get("study_name") is None:
            return
        trials, complete = _trials(str(sweeper.storage), str(sweeper.study_name))
        if trials:
            with open_dict(config):
                sweeper.n_trials = max(0, sweeper.n_trials - complete)
                # Each start renumbers the trials, but folders must not be reused.
                config.hydra.overrides.hydra.append(
                    f"hydra.sweep.subdir=from{trials}_${{hydra.job.num}}"
                )


@contextmanager
def sweep_recorded() -> Iterator[None]:
    """Around Hydra: whatever becomes of a sweep within, its table is written and shown.

    Raises:
        SweepError: if jobs of the sweep failed or were not run.
    """
    with careful_launchers() as launchers:
        try:
            yield
        except Exception as error:
            if not launchers or not _caused_by_jobs(error, launchers[0]):
                raise
        finally:
            for launcher in launchers:
                launcher.settle()
                _report(launcher)
    for launcher in launchers:
        _refuse_failures(launcher)


def _caused_by_jobs(error: Exception, launcher: CarefulLauncher) -> bool:
    """Whether a sweeper gave up for its jobs' failures, which the table holds."""
    states = [job.status for job in launcher.jobs.values()]
    return isinstance(error, SweepError) or (bool(states) and DONE not in states)


def _report(launcher: CarefulLauncher) -> None:
    if not is_first_rank():
        return
    config = launcher.config
    folder = Path(str(config.hydra.sweep.dir))
    redact_multirun(folder)
    jobs = {job.folder.name: (job.words, job.status) for job in launcher.jobs.values()}
    if rows := table_rows(folder, jobs):
        write_table(folder / "sweep.csv", rows)
        show_table(rows, config.get("sweep_metric"))
        print(f"sweep: {folder / 'sweep.csv'}")


def _refuse_failures(launcher: CarefulLauncher) -> None:
    states = [job.status for job in launcher.jobs.values()]
    not_run = states.count(NOT_RUN)
    failed = len(states) - states.count(DONE) - not_run
    if failed or not_run:
        counts = [f"{failed} failed"] * bool(failed) + [f"{not_run} not run"] * bool(not_run)
        raise SweepError(
            f"of {len(states)} jobs of the sweep {' and '.join(counts)}; the reasons are in the "
            "column 'status' of its table. The same command with "
            f"hydra.sweep.dir={launcher.config.hydra.sweep.dir} runs only what is not done"
        )


def _trials(storage: str, study_name: str) -> tuple[int, int]:
    """How many trials a study has, and how many of them are complete; ends those cut off."""
    logging.getLogger("alembic").setLevel(logging.WARNING)  # it logs each of its plugins
    optuna = module_of("sweep", "optuna", "a search by Optuna")

    # Optuna 2 writes the version of its tables without a commit, which SQLAlchemy 2 drops: the
    # study could never be opened.
    tables = optuna.storages.RDBStorage(storage, engine_kwargs={"isolation_level": "AUTOCOMMIT"})
    tables.engine.dispose()
    names = [summary.study_name for summary in optuna.get_all_study_summaries(storage)]
    if study_name not in names:
        return 0, 0
    study = optuna.load_study(study_name=study_name, storage=storage)
    for trial in study.trials:
        if trial.state == optuna.trial.TrialState.RUNNING:
            study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
    complete = sum(t.state == optuna.trial.TrialState.COMPLETE for t in study.trials)
    return len(study.trials), complete


def redact_multirun(folder: Path) -> None:
    """Takes secrets out of `multirun.yaml`, which Hydra writes before any job."""
    path = folder / "multirun.yaml"
    if path.exists():
        tree = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
        redact_files([path], [secret for _, secret in secrets_in(tree)])
