"""Shards, manifests and encoded members made on the spot."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import soundfile
from PIL import Image

Sample = tuple[str, dict[str, bytes]]


def tar_bytes(members: list[tuple[str, bytes]], tar_format: int = tarfile.USTAR_FORMAT) -> bytes:
    """An uncompressed tar of the named members."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tar_format) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def shard_bytes(samples: list[Sample], tar_format: int = tarfile.USTAR_FORMAT) -> bytes:
    members = [
        (f"{key}.{field}", data) for key, fields in samples for field, data in fields.items()
    ]
    return tar_bytes(members, tar_format)


def kind_of(field: str) -> str:
    if field.startswith("depth"):
        return "depth"
    if field.startswith("imu"):
        return "imu"
    kinds = {"npy": "array", "ogg": "audio", "wav": "audio", "flac": "audio", "txt": "text",
             "mp4": "video"}  # fmt: skip
    extension = field.rpartition(".")[2]
    return "json" if extension == "json" else kinds.get(extension, "image")


def write_source(
    folder: Path,
    splits: dict[str, list[list[Sample]]],
    name: str = "made",
    fields: dict[str, dict] | None = None,
) -> Path:
    """Writes shards (lists of samples) per split and their manifest; returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    shards = []
    found: dict[str, dict] = {}
    for split, contents in splits.items():
        for number, samples in enumerate(contents):
            content = shard_bytes(samples)
            file = folder / f"{name}-{split}-{number:03d}.tar"
            file.write_bytes(content)
            shards.append(
                {
                    "name": file.name,
                    "split": split,
                    "samples": len(samples),
                    "bytes": len(content),
                    "sha256": hashlib.sha256(content).hexdigest(),
                }
            )
            for _, members in samples:
                for field in members:
                    found.setdefault(field, {"kind": kind_of(field)})
    manifest = {
        "format": "multimodal-manifest/1",
        "name": name,
        "description": "made in a test",
        "licences": [],
        "fields": found | (fields or {}),
        "shards": shards,
    }
    path = folder / f"{name}.json"
    path.write_text(json.dumps(manifest))
    return path


def image_bytes(pixels: np.ndarray, fmt: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, fmt, **options)
    return buffer.getvalue()


def audio_bytes(samples: np.ndarray, rate: int, fmt: str = "WAV", **options) -> bytes:
    """``samples``: ``[channels, T]`` in [-1, 1]."""
    buffer = io.BytesIO()
    soundfile.write(buffer, samples.T, rate, format=fmt, **options)
    return buffer.getvalue()


def video_bytes(
    count: int,
    rate: int = 10,
    size: int = 32,
    container: str = "mp4",
    sound: tuple[np.ndarray, int] | None = None,
) -> bytes:
    """Frame n has the grey level 8 n, lighter on its left half.

    ``sound``: ``[channels, T]`` and its rate, which become a sound track.
    """
    import av  # an extra

    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as out:
        codec = {"mp4": "mpeg4", "avi": "mpeg4", "matroska": "mpeg4"}[container]
        stream = out.add_stream(codec, rate=rate)
        stream.width = stream.height = size
        stream.pix_fmt = "yuv420p"
        stream.bit_rate = 4_000_000
        if sound is not None:
            samples, hertz = sound
            layout = {1: "mono", 2: "stereo"}[len(samples)]
            codec = {"mp4": "aac", "avi": "pcm_s16le", "matroska": "pcm_s16le"}[container]
            track = out.add_stream(codec, rate=hertz, layout=layout)
            add_sound(out, track, samples, hertz)
        for number in range(count):
            pixels = np.full((size, size, 3), 8 * number, np.uint8)
            pixels[:, : size // 2] += 40
            for packet in stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")):
                out.mux(packet)
        for packet in stream.encode():
            out.mux(packet)
    return buffer.getvalue()


def m4a_bytes(samples: np.ndarray, rate: int, codec: str = "aac") -> bytes:
    """``samples``: ``[channels, T]`` in [-1, 1], of one channel or two."""
    import av  # an extra

    buffer = io.BytesIO()
    with av.open(buffer, "w", format="ipod") as out:
        layout = {1: "mono", 2: "stereo"}[len(samples)]
        stream = out.add_stream(codec, rate=rate, layout=layout)
        add_sound(out, stream, samples, rate)
    return buffer.getvalue()


def add_sound(out, stream, samples: np.ndarray, rate: int) -> None:
    """Encodes ``[channels, T]`` into a stream of an open container."""
    import av  # an extra

    samples = np.ascontiguousarray(samples, np.float32)
    frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout=stream.layout.name)
    frame.sample_rate, frame.pts = rate, 0
    size = stream.codec_context.frame_size or 1024
    cut = av.AudioResampler(stream.format, stream.layout, rate, frame_size=size)
    for piece in (*cut.resample(frame), *cut.resample(None)):
        out.mux(stream.encode(piece))
    out.mux(stream.encode())


def dicom_bytes(
    pixels: np.ndarray, compressed: str | None = None, deflated: int = 0, **header
) -> bytes:
    """``[H, W]`` or ``[frames, H, W]`` of 16 bits, or ``[H, W, 3]`` of 8.

    ``deflated``: puts so many zeros into the header, and all of it into few bytes.
    """
    import pydicom  # an extra
    from pydicom.uid import CTImageStorage, DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian

    colour = pixels.dtype == np.uint8
    data = pydicom.Dataset()
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = CTImageStorage
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = "1.2.3"
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.Modality = "CT"
    data.Rows, data.Columns = pixels.shape[:2] if colour else pixels.shape[-2:]
    data.SamplesPerPixel = 3 if colour else 1
    data.PhotometricInterpretation = "RGB" if colour else "MONOCHROME2"
    data.BitsAllocated = data.BitsStored = 8 if colour else 16
    data.HighBit = data.BitsStored - 1
    data.PixelRepresentation = int(pixels.dtype.kind == "i")
    if colour:
        data.PlanarConfiguration = 0
    elif pixels.ndim == 3:
        data.NumberOfFrames = len(pixels)
    data.PixelData = pixels.tobytes()
    for name, value in header.items():
        setattr(data, name, value)
    if compressed is not None:
        data.compress(compressed, generate_instance_uid=False)
    if deflated:
        data.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
        data.add_new(0x00091001, "OB", bytes(deflated))
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, data, enforce_file_format=True)
    return buffer.getvalue()


def npy_bytes(array: np.ndarray, allow_pickle: bool = False) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=allow_pickle)
    return buffer.getvalue()


def json_bytes(**content) -> bytes:
    return json.dumps(content).encode()


def number_samples(count: int, start: int = 0, prefix: str = "s") -> list[Sample]:
    """Samples whose array holds their number: each delivered sample can be identified."""
    return [
        (
            f"{prefix}{number:05d}",
            {
                "x.npy": npy_bytes(np.array([number], np.float32)),
                "json": json_bytes(number=number, label=f"class {number % 3}"),
            },
        )
        for number in range(start, start + count)
    ]
