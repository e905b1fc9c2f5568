"""A model as a folder: graphs, weights, ``model.json``, the runner, a card."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from safetensors.torch import save_file
from torch.nn import functional

from multimodal.core.files import whole_folder
from multimodal.core.suggest import suggest
from multimodal.inference.embedder import Embedder
from multimodal.inference.export import manifest, runner_file
from multimodal.inference.export.checks import TOLERANCE, Agreement, compared, with_cosine
from multimodal.inference.export.configuration import configuration
from multimodal.inference.export.frontends import frontend_of
from multimodal.inference.export.graphs import ExportError, Graph, fusion_graph, tower_graph
from multimodal.inference.export.onnx_file import OPSET, write_onnx
from multimodal.inference.export.preprocessing import Preprocessing, settings_of
from multimodal.inference.export.quantizing import LEAST_COSINE, check_kind, quantize
from multimodal.models.fusion_model import FusionModel

FORMATS = ("onnx", "program")
FRONTEND = ".frontend"  # ends the names of graphs that prepare inputs


@dataclass(frozen=True)
class Choices:
    """What is exported, and how.

    Attributes:
        towers: by modality; None: all.
        formats: ``onnx``, ``program`` (`torch.export`); safetensors are always there.
        opset: version of ONNX's operators.
        tolerance: most by which a graph's outputs may differ from the model's.
        zero_shot: name of a head -> ``classes``, and ``prompts`` with ``{}`` for a class's name.
        quantize: how the ONNX files are made smaller (`quantizing.KINDS`); None: float32.
        least_cosine: of a quantised graph's rows with the model's.
    """

    towers: Sequence[str] | None = None
    formats: Sequence[str] = FORMATS
    opset: int = OPSET
    tolerance: float = TOLERANCE
    zero_shot: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    quantize: str | None = None
    least_cosine: float = LEAST_COSINE


@dataclass
class _Work:
    folder: Path
    choices: Choices
    agreements: list[Agreement] = field(default_factory=list)

    def write(self, graph: Graph, name: str) -> dict[str, str]:
        """Writes one graph in the wanted formats, compares it; the names of its files."""
        program, files = graph.program(), {}
        if "program" in self.choices.formats:
            files["program"] = f"{name}.pt2"
            torch.export.save(program, self.folder / files["program"])
        if "onnx" in self.choices.formats:
            files["onnx"] = f"{name}.onnx"
            write_onnx(program, graph, self.folder / files["onnx"], self.choices.opset)
        onnx = self.folder / files["onnx"] if "onnx" in files else None
        agreement = compared(name, graph, program, onnx, self.choices.tolerance)
        kind = self.choices.quantize
        if kind is not None and onnx is not None and not name.endswith(FRONTEND):
            quantize(onnx, kind)
            agreement = with_cosine(agreement, graph, onnx, kind, self.choices.least_cosine)
        self.agreements.append(agreement)
        return files


def export(
    embedder: Embedder,
    cfg: DictConfig,
    output: Path,
    choices: Choices,
    source: Mapping[str, Any],
    progress: Callable[[str], None] = lambda _: None,
    card: str | None = None,
) -> list[Agreement]:
    """Writes ``output``, whole or not at all.

    Args:
        embedder: the model on the CPU, and its transforms.
        cfg: the configuration that it comes from.
        output: of the folder; must not exist, or be empty.
        choices: what, and how.
        source: what ``model.json`` says of where it comes from.
        progress: called with the name of each part.
        card: of the model, written as ``README.md``.

    Returns:
        by how much each graph's outputs differ from the model's.

    Raises:
        ExportError: if there is no such tower, a graph cannot be traced, or it differs from the
            model; nothing is written then.
    """
    embedder.need_pooled("export")
    towers = _towers(embedder, choices)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ExportError(f"output={output} exists: name a new folder, or remove it")
    with whole_folder(output) as made:
        work = _Work(made, choices)
        _write(work, embedder, cfg, towers, source, progress)
        if card is not None:
            (made / manifest.CARD).write_text(card, "utf-8")
    return work.agreements


def _towers(embedder: Embedder, choices: Choices) -> list[str]:
    known = [name for name in embedder.model.towers if name in embedder.transforms]
    for name in choices.towers or ():
        if name not in known:
            raise ExportError(f"towers={name}: the model has no such tower; {suggest(name, known)}")
    for name in choices.formats:
        if name not in FORMATS:
            raise ExportError(f"formats={name}: {suggest(name, FORMATS)}")
    if choices.zero_shot and "onnx" not in choices.formats:
        raise ExportError("zero_shot needs formats=[onnx]: the runner uses it")
    if choices.quantize is not None:
        check_kind(choices.quantize)
        if "onnx" not in choices.formats:
            raise ExportError("quantize needs formats=[onnx]: it is those files that get smaller")
    return list(choices.towers or known)


def _write(
    work: _Work,
    embedder: Embedder,
    cfg: DictConfig,
    towers: list[str],
    source: Mapping[str, Any],
    progress: Callable[[str], None],
) -> None:
    model, folder = embedder.model, work.folder
    preprocessing: dict[str, Preprocessing] = {}
    about: dict[str, Any] = {
        "format": manifest.FORMAT,
        "version": manifest.VERSION,
        "name": str(cfg.get("name") or "model"),
        "embed_dim": model.embed_dim,
        "opset": work.choices.opset if "onnx" in work.choices.formats else None,
        "quantize": work.choices.quantize,
        "source": dict(source),
        "towers": {},
    }
    for name in towers:
        progress(name)
        preprocessing[name] = settings_of(embedder.transforms[name])
        about["towers"][name] = _tower(work, embedder, name, preprocessing[name])
    if isinstance(model, FusionModel) and set(model.fused) <= set(towers):
        progress("fusion")
        graph = fusion_graph(model, embedder.transforms)
        about["fusion"] = {**work.write(graph, "fusion"), "outputs": graph.outputs, **graph.about}
    about["temperatures"] = [
        {"pair": sorted(pair), "temperature": value}
        for pair, value in embedder.temperatures.items()
        if pair <= set(towers)
    ]
    about["zero_shot"] = {
        name: _head(embedder, name, head) for name, head in work.choices.zero_shot.items()
    }
    text, files = configuration(cfg, towers, preprocessing)
    for file, content in {manifest.CONFIG: text, **files}.items():
        (folder / file).write_text(content, "utf-8")
    whole = set(towers) == set(model.towers)
    keep = tuple(f"towers.{name}." for name in towers)
    state = {
        key: tensor.detach().clone().contiguous()
        for key, tensor in model.state_dict().items()
        if whole or key.startswith(keep)
    }
    save_file(state, folder / manifest.WEIGHTS, {"format": "pt"})
    if "onnx" in work.choices.formats:
        (folder / manifest.RUNNER).write_text(runner_file.text(), "utf-8")
    about["files"] = manifest.hashes(folder)
    (folder / manifest.NAME).write_text(json.dumps(about, indent=1) + "\n", "utf-8")


def _tower(work: _Work, embedder: Embedder, name: str, how: Preprocessing) -> dict[str, Any]:
    """What ``model.json`` says of a tower; writes its graphs and its tokenizer."""
    tower, transform = embedder.model.tower(name), embedder.transforms[name]
    settings = dict(how.settings)
    if how.tokenizer is not None:
        settings["tokenizer"] = f"{name}.tokenizer.json"
        (work.folder / settings["tokenizer"]).write_text(how.tokenizer, "utf-8")
    frontend = frontend_of(transform)
    if frontend is not None and "onnx" in work.choices.formats:
        settings["graph"] = work.write(frontend, f"{name}{FRONTEND}")["onnx"]
    graph = tower_graph(tower, name, transform)
    settings["blank"] = list(graph.example[0].shape[1:])
    files = {} if tower.head is None else work.write(graph, name)
    return {
        **files,
        "inputs": graph.inputs,
        "encoder": type(tower.encoder).__name__,
        "parameters": sum(parameter.numel() for parameter in tower.parameters()),
        "scale": None if tower.scale is None else float(tower.scale),
        "preprocessing": settings,
    }


def _head(embedder: Embedder, name: str, head: Mapping[str, Any]) -> dict[str, Any]:
    """The labels of a zero-shot head, and their embeddings by the text tower."""
    classes = [str(each) for each in head.get("classes") or ()]
    prompts = [str(each) for each in head.get("prompts") or ("{}",)]
    if not classes or not all("{}" in prompt for prompt in prompts):
        raise ExportError(
            f"zero_shot.{name}: expected classes=[...], and prompts=[...] with {{}} for a name"
        )
    if "text" not in embedder.model.towers:
        raise ExportError(f"zero_shot.{name} needs a tower for 'text', and the model has none")
    texts = [prompt.replace("{}", each) for each in classes for prompt in prompts]
    rows = functional.normalize(embedder.embed(text=texts), dim=-1)
    means = functional.normalize(rows.view(len(classes), len(prompts), -1).mean(dim=1), dim=-1)
    known = embedder.temperatures
    usual = max(known.values(), default=0.07)
    modalities = [each for each in embedder.transforms if each != "text"]
    return {
        "classes": classes,
        "prompts": prompts,
        "embeddings": means.tolist(),
        "temperatures": {m: known.get(frozenset((m, "text"))) or usual for m in modalities},
    }
