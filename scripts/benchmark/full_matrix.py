"""The baselines: standard implementations of the losses, over the full matrix of similarities."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

LOG_SCALE = torch.tensor(1 / 0.07).log().requires_grad_()
BIAS = torch.tensor(-10.0, requires_grad=True)


def info_nce(a: Tensor, b: Tensor) -> Tensor:
    """Two cross-entropies over two matrices of logits (CLIP)."""
    labels, scale = torch.arange(len(a)), LOG_SCALE.exp()
    logits_a, logits_b = (scale * a @ b.T).float(), (scale * b @ a.T).float()
    return (F.cross_entropy(logits_a, labels) + F.cross_entropy(logits_b, labels)) / 2


def siglip(a: Tensor, b: Tensor) -> Tensor:
    """Log-sigmoid of the matrix, signed by a matrix of labels (SigLIP)."""
    logits = (LOG_SCALE.exp() * a @ b.T).float() + BIAS
    labels = 2 * torch.eye(len(a)) - 1
    return -F.logsigmoid(labels * logits).sum() / len(a)


def hardest(a: Tensor, b: Tensor, margin: float = 0.2) -> Tensor:
    """The largest violation of every row and column (VSE++)."""
    scores = (a @ b.T).float()
    own = scores.diag()[:, None]
    diagonal = torch.eye(len(a), dtype=torch.bool)
    cost_b = (margin + scores - own).clamp(min=0).masked_fill(diagonal, 0)
    cost_a = (margin + scores - own.T).clamp(min=0).masked_fill(diagonal, 0)
    return (cost_b.max(1)[0].sum() + cost_a.max(0)[0].sum()) / len(a)


def top_16(a: Tensor, b: Tensor) -> Tensor:
    """Cross-entropies over the positive and the 16 largest logits of every row and column."""
    logits = (LOG_SCALE.exp() * a @ b.T).float()
    own = logits.diag()[:, None]
    others = logits.masked_fill(torch.eye(len(a), dtype=torch.bool), -torch.inf)
    labels = torch.zeros(len(a), dtype=torch.int64)
    both = (others.topk(16, dim=1).values, others.T.topk(16, dim=1).values)
    return sum(F.cross_entropy(torch.cat([own, top], dim=1), labels) for top in both) / 2
