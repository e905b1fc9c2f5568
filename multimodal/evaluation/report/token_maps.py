"""Drawings of late interaction: which patch or word answers which token of a query."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice

import torch
from markupsafe import Markup
from torch import Tensor

from multimodal.core.similarity.similarities import MaxSim
from multimodal.core.similarity.tokens import real_tokens
from multimodal.data.loading.evaluation_loader import EvaluationLoader
from multimodal.data.settings import EvaluationData
from multimodal.data.source import Source
from multimodal.data.transforms.base import Transform
from multimodal.data.transforms.text import TextTransform
from multimodal.evaluation.report import attention as drawing
from multimodal.evaluation.report.attention_examples import SHOWN_WORDS, draw, words_of
from multimodal.evaluation.report.sections import Section
from multimodal.evaluation.sets import EvaluationSet
from multimodal.models.towers import EmbeddingModel

MAPS = (
    "Held-out samples, evenly spaced through the set and not chosen by hand, as the model saw "
    "them. Hot is what of the document is similar to a token of the query: the maximum is what "
    "the token adds to the similarity. A query that is not a text is the mean of its tokens."
)


def sections(
    model: EmbeddingModel, sets: Mapping[str, EvaluationSet], transforms: Mapping[str, Transform]
) -> list[Section]:
    """The part of the report that shows similarities of tokens; none of a model without them."""
    similarity = model.similarity
    if not isinstance(similarity, MaxSim):
        return []
    shown = []
    for name, entry in sets.items():
        if entry.source is None or not entry.gallery:
            continue
        there = [each for each in entry.source.modalities if each in model.towers]
        pairs = [
            (query, document)
            for query, document in entry.pairs(entry.source.modalities)
            if {query, document} <= set(there) and similarity.asks(query, document)
        ]
        drawn = examples(model.eval(), entry.source, transforms, pairs, entry.gallery)
        if any(example.attended for example in drawn):
            shown.append(Markup("<h3>{}</h3>{}").format(name, drawing.gallery(drawn)))
    if not shown:
        return []
    return [Section("tokens", "Token similarities", Markup("").join(shown), MAPS)]


@torch.no_grad()
def examples(
    model: EmbeddingModel,
    source: Source,
    transforms: Mapping[str, Transform],
    pairs: Sequence[tuple[str, str]],
    count: int,
) -> list[drawing.Example]:
    """Samples evenly spaced through a set, each query over the document of its own sample.

    Args:
        model: of late interaction, in evaluation mode.
        source: the samples.
        transforms: by modality.
        pairs: (query, document) modalities.
        count: how many; 0 for none.
    """
    if not pairs or not min(count, len(source)):
        return []
    device = next(model.parameters()).device
    stride = max(1, (len(source) - 1) // max(1, count - 1))  # those between are not read
    wanted = list(dict.fromkeys(name for pair in pairs for name in pair))
    batches = EvaluationLoader(source, EvaluationData(transforms, 1), wanted, world_size=stride)
    shown = []
    for batch in islice(batches, count):
        there = batch.to(device)
        tokens = {n: model.embed(n, there.inputs[n], there.masks.get(n)) for n in wanted}
        lines, maps = [], []
        for query, document in pairs:
            similarities = model.similarity.between(query, document).paired(
                tokens[query], tokens[document]
            )
            lines.append((f"{query} → {document}", f"{similarities.item():.3f}"))
            encoder, inputs = model.tower(document).encoder, there.inputs[document][0]
            words = None
            if isinstance(transforms.get(query), TextTransform):
                words = words_of(there.inputs[query][0], transforms[query])
            for asked, heat in heats(query, tokens[query][0], tokens[document][0], words):
                given = heat.clamp(min=0).double().cpu().numpy()
                media, picture = draw(encoder, inputs, given, transforms.get(document))
                maps.append(drawing.Attended(asked, document, media, picture))
        shown.append(drawing.Example(batch.keys[0], lines, maps))
    return shown


def heats(
    query: str, asked: Tensor, document: Tensor, words: Sequence[str] | None
) -> list[tuple[str, Tensor]]:
    """What is asked, and its cosines with a document's tokens ``[U]``.

    Args:
        query: the modality.
        asked: its tokens ``[T, D]``.
        document: ``[U, D]``.
        words: one of each token; the first ones are drawn each by itself, but for the start token.
    """
    cosines = asked @ document.T
    real = real_tokens(asked)
    if words is None:
        return [(query, cosines[real].mean(dim=0))]
    pairs = zip(words, cosines, real.tolist(), strict=False)
    return [(f"“{word}”", row) for word, row, is_real in pairs if is_real][1 : SHOWN_WORDS + 1]
