"""Publishes a checkpoint: a folder in a layout that others open, here or on a hub."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from multimodal.core.extras import module_of
from multimodal.core.files import whole_folder
from multimodal.inference.embedder import Embedder
from multimodal.inference.export import manifest
from multimodal.inference.export.graphs import ExportError
from multimodal.inference.publish import layouts

HUB = "hub://"
TOKEN = "HF_TOKEN"  # variable of the environment
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True)
class Published:
    """What was written, or would be.

    Attributes:
        layout: ``transformers``, ``open_clip``, ``sentence-transformers`` or ``ours``.
        reason: why it is not that of ``transformers``; None: it is.
        files: name -> bytes, of all that leaves the machine.
    """

    layout: str
    reason: str | None
    files: dict[str, int]


def check_target(to: str) -> None:
    """Refuses a target before anything is built.

    Raises:
        ExportError: if it is a folder that is there, no name of a hub, or there is no token.
    """
    if not to.startswith(HUB):
        folder = Path(to).expanduser()
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ExportError(f"{to} exists: name a new folder, or remove it")
        return
    if not _NAME.fullmatch(to.removeprefix(HUB)):
        raise ExportError(f"{to}: expected hub://OWNER/NAME")


def publish(
    embedder: Embedder,
    cfg: DictConfig,
    to: str,
    card: str,
    source: Mapping[str, Any],
    layout: str = "auto",
    dry_run: bool = False,
    private: bool = True,
    tower: str | None = None,
) -> Published:
    """Writes the model to ``to``, whole or not at all.

    Args:
        embedder: the model on the CPU, and its transforms.
        cfg: the configuration that it comes from.
        to: a new folder, or ``hub://OWNER/NAME``.
        card: of the model, its ``README.md``.
        source: where it comes from.
        layout: see `layouts.write`.
        dry_run: makes everything, lists it, and lets nothing leave.
        private: of a repository that is made on the hub.
        tower: see `layouts.write`.

    Raises:
        ExportError: if the target cannot be written, or there is no token for the hub.
        WeightsError: if the model has not the layout that is asked for.
    """
    embedder.need_pooled("publish")
    _check(to, dry_run)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "model"
        folder.mkdir()
        used, reason = layouts.write(embedder, cfg, folder, layout, source, tower)
        (folder / manifest.CARD).write_text(_headed(card, used), "utf-8")
        return Published(used, reason, _send(folder, to, dry_run, private))


def publish_exported(
    exported: Path, to: str, dry_run: bool = False, private: bool = True
) -> Published:
    """Sends a folder that `multimodal export` wrote, as it is: graphs, quantized ones too, weights.

    What its ``model.json`` lists leaves, with that and the card, and nothing else that lies there.

    Args:
        exported: the folder.
        to, dry_run, private: see `publish`.

    Raises:
        ExportError: as `publish`; or if a file is missing, damaged or of another version.
    """
    _check(to, dry_run)
    names = [*manifest.read(exported)["files"], manifest.NAME]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "model"
        folder.mkdir()
        for name in names:
            shutil.copy(exported / name, folder / name)
        card = exported / manifest.CARD
        text = card.read_text("utf-8") if card.is_file() else ""
        headed = text if text.startswith("---") else _headed(text, "ours")
        (folder / manifest.CARD).write_text(headed, "utf-8")
        return Published("ours", None, _send(folder, to, dry_run, private))


def _check(to: str, dry_run: bool) -> None:
    check_target(to)
    if to.startswith(HUB) and not dry_run and not os.environ.get(TOKEN):
        raise ExportError(f"{to} needs a token in the environment's {TOKEN}; --dry-run needs none")


def _send(folder: Path, to: str, dry_run: bool, private: bool) -> dict[str, int]:
    """Sends or places a folder, or neither; name -> bytes of its files."""
    files = {
        str(path.relative_to(folder)): path.stat().st_size
        for path in sorted(folder.rglob("*")) if path.is_file()
    }  # fmt: skip
    if not dry_run and to.startswith(HUB):
        _upload(folder, to.removeprefix(HUB), os.environ[TOKEN], private)
    elif not dry_run:
        _place(folder, Path(to).expanduser())
    return files


def _headed(card: str, layout: str) -> str:
    """The card with what a hub reads of it."""
    library = "multimodal" if layout == "ours" else layout
    head = ["---", f"library_name: {library}", "tags: [multimodal, embeddings]", "---", ""]
    return "\n".join(head) + card


def _place(folder: Path, output: Path) -> None:
    with whole_folder(output) as beside:
        shutil.copytree(folder, beside, dirs_exist_ok=True)


def _upload(folder: Path, name: str, token: str, private: bool) -> None:
    hub = module_of("huggingface", "huggingface_hub", f"publishing to {HUB}{name}")
    api = hub.HfApi(token=token)
    try:
        api.create_repo(name, exist_ok=True, private=private)
        api.upload_folder(repo_id=name, folder_path=str(folder), commit_message="Publish the model")
    except Exception as error:  # the hub's client raises many kinds
        reason = str(error).strip().splitlines()
        said = (reason[0] if reason else "").replace(token, "<redacted>")
        raise ExportError(f"{HUB}{name}: {type(error).__name__}: {said}") from None
