"""An embedder whose towers run on ONNX Runtime, from an exported folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from multimodal.inference.embedder import Embedder
from multimodal.inference.export import manifest
from multimodal.inference.export.graphs import ExportError
from multimodal.inference.export.onnx_file import run, session


class OnnxEmbedder(Embedder):
    """As `Embedder`; the towers that the folder has run there, perhaps quantised.

    Args:
        embedder: of the same model, for its transforms.
        folder: that `multimodal export` wrote.
        threads: of a session; 0: as many as there are cores.

    Raises:
        ExportError: if the folder is damaged, of another width, or lacks a tower's ONNX file.
    """

    def __init__(self, embedder: Embedder, folder: Path, threads: int = 0) -> None:
        super().__init__(
            embedder.model, embedder.data, embedder.kind, embedder.temperatures, embedder.dim
        )
        about = manifest.read(folder)
        if about.get("embed_dim") != embedder.model.embed_dim:
            raise ExportError(
                f"{folder} gives embeddings of {about.get('embed_dim')} numbers, the model of "
                f"{embedder.model.embed_dim}: it was exported from another"
            )
        self._sessions: dict[str, Any] = {}
        for name in self._known():
            file = about["towers"].get(name, {}).get("onnx")
            if file is None:
                raise ExportError(f"{folder} has no ONNX file of {name!r}: export it with the rest")
            self._sessions[name] = session(folder / file, threads)

    def joined(self) -> list[str]:
        """None: a graph is of one tower."""
        return []

    def _known(self) -> Sequence[str]:
        return [name for name in self.transforms if not self.missing([name])]

    def joint(self, name: str, inputs: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> Tensor:
        """Refuses: a graph is of one tower.

        Raises:
            ExportError: always.
        """
        raise ExportError(f"{name}: joint embeddings are not in the ONNX files; leave onnx= out")

    def inputs(self, modality: str, inputs: Tensor, mask: Tensor | None) -> Tensor:
        """Inputs of one modality as its tower takes them: ``[B, D]``, of unit norm."""
        fed = {"inputs": inputs.numpy()}
        fed |= {} if mask is None else {"mask": mask.numpy()}
        rows = torch.from_numpy(run(self._sessions[modality], fed)[0])
        return rows if self.dim is None else functional.normalize(rows[:, : self.dim], dim=1)
