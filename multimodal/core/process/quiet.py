"""What a run says, and what it does not: libraries' remarks stay off its log and terminal."""

from __future__ import annotations

import logging
import sys
import warnings

from multimodal.core.process.provenance import is_first_rank

# Devices that are not there, advertisements, fonts: remarks, which end where warnings begin.
LIBRARIES = ("pytorch_lightning", "lightning_fabric", "lightning", "torchmetrics", "matplotlib")
# Lightning's own messages, and advice that does not apply to our loaders.
WARNINGS = (
    ".*LeafSpec.*",
    "Found .* in eval mode at the start of training.*",
    "The number of training batches.*",
    ".*does not have many workers.*",
    "It is recommended to use `self.log\\(.*sync_dist=True",  # what we log is of all ranks already
    "find_unused_parameters=True was specified in DDP constructor, but did not find any unused.*",
)
JOBLIB = "hydra_plugins.hydra_joblib_launcher._core"  # logs its own settings before every sweep


def note(message: str) -> None:
    """Prints on standard error what every rank of a run would say alike: on the first one only."""
    if is_first_rank():
        print(message, file=sys.stderr)


def quieten_libraries() -> None:
    """From now on the libraries in this process log and warn only of what concerns a user."""
    for name in LIBRARIES:
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in WARNINGS:
        warnings.filterwarnings("ignore", message)
    if not any(isinstance(each, _JobsOnly) for each in logging.getLogger(JOBLIB).filters):
        logging.getLogger(JOBLIB).addFilter(_JobsOnly())


class _JobsOnly(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith("Joblib.Parallel(")
