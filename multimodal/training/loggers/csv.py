"""`metrics.csv`: one row per logged step, appended on resume."""

from __future__ import annotations

import csv
import io
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

from lightning_fabric.loggers.logger import rank_zero_experiment
from pytorch_lightning.loggers.logger import Logger
from pytorch_lightning.utilities import rank_zero_only

from multimodal.core.files import append_line, free_megabytes, reason, write_text


class CSVLogger(Logger):
    """Writes `metrics.csv` in ``folder``: a `step` column, then one column per metric.

    A row is appended as it comes, so that a killed run keeps what it logged. A new metric widens
    the table, and a second set of metrics of one step (validation) joins its row: then the file
    is rewritten, atomically. Rows that a full disk refuses wait until it takes them.
    On resume, rows beyond the checkpoint's step are dropped (`rewind`), the earlier ones stay.

    Args:
        folder: where the file goes; the run's folder.
    """

    def __init__(self, folder: str) -> None:
        super().__init__()
        self.path = Path(folder) / "metrics.csv"
        self._columns: list[str] = []
        self._last_step: int | None = None
        self._waiting: list[dict[str, Any]] = []  # rows that could not be written yet
        if self.path.exists():
            self._columns = self._read()[0]

    @property
    def name(self) -> str:
        """Nothing: the file is in the run's folder."""
        return ""

    @property
    def version(self) -> str:
        """Nothing: one file per run."""
        return ""

    @property
    def save_dir(self) -> str:
        """The folder of the file."""
        return str(self.path.parent)

    @property
    @rank_zero_experiment
    def experiment(self) -> CSVLogger:
        """The logger itself; on other ranks Lightning's dummy."""
        return self

    def _read(self) -> tuple[list[str], list[dict[str, str]]]:
        with self.path.open(newline="") as file:
            reader = csv.DictReader(file)
            rows = [row for row in reader if row.get("step")]
            return list(reader.fieldnames or []), rows

    def _rewrite(self, columns: list[str], rows: list[dict[str, Any]]) -> None:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, columns, restval="")
        writer.writeheader()
        writer.writerows(rows)
        write_text(self.path, text.getvalue())
        self._columns = columns

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Appends one row, or fills the last one when it is of the same step."""
        values = {name: value for name, value in metrics.items() if name != "epoch"}
        if not values:
            return
        row: dict[str, Any] = {"step": None if step is None else int(step), **values}
        try:
            self._add([*self._waiting, row])
        except OSError as error:
            if not self._waiting:
                print(
                    f"WARNING: cannot write {self.path}: {reason(error)}. "
                    f"{free_megabytes(self.path.parent):.1f} MB are free there. Training "
                    "continues; the rows are written once that is possible",
                    file=sys.stderr,
                )
            self._waiting.append(row)
        else:
            self._waiting = []

    def _add(self, new: list[dict[str, Any]]) -> None:
        names = dict.fromkeys(name for row in new for name in row)
        columns = [*self._columns, *(name for name in names if name not in self._columns)]
        if columns == self._columns and len(new) == 1 and new[0]["step"] != self._last_step:
            self._append(columns, new[0])
        else:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            rows: list[dict[str, Any]] = list(self._read()[1]) if self.path.exists() else []
            last = self._last_step
            for row in new:
                if rows and row["step"] == last:
                    rows[-1].update(row)
                else:
                    rows.append(row)
                last = row["step"]
            self._rewrite(columns, rows)
        self._last_step = new[-1]["step"]

    def _append(self, columns: list[str], row: dict[str, Any]) -> None:
        text = io.StringIO(newline="")
        csv.DictWriter(text, columns, restval="").writerow(row)
        append_line(self.path, text.getvalue().encode())

    @rank_zero_only
    def rewind(self, step: int) -> None:
        """Drops the rows beyond ``step``: a resumed run will write them again."""
        if self.path.exists():
            columns, rows = self._read()
            rows = [row for row in rows if int(row["step"]) <= step]
            self._rewrite(columns, rows)
            self._last_step = int(rows[-1]["step"]) if rows else None

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any) -> None:
        """Nothing: `.hydra/config.yaml` in the same folder holds them all."""
