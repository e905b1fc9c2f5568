"""Towers, and the model that holds one per modality."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from multimodal.core.batch import EncoderOutput
from multimodal.core.errors import ConfigError, ConfigProblem, InputMismatchError
from multimodal.core.similarity.similarities import COSINE, Similarity
from multimodal.core.similarity.tokens import without_padding
from multimodal.models.encoders.connected import ConnectedEncoder, attach_backbones
from multimodal.models.joint.base import Joint, JointEmbeddings
from multimodal.models.tower_optim import TowerOptim
from multimodal.models.tuning import Tuning

EmbeddingKind = Literal["raw", "normalized", "scaled"]
CompileScope = Literal["blocks", "tower"]


class Tower(nn.Module):
    """An encoder and a head: one modality's way into the shared space.

    A frozen tower computes no gradient, stays in evaluation mode even after ``.train()``, and its
    parameters do not ask for gradients, so that an optimizer of the others ignores it: its weights
    stay bit-identical.

    Inputs with one dimension more than the encoder takes (its ``input_dims``) are several clips of
    each sample, ``[B, S, ...]``: they are embedded individually and averaged (ImageBind's audio and
    video).

    Args:
        encoder: ``forward(inputs, mask) -> EncoderOutput``, with an attribute ``width``.
        head: called as ``head(width=encoder.width)``; the module has an attribute ``embed_dim``.
            None for a tower that only a fusion reads: it has no embeddings.
        frozen: true: the whole tower; ``encoder``: all but the head, which is then trained alone.
        tuning: called with the tower, once it is built: marks or adds trained parameters
            (``multimodal.models.tuning``); None trains all of it.
        rates: its own learning rate, weight decay and gradient clipping; None: the run's.
        scale: factor of the ``scaled`` embeddings (ImageBind's per modality, e.g. 20 for audio);
            kept with the weights, not trained. None: 1, and nothing is kept.
        pretrained: entry of the catalogue (``configs/pretrained``) that a run fills the encoder
            from before its first step; nothing is read here.

    Attributes:
        encoder_frozen: whether the encoder is frozen.
        per_token: whether embeddings are of tokens, for late interaction (`compare_by` of a model).

    Raises:
        ValueError: if given a scale that is not above 0, or another kind of freezing.
    """

    def __init__(
        self,
        encoder: nn.Module,
        head: Callable[..., nn.Module] | None,
        frozen: bool | Literal["encoder"] = False,
        scale: float | None = None,
        tuning: Tuning | Callable[[nn.Module], None] | None = None,
        rates: TowerOptim | None = None,
        pretrained: str | None = None,
    ) -> None:
        super().__init__()
        if frozen not in (True, False, "encoder"):
            raise ValueError(f"frozen={frozen!r}: expected true, false or encoder")
        if frozen and tuning is not None:
            raise ValueError("a frozen tower has no tuning: set frozen=false, or tuning=null")
        if scale is not None and not scale > 0:
            raise ValueError(f"scale={scale}: expected a number above 0, or null")
        self.encoder = encoder
        self.head = None if head is None else head(width=encoder.width)
        self.per_token = False
        self.frozen = frozen is True
        self.encoder_frozen = frozen is not False
        self.pretrained = pretrained
        self.scale: Tensor | None
        self.register_buffer("scale", None if scale is None else torch.tensor(float(scale)))
        self.rates = rates
        if self.encoder_frozen:
            (self if self.frozen else encoder).requires_grad_(False)
        if tuning is not None:
            tuning(self)
        self.train()

    @property
    def embed_dim(self) -> int | None:
        """Dimensions of the shared space; None without a head."""
        return None if self.head is None else int(self.head.embed_dim)  # type: ignore[arg-type]

    def train(self, mode: bool = True) -> Tower:
        """Set training mode; frozen parts stay in evaluation mode."""
        super().train(mode and not self.frozen)
        if self.encoder_frozen:
            self.encoder.eval()
        return self

    @property
    def cached_width(self) -> int | None:
        """Width of `frozen_part`; None where nothing stays the same in training, and of tokens."""
        if self.per_token:
            return None
        if isinstance(self.encoder, ConnectedEncoder):
            return self.encoder.cached_width
        if not self.encoder_frozen:
            return None
        return self.embed_dim if self.frozen else int(self.encoder.width)  # type: ignore[arg-type]

    @property
    def frozen_module(self) -> nn.Module:
        """What computes `frozen_part`."""
        if isinstance(self.encoder, ConnectedEncoder):
            return self.encoder.encoder
        return self if self.frozen else self.encoder

    def frozen_part(self, inputs: Tensor, mask: Tensor | None = None) -> Tensor:
        """What training does not change ``[B, cached_width]``, and a cache may keep.

        Of a frozen tower the embeddings; of a frozen encoder, also of one that is connected, the
        features.

        Raises:
            ValueError: if a sample has several clips, which are averaged behind a trained head.
        """
        if self.frozen and self.frozen_module is self:
            embeddings: Tensor = self(inputs, mask)
            return embeddings
        if mask is None and inputs.ndim - 1 == getattr(self.encoder, "input_dims", None):
            raise ValueError(
                "data.cache_frozen: without views a sample has several clips, whose embeddings are "
                "averaged behind the head: set cache_frozen.views=K, or num_clips=1"
            )
        if isinstance(self.encoder, ConnectedEncoder):
            return self.encoder.encode_input(inputs, mask).features
        return self.encode(inputs, mask).features

    def from_frozen(self, cached: Tensor) -> Tensor:
        """Embeddings ``[B, embed_dim]``, normalised, of what `frozen_part` gave."""
        if isinstance(self.encoder, ConnectedEncoder):
            return self.project(self.encoder.from_features(cached).features)
        return cached if self.frozen else self.project(cached)

    def check_inputs(self, inputs: Tensor, mask: Tensor | None = None) -> None:
        """Refuses inputs that the encoder cannot take, as far as it can tell without computing.

        Raises:
            InputMismatchError: naming the expected and the given input.
        """
        check = getattr(self.encoder, "check_inputs", None)
        if check is not None:
            clips = mask is None and inputs.ndim - 1 == getattr(self.encoder, "input_dims", None)
            check(inputs[:, 0] if clips else inputs, mask)

    def encode(self, inputs: Tensor, mask: Tensor | None = None) -> EncoderOutput:
        """Features and tokens before the head; see the encoder for the shapes."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.encoder_frozen):
            output: EncoderOutput = self.encoder(inputs, mask)
        return output

    def forward(
        self, inputs: Tensor, mask: Tensor | None = None, kind: EmbeddingKind = "normalized"
    ) -> Tensor:
        """Embed a batch.

        Args:
            inputs: ``[B, ...]``, as the encoder takes them, or ``[B, S, ...]``: S clips of each.
            mask: bool ``[B, T]``, True = real, where inputs vary in length.
            kind: ``normalized``; ``raw``, as the head gives them; or ``scaled``, normalised and
                then multiplied by ``scale``. Of several clips the embeddings of this kind are
                averaged, and only the normalised ones are normalised again; tokens are joined.

        Returns:
            ``[B, embed_dim]``, by default each of norm 1; float32 under autocast too. Where it is
            `per_token`, ``[B, T, embed_dim]``, with zeros at padding.

        Raises:
            ValueError: if given another kind.
        """
        if kind not in get_args(EmbeddingKind):
            raise ValueError(f"kind={kind!r}: expected one of {', '.join(get_args(EmbeddingKind))}")
        if mask is None and inputs.ndim - 1 == getattr(self.encoder, "input_dims", None):
            # One at a time: a batch needs no more memory than of one clip each.
            clips = [self(clip, kind=kind) for clip in inputs.unbind(dim=1)]
            if self.per_token:
                return torch.cat(clips, dim=1)
            mean = torch.stack(clips).mean(dim=0)
            return F.normalize(mean, dim=-1) if kind == "normalized" else mean
        output = self.encode(inputs, mask)
        if self.per_token:
            real = output.mask
            if real is None and mask is not None and mask.shape == output.tokens.shape[:2]:
                real = mask  # padding that is attended to is not a token
            return without_padding(self.project(output.tokens, kind), real)
        return self.project(output.features, kind)

    def project(self, features: Tensor, kind: EmbeddingKind = "normalized") -> Tensor:
        """The encoder's features ``[..., W]`` to embeddings ``[..., embed_dim]`` of a kind.

        Raises:
            ValueError: if there is no head.
        """
        if self.head is None:
            raise ValueError("a tower without a head has no embeddings: give it one")
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            projected: Tensor = self.head(features)
            embeddings = projected.to(torch.promote_types(projected.dtype, torch.float32))
            if kind == "raw":
                return embeddings
            embeddings = F.normalize(embeddings, dim=-1)
            if kind == "normalized" or self.scale is None:
                return embeddings
            return embeddings * self.scale


class EmbeddingModel(nn.Module):
    """Towers into one shared space, by modality.

    Args:
        towers: modality -> tower, or -> the name of another modality whose tower it shares. A
            `ConnectedEncoder` is given the encoder of the tower that it names as its backbone.
        compile: what torch.compile is applied to in training: ``blocks`` of the encoders, each
            ``tower``'s whole encoder, or null. Weights keep their names.
        joint: any name -> called as ``joint(towers=towers)``: several modalities of a sample as one
            embedding (`Joint`), which is a modality more, called ``image&text``.

    Raises:
        ValueError: if there is no tower, a shared one or a backbone does not exist, they differ in
            ``embed_dim``, ``compile`` is something else, or ``joint`` does not fit the towers.
    """

    similarity: Similarity = COSINE  # how embeddings are compared; see `compare_by`

    def __init__(
        self,
        towers: Mapping[str, Tower | str],
        compile: CompileScope | None = None,
        joint: Mapping[str, Callable[..., Joint]] | None = None,
    ) -> None:
        super().__init__()
        if compile not in (None, *get_args(CompileScope)):
            raise ValueError(f"compile={compile!r}: expected blocks, tower or null")
        self.compile_scope = compile
        own = {name: tower for name, tower in towers.items() if not isinstance(tower, str)}
        if not own:
            raise ValueError("towers is empty: expected at least one modality with a tower")
        self.towers = nn.ModuleDict()
        for name, tower in towers.items():
            if isinstance(tower, str) and tower not in own:
                raise ValueError(
                    f"towers.{name} shares the tower of {tower!r}, which is none of {sorted(own)}"
                )
            self.towers[name] = own[tower] if isinstance(tower, str) else tower
        dims = {n: tower.embed_dim for n, tower in own.items() if tower.embed_dim is not None}
        if len(set(dims.values())) > 1:
            listed = ", ".join(f"{name} {dim}" for name, dim in dims.items())
            raise ValueError(f"all towers must have the same embed_dim, got {listed}")
        self.embed_dim = next(iter(dims.values()), 0)
        attach_backbones({name: tower.encoder for name, tower in own.items()})
        self.joint = JointEmbeddings(joint or {}, self.towers)

    def tower(self, modality: str) -> Tower:
        """The tower of a modality.

        Raises:
            ValueError: if there is none.
        """
        if modality not in self.towers:
            raise ValueError(
                f"no tower for modality {modality!r}: the model has {', '.join(self.towers)}"
            )
        tower = self.towers[modality]
        assert isinstance(tower, Tower)
        return tower

    def compare_by(self, similarity: Similarity) -> None:
        """Lets the towers give what ``similarity`` compares: an embedding, or one of each token."""
        self.similarity = similarity
        for modality in self.towers:
            self.tower(modality).per_token = similarity.per_token

    def embed(
        self,
        modality: str,
        inputs: Tensor,
        mask: Tensor | None = None,
        kind: EmbeddingKind = "normalized",
    ) -> Tensor:
        """Embed a batch of one modality: ``[B, embed_dim]``, by default each of norm 1.

        Of a `similarity` of tokens, ``[B, T, embed_dim]`` with zeros at padding.

        Args:
            modality: the name of a tower.
            inputs: ``[B, ...]``, or ``[B, S, ...]`` for S clips of each sample.
            mask: bool ``[B, T]``, True = real, where inputs vary in length.
            kind: ``raw``, ``normalized`` or ``scaled``; see ``Tower.forward``.

        Raises:
            ValueError: if given a modality without a tower.
            ConfigError: if the inputs do not fit the tower.
        """
        tower = self.tower(modality)
        with self.inputs_blamed(modality):
            embeddings: Tensor = tower(inputs, mask, kind)
        return embeddings

    def frozen_part(self, modality: str, inputs: Tensor, mask: Tensor | None = None) -> Tensor:
        """What a cache may keep of a batch ``[B, tower.cached_width]``: see `Tower.frozen_part`.

        Raises:
            ConfigError: if the inputs do not fit the tower.
        """
        tower = self.tower(modality)
        if tower.frozen_module is tower:
            return self.embed(modality, inputs, mask)
        with self.inputs_blamed(modality):
            return tower.frozen_part(inputs, mask)

    @contextmanager
    def inputs_blamed(self, modality: str) -> Iterator[None]:
        """Within, inputs that do not fit a tower are an error of the key that makes them.

        Raises:
            ConfigError: in place of an `InputMismatchError`.
        """
        try:
            yield
        except InputMismatchError as error:
            tower = self.tower(modality)
            where = next(name for name, each in self.towers.items() if each is tower)
            raise ConfigError(
                [
                    ConfigProblem(
                        f"data.transforms.{modality}",
                        f"its results do not fit model.towers.{where}.encoder: {error}. Set the "
                        "sizes of the one as the other has them",
                    )
                ]
            ) from error

    def forward(
        self, inputs: Mapping[str, Tensor], masks: Mapping[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """Embed a batch of several modalities: name -> ``[B, embed_dim]``."""
        held = masks or {}
        return {name: self.embed(name, value, held.get(name)) for name, value in inputs.items()}
