"""The benchmarks that are packed by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from multimodal.core.suggest import suggest
from multimodal.data.benchmarks import clip_benchmark, pictures, senses, sounds
from multimodal.data.benchmarks.files import Samples


class Benchmark(NamedTuple):
    """A benchmark.

    Attributes:
        samples: of a folder in the layout in which it is published.
        origin: where that is.
        licence: of the data, as its publishers say; read theirs before you use them.
        lists: files that are written beside the shards -> their content, of the same folder.
    """

    samples: Callable[[Path], Samples]
    origin: str
    licence: str
    lists: Callable[[Path], dict[str, bytes]] = lambda folder: {}


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
        pictures.imagenet_a, "https://github.com/hendrycks/natural-adv-examples", _MIT
    ),
    "imagenet_r": Benchmark(
        pictures.imagenet_r, "https://github.com/hendrycks/imagenet-r", _MIT
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

_UNSAID = "none given: ask its authors"
# Name -> dataset of CLIP_benchmark's on the hub, and the licence.
_CLIP_BENCHMARK = {
    "caltech101": ("vtab-caltech101", "CC BY 4.0"),
    "cars": ("cars", "research only"),
    "cifar10": ("vtab-cifar10", _UNSAID),
    "cifar100": ("vtab-cifar100", _UNSAID),
    "clevr_count": ("vtab-clevr_count_all", "CC BY 4.0"),
    "clevr_distance": ("vtab-clevr_closest_object_distance", "CC BY 4.0"),
    "country211": ("country211", "Creative Commons, by Flickr's uploaders"),
    "diabetic_retinopathy": ("vtab-diabetic_retinopathy", "by the rules of Kaggle's competition"),
    "dmlab": ("vtab-dmlab", _UNSAID),
    "dsprites_orientation": ("vtab-dsprites_label_orientation", "Apache 2.0"),
    "dsprites_x": ("vtab-dsprites_label_x_position", "Apache 2.0"),
    "dtd": ("vtab-dtd", "research only"),
    "eurosat": ("vtab-eurosat", "MIT"),
    "fer2013": ("fer2013", "by the rules of Kaggle's competition"),
    "fgvc_aircraft": ("fgvc_aircraft", "research only, not commercial"),
    "flowers102": ("vtab-flowers", _UNSAID),
    "food101": ("food101", "pictures by Foodspotting's terms"),
    "gtsrb": ("gtsrb", "see its page"),
    "imagenet_o": ("imagenet-o", _MIT),
    "kitti_distance": ("vtab-kitti_closest_vehicle_distance", "CC BY-NC-SA 3.0"),
    "mnist": ("mnist", "see its page"),
    "objectnet": ("objectnet", "no training, see its page"),
    "pcam": ("vtab-pcam", "CC0"),
    "pets": ("vtab-pets", "CC BY-SA 4.0"),
    "rendered_sst2": ("renderedsst2", _UNSAID),
    "resisc45": ("vtab-resisc45", _UNSAID),
    "smallnorb_azimuth": ("vtab-smallnorb_label_azimuth", "research only"),
    "smallnorb_elevation": ("vtab-smallnorb_label_elevation", "research only"),
    "stl10": ("stl10", _UNSAID),
    "sun397": ("sun397", "research only"),
    "svhn": ("vtab-svhn", "not commercial"),
    "voc2007": ("voc2007", "pictures by Flickr's terms"),
}
BENCHMARKS |= {
    name: Benchmark(
        clip_benchmark.samples,
        f"{clip_benchmark.HUB}/wds_{dataset}",
        licence,
        clip_benchmark.lists,
    )
    for name, (dataset, licence) in _CLIP_BENCHMARK.items()
}


def benchmark(name: str) -> Benchmark:
    """The benchmark of that name.

    Raises:
        ValueError: if there is none; says which there are.
    """
    if name not in BENCHMARKS:
        raise ValueError(f"no benchmark '{name}'; {suggest(name, BENCHMARKS)}")
    return BENCHMARKS[name]
