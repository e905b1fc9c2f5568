"""Projection heads: an encoder's features ``[B, width]`` to the shared space ``[B, embed_dim]``."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from multimodal.models.layers.transformer import MLP, init_linear


class LinearHead(nn.Module):
    """One matrix, as CLIP and ImageBind have.

    Args:
        width: width of the features.
        embed_dim: dimensions of the shared space.
        norm: a LayerNorm first (the transformer encoders end with one already).
        dropout: dropout on the features (ImageBind's IMU head: 0.5).
        bias: whether the projection has a bias (SigLIP's text tower).
    """

    def __init__(
        self,
        width: int,
        embed_dim: int,
        norm: bool = False,
        dropout: float = 0.0,
        bias: bool = False,
    ) -> None:
        super().__init__()
        self.embed_dim = embed_dim
        self.norm = nn.LayerNorm(width) if norm else nn.Identity()
        self.dropout = nn.Dropout(dropout)
        self.projection = nn.Linear(width, embed_dim, bias=bias)
        init_linear(self.projection, width**-0.5)

    def forward(self, features: Tensor) -> Tensor:
        """``[B, width]`` to ``[B, embed_dim]``, not normalised."""
        projected: Tensor = self.projection(self.dropout(self.norm(features)))
        return projected


class IdentityHead(nn.Module):
    """The features unchanged, if the encoder's own pooling ends in the shared space (SigLIP).

    Args:
        width: width of the features.
        embed_dim: dimensions of the shared space.

    Raises:
        ValueError: if the two differ.
    """

    def __init__(self, width: int, embed_dim: int) -> None:
        super().__init__()
        if width != embed_dim:
            raise ValueError(
                f"an identity head cannot map features of width {width} to embed_dim={embed_dim}: "
                f"set embed_dim={width}, or choose head=linear"
            )
        self.embed_dim = embed_dim

    def forward(self, features: Tensor) -> Tensor:
        """``[B, width]``, unchanged."""
        return features


class Standardize(nn.Module):
    """Features to mean 0 and deviation 1 each, by what was measured before training.

    Few features of a frozen encoder may be far larger than the rest, which a norm over a sample's
    features keeps. Constant ones are centred only. Before `fit` it changes nothing.

    Args:
        width: number of features W.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("deviation", torch.ones(width))

    def fit(self, mean: Tensor, deviation: Tensor) -> None:
        """Takes the moments ``[W]`` of the training samples' features."""
        self.mean.copy_(mean)
        constant = deviation <= 1e-6 * deviation.max()
        self.deviation.copy_(deviation.masked_fill(constant, 1.0))

    def forward(self, features: Tensor) -> Tensor:
        """``[..., W]``, standardised."""
        return (features - self.mean) / self.deviation


class MLPHead(nn.Module):
    """One hidden layer with GELU, as in SimCLR (Chen et al. 2020, section 4.2).

    Args:
        width: width of the features.
        embed_dim: dimensions of the shared space.
        hidden: width of the hidden layer; None: ``width``.
        norm: a LayerNorm first.
        dropout: dropout on the features.
        bias: whether the two projections have biases.
        hidden_dropout: dropout on the hidden layer, after its GELU.
        standardize: `Standardize` first, by the features of the training samples in the cache of
            a frozen encoder (``data.cache_frozen``).
    """

    def __init__(
        self,
        width: int,
        embed_dim: int,
        hidden: int | None = None,
        norm: bool = False,
        dropout: float = 0.0,
        bias: bool = True,
        standardize: bool = False,
        hidden_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        hidden = width if hidden is None else hidden
        self.embed_dim = embed_dim
        self.standardize = Standardize(width) if standardize else nn.Identity()
        self.norm = nn.LayerNorm(width) if norm else nn.Identity()
        self.dropout = nn.Dropout(dropout)
        self.mlp = MLP(width, hidden, out=embed_dim, bias=bias)
        self.hidden_dropout = nn.Dropout(hidden_dropout)
        init_linear(self.mlp.fc1, (2 / width) ** 0.5)
        init_linear(self.mlp.fc2, hidden**-0.5)

    def forward(self, features: Tensor) -> Tensor:
        """``[B, width]`` to ``[B, embed_dim]``, not normalised."""
        features = self.dropout(self.norm(self.standardize(features)))
        hidden = self.mlp.activation(self.mlp.fc1(features))
        projected: Tensor = self.mlp.fc2(self.hidden_dropout(hidden))
        return projected
