"""How the process uses its cores: waiting threads sleep, freed memory is kept for the next step."""

from __future__ import annotations

import ctypes
import os

_SPINS = "1000"  # what libgomp itself takes where one process has more threads than cores
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_OWN_BLOCK = 1 << 30  # bytes; an allocation from here on is a mapping of its own, as by default
_KEPT = (1 << 31) - 1  # bytes at the top of the heap that are kept when they are free


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


def keep_freed_memory() -> bool:
    """Has glibc keep freed blocks up to 1 GiB, unless the environment says otherwise.

    By default it gives large blocks back at once, and the kernel clears every page of the next
    activation anew: half of the processor time of a frozen EfficientNet-Lite0 (64 pictures of 160
    pixels: 25 ms each in torch, 38 ms in the kernel; then 25 and 5). What is kept is what the
    largest step needs. No result depends on it.

    Returns:
        Whether it was set: not with another C library, nor where `MALLOC_*_` or `GLIBC_TUNABLES`
        choose.
    """
    chosen = any(name.startswith("MALLOC_") for name in os.environ)
    if chosen or "malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, _OWN_BLOCK) and mallopt(_M_TRIM_THRESHOLD, _KEPT))
