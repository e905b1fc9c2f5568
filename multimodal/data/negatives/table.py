"""The table of mined negatives that stands beside a manifest; no tar is written anew for it.

An ``.npz`` of plain arrays: ``keys`` of N samples, ``negatives`` ``[N, K]`` int32 (rows of the same
table, the most similar first, -1 where there are fewer), their ``similarities`` ``[N, K]`` float32,
``positives`` ``[N]`` float32 (how similar each sample's own positive is), and ``about``, JSON.
"""

from __future__ import annotations

import io
import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from multimodal.core.files import NewFile
from multimodal.data.negatives.keys import Names
from multimodal.data.shards.paths import resolve

FORMAT = "multimodal-negatives/1"


@dataclass(frozen=True)
class NegativeTable:
    """Mined negatives; see the module."""

    keys: Names
    negatives: NDArray[np.int32]
    similarities: NDArray[np.float32]
    positives: NDArray[np.float32]
    about: dict[str, Any]

    def save(self, path: Path) -> None:
        """Writes the table; a file that is there is replaced at once or not at all."""
        about = json.dumps({"format": FORMAT, **self.about}).encode()
        buffer = io.BytesIO()  # a zip wants to seek
        np.savez_compressed(
            buffer,
            keys=self.keys,
            negatives=self.negatives,
            similarities=self.similarities,
            positives=self.positives,
            about=np.frombuffer(about, np.uint8),
        )
        with NewFile(path) as file:
            file.write(buffer.getbuffer())

    @classmethod
    def read(cls, path: str | Path) -> NegativeTable:
        """The table in a file.

        Raises:
            ValueError: if the file is missing, or is not such a table.
        """
        try:
            with np.load(resolve(path), allow_pickle=False) as arrays:
                about = json.loads(arrays["about"].tobytes())
                table = cls(
                    arrays["keys"],
                    arrays["negatives"],
                    arrays["similarities"],
                    arrays["positives"],
                    about,
                )
        except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise ValueError(
                f"{path} is not a table of negatives, as `multimodal mine` writes it: {error}"
            ) from error
        table._check(path)
        return table

    def _check(self, path: str | Path) -> None:
        rows, format_ = len(self.keys), self.about.get("format")
        fits = (
            format_ == FORMAT
            and self.keys.dtype.kind == "S"
            and self.negatives.dtype == np.int32
            and self.negatives.ndim == 2
            and len(self.negatives) == rows
        )
        if not fits or (rows and not -1 <= self.negatives.min() <= self.negatives.max() < rows):
            raise ValueError(
                f"{path}: expected arrays of the format {FORMAT}, got {format_!r} with "
                f"{rows} keys and negatives {self.negatives.dtype}{list(self.negatives.shape)}"
            )
