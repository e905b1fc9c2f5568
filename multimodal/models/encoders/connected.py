"""An encoder whose output becomes tokens of a language model: connectors on a shared backbone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, Protocol, get_args

import torch
from torch import Tensor, nn

from multimodal.core.batch import EncoderOutput
from multimodal.models.layers.connectors import Connector, Tokens
from multimodal.models.layers.pooling import LastPool, MeanPool, make_pooler
from multimodal.models.layers.transformer import Transformer

ConnectedPooling = Literal["last", "mean", "attention"]
Reads = Literal["tokens", "features"]
PLACE = "{}"  # of the encoder's tokens in a template


class TemplateTokenizer(Protocol):
    """What a template asks of a tokenizer.

    Attributes:
        start: id put before every text, None for none.
        end: id put after every text, None for none.
    """

    start: int | None
    end: int | None

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without start and end."""
        ...


class Backbone(Protocol):
    """What an encoder of texts needs to be the backbone of other modalities.

    Attributes:
        width: W of its tokens and features.
    """

    width: int

    def token_table(self) -> nn.Embedding:
        """The table that turns token ids into vectors ``[W]``."""
        ...

    def encode_embedded(self, embedded: Tensor, mask: Tensor | None = None) -> EncoderOutput:
        """Encodes vectors ``[B, T, W]`` in place of ids; ``mask [B, T]`` is True of real ones."""
        ...


class ConnectedEncoder(nn.Module):
    """An encoder, a connector, and the language model of another tower.

    What the encoder makes of an input goes through the connector, is put between the text tokens of
    a template, and runs through the encoder of the tower ``backbone`` as a text would; the pooled
    result is the embedding. The backbone is that tower's own module: all modalities share one copy
    of its weights, and whether it is frozen, tuned or trained is said at that tower. Gradients go
    through it to the connector all the same. Several modalities of one sample become one embedding
    where their tokens stand in one sequence (`connect`, `encode_tokens`).

    Sources: Liu et al. 2023, "Visual Instruction Tuning", section 4.1, for tokens between text
    tokens; Jiang et al. 2024, "E5-V", for embeddings from them.

    Args:
        encoder: of the modality; any of ours.
        connector: called as ``connector(in_features=encoder.width, width=width)``.
        width: W of the backbone.
        tokenizer: the backbone's.
        backbone: the modality whose tower's encoder is the backbone.
        template: text with ``{}`` at the place of the modality's tokens: its instruction.
        pooling: ``last``, ``mean`` or ``attention`` (a learned query, trained); None: as the
            backbone pools its texts.
        reads: ``tokens`` of the encoder, or its ``features`` as one token, which a run can cache
            (``data.cache_frozen``) if the encoder is frozen.
        frozen: the encoder is not trained: no gradient, evaluation mode for good.

    Attributes:
        width: of the features.

    Raises:
        ValueError: if the template has not one ``{}``, or given a choice that does not exist.
    """

    def __init__(
        self,
        encoder: nn.Module,
        connector: Callable[..., Connector],
        width: int,
        tokenizer: TemplateTokenizer,
        backbone: str = "text",
        template: str = PLACE,
        pooling: ConnectedPooling | None = None,
        reads: Reads = "tokens",
        frozen: bool = True,
    ) -> None:
        super().__init__()
        for given, choices, key in (
            (pooling, ConnectedPooling, "pooling"),
            (reads, Reads, "reads"),
        ):
            if given not in get_args(choices) and (key, given) != ("pooling", None):
                raise ValueError(f"{key}={given!r}: expected one of {', '.join(get_args(choices))}")
        if template.count(PLACE) != 1:
            raise ValueError(
                f"template={template!r}: expected one {PLACE}, where the modality's tokens go"
            )
        self.encoder = encoder
        self.connector = connector(in_features=encoder.width, width=width)
        self.width = width
        self.backbone_name = backbone
        self.template = template
        self.reads = reads
        self.frozen = frozen
        before, after = map(tokenizer.encode, template.split(PLACE))
        start, end = ([] if i is None else [i] for i in (tokenizer.start, tokenizer.end))
        self.before: Tensor
        self.after: Tensor
        self.register_buffer("before", torch.tensor([*start, *before], dtype=torch.int64))
        self.register_buffer("after", torch.tensor([*after, *end], dtype=torch.int64))
        self.pool = None if pooling is None else _pooler(pooling, width)
        # Not a submodule of this one: it is in its own tower, once.
        self._backbone: tuple[Any, ...] = ()
        if frozen:
            encoder.requires_grad_(False)
        self.train()

    @property
    def backbone(self) -> Any:
        """The encoder of the tower that is the backbone (`Backbone`).

        Raises:
            RuntimeError: if the model has not attached one yet.
        """
        if not self._backbone:
            raise RuntimeError(
                "a ConnectedEncoder works inside an EmbeddingModel, which attaches its backbone"
            )
        return self._backbone[0]

    def attach(self, backbone: nn.Module) -> None:
        """Gives it its backbone; called by the model.

        Raises:
            ValueError: if an encoder is not a backbone, or of another width, or has fewer token ids
                than the template uses.
        """
        if not callable(getattr(backbone, "token_table", None)):
            raise ValueError(
                f"backbone={self.backbone_name}: a {type(backbone).__name__} is none; choose a "
                "tower with encoder=huggingface on a text model, or one of our text transformers"
            )
        one: Any = backbone
        if one.width != self.width:
            raise ValueError(
                f"width={self.width}, but the backbone {self.backbone_name} has {one.width}: set "
                f"width={one.width}"
            )
        rows, most = one.token_table().num_embeddings, max([*self._ids(), -1])
        if most >= rows:
            raise ValueError(
                f"the template has the token id {most}, but the backbone {self.backbone_name} "
                f"knows {rows}: its tokenizer is another one"
            )
        self._backbone = (one,)

    def _ids(self) -> list[int]:
        if self.before.is_meta:
            return []
        return [*self.before.tolist(), *self.after.tolist()]

    def train(self, mode: bool = True) -> ConnectedEncoder:
        """Set training mode; a frozen encoder stays in evaluation mode."""
        super().train(mode)
        if self.frozen:
            self.encoder.eval()
        return self

    @property
    def input_dims(self) -> int | None:
        """Dimensions of a batch of the encoder, where more are several clips; None: not so."""
        return getattr(self.encoder, "input_dims", None)

    @property
    def cached_width(self) -> int | None:
        """Width of what a cache may keep of an input for good; None: nothing."""
        width: Any = self.encoder.width
        return int(width) if self.frozen and self.reads == "features" else None

    def check_inputs(self, inputs: Tensor, mask: Tensor | None) -> None:
        """Refuses what the encoder cannot take.

        Raises:
            InputMismatchError: naming the expected and the given input.
        """
        check = getattr(self.encoder, "check_inputs", None)
        if check is not None:
            check(inputs, mask)

    def layers(self) -> nn.ModuleList:
        """The encoder's list of equal layers.

        Raises:
            ValueError: if the encoder is frozen, or does not expose them.
        """
        inner: Any = self.encoder
        if self.frozen:
            raise ValueError(
                "the connected encoder is frozen: to tune it, set encoder.frozen=false; what of "
                f"the backbone is tuned is said at the tower {self.backbone_name}"
            )
        layers: nn.ModuleList = inner.layers()
        return layers

    def after_layers(self) -> list[nn.Parameter]:
        """What comes after the layers: the encoder's own, the connector and the pooling."""
        inner: Any = self.encoder
        pool = () if self.pool is None else self.pool.parameters()
        return [*inner.after_layers(), *self.connector.parameters(), *pool]

    def encode_input(self, inputs: Tensor, mask: Tensor | None = None) -> EncoderOutput:
        """What the encoder alone makes of a batch, without a gradient if it is frozen."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            output: EncoderOutput = self.encoder(inputs, mask)
        return output

    def connect(self, output: EncoderOutput) -> Tokens:
        """The encoder's output as tokens of the backbone ``[B, K, W]``, and their mask."""
        if self.reads == "features":
            tokens: Tokens = self.connector(output.features[:, None], None)
        else:
            tokens = self.connector(output.tokens, output.mask)
        return tokens

    def frame(self, tokens: Tensor, mask: Tensor | None = None) -> Tokens:
        """Tokens ``[B, K, W]`` within the template: ``[B, P + K + S, W]``, the real ones first.

        Padding goes to the end, so that a sample's positions do not depend on its batch.
        """
        table = self.backbone.token_table()
        before, after = (
            table(ids).to(tokens.dtype).expand(len(tokens), -1, -1)
            for ids in (self.before, self.after)
        )
        return real_first(
            torch.cat([before, tokens, after], dim=1),
            None
            if mask is None
            else torch.nn.functional.pad(mask, (before.shape[1], after.shape[1]), value=True),
        )

    def encode_tokens(self, tokens: Tensor, mask: Tensor | None = None) -> EncoderOutput:
        """The backbone's output for framed tokens ``[B, T, W]``, pooled."""
        output: EncoderOutput = self.backbone.encode_embedded(tokens, mask)
        if self.pool is None:
            return output
        return EncoderOutput(self.pool(output.tokens, output.mask), output.tokens, output.mask)

    def from_features(self, features: Tensor) -> EncoderOutput:
        """As `forward`, from the encoder's own features ``[B, F]``, which a cache has kept."""
        return self.encode_tokens(*self.frame(*self.connector(features[:, None], None)))

    def forward(self, inputs: Tensor, mask: Tensor | None = None) -> EncoderOutput:
        """Encode a batch.

        Args:
            inputs: as the encoder takes them.
            mask: as the encoder takes it.

        Returns:
            the pooled features ``[B, W]``, and the backbone's tokens, the template's among them.
        """
        return self.encode_tokens(*self.frame(*self.connect(self.encode_input(inputs, mask))))


def real_first(tokens: Tensor, mask: Tensor | None) -> Tokens:
    """Each sequence's real tokens in their order, and then the others.

    Args:
        tokens: ``[B, T, W]``.
        mask: bool ``[B, T]``, True where a token is real; None: all are.

    Returns:
        both, reordered.
    """
    if mask is None:
        return tokens, None
    order = (~mask).long().argsort(dim=1, stable=True)
    return tokens.gather(1, order[..., None].expand_as(tokens)), mask.gather(1, order)


def attach_backbones(encoders: Mapping[str, nn.Module]) -> None:
    """Gives every connected encoder of a model, by tower, the backbone that it names.

    Raises:
        ValueError: naming the tower.
    """
    for name, encoder in encoders.items():
        if not isinstance(encoder, ConnectedEncoder):
            continue
        others = sorted(encoders.keys() - {name})
        if encoder.backbone_name not in others:
            raise ValueError(
                f"towers.{name}.encoder.backbone={encoder.backbone_name!r} is none of the other "
                f"towers, {', '.join(others) or 'of which there are none'}"
            )
        try:
            encoder.attach(encoders[encoder.backbone_name])
        except ValueError as error:
            raise ValueError(f"towers.{name}.encoder: {error}") from error


def _pooler(pooling: ConnectedPooling, width: int) -> nn.Module:
    if pooling == "attention":
        heads = next(h for h in range(max(1, width // 64), 0, -1) if width % h == 0)
        return make_pooler("attention", Transformer(width, 1, heads))
    return {"last": LastPool, "mean": MeanPool}[pooling]()
