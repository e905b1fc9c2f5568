"""A queue of past embeddings, and the slowly moving towers that may fill it."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from multimodal.objectives.identity import Identity


class EmbeddingQueue(nn.Module):
    """The last ``size`` embeddings of one modality, oldest overwritten first.

    All state is in buffers, so a checkpoint restores it. Every rank enqueues the same gathered
    rows, so the ranks agree and nothing has to be broadcast. Without host synchronisation.

    Args:
        size: rows kept.
        embed_dim: D.
    """

    embeddings: Tensor
    sample_ids: Tensor
    positive_keys: Tensor
    filled: Tensor
    position: Tensor

    def __init__(self, size: int, embed_dim: int) -> None:
        super().__init__()
        self.register_buffer("embeddings", torch.zeros(size, embed_dim))
        self.register_buffer("sample_ids", torch.zeros(size, dtype=torch.int64))
        self.register_buffer("positive_keys", torch.zeros(size, dtype=torch.int64))
        self.register_buffer("filled", torch.zeros(size, dtype=torch.bool))
        self.register_buffer("position", torch.zeros((), dtype=torch.int64))

    def content(self) -> tuple[Tensor, Identity]:
        """All slots, ``[size, D]`` and whose they are; the empty ones are marked."""
        return self.embeddings, Identity(self.sample_ids, self.positive_keys, self.filled)

    @torch.no_grad()
    def enqueue(self, embeddings: Tensor, batch: Identity) -> None:
        """Appends rows ``[N, D]``, the last ``size`` of them where there are more."""
        size = len(self.filled)
        embeddings, batch = embeddings[-size:], batch[slice(-size, None)]
        slots = (self.position + torch.arange(len(batch), device=self.position.device)) % size
        self.embeddings[slots] = embeddings.to(self.embeddings.dtype)
        self.sample_ids[slots] = batch.sample_ids
        self.positive_keys[slots] = batch.positive_keys
        self.filled[slots] = True
        self.position.copy_((self.position + len(batch)) % size)


class MomentumCopy(nn.Module):
    """An exponential moving average of a module, for keys that change slowly (He et al. 2020).

    Its ``module`` is called as the original is, under ``torch.no_grad()``.

    Args:
        module: what to follow; its present weights are where the average starts.
        momentum: in [0, 1), the share that an update keeps.
    """

    def __init__(self, module: nn.Module, momentum: float) -> None:
        super().__init__()
        self.module = copy.deepcopy(module).requires_grad_(False).eval()
        self.momentum = momentum

    def train(self, mode: bool = True) -> MomentumCopy:
        """Stays in eval mode: keys are deterministic."""
        return super().train(False)

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Moves the average towards ``module``; call after an optimizer step was applied."""
        for average, current in zip(self.module.parameters(), module.parameters(), strict=True):
            average.lerp_(current.detach().to(average.dtype), 1 - self.momentum)
        for kept, present in zip(self.module.buffers(), module.buffers(), strict=True):
            kept.copy_(present)
