"""The benchmarks that are packed by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from multimodal.core.suggest import suggest
from multimodal.data.benchmarks import pictures, senses, sounds
from multimodal.data.benchmarks.files import Samples


class Benchmark(NamedTuple):
    """A benchmark.

    Attributes:
        samples: of a folder in the layout in which it is published.
        origin: where that is.
        licence: of the data, as its publishers say; read theirs before you use them.
    """

    samples: Callable[[Path], Samples]
    origin: str
    licence: str


_MIT = "MIT (code and list); pictures of the web"
_YOUTUBE = "of YouTube's uploaders; the list: "
BENCHMARKS: dict[str, Benchmark] = {
    "imagenet": Benchmark(
        pictures.imagenet, "https://image-net.org", "research only, by ImageNet's terms of access"
    ),
    "imagenet_v2": Benchmark(
        pictures.imagenet, "https://github.com/modestyachts/ImageNetV2", _MIT
    ),
    "imagenet_sketch": Benchmark(
        pictures.imagenet, "https://github.com/HaohanWang/ImageNet-Sketch", _MIT
    ),
    "imagenet_a": Benchmark(
        pictures.imagenet, "https://github.com/hendrycks/natural-adv-examples", _MIT
    ),
    "imagenet_r": Benchmark(
        pictures.imagenet, "https://github.com/hendrycks/imagenet-r", _MIT
    ),
    "coco": Benchmark(
        pictures.coco,
        "https://cocodataset.org; splits: https://cs.stanford.edu/people/karpathy/deepimagesent",
        "annotations CC BY 4.0, pictures by Flickr's terms",
    ),
    "flickr30k": Benchmark(
        pictures.flickr30k,
        "https://shannon.cs.illinois.edu/DenotationGraph; splits as COCO's",
        "research only, pictures by Flickr's terms",
    ),
    "winoground": Benchmark(
        pictures.winoground, "https://huggingface.co/datasets/facebook/winoground",
        "META IMAGES RESEARCH LICENSE: no training",
    ),
    "sugarcrepe": Benchmark(
        pictures.sugarcrepe, "https://github.com/RAIVNLab/sugar-crepe; pictures: COCO's val2017",
        "MIT (sentences)",
    ),
    "msrvtt": Benchmark(
        pictures.msrvtt,
        "Xu et al. 2016; 1k-A: Yu et al. 2018 (JSFusion)",
        _YOUTUBE + "research only",
    ),
    "esc50": Benchmark(sounds.esc50, "https://github.com/karolpiczak/ESC-50", "CC BY-NC 3.0"),
    "audiocaps": Benchmark(
        sounds.audiocaps, "https://github.com/cdjkim/audiocaps", _YOUTUBE + "MIT"
    ),
    "clotho": Benchmark(
        sounds.clotho,
        "https://zenodo.org/record/4783391",
        "captions: Tampere University's, sounds: each its own (Freesound)",
    ),
    "vggsound": Benchmark(
        sounds.vggsound, "https://www.robots.ox.ac.uk/~vgg/data/vggsound", _YOUTUBE + "CC BY 4.0"
    ),
    "audioset": Benchmark(
        sounds.audioset, "https://research.google.com/audioset", _YOUTUBE + "CC BY 4.0"
    ),
    "sun_rgbd": Benchmark(
        senses.sun_rgbd, "https://rgbd.cs.princeton.edu", "none given: ask its authors"
    ),
    "nyu_depth": Benchmark(
        senses.nyu_depth, "https://cs.nyu.edu/~silberman/datasets; as in SUN RGB-D",
        "none given: ask its authors",
    ),
    "llvip": Benchmark(
        senses.llvip, "https://bupt-ai-cz.github.io/LLVIP", "academic use only: see its page"
    ),
    "ego4d_imu": Benchmark(
        senses.ego4d_imu, "https://ego4d-data.org", "Ego4D's licence agreement"
    ),
}  # fmt: skip


def benchmark(name: str) -> Benchmark:
    """The benchmark of that name.

    Raises:
        ValueError: if there is none; says which there are.
    """
    if name not in BENCHMARKS:
        raise ValueError(f"no benchmark '{name}'; {suggest(name, BENCHMARKS)}")
    return BENCHMARKS[name]
