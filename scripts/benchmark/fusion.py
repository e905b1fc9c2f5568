"""Ways of fusion, side by side: python scripts/benchmark/fusion.py [--seeds 3] [--output FOLDER].

Trains each modality alone, mean, concat, cross-attention and bottleneck on the digits and, in five
folds of two people, on the smart watch: the same encoders, epochs and optimizer for all, with and
without modality dropout. Every run is a line of FOLDER/fusion.jsonl, and what is there is not
trained again: if interrupted, it resumes. Then FOLDER/fusion.md holds the table and
FOLDER/fusion.svg the picture of accuracy against the share of test samples that miss a modality.
``--validation`` scores on the digits' validation split and on two of the training people, whom it
leaves out of training: what is chosen is chosen there. One core, about fifty minutes.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fusion_results import DROPOUT, METHODS, SHARES, picture, tables
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from torch import Tensor

from multimodal.config import build, config_dir
from multimodal.core.batch import Batch
from multimodal.core.hashing import generator, stable_hash
from multimodal.core.tensor_hashing import pair_hash
from multimodal.data.loading.collate import Sample, load
from multimodal.data.sample_rng import SampleRNG
from multimodal.data.source import Source
from multimodal.training.build import build_module
from multimodal.training.modules.fusion import FusionModule

EPOCHS = {"digits": 40, "watch": 12}
RATE = 2e-3  # the peak of a one-cycle schedule
BATCH = 64
DRAWS = 5  # augmented versions of a training sample, made once
FOLDS = tuple((2 * fold + 1, 2 * fold + 2) for fold in range(5))  # held-out people
SETS = {"digits": ("fusion", "digit"), "watch": ("fusion_watch", "exercise")}


@dataclass(frozen=True)
class Run:
    """One training: ``method`` is a fusion, or the one modality that there is."""

    set: str
    fold: int
    method: str
    dropout: float
    seed: int
    epochs: int
    rate: float
    validation: bool


def config(name: str, *words: str) -> DictConfig:
    """The experiment of a set."""
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        return compose("train", [f"+experiment={SETS[name][0]}", *words])


def source(cfg: DictConfig, split: Any) -> Source:
    """The experiment's source with another split."""
    name = next(iter(cfg.data.sources))
    cfg = cfg.copy()
    cfg.data.sources[name].split = split
    built = build(cfg, "data", "sources", name, convert="all")
    assert isinstance(built, Source)
    return built


def tensors(cfg: DictConfig, split: Any, draws: int) -> list[dict[str, Tensor]]:
    """All samples of a split, ``draws`` times augmented, or once unchanged (0)."""
    transforms = build(cfg, "data", "transforms", convert="all")
    samples = source(cfg, split)
    versions = []
    for repeat in range(max(draws, 1)):
        loaded = []
        for index in range(len(samples)):
            rng = SampleRNG(0, 0, samples.name, index, repeat) if draws else None
            sample = load(samples, transforms, index, rng)
            assert isinstance(sample, Sample)
            loaded.append(sample.inputs)
        versions.append(
            {name: transforms[name].collate([s[name] for s in loaded])[0] for name in loaded[0]}
        )
    return versions


def batch_of(inputs: dict[str, Tensor], rows: Tensor, step: int = 0) -> Batch:
    """Some samples as a batch."""
    return Batch(
        inputs={name: value[rows] for name, value in inputs.items()},
        masks={},
        sample_ids=rows,
        positive_keys=rows,
        repeats=torch.zeros_like(rows),
        source="benchmark",
        step=step,
    )


def train(run: Run, cfg: DictConfig, versions: list[dict[str, Tensor]]) -> FusionModule:
    """The module, trained: ``epochs`` over the samples, each time in one of their versions."""
    seed = run.seed
    torch.manual_seed(seed)
    module = build_module(cfg)
    assert isinstance(module, FusionModule)
    count = len(versions[0]["label"])
    steps = run.epochs * (count // BATCH)
    optimizer = module.configure_optimizers()["optimizer"]
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, run.rate, steps, pct_start=0.1)
    stacked = {name: torch.stack([v[name] for v in versions]) for name in versions[0]}
    module.train()
    for step in range(steps):
        epoch, place = divmod(step, count // BATCH)
        order = generator("order", seed, epoch).permutation(count)
        rows = torch.from_numpy(order[place * BATCH : (place + 1) * BATCH])
        version = generator("version", seed, step).integers(len(versions), size=BATCH)
        inputs = {name: value[torch.from_numpy(version), rows] for name, value in stacked.items()}
        batch = batch_of(inputs, torch.arange(BATCH), step)
        batch.sample_ids = rows
        fused = module.fuse(batch, module.model.modality_dropout)
        loss, _ = module._task_losses(fused, batch.source)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return module.eval()


@torch.no_grad()
def scores(module: FusionModule, inputs: dict[str, Tensor], seed: int) -> dict[str, float]:
    """Accuracy with all modalities, with less, and of each modality's own head."""
    count = len(inputs["label"])
    rows = torch.arange(count)
    names = list(module.model.fused)
    task = next(iter(module.tasks.values()))

    def accuracy(presence: dict[str, Tensor]) -> float:
        batch = batch_of(inputs, rows)
        batch.presence = presence
        return task.score(task.observe(module.fuse(batch))).values["accuracy"]

    accuracies = {"all": accuracy({})}
    observed = task.observe(module.fuse(batch_of(inputs, rows)))
    accuracies |= {f"own/{n}": s.values["accuracy"] for n, s in task.own_scores(observed).items()}  # type: ignore[operator]
    if len(names) > 1:
        # A sample that misses a modality misses one, drawn by a hash; the shares are nested.
        draws = pair_hash(rows, torch.arange(2), stable_hash("missing", seed)).double() / 2**63
        which = (draws[:, 1] * len(names)).long()
        for share in SHARES[1:]:
            gone = draws[:, 0] < share / 100
            accuracies[f"missing/{share}"] = accuracy(
                {name: ~(gone & (which == index)) for index, name in enumerate(names)}
            )
        for name in names:
            nobody = torch.zeros(count, dtype=torch.bool)
            accuracies[f"only/{name}"] = accuracy({n: nobody for n in names if n != name})
    return accuracies


def forest(train: dict[str, Tensor], test: dict[str, Tensor], seed: int) -> float:
    """A random forest on statistics of every channel and the side."""
    from sklearn.ensemble import RandomForestClassifier

    def statistics_of(inputs: dict[str, Tensor]) -> np.ndarray:
        x = torch.cat([inputs["acceleration"], inputs["rotation"]], dim=1).double()
        moved = x - x.mean(dim=2, keepdim=True)
        quantiles = torch.quantile(x, torch.tensor([0.1, 0.25, 0.5, 0.75, 0.9]).double(), dim=2)
        spectrum = torch.fft.rfft(moved, dim=2).abs()[:, :, 1:11].flatten(1)
        correlation = torch.stack([torch.corrcoef(each) for each in x]).flatten(1)
        columns = [
            x.mean(2), x.std(2), x.amin(2), x.amax(2), *quantiles, spectrum, correlation,
            inputs["side"][:, None].double(),
        ]  # fmt: skip
        return torch.nan_to_num(torch.cat(columns, dim=1)).numpy()

    model = RandomForestClassifier(300, random_state=seed, n_jobs=1)
    model.fit(statistics_of(train), train["label"].numpy())
    return float(model.score(statistics_of(test), test["label"].numpy()))


def runs(
    sets: Sequence[str], seeds: int, epochs: int | None, rate: float, validation: bool
) -> Iterator[Run]:
    """Everything that is trained; what has no modality dropout comes last."""
    alone = {"digits": ("image", "audio"), "watch": ("acceleration", "rotation", "side")}
    for seed in range(seeds):
        for dropout in (DROPOUT, 0.0):
            for name in sets:
                rest = (seed, epochs or EPOCHS[name], rate, validation)
                for fold in range(len(FOLDS) if name == "watch" else 1):
                    if dropout:
                        yield from (Run(name, fold, m, 0.0, *rest) for m in alone[name])
                        if name == "watch":
                            yield Run(name, fold, "forest", 0.0, *rest)
                    yield from (Run(name, fold, m, dropout, *rest) for m in METHODS)


def one(run: Run, data: tuple[list[dict[str, Tensor]], dict[str, Tensor]]) -> dict[str, float]:
    """The scores of one run."""
    if run.method == "forest":
        return {"all": forest(data[0][0], data[1], run.seed)}
    single = run.method not in METHODS
    words = [f"fusion={'concat' if single else run.method}", f"seed={run.seed}"]
    if run.set == "watch":  # many trainings: a pair of heads of 16 in the place of four of 8
        sensors = [n for n in ("acceleration", "rotation") if not single or n == run.method]
        words += [f"model.towers.{name}.encoder.trunk.num_heads=2" for name in sensors]
        words += ["fusion.num_heads=2"] if run.method in ("cross_attention", "bottleneck") else []
    words += [f"model.modality_dropout={run.dropout}", "scheduler=constant", "optimizer.fused=true"]
    if single:
        others = [name for name in config(run.set).model.towers if name != run.method]
        words += [f"~model.towers.{name}" for name in others]
    cfg = config(run.set, *words)
    return scores(train(run, cfg, data[0]), data[1], run.seed)


def load_data(
    name: str, fold: int, validation: bool
) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
    """Tensors to train on, and to score on."""
    cfg = config(name)
    if name == "digits":
        return tensors(cfg, "train", DRAWS), tensors(cfg, "val" if validation else "test", 0)[0]
    test, held = FOLDS[fold], FOLDS[(fold + 1) % len(FOLDS) if validation else fold]
    people = [person for person in range(1, 11) if person not in (*test, *held)]
    train, scored = ([f"subject_{person}" for person in some] for some in (people, held))
    return tensors(cfg, train, DRAWS), tensors(cfg, scored, 0)[0]


def measure(path: Path, wanted: Sequence[Run]) -> list[dict[str, Any]]:
    """The lines of the wanted runs: read where they are in the file, else trained and appended."""
    lines = [json.loads(text) for text in path.read_text().splitlines()] if path.exists() else []
    known = {Run(**line["run"]): line for line in lines}
    cache: dict[tuple[str, int], Any] = {}
    for run in wanted:
        if run in known:
            continue
        key = (run.set, run.fold)
        if key not in cache:
            cache[key] = load_data(*key, run.validation)
        start = time.process_time()
        line = {"run": vars(run), "scores": one(run, cache[key])}
        line["seconds"] = round(time.process_time() - start, 1)
        with path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        print(json.dumps(line), flush=True)
        known[run] = line
    return [known[run] for run in wanted]


def main() -> None:
    """Parse, measure, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3, help="runs of everything")
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS), help="data")
    parser.add_argument("--methods", nargs="+", help="those alone of the fusions and modalities")
    parser.add_argument("--folds", type=int, default=len(FOLDS), help="the first of the folds")
    parser.add_argument("--epochs", type=int, help="over the training samples, of both sets")
    parser.add_argument("--rate", type=float, default=RATE, help="peak learning rate")
    parser.add_argument("--validation", action="store_true", help="score on validation data")
    parser.add_argument("--output", type=Path, default=Path("outputs/fusion"), help="folder")
    given = parser.parse_args()
    torch.set_num_threads(1)
    given.output.mkdir(parents=True, exist_ok=True)
    every = runs(given.sets, given.seeds, given.epochs, given.rate, given.validation)
    wanted = [
        run
        for run in every
        if run.fold < given.folds and (not given.methods or run.method in given.methods)
    ]
    done = measure(given.output / "fusion.jsonl", wanted)
    (given.output / "fusion.md").write_text(tables(done))
    picture(done, given.output / "fusion.svg")
    print(tables(done))


if __name__ == "__main__":
    main()
