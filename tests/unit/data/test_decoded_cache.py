"""What the cache of decoded members keeps, and that nothing is decoded twice with it."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from data_helpers import audio_bytes, write_source
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from multimodal.config import config_dir
from multimodal.data.datamodule import MultimodalDataModule
from multimodal.data.decoding.values import PCM16, Signal
from multimodal.data.sample_decoder import SampleDecoder, decoded_cache
from multimodal.data.sample_rng import SampleRNG
from multimodal.data.settings import ReadSettings
from multimodal.data.source import Source, SourceContext
from multimodal.data.transforms.sound.audio import AudioTransform

FORMATS = {"wav": ("WAV", "PCM_16"), "flac": ("FLAC", "PCM_16"), "ogg": ("OGG", "VORBIS")}


def sounds(folder, extension: str, number: int = 6) -> Source:
    fmt, subtype = FORMATS[extension]
    random = np.random.default_rng(0)
    waves = [random.uniform(-1, 1, (1, 16_000)) for _ in range(number)]
    samples = [
        (f"k{place}", {extension: audio_bytes(wave, 16_000, fmt, subtype=subtype)})
        for place, wave in enumerate(waves)
    ]
    manifest = write_source(folder, {"train": [samples]})
    return Source(str(manifest), {"audio": {"member": extension}})


@pytest.mark.parametrize(("extension", "itemsize"), [("wav", 2), ("flac", 2), ("ogg", 4)])
def test_sounds_of_16_bits_are_kept_in_half_the_bytes_and_come_back_bit_by_bit(
    tmp_path, extension, itemsize
):
    source = sounds(tmp_path, extension)
    context = SourceContext(cache=decoded_cache(1))
    cached = source.within(context)
    expected = [source.decode(index, None).values["audio"].samples for index in range(6)]
    for _ in range(2):
        for index, samples in enumerate(expected):
            value = cached.decode(index, None).values["audio"]
            assert isinstance(value, Signal)
            assert value.samples.dtype == np.float32
            assert value.samples.tobytes() == samples.tobytes()
    assert context.cache._spent == sum(each.size for each in expected) * itemsize


@pytest.mark.parametrize("extension", FORMATS)
def test_training_batches_are_those_without_a_cache(tmp_path, extension):
    source = sounds(tmp_path, extension)
    transforms = {"audio": AudioTransform(num_frames=40, time_shift=0.1, gain_db=6.0)}

    def batches(cache_mb: int) -> list[torch.Tensor]:
        reading = ReadSettings(cache_mb=cache_mb)
        loader = MultimodalDataModule({"s": source}, transforms, 3, 0, reading=reading)
        loader = loader.train_dataloader()
        return [batch.inputs["audio"] for _ in range(2) for batch in loader]

    for ours, theirs in zip(batches(1), batches(0), strict=True):
        assert torch.equal(ours, theirs)


def test_what_does_not_fit_16_bits_is_kept_as_it_is():
    loud = np.array([[0.5, 1.0]], np.float32)  # 1 is one count too many
    assert PCM16.of(Signal(loud, 8000.0)) is None
    assert PCM16.of(Signal(np.array([[0.5, 2.0**-16]], np.float32), 8000.0)) is None
    kept = PCM16.of(Signal(np.array([[-1.0, 32767 / 32768]], np.float32), 8000.0))
    assert kept.samples.tolist() == [[-32768, 32767]]


@pytest.mark.slow
def test_the_sample_imagebind_decodes_nothing_twice(monkeypatch):
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        data = compose("train", ["+experiment=imagebind"]).data
    decoded: Counter[tuple[str, int, str]] = Counter()
    decode = SampleDecoder._decode

    def counting(self, shard, place, member, *rest):
        if member != "json":
            decoded[str(shard.path), place, member] += 1
        return decode(self, shard, place, member, *rest)

    monkeypatch.setattr(SampleDecoder, "_decode", counting)
    context = SourceContext.of(ReadSettings(cache_mb=data.cache_mb, verify_shards=False))
    for epoch in range(2):
        for name, source in data.sources.items():
            made = instantiate(source).within(context, name)
            for index in range(len(made)):
                made.decode(index, SampleRNG(0, epoch, name, index, 0))
    assert len(decoded) > 4000
    assert set(decoded.values()) == {1}
