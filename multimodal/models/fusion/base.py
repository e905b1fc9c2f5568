"""The interface of fusion modules: tokens, masks and presence in, one representation out.

Sizes in comments: B batch, M modalities, T tokens of a modality, H heads, W the fusion's width.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from multimodal.core.batch import EncoderOutput


@dataclass(slots=True)
class Stream:
    """One modality inside a fusion module, projected to the fusion's width.

    Attributes:
        features: ``[B, W]``, zero where the modality is absent.
        tokens: ``[B, T, W]``; masked positions have no meaning and are never read.
        mask: ``[B, T]`` bool, True where a token is real and its modality present.
        present: ``[B]`` bool.
    """

    features: Tensor
    tokens: Tensor
    mask: Tensor
    present: Tensor


@dataclass(slots=True)
class AttentionMap:
    """The attention of one layer.

    Attributes:
        query: a modality, or ``latent``, ``bottleneck``, ``class`` for learned queries.
        weights: ``[B, H, T, S]`` float32; a row sums to 1 over the real keys, or is 0 without any.
        spans: which keys belong to whom: a modality (or ``bottleneck``) -> (first, one past last).
        mask: ``[B, T]`` bool, True for real queries; None: all.
    """

    query: str
    weights: Tensor
    spans: dict[str, tuple[int, int]]
    mask: Tensor | None = None

    def over(self, modality: str) -> Tensor:
        """``[B, T, S]``: the weights on one modality's tokens, mean over heads."""
        start, stop = self.spans[modality]
        return self.weights[..., start:stop].mean(dim=1)


@dataclass(slots=True)
class FusionOutput:
    """What a fusion module returns.

    Attributes:
        features: ``[B, W]``.
        tokens: ``[B, T, W]``, the fused sequence.
        mask: ``[B, T]`` bool, True where a fused token is real.
        spans: which fused tokens come from which modality, or from ``latent``.
        attention: one map per query and layer, if asked for and the module attends.
    """

    features: Tensor
    tokens: Tensor
    mask: Tensor
    spans: dict[str, tuple[int, int]]
    attention: list[AttentionMap] = field(default_factory=list)


class Fusion(nn.Module):
    """Base of the fusion modules: checks and projects what comes in, then calls ``fuse``.

    Args:
        widths: modality -> width of its encoder, in any order.
        width: W, of the fused tokens.

    Raises:
        ValueError: if there is no modality, or ``width`` is below 1.
    """

    def __init__(self, widths: Mapping[str, int], width: int) -> None:
        super().__init__()
        if not widths or width < 1:
            raise ValueError(
                f"a fusion needs at least one modality and a width of at least 1, got "
                f"{', '.join(widths) or 'no modality'} and width={width}"
            )
        self.modalities = tuple(widths)
        self.width = width
        self.inputs = nn.ModuleDict({name: nn.Linear(w, width) for name, w in widths.items()})

    def forward(
        self,
        encoded: Mapping[str, EncoderOutput],
        presence: Mapping[str, Tensor] | None = None,
        need_attention: bool = False,
    ) -> FusionOutput:
        """Fuse a batch.

        Args:
            encoded: modality -> features ``[B, w]``, tokens ``[B, T, w]``, mask; a modality that
                is absent from the whole batch is left out.
            presence: modality -> ``[B]`` bool, False where a sample lacks it; one that is not named
                is present for all. Values of absent modalities have no influence.
            need_attention: also return attention weights; the other results do not change.

        Raises:
            ValueError: if given an unknown modality, or a sample that has none at all.
        """
        return self.fuse(self._streams(encoded, presence or {}), need_attention)

    @abstractmethod
    def fuse(self, streams: dict[str, Stream], need_attention: bool) -> FusionOutput:
        """The module's own work, on those modalities that the batch has."""

    def _streams(
        self, encoded: Mapping[str, EncoderOutput], presence: Mapping[str, Tensor]
    ) -> dict[str, Stream]:
        unknown = sorted(encoded.keys() - set(self.modalities))
        if unknown or not encoded:
            raise ValueError(
                f"this fusion is of {', '.join(self.modalities)}; given "
                f"{', '.join(unknown) or 'no modality: every sample needs at least one'}"
            )
        streams = {}
        for name in self.modalities:
            if name not in encoded:
                continue
            output = encoded[name]
            given = presence.get(name)
            batch, length = output.tokens.shape[:2]
            present = output.tokens.new_ones(batch, dtype=torch.bool) if given is None else given
            mask = present[:, None].expand(batch, length)
            if output.mask is not None:
                mask = mask & output.mask
            project = self.inputs[name]
            # Zeroed before the projection, so that not even NaN passes.
            tokens = project(torch.where(mask[..., None], output.tokens, 0.0))
            features = project(torch.where(present[:, None], output.features, 0.0))
            features = torch.where(present[:, None], features, 0.0)
            streams[name] = Stream(features, tokens, mask, present)
        checked = not torch.compiler.is_exporting()  # a graph cannot refuse values
        if checked and any(name in presence for name in streams):
            has_no_modality = ~torch.stack([s.present for s in streams.values()]).any(dim=0)
            if has_no_modality.any():
                places = has_no_modality.nonzero().flatten().tolist()
                raise ValueError(
                    f"samples {places[:10]} of the batch have no modality: every sample needs at "
                    f"least one of {', '.join(self.modalities)}"
                )
        return streams


def joined(streams: Mapping[str, Stream]) -> tuple[Tensor, Tensor, dict[str, tuple[int, int]]]:
    """All tokens ``[B, sum of T, W]``, their mask, and which belong to which modality."""
    spans, start = {}, 0
    for name, stream in streams.items():
        spans[name] = (start, start + stream.tokens.shape[1])
        start = spans[name][1]
    tokens = torch.cat([stream.tokens for stream in streams.values()], dim=1)
    return tokens, torch.cat([stream.mask for stream in streams.values()], dim=1), spans


def masked_mean(tokens: Tensor, mask: Tensor) -> Tensor:
    """``[B, W]``, the mean of the real tokens of ``[B, T, W]``; zero where there is none."""
    total = torch.where(mask[..., None], tokens, 0.0).sum(dim=1)
    return total / mask.sum(dim=1, keepdim=True).clamp_min(1)


def mean_of_present(values: Sequence[Tensor], present: Sequence[Tensor]) -> Tensor:
    """The mean ``[B, ...]`` over those of ``values`` whose ``present [B]`` is True; else zero."""
    shape = (-1, *(1,) * (values[0].ndim - 1))
    flags = [flag.view(shape) for flag in present]
    total = sum(torch.where(f, value, 0.0) for f, value in zip(flags, values, strict=True))
    count = sum(flag.to(values[0].dtype) for flag in flags)
    assert isinstance(total, Tensor)
    assert isinstance(count, Tensor)
    return total / count.clamp_min(1)


def pooled_output(
    features: Mapping[str, Tensor], streams: Mapping[str, Stream]
) -> tuple[Tensor, Tensor, dict[str, tuple[int, int]]]:
    """One token per modality, for modules that fuse pooled features: tokens, mask, spans."""
    tokens = torch.stack(list(features.values()), dim=1)
    mask = torch.stack([streams[name].present for name in features], dim=1)
    return tokens, mask, {name: (index, index + 1) for index, name in enumerate(features)}
