"""Imports foreign weights: multimodal import input=PATH output=PATH."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from multimodal.cli.main import run


def import_weights(cfg: DictConfig) -> None:
    """Reads ``cfg.input``, writes ``cfg.output``, prints the towers and what was changed."""
    from rich.console import Console  # imported late: torch only after the arguments are valid

    from multimodal.config import ConfigError, ConfigProblem
    from multimodal.inference import imported as checkpoint
    from multimodal.inference import importing
    from multimodal.models.pretrained import files
    from multimodal.models.pretrained.keys import WeightsError

    try:
        imported = importing.import_weights(
            files.read_state(cfg.input),
            files.read_config(cfg.config, cfg.input),
            cfg.source,
            allow=list(cfg.allow),
            prefix=cfg.prefix,
            image_size=cfg.image_size,
            context_length=cfg.context_length,
            num_frames=cfg.num_frames,
            tubelet=cfg.tubelet,
        )
        given = Path(cfg.input).expanduser()
        checkpoint.take_tokenizer(imported, given if given.is_dir() else given.parent)
        checkpoint.save(imported, cfg.output)
    except WeightsError as error:
        raise ConfigError([ConfigProblem("input", str(error))]) from error
    console = Console()
    console.print(checkpoint.table(imported.model))
    for line in (*imported.notes, *(f"left over: {name}" for name in imported.diff.allowed)):
        console.print(line, markup=False)
    console.print(f"written and read back: {cfg.output}", markup=False)


def command() -> None:
    """`multimodal import` and `python scripts/import_weights.py`."""
    run("import_weights", import_weights, paths=("input", "output", "config"))
