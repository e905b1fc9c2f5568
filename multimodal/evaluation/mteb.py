"""A model of ours as an encoder of MTEB, whose tasks include those of MIEB, MAEB and MVEB."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from multimodal.core.extras import extra_needed
from multimodal.core.names.modalities import joint_name
from multimodal.inference.embedder import Embedder

MODALITIES = ("text", "image", "audio")  # of MTEB's columns, those that are embedded here


class MTEBEncoder:
    """An embedder as ``mteb.evaluate`` takes it (``EncoderProtocol`` of MTEB 2).

    ``mteb.evaluate(MTEBEncoder(multimodal.load("outputs/mine"), "me/mine"), tasks)``. An input of
    several modalities is embedded by the model's joint embedding of them, where it has one, else as
    the sum of their embeddings, as MTEB's own CLIP models are; every embedding has unit norm.

    Args:
        embedder: from `multimodal.load`.
        name: of the model in MTEB's results: ``organisation/model``.
        revision: in MTEB's results.

    Raises:
        ValueError: if ``name`` has not that form, or the model takes no text, picture or sound.
        UserError: if the model gives one embedding for each token.
    """

    def __init__(self, embedder: Embedder, name: str, revision: str = "ours") -> None:
        if name.count("/") != 1 or not all(name.split("/")):
            raise ValueError(f"name: expected organisation/model, as on a hub, got {name!r}")
        embedder.need_pooled("MTEB")
        known = set(embedder.transforms) & set(embedder.model.towers)
        self.modalities = [modality for modality in MODALITIES if modality in known]
        if not self.modalities:
            raise ValueError(
                f"MTEB embeds {', '.join(MODALITIES)}; the model takes {', '.join(sorted(known))}"
            )
        self.embedder = embedder
        self.name = name
        self.revision = revision

    @property
    def mteb_model_meta(self) -> Any:
        """MTEB's ``ModelMeta``: the name, the modalities, the numbers of an embedding.

        Raises:
            MissingExtraError: without the extra ``mteb``.
        """
        with extra_needed("mteb", "an evaluation by MTEB"):
            from mteb.models.model_meta import ModelMeta, ScoringFunction
        return ModelMeta.create_empty(
            {
                "name": self.name,
                "revision": self.revision,
                "modalities": self.modalities,
                "embed_dim": self.embedder.embed_dim,
                "n_parameters": sum(p.numel() for p in self.embedder.model.parameters()),
                "similarity_fn_name": ScoringFunction.COSINE,
                "framework": ["PyTorch"],
            }
        )

    def encode(self, inputs: Iterable[Mapping[str, Any]], **_: Any) -> Tensor:
        """Embeds the batches of a task: ``[N, D]`` float32 on the CPU, of unit norm.

        Args:
            inputs: batches; each maps ``text``, ``image`` or ``audio`` to as many values. A value
                may be None where another modality of the same place is not.

        Raises:
            ValueError: if a batch has no modality that the model takes, or a place no value.
            DecodeError: if a value is not what its modality takes.
        """
        rows = [self._embed(batch) for batch in inputs]
        return torch.cat(rows) if rows else torch.zeros(0, self.embedder.embed_dim)

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Tensor:
        """Cosines of all with all: ``[N, M]``."""
        return _unit(embeddings1) @ _unit(embeddings2).T

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Tensor:
        """Cosines of each with the one at its place: ``[N]``."""
        return (_unit(embeddings1) * _unit(embeddings2)).sum(dim=-1)

    def _embed(self, batch: Mapping[str, Any]) -> Tensor:
        strange = [name for name in (*MODALITIES, "video") if name not in self.modalities]
        dropped = [n for n in strange if n in batch and any(v is not None for v in batch[n])]
        if dropped:  # an embedding of the rest would be another input's
            raise ValueError(
                f"MTEB gave {', '.join(dropped)}; the model takes {', '.join(self.modalities)}"
            )
        columns = {name: list(batch[name]) for name in self.modalities if name in batch}
        if not columns:
            raise ValueError(
                f"MTEB gave {', '.join(batch)}; the model takes {', '.join(self.modalities)}"
            )
        total = max(map(len, columns.values()))
        kinds: dict[tuple[str, ...], list[int]] = {}
        for place in range(total):
            there = tuple(name for name, some in columns.items() if some[place] is not None)
            kinds.setdefault(there, []).append(place)
        if () in kinds:
            raise ValueError(f"MTEB gave nothing to embed at place {kinds[()][0]} of a batch")
        result = torch.zeros(total, self.embedder.embed_dim)
        for names, places in kinds.items():
            given = {name: [_value(columns[name][place]) for place in places] for name in names}
            result[places] = self._together(given)
        return functional.normalize(result, dim=-1)

    def _together(self, given: Mapping[str, Sequence[Any]]) -> Tensor:
        """One embedding for each place, of one modality or several."""
        if len(given) > 1 and joint_name(list(given)) in self.embedder.model.joint:
            return self.embedder.embed(None, True, **given).float()
        parts = [
            self.embedder.embed(None, False, **{name: some}).float() for name, some in given.items()
        ]
        return torch.stack([functional.normalize(part, dim=-1) for part in parts]).sum(dim=0)


def _value(given: Any) -> Any:
    """A value of MTEB's as `Embedder.embed` takes it; sounds come as mappings or decoders."""
    if isinstance(given, Mapping) and "array" in given:
        return given["array"], given["sampling_rate"]
    if hasattr(given, "get_all_samples"):  # torchcodec's AudioDecoder
        samples = given.get_all_samples()
        return samples.data, samples.sample_rate
    return given


def _unit(embeddings: Any) -> Tensor:
    rows = torch.as_tensor(embeddings, dtype=torch.float32)
    return functional.normalize(rows if rows.ndim > 1 else rows[None], dim=-1)
