"""Every kind of line that a program of ours prints or logs; any other one is noise."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from multimodal.evaluation.uncertainty import LEGEND

STDERR = (
    r"step \d+/\d+  loss \S+  [\d,]+ samples/s  \S+ min left",
    r"step \d+: compiled \d+ times?, in \S+ s \(model\.compile\)",
    r"model\.compile=blocks: .* stay as they are, without blocks; .*",
    r"a loading process did not start within 20 s; started again \(\d of 5\)",
    r"resuming with \S+=.*, which was .*",
    r"embedding the \d+ items of \S+",
    r"early stopping at step \d+: .*",
    r"resuming from \S+ \(step \d+\)",
    r"anchor\.checkpoint is not given: training the sample anchor .*",
    r"anchor: \S+",
    r"job \d+ was finished before, in \S+",
    r"\d+ errors? in the configuration:",
    r"  \S+",  # the key of a problem
    r"      \S.*",  # and what is wrong with it
    # make_shards.py's table, and its summary
    r"[┏┳━┓┡╇┩└┴─┘]+|[┃│].*[┃│]",
    r"left out: \d+ \w+ \(each in refused\.jsonl\)",
    r"\d+ pairs of near-duplicate pictures, \d+ exact copies; \d+ texts, \d+ of them repeated; "
    r"more in report\.json",
    r"(files that share a stem|class folders|splits by folders|WebDataset tars): .* \(--.*\)",
    r".*; (files|texts|arrays): .* \(--files, --texts change that\)",
)
STDOUT = (
    "",
    r"Held-out results, in percent *|Tasks on held-out data *| +sweep *",
    r" {2,}\S.*| +",  # rows of tables
    r" ─+ ",
    r"[┏┳━┓┡╇┩└┴─┘]+|[┃│].*[┃│]",
    r"schedule  \d+ steps(, of which \d+ are done)?; .*; precision \S+",
    r"best checkpoint: \S+ \(\S+ \S+ at step \d+\)",
    r"it is evaluated, not the last step, \d+ \(callbacks\.checkpoint\.evaluate=last: that one\)",
    r"Not evaluated *|[\w ]+, [\w ]+: no .*",  # a set, what is asked of it, and what is missing
    r"report: \S+/report\.html",
    r"sweep: \S+/sweep\.csv",
    r"\d+ embeddings of \d+ numbers: \S+",
    r"\S+\.json",  # a manifest that was written
    r"\S+\.json: \d+ samples in order, 0 problems",
    r"\[[-\d: ,]+\]\[HYDRA\] (Launching \d+ jobs locally|Launching jobs, sweep output dir : \S+)",
    r"\[[-\d: ,]+\]\[HYDRA\] \t#\d+ : .*",
)


def strange(text: str, known: Sequence[str]) -> list[str]:
    """The lines of ``text`` that are of none of the ``known`` kinds."""
    return [
        line
        for line in text.splitlines()
        if not re.fullmatch("|".join(known), line) and line.strip() not in LEGEND  # in any width
    ]


def noise(stdout: str, stderr: str, folder: Path) -> list[str]:
    """The lines of a program, and of the logs that it left in ``folder``, that nobody wants."""
    logged = [line for log in folder.rglob("*.log") for line in log.read_text().splitlines()]
    return [*strange(stdout, STDOUT), *strange(stderr, STDERR), *logged]
