"""Miniature copies of the field's benchmarks in their original layouts, and a model that hashes."""

from __future__ import annotations

import csv
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import scipy.io
import torch
from data_helpers import audio_bytes, image_bytes, video_bytes
from torch import Tensor, nn
from torch.nn import functional

from multimodal.core.hashing import generator
from multimodal.core.similarity.similarities import COSINE
from multimodal.data.benchmarks.catalogue import BENCHMARKS
from multimodal.data.benchmarks.clip_benchmark import samples as catalogued_samples
from multimodal.models.joint.base import JointEmbeddings

WIDTH = 16


def picture(path: Path, number: int, mode: str = "RGB", fmt: str = "JPEG") -> None:
    random = np.random.default_rng(number)
    shape = (40, 30, 3) if mode == "RGB" else (40, 30)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(image_bytes(random.integers(0, 256, shape, np.uint8), fmt))


def sound(path: Path, number: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(audio_bytes(np.random.default_rng(number).uniform(-1, 1, (1, 400)), 8000))


def rows(path: Path, *lines: list[object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(lines)


def imagenet(folder: Path) -> None:
    for place, synset in enumerate(("n01440764", "n02504458", "n03445777")):
        for number in range(4):
            picture(folder / synset / f"val_{place}{number}.JPEG", 10 * place + number)


def imagenet_numbers(folder: Path) -> None:
    for place, number in enumerate((0, 386, 574)):
        for index in range(3):
            picture(folder / str(number) / f"{index}.jpeg", 50 * place + index)


def imagenet_few(folder: Path) -> None:
    for place, synset in enumerate(("n02007558", "n01498041", "n07768694")):
        if synset == "n02007558":  # of both A and R
            continue
        for number in range(3):
            picture(folder / synset / f"{number}.jpg", 70 * place + number)


def imagenet_r(folder: Path) -> None:
    for place, synset in enumerate(("n01443537", "n01484850")):
        for number in range(3):
            picture(folder / synset / f"art_{number}.jpg", 90 * place + number)


def _karpathy(folder: Path, name: str, root: str) -> None:
    images = []
    for number in range(6):
        split = "test" if number < 5 else "train"
        entry = {"filename": f"{number}.jpg", "split": split}
        if root == "val2014":
            entry["filepath"] = root
        count = 7 if number == 0 else 5
        entry["sentences"] = [{"raw": f"a thing {number} seen {turn}"} for turn in range(count)]
        images.append(entry)
        picture(folder / root / f"{number}.jpg", number)
    (folder / name).write_text(json.dumps({"images": images, "dataset": "x"}))


def coco(folder: Path) -> None:
    _karpathy(folder, "dataset_coco.json", "val2014")


def flickr30k(folder: Path) -> None:
    _karpathy(folder, "dataset_flickr30k.json", "flickr30k-images")


def winoground(folder: Path) -> None:
    lines = []
    for number in range(12):
        entry = {"id": number, "tag": "Object"}
        for side in (0, 1):
            entry |= {f"image_{side}": f"ex_{number}_img_{side}"}
            entry |= {f"caption_{side}": f"{number} before {side}"}
            picture(folder / "images" / f"ex_{number}_img_{side}.png", 2 * number + side, fmt="PNG")
        lines.append(json.dumps(entry))
    (folder / "examples.jsonl").write_text("\n".join(lines) + "\n")


def sugarcrepe(folder: Path) -> None:
    kinds = (
        "add_att",
        "add_obj",
        "replace_att",
        "replace_obj",
        "replace_rel",
        "swap_att",
        "swap_obj",
    )
    (folder / "data").mkdir(parents=True)
    for kind in kinds:
        content = {}
        for number in (0, 1, 3):
            picture(folder / "val2017" / f"{number:012d}.jpg", number)
            content[str(number)] = {
                "filename": f"{number:012d}.jpg",
                "caption": f"right {kind} {number}",
                "negative_caption": f"wrong {kind} {number}",
            }
        (folder / "data" / f"{kind}.json").write_text(json.dumps(content))


def msrvtt(folder: Path) -> None:
    lines = [["key", "vid_key", "video_id", "sentence"]]
    (folder / "videos").mkdir(parents=True)
    for number in range(3):
        (folder / "videos" / f"video{number}.mp4").write_bytes(video_bytes(4 + number))
        lines.append([f"ret{number}", f"msr{number}", f"video{number}", f"a film {number}"])
    rows(folder / "MSRVTT_JSFUSION_test.csv", *lines)


def esc50(folder: Path) -> None:
    lines = [["filename", "fold", "target", "category", "esc10", "src_file", "take"]]
    for number in range(8):
        category = ("dog", "door_wood_knock", "sea_waves")[number % 3]
        name = f"{number % 5 + 1}-{number}-A-{number % 3}.wav"
        sound(folder / "audio" / name, number)
        lines.append([name, number % 5 + 1, number % 3, category, "True", number, "A"])
    rows(folder / "meta" / "esc50.csv", *lines)


def audiocaps(folder: Path) -> None:
    lines = [["audiocap_id", "youtube_id", "start_time", "caption"]]
    for clip, name in enumerate(("aaa_1", "bbb-2_30", "Yccc3", "ddd4_000020")):
        sound(folder / "clips" / f"{name}.wav", clip)
    for clip, (name, start) in enumerate((("aaa_1", 0), ("bbb-2", 30), ("ccc3", 7), ("ddd4", 20))):
        lines += [[f"{clip}{n}", name, start, f"sound {clip}, heard {n}"] for n in range(5)]
    lines += [["99", "gone", 0, "what is lost"]]
    rows(folder / "test.csv", *lines)


def clotho(folder: Path) -> None:
    lines = [["file_name", *(f"caption_{n}" for n in range(1, 6))]]
    for number in range(4):
        name = f"A loud noise, {number}.wav"
        sound(folder / "evaluation" / name, number)
        lines.append([name, *(f"noise {number} said {n}" for n in range(5))])
    rows(folder / "clotho_captions_evaluation.csv", *lines)


def vggsound(folder: Path) -> None:
    lines = []
    for number in range(6):
        name, label = f"-id_{number}", ("people marching", "playing banjo, fast")[number % 2]
        sound(folder / "audio" / f"{name}_{30 + number:06d}.wav", number)
        lines.append([name, 30 + number, label, "train" if number == 5 else "test"])
    rows(folder / "vggsound.csv", *lines)


def audioset(folder: Path) -> None:
    rows(
        folder / "class_labels_indices.csv",
        ["index", "mid", "display_name"],
        [0, "/m/a", "Speech"], [1, "/m/b", "Purr, low"], [2, "/t/c", "Rain"],
    )  # fmt: skip
    lines = [
        "# Segments csv",
        "# num_ytids=5",
        "# YTID, start_seconds, end_seconds, positive_labels",
    ]
    for number in range(5):
        mids = (["/m/a"], ["/m/a", "/m/b"], ["/t/c"])[number % 3]
        sound(folder / "eval" / f"yt{number}.wav", number)
        lines.append(f'yt{number}, {number}.000, {number + 10}.000, "{",".join(mids)}"')
    (folder / "eval_segments.csv").write_text("\n".join(lines) + "\n")


def sun_rgbd(folder: Path) -> None:
    scenes = [
        ("kv1/NYUdata/NYU0001", "bedroom"), ("kv1/NYUdata/NYU0002", "playroom"),
        ("kv1/NYUdata/NYU0003", "kitchen"), ("kv1/NYUdata/NYU0004", "office"),
        ("kv2/kinect2data/000002_x", "office"), ("xtion/sun3ddata/a/0001", "lecture_theatre"),
        ("realsense/lg/2014", "idk"), ("kv2/kinect2data/train", "office"),
    ]  # fmt: skip
    listed = []
    for number, (place, label) in enumerate(scenes):
        scene = folder / "SUNRGBD" / place
        picture(scene / "image" / "a.jpg", number)
        depth = np.random.default_rng(number).integers(5000, 40000, (20, 16)).astype(np.uint16)
        for kind in ("depth", "depth_bfx"):
            (scene / kind).mkdir()
            (scene / kind / "a.png").write_bytes(image_bytes(depth + (kind == "depth")))
        (scene / "scene.txt").write_text(f"{label}\n")
        (scene / "intrinsics.txt").write_text(f"{500 + number}.0 0 320 0 510.0 240 0 0 1")
        if not place.endswith("train"):
            listed.append(f"/n/fs/sun3d/data/SUNRGBD/{place}")
    cells = np.empty((1, len(listed)), object)
    cells[0] = listed
    path = folder / "SUNRGBDtoolbox" / "traintestSUNRGBD" / "allsplit.mat"
    path.parent.mkdir(parents=True)
    scipy.io.savemat(path, {"alltest": cells, "alltrain": cells[:, :0]})


def llvip(folder: Path) -> None:
    box = (
        "<object><name>person</name><bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax>"
        "<ymax>{}</ymax></bndbox></object>"
    )
    (folder / "Annotations").mkdir(parents=True)
    for number in range(4):
        picture(folder / "infrared" / "test" / f"19{number:04d}.jpg", number)
        boxes = [(2, 3, 8, 12), (20, 25, 29, 40)][: 1 + number % 2]
        if number == 3:
            boxes = [(0, 0, 30, 40)]  # leaves no background
        text = "".join(box.format(*each) for each in boxes)
        note = folder / "Annotations" / f"19{number:04d}.xml"
        note.write_text(f"<annotation>{text}</annotation>")


def ego4d_imu(folder: Path) -> None:
    videos = []
    for number in range(6):
        name, scenarios = f"uid-{number}", [("Cooking", "Cycling", "Carpentry")[number % 3]]
        if number == 4:
            scenarios.append("Talking")
        videos.append({"video_uid": name, "scenarios": scenarios, "has_imu": number != 5})
        random = np.random.default_rng(number)
        times = np.arange(0, 4000 if number == 3 else 7000, 5.0)
        sides = [f"{kind}_{axis}" for kind in ("gyro", "accl") for axis in "xyz"]
        head = ["component_idx", "component_timestamp_ms", "canonical_timestamp_ms", *sides]
        values = random.standard_normal((len(times), 6))
        lines = [[0, t, t, *row] for t, row in zip(times, values.round(4).tolist(), strict=True)]
        rows(folder / "imu" / f"{name}.csv", head, *lines)
    (folder / "ego4d.json").write_text(json.dumps({"videos": videos}))


def exported(folder: Path, field: str, values: list[str]) -> None:
    """As CLIP_benchmark writes a set: pictures with a field each, in two tars."""
    (folder / "test").mkdir(parents=True)
    (folder / "test" / "nshards.txt").write_text("2\n")
    half = (len(values) + 1) // 2
    for number in range(2):
        with tarfile.open(folder / "test" / f"{number}.tar", "w") as tar:
            for place in range(len(values))[number * half :][:half]:
                noise = np.random.default_rng(place).integers(0, 256, (20, 16, 3), np.uint8)
                files = {"webp": image_bytes(noise, "WEBP"), field: values[place].encode()}
                for name, data in files.items():
                    entry = tarfile.TarInfo(f"s{place:07d}.{name}")
                    entry.size = len(data)
                    tar.addfile(entry, io.BytesIO(data))


def clip_benchmark(folder: Path) -> None:
    """Three classes."""
    exported(folder, "cls", [str(place % 3) for place in range(10)])
    names = ["a red fox", "bank", "river bank"]
    templates = ["a photo of a {c}.", "{c}, seen from far"]
    (folder / "classnames.txt").write_text("\n".join(names) + "\n")
    (folder / "zeroshot_classification_templates.txt").write_text("\n".join(templates) + "\n\n")


MINIATURES = {
    "imagenet": imagenet,
    "imagenet_v2": imagenet_numbers,
    "imagenet_sketch": imagenet,
    "imagenet_a": imagenet_few,
    "imagenet_r": imagenet_r,
    "coco": coco,
    "flickr30k": flickr30k,
    "winoground": winoground,
    "sugarcrepe": sugarcrepe,
    "msrvtt": msrvtt,
    "esc50": esc50,
    "audiocaps": audiocaps,
    "clotho": clotho,
    "vggsound": vggsound,
    "audioset": audioset,
    "sun_rgbd": sun_rgbd,
    "nyu_depth": sun_rgbd,
    "llvip": llvip,
    "ego4d_imu": ego4d_imu,
} | {
    name: clip_benchmark
    for name, each in BENCHMARKS.items()
    if each.samples is catalogued_samples
}  # fmt: skip


def vector(value: object) -> np.ndarray:
    """Sixteen numbers that any two different values differ in."""
    parts: list[object] = [type(value).__name__]
    if isinstance(value, str):
        parts.append(value)
    for name in ("data", "samples", "values", "focal", "baseline_m", "rate"):
        part = getattr(value, name, None)
        parts.append(part if isinstance(part, float | bytes) else str(np.asarray(part).tolist()))
    if isinstance(value, np.ndarray):
        parts.append(value.tobytes())
    return generator(*parts).standard_normal(WIDTH).astype(np.float32)  # type: ignore[arg-type]


class Hashed:
    """A transform of anything."""

    shape = (WIDTH,)

    def __call__(self, value: object, rng: object) -> Tensor:
        return torch.from_numpy(vector(value))

    def collate(self, inputs: list[Tensor]) -> tuple[Tensor, None]:
        return torch.stack(inputs), None


class Identity(nn.Module):
    """Towers whose embedding is their normalised input."""

    embed_dim = WIDTH
    similarity = COSINE

    def __init__(self) -> None:
        super().__init__()
        self.towers = dict.fromkeys(("image", "text", "audio", "depth", "thermal", "imu", "video"))
        self.joint = JointEmbeddings({}, nn.ModuleDict())
        self.scale = nn.Parameter(torch.ones(()))

    def embed(
        self, modality: str, inputs: Tensor, mask: object, kind: str = "normalized"
    ) -> Tensor:
        return functional.normalize(inputs, dim=1)


TRANSFORMS = {name: Hashed() for name in Identity().towers}


def unit(values: list[object]) -> np.ndarray:
    """Embeddings ``[N, 16]`` in float64, as `Identity` gives them."""
    rows_ = np.stack([vector(value) for value in values]).astype(np.float64)
    return rows_ / np.linalg.norm(rows_, axis=1, keepdims=True)
