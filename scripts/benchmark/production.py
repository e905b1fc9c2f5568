# python scripts/benchmark/production.py CHECKPOINT
"""What a model costs and loses in each form in which it may be put to use: one tower's table.

Of one tower of a checkpoint: megabytes of its weights, milliseconds a sample at batch 1, samples a
second at batch 32, and held-out R@1 from it to another modality with its 95 % interval (bootstrap
over the samples); each form beside fp32 eager, in rounds that take turns, medians. The other
modality is always embedded by fp32 eager. A form that the model or this machine has not is left
out and named. A student (`+experiment=distill`) is asked the same by its own two towers. Token
merging is also timed in a ViT of random weights, whatever the tower is.
"""

from __future__ import annotations

import argparse
import copy
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from multimodal.config import build
from multimodal.core.bootstrap import mean_interval
from multimodal.data.loading.evaluation_loader import EvaluationLoader
from multimodal.evaluation.metrics.retrieval import retrieval
from multimodal.inference.checkpoint.load import load_checkpoint
from multimodal.inference.checkpoint.locate import checkpoint_at
from multimodal.inference.embedder import Embedder
from multimodal.inference.export.graphs import tower_graph
from multimodal.inference.export.onnx_file import run, session, write_onnx
from multimodal.inference.export.quantizing import quantize
from multimodal.inference.load import embedder_of
from multimodal.inference.search.index import Index
from multimodal.models.encoders.vision import VisionTransformer
from multimodal.models.heads import LinearHead
from multimodal.models.layers.stems import PatchStem
from multimodal.models.layers.transformer import Transformer
from multimodal.models.token_merging import merge_tokens
from multimodal.models.towers import EmbeddingModel, Tower

BATCH = 32
Form = Callable[[Tensor], Tensor]  # inputs [B, ...] to embeddings [B, D]


@dataclass(frozen=True)
class Question:
    """The held-out samples.

    Attributes:
        inputs: of the tower, a sample a row.
        gallery: embeddings of the other modality ``[N, D]``.
        keys: ``[N]``, equal for right answers.
    """

    inputs: Tensor
    gallery: Tensor
    keys: Tensor


def main() -> None:
    """Prints the table, in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", help="a run's folder, or a checkpoint")
    parser.add_argument("--tower", default="image")
    parser.add_argument("--other", default="text")
    parser.add_argument("--set", help="of the run's evaluation; the first that has both")
    parser.add_argument("--most", type=int, default=1000, help="samples of the set")
    parser.add_argument("--student", help="run that was distilled from it: one form more")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    embedder, cfg = opened(given.checkpoint)
    name, question = asked(embedder, cfg, given)
    with tempfile.TemporaryDirectory() as folder:
        forms, sizes, left_out = made(embedder, given.tower, Path(folder), given.threads)
        questions = dict.fromkeys(forms, question)
        if given.student:
            student, student_cfg = opened(given.student)
            forms["distilled"] = student.model.tower(given.tower).eval()
            sizes["distilled"] = megabytes(student.model.tower(given.tower))
            questions["distilled"] = asked(student, student_cfg, given)[1]
        times = timed(forms, {label: each.inputs for label, each in questions.items()},
                      given.rounds)  # fmt: skip
        rows = {label: embedded(form, questions[label].inputs) for label, form in forms.items()}
    print(f"{given.tower} to {given.other}, {len(question.keys)} samples of {name}; "
          f"{given.threads} thread(s), {given.rounds} rounds\n")  # fmt: skip
    print("| form | MB | ms a sample, batch 1 | samples/s, batch 32 | R@1, % (95 %) |")
    print("|---|---:|---:|---:|---|")
    for label, found in rows.items():
        one, many = times[label]
        cells = (f"{sizes[label]:.1f}", f"{1000 * one:.2f}", f"{32 / many:.0f}")
        print(f"| {label} | {' | '.join(cells)} | {recall(found, questions[label])} |")
    whole = rows["fp32 eager"]
    for part in (2, 4, 8):
        dim = whole.shape[1] // part
        cut = Question(question.inputs, question.gallery[:, :dim], question.keys)
        print(f"| first {dim} of {whole.shape[1]} numbers | | | | {recall(whole[:, :dim], cut)} |")
    for code in ("int8", "binary"):
        print(f"| {code} index, rescored | | | | {by_index(whole, question, code)} |")
    for label, reason in left_out.items():
        print(f"\nNot there: {label}: {reason}")
    vits = vit_forms()
    pictures = torch.rand(32, 3, 224, 224)
    print("\nA ViT of random weights, six layers of width 384, 197 tokens:\n")
    print("| form | ms a sample, batch 1 | samples/s, batch 32 |")
    print("|---|---:|---:|")
    for label, (one, many) in timed(vits, dict.fromkeys(vits, pictures), given.rounds).items():
        print(f"| {label} | {1000 * one:.2f} | {32 / many:.0f} |")


def opened(checkpoint: str) -> tuple[Embedder, Any]:
    """The model of a run, and its configuration."""
    loaded = load_checkpoint(checkpoint_at(checkpoint))
    embedder = embedder_of(loaded.model, loaded.cfg, "cpu", temperatures=loaded.temperatures)
    return embedder, loaded.cfg


def vit_forms() -> dict[str, Form]:
    """A ViT of random weights, as it is and with token merging."""
    torch.manual_seed(0)
    trunk = Transformer(width=384, num_layers=6, num_heads=6)
    encoder = VisionTransformer(224, 3, partial(PatchStem, patch_size=16), trunk)
    plain = EmbeddingModel({"image": Tower(encoder, partial(LinearHead, embed_dim=256))}).eval()
    forms: dict[str, Form] = {"fp32 eager": plain.tower("image")}
    for count in (8, 16):
        model = copy.deepcopy(plain)
        merge_tokens(model, count)
        forms[f"token merging, {count} a block"] = model.tower("image")
    return forms


def megabytes(module: nn.Module) -> float:
    """Of its tensors."""
    return sum(t.numel() * t.element_size() for t in module.state_dict().values()) / 1e6


@torch.no_grad()
def asked(embedder: Embedder, cfg: Any, given: argparse.Namespace) -> tuple[str, Question]:
    """Name of the set, and its samples."""
    for name, entry in cfg.evaluation.sets.items():
        has = entry is not None and {given.tower, given.other} <= set(entry.source.modalities)
        if has and given.set in (None, name):
            break
    else:
        raise SystemExit(f"no set of the evaluation has {given.tower} and {given.other}")
    source = build(cfg, "evaluation", "sets", str(name), "source", convert="all")
    loader = EvaluationLoader(source, embedder.data, [given.tower, given.other])
    inputs, gallery, keys = [], [], []
    for batch in loader:
        first = batch.repeats == 0
        other, mask = batch.inputs[given.other], batch.masks.get(given.other)
        inputs.append(batch.inputs[given.tower][first])
        gallery.append(
            embedder.inputs(given.other, other[first], None if mask is None else mask[first])
        )
        keys.append(batch.positive_keys[first])
        if sum(map(len, keys)) >= given.most:
            break
    return str(name), Question(torch.cat(inputs), torch.cat(gallery), torch.cat(keys))


def made(
    embedder: Embedder, name: str, folder: Path, threads: int
) -> tuple[dict[str, Form], dict[str, float], dict[str, str]]:
    """Forms by label, their megabytes, and what is not there."""
    tower = embedder.model.tower(name).eval()
    size = megabytes(tower)
    half = copy.deepcopy(tower).bfloat16()
    forms: dict[str, Form] = {"fp32 eager": tower}
    sizes = {"fp32 eager": size}
    left_out: dict[str, str] = {}
    candidates: dict[str, Callable[[], Form]] = {
        "fp32 compiled": lambda: compiled(tower),
        "bf16": lambda: lambda x: half(x.bfloat16()).float(),
        "token merging, 8 a block": lambda: merged(embedder, name),
    }
    graph = tower_graph(tower, name, embedder.transforms[name])
    write_onnx(graph.program(), graph, folder / "fp32.onnx")
    for kind in (None, "fp16", "int8_weights", "int8"):
        path = folder / f"{kind or 'fp32'}.onnx"
        if kind is not None:
            shutil.copy(folder / "fp32.onnx", path)
            quantize(path, kind)
        label = f"ONNX {kind or 'fp32'}"
        candidates[label] = lambda path=path: on_runtime(path, threads)
        sizes[label] = path.stat().st_size / 1e6
    example = graph.example[0][:1]
    for label, make in candidates.items():
        try:
            form = make()
            with torch.no_grad():
                form(example)
        except Exception as error:  # a machine may lack a compiler, a tower what is asked for
            reason = str(error).strip().splitlines()
            left_out[label] = f"{type(error).__name__}: {reason[0][:120] if reason else ''}"
            continue
        forms[label] = form
        sizes.setdefault(label, size / 2 if label == "bf16" else size)
    return forms, sizes, left_out


def compiled(tower: nn.Module) -> Form:
    """By Inductor, for batches of 1 and of 32: convolutions of any size it refuses on a CPU."""
    static = torch.compile(copy.deepcopy(tower), dynamic=False)

    def form(inputs: Tensor) -> Tensor:
        size = 1 if len(inputs) == 1 else BATCH
        rows = inputs[torch.arange(size) % len(inputs)]
        return static(rows)[: len(inputs)]

    return form


def merged(embedder: Embedder, name: str) -> nn.Module:
    """The tower with token merging."""
    model = copy.deepcopy(embedder.model)
    if name not in merge_tokens(model, 8):
        raise ValueError("the tower is not a ViT")
    return model.tower(name)


def on_runtime(path: Path, threads: int) -> Form:
    """An ONNX file, as a form."""
    ready = session(path, threads)
    return lambda x: torch.from_numpy(run(ready, {"inputs": x.numpy()})[0])


@torch.no_grad()
def embedded(form: Form, inputs: Tensor) -> Tensor:
    """All samples."""
    return torch.cat([form(part) for part in inputs.split(BATCH)])


@torch.no_grad()
def timed(
    forms: dict[str, Form], inputs: dict[str, Tensor], rounds: int
) -> dict[str, tuple[float, float]]:
    """Median seconds of a batch of 1 and of 32, by form; all take turns."""
    found: dict[tuple[str, int], list[float]] = {}
    for number in range(-2, rounds):
        for label in list(forms)[:: -1 if number % 2 else 1]:
            for size in (1, BATCH):
                batch = inputs[label][torch.arange(size) % len(inputs[label])]
                start = time.perf_counter()
                forms[label](batch)
                if number >= 0:
                    spent = time.perf_counter() - start
                    found.setdefault((label, size), []).append(spent)
    return {
        label: tuple(statistics.median(found[label, size]) for size in (1, BATCH))  # type: ignore[misc]
        for label in forms
    }


def recall(rows: Tensor, question: Question) -> str:
    """R@1 in percent, with its interval."""
    unit = nn.functional.normalize
    scores = retrieval(
        unit(rows.float(), dim=1), unit(question.gallery, dim=1), question.keys, question.keys
    )
    low, high = scores.recall_interval(1)
    return f"{100 * scores.recall[1]:.1f} ({100 * low:.1f}–{100 * high:.1f})"


def by_index(rows: Tensor, question: Question, code: Any) -> str:
    """R@1 of what an index of codes finds first."""
    gallery = question.gallery.numpy()
    index = Index(gallery, ["other"] * len(gallery), quantize=code)
    first = [index.search(query, 1)["other"][0].row for query in rows.float().numpy()]
    hits = (question.keys[torch.tensor(first)] == question.keys).numpy().astype(np.float64)
    low, high = mean_interval(hits)
    return f"{100 * hits.mean():.1f} ({100 * low:.1f}–{100 * high:.1f})"


if __name__ == "__main__":
    main()
