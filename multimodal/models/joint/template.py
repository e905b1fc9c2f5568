"""A joint embedding by a shared language model: several modalities in one template."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from multimodal.core.batch import EncoderOutput
from multimodal.models.encoders.connected import ConnectedEncoder, TemplateTokenizer, real_first
from multimodal.models.joint.base import Joint, JointInputs, towers_of
from multimodal.models.layers.connectors import Tokens

if TYPE_CHECKING:
    from multimodal.models.towers import Tower

Part = tuple[Tensor, "Tensor | None"]  # tokens or inputs, and their mask
_PLACE = re.compile(r"\{(\w+)\}")


class TemplateJoint(Joint):
    """Several modalities as tokens of one template, through the language model of a tower.

    ``{image} {text} Summarise.``: a connected modality's tokens come from its connector, those of
    the backbone's own texts from its table of tokens, and what the backbone pools is the embedding.
    A modality that is left out leaves no token. A `VisionLanguageEncoder` takes texts, pictures
    and clips, all its own, as many as there are modalities.

    Args:
        modalities: two or more: connected to the backbone, or the backbone itself.
        towers: modality -> `Tower` (not named by the annotation, which is resolved to judge a
            stored configuration).
        tokenizer: the backbone's.
        template: text with ``{NAME}`` at the place of each modality's tokens.
        head: called as ``head(width=backbone.width)``.
        backbone: the modality whose tower's encoder is the backbone.
        modality_dropout: probability that a sample's modality is left out in training.

    Raises:
        ValueError: if the template does not name each modality once, a tower is not connected to
            the backbone, or it is, to one that takes its own modalities only.
    """

    reads = "inputs"

    def __init__(
        self,
        modalities: Sequence[str],
        towers: Mapping[str, Any],
        tokenizer: TemplateTokenizer,
        template: str,
        head: Callable[..., nn.Module],
        backbone: str = "text",
        modality_dropout: float = 0.0,
    ) -> None:
        super().__init__(modalities, modality_dropout)
        named = _PLACE.findall(template)
        if sorted(named) != list(self.modalities):
            raise ValueError(
                f"template={template!r}: expected the places "
                f"{' '.join(f'{{{name}}}' for name in self.modalities)}, once each"
            )
        towers_of((*self.modalities, backbone), towers)
        for name in self.modalities:
            encoder = towers[name].encoder
            is_backbone = encoder is towers[backbone].encoder
            of = getattr(encoder, "backbone_name", None)
            if not is_backbone and (not isinstance(encoder, ConnectedEncoder) or of != backbone):
                raise ValueError(
                    f"the tower {name} is not connected to the backbone {backbone}: choose "
                    "tower=connected, or a joint embedding of the towers' outputs (joint=gated)"
                )
            if not is_backbone and hasattr(towers[backbone].encoder, "encode_parts"):
                raise ValueError(
                    f"the backbone {backbone} takes the modalities that share its tower in one "
                    f"template, and {name} is connected to it: choose joint=gated"
                )
        self.backbone_name = backbone
        self.places = named
        texts = _PLACE.split(template)[::2]
        ids = [tokenizer.encode(text) for text in texts]
        start, end = ([] if i is None else [i] for i in (tokenizer.start, tokenizer.end))
        ids[0], ids[-1] = [*start, *ids[0]], [*ids[-1], *end]
        for number, each in enumerate(ids):
            self.register_buffer(f"text_{number}", torch.tensor(each, dtype=torch.int64))
        self.outside = tuple(i for i in (tokenizer.start, tokenizer.end) if i is not None)
        width: Any = towers[backbone].encoder.width
        self.head = head(width=width)
        if self.head.embed_dim != towers[backbone].embed_dim:
            raise ValueError(
                f"head.embed_dim={self.head.embed_dim}: the towers have "
                f"{towers[backbone].embed_dim}"
            )

    def needs_inputs(self, modality: str, tower: Tower) -> bool:
        """A connector reads what a cache has kept; the backbone reads the texts themselves."""
        return not isinstance(tower.encoder, ConnectedEncoder)

    def forward(self, towers: Mapping[str, Tower], given: JointInputs) -> Tensor:
        """``[B, D]`` from inputs, or from the features that a cache has kept."""
        backbone: Any = towers[self.backbone_name].encoder
        parts = {name: self._part(name, towers[name], given) for name in self.modalities}
        rows = len(next(iter(parts.values()))[0])
        pieces: list[Part] = []
        for number in range(len(self.places) + 1):
            pieces.append((self.get_buffer(f"text_{number}").expand(rows, -1), None))
            if number < len(self.places):
                tokens, mask = parts[self.places[number]]
                real = tokens.new_ones(tokens.shape[:2], dtype=torch.bool) if mask is None else mask
                present = given.presence.get(self.places[number])
                pieces.append((tokens, real if present is None else real & present[:, None]))
        features: Tensor = self._encode(backbone, pieces).features
        projected: Tensor = self.head(features)
        return projected.to(torch.promote_types(projected.dtype, torch.float32))

    def _part(self, name: str, tower: Tower, given: JointInputs) -> Part:
        """A modality's tokens ``[B, K, W]``, or the backbone's own inputs; and their mask."""
        encoder = tower.encoder
        if isinstance(encoder, ConnectedEncoder):
            if name in given.cached:
                tokens: Tokens = encoder.connector(given.cached[name][:, None], None)
                return tokens
            output = encoder.encode_input(given.inputs[name], given.masks.get(name))
            return encoder.connect(output)
        inputs, mask = given.inputs[name], given.masks.get(name)
        real = inputs.new_ones(inputs.shape[:2], dtype=torch.bool) if mask is None else mask
        for edge in () if inputs.is_floating_point() else self.outside:  # the template has its own
            real = real & (inputs != edge)
        return inputs, real

    def _encode(self, backbone: Any, pieces: Sequence[Part]) -> EncoderOutput:
        """The backbone's output for token ids ``[B, T]`` and embedded tokens, in order."""
        output: EncoderOutput
        if hasattr(backbone, "encode_parts"):
            output = backbone.encode_parts(pieces)
            return output
        table = backbone.token_table()
        dtype = next((part.dtype for part, _ in pieces if part.is_floating_point()), None)
        embedded = [
            part if part.is_floating_point() else table(part).to(dtype) for part, _ in pieces
        ]
        masks = [
            part.new_ones(part.shape[:2], dtype=torch.bool) if mask is None else mask
            for part, mask in pieces
        ]
        output = backbone.encode_embedded(*real_first(torch.cat(embedded, 1), torch.cat(masks, 1)))
        return output
