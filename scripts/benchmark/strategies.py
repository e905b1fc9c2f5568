# python scripts/benchmark/strategies.py
"""When to choose which loss and which negatives: linear heads on frozen pretrained features.

The pictures (two drawing styles of the emoji) and the texts (name, tags, group) go once through the
pretrained towers; the features are kept beside the output. Then every combination trains two linear
heads for the same number of steps on the same batches, with the YAML files' settings, under six
conditions:

    batch 32, 128, 512   from random heads
    warm                 batch 128, after as many steps of in-batch InfoNCE on the same data
    noise 20 %, 40 %     batch 128, from random heads; so many of the pictures have a wrong text

It is judged by concepts that no training saw: R@1 of pictures to texts and texts to pictures, the
mean of both, among all held-out concepts, mean over the seeds. One line per finished combination
goes into a file, so that a command that was interrupted resumes; the table is printed at the end.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from torch import Tensor, nn
from torch.nn import functional as F

from multimodal.config import build, config_dir
from multimodal.data.loading.evaluation_loader import EvaluationLoader
from multimodal.data.settings import EvaluationData, LoaderSettings
from multimodal.data.source import Source
from multimodal.evaluation.metrics.retrieval import retrieval
from multimodal.inference.checkpoint.load import build_model
from multimodal.objectives.candidates import AllRanks
from multimodal.objectives.objective import ContrastiveObjective, make_objective

LOSSES = ("info_nce", "dcl", "siglip", "triplet", "hinge")
SAME = ("sup_con", "soft_target")  # are InfoNCE where every sample has one positive, as here
TARGETS = ("cosine", "mse")  # take no negatives, and would fold towers that both learn
TAUGHT = ("affinity", "affinity_mse")  # compare with a teacher
CHOOSE = ("random", "hard", "semi_hard", "distance_weighted", "filtered")
WEIGH = ("reweighted", "debiased")
GRID = [
    *((loss, "in_batch") for loss in LOSSES),
    *(("info_nce", negatives) for negatives in (*CHOOSE, *WEIGH)),
    *(("triplet", negatives) for negatives in CHOOSE),  # a margin has nothing to weigh
]
STYLES = ("noto", "twemoji")
TOWERS = (
    "tower@model.towers.image=efficientnet_lite0",
    "tower@model.towers.text=pretrained",
    "model.towers.text.pretrained=minilm",
    "data/transform@data.transforms.image=image_lite0",
    "data.transforms.image.size=160",
    "data/transform@data.transforms.text=text_minilm",
)
COMPONENTS, WIDTH = 256, 128  # of the features, of the embeddings
STEPS, RATE = 120, 5e-3
HELD_OUT = 300  # concepts of the training split that are held out beside the validation split


@dataclass(frozen=True)
class Condition:
    """What a combination is trained under."""

    name: str
    batch: int = 128
    noise: float = 0.0
    warm: bool = False


CONDITIONS = (
    Condition("32", 32),
    Condition("128"),
    Condition("512", 512),
    Condition("warm", warm=True),
    Condition("noise 20 %", noise=0.2),
    Condition("noise 40 %", noise=0.4),
)


@dataclass(frozen=True)
class Features:
    """Frozen features: pictures ``[S, N, F]`` of S styles, texts ``[N, F]``."""

    images: Tensor
    texts: Tensor

    def __getitem__(self, rows: Any) -> Features:
        return Features(self.images[:, rows], self.texts[rows])


def reduced(train: Tensor, *others: Tensor) -> list[Tensor]:
    """Standardised, and their first principal components, both by ``train``'s rows."""
    rows = train.flatten(0, -2)
    mean, deviation = rows.mean(dim=0), rows.std(dim=0).clamp_min(1e-6)
    axes = torch.linalg.svd((rows - mean) / deviation, full_matrices=False)[2][:COMPONENTS].T
    scale = (((rows - mean) / deviation) @ axes).std() or 1.0
    return [((each - mean) / deviation) @ axes / scale for each in (train, *others)]


def divide(content: dict[str, dict[str, Tensor]]) -> tuple[Features, Features]:
    """To train on, and held out."""

    def of(split: str) -> Features:
        parts = content[split]
        return Features(torch.stack([parts[style] for style in STYLES]), parts["text"])

    train, validation = of("train"), of("val")
    rows = torch.randperm(len(train.texts), generator=torch.Generator().manual_seed(0))
    kept, held = train[rows[HELD_OUT:]], train[rows[:HELD_OUT]]
    images = torch.cat([held.images, validation.images], dim=1)
    texts = torch.cat([held.texts, validation.texts])
    image_parts, text_parts = reduced(kept.images, images), reduced(kept.texts, texts)
    return Features(image_parts[0], text_parts[0]), Features(image_parts[1], text_parts[1])


@functools.cache
def choice(group: str, name: str) -> Any:
    """A loss or a strategy, as its YAML file has it."""
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        cfg = compose("train", ["+experiment=clip_scratch", f"{group}={name}"])
    return instantiate(cfg[group])


def objective(loss: Any, negatives: Any) -> ContrastiveObjective:
    """One pair of pictures and texts."""
    pair = {"image_text": {"anchor": "image", "other": "text"}}
    return make_objective(pair, loss, negatives, AllRanks(), WIDTH)


class Heads(nn.Module):
    """A linear map for each modality."""

    def __init__(self, features: Features) -> None:
        super().__init__()
        self.image = nn.Linear(features.images.shape[-1], WIDTH)
        self.text = nn.Linear(features.texts.shape[-1], WIDTH)

    def forward(self, images: Tensor, texts: Tensor) -> dict[str, Tensor]:
        """Embeddings of norm 1."""
        image, text = self.image(images), self.text(texts)
        return {"image": F.normalize(image, dim=-1), "text": F.normalize(text, dim=-1)}


def noisy(texts: Tensor, share: float, seed: int) -> Tensor:
    """``texts`` with a share of them handed round among themselves."""
    generator = torch.Generator().manual_seed(1000 + seed)
    wrong = torch.randperm(len(texts), generator=generator)[: round(share * len(texts))]
    changed = texts.clone()
    changed[wrong] = texts[wrong.roll(1)]
    return changed


def train(
    heads: Heads,
    pairs: ContrastiveObjective,
    features: Features,
    condition: Condition,
    seed: int,
    steps: int,
) -> None:
    """``steps`` of AdamW with a one-cycle learning rate; every style of a concept is drawn."""
    texts = noisy(features.texts, condition.noise, seed)
    parameters = [*heads.parameters(), *pairs.parameters()]
    optimizer = torch.optim.AdamW(parameters, RATE, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps)
    generator = torch.Generator().manual_seed(seed)
    for step in range(steps):
        rows = torch.randperm(len(texts), generator=generator)[: condition.batch]
        styles = torch.randint(len(features.images), rows.shape, generator=generator)
        embedded = heads(features.images[styles, rows], texts[rows])
        loss = pairs(embedded, rows, rows, step=step, seed=seed, source="emoji").loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


@torch.no_grad()
def score(heads: Heads, held_out: Features) -> float:
    """R@1, the mean of both directions and of the styles."""
    keys = torch.arange(len(held_out.texts))
    scores = []
    for images in held_out.images:
        embedded = heads(images, held_out.texts)
        for query, gallery in (("image", "text"), ("text", "image")):
            found = retrieval(embedded[query], embedded[gallery], keys, keys, (1,))
            scores.append(found.recall[1])
    return statistics.fmean(scores)


@dataclass
class Bench:
    """Trains and scores; keeps what a warm start begins from."""

    features: Features
    held_out: Features
    steps: int

    def __post_init__(self) -> None:
        self.warm: dict[int, dict[str, Tensor]] = {}

    def run(self, loss: str, negatives: str, condition: Condition, seed: int) -> float:
        """R@1 of one training."""
        torch.manual_seed(seed)
        heads = Heads(self.features)
        if condition.warm:
            heads.load_state_dict(self.started(seed))
        pairs = objective(choice("loss", loss), choice("negatives", negatives))
        train(heads, pairs, self.features, condition, seed + 100 * condition.warm, self.steps)
        return score(heads, self.held_out)

    def started(self, seed: int) -> dict[str, Tensor]:
        """Heads after in-batch InfoNCE."""
        if seed not in self.warm:
            torch.manual_seed(seed)
            heads = Heads(self.features)
            pairs = objective(choice("loss", "info_nce"), choice("negatives", "in_batch"))
            train(heads, pairs, self.features, Condition("start"), seed, self.steps)
            self.warm[seed] = heads.state_dict()
        return self.warm[seed]


def table(results: dict[tuple[str, str], dict[str, list[float]]]) -> str:
    """A row per combination; bold is what is within a deviation of the column's best."""
    names = [condition.name for condition in CONDITIONS]
    heads = [f"batch {name}" if name.isdigit() else name for name in names]
    lines = [
        "| loss | negatives | " + " | ".join(heads) + " |",
        "|---|---|" + "---|" * len(heads),
    ]
    cells = [values for row in results.values() for values in row.values()]
    deviation = statistics.median(statistics.stdev(v) if len(v) > 1 else 0.0 for v in cells)
    best = {name: max(statistics.fmean(row[name]) for row in results.values()) for name in names}
    for (loss, negatives), row in results.items():
        means = {name: statistics.fmean(row[name]) for name in names}
        shown = (
            f"**{100 * mean:.1f}**" if mean >= best[name] - deviation else f"{100 * mean:.1f}"
            for name, mean in means.items()
        )
        lines.append(f"| `{loss}` | `{negatives}` | " + " | ".join(shown) + " |")
    lines.append(f"\nMedian deviation between seeds: {100 * deviation:.1f}.")
    return "\n".join(lines)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--output", type=Path, default=Path("outputs/benchmark/strategies.jsonl"))
    parser.add_argument("--features", type=Path, default=Path("outputs/benchmark/features.pt"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    features, held_out = divide(load(arguments.features))
    bench = Bench(features, held_out, arguments.steps)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    settings = {"steps": arguments.steps, "seeds": arguments.seeds}
    done = {(run["loss"], run["negatives"]): run for run in read(arguments.output, settings)}
    for loss, negatives in GRID:
        if (loss, negatives) in done:
            continue
        start = time.process_time()
        scores = {
            condition.name: [bench.run(loss, negatives, condition, s) for s in arguments.seeds]
            for condition in CONDITIONS
        }
        run = {"loss": loss, "negatives": negatives, **settings, "scores": scores}
        run["seconds"] = time.process_time() - start
        with arguments.output.open("a") as file:
            file.write(json.dumps(run) + "\n")
        print(run, flush=True)
        done[loss, negatives] = run
    runs = [done[key] for key in GRID]
    print(table({(run["loss"], run["negatives"]): run["scores"] for run in runs}))
    gallery, seconds = len(held_out.texts), sum(run["seconds"] for run in runs)
    print(f"R@1 in percent, among {gallery}; chance is {100 / gallery:.2f}.")
    print(f"{seconds:.0f} s of processor time, without the features.")


def read(path: Path, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """The finished combinations with these settings."""
    runs = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [run for run in runs if settings.items() <= run.items()]


def load(path: Path) -> dict[str, dict[str, Tensor]]:
    """Split -> style or ``text`` -> features ``[N, F]``; computed once, and kept at ``path``."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save({split: extract(split) for split in ("train", "val")}, path)
    content: dict[str, dict[str, Tensor]] = torch.load(path, weights_only=True)
    return content


@torch.no_grad()
def extract(split: str) -> dict[str, Tensor]:
    """The encoders' features of one split, by the towers of the catalogue."""
    from multimodal.inference.pretrained.towers import fill_towers

    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        cfg = compose("train", ["+experiment=clip_scratch", *TOWERS])
    model = build_model(cfg)
    fill_towers(model, cfg)
    model.eval()
    transforms = build(cfg, "data", "transforms", convert="all")
    data = EvaluationData(transforms, 32, LoaderSettings(num_workers=0))
    found: dict[str, Tensor] = {}
    for style in STYLES:
        modalities = {
            "image": {"member": f"{style}.webp"},
            "text": {"member": "json", "template": "{name}, {tags}, {subgroup}, {group}"},
        }
        source = Source("samples://emoji.json", modalities, split=split, positive_key="concept")
        wanted = {"image": style} if "text" in found else {"image": style, "text": "text"}
        parts: dict[str, list[Tensor]] = {}
        for batch in EvaluationLoader(source, data, list(wanted)):
            for modality, name in wanted.items():
                encoder = model.tower(modality).encoder
                encoded = encoder(batch.inputs[modality], batch.masks.get(modality))
                parts.setdefault(name, []).append(encoded.features)
        found |= {name: torch.cat(rows) for name, rows in parts.items()}
    return found


if __name__ == "__main__":
    main()
