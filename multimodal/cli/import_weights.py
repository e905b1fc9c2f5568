"""Imports foreign weights: python scripts/import_weights.py input=PATH output=PATH."""

from __future__ import annotations

from omegaconf import DictConfig

from multimodal.cli.main import run


def import_weights(cfg: DictConfig) -> None:
    """Reads ``cfg.input``, writes ``cfg.output``, prints the towers and what was changed."""
    from rich.console import Console  # torch and the rest not before the words are known to be good

    from multimodal.config import ConfigError, Fault
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
            num_frames=cfg.num_frames,
            tubelet=cfg.tubelet,
        )
        checkpoint.save(imported, cfg.output)
    except WeightsError as error:
        raise ConfigError([Fault(str(cfg.input), str(error))]) from error
    console = Console()
    console.print(checkpoint.table(imported.model))
    for line in (*imported.notes, *(f"left over: {name}" for name in imported.diff.allowed)):
        console.print(line, markup=False)
    console.print(f"written and read back: {cfg.output}", markup=False)


def command() -> None:
    """`multimodal import_weights` and `python scripts/import_weights.py`."""
    run("import_weights", import_weights)
