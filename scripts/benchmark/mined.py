"""Near twins that in-batch negatives leave confused, and what mined negatives make of them.

    python scripts/benchmark/mined.py

Writes a planted set: every subject has two samples, twins, which differ in a faint detail alone. A
batch of 16 seldom holds both twins, so that in-batch negatives ask for the subject only. Trains on
it, mines hard negatives with that model, trains anew with them, and prints how often held-out
samples find their own partner, and how often the right one of the two twins is the nearer.
"""

from __future__ import annotations

import argparse
import io
import json
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from multimodal import load

WIDTH, FAINT, NOISE = 16, 0.1, 0.01
EXPERIMENT = """# @package _global_
defaults:
  - /data/transform@data.transforms.seen: features
  - /data/transform@data.transforms.told: features
  - /tower@model.towers.seen: features
  - /tower@model.towers.told: features
  - override /data: shards
  - _self_
name: twins
embed_dim: {width}
model:
  _target_: multimodal.models.EmbeddingModel
  towers:
    seen: {{encoder: {{in_features: {double}}}}}
    told: {{encoder: {{in_features: {double}}}}}
pairs:
  twins: {{anchor: seen, other: told, logit_scale: {{init: 10.0, learned: false}}}}
data:
  batch_size: 16
  num_workers: 0
  transforms: {{seen: {{shape: [{double}]}}, told: {{shape: [{double}]}}}}
  sources:
    twins:
      _target_: multimodal.data.Source
      manifest: {folder}/twins.json
      modalities:
        seen: {{member: seen.npy}}
        told: {{member: told.npy}}
optimizer: {{lr: 5.0e-3, weight_decay: 0.0}}
trainer: {{log_every_n_steps: 50}}
callbacks: {{progress: null, summary: null}}
"""


def main(words: Sequence[str] | None = None) -> dict[str, tuple[float, float]]:
    """Prints the table; returns R@1 and the share of right twins of both trainings."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--subjects", type=int, default=200)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--negatives", type=int, default=1)
    args = parser.parse_args(words)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        held_out = write_twins(folder, args.subjects)
        found = {"in-batch": scores(_train(folder, "plain", args.steps), held_out)}
        _multimodal(
            "mine", f"checkpoint={folder}/plain", f"input={folder}/twins.json",
            f"output={folder}/mined.npz", "anchor=seen", "other=told", "share=null",
            f"count={args.negatives}",
        )  # fmt: skip
        listed = f"{{table: {folder}/mined.npz, count: {args.negatives}}}"
        word = f"+data.sources.twins.modalities.told.negatives={listed}"
        for scope in ("batch", "anchor"):
            run = _train(folder, scope, args.steps, word, f"candidates.listed={scope}")
            found[f"mined, listed={scope}"] = scores(run, held_out)
    print("| negatives | R@1 | right twin |\n|---|---|---|")
    for negatives, (recall, twin) in found.items():
        print(f"| {negatives} | {100 * recall:.1f} | {100 * twin:.1f} |")
    return found


def write_twins(folder: Path, subjects: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Shards of ``subjects`` pairs of twins to train on; returns 200 further ones.

    Both views of a sample hold its subject and, faintly, its detail, each turned by a rotation.
    """
    random = np.random.default_rng(seed)
    turns = [np.linalg.qr(random.standard_normal((WIDTH, WIDTH)))[0] for _ in range(2)]

    def drawn(count: int) -> dict[str, np.ndarray]:
        subject = random.standard_normal((count, WIDTH)) / WIDTH**0.5
        detail = random.standard_normal((count, WIDTH)) / WIDTH**0.5
        both = [np.concatenate([subject, sign * FAINT * detail], axis=1) for sign in (1, -1)]
        seen = np.stack(both, axis=1).reshape(2 * count, 2 * WIDTH)
        told = np.concatenate([seen[:, :WIDTH] @ turns[0], seen[:, WIDTH:] @ turns[1]], axis=1)
        views = {"seen": seen, "told": told}
        noise = {name: NOISE * random.standard_normal(view.shape) for name, view in views.items()}
        return {name: (view + noise[name]).astype(np.float32) for name, view in views.items()}

    views = drawn(subjects)
    with tarfile.open(folder / "twins.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
        for number in range(2 * subjects):
            for name, view in views.items():
                buffer = io.BytesIO()
                np.save(buffer, view[number])
                info = tarfile.TarInfo(f"{number:05d}.{name}.npy")
                info.size = len(buffer.getvalue())
                tar.addfile(info, io.BytesIO(buffer.getvalue()))
    _multimodal("shards", "index", str(folder))
    (manifest,) = folder.glob("*.json")
    content = json.loads(manifest.read_text())
    manifest.rename(folder / "twins.json").write_text(json.dumps(content))
    experiments = folder / "configs" / "experiment"
    experiments.mkdir(parents=True)
    text = EXPERIMENT.format(width=WIDTH, double=2 * WIDTH, folder=folder)
    (experiments / "twins.yaml").write_text(text)
    return drawn(200)


def scores(run: Path, views: dict[str, np.ndarray]) -> tuple[float, float]:
    """R@1 from ``seen`` to ``told``, and how often one's own is nearer than the twin's."""
    model = load(run)
    seen, told = (model.values(name, list(views[name])).numpy() for name in ("seen", "told"))
    similar, rows = seen @ told.T, np.arange(len(seen))
    recall = (similar.argmax(axis=1) == rows).mean()
    return float(recall), float((similar[rows, rows] > similar[rows, rows ^ 1]).mean())


def _train(folder: Path, name: str, steps: int, *words: str) -> Path:
    _multimodal(
        "train", "--config-dir", f"{folder}/configs", "+experiment=twins",
        f"trainer.max_steps={steps}", f"hydra.run.dir={folder}/{name}", *words,
    )  # fmt: skip
    return folder / name


def _multimodal(*words: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "multimodal.cli", *words],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"multimodal {' '.join(words)}\n{done.stderr[-3000:]}")
    print(done.stdout.strip().splitlines()[-1] if done.stdout.strip() else "", file=sys.stderr)


if __name__ == "__main__":
    main()
