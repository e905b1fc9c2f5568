"""What the transformer encoders share: class token, positions, trunk, pooling."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, Protocol, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from multimodal.core.batch import EncoderOutput
from multimodal.core.errors import InputMismatchError
from multimodal.models.layers.packing import Packing
from multimodal.models.layers.pooling import Pooling, make_pooler
from multimodal.models.layers.positions import sincos_positions
from multimodal.models.layers.transformer import Transformer

Positions = Literal["learned", "sincos"]


class Stem(Protocol):
    """What a stem offers; see ``multimodal.models.layers.stems``."""

    def grid(self, size: Sequence[int]) -> tuple[int, ...]:
        """Tokens per dimension for an input of ``size``."""

    def __call__(self, x: Tensor) -> Tensor:
        """``[B, C, *size]`` to ``[B, N, W]``."""


class TransformerEncoder(nn.Module):
    """Tokens to features: add the class token and the positions, run the trunk, pool.

    Args:
        trunk: the transformer; its width is the encoder's.
        grid: how the tokens are laid out, e.g. ``(14, 14)``; ``(N,)`` for a sequence.
        positions: ``learned``, or ``sincos`` for fixed ones.
        pooling: ``class`` (adds a class token before the others), ``mean``, ``last`` or
            ``attention``.
        patch_dropout: share of the tokens that a sample loses in training, by chance, before the
            first block; never the class token.
        packed: computes real tokens only, where a batch has a mask; the result is the same up to
            rounding. Exported graphs compute the padding too.

    Raises:
        ValueError: if given a choice that does not exist, or a share outside [0, 1).
    """

    def __init__(
        self,
        trunk: Transformer,
        grid: Sequence[int],
        positions: Positions = "learned",
        pooling: Pooling = "class",
        patch_dropout: float = 0.0,
        packed: bool = False,
    ) -> None:
        super().__init__()
        self.packed = packed
        if not 0.0 <= patch_dropout < 1.0:
            raise ValueError(f"patch_dropout={patch_dropout}: expected a share in [0, 1)")
        self.patch_dropout = patch_dropout
        if positions not in get_args(Positions):
            expected = ", ".join(get_args(Positions))
            raise ValueError(f"positions={positions!r}: expected one of {expected}")
        self.width = width = trunk.width
        self.grid = tuple(grid)
        self.class_token = nn.Parameter(torch.empty(width)) if pooling == "class" else None
        if positions == "learned":
            extra = 0 if self.class_token is None else 1
            self.positions: Tensor = nn.Parameter(torch.empty(math.prod(grid) + extra, width))
            nn.init.trunc_normal_(self.positions, std=0.02)  # BERT, ViT
        else:
            table = sincos_positions(grid, width)
            if self.class_token is not None:
                table = F.pad(table, (0, 0, 1, 0))  # the class token has no position
            self.register_buffer("positions", table)
        if self.class_token is not None:
            nn.init.trunc_normal_(self.class_token, std=0.02)
        self.trunk = trunk
        self.pool = make_pooler(pooling, trunk)

    def layers(self) -> nn.ModuleList:
        """The blocks, for freezing, adapters and layer-wise learning rates."""
        return self.trunk.blocks

    def after_layers(self) -> list[nn.Parameter]:
        """What comes after the blocks: the final norm, a pooling that learns."""
        return [*self.trunk.norm.parameters(), *self.pool.parameters()]

    def encode_tokens(
        self, tokens: Tensor, mask: Tensor | None = None, positions: Tensor | None = None
    ) -> EncoderOutput:
        """Encode tokens; the result has the class token, where there is one, in front.

        Args:
            tokens: ``[B, N, W]``, N at most that of the grid.
            mask: bool ``[B, N]``, True where a token is real, those before the others.
            positions: ``[B, N, W]`` or ``[N, W]``, added to each token; None: the table's rows in
                order.
        """
        if positions is not None:
            tokens = tokens + positions
        if self.class_token is not None:
            first = self.class_token if positions is None else self.class_token + self.positions[0]
            # `shape[0]`: `len` would fix the size of the batch in an exported graph.
            first = first.to(tokens.dtype).expand(tokens.shape[0], 1, -1)
            tokens = torch.cat([first, tokens], dim=1)
            mask = None if mask is None else F.pad(mask, (1, 0), value=True)
        if positions is None:
            tokens = tokens + self.positions[: tokens.shape[1]]
        if self.patch_dropout and self.training:
            tokens, mask = self._without_some(tokens, mask)
        # Padding comes last, so a causal trunk never shows it to a real token; attention that needs
        # no mask takes a faster kernel.
        visible = None if self.trunk.causal else mask
        if self.packed and mask is not None and not torch.compiler.is_exporting():
            packing = Packing.of(mask)
            tokens = packing.unpack(self.trunk(packing.pack(tokens), visible, packing))
        else:
            tokens = self.trunk(tokens, visible)
        return EncoderOutput(self.pool(tokens, mask), tokens, mask)

    def _without_some(self, tokens: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """``[B, T, W]`` to ``[B, S, W]``: another random part of every sample's real tokens.

        Source: Li et al. 2023, "Scaling Language-Image Pre-training via Masking" (FLIP), section 3.
        """
        extra = 0 if self.class_token is None else 1
        count = tokens.shape[1] - extra
        kept = max(1, round(count * (1.0 - self.patch_dropout)))
        chances = torch.rand(tokens.shape[0], count, device=tokens.device)
        if mask is None:
            places = chances.topk(kept, dim=1).indices.sort(dim=1).values + extra
        else:  # padding is behind all others; a sample with less real tokens keeps less of them
            real = mask[:, extra:]
            places = chances.masked_fill(~real, -1.0).topk(kept, dim=1).indices + extra
            own = (real.sum(dim=1) * (1.0 - self.patch_dropout)).round().clamp(min=1)
            mask = torch.arange(kept, device=mask.device) < own[:, None]
        if extra:
            places = F.pad(places, (1, 0))  # the class token's own
            mask = None if mask is None else F.pad(mask, (1, 0), value=True)
        return tokens.gather(1, places[..., None].expand(-1, -1, tokens.shape[2])), mask


class GridTransformer(TransformerEncoder):
    """A transformer on a signal ``[B, C, *size]`` of fixed size, cut into tokens by a stem.

    Args:
        in_channels: C.
        size: the signal's sides.
        stem: called as ``stem(in_channels=C, width=W, dims=len(size))``.
        trunk: the transformer.
        positions: ``learned`` or ``sincos``.
        pooling: ``class``, ``mean``, ``last`` or ``attention``.
        patch_dropout: share of the tokens left out in training (FLIP).

    Attributes:
        input_dims: dimensions of a batch; one more is a batch of several clips per sample, which a
            ``Tower`` embeds individually.

    Raises:
        ValueError: if the stem cannot cut ``size`` into whole tokens, or for a choice that does not
            exist.
    """

    def __init__(
        self,
        in_channels: int,
        size: Sequence[int],
        stem: Callable[..., Stem],
        trunk: Transformer,
        positions: Positions = "learned",
        pooling: Pooling = "class",
        patch_dropout: float = 0.0,
    ) -> None:
        cut = stem(in_channels=in_channels, width=trunk.width, dims=len(size))
        super().__init__(trunk, cut.grid(size), positions, pooling, patch_dropout)
        self.in_channels = in_channels
        self.size = tuple(size)
        self.input_dims = 2 + len(self.size)
        self.stem = cut

    def forward(self, inputs: Tensor, mask: Tensor | None = None) -> EncoderOutput:
        """Encode a batch.

        Args:
            inputs: float ``[B, C, *size]``.
            mask: None; a signal of fixed size has no padding.

        Raises:
            ValueError: if given inputs mismatched shapes, or when a mask is given.
        """
        self.check_inputs(inputs, mask)
        return self.encode_tokens(self.stem(inputs))

    def encode_resized(self, inputs: Tensor) -> EncoderOutput:
        """Encode signals of another size, with positions interpolated (bilinearly) to their grid.

        Args:
            inputs: float ``[B, C, *sides]``, of sides that the stem cuts into whole tokens.

        Raises:
            ValueError: if it cannot, or they are not as many as pictures have.
        """
        sides = inputs.shape[2:]
        if tuple(sides) == self.size:
            output: EncoderOutput = self(inputs)
            return output
        if len(sides) != 2 or len(self.grid) != 2:
            raise ValueError(
                f"{type(self).__name__} of {list(self.size)} takes no other size, got {list(sides)}"
            )
        extra = 0 if self.class_token is None else 1
        table = self.positions[extra:].T.view(1, self.width, *self.grid)
        read = F.interpolate(table, self.stem.grid(sides), mode="bilinear")
        positions = read[0].flatten(1).T
        return self.encode_tokens(self.stem(inputs), positions=positions)

    def encode_hidden(self, inputs: Tensor, hidden: Tensor, token: Tensor) -> EncoderOutput:
        """Encode a batch of which some tokens are replaced by one that is learned.

        Args:
            inputs: float ``[B, C, *size]``.
            hidden: int64 ``[B, M]``, places of the tokens to hide.
            token: ``[W]``.
        """
        self.check_inputs(inputs, None)
        tokens = self.stem(inputs)
        where = torch.zeros(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        where = where.scatter(1, hidden, True)
        return self.encode_tokens(torch.where(where[..., None], token.to(tokens.dtype), tokens))

    def check_inputs(self, inputs: Tensor, mask: Tensor | None) -> None:
        """Refuses what `forward` cannot take.

        Raises:
            InputMismatchError: naming the expected and the given input.
        """
        check_shape(inputs, (self.in_channels, *self.size), type(self).__name__)
        refuse_mask(mask, type(self).__name__)


def check_shape(inputs: Tensor, shape: Sequence[int], encoder: str) -> None:
    """Refuse a batch whose samples do not have ``shape``.

    Raises:
        InputMismatchError: if they do not, or are integers; the message names both.
    """
    if tuple(inputs.shape[1:]) != tuple(shape) or not inputs.is_floating_point():
        expected = ", ".join(map(str, shape))
        given = "" if inputs.is_floating_point() else f"{inputs.dtype} "
        raise InputMismatchError(
            f"{encoder} expects inputs [B, {expected}], got {given}{list(inputs.shape)}"
        )


def refuse_mask(mask: Tensor | None, encoder: str) -> None:
    """Refuse a mask where inputs have a fixed size.

    Raises:
        InputMismatchError: naming the encoder.
    """
    if mask is not None:
        raise InputMismatchError(f"{encoder} takes no mask: its inputs have a fixed size")


def check_mask(mask: Tensor | None, shape: Sequence[int]) -> None:
    """Refuse a mask that is not boolean of ``shape``.

    Raises:
        InputMismatchError: naming what was given.
    """
    if mask is not None and (mask.dtype != torch.bool or tuple(mask.shape) != tuple(shape)):
        raise InputMismatchError(
            f"mask must be bool {list(shape)} (True = real), got {mask.dtype} {list(mask.shape)}"
        )
