"""A tokenizer trained on the texts of a run's own sources."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from multimodal.core.files import write_text
from multimodal.data.errors import BadSampleError
from multimodal.data.sample_rng import SampleRNG
from multimodal.data.shards.paths import resolve
from multimodal.data.source import Source
from multimodal.data.tokenizers.bpe import BPETokenizer, train_bpe


class CorpusTokenizer(BPETokenizer):
    """A tokenizer trained on the texts of a run's own sources, and kept in a file.

    A file that is there is read: a resumed run, other ranks and a later evaluation have the same.

    Args:
        path: of the file.
        sources: those whose texts are read, by name.
        vocab_size: most entries, as in ``train_bpe``; fewer result from a small corpus.
        min_frequency: as in ``train_bpe``.
        modality: name of the texts in the sources.
        passes: how often a sample is read: each time another of its captions is drawn.

    Raises:
        ValueError: if no source has texts, or the vocabulary is too small.
    """

    def __init__(
        self,
        path: str,
        sources: Mapping[str, Source],
        vocab_size: int,
        min_frequency: int = 2,
        modality: str = "text",
        passes: int = 2,
    ) -> None:
        file = resolve(path)
        if not file.is_file():
            read = [source for source in sources.values() if modality in source.modalities]
            if not read:
                raise ValueError(f"no source has {modality!r} to train a tokenizer on")
            texts = (text for source in read for text in _texts(source, modality, passes))
            trained = train_bpe(texts, vocab_size, min_frequency)
            write_text(file, trained.to_str(pretty=True))  # whole, and the same from every rank
        super().__init__(str(file))
        if self.vocab_size > vocab_size:
            raise ValueError(f"{file} has {self.vocab_size} entries, over vocab_size={vocab_size}")


def _texts(source: Source, modality: str, passes: int) -> Iterator[str]:
    for number in range(passes):
        for index in range(len(source)):
            rng = SampleRNG(0, number, source.name, index, 0)
            try:
                value = source.decode(index, rng, [modality]).values[modality]
            except BadSampleError:  # counted and logged by the loader
                continue
            yield str(value)
