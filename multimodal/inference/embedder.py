"""Embeds whole sources, shared among ranks, and single values."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from multimodal.core import distributed
from multimodal.core.errors import UserError
from multimodal.core.names.modalities import joint_name
from multimodal.core.similarity.tokens import joined
from multimodal.data.settings import EvaluationData
from multimodal.data.source import Source
from multimodal.data.transforms.base import Transform
from multimodal.inference.embedded_source import (
    EmbeddedBatch,
    EmbeddedSource,
    embed_batches,
    places_of,
)
from multimodal.inference.given import Given, Reader, listed
from multimodal.models.joint.base import JointInputs
from multimodal.models.towers import EmbeddingKind, EmbeddingModel


class Embedder:
    """A model with the transforms that feed it.

    Args:
        model: its towers, on the device to embed on; in evaluation mode.
        data: the transforms, and how samples become batches.
        kind: of the embeddings: ``normalized``, ``raw`` or ``scaled`` (`models.Tower.forward`).
        temperatures: of the pairs that were trained together, for `zero_shot`.
        dim: first numbers of each embedding that are kept, at the norm of the whole one; None: all.
            For models that were trained so (``matryoshka.dims``).

    Raises:
        ValueError: if ``dim`` is not from 1 to the model's ``embed_dim``.
    """

    def __init__(
        self,
        model: EmbeddingModel,
        data: EvaluationData,
        kind: EmbeddingKind = "normalized",
        temperatures: Mapping[frozenset[str], float] | None = None,
        dim: int | None = None,
    ) -> None:
        self.model = model
        self.dim = None if dim is None else _checked(dim, model.embed_dim)
        self.data = data
        self.kind = kind
        self.temperatures = dict(temperatures or {})

    @property
    def transforms(self) -> Mapping[str, Transform]:
        """Of the values that are embedded, by modality."""
        return self.data.transforms

    @property
    def embed_dim(self) -> int:
        """Numbers of an embedding as it is returned."""
        return self.dim or self.model.embed_dim

    def at(self, dim: int | None) -> Embedder:
        """The same with embeddings of the first ``dim`` numbers; None: as it is."""
        if dim is None or dim == self.dim:
            return self
        made = copy.copy(self)
        made.dim = _checked(dim, self.model.embed_dim)
        return made

    def need_pooled(self, what: str) -> None:
        """Refuses a model of late interaction for what takes one embedding of each input.

        Raises:
            UserError: naming ``what``.
        """
        if self.model.similarity.per_token:
            raise UserError.mistake(
                f"{what} takes one embedding of each input, and this model (similarity=maxsim) "
                "gives one of each token: train one with similarity=cosine"
            )

    def missing(self, modalities: Collection[str]) -> list[str]:
        """The ``modalities`` without a tower; a joint embedding is one more."""
        known = {*self.model.towers, *self.model.joint}
        return [modality for modality in modalities if modality not in known]

    def joined(self) -> list[str]:
        """The joint embeddings (``image&text``) of modalities that have a transform."""
        known = [name for name in self.transforms if name in self.model.towers]
        return [name for name in self.model.joint.joined(known) if name not in known]

    @torch.no_grad()
    def source(
        self,
        source: Source,
        modalities: Collection[str],
        advance: Callable[[int], None] = lambda _: None,
    ) -> EmbeddedSource:
        """A whole source; under a process group each rank embeds its share of the batches.

        Every rank has to call, and all get the full result, equal to that of one process: a batch
        holds the same samples on any rank. A rank's error is raised on all.

        Args:
            source: the samples; bad ones are left out, and logged.
            modalities: those wanted; ``image&text`` is the joint embedding of two.
            advance: called with the number of finished samples of this rank.
        """

        def work() -> Iterator[EmbeddedBatch]:
            for part in embed_batches(self, source, modalities):
                yield part
                advance(int((part.captions == 0).sum()))

        parts = sorted(distributed.all_gather_results(work), key=lambda part: part.number)
        if not parts:
            raise ValueError(f"no sample of {source.name!r}, split {source.split!r}, can be read")
        keys = [key for part in parts for key in part.shard_keys]
        captions = torch.cat([part.captions for part in parts])
        return EmbeddedSource(
            {m: joined([part.embeddings[m] for part in parts]) for m in modalities},
            {m: torch.cat([part.items[m] for part in parts]) for m in modalities},
            torch.cat([part.positive_keys for part in parts]),
            places_of(source, keys, captions.tolist()),
            captions,
            [metadata for part in parts for metadata in part.metadata],
        )

    @torch.no_grad()
    def values(self, modality: str, values: Sequence[Any]) -> Tensor:
        """Decoded values of one modality: ``[N, D]`` on the CPU.

        Raises:
            DecodeError: if given a value that the modality's transform does not take.
            ValueError: if given a modality that the model does not have.
        """
        transform = self._transform(modality)
        prepared = {modality: partial(_transformed, transform)}
        return self._embed(modality, {modality: values}, prepared)

    @torch.no_grad()
    def joint_values(self, values: Mapping[str, Sequence[Any]]) -> Tensor:
        """Decoded values of several modalities, of which a row embeds one of each: ``[N, D]``.

        Raises:
            DecodeError: if given a value that its modality's transform does not take.
            ValueError: if the model has no joint embedding of them, or their numbers differ.
        """
        prepared = {name: partial(_transformed, self._transform(name)) for name in values}
        return self._embed(self._joint_of(values), values, prepared)

    def _joint_of(self, given: Mapping[str, Sequence[Any]]) -> str:
        """The name of the joint embedding of the given modalities.

        Raises:
            ValueError: if the model has none, or the numbers of inputs differ.
        """
        name = self.model.joint.of(joint_name(list(given))).name
        if len({len(some) for some in given.values()}) > 1:
            numbers = ", ".join(f"{len(some)} of {key}" for key, some in given.items())
            raise ValueError(f"together: expected as many of each modality, got {numbers}")
        return name

    def _embed(
        self,
        name: str,
        given: Mapping[str, Sequence[Any]],
        prepare: Mapping[str, Callable[[int, Any], Tensor]],
    ) -> Tensor:
        """``given``, each made an input by ``prepare``, a batch at a time: ``[N, D]``."""
        rows, total = [], len(next(iter(given.values())))
        for start in range(0, total, self.data.batch_size):
            numbers = range(start, min(start + self.data.batch_size, total))
            inputs: dict[str, Tensor] = {}
            masks: dict[str, Tensor] = {}
            for part, values in given.items():
                some = [prepare[part](number, values[number]) for number in numbers]
                inputs[part], mask = self._transform(part).collate(some)
                masks |= {} if mask is None else {part: mask}
            if name in self.model.joint:
                rows.append(self.joint(name, inputs, masks))
            else:
                rows.append(self.inputs(name, inputs[name], masks.get(name)))
        if not rows:
            tokens = [0] if self.model.similarity.per_token else []
            return torch.zeros(0, *tokens, self.embed_dim)
        return joined(rows)

    def _transform(self, modality: str) -> Transform:
        known = set(self.data.transforms) & set(self.model.towers)
        if modality not in known:
            raise ValueError(
                f"the model does not take {modality!r}; it takes {', '.join(sorted(known))}"
            )
        return self.transforms[modality]

    @torch.no_grad()
    def embed(self, dim: int | None = None, joint: bool = False, **inputs: Given) -> Tensor:
        """Embeds paths, pictures, arrays, texts: ``embed(image=["dog.jpg"], text=["a dog"])``.

        Each modality that the model takes is a keyword; `given.Reader` says what may be given. A
        single text, path or picture stands for a list of one.

        Args:
            dim: keeps the first numbers of each alone, at the same norm; None: see `Embedder`.
            joint: embeds one of each modality together: ``image=["a.jpg"], text=["at night"]`` is
                one row, by the model's joint embedding of these modalities.
            **inputs: modality -> inputs.

        Returns:
            ``[N, D]`` on the CPU: a row for each input, in the order in which they are given, the
            first modality's first; if ``joint``, a row for one of each. Of unit norm, unless the
            model was loaded with another ``kind``. Of a model of late interaction ``[N, T, D]``: a
            row for each token, zeros as padding.

        Raises:
            ValueError: if given no modality, or one that the model does not have; if ``joint``,
                modalities that the model has no joint embedding of, or more of one than of another.
            DecodeError: if an input is not what its modality takes; the message names it.
            OSError: if a file cannot be read.
        """
        if not inputs:
            known = ", ".join(f"{name}=[...]" for name in self.transforms)
            raise ValueError(f"embed: expected inputs of at least one modality: {known}")
        if dim is not None:
            return self.at(dim).embed(dim=None, joint=joint, **inputs)
        readers = {name: Reader(name, self._transform(name)) for name in inputs}
        given = {name: listed(some) for name, some in inputs.items()}
        if joint:
            return self._embed(self._joint_of(given), given, readers)
        return joined([self._embed(name, {name: given[name]}, readers) for name in given])

    def similarity(self, *embeddings: Tensor, dim: int | None = None, **inputs: Given) -> Tensor:
        """Cosines of all inputs of one modality with all of another, or the model's own similarity.

        ``model.similarity(image=["1.jpg", "2.jpg"], text=["a dog"])``, or of embeddings that are
        there: ``model.similarity(images, texts)``. What is given alone is compared with itself.

        Args:
            *embeddings: one or two tensors ``[N, D]``, or of tokens; the first asks.
            dim: compares the first numbers of each alone.
            **inputs: one or two modalities, as `embed` takes them.

        Returns:
            ``[N, M]`` on the CPU; rows are the first argument's.

        Raises:
            ValueError: if given neither one nor two of them in all; else as `embed`.
        """
        whole = [
            *embeddings,
            *(self.embed(None, False, **{name: some}) for name, some in inputs.items()),
        ]
        given = [rows[..., :dim] for rows in whole]
        if len(given) not in (1, 2):
            raise ValueError(f"similarity: expected one or two modalities, got {len(given)}")
        first, last = (functional.normalize(rows.float(), dim=-1) for rows in (given[0], given[-1]))
        names = [*([""] * len(embeddings)), *inputs]
        return self.model.similarity.between(names[0], names[-1]).matrix(first, last)

    def zero_shot(
        self,
        classes: Sequence[str],
        prompts: Sequence[str] = ("{}",),
        dim: int | None = None,
        **inputs: Given,
    ) -> Tensor:
        """Probabilities of ``classes``, which are embedded as texts.

        ``model.zero_shot(["cat", "dog"], ["a photo of a {}"], image=["1.jpg"])``. The softmax is
        over the cosines by the temperature of the trained pair; of a pair that was never trained
        together, by the largest temperature of those that were.

        Args:
            classes: their names.
            prompts: ``{}`` stands for a class's name; embeddings of several are averaged.
            dim: compares the first numbers of the embeddings alone.
            **inputs: those of one modality, as `embed` takes them.

        Returns:
            ``[N, C]`` on the CPU, of which each row sums to 1.

        Raises:
            ValueError: if given no class, a prompt without ``{}``, or not one modality; else as
                `embed`.
        """
        if dim is not None:
            return self.at(dim).zero_shot(classes, prompts, None, **inputs)
        if self.model.similarity.per_token:
            raise ValueError("zero_shot averages prompts; by late interaction take `similarity`")
        if len(inputs) != 1:
            raise ValueError(f"zero_shot: expected inputs of one modality, got {sorted(inputs)}")
        if not classes or isinstance(classes, str):
            raise ValueError(f"zero_shot: expected a list of names of classes, got {classes!r}")
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        if not prompts or not all("{}" in prompt for prompt in prompts):
            raise ValueError(f"zero_shot: expected prompts with {{}} for the name, got {prompts}")
        texts = [prompt.replace("{}", name) for name in classes for prompt in prompts]
        embedded = functional.normalize(self.embed(text=texts), dim=-1)
        of_classes = embedded.reshape(len(classes), len(prompts), -1).mean(dim=1)
        (modality,) = inputs
        known = self.temperatures
        temperature = known.get(frozenset((modality, "text"))) or max(known.values(), default=0.07)
        cosines = self.similarity(self.embed(None, False, **inputs), of_classes)
        return (cosines / temperature).softmax(dim=-1)

    def inputs(self, modality: str, inputs: Tensor, mask: Tensor | None) -> Tensor:
        """Inputs of one modality as its tower takes them: ``[B, D]``, or of tokens, on the CPU."""
        device = next(self.model.parameters()).device
        on_device = None if mask is None else mask.to(device)
        return self._kept(self.model.embed(modality, inputs.to(device), on_device, self.kind))

    @torch.no_grad()
    def joint(self, name: str, inputs: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> Tensor:
        """Inputs of several modalities as their towers take them: ``[B, D]`` on the CPU."""
        device = next(self.model.parameters()).device
        parts = self.model.joint.parts(name)
        values, real = ({n: of[n].to(device) for n in parts if n in of} for of in (inputs, masks))
        given, raw = JointInputs(values, real, {}, {}), self.kind == "raw"
        return self._kept(self.model.joint.embed(name, self.model.towers, given, raw))

    def _kept(self, embeddings: Tensor) -> Tensor:
        """The first ``dim`` numbers of each, on the CPU."""
        rows = embeddings.cpu()
        kept = rows[..., : self.embed_dim]
        if self.dim is None or self.kind == "raw":
            return kept
        norms: Tensor = rows.norm(dim=-1, keepdim=True)
        return functional.normalize(kept, dim=-1) * norms


def _transformed(transform: Transform, number: int, value: Any) -> Tensor:
    return transform(value, None)


def _checked(dim: int, width: int) -> int:
    if not 1 <= dim <= width:
        raise ValueError(f"dim={dim}: expected 1 to embed_dim={width}, or null")
    return dim
