"""Limits OpenMP spinning, so that waiting threads leave their core to the workers."""

from __future__ import annotations

import os

_SPINS = "1000"  # what libgomp itself takes where one process has more threads than cores


def limit_openmp_spinning() -> None:
    """Has OpenMP's threads sleep soon when they wait, unless the environment says otherwise.

    Between two operations they spin by default, on a core that decoding needs: with one loading
    process on two cores, `+experiment=clip_scratch` trained 1.15 and
    `+experiment=imagebind_scratch` 1.4 times as fast without (`GOMP_SPINCOUNT=300000` before the
    command is the default). No result depends on
    it. libgomp reads the variable when it is loaded, so this has to come before torch is imported.
    """
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = _SPINS
