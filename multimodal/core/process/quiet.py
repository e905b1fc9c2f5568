"""What libraries say of themselves stays out of a run's log and off its terminal."""

from __future__ import annotations

import logging
import warnings

# Devices that are not there, advertisements, fonts: remarks, which end where warnings begin.
LIBRARIES = ("pytorch_lightning", "lightning_fabric", "lightning", "torchmetrics", "matplotlib")
# Lightning's own messages, and advice that does not apply to our loaders.
WARNINGS = (
    ".*LeafSpec.*",
    "Found .* in eval mode at the start of training.*",
    "The number of training batches.*",
    ".*does not have many workers.*",
    "Total length of .* across ranks is zero.*",
)


def quieten_libraries() -> None:
    """From now on the libraries in this process log and warn only of what concerns a user."""
    for name in LIBRARIES:
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in WARNINGS:
        warnings.filterwarnings("ignore", message)
