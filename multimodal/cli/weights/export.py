"""A model as files of its own: multimodal export checkpoint=PATH output=FOLDER."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from multimodal.cli.main import run
from multimodal.core.process.exits import refused

if TYPE_CHECKING:
    from multimodal.inference.export.checks import Agreement


def export(cfg: DictConfig) -> None:
    """Writes ``cfg.output`` and prints by how much each graph differs from the model."""
    from multimodal.config import named_by
    from multimodal.core.process.provenance import code_version
    from multimodal.core.process.quiet import note
    from multimodal.inference.checkpoint import store
    from multimodal.inference.checkpoint.file import CheckpointError
    from multimodal.inference.checkpoint.load import load_checkpoint
    from multimodal.inference.checkpoint.locate import checkpoint_at
    from multimodal.inference.export import writing
    from multimodal.inference.export.card import card, run_of
    from multimodal.inference.export.graphs import ExportError
    from multimodal.inference.load import embedder_of

    output = Path(cfg.output).expanduser()
    heads: Any = OmegaConf.to_container(cfg.zero_shot) if cfg.zero_shot is not None else {}
    choices = writing.Choices(
        None if cfg.towers is None else list(cfg.towers),
        list(cfg.formats),
        cfg.opset,
        cfg.tolerance,
        heads,
        cfg.quantize,
        cfg.least_cosine,
    )
    try:
        with refused("export"):
            checkpoint = checkpoint_at(cfg.checkpoint)
            loaded = load_checkpoint(
                checkpoint, cfg.allowed_packages, cfg.weights, addresses=named_by(cfg)
            )
            source = {
                "checkpoint": checkpoint.name,
                "sha256": store.digest(checkpoint),
                **code_version(),
            }
            embedder = embedder_of(
                loaded.model, loaded.cfg, "cpu", temperatures=loaded.temperatures
            )
            step = int(store.head(checkpoint).get("global_step", 0))
            text = card(run_of(loaded.cfg, loaded.model, step, checkpoint))
            agreements = writing.export(
                embedder,
                loaded.cfg,
                output,
                choices,
                source,
                lambda part: note(f"exporting {part}"),
                text,
            )
    except CheckpointError as error:
        raise ExportError(str(error)) from error
    for each in agreements:
        print(_line(each, cfg.quantize))
    print(f"written: {output}")


def _line(each: Agreement, quantize: str | None) -> str:
    """By how much a graph differs, and its size."""
    apart = [f"torch.export {each.program:.1e}"]
    if each.onnx is not None:
        size = each.megabytes if each.full_megabytes is None else each.full_megabytes
        apart.append(f"ONNX Runtime {each.onnx:.1e}, {size:.1f} MB")
    if each.cosine is not None:
        apart.append(f"{quantize} by cosine {each.cosine:.4f}, {each.megabytes:.1f} MB")
    return f"{each.name}: differs by {', '.join(apart)}"


def command() -> None:
    """`multimodal export` and `python scripts/export.py`."""
    run("export", export, paths=("checkpoint", "output"))
