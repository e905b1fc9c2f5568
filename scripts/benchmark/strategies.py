# python scripts/benchmark/strategies.py
"""What every loss and every negatives strategy learns in a minute, on the emoji.

Each combination trains `+experiment=clip` on three drawing styles of the emoji, for the same number
of steps (about a minute of one core's time) and on the same batches. It is validated on the fourth:
a picture in a style that it has not seen has to find its name among those of all concepts, and a
name its picture. One line per finished run goes into a file, so that a command that was interrupted
resumes; the table is printed at the end.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import tempfile
import time
import warnings
from collections import defaultdict
from functools import cache
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from multimodal.config import check, config_dir, portable_yaml
from multimodal.data.datamodule import MultimodalDataModule
from multimodal.evaluation.metrics.retrieval import retrieval
from multimodal.training.build import build_data, build_module, build_trainer
from multimodal.training.modules.contrastive import ContrastiveModule

LOSSES = ("info_nce", "dcl", "sup_con", "soft_target", "siglip", "triplet", "hinge")
CHOOSE = ("random", "hard", "semi_hard", "distance_weighted", "filtered")
WEIGH = ("reweighted", "debiased")
STEPS, BATCH = 120, 128
STYLES, UNSEEN_STYLE = ("noto", "fluent", "fluent_hc"), "twemoji"
GRID = [
    *((loss, "in_batch") for loss in LOSSES),
    *(("info_nce", negatives) for negatives in (*CHOOSE, *WEIGH)),
    *(("triplet", negatives) for negatives in CHOOSE),  # a margin has nothing to weigh
]
# the sigmoid loss starts from the scale and bias of its paper
SIGLIP = ("pairs.image_text.logit_scale.init=10", "pairs.image_text.logit_bias=-10")


def main() -> None:
    """Runs what is not in the file yet, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--output", type=Path, default=Path("outputs/benchmark/strategies.jsonl"))
    arguments = parser.parse_args()
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    done = read(arguments.output)
    for seed in arguments.seeds:
        for loss, negatives in GRID:
            key = {"loss": loss, "negatives": negatives, "seed": seed, "steps": arguments.steps}
            if any(key.items() <= run.items() for run in done):
                continue
            done.append(key | measure(loss, negatives, seed, arguments.steps))
            with arguments.output.open("a") as file:
                file.write(json.dumps(done[-1]) + "\n")
            print(done[-1], flush=True)
    print(table([run for run in done if run["steps"] == arguments.steps]))


def read(path: Path) -> list[dict[str, Any]]:
    """The runs that are done."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def configuration(loss: str, negatives: str, seed: int, steps: int) -> DictConfig:
    """The experiment as the command line would compose it."""
    words = [
        "+experiment=clip",
        "tower@model.towers.text=text_small",
        f"loss={loss}",
        f"negatives={negatives}",
        f"seed={seed}",
        "~data.sources.furniture",
        f"data.sources.emoji.modalities.image.member=[{','.join(f'{x}.webp' for x in STYLES)}]",
        "data.val_sources.emoji.split=train",
        f"data.val_sources.emoji.modalities.image.member={UNSEEN_STYLE}.webp",
        f"data.batch_size={BATCH}",
        "data.num_workers=0",
        f"trainer.max_steps={steps}",
        "trainer.limit_val_batches=0",
        "~evaluation",
        "~logger",
        "callbacks.checkpoint=null",
        "callbacks.progress=null",
        *(SIGLIP if loss == "siglip" else ()),
    ]
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        cfg = compose("train", words)
    check(cfg)
    return cfg


@cache
def emoji(seed: int) -> MultimodalDataModule:
    """The data, the same in all runs of a seed: pictures are decoded once."""
    return build_data(configuration("info_nce", "in_batch", seed, 1))


def measure(loss: str, negatives: str, seed: int, steps: int) -> dict[str, float]:
    """Trains and validates: seconds of processor time, R@1 both ways and by chance."""
    cfg = configuration(loss, negatives, seed, steps)
    pl.seed_everything(seed, verbose=False)
    module, data = build_module(cfg), emoji(seed)
    with tempfile.TemporaryDirectory() as folder:
        trainer = build_trainer(cfg, Path(folder), portable_yaml(cfg))
        start = time.process_time()
        trainer.fit(module, datamodule=data)
        seconds = time.process_time() - start
    images, texts, keys = validation_embeddings(module, data)
    to_text, to_image = retrieval(images, texts, keys, keys), retrieval(texts, images, keys, keys)
    return {
        "seconds": seconds,
        "image_to_text": to_text.recall[1],
        "text_to_image": to_image.recall[1],
        "chance": (to_text.chance_recall[1] + to_image.chance_recall[1]) / 2,
        "gallery": to_text.gallery,
    }


@torch.no_grad()
def validation_embeddings(
    module: ContrastiveModule, data: MultimodalDataModule
) -> tuple[torch.Tensor, ...]:
    """Embeddings of pictures and of names, and their keys."""
    module.eval()
    batches: list[tuple[torch.Tensor, ...]] = []
    for batch in data.val_dataloader()[0]:
        embedded = module.embed(batch)
        batches.append((embedded["image"], embedded["text"], batch.positive_keys))
    return tuple(torch.cat(parts) for parts in zip(*batches, strict=True))


def table(runs: list[dict[str, Any]]) -> str:
    """A row per combination: R@1, the mean of both directions; of every seed, and their mean."""
    scores: dict[tuple[str, str], list[float]] = defaultdict(list)
    for run in sorted(runs, key=lambda run: run["seed"]):
        scores[chosen(run)].append((run["image_to_text"] + run["text_to_image"]) / 2)
    plain = scores.get(("info_nce", "in_batch"))
    chance, gallery = runs[0]["chance"], runs[0]["gallery"]
    lines = [
        "| loss | negatives | R@1, each seed | mean | x chance | x in-batch InfoNCE | seconds |",
        "|---|---|---|---|---|---|---|",
    ]
    for choice, values in scores.items():
        mean = statistics.mean(values)
        each = ", ".join(f"{100 * score:.2f}" for score in values)
        beside = f"{mean / statistics.mean(plain):.1f}" if any(plain) else ""
        seconds = statistics.mean(run["seconds"] for run in runs if chosen(run) == choice)
        lines.append(
            f"| `{choice[0]}` | `{choice[1]}` | {each} | {100 * mean:.2f} | {mean / chance:.1f} "
            f"| {beside} | {seconds:.0f} |"
        )
    lines.append(f"\nIn percent, among {gallery}; chance is {100 * chance:.2f}.")
    return "\n".join(lines)


def chosen(run: dict[str, Any]) -> tuple[str, str]:
    """Loss and negatives of a run."""
    return run["loss"], run["negatives"]


if __name__ == "__main__":
    main()
