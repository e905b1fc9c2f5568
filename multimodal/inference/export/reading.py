"""An exported folder as a model of ours again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file

from multimodal.config import for_use, stored_config
from multimodal.inference.checkpoint.load import Loaded, build_model
from multimodal.inference.export import manifest
from multimodal.inference.export.configuration import with_paths
from multimodal.inference.export.graphs import ExportError


def load_exported(
    folder: Path, allowed_packages: Sequence[str] = (), addresses: Sequence[str] = ()
) -> Loaded:
    """The model of a folder that `writing.export` wrote, filled, in evaluation mode.

    Args:
        folder: with a ``model.json``.
        allowed_packages: of the caller's own, that its towers may come from.
        addresses: that the caller names; no other one in its configuration is opened.

    Raises:
        ExportError: if a file is missing, damaged or of another version, or the weights do not fit.
        ConfigError: if its configuration names what may not stand there.
    """
    about = manifest.read(folder)
    for name in (manifest.CONFIG, manifest.WEIGHTS):
        if name not in about["files"]:
            raise ExportError(f"{folder} lacks {name}: export it anew")
    path = folder / manifest.CONFIG
    cfg = for_use(stored_config(path.read_text("utf-8"), path, allowed_packages, addresses))
    cfg = with_paths(cfg, folder)
    model = build_model(cfg)
    try:
        model.load_state_dict(load_file(folder / manifest.WEIGHTS))
    except (SafetensorError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ExportError(
            f"{folder / manifest.WEIGHTS} does not fit {path.name}: {reason}"
        ) from error
    temperatures = {
        frozenset(entry["pair"]): float(entry["temperature"]) for entry in about["temperatures"]
    }
    return Loaded(model.eval(), cfg, temperatures)
