"""LoRA apart, attached or merged; weights blended: multimodal adapters checkpoint=A output=B."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from multimodal.cli.main import run


def adapters(cfg: DictConfig) -> None:
    """Writes adapters apart, or a checkpoint with them on, merged, or blended with ``cfg.base``."""
    from multimodal.config import ConfigError, ConfigProblem, named_by
    from multimodal.inference.adapters import export, rewrite
    from multimodal.inference.checkpoint.locate import checkpoint_at
    from multimodal.inference.interpolating import interpolate
    from multimodal.models.pretrained.keys import WeightsError

    given = (tuple(cfg.allowed_packages), named_by(cfg))
    checkpoint = str(checkpoint_at(cfg.checkpoint))
    try:
        if cfg.base is not None:
            if cfg.merge or cfg.adapters is not None or not str(cfg.output).endswith(".ckpt"):
                raise WeightsError("base=PATH needs output=FILE.ckpt, and neither of the others")
            towers = None if cfg.towers is None else list(cfg.towers)
            base = str(checkpoint_at(cfg.base))
            _, done = interpolate(checkpoint, base, cfg.output, cfg.share, towers, *given)
        elif str(cfg.output).endswith(".ckpt"):
            folder = None if cfg.adapters is None else Path(cfg.adapters)
            if folder is not None and not folder.is_dir():
                raise WeightsError(f"adapters={folder}: no such folder")
            _, done = rewrite(checkpoint, cfg.output, folder, cfg.merge, *given)
        elif cfg.merge or cfg.adapters is not None:
            raise WeightsError("merge=true and adapters=FOLDER need output=FILE.ckpt")
        else:
            counts = export(checkpoint, Path(cfg.output), *given)
            done = {name: f"{count} tensors of adapters" for name, count in counts.items()}
    except WeightsError as error:
        raise ConfigError([ConfigProblem("checkpoint", str(error))]) from error
    for name, what in done.items():
        print(f"{name}: {what}")
    print(f"written: {cfg.output}")


def command() -> None:
    """`multimodal adapters` and `python scripts/adapters.py`."""
    run("adapters", adapters, paths=("checkpoint", "output", "adapters", "base"))
