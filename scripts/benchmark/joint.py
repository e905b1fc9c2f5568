"""A picture with a caption together, against each alone and their sums: retrieval of depth.

    python scripts/benchmark/joint.py

Heads on the frozen features of the sample corpus's furniture: of each icon, its words and its depth
map. Of every seed one model is trained with the pairs image-depth and text-depth, and one with the
pair of both together and depth beside them, of equal steps. Asked on kinds of furniture (head
nouns) that no training saw: the depth map of a picture, of its words, of their mean and their
weighted sum (the weight that is best on the validation split), all by the first model; and by the
joint embedding, and the weighted sum, of the second. The fusion and its dropout are those with the
best joint score on the validation split.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
from functools import partial
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir
from torch import Tensor
from torch.nn import functional

from multimodal.config import build, config_dir
from multimodal.data.loading.collate import Sample, load
from multimodal.data.sample_rng import SampleRNG
from multimodal.data.source import Source
from multimodal.evaluation.metrics.retrieval import Retrieval, retrieval
from multimodal.evaluation.run import evaluation_data
from multimodal.inference.checkpoint.load import build_model
from multimodal.inference.combine import combine
from multimodal.inference.pretrained.towers import fill_towers
from multimodal.models import ConcatFusion, FeatureEncoder, FusedJoint, GatedFusion, MLPHead
from multimodal.models.towers import EmbeddingModel, Tower
from multimodal.objectives import AllRanks, InBatch, InfoNCE, make_objective

MODALITIES = ("image", "text", "depth")
EXPERIMENT = ("+experiment=imagebind", "~model.towers.audio", "~model.towers.imu")
VIEWS, WIDTH, BATCH, RATE = 4, 256, 232, 2e-3
SPLITS = ("train", "val", "test", "test_loose")
WEIGHTS = [w / 20 for w in range(21)]
FUSIONS = {"sum": None, "gated": GatedFusion, "mlp": ConcatFusion}
STEPS = 120
CHOICES = list(itertools.product(FUSIONS, (0.0, 0.3), (STEPS,)))
Features = dict[str, Tensor]


@torch.no_grad()
def features(words: list[str]) -> dict[str, Features]:
    """Split -> modality -> ``[V, N, W]`` of frozen encoders, V views of each; and the ``keys``."""
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        cfg = compose("train", [*EXPERIMENT, *words])
    model = build_model(cfg).eval()
    fill_towers(model, cfg)
    evaluated = evaluation_data(cfg).transforms
    transforms = build(cfg, "data", "transforms", convert="all")
    made = {}
    for split in SPLITS:
        block = cfg.evaluation.sets.furniture.source.copy()
        source = Source(block.manifest, block.modalities, split=split, positive_key="concept")
        views = range(VIEWS if split == "train" else 1)
        found: Features = {}
        for name in MODALITIES:
            rows = []
            for view in views:
                samples = [
                    load(
                        source,
                        transforms if split == "train" else evaluated,
                        index,
                        SampleRNG.of_view(0, "furniture", index, view)
                        if split == "train"
                        else None,
                        [name],
                    )
                    for index in range(len(source))
                ]
                inputs = [s.inputs[name] for s in samples if isinstance(s, Sample)]
                blocks = [inputs[i : i + 32] for i in range(0, len(inputs), 32)]
                collate = evaluated[name].collate
                rows.append(torch.cat([model.frozen_part(name, *collate(b)) for b in blocks]))
            found[name] = torch.stack(rows)
        keys = [s.decoded.positive_key for s in samples if isinstance(s, Sample)]
        made[split] = {**found, "keys": torch.tensor(keys)}
    return made


def standardized(content: dict[str, Features]) -> dict[str, Features]:
    """Every feature by the mean and deviation that it has in training."""
    for name in MODALITIES:
        rows = content["train"][name].flatten(0, 1)
        mean, deviation = rows.mean(0), rows.std(0).clamp_min(1e-6)
        for split in content.values():
            split[name] = (split[name] - mean) / deviation
    return content


def make_model(content: Features, fusion: str, dropout: float) -> EmbeddingModel:
    """Heads on features, and their joint embedding."""
    head = partial(MLPHead, embed_dim=WIDTH, hidden=512, dropout=0.4, hidden_dropout=0.3)
    towers = {n: Tower(FeatureEncoder(content[n].shape[-1]), head) for n in MODALITIES}
    kind = FUSIONS[fusion]
    joint = partial(
        FusedJoint, modalities=["image", "text"], modality_dropout=dropout,
        fusion=None if kind is None else partial(kind, width=WIDTH),
    )  # fmt: skip
    return EmbeddingModel(towers, joint={"both": joint})


def trained(
    content: Features, fusion: str, dropout: float, steps: int, seed: int, joint: bool = True
) -> EmbeddingModel:
    """A model of one seed; unless ``joint``, without the pair of both together."""
    torch.manual_seed(seed)
    model = make_model(content, fusion, dropout)
    scale = {"logit_scale": {"init": 14.2857}}
    pairs = {
        "image_depth": {"anchor": "image", "other": "depth", **scale},
        "text_depth": {"anchor": "text", "other": "depth", **scale},
        "both_depth": {"anchor": ["image", "text"], "other": "depth", **scale} if joint else None,
    }
    objective = make_objective(pairs, InfoNCE(), InBatch(), AllRanks())
    params = [*model.parameters(), *objective.parameters()]
    optimizer = torch.optim.AdamW(params, RATE, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps)
    generator = torch.Generator().manual_seed(seed)
    total, views = content["image"].shape[1], content["image"].shape[0]
    for step in range(steps):
        rows = torch.randperm(total, generator=generator)[:BATCH]
        view = torch.randint(views, (len(rows),), generator=generator)
        made = {n: model.embed(n, content[n][view, rows]) for n in MODALITIES}
        presence: dict[str, Tensor] = {}
        if dropout:
            leaves = torch.rand(len(rows), generator=generator)
            presence = {"image": leaves >= dropout / 2, "text": leaves < 1 - dropout / 2}
        if joint:
            both = model.joint.of("image&text").from_embeddings(made, presence)
            made["image&text"] = functional.normalize(both, dim=-1)
        keys = content["keys"][rows]
        loss = objective(made, rows, keys, step, seed, "furniture").loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval()


@torch.no_grad()
def asked(model: EmbeddingModel, content: Features) -> dict[str, Retrieval]:
    """Retrieval of depth by each, by every weighted sum, and by the joint embedding."""
    made = {n: model.embed(n, content[n][0]) for n in MODALITIES}
    joint = model.joint.of("image&text").from_embeddings(made, {})
    queries = {f"{w:.2f}": combine([(made["image"], 1 - w), (made["text"], w)]) for w in WEIGHTS}
    queries["joint"] = functional.normalize(joint, dim=-1)
    keys = content["keys"]
    return {name: retrieval(rows, made["depth"], keys, keys) for name, rows in queries.items()}


def best_weight(model: EmbeddingModel, content: Features) -> str:
    """The weight of the texts whose sum retrieves best."""
    found = asked(model, content)
    names = [f"{w:.2f}" for w in WEIGHTS]
    return max(names, key=lambda name: found[name].mean_average_precision)


def chosen(content: dict[str, Features]) -> tuple[str, float, int]:
    """The fusion and dropout with the best joint score on the validation split."""
    scores = {}
    for choice in CHOICES:
        models = [trained(content["train"], *choice, seed=100 + s) for s in range(3)]
        found = [asked(m, content["val"])["joint"].mean_average_precision for m in models]
        scores[choice] = statistics.mean(found)
        print(*choice, f"validation mAP {scores[choice]:.3f}", flush=True)
    return max(scores, key=lambda choice: scores[choice])


def main() -> None:
    """Chooses on the validation split, then asks the held-out ones; prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--output", type=Path, default=Path("outputs/benchmark"))
    parser.add_argument("--choice", help="FUSION,DROPOUT of an earlier run: not chosen anew")
    parser.add_argument(
        "--kept", type=Path, help="features of an earlier run, or where to keep them"
    )
    parser.add_argument("overrides", nargs="*", help="as for scripts/train.py")
    args = parser.parse_args()
    torch.set_num_threads(1)
    start = time.process_time()
    if args.kept is not None and args.kept.exists():
        content = torch.load(args.kept, weights_only=True)
    else:
        content = features(args.overrides)
        if args.kept is not None:
            torch.save(content, args.kept)
    content = standardized(content)
    print(f"features: {time.process_time() - start:.0f} s of processor time", flush=True)

    if args.choice:
        fusion, dropout = args.choice.split(",")
        best = (fusion, float(dropout), STEPS)
    else:
        best = chosen(content)
    print("chosen:", *best, f"({time.process_time() - start:.0f} s)", flush=True)

    rows: dict[str, list[dict[str, float]]] = {split: [] for split in ("test", "test_loose")}
    for seed in range(args.seeds):
        plain, both = (trained(content["train"], *best, seed=seed, joint=j) for j in (False, True))
        weight, own = best_weight(plain, content["val"]), best_weight(both, content["val"])
        for split, kept in rows.items():
            alone, together = asked(plain, content[split]), asked(both, content[split])
            named = {
                "image": alone["0.00"], "text": alone["1.00"], "mean": alone["0.50"],
                "sum": alone[weight], "own sum": together[own], "joint": together["joint"],
            }  # fmt: skip
            row = {"weight": float(weight)}
            for name, scores in named.items():
                row[f"{name} r@1"] = scores.recall[1]
                row[f"{name} map"] = scores.mean_average_precision
            kept.append(row)
    for split, kept in rows.items():
        print(split)
        for metric in ("r@1", "map"):
            for name in ("image", "text", "mean", "sum", "own sum", "joint"):
                values = [row[f"{name} {metric}"] for row in kept]
                gains = [row[f"joint {metric}"] - row[f"{name} {metric}"] for row in kept]
                error = statistics.stdev(gains) / len(gains) ** 0.5
                print(
                    f"  {name:7} {metric} {statistics.mean(values):.3f} "
                    f"± {statistics.stdev(values):.3f}; joint is above by "
                    f"{statistics.mean(gains):+.3f} ± {statistics.stdev(gains):.3f} "
                    f"(of the mean {error:.3f})"
                )
    print(f"{time.process_time() - start:.0f} s of processor time")
    args.output.mkdir(parents=True, exist_ok=True)
    result = {"chosen": best, "rows": rows}
    (args.output / "joint.json").write_text(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
