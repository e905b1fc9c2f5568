"""What computes the sums over a similarity matrix: PyTorch, or Triton on a GPU."""

from __future__ import annotations

from typing import Any, Literal, Protocol, get_args

import torch
from torch import Tensor

from multimodal.core.errors import ConfigError, ConfigProblem
from multimodal.objectives.kernels.torch_tiles import TorchTiles
from multimodal.objectives.matches import PositiveIndex

Kernels = Literal["torch", "triton", "triton_bf16"]
KEY = "kernels"
Logs = tuple[Tensor, Tensor]  # log-sums of rows or columns, and the loss's gradients by them


class Tiles(Protocol):
    """Sums over a matrix of logits that is never stored, and their gradients.

    Logits are ``scale * anchors @ candidates.T``, anchors ``[A, D]``, candidates ``[C, D]``. Which
    entries are negatives follows from the index alone. ``on_host`` is the scale and the bias as
    numbers, of embeddings of norm 1, where the host has them.
    """

    def log_sums(
        self,
        anchors: Tensor,
        candidates: Tensor,
        scale: Tensor,
        positive_index: PositiveIndex,
        on_host: tuple[float, float] | None,
    ) -> tuple[Tensor, Tensor, bool]:
        """Log of the negatives' summed exponentials.

        Returns:
            along rows ``[A]`` and along columns ``[C]``, -inf where there is no negative; and what
            `softmax_gradients` asks for as ``safe``.
        """
        ...

    def softmax_gradients(
        self,
        anchors: Tensor,
        candidates: Tensor,
        scale: Tensor,
        positive_index: PositiveIndex,
        of_rows: Logs,
        of_columns: Logs,
        safe: bool,
    ) -> tuple[Tensor, Tensor]:
        """What the log-sums' gradients are to ``scale * anchors`` and to the candidates.

        Args:
            anchors: as in `log_sums`; so are the next three.
            candidates: see above.
            scale: see above.
            positive_index: see above.
            of_rows: ``[A]`` log-sums and gradients; 0 and 0 where there is no negative.
            of_columns: ``[C]``, the same.
            safe: by `log_sums`.
        """
        ...

    def sigmoid(
        self,
        anchors: Tensor,
        candidates: Tensor,
        scale: Tensor,
        bias: Tensor,
        positive_index: PositiveIndex,
        grad: bool,
        on_host: tuple[float, float] | None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """``log(1 + exp(logit + bias))``, summed over positives and negatives alike.

        Returns:
            the sum; and where ``grad`` its gradients by ``scale * anchors``, by the candidates and
            by the bias, else zeros.
        """
        ...


TORCH: Tiles = TorchTiles()


def choose_tiles(kernels: Kernels, device: torch.device | None = None) -> Tiles:
    """What ``kernels`` names.

    Args:
        kernels: the choice.
        device: that it will run on; None: it is not asked yet.

    Raises:
        ConfigError: if it is none of `Kernels`, or needs a GPU or Triton and there is none.
    """
    if kernels not in get_args(Kernels):
        names = ", ".join(get_args(Kernels))
        raise ConfigError([ConfigProblem(KEY, f"must be one of {names}, given {kernels!r}")])
    if kernels == "torch":
        return TORCH
    try:
        tiles = _triton_tiles()
    except ImportError as error:
        reason = (
            f"{kernels} needs Triton, which comes with PyTorch's CUDA builds ({error}); install "
            f"multimodal[triton], or take {KEY}=torch"
        )
        raise ConfigError([ConfigProblem(KEY, reason)]) from error
    if device is not None and device.type != "cuda" and not tiles.INTERPRETED:
        reason = f"{kernels} runs on a GPU, and the run is on a {device.type}; take {KEY}=torch"
        raise ConfigError([ConfigProblem(KEY, reason)])
    found: Tiles = tiles.TritonTiles(half=kernels == "triton_bf16")
    return found


def _triton_tiles() -> Any:
    from multimodal.objectives.kernels import triton_tiles  # a second to import

    return triton_tiles
