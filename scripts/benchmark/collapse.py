# python scripts/benchmark/collapse.py
"""What hard negatives do to towers that have learned nothing: measured, step by step.

A small convolutional network and a bag of words, both random, are trained on the emoji of one style
and their names, by one combination after another. Of every combination the table says:

    nearer      by how much the negatives are nearer than the positives, in cosine, at the start:
                the means over both, weighted by the loss's gradient to each similarity
    direction   cosine between its first steps (the negative gradient of all weights, mean of eight
                batches) and the direction in which the embeddings' spread grows: below 0 the step
                draws everything together
    spread      of the pictures' embeddings, 1 - |their mean|^2: 0 where all are one point; at
                the start, after an eighth of the steps, and at the end
    beyond      share of the negatives that are more similar than the positive, at the end
    gradient    norm of the gradient of all weights, at the end as a multiple of the start's
    R@1         of the pictures that were trained on, among all names: has it learned anything?
"""

from __future__ import annotations

import argparse
import re
import statistics
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from multimodal.config import config_dir
from multimodal.data.source import Source
from multimodal.evaluation.metrics.retrieval import retrieval
from multimodal.models.encoders.convolutional import ConvolutionalEncoder
from multimodal.objectives.candidates import AllRanks
from multimodal.objectives.interfaces import Context
from multimodal.objectives.objective import ContrastiveObjective, make_objective
from multimodal.objectives.pair import Pair

SIDE, WORDS, WIDTH, BATCH = 32, 4096, 128, 128
RATE, SLOW = 2e-3, 5e-4
GRID = [
    ("triplet", "in_batch", {}, RATE),
    ("triplet", "random", {"k": 16}, RATE),
    ("triplet", "semi_hard", {}, RATE),
    ("triplet", "distance_weighted", {}, RATE),
    ("triplet", "hard", {}, RATE),
    ("triplet", "hard", {"k": 64}, RATE),
    ("triplet", "hard", {}, SLOW),
    ("triplet", "hard", {"warmup_steps": 80}, RATE),
    ("info_nce", "in_batch", {}, RATE),
    ("info_nce", "hard", {}, RATE),
    ("info_nce", "hard", {}, SLOW),
    ("info_nce", "hard", {"warmup_steps": 80}, RATE),
]  # loss, negatives and their settings, learning rate


@dataclass
class Emoji:
    """All concepts of the training split: pictures ``[N, 3, 32, 32]``, and the names' words."""

    images: Tensor
    words: list[Tensor]

    @classmethod
    def load(cls, style: str = "noto") -> Emoji:
        """Decodes them."""
        source = Source(
            "samples://emoji.json",
            {
                "image": {"member": f"{style}.webp"},
                "text": {"member": "json", "template": "{name}, {tags}"},
            },
            split="train",
            positive_key="concept",
        )
        images, words = [], []
        for index in range(len(source)):
            values = source.decode(index, None).values
            small = Image.fromarray(np.asarray(values["image"])).resize((SIDE, SIDE))
            images.append(torch.from_numpy(np.array(small.convert("RGB"))))
            hashed = [zlib.crc32(w.encode()) % WORDS for w in re.findall(r"\w+", values["text"])]
            words.append(torch.tensor(hashed))
        return cls(torch.stack(images).permute(0, 3, 1, 2) / 127.5 - 1, words)


class Towers(nn.Module):
    """Two random towers into one space."""

    def __init__(self) -> None:
        super().__init__()
        self.image = ConvolutionalEncoder(SIDE, 3, channels=[16, 32, 64], blocks=[1, 1, 1])
        self.head = nn.Linear(self.image.width, WIDTH)
        self.text = nn.EmbeddingBag(WORDS, WIDTH)
        self.mlp = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 256), nn.GELU())
        self.out = nn.Linear(256, WIDTH)

    def forward(self, data: Emoji, rows: Tensor) -> dict[str, Tensor]:
        """Embeddings ``[B, WIDTH]`` of norm 1."""
        words = [data.words[row] for row in rows.tolist()]
        starts = torch.tensor([0, *(len(each) for each in words[:-1])]).cumsum(0)
        text = self.out(self.mlp(self.text(torch.cat(words), starts)))
        image = self.head(self.image(data.images[rows]).features)
        return {"image": F.normalize(image, dim=1), "text": F.normalize(text, dim=1)}


def objective(
    loss: str, negatives: str, settings: dict[str, int] | None = None
) -> ContrastiveObjective:
    """One pair, with the settings of the YAML files."""
    made = {}
    for group, name in (("loss", loss), ("negatives", negatives)):
        node = OmegaConf.load(config_dir() / group / f"{name}.yaml")
        if group == "negatives":
            node.update(settings or {})
        made[group] = instantiate(node)
    pair = {"image_text": {"anchor": "image", "other": "text"}}
    return make_objective(pair, made["loss"], made["negatives"], AllRanks(), WIDTH)


def spread(x: Tensor) -> Tensor:
    """1 - |mean|^2 of unit vectors."""
    return 1 - x.mean(dim=0).square().sum()


def batches(data: Emoji, seed: int) -> Iterator[Tensor]:
    """Rows, for ever."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield torch.randperm(len(data.words), generator=generator)[:BATCH]


def direction(towers: Towers, pairs: ContrastiveObjective, data: Emoji) -> float:
    """Cosine between the first steps and the growth of both modalities' spread."""
    weights = list(towers.parameters())
    step, growth = torch.zeros(()), torch.zeros(())
    for rows, _ in zip(batches(data, 99), range(8), strict=False):
        embedded = towers(data, rows)
        # Past the warm-up: the strategy as it is.
        loss = pairs(embedded, rows, rows, step=10**6, seed=0, source="emoji").loss
        wide = spread(embedded["image"]) + spread(embedded["text"])
        step = step - flat(torch.autograd.grad(loss, weights, retain_graph=True))
        growth = growth + flat(torch.autograd.grad(wide, weights))
    return F.cosine_similarity(step, growth, dim=0).item()


def nearer(towers: Towers, pairs: ContrastiveObjective, data: Emoji) -> float:
    """Weighted mean cosine of the negatives minus that of the positives."""
    pair = cast("Pair", pairs.pairs["image_text"])
    rows = next(batches(data, 99))
    with torch.no_grad():
        embedded, scale = towers(data, rows), pair.scale()
    positives = torch.eye(len(rows), dtype=torch.bool)
    sums = torch.zeros(2, 2)  # of weights, of weighted cosines; negatives, positives
    for query, gallery in (("image", "text"), ("text", "image")):
        cosines = (embedded[query] @ embedded[gallery].T).requires_grad_()
        context = Context(0, 10**6, "image_text", f"{query}->{gallery}", scale, WIDTH)
        weights = pair.negatives(cosines, positives, ~positives, rows, rows, context)
        weights = weights.masked_fill(positives, 0)
        values = pair.loss(cosines, scale, torch.zeros(()), positives, weights)
        (pull,) = torch.autograd.grad(values.sum(), cosines)
        for place, group in enumerate((~positives, positives)):
            sums[place, 0] += pull[group].abs().sum()
            sums[place, 1] += (pull[group].abs() * cosines.detach()[group]).sum()
    means = sums[:, 1] / sums[:, 0]
    return float(means[0] - means[1])


def flat(gradients: tuple[Tensor, ...]) -> Tensor:
    """All of them as one vector."""
    return torch.cat([gradient.flatten() for gradient in gradients])


def measure(
    data: Emoji, loss: str, negatives: str, settings: dict[str, int], rate: float, steps: int
) -> list[str]:
    """The cells of one row."""
    torch.manual_seed(0)
    towers = Towers()
    pairs = objective(loss, negatives, settings)
    near, first = nearer(towers, pairs, data), direction(towers, pairs, data)
    weights = list(towers.parameters())
    optimizer = torch.optim.AdamW([*weights, *pairs.parameters()], rate, betas=(0.9, 0.98))
    spreads, norms, beyond = [], [], 0.0
    for step, rows in zip(range(steps), batches(data, 0), strict=False):
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1, (step + 1) / 20)
        embedded = towers(data, rows)
        value = pairs(embedded, rows, rows, step=step, seed=0, source="emoji").loss
        optimizer.zero_grad()
        value.backward()
        norms.append(flat(tuple(weight.grad for weight in weights)).norm().item())
        spreads.append(spread(embedded["image"]).item())
        similarities = embedded["image"].detach() @ embedded["text"].detach().T
        ahead = similarities > similarities.diagonal()[:, None]
        beyond = ahead.float().mean().item() * BATCH / (BATCH - 1)
        optimizer.step()
    with torch.no_grad():
        every = torch.arange(len(data.words))
        final = towers(data, every)
        recall = retrieval(final["image"], final["text"], every, every).recall[1]
    change = statistics.fmean(norms[-8:]) / statistics.fmean(norms[:8])
    return [
        f"`{loss}`", f"`{negatives}`", " ".join(f"{k}={v}" for k, v in settings.items()),
        f"{rate:g}", f"{near:+.2f}", f"{first:+.2f}",
        f"{spreads[0]:.2f}", f"{spreads[steps // 8]:.3f}", f"{spreads[-1]:.3f}", f"{beyond:.2f}",
        f"{change:.2f}", f"{100 * recall:.1f}",
    ]  # fmt: skip


def main() -> None:
    """Prints a row as soon as it is measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=160)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    data = Emoji.load()
    chance = 100 / len(data.words)
    print(
        "| loss | negatives | | rate | nearer | direction | spread: start | "
        f"step {arguments.steps // 8} | step {arguments.steps} | beyond | gradient | R@1 |\n"
        "|---|---|---|---|---|---|---|---|---|---|---|---|"
    )
    for loss, negatives, settings, rate in GRID:
        cells = measure(data, loss, negatives, settings, rate, arguments.steps)
        print("| " + " | ".join(cells) + " |", flush=True)
    print(f"\nR@1 in percent, among {len(data.words)}; chance is {chance:.2f}.")


if __name__ == "__main__":
    main()
