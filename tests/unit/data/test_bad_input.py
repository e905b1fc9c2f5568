"""Whatever is wrong with shards and samples: named, counted, and no other sample suffers."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import pickle
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from data_helpers import audio_bytes, image_bytes, json_bytes, npy_bytes, tar_bytes, write_source
from loader_helpers import evaluation_loader, scheduled_loader
from PIL import Image

from multimodal.data.loading.loader import ScheduledLoader
from multimodal.data.source import Source, SourceContext
from multimodal.data.tokenizers.bpe import train_bpe
from multimodal.data.transforms.array import ArrayTransform
from multimodal.data.transforms.depth import DepthTransform
from multimodal.data.transforms.image import ImageTransform
from multimodal.data.transforms.imu import IMUTransform
from multimodal.data.transforms.sound.audio import AudioTransform
from multimodal.data.transforms.text import TextTransform

# Shards: every sample holds its number twice, so that a mixed one shows.

BOTH = {"a": {"member": "a.npy"}, "b": {"member": "b.npy"}}
TRANSFORMS = {"a": ArrayTransform([1]), "b": ArrayTransform([1])}


def numbered(start: int, count: int = 10, keys: list[str] | None = None):
    def value(number: int) -> bytes:
        return npy_bytes(np.array([number], np.float32))

    return [
        (
            keys[at] if keys else f"k{start + at:03d}",
            {"a.npy": value(start + at), "b.npy": value(start + at)},
        )
        for at in range(count)
    ]


def members(samples) -> list[tuple[str, bytes]]:
    return [(f"{key}.{field}", data) for key, fields in samples for field, data in fields.items()]


def cut(length: int):
    return lambda path: path.write_bytes(path.read_bytes()[:length])


def other_content(path: Path) -> None:
    content = path.read_bytes()
    place = content.index(npy_bytes(np.array([14], np.float32)))
    path.write_bytes(content[: place + 128] + struct.pack("<f", 99) + content[place + 132 :])


BLOCK = 512
DAMAGES = {
    "cut in a member": (cut(4 * 1024 + BLOCK + 50), "shard_size"),
    "cut in a header": (cut(4 * 1024 + 100), "shard_size"),
    "cut between samples": (cut(8 * 1024), "shard_size"),
    "zero bytes": (cut(0), "shard_size"),
    "an HTML page": (lambda path: path.write_bytes(b"<!DOCTYPE html>" * 100), "shard_size"),
    "another content": (other_content, "shard_hash"),
    "missing": (lambda path: path.unlink(), "shard_missing"),
}


def one_epoch(source: Source, num_workers: int = 0) -> tuple[list[float], ScheduledLoader]:
    """The numbers that an epoch delivers, none of them mixed."""
    loader = scheduled_loader(
        {"made": source}, TRANSFORMS, 10, 0, num_workers=num_workers, max_bad_fraction=1.0
    )
    numbers = []
    for batch in loader:
        assert batch.inputs["a"].tolist() == batch.inputs["b"].tolist()
        numbers += batch.inputs["a"].flatten().tolist()
    return numbers, loader


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_shard_is_named_and_the_others_are_delivered(tmp_path, caplog, damage):
    path = write_source(tmp_path, {"train": [numbered(0), numbered(10), numbered(20)]})
    change, reason = DAMAGES[damage]
    change(tmp_path / "made-train-001.tar")
    with caplog.at_level(logging.WARNING):
        numbers, loader = one_epoch(Source(str(path), BOTH))
    good = {*range(10), *range(20, 30)}
    assert set(numbers) == good
    assert loader.counter.reasons == {reason: 10}
    assert loader.counter.delivered == 20
    assert len(set(numbers)) + loader.counter.bad == 30
    assert loader.counter.replaced == len(numbers) - 20 == 10
    assert "made-train-001.tar" in caplog.text


@pytest.mark.parametrize(
    "length", [4 * 1024 + BLOCK + 50, 4 * 1024 + 100, 8 * 1024, 20 * 1024, 0, None]
)
def test_damage_that_the_manifest_does_not_cover_is_detected_in_the_shard(tmp_path, length):
    """A manifest that was written after the damage, by a tool that did not look."""
    path = write_source(tmp_path, {"train": [numbered(0), numbered(10), numbered(20)]})
    shard = tmp_path / "made-train-001.tar"
    content = b"<!DOCTYPE html>" * 100 if length is None else shard.read_bytes()[:length]
    shard.write_bytes(content)
    manifest = json.loads(path.read_text())
    manifest["shards"][1]["bytes"] = max(1, len(content))
    path.write_text(json.dumps(manifest))
    source = Source(str(path), BOTH)
    source = source.within(SourceContext(verify=False))
    numbers, loader = one_epoch(source)
    assert set(numbers) == {*range(10), *range(20, 30)}
    (reason,) = loader.counter.reasons
    assert reason == {None: "shard_format", 0: "shard_size"}.get(length, "shard_cut")
    assert loader.counter.bad == 10


def replace_shard(path: Path, number: int, content: bytes, samples: int) -> None:
    """Another tar in place of a shard, as its manifest says too."""
    manifest = json.loads(path.read_text())
    entry = manifest["shards"][number]
    (path.parent / entry["name"]).write_bytes(content)
    entry |= {
        "bytes": len(content),
        "samples": samples,
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    path.write_text(json.dumps(manifest))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_interleaved_and_duplicate_keys_spoil_themselves_only(tmp_path, num_workers):
    path = write_source(tmp_path, {"train": [numbered(0), numbered(10), numbered(20)]})
    listed = members(numbered(10))
    # k010.a k011.a k010.b k011.b: four runs; then k012 with one of its members twice.
    listed[0:4] = [listed[0], listed[2], listed[1], listed[3]]
    listed.insert(6, listed[5])
    replace_shard(path, 1, tar_bytes(listed), samples=12)
    numbers, loader = one_epoch(Source(str(path), BOTH), num_workers)
    own = {*range(10), *range(13, 20), *range(20, 30)}
    assert set(numbers) <= own
    counter = loader.counter
    assert sum(loader.schedule.batches.values()) * 10 == 30 == counter.delivered + counter.bad
    everything = evaluate_all(Source(str(path), BOTH))
    assert everything[0] == sorted(own)
    assert everything[1] == {"duplicate_key": 4, "duplicate_member": 1}
    assert len(everything[0]) + sum(everything[1].values()) == 32  # what the manifest says


def evaluate_all(source: Source) -> tuple[list[float], dict[str, int]]:
    loader = evaluation_loader(source, TRANSFORMS, None, 10, max_bad_fraction=1.0)
    numbers = []
    for batch in loader:
        assert batch.inputs["a"].tolist() == batch.inputs["b"].tolist()
        numbers += batch.inputs["a"].flatten().tolist()
    return sorted(numbers), dict(loader.counter.reasons)


def test_a_shard_that_begins_with_the_last_key_of_the_one_before(tmp_path):
    """The first lost its end, the second begins with the same key: no caption changes hands."""
    first, second = members(numbered(0)), members(numbered(10))
    second[:2] = [("k009.b.npy", second[1][1])]
    path = write_source(tmp_path, {"train": [numbered(0), numbered(10)]})
    replace_shard(path, 0, tar_bytes(first[:-1]), samples=10)  # k009 without its b
    replace_shard(path, 1, tar_bytes(second), samples=10)
    numbers, reasons = evaluate_all(Source(str(path), BOTH))
    assert numbers == [n for n in range(20) if n not in (9, 10)]
    assert reasons == {"missing": 2}


def test_three_shards_on_two_ranks_with_two_workers_end_equal(tmp_path):
    path = write_source(tmp_path, {"train": [numbered(0, 4), numbered(4, 3), numbered(7, 5)]})
    found = []
    for rank in range(2):
        loader = scheduled_loader(
            {"made": Source(str(path), BOTH)},
            TRANSFORMS,
            3,
            0,
            rank=rank,
            world_size=2,
            num_workers=2,
        )
        found.append([batch.inputs["a"].flatten().tolist() for _ in range(2) for batch in loader])
    assert [len(batches) for batches in found] == [4, 4]
    for epoch in (slice(0, 2), slice(2, 4)):
        numbers = [n for batches in found for batch in batches[epoch] for n in batch]
        assert sorted(numbers) == list(range(12))


# Samples: each is alone in the middle of good ones.


@pytest.fixture(scope="module")
def transforms(tmp_path_factory):
    tokenizer = tmp_path_factory.mktemp("tokenizer") / "bpe.json"
    train_bpe(["a small brown dog", "ein Käse"], 300).save(str(tokenizer))
    return {
        "image": ImageTransform(8, [0.5] * 3, [0.5] * 3),
        "text": TextTransform(str(tokenizer), 16),
        "audio": AudioTransform(num_frames=20, num_mel_bins=16),
        "imu": IMUTransform(50, 20, [0.0] * 6, [1.0] * 6),
        "depth": DepthTransform(8),
    }


def good(number: int) -> dict[str, bytes]:
    random = np.random.default_rng(number)
    return {
        "jpg": image_bytes(random.integers(0, 256, (12, 9, 3), np.uint8), "JPEG"),
        "txt": f"dog {number}".encode(),
        "wav": audio_bytes(random.uniform(-1, 1, (1, 4000)), 16000),
        "imu.npy": npy_bytes(random.standard_normal((6, 30)).astype(np.float32)),
        "depth.npy": npy_bytes(random.uniform(1, 4, (9, 9)).astype(np.float32)),
        "json": json_bytes(rate_hz=50),
    }


def encoded(image: Image.Image, fmt: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, fmt, **options)
    return buffer.getvalue()


PHOTO = good(0)["jpg"]
MEMBERS = {"image": "jpg", "text": "txt", "audio": "wav", "imu": "imu.npy", "depth": "depth.npy"}


def huge_png() -> bytes:
    """20,000 x 20,000 pixels, whole and valid: 1.2 GB of black in a megabyte."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    side = 20_000
    size = side * (3 * side + 1)
    packer = zlib.compressobj(1, zlib.DEFLATED, -15)
    block = packer.compress(bytes(size // 20)) + packer.flush(zlib.Z_FULL_FLUSH)
    # The end of a deflate stream, and the Adler sum of as many zeros.
    data = b"\x78\x01" + 20 * block + b"\x03\x00" + struct.pack(">I", size % 65521 << 16 | 1)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def with_nan() -> np.ndarray:
    motion = np.zeros((6, 30), np.float32)
    motion[2, 7] = np.nan
    return motion


def with_infinity() -> np.ndarray:
    depth = np.ones((9, 9), np.float32)
    depth[3, 3] = np.inf
    return depth


# modality, what is in its place (None: nothing), the reason it is counted by
BAD = {
    "zero-byte jpeg": ("image", b"", "empty"),
    "truncated jpeg": ("image", PHOTO[: len(PHOTO) // 2], "corrupt"),
    "html for a jpeg": ("image", b"<!DOCTYPE html>", "corrupt"),
    "missing caption": ("text", None, "missing"),
    "empty caption": ("text", b"", "empty"),
    "blank caption": ("text", b" \n\t", "empty"),
    "invalid utf-8": ("text", b"a dog \xff\xfe", "corrupt"),
    "no sound": ("audio", audio_bytes(np.zeros((1, 0)), 16000), "empty"),
    "nan in imu": ("imu", npy_bytes(with_nan()), "not_finite"),
    "five channels": ("imu", npy_bytes(np.zeros((5, 30), np.float32)), "shape"),
    "infinite depth": ("depth", npy_bytes(with_infinity()), "not_finite"),
}


def deliver(tmp_path, transforms, modality: str, content: bytes | None, name: str | None = None):
    """Three samples, of which the middle one has ``content``; what arrives, and the reasons."""
    samples = [(f"k{number}", good(number)) for number in range(3)]
    member = name or MEMBERS[modality]
    changed = {field: data for field, data in good(1).items() if field != MEMBERS[modality]}
    samples[1] = ("k1", changed if content is None else changed | {member: content})
    path = write_source(tmp_path, {"train": [samples]})
    entries = {m: {"member": field} for m, field in MEMBERS.items()}
    entries[modality] = {"member": sorted({MEMBERS[modality], member})}
    loader = evaluation_loader(
        Source(str(path), entries), transforms, None, 3, max_bad_fraction=1.0
    )
    (batch,) = loader
    return batch, loader.counter


@pytest.mark.parametrize("case", BAD)
def test_a_bad_sample_has_its_reason_and_spoils_no_other(tmp_path, transforms, case):
    modality, content, reason = BAD[case]
    batch, counter = deliver(tmp_path, transforms, modality, content)
    assert batch.keys == ["k0", "k2"]
    assert counter.reasons == {reason: 1}
    assert all(value.isfinite().all() for value in batch.inputs.values())


def test_a_huge_picture_is_rejected_before_it_takes_memory(tmp_path):
    code = (
        "import resource, sys; from multimodal.data.decoding.decode import Limits, decode\n"
        "from multimodal.data.errors import DecodeError\n"
        "limits = Limits(max_pixels=1 << 28)\n"
        "for path in sys.argv[1:]:\n"
        "  try: print(decode('x.png', open(path, 'rb').read(), limits).shape)\n"
        "  except DecodeError as error: print(error.reason)\n"
        "  print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    (tmp_path / "huge.png").write_bytes(huge_png())
    (tmp_path / "small.png").write_bytes(encoded(Image.new("RGB", (64, 64)), "PNG"))
    paths = [str(tmp_path / f"{name}.png") for name in ("small", "huge")]
    run = subprocess.run(
        [sys.executable, "-c", code, *paths], capture_output=True, text=True, check=True
    )
    small, before, huge, after = run.stdout.splitlines()
    assert (small, huge) == ("(64, 64, 3)", "too_large")
    assert int(after) <= 1.2 * int(before)


def palette_with_alpha() -> bytes:
    image = Image.new("RGBA", (9, 9), (200, 10, 10, 255)).convert("P")
    image.info["transparency"] = bytes([0] * 10)
    return encoded(image, "PNG", transparency=bytes([0] * 10))


ODD_PICTURES = {
    "1x1": ("png", encoded(Image.new("RGB", (1, 1), "red"), "PNG")),
    "cmyk": ("jpg", encoded(Image.new("CMYK", (9, 9), (0, 200, 200, 0)), "JPEG")),
    "palette with alpha": ("png", palette_with_alpha()),
    "animated gif": (
        "gif",
        encoded(
            Image.new("RGB", (9, 9), "red"),
            "GIF",
            save_all=True,
            append_images=[Image.new("RGB", (9, 9), "blue")],
        ),
    ),
    "sixteen bits": ("png", image_bytes(np.full((9, 9), 0x8000, np.uint16))),
}


@pytest.mark.parametrize("case", ODD_PICTURES)
def test_odd_pictures_are_pictures(tmp_path, transforms, case):
    name, content = ODD_PICTURES[case]
    batch, counter = deliver(tmp_path, transforms, "image", content, name)
    assert not counter.reasons
    red, green, blue = batch.inputs["image"][1].mean((1, 2)).tolist()
    if case == "sixteen bits":  # half of the scale, not the end of it
        assert abs(red) < 0.01
    elif case != "palette with alpha":
        assert red > 0.9
        assert max(green, blue) < -0.5  # the first frame, of an animation


@pytest.mark.parametrize(
    "text", ["🐕‍🦺 good dog 🧀", "كلب صغير", "שלום עולם", "Ka\u0308se", "\u202eevil\u202c"]
)
def test_texts_of_every_script_are_delivered(tmp_path, transforms, text):
    batch, counter = deliver(tmp_path, transforms, "text", text.encode())
    assert not counter.reasons
    assert batch.masks["text"][1].sum() > 3


def test_composed_and_decomposed_letters_are_the_same_text(tmp_path, transforms):
    composed = transforms["text"]("Käse", None)
    assert composed.tolist() == transforms["text"]("Ka\u0308se", None).tolist()


def test_a_book_for_a_caption_is_cut_and_keeps_its_end_token(tmp_path, transforms, monkeypatch):
    text = transforms["text"]
    lengths, encode = [], text.tokenizer.encode
    monkeypatch.setattr(text.tokenizer, "encode", lambda t: lengths.append(len(t)) or encode(t))
    batch, counter = deliver(tmp_path, transforms, "text", b"dog " * 100_000)
    assert not counter.reasons
    assert 500 < max(lengths) < 1000  # the rest is not even looked at
    assert batch.inputs["text"].shape[1] == 16
    assert batch.inputs["text"][1, -1] == text("dog", None)[-1]


def test_sounds_shorter_than_a_window_and_in_another_format(tmp_path, transforms):
    batch, counter = deliver(tmp_path, transforms, "audio", audio_bytes(np.ones((1, 5)), 16000))
    assert not counter.reasons
    assert batch.inputs["audio"].isfinite().all()
    waves = {}
    for rate in (16000, 44100):
        times = np.arange(round(0.4 * rate)) / rate
        wave = sum(np.sin(2 * np.pi * f * times) for f in (300, 900, 2500)) / 4
        wave = np.stack([wave] * 2) if rate == 44100 else wave[None]
        batch, _ = deliver(tmp_path / str(rate), transforms, "audio", audio_bytes(wave, rate))
        waves[rate] = batch.inputs["audio"][1].exp().log1p()
    assert (waves[16000] - waves[44100]).abs().max() < 0.02


class Payload:
    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def objects(payload: Payload) -> bytes:
    return npy_bytes(np.array([payload], object), allow_pickle=True)


@pytest.mark.parametrize("name", ["pkl", "pyd", "pth", "pickle", "depth.npy"])
def test_nothing_in_a_shard_is_ever_executed(tmp_path, transforms, name):
    target = tmp_path / "executed"
    content = pickle.dumps(Payload(target))
    if name == "depth.npy":
        content = objects(Payload(target))
    fields = {name: {"kind": "depth"}}
    samples = [("k0", good(0)), ("k1", good(1) | {name: content})]
    path = write_source(tmp_path, {"train": [samples]}, fields=fields)
    source = Source(str(path), {"depth": {"member": name}})
    loader = evaluation_loader(source, transforms, None, 2, max_bad_fraction=1.0)
    batches = list(loader)
    assert sum(map(len, batches)) == (1 if name == "depth.npy" else 0)
    assert loader.counter.reasons["unsupported"] == 1
    assert not target.exists()
    pickle.loads(pickle.dumps(Payload(target)))
    assert target.exists()  # it would have worked


def test_no_key_becomes_a_path(tmp_path, transforms):
    folder = tmp_path / "deep" / "deeper"
    samples = [("../../evil", good(0)), ("/etc/evil", good(1)), ("k", good(2))]
    path = write_source(folder, {"train": [samples]})
    before = {str(file) for file in tmp_path.rglob("*")}
    source = Source(str(path), {m: {"member": field} for m, field in MEMBERS.items()})
    (batch,) = evaluation_loader(source, transforms, None, 3)
    assert batch.keys == ["../../evil", "/etc/evil", "k"]
    assert {str(file) for file in tmp_path.rglob("*")} == before
