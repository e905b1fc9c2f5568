"""Whisper's encoder, on sounds of any length up to its own."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from multimodal.core.batch import EncoderOutput
from multimodal.models.encoders.transformer import TransformerEncoder, check_mask
from multimodal.models.layers.pooling import Pooling
from multimodal.models.layers.transformer import Transformer


class WhisperEncoder(TransformerEncoder):
    """Two convolutions and a transformer on log-mel frames (Radford et al. 2022, section 2.2).

    Whisper itself pads every sound to 30 s. Here a sound is as long as it is: its tokens are those
    that Whisper gives for an input that ends there, and those of a batch do not depend on how far
    it is padded.

    Args:
        num_mel_bins: of the log-mel spectrogram: 80, or 128 in large-v3.
        context_length: most tokens, one per 20 ms: 1500.
        trunk: the transformer.
        pooling: ``mean``, ``last`` or ``attention``.
        segments: above 0, the features are the means of so many equal parts of the sound, one after
            the other, and what ``pooling`` makes of the whole: so the order of what is heard stays.
            They are the only token then.

    Attributes:
        width: of the features, ``segments + 1`` times the trunk's.

    Raises:
        ValueError: if given a choice that does not exist; for inputs of another shape, or longer
            than the context.
    """

    def __init__(
        self,
        num_mel_bins: int,
        context_length: int,
        trunk: Transformer,
        pooling: Pooling = "mean",
        segments: int = 0,
    ) -> None:
        if pooling == "class":
            raise ValueError("pooling='class': Whisper has none; use mean, last or attention")
        if segments < 0:
            raise ValueError(f"segments={segments}: expected 0 or more")
        super().__init__(trunk, (context_length,), pooling=pooling)
        self.segments = segments
        self.width = (segments + 1) * trunk.width
        self.num_mel_bins = num_mel_bins
        self.context_length = context_length
        self.conv_1 = nn.Conv1d(num_mel_bins, trunk.width, 3, padding=1)
        self.conv_2 = nn.Conv1d(trunk.width, trunk.width, 3, stride=2, padding=1)
        with torch.no_grad():
            self.positions.copy_(sinusoids(context_length, trunk.width))

    def forward(self, inputs: Tensor, mask: Tensor | None = None) -> EncoderOutput:
        """Encode a batch of sounds.

        Args:
            inputs: log-mel ``[B, num_mel_bins, frames]``, padded on the right.
            mask: bool ``[B, frames]``, True where a frame is real; None: all are.

        Raises:
            ValueError: if given inputs or a mask of mismatched shapes, or too many frames.
        """
        longest = 2 * self.context_length
        if inputs.ndim != 3 or inputs.shape[1] != self.num_mel_bins or inputs.shape[2] > longest:
            raise ValueError(
                f"WhisperEncoder expects log-mel [B, {self.num_mel_bins}, frames <= {longest}], "
                f"got {list(inputs.shape)}"
            )
        check_mask(mask, (inputs.shape[0], inputs.shape[2]))
        real = None if mask is None else mask[:, None]
        # Beyond a sound's end both convolutions see the zeros that they pad with.
        x = inputs if real is None else inputs.masked_fill(~real, 0.0)
        x = F.gelu(self.conv_1(x))
        x = x if real is None else x.masked_fill(~real, 0.0)
        tokens = F.gelu(self.conv_2(x)).transpose(1, 2)
        output = self.encode_tokens(tokens, None if mask is None else mask[:, ::2])
        if not self.segments:
            return output
        parts = segment_means(output.tokens, output.mask, self.segments)
        features = torch.cat([parts.flatten(1), output.features], dim=1)
        return EncoderOutput(features, features[:, None], None)


def segment_means(tokens: Tensor, mask: Tensor | None, segments: int) -> Tensor:
    """Means of equal parts of each sequence, one after the other.

    Args:
        tokens: ``[B, T, W]``.
        mask: bool ``[B, T]``, True where a token is real, those before the others.
        segments: S. Of a sequence of fewer tokens, some parts hold none, and are the whole's mean.

    Returns:
        ``[B, S, W]``.
    """
    real = tokens.new_ones(tokens.shape[:2]) if mask is None else mask.to(tokens.dtype)
    lengths = real.sum(dim=1, keepdim=True)
    places = torch.arange(tokens.shape[1], device=tokens.device)
    part = (places * segments // lengths.long()).clamp(max=segments - 1)  # [B, T]
    member = F.one_hot(part, segments).to(tokens.dtype) * real[..., None]  # [B, T, S]
    counts = member.sum(dim=1)[..., None]
    means = member.transpose(1, 2) @ tokens / counts.clamp(min=1)
    whole = (tokens * real[..., None]).sum(dim=1, keepdim=True) / lengths[..., None]
    return torch.where(counts > 0, means, whole)


def sinusoids(length: int, width: int) -> Tensor:
    """Whisper's positions ``[length, width]``: sines, then cosines, of geometric wavelengths."""
    step = torch.log(torch.tensor(10_000.0)) / (width // 2 - 1)
    angles = torch.arange(length)[:, None] * torch.exp(-step * torch.arange(width // 2))
    return torch.cat([angles.sin(), angles.cos()], dim=1)
