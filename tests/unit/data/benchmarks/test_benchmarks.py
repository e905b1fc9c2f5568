"""Every benchmark by name: packed from its original layout, evaluated, its figure computed anew."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from benchmark_cases import MINIATURES, TRANSFORMS, Identity, exported, unit
from hydra import compose, initialize_config_dir
from loader_helpers import evaluation_data

from multimodal.cli.make_shards import main
from multimodal.config import config_dir
from multimodal.data.benchmarks.catalogue import BENCHMARKS, benchmark
from multimodal.data.benchmarks.class_names import class_names, prompts, synsets
from multimodal.data.benchmarks.files import LayoutError
from multimodal.data.shards.manifest import load_manifest
from multimodal.data.source import Source
from multimodal.evaluation.benchmarks import compare
from multimodal.evaluation.evaluators.choices import CaptionChoice, GroupMatching
from multimodal.evaluation.run import build_sets, evaluate

SIZES = {
    "imagenet": 12, "imagenet_v2": 9, "imagenet_sketch": 12, "imagenet_a": 6, "imagenet_r": 6,
    "coco": 5, "flickr30k": 5, "winoground": 24, "sugarcrepe": 21, "msrvtt": 3, "esc50": 8,
    "audiocaps": 4, "clotho": 4, "vggsound": 5, "audioset": 5, "sun_rgbd": 5, "nyu_depth": 4,
    "llvip": 9, "ego4d_imu": 3,
}  # fmt: skip
# Sets of one layout, of which the first two differ in the figure.
FIRST = ["caltech101", "cifar10"]
CLIP_BENCHMARK = [*FIRST, *sorted(set(MINIATURES) - SIZES.keys() - set(FIRST))]
SIZES |= dict.fromkeys(CLIP_BENCHMARK, 10)


@pytest.fixture
def packed(tmp_path, monkeypatch):
    """Packs a miniature where its configuration looks for it; returns the set."""
    monkeypatch.chdir(tmp_path)

    def pack(name: str):
        MINIATURES[name](tmp_path / "given")
        assert main(["benchmark", name, "given", f"shards/{name}"]) == 0
        with initialize_config_dir(str(config_dir()), version_base="1.3"):
            cfg = compose("evaluate", ["checkpoint=a", f"evaluation={name}"])
        return build_sets(cfg)[name]

    return pack


def scored(name: str, entry) -> dict:
    results = evaluate(Identity(), {name: entry}, evaluation_data(TRANSFORMS), {}, quiet=True)
    return results.metrics()


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] if name in CLIP_BENCHMARK[2:] else [])
        for name in MINIATURES
    ],
)
def test_its_figures_equal_an_independent_computation(name, packed):
    entry = packed(name)
    assert len(entry.source) == SIZES[name]
    for task in entry.zero_shot:
        task.prompts = task.prompts[:3]  # of ImageNet's 80, for 1,000 classes
    metrics = scored(name, entry)
    questions = [type(each) for each in entry.evaluators.values()]
    assert questions == {"winoground": [GroupMatching], "sugarcrepe": [CaptionChoice]}.get(name, [])
    expected = FIGURES.get(name, classified)(entry)
    found = {row.figure: row.ours for row in compare({name: entry.published}, metrics)}
    assert found.keys() == expected.keys()
    for figure, value in expected.items():
        assert found[figure] == pytest.approx(100 * value, abs=1e-6), figure


def decoded(entry, caption: int = 0) -> list:
    source = entry.source
    return [source.decode(index, None, caption=caption) for index in range(len(source))]


def classified(entry) -> dict[str, float]:
    """Top 1 (or the mean average precision) by loops over samples and classes."""
    (task,) = entry.zero_shot
    samples = decoded(entry)
    labels = [sample.metadata[task.label] for sample in samples]
    labels = [[label] if isinstance(label, str) else label for label in labels]
    if task.classes is None:
        classes = {name: [name] for name in sorted({name for names in labels for name in names})}
    elif isinstance(task.classes, dict):
        classes = task.classes
    else:
        classes = {name: [name] for name in task.classes}
    similar = np.zeros((len(samples), len(classes)))
    embedded = unit([sample.values[task.modality] for sample in samples])
    for column, names in enumerate(classes.values()):
        groups = [[name] for name in names] if task.several == "max" else [list(names)]
        best = np.full(len(samples), -np.inf)
        for group in groups:
            texts = [prompt.replace("{}", name) for name in group for prompt in task.prompts]
            mean = unit(texts).mean(axis=0)
            best = np.maximum(best, embedded @ (mean / np.linalg.norm(mean)))
        similar[:, column] = best
    order = list(classes)
    if next(iter(entry.published.figures.values())).endswith("/map"):
        precisions = []
        for column, name in enumerate(order):
            right = np.array([name in own for own in labels])
            if right.any():
                ranked = right[np.argsort(-similar[:, column], kind="stable")]
                hits = np.cumsum(ranked)
                precisions.append((hits / np.arange(1, len(hits) + 1))[ranked].mean())
        return {"mAP": float(np.mean(precisions))}
    top = [order[place] for place in similar.argmax(axis=1)]
    if "mean per class" in entry.published.figures:
        shares = [
            np.mean([t == name for t, own in zip(top, labels, strict=True) if name in own])
            for name in {name for own in labels for name in own}
        ]
        return {"mean per class": float(np.mean(shares))}
    return {"top 1": float(np.mean([t in own for t, own in zip(top, labels, strict=True)]))}


def retrieved(entry) -> dict[str, float]:
    """Recalls by loops, each caption a query and an answer of its own."""
    gallery = next(name for name in entry.source.modalities if name != "text")
    samples = decoded(entry)
    texts = [
        (place, entry.source.decode(place, None, caption=turn).values["text"])
        for place, sample in enumerate(samples)
        for turn in range(sample.captions)
    ]
    owners = np.array([place for place, _ in texts])
    similar = unit([s.values[gallery] for s in samples]) @ unit([text for _, text in texts]).T
    found = {}
    for figure in entry.published.figures:
        depth = int(figure.rpartition("@")[2])
        if figure.startswith("text to"):
            ranks = [(similar[:, c] > similar[owner, c]).sum() for c, owner in enumerate(owners)]
        else:
            ranks = [(row > row[owners == place].max()).sum() for place, row in enumerate(similar)]
        found[figure] = float(np.mean(np.array(ranks) < depth))
    return found


def matched(entry) -> dict[str, float]:
    """Winoground's three scores, example by example."""
    groups: dict[str, list] = {}
    for sample in decoded(entry):
        groups.setdefault(sample.metadata["group"], []).append(sample)
    scores = {"text": [], "image": [], "group": []}
    for one, two in groups.values():
        i0, i1 = unit([one.values["image"], two.values["image"]])
        c0, c1 = unit([one.values["text"], two.values["text"]])
        text = c0 @ i0 > c1 @ i0 and c1 @ i1 > c0 @ i1
        image = c0 @ i0 > c0 @ i1 and c1 @ i1 > c1 @ i0
        for name, right in (("text", text), ("image", image), ("group", text and image)):
            scores[name].append(right)
    return {name: float(np.mean(values)) for name, values in scores.items()}


def chosen(entry) -> dict[str, float]:
    """SugarCrepe's accuracy of each kind."""
    right: dict[str, list[bool]] = {}
    for sample in decoded(entry):
        own, wrong = unit([sample.metadata["caption"], sample.metadata["negative_caption"]])
        (image,) = unit([sample.values["image"]])
        right.setdefault(sample.metadata["kind"], []).append(image @ own > image @ wrong)
    return {
        figure: float(np.mean(right[place.rpartition("/")[2]]))
        for figure, place in entry.published.figures.items()
    }


RETRIEVAL = ("coco", "flickr30k", "msrvtt", "audiocaps", "clotho")
FIGURES = dict.fromkeys(RETRIEVAL, retrieved) | {"winoground": matched, "sugarcrepe": chosen}


def test_every_benchmark_has_a_miniature_and_a_configuration():
    assert BENCHMARKS.keys() == MINIATURES.keys() == SIZES.keys()
    for name in BENCHMARKS:
        text = (Path(config_dir()) / "evaluation" / f"{name}.yaml").read_text()
        assert f"multimodal shards benchmark {name} " in text


def test_karpathys_five_captions(packed):
    entry = packed("coco")
    assert [sample.captions for sample in decoded(entry)] == [5] * 5


def test_crops_of_persons_and_background(packed):
    samples = decoded(packed("llvip"))
    labels = [sample.metadata["label"] for sample in samples]
    assert labels.count("person") == 5
    assert labels.count("background") == 4  # one picture has no room for one
    report = json.loads(Path("shards/llvip/report.json").read_text())
    assert "no_background" in json.dumps(report)
    sizes = {(s.metadata["label"], np.asarray(s.values["thermal"]).shape[:2]) for s in samples}
    assert ("background", (9, 6)) in sizes
    assert ("person", (9, 6)) in sizes


def test_scenes_have_their_optics_and_the_refined_depth(packed):
    samples = {sample.metadata["label"]: sample for sample in decoded(packed("nyu_depth"))}
    assert samples.keys() == {"bedroom", "others", "kitchen", "office"}
    depth = samples["bedroom"].values["depth"]
    assert (depth.focal, depth.baseline_m) == (500.0, 0.075)
    stored = np.random.default_rng(0).integers(5000, 40000, (20, 16)).astype(np.uint16)
    np.testing.assert_array_equal(depth.values, (stored >> 3) | (stored << 13))


def test_motion_is_from_the_middle(packed):
    samples = {s.key: s.values["imu"] for s in decoded(packed("ego4d_imu"))}
    assert samples.keys() == {"uid-0", "uid-1", "uid-2"}
    motion = samples["uid-0"]
    assert motion.samples.shape == (6, 1000)
    assert motion.rate == 200
    values = np.random.default_rng(0).standard_normal((1400, 6)).round(4)
    middle = values[199:1200]  # the times of 997.5 ms to 5,997.5 ms lie between two readings
    between = (middle[:-1] + middle[1:]) / 2
    np.testing.assert_allclose(motion.samples[:3], between[:, 3:].T, atol=1e-5)


def test_class_names():
    every = class_names("imagenet")
    assert list(every) == synsets() == sorted(every)
    assert len(every) == 1000
    assert every["n01440764"] == ["tench"]
    assert len(class_names("imagenet_a")) == len(class_names("imagenet_r")) == 200
    assert len(prompts("imagenet")) == 80
    with pytest.raises(ValueError, match="no list of classes 'imagenet_c'"):
        class_names("imagenet_c")


@pytest.mark.parametrize("name", BENCHMARKS)
def test_another_layout_is_refused(name, tmp_path):
    with pytest.raises(LayoutError):
        list(benchmark(name).samples(tmp_path))


def test_an_unknown_benchmark_is_refused(tmp_path, capsys):
    assert main(["benchmark", "imagnet", str(tmp_path), str(tmp_path / "out")]) == 1
    assert "imagenet" in capsys.readouterr().err


def test_classes_of_one_name_are_told_apart(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    MINIATURES["cifar10"](tmp_path / "given")
    (tmp_path / "given" / "classnames.txt").write_text("a red fox\nbank\nbank\n")
    assert main(["benchmark", "cifar10", "given", "shards/cifar10"]) == 0
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        cfg = compose("evaluate", ["checkpoint=a", "evaluation=cifar10"])
    entry = build_sets(cfg)["cifar10"]
    labels = {sample.key: sample.metadata["label"] for sample in decoded(entry)}
    expected = ["a red fox", "bank (1)", "bank (2)"]
    assert sorted(labels) == [f"{place // 5}/s{place:07d}" for place in range(10)]
    for key, label in labels.items():
        assert label == expected[int(key[-7:]) % 3]
    (task,) = entry.zero_shot
    assert task.classes == dict(zip(expected, (["a red fox"], ["bank"], ["bank"]), strict=True))
    assert task.prompts == ["a photo of a {}.", "{}, seen from far"]


def test_a_folder_of_clip_benchmarks_that_is_not_whole(packed, capsys):
    def again(message: str) -> None:
        assert main(["benchmark", "cifar10", "given", "shards/again"]) == 1
        assert message in capsys.readouterr().err

    packed("cifar10")
    folder = Path("given")
    shutil.copy(folder / "test" / "0.tar", folder / "test" / "2.tar")
    again("test has 3 tars, and nshards.txt says '2'")
    (folder / "test" / "2.tar").unlink()
    templates = folder / "zeroshot_classification_templates.txt"
    before = templates.read_text()
    templates.write_text("a photo\n")
    again("expected a template with one {c} on each line, got 'a photo'")
    templates.write_text("\n")
    again("templates.txt is empty")
    templates.write_text(before)
    (folder / "classnames.txt").write_text("a red fox\nbank\n")  # and some samples are of a third
    assert main(["benchmark", "cifar10", "given", "shards/fewer"]) == 0
    assert len(load_manifest("shards/fewer/cifar10.json").split("test").samples.tolist()) == 1
    refused = Path("shards/fewer/refused.jsonl").read_text()
    assert refused.count("cls is '2', expected a number below 2") == 3
    (folder / "classnames.txt").unlink()
    again("given has no classnames.txt: expected the layout as published")


def test_clip_benchmarks_copies_of_other_sets(tmp_path, monkeypatch):
    """Of ImageNet's variants with their own numbers of classes, and of captioned pictures."""
    monkeypatch.chdir(tmp_path)

    def packed_as(name: str) -> list[dict]:
        assert main(["benchmark", name, f"given_{name}", f"shards/{name}"]) == 0
        source = Source(f"shards/{name}/{name}.json", {"image": {"member": "image.jpg"}}, "test")
        return sorted((one.metadata for one in decoded(SimpleNamespace(source=source))), key=str)

    for name in ("imagenet", "imagenet_a", "imagenet_r"):
        classes = list(class_names(name))
        exported(tmp_path / f"given_{name}", "cls", ["0", "199\n", "3"])
        labels = [each["label"] for each in packed_as(name)]
        assert labels == sorted([classes[0], classes[199], classes[3]])
    captions = ["one\ntwo\nthree\nfour\nfive\nsix", "seven\n\n", "eight"]
    for name in ("coco", "flickr30k"):
        exported(tmp_path / f"given_{name}", "txt", [*captions, "\n"])
        found = [each["captions"] for each in packed_as(name)]
        assert found == [["eight"], ["one", "two", "three", "four", "five"], ["seven"]]
        assert "txt holds no caption" in Path(f"shards/{name}/refused.jsonl").read_text()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no file classes.json; `multimodal shards benchmark` writes it"),
        ("{", "classes.json cannot be read as JSON"),
        ('{"prompts": ["{}"]}', "has no 'classes' as expected: label: name, or a list of names"),
        ('{"classes": {"a": 3}}', "has no 'classes' as expected"),
        ('{"classes": {"a": []}}', "has no 'classes' as expected"),
        ('["a"]', "has no 'classes' as expected"),
    ],
)
def test_a_file_of_classes_that_holds_none(tmp_path, monkeypatch, content, message):
    monkeypatch.chdir(tmp_path)
    if content is not None:
        Path("classes.json").write_text(content)
    with pytest.raises(ValueError, match=re.escape(message)):
        class_names("classes.json")


@pytest.mark.parametrize("group", ["vtab", "clip_benchmark"])
def test_a_group_holds_its_sets(group):
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        sets = compose("evaluate", ["checkpoint=a", f"evaluation={group}"]).evaluation.sets
    assert set(CLIP_BENCHMARK) <= sets.keys() if group == "clip_benchmark" else len(sets) == 19
    for name, entry in sets.items():
        assert entry.source.manifest == f"shards/{name}/{name}.json"
