# python scripts/benchmark/loader.py
"""Samples per second of this project's loader beside the usual pipeline of webdataset and Pillow.

Both read the same shards of JPEGs (512 pixels, quality 90, made on the spot) and do the same to
them: decode, random resized crop to 224 pixels by antialiased bicubic, normalise, stack. They take
turns in one run, on one thread: processor time with 0 workers, wall time with 2. Fidelity is
measured against Pillow's bicubic of the same box. The single steps are timed too: they bound what
any loader of these two libraries can reach.
"""

from __future__ import annotations

import argparse
import functools
import io
import json
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
import webdataset
from PIL import Image
from torch.utils.data import DataLoader

from multimodal.data.decoding.jpeg import decode_jpeg
from multimodal.data.loading.loader import ScheduledLoader
from multimodal.data.packing.write import ShardEntry, ShardWriter, write_manifest
from multimodal.data.sample_rng import SampleRNG
from multimodal.data.settings import LoaderSettings
from multimodal.data.source import Source
from multimodal.data.transforms import image
from multimodal.data.transforms.geometry import Box, crop_and_resize
from multimodal.data.transforms.image import ImageTransform

SIZE, SCALE, RATIO = 224, (0.9, 1.0), (0.75, 4 / 3)  # as open_clip trains
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
BATCH = 32


def main() -> None:
    """Makes the shards, measures, prints a table and writes ``loader.json``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=384)
    parser.add_argument("--pixels", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2])
    parser.add_argument("--output", type=Path, default=Path("outputs/benchmark"))
    parser.add_argument("--headroom", type=float, default=image._HEADROOM, help="of reduced=true")
    args = parser.parse_args()
    image._HEADROOM = args.headroom
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        manifest = make_shards(Path(folder), args.samples, args.pixels)
        results = {
            "pixels": args.pixels,
            "samples": args.samples,
            "tar": compare(
                {"ours": lambda: read_ours(manifest), "theirs": lambda: read_theirs(manifest)},
                args.rounds,
                time.process_time,
            ),
            "fidelity": fidelity(manifest),
            "steps_us": steps(manifest, args.pixels, args.rounds),
        }
        for workers in args.workers:
            clock = time.process_time if workers == 0 else time.perf_counter
            loaders = {
                "ours": ours(manifest, workers, False),
                "reduced": ours(manifest, workers, True),
                "theirs": theirs(manifest, workers),
            }
            runs = {name: drain(loader) for name, loader in loaders.items()}
            results[f"{workers} workers"] = compare(runs, args.rounds, clock)
            del loaders
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / "loader.json").write_text(json.dumps(results, indent=1) + "\n")
    show(results, args.samples)


def photo(number: int, pixels: int) -> Image.Image:
    """A part of one of three real photographs that scikit-learn and matplotlib carry."""
    random = np.random.default_rng(number)
    pictures = photographs()
    picture = pictures[number % len(pictures)]
    side = int(min(picture.size) * random.uniform(0.85, 1))
    left, top = (int(random.integers(length - side + 1)) for length in picture.size)
    part = picture.crop((left, top, left + side, top + side))
    return part.resize((pixels, pixels), Image.Resampling.LANCZOS)


@functools.cache
def photographs() -> list[Image.Image]:
    """A Chinese temple, a flower, and Grace Hopper."""
    from matplotlib import cbook
    from sklearn.datasets import load_sample_images

    hopper = Image.open(cbook.get_sample_data("grace_hopper.jpg")).convert("RGB")
    return [*(Image.fromarray(picture) for picture in load_sample_images().images), hopper]


def make_shards(folder: Path, samples: int, pixels: int) -> Path:
    """Four shards of photographs with captions, and their manifest."""
    entries = []
    for shard in range(4):
        name = f"photos-{shard}.tar"
        writer = ShardWriter(folder / name)
        for number in range(shard, samples, 4):
            buffer = io.BytesIO()
            photo(number % 64, pixels).save(buffer, "JPEG", quality=90)
            members = {"jpg": buffer.getvalue(), "txt": f"photo {number}".encode()}
            writer.add(f"p{number:06d}", members)
        count = len(range(shard, samples, 4))
        entries.append(ShardEntry(name, "train", count, *writer.close(), ["jpg", "txt"], {}))
    write_manifest(folder / "photos.json", "photos", "made here", entries, {})
    return folder / "photos.json"


@functools.cache
def source_of(manifest: Path) -> Source:
    """The photographs; their hashes are taken once, before any measurement."""
    source = Source(str(manifest), {"image": {"member": "jpg"}})
    for index in range(0, len(source), 8):
        source.read(index)
    return source


def ours(manifest: Path, workers: int, reduced: bool) -> ScheduledLoader:
    """This project's loader."""
    transform = ImageTransform(SIZE, MEAN, STD, SCALE, RATIO, reduced=reduced)
    sources = {"photos": source_of(manifest)}
    loading = LoaderSettings(workers)
    return ScheduledLoader(sources, {"image": transform}, BATCH, 0, loading=loading)


class Crop:
    """Random resized crop, tensor, normalisation, as torchvision does it for Pillow's pictures."""

    def __init__(self) -> None:
        self.random = np.random.default_rng(0)
        self.mean = torch.tensor(MEAN)[:, None, None]
        self.std = torch.tensor(STD)[:, None, None]

    def __call__(self, picture: Image.Image) -> torch.Tensor:
        """``[3, 224, 224]``, normalised."""
        cropped = picture.crop(self.box(*picture.size))
        cropped = cropped.resize((SIZE, SIZE), Image.Resampling.BICUBIC)
        pixels = torch.from_numpy(np.array(cropped)).permute(2, 0, 1).contiguous()
        return (pixels.to(torch.float32).div(255) - self.mean) / self.std

    def box(self, width: int, height: int) -> tuple[int, int, int, int]:
        """Left, top, right, bottom."""
        for _ in range(10):
            area = width * height * self.random.uniform(*SCALE)
            ratio = math.exp(self.random.uniform(math.log(RATIO[0]), math.log(RATIO[1])))
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if w <= width and h <= height:
                left = int(self.random.integers(width - w + 1))
                top = int(self.random.integers(height - h + 1))
                return left, top, left + w, top + h
        return 0, 0, width, height


def theirs(manifest: Path, workers: int) -> DataLoader:
    """The pipeline of open_clip's kind."""
    crop = Crop()

    def decode(sample: dict) -> tuple[torch.Tensor]:
        return (crop(Image.open(io.BytesIO(sample["jpg"])).convert("RGB")),)

    dataset = (
        webdataset.WebDataset(urls(manifest), shardshuffle=False, empty_check=False)
        .shuffle(100)
        .map(decode)
        .batched(BATCH, partial=False)
    )
    return DataLoader(dataset, batch_size=None, num_workers=workers, persistent_workers=workers > 0)


def urls(manifest: Path) -> list[str]:
    """The shards' paths."""
    return [str(path) for path in sorted(manifest.parent.glob("*.tar"))]


def read_ours(manifest: Path) -> int:
    """Reads every member of every sample by offset."""
    source = source_of(manifest)
    return sum(len(source.read(index).members) for index in range(len(source)))


def read_theirs(manifest: Path) -> int:
    """Reads every member of every sample as webdataset does."""
    dataset = webdataset.WebDataset(urls(manifest), shardshuffle=False, empty_check=False)
    return sum(len(sample) for sample in dataset)


def drain(loader: DataLoader | ScheduledLoader) -> Callable[[], int]:
    """One epoch, to the last batch."""

    def run() -> int:
        def tensors() -> Iterator[torch.Tensor]:
            for batch in loader:
                yield batch.inputs["image"] if hasattr(batch, "inputs") else batch[0]

        return sum(len(pictures) for pictures in tensors())

    return run


def compare(
    runs: dict[str, Callable[[], int]], rounds: int, clock: Callable[[], float]
) -> dict[str, float]:
    """Median seconds of each, in turns, after one of each that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 1):
        for name, run in runs.items():
            start = clock()
            run()
            if number:
                seconds[name].append(clock() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def steps(manifest: Path, pixels: int, rounds: int) -> dict[str, float]:
    """Median microseconds a picture of the two libraries' calls alone, in turns."""
    source = source_of(manifest)
    files = [source.read(index).members["jpg"] for index in range(min(64, len(source)))]
    pictures = [Image.open(io.BytesIO(file)).convert("RGB") for file in files]
    side = round(pixels * 0.97)  # the crop's usual one
    box, half = (2, 1, 2 + side, 1 + side), (pixels + 1) // 2

    def bicubic(array: np.ndarray, side: int) -> None:
        values = torch.from_numpy(array).permute(2, 0, 1)
        crop_and_resize(values, Box(1, 2, side, side), SIZE, "bicubic")

    arrays = [np.array(picture) for picture in pictures]
    halves = [np.ascontiguousarray(array[:half, :half]) for array in arrays]
    calls: dict[str, Callable[[int], object]] = {
        "pillow_decode": lambda n: Image.open(io.BytesIO(files[n])).load(),
        "pillow_crop": lambda n: pictures[n].crop(box).resize((SIZE, SIZE), Image.BICUBIC),
        "decode": lambda n: decode_jpeg(files[n], pixels, pixels, (pixels, pixels)),
        "decode_half": lambda n: decode_jpeg(files[n], pixels, pixels, (half, half)),
        "decode_eighth": lambda n: decode_jpeg(files[n], pixels, pixels, (1, 1)),
        "crop": lambda n: bicubic(arrays[n], side),
        "crop_half": lambda n: bicubic(halves[n], side // 2 - 1),
    }
    runs = {
        name: lambda call=call: sum(call(n) is None for n in range(len(files)))
        for name, call in calls.items()
    }
    results = compare(runs, rounds, time.process_time)
    return {name: round(seconds / len(files) * 1e6) for name, seconds in results.items()}


def fidelity(manifest: Path) -> dict[str, float]:
    """Largest difference to Pillow's bicubic in 1/255, and the reduced mode's PSNR in dB."""
    source = source_of(manifest)
    plain, small = (
        ImageTransform(SIZE, (0, 0, 0), (1, 1, 1), SCALE, RATIO, reduced=reduced)
        for reduced in (False, True)
    )
    worst, errors = 0.0, []
    for index in range(min(64, len(source))):
        rng = SampleRNG(0, 0, source.name, index, 0)
        picture = Image.open(io.BytesIO(source.read(index).members["jpg"]))
        for transform in (plain, small):
            min_size = {"image": lambda h, w, t=transform, d=rng: t.min_size(d, h, w)}
            chosen = min_size if transform.reduced else None
            value = source.decode(index, rng, ["image"], chosen).values["image"]
            height, width = value.shape[:2]
            box = transform.geometry.box(rng, height, width)
            x, y = picture.width / width, picture.height / height
            edges = (box.left, box.top, box.left + box.width, box.top + box.height)
            exact = tuple(edge * factor for edge, factor in zip(edges, (x, y, x, y), strict=True))
            if transform.reduced:  # no box of whole pixels, and none of the pixels around it
                expected = picture.resize((SIZE, SIZE), Image.Resampling.BICUBIC, box=exact)
            else:
                # Rows first, as Pillow always did up to version 12; what is cut off at black and
                # white between the two passes depends on it.
                expected = picture.crop(edges)
                expected = expected.resize((SIZE, expected.height), Image.Resampling.BICUBIC)
                expected = expected.resize((SIZE, SIZE), Image.Resampling.BICUBIC)
            result = transform(value, rng).permute(1, 2, 0).numpy() * 255
            difference = (result - np.asarray(expected, np.float32))[4:-4, 4:-4]
            if transform.reduced:
                errors.append(float((difference**2).mean()))
            else:
                worst = max(worst, float(np.abs(difference).max()))
    return {"max_lsb": round(worst, 3), "reduced_db": 10 * math.log10(255**2 / np.mean(errors))}


def show(results: dict, samples: int) -> None:
    """The table."""
    tar = results["tar"]
    print(f"tar reading: {tar['ours'] / tar['theirs']:.3f} of webdataset's time")
    fine = results["fidelity"]
    print(
        f"pixels within {fine['max_lsb']:.2f} LSB of Pillow's bicubic; reduced decoding "
        f"{fine['reduced_db']:.1f} dB"
    )
    print("microseconds a picture:", ", ".join(f"{k} {v}" for k, v in results["steps_us"].items()))
    whole = samples // BATCH * BATCH
    for name in (key for key in results if key.endswith("workers")):
        row = results[name]
        print(
            f"{name}: webdataset and Pillow {whole / row['theirs']:.0f} samples/s, ours "
            f"{whole / row['ours']:.0f} ({row['theirs'] / row['ours']:.2f}x), reduced "
            f"{whole / row['reduced']:.0f} ({row['theirs'] / row['reduced']:.2f}x)"
        )


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
