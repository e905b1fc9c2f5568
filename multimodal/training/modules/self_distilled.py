"""Self-distillation in training: the teachers, the students' heads, and their losses of a batch."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import cast

import torch
from torch import Tensor, nn

from multimodal.core.batch import Batch
from multimodal.core.distributed import all_reduce_sum, world_size
from multimodal.core.errors import InputMismatchError
from multimodal.core.hashing import stable_hash
from multimodal.models.encoders.transformer import GridTransformer, TransformerEncoder
from multimodal.models.gradient_caching import encode_pieces
from multimodal.models.towers import Tower
from multimodal.objectives.self_distillation.prototypes import (
    PrototypeHead,
    cross_entropy,
    distribution,
)
from multimodal.objectives.self_distillation.settings import SelfDistillation
from multimodal.training.modules.momentum import MomentumCopy

LOCAL, HIDDEN = "local", "hidden"  # the parts; each has a head of its own
PICTURES, CLIPS = 4, 5  # dimensions of a batch


class SelfDistiller(nn.Module):
    """What `SelfDistillation` adds to a model: heads, tokens for hidden patches, and teachers.

    Args:
        settings: the choices.
        towers: those of the model, by modality.

    Raises:
        ValueError: if a tower is not there, is frozen, or its encoder cannot have patches hidden.
    """

    def __init__(self, settings: SelfDistillation, towers: Mapping[str, Tower]) -> None:
        super().__init__()
        self.settings = settings
        self.weights = {
            part: view.weight
            for part, view in ((LOCAL, settings.local), (HIDDEN, settings.hidden))
            if view is not None
        }
        self.heads = nn.ModuleDict()
        self.hidden_tokens = nn.ParameterDict()
        self.teachers = nn.ModuleDict()
        self._seen: dict[str, list[Tensor]] = {}  # of the present step, for the centres
        for name in settings.modalities:
            encoder = trained_encoder(name, towers, settings)
            width = int(encoder.width)  # type: ignore[arg-type]
            self.heads[name] = nn.ModuleDict({p: settings.head(width=width) for p in self.weights})
            for part in self.weights:
                prototypes = cast("PrototypeHead", self._head(name, part)).prototypes
                centre = torch.zeros(len(prototypes))
                self.register_buffer(self._centre_name(name, part), centre)
            if settings.hidden is not None:
                self.hidden_tokens[name] = nn.Parameter(torch.empty(width))
                nn.init.trunc_normal_(self.hidden_tokens[name], std=0.02)

    def start(self, towers: Mapping[str, Tower]) -> None:
        """Starts the teachers at the students' present weights; once."""
        for name in self.settings.modalities:
            if name not in self.teachers:
                self.teachers[name] = MomentumCopy(
                    self._student(name, towers), self.settings.momentum
                )

    def lacks(self, modalities: Collection[str]) -> bool:
        """Whether a batch of these modalities leaves a head without a gradient."""
        return not set(self.settings.modalities) <= set(modalities)

    def loss(
        self, towers: Mapping[str, Tower], batch: Batch, key: int, micro_batch_size: int | None
    ) -> tuple[Tensor | float, dict[str, Tensor]]:
        """The weighted loss over all ranks, and its parts; DDP's mean of gradients is its gradient.

        Args:
            towers: of the model, by modality.
            batch: all ranks' have the same modalities.
            key: signed 64-bit integer, another one in each step.
            micro_batch_size: samples encoded at a time, or None.

        Returns:
            0 and nothing where the batch has none of the modalities.

        Raises:
            InputMismatchError: if a batch does not hold pictures.
        """
        total: Tensor | float = 0.0
        metrics: dict[str, Tensor] = {}
        for name in self.settings.modalities:
            if name not in batch.inputs:
                continue
            rows, taught = self._rows(name, towers[name], batch, key, micro_batch_size)
            there = batch.presence.get(name)
            share = rows.new_ones(len(rows)) if there is None else there.to(rows.dtype)
            sums = torch.cat([share.sum()[None], (taught * share[:, None, None]).sum(0).flatten()])
            sums = all_reduce_sum(sums)
            count, seen = sums[0], sums[1:].view(len(self.weights), -1)
            means = world_size() * (rows * share[:, None]).sum(0) / count.clamp(min=1)
            for (part, weight), mean, vector in zip(self.weights.items(), means, seen, strict=True):
                total = total + weight * mean
                metrics[f"loss/self_distillation/{name}_{part}"] = mean.detach()
                self._note(f"{name}/{part}", torch.cat([vector, count[None]]))
        return total, metrics

    @torch.no_grad()
    def update(self, towers: Mapping[str, Tower], applied: bool) -> None:
        """Moves teachers and centres on, where the optimizer's step was applied."""
        seen, self._seen = self._seen, {}
        if not applied:
            return
        for name in self.settings.modalities:
            for part in self.weights:
                for summed in seen.get(f"{name}/{part}", ()):
                    self._move_centre(name, part, summed[:-1] / summed[-1].clamp(min=1))
            cast("MomentumCopy", self.teachers[name]).update(self._student(name, towers))

    def _move_centre(self, name: str, part: str, mean: Tensor) -> None:
        head = cast("PrototypeHead", self._taught_by(name)[part])
        self.centre(name, part).lerp_(head.logits(mean), 1 - self.settings.centre_momentum)

    def _note(self, place: str, summed: Tensor) -> None:
        self._seen.setdefault(place, []).append(summed)

    def centre(self, name: str, part: str) -> Tensor:
        """The running mean of a teacher's logits, ``[K]``."""
        return cast("Tensor", getattr(self, self._centre_name(name, part)))

    @staticmethod
    def _centre_name(name: str, part: str) -> str:
        return f"centre_{name}_{part}"

    def _head(self, name: str, part: str) -> nn.Module:
        return cast("nn.ModuleDict", self.heads[name])[part]

    def _student(self, name: str, towers: Mapping[str, Tower]) -> nn.ModuleDict:
        """What a teacher follows: the encoder and the heads."""
        parts = cast("nn.ModuleDict", self.heads[name])
        return nn.ModuleDict({"encoder": towers[name].encoder, **dict(parts.items())})

    def _taught_by(self, name: str) -> nn.ModuleDict:
        return cast("nn.ModuleDict", cast("MomentumCopy", self.teachers[name]).module)

    def _rows(
        self, name: str, tower: Tower, batch: Batch, key: int, size: int | None
    ) -> tuple[Tensor, Tensor]:
        """Each sample's losses ``[B, parts]``, and the mean of the teacher's vectors for it."""
        inputs, ids = batch.inputs[name], batch.sample_ids
        if inputs.ndim != 4:
            raise InputMismatchError(
                f"self_distillation takes pictures [B, C, H, W], got {name} {list(inputs.shape)}"
            )
        key = stable_hash(key, name)
        given = {"inputs": inputs}
        if (view := self.settings.hidden) is not None:
            patches = _patches(tower.encoder)
            given["hidden"] = view.hidden(ids, patches, key)
        with torch.no_grad():
            vectors = encode_pieces(lambda piece: self._teach(name, piece), given, size)
        given |= {"vectors": vectors, "ids": ids}
        rows = encode_pieces(
            lambda piece: self._learn(name, tower.encoder, piece, key), given, size
        )
        means = {LOCAL: vectors[:, :1], HIDDEN: vectors[:, -self._predicted(given) :]}
        return rows, torch.stack([means[part].mean(1) for part in self.weights], dim=1)

    def _predicted(self, given: Mapping[str, Tensor]) -> int:
        """How many patches' vectors come behind the picture's own."""
        return given["vectors"].shape[1] - (LOCAL in self.weights)

    def _teach(self, name: str, piece: Mapping[str, Tensor]) -> Tensor:
        """The teacher's unit vectors ``[b, 1 + M, D]``: of the view, and of what is predicted."""
        teacher, made = self._taught_by(name), []
        output = teacher["encoder"](piece["inputs"])
        if LOCAL in self.weights:
            made.append(cast("PrototypeHead", teacher[LOCAL]).vectors(output.features)[:, None])
        if HIDDEN in self.weights:
            tokens = self._to_predict(teacher["encoder"], output.tokens, piece["hidden"])
            made.append(cast("PrototypeHead", teacher[HIDDEN]).vectors(tokens))
        return torch.cat(made, dim=1)

    def _learn(
        self, name: str, encoder: nn.Module, piece: Mapping[str, Tensor], key: int
    ) -> Tensor:
        """The student's losses ``[b, parts]``."""
        vectors, losses = piece["vectors"], []
        if (crops := self.settings.local) is not None:
            cut = crops.cut(piece["inputs"], piece["ids"], key)
            output = (
                encoder.encode_resized(cut.flatten(0, 1))
                if isinstance(encoder, GridTransformer)
                else encoder(cut.flatten(0, 1))
            )
            features = output.features.unflatten(0, cut.shape[:2])
            losses.append(self._entropies(name, LOCAL, vectors[:, :1], features))
            vectors = vectors[:, 1:]
        if self.settings.hidden is not None:
            ours = cast("GridTransformer", encoder)
            output = ours.encode_hidden(piece["inputs"], piece["hidden"], self.hidden_tokens[name])
            tokens = self._to_predict(ours, output.tokens, piece["hidden"])
            losses.append(self._entropies(name, HIDDEN, vectors, tokens))
        return torch.stack(losses, dim=1)

    def _entropies(self, name: str, part: str, vectors: Tensor, features: Tensor) -> Tensor:
        """Mean cross entropy of each sample ``[b]``."""
        head = cast("PrototypeHead", self._head(name, part))
        with torch.no_grad():
            teacher = cast("PrototypeHead", self._taught_by(name)[part])
            target = distribution(
                teacher.logits(vectors),
                self.centre(name, part),
                self.settings.teacher_temperature,
            )
        logits = head.logits(head.vectors(features))
        return cross_entropy(target, logits, self.settings.student_temperature).mean(dim=1)

    def _to_predict(self, encoder: nn.Module, tokens: Tensor, hidden: Tensor) -> Tensor:
        """Of an encoder's tokens ``[b, T, W]``, those whose prototypes are predicted."""
        assert self.settings.hidden is not None
        patches = tokens[:, tokens.shape[1] - _patches(encoder) :]  # behind the class token
        if self.settings.hidden.visible:
            return patches
        return patches.gather(1, hidden[..., None].expand(-1, -1, patches.shape[2]))


def trained_encoder(
    name: str, towers: Mapping[str, Tower], settings: SelfDistillation
) -> nn.Module:
    """A tower's encoder, where it can be a student.

    Raises:
        ValueError: if it cannot; says why.
    """
    where = "self_distillation.modalities"
    if name not in towers:
        raise ValueError(f"{where}: no tower {name!r}; there are {', '.join(sorted(towers))}")
    tower = towers[name]
    encoder = tower.encoder
    if tower.encoder_frozen:
        raise ValueError(f"{where}: the tower {name!r} is frozen and learns nothing; leave it out")
    dims = getattr(encoder, "input_dims", PICTURES)
    if dims not in (PICTURES, CLIPS):  # an encoder of clips takes pictures too
        raise ValueError(f"{where}: {name!r} takes inputs of {dims} dimensions, and no pictures")
    hides = settings.hidden is not None
    size = None if settings.local is None else settings.local.size
    if size is not None and not isinstance(encoder, GridTransformer) and hasattr(encoder, "size"):
        raise ValueError(
            f"self_distillation.local.size={size}: {name!r} has {type(encoder).__name__}, which "
            "takes one size; take null"
        )
    if hides and not isinstance(encoder, GridTransformer):
        raise ValueError(
            f"self_distillation.hidden hides patches of a ViT of ours, and {name!r} has "
            f"{type(encoder).__name__}; take self_distillation.hidden=null"
        )
    if hides and cast("TransformerEncoder", encoder).patch_dropout:
        raise ValueError(
            f"self_distillation.hidden needs every patch, and model.towers.{name}.encoder."
            "patch_dropout leaves some out; set one of them to 0 or null"
        )
    return encoder


def _patches(encoder: nn.Module) -> int:
    return int(torch.Size(cast("GridTransformer", encoder).grid).numel())
